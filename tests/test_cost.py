"""MACs of what multiplies matrices without being a layer: both counters see it, whatever kernel computes it."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pruneaudit.measure.cost import macs, macs_by_layer, macs_by_torch
from pruneaudit.measure.skeleton import on_skeleton

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
