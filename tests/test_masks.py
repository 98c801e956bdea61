"""Single weights that were removed stay removed: training, ledger, counts, scratch arms and rules."""

import shutil
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from builders import changed
from small import BATCH, few_digits, network, prune
from trainers import Killed

from pruneaudit.audit.catalogue import get_rule, required
from pruneaudit.audit.evidence import Case
from pruneaudit.audit.judge import judge
from pruneaudit.campaign.executors.local import LocalExecutor
from pruneaudit.campaign.planner import Campaign
from pruneaudit.campaign.stages import Stages
from pruneaudit.catalog.cells import Arm, Cell, Comparison
from pruneaudit.catalog.discovery import Catalog, content_root
from pruneaudit.catalog.settings import Settings
from pruneaudit.ledger.records import VOLATILE
from pruneaudit.ledger.store import Ledger
from pruneaudit.measure.accuracy import evaluate
from pruneaudit.pruning import shapes
from pruneaudit.pruning.removal import thinned
from pruneaudit.streams import generator
from pruneaudit.training.loop import Hooks, Trainer
from pruneaudit.training.metering import Meter
from pruneaudit.training.precision import place
from pruneaudit.training.runtime import Runtime
from pruneaudit.workloads.data import load
from pruneaudit.workloads.models.initialise import initialise
from pruneaudit.workloads.recipes import Recipe, steps_per_epoch

CATALOG = Catalog()
WORKLOAD = CATALOG.workload("lenet5-digits").scaled("smoke")
MASKED = ("magnitude-global", "magnitude-layer", "lottery-ticket", "lottery-ticket-iterative", "lottery-ticket-rewind")
METHODS = (*MASKED, "l1-global", "scratch-of-magnitude-global", "scratch-of-l1-global")
#: Pixels that a weight is applied to, by hand: LeNet-5 on 32 x 32 images.
PIXELS = {"conv1": 28 * 28, "conv2": 10 * 10, "conv3": 1, "fc1": 1, "fc2": 1}
LONGER = {"epochs": 4, "lr": "0:0.05,2:0.01", "weight_decay": 5e-3}


def campaign_at(root, catalog=CATALOG):
    ledger = Ledger(root)
    executor = LocalExecutor(ledger, Stages(ledger, catalog, Runtime()), "session")
    return Campaign(catalog, ledger, Settings("smoke"), executor)


def cell(method):
    return Cell(WORKLOAD.name, "s3.2", method, 0.9, 0)


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """One cell of each method, trained in the smoke budget."""
    campaign = campaign_at(tmp_path_factory.mktemp("real"))
    for method in METHODS:
        assert campaign.obtain(cell(method)).error == ""
    return campaign


def result_of(campaign, method):
    return campaign.ledger.get(campaign.obtain(cell(method)).result)


def pruned_by(campaign, method):
    return campaign.ledger.get(campaign.obtain(cell(method)).prune)


def split(campaign, run):
    """Weights and masks of a run."""
    tensors = campaign.ledger.weights(run)
    masks = {name.removeprefix("mask:"): tensors.pop(name) for name in list(tensors) if name.startswith("mask:")}
    return tensors, masks


def assert_same_tensors(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


def assert_removed(tensors, masks):
    for name, mask in masks.items():
        assert not tensors[f"{name}.weight"][~mask].any(), name


# Training


def masked_training(name, recipe, masks=None, hooks=None):
    """Train a thinned float64 network with the harness, and again with a naive loop."""
    model = network(name)
    masks = masks or prune("magnitude-global", name, model, ratio=0.9).answer.masks
    ours, plain = (thinned(model, masks) for _ in range(2))
    dataset = few_digits(name)
    with Meter(ours) as meter:
        history = Trainer(ours, dataset, recipe, 0, "retrain", meter, "fp64", masks=masks).fit(hooks and hooks(ours))
    optimiser = torch.optim.SGD(
        plain.parameters(), 0.1, recipe.momentum, weight_decay=recipe.weight_decay, nesterov=recipe.nesterov
    )
    step = 0
    for epoch in range(recipe.epochs):
        plain.train()
        for images, labels in dataset.batches(0, "retrain", epoch, recipe.batch, torch.float64):
            optimiser.param_groups[0]["lr"] = recipe.rate(epoch, step)
            optimiser.zero_grad()
            F.cross_entropy(plain(images), labels).backward()
            optimiser.step()
            with torch.no_grad():
                for layer, mask in masks.items():
                    plain.get_parameter(f"{layer}.weight").mul_(mask)
            step += 1
    return ours, plain, masks, history


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("name", ["lenet5", "resnet20"])
def test_masked_training_equals_weights_times_masks_after_every_step(name, nesterov):
    recipe = Recipe(epochs=5, lr="0:0.02,3:0.005", batch=BATCH, weight_decay=5e-3, nesterov=nesterov)
    ours, plain, masks, history = masked_training(name, recipe)
    for (key, tensor), other in zip(ours.state_dict().items(), plain.state_dict().values(), strict=True):
        torch.testing.assert_close(tensor, other, rtol=1e-10, atol=1e-10, msg=key)
    assert history.nonzero == [sum(int(mask.sum()) for mask in masks.values())] * 5


def test_removed_weights_are_zero_after_every_step():
    recipe = Recipe(epochs=2, lr="0:0.05", batch=BATCH, weight_decay=5e-3)
    masks = prune("magnitude-global", "lenet5", network("lenet5"), ratio=0.9).answer.masks
    steps = []

    def hooks(model):
        def look(step):
            assert_removed(model.state_dict(), masks)
            assert any(bool(parameter.grad.any()) for parameter in model.parameters())
            steps.append(step)

        return Hooks(after_step=look)

    masked_training("lenet5", recipe, masks, hooks)
    assert steps == list(range(6))


def test_weights_that_a_hook_brings_back_are_counted():
    recipe = Recipe(epochs=3, lr="0:0.01", batch=BATCH)
    masks = prune("magnitude-global", "lenet5", network("lenet5"), ratio=0.9).answer.masks

    def hooks(model):
        def revive(step):
            if step >= 3:
                with torch.no_grad():
                    model.conv2.weight[~masks["conv2"]] = 0.5

        return Hooks(after_step=revive)

    *_, history = masked_training("lenet5", recipe, masks, hooks)
    allowed = sum(int(mask.sum()) for mask in masks.values())
    assert history.nonzero == [allowed, *[allowed + int((~masks["conv2"]).sum())] * 2]


@pytest.mark.parametrize("nesterov", [False, True])
def test_removed_weights_stay_zero_through_retraining(real, nesterov):
    (planned,) = real.plan(cell("magnitude-global")).trials
    recipe = planned.recipe.model_copy(update={**LONGER, "nesterov": nesterov})
    run = real.executor.stages.execute(planned.model_copy(update={"recipe": recipe}))
    tensors, masks = split(real, run)
    assert_removed(tensors, masks)
    assert run.nonzero == [sum(run.stay.values())] * 4
    settings = run.hyper_parameters
    assert (settings["masks"], settings["momentum"], settings["weight_decay"]) == ("held at zero", 0.9, 5e-3)
    before, _ = split(real, pruned_by(real, "magnitude-global"))
    assert all(bool((tensors[name] != before[name]).any()) for name in before), "the others are trained"


@pytest.mark.parametrize("stage", ["retrain", "scratch"])
def test_a_killed_masked_training_ends_bit_identical(real, tmp_path, stage, monkeypatch):
    # Its epochs are over sooner than a snapshot is due.
    monkeypatch.setattr("pruneaudit.campaign.stages._SAVE_ALONE", 0.0)
    method = {"retrain": "magnitude-global", "scratch": "scratch-of-magnitude-global"}[stage]
    (planned,) = real.plan(cell(method)).trials
    # Only its own rate makes it another run than those of other tests.
    recipe = planned.recipe.model_copy(update={**LONGER, "lr": "0:0.04,2:0.01"})
    spec = planned.model_copy(update={"recipe": recipe})
    assert spec.stage == stage
    shutil.copytree(real.ledger.root, tmp_path / "ledger")

    def kill(done, total, accuracy):
        if done == 2:
            raise Killed

    killed = campaign_at(tmp_path / "ledger")
    with pytest.raises(Killed):
        killed.executor.stages.execute(spec, kill)
    again, whole = (campaign.executor.stages.execute(spec) for campaign in (killed, real))
    assert (again.resumed, whole.resumed) == (2, 0)
    assert again.weights_digest == whole.weights_digest
    assert again.model_dump(exclude=set(VOLATILE)) == whole.model_dump(exclude=set(VOLATILE))
    assert len(again.nonzero) == 4


# What is recorded


@pytest.mark.parametrize("method", [*MASKED, "scratch-of-magnitude-global"])
def test_macs_and_parameters_count_what_is_not_zero(real, method):
    run = result_of(real, method)
    tensors, masks = split(real, run)
    names = [name.removesuffix(".weight") for name in tensors if name.endswith(".weight")]
    left = {name: int(tensors[f"{name}.weight"].count_nonzero()) for name in names}
    assert run.stay == {name: left[name] for name in masks} and set(names) - set(masks) == {"fc2"}
    assert run.macs == run.macs_recounted == sum(PIXELS[name] * count for name, count in left.items())
    biases = sum(tensor.numel() for name, tensor in tensors.items() if name.endswith(".bias"))
    assert run.params == sum(left.values()) + biases
    dense = shapes.shape(WORKLOAD)
    assert (run.executed_macs, run.base_macs, run.base_params) == (dense.macs, dense.macs, dense.params)
    assert run.granularity == "weight" and run.nonzero[-1] == sum(run.stay.values())
    assert real.obtain(cell(method)).speedup == run.speedup == dense.macs / run.macs > 2


def test_a_smaller_network_executes_what_it_counts(real):
    run = result_of(real, "l1-global")
    assert run.executed_macs is None and not run.stay and not run.nonzero and "masks" not in run.hyper_parameters
    assert run.macs == shapes.shape_of(WORKLOAD, {name: len(kept) for name, kept in run.kept.items()}).macs


@pytest.mark.parametrize("method", MASKED)
def test_masks_travel_with_the_weights(real, method):
    pruned, result = pruned_by(real, method), result_of(real, method)
    (before, masks), (after, same) = split(real, pruned), split(real, result)
    assert masks.keys() == PIXELS.keys() - {"fc2"} and all(mask.dtype == torch.bool for mask in masks.values())
    assert_same_tensors(masks, same)
    assert_removed(before, masks)
    assert_removed(after, masks)
    assert pruned.stay == {name: int(mask.sum()) for name, mask in masks.items()}
    assert pruned.kept == {}


def test_magnitude_masks_are_those_of_the_base_model(real):
    record = real.obtain(cell("magnitude-global"))
    base = real.ledger.weights(real.ledger.get(record.base))
    tensors, masks = split(real, pruned_by(real, "magnitude-global"))
    for name, mask in masks.items():
        weight = base[f"{name}.weight"]
        assert torch.equal(tensors[f"{name}.weight"], weight * mask)
        assert weight[mask].abs().min() > 0
    # One threshold: whatever stays is larger than whatever goes, but for the best of each layer.
    stays = torch.cat([base[f"{name}.weight"][mask] for name, mask in masks.items() if mask.sum() > 1])
    gone = torch.cat([base[f"{name}.weight"][~mask] for name, mask in masks.items()])
    assert stays.abs().min() >= gone.abs().max()


# Lottery tickets through the stages


def fresh(*stream):
    model = shapes.dense_network(WORKLOAD)
    initialise(model, generator(0, *stream, "initialise"))
    return model


@pytest.mark.parametrize("method", ["lottery-ticket", "lottery-ticket-iterative"])
def test_a_ticket_has_the_weights_that_the_base_model_started_from(real, method):
    tensors, masks = split(real, pruned_by(real, method))
    assert_same_tensors(tensors, thinned(fresh("pretrain"), masks).state_dict())


def test_one_shot_tickets_have_one_set_of_masks(real):
    _, masks = split(real, pruned_by(real, "magnitude-global"))
    for method in ("lottery-ticket", "lottery-ticket-rewind"):
        assert_same_tensors(split(real, pruned_by(real, method))[1], masks)


def trained_base(epochs):
    """The base model of seed 0 after some epochs, by a plain loop."""
    recipe, dataset, model = WORKLOAD.pretrain, load(WORKLOAD.data), place(fresh("pretrain"), "cpu", "fp32")
    optimiser = torch.optim.SGD(
        model.parameters(), 0.1, recipe.momentum, weight_decay=recipe.weight_decay, nesterov=recipe.nesterov
    )
    for epoch in range(epochs):
        for images, labels in dataset.batches(0, "pretrain", epoch, recipe.batch):
            optimiser.param_groups[0]["lr"] = recipe.rate(epoch, 0)
            optimiser.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimiser.step()
    return model


def test_late_rewinding_gives_the_weights_of_that_epoch(real):
    tensors, masks = split(real, pruned_by(real, "lottery-ticket-rewind"))
    for name, expected in thinned(trained_base(1), masks).state_dict().items():
        torch.testing.assert_close(tensors[name], expected, rtol=1e-3, atol=1e-4)
    # Training once more what the base model had trained is no cost of the arm.
    run = pruned_by(real, "lottery-ticket-rewind")
    assert (run.samples, run.scoring_samples, run.optimiser_steps) == (0, 0, 0)


def test_rewinding_knows_how_long_the_base_model_of_this_budget_trained(real, tmp_path):
    """30 epochs, of which the smoke budget trains 3: the seventh does not exist, the last but one does."""
    source = (content_root() / "methods" / "lottery_ticket_rewind.py").read_text(encoding="utf-8")
    path = tmp_path / "later.py"
    path.write_text(source.replace("epoch: int = 1", "epoch: int = 7"), encoding="utf-8")
    campaign = campaign_at(real.ledger.root, Catalog(extra_methods=(str(path),)))
    assert campaign.obtain(cell("later")).error == ""
    tensors, masks = split(campaign, pruned_by(campaign, "later"))
    assert WORKLOAD.pretrain.epochs == 3
    for name, expected in thinned(trained_base(2), masks).state_dict().items():
        torch.testing.assert_close(tensors[name], expected, rtol=1e-3, atol=1e-4)


# Scratch arms that train what a method found


@pytest.mark.parametrize("finder", ["magnitude-global", "l1-global"])
def test_a_scratch_arm_trains_exactly_what_was_found(real, finder):
    run, donor = result_of(real, f"scratch-of-{finder}"), pruned_by(real, finder)
    assert run.shape_of == donor.run_id and run.parent is None and run.granularity == donor.granularity
    assert (run.macs, run.params, run.stay) == (donor.macs, donor.params, donor.stay)
    tensors, masks = split(real, run)
    assert_same_tensors(masks, split(real, donor)[1])
    widths = {name: len(kept) for name, kept in donor.kept.items()}
    assert bool(widths) != bool(masks)
    assert all(len(tensors[f"{name}.weight"]) == width for name, width in widths.items())
    # Fresh weights of its own stream in the found shape, and nothing else of what was found.
    model = shapes.network(WORKLOAD, widths)
    initialise(model, generator(0, "scratch", "initialise"))
    model = place(thinned(model, masks), "cpu", "fp32")
    dataset = load(WORKLOAD.data)
    assert run.initial_accuracy == evaluate(model, dataset, dataset.test).accuracy
    with Meter(model) as meter:
        Trainer(model, dataset, run.recipe, 0, "scratch", meter, masks=masks).fit()
    assert_same_tensors(tensors, model.state_dict())
    assert run.optimiser_steps == run.recipe.epochs * steps_per_epoch(len(dataset.train), run.recipe.batch)


def test_a_global_threshold_finds_other_widths_than_uniform_pruning(real):
    """Otherwise the arm above would show nothing."""
    kept = pruned_by(real, "l1-global").kept
    assert {name: len(indices) for name, indices in kept.items()} != shapes.widths_at(WORKLOAD, 0.9)


# Rules


def case_of(campaign, subject, change=lambda run: run):
    """A case whose last arm's result is changed."""
    case = Case.read(subject, lambda one: campaign.obtain(one), campaign.ledger)
    *others, last = case.seeds[0]
    return replace(case, seeds={0: (*others, replace(last, result=change(last.result)))})


def arm(method):
    return Arm(WORKLOAD.name, "s3.2", method, 0.9, (0,))


def pair(left, right):
    return Comparison(WORKLOAD.name, "s3.2", left, right, 0.9, (0,))


@pytest.mark.parametrize("method", [*MASKED, "scratch-of-magnitude-global", "l1-global"])
def test_real_runs_keep_their_zeros(real, method):
    assert judge("F512", case_of(real, arm(method))).verdict == "pass"


@pytest.mark.parametrize(
    ("beyond", "verdict"),
    [([0], "pass"), ([0, -3], "pass"), ([1], "fail"), ([1, 0], "fail"), ([], "not measured")],
    ids=["as-many", "fewer", "one-more", "one-more-for-an-epoch", "not-counted"],
)
def test_weights_that_came_back_are_caught(real, beyond, verdict):
    def change(run):
        return changed(run, nonzero=[sum(run.stay.values()) + more for more in beyond])

    finding = judge("F512", case_of(real, arm("magnitude-global"), change))
    assert finding.verdict == verdict, finding.line


def test_filters_beside_single_weights_are_not_comparable(real):
    finding = judge("F105", case_of(real, pair("l1-global", "magnitude-global")))
    assert finding.verdict == "fail"
    assert finding.measured["l1-global"] == "smaller network"
    assert f"{shapes.shape(WORKLOAD).macs} MACs are executed" in finding.measured["magnitude-global"]
    for left, right in (("magnitude-global", "lottery-ticket"), ("l1-global", "scratch-of-l1-global")):
        assert judge("F105", case_of(real, pair(left, right))).verdict == "pass"


@pytest.mark.parametrize("left", sorted({*MASKED} - {"magnitude-global"}))
def test_honest_masked_arms_pass_every_rule(real, left):
    comparison = pair(left, "magnitude-global")
    judged = set()
    for rule_id in required(CATALOG.protocol("s3.2")):
        rule = get_rule(rule_id)
        for subject in (comparison, *comparison.arms):
            if (rule.scope == "arm") == isinstance(subject, Arm) and all(map(rule.applies, subject.methods)):
                finding = judge(rule_id, case_of(real, subject))
                assert finding.verdict == "pass", finding.line
                judged.add(rule_id)
    assert {"F103", "F105", "F322", "F501", "F503", "F504", "F509", "F512"} <= judged


def test_a_scratch_arm_with_masks_is_a_fresh_small_network(real):
    finding = judge("F506", case_of(real, arm("scratch-of-magnitude-global")))
    assert finding.verdict == "pass", finding.line
    assert finding.measured["scratch-of-magnitude-global"].startswith(f"{result_of(real, 'magnitude-global').macs} of ")
