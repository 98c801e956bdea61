"""Heads, groups of heads and hidden neurons of transformers: found, tried, counted and cut like all other units."""

import copy
import importlib.util
from functools import partial

import pytest
import torch
from torch import nn

from pruneaudit.campaign.executors.local import LocalExecutor
from pruneaudit.campaign.planner import Campaign
from pruneaudit.campaign.stages import Runtime, Stages
from pruneaudit.catalog.cells import Cell
from pruneaudit.catalog.discovery import Catalog
from pruneaudit.catalog.settings import Settings
from pruneaudit.errors import ConfigError, MethodError
from pruneaudit.ledger.store import Ledger
from pruneaudit.measure.cost import macs, macs_by_torch
from pruneaudit.pruning.attention import Heads, attention_of, open_heads
from pruneaudit.pruning.equivalence import TOLERANCE, difference, trained_like
from pruneaudit.pruning.layers import AUTO, prunable_layers, prunable_units
from pruneaudit.pruning.removal import block_name, masked, shrink
from pruneaudit.pruning.units import Unit, Wiring
from pruneaudit.report.results import gather_ledger
from pruneaudit.streams import generator

torch.set_num_threads(1)

IMAGES = torch.zeros(1, 3, 16, 16)
TOKENS = torch.zeros(1, 9, dtype=torch.int64)
ENDS = {"bos_token_id": 0, "eos_token_id": 1}
transformers = pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None, reason="needs the extra pruneaudit[transformers]"
)


class Logits(nn.Module):
    """A network of Hugging Face as the arena takes it: logits of the last token, ``[N, words]``, or of the classes."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        # With a cache, torch-pruning finds no end.
        self.options = {} if type(net).__name__.startswith("Bert") else {"use_cache": False}

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        logits = self.net(input_ids=tokens, **self.options).logits
        return logits[:, -1] if logits.dim() == 3 else logits


class Encoder(nn.Module):
    """Torch's own encoder layers, whose fast path reads the attention's weights without calling it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(4, 12)
        layer = nn.TransformerEncoderLayer(12, 3, 20, 0.0, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(12, 5)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.head(self.layers(self.embed(inputs)).mean(1))


def torchvision_vit() -> nn.Module:
    import torchvision

    return torchvision.models.VisionTransformer(16, 8, 2, 4, 32, 48, num_classes=5)


def timm_vit(**options: object) -> nn.Module:
    import timm

    sizes = {"img_size": 16, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4, "num_classes": 5}
    return timm.create_model("deit_tiny_patch16_224", **sizes, **options)


def hugging_face(kind: str, groups: int = 8, **options: object) -> nn.Module:
    import transformers

    sizes = {"vocab_size": 30, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, **ENDS}
    if kind == "Bert":
        config = transformers.BertConfig(**sizes, num_attention_heads=4, num_labels=5)
        return Logits(transformers.BertForSequenceClassification(config))
    heads = {"num_attention_heads": 8, "num_key_value_heads": groups}
    name = "Gemma3TextConfig" if kind == "Gemma3" else f"{kind}Config"
    return Logits(getattr(transformers, f"{kind}ForCausalLM")(getattr(transformers, name)(**sizes, **heads, **options)))


def layers_of(prefix: str, heads: str, neurons: str, sizes: tuple[tuple[int, int], tuple[int, int]]):
    """Name, channels and bundle of the units that two blocks should have."""
    (channels, width), (hidden, _) = sizes
    return [
        unit
        for block in range(2)
        for unit in ((f"{prefix}{block}.{heads}", channels, width), (f"{prefix}{block}.{neurons}", hidden, 1))
    ]


LLAMA = ("net.model.layers.", "self_attn.{}_proj", "mlp.gate_proj")
NETWORKS = {
    "torchvision": (
        torchvision_vit,
        IMAGES,
        layers_of("encoder.layers.encoder_layer_", "self_attention", "mlp.0", ((32, 8), (48, 1))),
    ),
    "torch": (Encoder, torch.zeros(1, 6, 4), layers_of("layers.layers.", "self_attn", "linear1", ((12, 4), (20, 1)))),
    "timm": (timm_vit, IMAGES, layers_of("blocks.", "attn.qkv", "mlp.fc1", ((32, 8), (128, 1)))),
    "timm-qk-norm": (
        partial(timm_vit, qk_norm=True),
        IMAGES,
        layers_of("blocks.", "attn.qkv", "mlp.fc1", ((32, 8), (128, 1))),
    ),
}
HUGGING_FACE = {
    "llama": (partial(hugging_face, "Llama", 8), "q", 32),
    "llama-gqa-2": (partial(hugging_face, "Llama", 4), "k", 16),
    "llama-gqa-4": (partial(hugging_face, "Llama", 2), "k", 8),
    "llama-gqa-8": (partial(hugging_face, "Llama", 2, head_dim=2), "k", 4),
    "qwen3": (partial(hugging_face, "Qwen3", 4, head_dim=4), "k", 16),
    "gemma3": (partial(hugging_face, "Gemma3", 4, head_dim=4), "k", 16),
}


def found(model: nn.Module, example: torch.Tensor) -> tuple[list[Unit], dict[str, str]]:
    return prunable_units(model, Wiring(model, example), example, AUTO)


def some(units: list[Unit], seed: int = 0) -> dict[str, list[int]]:
    """Different numbers of channels of each unit, at random: layers then differ in width."""
    draw = generator(seed, "some")
    kept = {}
    for place, unit in enumerate(units):
        _, channels = unit.candidates(torch.rand(unit.channels, generator=draw))
        stay = max(1, len(channels) * (1 + place % 3) // 4)
        order = torch.randperm(len(channels), generator=draw)[:stay]
        kept[unit.name] = channels[order].flatten().sort().values.tolist()
    return kept


def checked(model: nn.Module, example: torch.Tensor, expected: list[tuple[str, int, int]]) -> None:
    """Units are these; masked computes what shrunk computes; both counters and the plan say what is left."""
    units, refused = found(model, example)
    assert [(unit.name, unit.channels, unit.bundle) for unit in units] == expected, refused
    network = model.double().eval()
    trained_like(network, generator(0, "weights"))
    before = copy.deepcopy(network.state_dict())
    kept = some(units)
    inputs = example.expand(3, *example.shape[1:])
    inputs = torch.randn(inputs.shape).double() if example.is_floating_point() else torch.randint(30, inputs.shape)
    small = shrink(network, kept, example)
    with torch.no_grad():
        reference, outputs, whole = masked(network, kept, example)(inputs), small(inputs), network(inputs)
    scale = reference.abs().max()
    assert (outputs - reference).abs().max() <= TOLERANCE * scale
    assert (outputs - whole).abs().max() > 1e-3 * scale, "what is removed makes a difference"
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items()), "and is a copy"
    assert macs(small, example) == macs_by_torch(small, example) < macs(network, example)
    fresh = shrink(network, some(units), example)
    fresh.load_state_dict(small.state_dict())
    with torch.no_grad():
        assert torch.equal(fresh(inputs), outputs)


@pytest.mark.parametrize("name", NETWORKS)
def test_heads_and_neurons_are_units_that_can_be_removed(name):
    build, example, expected = NETWORKS[name]
    torch.manual_seed(0)
    checked(build(), example, expected)


@transformers
@pytest.mark.parametrize("name", HUGGING_FACE)
def test_decoders_lose_groups_of_heads_and_gated_neurons(name):
    build, letter, channels = HUGGING_FACE[name]
    model = build()
    width = model.net.model.layers[0].self_attn.head_dim
    expected = layers_of(LLAMA[0], LLAMA[1].format(letter), LLAMA[2], ((channels, width), (48, 1)))
    checked(model, TOKENS, expected)


@transformers
def test_bert_loses_heads_and_neurons():
    layer = "net.bert.encoder.layer."
    expected = layers_of(layer, "attention.self.query", "intermediate.dense", ((32, 8), (48, 1)))
    checked(hugging_face("Bert"), TOKENS, [*expected, ("net.bert.pooler.dense", 32, 1)])


def test_what_has_no_heads_to_lose_is_refused_by_name():
    _, refused = found(torchvision_vit(), IMAGES)
    block = "encoder.layers.encoder_layer_0"
    assert refused[f"{block}.self_attention.out_proj"].startswith("it is a part of torch's attention")
    assert "computes over its channels" in refused[f"{block}.mlp.3"], "the residual width meets a normalisation"
    # A normalisation over all heads at once sees how many there are.
    units, refused = found(timm_vit(scale_attn_norm=True), IMAGES)
    assert [unit.name for unit in units] == ["blocks.0.mlp.fc1", "blocks.1.mlp.fc1"]
    assert "without some of them the network fails" in refused["blocks.0.attn.qkv"]


@transformers
def test_one_group_of_heads_cannot_go_and_gpt2_has_no_layers_of_its_own_heads():
    _, refused = found(hugging_face("Llama", 1), TOKENS)
    assert refused["net.model.layers.0.self_attn.k_proj"] == "it has one group of heads, which cannot go"
    import transformers

    sizes = {"vocab_size": 30, "n_embd": 32, "n_layer": 1, "n_head": 4, **ENDS}
    with pytest.raises(ConfigError, match="finds no unit that can be removed"):
        found(Logits(transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes))), TOKENS)


@transformers
def test_a_query_head_keeps_its_key_value_head():
    """A mapping that has a valid shape and takes query heads from elsewhere is no removal: the trial tells."""
    model = hugging_face("Llama", 4).double().eval()
    units, _ = found(model, TOKENS)
    trained_like(model, generator(0, "weights"))
    assert not difference(model, units, TOKENS)
    heads = units[0]
    for name, wrong in (("q_proj", "reach more"), ("o_proj", "reach more")):
        moved = [
            # All query heads of the next group.
            type(each)(each.module, each.side, each.places.roll(heads.bundle, 0)) if name in each.module else each
            for each in heads.members
        ]
        rogue = Unit(heads.name, heads.channels, heads.producers, tuple(moved), heads.bundle)
        assert wrong in difference(model, [rogue], TOKENS)
    assert "all stay or none" in heads.problem([0, 1, 2, 4, 5, 6, 7]), "half a head"


BLOCKS = {
    "torchvision": (torchvision_vit, IMAGES, "encoder.layers.encoder_layer_{}.self_attention"),
    "timm": (timm_vit, IMAGES, "blocks.{}.attn.qkv"),
    **{
        name: (HUGGING_FACE[name][0], TOKENS, f"net.model.layers.{{}}.self_attn.{HUGGING_FACE[name][1]}_proj")
        for name in ("llama", "llama-gqa-2", "qwen3", "gemma3")
    },
}


@pytest.mark.parametrize("gone", [0, 1])
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=transformers if name in HUGGING_FACE else ()) for name in BLOCKS]
)
def test_blocks_of_libraries_go_as_a_whole(name, gone):
    """Without its parts a block passes on what it gets, which is what silencing them leaves."""
    build, example, pattern = BLOCKS[name]
    torch.manual_seed(0)
    model = build().double().eval()
    trained_like(model, generator(0, "weights"))
    unit = pattern.format(gone)
    assert str(gone) in (block_name(model, unit) or "")
    inputs = torch.randn(3, *example.shape[1:]).double() if example.is_floating_point() else torch.randint(30, (3, 9))
    small = shrink(model, {unit: []}, example)
    with torch.no_grad():
        reference, outputs, whole = masked(model, {unit: []}, example)(inputs), small(inputs), model(inputs)
    scale = reference.abs().max()
    assert (outputs - reference).abs().max() <= TOLERANCE * scale
    assert (outputs - whole).abs().max() > 1e-3 * scale, "what is removed makes a difference"
    assert macs(small, example) == macs_by_torch(small, example) < macs(model, example)
    assert sum(map(torch.numel, small.parameters())) < sum(map(torch.numel, model.parameters()))
    again = shrink(model, {unit: []}, example)
    again.load_state_dict(small.state_dict())
    with torch.no_grad():
        assert torch.equal(again(inputs), outputs)
    if name in HUGGING_FACE and name != "gemma3":
        options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
        said = [small.net.generate(inputs, use_cache=use, **options) for use in (True, False)]
        assert torch.equal(*said)


@transformers
def test_a_block_that_normalises_what_it_passes_on_stays():
    model = hugging_face("Bert")
    assert block_name(model, "net.bert.encoder.layer.0.attention.self.query") is None


@transformers
def test_a_pruned_decoder_generates_the_same_with_and_without_cache():
    torch.manual_seed(0)
    model = hugging_face("Llama", 4).eval()
    units, _ = found(model, TOKENS)
    small = shrink(model, some(units), TOKENS).net
    assert len({layer.self_attn.k_proj.out_features for layer in small.model.layers}) == 2, "layers differ in width"
    prompt = torch.randint(30, (2, 5))
    options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    options |= {"output_scores": True, "return_dict_in_generate": True}
    cached, fresh = (small.generate(prompt, use_cache=use, **options) for use in (True, False))
    assert torch.equal(cached.sequences, fresh.sequences)
    assert torch.allclose(torch.stack(cached.scores), torch.stack(fresh.scores), atol=1e-5)


def test_scores_of_heads_are_means_over_their_channels():
    """The layer that writes queries, keys and values at once is scored as three layers are."""
    model = timm_vit()
    layer = next(layer for layer in prunable_layers(model, IMAGES, ("blocks.0.attn.qkv",)))
    assert layer.channels == 32 and layer.weight.shape == (32, 3, 32) and layer.bias.shape == (32, 3)
    assert layer.weight.data_ptr() == layer.module.weight.data_ptr(), "a view: methods may look at what is trained"
    scores, channels = layer.unit.candidates(layer.weight.abs().flatten(1).sum(1).double())
    by_head = layer.module.weight.view(3, 4, 8, 32).abs().sum((0, 2, 3)).double() / 8
    assert torch.allclose(scores, by_head) and channels.tolist() == torch.arange(32).view(4, 8).tolist()
    with pytest.raises(MethodError, match="writes queries, keys and values at once"):
        list(layer.group)


@transformers
def test_torch_pruning_scores_and_cuts_heads_as_we_do_where_it_is_right():
    import torch_pruning

    model = hugging_face("Llama", 8).eval()
    names = [f"net.model.layers.{block}.self_attn.q_proj" for block in range(2)]
    layers = {layer.name: layer for layer in prunable_layers(model, TOKENS, tuple(names))}
    assert len(layers) == 6, "queries, keys and values of each block"
    importance = torch_pruning.importance.GroupMagnitudeImportance(p=2, group_reduction="first", normalizer=None)
    for layer in layers.values():
        assert torch.allclose(importance(layer.group), layer.weight.square().sum(1))
    kept = {name: [*range(0, 8), *range(12, 32)] for name in names}
    ours, theirs = shrink(model, kept, TOKENS), copy.deepcopy(model)
    graph = torch_pruning.DependencyGraph().build_dependency(theirs, TOKENS)
    for name in names:
        graph.get_pruning_group(
            theirs.get_submodule(name), torch_pruning.prune_linear_out_channels, idxs=[8, 9, 10, 11]
        ).prune()
    inputs = torch.randint(30, (2, 9))
    with torch.no_grad():
        assert torch.equal(ours(inputs), theirs(inputs))


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("weights", [True, False])
def test_torch_attention_computes_the_same_once_it_can_lose_heads(batch_first, weights):
    torch.manual_seed(1)
    ours = nn.MultiheadAttention(12, 3, batch_first=batch_first).double().eval()
    theirs = copy.deepcopy(ours)
    open_heads(ours)
    assert isinstance(ours, Heads) and attention_of(ours) == attention_of(theirs)
    inputs = [torch.randn(2, 5, 12).double() for _ in range(3)]
    if not batch_first:
        inputs = [each.transpose(0, 1).contiguous() for each in inputs]
    padding = torch.zeros(2, 5, dtype=torch.bool)
    padding[0, 3:] = True
    later = torch.ones(5, 5, dtype=torch.bool).triu(1)
    for options in ({}, {"key_padding_mask": padding}, {"attn_mask": later}):
        (ours_out, ours_weights), (theirs_out, theirs_weights) = (
            each(*inputs, need_weights=weights, **options) for each in (ours, theirs)
        )
        assert torch.allclose(ours_out, theirs_out, atol=1e-12)
        assert ours_weights is theirs_weights is None or torch.allclose(ours_weights, theirs_weights, atol=1e-12)


def test_a_campaign_on_vit_digits_prunes_heads_and_neurons_by_gradients(tmp_path):
    """Torch-pruning's criterion of Taylor scores reads the groups of heads that are made here."""
    catalog, ledger = Catalog(), Ledger(tmp_path)
    stages = Stages(ledger, catalog, Runtime())
    work = Campaign(catalog, ledger, Settings(budget="smoke"), LocalExecutor(ledger, stages, "session"))
    cell = work.obtain(Cell("vit-digits", "s3.2", "taylor", 0.5, 0))
    assert cell.status == "ok", cell.error
    run, base = ledger.get(cell.result), ledger.get(cell.base)
    pruned = ledger.get(run.parent)
    widths = (("attn.q_proj", 24), ("mlp.fc1", 48))
    assert {name: len(stay) for name, stay in pruned.kept.items()} == {
        f"blocks.{block}.{name}": width for block in range(2) for name, width in widths
    }
    for block in range(2):
        heads = torch.tensor(pruned.kept[f"blocks.{block}.attn.q_proj"]).view(2, 12)
        assert torch.equal(heads[:, 0] % 12, torch.zeros(2, dtype=torch.int64)), "whole heads"
        assert torch.equal(heads, heads[:, :1] + torch.arange(12))
    # Patches and the classifier stay; all else halves, but for heads, which halve attention's products, too.
    whole = 16 * 4 * 48 + 480
    assert base.macs == 642_528 and run.macs == run.macs_recounted == whole + (base.macs - whole) // 2
    found = {row["rule"]: row["verdict"] for row in gather_ledger(catalog, ledger).findings}
    assert found["F504"] == found["F503"] == found["F602"] == "pass"
