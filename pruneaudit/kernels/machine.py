"""Functions that are written in LLVM's instructions: compiled at first use, and kept as machine code (llvmlite).

What a compiler for Python's code reads and infers of a function takes it longer than LLVM needs for the whole: a
function is therefore written for LLVM alone, and is called with addresses. Its code lies in the cache folder
(``$PRUNEAUDIT_CACHE``), for each processor that it was compiled for; where nothing can be kept, for this process only.

``$NUMBA_CPU_NAME`` and ``$NUMBA_CPU_FEATURES`` name another processor to compile for, as they do for Numba.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import inspect
import os
import struct
import tempfile
import threading
from collections.abc import Callable, Iterable
from functools import cache, partial
from itertools import groupby
from pathlib import Path
from typing import Any

import llvmlite  # type: ignore[import-untyped]
import numpy as np
from llvmlite import binding, ir

from pruneaudit import state
from pruneaudit.kernels.vectors import Emitter, Whole

Call = Callable[[], object]

#: Arrays of fixed types, by the sign that a function's parameters have.
_ARRAYS = {
    name: np.dtype(kind)
    for name, kind in (("pixels", "u1"), ("bits", "?"), ("winners", "i2"), ("weights", "i4"), ("places", "i8"))
}
_REALS = (np.dtype("f4"), np.dtype("f8"))
_COMPILING = threading.Lock()


class _Compiled(partial[None]):
    """A call of a compiled function.

    Attributes:
        entry: Addresses of the function and of its parameters.
    """

    def __new__(cls, function: Callable[..., None], entry: tuple[int, int], kept: object) -> _Compiled:
        call = super().__new__(cls, function, entry[1])
        call.entry = entry
        # An address keeps nothing alive.
        call.kept = kept
        return call

    entry: tuple[int, int]
    kept: object


class Written:
    """A function that is compiled for ``float32`` or ``float64``, when it is first asked for with such arrays.

    Args:
        name: What its code is kept as.
        parameters: Of what kind they are: ``reals`` (an array), ``real`` (one number), ``whole`` (an integer),
            ``pixels``, ``bits``, ``winners``, ``weights`` or ``places`` (arrays of uint8, bool, int16, int32, int64).
            Arrays come first, one of ``reals`` before all others where there are any.
        write: Writes its instructions, given an emitter and the parameters: addresses, numbers, and :class:`Whole`.
        lasts: Whether it takes long enough to let other threads of this process run meanwhile.
    """

    def __init__(self, name: str, parameters: str, write: Callable[..., None], lasts: bool = False) -> None:
        self.name = name
        # Whoever gives Python's lock up may wait for it longer than a kernel takes.
        self._kind = ctypes.CFUNCTYPE if lasts else ctypes.PYFUNCTYPE
        self._parameters = parameters.split()
        self._arrays = [parameter for parameter in self._parameters if parameter not in ("whole", "real")]
        self._write = write
        self._compiled: dict[int, tuple[int, Any, struct.Struct]] = {}

    def __call__(self, *arguments: Any) -> Call:
        """A call with these arguments: arrays in C order, which it keeps, and numbers.

        Raises:
            TypeError: An array is of another type, or not in C order.
        """
        kind = arguments[0].dtype if "reals" in self._arrays else _REALS[0]
        if kind not in _REALS:
            raise TypeError(f"{self.name}: float32 and float64 are compiled, not {kind}")
        given = list(arguments)
        for place, parameter in enumerate(self._arrays):
            array = arguments[place]
            if array.dtype != _ARRAYS.get(parameter, kind) or not array.flags.c_contiguous:
                raise TypeError(f"{self.name}: an array of {array.dtype} where {parameter} in C order are taken")
            given[place] = array.ctypes.data
        size = kind.itemsize
        address, function, layout = self._compiled.get(size) or self._compile(size)
        block = ctypes.create_string_buffer(layout.pack(*given))
        return _Compiled(function, (address, ctypes.addressof(block)), (arguments, block))

    def _compile(self, size: int) -> tuple[int, Any, struct.Struct]:
        """Its address for numbers of so many bytes, what ctypes calls, and how its parameters lie in memory."""
        with _COMPILING:
            if size not in self._compiled:
                sources = _sources(Path(__file__).parent, Path(inspect.getfile(self._write)).parent)
                address = _loaded(f"{self.name}-{8 * size}", lambda symbol: self._module(symbol, size), sources)
                function = self._kind(None, ctypes.c_void_p)(address)
                signs = {"whole": "q", "real": "f4x" if size == 4 else "d"}
                layout = struct.Struct("@" + "".join(signs.get(parameter, "P") for parameter in self._parameters))
                self._compiled[size] = address, function, layout
            return self._compiled[size]

    def _module(self, symbol: str, size: int) -> ir.Module:
        """The function in LLVM's instructions: its one parameter is where all of them lie, eight bytes each."""
        module = ir.Module(symbol)
        module.triple = binding.get_process_triple()
        real, whole = ir.FloatType() if size == 4 else ir.DoubleType(), ir.IntType(64)
        types: dict[str, Any] = {"whole": whole, "real": real, "reals": real.as_pointer()}
        for name, kind in _ARRAYS.items():
            types[name] = ir.IntType(8 * kind.itemsize).as_pointer()
        function = ir.Function(module, ir.FunctionType(ir.VoidType(), [whole.as_pointer()]), symbol)
        builder = ir.IRBuilder(function.append_basic_block("entry"))
        values = []
        for place, parameter in enumerate(self._parameters):
            slot = builder.gep(function.args[0], [ir.Constant(whole, place)])
            value = builder.load(builder.bitcast(slot, types[parameter].as_pointer()))
            values.append(Whole(builder, value) if parameter == "whole" else value)
        self._write(Emitter(builder, size), *values)
        builder.ret_void()
        return module


def _write_chain(write: Emitter, entries: Any, count: Whole) -> None:
    builder, parameters = write.builder, ir.IntType(64).as_pointer()
    kind = ir.FunctionType(ir.VoidType(), [parameters]).as_pointer()
    with count.each() as number:
        function, block = (builder.load(write.at(entries, number * 2 + part)) for part in (0, 1))
        builder.call(builder.inttoptr(function, kind), [builder.inttoptr(block, parameters)])


_chain = Written("chain", "places whole", _write_chain, lasts=True)


def chained(calls: Iterable[Call]) -> list[Call]:
    """The same calls in the same order: those of compiled functions that follow one another are one.

    Python does not come between them, and other threads of this process run meanwhile.
    """
    found: list[Call] = []
    for compiled, some in groupby(calls, key=lambda call: isinstance(call, _Compiled)):
        several = list(some)
        if compiled and len(several) > 1:
            one = _chain(np.array([call.entry for call in several], np.int64), len(several))  # type: ignore[attr-defined]
            one.kept = one.kept, several  # type: ignore[attr-defined]
            several = [one]
        found += several
    return found


@cache
def _machine() -> Any:
    """What compiles, for which processor."""
    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    target = binding.Target.from_triple(binding.get_process_triple())
    cpu, features = _processor()
    return target.create_target_machine(
        cpu=cpu,
        features=features,
        opt=3,
        # Code that is loaded where it is called from, as Numba has it.
        reloc="static" if target.name.startswith("x86") else "default",
        codemodel="jitdefault",
        jit=True,
    )


def _processor() -> tuple[str, str]:
    """Name and features of the processor that is compiled for."""
    name, features = os.environ.get("NUMBA_CPU_NAME"), os.environ.get("NUMBA_CPU_FEATURES")
    if features is None:
        features = binding.get_host_cpu_features().flatten()
    return name or binding.get_host_cpu_name(), features


@cache
def _engine() -> Any:
    """Where machine code is loaded."""
    machine = _machine()
    return binding.create_mcjit_compiler(binding.parse_assembly(""), machine)


def _loaded(symbol: str, module: Callable[[str], ir.Module], sources: str) -> int:
    """Address of a function, whose code was kept or is compiled now."""
    place = state.cache_folder() / "kernels" / f"{symbol}-{_identity(symbol, sources)[:32]}.o"
    code = _kept(place)
    if code is None:
        code = _compiled(module(symbol))
        _keep(place, code)
    engine = _engine()
    engine.add_object_file(binding.ObjectFileRef.from_data(code))
    engine.finalize_object()
    return int(engine.get_function_address(symbol))


def _compiled(module: ir.Module) -> bytes:
    """Machine code of a module."""
    machine = _machine()
    read = binding.parse_assembly(str(module))
    read.verify()
    options = binding.create_pipeline_tuning_options(speed_level=2)
    passes = binding.create_pass_builder(machine, options)
    passes.getModulePassManager().run(read, passes)
    return bytes(machine.emit_object(read))


def _identity(symbol: str, sources: str) -> str:
    """Digest of everything that can change a function's code."""
    said = [symbol, *_processor(), binding.get_process_triple(), llvmlite.__version__, sources]
    return hashlib.sha256("\0".join(said).encode()).hexdigest()


@cache
def _sources(*folders: Path) -> str:
    """Digest of what writes a function: all that lies in these, since it cannot be told what one asks for."""
    files = (path.read_bytes() for folder in folders for path in sorted(folder.glob("*.py")))
    return hashlib.sha256(b"\0".join(files)).hexdigest()


def _kept(place: Path) -> bytes | None:
    """Code that lies whole where it was kept."""
    try:
        data = place.read_bytes()
    except OSError:
        return None
    digest, code = data[:32], data[32:]
    return code if hashlib.sha256(code).digest() == digest else None


def _keep(place: Path, code: bytes) -> None:
    """Keep code, if that is possible."""
    with contextlib.suppress(OSError):
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=place.parent, delete=False) as part:
            part.write(hashlib.sha256(code).digest() + code)
        Path(part.name).replace(place)
