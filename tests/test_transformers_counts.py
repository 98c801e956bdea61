"""MACs of transformers as papers have them, known from their configurations alone: no weight is ever there."""

import importlib.util

import pytest
import torch
from torch import nn

from pruneaudit.measure.cost import macs, macs_by_torch, parameters

torch.set_num_threads(1)

transformers = pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None, reason="needs the extra pruneaudit[transformers]"
)


class Decoder(nn.Module):
    """Hugging Face's Llama as a workload takes it."""

    def __init__(self, **sizes):
        super().__init__()
        from transformers import LlamaConfig, LlamaForCausalLM

        self.net = LlamaForCausalLM(LlamaConfig(**sizes))

    def forward(self, tokens):
        return self.net(input_ids=tokens, use_cache=False).logits.transpose(1, 2)


@transformers
def test_llama_3_8b_is_counted_by_its_configuration():
    width, hidden, layers, vocabulary, length = 4096, 14336, 32, 128256, 2048
    with torch.device("meta"):
        model = Decoder(
            vocab_size=vocabulary,
            hidden_size=width,
            intermediate_size=hidden,
            num_hidden_layers=layers,
            num_attention_heads=32,
            num_key_value_heads=8,
            max_position_embeddings=8192,
        )
    tokens = torch.zeros(1, length, dtype=torch.int64, device="meta")
    # Queries and outputs, keys and values of a quarter as many heads, and three layers of the MLP.
    each = 2 * width * width + 2 * width * width // 4 + 3 * width * hidden
    expected = length * (layers * each + width * vocabulary) + layers * 2 * length * length * width
    assert parameters(model) == 8_030_261_248  # as its card says
    assert macs(model, tokens) == macs_by_torch(model, tokens) == expected
    assert all(parameter.is_meta for parameter in model.parameters())


def vit(width, hidden, tokens=197, patch=16, depth=12, classes=1000):
    """MACs of a vision transformer: patches, blocks of four products with weights and two without, classifier."""
    block = tokens * (4 * width * width + 2 * width * hidden) + 2 * tokens * tokens * width
    return (tokens - 1) * 3 * patch * patch * width + depth * block + width * classes


def test_vit_b_16_has_17_56_g_and_deit_ti_1_25():
    """In the first fvcore and torch both miss attention, where it is fused: 16.9 and 11.3 G."""
    torchvision, timm = pytest.importorskip("torchvision"), pytest.importorskip("timm")
    with torch.device("meta"):
        large = torchvision.models.get_model("vit_b_16", weights=None)
    image = torch.zeros(1, 3, 224, 224)
    found = macs_by_torch(large, image.to("meta"))
    assert (round(found / 1e9, 2), found) == (17.56, vit(768, 3072))
    small = timm.create_model("deit_tiny_patch16_224", pretrained=False)
    found = macs(small, image)
    assert (round(found / 1e9, 2), found, found) == (1.25, macs_by_torch(small, image), vit(192, 768))
