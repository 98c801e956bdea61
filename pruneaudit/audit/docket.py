"""Judges one table: all rules on all arms and comparisons of a workload, and the verdicts that follow."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from operator import attrgetter

from pruneaudit.audit.catalogue import required, rules
from pruneaudit.audit.evidence import Case, Evidence, Known, Table
from pruneaudit.audit.judge import Finding, judge
from pruneaudit.audit.precedents import Precedents, RunsAt, essence, name_of
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
        precedents: What was judged before, or None.
    """

    catalog: Catalog
    ledger: Ledger
    cell_of: Callable[[Cell], CellRecord | None]
    labels: tuple[str, ...] = ()
    waive: Mapping[str, str] = field(default_factory=dict)
    table: Table | None = None
    standings: Mapping[str, Standing] = field(default_factory=dict)
    looks: Callable[[str], Mapping[str, Sequence[int]]] = lambda protocol: {}
    precedents: Precedents | None = None
    _cases: dict[Arm | Comparison, Case] = field(default_factory=dict)
    _findings: dict[Arm | Comparison, list[Finding]] = field(default_factory=dict)
    _required: dict[str, frozenset[str]] = field(default_factory=dict)
    _known: Known = field(default_factory=dict)
    _names: dict[Arm | Comparison, str] = field(default_factory=dict)
    _records: dict[Arm, list[CellRecord | None]] = field(default_factory=dict)

    def rules(self, subject: Arm | Comparison) -> list[Rule]:
        """Rules that look at an arm, or at a comparison."""
        return rules_of(subject, self.table is not None)

    def finding(self, subject: Arm | Comparison, rule_id: str) -> Finding:
        """What one rule says."""
        return self._judge(rule_id, self._case(subject), subject.protocol)

    def findings(self, subject: Arm | Comparison, only: Sequence[str] = ()) -> list[Finding]:
        """What all rules say: those that the protocol requires, and stricter ones; or some of them ``only``."""
        if only and subject not in self._findings and not self._is_judged(subject):
            return [self.finding(subject, rule.id) for rule in self.rules(subject) if rule.id in only]
        if subject not in self._findings:
            found = self._judged_by(subject, whole_table=False) + self._judged_by(subject, whole_table=True)
            self._findings[subject] = sorted(found, key=attrgetter("rule"))
        known = self._findings[subject]
        return [finding for finding in known if finding.rule in only] if only else known

    def _judged_by(self, subject: Arm | Comparison, whole_table: bool) -> list[Finding]:
        """What rules say that look at the subject alone, or at all that was measured."""
        chosen = [rule.id for rule in self.rules(subject) if rule.whole_table == whole_table]

        def judged() -> list[Finding]:
            return [self._judge(rule_id, self._case(subject), subject.protocol) for rule_id in chosen]

        if self.precedents is None or not chosen:
            return judged()
        name = name_of(self._name(subject), self._table_name) if whole_table else self._name(subject)
        return self.precedents.findings(name, subject, self.labels, self._runs_of(subject), judged)

    def _is_judged(self, subject: Arm | Comparison) -> bool:
        return self.precedents is not None and self.precedents.knows(self._name(subject))

    def verdicts(self, comparisons: Iterable[Comparison]) -> dict[Comparison, Verdict]:
        """Verdicts, with p values adjusted over the comparisons of each protocol."""
        tables: dict[str, list[Comparison]] = defaultdict(list)
        for comparison in comparisons:
            tables[comparison.protocol].append(comparison)
        return {
            comparison: verdict
            for table in tables.values()
            for comparison, verdict in zip(table, self._decided(table), strict=True)
        }

    def _decided(self, table: Sequence[Comparison]) -> list[Verdict]:
        """Verdicts of the comparisons of one protocol."""

        def decided() -> list[Verdict]:
            return decide([self._judged(comparison) for comparison in table])

        if self.precedents is None:
            return decided()
        grounds = [
            [self._name(comparison), *(essence(self.findings(one)).decode() for one in (comparison, *comparison.arms))]
            for comparison in table
        ]
        name = name_of("verdicts", grounds) if all(name for name, *_ in grounds) else ""
        return self.precedents.verdicts(name, decided)

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
        return {
            arm: verdict
            for table in tables.values()
            for arm, verdict in zip(table, decide(list(table.values())), strict=True)
        }

    def _name(self, subject: Arm | Comparison) -> str:
        """What tells a subject, its records and what is asked of them from all others; empty: nothing does."""
        if self.precedents is None:
            return ""
        if subject not in self._names:
            if isinstance(subject, Arm):
                parts = list(map(self.precedents.mark, self._records_of(subject)))
            else:
                parts = [self._name(arm) for arm in subject.arms]
            what = [*vars(subject).values()], self._asked_of(subject)
            self._names[subject] = name_of(*what, parts) if all(parts) else ""
        return self._names[subject]

    def _asked_of(self, subject: Arm | Comparison) -> list[object]:
        """All that is asked of a subject beside its records."""
        protocol, metric = self.catalog.protocol(subject.protocol), self.catalog.workload(subject.workload).metric
        standing = self.standings.get(subject.protocol)
        plan = None if standing is None else standing.family.model_dump(mode="json")
        models = [protocol.model_dump(mode="json"), metric.model_dump(mode="json")]
        return [*models, self.labels, self.waive, self.looks(subject.protocol), plan]

    @cached_property
    def _table_name(self) -> str:
        """The same of all that was measured."""
        if self.precedents is None or self.table is None:
            return ""
        cells = [(*vars(cell).values(), self.precedents.mark(record)) for cell, record in self.table.cells.items()]
        return name_of(cells, self.table.order) if all(mark for *_, mark in cells) else ""

    def _records_of(self, arm: Arm) -> list[CellRecord | None]:
        if arm not in self._records:
            self._records[arm] = list(map(self.cell_of, arm.cells()))
        return self._records[arm]

    def _runs_of(self, subject: Arm | Comparison) -> RunsAt:
        """Ids of its runs, as its case gives them."""
        arms = (subject,) if isinstance(subject, Arm) else subject.arms

        @cache
        def runs(seed: int | None) -> tuple[str, ...]:
            pairs = zip(subject.seeds, *map(self._records_of, arms), strict=True)
            shown = [
                [record.runs for record in records if record is not None and record.status == "ok"]
                for known, *records in pairs
                if seed is None or known == seed
            ]
            return tuple(
                dict.fromkeys(run for found in shown if len(found) == len(arms) for ids in found for run in ids)
            )

        return runs

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
