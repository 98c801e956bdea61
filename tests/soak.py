"""A random campaign under faults: workers are killed and hang, disks fill up, methods raise, files are damaged.

``make soak`` does so for ten minutes, ``make test`` for seconds. Most runs are made up and take milliseconds, so
that many faults fit into the time; some are real trainings, which must end bit-identical to undisturbed ones. Whatever
happens, the ledger can be read at any moment, and in the end everything is there, once, and right.
"""

from __future__ import annotations

import argparse
import errno
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import torch
from builders import CATALOG, NOTHING, FakeStages, run_spec
from faulty import disk

from pruneaudit.campaign.executors import local
from pruneaudit.campaign.executors.local import LocalExecutor, RunFailedError
from pruneaudit.campaign.stages import Stages
from pruneaudit.errors import DamagedError, StorageError
from pruneaudit.ledger.records import VOLATILE
from pruneaudit.ledger.store import Ledger
from pruneaudit.training.runtime import Runtime

FORK = multiprocessing.get_context("fork")
#: Workers at a time, made-up chains of runs (base, pruning, retraining) and real trainings.
WORKERS, CHAINS, TRAININGS = 3, 12, 2
#: Seconds between two faults, at most.
PAUSE = 0.3
#: What happens to a worker from within, and all that is done to a campaign.
INSIDE = ("disk full", "disk read-only", "raises", "hangs", "clock jumps")
FAULTS = (*INSIDE, "killed", "interrupted", "record damaged", "weights damaged", "state damaged")
#: What a worker ends with where the disk refuses, and where it is interrupted.
REFUSED, INTERRUPTED = 28, 130


def chain(seed):
    """Base, pruning and retraining of one arm."""
    base = run_spec(seed=seed)
    prune = run_spec("prune", seed=seed, parent=base.run_id, method="l1", ratio=0.5, recipe=NOTHING)
    return base, prune, run_spec("retrain", seed=seed, parent=prune.run_id, method="l1", ratio=0.5)


def real(seed):
    """Four epochs of lenet5-digits."""
    workload = CATALOG.workload("lenet5-digits")
    return run_spec(data=workload.data, recipe=workload.pretrain.for_epochs(4), budget="short", seed=seed)


def is_real(spec):
    return spec.budget == "short"


class MixedStages(FakeStages):
    """Makes up most runs, and really trains the others."""

    def execute(self, spec, progress=None):
        if is_real(spec):
            return Stages(self.ledger, CATALOG, Runtime()).execute(spec, progress)
        return super().execute(spec, progress)


def work(root, log, number, runs, fault):
    """One worker of one session: it wants all runs, in an order of its own, and has at most one fault."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_num_threads(1)
    local.POLL = 0.005
    draw = random.Random(number)
    order = list(runs)
    draw.shuffle(order)
    # First what takes longest: it is under way when things happen.
    order.sort(key=is_real, reverse=True)
    by_id = {run.run_id: run for run in runs}
    ledger = Ledger(root)

    def breaks(spec):
        return fault == "raises" and draw.random() < 0.3

    slow = 3600.0 if fault == "hangs" else 0.004
    one = LocalExecutor(ledger, MixedStages(ledger, log, sleep=slow, broken=breaks), f"session-{number}")
    if fault == "clock jumps":
        began = time.time()
        time.time = lambda: began + draw.uniform(-1e7, 1e7)

    def obtain(run):
        for parent in run.needs:
            obtain(by_id[parent])
        one.obtain(run)

    code = {"disk full": errno.ENOSPC, "disk read-only": errno.EROFS}.get(fault)
    try:
        one.share(runs)
        for run in order:
            try:
                if code is None:
                    obtain(run)
                else:
                    with disk(root, draw.randrange(12), code):
                        obtain(run)
            except RunFailedError:
                continue
    except StorageError:
        os._exit(REFUSED)
    except DamagedError:
        # It was damaged after it was looked for: told in one line, and mended from outside.
        os._exit(0)
    except KeyboardInterrupt:
        os._exit(INTERRUPTED)
    os._exit(0)


@dataclass
class Soak:
    """A campaign and what was done to it.

    Attributes:
        folder: Where it runs.
        seconds: For how long.
        seed: Of all that is drawn.
    """

    folder: Path
    seconds: float
    seed: int = 0
    injected: Counter = field(default_factory=Counter)
    survived: Counter = field(default_factory=Counter)
    rounds: int = 0

    def __post_init__(self):
        self.draw = random.Random(self.seed)
        self.root, self.log = self.folder / "ledger", self.folder / "log"
        self.alive = []
        self.number = 0

    def runs(self):
        """Those of this round: others than in all rounds before."""
        first = self.rounds * 1000
        chains = [run for seed in range(CHAINS) for run in chain(first + seed)]
        return [*chains, *(real(first + seed) for seed in range(TRAININGS))]

    def run(self):
        """Do it; raises where something does not survive."""
        Ledger(self.root)
        end = time.monotonic() + self.seconds
        while time.monotonic() < end:
            self.disturb(self.runs(), end)
            self.settle(self.runs())
            self.rounds += 1
        return self

    def disturb(self, runs, end):
        """Workers come and go, one fault after the other, until all runs are there or the time is over."""
        wanted = {run.run_id for run in runs}
        faults = list(FAULTS)
        self.draw.shuffle(faults)
        while faults and time.monotonic() < end:
            fault = faults.pop()
            self.start(runs, fault if fault in INSIDE else "")
            while len(self.alive) < WORKERS and self.draw.random() < 0.6:
                self.start(runs, "")
            time.sleep(self.draw.uniform(0.02, PAUSE))
            getattr(self, f"_{fault.replace(' ', '_').replace('-', '_')}", self._end)(fault)
            self.look()
            if wanted <= Ledger(self.root, writable=False).finished():
                # Something must be left to be disturbed.
                shutil.rmtree(self.draw.choice(sorted((self.root / "runs").glob("*retrain*"))))

    def start(self, runs, fault):
        """A worker of a session of its own."""
        self.number += 1
        process = FORK.Process(target=work, args=(self.root, self.log, self.number, runs, fault))
        process.start()
        self.alive.append((process, fault))

    def _stop(self, how, fault):
        process, own = self.alive.pop(self.draw.randrange(len(self.alive)))
        if process.is_alive():
            os.kill(process.pid, how)
        process.join(30)
        assert not process.is_alive(), f"a worker lives on after {how.name}"
        # One that was at its end already was not stopped.
        self.injected[fault] += process.exitcode in (-how, INTERRUPTED)
        self.injected[own] += bool(own) and own != fault

    def _killed(self, fault):
        self._stop(signal.SIGKILL, fault)

    def _interrupted(self, fault):
        self._stop(signal.SIGINT, fault)

    def _end(self, fault):
        """Wait for the worker that has the fault; one that hangs is ended, as a method's process is."""
        for entry in [entry for entry in self.alive if entry[1] == fault]:
            process = entry[0]
            if fault == "hangs":
                process.kill()
            process.join(240)
            assert process.exitcode in (0, REFUSED, -signal.SIGKILL), f"{fault}: exit {process.exitcode}"
            self.alive.remove(entry)
            self.injected[fault] += 1

    def _damage(self, fault, pattern):
        """Flip a bit, or lose the end, of a file; a run's is told and removed, as the line says, and made anew."""
        paths = sorted(self.root.glob(pattern))
        if not paths:
            return
        path = self.draw.choice(paths)
        try:
            content = bytearray(path.read_bytes())
        except OSError:
            return  # it was finished meanwhile
        place = self.draw.randrange(max(1, len(content)))
        if self.draw.random() < 0.5 and content:
            content[place] ^= 1 << self.draw.randrange(8)
        else:
            content = content[:place]
        path.write_bytes(content)
        self.injected[fault] += 1
        if path.name == "state.safetensors":
            return  # whoever goes on from it begins anew: the end is compared
        ledger = Ledger(self.root, writable=False)
        run_id = path.parent.name.rpartition("-")[2]
        try:
            record = ledger.get(run_id)
            ledger.weights_file(record)
        except DamagedError as error:
            assert str(path) in str(error) and "\n" not in str(error)
            shutil.rmtree(path.parent)
        else:
            # White space: nothing that is read changed. Or the name of a key, which is then told as not here.
            assert path.name == "record.json"
            list(ledger.runs())
            if any("signed with key" in line for line in ledger.account().lines()):
                shutil.rmtree(path.parent)

    def _record_damaged(self, fault):
        self._damage(fault, "runs/*/record.json")

    def _weights_damaged(self, fault):
        self._damage(fault, "runs/*/weights.safetensors")

    def _state_damaged(self, fault):
        """A real training is killed in the middle, and its state damaged before anybody goes on from it."""
        run = self.draw.choice([run for run in self.runs() if is_real(run)])
        # One that is over already is wanted once more.
        for folder in (self.root / "runs").glob(f"*-{run.run_id}"):
            shutil.rmtree(folder)
        self.start(self.runs(), "")
        state = self.root / "partial" / run.run_id / "state.safetensors"
        end = time.monotonic() + 300
        while not state.exists() and time.monotonic() < end:
            time.sleep(0.002)
        while self.alive:
            self._stop(signal.SIGKILL, "killed")
        self._damage(fault, str(state.relative_to(self.root)))

    def look(self):
        """Whatever happened, everything can be read."""
        ledger = Ledger(self.root, writable=False)
        for record in ledger.runs():
            if not is_real(record):
                assert ledger.weights(record)["weight"].tolist() == [0, 1, 2, 3]
        assert not ledger.damaged, ledger.damaged

    def settle(self, runs):
        """Without further faults everything is finished, once, and real trainings are as if nothing had been."""
        for process, fault in self.alive:
            if fault:
                process.kill()
            process.join(120)
            assert not process.is_alive()
        self.alive.clear()
        self.start(runs, "")
        self._end("")
        del self.injected[""]
        ledger = Ledger(self.root, writable=False)
        assert {run.run_id for run in runs} <= ledger.finished()
        for failure in ledger.failures():
            assert "exploded" in failure.error, failure.error
        assert not list(self.root.rglob("*.part")) or self.injected["killed"] or self.injected["hangs"]
        told = [line for line in ledger.account().lines() if "not there any more" not in line]
        assert not told, told
        for run in filter(is_real, runs):
            undisturbed = Ledger(self.folder / "undisturbed")
            whole = Stages(undisturbed, CATALOG, Runtime()).execute(run)
            ours = ledger.get(run.run_id)
            assert ours.model_dump(exclude=VOLATILE) == whole.model_dump(exclude=VOLATILE)
        # Only what is followed by a whole campaign counts.
        self.survived = Counter(self.injected)

    def counts(self):
        """Faults by kind."""
        return {fault: (self.injected[fault], self.survived[fault]) for fault in FAULTS}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="pruneaudit-soak-") as folder:
        # Its records are signed with a key of its own.
        os.environ["XDG_STATE_HOME"] = str(Path(folder) / "state")
        soak = Soak(Path(folder), options.seconds, options.seed).run()
        executions = len(soak.log.read_text().splitlines())
    print(f"{soak.rounds} campaigns, {soak.number} workers, {executions} lines of their log")
    for fault, (injected, survived) in soak.counts().items():
        print(f"{fault:16} {injected:5} injected, {survived:5} survived")
    print(json.dumps({"injected": sum(soak.injected.values()), "survived": sum(soak.survived.values())}))
    return int(soak.injected != soak.survived)


if __name__ == "__main__":
    sys.exit(main())
