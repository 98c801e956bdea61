"""What was judged before: findings and verdicts of records that are still the same, by code that is still the same.

What is judged depends on records, on what is asked of them, and on code alone. So a digest of these three names it, and
what an earlier report found under that name is what would be found again: after one new run, only what it touches is
judged. Derived and never the truth: it lies in the index of the ledger (:mod:`pruneaudit.ledger.index`), signed as its
rows are, and what is not there, or not readable, is judged anew.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter
from pydantic_core import from_json

from pruneaudit.audit.catalogue import rules
from pruneaudit.audit.judge import Finding
from pruneaudit.audit.verdicts import Verdict
from pruneaudit.catalog.cells import Arm, Comparison
from pruneaudit.ledger.records import CellRecord
from pruneaudit.ledger.store import Ledger

#: What a finding has of its subject and of its docket, which are known where it is asked for.
_OF_SUBJECT = frozenset({"workload", "protocol", "ratio", "arms", "seeds", "labels", "runs"})
_OWN = tuple(field.name for field in fields(Finding) if field.name not in _OF_SUBJECT)
_VERDICTS = TypeAdapter(list[Verdict])
#: Gives ids of all runs of a subject at a seed, or (None) at all seeds.
RunsAt = Callable[[int | None], tuple[str, ...]]


@cache
def _code() -> str:
    """Digest of all that judges; empty: some of it is none of this project's files."""
    if not all(rule.check.__module__.startswith("pruneaudit.") for rule in rules().values()):
        return ""
    package = Path(__file__).resolve().parents[1]
    libraries = {name: version(name) for name in ("numpy", "scipy", "statsmodels")}
    found = hashlib.sha256(f"{sys.version} {libraries}".encode())
    for path in sorted(package.rglob("*.py")):
        text = path.read_bytes()
        found.update(f" {path.relative_to(package)} {len(text)} ".encode() + text)
    return found.hexdigest()


def name_of(*parts: Any) -> str:
    """A name for what follows of code and of these JSON builtins; empty where one of them is empty."""
    if not all(parts) or not _code():
        return ""
    return hashlib.sha256(json.dumps([_code(), *parts], sort_keys=True).encode()).hexdigest()


@dataclass
class Precedents:
    """What is known of one ledger.

    Args:
        ledger: The ledger, of which all records were asked for (:meth:`Ledger.recall`).
        cells: Its cells, by key.
    """

    ledger: Ledger
    cells: Mapping[str, CellRecord]

    def __post_init__(self) -> None:
        self._known = self.ledger.derived()
        self._asked: set[str] = set()
        self._new: dict[str, bytes] = {}
        marks = self.ledger.marks() if self._known is not None else {}
        self._marks = {
            # What no other cell with these runs has, nor this one once one of them is edited.
            id(cell): " ".join(found) if all(found) else ""
            for key, cell in self.cells.items()
            for found in ([marks.get(name, "") for name in (key, *cell.runs)],)
        }

    def mark(self, cell: CellRecord | None) -> str:
        """What tells the record of a cell and those of its runs from all others; empty: nothing does."""
        return "not measured" if cell is None else self._marks.get(id(cell), "")

    def findings(
        self,
        name: str,
        subject: Arm | Comparison,
        labels: tuple[str, ...],
        runs: RunsAt,
        judge: Callable[[], list[Finding]],
    ) -> list[Finding]:
        """What is found of an arm or a comparison.

        Args:
            name: See :func:`name_of`; empty: nothing is known.
            subject: What is judged.
            labels: Settings that are not the default.
            runs: Gives ids of its runs.
            judge: Judges it.
        """

        def read(content: bytes) -> list[Finding]:
            common: dict[str, Any] = {"workload": subject.workload, "protocol": subject.protocol}
            common |= {"ratio": subject.ratio, "arms": subject.methods, "seeds": subject.seeds, "labels": labels}
            own = [dict(zip(_OWN, values, strict=True)) for values in from_json(content)]
            return [Finding(**common, **values, runs=runs(values["seed"])) for values in own]

        return self._once(name, read, essence, judge)

    def verdicts(self, name: str, decide: Callable[[], list[Verdict]]) -> list[Verdict]:
        """What follows of all comparisons of one table, see :meth:`findings`."""
        return self._once(name, _VERDICTS.validate_json, _VERDICTS.dump_json, decide)

    def knows(self, name: str) -> bool:
        """Whether something is known under a name."""
        return self._known is not None and name in self._known

    def _once(
        self,
        name: str,
        read: Callable[[bytes], list[Any]],
        write: Callable[[Any], bytes],
        make: Callable[[], list[Any]],
    ) -> list[Any]:
        if not name or self._known is None:
            return make()
        self._asked.add(name)
        if name in self._known:
            return read(self._known[name])
        found = make()
        content = write(found)
        # What does not come back as it is (a number that is none, say) is judged every time.
        if read(content) == found:
            self._new[name] = content
        return found

    def keep(self) -> None:
        """Have the index know what was judged."""
        if self._known is not None:
            self.ledger.keep_derived(self._new, self._asked)


def essence(findings: Sequence[Finding]) -> bytes:
    """What findings have of their own."""
    return json.dumps([[getattr(finding, name) for name in _OWN] for finding in findings]).encode()
