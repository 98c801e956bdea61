"""Ctrl-C and SIGTERM: a session stops within seconds, says what is kept, and leaves nothing behind."""

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from pruneaudit.ledger.progress import kept_epochs
from pruneaudit.ledger.store import Ledger

#: Seconds in which everything must be over, on a machine that does other things as well.
SOON = 60.0
#: Trains for longer than any test waits.
SESSION = ("suite/test_cells.py", "--audit-figures=none", "-k", "lenet5-digits and s3.2", "--audit-methods=l1")
#: Writes down each process of the session, and whether a test of it is running.
NOTED = """
import os
from pathlib import Path
from pruneaudit.plugin import interrupts

# A machine that does other things as well needs longer to say its last words.
interrupts.PATIENCE = 45.0

def pytest_configure(config):
    name = "worker" if hasattr(config, "workerinput") else "controller"
    Path(config.rootpath, f"{name}-{os.getpid()}.pid").write_text("")
"""


def wait_for(condition, patience=120.0):
    """Wait until something is true; return what it is."""
    deadline = time.monotonic() + patience
    while not (found := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
    return found


def is_there(process):
    """Whether a process runs, and is not only waited for by nobody."""
    with contextlib.suppress(OSError), open(f"/proc/{process}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] != "Z"
    return False


def processes(checkout, kind):
    return [int(path.stem.rpartition("-")[2]) for path in checkout.root.glob(f"{kind}-*.pid")]


@pytest.fixture
def stopped(checkout):
    """Starts a long session, sends signals to it in the middle of an epoch: exit code, text, seconds that it took."""
    with (checkout.root / "conftest.py").open("a") as file:
        file.write(NOTED)
    checkout.write("reports/latest/report.html", "the last good one")

    def stop(number, *arguments, times=1):
        process = subprocess.Popen(
            [checkout.warm, "-m", "pytest", "-p", "no:cacheprovider", *SESSION, *arguments],
            cwd=checkout.root,
            env={key: value for key, value in os.environ.items() if not key.startswith(("PYTEST_", "PRUNEAUDIT_"))}
            | {"PYTHONPATH": str(checkout.root)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
        )
        wait_for(lambda: process.poll() is not None or list(checkout.ledger.glob("partial/*/state.safetensors")))
        (controller,) = processes(checkout, "controller")
        began = time.monotonic()
        for _ in range(times):
            with contextlib.suppress(ProcessLookupError):
                os.kill(controller, number)
            time.sleep(0.3)
        text = process.communicate(timeout=2 * SOON)[0]
        seconds = time.monotonic() - began
        for other in [controller, *processes(checkout, "worker")]:
            wait_for(lambda other=other: not is_there(other), SOON)
        return process.returncode, text, seconds

    return stop


def test_ctrl_c_stops_a_session_in_the_middle_of_an_epoch(checkout, stopped):
    code, text, seconds = stopped(signal.SIGINT)
    assert code == 130, text
    assert seconds < SOON
    assert "stopped by Ctrl-C: 0 of" in text and "1 begun" in text
    assert "to go on: pytest -p no:cacheprovider suite/test_cells.py --audit-figures=none -k 'lenet5-digits" in text
    assert "FAILED" not in text and "Traceback" not in text and "INCOMPLETE" not in text
    # The last good report is not replaced by one of nothing.
    assert (checkout.report / "report.html").read_text() == "the last good one"
    ledger = Ledger(checkout.ledger, writable=False)
    assert list(kept_epochs(ledger).values()) > [0], "the epoch's checkpoint is not kept"
    assert ledger.failures() == [] and ledger.progress() == []


def test_workers_stop_with_a_session_that_is_terminated(checkout, stopped):
    code, text, seconds = stopped(signal.SIGTERM, "-n2")
    assert code == 143, text
    assert seconds < SOON and "stopped by SIGTERM" in text
    assert "Traceback" not in text and "crashed" not in text
    assert len(processes(checkout, "worker")) == 2
    assert (checkout.report / "report.html").read_text() == "the last good one"
    assert Ledger(checkout.ledger, writable=False).failures() == []


def test_a_second_ctrl_c_is_no_traceback(stopped):
    code, text, seconds = stopped(signal.SIGINT, times=3)
    assert code == 130 and seconds < SOON
    assert "Traceback" not in text and "INTERNALERROR" not in text
    assert "to go on: pytest" in text.lower()


def test_ctrl_c_in_a_function_before_its_first_line(checkout):
    """CPython 3.11 has no line for such a place, and pytest 9.2.0 fails where it shows the traceback."""
    checkout.write(
        "suite/test_early.py",
        textwrap.dedent("""
        import os, signal, time

        def interrupted():
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(60)

        interrupted.__code__ = interrupted.__code__.replace(co_linetable=b"")

        def test_early(audit):
            interrupted()
        """),
    )
    outcome = checkout.pytest("suite/test_early.py")
    assert outcome.code == 130, outcome.text
    assert "stopped by Ctrl-C: 0 of 1 items are done" in outcome.text and "TypeError" not in outcome.text


# The parts, in processes that import nothing of what trains


def program(body, **given):
    """Start a Python program that listens to signals; wait until it says that it is ready."""
    text = "import os, signal, sys, threading, time\nfrom pruneaudit.plugin.interrupts import *\n" + textwrap.dedent(
        body
    )
    # Without a buffer: a line that is read takes nothing along that is said soon after, which `communicate` would miss.
    process = subprocess.Popen([sys.executable, "-c", text], stdout=subprocess.PIPE, bufsize=0, **given)
    assert process.stdout.readline() == b"ready\n"
    return process


def test_who_catches_the_interrupt_is_ended_all_the_same():
    process = program("""
        Interrupts(0.5, at_last=lambda: print("left", flush=True)).install()
        told = False
        while True:
            try:
                if not told:
                    told = True
                    print("ready", flush=True)
                time.sleep(60)
            except BaseException:
                pass
    """)
    process.send_signal(signal.SIGTERM)
    assert process.communicate(timeout=SOON)[0] == b"left\n" and process.returncode == 143


def test_forks_of_a_session_are_stopped_as_ever_and_do_not_stop_it():
    process = program("""
        interrupts = Interrupts(0.2)
        interrupts.install()
        there, here = os.pipe()
        child = os.fork()
        if child == 0:
            os.write(here, b"x")
            time.sleep(60)
            os._exit(0)
        os.read(there, 1)
        print("ready", flush=True)
        os.kill(child, signal.SIGTERM)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        time.sleep(0.5)
        print(interrupts.signal)
    """)
    assert process.communicate(timeout=SOON)[0] == b"-15\nNone\n" and process.returncode == 0


def test_ctrl_c_stays_ignored_in_the_background():
    process = program("""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        Interrupts(0.2).install()
        print("ready", flush=True)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.4)
        print("still here")
    """)
    assert process.communicate(timeout=SOON)[0] == b"still here\n"


@pytest.mark.parametrize("end", ["killed", "lets go"])
def test_a_worker_ends_with_its_controller(end):
    controller = program(
        """
        leash = Leash()
        print("ready", flush=True)
        print(leash.path, flush=True)
        sys.stdin.readline()
        leash.let_go()
        time.sleep(60)
    """,
        stdin=subprocess.PIPE,
    )
    path = controller.stdout.readline().decode().strip()
    worker = program(f"""
        Interrupts(0.5).install()
        try:
            follow({path!r})
            print("ready", flush=True)
            time.sleep(60)
        except KeyboardInterrupt:
            print("told", flush=True)
            while True:
                time.sleep(0.1)
    """)
    assert worker.poll() is None
    if end == "killed":
        controller.kill()
    else:
        controller.stdin.write(b"\n")
    assert worker.communicate(timeout=SOON)[0] == b"told\n" and worker.returncode == 143
    controller.kill()
    controller.wait(SOON)


def test_a_worker_whose_controller_is_gone_already_ends(tmp_path):
    os.mkfifo(tmp_path / "leash")
    worker = program(f"""
        Interrupts(0.5).install()
        print("ready", flush=True)
        follow({str(tmp_path / "leash")!r})
        time.sleep(60)
    """)
    assert worker.wait(SOON) != 0


def test_a_leash_of_another_machine_holds_nobody(tmp_path):
    from pruneaudit.plugin.interrupts import follow

    follow(str(tmp_path / "elsewhere"))
    follow("")
