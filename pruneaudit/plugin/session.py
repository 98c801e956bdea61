"""State of one pytest session: what was selected, and who measures and judges it."""

from __future__ import annotations

import contextlib
import importlib.util
import math
import os
import traceback
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from pruneaudit.arithmetic import described
from pruneaudit.audit.catalogue import get_rule, required
from pruneaudit.audit.currency import stored_cell
from pruneaudit.audit.docket import Docket, rules_of
from pruneaudit.audit.evidence import Evidence, Table
from pruneaudit.audit.judge import Finding
from pruneaudit.audit.rounds import Family, Standing, Subject, looks, read, register
from pruneaudit.audit.sequential import FUTILITY, Plan
from pruneaudit.audit.statistics import seeds_needed
from pruneaudit.audit.verdicts import Verdict
from pruneaudit.campaign.executors.where import where
from pruneaudit.catalog.cells import Arm, Cell, Comparison, Selection
from pruneaudit.catalog.discovery import Catalog, MethodSource
from pruneaudit.catalog.names import is_scratch
from pruneaudit.catalog.protocols import FAIL_ON, Study
from pruneaudit.catalog.settings import AUTO, COMPILED, RETIRED, Backend, Settings
from pruneaudit.errors import AuditError, ConfigError, DamagedError, DataMissingError, one_line, unknown
from pruneaudit.ledger.records import CellRecord
from pruneaudit.ledger.schedule import AHEAD
from pruneaudit.ledger.store import Ledger
from pruneaudit.method.outside import describing
from pruneaudit.plugin import causes
from pruneaudit.plugin.device import visible_gpus
from pruneaudit.plugin.keywords import absent_ratios
from pruneaudit.plugin.options import DEFAULTS
from pruneaudit.plugin.outcomes import Declined, Waived, telling
from pruneaudit.plugin.project import above, project
from pruneaudit.state import data_root
from pruneaudit.studies.answer import Question, announcing, answer_claim, answer_panel, questions
from pruneaudit.studies.arms import Place
from pruneaudit.studies.judgement import Judgement
from pruneaudit.studies.slopes import Slopes, slopes_of
from pruneaudit.workloads.schema import Workload

if TYPE_CHECKING:
    from pruneaudit.campaign.choosing import Choosing
    from pruneaudit.campaign.executors.dispatch import Dispatcher
    from pruneaudit.campaign.executors.local import LocalExecutor
    from pruneaudit.campaign.executors.remote import RemoteExecutor
    from pruneaudit.campaign.planner import Campaign
    from pruneaudit.studies.population import Populations
    from pruneaudit.training.runtime import Runtime


@dataclass(frozen=True)
class Check:
    """A fairness item: one arm or comparison × one rule."""

    subject: Arm | Comparison
    rule: str

    @property
    def id(self) -> str:
        """Readable id, such as ``resnet56-digits-l1-vs-tpp-s3.2-r0.5-F321``."""
        return f"{self.subject.id}-{self.rule}"


@dataclass(frozen=True)
class Gate:
    """A gate item: the verdict of a comparison, or of an arm against the baseline."""

    subject: Arm | Comparison

    @property
    def id(self) -> str:
        """Readable id, such as ``resnet56-digits-mine-vs-tpp-s3.2-r0.5-verdict``."""
        return f"{self.subject.id}-{'verdict' if isinstance(self.subject, Comparison) else 'vs-baseline'}"


@dataclass(frozen=True)
class ConformanceCase:
    """A conformance item: one method × one check on a workload."""

    workload: str
    method: str
    check: str

    @property
    def id(self) -> str:
        """Readable id, such as ``lenet5-digits-l1-deterministic``."""
        return f"{self.workload}-{self.method}-{self.check}"


#: More seeds than anybody trains: each is a test of its own, of every arm.
MOST_SEEDS = 10_000


class AuditSession:
    """What the options select, and the campaign that measures it. Torch is loaded when the first item needs it.

    Args:
        config: The pytest configuration.

    Raises:
        pytest.UsageError: An option or a TOML file is wrong.
    """

    def __init__(self, config: pytest.Config) -> None:
        option = config.option
        try:
            self.root = project(config)
            _refuse_empty(option)
            self.only_judges = option.audit_from is not None
            self.ledger_path = self.root / (option.audit_from or option.audit_ledger)
            self.report_path = self.root / option.audit_report
            self.catalog = Catalog(
                extra_methods=tuple(option.audit_method),
                extra_workloads=tuple(option.audit_workload),
                isolate=option.audit_isolate,
                outside=describing(self.ledger_path, self.report_path, option.audit_data_root),
            )
            self.study = self.catalog.study(option.audit_study) if option.audit_study else Study(name="")
            self.selection = self._select(option)
            if option.audit_backend in RETIRED and option.audit_from is None:
                raise ConfigError(
                    f"--audit-backend {option.audit_backend}: it trains no more; tiled trains LeNet-5 as fast: "
                    f"--audit-backend tiled. What {option.audit_backend} has made is judged with --audit-from"
                )
            if option.audit_backend in COMPILED and importlib.util.find_spec("numba") is None:
                raise ConfigError(
                    f"--audit-backend {option.audit_backend} needs Numba: pip install 'pruneaudit[compiled]'"
                )
            for protocol in self.catalog.protocols.values():
                try:
                    required(protocol)
                except ConfigError as error:
                    path = self.catalog.root / "protocols" / f"{protocol.name}.toml"
                    raise ConfigError(f"{path}: requires: {error}") from None
            for rule in self.study.waive:
                get_rule(rule)
            _check_folder(self.report_path, "--audit-report")
            self.figures: str = option.audit_figures
            if not 0 < option.audit_patience < math.inf:
                raise ConfigError(f"--audit-patience {option.audit_patience:g}: expected a number of minutes above 0")
            if not 0 < option.audit_stage_limit < math.inf:
                raise ConfigError(
                    f"--audit-stage-limit {option.audit_stage_limit:g}: expected a number of hours above 0"
                )
            if not 0 <= option.audit_recheck < math.inf:
                raise ConfigError(f"--audit-recheck {option.audit_recheck:g}: expected a number of seconds from 0 on")
            #: The cluster that computes; None: this session's own processes do.
            self.cluster = where(option.audit_executor, option.audit_task)
            if option.audit_device == "cuda" and not visible_gpus() and self.cluster is None:
                raise ConfigError("--audit-device cuda: no CUDA device is visible here; leave it out or give cpu")
            shared: int | None = option.audit_ranks
            if shared is not None and shared < 1:
                raise ConfigError(f"--audit-ranks {shared}: expected a number of processes, at least 1")
            if (shared or 1) > 1 and option.audit_backend not in (AUTO, "torch"):
                raise ConfigError(
                    f"--audit-ranks {shared}: only torch trains so, not --audit-backend {option.audit_backend}; "
                    "leave out one of them"
                )
            before = option.audit_baseline
            self.baseline = Ledger(self.root / before, writable=False) if before else None
            self.device_option: str = option.audit_device
            self.fail_on = self._fail_on(option)
            some = [workload.name for workload in self.selection.chosen()][:1]
            if self.fail_on and not self.gates(some):
                # A gate that never judges would always be open.
                raise ConfigError(
                    f"nothing can fail on {', '.join(self.fail_on)}: {' '.join(self.selection.protocols)} compare "
                    f"no two of {' '.join(self.selection.methods)} (sx-a and sx-b compare with scratch)"
                )
            # A wrong option leaves no folder behind, nor does a session that only collects.
            self.ledger = Ledger(self.ledger_path, writable=not self.only_judges, when_needed=True)
            self.is_new = not self.only_judges and not (self.ledger_path / "ledger.json").exists()
            if self.is_new:
                _check_folder(self.ledger_path, "--audit-ledger")
            #: What trains each workload, where nobody said it.
            chooses = option.audit_backend == AUTO and (shared or 1) == 1
            self.choosing = self._choosing(option) if chooses else None
            base = Path(option.audit_base) if option.audit_base else None
            named: Backend = "torch" if option.audit_backend == AUTO else option.audit_backend
            backend = self.choosing or named
            self.settings = Settings(
                option.audit_budget, option.audit_precision, base, backend, option.audit_arithmetic, shared or 0
            )
            # Reads every TOML file and every base now: a wrong one is told before anything runs.
            for job in self.catalog.workloads.values():
                self.settings.base_digest(job)
        except AuditError as error:
            raise pytest.UsageError(str(error)) from None
        self.data_root_option: str | None = option.audit_data_root
        self.download: bool = option.audit_download
        self.patience: float = 60 * option.audit_patience
        self.stage_limit: float = 3600 * option.audit_stage_limit
        self.recheck: float = option.audit_recheck
        # Workers of one session share its id, so that a run that failed for one of them is not tried by the next.
        self.id = os.environ.get("PYTEST_XDIST_TESTRUNUID") or uuid.uuid4().hex
        self.selected: list[Cell] = []
        # Comparisons and arms that are judged together: p values are adjusted over them.
        self.judged: list[Arm | Comparison] = []
        self._measured: dict[Cell, CellRecord] = {}
        self._dockets: dict[str, Docket] = {}
        self._registered: set[str] = set()
        self._foreseen: set[str] = set()
        # Where the comparisons of each plan stand: in this session, and by what the ledger holds.
        self._standings: dict[str, Standing] = {}
        self._stored: dict[str, Standing] = {}
        self._verdicts: dict[tuple[str, str, type], dict[Arm | Comparison, Verdict]] = {}
        self._obstacles: dict[str, str | None] = {}
        self._refusals: dict[tuple[str, str, str | None], str | None] = {}

    def _select(self, option: Any) -> Selection:
        """What options and study select."""
        study = self.study
        rivals = _names(option.audit_against) or study.against
        against = tuple(self.catalog.method(name).name for name in rivals)
        chosen = option.audit_methods
        if chosen is None:
            # With rivals the candidates are the user's own methods, unless told otherwise.
            chosen = ",".join(study.methods) or ("" if against else "core")
        methods = tuple(dict.fromkeys([*self.catalog.select_methods(chosen), *against]))
        if against and not set(methods) - set(against):
            raise ConfigError(
                "--audit-against: nothing to compare with the rivals; add --audit-method or --audit-methods"
            )
        protocols = option.audit_protocols
        if protocols is None:
            protocols = ",".join(study.protocols) or "all"
        self._seeds: int | None = option.audit_seeds
        seeds = study.seeds if option.audit_seeds is None else option.audit_seeds
        if seeds is not None and not 1 <= seeds <= MOST_SEEDS:
            raise ConfigError(f"--audit-seeds: expected a number of at least 1, and at most {MOST_SEEDS}")
        workloads = tuple(self.catalog.workload(name).name for name in study.workloads)
        if workloads:
            workloads = tuple(dict.fromkeys([*workloads, *self.catalog.extra_workload_names]))
        chosen_protocols = self.catalog.select_protocols(protocols)
        ratios = _ratios(option.audit_ratios) or study.ratios
        self.decide = self._decide(option)
        seeds = self.decide or seeds
        return Selection(self.catalog, methods, chosen_protocols, seeds, workloads or None, against, ratios)

    def _decide(self, option: Any) -> int | None:
        """Seeds at most of verdicts that are planned; None: a fixed number. Plans that cannot be kept are refused."""
        where, most = "--audit-decide", option.audit_decide
        if most is None and option.audit_seeds is None:
            where, most = f"study {self.study.name}: decide", self.study.decide
        if most is None:
            return None
        fewest = seeds_needed()
        if most < fewest:
            raise ConfigError(f"{where}: expected a number of at least {fewest}: fewer seeds decide nothing")
        if most > MOST_SEEDS:
            raise ConfigError(f"{where}: expected a number of at most {MOST_SEEDS}")
        for name in ("seeds", "baseline"):
            if getattr(option, f"audit_{name}") is not None:
                raise ConfigError(f"{where} says which seeds are trained: leave out --audit-{name}")
        return int(most)

    def _fail_on(self, option: Any) -> tuple[str, ...]:
        """Verdicts that fail; empty where nothing is gated."""
        words: tuple[str, ...] | None = _names(option.audit_fail_on) or self.study.fail_on
        for word in words or ():
            if word not in FAIL_ON:
                raise ConfigError(f"--audit-fail-on: {unknown('verdict', word, FAIL_ON)}")
        if words is None and (self.selection.against or self.baseline is not None):
            return ("worse", "unfair")
        return words or ()

    def _choosing(self, option: Any) -> Choosing:
        """What says which backend trains a workload."""
        from pruneaudit.campaign.choosing import Choosing

        settings = (option.audit_budget, option.audit_precision, option.audit_arithmetic)
        return Choosing(self.catalog, self.ledger, *settings, self.device, self.baseline)

    def settle(self, workload: str, keeps: bool = True) -> None:
        """Choose what trains a workload, where nobody said it: before anything of it is planned.

        Args:
            workload: Its name.
            keeps: Whether the ledger keeps it; who only plans writes nothing.

        Raises:
            ConfigError: What made the runs that are there cannot be had here.
        """
        if self.choosing is not None and not self.only_judges:
            self.choosing.settle(self.catalog.workload(workload), keeps)

    def choices(self, workloads: Iterable[str]) -> list[str]:
        """What was chosen for workloads, and why, one line each."""
        known = {name: self.choosing.known(name) for name in workloads} if self.choosing is not None else {}
        return [f"{name} is trained by {one.backend}: {one.why}" for name, one in known.items() if one is not None]

    def labels(self, workload: str) -> tuple[str, ...]:
        """Settings of a workload's runs that are not the default."""
        return self.settings.labels(self.catalog.workload(workload))

    @cached_property
    def device(self) -> str:
        """``cuda`` or ``cpu``, which runs are trained on; found without torch."""
        if self.device_option != "auto":
            return self.device_option
        return "cuda" if visible_gpus() else "cpu"

    @property
    def device_here(self) -> str:
        """``cuda`` or ``cpu``, which this process computes on: who submits to a cluster may lack what nodes have."""
        return self.device if self.cluster is None or visible_gpus() else "cpu"

    @cached_property
    def runtime(self) -> Runtime:
        """Where runs execute."""
        from pruneaudit.training.runtime import Runtime

        processes = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
        given = (self.settings.base, self.report_path, processes, self.patience, self.stage_limit)
        return Runtime(self.device_here, self.data_root, self.download, *given)

    @property
    def data_root(self) -> Path | None:
        """The folder of datasets."""
        root = data_root(self.data_root_option)
        return self.root / ".pruneaudit" / "data" if root is None and self.download else root

    @cached_property
    def campaign(self) -> Campaign:
        """Plans and obtains cells; its backlog are the runs of all selected cells."""
        from pruneaudit.campaign.planner import Campaign

        self.runtime.prepare()
        executor = self._executor()
        campaign = Campaign(self.catalog, self.ledger, self.settings, executor)
        chosen = [*(cell.workload for cell in self.selected), *(subject.workload for subject in self.judged)]
        for workload in dict.fromkeys(chosen):
            if self.obstacle(workload) is None:
                # What cannot be had is told by the workload's own tests.
                with contextlib.suppress(ConfigError):
                    self.settle(workload)
        # Seeds before which no comparison can stop are not selected, and trained all the same.
        names = dict.fromkeys(subject.workload for subject in self.judged) if self.decide is not None else ()
        families = [family for name in names if self.obstacle(name) is None for family in self.families(name)]
        certain = [cell for family in families for cell in family.certain]
        wanted = dict.fromkeys([*self.selected, *certain])
        cells = [cell for cell in wanted if self.obstacle(cell.workload) is None]
        executor.share(campaign.runs(cells), campaign.runs_by_cell(cells))
        if families:
            campaign.foresee(self._foretold(families))
        return campaign

    def _executor(self) -> LocalExecutor | RemoteExecutor:
        if self.cluster is not None:
            from pruneaudit.campaign.executors.remote import RemoteExecutor

            return RemoteExecutor(self.ledger, self.catalog, self.id)
        from pruneaudit.campaign.executors.local import LocalExecutor
        from pruneaudit.campaign.stages import Stages

        return LocalExecutor(self.ledger, Stages(self.ledger, self.catalog, self.runtime), self.id)

    def dispatcher(self) -> Dispatcher | None:
        """What gives this session's runs to its cluster, which is asked for now; None where nothing is given.

        Raises:
            ConfigError: The cluster does not answer.
        """
        if self.cluster is None or self.only_judges:
            return None
        from pruneaudit.campaign.executors.assignment import Terms
        from pruneaudit.campaign.executors.dispatch import Dispatcher

        root, base = self.data_root, self.settings.base
        terms = Terms(
            session=self.id,
            ledger=str(self.ledger_path.absolute()),
            folder=os.getcwd(),
            methods=self.catalog.extra_methods,
            workloads=self.catalog.extra_workloads,
            isolate=self.catalog.isolate or "foreign",
            device=self.device,
            data_root=None if root is None else str(root.absolute()),
            download=self.download,
            base=None if base is None else str(base.absolute()),
            reports=str(self.report_path.absolute()),
            processes=self.cluster.sharing(self.device),
            patience=self.patience,
            most=self.stage_limit,
            arithmetic=self.settings.arithmetic,
        )
        scheduler = self.cluster.scheduler(self.ledger, self.id, self.device)
        return Dispatcher(self.ledger, terms, scheduler)

    def words(self) -> list[str]:
        """What ids of items are made of after the workload, ratios and seeds apart."""
        from pruneaudit.audit.catalogue import rules
        from pruneaudit.method.conformance import METHOD_CHECKS, SCRATCH_CHECKS

        chosen = self.selection
        return [*chosen.methods, *chosen.protocols, *rules(), *METHOD_CHECKS, *SCRATCH_CHECKS, "vs-baseline", "verdict"]

    def absent_ratios(self, expression: str) -> str | None:
        """One line on ratios that ``-k`` names and no workload has; None where there are none."""
        chosen = self.selection
        return absent_ratios(expression, {job.name: chosen.ratios_of(job) for job in chosen.chosen()})

    def cells(self, workloads: Sequence[str]) -> list[Cell]:
        """All cells of the selection on some workloads."""
        return self.opening(self.selection.on(workloads).cells())

    def opening(self, cells: Iterable[Cell]) -> list[Cell]:
        """Those of some cells that are measured in any case: where seeds are decided on, the first ones."""
        return [cell for cell in cells if self.decide is None or cell.seed < seeds_needed()]

    def checks(self, workloads: Sequence[str]) -> list[Check]:
        """All arms and comparisons on some workloads × the rules that their protocol requires."""
        selection = self.selection.on(workloads)
        subjects: list[Arm | Comparison] = [*selection.arms(), *selection.comparisons()]
        needed = {name: required(self.catalog.protocol(name)) for name in self.selection.protocols}
        return [
            Check(subject, rule.id)
            for subject in subjects
            for rule in rules_of(subject)
            if rule.id in needed[subject.protocol]
        ]

    def gates(self, workloads: Sequence[str]) -> list[Gate]:
        """Verdicts on some workloads that can fail; none where nothing is gated."""
        if not self.fail_on:
            return []
        selection = self.selection.on(workloads)
        arms = [
            Gate(arm)
            for arm in (selection.arms() if self.baseline is not None else [])
            if arm.method not in selection.against
        ]
        return [*map(Gate, selection.comparisons()), *arms]

    def conformance(self, workloads: Sequence[str]) -> list[ConformanceCase]:
        """All conformance cases on some workloads."""
        from pruneaudit.method.conformance import METHOD_CHECKS, SCRATCH_CHECKS

        return [
            ConformanceCase(workload, method, check)
            for workload in workloads
            for method in self.selection.methods
            for check in (SCRATCH_CHECKS if is_scratch(method) else METHOD_CHECKS)
        ]

    def questions(self, expression: str) -> list[Question]:
        """What studies ask: the one that was chosen, or all that take minutes, where ``-k`` speaks of studies.

        Args:
            expression: What follows ``-k``.
        """
        if self.study.name:
            return questions(self.study)
        if "study" not in expression:
            return []
        studies = map(self.catalog.study, self.catalog.studies)
        return [question for study in studies if not study.large for question in questions(study)]

    def pairs(self, question: Question) -> list[tuple[str, list[Cell], list[Cell]]]:
        """Places of a sentence about arms, each with the cells of both."""

        def seeds(workload: Workload) -> Sequence[int]:
            count = question.study.seeds if self._seeds is None else self._seeds
            return workload.seeds if count is None else range(count)

        return question.pairs(self.catalog, seeds)

    def answer(self, question: Question) -> list[Judgement]:
        """Measure what a study asks, judge its sentences, and write its page.

        Raises:
            AuditError: It cannot be measured.
        """
        folder = self.report_path / "studies" / question.study.name
        if question.claim is None:
            populations = self._populations(question.study)
            try:
                return answer_panel(question, populations, folder)
            finally:
                self.ledger.report_progress([])
        places = []
        names = dict.fromkeys(cell.workload for _, left, _ in self.pairs(question) for cell in left)
        for name in names:
            self.settle(name)
        for place, left, right in self.pairs(question):
            arms = [[Evidence.read(self.measured(cell), self.ledger) for cell in cells] for cells in (left, right)]
            places.append(Place(place, *map(tuple, arms)))
        chosen = self.settings
        backends = ", ".join(sorted({chosen.backend_of(self.catalog.workload(name)) for name in names}))
        how = f"{chosen.budget} budget, {chosen.precision}, {backends}, {chosen.arithmetic} arithmetic"

        def along(arm: Evidence) -> Slopes:
            return slopes_of(question.study.name, arm, self.ledger, self.catalog, self.runtime)

        asked = places if question.claim.per_epoch else []
        slopes = [(along(place.left[0]), along(place.right[0])) for place in asked]
        return answer_claim(question, self.catalog, places, {"measured": how}, folder, slopes)

    def _populations(self, study: Study) -> Populations:
        """The populations of a study, which tell other processes how far they are."""
        from pruneaudit.studies.population import Populations

        self.runtime.prepare()
        told = announcing(self.ledger, study)
        return Populations(study, self.catalog, self.settings, self.runtime, self.ledger, told)

    def outstanding(self, question: Question) -> dict[str, Any]:
        """How many networks of a panel are to be trained: a row for ``pruneaudit plan``; trains nothing.

        Raises:
            AuditError: It cannot be measured.
        """
        study = question.study
        left = self._populations(study).outstanding(question.layers)
        return {"study": study.name, "panel": question.part, **left._asdict()}

    def measured(self, cell: Cell) -> CellRecord:
        """The record of a cell that came to its end.

        Raises:
            AuditError: It failed, or is not in the ledger that is judged.
        """
        record = self.measure(cell)
        if record is None or record.status != "ok":
            why = record.error if record is not None else f"not in {self.ledger_path}"
            raise AuditError(f"{cell.id}: {why}")
        return record

    def obstacle(self, workload: str) -> str | None:
        """Why a workload cannot run here, in one line that says what to do; None where it can, or need not."""
        if self.only_judges:
            return None
        if workload not in self._obstacles:
            self._obstacles[workload] = self._look_for_obstacle(workload)
        return self._obstacles[workload]

    def _look_for_obstacle(self, name: str) -> str | None:
        workload = self.catalog.workload(name)
        if workload.gpu and self.device == "cpu" and self.device_option != "cpu":
            return f"{name} is GPU-sized and there is no CUDA device; add --audit-device cpu to insist"
        import torch

        from pruneaudit.workloads.data import load

        if self.device_here == "cuda" and not torch.cuda.is_available():
            return f"{name}: this torch cannot use the CUDA device; install a CUDA build, or add --audit-device cpu"
        try:
            load(workload.data, self.runtime.data_root, self.download)
        except DataMissingError as error:
            return f"{name}: {error}"
        except ConfigError:
            return None  # it is there, and wrong: its own tests will say so
        return None

    def check_bases(self, workloads: Iterable[str]) -> list[str]:
        """See that the user's own base models fit the workloads that will use them.

        Returns:
            One line for each base that was changed to fit.

        Raises:
            ConfigError: One does not fit; the message names the first difference.
        """
        lines = []
        for name in workloads:
            workload = self.catalog.workload(name)
            if self.only_judges or self.settings.base_digest(workload) is None or self.obstacle(name) is not None:
                continue
            from pruneaudit.campaign.planner import base_notes
            from pruneaudit.workloads.checkpoints import base_path

            notes = base_notes(self.settings, workload)
            lines += [f"base {base_path(self.settings.base, workload)} for {name}: {'; '.join(notes)}"] if notes else []
        return lines

    def measure(self, cell: Cell) -> CellRecord | None:
        """The record of a cell, measured now where the ledger lacks it; None where nothing is to be trained."""
        if self.only_judges:
            return self.stored(cell)
        self._register(cell.workload)
        if cell not in self._measured:
            self._measured[cell] = self.campaign.obtain(cell)
            if self.decide is not None and cell.seed == seeds_needed() - 1:
                # With the last selected seed of an arm something is known of differences.
                families = self.families(cell.workload)
                self.campaign.foresee(self._foretold(one for one in families if one.protocol == cell.protocol))
        return self._measured[cell]

    def _register(self, workload: str) -> None:
        """Write what is planned of a workload to the ledger, before anything of it trains.

        A plan that contradicts what is there fails the running test, and so does a session that would train more of
        what is planned there without a plan of its own.
        """
        if workload in self._registered:
            return
        there = read(self.ledger)
        for protocol in self._tables(workload) if self.decide is None else ():
            known = there.get((workload, protocol, self.labels(workload)))
            if known is not None:
                pytest.fail(
                    f"{workload} {protocol}: ledger {self.ledger.root} decides these comparisons seed by seed: "
                    f"give --audit-decide {known.plan.seeds}, or choose another --audit-ledger",
                    pytrace=False,
                )
        for family in self.families(workload):
            try:
                register(self.ledger, family, self.stored, self.catalog.workload(workload).metric)
            except AuditError as error:
                pytest.fail(one_line(error), pytrace=False)
        self._registered.add(workload)

    def families(self, workload: str) -> list[Family]:
        """What this session plans of a workload, by protocol; nothing where its seeds are a fixed number.

        A plan that the ledger holds keeps the rules that it was written with.

        Raises:
            DamagedError: One that is there cannot be read.
        """
        if self.decide is None:
            return []
        metric, labels, there = self.catalog.workload(workload).metric, self.labels(workload), read(self.ledger)
        families = [
            Family(
                workload=workload,
                protocol=protocol,
                labels=labels,
                pairs=tuple(sorted((*one.methods, one.ratio) for one in comparisons)),
                plan=Plan(
                    seeds=self.decide,
                    comparisons=len(comparisons),
                    margin=metric.margin_under(self.catalog.protocol(protocol).margin),
                    futility=FUTILITY,
                ),
            )
            for protocol, comparisons in self._tables(workload).items()
        ]
        known = [there.get((workload, family.protocol, labels)) for family in families]
        return [
            family if old is None else family.with_rules_of(old) for family, old in zip(families, known, strict=True)
        ]

    def _tables(self, workload: str) -> dict[str, list[Comparison]]:
        """Comparisons of a workload that are judged, by protocol."""
        tables: dict[str, list[Comparison]] = {}
        for subject in self.judged:
            declined = any(self._declined(name, workload, subject.protocol) for name in subject.methods)
            if isinstance(subject, Comparison) and subject.workload == workload and not declined:
                tables.setdefault(subject.protocol, []).append(subject)
        return tables

    def standing(self, subject: Arm | Comparison) -> Standing | None:
        """Where the comparisons of a subject's table stand, measured until they are decided; None without a plan."""
        workload = subject.workload
        if self.only_judges:
            return self._standing_so_far(subject)
        self._register(workload)
        family = read(self.ledger).get((workload, subject.protocol, self.labels(workload)))
        if family is None:
            return None
        if family.name not in self._standings:
            self._foresee(workload)
            self._standings[family.name] = self._decided(family)
        return self._standings[family.name]

    def _decided(self, family: Family) -> Standing:
        """Measure seed by seed what is open of a family, until nothing is."""
        metric, campaign = self.catalog.workload(family.workload).metric, self.campaign
        while True:
            standing = family.standing(self._measured.get, metric)
            cells = standing.wanted()
            # Other workers are at the same round: this one trains what is free instead of waiting for them, and where
            # nothing is, what later rounds will probably ask for.
            campaign.share_more(cells)
            campaign.share_ahead(partial(standing.ahead, min(self.runtime.processes - 1, AHEAD)) if cells else list)
            campaign.foresee({family.name: standing.likely()})
            if not cells:
                return standing
            for cell in cells:
                self.measure(cell)

    def _foresee(self, workload: str) -> None:
        """Tell once what all tables of a workload will probably need, now that their first seeds are there."""
        if workload not in self._foreseen:
            self._foreseen.add(workload)
            self.campaign.foresee(self._foretold(self.families(workload)))

    def _foretold(self, families: Iterable[Family]) -> dict[str, list[dict[Cell, float]]]:
        """What tables may need, by name and round, from what the ledger holds."""
        found = {}
        for family in families:
            # It only tells: what cannot be read is told with its cell.
            with contextlib.suppress(DamagedError):
                metric = self.catalog.workload(family.workload).metric
                found[family.name] = family.standing(self.stored, metric).likely()
        return found

    def taken(self, subject: Subject) -> Subject:
        """A subject over the seeds that it took, measured until its comparisons are decided."""
        return _over_seeds_taken(subject, self.standing(subject))

    def taken_so_far(self, subject: Subject) -> Subject:
        """The same from what the ledger holds."""
        return _over_seeds_taken(subject, self._standing_so_far(subject))

    def _standing_so_far(self, subject: Arm | Comparison) -> Standing | None:
        family = read(self.ledger).get((subject.workload, subject.protocol, self.labels(subject.workload)))
        if family is None:
            return None
        if family.name not in self._stored:
            metric = self.catalog.workload(subject.workload).metric
            self._stored[family.name] = family.standing(self.stored, metric)
        return self._stored[family.name]

    def _docket(self, workload: str) -> Docket:
        """Judges a workload, measuring what is missing."""
        if workload not in self._dockets:
            self._dockets[workload] = self.docket(workload, self.measure)
        return self._dockets[workload]

    def docket(self, workload: str, cell_of: Callable[[Cell], CellRecord | None], table: Table | None = None) -> Docket:
        """Judges a workload from the cells that it is given."""
        labels = self.labels(workload)
        known = looks(self.ledger, workload, labels)
        return Docket(self.catalog, self.ledger, cell_of, labels, self.study.waive, table, looks=known)

    def judge(self, check: Check) -> Finding:
        """The finding of a fairness item, measuring what is missing."""
        return self._docket(check.subject.workload).finding(self.taken(check.subject), check.rule)

    def verdict(self, gate: Gate) -> Verdict:
        """The verdict of a gate item, measuring what its table lacks."""
        subject = gate.subject
        key = (subject.workload, subject.protocol, type(subject))
        if key not in self._verdicts:
            table = [
                other
                for other in self.judged
                if (other.workload, other.protocol, type(other)) == key
                and not any(self._declined(name, other.workload, other.protocol) for name in other.methods)
            ]
            docket = self._docket(subject.workload)
            standing = self.standing(subject) if isinstance(subject, Comparison) else None
            if standing is not None:
                docket.standings = {**docket.standings, subject.protocol: standing}
            comparisons = {self.taken(other): other for other in table if isinstance(other, Comparison)}
            found: dict[Arm | Comparison, Verdict] = {}
            found.update((comparisons[taken], verdict) for taken, verdict in docket.verdicts(comparisons).items())
            found.update(self.regressions(docket, table).items())
            self._verdicts[key] = found
        return self._verdicts[key][subject]

    def regressions(self, docket: Docket, subjects: Iterable[Arm | Comparison]) -> dict[Arm, Verdict]:
        """Verdicts of the arms among some subjects against the baseline."""
        return docket.regressions((arm for arm in subjects if isinstance(arm, Arm)), self._baseline_of)

    def _baseline_of(self, cell: Cell) -> Evidence | None:
        """Earlier evidence of a cell; None where the baseline has none."""
        assert self.baseline is not None
        record = self.baseline.cell(self.settings.key(cell, self.catalog.workload(cell.workload)))
        if record is None or record.status != "ok":
            return None
        # Measured by another metric it is no baseline of this one.
        metric = self.catalog.workload(cell.workload).metric
        return Evidence.read(record, self.baseline) if metric.decides_as(record.metric) else None

    def fails(self, verdict: str) -> bool:
        """Whether a verdict is among those that fail."""
        return ("unfair" if verdict == "not comparable" else verdict) in self.fail_on

    def fails_row(self, row: Mapping[str, Any]) -> bool:
        """Whether a row of a report stands for a failure: of the gate, or of a required rule."""
        return self.fails(row["verdict"]) or (
            row["verdict"] == "fail" and bool(row.get("required")) and not row.get("waived")
        )

    def stored(self, cell: Cell, ledger: Ledger | None = None) -> CellRecord | None:
        """The record of a cell as the ledger holds it, or another one; None where it holds none that still counts."""
        return stored_cell(cell, self.catalog, self.settings, ledger or self.ledger)

    def fail(self, item: pytest.Item, error: AuditError, method: str) -> NoReturn:
        """Fail the running test of a method, of a cause that other tests may share."""
        text, trace = str(error), "".join(traceback.format_exception(error))
        item.stash[causes.CAUSE] = causes.key(text)
        # Not the errors behind it once more: they are in the traceback that is kept.
        raise pytest.fail.Exception(self._told(text, trace, method), pytrace=False) from None

    def fail_with_cells(self, item: pytest.Item, text: str, cells: Iterable[Cell]) -> NoReturn:
        """Fail the running test; where it stands on cells that failed, of the cause of the first of them."""
        for cell in cells:
            record = self._measured.get(cell)
            if record is not None and record.status != "ok" and record.error:
                item.stash[causes.CAUSE] = causes.key(record.error)
                text = self._told(record.error, self._trace(cell), cell.method)
                break
        pytest.fail(text, pytrace=False)

    def _told(self, text: str, trace: str, method: str) -> str:
        if self.only_judges:
            return text
        source = self.catalog.method(method)
        return causes.told(text, trace, self.ledger_path / "failures", "" if source.built_in else source.begins())

    def _trace(self, cell: Cell) -> str:
        """The traceback of what a cell failed of in this session; empty where there is none."""
        try:
            runs = self.campaign.plan(cell).runs
        except AuditError as error:
            return "".join(traceback.format_exception(error))
        failures = (self.ledger.failure(run, self.id) for run in runs)
        return next((failure.traceback for failure in failures if failure is not None), "")

    def require(self, workload: str, *methods: str, protocol: str | None = None) -> None:
        """Skip the running test where the workload cannot run here, or a method does not apply, under a protocol."""
        obstacle = self.obstacle(workload)
        for name in methods if obstacle is None else ():
            reason = self._declined(name, workload, protocol)
            obstacle = obstacle or (f"{name} does not apply to {workload}: {reason}" if reason else None)
        if obstacle is not None:
            self.skip(obstacle)
        try:
            self.settle(workload)
        except AuditError as error:
            pytest.fail(one_line(error), pytrace=False)

    def skip(self, reason: str) -> NoReturn:
        """Skip the running test, by the audit's own word."""
        raise Declined(reason)

    def waive(self, reason: str) -> NoReturn:
        """Expect the running test to fail, by the audit's own word."""
        raise Waived(reason)

    def telling(self, item: pytest.Item) -> AbstractContextManager[None]:
        """Say of an item of the suite how it ended: what else pytest reports of it is not believed."""
        return telling(item)

    def _declined(self, name: str, workload: str, protocol: str | None = None) -> str | None:
        """Why a method does not apply, by its own word or under a protocol; a broken method is told where it is used.

        One that applies to no workload at all is not excused: its items fail.
        """
        key = (name, workload, protocol)
        if key not in self._refusals:
            # Small networks first: a method may build one to look at it.
            others = sorted(self.catalog.workloads.values(), key=lambda other: other.gpu)
            try:
                # A scratch arm of a found architecture applies where the method does that finds it.
                source = self.catalog.method(self.catalog.method(name).found_by or name)
                method = source.create()
                job = self.catalog.workload(workload)
                reason = method.skip(job)
                if reason:
                    reason = reason if any(not method.skip(other) for other in others) else None
                elif protocol is not None:
                    reason = self._refused(self.catalog.method(name), job, protocol)
                self._refusals[key] = reason
            except Exception:
                self._refusals[key] = None
        return self._refusals[key]

    def _refused(self, source: MethodSource, workload: Workload, protocol: str) -> str | None:
        """Why a protocol has no place for a method, or None."""
        # Collecting loads no torch.
        from pruneaudit.method.contract import refusal

        return refusal(source.create(), workload, self.catalog.protocol(protocol))

    def header(self) -> str:
        """One line that says what this session compares, and how."""
        protocols = " ".join(f"{name}@{self.catalog.protocol(name).version}" for name in self.selection.protocols)
        until = " until decided" if self.decide else ""
        seeds = f"seeds 0-{self.selection.seeds - 1}{until}" if self.selection.seeds else "seeds of each workload"
        parts = [
            f"protocols {protocols}",
            f"methods {' '.join(self.selection.methods)}",
            seeds,
            f"{self.device} {self.settings.precision} {AUTO if self.choosing is not None else self.settings.backend}",
            f"{self.settings.arithmetic} arithmetic",
            f"budget {self.settings.budget}",
            f"{'judging' if self.only_judges else 'ledger'} {self.ledger_path}",
        ]
        parts += [f"{self.settings.ranks} ranks"] if self.settings.ranks else []
        parts += [f"computed by {self.cluster}"] if self.cluster is not None else []
        parts += [f"base {self.settings.base}"] if self.settings.base else []
        parts += [f"against {' '.join(self.selection.against)}"] if self.selection.against else []
        parts += [f"fails on {' '.join(self.fail_on)}"] if self.fail_on else []
        parts += [f"study {self.study.name}"] if self.study.name else []
        parts += [f"WAIVED {rule}: {reason}" for rule, reason in sorted(self.study.waive.items())]
        return "pruneaudit: " + " · ".join(parts)

    def computing(self) -> str | None:
        """One line that says what computes; None where nothing does, or where it cannot be told."""
        if self.only_judges or self.cluster is not None:
            return None
        backend = self.settings.backend
        # What is chosen for a workload is not chosen yet.
        kind = described(self.device, backend if isinstance(backend, str) else "torch")
        return f"pruneaudit: computes with {kind}" if kind else None

    def beginning(self) -> str | None:
        """One line where a new ledger begins although a folder above has one; None elsewhere."""
        ours = Path(DEFAULTS["audit_ledger"])
        other = above(self.root, ours / "ledger.json")
        if not self.is_new or other is None or self.ledger_path != self.root / ours:
            return None
        return (
            f"pruneaudit: a new ledger begins in {self.ledger_path}; to go on with the one above, "
            f"give --audit-ledger {other.parent}"
        )


def _over_seeds_taken(subject: Subject, standing: Standing | None) -> Subject:
    """A subject over the seeds that it took; one that has no plan as it is."""
    if standing is None or (isinstance(subject, Comparison) and standing.of(subject) is None):
        return subject
    return standing.over_seeds_taken(subject)


def _check_folder(path: Path, option: str) -> None:
    """Refuse a folder that cannot be written when the session ends, before it starts."""
    existing = next(folder for folder in (path, *path.parents) if folder.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise ConfigError(f"{option} {path}: {existing} is no folder that can be written; choose another")


def _ratios(text: str | None) -> tuple[float, ...]:
    """Ratios in a comma-separated list."""
    found = []
    for word in _names(text):
        try:
            ratio = float(word)
        except ValueError:
            ratio = -1.0
        if not 0 < ratio < 1:
            raise ConfigError(f"--audit-ratios: '{word}' is no ratio; give shares between 0 and 1, such as 0.6,0.8")
        found.append(ratio)
    return tuple(found)


def _refuse_empty(option: Any) -> None:
    """Refuse a list that is given and names nothing."""
    for name in ("methods", "protocols", "against", "ratios", "fail_on"):
        text = getattr(option, f"audit_{name}")
        if text and not _names(text):
            raise ConfigError(f"--audit-{name.replace('_', '-')} '{text}' names nothing; leave it out, or give A,B")


def _names(text: str | None) -> tuple[str, ...]:
    """Names in a comma-separated list."""
    return tuple(name.strip() for name in (text or "").split(",") if name.strip())


def item_target(item: Any) -> Cell | Check | ConformanceCase | Gate | None:
    """What an item of the suite measures or judges; None for other tests."""
    callspec = getattr(item, "callspec", None)
    for name in ("audit_conformance", "audit_cell", "audit_check", "audit_gate"):
        if callspec is not None and name in callspec.params:
            target = callspec.params[name]
            return target if isinstance(target, Cell | Check | ConformanceCase | Gate) else None
    return None


def is_placeholder(item: Any) -> bool:
    """Whether an item stands for an empty list of cases: pytest makes one that is always skipped."""
    names = {"audit_conformance", "audit_cell", "audit_check", "audit_gate"}
    return item_target(item) is None and bool(names & set(getattr(item, "fixturenames", ())))
