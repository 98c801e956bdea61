"""Functions that are written in LLVM's instructions: when they are compiled, what is kept, and what is refused."""

import gc
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from trainers import needs_numba

pytestmark = needs_numba


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache folder, and all that was compiled."""
    from pruneaudit.kernels import machine

    monkeypatch.setenv("PRUNEAUDIT_CACHE", str(tmp_path / "cache"))
    compiled, compile_module = [], machine._compiled

    def noting(module):
        compiled.append(module.name)
        return compile_module(module)

    monkeypatch.setattr(machine, "_compiled", noting)
    return compiled


def doubled(name="doubled"):
    """A function that adds a number to twice an array's numbers."""
    from pruneaudit.kernels.machine import Written

    def write(emit, values, size, added):
        with size.each() as number:
            value = emit.get(values, number)
            emit.put(value + value + emit.real(added), values, number)

    return Written(name, "reals whole real", write)


def kept(tmp_path):
    return sorted((tmp_path / "cache" / "kernels").iterdir())


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_function_is_compiled_once_and_kept_for_later_ones(cache, tmp_path, dtype):
    values = np.arange(5, dtype=dtype)
    call = doubled()(values, 5, 0.25)
    call()
    doubled()(values, 4, 0)()
    np.testing.assert_array_equal(values, np.array([0.5, 4.5, 8.5, 12.5, 8.25], dtype))
    assert len(cache) == len(kept(tmp_path)) == 1


@pytest.mark.parametrize(
    "damage",
    [lambda data: data[:-9], lambda data: b"", lambda data: data[:40] + b"!" + data[41:]],
    ids=["cut off", "empty", "changed"],
)
def test_code_that_is_not_whole_is_compiled_again(cache, tmp_path, damage):
    doubled()(np.ones(2), 2, 0)()
    (place,) = kept(tmp_path)
    whole = place.read_bytes()
    place.write_bytes(damage(whole))
    values = np.ones(2)
    doubled()(values, 2, 1)()
    assert values.tolist() == [3, 3] and len(cache) == 2
    assert place.read_bytes() == whole


def test_where_nothing_can_be_kept_it_is_compiled_anyway(cache, tmp_path):
    (tmp_path / "cache").write_text("no folder")
    values = np.ones(2)
    for _ in range(2):
        doubled()(values, 2, 0)()
    assert values.tolist() == [4, 4] and len(cache) == 2


def test_code_for_another_processor_is_not_taken(cache, tmp_path, monkeypatch):
    from pruneaudit.kernels import machine

    doubled()(np.ones(2), 2, 0)()
    monkeypatch.setattr(machine, "_processor", lambda: ("x86-64", ""))
    doubled()(np.ones(2), 2, 0)()
    assert len(cache) == len(kept(tmp_path)) == 2


@pytest.mark.parametrize(
    "array", [np.ones(8)[::2], np.ones((3, 3)).T, np.ones(3, np.int32)], ids=["steps", "transposed", "whole numbers"]
)
def test_arrays_that_code_would_misread_are_refused(array):
    with pytest.raises(TypeError, match=r"^doubled: "):
        doubled()(array, 3, 0)


def test_calls_that_follow_one_another_are_one_and_keep_their_order_and_what_they_need():
    """Calls of other functions between them stay where they are."""
    from pruneaudit.kernels.machine import chained

    function, values, seen = doubled(), np.ones(3), []
    calls = [function(values, 3, number) for number in (1, 2)]
    calls += [lambda: seen.append(values.tolist()), function(values, 2, 3), function(values.copy(), 1, 0)]
    few = chained(calls)
    del calls, function
    gc.collect()
    assert len(few) == 3
    for call in few:
        call()
    assert seen == [[8, 8, 8]] and values.tolist() == [19, 19, 8]


def test_other_threads_run_while_calls_do():
    from pruneaudit.kernels.machine import chained

    function, values, counted = doubled(), np.zeros(1 << 14), [0]
    (call,) = chained([function(values, len(values), 0)] * 1000)
    during = []

    def run():
        for _ in range(1000):
            before = counted[0]
            call()
            if counted[0] > before:
                during.append(True)
                return

    thread, interval = threading.Thread(target=run), sys.getswitchinterval()
    # Nobody is asked to give the interpreter's lock up.
    sys.setswitchinterval(3600)
    try:
        thread.start()
        while thread.is_alive():
            counted[0] += 1
            time.sleep(0)
    finally:
        sys.setswitchinterval(interval)
    assert during


PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
from test_tiled import RECIPE, noise, resnet
from trainers import fit
from pruneaudit.kernels import machine

compiled, compile_module = [], machine._compiled

def noting(module):
    compiled.append(module.name)
    return compile_module(module)

machine._compiled = noting
for widths in (), ((1, 2, 3), (5, 5, 5)):
    fit("tiled", resnet(*widths), noise(), RECIPE.model_copy(update={"epochs": None, "steps": 1}))
    print(len(compiled), len(set(compiled)))
print("numba" in sys.modules)
"""


def test_machine_code_serves_all_widths_and_later_processes_without_a_compiler_of_python(warm):
    said = []
    for _ in range(2):
        command = [warm, "-c", PROGRAM, str(Path(__file__).parent)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=True)
        said.append(done.stdout.splitlines())
    # Whoever compiles a second time lets the first training wait for it.
    first, other, has_numba = said[0]
    assert first == other and first.split()[0] == first.split()[1] != "0" and has_numba == "False"
    assert said[1] == ["0 0", "0 0", "False"]
