"""Runs that a real Slurm computes: one node of Debian's packages, without accounting."""

import json
import signal
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

import pytest
from computing import ONLY_WHERE_WANTED, PATIENCE, Computing, assert_same, cell_of, computed_here, long_run, wait_for
from one_node import lacking, slurm

from pruneaudit.campaign.executors.slurm import Slurm
from pruneaudit.errors import StoppedError, one_line
from pruneaudit.ledger.store import Ledger

pytestmark = [ONLY_WHERE_WANTED, pytest.mark.skipif(lacking() is not None, reason=str(lacking()))]
ROOT = Path(__file__).resolve().parents[2]
SUITE = (
    *(sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", str(ROOT / "suite")),
    *("-k", "lenet5-digits and r0.5", "--audit-methods", "l1,random", "--audit-protocols", "s3.2"),
    *("--audit-budget", "smoke", "--audit-seeds", "1", "--audit-figures", "none", "--audit-recheck", "0"),
)


@pytest.fixture(scope="module")
def cluster():
    """A Slurm, in the environment of this process."""
    with tempfile.TemporaryDirectory(prefix="slurm-") as folder, pytest.MonkeyPatch.context() as patch:
        Path(folder).chmod(0o755)
        patch.setenv("PYTHONPATH", str(ROOT))
        with ExitStack() as stack:
            try:
                environment = stack.enter_context(slurm(Path(folder)))
            except (RuntimeError, OSError) as error:
                pytest.skip(one_line(error)[:500])
            for name, value in environment.items():
                patch.setenv(name, value)
            yield


def queue(*options):
    return subprocess.run(["squeue", "-h", "-r", *options], capture_output=True, text=True, check=True).stdout.split()


def test_runs_are_those_of_this_process(cluster, tmp_path):
    specs = list({run.run_id: run for method in ("l1", "random") for run in cell_of(method)}.values())
    computing = Computing(tmp_path / "ledger")
    with computing.by(Slurm(computing.folder, computing.session)) as executor:
        executor.share(specs)
        records = [executor.obtain(spec) for spec in specs]
    assert_same(records, computed_here(tmp_path / "here", specs))
    wait_for(lambda: not queue())


def test_what_is_preempted_and_requeued_goes_on_where_it_was(cluster, tmp_path):
    spec = long_run()
    computing = Computing(tmp_path / "ledger")
    with computing.by(Slurm(computing.folder, computing.session, "--partition=usual")) as executor:
        executor.share([spec])
        wait_for(lambda: computing.epochs(spec) >= 2)
        urgent = ["sbatch", "--partition=urgent", "--exclusive", "--output=/dev/null", "--wrap", "sleep 1"]
        subprocess.run(urgent, check=True, capture_output=True)
        wait_for(lambda: queue("-t", "PENDING", "--partition=usual"))
        record = executor.obtain(spec)
        shown = subprocess.run(["scontrol", "show", "job", "-o"], capture_output=True, text=True, check=True).stdout
    assert record.resumed > 0
    assert "Restarts=1" in shown
    # Slurm itself tried again: nothing was lost.
    assert not (computing.root / "failures").exists() or not list((computing.root / "failures").iterdir())
    assert_same([record], computed_here(tmp_path / "here", [spec]))


def test_what_somebody_cancels_is_submitted_again(cluster, tmp_path):
    spec = long_run(40)
    computing = Computing(tmp_path / "ledger")
    with computing.by(Slurm(computing.folder, computing.session)) as executor:
        executor.share([spec])
        wait_for(lambda: computing.epochs(spec) >= 2)
        subprocess.run(["scancel", *queue("-o", "%A")], check=True)
        record = executor.obtain(spec)
    assert record.resumed > 0


def test_a_partition_that_there_is_not_ends_the_session_in_one_line(cluster, tmp_path):
    computing = Computing(tmp_path / "ledger")
    with computing.by(Slurm(computing.folder, computing.session, "--partition=none")) as executor:
        executor.share(cell_of())
        with pytest.raises(StoppedError, match=r"sbatch refuses: .*invalid partition"):
            executor.obtain(cell_of()[0])


def session(folder, *options):
    return [*SUITE, "--audit-ledger", str(folder / "ledger"), "--audit-report", str(folder / "report"), *options]


def accuracies(folder):
    return {run.run_id: run.accuracy for run in Ledger(folder / "ledger", writable=False).runs()}


def test_a_session_with_workers_judges_what_slurm_computed(cluster, tmp_path):
    results = {}
    for name, options in {"local": (), "slurm": ("-n", "2", "--audit-executor", "slurm")}.items():
        command = session(tmp_path / name, "--audit-backend", "torch", *options)
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        results[name] = accuracies(tmp_path / name)
        verdicts = json.loads((tmp_path / name / "report" / "results.json").read_text())["verdicts"]
        assert verdicts
    assert results["local"] == results["slurm"]
    assert not (tmp_path / "slurm" / "ledger" / "tasks").exists()
    wait_for(lambda: not queue())


def test_ctrl_c_cancels_what_was_submitted(cluster, tmp_path):
    command = session(tmp_path, "--audit-executor", "slurm", "--audit-backend", "torch", "--audit-task=--hold")
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        # What is held waits in the queue without end.
        wait_for(lambda: queue() or process.poll() is not None)
        process.send_signal(signal.SIGINT)
        text, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130, text
    wait_for(lambda: not queue())
