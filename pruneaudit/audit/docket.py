"""Judges one table: all rules on all arms and comparisons of a workload, and the verdicts that follow."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

from pruneaudit.audit.catalogue import required, rules
from pruneaudit.audit.evidence import Case, Evidence, Known, Table
from pruneaudit.audit.judge import Finding, judge
from pruneaudit.audit.rounds import Standing
from pruneaudit.audit.rule import Rule
from pruneaudit.audit.verdicts import Judged, Verdict, decide
from pruneaudit.catalog.cells import Arm, Cell, Comparison
from pruneaudit.catalog.discovery import Catalog
from pruneaudit.ledger.records import CellRecord
from pruneaudit.ledger.store import Ledger

#: Name of the second arm where results are compared with those of an earlier version.
BASELINE = "baseline"


def rules_of(subject: Arm | Comparison, whole_table: bool = False) -> list[Rule]:
    """Rules that look at an arm, or at a comparison; those that need everything that was measured only where asked."""
    if isinstance(subject, Arm):
        return [rule for rule in rules().values() if rule.scope == "arm" and rule.applies(subject.method)]
    return [rule for rule in rules().values() if rule.scope != "arm" and (whole_table or not rule.whole_table)]


@dataclass
class Docket:
    """What is judged of one workload under one set of labels.

    Attributes:
        catalog: Where protocols are.
        ledger: Where the runs are.
        cell_of: Gives the record of a cell, or None where it was not measured.
        labels: Settings that are not the default.
        waive: Reason by rule.
        standings: Where comparisons stand that were planned before their first seed trained, by protocol.
        looks: Gives of a protocol over how many seeds there were verdicts without a plan, by series of seeds.
        table: Everything that was measured, once a session is over; None before: rules that need it are then left out.
    """

    catalog: Catalog
    ledger: Ledger
    cell_of: Callable[[Cell], CellRecord | None]
    labels: tuple[str, ...] = ()
    waive: Mapping[str, str] = field(default_factory=dict)
    table: Table | None = None
    standings: Mapping[str, Standing] = field(default_factory=dict)
    looks: Callable[[str], Mapping[str, Sequence[int]]] = lambda protocol: {}
    _cases: dict[Arm | Comparison, Case] = field(default_factory=dict)
    _findings: dict[Arm | Comparison, list[Finding]] = field(default_factory=dict)
    _required: dict[str, frozenset[str]] = field(default_factory=dict)
    _known: Known = field(default_factory=dict)

    def rules(self, subject: Arm | Comparison) -> list[Rule]:
        """Rules that look at an arm, or at a comparison."""
        return rules_of(subject, self.table is not None)

    def finding(self, subject: Arm | Comparison, rule_id: str) -> Finding:
        """What one rule says."""
        return self._judge(rule_id, self._case(subject), subject.protocol)

    def findings(self, subject: Arm | Comparison, only: Sequence[str] = ()) -> list[Finding]:
        """What all rules say: those that the protocol requires, and stricter ones; or some of them ``only``."""
        if only:
            return [self.finding(subject, rule.id) for rule in self.rules(subject) if rule.id in only]
        if subject not in self._findings:
            case = self._case(subject)
            self._findings[subject] = [self._judge(rule.id, case, subject.protocol) for rule in self.rules(subject)]
        return self._findings[subject]

    def verdicts(self, comparisons: Iterable[Comparison]) -> dict[Comparison, Verdict]:
        """Verdicts, with p values adjusted over the comparisons of each protocol."""
        tables: dict[str, dict[Comparison, Judged]] = defaultdict(dict)
        for comparison in comparisons:
            tables[comparison.protocol][comparison] = self._judged(comparison)
        return _decided(tables.values())

    def regressions(self, arms: Iterable[Arm], baseline: Callable[[Cell], Evidence | None]) -> dict[Arm, Verdict]:
        """Verdicts of arms against their own earlier results.

        Args:
            arms: The arms.
            baseline: Gives the earlier evidence of a cell, or None where there is none.
        """
        tables: dict[str, dict[Arm, Judged]] = defaultdict(dict)
        for arm in arms:
            subject = Comparison(arm.workload, arm.protocol, arm.method, BASELINE, arm.ratio, arm.seeds)
            now = self._case(arm)
            seeds: dict[int, tuple[Evidence, ...]] = {}
            broken = dict(now.broken)
            for cell in arm.cells():
                before = baseline(cell)
                seeds[cell.seed] = (*now.seeds[cell.seed], before) if now.seeds[cell.seed] and before else ()
                if before is None:
                    broken.setdefault(cell.seed, f"{cell.id}: not in the baseline")
            case = Case(subject, seeds, broken, now.failed)
            protocol = self.catalog.protocol(arm.protocol)
            wanted = [rules()[rule_id] for rule_id in required(protocol) if rules()[rule_id].scope != "arm"]
            findings = [self._judge(rule.id, case, arm.protocol) for rule in wanted] + self._needed(arm)
            tables[arm.protocol][arm] = self._weighed(case, findings)
        return _decided(tables.values())

    def _judged(self, comparison: Comparison) -> Judged:
        # Stricter rules on one arm alone say nothing about the difference of two.
        findings = [*self.findings(comparison), *(found for arm in comparison.arms for found in self._needed(arm))]
        judged = self._weighed(self._case(comparison), findings)
        standing = self.standings.get(comparison.protocol)
        if standing is None:
            return judged
        return replace(judged, plan=standing.family.plan, stop=standing.of(comparison))

    def _weighed(self, case: Case, findings: Iterable[Finding]) -> Judged:
        metric = self.catalog.workload(case.subject.workload).metric
        margin = metric.margin_under(self.catalog.protocol(case.subject.protocol).margin)
        return Judged(case, tuple(findings), margin, self.labels, metric)

    def _needed(self, arm: Arm) -> list[Finding]:
        return [finding for finding in self.findings(arm) if finding.required]

    def _judge(self, rule_id: str, case: Case, protocol: str) -> Finding:
        if protocol not in self._required:
            always = {rule.id for rule in rules().values() if rule.always}
            self._required[protocol] = frozenset(required(self.catalog.protocol(protocol))) | always
        if rules()[rule_id].always:
            case = self._as_looked_at(case, protocol)
        return judge(rule_id, case, rule_id in self._required[protocol], self.waive.get(rule_id, ""), self.labels)

    def _as_looked_at(self, case: Case, protocol: str) -> Case:
        """The case with its plan, and with what was known of it before."""
        standing = self.standings.get(protocol)
        is_planned = standing is not None and isinstance(case.subject, Comparison) and standing.of(case.subject)
        plan = standing.family.plan if standing is not None and is_planned else None
        return replace(case, plan=plan, looks=tuple(self.looks(protocol).get(case.series, ())))

    def _case(self, subject: Arm | Comparison) -> Case:
        if subject not in self._cases:
            # The case of an arm serves all of its comparisons.
            self._cases[subject] = (
                Case.read(subject, self.cell_of, self.ledger, self.table, self._known)
                if isinstance(subject, Arm)
                else Case.paired(subject, *map(self._case, subject.arms))
            )
        return self._cases[subject]


Subject = TypeVar("Subject", Arm, Comparison)


def _decided(tables: Iterable[Mapping[Subject, Judged]]) -> dict[Subject, Verdict]:
    """Verdicts table by table."""
    return {
        subject: verdict
        for table in tables
        for subject, verdict in zip(table, decide(list(table.values())), strict=True)
    }
