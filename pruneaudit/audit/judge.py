"""From records to findings: one comparison × one rule, over paired seeds."""

from __future__ import annotations

from collections.abc import Callable

from pruneaudit.audit.catalogue import Outcome, Value, Verdict, get_rule
from pruneaudit.audit.evidence import Evidence
from pruneaudit.cells import Cell, Comparison
from pruneaudit.config import Frozen
from pruneaudit.ledger import Ledger
from pruneaudit.records import CellRecord

# Worst first: the verdict of a comparison is the worst of its seeds.
_ORDER: tuple[Verdict, ...] = ("fail", "incomplete", "not measured", "pass")


class Finding(Frozen):
    """What a rule reports of a comparison.

    Attributes:
        rule: Id of the rule.
        verdict: ``pass``, ``fail``, ``not measured`` or ``incomplete``.
        workload: And the three fields below it: what was compared.
        arms: The two methods.
        seeds: Paired seeds.
        seed: The seed whose values are shown: the first with the worst verdict.
        measured: Measured value by method.
        labels: Settings that are not the default.
        runs: Ids of the runs that the values come from.
        note: Why, where the values do not say it alone.
    """

    rule: str
    verdict: Verdict
    workload: str
    protocol: str
    ratio: float
    arms: tuple[str, str]
    seeds: tuple[int, ...]
    seed: int
    measured: dict[str, Value]
    runs: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()
    note: str = ""

    @property
    def line(self) -> str:
        """The finding in one line."""
        left, right = self.arms
        claim = get_rule(self.rule).claim
        values = f"{left}: {self.measured.get(left)}; {right}: {self.measured.get(right)}"
        note = f" ({self.note})" if self.note else ""
        return f"{self.rule} {claim}: {self.verdict}, seed {self.seed}: {values}{note}"


def judge(
    comparison: Comparison,
    rule_id: str,
    cell_of: Callable[[Cell], CellRecord | None],
    ledger: Ledger,
    labels: tuple[str, ...] = (),
) -> Finding:
    """Apply one rule to one comparison.

    Args:
        comparison: Two arms over paired seeds.
        rule_id: The rule.
        cell_of: Gives the record of a cell, or None where it was not measured.
        ledger: Where the runs are.
        labels: Settings that are not the default.
    """
    rule = get_rule(rule_id)
    seen: list[tuple[int, Outcome, list[str]]] = []
    for seed in comparison.seeds:
        arms = []
        for method in (comparison.left, comparison.right):
            cell = Cell(comparison.workload, comparison.protocol, method, comparison.ratio, seed)
            arms.append((cell, cell_of(cell)))
        broken = [(cell, record) for cell, record in arms if record is None or record.status != "ok"]
        if broken:
            cell, record = broken[0]
            reason = record.error if record is not None else "not measured"
            seen.append((seed, Outcome("incomplete", None, None, f"{cell.id}: {reason}"), []))
            continue
        left, right = (Evidence.read(record, ledger) for _, record in arms if record is not None)
        runs = [run for _, record in arms if record is not None for run in record.runs]
        seen.append((seed, rule.check(left, right), list(dict.fromkeys(runs))))
    worst = min((outcome.verdict for _, outcome, _ in seen), key=_ORDER.index)
    seed, outcome, runs = next(entry for entry in seen if entry[1].verdict == worst)
    return Finding(
        rule=rule_id,
        verdict=worst,
        workload=comparison.workload,
        protocol=comparison.protocol,
        ratio=comparison.ratio,
        arms=(comparison.left, comparison.right),
        seeds=comparison.seeds,
        seed=seed,
        measured={comparison.left: outcome.left, comparison.right: outcome.right},
        runs=tuple(runs),
        labels=labels,
        note=outcome.note,
    )
