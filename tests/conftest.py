"""Fixtures of the project's own tests."""

import compileall
import contextlib
import gc
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import arena as arenas
import pytest
from hypothesis import settings
from warm import warm_python

ROOT = Path(__file__).resolve().parent.parent
pytest_plugins = ["pytester"]
WARM = pytest.StashKey[str]()
# No example has a time that it must keep: machines are busy.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")


def pytest_configure(config):
    """Have one Python wait with its imports done for all workers, which are told where; keys are kept elsewhere."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # As in what a shell runs in the background. Programs that tests start, and interrupt, inherit it.
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if not hasattr(config, "workerinput"):
        folder = tempfile.TemporaryDirectory(prefix="pruneaudit-tests-")
        config.add_cleanup(folder.cleanup)
        # Workers, and what tests start, inherit it.
        os.environ["XDG_STATE_HOME"] = folder.name
        # Records of tests are made up: their weights give nothing. What is said of real ones: test_rechecking.py.
        os.environ["PRUNEAUDIT_RECHECK"] = "0"
    if hasattr(config, "workerinput"):
        config.stash[WARM] = config.workerinput["warm"]
    else:
        stack = contextlib.ExitStack()
        config.add_cleanup(stack.close)
        measured = str(config.rootpath / ".coverage") if getattr(config.option, "cov_source", None) else ""
        config.stash[WARM] = stack.enter_context(warm_python(package=ROOT / "pruneaudit", coverage=measured))


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node):
    """Tell a worker of xdist."""
    node.workerinput["warm"] = node.config.stash[WARM]


@pytest.hookimpl(wrapper=True)
def pytest_collection():
    """What all tests share stays: to look through it for garbage again and again was a third of collecting."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()
        # Tests make thousands of objects that are gone when they are over.
        gc.set_threshold(50_000, 10, 10)


@pytest.fixture(autouse=True)
def own_paths():
    """Folders of methods that a test imports are on the path until it is over: no later test finds files there."""
    before = list(sys.path)
    yield
    sys.path[:] = before


@dataclass
class Outcome:
    """A finished command: exit code, stdout and stderr as one text, and its lines."""

    code: int
    text: str

    @property
    def lines(self) -> list[str]:
        return self.text.splitlines()


@dataclass
class Checkout:
    """A copy of the project's content that a test may change, with its own ledger and report.

    Attributes:
        root: Its folder.
        warm: A Python that starts at once.
        compiled: What it is a copy of, with bytecode; None: it has no package.
    """

    root: Path
    warm: str
    compiled: Path | None = None

    def pytest(self, *arguments: str, timeout: int = 900, fresh: bool = False, **environ: str) -> Outcome:
        """Run pytest in the copy."""
        # Nothing is logged here, and to listen to each of torch's fifty loggers in each phase of each item takes long.
        # Nor does anything here need Hypothesis, whose plugin takes a second to import.
        quiet = ("-p", "no:hypothesispytest") if fresh else ("-p", "no:logging")
        arguments = ("-m", "pytest", "-p", "no:cacheprovider", *quiet, *arguments)
        return self.python(*arguments, timeout=timeout, fresh=fresh, **environ)

    def python(self, *arguments: str, timeout: int = 900, fresh: bool = False, **environ: str) -> Outcome:
        """Run Python with the copy's package first on its path.

        Args:
            arguments: Of the command line.
            timeout: Seconds until it is given up.
            fresh: Whether it matters what is imported already, or in which order sets are (see ``warm``).
            environ: Further variables.
        """
        if fresh:
            self._bring_bytecode()
        inherited = {
            key: value
            for key, value in os.environ.items()
            # A test under xdist must not make the inner session believe that it is a worker.
            if not key.startswith(("PYTEST_", "PRUNEAUDIT_", "COV_"))
        }
        # Seconds for each session, and the same pictures again and again; what trains must not depend on the machine.
        options = "--audit-figures none --audit-recheck 0 --audit-backend torch"
        quick = {"PYTEST_ADDOPTS": options, "PRUNEAUDIT_RECHECK": "0"}
        done = subprocess.run(
            [sys.executable if fresh else self.warm, *arguments],
            cwd=self.root,
            env=inherited | {"PYTHONPATH": str(self.root), "PYTHONDONTWRITEBYTECODE": "1"} | quick | environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            timeout=timeout,
        )
        return Outcome(done.returncode, done.stdout)

    def _bring_bytecode(self) -> None:
        """Have the package's bytecode beside it, for who imports it: it is valid in copies, too."""
        for folder in (self.compiled / "pruneaudit").rglob("__pycache__") if self.compiled else ():
            target = self.root / folder.relative_to(self.compiled)
            if not target.exists():
                shutil.copytree(folder, target, copy_function=os.link)

    @property
    def ledger(self) -> Path:
        return self.root / ".pruneaudit" / "ledger"

    @property
    def report(self) -> Path:
        return self.root / "reports" / "latest"

    def write(self, path: str, text: str) -> Path:
        target = self.root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
        return target


@pytest.fixture(scope="session")
def warm(pytestconfig: pytest.Config) -> str:
    """A Python that starts at once: third-party modules are imported already, pruneaudit is not."""
    return pytestconfig.stash[WARM]


@pytest.fixture
def spawned(monkeypatch: pytest.MonkeyPatch, warm: str) -> None:
    """What `multiprocessing` spawns in this process starts at once. Who kills it is told so before it is gone."""
    monkeypatch.setattr("multiprocessing.spawn._python_exe", os.fsencode(warm))


@pytest.fixture(scope="session")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of package, suite, methods and protocols, with the bytecode of the package."""
    root = tmp_path_factory.mktemp("compiled")
    for name in ("pruneaudit", "suite", "methods", "protocols"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("*.pytest-*", "*.nb?"))
    for name in ("conftest.py", "pyproject.toml"):
        shutil.copy2(ROOT / name, root / name)
    # What is compiled already, as by `make test`, stays.
    compileall.compile_dir(root / "pruneaudit", quiet=2)
    return root


@pytest.fixture
def checkout(tmp_path: Path, compiled: Path, warm: str) -> Checkout:
    """A fresh copy of package, suite, methods and protocols. No test edits the package itself: its files are shared."""
    root = tmp_path / "checkout"
    # Hundreds of files for each of hundreds of tests.
    for folder, _, names in os.walk(compiled):
        place = Path(folder).relative_to(compiled)
        if place.name != "__pycache__":
            (root / place).mkdir()
            copied = os.link if place.parts[:1] == ("pruneaudit",) else shutil.copyfile
            for name in names:
                copied(f"{folder}{os.sep}{name}", root / place / name)
    return Checkout(root, warm, compiled)


@pytest.fixture
def arena(checkout: Checkout) -> Checkout:
    """A copy of the project with a workload that trains in tenths of a second."""
    for name, text in arenas.FILES.items():
        checkout.write(name, text)
    return checkout


@pytest.fixture(scope="session")
def browser():
    """A real headless Chromium: ``make test`` installs one where it may; without one these tests are skipped."""
    sync_api = pytest.importorskip("playwright.sync_api")
    names = ("chromium", "chromium-browser", "google-chrome")
    path = os.environ.get("PRUNEAUDIT_CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    if path is None:
        pytest.skip("no Chromium is installed here; install one, or name it with PRUNEAUDIT_CHROMIUM")
    with sync_api.sync_playwright() as playwright:
        # Root may not use Chromium's sandbox, and tests in containers run as root.
        opened = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield opened
        opened.close()
