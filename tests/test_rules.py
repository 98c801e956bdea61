"""Every rule: a pair of arms that passes it, and changes of what it measures that it alone catches."""

import copy
import subprocess
import sys
from dataclasses import replace

import pytest
from builders import changed, evidence, failed_cell, store
from hypothesis import given, settings
from hypothesis import strategies as st

from pruneaudit.audit.catalogue import Outcome, get_rule, rule, rules
from pruneaudit.audit.evidence import Evidence
from pruneaudit.audit.judge import Finding, judge
from pruneaudit.catalog import Catalog
from pruneaudit.cells import Cell, Comparison
from pruneaudit.errors import ConfigError
from pruneaudit.ledger import Ledger

PROTOCOLS = Catalog().protocols
#: The protocol that an arm is built for, by rule: the strictest that requires it.
SETUP = dict.fromkeys(("F101", "F102", "F103", "F201", "F311", "F321", "F322", "F411", "F421"), "s4.2") | {
    "F312": "s3.1",
    "F314": "s3.1",
    "F801": "sx-a",
    "F802": "sx-b",
}


def arms(protocol):
    """A fair pair under a protocol."""
    trials = 3 if PROTOCOLS[protocol].retraining == "tuned" else 1
    rival = "tpp" if PROTOCOLS[protocol].compare == "pruning" else "scratch"
    return evidence("l1", protocol, trials=trials), evidence(rival, protocol, trials=trials)


def with_result(arm, **fields):
    """The arm with another result run (it stays among the trials)."""
    result = changed(arm.result, **fields)
    trials = tuple(result if run == arm.result else run for run in arm.trials)
    return replace(arm, result=result, trials=trials)


def with_run(arm, name, **fields):
    """The arm with another base, top-up or prune run."""
    return replace(arm, **{name: changed(getattr(arm, name), **fields)})


def with_trial(arm, number, **fields):
    """The arm with another retraining (which is not its result)."""
    trials = list(arm.trials)
    trials[number] = changed(trials[number], **fields)
    assert trials[number].run_id != arm.result.run_id
    return replace(arm, trials=tuple(trials))


#: For each rule: one changed measurement of the first arm each, which breaks it.
BREAKS = {
    "F101": {
        "retrained-on-another-split": lambda arm: with_result(arm, split_digest="00" * 32),
        "base-of-another-split": lambda arm: with_run(arm, "base", split_digest="00" * 32),
        "pruned-on-another-split": lambda arm: with_run(arm, "prune", split_digest="00" * 32),
    },
    "F102": {
        "architecture": lambda arm: with_result(arm, model="resnet20"),
        "classes": lambda arm: with_result(arm, classes=100),
        "dense-parameters": lambda arm: with_result(arm, base_params=101),
        "dense-macs": lambda arm: with_result(arm, base_macs=1001),
    },
    "F103": {
        "more": lambda arm: with_result(arm, macs=round(arm.result.macs * 1.03)),
        "fewer": lambda arm: with_result(arm, macs=round(arm.result.macs * 0.97)),
    },
    "F201": {
        "topped-up-from-another-base": lambda arm: with_run(arm, "topup", parent_digest="00" * 32),
        "pruned-from-another-base": lambda arm: replace(
            arm,
            topup=None,
            prune=changed(arm.prune, parent_digest="00" * 32, epochs=3.0, learning_rates=[(0.01, 4), (0.001, 2)]),
        ),
    },
    "F311": {
        "one-more": lambda arm: with_result(arm, epochs=4.0),
        "one-batch-less": lambda arm: with_result(arm, epochs=2.98),
    },
    "F312": {
        "another-rate": lambda arm: with_trial(arm, 1, learning_rates=[(0.02, 4), (0.001, 2)]),
        "one-trial-less": lambda arm: replace(arm, trials=arm.trials[:-1]),
        "one-trial-twice": lambda arm: replace(arm, trials=(*arm.trials, arm.trials[1])),
    },
    "F314": {
        "another-trial-was-better-on-validation": lambda arm: with_trial(arm, 2, validation_accuracy=99.0),
        "reported-another-trial": lambda arm: replace(
            arm, result=changed(arm.trials[2], learning_rates=arm.result.learning_rates)
        ),
    },
    "F321": {
        "another-rate": lambda arm: with_result(arm, learning_rates=[(0.02, 4), (0.001, 2)]),
        "later-drop": lambda arm: with_result(arm, learning_rates=[(0.01, 5), (0.001, 1)]),
        "one-step-more": lambda arm: with_result(arm, learning_rates=[(0.01, 4), (0.001, 3)]),
        "never-trained": lambda arm: with_result(arm, learning_rates=[]),
    },
    "F322": {
        "batch": lambda arm: with_result(arm, hyper_parameters={**arm.result.hyper_parameters, "batch": 32}),
        "weight-decay": lambda arm: with_result(
            arm, hyper_parameters={**arm.result.hyper_parameters, "weight_decay": 0.0}
        ),
        "one-more": lambda arm: with_result(
            arm, hyper_parameters={**arm.result.hyper_parameters, "label_smoothing": 0.1}
        ),
    },
    "F411": {
        "longer-pruning": lambda arm: with_run(arm, "prune", epochs=1.0),
        "shorter-top-up": lambda arm: with_run(arm, "topup", epochs=2.0),
    },
    "F421": {
        "another-rate": lambda arm: with_run(arm, "topup", learning_rates=[(0.02, 4), (0.001, 2)]),
        "more-steps": lambda arm: with_run(arm, "prune", learning_rates=[(0.001, 1)]),
    },
    "F801": {
        "longer-base": lambda arm: with_run(arm, "base", epochs=4.0),
        "longer-pruning": lambda arm: with_run(arm, "prune", epochs=1.0),
        "longer-retraining": lambda arm: with_result(arm, epochs=4.0),
    },
    "F802": {
        "dearer-base": lambda arm: with_run(arm, "base", training_macs=2 * arm.base.training_macs),
        "dearer-scoring": lambda arm: with_run(arm, "prune", training_macs=10**6),
        "cheaper-top-up": lambda arm: with_run(arm, "topup", training_macs=0),
    },
}
CASES = [(rule_id, name) for rule_id, changes in BREAKS.items() for name in changes]


def failing(left, right, protocol):
    """Rules that fail on a pair: of all protocols between pruning arms; against scratch of the pair's own protocol.

    A scratch arm has equal epochs or equal MACs, not both.
    """
    asked = set(PROTOCOLS[protocol].requires)
    if PROTOCOLS[protocol].compare == "pruning":
        asked = {name for other in PROTOCOLS.values() if other.compare == "pruning" for name in other.requires}
    return {rule_id for rule_id in asked if get_rule(rule_id).check(left, right).verdict == "fail"}


def test_every_rule_has_a_passing_pair_and_a_failing_one():
    assert set(BREAKS) == set(SETUP) == set(rules())
    assert all(BREAKS.values())


def test_every_rule_is_required_and_every_requirement_is_a_rule():
    assert {rule_id for protocol in PROTOCOLS.values() for rule_id in protocol.requires} == set(rules())
    assert all(rule_id in PROTOCOLS[protocol].requires for rule_id, protocol in SETUP.items())


@pytest.mark.parametrize("protocol", sorted(PROTOCOLS))
def test_a_fair_pair_passes_everything_that_its_protocol_requires(protocol):
    left, right = arms(protocol)
    for rule_id in PROTOCOLS[protocol].requires:
        assert get_rule(rule_id).check(left, right).verdict == "pass", rule_id
        assert get_rule(rule_id).check(right, left).verdict == "pass", rule_id


@pytest.mark.parametrize(("rule_id", "name"), CASES, ids=[f"{rule_id}-{name}" for rule_id, name in CASES])
def test_a_broken_quantity_is_caught_by_its_rule_alone(rule_id, name):
    left, right = arms(SETUP[rule_id])
    assert failing(left, right, SETUP[rule_id]) == set()
    rogue = BREAKS[rule_id][name](left)
    # The learning rates of the reported run are a trial's, too: the tuning budget differs where they do. No protocol
    # asks for both.
    related = {"F312"} if rule_id == "F321" else set()
    for pair in ((rogue, right), (right, rogue)):
        assert failing(*pair, SETUP[rule_id]) - related == {rule_id}


@pytest.mark.parametrize(("rule_id", "name"), CASES, ids=[f"{rule_id}-{name}" for rule_id, name in CASES])
def test_a_finding_shows_both_measured_values(rule_id, name):
    left, right = arms(SETUP[rule_id])
    check = get_rule(rule_id).check
    outcome, swapped = check(BREAKS[rule_id][name](left), right), check(right, BREAKS[rule_id][name](left))
    assert (outcome.left, outcome.right) == (swapped.right, swapped.left)
    assert outcome.left != outcome.right
    assert outcome.left is not None and outcome.right is not None


@pytest.mark.parametrize("rule_id", sorted(SETUP))
def test_rules_are_pure(rule_id):
    left, right = arms(SETUP[rule_id])
    before = copy.deepcopy((left, right))
    check = get_rule(rule_id).check
    assert check(left, right) == check(left, right)
    assert (left, right) == before


@pytest.mark.parametrize("rule_id", sorted(SETUP))
def test_rules_explain_themselves(rule_id):
    known = get_rule(rule_id)
    assert known.id == rule_id and known.claim and known.explanation
    assert "\n" not in known.claim + known.source + known.explanation
    # A citation: who, when, where.
    assert known.source.split()[0] == "Wang" and "2023" in known.source


# Tolerances and missing measurements


@pytest.mark.parametrize(
    ("ours", "verdict"), [(1000, "pass"), (980, "pass"), (979, "fail"), (1020, "pass"), (1021, "fail")]
)
def test_macs_match_within_two_percent_of_the_larger(ours, verdict):
    left, right = (with_result(arm, macs=macs) for arm, macs in zip(arms("s3.2"), (ours, 1000), strict=True))
    for pair in ((left, right), (right, left)):
        assert get_rule("F103").check(*pair).verdict == verdict


@pytest.mark.parametrize(
    ("apart", "verdict"), [(0.5, "pass"), (-0.5, "pass"), (0.501, "fail"), (-0.501, "fail"), (1, "fail")]
)
def test_total_epochs_match_within_half_an_epoch(apart, verdict):
    left, right = arms("sx-a")
    left = with_run(left, "base", epochs=left.base.epochs + apart)
    for pair in ((left, right), (right, left)):
        assert get_rule("F801").check(*pair).verdict == verdict


@pytest.mark.parametrize(
    ("share", "verdict"), [(0, "pass"), (0.5, "pass"), (-0.5, "pass"), (0.501, "fail"), (-0.501, "fail")]
)
def test_total_macs_match_within_half_an_epoch_of_the_pruned_network(share, verdict):
    left, right = arms("sx-b")
    epoch = right.result.training_macs / right.result.epochs
    assert epoch == left.result.training_macs / left.result.epochs
    left = with_run(left, "base", training_macs=left.base.training_macs + round(share * epoch))
    for pair in ((left, right), (right, left)):
        assert get_rule("F802").check(*pair).verdict == verdict


@settings(deadline=None, max_examples=100)
@given(apart=st.integers(-400_000, 400_000))
def test_total_macs_pass_exactly_within_the_tolerance(apart):
    left, right = arms("sx-b")
    left = with_run(left, "base", training_macs=left.base.training_macs + apart)
    tolerance = right.result.training_macs / right.result.epochs / 2
    assert (get_rule("F802").check(left, right).verdict == "pass") == (abs(apart) <= tolerance)


@pytest.mark.parametrize(("rule_id", "field"), [("F801", "epochs"), ("F802", "training_macs")])
def test_an_external_base_is_not_measured(rule_id, field):
    left, right = arms(SETUP[rule_id])
    external = with_run(left, "base", provenance="external", **{field: None})
    for pair in ((external, right), (right, external)):
        outcome = get_rule(rule_id).check(*pair)
        assert outcome.verdict == "not measured" and "external base model" in outcome.note
    # What can be measured all the same is still judged.
    assert failing(external, right, SETUP[rule_id]) == set()


def test_an_arm_without_a_base_digest_is_not_measured():
    left, right = arms("s3.2")
    assert get_rule("F201").check(with_run(left, "topup", parent_digest=None), right).verdict == "not measured"


def test_a_tie_on_validation_goes_to_the_first_of_the_grid():
    left, right = arms("s3.1")
    tied = with_trial(left, 2, validation_accuracy=left.result.validation_accuracy)
    assert get_rule("F314").check(tied, right).verdict == "pass"
    assert get_rule("F314").check(replace(tied, result=tied.trials[2]), right).verdict == "fail"


def test_the_same_rates_noted_in_other_pieces_are_the_same():
    left, right = arms("s4.2")
    pieces = with_result(left, learning_rates=[(0.01, 1), (0.01, 3), (0.001, 2)])
    assert get_rule("F321").check(pieces, right).verdict == "pass"
    moved = replace(
        left,
        topup=changed(left.topup, learning_rates=[(0.01, 4)]),
        prune=changed(left.prune, learning_rates=[(0.001, 2)]),
    )
    assert get_rule("F421").check(moved, right).verdict == "pass"


# The catalogue


def test_an_id_is_taken_once():
    with pytest.raises(ValueError, match="F801 is registered twice"):
        rule("F801", "claim", "source")(lambda left, right: Outcome("pass", 1, 1))
    assert get_rule("F801").claim != "claim"


def test_an_unknown_id_names_the_nearest():
    with pytest.raises(ConfigError, match=r"unknown rule 'F81'\. Did you mean 'F801'\?"):
        get_rule("F81")


@pytest.mark.parametrize("module", ["pruneaudit.audit.rules", "pruneaudit.audit.judge", "pruneaudit.audit.evidence"])
def test_rules_and_judge_import_no_torch(module):
    code = f"import sys, {module}; from pruneaudit.audit.catalogue import rules; rules(); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


# The judge

PAIR = Comparison("lenet5-digits", "s3.2", "l1", "tpp", 0.5, (0, 1, 2))


@pytest.fixture
def ledger(tmp_path):
    return Ledger(tmp_path / "ledger")


def measured(ledger, **rogues):
    """Cells of a comparison over its seeds; ``l1_1=...`` changes the result of l1 at seed 1."""
    known = {}
    for seed in PAIR.seeds:
        for method in (PAIR.left, PAIR.right):
            arm = evidence(method, "s3.2", seed)
            fields = rogues.get(f"{method}_{seed}")
            record = store(ledger, with_result(arm, **fields) if fields else arm)
            known[record.cell] = record
    return known


def test_a_comparison_passes_when_every_seed_does(ledger):
    known = measured(ledger)
    finding = judge(PAIR, "F321", known.get, ledger, ("smoke",))
    assert (finding.verdict, finding.seed, finding.seeds) == ("pass", 0, (0, 1, 2))
    assert finding.measured == {"l1": "0.01×4, 0.001×2", "tpp": "0.01×4, 0.001×2"}
    assert finding.labels == ("smoke",)
    assert finding.arms == ("l1", "tpp")
    runs = [run for method in ("l1", "tpp") for run in known[Cell("lenet5-digits", "s3.2", method, 0.5, 0)].runs]
    assert finding.runs == tuple(dict.fromkeys(runs))
    assert Finding.model_validate_json(finding.model_dump_json()) == finding


def test_one_bad_seed_fails_the_comparison_and_its_values_are_shown(ledger):
    bad = {"learning_rates": [(0.5, 6)]}
    finding = judge(PAIR, "F321", measured(ledger, tpp_1=bad, tpp_2=bad).get, ledger)
    assert (finding.verdict, finding.seed) == ("fail", 1)
    assert finding.measured == {"l1": "0.01×4, 0.001×2", "tpp": "0.5×6"}
    assert finding.line == (
        "F321 Same retraining learning rate at every step: fail, seed 1: l1: 0.01×4, 0.001×2; tpp: 0.5×6"
    )


def test_a_failed_cell_makes_the_comparison_incomplete(ledger):
    known = measured(ledger)
    cell = Cell("lenet5-digits", "s3.2", "tpp", 0.5, 1)
    known[cell] = failed_cell(cell, "run failed: out of memory")
    finding = judge(PAIR, "F321", known.get, ledger)
    assert (finding.verdict, finding.seed) == ("incomplete", 1)
    assert finding.note == f"{cell.id}: run failed: out of memory"
    assert finding.measured == {"l1": None, "tpp": None} and finding.runs == ()


def test_a_missing_cell_makes_the_comparison_incomplete(ledger):
    known = measured(ledger)
    cell = Cell("lenet5-digits", "s3.2", "l1", 0.5, 2)
    del known[cell]
    finding = judge(PAIR, "F103", known.get, ledger)
    assert (finding.verdict, finding.seed, finding.note) == ("incomplete", 2, f"{cell.id}: not measured")


def test_a_failure_is_worse_than_what_is_incomplete(ledger):
    known = measured(ledger, l1_2={"macs": 300})
    del known[Cell("lenet5-digits", "s3.2", "l1", 0.5, 0)]
    assert (judge(PAIR, "F103", known.get, ledger).verdict, judge(PAIR, "F103", known.get, ledger).seed) == ("fail", 2)
    assert judge(PAIR, "F101", known.get, ledger).verdict == "incomplete"


def test_not_measured_is_worse_than_a_pass_and_better_than_incomplete(ledger):
    known = measured(ledger, l1_1={"epochs": None})
    assert (judge(PAIR, "F311", known.get, ledger).verdict, judge(PAIR, "F311", known.get, ledger).seed) == (
        "not measured",
        1,
    )
    del known[Cell("lenet5-digits", "s3.2", "l1", 0.5, 2)]
    assert judge(PAIR, "F311", known.get, ledger).verdict == "incomplete"


def test_an_unknown_rule_is_refused(ledger):
    with pytest.raises(ConfigError, match="unknown rule"):
        judge(PAIR, "F999", measured(ledger).get, ledger)


@pytest.mark.parametrize("method", ["l1", "scratch"])
def test_evidence_is_read_from_the_ledger(ledger, method):
    arm = evidence(method, trials=3 if method == "l1" else 1)
    store(ledger, arm)
    assert Evidence.read(arm.cell, Ledger(ledger.root)) == arm


def test_a_scratch_arm_has_no_base_even_where_its_cell_names_one(ledger):
    arm, pruned = evidence("scratch", "sx-a"), evidence("l1", "sx-a")
    store(ledger, pruned)
    store(ledger, arm)
    cell = arm.cell.model_copy(update={"base": pruned.base.run_id})
    found = Evidence.read(cell, ledger)
    assert found.base is None and found.stages == [arm.result] and found.pruning_stage == []
