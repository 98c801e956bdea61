"""What `pytest suite` does and prints: selection, order, judgement, exit codes, and no surprises under xdist."""

import json
import xml.etree.ElementTree as ET

import pytest
from arena import OPTIONS

from pruneaudit.audit.catalogue import get_rule, required, rules
from pruneaudit.catalog.discovery import Catalog
from pruneaudit.ledger.records import VOLATILE
from pruneaudit.ledger.store import Ledger

SMOKE = ("--audit-budget", "smoke", "--audit-seeds", "1")
QUICK = ("suite", "-k", "lenet5-digits and r0.5", *SMOKE)


def results(checkout):
    return json.loads((checkout.report / "results.json").read_text())


def stable_runs(path):
    """All run records of a ledger without what may differ between two executions."""
    return {record.run_id: record.model_dump(mode="json", exclude=VOLATILE) for record in Ledger(path).runs()}


def test_same_judgement_with_and_without_workers(arena):
    """-n0, -n2 and a selection of fairness items alone give the same runs, cells and findings."""
    checkout = arena
    arguments = ("suite", "-k", "tiny and (cell or fairness)", "--audit-methods", "l1,tpp,scratch", *OPTIONS)
    arguments += ("--audit-seeds", "1", "--audit-protocols", "s4.1,sx-b")
    found = {}
    for name, extra in {"n0": ("-n0",), "n2": ("-n2",)}.items():
        ledger, report = checkout.root / f"ledger-{name}", checkout.root / f"report-{name}"
        # In an interpreter of its own sets have another order, and nothing is imported before it is needed.
        folders = ("--audit-ledger", str(ledger), "--audit-report", str(report))
        outcome = checkout.pytest(*arguments, *extra, *folders, fresh=name == "n0")
        assert outcome.code == 0, outcome.text
        content = json.loads((report / "results.json").read_text())
        content.pop("environments")
        found[name] = (stable_runs(ledger), content)
    assert found["n0"] == found["n2"]
    runs, content = found["n0"]
    assert runs and {row["status"] for row in content["cells"]} == {"ok"}
    expected = {(p, m) for p in ("s4.1", "sx-b") for m in ("l1", "tpp", "scratch")}
    assert {(row["protocol"], row["method"]) for row in content["cells"]} == expected
    # Fairness items alone obtain the cells that they need.
    ledger, report = checkout.root / "ledger-f", checkout.root / "report-f"
    folders = ("--audit-ledger", str(ledger), "--audit-report", str(report))
    outcome = checkout.pytest("suite/test_fairness.py", *arguments[1:-1], "sx-b", *folders)
    assert outcome.code == 0, outcome.text
    same = [row for row in content["findings"] if row["protocol"] == "sx-b"]
    assert same and json.loads((report / "results.json").read_text())["findings"] == same


def test_terminal_and_files(checkout):
    outcome = checkout.pytest(
        *QUICK,
        *("--audit-methods", "l1,random", "--audit-protocols", "s3.2", "--junitxml", "junit.xml"),
        PYTEST_ADDOPTS="",
    )
    assert outcome.code == 0, outcome.text
    header = next(line for line in outcome.lines if line.startswith("pruneaudit: "))
    protocol = Catalog().protocol("s3.2")
    version = f"protocols s3.2@{protocol.version} "
    for part in (version, "methods l1 random", "seeds 0-0", "cpu fp32", "budget smoke", "ledger "):
        assert part in header
    assert any(line.startswith("pruneaudit: computes with torch ") for line in outcome.lines)
    assert any(line.startswith("lenet5-digits [smoke]: test accuracy") for line in outcome.lines)
    pairs = [rule_id for rule_id in required(protocol) if get_rule(rule_id).scope != "arm"]
    pairs += [rule_id for rule_id, rule in rules().items() if rule.always]
    matrix = [line for line in outcome.lines if line.startswith("s3.2") and "l1 vs random" in line]
    assert any(f"all {len(pairs)} ok" in line for line in matrix), outcome.text
    assert any("indeterminate" in line for line in matrix), "the verdict stands above"
    assert "cells: 2 selected, 2 ok; 2 attempted, 2 valid" in outcome.lines
    assert any(line.startswith("verdicts: 1 comparison, 1 indeterminate") for line in outcome.lines)
    assert outcome.lines[-2].startswith("results: ") and outcome.lines[-3].startswith("report: ")
    assert outcome.lines[-3].endswith("report.html")
    assert (checkout.report / "report.md").read_text().startswith("# pruneaudit report")
    figures = {path.name for path in (checkout.report / "figures").iterdir()}
    assert {f"accuracy-speedup-lenet5-digits-smoke.{kind}" for kind in ("svg", "pdf")} <= figures
    assert {path.name for path in (checkout.report / "tables").iterdir()} == {
        "cells.csv",
        "findings.csv",
        "accuracy.csv",
        "accuracy-lenet5-digits-smoke-s3.2.tex",
        "verdicts.csv",
    }
    names = [case.get("name") for case in ET.parse(checkout.root / "junit.xml").iter("testcase")]
    assert "test_cell[lenet5-digits-l1-s3.2-r0.5-seed0]" in names
    assert "test_fairness[lenet5-digits-l1-vs-random-s3.2-r0.5-F321]" in names
    assert "test_fairness[lenet5-digits-l1-s3.2-r0.5-F501]" in names
    assert not any(name.startswith("test_gate") for name in names), "nothing is gated unless asked for"


def test_order_is_conformance_then_cells_then_fairness(checkout):
    outcome = checkout.pytest(
        "suite", "--collect-only", "-q", "--audit-methods", "l1,random", "--audit-protocols", "s3.2"
    )
    kinds = [line.partition("::")[0] for line in outcome.lines if "::" in line]
    order = ["suite/test_conformance.py", "suite/test_cells.py", "suite/test_fairness.py"]
    assert list(dict.fromkeys(kinds)) == order
    assert kinds == sorted(kinds, key=order.index)


def test_collection_and_help_import_no_torch(checkout):
    checkout.write(
        "spy.py",
        "import sys\ndef pytest_unconfigure():\n    print('TORCH', any(n == 'torch' for n in sys.modules))\n",
    )
    # Of all workloads and protocols; of all methods it would be forty thousand items.
    everywhere = ("suite", "--collect-only", "-q", "--audit-methods", "l1,scratch", "--audit-seeds", "1")
    for arguments in (everywhere, ("--help",)):
        outcome = checkout.pytest(*arguments, "-p", "spy", fresh=True)
        assert outcome.code == 0, outcome.text
        assert "TORCH False" in outcome.text
    assert "--audit-method=SPEC" in outcome.text and "Repeatable." in outcome.text


def test_other_projects_see_nothing(pytester):
    pytester.makepyfile("import sys\ndef test_it():\n    assert 'torch' not in sys.modules\n")
    outcome = pytester.runpytest_subprocess("-p", "no:cacheprovider")
    outcome.assert_outcomes(passed=1)
    outcome.stdout.no_fnmatch_line("*pruneaudit:*")
    assert not (pytester.path / ".pruneaudit").exists()


def test_workers_train_on_one_thread_and_stored_results_are_not_trained_again(checkout):
    arguments = (*QUICK, "--audit-methods", "l1", "--audit-protocols", "s3.2", "-n2")
    assert checkout.pytest(*arguments).code == 0
    first = {record.run_id: record for record in Ledger(checkout.ledger).runs()}
    assert {record.environment["threads"] for record in first.values()} == {"1"}
    assert checkout.pytest(*arguments).code == 0
    again = {record.run_id: record for record in Ledger(checkout.ledger).runs()}
    assert again == first


def write_method(checkout, name, body):
    """A method file with one statement in `prune`."""
    text = f"from pruneaudit import Method\n\n\nclass {name.title()}(Method):\n    '''{name}.'''\n\n"
    checkout.write(f"{name}.py", f"{text}    def prune(self, task):\n        {body}\n")


BROKEN = {
    "raises": ("raise RuntimeError('no\\nluck')", "method 'bad' raised RuntimeError: no luck"),
    "list": ("return [1, 2]", "method 'bad' returned list; expected {layer name: kept filter indices}"),
    "outside": ("return {l.name: [l.channels] for l in task.layers}", "a filter index is outside 0…5"),
    "everything": ("return {l.name: [] for l in task.layers}", "removes every filter of layer 'conv1'"),
    "nothing": ("return {l.name: list(range(l.channels)) for l in task.layers}", "method 'bad' removes no filter"),
    "target": (
        "return {l.name: list(range(l.channels - 1)) for l in task.layers}",
        "misses its target in layer 'conv1': keeps 5 of 6 filters; ratio 0.5 asks for 3",
    ),
    "nan": (
        "task.layers[0].weight.data.fill_(float('nan')); "
        "return {l.name: list(range(l.channels // 2)) for l in task.layers}",
        "left values that are not finite in 'conv1.weight'",
    ),
}


def test_a_broken_method_costs_its_own_cells(checkout):
    for kind, (body, _) in BROKEN.items():
        write_method(checkout, kind, body)
    specs = [part for kind in BROKEN for part in ("--audit-method", f"{kind}.py")]
    # Of all pairs those with L1: what broken methods cost each other is the same again.
    select = ("-k", f"{QUICK[2]} and (seed0 or not vs or l1-vs)", *SMOKE, "--audit-protocols", "s3.2")
    selection = ("suite/test_cells.py", "suite/test_fairness.py", *select)
    outcome = checkout.pytest(*selection, "--audit-methods", "l1,tpp", *specs)
    assert outcome.code == 1, outcome.text
    status = {row["method"]: row["status"] for row in results(checkout)["cells"]}
    assert status == {"l1": "ok", "tpp": "ok"} | dict.fromkeys(BROKEN, "failed")
    assert "Traceback" not in outcome.text
    # One failure for each cause; what depends on it is counted, and not told again.
    failed = [line for line in outcome.lines if line.startswith("FAILED ")]
    assert len(failed) == len(BROKEN) and all("test_cells.py" in line for line in failed), outcome.text
    (not_run,) = [line for line in outcome.lines if line.startswith("not run: ")]
    assert f"depend on the {len(BROKEN)} failures above" in not_run
    for kind, (_, message) in BROKEN.items():
        line = next(
            line for line in outcome.lines if f"run lenet5-digits-prune-{kind}-r0.5-seed0-smoke failed: " in line
        )
        assert message.replace("bad", kind) in line
        assert f"; at {checkout.root / kind}.py:" in line
        kept = line.rpartition("; traceback in ")[2]
        assert "Traceback (most recent call last)" in (checkout.root / kept).read_text()
        assert not list((checkout.ledger / "runs").glob(f"*-{kind}-*"))
        assert len(list((checkout.ledger / "failures").glob(f"*-prune-{kind}-*.json"))) == 1
    needed = [row for row in results(checkout)["findings"] if row["required"]]
    assert {tuple(row["arms"]) for row in needed} >= {("l1", "tpp"), ("l1",), ("raises",), ("l1", "raises")}
    for row in needed:
        # A cell that was tried and failed is a failure of completeness, and of nothing else.
        broken = "fail" if row["rule"] == "F607" else "incomplete"
        assert row["verdict"] == ("pass" if set(row["arms"]) <= {"l1", "tpp"} else broken), row


def test_a_method_that_declines_a_workload_is_skipped_with_its_reason(checkout):
    write_method(checkout, "picky", "raise AssertionError('never called')")
    path = checkout.root / "picky.py"
    declines = "        return 'needs more channels' if workload.model == 'lenet5' else None"
    path.write_text(f"{path.read_text()}\n    def skip(self, workload):\n{declines}\n")
    selection = (
        "suite",
        *QUICK[1:],
        "--audit-protocols",
        "s3.2",
        "--audit-methods",
        "l1",
        "--audit-method",
        "picky.py",
    )
    outcome = checkout.pytest(*selection, "-rs")
    assert outcome.code == 0, outcome.text
    assert "picky does not apply to lenet5-digits: needs more channels" in outcome.text
    found = results(checkout)
    assert {row["method"]: row["status"] for row in found["cells"]} == {"l1": "ok", "picky": "skipped"}
    assert {tuple(row["arms"]) for row in found["findings"]} == {("l1",)} and not found["verdicts"]
    # It is not missing from the ledger either.
    outcome = checkout.pytest(*selection, "--audit-from", str(checkout.ledger))
    assert outcome.code == 0 and results(checkout) == found, outcome.text
    assert all(record.method == "l1" for record in Ledger(checkout.ledger).cells()), "it was never tried"


def test_a_method_that_declines_every_workload_fails(checkout):
    write_method(checkout, "useless", "raise AssertionError('never called')")
    path = checkout.root / "useless.py"
    path.write_text(path.read_text() + "\n    def skip(self, workload):\n        return 'I do not want to'\n")
    select = ("-k", "useless and lenet5-digits and (describes or (r0.5 and s3.2 and seed0))")
    outcome = checkout.pytest("suite", *select, "--audit-method", "useless.py", "--audit-budget", "smoke")
    assert outcome.code == 1, outcome.text
    assert "method 'useless' applies to no workload; of lenet5-digits it says: I do not want to" in outcome.text
    assert "method 'useless' does not apply to lenet5-digits: I do not want to" in outcome.text


USAGE = {
    "method": (("--audit-methods", "l1,tp"), "unknown method 'tp'. Did you mean 'tpp'?"),
    "protocol": (("--audit-protocols", "s32"), "unknown protocol 's32'. Did you mean 's3.2'?"),
    "spec": (("--audit-method", "nowhere.py"), "--audit-method nowhere.py: no such file"),
    "module": (("--audit-method", "nowhere"), "--audit-method nowhere: expected 'file.py' or 'package.module:Class'"),
    "collision": (("--audit-method", "methods/l1.py"), "two methods are called 'l1'"),
    "seeds": (("--audit-seeds", "0"), "--audit-seeds: expected a number of at least 1"),
    "many seeds": (("--audit-seeds", str(10**20)), "--audit-seeds: expected a number of at least 1, and at most 10000"),
    "many decide": (("--audit-decide", str(10**20)), "--audit-decide: expected a number of at most 10000"),
    "base": (("--audit-base", "nowhere.safetensors"), "base nowhere.safetensors: No such file or directory"),
    "device": (("--audit-device", "cuda"), "--audit-device cuda: no CUDA device is visible here"),
    "report": (("--audit-report", "pyproject.toml"), "pyproject.toml is no folder that can be written; choose another"),
    "ledger": (("--audit-ledger", "pyproject.toml"), "pyproject.toml is no folder that can be written; choose another"),
    "patience": (("--audit-patience", "0"), "--audit-patience 0: expected a number of minutes above 0"),
    "stage": (("--audit-stage-limit", "0"), "--audit-stage-limit 0: expected a number of hours above 0"),
    "ranks": (("--audit-ranks", "0"), "--audit-ranks 0: expected a number of processes, at least 1"),
    "ranks and backend": (
        ("--audit-ranks", "2", "--audit-backend", "tiled"),
        "only torch trains so, not --audit-backend",
    ),
    "backend": (("--audit-backend", "tyled"), "--audit-backend: unknown value 'tyled'. Did you mean 'tiled'?"),
    "no names": (("--audit-methods", " ,"), "--audit-methods ' ,' names nothing; leave it out, or give A,B"),
    "ratio": (("--audit-ratios", "0.6,1.2"), "--audit-ratios: '1.2' is no ratio; give shares between 0 and 1"),
    "literal": (("--audit-method", "suite/test_cells.py(x=open(1))"), "hyper-parameters are names and literal values"),
}


@pytest.mark.parametrize("kind", USAGE)
def test_wrong_options_end_with_one_line(checkout, kind):
    options, message = USAGE[kind]
    outcome = checkout.pytest("suite", *options, CUDA_VISIBLE_DEVICES="")
    assert outcome.code == 4, outcome.text
    assert len([line for line in outcome.lines if line.strip()]) == 1, outcome.text
    assert message in outcome.text


WRONG_TOML = {
    "syntax": ("version = 1", "version = = 1", "not valid TOML"),
    "unknown key": ("ratios = [0.5, 0.9]", "ratioz = [0.5]", "ratioz: unknown key. Did you mean 'ratios'?"),
    "type": ("epochs = 30", "epochs = 'many'", "pretrain.epochs: Input should be a valid integer"),
    "ratio": ("ratios = [0.5, 0.9]", "ratios = [0.5, 1.0]", "ratios: ratio 1 is outside (0, 1)"),
    "schedule": ('lr = "0:3e-3"', 'lr = "3e-3"', "prune.lr: '3e-3' is no learning-rate schedule: expected"),
}


@pytest.mark.parametrize("kind", WRONG_TOML)
def test_wrong_toml_names_file_key_and_expectation(checkout, kind):
    workers = ("-n2",) if kind == "type" else ()
    before, after, message = WRONG_TOML[kind]
    path = checkout.root / "protocols" / "workloads" / "lenet5-digits.toml"
    assert before in path.read_text()
    path.write_text(path.read_text().replace(before, after, 1))
    outcome = checkout.pytest("suite", *workers)
    assert outcome.code == 4, outcome.text
    assert len([line for line in outcome.lines if line.strip()]) == 1, outcome.text
    assert str(path) in outcome.text and message in outcome.text


def test_a_protocol_that_requires_an_unknown_rule_is_refused(checkout):
    path = checkout.root / "protocols" / "s3.2.toml"
    path.write_text(path.read_text().replace('"F321"', '"F312x"'))
    outcome = checkout.pytest("suite")
    assert outcome.code == 4, outcome.text
    assert f"{path}: requires: unknown rule 'F312x'. Did you mean 'F312'?" in outcome.text


def test_absent_data_and_absent_gpu_skip_with_a_reason_and_do_not_count_as_success(checkout):
    selection = "lenet5-mnist or resnet56-cifar10"
    outcome = checkout.pytest(
        "suite", "-k", selection, *SMOKE, "-n2", "-rs", "--audit-methods", "l1", "--audit-protocols", "s3.2,s4.1"
    )
    assert outcome.code == 3, outcome.text
    assert "INCOMPLETE: nothing was measured" in outcome.text
    assert "lenet5-mnist: MNIST needs a data folder: give --audit-data-root DIR --audit-download" in outcome.text
    assert "resnet56-cifar10 is GPU-sized and there is no CUDA device; add --audit-device cpu to insist" in outcome.text
    assert {row["status"] for row in results(checkout)["cells"]} == {"skipped"}
    # Beside something measured a skipped workload is no failure.
    outcome = checkout.pytest(
        "suite/test_cells.py", "-k", "(lenet5-mnist or lenet5-digits) and r0.5", *SMOKE, "--audit-methods", "l1",
        "--audit-protocols", "s3.2",
    )  # fmt: skip
    assert outcome.code == 0, outcome.text


def test_nothing_selected(checkout):
    """A ratio that there is not is named, with what there is."""
    outcome = checkout.pytest("suite", "-k", "lenet5-digits and r0.6")
    assert outcome.code == 5
    assert "pruneaudit: no ratio 0.6: lenet5-digits has 0.5, 0.9; --audit-ratios 0.6 adds" in outcome.text


def test_a_lost_report_never_ends_in_success(checkout):
    """A numpy scalar in record_property kills the xdist worker with its report, and pytest alone may then exit 0."""
    checkout.write(
        "suite/test_trap.py",
        "import numpy as np\n"
        "def test_trap(record_property):\n    record_property('value', np.float64(1.0))\n"
        "def test_fine(audit, request):\n    with audit.telling(request.node):\n        pass\n",
    )
    outcome = checkout.pytest("suite/test_trap.py", "-n2")
    assert outcome.code != 0, outcome.text
    # Where xdist hears of the error before the worker is gone, it ends loudly by itself, with the same status.
    if "INTERNALERROR" not in outcome.text and outcome.code == 3:
        assert "INCOMPLETE: 1 of 2 items were never reported: suite/test_trap.py::test_trap" in outcome.text


def test_a_crashing_method_costs_one_cell_and_is_run_once(checkout):
    """os._exit in a method kills its worker: the cell fails, the others are measured, the exit status says so."""
    write_method(checkout, "crash", "open('crashes', 'a').write('x'); import os; os._exit(1)")
    outcome = checkout.pytest(
        "suite/test_cells.py", *QUICK[1:], "--audit-protocols", "s3.2,s4.1", "--audit-methods", "l1,random",
        "--audit-method", "crash.py", "-n2",
    )  # fmt: skip
    assert outcome.code == 1, outcome.text
    status = {(row["protocol"], row["method"]): row["status"] for row in results(checkout)["cells"]}
    assert {key: value for key, value in status.items() if key[1] != "crash"} == dict.fromkeys(
        [("s3.2", "l1"), ("s3.2", "random"), ("s4.1", "l1"), ("s4.1", "random")], "ok"
    )
    assert {value for key, value in status.items() if key[1] == "crash"} <= {"missing", "failed"}


def test_stop_at_first_failure_and_last_failed(checkout):
    write_method(checkout, "bad", "raise ValueError('x')")
    arguments = (
        "suite/test_cells.py",
        *QUICK[1:],
        "--audit-protocols",
        "s3.2",
        "--audit-methods",
        "l1",
        "--audit-method",
        "bad.py",
    )
    outcome = checkout.python("-m", "pytest", *arguments, "-x")
    assert outcome.code == 1 and "1 failed" in outcome.text, outcome.text
    outcome = checkout.python("-m", "pytest", *arguments, "--lf")
    assert outcome.code == 1 and "1 failed" in outcome.text and "1 passed" not in outcome.text, outcome.text


def test_external_base_is_checked_evaluated_and_not_counted(checkout):
    import torch
    from safetensors.torch import load_file, save_file

    assert (
        checkout.pytest("suite/test_cells.py", *QUICK[1:], "--audit-methods", "l1", "--audit-protocols", "s3.2").code
        == 0
    )
    weights = next((checkout.ledger / "runs").glob("lenet5-digits-pretrain-*")) / "weights.safetensors"
    base = checkout.root / "mine.safetensors"
    base.write_bytes(weights.read_bytes())
    arguments = ("suite", *QUICK[1:], "--audit-methods", "l1,scratch", "--audit-protocols", "s3.2,sx-a", "--audit-base")
    outcome = checkout.pytest(*arguments, str(base), "-rs")
    assert outcome.code == 0, outcome.text
    record = next(record for record in Ledger(checkout.ledger).runs() if record.checkpoint)
    assert record.provenance == "external: pretraining cost not measured"
    assert record.epochs is None and record.training_macs is None and record.accuracy > 0
    verdicts = {row["rule"]: row for row in results(checkout)["findings"] if row["protocol"] == "sx-a"}
    assert verdicts["F801"]["verdict"] == "not measured"
    assert "external base model" in verdicts["F801"]["note"]
    # A file of another shape, and one that is no checkpoint: one line each.
    tensors = load_file(base)
    save_file(
        {**tensors, "conv1.weight": tensors["conv1.weight"][:3].contiguous()}, checkout.root / "small.safetensors"
    )
    checkout.write("text.safetensors", "hello")
    for name, code, message in (
        ("small.safetensors", 4, "tensor 'conv1.weight' has shape [3, 1, 5, 5], lenet5 needs [6, 1, 5, 5]"),
        ("text.safetensors", 4, "not a safetensors file or damaged"),
    ):
        outcome = checkout.pytest("suite/test_cells.py", *arguments[1:], name)
        assert outcome.code == code, outcome.text
        assert message in outcome.text and "Traceback" not in outcome.text
    planned = checkout.python(
        "-c",
        "from pruneaudit.cli import main; main()",
        "plan",
        "-k",
        "lenet5-digits",
        "--audit-base",
        "small.safetensors",
    )
    assert planned.code != 0 and "it is of another width" in planned.text and "Traceback" not in planned.text
    # The same weights in half precision, as a trainer's checkpoint: the report tells what was done to them.
    torch.save({"state_dict": {f"module.{key}": one.half() for key, one in tensors.items()}}, checkout.root / "h.pth")
    outcome = checkout.pytest(
        "suite/test_cells.py", *QUICK[1:], "--audit-methods", "l1", "--audit-protocols", "s3.2", "--audit-base", "h.pth"
    )
    assert outcome.code == 0 and "base h.pth" in outcome.text, outcome.text
    (said,) = [line for line in outcome.lines if line.startswith("pruneaudit: base h.pth for lenet5-digits: ")]
    assert "float16 cast to float32" in said, "told at start, not only in the report"
    told = "external: pretraining cost not measured; read from 'state_dict'; prefix 'module.' taken off; float16 cast"
    assert told in (checkout.report / "report.md").read_text()


def test_a_base_named_in_the_workload_is_kept_apart(checkout):
    arguments = ("suite/test_cells.py", *QUICK[1:], "--audit-methods", "l1", "--audit-protocols", "s3.2")
    assert checkout.pytest(*arguments).code == 0
    weights = next((checkout.ledger / "runs").glob("lenet5-digits-pretrain-*")) / "weights.safetensors"
    (checkout.root / "mine.safetensors").write_bytes(weights.read_bytes())
    path = checkout.root / "protocols" / "workloads" / "lenet5-digits.toml"
    path.write_text('base = "mine.safetensors"\n' + path.read_text())
    assert checkout.pytest(*arguments).code == 0
    (row,) = results(checkout)["cells"]
    assert [label[:4] for label in row["labels"]] == ["smok", "base"] and row["total_epochs"] is None
    assert len(Ledger(checkout.ledger).cells()) == 2


def test_damaged_weights_fail_their_cell_with_one_line(checkout):
    arguments = ("suite/test_cells.py", *QUICK[1:], "--audit-methods", "l1", "--audit-protocols", "s3.2")
    assert checkout.pytest(*arguments).code == 0
    weights = next((checkout.ledger / "runs").glob("lenet5-digits-pretrain-*")) / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    outcome = checkout.pytest(*(*arguments[:-1], "s4.1"))
    assert outcome.code == 1, outcome.text
    assert "the weights changed after the run wrote them; delete" in outcome.text and "Traceback" not in outcome.text
