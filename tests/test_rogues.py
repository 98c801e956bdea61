"""Deliberately unfair methods, each run for real: the rule that must catch it does, and no other one accuses it.

``tests/rogues/`` holds the methods, one file each as a user would write it; here stands what each of them is caught by.
"""

import dataclasses
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from court import LENET, RESNET, Court, arm

from pruneaudit.audit.evidence import Case
from pruneaudit.audit.judge import judge
from pruneaudit.catalog.cells import Comparison
from pruneaudit.catalog.names import method_id
from pruneaudit.workloads.data import load

torch.set_num_threads(1)

ROGUES = Path(__file__).parent / "rogues"
#: Where a ledger is unless told otherwise; some rogues know.
LEDGER = Path(".pruneaudit") / "ledger"


@dataclass(frozen=True)
class Caught:
    """Rules that must fail, and what they say that was measured; several where one cannot be without the other."""

    rules: dict[str, str]
    workload: str = LENET
    ratios: tuple[float, ...] = (0.5,)


WATCHED = {
    # Weights that change in a loop of one's own change outside metered training, all of them.
    "own_loop": Caught(
        {
            "F501": "prune: 8 steps, declared 0",
            "F502": "conv1.bias, conv1.weight, conv2.bias and 3 more",
            "F507": "fc1.bias, fc1.weight, fc2.bias and 1 more",
        }
    ),
    "looks_ahead": Caught({"F501": "prune: 6 steps, declared 0"}),
    "trains_longer": Caught({"F501": "prune: 20 steps, declared 10"}),
    "undeclared_steps": Caught({"F501": "prune: 5 steps, declared 0"}),
    # Ten batches of 256 in two passes: the fifth of each has the 55 images that are left.
    "own_batch": Caught({"F501": "prune: 2158 images with gradients, declared 640"}),
    "gradient_scores": Caught({"F501": "prune: 640 images with gradients, declared 0"}),
    # 60 batches of 64; but for what the first layer's inputs would cost, whose gradient nobody wants.
    "trains_by_functions": Caught({"F501": "as much as the training of 3479 images in code of its own, where 540 are"}),
    "hand_updates": Caught({"F502": "conv1.weight, conv2.weight, conv3.weight"}),
    "swaps_weights": Caught({"F502": "conv1.weight, conv2.weight, conv3.weight"}),
    "drifting_norms": Caught({"F502": "layer1.0.bn1.num_batches_tracked, layer1.0.bn1.running_mean"}, workload=RESNET),
    "another_forward": Caught({"F504": ""}),
    "half_at_will": Caught({"F513": "2:4, "}),
    "trains_on_test": Caught({"F505": "640 held-out images"}),
    "shifted_test": Caught({"F505": "8 held-out images"}),
    "opens_dataset": Caught({"F505": "opened data: "}),
    "sharper_stem": Caught({"F507": "conv1.weight"}, workload=RESNET),
    "rescaled_classifier": Caught({"F507": "fc2.weight"}),
    # It has to look for the file before it can write it.
    "overwrites_base": Caught({"F508": " before, ", "F511": "ledger: "}),
    "unseeded": Caught({"F509": "other filters"}),
    # Nobody can tell in its first cell.
    "remembers": Caught({"F509": "other filters"}, ratios=(0.5, 0.9)),
    "remembers_training": Caught({"F509": "other filters"}, ratios=(0.5, 0.9)),
    "reads_test_name": Caught({"F509": "other filters"}),
    "trains_by_test_name": Caught({"F509": "other filters"}),
    "reads_rivals": Caught({"F511": "ledger: "}),
    "starts_program": Caught({"F511": "program: true"}),
    "forks": Caught({"F511": "program: os.fork"}),
    # A pass of the dense network, at three times the multiply-adds of the pruned one's.
    "hidden_teacher": Caught({"F514": "retrain: in code of its own it computes "}),
    "phones_home": Caught({"F511": "host: ('127.0.0.1', 9)"}),
}

#: Those that do not come to an end: the cell fails, and says why.
REFUSED = {
    "prunes_less": "method 'prunes-less' misses its target in layer 'conv1': keeps 4 of 6 filters; ratio 0.5",
    "random_wide": "method 'random-wide' misses its target in layer 'conv1': keeps 1 of 6 filters",
    "leaves_nan": "method 'leaves-nan' left values that are not finite in 'conv1.weight'",
    "other_data": "method 'other-data' replaced the data that it was given",
    "easy_labels": "method 'easy-labels' changed the data that it was given",
    "parametrised": "method 'parametrised' left another network than it was given",
}

#: Those whose trick comes to nothing, and what an honest method in their place is called.
HARMLESS = {"leaves_hooks": "l1"}

HONEST = [(name, protocol) for protocol in ("s3.2", "sx-b") for name in ("l1", "random", "greg-1", "tpp", "unpruned")]
HONEST += [("scratch", "s3.2"), ("scratch", "sx-b")]


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """A ledger with the base of both workloads and a rival."""
    root = tmp_path_factory.mktemp("bases")
    court = Court(root)
    court.measure(arm("l1"))
    court.measure(arm("l1", RESNET))
    assert court.cell(arm("l1")).status == court.cell(arm("l1", RESNET)).status == "ok"
    return root


@pytest.fixture
def root(bases, tmp_path, monkeypatch):
    """A copy of it where somebody who starts the suite here has it."""
    shutil.copytree(bases, tmp_path / LEDGER)
    monkeypatch.chdir(tmp_path)
    return tmp_path / LEDGER


def test_every_rogue_is_here():
    files = {path.stem for path in ROGUES.glob("*.py")} - {"__init__", "records"}
    assert files == {*WATCHED, *REFUSED, *HARMLESS}


@pytest.mark.parametrize("name", WATCHED)
def test_rogue_is_caught_by_its_rule_alone(root, name):
    expected = WATCHED[name]
    court = Court(root, ROGUES / f"{name}.py")
    *innocent, last = [arm(name, expected.workload, ratio=ratio) for ratio in expected.ratios]
    for earlier in innocent:
        assert {finding.verdict for finding in court.findings(earlier).values()} == {"pass"}
    findings = court.findings(last)
    assert court.cell(last).status == "ok"
    failed = {rule for rule, finding in findings.items() if finding.verdict == "fail"}
    assert failed == set(expected.rules), [finding.line for finding in findings.values()]
    assert {finding.verdict for rule, finding in findings.items() if rule not in failed} == {"pass"}
    for rule, text in expected.rules.items():
        (measured,) = findings[rule].measured.values()
        assert str(text) in str(measured)
        assert findings[rule].holds is False


def test_difference_of_masked_and_shrunk_is_a_number(root):
    court = Court(root, ROGUES / "another_forward.py")
    measured = court.findings(arm("another_forward"))["F504"].measured["another-forward"]
    assert isinstance(measured, float) and 1e-9 < measured < 10


@pytest.mark.parametrize("name", REFUSED)
def test_rogue_is_refused_and_its_cell_counts_as_failed(root, name):
    court = Court(root, ROGUES / f"{name}.py")
    court.measure(arm(name))
    cell = court.cell(arm(name))
    assert cell.status == "failed" and REFUSED[name] in cell.error and "\n" not in cell.error
    comparison = Comparison(LENET, "s3.2", "l1", method_id(name), 0.5, (0,))
    court.measure(arm("l1"))
    finding = court.docket.finding(comparison, "F607")
    assert (finding.verdict, finding.required) == ("fail", True)
    assert REFUSED[name] in finding.note
    assert finding.measured == {"l1": "1 attempted, 1 valid", method_id(name): "1 attempted, 0 valid"}
    # Nothing is known of how it behaved, and nothing is made up.
    assert {finding.verdict for finding in court.docket.findings(arm(name))} == {"incomplete"}
    assert {finding.verdict for finding in court.docket.findings(arm("l1")) if finding.required} == {"pass"}


@pytest.mark.parametrize("name", HARMLESS)
def test_what_a_method_hangs_on_the_network_stays_behind(root, name):
    court = Court(root, ROGUES / f"{name}.py")
    findings = court.findings(arm(name))
    assert {finding.verdict for finding in findings.values()} == {"pass"}
    court.measure(arm(HARMLESS[name]))
    rogue, honest = court.evidence(arm(name)), court.evidence(arm(HARMLESS[name]))
    assert rogue.prune.weights_digest == honest.prune.weights_digest
    assert rogue.result.weights_digest == honest.result.weights_digest
    assert rogue.cell.accuracy == honest.cell.accuracy


def test_nobody_goes_on_from_an_overwritten_base(root):
    court = Court(root, ROGUES / "overwrites_base.py")
    court.measure(arm("overwrites_base"))
    for name in ("random", "tpp"):
        court.measure(arm(name))
        cell = court.cell(arm(name))
        assert cell.status == "failed" and "the weights changed after the run wrote them" in cell.error
    # What the rogue itself measured started from the weights that were there before.
    rogue, honest = court.evidence(arm("overwrites_base")), court.evidence(arm("l1"))
    assert rogue.prune.parent_digest == honest.prune.parent_digest == rogue.base.weights_digest
    assert rogue.prune.weights_digest == honest.prune.weights_digest


def test_nobody_is_measured_with_data_that_a_method_changed(root):
    court = Court(root, ROGUES / "easy_labels.py")
    court.measure(arm("easy_labels"))
    court.measure(arm("random"))
    honest = court.evidence(arm("random"))
    assert honest.result.split_digest == honest.base.split_digest
    data = load(court.catalog.workload(LENET).data)
    assert len(set(data.test.labels.tolist())) == 10


def test_random_control_that_spares_wide_layers(root):
    """Such a choice does not get through a run (see ``random_wide``); a record of one is caught all the same."""
    court = Court(root)
    court.measure(arm("random"))
    fair = court.evidence(arm("random"))
    assert judged("F510", fair).verdict == "pass"
    # 83 % of the widest layer, 17 % of the narrowest: half of all filters.
    wide = {"conv1": [0], "conv2": list(range(6)), "conv3": list(range(100))}
    rogue = dataclasses.replace(fair, prune=fair.prune.model_copy(update={"kept": wide}))
    finding = judged("F510", rogue)
    assert finding.verdict == "fail" and finding.measured == {"random": "conv3 keeps 100 of 120"}
    assert judged("F503", rogue).verdict == "fail"


def judged(rule, evidence):
    subject = arm(evidence.cell.method)
    return judge(rule, Case(subject, {0: (evidence,)}))


@pytest.mark.parametrize(("name", "protocol"), HONEST, ids=lambda value: value)
def test_honest_methods_pass(root, name, protocol):
    court = Court(root)
    findings = court.findings(arm(name, protocol=protocol))
    assert {rule: finding.verdict for rule, finding in findings.items()} == dict.fromkeys(findings, "pass")
    watched = {rule for rule in findings if rule.startswith("F5")}
    if name == "scratch":
        assert watched == {"F501", "F506", "F512"}
    elif name == "unpruned":
        assert watched == {"F501", "F512"}
    else:
        expected = {"F501", "F502", "F503", "F504", "F505", "F507", "F508", "F509", "F511", "F512", "F513", "F514"}
        assert watched == expected | ({"F510"} if name == "random" else set())
