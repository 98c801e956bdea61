"""The most memory that a process ever held.

python benchmarks/resident.py FILE MODULE [ARGUMENT ...]      runs a module, and writes its MiB to FILE at the end
"""

import atexit
import runpy
import sys
from pathlib import Path


def largest_set() -> float:
    """Largest resident set of this process in MiB; what ``getrusage`` says would count its parent's, too."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM:"))
    return int(line.split()[1]) / 1024


if __name__ == "__main__":
    told, module = Path(sys.argv[1]), sys.argv[2]
    del sys.argv[:2]
    # What is beside this file is none of the module's.
    sys.path[:] = [place for place in sys.path if place != str(Path(__file__).resolve().parent)]
    atexit.register(lambda: told.write_text(str(largest_set()), encoding="ascii"))
    runpy.run_module(module, run_name="__main__", alter_sys=True)
