"""Libraries that take this processor for another one: they ask, and `claimed.c` answers in its place.

A library decides by two instructions, CPUID and XGETBV, whose answers no variable changes. In copies of the libraries
they are replaced by illegal ones; what handles the signal answers as the claimed processor would. All else runs
natively, so that an AVX-512 instruction ends the process where this processor has none: a training that ends well
executed none. That tells which branches libraries take, and what these compute here. It tells nothing of instructions
whose results makers choose freely (``rcpps``, ``rsqrtps``); emulated processors show these. The C library's loader is
not replaced: its mathematical functions know no branch beyond AVX2 and FMA.
"""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

#: What asks the processor, and what is put in its place: instructions of the same length that no processor has.
SWAPS = {b"\x0f\xa2": b"\x0f\x0b", b"\x0f\x01\xd0": b"\x0f\xff\xd0"}
#: Packages whose libraries compute.
PACKAGES = ("torch", "numpy", "numpy.libs", "scipy", "scipy.libs", "llvmlite")
#: Where decoding starts, in bytes before the place: instructions are at most 15 bytes long, and decoding falls in step.
BACK = range(24, 88)


def prepare(folder: Path) -> dict[str, str]:
    """Lay copies of the libraries that compute, and compile what answers.

    Args:
        folder: Empty; takes about 700 MB.

    Returns:
        Environment variables of a process that claims; ``CLAIMED_PROCESSOR`` is to be added.
    """
    site, copies, answers = Path(sysconfig.get_path("purelib")), folder / "site", folder / "claimed.so"
    for package in PACKAGES:
        if (site / package).is_dir():
            shutil.copytree(site / package, copies / package, copy_function=os.symlink)
    # Torch looks for CUDA's libraries beside itself.
    for other in site.iterdir():
        if not (copies / other.name).exists():
            (copies / other.name).symlink_to(other)
    for package in PACKAGES:
        for library in sorted((copies / package).rglob("*.so*")):
            # What CUDA's libraries compute, they compute elsewhere.
            if "cuda" not in library.name:
                replace(library)
    source = Path(__file__).with_suffix(".c")
    subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", str(answers), str(source), "-ldl"], check=True)
    return {
        "LD_PRELOAD": str(answers),
        "PYTHONPATH": os.pathsep.join([str(copies), *(path for path in sys.path if path)]),
    }


def replace(library: Path) -> int:
    """Put a copy in the link's place in which nothing asks the processor; how many places there were."""
    data = bytearray(library.read_bytes())
    if data[:4] != b"\x7fELF":
        return 0
    places = [
        (at, new)
        for low, high in executed(data)
        for old, new in SWAPS.items()
        for at in occurrences(data, old, low, high)
        if is_instruction(data, at, low)
    ]
    for at, new in places:
        data[at : at + len(new)] = new
    if places:
        library.unlink()
        library.write_bytes(data)
    return len(places)


def executed(data: bytearray) -> Iterator[tuple[int, int]]:
    """Where a library (ELF, 64 bits) holds instructions: first byte of the file, and the one after the last."""
    (start,) = struct.unpack_from("<Q", data, 32)
    size, count = struct.unpack_from("<HH", data, 54)
    for header in range(start, start + size * count, size):
        kind, flags, offset, _, _, length = struct.unpack_from("<IIQQQQ", data, header)
        if kind == 1 and flags & 1:
            yield offset, offset + length


def occurrences(data: bytearray, what: bytes, low: int, high: int) -> Iterator[int]:
    """Where these bytes are."""
    at = data.find(what, low, high)
    while at >= 0:
        yield at
        at = data.find(what, at + 1, high)


def is_instruction(data: bytearray, at: int, low: int) -> bool:
    """Whether an instruction begins there: decoding from most places shortly before arrives exactly there."""
    try:
        import capstone  # type: ignore[import-not-found]
    except ImportError:
        sys.exit("--claimed needs a disassembler: pip install capstone")
    decoder = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
    reached = exactly = 0
    for begin in (max(low, at - back) for back in BACK):
        for where, _, _, _ in decoder.disasm_lite(bytes(data[begin : at + 16]), begin):
            if where >= at:
                reached += 1
                exactly += where == at
                break
    return 2 * exactly > max(reached, 8)
