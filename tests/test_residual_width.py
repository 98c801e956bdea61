"""The residual width of a decoder: removed where it is named, scaled so that it is exact, and rotated by SliceGPT."""

import copy

import pytest
import torch
import torch.nn.functional as F
from plays import WORKLOAD, brought
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
from pruneaudit.method.task import PruningTask
from pruneaudit.pruning import shapes
from pruneaudit.pruning.arrivals import weights_of_channels
from pruneaudit.pruning.equivalence import TOLERANCE, trained_like, verified
from pruneaudit.pruning.layers import AUTO, prunable_layers, prunable_units
from pruneaudit.pruning.removal import masked, shrink
from pruneaudit.pruning.units import Wiring
from pruneaudit.report.results import gather_ledger
from pruneaudit.streams import generator
from pruneaudit.training.metering import Meter
from pruneaudit.workloads.data import load
from pruneaudit.workloads.models.transformer import Llama

torch.set_num_threads(1)

TOKENS = torch.zeros(1, 9, dtype=torch.int64)
WIDTH = "blocks.0.attn.o_proj"
EXAMPLES = 24


def decoder(**sizes):
    model = Llama(classes=30, width=16, depth=2, heads=4, groups=2, hidden=12, **sizes).double().eval()
    trained_like(model, generator(0, "weights"))
    return model


def units_of(model, *patterns, example=TOKENS):
    return prunable_units(model, Wiring(model, example), example, patterns)


@pytest.fixture(scope="module")
def catalog(tmp_path_factory):
    """The workload of a decoder of a few thousand weights, which loses its residual width."""
    folder = tmp_path_factory.mktemp("width")
    brought(folder)
    narrower = WORKLOAD.replace('["blocks.*.attn.k_proj", "blocks.*.mlp.gate_proj"]', '["blocks.*.attn.o_proj"]')
    (folder / "width.toml").write_text(narrower)
    return Catalog(extra_workloads=(str(folder / "text.toml"), str(folder / "width.toml")))


# The unit


@pytest.mark.parametrize("patterns", [("blocks.*.attn.o_proj",), ("blocks.*.attn.?_proj", "blocks.*.mlp.gate_proj")])
def test_the_width_goes_exactly_also_beside_heads_and_neurons(patterns):
    model = decoder()
    units, _ = units_of(model, *patterns)
    width = next(unit for unit in units if unit.normalised)
    assert (width.name, width.channels, len(units)) == (WIDTH, 16, 1 if len(patterns) == 1 else 5)
    assert width.producers == tuple(f"blocks.{n}.{name}" for n in (0, 1) for name in ("attn.o_proj", "mlp.down_proj"))
    assert {"embed", "norm", "head"} <= {member.module for member in width.members}
    assert verified(model, units, TOKENS) == (units, {})
    kept = {unit.name: sorted(unit.first(unit.channels // 2)) for unit in units} | {WIDTH: [0, 3, 4, 7, 9, 15]}
    inputs = torch.randint(30, (3, 9), generator=generator(0, "tokens"))
    small, silent = shrink(model, kept, TOKENS), masked(model, kept, TOKENS)
    with torch.no_grad():
        outputs, reference = small(inputs), silent(inputs)
    assert (outputs - reference).abs().max() <= TOLERANCE * reference.abs().max()
    assert macs(small, TOKENS) == macs_by_torch(small, TOKENS) < macs(model, TOKENS)
    assert small.embed.weight.shape == (30, 6) and small.norm.normalized_shape == (6,)
    assert torch.equal(small.generate(inputs, 5), small.generate(inputs, 5, cache=False))
    again = shrink(decoder(), kept, TOKENS)
    again.load_state_dict(small.state_dict())
    with torch.no_grad():
        assert torch.equal(again(inputs), outputs)
        # The mean over the squares that are left is another function.
        for norm in (module for module in again.modules() if isinstance(module, nn.RMSNorm)):
            norm.weight /= (16 / 6) ** 0.5
        assert (again(inputs) - outputs).abs().max() > 0.1 * outputs.abs().max()


def test_every_weight_of_a_channel_counts_also_those_of_the_embedding():
    model = decoder()
    (width,), _ = units_of(model, WIDTH)
    ones = {name: torch.ones_like(parameter) for name, parameter in model.named_parameters()}
    # All of a decoder without biases has one side on the stream.
    each = sum(parameter.numel() for parameter in model.parameters()) // 16
    assert weights_of_channels(width, model, ones).tolist() == [each] * 16


def test_auto_leaves_the_width_alone():
    """It is a part of every block, and what is found by itself was found before it could go."""
    units, refused = units_of(decoder(), *AUTO)
    assert {unit.name.rpartition(".")[2] for unit in units} == {"k_proj", "gate_proj"}
    assert refused[WIDTH] == "a normalisation computes over its channels; name it"


class Tied(Llama):
    def __init__(self):
        super().__init__(classes=30, width=16, depth=1, heads=4, groups=2, hidden=12)
        self.head.weight = self.embed.weight


class Whole(nn.Module):
    """Its normalisation is one of all tokens at once."""

    def __init__(self):
        super().__init__()
        self.embed, self.layer, self.norm, self.head = (
            nn.Embedding(30, 16),
            nn.Linear(16, 16),
            nn.RMSNorm((9, 16)),
            nn.Linear(16, 30),
        )

    def forward(self, tokens):
        return self.head(self.norm(self.layer(self.embed(tokens))))


@pytest.mark.parametrize(
    ("model", "pattern", "why"),
    [(Tied(), WIDTH, "share their weights, and would no longer"), (Whole(), "layer", "computes over other channels")],
)
def test_what_is_not_exact_is_refused_by_name(model, pattern, why):
    with pytest.raises(ConfigError, match=why):
        units_of(model, pattern)


# SliceGPT


def pruned(model, workload, method="slicegpt", patterns=(WIDTH,)):
    """What a method decided about a network, which it may have changed, and the examples that it saw."""
    made = Catalog().method(method).create()
    dataset = load(workload.data)
    layers = prunable_layers(model, dataset.example(), patterns)
    recipe = workload.prune.model_copy(update={"steps": 0})
    with Meter(model, example=dataset.example()) as meter:
        task = PruningTask(
            model, layers, workload, 0.5, recipe, dataset, 3, meter, method, "fp64", calibration=EXAMPLES
        )
        kept = made.prune(task)
    ((inputs, _),) = task.batches(1)
    return kept, inputs


@pytest.fixture
def rotated(catalog):
    """A random decoder, the same after SliceGPT, what stays, and the examples."""
    workload = catalog.workload("width")
    model = shapes.dense_network(workload).double().eval()
    trained_like(model, generator(1, "weights"))
    before = copy.deepcopy(model)
    kept, inputs = pruned(model, workload)
    return before, model, kept, inputs


def test_a_rotation_alone_changes_nothing(rotated):
    before, model, _, inputs = rotated
    with torch.no_grad():
        wanted, found = before(inputs), model(inputs)
    assert (found - wanted).abs().max() <= 1e-10 * wanted.abs().max()
    assert (model.embed.weight - before.embed.weight).abs().max() > 0.1
    norms = [module for module in model.modules() if isinstance(module, nn.RMSNorm)]
    assert len(norms) == 5 and all(bool((norm.weight == 1).all()) for norm in norms)
    moments = stream(model, inputs)
    moments = moments.T @ moments
    assert (moments - moments.diag().diag()).abs().max() <= 1e-10 * moments.abs().max(), "axes are principal ones"
    assert bool((moments.diag().diff() <= 0).all()), "the greatest first"


def stream(model, tokens, project=None):
    """What all norms give before their weights, ``[rows, d]``; or logits where all that is written is projected."""
    project = torch.eye(model.embed.weight.shape[1]).double() if project is None else project
    rows = []

    def norm(module, values):
        given = values / (values.square().mean(dim=-1, keepdim=True) + torch.finfo(torch.float64).eps).sqrt()
        rows.append(given.flatten(0, 1))
        return given * module.weight

    with torch.no_grad():
        found = model.embed(tokens) @ project
        for block in model.blocks:
            found = found + block.attn(norm(block.norm1, found))[0] @ project
            found = found + block.mlp(norm(block.norm2, found)) @ project
        logits = model.head(norm(model.norm, found)).transpose(1, 2)
    return torch.cat(rows) if bool((project == torch.eye(len(project))).all()) else logits


def test_what_is_sliced_is_the_dense_network_with_its_stream_projected(rotated):
    """By singular vectors, in the basis that the network had: no weight is rotated, and no norm scaled."""
    before, model, kept, inputs = rotated
    assert kept[WIDTH] == list(range(8))
    _, sizes, axes = torch.linalg.svd(stream(before, inputs), full_matrices=False)
    assert sizes[7] > 1.001 * sizes[8], "which axes stay is not a matter of rounding"
    wanted = stream(before, inputs, axes[:8].T @ axes[:8])
    small = shrink(model, {WIDTH: kept[WIDTH]}, TOKENS)
    with torch.no_grad():
        found = small(inputs)
    assert (found - wanted).abs().max() <= 1e-9 * wanted.abs().max()
    assert (found - before(inputs)).abs().max() > 0.01 * wanted.abs().max()


def test_nothing_is_lost_that_the_stream_does_not_use(catalog):
    """Of a stream that lies in half of its width, along no channel, that half is all; scores of channels lose."""
    workload = catalog.workload("width")
    model = shapes.dense_network(workload).double().eval()
    trained_like(model, generator(2, "weights"))
    basis = torch.linalg.qr(torch.randn(16, 8, dtype=torch.float64, generator=generator(0, "basis")))[0]
    with torch.no_grad():
        model.embed.weight.copy_(model.embed.weight @ basis @ basis.T)
        for block in model.blocks:
            for layer in (block.attn.o_proj, block.mlp.down_proj):
                layer.weight.copy_(basis @ basis.T @ layer.weight)
    lost = {}
    for method in ("slicegpt", "l1", "random"):
        network = copy.deepcopy(model)
        kept, inputs = pruned(network, workload, method)
        with torch.no_grad():
            wanted, found = model(inputs), shrink(network, {WIDTH: kept[WIDTH]}, TOKENS)(inputs)
        lost[method] = float((found - wanted).abs().max() / wanted.abs().max())
    assert lost["slicegpt"] < 1e-6 and min(lost["l1"], lost["random"]) > 0.1


class Reading(nn.Module):
    """A network whose stream is not seen by normalisations alone."""

    def __init__(self, way):
        super().__init__()
        self.embed, self.norm, self.head = nn.Embedding(122, 16), nn.RMSNorm(16), nn.Linear(16, 122)
        self.first, self.second, self.way = nn.Linear(16, 12), nn.Linear(12, 16), way

    def forward(self, tokens):
        inputs = self.embed(tokens)
        read = self.norm(inputs) if self.way != "bare" else inputs
        inputs = inputs + self.second(self.first(read))
        if self.way == "by channel":
            inputs = F.relu(inputs)
        return self.head(self.norm(inputs)).transpose(1, 2)


@pytest.mark.parametrize(
    ("way", "why"),
    [("bare", "'first' reads the residual stream, and not what a norm"), ("by channel", "changes what the network")],
)
def test_a_network_that_cannot_be_rotated_is_told(catalog, way, why):
    model = Reading(way).double().eval()
    trained_like(model, generator(0, "weights"))
    with pytest.raises(MethodError, match=why):
        pruned(model, catalog.workload("width"), patterns=("second",))


def test_it_says_where_it_does_not_apply(catalog):
    method = Catalog().method("slicegpt").create()
    assert method.skip(catalog.workload("width")) is None
    assert "blocks.0.attn.k_proj are read one by one" in method.skip(catalog.workload("text"))


def test_it_stands_beside_scores_of_channels_under_every_rule(catalog, tmp_path):
    ledger = Ledger(tmp_path)
    stages = Stages(ledger, catalog, Runtime())
    work = Campaign(catalog, ledger, Settings(), LocalExecutor(ledger, stages, "session"))
    for protocol in ("pt", "s3.2"):
        runs = {}
        for method in ("slicegpt", "l1", "random"):
            cell = work.obtain(Cell("width", protocol, method, 0.5, 0))
            assert cell.status == "ok", cell.error
            runs[method] = ledger.get(cell.result)
        # Nothing is added: whatever removed it, the same network is left.
        assert len({(run.macs, run.params, tuple(run.left.items())) for run in runs.values()}) == 1
        prune = ledger.get(runs["slicegpt"].parent)
        assert prune.conduct.equivalence < 1e-10 and prune.conduct.replay == "same"
        assert prune.conduct.declares_rewriting and prune.conduct.rewritten
    required = {"F102", "F103", "F106", "F108", "F431", "F502", "F503", "F504", "F509"}
    findings = [row for row in gather_ledger(catalog, ledger).findings if row["rule"] in required]
    assert {row["rule"] for row in findings} == required
    assert [row for row in findings if row["verdict"] != "pass"] == []
