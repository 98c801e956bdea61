"""Runs that a real Ray computes: a cluster of several nodes, simulated on one machine."""

import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from computing import ONLY_WHERE_WANTED, Computing, assert_same, cell_of, computed_here, long_run, wait_for

from pruneaudit.campaign.executors.apart import Post
from pruneaudit.campaign.executors.assignment import Terms
from pruneaudit.campaign.executors.on_ray import Ray
from pruneaudit.errors import ConfigError, RunFailedError, one_line
from pruneaudit.ledger.store import Ledger

pytest.importorskip("ray", reason="Ray is not installed: pip install 'pruneaudit[cluster]'")
pytestmark = ONLY_WHERE_WANTED
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def cluster(monkeypatch, tmp_path):
    """A head that computes nothing, and a node with one processor; more can come, and go."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("PRUNEAUDIT_CACHE", str(tmp_path / "node"))
    made, kept = Cluster(), None
    try:
        try:
            head = made.add_node(num_cpus=0, include_dashboard=False)
            made.first = made.add_node(num_cpus=1, num_gpus=1)
        except Exception as error:
            # Its daemons have limits of their own, which a machine that does much else does not keep.
            pytest.skip(f"Ray does not start here: {one_line(error)[:300]}")
        kept = Path(head.get_session_dir_path())
        yield made
    finally:
        made.shutdown()
        if kept is not None:
            shutil.rmtree(kept, ignore_errors=True)


def ray_at(cluster, **asked):
    host, _, port = cluster.address.rpartition(":")
    return Ray(host, int(port), **asked)


def side_by_side(folder):
    """A task that writes down its devices, waits for another one beside it, and raises."""

    def work(assignment):
        (folder / str(os.getpid())).write_text(str(os.environ.get("CUDA_VISIBLE_DEVICES")))
        deadline = time.monotonic() + 120
        while len(list(folder.iterdir())) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        raise RuntimeError("no more")

    # By value: processes of Ray do not find this file.
    return work


def test_runs_are_those_of_this_process(cluster, tmp_path):
    specs = cell_of()
    computing = Computing(tmp_path / "ledger")
    with computing.by(ray_at(cluster)) as executor:
        executor.share(specs)
        records = [executor.obtain(spec) for spec in specs]
    assert_same(records, computed_here(tmp_path / "here", specs))


def test_processes_prepare_before_there_are_tasks(cluster, tmp_path):
    """What fails there is left to tasks to tell; here it is asked for."""
    import ray

    terms = Terms(session="session", ledger=str(tmp_path / "ledger"), folder=os.getcwd())
    for post in (None, Post(Ledger(tmp_path / "ledger"))):
        found = ray_at(cluster, post=post)
        found.prepare(terms)
        assert ray.get(found._preparing) == [None]
        found.cancel()
    on_a_device = ray_at(cluster, gpus=1)
    on_a_device.prepare(terms)
    assert on_a_device._preparing == []
    on_a_device.cancel()


def test_without_a_shared_folder_runs_travel(cluster, tmp_path):
    specs = [*cell_of(), long_run(30)]
    computing = Computing(tmp_path / "ledger")
    with computing.by(ray_at(cluster, post=Post(Ledger(computing.root)))) as executor:
        executor.share(specs)
        # How far they are is told here.
        wait_for(lambda: computing.epochs(specs[-1]) >= 2)
        records = [executor.obtain(spec) for spec in specs]
    assert not Ledger(computing.root).progress()
    # A ledger of its own is all that the node has written to.
    (own,) = (tmp_path / "node" / "apart").iterdir()
    assert Ledger(own, writable=False).finished() == {spec.run_id for spec in specs}
    assert_same(records, computed_here(tmp_path / "here", specs))


def test_a_session_judges_what_nodes_computed_that_do_not_see_its_ledger(cluster, tmp_path):
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", str(ROOT / "suite")]
    command += ["-k", "lenet5-digits and r0.5 and sx-a and test_cell", "--audit-methods", "scratch"]
    command += [
        "--audit-budget",
        "smoke",
        "--audit-seeds",
        "1",
        "--audit-protocols",
        "sx-a",
        "--audit-backend",
        "torch",
    ]
    command += ["--audit-executor", f"ray:{cluster.address}", "--audit-task=apart", "--audit-figures", "none"]
    command += [
        "--audit-recheck",
        "0",
        "--audit-ledger",
        str(tmp_path / "ledger"),
        "--audit-report",
        str(tmp_path / "x"),
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"runs travelled: \d+\.\d MiB went to nodes, \d+\.\d MiB came back", done.stdout)
    ledger = Ledger(tmp_path / "ledger", writable=False)
    (own,) = (tmp_path / "node" / "apart").iterdir()
    assert Ledger(own, writable=False).finished() == ledger.finished()
    assert not ledger.account().elsewhere


def test_a_node_that_is_lost_loses_no_run(cluster, tmp_path):
    spec = long_run(30)
    computing = Computing(tmp_path / "ledger")
    with computing.by(ray_at(cluster)) as executor:
        executor.share([spec])
        wait_for(lambda: computing.epochs(spec) >= 2)
        cluster.remove_node(cluster.first, allow_graceful=False)
        cluster.add_node(num_cpus=1)
        record = executor.obtain(spec)
    assert record.resumed > 0
    assert_same([record], computed_here(tmp_path / "here", [spec]))


def test_what_python_raises_is_not_tried_again_and_a_device_is_shared(cluster, tmp_path):
    folder = tmp_path / "told"
    folder.mkdir()
    with pytest.raises(ConfigError, match="no node has 1 CPUs and 4 GPUs"):
        ray_at(cluster, gpus=4)
    computing = Computing(tmp_path / "ledger")
    specs = [long_run(epochs) for epochs in (1, 2)]
    with computing.by(ray_at(cluster, cpus=0.5, gpus=0.5, work=side_by_side(folder))) as executor:
        executor.share(specs)
        for spec in specs:
            with pytest.raises(RunFailedError, match=r"its task ended once without a result: .*no more"):
                executor.obtain(spec)
    # Two tasks, at one time, on one device.
    assert [path.read_text() for path in folder.iterdir()] == ["0", "0"]
