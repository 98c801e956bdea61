"""A Python that has imported already what takes long: each start is a fork of one process that waits.

Importing torch, its compiler and scikit-learn takes ten seconds of CPU, a smoke-sized session hardly one. Forks have in
common the third-party modules below and the seed of hashes; plugins of pytest, pruneaudit and the environment are their
own. Where those modules or that seed are what is tested, use the real interpreter.

Started as a script, with a folder, this is the process that waits; what it puts there is run like ``python``.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import traceback
import types
from collections.abc import Callable, Iterator
from pathlib import Path

#: The last two are imported by plugins of theirs in every session, where they are installed.
HEAVY = (
    *("torch._dynamo", "torch_pruning", "sklearn.datasets", "scipy.stats", "pandas", "plotly", "jinja2", "rich"),
    *("pydantic.main", "pytest", "fvcore.nn", "PIL.Image", "numpy.random"),
    *("hypothesis.internal.observability", "anyio._backends._asyncio"),
)

#: Names the file of coverage data, where tests are measured with ``pytest --cov``; and what is measured here: what runs
#: in sessions and commands of their own. All else runs in the tests' own processes, where measuring it costs less.
MEASURED = "PRUNEAUDIT_TESTS_COVERAGE"
FRONT = ("*/pruneaudit/plugin/*", "*/pruneaudit/cli.py", "*/pruneaudit/doctor.py")

#: What stands in for the interpreter: hands over its arguments, environment and files, and ends as the fork does.
CLIENT = """#!{python} -IS
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    request = json.dumps({{"arguments": sys.argv[1:], "folder": os.getcwd(), "environ": dict(os.environ)}}).encode()
    socket.send_fds(server, [len(request).to_bytes(8, "big")], [0, 1, 2])
    server.sendall(request)
    code = os.waitstatus_to_exitcode(int.from_bytes(server.recv(4), "big"))
if code < 0:
    os.kill(os.getpid(), -code)
sys.exit(code)
"""


@contextlib.contextmanager
def warm_python(python: str = sys.executable, coverage: str = "") -> Iterator[str]:
    """An executable that stands in for ``python``; its imports are done when it is first used.

    Args:
        python: The interpreter.
        coverage: Beside this file go those that say which lines were run; empty: nothing is measured.
    """
    # Neither threads nor CUDA would be there in a fork: without NVML, to ask for a GPU starts CUDA.
    quiet = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
    quiet |= {MEASURED: coverage} if coverage else {}
    # A socket's name has at most some hundred characters: no test's folder.
    with tempfile.TemporaryDirectory(prefix="warm") as folder:
        command = [python, "-P", __file__, folder]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=os.environ | quiet) as server:
            assert server.stdin and server.stdout
            server.stdout.readline()
            yield str(Path(folder, "python"))
            # It ends when nobody can ask any more, also where this process is killed.
            server.stdin.close()


def serve(folder: Path) -> None:
    """Fork for every request until standard input ends; returns in the forks only, as what was asked for."""
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
            for name in HEAVY:
                with contextlib.suppress(ModuleNotFoundError):
                    importlib.import_module(name)
            # What is here now stays: no fork looks through it for garbage, and so none copies it. Nor does one look
            # often: it is over in seconds.
            gc.freeze()
            gc.set_threshold(100_000, 50, 100)
            if os.fork() == 0:
                listener.close()
                answer(connection, str(client), measured)
            connection.close()


def answer(connection: socket.socket, client: str, measured: str) -> None:
    """Run one request in a child of its own; report how it ended, or end it where nobody waits for it any more."""
    size, files, _, _ = socket.recv_fds(connection, 8, 3)
    with connection.makefile("rb") as stream:
        request = json.loads(stream.read(int.from_bytes(size, "big")))
    # Closed by the system when the child has ended, however it ended.
    ended, alive = os.pipe()
    child = os.fork()
    if child == 0:
        connection.close()
        os.close(ended)
        for number, file in enumerate(files):
            os.dup2(file, number)
            os.close(file)
        os.chdir(request["folder"])
        os.environ.clear()
        os.environ.update(request["environ"])
        sys.executable = client
        if measured:
            measure(measured)
        os._exit(exit_status(lambda: run(request["arguments"])))
    for file in (alive, *files):
        os.close(file)
    if ended not in select.select([ended, connection], [], [])[0]:
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    with contextlib.suppress(OSError):
        connection.sendall(status.to_bytes(4, "big"))
    os._exit(0)


def measure(file: str) -> None:
    """Note which lines of the front this process runs, until it ends; nothing of one that is killed."""
    import coverage

    one = coverage.Coverage(file, data_suffix=True, include=FRONT, config_file=False)
    # What tests read is what the program printed.
    one.set_option("run:disable_warnings", ["no-data-collected"])
    one.start()

    def save() -> None:
        one.stop()
        one.save()

    atexit.register(save)


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
    while arguments[0] == "-u":
        arguments = arguments[1:]
    option, *rest = arguments
    paths = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.dont_write_bytecode = bool(os.environ.get("PYTHONDONTWRITEBYTECODE"))
    if option == "-m":
        sys.argv = rest
        sys.path[:0] = [os.getcwd(), *paths]
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif option == "-c":
        sys.argv = ["-c", *rest[1:]]
        sys.path[:0] = ["", *paths]
        main = sys.modules["__main__"] = types.ModuleType("__main__")
        exec(rest[0], main.__dict__)
    else:
        sys.argv = arguments
        sys.path[:0] = [str(Path(option).resolve().parent), *paths]
        runpy.run_path(option, run_name="__main__")


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
    os._exit(0)
