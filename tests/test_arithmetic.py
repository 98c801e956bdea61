"""The kind of arithmetic is known, and portable arithmetic gives the same bits wherever it is computed."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from builders import (
    CATALOG,
    SEEDS,
    WEIGHTS,
    changed,
    evidence,
    kind,
    run_record,
    run_spec,
    scored,
    series,
    store,
    write_method,
)
from hypothesis import given
from hypothesis import strategies as st
from rogues.records import everywhere, with_result, with_run

from pruneaudit import arithmetic, plugin
from pruneaudit.arithmetic import ArithmeticKind, pin, portable
from pruneaudit.audit.catalogue import get_rule
from pruneaudit.catalog.settings import Settings
from pruneaudit.errors import ConfigError
from pruneaudit.ledger.merging import merge
from pruneaudit.ledger.noise import Noise
from pruneaudit.ledger.store import Ledger
from pruneaudit.report.results import Results, gather_ledger
from pruneaudit.report.schema import ResultsFile
from pruneaudit.report.terminal import summary
from pruneaudit.report.writer import markdown

#: What portable arithmetic gives, whatever the processor, by versions of the libraries: made with AVX2 by AMD, and seen
#: on an emulated Intel Haswell as well. Add versions with ``UPDATE_GOLDEN=1 pytest`` this file.
GOLDEN = Path(__file__).parent / "golden" / "portable.json"
lacking = arithmetic.lacks_portable()
x86 = pytest.mark.skipif(bool(lacking), reason=lacking)

#: Pins itself, as a session does, then computes what libraries give and a few steps of a network.
PINNED = """
import json, sys
from pruneaudit import arithmetic
if "native" not in sys.argv:
    arithmetic.pin()
import numpy as np, torch
torch.set_num_threads(1)
found = arithmetic.kind()
x = (torch.arange(1, 20001, dtype=torch.float32) / 7).reshape(5, 4, 20, 50).to(memory_format=torch.channels_last)
exact = np.sqrt(x.numpy())
roots = {
    "plain": bool((x.sqrt().numpy() == exact).all()),
    "layout": x.sqrt().is_contiguous(memory_format=torch.channels_last),
    "in place": bool((x.clone().sqrt_().numpy() == exact).all()),
    "into": bool((torch.sqrt(x, out=torch.empty(0)).numpy() == exact).all()),
    "strided": bool((x[:, 1].sqrt().numpy() == exact[:, 1]).all()),
    "whole numbers": str(torch.tensor([4, 9]).sqrt().dtype),
    "short": torch.tensor([2.25, -1.0], dtype=torch.bfloat16).sqrt().float().isnan().tolist(),
    "scalar": torch.tensor(6.25).sqrt().item(),
    "gradients": torch.autograd.gradcheck(torch.sqrt, torch.tensor([0.5, 2.0]).double().requires_grad_()),
}
print(json.dumps({"kind": found.model_dump(), "roots": roots, "pinned": arithmetic.is_pinned()}))
"""


def computed(*arguments, **environ):
    """What a process of its own computes, with these variables set from outside."""
    plain = {name: value for name, value in os.environ.items() if name not in portable()}
    done = subprocess.run(
        [sys.executable, "-c", PINNED, *arguments], env=plain | environ, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def pinned():
    """What a pinned process computes; from outside, libraries were held to the oldest vectors."""
    return computed(ATEN_CPU_CAPABILITY="default", ONEDNN_MAX_CPU_ISA="SSE41", OPENBLAS_CORETYPE="Nehalem")


# The same bits


@x86
def test_portable_arithmetic_gives_the_same_bits_on_every_processor(pinned):
    known = json.loads(GOLDEN.read_text())
    found = ArithmeticKind.model_validate(pinned["kind"])
    versions = ", ".join([f"torch {found.torch}", *(f"{name} {one}" for name, one in found.libraries.items())])
    if os.environ.get("UPDATE_GOLDEN"):
        known[versions] = found.model_dump()
        GOLDEN.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n")
    if versions not in known:
        pytest.skip(f"nobody noted what {versions} give")
    assert found.differences(ArithmeticKind.model_validate(known[versions])) == []
    assert pinned["pinned"]


@x86
def test_what_a_process_was_held_to_shows_in_what_it_computes(pinned):
    held = computed("native", ATEN_CPU_CAPABILITY="default", ONEDNN_MAX_CPU_ISA="SSE41")
    kinds = [ArithmeticKind.model_validate(found["kind"]) for found in (held, pinned)]
    differences = "; ".join(kinds[0].differences(kinds[1]))
    assert "vectors DEFAULT and AVX2" in differences
    for library in ("torch", "oneDNN", "MKL"):
        assert library in differences.rpartition("other results of ")[2]
    assert not held["pinned"] and kinds[0] != kinds[1]


@x86
def test_square_roots_are_rounded_correctly_whatever_the_processor_guesses(pinned):
    assert pinned["roots"] == {
        **dict.fromkeys(("plain", "layout", "in place", "into", "strided", "gradients"), True),
        "whole numbers": "torch.float32",
        "short": [False, True],
        "scalar": 2.5,
    }


def described(**environ):
    """What a process that loads no torch of its own says, and whether it loaded it."""
    code = "import sys; from pruneaudit.arithmetic import described; print(described()); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | environ, capture_output=True, text=True)
    return done.stdout.splitlines()


def test_what_computes_is_told_without_loading_it_and_remembered(tmp_path, pinned):
    state = {"XDG_STATE_HOME": str(tmp_path), **portable()}
    assert described(**state) == [str(ArithmeticKind.model_validate(pinned["kind"])), "False"]
    (told,) = (tmp_path / "pruneaudit" / "arithmetic").iterdir()
    told.write_text("what was told before")
    assert described(**state) == ["what was told before", "False"]
    # Other limits are another machine.
    assert described(**state | {"ATEN_CPU_CAPABILITY": "default"})[0].startswith("torch ")
    assert len(list(told.parent.iterdir())) == 2


def test_nothing_is_told_where_no_process_can_be_asked(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "none"))
    assert arithmetic.described() == "" and not list(tmp_path.iterdir())


# Pinning


@x86
def test_pinning_sets_what_libraries_read_and_nothing_twice():
    environ = {"HOME": "/home"}
    pin(environ, loaded={})
    assert environ == {"HOME": "/home", **portable()} and arithmetic.is_pinned(environ)
    # A worker inherits it, and has loaded everything when it is asked again.
    pin(environ, loaded={"torch": None, "numpy": None})


@x86
def test_what_is_loaded_already_cannot_be_pinned():
    environ = {}
    with pytest.raises(ConfigError) as caught:
        pin(environ, loaded={"torch": None, "json": None})
    message = str(caught.value)
    assert "\n" not in message and "before torch is loaded" in message and "ATEN_CPU_CAPABILITY=avx2" in message
    assert not environ


@pytest.mark.parametrize(
    ("machine", "flags", "words"),
    [
        ("aarch64", "", "an x86-64 processor, not aarch64"),
        ("x86_64", "sse4_2 avx fma", "a processor with AVX2, BMI2"),
    ],
)
def test_a_machine_that_cannot_is_told_so(monkeypatch, machine, flags, words):
    monkeypatch.setattr(arithmetic.platform, "machine", lambda: machine)
    monkeypatch.setattr(arithmetic, "of_processor", {"flags": flags}.get)
    with pytest.raises(ConfigError, match=f"portable arithmetic needs {words}; leave out --audit-arithmetic"):
        pin({}, loaded={})


@x86
def test_a_session_is_pinned_before_anything_is_loaded(checkout):
    """Conftest, workers and the processes of foreign methods included; its results stand apart."""
    conftest = checkout.root / "conftest.py"
    before = conftest.read_text() if conftest.exists() else ""
    conftest.write_text(f"{before}\nimport os, numpy\nassert os.environ['MKL_CBWR'] == 'COMPATIBLE'\n")
    body = (
        "    def score(self, layer, task):\n        import os\n"
        "        assert os.environ['ONEDNN_MAX_CPU_ISA'] == 'AVX2'\n        return layer.weight.flatten(1).sum(dim=1)\n"
    )
    method = write_method(checkout.root, "looks", body)
    select = ("-k", "cell and lenet5-digits and s3.2 and r0.5", "--audit-budget", "smoke", "--audit-seeds", "1", "-n1")
    outcome = checkout.pytest(
        *("suite", *select, "--audit-method", method, "--audit-methods", "looks"),
        *("--audit-arithmetic", "portable"),
        fresh=True,
    )
    assert outcome.code == 0, outcome.text
    assert any("portable arithmetic" in line for line in outcome.lines if line.startswith("pruneaudit: "))
    runs = list(Ledger(checkout.ledger, writable=False).runs())
    assert len(runs) == 3 and len({run.kind for run in runs}) == 1
    assert all(run.arithmetic == "portable" and run.slug.endswith("-portable") for run in runs)
    assert (runs[0].kind.vectors, runs[0].environment["torch"]) == ("AVX2", runs[0].kind.torch)
    content = json.loads((checkout.report / "results.json").read_text())
    assert content["cells"][0]["labels"] == ["smoke", "portable"]
    assert content["environments"][0]["arithmetic"] == f"portable: {runs[0].kind}"


@pytest.mark.parametrize(
    ("given", "pins"), [({}, True), ({"audit_from": "ledger"}, True), ({"collectonly": True}, False)]
)
def test_only_what_computes_is_pinned(monkeypatch, given, pins):
    calls = []
    monkeypatch.setattr(arithmetic, "pin", lambda: calls.append(None))
    options = {"audit_arithmetic": "portable", "audit_from": None, "collectonly": False, **given}
    plugin.pytest_load_initial_conftests(SimpleNamespace(known_args_namespace=SimpleNamespace(**options)))
    assert bool(calls) == pins
    options["audit_arithmetic"] = "native"
    plugin.pytest_load_initial_conftests(SimpleNamespace(known_args_namespace=SimpleNamespace(**options)))
    assert len(calls) == pins


def test_a_portable_ledger_can_be_judged_on_any_machine(monkeypatch):
    def pin():
        raise ConfigError("portable arithmetic needs AVX2")

    monkeypatch.setattr(arithmetic, "pin", pin)
    options = {"audit_arithmetic": "portable", "audit_from": "ledger", "collectonly": False}
    plugin.pytest_load_initial_conftests(SimpleNamespace(known_args_namespace=SimpleNamespace(**options)))
    options["audit_from"] = None
    with pytest.raises(pytest.UsageError, match="needs AVX2"):
        plugin.pytest_load_initial_conftests(SimpleNamespace(known_args_namespace=SimpleNamespace(**options)))


def test_native_runs_keep_their_ids_and_portable_ones_have_their_own():
    workload = CATALOG.workload("lenet5-digits")
    assert run_spec(arithmetic="native").run_id == run_spec().run_id != run_spec(arithmetic="portable").run_id
    assert Settings().labels(workload) == () and Settings(arithmetic="portable").labels(workload) == ("portable",)


# Kinds


@given(st.sets(st.sampled_from(["torch", "vectors", "compiler", "libraries", "digests", "device"])))
def test_kinds_are_equal_where_nothing_is_different(parts):
    others = {
        "torch": "3.0",
        "vectors": "AVX512",
        "compiler": "Numba 1 for znver3",
        "libraries": {"oneDNN": "4"},
        "digests": {"torch": "00", "MKL": "01"},
        "device": {"cuDNN": "9"},
    }
    one, other = kind(), kind(**{part: others[part] for part in parts})
    assert len(one.differences(other)) == len(other.differences(one)) == len(parts)
    assert (one == other) == (not parts) and (hash(one) == hash(other) or parts)
    assert (str(one) == str(other)) == (not parts)


def test_a_comparison_is_of_one_arithmetic():
    def judged(*kinds):
        case = series()
        for side, one in enumerate(kinds):
            case = everywhere(case, side, lambda arm, one=one: with_result(arm, kind=one))
        return get_rule("F608").check(case)

    # Runs of older records do not tell theirs.
    assert {judged(kind(), kind()).verdict, judged(kind(), None).verdict, judged(None, None).verdict} == {"pass"}
    outcome = judged(kind(), kind(vectors="AVX512", digests={"torch": "01", "MKL": "00"}))
    assert outcome.verdict == "fail" and "AVX2" in outcome.left and "AVX512" in outcome.right
    assert outcome.note.startswith("vectors AVX2 and AVX512; other results of torch; ")
    assert "--audit-arithmetic portable" in outcome.note


# Two ledgers


def contradiction(folder, left, right, seeds=SEEDS[:3]):
    """What a merge says of two ledgers that computed the same runs, each with its arithmetic and its accuracies."""
    for name, one, shift in (("left", *left), ("right", *right)):
        ledger = Ledger(folder / name)
        for seed in seeds:
            spec = run_spec("scratch", method="scratch", ratio=0.5, seed=seed, widths={"conv1": 3})
            ledger.commit(changed(run_record(spec, accuracy=75.0 + 2.5 * seed + shift * (seed + 1)), kind=one), WEIGHTS)
    with pytest.raises(ConfigError) as caught:
        merge(folder / "all", [folder / "left", folder / "right"])
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_other_bits_of_the_same_arithmetic_are_a_fault(tmp_path):
    text = contradiction(tmp_path, (kind(), 0.0), (kind(), 2.5))
    assert "both were computed alike (torch 2.9.0 AVX2, oneDNN 3.9" in text and "one of them is at fault" in text


def test_other_bits_of_another_arithmetic_are_expected_and_measured(tmp_path):
    text = contradiction(tmp_path, (kind(), 0.0), (kind(vectors="AVX512"), 2.5))
    assert "other numbers are expected (vectors AVX2 and AVX512)" in text
    # 2.5, 5 and 7.5 points; over seeds 75, 77.5 and 80.
    assert "3 of 3 results differ, typically by 5.40 and at most by 7.50" in text
    assert "over seeds the standard deviation is 2.50" in text


def test_an_older_record_does_not_tell(tmp_path):
    assert "does not tell what arithmetic" in contradiction(tmp_path, (None, 0.0), (kind(), 2.5))


@given(
    st.lists(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 100)), min_size=1, max_size=5), min_size=1, max_size=4)
)
def test_noise_is_bounded_by_its_largest_part(arms):
    noise = Noise.of([dict(enumerate(arm)) for arm in arms])
    # Squares of what is smaller are no normal numbers.
    most = noise.largest * (1 + 1e-12) + 1e-150
    assert noise.typical <= most and noise.of_means <= most
    assert noise.pairs == sum(map(len, arms)) and (noise.differ == 0) == (noise.largest == 0)
    assert (noise.spread is None) == all(len(arm) == 1 for arm in arms)
    same = Noise.of([{seed: (left, left) for seed, (left, _) in enumerate(arm)} for arm in arms])
    assert (same.differ, same.largest, same.spread) == (0, 0, noise.spread)


# The noise floor of a report


def both(ledger, method, seed, native, portable):
    """Store a cell as both arithmetics computed it."""
    store(ledger, scored(evidence(method, seed=seed), native))
    store(ledger, scored(evidence(method, seed=seed, arithmetic="portable"), portable))


def test_a_report_says_what_the_arithmetic_alone_changes(tmp_path):
    ledger = Ledger(tmp_path / "ledger")
    for seed, (native, other) in enumerate([(90.0, 92.0), (92.0, 91.0), (94.0, 94.0)]):
        both(ledger, "l1", seed, native, other)
    both(ledger, "tpp", 0, 80.0, 83.0)
    # Measured in one arithmetic only.
    store(ledger, scored(evidence("tpp", seed=1), 10.0))
    found = gather_ledger(CATALOG, ledger)
    assert [row["labels"] for row in found.noise] == [[], ["portable"]]
    row = found.noise[0]
    assert (row["protocol"], row["ratio"], row["pairs"], row["differ"], row["largest"]) == ("s3.2", 0.5, 4, 3, 3.0)
    # l1's mean moves by a third of a point, tpp's single seed by three; l1's seeds are 90, 92 and 94.
    assert row["typical"] == pytest.approx(14**0.5 / 2) and row["of_means"] == 3.0
    assert row["spread"] == pytest.approx(2.0) and found.noise[1]["spread"] == pytest.approx(7**0.5 / 3**0.5)
    text = markdown(found)
    assert (
        "## lenet5-digits: noise floor" in text
        and "| s3.2 | 0.5 | 3 of 4 | 1.87 | 3.00 | 3.00 | 2.00 |" in squeezed(text)
    )
    assert any("noise floor" in line for line in summary(found))
    ResultsFile.model_validate(found.as_json())


def test_the_end_of_a_session_says_what_it_was_computed_with():
    environments = [{"device": device, "arithmetic": f"portable: {kind()}"} for device in ("one", "another")]
    told = [line for line in summary(Results(cells=[], findings=[], environments=environments)) if "arithmetic" in line]
    assert told == [f"  arithmetic: portable: {kind()}"]


def test_cells_that_were_made_differently_tell_nothing_of_arithmetic(tmp_path):
    ledger = Ledger(tmp_path / "ledger")
    store(ledger, scored(evidence("l1"), 90.0))
    # By another version of the method's file.
    store(ledger, with_run(scored(evidence("l1", arithmetic="portable"), 80.0), "prune", method_digest="ab" * 32))
    found = gather_ledger(CATALOG, ledger)
    assert found.noise == [] and "noise" not in found.as_json() and "noise floor" not in markdown(found)


def squeezed(text):
    """A table without the room between its columns."""
    return re.sub(r" +", " ", text)


def test_a_kind_that_was_stored_is_the_same_kind():
    """Records are written with sorted keys: what is said of a kind and where it is put do not depend on their order."""
    one = kind()
    other = ArithmeticKind.model_validate_json(json.dumps(one.model_dump(), sort_keys=True))
    assert (other, hash(other), str(other)) == (one, hash(one), str(one)) and len({one, other}) == 1
