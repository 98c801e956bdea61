"""Which arithmetic a process computes with, and one that all x86-64 machines of the last ten years have in common.

The last bits of a sum depend on how many numbers a vector holds, on whether products and sums are fused, and on which
kernels a library chooses for a processor; training makes points of accuracy of them. Libraries read their limits once,
when they are loaded or first used, so that :func:`pin` has to come before; processes that are started later inherit it.

What a library really does shows in what it computes: :func:`kind` has a fixed small problem solved by each of them, and
keeps digests of the answers. Processors of other names may so have one kind of arithmetic, and of one name have two.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import platform
import re
import shlex
import subprocess
import sys
import warnings
from collections.abc import Callable, Mapping, MutableMapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from pruneaudit.errors import ConfigError
from pruneaudit.schema import Frozen
from pruneaudit.state import state_folder

#: ``native``: each library takes the best that it knows for the processor. ``portable``: :func:`portable`.
Arithmetic = Literal["native", "portable"]
PORTABLE: Arithmetic = "portable"

#: What reads its limits when it is loaded, or at its first operation.
_LIBRARIES = ("torch", "numpy", "numba")
#: What a processor must have, as Linux names it.
_NEEDED = ("avx2", "fma", "bmi2")


class ArithmeticKind(Frozen):
    """What a process computes with. Two that are equal give the same bits, as far as the digests see.

    Attributes:
        torch: Version of torch.
        vectors: Instructions of torch's own kernels, as it reports them, such as ``AVX2``.
        libraries: Versions of what computes for it: oneDNN, MKL, NumPy.
        digests: Of what each of them computed of fixed numbers, and the C library's functions.
        compiler: What compiles kernels, and for which processor; empty where the backend compiles none.
        device: Of a GPU its name, capability, and versions of CUDA and cuDNN; empty on a CPU.
    """

    torch: str
    vectors: str
    libraries: dict[str, str]
    digests: dict[str, str]
    compiler: str = ""
    device: dict[str, str] = {}

    def __hash__(self) -> int:
        # Whatever the order in which a record had been written.
        return hash((self.torch, self.vectors, self.compiler, *sorted(self.digests.items())))

    def __str__(self) -> str:
        libraries = ", ".join(f"{name} {version}" for name, version in sorted(self.libraries.items()))
        whole = hashlib.sha256(repr(sorted(self.digests.items())).encode()).hexdigest()[:8]
        more = [text for text in (self.compiler, " ".join(value for _, value in sorted(self.device.items()))) if text]
        return ", ".join([f"torch {self.torch} {self.vectors}", libraries, *more, f"digest {whole}"])

    def differences(self, other: ArithmeticKind) -> list[str]:
        """What sets another kind apart from this one, part by part; empty where they are equal."""
        found = []
        for name in ("torch", "vectors", "compiler"):
            ours, theirs = getattr(self, name), getattr(other, name)
            found += [f"{name} {ours or 'none'} and {theirs or 'none'}"] if ours != theirs else []
        for ours, theirs in ((self.libraries, other.libraries), (self.device, other.device)):
            for name in dict.fromkeys([*ours, *theirs]):
                mine, its = ours.get(name, "none"), theirs.get(name, "none")
                found += [f"{name} {mine} and {its}"] if mine != its else []
        names = dict.fromkeys([*self.digests, *other.digests])
        unlike = [name for name in names if self.digests.get(name) != other.digests.get(name)]
        return [*found, f"other results of {', '.join(unlike)}"] if unlike else found


def portable() -> dict[str, str]:
    """Environment variables that hold every library to AVX2 and FMA, whoever made the processor.

    MKL asks who did: what it calls ``AVX2`` is another branch on processors that are not Intel's. Only its compatible
    branch, of SSE2, is the same on all.
    """
    return {
        "ATEN_CPU_CAPABILITY": "avx2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "MKL_CBWR": "COMPATIBLE",
        "OPENBLAS_CORETYPE": "Haswell",
        "NPY_ENABLE_CPU_FEATURES": "X86_V3" if _version("numpy") >= (2, 4) else "AVX2 FMA3",
        "NUMBA_CPU_NAME": "x86-64-v3",
        # Not the processor's own: what the name implies.
        "NUMBA_CPU_FEATURES": "",
        # Of torch.compile; what it compiles in vectors follows ATEN_CPU_CAPABILITY.
        "TORCHINDUCTOR_CPP_MARCH": "x86-64-v3",
    }


def is_pinned(environ: Mapping[str, str] | None = None) -> bool:
    """Whether this process computes in portable arithmetic."""
    environ = os.environ if environ is None else environ
    return all(environ.get(name) == value for name, value in portable().items())


def pin(environ: MutableMapping[str, str] | None = None, loaded: Mapping[str, Any] | None = None) -> None:
    """Make this process, and all that it starts, compute in portable arithmetic. Calling it again changes nothing.

    Args:
        environ: Environment variables; None: the process's own.
        loaded: Modules that are loaded; None: this process's own.

    Raises:
        ConfigError: The processor has not what it takes, or a library was loaded before.
    """
    environ = os.environ if environ is None else environ
    if is_pinned(environ):
        return
    lacking = lacks_portable()
    if lacking:
        raise ConfigError(f"portable arithmetic needs {lacking}; leave out --audit-arithmetic, or give native")
    late = [name for name in _LIBRARIES if name in (sys.modules if loaded is None else loaded)]
    if late:
        shown = " ".join(f"{name}={shlex.quote(value)}" for name, value in portable().items())
        raise ConfigError(
            f"portable arithmetic must be chosen before {', '.join(late)} is loaded, and another plugin or an earlier "
            f"session of this process did; start a new process, with {shown} set"
        )
    environ.update(portable())


def settle() -> None:
    """Where this process is pinned: what no variable reaches. Loads torch; calling it again changes nothing.

    Torch takes some functions of MKL that seem to start from the processor's own guess of a reciprocal (``rsqrtps``,
    ``rcpps``): whatever the limits, every fifth square root in float32 differs between an AMD processor and an emulated
    one, in its last bit. NumPy's square roots are rounded correctly; its other functions are the C library's.
    """
    if is_pinned():
        _replace_guessed()


@cache
def _replace_guessed() -> Any:
    """Compute with NumPy what MKL computes from guesses; the registration, which lasts as long as it is held."""
    import numpy as np
    import torch

    def replaced(function: np.ufunc) -> Callable[[torch.Tensor], torch.Tensor]:
        def compute(values: torch.Tensor) -> torch.Tensor:
            values = values.detach().resolve_conj().resolve_neg()
            if not (values.is_floating_point() or values.is_complex()):
                values = values.to(torch.get_default_dtype())
            # NumPy knows no bfloat16; torch, too, computes short types in float32.
            wide = values.float() if values.dtype in (torch.bfloat16, torch.float16) else values
            result = torch.empty_like(wide)
            with np.errstate(all="ignore"):
                function(wide.numpy(), out=result.numpy())
            return result.to(values.dtype)

        return compute

    def into(compute: Callable[[torch.Tensor], torch.Tensor]) -> Callable[..., torch.Tensor]:
        return lambda values, *, out: out.resize_(values.shape).copy_(compute(values))

    def in_place(compute: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda values: values.copy_(compute(values))

    registration = torch.library.Library("aten", "IMPL")
    with warnings.catch_warnings():
        # That a kernel is replaced is what is wanted.
        warnings.simplefilter("ignore")
        for name, function in (
            ("sqrt", np.sqrt), ("tan", np.tan), ("asin", np.arcsin), ("acos", np.arccos), ("atan", np.arctan)
        ):  # fmt: skip
            compute = replaced(function)
            registration.impl(name, compute, "CPU")
            registration.impl(f"{name}_", in_place(compute), "CPU")
            registration.impl(f"{name}.out", into(compute), "CPU")
    return registration


def lacks_portable() -> str:
    """What portable arithmetic needs and this machine has not; empty: nothing."""
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return f"an x86-64 processor, not {platform.machine()}"
    flags = of_processor("flags").split()
    missing = [flag for flag in _NEEDED if flags and flag not in flags]
    return f"a processor with {', '.join(flag.upper() for flag in missing)}" if missing else ""


def _version(name: str) -> tuple[int, ...]:
    """Major and minor version of a distribution, found without loading it."""
    return tuple(int(number) for number in re.findall(r"\d+", metadata.version(name))[:2])


@cache
def kind(device: str = "cpu", backend: str = "torch") -> ArithmeticKind:
    """What this process computes with. Loads torch; takes a tenth of a second once.

    Args:
        device: ``cpu`` or ``cuda``.
        backend: What is asked to make the steps, as ``--audit-backend`` names it: some compile kernels.
    """
    import numpy as np
    import torch

    settle()
    shown = torch.__config__.show()
    libraries = {
        name: found.group(1)
        for name, pattern in (("oneDNN", r"MKL-DNN v([\d.]+)"), ("MKL", r"Math Kernel Library Version ([\d.]+)"))
        if (found := re.search(pattern, shown))
    }
    return ArithmeticKind(
        torch=torch.__version__,
        vectors=torch.backends.cpu.get_cpu_capability(),
        libraries={**libraries, "NumPy": np.__version__},
        digests=_digests(),
        compiler=_compiler(backend, device),
        device=_gpu() if device == "cuda" else {},
    )


def described(device: str = "cpu", backend: str = "torch") -> str:
    """:func:`kind` in words, without loading torch here: this machine told it before, or a process of its own is asked.

    Args:
        device: ``cpu`` or ``cuda``.
        backend: As for :func:`kind`.

    Returns:
        Empty where no process can be asked.
    """
    if "torch" in sys.modules:
        return str(kind(device, backend))
    versions = [f"{name} {_installed(name)}" for name in (*_LIBRARIES, "torchvision")]
    limits = [f"{name}={os.environ.get(name)}" for name in portable()]
    machine = [of_processor("model name"), of_processor("flags"), *platform.libc_ver(), sys.executable]
    depends = hashlib.sha256("\n".join([device, backend, *versions, *limits, *machine]).encode()).hexdigest()[:16]
    told = state_folder() / "arithmetic" / depends
    with contextlib.suppress(OSError, ValueError):
        return told.read_text(encoding="utf-8")
    code = "import sys; from pruneaudit.arithmetic import kind; print(kind(*sys.argv[1:]))"
    asked = [sys.executable, "-c", code, device, backend]
    try:
        said = subprocess.run(asked, capture_output=True, text=True, timeout=60, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
    part = told.with_name(f".{depends}.{os.getpid()}.part")
    with contextlib.suppress(OSError):
        told.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(said, encoding="utf-8")
        part.replace(told)
    return said


def _installed(name: str) -> str:
    """Version of a distribution; empty where it is not there."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


def _compiler(backend: str, device: str) -> str:
    """What compiles a backend's kernels for this process, and for which processor.

    Numba's version stands for LLVM's too, which compiles by itself for ``tiled``: each brings one.
    """
    if backend == "tiled":
        from llvmlite import binding  # type: ignore[import-untyped]

        target = os.environ.get("NUMBA_CPU_NAME") or binding.get_host_cpu_name()
        return f"Numba {metadata.version('numba')} for {target}"
    if backend == "fused" and device == "cpu":
        return f"{_c_compiler()} for {os.environ.get('TORCHINDUCTOR_CPP_MARCH') or of_processor('model name')}"
    return ""


def _c_compiler() -> str:
    """Name and version of what torch.compile compiles with, as it says itself."""
    try:
        from torch._inductor.cpp_builder import get_cpp_compiler

        command = [get_cpp_compiler(), "--version"]
        said = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (ImportError, RuntimeError, OSError, subprocess.SubprocessError):
        # Then the backend does without.
        return "no C++ compiler"
    return said.partition("\n")[0]


def of_processor(what: str) -> str:
    """What Linux says of the first processor; empty where it says nothing."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    found = re.search(rf"^{what}\s*:\s*(.*)$", text, re.MULTILINE)
    return found.group(1) if found else ""


def _gpu() -> dict[str, str]:
    """The GPU, and what torch uses it with."""
    import torch

    return {
        "device": torch.cuda.get_device_name(),
        "capability": ".".join(map(str, torch.cuda.get_device_capability())),
        "CUDA": torch.version.cuda or "",
        "cuDNN": str(torch.backends.cudnn.version() or ""),
    }


# What libraries compute of fixed numbers


@cache
def _digests() -> dict[str, str]:
    """Digests of what each library computes; inputs are made of whole numbers, by no library."""
    import numpy as np
    import torch
    import torch.nn.functional as F

    def numbers(*shape: int, kind: Any = torch.float32) -> torch.Tensor:
        # Weyl's sequence in whole numbers, then one exact division: the same bits everywhere.
        count = math.prod(shape)
        whole = (torch.arange(1, count + 1, dtype=torch.int64) * 2654435761) % 2**24
        return (whole.to(torch.float64) / 2**23 - 1).to(kind).reshape(shape)

    def digest(*results: Any) -> str:
        sha = hashlib.sha256()
        for result in results:
            sha.update(np.ascontiguousarray(result.detach().numpy() if torch.is_tensor(result) else result).tobytes())
        return sha.hexdigest()[:16]

    def convolved(fan_in: int, fan_out: int, kernel: int, stride: int, side: int, batch: int) -> list[torch.Tensor]:
        images = numbers(batch, fan_in, side, side).to(memory_format=torch.channels_last)
        weight = numbers(fan_out, fan_in, kernel, kernel).to(memory_format=torch.channels_last)
        padding = [kernel // 2] * 2
        outputs = F.conv2d(images, weight, stride=stride, padding=padding)
        back = torch.ops.aten.convolution_backward(
            outputs, images, weight, None, [stride] * 2, padding, [1, 1], False, [0, 0], 1, [True, True, False]
        )
        return [outputs, *back[:2]]

    threads = torch.get_num_threads()
    # As runs are trained: sums of several threads are other ones.
    torch.set_num_threads(1)
    functions = (math.exp, math.log, math.sin, math.cos, math.tanh, lambda number: math.pow(number, 0.3))
    with torch.no_grad():
        vector = numbers(2053)
        double = numbers(517, kind=torch.float64)
        normalised = torch.native_batch_norm(numbers(16, 8, 6, 6), None, None, None, None, True, 0.1, 1e-5)
        own = [
            vector.sum(), vector.var(), double.sum(), *normalised, F.log_softmax(vector[:2050].reshape(205, 10), 1),
            F.gelu(vector), F.silu(vector), torch.addcmul(vector, vector, vector, value=0.3),
        ]  # fmt: skip
        positive = vector.abs() + 0.5
        elementwise = [positive.exp(), positive.log(), positive.sqrt(), positive.rsqrt(), vector.tanh(), vector.sin()]
        left, right = numbers(60, 133), numbers(133, 45)
        products = [left @ right, left.double() @ right.double(), left @ right[:, 0]]
        factors = [torch.linalg.svdvals(left[:, :20]), torch.linalg.qr(left[:, :20])[0]]
        layers = [convolved(3, 8, 3, 1, 12, 4), convolved(16, 24, 3, 1, 8, 6), convolved(16, 32, 1, 2, 8, 6)]
    torch.set_num_threads(threads)
    return {
        "torch": digest(*own),
        "functions": digest(*elementwise),
        "oneDNN": digest(*(tensor for layer in layers for tensor in layer)),
        "MKL": digest(*products, *factors),
        "NumPy": digest(left.numpy()[:30] @ right.numpy(), np.exp(left.numpy()), np.log(positive.numpy())),
        "libm": digest(np.array([function(0.5 + step / 97) for function in functions for step in range(97)])),
    }
