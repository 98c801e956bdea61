"""What a cluster costs: runs that do nothing through Ray and in this process; short runs on two nodes and with -n 2.

The cluster is simulated on this machine: a head that computes nothing and two nodes with one processor each, started
before anything is measured. Each figure is that of a fresh process. Wall time, so on a machine that does nothing else;
processor time is shown beside it. Checks that short runs have the same accuracies wherever they were computed.

Needs Ray: pip install 'pruneaudit[cluster]'.

Usage: python benchmarks/cluster.py [--noops 1000] [--seeds 40] [--budget smoke]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from resident import largest_set

from pruneaudit.campaign.executors.assignment import Assignment, Terms
from pruneaudit.campaign.executors.dispatch import Dispatcher, Dispatching
from pruneaudit.campaign.executors.local import LocalExecutor
from pruneaudit.campaign.executors.on_ray import Ray, address_of
from pruneaudit.campaign.executors.remote import RemoteExecutor
from pruneaudit.campaign.planner import Campaign
from pruneaudit.campaign.stages import Stages
from pruneaudit.catalog.cells import Cell
from pruneaudit.catalog.discovery import Catalog, suite_arguments
from pruneaudit.catalog.settings import Settings
from pruneaudit.ledger.records import RunRecord, RunSpec
from pruneaudit.ledger.store import Ledger
from pruneaudit.training.runtime import Runtime

WORKLOAD = "lenet5-digits"


def main() -> None:
    """Start the cluster, measure, and print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--noops", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=40)
    parser.add_argument("--budget", choices=("smoke", "short"), default="smoke", help="how long a run is")
    parser.add_argument("--of", choices=("local", "ray"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--address", default="", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.of:
        print(json.dumps(noops(chosen.of, chosen.folder, chosen.noops, chosen.address)))
        return
    try:
        from ray.cluster_utils import Cluster
    except ModuleNotFoundError:
        print("runs on a cluster: not measured without Ray (pip install 'pruneaudit[cluster]')")
        return

    # Nodes find this checkout, wherever it is installed.
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).resolve().parents[1]), *sys.path[1:]])
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        for _ in range(2):
            cluster.add_node(num_cpus=1)
        with tempfile.TemporaryDirectory() as folder:
            compare_noops(Path(folder), chosen.noops, cluster.address)
            compare_sessions(Path(folder), chosen.seeds, chosen.budget, cluster.address)
    finally:
        cluster.shutdown()


def compare_noops(folder: Path, count: int, address: str) -> None:
    """Runs that do nothing, by this process and by Ray."""
    train_one(folder)
    found = {}
    for kind in ("local", "ray"):
        command = [sys.executable, __file__, "--of", kind, "--folder", str(folder), "--noops", str(count)]
        done = subprocess.run([*command, "--address", address], capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stderr[-3000:])
        found[kind] = json.loads(done.stdout.splitlines()[-1])
    print(f"{count} runs that do nothing; the time from the first to the last, of one controller")
    print("| | wall time | a run | processor time of the controller | its memory |\n|---|---|---|---|---|")
    for kind, one in found.items():
        print(
            f"| {kind} | {one['wall']:.2f} s | {1e3 * one['wall'] / count:.1f} ms | {one['processor']:.2f} s | "
            f"{one['memory'] / 2**20:.0f} MiB |"
        )
    local, ray = found["local"], found["ray"]
    overhead = 1e3 * (ray["wall"] - local["wall"]) / count
    print(f"overhead of a run {overhead:.1f} ms; memory {ray['memory'] / local['memory']:.2f}x\n")


def train_one(folder: Path) -> None:
    """Train the run whose record all those that do nothing commit as theirs."""
    ledger, catalog, runtime = Ledger(folder / "one"), Catalog(), Runtime()
    runtime.prepare()
    LocalExecutor(ledger, Stages(ledger, catalog, runtime), "one").obtain(base(catalog, ledger))


def base(catalog: Catalog, ledger: Ledger) -> RunSpec:
    """Identity of a small base model."""
    planning: Any = None
    campaign = Campaign(catalog, ledger, Settings("smoke"), planning)
    return campaign.plan(Cell(WORKLOAD, "s3.2", "l1", 0.5, 0)).base


class Nothing(Stages):
    """Commits the record of another run as that of any."""

    def __init__(self, ledger: Ledger, one: Ledger) -> None:
        super().__init__(ledger, Catalog(), Runtime())
        (self.record,) = one.runs()
        self.weights = one.weights_file(self.record)

    def execute_many(
        self,
        specs: Sequence[RunSpec],
        progress: Callable[[RunSpec], Any],
        over: Callable[[RunSpec, RunRecord | Exception], None],
    ) -> None:
        """Commit records."""
        for spec in specs:
            over(spec, self.ledger.commit(self.record.model_copy(update={"seed": spec.seed}), self.weights))


def noops(kind: str, folder: Path, count: int, address: str) -> dict[str, float]:
    """Seconds and bytes that some runs take that do nothing.

    Args:
        kind: ``local`` or ``ray``.
        folder: Where the run is whose record they commit, and where their ledger is to be.
        count: How many.
        address: Of the cluster.
    """
    ledger, one = Ledger(folder / kind), Ledger(folder / "one", writable=False)
    first = base(Catalog(), ledger)
    runs = [first.model_copy(update={"seed": number}) for number in range(count + 2)]
    executor: LocalExecutor | RemoteExecutor
    if kind == "local":
        executor = LocalExecutor(ledger, Nothing(ledger, one), "session")
        return measured(executor, runs)
    host, port = address_of(address)
    made: dict[str, LocalExecutor] = {}

    def work(assignment: str) -> None:
        given = Assignment.model_validate_json(assignment)
        if not made:
            there = Ledger(Path(given.terms.ledger))
            nothing = Nothing(there, Ledger(Path(given.terms.folder), writable=False))
            made["one"] = LocalExecutor(there, nothing, given.terms.session)
        made["one"].obtain(given.spec)

    terms = Terms(session="session", ledger=str(ledger.root), folder=str(folder / "one"))
    dispatcher = Dispatcher(Ledger(ledger.root), terms, Ray(host, port, work=work))
    with Dispatching(dispatcher, sys.exit):
        return measured(RemoteExecutor(ledger, Catalog(), "session"), runs)


def measured(executor: LocalExecutor | RemoteExecutor, runs: Sequence[RunSpec]) -> dict[str, float]:
    """What it takes to obtain runs, after two that begin it all: processes of Ray load torch once."""
    for run in runs[:2]:
        executor.obtain(run)
    wall, processor = time.perf_counter(), time.process_time()
    executor.share(runs[2:])
    for run in runs[2:]:
        executor.obtain(run)
    memory = largest_set() * 2**20
    return {"wall": time.perf_counter() - wall, "processor": time.process_time() - processor, "memory": memory}


def compare_sessions(folder: Path, seeds: int, budget: str, address: str) -> None:
    """A campaign of short runs, by two workers and by two nodes."""
    seconds, results = {}, {}
    ways = {"-n 2": ("-n", "2"), "ray, two nodes": ("--audit-executor", f"ray:{address}")}
    for number, (name, options) in enumerate(ways.items()):
        ledger = folder / f"session-{number}"
        command = [sys.executable, "-m", "pytest", *suite_arguments(), "-q", "-p", "no:cacheprovider"]
        command += ["-k", f"{WORKLOAD} and r0.5 and s3.2 and not conformance", "--audit-seeds", str(seeds)]
        command += ["--audit-methods", "l1,random", "--audit-protocols", "s3.2", "--audit-budget", budget]
        command += ["--audit-backend", "torch", "--audit-figures", "none", "--audit-recheck", "0"]
        command += ["--audit-ledger", str(ledger), "--audit-report", str(folder / f"report-{number}"), *options]
        started = time.perf_counter()
        done = subprocess.run(command, capture_output=True, text=True)
        seconds[name] = time.perf_counter() - started
        if done.returncode not in (0, 1):
            sys.exit(done.stdout[-2000:] + done.stderr[-2000:])
        results[name] = {run.run_id: run.accuracy for run in Ledger(ledger, writable=False).runs()}
    ours, theirs = results.values()
    if ours != theirs:
        sys.exit("accuracies depend on where runs are computed")
    first = seconds["-n 2"]
    print(f"{len(ours)} short runs, all accuracies the same\n| | wall time | throughput |\n|---|---|---|")
    for name, taken in seconds.items():
        print(f"| {name} | {taken:.1f} s | {first / taken:.2f}x |")


if __name__ == "__main__":
    main()
