"""What the controlling process does: completeness guard, progress, report, exit status."""

from __future__ import annotations

import contextlib
import io
import os
import shlex
import signal
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pruneaudit.audit.rounds import table_name
from pruneaudit.audit.statistics import seeds_needed
from pruneaudit.audit.verdicts import Verdict
from pruneaudit.catalog.cells import Arm, Cell, Comparison
from pruneaudit.errors import AuditError, DamagedError, StorageError, one_line
from pruneaudit.ledger.records import RunRecord
from pruneaudit.plugin.causes import Causes
from pruneaudit.plugin.interrupts import PATIENCE, Interrupts, Leash
from pruneaudit.plugin.outcomes import Disputes
from pruneaudit.plugin.project import hides
from pruneaudit.plugin.session import AuditSession, Check, Gate
from pruneaudit.plugin.storage import STOP
from pruneaudit.plugin.worker import LEASH

if TYPE_CHECKING:
    from pruneaudit.campaign.executors.dispatch import Dispatching
    from pruneaudit.campaign.rechecking import Rechecked
    from pruneaudit.report.results import Asked, Results

#: Exit status of a session that did not measure everything it selected.
INCOMPLETE = 3


class Controller:
    """Watches the items of a session from the process that the user started.

    A worker that dies can take its report with it, and pytest then still says 0. Every collected item must therefore be
    reported, or the session is incomplete.
    """

    def __init__(self, config: pytest.Config, audit: AuditSession, causes: Causes, disputes: Disputes) -> None:
        self.config = config
        self.causes = causes
        self.disputes = disputes
        self.audit = audit
        self.expected: set[str] = set()
        self.outcomes: dict[str, str] = {}
        self.complete: set[str] = set()
        self.reasons: dict[str, str] = {}
        self.missing: list[str] = []
        self.results: Results | None = None
        self.nothing_measured = ""
        self.lacking = ""
        self.rechecked: Rechecked | None = None
        self.report_error = ""
        self.bases_checked = False
        # Why the session stopped before its end, in one line; empty: it did not.
        self.stopped = ""
        self.annotations = io.StringIO()
        self._began = time.monotonic()
        self._leash = Leash()
        # Pytest diverts the usual descriptor while a test runs.
        self._terminal = os.dup(2)
        # What gives runs to a cluster, while items run.
        self._dispatching: Dispatching | None = None
        # What there is to say of the cluster when all is over.
        self.cluster_words = ""
        self.interrupts = Interrupts(PATIENCE, self._let_go, self._leave)
        self.interrupts.install()

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        """Tell a worker what holds it; hear under which name workers know the session."""
        node.workerinput[LEASH] = self._leash.path
        self.audit.id = node.workerinput["testrunuid"]

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, node: Any, ids: list[str]) -> None:
        """Remember what the workers collected."""
        self.expected.update(ids)
        self._check_bases()

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Remember what this process collected (empty under xdist)."""
        self.expected.update(item.nodeid for item in session.items)
        self._check_bases()

    def _check_bases(self) -> None:
        """Refuse a base model that does not fit before anything trains; say once what was done to one that does."""
        audit = self.audit
        if self.config.option.collectonly or self.bases_checked or not self.expected:
            return
        self.bases_checked = True
        if not any(audit.settings.base_digest(job) for job in audit.selection.chosen()):
            return
        targets = self._selected()
        names = [target.workload if isinstance(target, Cell) else target.subject.workload for target in targets]
        try:
            lines = audit.check_bases(dict.fromkeys(names))
        except AuditError as error:
            raise pytest.UsageError(str(error)) from None
        reporter: Any = self.config.pluginmanager.get_plugin("terminalreporter")
        for line in lines if reporter is not None else ():
            reporter.ensure_newline()
            reporter.write_line(f"pruneaudit: {line}")

    @pytest.hookimpl(wrapper=True)
    def pytest_runtestloop(self, session: pytest.Session) -> Any:
        """Tell how far the session is while items run."""
        if session.config.option.collectonly:
            return (yield)
        from pruneaudit.plugin.live import Teller

        with Teller(self.config, self.audit.ledger), self._dispatch():
            return (yield)

    @contextlib.contextmanager
    def _dispatch(self) -> Iterator[None]:
        """Give the session's runs to its cluster, where it has one, while items run."""
        try:
            dispatcher = self.audit.dispatcher()
        except AuditError as error:
            raise pytest.UsageError(str(error)) from None
        if dispatcher is None:
            yield
            return
        from pruneaudit.campaign.executors.dispatch import Dispatching

        with Dispatching(dispatcher, self._stop) as self._dispatching:
            yield
        self.cluster_words = dispatcher.scheduler.words()

    def _let_go(self) -> None:
        """A signal came: workers are to stop, and what was given to a cluster."""
        self._leash.let_go()
        if self._dispatching is not None:
            self._dispatching.end()

    def _stop(self, reason: str) -> None:
        """Stop the session where workers cannot be told why."""
        with contextlib.suppress(OSError):
            os.write(self._terminal, f"\npruneaudit: {reason}\n".encode())
        os.kill(os.getpid(), signal.SIGTERM)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Remember that an item was reported to its end, and how it ended."""
        # A worker can be lost between the reports of one item; the one of a crash has a phase of its own.
        if report.when not in ("setup", "call"):
            self.complete.add(report.nodeid)
        self.stopped = self.stopped or str(dict(report.user_properties).get(STOP, ""))
        before = self.outcomes.get(report.nodeid, "passed")
        # A waived finding is an expected failure, which pytest reports as a skip.
        outcome = "waived" if hasattr(report, "wasxfail") else report.outcome
        if outcome != "passed" or before == "passed":
            self.outcomes[report.nodeid] = outcome
        if report.skipped and isinstance(report.longrepr, tuple):
            self.reasons[report.nodeid] = report.longrepr[2].removeprefix("Skipped: ")

    @pytest.hookimpl(tryfirst=True)
    def pytest_keyboard_interrupt(self, excinfo: pytest.ExceptionInfo[BaseException]) -> None:
        """From here on pytest catches none any more: the terminal takes its time to show where it came from."""
        self.interrupts.raises = False
        # A signal may meet a function before its first line (CPython 3.11), and pytest 9.2 fails to show such a place.
        excinfo.traceback = excinfo.traceback.filter(_has_line)

    def _leave(self) -> None:
        """Say that the session ends as it stands, where pytest no longer can."""
        # Bars hide the cursor.
        shown = "\x1b[?25h" if os.isatty(self._terminal) else ""
        text = f"{shown}\npruneaudit: stopped at once; what was finished is kept. To go on: {self._command()}\n"
        with contextlib.suppress(OSError):
            os.write(self._terminal, text.encode())

    def _command(self) -> str:
        return shlex.join(["pytest", *map(str, self.config.invocation_params.args)])

    def pytest_unconfigure(self) -> None:
        """Signals are no longer ours."""
        self.interrupts.restore()
        self._leash.let_go()
        os.close(self._terminal)

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        """Judge what the ledger holds, write the report, and correct an exit status that claims too much."""
        if self.interrupts.signal is None and not self.stopped:
            try:
                self._finish(session, exitstatus)
            except KeyboardInterrupt:
                if self.interrupts.signal is None:
                    raise
                self.report_error = "interrupted"
        self.interrupts.raises = False
        if self.interrupts.signal is not None:
            session.exitstatus = self.interrupts.status
            self.stopped = f"stopped by {'Ctrl-C' if self.interrupts.signal == signal.SIGINT else 'SIGTERM'}"

    def _finish(self, session: pytest.Session, exitstatus: int) -> None:
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
        lacks = self.missing or self.nothing_measured or self.report_error or self.lacking or self.disputes.lines()
        incomplete = lacks or (self.rechecked is not None and self.rechecked.wrong)
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
        from pruneaudit.report.results import gather
        from pruneaudit.report.writer import write

        audit = self.audit
        cells, asked = self._asked(selected)
        with Drawing(audit.figures) as drawing:
            self.rechecked = self._recheck(cells)
            self.results = gather(audit.catalog, audit.settings, audit.ledger, cells, asked, drawing.begin)
            if audit.only_judges:
                lacking = [row for row in self.results.cells if row["status"] in ("missing", "outdated")]
                self.lacking = f"{len(lacking)} of {len(cells)} cells are not in {audit.ledger_path}" if lacking else ""
            if not self.lacking and all(self.outcomes.get(nodeid) == "skipped" for nodeid in selected.values()):
                reasons = "; ".join(sorted({self.reasons.get(nodeid, "") for nodeid in selected.values()}))
                self.nothing_measured = f"all {len(selected)} selected cells and checks were skipped: {reasons}"
            write(self.results, audit.report_path, drawing)
        if not audit.only_judges:
            # Who cannot write to a ledger cannot add seeds to it either.
            with contextlib.suppress(StorageError):
                self._remember_looks()
        tell_github(self.results, audit.fails_row, audit.report_path, output=self.annotations)

    def _recheck(self, cells: Iterable[Cell]) -> Rechecked:
        """Evaluate what the stored weights of results and bases give, as far as nobody has."""
        from pruneaudit.campaign.rechecking import SHARE, Rechecked, recheck

        audit = self.audit
        if not audit.recheck:
            return Rechecked()
        runs: dict[str, RunRecord] = {}
        for cell in cells:
            # What cannot be read is told with its cell.
            with contextlib.suppress(DamagedError):
                record = audit.stored(cell)
                if record is not None and record.status == "ok":
                    runs |= {run: audit.ledger.get(run) for run in (record.base, record.result) if run is not None}
        seconds = max(audit.recheck, SHARE * (time.monotonic() - self._began))
        return recheck(audit.ledger, audit.catalog, runs.values(), seconds, audit.device_here, audit.data_root_option)

    def _remember_looks(self) -> None:
        """Tell the ledger over how many seeds comparisons without a plan have a verdict now: rule F611 asks."""
        assert self.results is not None
        names = ("workload", "labels", "protocol", "method", "ratio", "seed")
        ran = {tuple(map(str, map(row.get, names))): row["result"] for row in self.results.cells}
        tables: dict[str, dict[str, list[int]]] = defaultdict(dict)
        for row in self.results.verdicts:
            if row["verdict"] == "not comparable" or len(row["seeds"]) < seeds_needed() or row.get("plan"):
                continue
            where = (row["workload"], row["labels"], row["protocol"])
            first = [ran[tuple(map(str, (*where, arm, row["ratio"], row["seeds"][0])))] for arm in row["arms"]]
            name = table_name(row["workload"], row["protocol"], row["labels"])
            tables[name]["-".join(sorted(first))] = [len(row["seeds"])]
        for name, looks in tables.items():
            self.audit.ledger.remember_looks(name, looks)

    def _asked(self, selected: dict[Cell | Check | Gate, str]) -> tuple[dict[Cell, None], Asked]:
        """What a report is of: cells, and what is judged."""
        from pruneaudit.report.results import Asked

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
        return cells, asked

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
        if nodeid in self.causes.dependants or nodeid in self.disputes.reported:
            return False
        # What was looked at and not judged says so in a line that begins with its own name.
        return self.outcomes.get(nodeid) == "skipped" and not self.reasons.get(nodeid, own).startswith(own)

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Tables, audit matrix, what is missing, and where the files are."""
        from pruneaudit.report.terminal import summary

        hint = None
        if not self.expected:
            hint = hides(self.config) or self.audit.absent_ratios(self.config.option.keyword)
        if hint is not None:
            terminalreporter.write_line(f"pruneaudit: {hint}", red=True)
        if self.stopped:
            self._say_what_is_kept(terminalreporter)
            return
        if self.results is None and not self.missing and not self.report_error and not self.disputes.lines():
            return
        terminalreporter.write_sep("=", "pruneaudit")
        # GitHub reads an annotation only at the start of a line: not behind the dots.
        terminalreporter.write(self.annotations.getvalue())
        if self.results is not None:
            for line in summary(self.results, self.audit.fails_row):
                terminalreporter.write_line(line)
            for line in self.audit.choices(sorted({row["workload"] for row in self.results.cells})):
                terminalreporter.write_line(line)
        if self.cluster_words:
            terminalreporter.write_line(self.cluster_words)
        not_run = self.causes.line()
        if not_run is not None:
            terminalreporter.write_line(not_run, red=True)
        if self.rechecked is not None:
            for line in self.rechecked.lines():
                wrong = line in self.rechecked.contradictions()
                terminalreporter.write_line(f"INCOMPLETE: {line}" if wrong else line, red=wrong)
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
        for line in self.disputes.lines():
            terminalreporter.write_line(f"INCOMPLETE: {line}", red=True)
        if self.results is not None and not self.report_error:
            terminalreporter.write_line(f"report: {self.audit.report_path / 'report.html'}")
            terminalreporter.write_line(f"results: {self.audit.report_path / 'results.json'}")

    def _say_what_is_kept(self, terminalreporter: Any) -> None:
        """After a stop: what is done, the command that goes on, and a report of what is done."""
        from pruneaudit.ledger.progress import kept_epochs

        audit = self.audit
        say = terminalreporter.write_line
        terminalreporter.write_sep("=", "pruneaudit")
        done = len(self.complete & self.expected)
        say(f"{self.stopped}: {done} of {len(self.expected)} items are done", red=True)
        if not audit.only_judges:
            epochs = kept_epochs(audit.ledger)
            begun = f"; {len(epochs)} begun, {sum(epochs.values())} epochs of them kept" if epochs else ""
            say(f"kept in {audit.ledger_path}: {len(audit.ledger.finished())} finished runs{begun}")
        say(f"to go on: {self._command()}")
        page = audit.report_path / "report.html"
        if page.exists():
            say(f"report of an earlier session, as it was: {page}")
        # Last: where judging takes longer than there is time, everything else has been said.
        terminalreporter.flush()
        try:
            partial = self._partial_report()
        except (AuditError, OSError) as error:
            say(f"no report of what is done: {one_line(error)}")
        else:
            if partial is not None:
                say(f"report of what is done: {partial}")

    def _partial_report(self) -> Path | None:
        """Write a report of what is done beside the usual one; None where nothing is."""
        from pruneaudit.report.results import gather
        from pruneaudit.report.writer import write

        audit = self.audit
        done = {
            target: nodeid
            for target, nodeid in self._selected().items()
            if nodeid in self.complete
            and all(audit.stored(cell) for cell in ([target] if isinstance(target, Cell) else target.subject.cells()))
        }
        if not done:
            return None
        cells, asked = self._asked(done)
        folder = audit.report_path.with_name(f"{audit.report_path.name}-partial")
        write(gather(audit.catalog, audit.settings, audit.ledger, cells, asked), folder)
        return folder / "report.html"


def _has_line(entry: Any) -> bool:
    """Whether a place in a traceback of pytest's is in a line: where coverage is measured, one may seem to be."""
    try:
        return bool(entry.lineno >= 0) and any(entry.frame.code.raw.co_lines())
    except TypeError:
        return False
