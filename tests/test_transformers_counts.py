"""MACs of transformers as papers have them, known from their configurations alone: no weight is ever there."""

import importlib.util
import shutil
from pathlib import Path

import folders
import pytest
import torch
from torch import nn

from pruneaudit.catalog.discovery import Catalog
from pruneaudit.measure.cost import macs, macs_by_torch, parameters
from pruneaudit.pruning import shapes
from pruneaudit.pruning.ratios import removed_filters

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


BY_PATH = Path(__file__).resolve().parent.parent / "protocols" / "by-path"


def test_workloads_of_vision_transformers_are_those_networks():
    pytest.importorskip("timm")
    names = ("vit-b-16-imagenet", "deit-tiny-imagenet")
    catalog = Catalog(extra_workloads=tuple(str(BY_PATH / f"{name}.toml") for name in names))
    for name, sizes, weights in zip(names, ((768, 3072), (192, 768)), (86_567_656, 5_717_416), strict=True):
        with torch.device("meta"):
            network = shapes.dense_network(catalog.workload(name))
        assert parameters(network) == weights
        assert macs_by_torch(network, torch.zeros(1, 3, 224, 224, device="meta")) == vit(*sizes)


def pruned(width, heads, hidden, ratio, tokens=197, patch=16, depth=12, classes=1000):
    """MACs and parameters of a vision transformer that lost a share of the heads and of the neurons of each block.

    The residual width stays: patches, positions, normalisations and the classifier are those of the dense network.
    """
    head = width // heads
    inner, neurons = (heads - round(heads * ratio)) * head, hidden - removed_filters(hidden, ratio)
    block = tokens * (4 * width * inner + 2 * width * neurons) + 2 * tokens * tokens * inner
    macs = (tokens - 1) * 3 * patch * patch * width + depth * block + width * classes
    # Queries, keys and values with their biases; what reads them; two layers of the MLP; two normalisations.
    each = 3 * (width + 1) * inner + (inner + 1) * width + (width + 1) * neurons + (neurons + 1) * width + 4 * width
    rest = 3 * patch * patch * width + width + width + tokens * width + 2 * width + (width + 1) * classes
    return macs, depth * each + rest


@pytest.mark.parametrize(
    ("name", "sizes", "golden"),
    [
        ("vit-b-16-imagenet", (768, 12, 3072), {0.25: (13_201_964_544, 65_317_864), 0.5: (8_840_100_864, 44_068_072)}),
        ("deit-tiny-imagenet", (192, 3, 768), {0.25: (903_584_256, 4_238_248), 0.5: (553_485_312, 2_759_080)}),
    ],
)
def test_pruned_vision_transformers_have_what_their_formula_says(name, sizes, golden):
    """Counted by layers, and by the formula above, which knows no layer."""
    pytest.importorskip("timm")
    workload = Catalog(extra_workloads=(str(BY_PATH / f"{name}.toml"),)).workload(name)
    assert pruned(*sizes, 0.0) == (vit(sizes[0], sizes[2]), shapes.shape(workload).params)
    for ratio, expected in golden.items():
        small = shapes.shape_of(workload, shapes.widths_at(workload, ratio))
        assert (small.macs, small.params) == (small.recounted, small.params) == expected
        assert pruned(*sizes, ratio) == expected


@transformers
@pytest.mark.parametrize("kind", ["llama-3-8b", "llama-3-8b-hellaswag", "llava-1.5-7b"])
def test_a_decoder_by_path_is_counted_dense_and_pruned(tmp_path, kind):
    """As wide as the real ones, two layers of them."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

    width, length = 4096, 2048
    is_llama = kind.startswith("llama")
    hidden, vocabulary, groups = (14336, 128256, 8) if is_llama else (11008, 32064, 32)
    text = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=hidden,
        num_hidden_layers=2,
        num_attention_heads=32,
        num_key_value_heads=groups,
    )
    tower = CLIPVisionConfig(hidden_size=1024, intermediate_size=4096, num_hidden_layers=2, num_attention_heads=16)
    (text if is_llama else LlavaConfig(text_config=text, vision_config=tower)).save_pretrained(tmp_path / "model")
    folders.tokenizer(tmp_path / "model")
    (tmp_path / "texts").mkdir()
    for number, split in enumerate(("train", "validation", "test")):
        (tmp_path / "texts" / f"{split}.txt").write_text(" ".join(folders.sentences(number, 250)))
    shutil.copy(BY_PATH / f"{kind}.toml", tmp_path)
    workload = Catalog(extra_workloads=(str(tmp_path / f"{kind}.toml"),)).workload(kind)
    stay = 1 - removed_filters(10, 0.5) / 10

    def expected(share):
        each = (2 * width * width + 2 * width * width * groups // 32 + 3 * width * hidden) * share
        return length * (2 * each + width * vocabulary) + 2 * 2 * length * length * width * share

    known, widths = shapes.costs(workload), shapes.widths_at(workload, 0.5)
    assert known.of_widths({}) == expected(1.0) and known.of_widths(widths) == expected(stay)
    assert all("vision" not in name for name in widths) and len(widths) == 4
