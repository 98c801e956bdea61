"""The training loop, its checkpoints and its meter."""

import copy
import dataclasses
import platform
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn
from trainers import Killed

from pruneaudit.catalog.discovery import Catalog
from pruneaudit.errors import AuditError
from pruneaudit.method.task import PruningTask
from pruneaudit.pruning.layers import prunable_layers
from pruneaudit.streams import generator
from pruneaudit.training.checkpoint import Checkpoint
from pruneaudit.training.loop import DivergedError, Hooks, Trainer
from pruneaudit.training.metering import Consumption, Meter
from pruneaudit.workloads.data import Part, load
from pruneaudit.workloads.models import build
from pruneaudit.workloads.models.initialise import initialise
from pruneaudit.workloads.recipes import Recipe
from pruneaudit.workloads.schema import DataConfig

torch.set_num_threads(1)

# 100 training images in batches of 32: four steps in an epoch, the last one with 4 images.
STEPS_PER_EPOCH = 4
RECIPE = Recipe(epochs=5, lr="0:0.05,2:0.01,4:0.001", batch=32, momentum=0.9, weight_decay=5e-4)


def digits(side=8):
    config = DataConfig(name="digits", size=side, mean=(0.3054,), std=(0.3763,), pad=side // 8, flip=True)
    full = load(config)

    def first(part, count):
        return Part(part.images[:count], part.labels[:count])

    return dataclasses.replace(
        full, train=first(full.train, 100), validation=first(full.validation, 30), test=first(full.test, 30)
    )


def network(name="small", dtype=torch.float64, seed=0):
    """A network with the initialisation of a seed, drawn in float64 so that every machine draws the same."""
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(384, 10)
    )
    model = (model if name == "small" else build(name, 1, 10)).double()
    initialise(model, generator(seed, "test"))
    return model.to(dtype=dtype, memory_format=torch.channels_last)


def trainer(model, dataset, recipe=RECIPE, stream="retrain", **options):
    return Trainer(model, dataset, recipe, 0, stream, Meter(model), **options)


def assert_same_weights(one, other):
    first, second = one.state_dict(), other.state_dict()
    assert list(first) == list(second)
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


# Against a plain reference loop


def reference(model, dataset, recipe, seed, stream):
    """Training as anyone would write it: torch's unfused SGD, one learning rate for each step."""
    optimiser = torch.optim.SGD(
        model.parameters(),
        lr=1.0,
        momentum=recipe.momentum,
        weight_decay=recipe.weight_decay,
        nesterov=recipe.nesterov,
        foreach=False,
        fused=False,
    )
    steps = recipe.steps if recipe.epochs is None else recipe.epochs * STEPS_PER_EPOCH
    losses = []
    step = 0
    while step < steps:
        epoch = step // STEPS_PER_EPOCH
        model.train()
        total = seen = 0
        for images, labels in dataset.batches(seed, stream, epoch, recipe.batch, torch.float64):
            if step == steps:
                break
            position = epoch if recipe.epochs is not None else recipe.start + step
            points = [tuple(map(float, point.split(":"))) for point in recipe.lr.split(",")]
            optimiser.param_groups[0]["lr"] = next(rate for start, rate in reversed(points) if position >= start)
            optimiser.zero_grad()
            loss = F.cross_entropy(model(images), labels, label_smoothing=recipe.label_smoothing)
            loss.backward()
            optimiser.step()
            total += loss.item() * len(labels)
            seen += len(labels)
            step += 1
        losses.append(total / seen)
    return losses


@pytest.mark.parametrize(
    "change", [{}, {"nesterov": True, "label_smoothing": 0.1}], ids=["plain", "nesterov-smoothing"]
)
@pytest.mark.parametrize(("name", "side"), [("lenet5", 32), ("resnet20", 8)])
def test_loop_equals_a_plain_loop_in_float64(name, side, change):
    dataset, recipe = digits(side), RECIPE.model_copy(update=change)
    model = network(name)
    plain = copy.deepcopy(model)
    # Whatever mode it comes in, it trains in training mode.
    history = trainer(model.eval(), dataset, recipe).fit()
    losses = reference(plain, dataset, recipe, 0, "retrain")
    assert history.train_loss == pytest.approx(losses, abs=1e-10, rel=0)
    for (label, tensor), expected in zip(model.state_dict().items(), plain.state_dict().values(), strict=True):
        assert float((tensor - expected).abs().max()) <= 1e-10, label
    assert history.train_loss[-1] < history.train_loss[0]


def test_steps_stop_within_an_epoch_and_start_within_a_schedule():
    dataset = digits()
    recipe = Recipe(steps=6, lr="0:0.1,10:0.01,13:0.001", start=8, batch=32)
    model = network()
    plain = copy.deepcopy(model)
    with Meter(model) as meter:
        history = Trainer(model, dataset, recipe, 0, "prune", meter).fit()
    losses = reference(plain, dataset, recipe, 0, "prune")
    assert history.train_loss == pytest.approx(losses, abs=1e-10, rel=0)
    for one, other in zip(model.parameters(), plain.parameters(), strict=True):
        assert float((one - other).detach().abs().max()) <= 1e-10
    assert meter.consumption.rates == [[0.1, 2], [0.01, 3], [0.001, 1]]
    assert meter.consumption.training_samples == 100 + 64


def test_zero_steps_train_nothing():
    model = network()
    before = copy.deepcopy(model)
    history = trainer(model, digits(), Recipe(steps=0, lr="0:0.1", batch=32)).fit()
    assert history.train_loss == [] and history.test_accuracy == []
    assert_same_weights(model, before)


# Training, validation and test loss after each of two epochs.
GOLDEN_LOSSES = [
    2.8683278979750035,
    2.2060870037219695,
    2.297689239614667,
    2.228453205223545,
    2.2711500518154915,
    2.2008719378741337,
]


def test_numbers_are_those_of_this_numerics_version():
    history = trainer(network("lenet5"), digits(32), RECIPE.model_copy(update={"epochs": 2})).fit()
    measured = [*history.train_loss, *history.validation_loss, *history.test_loss]
    assert measured == pytest.approx(GOLDEN_LOSSES, rel=1e-9, abs=0), (
        "the numbers of a run changed: if on purpose, raise NUMERICS_VERSION in pruneaudit/records.py "
        f"and put these here: {measured}"
    )


def test_hooks_run_in_their_order():
    model, events = network(), []
    weight = model[4].weight

    def penalty(step):
        events.append(("penalty", step))
        return weight.square().sum() if step else None

    def gradients(step):
        events.append(("gradients", step))
        assert weight.grad.any()
        weight.grad.zero_()

    def after_step(step):
        events.append(("after", step))

    recipe = Recipe(steps=2, lr="0:0.1", batch=32, momentum=0.0)
    before = weight.detach().clone()
    history = trainer(model, digits(), recipe).fit(Hooks(penalty, gradients, after_step))
    assert events == [(name, step) for step in range(2) for name in ("penalty", "gradients", "after")]
    assert torch.equal(weight, before), "what a hook does to gradients is what the optimiser sees"
    assert history.train_loss[0] < 10, "the recorded loss is the task's, without the penalty"


def test_divergence_is_an_error_that_names_the_epoch(tmp_path):
    model = network()
    checkpoint = Checkpoint(tmp_path / "state.safetensors", "cpu")
    recipe = Recipe(epochs=4, lr="0:0.01,1:1e300", batch=32, weight_decay=5e-4)
    with pytest.raises(DivergedError, match="in epoch 2 of 4: it diverged") as caught:
        trainer(model, digits(), recipe, checkpoint=checkpoint).fit()
    assert isinstance(caught.value, AuditError)
    assert checkpoint.load().facts["epochs_done"] == 1


# Kill and resume


def kill_after(epochs):
    def progress(done, total, accuracy):
        assert 0 <= accuracy <= 100 and done <= total
        if done == epochs:
            raise Killed

    return progress


def training_with_memory(model, checkpoint=None, progress=None):
    """A training whose hooks need their memory: a running mean of the weights and a counter shape the gradients."""
    state = {"count": 0, "mean": torch.zeros_like(model[4].weight)}

    def gradients(step):
        state["count"] += 1
        model[4].weight.grad.add_(model[4].weight.detach() - state["mean"], alpha=0.01 * state["count"])

    def after_step(step):
        state["mean"] = 0.9 * state["mean"] + 0.1 * model[4].weight.detach()

    with Meter(model) as meter:
        run = Trainer(model, digits(), RECIPE, 0, "prune", meter, checkpoint=checkpoint, progress=progress, state=state)
        run.fit(Hooks(gradients=gradients, after_step=after_step))
    return run


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
@pytest.mark.parametrize("epochs", [1, 3, 4])
def test_a_killed_training_ends_bit_identical(tmp_path, epochs, dtype):
    whole = training_with_memory(network(dtype=dtype))
    checkpoint = Checkpoint(tmp_path / "state.safetensors", "cpu")
    with pytest.raises(Killed):
        training_with_memory(network(dtype=dtype), checkpoint, kill_after(epochs))
    # Another initialisation: everything has to come out of the checkpoint.
    resumed = training_with_memory(network(dtype=dtype, seed=9), checkpoint)
    assert resumed.resumed_from == epochs and whole.resumed_from == 0
    assert_same_weights(resumed.model, whole.model)
    assert resumed.history == whole.history
    assert resumed.meter.consumption == whole.meter.consumption
    assert resumed.state["count"] == whole.state["count"] == 20
    assert torch.equal(resumed.state["mean"], whole.state["mean"])
    for one, other in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(
            resumed.optimiser.state[one]["momentum_buffer"], whole.optimiser.state[other]["momentum_buffer"]
        )


def test_killed_within_an_epoch(tmp_path):
    whole = network()
    trainer(whole, digits()).fit()
    checkpoint = Checkpoint(tmp_path / "state.safetensors", "cpu")

    def kill(step):
        if step == 10:
            raise Killed

    with pytest.raises(Killed):
        trainer(network(), digits(), checkpoint=checkpoint).fit(Hooks(after_step=kill))
    model = network(seed=9)
    resumed = trainer(model, digits(), checkpoint=checkpoint)
    resumed.fit()
    assert resumed.resumed_from == 2
    assert_same_weights(model, whole)


def damage_nothing_there(path):
    path.unlink()


def damage_garbage(path):
    path.write_bytes(b"no checkpoint" * 100)


def damage_empty(path):
    path.write_bytes(b"")


def damage_truncated(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def damage_without_facts(path):
    save_file({"model/0.weight": torch.zeros(1)}, path)


def damage_half_written(path):
    path.rename(path.with_suffix(".part"))


def test_short_epochs_are_not_each_kept(tmp_path):
    for every, kept in ((0.0, 3), (1000.0, 1)):
        checkpoint = Checkpoint(tmp_path / f"{every}.safetensors", "cpu", every)
        trainer(network(), digits(), checkpoint=checkpoint).fit(until=3)
        assert checkpoint.load().facts["epochs_done"] == kept, "the first at once, then when the time has come"


@pytest.mark.parametrize(
    "damage",
    [
        damage_nothing_there,
        damage_garbage,
        damage_empty,
        damage_truncated,
        damage_without_facts,
        damage_half_written,
    ],
)
def test_damaged_checkpoint_restarts(tmp_path, damage):
    whole = training_with_memory(network())
    checkpoint = Checkpoint(tmp_path / "state.safetensors", "cpu")
    with pytest.raises(Killed):
        training_with_memory(network(), checkpoint, kill_after(2))
    damage(checkpoint.path)
    again = training_with_memory(network(), checkpoint)
    assert again.resumed_from == 0
    assert_same_weights(again.model, whole.model)
    assert again.meter.consumption == whole.meter.consumption


def test_checkpoint_of_another_device_restarts(tmp_path):
    path = tmp_path / "state.safetensors"
    with pytest.raises(Killed):
        training_with_memory(network(), Checkpoint(path, "cuda"), kill_after(2))
    assert Checkpoint(path, "cuda").load() is not None
    assert Checkpoint(path, "cpu").load() is None
    assert training_with_memory(network(), Checkpoint(path, "cpu")).resumed_from == 0


# A pruning stage that is killed


def pruning_stage(checkpoint, progress=None, calls=(20,)):
    model = network()
    workload = Catalog().workload("resnet20-digits")
    layers = prunable_layers(model, digits().example(torch.float64), ("0",))
    recipe = Recipe(steps=sum(calls), lr="0:0.05,10:0.01", batch=32, momentum=0.9)
    with Meter(model) as meter:
        task = PruningTask(
            model, layers, workload, 0.5, recipe, digits(), 0, meter, "sample", "fp64", checkpoint, progress
        )
        with torch.no_grad():
            for images, _ in task.batches(2):
                model(images)
        for steps in calls:
            task.train(steps)
    return model, task, meter.consumption


def test_killed_pruning_stage_ends_identical(tmp_path):
    checkpoint = Checkpoint(tmp_path / "state.safetensors", "cpu")
    whole, task, consumed = pruning_stage(None)
    with pytest.raises(Killed):
        pruning_stage(checkpoint, kill_after(3))
    model, resumed, again = pruning_stage(checkpoint)
    assert (resumed.resumed_from, task.resumed_from) == (3, 0)
    assert_same_weights(model, whole)
    assert resumed.history == task.history
    assert again == consumed
    # The method's scoring before the training is counted once although it was repeated.
    assert again.scoring_samples == 64 and again.optimiser_steps == 20


def test_pruning_stage_of_two_calls_continues_its_schedule():
    _, task, consumed = pruning_stage(None, calls=(6, 14))
    assert consumed.rates == [[0.05, 10], [0.01, 10]]
    # Two epochs of the first call (the second one partial) and four of the second.
    assert len(task.history.train_loss) == len(task.history.test_accuracy) == 6


def test_second_call_that_is_killed_starts_the_stage_again(tmp_path):
    checkpoint = Checkpoint(tmp_path / "state.safetensors", "cpu")
    whole, _, consumed = pruning_stage(None, calls=(8, 12))
    seen = []

    def kill_in_second_call(done, total, accuracy):
        seen.append(done)
        if len(seen) == 4:
            raise Killed

    with pytest.raises(Killed):
        pruning_stage(checkpoint, kill_in_second_call, calls=(8, 12))
    model, task, again = pruning_stage(checkpoint, calls=(8, 12))
    assert task.resumed_from == 0
    assert_same_weights(model, whole)
    assert again == consumed


# The meter


def test_meter_counts_the_harness():
    model = network()
    with Meter(model) as meter:
        Trainer(model, digits(), RECIPE, 0, "retrain", meter).fit()
    assert meter.consumption == Consumption(
        training_samples=500,
        scoring_samples=0,
        optimiser_steps=20,
        rates=[[0.05, 8], [0.01, 8], [0.001, 4]],
        batch=32,
        settings={"optimiser": "sgd", "momentum": 0.9, "weight_decay": 5e-4, "nesterov": False, "dampening": 0},
    )


def side_loop(model, steps, batch=16, rate=0.25):
    optimiser = torch.optim.Adam(model.parameters(), lr=rate)
    for _ in range(steps):
        optimiser.zero_grad()
        model(torch.zeros(batch, 1, 8, 8, dtype=torch.float64)).sum().backward()
        optimiser.step()


def test_meter_counts_a_side_loop():
    model = network()
    with Meter(model) as meter:
        side_loop(model, 3)
        with torch.no_grad():
            model(torch.zeros(7, 1, 8, 8, dtype=torch.float64))
    consumed = meter.consumption
    assert (consumed.training_samples, consumed.optimiser_steps, consumed.scoring_samples) == (48, 3, 7)
    assert consumed.rates == [[0.25, 3]] and consumed.batch == 16
    assert consumed.settings["optimiser"] == "adam"


def test_meter_counts_what_is_computed_without_layers():
    model, images = network(), torch.zeros(8, 1, 8, 8, dtype=torch.float64)
    weight = torch.ones(4, 1, 3, 3, dtype=torch.float64, requires_grad=True)
    passes = 8 * 4 * 36 * 9
    with Meter(model, by_operation=True) as meter:
        loss = F.conv2d(images, weight).sum()
        assert meter.consumption.own_macs == passes
        # The images are no leaves: a gradient of the weights alone.
        loss.backward()
        assert meter.consumption.own_macs == 2 * passes
        with meter.paused():
            torch.func.vmap(lambda image: F.conv2d(image[None], weight.detach()))(images)
        assert meter.consumption.own_macs == 3 * passes
        with meter.harness():
            F.conv2d(images, weight)
            assert meter.consumption.own_macs == 3 * passes
            with meter.own_code():
                F.conv2d(images, weight)
        assert meter.consumption.own_macs == 4 * passes
    F.conv2d(images, weight)
    assert meter.consumption.own_macs == 4 * passes
    with Meter(model) as meter:
        F.conv2d(images, weight)
    assert meter.consumption.own_macs == 0


def test_meter_counts_a_copy_of_the_network():
    model = network()
    with Meter(model) as meter:
        side_loop(copy.deepcopy(model), 2)
    assert (meter.consumption.training_samples, meter.consumption.optimiser_steps) == (32, 2)


def test_meter_counts_images_given_by_keyword():
    model = build("lenet5", 1, 10)
    with Meter(model) as meter, torch.no_grad():
        model(images=torch.zeros(5, 1, 32, 32))
        assert meter.consumption.scoring_samples == 5
        model.conv1(input=torch.zeros(2, 1, 32, 32))
    assert meter.consumption.scoring_samples == 7


def test_meter_reads_settings_of_all_parameter_groups():
    model = network()
    groups = [
        {"params": model[0].parameters(), "weight_decay": 0.0},
        {"params": model[4].parameters(), "lr": 0.4, "momentum": 0.5},
        {"params": model[1].parameters(), "lr": 0.2},
    ]
    optimiser = torch.optim.SGD(groups, lr=0.1, momentum=0.9, weight_decay=5e-4)
    with Meter(model) as meter:
        optimiser.step()
        optimiser.param_groups[1]["lr"] = 0.1
        optimiser.step()
        assert meter.consumption.settings["learning_rates_of_groups"] == [0.5, 0.5, 1.0]
        for group in optimiser.param_groups:
            group["lr"] = 0.05
        optimiser.step()
    # The highest of each step; how the groups differ stands beside the settings.
    assert meter.consumption.rates == [[0.4, 1], [0.2, 1], [0.05, 1]]
    assert meter.consumption.settings == {
        "optimiser": "sgd",
        "momentum": [0.5, 0.9],
        "weight_decay": [0.0, 5e-4],
        "nesterov": False,
        "dampening": 0,
    }


def test_meter_counts_nothing_while_paused_or_left():
    model = network()
    with Meter(model) as meter:
        with meter.paused():
            side_loop(model, 2)
            with meter.paused():
                side_loop(model, 1)
            side_loop(model, 1)
        assert meter.consumption == Consumption()
        side_loop(model, 1)
    side_loop(model, 5)
    assert (meter.consumption.training_samples, meter.consumption.optimiser_steps) == (16, 1)


def test_meter_goes_on_after_an_error_in_a_pause():
    model = network()
    with Meter(model) as meter:
        with pytest.raises(ZeroDivisionError), meter.paused():
            _ = 1 / 0
        side_loop(model, 1)
    assert meter.consumption.optimiser_steps == 1


def test_meter_notes_every_change_of_the_rate():
    consumption = Consumption()
    for rate in (0.1, 0.1, 0.01, 0.1):
        consumption.step(rate)
    assert consumption.rates == [[0.1, 2], [0.01, 1], [0.1, 1]]
    assert consumption.optimiser_steps == 4


def test_evaluation_is_not_counted_and_leaves_no_trace():
    """With three parts of any size the weights are those of a training that never evaluates."""
    dataset = digits()
    model, other = network(), network()
    trainer(model, dataset).fit()
    one = Part(dataset.test.images[:1], dataset.test.labels[:1])
    trainer(other, dataclasses.replace(dataset, validation=one, test=one)).fit()
    assert_same_weights(model, other)


def test_arms_of_a_seed_see_the_same_batches():
    """Networks of another shape on the same stream: data order and augmentation do not notice."""
    seen = []
    for width in (2, 6):
        model = nn.Sequential(nn.Conv2d(1, width, 3), nn.Flatten(), nn.Linear(36 * width, 10)).double()
        initialise(model, generator(0, "test"))
        batches = []
        model.register_forward_pre_hook(lambda _, inputs, batches=batches: batches.append(inputs[0].clone()))
        trainer(model, digits(), RECIPE.model_copy(update={"epochs": 1})).fit()
        seen.append(batches)
    assert all(torch.equal(one, other) for one, other in zip(*seen, strict=True))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc gives freed memory back")
def test_memory_of_a_step_stays_for_the_next():
    code = """
import resource, sys
import numpy as np
from pruneaudit.training import memory
if sys.argv[1] == "kept":
    memory.keep()
def step():
    maps = [np.ones(24 * 2**20, dtype=np.uint8) for _ in range(3)]
step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
    kept, returned = (
        int(subprocess.run([sys.executable, "-c", code, how], capture_output=True, text=True, check=True).stdout)
        for how in ("kept", "returned")
    )
    assert kept < 100 < returned
