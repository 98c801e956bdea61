"""Logs in the manner of Torch-Pruning: what changed as ``before => after``, accuracy by epoch, the best one last."""

from __future__ import annotations

import re
from pathlib import Path

from pruneaudit.tables.grid import Cell, Grid, build

_CHANGE = re.compile(
    r"(Params|FLOPs|MACs|Acc)\s*:\s*(\S+\s?[KMG]?)\s*=>\s*(\S+\s?[KMG]?)(?:\s*\(([\d.]+)%)?", re.IGNORECASE
)
_EPOCH = re.compile(r"Epoch\s+(\d+)(?:/(\d+))?.*?\bAcc(?:uracy)?\s*[=:]\s*([\d.]+)", re.IGNORECASE)
_BEST = re.compile(r"\bBest\s+Acc(?:uracy)?\s*[=:]\s*([\d.]+)", re.IGNORECASE)
_SETTING = re.compile(r"\b(method|model|dataset|seed|speed_up|total_epochs|lr)\s*:\s*(\S+)")
_STEP = re.compile(
    r"Pruning ratio\s*:\s*(?P<ratio>[\d.]+).*?MACs\s*:\s*(?P<macs>[\d.]+ ?[KMG]?).*?"
    r"Params\s*:\s*(?P<params>[\d.]+ ?[KMG]?)",
    re.IGNORECASE,
)


def read(path: Path, text: str) -> list[Grid]:
    """One row for each pruned network of the log."""
    facts: dict[str, str] = {}
    rows: list[tuple[int, dict[str, str]]] = []
    steps: list[tuple[int, dict[str, str]]] = []
    current: dict[str, str] = {}
    begin = 1
    for number, line in enumerate(text.split("\n"), 1):
        for name, value in _SETTING.findall(line):
            facts[name.lower()] = value
        step = _STEP.search(line)
        if step is not None:
            steps.append((number, {name: value.strip() for name, value in step.groupdict().items()}))
            continue
        for name, before, after, share in _CHANGE.findall(line):
            what = {"acc": "accuracy", "flops": "flops"}.get(name.lower(), name.lower())
            if what == "accuracy":
                current["base_accuracy"] = before
                current["pruned_accuracy"] = after
            else:
                if f"base_{what}" in current:
                    # A network that is pruned in steps: the last step counts, the first base stays.
                    before = current[f"base_{what}"]
                current[f"base_{what}"], current[what] = before, after
                if share:
                    current[f"{what}_kept"] = f"{share}%"
            begin = min(begin, number) if rows else begin
        epoch = _EPOCH.search(line)
        if epoch is not None:
            current["accuracy"] = epoch[3]
            current["epochs"] = epoch[2] or str(int(epoch[1]) + 1)
            current["epoch_reported"] = "last"
        best = _BEST.search(line)
        if best is not None:
            current |= {"accuracy": best[1], "epoch_reported": "best"}
            rows.append((number, current))
            current, begin = {}, number + 1
    if "accuracy" in current or "params" in current:
        rows.append((len(text.split("\n")), current))
    return [*_grids(path, rows, facts, 0), *_grids(path, steps, facts, 1 if rows else 0)]


def _grids(path: Path, rows: list[tuple[int, dict[str, str]]], facts: dict[str, str], before: int) -> list[Grid]:
    if not rows:
        return []
    known = {"method": "method", "model": "network", "dataset": "dataset"}
    shared = {known[name]: value for name, value in facts.items() if name in known}
    names = list(dict.fromkeys(name for _, row in rows for name in row if name != "pruned_accuracy"))
    header = [Cell(name) for name in [*shared, *names]]
    body: list[tuple[int, list[Cell] | None]] = [
        (number, [Cell(text) for text in [*shared.values(), *(row.get(name, "") for name in names)]])
        for number, row in rows
    ]
    return [build(path, before + 1, "", [header], body, rows[0][0])]
