"""The same campaign from nothing with one process and with two workers: how much the second core gives.

Whole processes, wall time, so on a machine that does nothing else. Prints the ratio, and checks that every accuracy is
the same: numbers do not depend on ``-n``.

Usage: python benchmarks/workers.py [-k EXPR] [-n WORKERS] [OPTION…], options as the suite's.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from pruneaudit.catalog.discovery import suite_arguments
from pruneaudit.ledger.store import Ledger


def main() -> None:
    """Run both and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("-k", dest="expression", default="resnet20-digits and not conformance")
    parser.add_argument("-n", dest="workers", type=int, default=2)
    chosen, options = parser.parse_known_args()
    seconds, results = {}, {}
    for workers in (0, chosen.workers):
        with tempfile.TemporaryDirectory() as folder:
            ledger = Path(folder) / "ledger"
            command = [sys.executable, "-m", "pytest", *suite_arguments(), "-q", "-k", chosen.expression]
            command += ["-n", str(workers), "-p", "no:cacheprovider", "--audit-ledger", str(ledger)]
            command += ["--audit-report", str(Path(folder) / "report"), *options]
            started = time.perf_counter()
            done = subprocess.run(command, capture_output=True, text=True)
            seconds[workers] = time.perf_counter() - started
            if done.returncode not in (0, 1):
                sys.exit(done.stdout[-2000:] + done.stderr[-2000:])
            results[workers] = {run.run_id: run.accuracy for run in Ledger(ledger, writable=False).runs()}
    if results[0] != results[chosen.workers]:
        sys.exit("accuracies depend on the number of workers")
    print(f"{chosen.expression}: {len(results[0])} runs, all accuracies the same")
    print("| | wall time | |\n|---|---|---|")
    print(f"| -n 0 | {seconds[0]:.1f} s | 1x |")
    print(f"| -n {chosen.workers} | {seconds[chosen.workers]:.1f} s | {seconds[0] / seconds[chosen.workers]:.2f}x |")


if __name__ == "__main__":
    main()
