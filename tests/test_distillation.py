"""Recovery with a teacher: its loss, its passes, who it is, and what the audit says of arms with one and without."""

import copy
import dataclasses
import itertools
import textwrap

import pytest
import torch
import torch.nn.functional as F
from court import LENET, Court, arm
from test_isolation import IsolatedCourt
from test_training import assert_same_weights, digits, kill_after, network
from torch import nn
from trainers import Killed

from pruneaudit.audit.catalogue import get_rule
from pruneaudit.catalog.cells import Cell, Comparison
from pruneaudit.catalog.discovery import Catalog
from pruneaudit.errors import MethodError
from pruneaudit.method.contract import FilterScore, Hooks, ScratchArm, refusal, taught
from pruneaudit.training.checkpoint import Checkpoint
from pruneaudit.training.distillation import Teacher, softened
from pruneaudit.training.loop import Trainer
from pruneaudit.training.many import train_many
from pruneaudit.training.metering import Meter, beside_the_network, training_macs
from pruneaudit.training.runs import Training
from pruneaudit.workloads.models import build
from pruneaudit.workloads.recipes import Distillation, Recipe
from pruneaudit.workloads.schema import Workload

torch.set_num_threads(1)

SOFT = Distillation(temperature=3.0, weight=0.7)
RECIPE = Recipe(epochs=2, lr="0:0.05,1:0.01", batch=32, momentum=0.9, weight_decay=5e-4, distillation=SOFT)


def teacher(seed=5, dtype=torch.float64, settings=SOFT):
    return Teacher(network(seed=seed, dtype=dtype), settings)


def by_hand(model, other, dataset, recipe):
    """A plain loop: probabilities of both networks, their divergence summed over classes and averaged over images."""
    optimiser = torch.optim.SGD(model.parameters(), lr=1.0, momentum=recipe.momentum, weight_decay=recipe.weight_decay)
    heat, share = recipe.distillation.temperature, recipe.distillation.weight
    for epoch in range(recipe.epochs):
        model.train()
        optimiser.param_groups[0]["lr"] = recipe.rate(epoch, 0)
        for images, labels in dataset.batches(0, "retrain", epoch, recipe.batch, torch.float64):
            logits = model(images)
            with torch.no_grad():
                soft = torch.softmax(other.eval()(images) / heat, dim=1)
            own = torch.softmax(logits / heat, dim=1)
            divergence = sum((row * (row.log() - mine.log())).sum() for row, mine in zip(soft, own, strict=True))
            loss = (1 - share) * F.cross_entropy(logits, labels) + share * heat**2 * divergence / len(labels)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()


# The loss


@pytest.mark.parametrize("parts", [1, 4], ids=["whole", "in-parts"])
def test_it_trains_as_a_plain_loop_does(parts):
    dataset, model, other = digits(), network(), network(seed=5)
    plain, given = copy.deepcopy(model), copy.deepcopy(other)
    if parts > 1:
        # Statistics of parts of a batch are others.
        model, plain = (nn.Sequential(one[0], *one[2:]) for one in (model, plain))
    recipe = RECIPE.model_copy(update={"accumulate": parts})
    with Meter(model) as meter:
        Trainer(model, dataset, recipe, 0, "retrain", meter, "fp64", teacher=Teacher(other, SOFT)).fit()
    by_hand(plain, given, dataset, recipe)
    for one, two in zip(model.parameters(), plain.parameters(), strict=True):
        assert float((one - two).detach().abs().max()) <= 1e-10
    assert_same_weights(other, given)
    assert meter.consumption.taught_samples == meter.consumption.training_samples == 200
    assert meter.consumption.scoring_samples == 0
    assert meter.consumption.settings["distillation"] == "the dense base teaches: temperature 3, weight 0.7"


def test_of_texts_the_mean_is_over_tokens():
    ours, theirs = (torch.randn(3, 7, 5, dtype=torch.float64) for _ in range(2))
    tokens = [
        softened(ours[text, :, [at]].T, theirs[text, :, [at]].T, 2.0)
        for text, at in itertools.product(range(3), range(5))
    ]
    assert float(softened(ours, theirs, 2.0)) == pytest.approx(float(sum(tokens)) / 15, rel=1e-12)
    assert float(softened(ours, ours, 2.0)) == 0.0


def test_soft_gradients_keep_their_share_when_the_temperature_rises():
    """Hinton et al., sec. 2.1: at high temperatures T² · KL is the squared difference of centred logits."""
    ours, theirs = (torch.randn(6, 10, dtype=torch.float64) for _ in range(2))
    centred = (ours - ours.mean(1, keepdim=True)) - (theirs - theirs.mean(1, keepdim=True))
    expected = centred.square().sum(1).mean() / (2 * 10)
    assert float(softened(ours, theirs, 1e4)) == pytest.approx(float(expected), rel=1e-3)


def test_a_killed_training_with_a_teacher_ends_bit_identical(tmp_path):
    def fit(seed, checkpoint=None, progress=None):
        model = network(seed=seed, dtype=torch.float32)
        options = {"checkpoint": checkpoint, "progress": progress, "teacher": teacher(dtype=torch.float32)}
        with Meter(model) as meter:
            run = Trainer(model, digits(), RECIPE, 0, "retrain", meter, **options)
            run.fit()
        return run

    whole, checkpoint = fit(0), Checkpoint(tmp_path / "state.safetensors", "cpu")
    with pytest.raises(Killed):
        fit(0, checkpoint, kill_after(1))
    resumed = fit(9, checkpoint)
    assert_same_weights(resumed.model, whole.model)
    assert resumed.meter.consumption == whole.meter.consumption


def test_a_recipe_and_its_teacher_go_together():
    for recipe, given in ((RECIPE, None), (RECIPE.model_copy(update={"distillation": None}), teacher())):
        with pytest.raises(ValueError, match="go together"):
            Trainer(network(), digits(), recipe, 0, "retrain", Meter(network()), teacher=given)


@pytest.mark.parametrize("backend", ["tiled", "grouped", "fused", "graphed"])
def test_backends_that_cannot_say_so(backend):
    dataset = digits(32)
    nets = [build("lenet5", 1, 10).double() for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    other = Teacher(build("lenet5", 1, 10).double(), SOFT)
    one, two = (Training(net, dataset, RECIPE, 0, "retrain", "fp64", teacher=other) for net in nets)
    (found,), (plain,) = train_many([one], backend), train_many([two], "torch")
    assert found.error is None and found.backend == "torch"
    assert found.reason == f"not {backend}: its recipe has distillation, which torch's loop alone does"
    assert_same_weights(*nets)
    assert found.consumption == plain.consumption


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"temperature": 0}, "greater than 0"),
        ({"weight": 0}, "greater than 0"),
        ({"weight": 1.1}, "less than or equal"),
    ],
)
def test_settings_have_bounds(settings, said):
    with pytest.raises(ValueError, match=said):
        Distillation(**settings)


def test_several_ranks_have_no_teacher():
    with pytest.raises(ValueError, match="one process trains with a teacher"):
        Recipe(epochs=1, lr="0:0.1", batch=32, ranks=2, distillation=SOFT)


def test_a_workload_states_no_teacher():
    known = Catalog().workload(LENET)
    content = {**dict(known), "retrain": {**dict(known.retrain), "distillation": {"temperature": 2}}}
    with pytest.raises(ValueError, match="a method declares its teacher"):
        Workload.model_validate(content)


# What a method declares


class Odd(FilterScore):
    """Declares what it is given."""

    name = "odd"

    def __init__(self, found=None):
        self.found = found

    def distillation(self):
        return self.found() if callable(self.found) else self.found

    def score(self, layer, task):
        return layer.weight.abs().flatten(1).sum(dim=1)


def test_what_is_no_declaration_is_refused_in_one_line():
    with pytest.raises(
        MethodError, match=r"method 'odd': distillation\(\) must return a Distillation or None, not float"
    ):
        taught(Odd(4.0))
    with pytest.raises(MethodError, match=r"method 'odd': distillation\(\): temperature: .*greater than 0"):
        taught(Odd(lambda: Distillation(temperature=-1)))


def test_who_has_a_teacher_trains():
    catalog = Catalog()
    workload, pt = catalog.workload(LENET), catalog.protocol("pt")
    assert refusal(Odd(SOFT), workload, pt) == "it trains, and pt compares what is only scored"
    assert refusal(Odd(), workload, pt) is None


def test_a_scratch_arm_has_none():
    class Fresh(ScratchArm):
        name = "scratch-taught"
        recipe = None

        def distillation(self):
            return SOFT

    catalog = Catalog()
    assert "from random weights" in refusal(Fresh(), catalog.workload(LENET), catalog.protocol("s3.2"))


# What is computed beside the network


@pytest.mark.parametrize("name", ["lenet5", "resnet20"])
def test_a_plain_step_computes_as_much_as_said(name):
    model, dataset = build(name, 1, 10), digits(32)
    each = training_macs(model, dataset.example())
    assert not any(parameter.grad is not None for parameter in model.parameters())
    recipe = Recipe(epochs=1, lr="0:0.01", batch=32)
    with Meter(model, example=dataset.example(), by_step=True) as meter:
        Trainer(model, dataset, recipe, 0, "retrain", meter).fit()
    assert meter.consumption.steps_macs == {"32": [3, 96 * each], "4": [1, 4 * each]}
    assert beside_the_network(meter.consumption.steps_macs, each) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        # 10 for each image, and 40 for each step whatever is in it.
        ({"8": [3, 3 * 120], "3": [1, 70]}, (16.0, 0.0)),
        # 10, and 5 for each image.
        ({"8": [3, 3 * 120], "3": [1, 45]}, (13.5, 0.5)),
        ({"8": [3, 3 * 120]}, (12.0, None)),
        ({}, (0.0, None)),
    ],
)
def test_what_goes_with_images_is_told_from_what_does_not(steps, expected):
    assert beside_the_network(steps, 10) == pytest.approx(expected)


def test_a_teachers_passes_are_the_harnesss():
    model, dataset = network(dtype=torch.float32), digits()
    each = training_macs(model, dataset.example())
    with Meter(model, example=dataset.example(), by_step=True) as meter:
        Trainer(model, dataset, RECIPE, 0, "retrain", meter, teacher=teacher(dtype=torch.float32)).fit(Hooks())
    assert beside_the_network(meter.consumption.steps_macs, each) == (0.0, 0.0)


# Campaigns


@pytest.fixture(scope="module")
def court(tmp_path_factory):
    root = tmp_path_factory.mktemp("taught")
    court = Court(root)
    for name in ("l1", "l1-distilled", "random-distilled"):
        court.measure(arm(name))
        assert court.cell(arm(name)).status == "ok"
    return court


def verdicts(court, left, right, protocol="s3.2"):
    comparison = Comparison(LENET, protocol, left, right, 0.5, (0,))
    return {rule: court.docket.finding(comparison, rule) for rule in ("F311", "F321", "F322", "F324")}


def test_the_record_says_what_the_teacher_did(court):
    found, plain = court.evidence(arm("l1-distilled")), court.evidence(arm("l1"))
    result = found.result
    assert found.base.run_id == plain.base.run_id and found.prune.kept == plain.prune.kept
    assert result.teacher == found.base.run_id and result.teacher in result.needs
    assert result.taught.digest == found.base.weights_digest
    assert result.taught.samples == result.samples == plain.result.samples
    assert result.taught.macs == result.samples * found.base.macs
    assert result.training_macs == plain.result.training_macs + result.taught.macs
    assert found.cell.total_macs == plain.cell.total_macs + result.taught.macs
    assert result.hyper_parameters["distillation"] == "the dense base teaches: temperature 4, weight 0.9"
    assert result.weights_digest != plain.result.weights_digest
    assert plain.result.taught is None and "distillation" not in plain.result.hyper_parameters
    # Its code is no part of the identity: the harness does it all.
    assert result.method_digest is None and result.own_images is None


def test_an_arm_with_a_teacher_is_not_comparable_with_one_without(court):
    found = verdicts(court, "l1", "l1-distilled")
    assert {rule: one.verdict for rule, one in found.items()} == {
        "F311": "pass", "F321": "pass", "F322": "fail", "F324": "fail",
    }  # fmt: skip
    assert found["F324"].required
    assert found["F324"].measured == {"l1": "no teacher", "l1-distilled": "the base, temperature 4, weight 0.9"}


def test_two_arms_with_the_same_teacher_are(court):
    found = verdicts(court, "l1-distilled", "random-distilled")
    assert {one.verdict for one in found.values()} == {"pass"}


@pytest.mark.parametrize("name", ["l1", "l1-distilled", "random-distilled"])
def test_no_rule_accuses_them(court, name):
    found = court.findings(arm(name))
    assert {finding.verdict for finding in found.values()} == {"pass"}
    (value,) = found["F514"].measured.values()
    result = court.evidence(arm(name)).result
    told = "no teacher" if result.taught is None else f"{result.taught.digest[:12]}, {result.samples} images"
    assert value == told


def test_equal_training_macs_include_the_teachers(court):
    """Its retraining is shorter, and F802 counts its teacher's passes: what is matched to scratch is all of it."""
    plans = {name: court.campaign.plan(Cell(LENET, "sx-b", name, 0.5, 0)) for name in ("l1", "l1-distilled")}
    plain, soft = (plans[name].trials[0].recipe for name in plans)
    small, dense = (court.evidence(arm("l1-distilled")).result.macs, court.evidence(arm("l1")).base.macs)
    assert soft.epochs == max(1, round(plain.epochs * 3 * small / (3 * small + dense))) <= plain.epochs
    assert plans["l1"].trials == court.campaign.plan(Cell(LENET, "sx-a", "l1", 0.5, 0)).trials
    # A cosine of fewer epochs would end at a larger rate.
    vit = court.campaign.plan(Cell("vit-digits", "sx-b", "l1-distilled", 0.5, 0)).trials[0].recipe
    usual = court.campaign.plan(Cell("vit-digits", "sx-b", "l1", 0.5, 0)).trials[0].recipe
    assert vit.last_rate(34) == pytest.approx(usual.last_rate(34), rel=1e-12)
    scratch, ours = arm("scratch", protocol="sx-b"), arm("l1-distilled", protocol="sx-b")
    court.measure(scratch)
    court.measure(ours)
    left, right = court.evidence(ours), court.evidence(scratch)
    found = get_rule("F802").check(left, right)
    assert found.verdict == "pass"
    assert f"{left.result.taught.macs} are passes of its teacher" in found.note
    assert get_rule("F604").check(left, right).verdict == "pass"
    lighter = left.result.model_copy(update={"training_macs": 3 * left.result.training_macs})
    assert get_rule("F802").check(dataclasses.replace(left, result=lighter), right).verdict == "fail"


BOTH = """
    from pruneaudit import Distillation, FilterScore, Hooks

    class Both(FilterScore):
        '''L1, with a teacher and a penalty of its own.'''

        in_retraining = "a penalty on weights"

        def distillation(self):
            return Distillation(temperature=2.0, weight=0.5)

        def score(self, layer, task):
            return layer.weight.abs().flatten(1).sum(dim=1)

        def retraining(self, task):
            rows = [one for one in task.model.parameters() if one.dim() == 4]
            return Hooks(penalty=lambda step: 1e-3 * sum((w.flatten(1) @ w.flatten(1).T).norm() for w in rows))
"""


def test_a_process_of_its_own_changes_no_bit(tmp_path):
    """A teacher goes over the line with the network where the method acts in retraining as well."""
    spec = tmp_path / "both.py"
    spec.write_text(textwrap.dedent(BOTH))
    courts = Court(tmp_path / "here", spec), IsolatedCourt(tmp_path / "apart", spec, isolate="always")
    for court in courts:
        court.measure(arm("both"))
        assert court.cell(arm("both")).status == "ok", court.cell(arm("both")).error
    found = [court.evidence(arm("both")) for court in courts]
    here, apart = (one.result for one in found)
    assert here.weights_digest == apart.weights_digest
    assert here.taught == apart.taught and here.taught.digest == found[0].base.weights_digest
    assert here.taught.samples == here.samples
    assert (here.own_images, here.own_per_image) == (apart.own_images, apart.own_per_image)
    assert here.own_images > 0 and here.own_per_image == 0
    assert {get_rule("F514").check(one).verdict for one in found} == {"pass"}
    assert found[0].result.hyper_parameters == found[1].result.hyper_parameters
