"""Optimisers of torch by name: what they train, what a checkpoint keeps of them, and what F322 reads from them."""

import copy
import dataclasses
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pruneaudit.errors import ConfigError
from pruneaudit.streams import derive, generator
from pruneaudit.training.checkpoint import Checkpoint
from pruneaudit.training.loop import Trainer
from pruneaudit.training.metering import Consumption, Meter
from pruneaudit.workloads import optimisers
from pruneaudit.workloads.data import Part, load
from pruneaudit.workloads.models.initialise import initialise
from pruneaudit.workloads.recipes import Optimiser, Recipe
from pruneaudit.workloads.schema import DataConfig

torch.set_num_threads(1)

# 54 images in batches of 16: four steps in an epoch, the last one with 6 images.
IMAGES, BATCH, PER_EPOCH = 54, 16, 4
ADAMW = Optimiser(name="adamw", options=(("betas", (0.9, 0.95)), ("eps", 1e-6)))
#: Options that make state worth keeping, or a rate at which the optimiser moves.
TRAINABLE = {
    "sgd": {},
    "adamw": {"betas": [0.8, 0.99]},
    "adam": {"amsgrad": True},
    "adamax": {},
    "nadam": {},
    "radam": {},
    "rmsprop": {"momentum": 0.9, "centered": True},
    "adagrad": {"initial_accumulator_value": 0.1},
    "adadelta": {},
    "adafactor": {},
    "asgd": {"t0": 2},
    "rprop": {},
}


def digits():
    full = load(DataConfig(name="digits", size=8, mean=(0.3054,), std=(0.3763,), pad=1, flip=True))

    def first(part, count):
        return Part(part.images[:count], part.labels[:count])

    return dataclasses.replace(
        full, train=first(full.train, IMAGES), validation=first(full.validation, 20), test=first(full.test, 20)
    )


DATA = digits()


def network(norm=True, dropout=0.0, seed=0):
    layers = [
        nn.Conv2d(1, 4, 3, padding=1, bias=not norm),
        nn.BatchNorm2d(4) if norm else nn.Identity(),
        nn.ReLU(),
        nn.Conv2d(4, 6, 3, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(dropout) if dropout else nn.Identity(),
        nn.Linear(54, 10),
    ]
    model = nn.Sequential(*layers).double()
    initialise(model, generator(seed, "test"))
    return model.to(memory_format=torch.channels_last)


def recipe(**changes):
    return Recipe.model_validate({"epochs": 5, "lr": "0:0.01,3:0.001", "batch": BATCH, **changes})


def trainer(model, chosen, **options):
    return Trainer(model, DATA, chosen, 0, "retrain", Meter(model), "fp64", **options)


def fitted(model, chosen, **options):
    """A trained network with what it consumed."""
    with Meter(model) as meter:
        made = Trainer(model, DATA, chosen, 0, "retrain", meter, "fp64", **options)
        made.fit()
    return made


def largest_difference(one, other):
    first, second = one.state_dict(), other.state_dict()
    assert list(first) == list(second)
    return max(float((first[name].double() - second[name].double()).abs().max()) for name in first)


# Against loops as anybody would write them


def plain_loop(model, optimiser, rate, after_backward=lambda: None, after_step=lambda: None, mix=None, smoothing=0.0):
    """Twenty steps by torch alone; ``rate`` takes epoch and step."""
    step = 0
    for epoch in range(5):
        model.train()
        for images, labels in DATA.batches(0, "retrain", epoch, BATCH, torch.float64):
            for group in optimiser.param_groups:
                group["lr"] = rate(epoch, step)
            if mix is not None:
                images, labels = mix(images, labels, epoch, step)
            optimiser.zero_grad()
            F.cross_entropy(model(images), labels, label_smoothing=smoothing).backward()
            after_backward()
            optimiser.step()
            after_step()
            step += 1
    return step


def test_adamw_with_groups_warm_up_and_clipping_is_torchs_own_to_1e_12():
    ours, theirs = network(), network()
    chosen = recipe(
        lr="cosine:0.01->1e-4, warmup 1 from 1e-3, per step, open",
        optimiser={"name": "AdamW", "betas": [0.9, 0.95], "eps": 1e-6},
        weight_decay=0.05,
        no_decay=["bias", "norm"],
        label_smoothing=0.1,
        clip=0.5,
    )
    fitted(ours, chosen)
    decayed, free = [theirs[0].weight, theirs[3].weight, theirs[7].weight], [theirs[1].weight, theirs[1].bias]
    free += [theirs[3].bias, theirs[7].bias]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": free, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=1.0, betas=(0.9, 0.95), eps=1e-6, foreach=False, fused=False)

    def rate(epoch, step):
        if step < 4:
            return 1e-3 + (0.01 - 1e-3) * step / 4
        return 1e-4 + (0.01 - 1e-4) * (1 + math.cos(math.pi * (step - 4) / 16)) / 2

    def clip():
        norms.append(float(nn.utils.clip_grad_norm_(theirs.parameters(), 0.5)))

    norms = []
    assert plain_loop(theirs, optimiser, rate, clip, smoothing=0.1) == 20
    assert max(norms) > 0.5, "something must have been clipped"
    assert largest_difference(ours, theirs) <= 1e-12
    assert largest_difference(ours, network()) > 1e-3


def test_sgd_without_decay_of_norms_is_torchs_own_to_1e_12():
    ours, theirs = network(), network()
    chosen = recipe(weight_decay=0.01, no_decay=["norm"], nesterov=True, clip=0.01, clip_by="value")
    fitted(ours, chosen)
    names = dict(theirs.named_parameters())
    free = [names.pop("1.weight"), names.pop("1.bias")]
    optimiser = torch.optim.SGD(
        [{"params": list(names.values()), "weight_decay": 0.01}, {"params": free}], lr=1.0, momentum=0.9, nesterov=True
    )
    plain_loop(
        theirs,
        optimiser,
        lambda epoch, step: 0.01 if epoch < 3 else 0.001,
        lambda: nn.utils.clip_grad_value_(theirs.parameters(), 0.01),
    )
    assert largest_difference(ours, theirs) <= 1e-12


def test_mixed_batches_are_those_of_torchvision():
    from torchvision.transforms import v2

    ours, theirs = network(), network()
    fitted(ours, recipe(mixup=0.2, cutmix=1.0, optimiser="adamw"))
    choice = [v2.MixUp(alpha=0.2, num_classes=10), v2.CutMix(alpha=1.0, num_classes=10)]
    chosen = []

    def mix(images, labels, epoch, step):
        torch.manual_seed(derive(0, "retrain", "mix", epoch, step))
        chosen.append(int(torch.randint(2, (1,))))
        images, labels = choice[chosen[-1]](images, labels)
        return images, labels.double()

    optimiser = torch.optim.AdamW(theirs.parameters(), weight_decay=0.0)
    plain_loop(theirs, optimiser, lambda epoch, step: 0.01 if epoch < 3 else 0.001, mix=mix)
    assert set(chosen) == {0, 1}
    # torchvision keeps labels in single precision.
    assert largest_difference(ours, theirs) <= 1e-6


def test_the_average_is_timms_and_is_what_is_delivered():
    timm = pytest.importorskip("timm.utils")
    ours, theirs = network(), network()
    made = fitted(ours, recipe(optimiser="adamw", ema=0.8, ema_every=2))
    average, steps = timm.ModelEmaV3(theirs, decay=0.8), itertools.count(1)
    optimiser = torch.optim.AdamW(theirs.parameters(), weight_decay=0.0)
    plain_loop(
        theirs,
        optimiser,
        lambda epoch, step: 0.01 if epoch < 3 else 0.001,
        after_step=lambda: average.update(theirs) if next(steps) % 2 == 0 else None,
    )
    assert largest_difference(ours, average.module) <= 1e-12
    assert largest_difference(ours, theirs) > 1e-4, "the weights that trained are other ones"
    scores = average.module.eval()(DATA.normalise(DATA.test.images, torch.float64)).argmax(dim=1)
    assert made.history.test_accuracy[-1] == 100.0 * float((scores == DATA.test.labels).double().mean())


def test_every_epoch_is_evaluated_with_the_average_and_trains_on_without_it():
    plain, averaged = network(), network()
    usual = fitted(plain, recipe())
    made = fitted(averaged, recipe(ema=0.9))
    assert made.history.train_loss == usual.history.train_loss, "training itself does not change"
    assert made.history.test_loss != usual.history.test_loss


def test_parts_of_a_batch_give_the_step_of_the_whole_and_count_it_once():
    whole, parts = network(norm=False), network(norm=False)
    chosen = {"optimiser": "adamw", "weight_decay": 0.01, "mixup": 0.4, "clip": 1.0, "label_smoothing": 0.1}
    one, many = fitted(whole, recipe(**chosen)), fitted(parts, recipe(**chosen, accumulate=4))
    assert largest_difference(whole, parts) <= 1e-12
    ours, theirs = many.meter.consumption, one.meter.consumption
    assert (ours.optimiser_steps, ours.training_samples, ours.rates) == (20, 5 * IMAGES, theirs.rates)
    assert (ours.batch, theirs.batch) == (4, 16), "what passes at once"
    assert ours.settings.pop("accumulation") == 4
    assert ours.settings == theirs.settings
    assert many.history.train_loss == pytest.approx(one.history.train_loss, rel=1e-12)
    assert many.history.train_accuracy == one.history.train_accuracy


# Killed and gone on


@pytest.mark.parametrize("name", TRAINABLE)
def test_a_killed_training_goes_on_bit_by_bit(name, tmp_path):
    chosen = recipe(
        epochs=3,
        lr="cosine:0.01, warmup 2 steps",
        optimiser={"name": name, **TRAINABLE[name]},
        ema=0.9,
        mixup=0.2,
        cutmix=1.0,
        accumulate=2,
        **({} if name == "rprop" else {"weight_decay": 0.01, "no_decay": ["norm"]}),
    )
    undisturbed = network(dropout=0.2)
    whole = fitted(undisturbed, chosen)
    path = Checkpoint(tmp_path / "state.safetensors", "cpu")
    with Meter(killed := network(dropout=0.2)) as meter:
        Trainer(killed, DATA, chosen, 0, "retrain", meter, "fp64", path).fit(until=2)
    torch.manual_seed(1)
    anew = network(dropout=0.2, seed=1)
    made = fitted(anew, chosen, checkpoint=path)
    assert made.resumed_from == 2
    assert largest_difference(anew, undisturbed) == 0
    assert made.history == whole.history
    assert made.meter.consumption == whole.meter.consumption


def test_other_networks_that_draw_do_not_disturb(tmp_path):
    torch.manual_seed(0)
    one, other = network(dropout=0.5), network(dropout=0.5)
    fitted(one, recipe())
    torch.rand(7)
    before = torch.random.get_rng_state()
    fitted(other, recipe())
    assert largest_difference(one, other) == 0
    assert torch.equal(torch.random.get_rng_state(), before), "and nobody else's draws change"


def test_a_snapshot_without_the_optimisers_state_is_not_gone_on_from(tmp_path):
    path = Checkpoint(tmp_path / "state.safetensors", "cpu")
    trainer(network(), recipe(), checkpoint=path).fit(until=2)
    snapshot = path.load()
    facts = {key: value for key, value in snapshot.facts.items() if key != "optimiser"}
    path.save(dataclasses.replace(snapshot, facts=facts))
    made = trainer(network(), recipe(), checkpoint=path)
    assert made.resume() == 0


# Masks


@pytest.mark.parametrize("name", [*TRAINABLE, "muon"])
def test_removed_weights_are_exactly_zero_under_any_optimiser(name):
    convolutional = name != "muon"
    model = network() if convolutional else nn.Sequential(nn.Flatten(), nn.Linear(64, 10, bias=False)).double()
    layer = "3" if convolutional else "1"
    weight = model.get_parameter(f"{layer}.weight")
    mask = torch.rand(weight.shape, generator=generator(0, "mask")) < 0.5
    with torch.no_grad():
        weight.mul_(mask)
    before = copy.deepcopy(weight)
    decay = {} if name == "rprop" else {"weight_decay": 0.1}
    chosen = recipe(optimiser={"name": name, **TRAINABLE.get(name, {})}, ema=0.5, clip=1.0, mixup=0.2, **decay)
    made = fitted(model, chosen, masks={layer: mask})
    assert bool((weight[~mask] == 0).all())
    assert bool((weight[mask] != before[mask]).all()), "the others move"
    assert made.history.nonzero == [int(mask.sum())] * 5


# What F322 compares


def settings(model=None, **changes):
    return fitted(model or network(), recipe(epochs=1, **changes)).meter.consumption.settings


def test_settings_of_plain_sgd_are_as_they_always_were():
    found = settings(weight_decay=5e-4, nesterov=True)
    assert list(found.items()) == [
        ("optimiser", "sgd"),
        ("momentum", 0.9),
        ("dampening", 0),
        ("weight_decay", 5e-4),
        ("nesterov", True),
    ]


def test_settings_of_adamw_are_all_of_its_own():
    found = settings(optimiser=ADAMW, weight_decay=0.05)
    assert {key: found[key] for key in ("optimiser", "betas", "eps", "weight_decay", "amsgrad")} == {
        "optimiser": "adamw",
        "betas": [0.9, 0.95],
        "eps": 1e-6,
        "weight_decay": 0.05,
        "amsgrad": False,
    }
    assert not set(found) & {"lr", "params", "fused", "foreach", "capturable", "momentum"}


def test_adam_with_decoupled_decay_is_not_adam():
    adam = settings(optimiser="adam", weight_decay=0.05)
    decoupled = settings(optimiser={"name": "adam", "decoupled_weight_decay": True}, weight_decay=0.05)
    assert (adam.pop("decoupled_weight_decay"), decoupled.pop("decoupled_weight_decay")) == (False, True)
    assert adam == decoupled


@pytest.mark.parametrize(
    ("change", "noted"),
    [
        ({"weight_decay": 5e-4, "no_decay": ["norm"]}, {"weight_decay": [0.0, 5e-4], "no_decay": ["norm"]}),
        ({"mixup": 0.2}, {"mixup": 0.2}),
        ({"cutmix": 1.0}, {"cutmix": 1.0}),
        ({"ema": 0.999}, {"ema": "0.999"}),
        ({"ema": 0.999, "ema_every": 32}, {"ema": "0.999, every 32 steps"}),
        ({"clip": 1.0}, {"clip": "norm 1"}),
        ({"clip": 0.5, "clip_by": "value"}, {"clip": "value 0.5"}),
        ({"accumulate": 2}, {"accumulation": 2}),
        ({"optimiser": {"name": "sgd", "maximize": False}}, {}),
        ({"optimiser": {"name": "sgd", "dampening": 0.1}}, {"dampening": 0.1}),
    ],
)
def test_what_differs_from_a_plain_step_is_told(change, noted):
    assert settings(**change) == settings() | noted


def test_a_methods_own_groups_are_seen():
    model, consumption = network(), Consumption()
    groups = [{"params": [model[0].weight], "weight_decay": 0.0}, {"params": [model[3].weight]}]
    own = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.99))
    with Meter(model, consumption):
        model(DATA.normalise(DATA.train.images[:4], torch.float64)).sum().backward()
        own.step()
    assert consumption.settings["optimiser"] == "adamw"
    assert consumption.settings["weight_decay"] == [0.0, 0.01]
    assert consumption.settings["betas"] == [0.9, 0.99]


# What is refused


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"optimiser": "adamz"}, "name: unknown optimiser 'adamz'. Did you mean 'adam'?"),
        ({"optimiser": "lbfgs"}, "name: LBFGS computes the loss anew within a step"),
        ({"optimiser": "sparseadam"}, "name: SparseAdam takes sparse gradients only"),
        (
            {"optimiser": {"name": "adamw", "beta": [0.9, 0.99]}},
            "beta: AdamW has no such option. Did you mean 'betas'?",
        ),
        ({"optimiser": {"name": "adamw", "betas": [0.9, 1.5]}}, "betas: AdamW refuses it: ValueError: Invalid beta"),
        ({"optimiser": {"name": "adamw", "betas": 0.9}}, "betas: AdamW refuses it"),
        ({"optimiser": {"name": "adamw", "eps": "small"}}, "eps: AdamW refuses it"),
        ({"optimiser": {"name": "adamw", "lr": 0.1}}, "lr: cannot be given: the rate is 'lr' of each stage"),
        ({"optimiser": {"name": "adamw", "fused": True}}, "fused: cannot be given: the harness says how"),
        ({"optimiser": {"name": "adamw", "weight_decay": 0.1}}, "weight_decay: is a key of the recipe itself"),
        ({"optimiser": {"name": "sgd", "momentum": 0.5}}, "momentum: is a key of the recipe itself"),
        ({"optimiser": "rprop", "weight_decay": 0.1}, "weight_decay: Rprop has none"),
    ],
)
def test_what_torch_cannot_make_is_refused_in_one_line(change, message):
    for refuse in (optimisers.check, lambda chosen: optimisers.make(chosen, network(), 0.1)):
        with pytest.raises(ConfigError) as caught:
            refuse(recipe(**change))
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)


def test_an_optimiser_that_does_not_take_a_network_says_so():
    with pytest.raises(ConfigError, match="optimiser 'muon' does not take this network: ValueError: Muon only"):
        trainer(network(), recipe(optimiser="muon"))


def test_a_pattern_without_decay_must_fit_a_parameter():
    chosen = recipe(weight_decay=0.1, no_decay=["pos_embed"])
    with pytest.raises(ConfigError, match="no_decay: 'pos_embed' fits no parameter of the network"):
        trainer(network(), chosen)


def test_which_parameters_decay():
    attention = nn.ModuleDict({"attention": nn.MultiheadAttention(4, 2), "norm": nn.LayerNorm(4)})
    attention.register_parameter("pos_embed", nn.Parameter(torch.zeros(1, 3, 4)))
    assert optimisers.undecayed(attention, ["bias"]) == {
        "attention.in_proj_bias",
        "attention.out_proj.bias",
        "norm.bias",
    }
    assert optimisers.undecayed(attention, ["norm", "pos_*"]) == {"norm.weight", "norm.bias", "pos_embed"}


def test_mixing_wants_images():
    from pruneaudit.training.mixing import Mixing

    mix = Mixing(recipe(mixup=0.2), 10)
    with pytest.raises(ConfigError, match=r"mix images \[B, C, H, W\]; these inputs are \[4, 7\]"):
        mix(torch.zeros(4, 7), torch.zeros(4, dtype=torch.int64), 0, "retrain", 0, 0)
