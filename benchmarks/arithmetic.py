"""What portable arithmetic costs, and whether it gives the same bits where libraries would do something else.

    python benchmarks/arithmetic.py                  native against portable on this machine
    python benchmarks/arithmetic.py --emulated CPU   digests on an emulated processor (qemu-user), such as Haswell
    python benchmarks/arithmetic.py --claimed CPU    digests where libraries take this processor for another (see
                                                     claimed.py), such as sapphirerapids, and who obeys which variable

Steps of each variant run interleaved, each arithmetic in a process of its own on one thread; ratios are medians over
rounds, of CPU time, which does not count waiting for a busy machine. Digests are of all weights after these steps.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from pruneaudit import arithmetic

ROUNDS, STEPS, EMULATED_STEPS = 5, 40, 4
#: Workload, backend and precision of each variant.
VARIANTS = (
    ("resnet20-digits", "torch", "fp32"),
    ("resnet20-digits", "grouped", "fp32"),
    ("resnet20-digits", "torch", "fp64"),
    ("lenet5-digits", "torch", "fp32"),
    ("lenet5-digits", "tiled", "fp32"),
    ("resnet20-digits", "tiled", "fp32"),
)
#: What holds libraries to less than this processor has: a pinned process takes no notice of it.
HELD = {"ATEN_CPU_CAPABILITY": "default", "ONEDNN_MAX_CPU_ISA": "SSE41", "OPENBLAS_CORETYPE": "Nehalem"}
#: A small problem for each library, and the variables without which it takes what the processor claims to have.
OBEYED = {
    "torch": (("ATEN_CPU_CAPABILITY",), "torch.log_softmax(torch.arange(9e4).reshape(300, 300), 1).sum()"),
    "oneDNN": (("ONEDNN_MAX_CPU_ISA",), "torch.conv2d(torch.ones(8, 16, 16, 16), torch.ones(24, 16, 3, 3)).sum()"),
    "MKL": (("MKL_CBWR",), "(torch.ones(300, 300) @ torch.ones(300, 300)).sum()"),
    "NumPy": (("NPY_ENABLE_CPU_FEATURES",), "np.exp(np.ones(90000, np.float32)).sum()"),
    "OpenBLAS": (("OPENBLAS_CORETYPE",), "(np.ones((300, 300)) @ np.ones((300, 300))).sum()"),
    # What it compiles for; it prefers short vectors, so that a small problem may do without the instructions.
    "Numba": (
        ("NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES"),
        "__import__('numba').core.registry.cpu_target.target_context.codegen()._get_host_cpu_name()",
    ),
}
#: How a process is started, by name: what it is told, and variables that it finds.
PROCESSES: dict[str, tuple[str, dict[str, str]]] = {
    "native": ("native", {}),
    "portable": ("portable", {}),
    "portable, held": ("portable", HELD),
}


def main() -> None:
    """Time all variants and compare digests, or compare them with those of emulated processors."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--emulated", action="append", default=[], metavar="CPU")
    parser.add_argument("--claimed", action="append", default=[], metavar="CPU")
    given = parser.parse_args()
    for cpu in given.emulated:
        emulate(cpu)
    if given.claimed:
        claim(given.claimed)
    if not given.emulated and not given.claimed:
        compare()


def compare() -> None:
    """Time all variants, and print which of them have the same bits."""
    workers = {name: Worker(*how) for name, how in PROCESSES.items()}
    print(f"{workers['native'].kind}\n{workers['portable'].kind}\n1 thread, {ROUNDS} rounds of {STEPS} steps, CPU time")
    print(f"{'variant':32} {'native, ms/step':>16} {'portable / native':>18}  same bits: native, held")
    for variant in VARIANTS:
        times: dict[str, list[float]] = {name: [] for name in ("native", "portable")}
        found = {name: worker.ask(variant)["digest"] for name, worker in workers.items()}
        for _ in range(ROUNDS):
            for name, seconds in times.items():
                seconds.append(workers[name].ask(variant)["seconds"])
        ratio = statistics.median(b / a for a, b in zip(times["native"], times["portable"], strict=True))
        same = ", ".join("yes" if found[other] == found["portable"] else "no" for other in ("native", "portable, held"))
        spent = 1000 * statistics.median(times["native"]) / STEPS
        print(f"{' '.join(variant):32} {spent:16.2f} {ratio:17.2f}x  {same}", flush=True)
    for worker in workers.values():
        worker.end()


def emulate(cpu: str) -> None:
    """Print which variants have the same bits on an emulated processor: a few steps, since each takes a minute."""
    here, there = Worker("portable", {}), Worker("portable", {}, cpu)
    print(f"{here.kind}\nemulated {cpu}: {there.kind}")
    same_bits(here, {f"emulated {cpu}": there})


def claim(processors: list[str]) -> None:
    """Print which variants have the same bits where libraries take this processor for others, and what holds them."""
    import claimed

    with tempfile.TemporaryDirectory(prefix="claimed-") as folder:
        environ = claimed.prepare(Path(folder))
        here = Worker("portable", {})
        there = {cpu: Worker("portable", {**environ, "CLAIMED_PROCESSOR": cpu}) for cpu in processors}
        print("\n".join([here.kind, *(f"{cpu}: {worker.kind}" for cpu, worker in there.items())]), flush=True)
        same_bits(here, there)
        for cpu in processors:
            for library, (left_out, problem) in OBEYED.items():
                pinned = {name: value for name, value in arithmetic.portable().items() if name not in left_out}
                code = f"import numpy as np, torch; print('computes', {problem})"
                done = subprocess.run(
                    [sys.executable, "-c", code],
                    env={**unpinned(), **pinned, **environ, "CLAIMED_PROCESSOR": cpu},
                    capture_output=True,
                    text=True,
                )
                said = (done.stdout + done.stderr).strip().splitlines() or [f"ended with status {done.returncode}"]
                print(f"{cpu}, {library} without {' and '.join(left_out)}: {said[-1]}", flush=True)


def same_bits(here: Worker, others: dict[str, Worker]) -> None:
    """Print, variant by variant, whether other processes come to the same bits as one here; then let all end."""
    for variant in VARIANTS:
        digest = here.ask(variant, EMULATED_STEPS)["digest"]
        for name, there in others.items():
            same = digest == there.ask(variant, EMULATED_STEPS)["digest"]
            print(f"{name}: {' '.join(variant):32} {'the same bits' if same else 'OTHER BITS'}", flush=True)
    for worker in (here, *others.values()):
        worker.end()


def unpinned() -> dict[str, str]:
    """This process's variables, less what holds libraries; one thread."""
    plain = {name: value for name, value in os.environ.items() if name not in arithmetic.portable()}
    return {**plain, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


class Worker:
    """A process with an arithmetic of its own, asked over its standard input.

    Args:
        chosen: ``native`` or ``portable``.
        environ: Variables that it finds.
        cpu: Processor that qemu pretends to be; empty: this one.
    """

    def __init__(self, chosen: str, environ: dict[str, str], cpu: str = "") -> None:
        plain = unpinned()
        command = [sys.executable, __file__, "--serve", chosen]
        if cpu:
            qemu = shutil.which("qemu-x86_64") or sys.exit("--emulated needs qemu-x86_64: apt-get install qemu-user")
            # Of a virtual environment qemu sees the interpreter that it links to, and not its packages.
            command = [qemu, "-cpu", cpu, os.path.realpath(sys.executable), *command[1:]]
            plain["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
        self._process = subprocess.Popen(
            command,
            env={**plain, **environ},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            # Where a library takes a branch that this processor cannot follow, it is told here.
            stderr=None if "CLAIMED_PROCESSOR" in environ else subprocess.DEVNULL,
            text=True,
        )
        self.kind = self._hear()

    def ask(self, variant: tuple[str, str, str], steps: int = STEPS) -> dict[str, Any]:
        """Train, and say the CPU seconds and the digest of the weights."""
        assert self._process.stdin
        self._process.stdin.write(json.dumps([variant, steps]) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._hear())
        return answer

    def end(self) -> None:
        """Let it end."""
        self._process.communicate()

    def _hear(self) -> str:
        assert self._process.stdout
        return self._process.stdout.readline().strip() or sys.exit("a process ended before it answered")


def serve(chosen: str) -> None:
    """Be a worker."""
    if chosen == "portable":
        arithmetic.pin()
    from pruneaudit.training.runtime import Runtime

    Runtime().prepare()
    print(f"{chosen}: {arithmetic.kind()}", flush=True)
    for line in sys.stdin:
        (workload, backend, precision), steps = json.loads(line)
        print(json.dumps(trained(workload, backend, precision, steps)), flush=True)


def trained(name: str, backend: str, precision: str, steps: int) -> dict[str, Any]:
    """Train the dense network for some steps; evaluation is not what is timed: one image each."""
    import reference

    from pruneaudit.catalog.discovery import Catalog
    from pruneaudit.pruning import shapes
    from pruneaudit.streams import generator
    from pruneaudit.training.many import train_many
    from pruneaudit.training.precision import place
    from pruneaudit.training.runs import Training
    from pruneaudit.workloads.models.initialise import initialise

    workload = Catalog().workload(name)
    data = reference.images_of(workload)
    data = replace(data, validation=data.test.first(1), test=data.test.first(1))
    recipe = workload.pretrain.model_copy(update={"epochs": None, "steps": steps, "lr": "0:0.01"})
    trainings = []
    for seed in range(2 if backend == "grouped" else 1):
        model = shapes.dense_network(workload)
        initialise(model, generator(seed, "benchmark"))
        trainings.append(Training(place(model, "cpu", precision), data, recipe, seed, "benchmark", precision))
    started = time.process_time()
    train_many(trainings, backend)
    seconds = time.process_time() - started
    sha = hashlib.sha256()
    for training in trainings:
        for tensor in training.model.state_dict().values():
            sha.update(tensor.contiguous().numpy().tobytes())
    return {"seconds": seconds / len(trainings), "digest": sha.hexdigest()[:16]}


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(sys.argv[2])
    else:
        main()
