"""All that needs a GPU, prepared as one script of at most eight minutes: ``make gpu``.

    python benchmarks/gpu.py [--out FOLDER] [--seconds 480] [--dry]

1. ``tests/test_cuda.py``: what must hold on a GPU.
2. What it is worth: 18 ResNet-56 on CIFAR-10 at ratio 0.5, the oracle's 252 LeNet5-Mini on MNIST, one ResNet-56, and
   which backend is the best of them.
3. Cells of Wang et al. (2023), Table 6: ResNet-56 on CIFAR-10 at ratios 0.5 and 0.9 from a base model by file, as many
   as the time allows. They lie in a ledger below FOLDER, and the next call goes on with them.
4. ``summary.md`` and ``runs.json`` of that ledger, and its report.

Without a GPU, or with ``--dry``, the same steps run on the CPU with small networks: seconds that show that the script
works, and no figures. Datasets that are not there are replaced by random images of the same sizes in step 2.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from many import Case, Clock, _case

from pruneaudit.training.many import train_many
from pruneaudit.training.runs import Backend, Training

ROOT = Path(__file__).resolve().parents[1]
#: Seconds that steps 3 and 4 keep for themselves, and step 4 alone.
_CELLS, _SUMMARY = 120.0, 30.0


@dataclass(frozen=True)
class Row:
    """A figure: networks of a case, trained by a backend.

    Attributes:
        name: What it is.
        workload: Workload.
        ratio: Pruning ratio; None: dense.
        count: Runs.
        epochs: Epochs that are trained; the first is not counted.
        whole: Epochs of the whole training, for its time; 0: the time of a model-epoch is told.
        backend: What trains them.
        aim: Seconds at most.
        model: The network; empty: the workload's.
    """

    name: str
    workload: str
    ratio: float | None
    count: int
    epochs: int
    whole: int
    backend: Backend
    aim: float
    model: str = ""


_EIGHTEEN = "18 x ResNet-56 / CIFAR-10, model-epoch with test pass"
REAL = (
    Row(_EIGHTEEN, "resnet56-cifar10", 0.5, 18, 3, 0, "grouped", 0.22),
    Row(_EIGHTEEN, "resnet56-cifar10", 0.5, 18, 3, 0, "fused", 0.22),
    Row(_EIGHTEEN, "resnet56-cifar10", 0.5, 18, 3, 0, "graphed", 0.22),
    Row("252 x LeNet5-Mini / MNIST, 30 epochs", "lenet5-mnist", 0.5, 252, 3, 30, "grouped", 60.0, "lenet5-mini"),
    Row("one ResNet-56 / CIFAR-10, epoch", "resnet56-cifar10", None, 1, 3, 0, "graphed", 0.8),
)
DRY = (
    Row("2 x ResNet-20 / digits, model-epoch", "resnet20-digits", 0.5, 2, 2, 0, "grouped", 60.0),
    Row("2 x ResNet-20 / digits, model-epoch", "resnet20-digits", 0.5, 2, 2, 0, "graphed", 60.0),
    Row("4 x LeNet5-Mini / digits, 3 epochs", "lenet5-digits", 0.5, 4, 2, 3, "grouped", 60.0, "lenet5-mini"),
)


class Session:
    """The steps, their time and what they leave.

    Args:
        out: Folder of what is kept.
        seconds: How long all may take.
        dry: Whether the CPU stands in for the GPU.
    """

    def __init__(self, out: Path, seconds: float, dry: bool) -> None:
        self.out, self.dry, self.end = out, dry, time.monotonic() + seconds
        self.device = "cpu" if dry else "cuda"
        self.lines: list[str] = []
        self.failed = False
        out.mkdir(parents=True, exist_ok=True)

    @property
    def left(self) -> float:
        """Seconds until the end."""
        return self.end - time.monotonic()

    def tell(self, line: str) -> None:
        """Print a line, and keep it in the summary, which is there whenever the script is ended."""
        print(line, flush=True)
        self.lines.append(line)
        (self.out / "summary.md").write_text("\n".join(self.lines) + "\n", encoding="utf-8")

    def ran(self, *command: str, keep: float, log: str) -> int | None:
        """Run a command in the project's folder; when its time is over it is asked to end, and then ended.

        Args:
            command: Of this Python.
            keep: Seconds that are left afterwards.
            log: File for what it prints.

        Returns:
            Its exit status; None: it did not come to its end.
        """
        environ = os.environ | {"PRUNEAUDIT_GPU": "1", "PRUNEAUDIT_RECHECK": "0"}
        with open(self.out / log, "w", encoding="utf-8") as file:
            process = subprocess.Popen(
                [sys.executable, "-m", *command], cwd=ROOT, env=environ, stdout=file, stderr=subprocess.STDOUT
            )
            for ending in (None, signal.SIGINT, signal.SIGKILL):
                if ending is not None:
                    process.send_signal(ending)
                try:
                    status = process.wait(max(self.left - keep, 1.0) if ending is None else keep / 3)
                except subprocess.TimeoutExpired:
                    continue
                return status if ending is None else None
        return None

    def test(self) -> None:
        """Step 1."""
        status = self.ran("pytest", "tests/test_cuda.py", "-q", "-n", "0", keep=_CELLS + 200, log="tests.txt")
        self.failed |= status != 0
        self.tell(f"tests: {'pass' if status == 0 else f'FAIL (exit status {status}), see tests.txt'}\n")

    def measure(self) -> Backend:
        """Step 2; the backend that was the fastest for many runs of one shape."""
        self.tell("| what | backend | seconds | aim | set-up |\n|---|---|---|---|---|")
        found: dict[Backend, float] = {}
        rows = DRY if self.dry else REAL
        for row in rows:
            if self.left < _CELLS:
                self.tell(f"| {row.name} | {row.backend} | no time left | | |")
                continue
            try:
                seconds, setup = timed(row, self.device)
            except Exception as error:
                self.failed = True
                self.tell(f"| {row.name} | {row.backend} | FAILED: {str(error).splitlines()[0]} | | |")
                continue
            if row.name == rows[0].name:
                found[row.backend] = seconds
            shown = seconds * row.count * row.whole if row.whole else seconds
            self.tell(f"| {row.name} | {row.backend} | {shown:.3f} | {row.aim:g} | {setup:.1f} |")
        best: Backend = min(found, key=lambda backend: found[backend], default="torch")
        self.tell(f"\nbest of {', '.join(found) or 'none'}: {best}\n")
        return best

    def cells(self, backend: Backend) -> None:
        """Step 3."""
        ledger, report = str(self.out.resolve() / "ledger"), str(self.out.resolve() / "report")
        options = ["--audit-ledger", ledger, "--audit-report", report, "--audit-device", self.device]
        options += ["--audit-methods", "l1,random", "--audit-backend", backend, "--audit-figures", "none", "-n", "0"]
        if self.dry:
            options += ["-k", "lenet5-digits and s3.2 and r0.5", "--audit-budget", "smoke", "--audit-seeds", "1"]
        else:
            options += ["-k", "resnet56-cifar10 and s3.2 and (r0.5 or r0.9)"]
            base = Path(os.environ.get("PRUNEAUDIT_CHECKPOINTS", "")) / "resnet56-cifar10.safetensors"
            options += ["--audit-base", str(base.resolve())] if base.is_file() else []
        status = self.ran("pytest", "suite", *options, keep=_SUMMARY, log="cells.txt")
        if status is None:
            self.tell("cells: the time was over; the next call goes on with them")
        else:
            self.failed |= status != 0
            self.tell(f"cells: {'all measured' if status == 0 else f'exit status {status}, see cells.txt'}")

    def sum_up(self) -> None:
        """Step 4."""
        ledger = self.out.resolve() / "ledger"
        if not (ledger / "ledger.json").is_file():
            self.failed = True
            self.tell("no ledger was begun, see cells.txt")
            return
        listed = [sys.executable, "-m", "pruneaudit", "runs", "--ledger", str(ledger), "--json"]
        found = subprocess.run(listed, cwd=ROOT, capture_output=True, text=True, check=True).stdout
        (self.out / "runs.json").write_text(found, encoding="utf-8")
        self.tell(f"ledger: {len(json.loads(found))} runs, see runs.json")
        for line in (self.out / "cells.txt").read_text(encoding="utf-8").splitlines():
            if line.startswith("pruneaudit:"):
                self.tell(f"    {line}")


def timed(row: Row, device: str) -> tuple[float, float]:
    """Seconds of a model-epoch, and what came before the first was over.

    Raises:
        RuntimeError: A training failed, or another backend made it.
    """
    case: Case = _case(row.workload, row.ratio, device, row.model)
    clock = Clock(device)
    trainings = [
        Training(case.model(number), case.data, case.recipe(row.epochs), number % 3, "benchmark", progress=clock)
        for number in range(row.count)
    ]
    started = clock.now()
    for result in train_many(trainings, row.backend):
        if result.error or result.backend != row.backend:
            raise RuntimeError(str(result.error or result.reason))
    seconds = (clock.ends[-1] - clock.ends[row.count - 1]) / (len(clock.ends) - row.count)
    return seconds, max(clock.ends[row.count - 1] - started - row.count * seconds, 0.0)


def main() -> None:
    """Do all steps."""
    parser = argparse.ArgumentParser(description="All that needs a GPU, in one script.")
    parser.add_argument("--out", type=Path, default=ROOT / ".pruneaudit" / "gpu", help="Folder of what is kept.")
    parser.add_argument("--seconds", type=float, default=480.0, help="How long it may take.")
    parser.add_argument("--dry", action="store_true", help="On the CPU, with small networks.")
    given = parser.parse_args()
    torch.set_num_threads(1)
    dry = given.dry or not torch.cuda.is_available()
    session = Session(given.out, given.seconds, dry)
    name = "CPU, a dry run: these are no figures" if dry else torch.cuda.get_device_name()
    session.tell(f"{name}; torch {torch.__version__}\n")
    session.test()
    best = session.measure()
    session.cells(best)
    session.sum_up()
    session.tell(f"{given.seconds - session.left:.0f} s")
    sys.exit(1 if session.failed else 0)


if __name__ == "__main__":
    main()
