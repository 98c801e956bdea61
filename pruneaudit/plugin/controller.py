"""What the controlling process does: completeness guard, progress, report, exit status."""

from __future__ import annotations

import io
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from pruneaudit.audit.verdicts import Verdict
from pruneaudit.catalog.cells import Arm, Cell, Comparison
from pruneaudit.errors import AuditError, one_line
from pruneaudit.plugin.session import AuditSession, Check, Gate

if TYPE_CHECKING:
    from pruneaudit.report.results import Results

#: Exit status of a session that did not measure everything it selected.
INCOMPLETE = 3


class Controller:
    """Watches the items of a session from the process that the user started.

    A worker that dies can take its report with it, and pytest then still says 0. Every collected item must therefore be
    reported, or the session is incomplete.
    """

    def __init__(self, config: pytest.Config, audit: AuditSession) -> None:
        self.config = config
        self.audit = audit
        self.expected: set[str] = set()
        self.outcomes: dict[str, str] = {}
        self.complete: set[str] = set()
        self.reasons: dict[str, str] = {}
        self.missing: list[str] = []
        self.results: Results | None = None
        self.nothing_measured = ""
        self.lacking = ""
        self.report_error = ""
        self.annotations = io.StringIO()

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, node: Any, ids: list[str]) -> None:
        """Remember what the workers collected."""
        self.expected.update(ids)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Remember what this process collected (empty under xdist)."""
        self.expected.update(item.nodeid for item in session.items)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtestloop(self, session: pytest.Session) -> Any:
        """Tell how far the session is while items run."""
        if session.config.option.collectonly:
            return (yield)
        from pruneaudit.plugin.live import Teller

        with Teller(self.config, self.audit.ledger):
            return (yield)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Remember that an item was reported to its end, and how it ended."""
        # A worker can be lost between the reports of one item; the one of a crash has a phase of its own.
        if report.when not in ("setup", "call"):
            self.complete.add(report.nodeid)
        before = self.outcomes.get(report.nodeid, "passed")
        # A waived finding is an expected failure, which pytest reports as a skip.
        outcome = "waived" if hasattr(report, "wasxfail") else report.outcome
        if outcome != "passed" or before == "passed":
            self.outcomes[report.nodeid] = outcome
        if report.skipped and isinstance(report.longrepr, tuple):
            self.reasons[report.nodeid] = report.longrepr[2].removeprefix("Skipped: ")

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        """Judge what the ledger holds, write the report, and correct an exit status that claims too much."""
        if self.config.option.collectonly or exitstatus in (
            pytest.ExitCode.USAGE_ERROR,
            pytest.ExitCode.INTERNAL_ERROR,
        ):
            return
        self.missing = sorted(self.expected - self.complete)
        selected = self._selected()
        try:
            if selected:
                self._report(selected)
        except (AuditError, OSError) as error:
            self.report_error = one_line(error)
        incomplete = self.missing or self.nothing_measured or self.report_error or self.lacking
        if exitstatus == pytest.ExitCode.OK and incomplete:
            session.exitstatus = INCOMPLETE

    def _selected(self) -> dict[Cell | Check | Gate, str]:
        """Selected cells, checks and gates, each with the node id of its item."""
        nodes = {
            name.removesuffix("]"): nodeid for nodeid in self.expected for name in [nodeid.partition("[")[2]] if name
        }
        # Only of workloads that were selected: all items of all workloads are many.
        starts = {name.partition("-")[0] for name in nodes}
        workloads = [job.name for job in self.audit.selection.chosen() if job.name.partition("-")[0] in starts]
        known: dict[str, Cell | Check | Gate] = {cell.id: cell for cell in self.audit.cells(workloads)}
        known |= {check.id: check for check in self.audit.checks(workloads)}
        known |= {gate.id: gate for gate in self.audit.gates(workloads)}
        return {
            known[name]: nodeid for name, nodeid in sorted(nodes.items(), key=lambda node: node[1]) if name in known
        }

    def _report(self, selected: dict[Cell | Check | Gate, str]) -> None:
        from pruneaudit.report.drawing import Drawing
        from pruneaudit.report.github import tell_github
        from pruneaudit.report.results import Asked, gather
        from pruneaudit.report.writer import write

        audit = self.audit
        excused = {target: self.reasons[nodeid] for target, nodeid in selected.items() if self._excused(target, nodeid)}
        judged = [
            replace(target, subject=audit.taken_so_far(target.subject))
            for target in selected
            if not isinstance(target, Cell) and target not in excused
        ]
        cells = dict.fromkeys(target for target in selected if isinstance(target, Cell))
        cells.update(dict.fromkeys(cell for target in judged for cell in target.subject.cells()))
        wanted: dict[Arm | Comparison, set[str]] = {}
        for target in judged:
            if isinstance(target, Check):
                wanted.setdefault(target.subject, set()).add(target.rule)
        gates = [target for target in judged if isinstance(target, Gate)]
        compared = [gate.subject for gate in gates if isinstance(gate.subject, Comparison)]
        asked = Asked(
            subjects=list(dict.fromkeys([*wanted, *compared])),
            required=wanted,
            regressions=self._regressions(gates),
            skipped={target: reason for target, reason in excused.items() if isinstance(target, Cell)},
            study=audit.study,
        )
        with Drawing(audit.figures) as drawing:
            self.results = gather(audit.catalog, audit.settings, audit.ledger, cells, asked, drawing.begin)
            if audit.only_judges:
                lacking = [row for row in self.results.cells if row["status"] in ("missing", "outdated")]
                self.lacking = f"{len(lacking)} of {len(cells)} cells are not in {audit.ledger_path}" if lacking else ""
            if not self.lacking and all(self.outcomes.get(nodeid) == "skipped" for nodeid in selected.values()):
                reasons = "; ".join(sorted({self.reasons.get(nodeid, "") for nodeid in selected.values()}))
                self.nothing_measured = f"all {len(selected)} selected cells and checks were skipped: {reasons}"
            write(self.results, audit.report_path, drawing)
        tell_github(self.results, audit.fails_row, audit.report_path, output=self.annotations)

    def _regressions(self, gates: list[Gate]) -> list[Verdict]:
        """Verdicts against the baseline, from what the ledgers hold."""
        audit = self.audit
        subjects = [gate.subject for gate in gates if isinstance(gate.subject, Arm)]
        found: list[Verdict] = []
        for workload in dict.fromkeys(subject.workload for subject in subjects):
            docket = audit.docket(workload, audit.stored)
            found += audit.regressions(docket, [arm for arm in subjects if arm.workload == workload]).values()
        return found

    def _excused(self, target: Cell | Check | Gate, nodeid: str) -> bool:
        """Whether an item was skipped because its workload cannot run here, or its method does not apply."""
        if isinstance(target, Gate):
            own = f"{target.subject.workload} {target.subject.protocol} ratio"
        else:
            own = f"{target.id}: " if isinstance(target, Cell) else target.rule
        # What was looked at and not judged says so in a line that begins with its own name.
        return self.outcomes.get(nodeid) == "skipped" and not self.reasons.get(nodeid, own).startswith(own)

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Tables, audit matrix, what is missing, and where the files are."""
        from pruneaudit.report.terminal import summary

        if self.results is None and not self.missing and not self.report_error:
            return
        terminalreporter.write_sep("=", "pruneaudit")
        # GitHub reads an annotation only at the start of a line: not behind the dots.
        terminalreporter.write(self.annotations.getvalue())
        if self.results is not None:
            for line in summary(self.results, self.audit.fails_row):
                terminalreporter.write_line(line)
        if self.nothing_measured:
            terminalreporter.write_line(f"INCOMPLETE: nothing was measured; {self.nothing_measured}", red=True)
        if self.lacking:
            text = f"INCOMPLETE: {self.lacking}; run the suite with --audit-ledger to measure them"
            terminalreporter.write_line(text, red=True)
        if self.report_error:
            terminalreporter.write_line(f"INCOMPLETE: no report: {self.report_error}", red=True)
        if self.missing:
            names = ", ".join(self.missing[:3]) + (", …" if len(self.missing) > 3 else "")
            text = f"INCOMPLETE: {len(self.missing)} of {len(self.expected)} items were never reported: {names}"
            terminalreporter.write_line(text, red=True)
        if self.results is not None and not self.report_error:
            terminalreporter.write_line(f"report: {self.audit.report_path / 'report.html'}")
            terminalreporter.write_line(f"results: {self.audit.report_path / 'results.json'}")
