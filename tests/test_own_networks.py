"""Networks that users bring: how they are named, built, initialised, refused, and told from an edited version."""

import random
import re
from importlib.metadata import PackageNotFoundError, version

import numpy as np
import pytest
import torch
from torch import nn

from pruneaudit.errors import ConfigError
from pruneaudit.streams import generator, isolated
from pruneaudit.training.loop import Trainer
from pruneaudit.training.metering import Meter
from pruneaudit.workloads.data import load
from pruneaudit.workloads.models import build
from pruneaudit.workloads.models.brought import check_logits
from pruneaudit.workloads.models.initialise import initialise
from pruneaudit.workloads.networks import Network, version_of
from pruneaudit.workloads.recipes import Recipe
from pruneaudit.workloads.schema import DataConfig

NETS = '''
"""Networks of a test."""
import torch
from torch import nn

import blocks_of_a_test

READY = nn.Linear(1, 1)


class Small(nn.Module):
    def __init__(self, channels, num_classes, width=4, stages=()):
        super().__init__()
        self.stages = stages
        self.conv = blocks_of_a_test.conv(channels, width)
        self.token = nn.Parameter(torch.randn(width))
        self.norm = nn.GroupNorm(2, width)
        self.fc = nn.Linear(width, num_classes)

    def forward(self, images):
        return self.fc(self.norm(self.conv(images)).mean((2, 3)) + self.token)


def fixed(width=4):
    return Small(3, 5, width)


def no_network():
    return "a network"


def broken():
    raise RuntimeError("no such\\nweights")


def plain(in_chans, n_classes):
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(n_classes))


def pair(num_classes):
    class Pair(Small):
        def forward(self, images):
            logits = super().forward(images)
            return (logits, logits) if self.training else logits
    return Pair(3, num_classes)
'''


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "nets.py").write_text(NETS)
    (tmp_path / "blocks_of_a_test.py").write_text(
        "from torch import nn\n\n\ndef conv(inputs, width):\n    return nn.Conv2d(inputs, width, 3)\n"
    )
    return tmp_path


def network(folder, model, **args):
    return Network(model=model, args=args, folder=folder)


# How they are named and built


def test_a_file_gets_the_sizes_of_the_data_under_its_own_names(folder):
    small = build(network(folder, "nets.py:Small"), 2, 7)
    assert small.conv.weight.shape == (4, 2, 3, 3) and small.fc.out_features == 7


def test_model_args_arrive_as_toml_has_them_and_win_over_the_data(folder):
    small = build(network(folder, "nets.py:Small", width=6, stages=[1, [2, 3]], num_classes=9), 2, 7)
    assert small.stages == [1, [2, 3]] and small.fc.in_features == 6 and small.fc.out_features == 9


def test_code_without_parameters_for_the_sizes_gets_model_args_alone(folder):
    assert build(network(folder, "nets.py:fixed", width=8), 1, 2).fc.in_features == 8


def test_a_module_on_the_path(folder, monkeypatch):
    (folder / "audit_networks_of_a_test.py").write_text(NETS)
    monkeypatch.syspath_prepend(folder)
    assert build(Network(model="audit_networks_of_a_test:Small"), 3, 4).fc.out_features == 4


@pytest.mark.parametrize(
    ("model", "channels"),
    [("torchvision:mobilenet_v3_small", 3), ("timm:resnet10t", 1), ("timm:vit_tiny_patch16_224", 3)],
)
def test_libraries_build_for_the_classes_of_the_data(model, channels):
    if model.startswith("timm:"):
        pytest.importorskip("timm")
    args = {"img_size": 32, "depth": 1} if "vit" in model else {}
    built = build(Network(model=model, args=args), channels, 7).eval()
    assert built(torch.zeros(1, channels, 32, 32)).shape == (1, 7)


def test_a_network_of_torchvision_takes_arguments_of_its_class():
    built = build(Network(model="torchvision:mobilenet_v2", args={"width_mult": 0.25}), 3, 7)
    assert sum(parameter.numel() for parameter in built.parameters()) < 300_000


def test_a_built_in_network_refuses_what_it_does_not_take():
    with pytest.raises(ConfigError, match=r"model 'resnet20' cannot be built with these model_args: .*'widht'"):
        build(Network(model="resnet20", args={"widht": 2}), 3, 10)


@pytest.mark.parametrize(
    ("model", "said"),
    [
        ("nets.py:Smal", r"unknown name 'Smal'\. Did you mean 'Small'\?"),
        ("nets.py:Small.inner", "nothing is called 'Small.inner' there"),
        ("nets.py:no_network", r"returns str, expected a torch\.nn\.Module"),
        ("nets.py:broken", r"cannot be built: RuntimeError: no such weights"),
        ("nets.py:READY", "is a Linear; name a class or function that builds the network"),
        ("absent.py:Small", r"absent\.py:Small: no such file"),
        ("nets.py", r"say what builds the network, as in 'nets\.py:NAME'"),
        ("nets:", "expected 'file.py:name' or 'package.module:name'"),
        ("no_such_module_of_a_test:Small", "cannot be imported: ModuleNotFoundError"),
        ("torchvision:resnt18", r"torchvision has no such classifier\. Did you mean 'resnet18'\?"),
        ("torchvision:", "say which network of torchvision"),
        ("timm:resnt18", r"timm has no such network\. Did you mean 'resnet18'\?"),
    ],
)
def test_what_cannot_be_built_is_one_line(folder, model, said):
    if model.startswith("timm:"):
        pytest.importorskip("timm")
    with pytest.raises(ConfigError, match=said) as caught:
        version_of(network(folder, model))
        build(network(folder, model), 3, 10)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [{"a": 1}, None, float("nan"), [1, {"a": 2}]])
def test_model_args_are_plain_values(value):
    with pytest.raises(ValueError, match="expected a"):
        Network(model="resnet20", args={"depth": value})


def test_a_library_that_is_not_there_is_named_with_what_to_install(monkeypatch):
    def absent(name):
        raise PackageNotFoundError(name)

    monkeypatch.setattr("pruneaudit.workloads.networks.version", absent)
    with pytest.raises(ConfigError, match="needs timm, which is not installed: pip install 'pruneaudit"):
        version_of(Network(model="timm:resnet18"))


# What it returns


@pytest.mark.parametrize(
    ("model", "classes", "shape", "said"),
    [
        ("nets.py:fixed", 10, (3, 8, 8), r"returns \[2, 5\] for two inputs in training, expected logits \[2, 10\]"),
        ("nets.py:pair", 5, (3, 8, 8), "returns tuple in training, expected one tensor of logits"),
        ("nets.py:fixed", 5, (1, 8, 8), r"cannot take inputs of shape \[N, 1, 8, 8\] in training: RuntimeError"),
    ],
)
def test_what_maps_no_batch_to_logits_is_refused(folder, model, classes, shape, said):
    with pytest.raises(ConfigError, match=said) as caught:
        check_logits(network(folder, model), shape[0], classes, shape, torch.float32)
    assert "\n" not in str(caught.value)


def test_logits_of_inputs_that_are_no_images(folder):
    check_logits(network(folder, "nets.py:fixed"), 3, 5, (3, 4, 9), torch.float32)


# Fresh weights


def drawn(model, seed):
    initialise(model, generator(seed, "pretrain", "initialise"))
    return model.state_dict()


def test_layers_of_any_kind_are_drawn_from_the_seed(folder):
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(
                [
                    nn.Conv1d(2, 3, 3),
                    nn.ConvTranspose2d(2, 3, 2),
                    nn.Embedding(5, 4),
                    nn.LayerNorm(4),
                    nn.GroupNorm(2, 4),
                    nn.PReLU(),
                    nn.LSTM(3, 4),
                    nn.MultiheadAttention(4, 2),
                    nn.Linear(4, 4),
                ]
            )

    torch.manual_seed(0)
    first = drawn(Odd(), seed=0)
    torch.manual_seed(1)
    again, other = drawn(Odd(), seed=0), drawn(Odd(), seed=1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    constant = {"layers.3", "layers.4", "layers.5"}
    zero = ("in_proj_bias", "out_proj.bias", "0.bias", "1.bias", "8.bias")
    for name in first:
        fixed = name.rpartition(".")[0] in constant or name.endswith(zero)
        assert torch.equal(first[name], other[name]) == fixed, name


def test_parameters_of_no_layer_are_the_same_whenever_the_network_is_built(folder):
    torch.manual_seed(0)
    first = build(network(folder, "nets.py:Small"), 3, 5)
    torch.manual_seed(1)
    assert torch.equal(first.token, build(network(folder, "nets.py:Small"), 3, 5).token)


def test_building_and_drawing_leave_the_global_generators_alone(folder):
    def states():
        return torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()

    before = states()
    initialise(build(network(folder, "nets.py:Small"), 3, 5), generator(0))
    with isolated(7):
        torch.rand(3), np.random.rand(3), random.random()
    after = states()
    assert torch.equal(before[0], after[0]) and before[1:] == after[1:]


def test_a_layer_that_cannot_draw_its_weights_is_named():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(2))

        def reset_parameters(self, scale):
            self.weight.fill_(scale)

    with pytest.raises(ConfigError, match=r"layer '0' \(Odd\) cannot initialise itself: TypeError"):
        initialise(nn.Sequential(Odd()), generator(0))


def test_dropout_is_a_function_of_seed_stage_and_epoch():
    """So that a resumed run, and one beside others, sees the same noise."""
    config = DataConfig(name="digits", mean=(0.3,), std=(0.4,))
    recipe = Recipe(epochs=2, lr="0:0.1", batch=512)

    def trained(seed, noise):
        model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(64, 10))
        drawn(model, seed=0)
        torch.manual_seed(noise)
        with Meter(model) as meter:
            Trainer(model, load(config), recipe, seed, "pretrain", meter).fit()
        return model[2].weight

    first = trained(seed=0, noise=1)
    assert torch.equal(first, trained(seed=0, noise=2)) and not torch.equal(first, trained(seed=1, noise=1))


# An edited network is another one


def test_the_version_follows_the_file_and_what_it_imports(folder):
    wanted = network(folder, "nets.py:Small")
    before = version_of(wanted)
    assert re.fullmatch("[0-9a-f]{64}", before)
    assert version_of(wanted) == before
    helper = folder / "blocks_of_a_test.py"
    helper.write_text(helper.read_text().replace("width, 3", "width, 5"))
    edited = version_of(wanted)
    assert edited != before
    (folder / "unrelated.py").write_text("x = 1\n")
    assert version_of(wanted) == edited


def test_packages_of_another_environment_are_nobodys_own(folder, monkeypatch):
    """Such as the system's under a virtual environment: reading all that torch imports would take minutes."""
    helper, elsewhere = folder / "blocks_of_a_test.py", folder / "lib" / "site-packages"
    elsewhere.mkdir(parents=True)
    before = version_of(network(folder, "nets.py:Small"))
    helper.rename(elsewhere / helper.name)
    monkeypatch.syspath_prepend(elsewhere)
    alone = version_of(network(folder, "nets.py:Small"))
    assert alone != before
    (elsewhere / helper.name).write_text("x = 1\n")
    assert version_of(network(folder, "nets.py:Small")) == alone


def test_the_version_names_libraries_that_supply_the_network(tmp_path):
    release = version("torchvision").partition("+")[0]
    assert version_of(Network(model="torchvision:resnet18")) == f"torchvision {release}"
    assert version_of(Network(model="torchvision.models.resnet:resnet18")) == f"torchvision {release}"
    (tmp_path / "mine.py").write_text("from torchvision.models import resnet18\n")
    assert version_of(network(tmp_path, "mine.py:resnet18")).endswith(f" torchvision {release}")
    assert version_of(Network(model="resnet56")) == ""
