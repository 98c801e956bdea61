"""One cause, one failure: what else fails of the same cause is reported as not run.

A method whose file cannot be imported fails every item that needs it. The first of them fails and says why, where, and
where the traceback is; the others are skipped and counted in one line.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Generator
from pathlib import Path

import pytest

from pruneaudit.catalog.discovery import content_root

#: What an item failed of, on the item and on its report.
CAUSE = pytest.StashKey[str]()
_ATTRIBUTE = "audit_cause"
_FRAME = re.compile(r'File "([^"<>]+)", line (\d+)')
#: Code of the audit: of no user's.
_OURS = (Path(__file__).resolve().parents[1], content_root() / "suite")


def key(text: str) -> str:
    """What the messages of one cause have in common: not the run, nor the numbers of a ratio or seed."""
    return re.sub(r"\d+(\.\d+)?", "#", re.sub(r"^run \S+ failed: ", "", text))


def place(trace: str) -> str:
    """The last line of a user's own code in the text of a traceback, such as ``mine.py:12``; empty where none is."""
    own = [(path, line) for path, line in _FRAME.findall(trace) if _is_own(Path(path))]
    return f"{own[-1][0]}:{own[-1][1]}" if own else ""


def _is_own(path: Path) -> bool:
    return (
        not any(path.resolve().is_relative_to(folder) for folder in _OURS)
        and not {"site-packages", "dist-packages"} & set(path.parts)
        and (not re.search(r"/lib/python\d", path.as_posix()))
    )


def keep(trace: str, folder: Path) -> Path | None:
    """Write a traceback to a file named by what it says; None where that cannot be."""
    path = folder / f"{hashlib.sha256(trace.encode()).hexdigest()[:12]}.traceback.txt"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_text(trace, encoding="utf-8")
    except OSError:
        return None
    return path


def told(text: str, trace: str, folder: Path, otherwise: str = "") -> str:
    """A message with the line of the user's code that it is about, and where its traceback is kept.

    Args:
        text: The message.
        trace: Text of the traceback; empty where there is none.
        folder: Where it is kept.
        otherwise: The line to name where none of the user's is in the traceback: he returned what is refused.
    """
    # An error of syntax is no frame of the traceback, but told like one.
    where = place(trace) or otherwise
    kept = keep(trace, folder) if trace else None
    parts = [text, *([f"at {where}"] if where else []), *([f"traceback in {kept}"] if kept else [])]
    return "; ".join(parts)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Let the cause travel with the report, from a worker as well."""
    report = yield
    if report.failed and CAUSE in item.stash:
        setattr(report, _ATTRIBUTE, item.stash[CAUSE])
    return report


class Causes:
    """Lets one item fail of each cause, in the process that the user started.

    Attributes:
        dependants: Of the items that are reported as not run, by node id, the one that failed of the same cause.
    """

    def __init__(self) -> None:
        self.dependants: dict[str, str] = {}
        self._first: dict[str, str] = {}

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> Generator[None]:
        """Make of a further failure of a known cause an item that was not run, before anybody counts it."""
        cause = getattr(report, _ATTRIBUTE, None)
        if cause is not None and report.failed:
            first = self._first.setdefault(cause, report.nodeid)
            if first != report.nodeid:
                self.dependants[report.nodeid] = first
                path, line, _ = report.location
                report.outcome = "skipped"
                report.longrepr = (path, (line or 0) + 1, f"Skipped: not run: it depends on what failed in {first}")
        return (yield)

    def line(self) -> str | None:
        """How many items were not run; None where all were."""
        if not self.dependants:
            return None
        causes = len(set(self.dependants.values()))
        which = "the failure above" if causes == 1 else f"the {causes} failures above"
        return f"not run: {len(self.dependants)} item(s) that depend on {which}"
