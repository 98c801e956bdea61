"""Threads and GPUs of a worker, with made-up GPU names."""

import os
import subprocess
import sys

from pruneaudit.plugin import device


def test_visible_gpus_are_the_callers():
    assert device.visible_gpus({"CUDA_VISIBLE_DEVICES": "GPU-aa, MIG-bb,3"}) == ["GPU-aa", "MIG-bb", "3"]
    assert device.visible_gpus({"CUDA_VISIBLE_DEVICES": ""}) == []
    assert device.visible_gpus({"CUDA_VISIBLE_DEVICES": "-1"}) == []


def test_claim_changes_nothing_without_xdist():
    environ = {"CUDA_VISIBLE_DEVICES": "4,5"}
    device.claim(environ)
    assert environ == {"CUDA_VISIBLE_DEVICES": "4,5"}


def test_claim_gives_one_thread_and_one_gpu(tmp_path, monkeypatch):
    monkeypatch.setattr(device.tempfile, "gettempdir", lambda: str(tmp_path))
    environ = {"PYTEST_XDIST_WORKER": "gw7", "PYTEST_XDIST_WORKER_COUNT": "2", "CUDA_VISIBLE_DEVICES": "4,5"}
    device.claim(environ)
    assert environ["OMP_NUM_THREADS"] == environ["MKL_NUM_THREADS"] == "1"
    assert environ["CUDA_VISIBLE_DEVICES"] in ("4", "5")
    first = dict(environ)
    device.claim(environ)
    assert environ == first


def test_leases_fill_the_gpus_and_a_dead_worker_frees_its_own(tmp_path):
    folder = tmp_path / "leases"
    hold = (
        "import sys; from pathlib import Path; from pruneaudit.plugin.device import lease\n"
        "print(lease(['a', 'b'], 4, Path(sys.argv[1])), flush=True); sys.stdin.read()"
    )

    def worker():
        return subprocess.Popen(
            [sys.executable, "-c", hold, str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ,
        )

    workers = [worker() for _ in range(4)]
    try:
        names = [process.stdout.readline().strip() for process in workers]
        assert sorted(names) == ["a", "a", "b", "b"]
        workers[1].kill()
        workers[1].wait()
        workers.append(worker())
        assert workers[-1].stdout.readline().strip() == names[1]
    finally:
        for process in workers:
            process.kill()
            process.wait()
            process.stdin.close()
            process.stdout.close()
