"""The pytest plugin: options, parametrized cases, order, judgement, report. Imports no torch.

Installed, it loads into every pytest session; it stays silent unless the session runs pruneaudit's suite.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pruneaudit.errors import ConfigError
from pruneaudit.plugin import outcomes
from pruneaudit.plugin.causes import Causes, pytest_runtest_makereport  # noqa: F401  (a hook)
from pruneaudit.plugin.device import claim, visible_gpus
from pruneaudit.plugin.options import DEFAULTS, add_options, with_values
from pruneaudit.plugin.outcomes import REMOVED, RENAMED, Disputes, removed, renamed
from pruneaudit.plugin.project import from_here, joined, misled

if TYPE_CHECKING:
    from pruneaudit.plugin.session import AuditSession

_SESSION = pytest.StashKey["AuditSession"]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Register the ``--audit-*`` options."""
    add_options(parser)


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    """Choose the arithmetic of this process before a conftest loads torch; workers inherit it."""
    chosen = early_config.known_args_namespace
    # Where items are only listed, nothing is computed; plans are made in a process that has loaded much.
    if not chosen.collectonly and getattr(chosen, "audit_arithmetic", "native") == "portable":
        from pruneaudit.arithmetic import pin

        try:
            pin()
        except ConfigError as error:
            # A ledger can be judged on any machine. What is computed for that, such as scores of a study's criteria, is
            # then right up to rounding.
            if not getattr(chosen, "audit_from", None):
                raise pytest.UsageError(str(error)) from None


@pytest.hookimpl(tryfirst=True)
def pytest_cmdline_main(config: pytest.Config) -> pytest.ExitCode | int | None:
    """Start again where pytest took the value of an option of ours for the folder of the tests."""
    if config.option.pyargs:
        from pruneaudit.catalog.discovery import as_path

        # An installed checkout has its suite beside the package and not in it.
        config.args[:] = map(as_path, config.args)
    given = list(config.invocation_params.args)
    arguments = joined(given, with_values())
    if arguments == given or not misled(config):
        return None
    return pytest.main(arguments, plugins=config.invocation_params.plugins)


def pytest_configure(config: pytest.Config) -> None:
    """Check options and TOML files before anything runs; on the controller, prepare report and completeness guard."""
    if not _runs_suite(config):
        return
    if getattr(config.option, "forked", False):
        raise pytest.UsageError(
            "--forked (pytest-forked) runs every item in a fork that cannot reach the session's processes; leave it "
            "out: -n shares the work, and code of a method has a process of its own"
        )
    claim()
    if not hasattr(config, "workerinput"):
        from_here(config)
    session = audit_session(config)
    from pruneaudit.plugin.storage import StorageStop

    config.pluginmanager.register(StorageStop(), "pruneaudit-storage")
    if hasattr(config, "workerinput"):
        from pruneaudit.plugin.worker import Worker

        config.pluginmanager.register(Worker(config), "pruneaudit-worker")
        config.pluginmanager.register(outcomes, "pruneaudit-outcomes")
    else:
        from pruneaudit.plugin.controller import Controller
        from pruneaudit.plugin.studies import Sentences

        causes, disputes = Causes(), Disputes()
        config.pluginmanager.register(outcomes, "pruneaudit-outcomes")
        config.pluginmanager.register(causes, "pruneaudit-causes")
        config.pluginmanager.register(Sentences(session), "pruneaudit-studies")
        config.pluginmanager.register(disputes, "pruneaudit-disputes")
        config.pluginmanager.register(Controller(config, session, causes, disputes), "pruneaudit-controller")
        # Without this xdist hands out cells in chunks, and a worker may sit on heavy ones while others are idle.
        if getattr(config.option, "maxschedchunk", 1) is None:
            config.option.maxschedchunk = 1


def _runs_suite(config: pytest.Config) -> bool:
    """Whether this session's arguments reach the suite, or an option of ours was given."""
    if any(getattr(config.option, name, default) != default for name, default in DEFAULTS.items()):
        return True
    from pruneaudit.catalog.discovery import content_root

    suite = content_root() / "suite"
    for argument in config.args:
        name = argument.partition("::")[0]
        if name.startswith("pruneaudit.suite"):
            return True
        path = Path(config.invocation_params.dir, name).resolve()
        if path.is_relative_to(suite) or (path.is_dir() and suite.is_relative_to(path)):
            return True
    return False


def audit_session(config: pytest.Config) -> AuditSession:
    """The session's state, made on first use."""
    if _SESSION not in config.stash:
        from pruneaudit.plugin.session import AuditSession

        config.stash[_SESSION] = AuditSession(config)
    return config.stash[_SESSION]


def pytest_report_header(config: pytest.Config) -> list[str]:
    """What is compared and how, what computes where something is, and where a new ledger may be a mistake."""
    if _SESSION not in config.stash:
        return []
    session = config.stash[_SESSION]
    computing = None if config.option.collectonly else session.computing()
    return [line for line in (session.header(), computing, session.beginning()) if line is not None]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """``-n auto`` means one worker for each GPU, where there are GPUs and the suite runs."""
    uses_gpu = getattr(config.option, "audit_device", "auto") != "cpu"
    return (len(visible_gpus()) or None) if uses_gpu and _runs_suite(config) else None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrize the suite's functions with what the options select, as far as ``-k`` may select it."""
    from pruneaudit.plugin.keywords import selectable, static_names

    for name, cases in (
        ("audit_conformance", "conformance"),
        ("audit_cell", "cells"),
        ("audit_check", "checks"),
        ("audit_gate", "gates"),
    ):
        if name in metafunc.fixturenames:
            session = audit_session(metafunc.config)
            workloads = selectable(
                metafunc.config.option.keyword,
                metafunc.definition.name,
                [workload.name for workload in session.selection.chosen()],
                static_names(metafunc.definition),
                session.words(),
            )
            targets = getattr(session, cases)(workloads)
            metafunc.parametrize(name, targets, ids=[target.id for target in targets])
    if "audit_question" in metafunc.fixturenames:
        asked = audit_session(metafunc.config).questions(_studied(metafunc.config))
        metafunc.parametrize("audit_question", asked, ids=[question.id for question in asked])


def _studied(config: pytest.Config) -> str:
    """Where studies may be named: in ``-k``, and by their file."""
    files = [name.partition("::")[0] for name in config.args]
    return f"{config.option.keyword} {'study' if any(name.endswith('test_studies.py') for name in files) else ''}"


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave out what has no cases: conformance where nothing may train, the gate where nothing is gated, studies."""
    if _SESSION not in config.stash or collection_path.parent.name != "suite":
        return None
    session = config.stash[_SESSION]
    absent = {
        "test_conformance.py": session.only_judges,
        "test_gate.py": not session.fail_on,
        "test_studies.py": not session.questions(_studied(config)),
    }
    return True if absent.get(collection_path.name) else None


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> Generator[None]:
    """Conformance first, then cells, fairness, and the gate; remember the selected cells.

    Last, when ``-k`` and ``-m`` have taken out what they take out.
    """
    every = list(items)
    yield
    if _SESSION not in config.stash:
        return
    from pruneaudit.catalog.cells import Cell, Comparison
    from pruneaudit.plugin.gate import with_conformance
    from pruneaudit.plugin.session import Check, ConformanceCase, Gate, is_placeholder, item_target

    _note_removed(config, removed(config, every, items))
    strange = renamed(items)
    if strange is not None:
        # A worker has nobody to raise it to: it runs nothing, and says why when it ends.
        if not hasattr(config, "workerinput"):
            raise pytest.UsageError(strange)
        config.workeroutput[RENAMED] = strange  # type: ignore[attr-defined]
        items[:] = []
        return
    items[:] = with_conformance(config, config.stash[_SESSION], every, items)
    targets = [(item_target(item), item) for item in items if not is_placeholder(item)]
    order = {type(None): 0, ConformanceCase: 1, Cell: 2, Check: 3, Gate: 4}
    items[:] = [item for _, item in sorted(targets, key=lambda pair: order[type(pair[0])])]
    session = config.stash[_SESSION]
    selected: dict[Any, None] = {}
    for target, _ in targets:
        if isinstance(target, Cell):
            selected[target] = None
    for target, _ in targets:
        if isinstance(target, Check | Gate):
            selected.update(dict.fromkeys(session.opening(target.subject.cells())))
    for _, item in targets:
        question = item.callspec.params.get("audit_question") if hasattr(item, "callspec") else None
        for _, left, right in session.pairs(question) if question is not None else ():
            selected.update(dict.fromkeys([*left, *right]))
    session.selected = list(selected)
    # The report judges every selected comparison; p values must be adjusted over the same ones.
    judged = [
        target.subject
        for target, _ in targets
        if isinstance(target, Gate) or (isinstance(target, Check) and isinstance(target.subject, Comparison))
    ]
    session.judged = list(dict.fromkeys(judged))


def _note_removed(config: pytest.Config, items: list[str]) -> None:
    """Tell the controlling process which items were taken away."""
    disputes: Any = config.pluginmanager.get_plugin("pruneaudit-disputes")
    if disputes is not None:
        disputes.removed = items
    elif items:
        config.workeroutput[REMOVED] = items  # type: ignore[attr-defined]


@pytest.fixture(scope="session")
def audit(request: pytest.FixtureRequest) -> Iterator[AuditSession]:
    """The audit of this session: measures cells and judges comparisons."""
    yield audit_session(request.config)
