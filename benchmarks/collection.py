"""Time that pytest takes to collect more than 10,000 items of the suite, as a whole process.

python benchmarks/collection.py
"""

from __future__ import annotations

import re
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COMMAND = [sys.executable, "-m", "pytest", "suite", "--collect-only", "-q", "-p", "no:cacheprovider"]
OPTIONS = ["--audit-methods", "all", "--audit-seeds", "5"]


def main() -> None:
    """Collect five times and print the median."""
    times, items = [], "?"
    for _ in range(5):
        started = time.perf_counter()
        done = subprocess.run([*COMMAND, *OPTIONS], cwd=ROOT, capture_output=True, text=True, check=True)
        times.append(time.perf_counter() - started)
        found = re.search(r"(\d+) tests collected", done.stdout)
        items = found.group(1) if found else "?"
    print(f"{items} items collected in {statistics.median(times):.2f} s (median of {len(times)} processes)")


if __name__ == "__main__":
    main()
