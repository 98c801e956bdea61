"""MACs of what multiplies matrices without being a layer: both counters see it, whatever kernel computes it."""

import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pruneaudit.measure import skeleton
from pruneaudit.measure.cost import macs, macs_by_layer, macs_by_torch
from pruneaudit.measure.skeleton import asked_once, on_skeleton

torch.set_num_threads(1)

#: ViT-Ti/16 on 224 x 224 images: 197 tokens of width 192, 12 blocks with 3 heads and 768 hidden neurons, 1,000 classes.
TOKENS, WIDTH, BLOCKS, HIDDEN, CLASSES = 197, 192, 12, 768, 1000
PATCHES = 196 * 3 * 16 * 16 * WIDTH
BLOCK = TOKENS * WIDTH * (4 * WIDTH + 2 * HIDDEN) + 2 * TOKENS * TOKENS * WIDTH
VIT_TINY = PATCHES + BLOCKS * BLOCK + WIDTH * CLASSES


def by_timm():
    timm = pytest.importorskip("timm")
    return timm.create_model("deit_tiny_patch16_224")


def by_torchvision():
    from torchvision.models import VisionTransformer

    return VisionTransformer(224, 16, BLOCKS, 3, WIDTH, HIDDEN)


@pytest.mark.parametrize("build", [by_timm, by_torchvision])
def test_attention_of_a_vision_transformer_counts(build):
    model, example = build().eval(), torch.zeros(1, 3, 224, 224)
    fast = torch.backends.mha.get_fastpath_enabled()
    assert VIT_TINY == 1_253_683_200
    assert macs(model, example) == macs_by_torch(model, example) == VIT_TINY
    assert torch.backends.mha.get_fastpath_enabled() is fast


class Grouped(nn.Module):
    """Eight query heads that share two key and value heads, on five tokens of width 16."""

    def __init__(self, fused):
        super().__init__()
        self.query, self.key, self.value = nn.Linear(16, 16), nn.Linear(16, 4), nn.Linear(16, 4)
        self.fused = fused

    def forward(self, tokens):
        query, key, value = (
            layer(tokens).unflatten(-1, (-1, 2)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        if self.fused:
            return F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True).mean((1, 2))
        key, value = (each.repeat_interleave(4, dim=1) for each in (key, value))
        return ((query @ key.transpose(-1, -2)).softmax(-1) @ value).mean((1, 2))


@pytest.mark.parametrize("fused", [True, False])
def test_every_query_head_counts_and_belongs_to_the_module_that_computes_it(fused):
    model, example = nn.Sequential(nn.Linear(16, 16), Grouped(fused)), torch.zeros(1, 5, 16)
    products = 2 * 8 * 5 * 5 * 2
    expected = {"0": 5 * 256, "1": products, "1.query": 5 * 256, "1.key": 5 * 64, "1.value": 5 * 64}
    assert macs_by_layer(model, example) == expected
    assert macs_by_torch(model, example) == sum(expected.values())


def test_a_layer_that_two_modules_hold_is_counted_once_for_each_call():
    layer = nn.Linear(4, 4)
    model = nn.Sequential(nn.Sequential(layer), nn.Sequential(layer))
    example = torch.zeros(1, 4)
    assert macs_by_layer(model, example) == {"0.0": 32}
    assert macs_by_torch(model, example) == 32


class LooksAtValues(nn.Module):
    """A network that cannot run without weights."""

    def __init__(self):
        super().__init__()
        self.layer, self.scale = nn.Linear(4, 4), torch.ones(4)

    def forward(self, values):
        return self.layer(values * self.scale) if float(self.layer.weight.sum()) else values


@pytest.fixture
def no_small_ones(monkeypatch):
    """Whatever the size, and whatever is loaded."""
    monkeypatch.setattr(skeleton, "_SMALL", 0)


@pytest.mark.usefixtures("no_small_ones")
@pytest.mark.parametrize(("build", "device"), [(LooksAtValues, "cpu"), (lambda: nn.Linear(4, 4), "meta")])
def test_a_network_is_asked_without_weights_where_it_runs_so(build, device):
    model = build().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def ask(network, inputs):
        network(inputs)
        assert not network.training and network is not model
        return inputs.device.type

    assert on_skeleton(model, torch.ones(1, 4), ask) == device
    assert model.training and all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert macs(model, torch.ones(1, 4)) == macs_by_torch(model, torch.ones(1, 4)) == 16


def test_a_small_network_does_not_load_torchs_compiler(monkeypatch):
    monkeypatch.delitem(sys.modules, "torch._dynamo", raising=False)
    assert on_skeleton(nn.Linear(4, 4), torch.ones(1, 4), lambda _, inputs: inputs.device.type) == "cpu"
    monkeypatch.setattr(skeleton, "_SMALL", 19)
    assert on_skeleton(nn.Linear(4, 4), torch.ones(1, 4), lambda _, inputs: inputs.device.type) == "meta"


class Scaled(nn.Module):
    """A network with an attribute, and two layers that may be one."""

    def __init__(self, scale=1.0, tied=False):
        super().__init__()
        self.scale, self.first = scale, nn.Linear(4, 4)
        self.second = self.first if tied else nn.Linear(4, 4)

    def forward(self, values):
        return self.second(self.first(values * self.scale))


def hooked():
    network = Scaled()
    network.register_forward_hook(lambda *_: None)
    return network


@pytest.mark.usefixtures("no_small_ones")
def test_networks_that_are_built_alike_are_asked_once():
    asked = []

    def times(network, question="a question", inputs=1):
        before = len(asked)
        asked_once((question,), network, torch.ones(inputs, 4), lambda skeleton, _: asked.append(skeleton))
        return len(asked) - before

    assert times(Scaled()) == 1
    # Other weights do not make it another network; all of this does.
    assert times(Scaled()) == 0
    assert times(Scaled(), question="another") == times(Scaled(), inputs=2) == 1
    assert times(Scaled(scale=2.0)) == times(Scaled(tied=True)) == times(Scaled().double()) == 1
    assert times(Scaled(scale=2.0)) == 0
    frozen = Scaled()
    frozen.first.requires_grad_(False)
    assert times(frozen) == 1
    # What cannot be written is asked each time.
    assert times(hooked()) == times(hooked()) == 1


@pytest.mark.usefixtures("no_small_ones")
def test_what_a_replaced_class_computes_is_asked_again(monkeypatch):
    def ask():
        return asked_once(("sum",), Scaled(), torch.ones(1, 4), lambda network, inputs: tuple(network(inputs).shape))

    assert ask() == (1, 4)
    monkeypatch.setattr(Scaled, "forward", lambda self, values: self.first(values).sum(dim=1))
    assert ask() == (1,)


@pytest.mark.usefixtures("no_small_ones")
def test_an_answer_that_took_values_is_not_kept():
    asked = []
    for _ in range(2):
        asked_once(
            ("values",), LooksAtValues(), torch.ones(1, 4), lambda network, inputs: asked.append(network(inputs))
        )
    assert len(asked) == 2
