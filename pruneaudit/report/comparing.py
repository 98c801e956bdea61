"""Compares a report with a reference: equal number by number, or what differs and what explains it."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pruneaudit.arithmetic import PORTABLE
from pruneaudit.errors import ConfigError
from pruneaudit.ledger.noise import Noise
from pruneaudit.report.values import value

#: What an environment says that may change numbers; the kernel and the name of the machine do not.
_EXPLAINS = ("pruneaudit", "torch", "arithmetic", "device")


@dataclass(frozen=True)
class Compared:
    """What a comparison found.

    Attributes:
        lines: What to say, one line each.
        is_fault: Whether results differ, or are lacking, that nothing explains.
    """

    lines: tuple[str, ...]
    is_fault: bool


def compare(ours: Path, reference: Path) -> Compared:
    """Compare the results of two reports.

    Args:
        ours: Folder of a report, or its ``results.json``.
        reference: The same of the one to compare with.

    Raises:
        ConfigError: One of them is no report, or they have no cell in common.
    """
    (here, left), (there, right) = _read(ours), _read(reference)
    common = [name for name in left if name in right]
    if not common:
        raise ConfigError(f"{ours} and {reference} have no result in common; compare reports of the same selection")
    arms: dict[tuple[Any, ...], dict[int, tuple[float, float]]] = defaultdict(dict)
    for name in common:
        arms[name[:-1]][name[-1]] = left[name], right[name]
    noise = Noise.of(arms.values())
    missing = len(right) - len(common)
    lacking = [f"{missing} of the reference's {len(right)} results are not here"] if missing else []
    if not noise.differ:
        return Compared(
            (f"equal: {noise.pairs} of {noise.pairs} results are those of {reference}", *lacking), missing > 0
        )
    worst = max(common, key=lambda name: abs(left[name] - right[name]))
    *_, protocol, method, ratio, seed = worst
    lines = [
        f"not equal to {reference}: {noise}",
        f"the largest difference is {method} under {protocol} at ratio {ratio:g}, seed {seed}: "
        f"{left[worst]:.2f} here, {right[worst]:.2f} there",
        *lacking,
    ]
    reasons = [
        f"{name}: {' and '.join(mine) or 'not told'} here, {' and '.join(its) or 'not told'} there"
        for name in _EXPLAINS
        if (mine := _told(name, here)) != (its := _told(name, there))
    ]
    if not reasons:
        return Compared((*lines, "versions and arithmetic are the same, so that one of the two is at fault"), True)
    how = "with the reference's versions (pip install -c constraints.txt) and arithmetic, results should be equal"
    return Compared((*lines, *reasons, f"{how}; what is within these differences is no claim"), missing > 0)


def _read(path: Path) -> tuple[list[dict[str, str]], dict[tuple[Any, ...], float]]:
    """Environments of a report's results.json, and its results."""
    file = path / "results.json" if path.is_dir() else path
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        return [dict(environment) for environment in content["environments"]], _measured(content["cells"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise ConfigError(f"{file} is no results.json of a report; give the folder of one") from None


def _measured(cells: Iterable[Mapping[str, Any]]) -> dict[tuple[Any, ...], float]:
    """Results by what they are of, whatever the arithmetic; the seed comes last."""
    return {
        (
            row["workload"],
            tuple(label for label in row["labels"] if label != PORTABLE),
            *(row[name] for name in ("protocol", "method", "ratio", "seed")),
        ): value(row)
        for row in cells
        if row["status"] == "ok"
    }


def _told(name: str, environments: Iterable[Mapping[str, str]]) -> list[str]:
    """What the environments of a report say of something, sorted."""
    return sorted({environment[name] for environment in environments if name in environment})
