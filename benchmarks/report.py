"""Time and memory that a report over 10,000 cells takes: by phase, and as the whole command with figures and without.

    python benchmarks/report.py [--cells 10000] [--methods core] [--workloads NAMES|all] [--ledger DIR] [--to DIR]
                                [--against CHECKOUT] [--warm 3]

The ledger is what a campaign over all protocols and ratios would leave after training for months: cells and runs are
planned by the campaign itself, and only what a run measures is made up (curves of its full length, answers of every
test image, Jacobian, conduct). Each time is that of a fresh process; processor time is summed over the processes that
draw figures beside it, memory is that of the command's own. With ``--ledger`` the ledger is kept, and taken as it is
where there is one already. By default the cells are the default methods on one workload, over as many seeds as it
takes. ``--methods all`` has few seeds and the most comparisons, ``--workloads all`` the most figures.

``--against`` compares the command without figures side by side with another checkout of this project (a
``git worktree``, say): the first report, those after it, and one right after the system's file cache was emptied, where
that is allowed. 170,000 cells have 100,000 runs, whose first report takes some 11 GiB.
A build reads ledgers of older ones, but none of later ones: let the older of both make it.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from resident import largest_set

#: Every so many runs do not come to an end.
FAILING = 2000
#: Sizes of networks with zeros, by workload and by what stays.
_SIZES: dict[tuple[Any, ...], Any] = {}


def main() -> None:
    """Make the ledger, report on it in processes of their own, and print what they took."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cells", type=int, default=10_000)
    parser.add_argument("--methods", default="core")
    parser.add_argument("--workloads", default="resnet56-cifar10")
    parser.add_argument("--ledger", type=Path, help="keep the made-up ledger here")
    parser.add_argument("--to", type=Path, help="keep the report here")
    parser.add_argument("--against", type=Path, help="another checkout, to compare with")
    parser.add_argument("--warm", type=int, default=3, help="reports with the file cache that are compared")
    parser.add_argument("--only", choices=("make", "measure"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.only == "make":
        make(options.ledger, options.cells, options.methods, options.workloads)
    elif options.only == "measure":
        print(json.dumps(measure(options.ledger, options.to)))
    else:
        with tempfile.TemporaryDirectory() as scratch:
            compare(options, options.ledger or Path(scratch) / "ledger", options.to or Path(scratch) / "report")


def compare(options: argparse.Namespace, ledger: Path, to: Path) -> None:
    """Each step in a process of its own, so that none counts the memory of another."""
    folders = ["--ledger", str(ledger), "--to", str(to)]
    myself = [sys.executable, __file__, *folders]
    if not (ledger / "ledger.json").exists():
        chosen = ["--cells", str(options.cells), "--methods", options.methods, "--workloads", options.workloads]
        subprocess.run([*myself, *chosen, "--only", "make"], check=True)
    if options.against:
        side_by_side(ledger, to, options.against, options.warm)
        return
    done = subprocess.run([*myself, "--only", "measure"], stdout=subprocess.PIPE, text=True, check=True)
    show(json.loads(done.stdout))
    command = ["report", *folders, "--recheck", "0"]
    for figures in ("auto", "none"):
        took, cpu, memory = timed([*command, "--figures", figures])
        what = "with figures, as by default" if figures == "auto" else "without figures"
        print(f"pruneaudit report {what}: {took:.2f} s ({cpu:.2f} s CPU), {memory:.0f} MiB")


def timed(command: list[str], environment: dict[str, str] | None = None) -> tuple[float, float, float]:
    """Seconds that a command of pruneaudit took, its processor time, and its largest size in MiB."""
    with tempfile.TemporaryDirectory() as scratch:
        told = Path(scratch) / "peak"
        runner = [sys.executable, str(Path(__file__).with_name("resident.py")), str(told), "pruneaudit", *command]
        started = time.perf_counter()
        process = subprocess.Popen(runner, stdout=subprocess.DEVNULL, env=environment)
        _, status, usage = os.wait4(process.pid, 0)
        took = time.perf_counter() - started
        if status:
            raise SystemExit("pruneaudit report failed")
        return took, usage.ru_utime + usage.ru_stime, float(told.read_text(encoding="ascii"))


def side_by_side(ledger: Path, to: Path, against: Path, warm: int) -> None:
    """Reports of this checkout and of another in turn, each with caches of its own; their files must be the same."""
    builds = {"other": against, "this": Path(__file__).resolve().parents[1]}
    with tempfile.TemporaryDirectory() as caches:
        for state in ("first", *["warm"] * warm, "cold"):
            if state == "cold" and not emptied():
                print("cold: not measured; only root may empty the system's file cache")
                break
            found = {}
            for name, checkout in builds.items():
                if state == "cold":
                    emptied()
                # Not from the working directory, which is one of the two.
                own = {"PYTHONPATH": str(checkout), "PYTHONSAFEPATH": "1"}
                own["PRUNEAUDIT_CACHE"] = str(Path(caches) / name)
                command = ["report", "--ledger", str(ledger), "--to", str(to / name), "--figures", "none"]
                found[name] = timed([*command, "--recheck", "0"], {**os.environ, **own})
                wall, cpu, memory = found[name]
                print(f"{state:5} {name:5} {wall:7.2f} s ({cpu:.2f} s CPU), {memory:.0f} MiB", flush=True)
            gains = [theirs / ours for theirs, ours in zip(found["other"], found["this"], strict=True)]
            print(f"{state:5} {gains[0]:.2f}x in time, {gains[1]:.2f}x in processor time, memory {1 / gains[2]:.2f}x")
    files = [
        {path.relative_to(to / name): path.read_bytes() for path in sorted((to / name).rglob("*.*"))} for name in builds
    ]
    print("the reports are the same" if files[0] == files[1] else "the reports DIFFER")


def emptied() -> bool:
    """Empty the system's file cache; False: not allowed."""
    os.sync()
    try:
        Path("/proc/sys/vm/drop_caches").write_text("3", encoding="ascii")
    except OSError:
        return False
    return True


def show(facts: dict[str, Any]) -> None:
    """Print what one process took."""
    print(", ".join(f"{count:,} {name}" for name, count in facts["counts"].items()))
    for phase, (wall, cpu) in facts["seconds"].items():
        print(f"{phase:10} {wall:6.2f} s ({cpu:.2f} s CPU)")
    wall, cpu = (sum(times) for times in zip(*facts["seconds"].values(), strict=True))
    print(f"{'all':10} {wall:6.2f} s ({cpu:.2f} s CPU), {facts['peak']:.0f} MiB")


def measure(ledger_path: Path, to: Path) -> dict[str, Any]:
    """Seconds of each phase of a report, peak memory in MiB, and how much there was to report on."""
    clock = [(time.perf_counter(), time.process_time())]

    def lap() -> None:
        clock.append((time.perf_counter(), time.process_time()))

    from pruneaudit.catalog.discovery import Catalog
    from pruneaudit.ledger.store import Ledger
    from pruneaudit.report.results import gather_ledger, no_collection
    from pruneaudit.report.writer import write

    lap()
    ledger = Ledger(ledger_path, writable=False)
    with no_collection():  # As when gathering asks for them.
        runs = len([ledger.get(run) for run in ledger.finished()])
    lap()
    results = gather_ledger(Catalog(), ledger)
    lap()
    del ledger
    write(results, to)
    lap()
    laps = np.diff(clock, axis=0).tolist()
    return {
        "seconds": dict(zip(("imports", "reading", "judging", "writing"), laps, strict=True)),
        "peak": largest_set(),
        "counts": {
            "cells": len(results.cells),
            "runs": runs,
            "findings": len(results.findings),
            "verdicts": len(results.verdicts),
        },
    }


def make(root: Path, cells: int, methods: str, workloads: str) -> None:
    """A ledger of so many cells, with as many seeds as they need."""
    from pruneaudit.campaign.planner import Campaign
    from pruneaudit.catalog.cells import Selection
    from pruneaudit.catalog.discovery import Catalog
    from pruneaudit.catalog.settings import Settings
    from pruneaudit.ledger.store import Ledger

    catalog = Catalog()
    names = tuple(catalog.workloads) if workloads == "all" else tuple(workloads.split(","))
    once = Selection(catalog, catalog.select_methods(methods), tuple(catalog.protocols), 1, names)
    selection = replace(once, seeds=math.ceil(cells / len(once.cells())))
    # By seed: the last one is the one that is not complete. Each has a ledger, which keeps in memory what it wrote.
    wanted = sorted(selection.cells(), key=lambda cell: cell.seed)[:cells]
    for _, of_seed in itertools.groupby(wanted, key=lambda cell: cell.seed):
        ledger = Ledger(root)
        campaign = Campaign(catalog, ledger, Settings(), MadeUp(catalog, ledger))
        for cell in of_seed:
            campaign.obtain(cell)


class MadeUp:
    """Stands in for the executor: what each run might have measured, stored at once.

    Args:
        catalog: Methods and workloads.
        ledger: Where records go.
    """

    def __init__(self, catalog: Any, ledger: Any) -> None:
        self.catalog = catalog
        self.ledger = ledger
        self.failed: set[str] = set()

    def obtain(self, spec: Any) -> Any:
        """The run's record.

        Raises:
            AuditError: It is one of those that fail.
        """
        from pruneaudit.errors import AuditError

        run_id = spec.run_id
        if int(run_id, 16) % FAILING == 0:
            raise AuditError(f"run {spec.slug} failed: the loss is not finite")
        known = self.ledger.find(spec)
        return known if known is not None else self.ledger.commit(self.record(spec, run_id), run_id.encode())

    def record(self, spec: Any, run_id: str) -> Any:
        """A record with curves, answers and sizes of the right length and kind."""
        from pruneaudit.ledger.records import Conduct, Jacobian, RunRecord, pack
        from pruneaudit.pruning import shapes
        from pruneaudit.workloads.data import facts
        from pruneaudit.workloads.recipes import steps_per_epoch

        random = np.random.default_rng(int(run_id, 16))
        workload = self.catalog.workload(spec.workload)
        sizes, dense = facts(workload.data), shapes.shape(workload)
        per_epoch = steps_per_epoch(sizes.train, spec.recipe.batch)
        steps, images = spec.recipe.total_steps(per_epoch), spec.recipe.images(sizes.train)
        passes = math.ceil(steps / per_epoch)
        donor = self.ledger.get(spec.shape_of) if spec.shape_of else None
        parent = self.ledger.get(spec.parent) if spec.parent else None
        granularity, conduct, kept, stay = "filter", None, {}, {}
        size = dense
        if spec.stage == "prune":
            method = self.catalog.method(spec.method).create()
            granularity = method.granularity
            target = shapes.target(workload, spec.ratio, granularity, method.scope)
            asked = target.stay if method.prunes else {}
            if granularity == "weight":
                stay = asked
            else:
                kept = {name: list(range(count)) for name, count in asked.items()}
            channels = shapes.costs(workload).weights if granularity == "weight" else shapes.costs(workload).filters
            conduct = Conduct(
                channels={name: channels[name] for name in target.stay},
                target=target,
                equivalence=float(1e-15 * random.random()),
                replay="same",
                parent_digest_after=parent.weights_digest,
            )
        elif spec.stage == "retrain":
            granularity, kept, stay = parent.granularity, parent.kept, parent.stay
        elif donor is not None:
            granularity, kept, stay = donor.granularity, donor.kept, donor.stay
        widths = spec.widths or {name: len(indices) for name, indices in kept.items()}
        if stay:
            size = self._sparse(workload, stay)
        elif widths and spec.stage in ("prune", "retrain", "scratch"):
            size = shapes.shape_of(workload, widths)
        trained = size.macs if spec.stage in ("retrain", "scratch") else dense.macs
        # Training saturates; the seed, the method and its noise are worth a point.
        top = 100 * (1 - math.exp(-2.5 - random.normal(0, 0.1)))
        course = top * (1 - 0.5 * np.exp(-8 * np.arange(1, passes + 1) / max(passes, 1)))
        noisy = {
            name: np.round(np.clip(course + random.normal(0, 0.3, passes), 0, 100) * 100) / 100
            for name in ("train_accuracy", "validation_accuracy_curve", "test_accuracy")
        }
        correct = random.random(sizes.test) < (noisy["test_accuracy"][-1] if passes else top / 2) / 100
        accuracy = 100 * int(correct.sum()) / sizes.test
        curves = {name: values.tolist() for name, values in noisy.items()}
        if passes:
            curves["test_accuracy"][-1] = accuracy
        tests = curves["test_accuracy"] or [accuracy]
        losses = ("train_loss", "validation_loss", "test_loss")
        return RunRecord(
            **dict(spec),
            **curves,
            **{name: (3 * (1.01 - course / 100) + 0.01 * random.random(passes)).tolist() for name in losses},
            epochs=images / sizes.train,
            samples=images,
            scoring_samples=0,
            optimiser_steps=steps,
            training_macs=3 * trained * images,
            learning_rates=_rates(spec.recipe, per_epoch),
            hyper_parameters={
                "batch": spec.recipe.batch,
                "momentum": spec.recipe.momentum,
                "weight_decay": spec.recipe.weight_decay,
                "augmentation": workload.data.augmentation,
                "precision": spec.precision,
                "label_smoothing": spec.recipe.label_smoothing,
                **({"masks": "held at zero"} if stay else {}),
            }
            if steps
            else {},
            declared_steps=steps if spec.stage == "prune" else 0,
            accuracy=accuracy,
            validation_accuracy=(curves["validation_accuracy_curve"] or [accuracy])[-1],
            best_accuracy=max(tests),
            best_epoch=1 + tests.index(max(tests)),
            correct=pack(correct),
            test_images=sizes.test,
            train_images=sizes.train,
            initial_accuracy=100 / sizes.classes if spec.stage == "scratch" else None,
            macs=size.macs,
            macs_recounted=size.recounted,
            params=size.params,
            base_macs=dense.macs,
            base_params=dense.params,
            kept=kept,
            granularity=granularity,
            stay=stay,
            executed_macs=dense.macs if stay else None,
            nonzero=[sum(stay.values())] * passes if stay else [],
            jacobian=Jacobian(
                mean=2 * random.random(), std=random.random(), condition=50 * random.random(), samples=64
            ),
            conduct=conduct,
            parent_digest=parent.weights_digest if parent is not None else None,
            weights_digest=hashlib.sha256(run_id.encode()).hexdigest(),
            split_digest=hashlib.sha256(spec.workload.encode()).hexdigest(),
            classes=sizes.classes,
            device="cpu",
            environment={"pruneaudit": "made up", "python": "3.11.7", "torch": "2.15.0", "threads": "1"},
            seconds=1.0,
            training_seconds=1.0,
            finished="2026-01-01T00:00:00+00:00",
        )

    def _sparse(self, workload: Any, stay: dict[str, int]) -> Any:
        """Size of a network with zeros; counting takes a second, so each once."""
        from pruneaudit.pruning import shapes

        key = (workload.name, *stay.items())
        if key not in _SIZES:
            _SIZES[key] = shapes.shape_of_weights(workload, stay)
        return _SIZES[key]


def _rates(recipe: Any, per_epoch: int) -> list[tuple[float, int]]:
    """Learning rate of every step of a step schedule, run-length coded."""
    unit = per_epoch if recipe.epochs is not None else 1
    first = recipe.start * unit
    last = first + recipe.total_steps(per_epoch)
    starts = [start * unit for start, _ in recipe.schedule.points]
    found = []
    for (_, rate), start, end in zip(recipe.schedule.points, starts, [*starts[1:], last], strict=True):
        steps = min(end, last) - max(start, first)
        if steps > 0:
            found.append((rate, steps))
    return found


if __name__ == "__main__":
    main()
