"""A Python that has imported already what takes long: each start is a fork of one process that waits.

Importing torch, its compiler and scikit-learn takes ten seconds of CPU and pruneaudit one, a smoke-sized session hardly
another. Forks have in common the modules below, pruneaudit's, and the seed of hashes; the environment, and what happens
once something is called, are their own. A fork whose path leads to another pruneaudit than the imported one, edited or
installed elsewhere, imports that. Where those modules or that seed are what is tested, use the real interpreter.

Started as a script, with a folder, this is the process that waits; what it puts there is run like ``python``.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import fcntl
import gc
import importlib
import importlib.machinery
import json
import multiprocessing.spawn
import os
import pkgutil
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
import types
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

#: The last two are imported by plugins of theirs in every session, where they are installed.
HEAVY = (
    *("torch._dynamo", "torch_pruning", "sklearn.datasets", "scipy.stats", "pandas", "plotly", "jinja2", "rich"),
    *("pydantic.main", "pytest", "fvcore.nn", "PIL.Image", "numpy.random"),
    *("hypothesis.internal.observability", "anyio._backends._asyncio"),
)

#: How names in pruneaudit end that are not imported here: numba has its settings from who imports it, and what a wheel
#: carries as content is imported by pytest, and as methods.
APART = ("__main__", "_kernel", ".vectors", "pruneaudit.suite", "pruneaudit.methods")

#: Names the file of coverage data, where tests are measured with ``pytest --cov``; and what is measured here: what runs
#: in sessions and commands of their own. All else runs in the tests' own processes, where measuring it costs less.
MEASURED = "PRUNEAUDIT_TESTS_COVERAGE"
FRONT = ("*/pruneaudit/plugin/*", "*/pruneaudit/cli.py", "*/pruneaudit/doctor.py")

#: Files that the system passes at once.
MOST_FILES = 250

#: What stands in for the interpreter: hands over its arguments, environment and files, and ends as the fork does.
CLIENT = """#!{python} -IS
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    files = [0, 1, 2]
    for name in map(int, os.listdir("/dev/fd")):
        try:
            if name > 2 and os.get_inheritable(name):
                files.append(name)
        except OSError:
            pass  # the listing itself
    request = {{"arguments": sys.argv[1:], "folder": os.getcwd(), "environ": dict(os.environ), "files": files}}
    request = json.dumps(request).encode()
    socket.send_fds(server, [len(request).to_bytes(8, "big")], files)
    server.sendall(request)
    code = os.waitstatus_to_exitcode(int.from_bytes(server.recv(4), "big"))
if code < 0:
    os.kill(os.getpid(), -code)
sys.exit(code)
"""


@contextlib.contextmanager
def warm_python(python: str = sys.executable, package: Path | None = None, coverage: str = "") -> Iterator[str]:
    """An executable that stands in for ``python``; its imports are done when it is first used.

    Args:
        python: The interpreter.
        package: Folder of pruneaudit; None: the one that is installed there.
        coverage: Beside this file go those that say which lines were run; empty: nothing is measured.
    """
    # Neither threads nor CUDA would be there in a fork: without NVML, to ask for a GPU starts CUDA.
    quiet = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
    quiet |= {MEASURED: coverage} if coverage else {}
    # A socket's name has at most some hundred characters: no test's folder.
    with tempfile.TemporaryDirectory(prefix="warm") as folder:
        command = [python, "-P", __file__, folder, *([str(package)] if package else [])]
        # Each fork has the path of who asks.
        given = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | quiet
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=given) as server:
            assert server.stdin and server.stdout
            server.stdout.readline()
            yield str(Path(folder, "python"))
            # It ends when nobody can ask any more, also where this process is killed.
            server.stdin.close()


def serve(folder: Path, package: Path | None) -> None:
    """Fork for every request until standard input ends; returns in the forks only, as what was asked for."""
    ready = False
    address, client, measured = folder / "socket", folder / "python", os.environ.get(MEASURED, "")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(address))
        listener.listen(64)
        client.write_text(CLIENT.format(python=sys.executable, address=str(address)), encoding="utf-8")
        client.chmod(0o755)
        print("ready", flush=True)
        while 0 not in select.select([0, listener], [], [])[0]:
            # Those that wait for forks. What they took counts as this process's: ``time make test`` is right.
            with contextlib.suppress(ChildProcessError):
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            connection, _ = listener.accept()
            if not ready:
                prepare(folder / "site-packages", package, measured)
                ready = True
            # What is here now stays: no fork looks through it for garbage, and so none copies it. Nor does one look
            # often: it is over in seconds.
            gc.freeze()
            gc.set_threshold(100_000, 50, 100)
            if os.fork() == 0:
                listener.close()
                answer(connection, str(client), measured)
            connection.close()


def prepare(folder: Path, package: Path | None, measured: str) -> None:
    """Import what forks have in common.

    Args:
        folder: Where a copy of the package is made: code that is in the way of nobody's own, as an installed one.
        package: What is copied; None: the installed one is imported.
        measured: The file of coverage data; empty: nothing is measured.
    """
    for name in HEAVY:
        with contextlib.suppress(ModuleNotFoundError):
            importlib.import_module(name)
    if package is not None:
        shutil.copytree(package, folder / package.name)
        sys.path.insert(0, str(folder))
    with measuring(measured) if measured else contextlib.nullcontext(), rewriting():
        import_all("pruneaudit")
    if package is not None:
        sys.path.remove(str(folder))
    from pruneaudit.report import page

    # The same for all reports. Not the data sets: forks are methods' processes as well, which must not hold any.
    page._template()
    page._digest(page._plotly())
    # Whoever looks at all objects copies their memory: forks do not end what was begun here, and know what to move.
    for finalizer in list(weakref.finalize._registry):
        finalizer.atexit = False
    remember()


def import_all(name: str) -> None:
    """Import a module and all below it, but those that stand apart."""
    module = importlib.import_module(name)
    for below in pkgutil.iter_modules(getattr(module, "__path__", ()), f"{name}."):
        if not below.name.endswith(APART):
            # What an extra brings is not everywhere.
            with contextlib.suppress(ModuleNotFoundError):
                import_all(below.name)


@contextlib.contextmanager
def rewriting() -> Iterator[None]:
    """Import plugins as pytest does, so that it has nothing to complain of."""
    from _pytest.assertion import install_importhook
    from _pytest.config import get_config

    config = get_config()
    hook = install_importhook(config)
    hook.mark_rewrite("pruneaudit.plugin")
    yield
    sys.meta_path.remove(hook)


@dataclasses.dataclass(frozen=True)
class Imported:
    """The pruneaudit that was imported before forking.

    Attributes:
        folder: Its package.
        modules: Names of its modules.
        stamps: What tells their files from edited ones, by path below the folder.
        places: Objects and names of their attributes that are paths below the folder, with the paths.
        lists: Where packages look for modules.
    """

    folder: str
    modules: tuple[str, ...]
    stamps: dict[str, tuple[int, int]]
    places: list[tuple[object, str, str | Path]]
    lists: list[list[str]]


def remember() -> None:
    """Note what :func:`settle` needs."""
    global imported
    ours = {name: module for name, module in sys.modules.items() if name.partition(".")[0] == "pruneaudit"}
    folder = ours["pruneaudit"].__path__[0]
    files = [module.__file__ for module in ours.values()]
    holders = [one for module in ours.values() for one in (module, module.__spec__, module.__loader__)]
    imported = Imported(
        folder,
        tuple(ours),
        {file.removeprefix(folder): stamp(file) for file in files},
        [
            (holder, name, value)
            for holder in holders
            for name, value in vars(holder).items()
            if isinstance(value, str | Path) and str(value).startswith(folder)
        ],
        [module.__spec__.submodule_search_locations for module in ours.values() if hasattr(module, "__path__")],
    )


def settle() -> None:
    """Have the imported pruneaudit stand where this process's path leads to; forget it where that is another one."""
    found = importlib.machinery.PathFinder.find_spec("pruneaudit", sys.path)
    wanted = next(iter(found.submodule_search_locations or ()), "") if found else imported.folder
    if wanted == imported.folder:
        return
    if any(stamp(wanted + file) != known for file, known in imported.stamps.items()):
        for name in imported.modules:
            del sys.modules[name]
        return
    for holder, name, value in imported.places:
        setattr(holder, name, type(value)(str(value).replace(imported.folder, wanted, 1)))
    for places in imported.lists:
        places[:] = [place.replace(imported.folder, wanted, 1) for place in places]


def stamp(file: str) -> tuple[int, int] | None:
    """What a file has in common with its copies, and with none that was edited; None where there is none."""
    try:
        status = os.stat(file)
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns


def answer(connection: socket.socket, client: str, measured: str) -> None:
    """Run one request in a child of its own; report how it ended, or end it where nobody waits for it any more."""
    size, files, _, _ = socket.recv_fds(connection, 8, MOST_FILES)
    with connection.makefile("rb") as stream:
        request = json.loads(stream.read(int.from_bytes(size, "big")))
    # Closed by the system when the child has ended, however it ended.
    ended, alive = os.pipe()
    child = os.fork()
    if child == 0:
        connection.close()
        os.close(ended)
        # Out of the way of the numbers that they had.
        above = max(request["files"]) + 1
        fcntl.fcntl(alive, fcntl.F_DUPFD_CLOEXEC, above)
        moved = [fcntl.fcntl(file, fcntl.F_DUPFD_CLOEXEC, above) for file in files]
        for file in (alive, *files):
            os.close(file)
        for number, file in zip(request["files"], moved, strict=True):
            os.dup2(file, number)
            os.close(file)
        os.chdir(request["folder"])
        os.environ.clear()
        os.environ.update(request["environ"])
        sys.executable = client
        multiprocessing.spawn.set_executable(client)
        if measured:
            one = measuring(measured)
            one.__enter__()
            atexit.register(one.__exit__, None, None, None)
        os._exit(exit_status(lambda: run(request["arguments"])))
    for file in (alive, *files):
        os.close(file)
    if ended not in select.select([ended, connection], [], [])[0]:
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    with contextlib.suppress(OSError):
        connection.sendall(status.to_bytes(4, "big"))
    os._exit(0)


@contextlib.contextmanager
def measuring(file: str) -> Iterator[None]:
    """Note which lines of the front this process runs, until it ends; nothing of one that is killed."""
    import coverage

    one = coverage.Coverage(file, data_suffix=True, include=FRONT, config_file=False)
    # What tests read is what the program printed.
    one.set_option("run:disable_warnings", ["no-data-collected"])
    one.start()
    yield
    one.stop()
    one.save()


def exit_status(program: Callable[[], None]) -> int:
    """Run a program to its end, and what it left to be done there.

    All but what an interpreter does last: to take thousands of modules apart takes seconds.
    """
    try:
        program()
        code: object = 0
    except SystemExit as done:
        code = done.code or 0
        if not isinstance(code, int):
            print(code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    return code & 0xFF if isinstance(code, int) else 1


def run(arguments: list[str]) -> None:
    """What ``python ARGUMENTS`` does, for ``-c``, ``-m`` and a file."""
    # Flags, as of `multiprocessing`: all that could matter is the environment's.
    while arguments[0] not in ("-c", "-m") and arguments[0].startswith("-"):
        arguments = arguments[2 if arguments[0] == "-X" else 1 :]
    option, *rest = arguments
    paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.dont_write_bytecode = bool(os.environ.get("PYTHONDONTWRITEBYTECODE"))
    if option == "-m":
        sys.argv = rest
        sys.path[:0] = [os.getcwd(), *paths]
        settle()
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif option == "-c":
        sys.argv = ["-c", *rest[1:]]
        sys.path[:0] = ["", *paths]
        settle()
        main = sys.modules["__main__"] = types.ModuleType("__main__")
        exec(rest[0], main.__dict__)
    else:
        sys.argv = arguments
        sys.path[:0] = [str(Path(option).resolve().parent), *paths]
        settle()
        runpy.run_path(option, run_name="__main__")


if __name__ == "__main__":
    serve(Path(sys.argv[1]), Path(sys.argv[2]) if sys.argv[2:] else None)
    os._exit(0)
