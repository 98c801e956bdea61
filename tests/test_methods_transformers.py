"""Scores of heads and neurons: each against plain loops over its paper's formula, on random decoders and ViTs."""

import copy
import itertools

import pytest
import torch
import torch.nn.functional as F
from plays import brought
from torch import nn

from pruneaudit.catalog.discovery import Catalog
from pruneaudit.errors import MethodError
from pruneaudit.method import conduct
from pruneaudit.method.answers import decide
from pruneaudit.pruning import shapes
from pruneaudit.pruning.arrivals import arrivals
from pruneaudit.pruning.equivalence import trained_like
from pruneaudit.pruning.layers import PrunableLayer
from pruneaudit.pruning.minibatch import input_activations
from pruneaudit.streams import generator
from pruneaudit.training.metering import Meter
from pruneaudit.workloads.data import load

torch.set_num_threads(1)

EXAMPLES = 24
#: Key/value heads, channels of each in what ``o_proj`` reads (with all query heads that read it), and in the keys.
HEADS = {"decoder": (2, 8, 4), "vit": (4, 12, 12)}


@pytest.fixture(scope="module")
def workloads(tmp_path_factory):
    """A decoder with two query heads for each of two key/value heads, and a vision transformer with biases."""
    text = brought(tmp_path_factory.mktemp("text")).workload("text")
    return {"decoder": text, "vit": Catalog().workload("vit-digits")}


class Pruned:
    """A random network, what a method decided, and what it was handed out to score with."""

    def __init__(self, method, kind, workload, seed):
        self.kind, self.method = kind, Catalog().method(method).create()
        self.model = shapes.dense_network(workload).double().eval()
        trained_like(self.model, generator(seed, "weights"))
        given = copy.deepcopy(self.model.state_dict())
        dataset = load(workload.data)
        recipe = workload.prune.model_copy(update={"steps": 0})
        patterns = (workload.prunable, workload.skip)
        job = conduct.Job(
            lambda: self.model, workload, dataset, *patterns, 0.5, recipe, seed, "fp64", calibration=EXAMPLES
        )
        layers = conduct.layers_of(self.model, job, self.method)
        with Meter(self.model, example=dataset.example()) as meter:
            self.task = conduct.task_of(self.method, self.model, layers, job, meter)
            self.kept = decide(self.method, self.task).kept
        self.consumption = meter.consumption
        assert all(torch.equal(given[name], tensor) for name, tensor in self.model.state_dict().items())
        assert all(parameter.grad is None for parameter in self.model.parameters())
        ((self.inputs, self.labels),) = self.task.batches(1)

    def parts(self):
        """Name of each unit, its module, the layer that reads it, and what each candidate is among its inputs."""
        count, width, _ = HEADS[self.kind]
        for number, block in enumerate(self.model.blocks):
            heads = [list(range(head * width, (head + 1) * width)) for head in range(count)]
            lead, hidden = ("k_proj", "gate_proj") if self.kind == "decoder" else ("q_proj", "fc1")
            reader = block.mlp.down_proj if self.kind == "decoder" else block.mlp.fc2
            yield f"blocks.{number}.attn.{lead}", block.attn, block.attn.o_proj, heads
            yield f"blocks.{number}.mlp.{hidden}", block.mlp, reader, [[place] for place in range(reader.in_features)]

    def read(self, layer):
        """What a layer reads of all examples, ``[N, T, in]``."""
        seen = []
        handle = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
        with torch.no_grad():
            self.model(self.inputs)
        handle.remove()
        return seen[0]

    def stays(self, name, candidates):
        """For each candidate of a unit whether it stays."""
        _, _, width = HEADS[self.kind] if "attn" in name else (0, 0, 1)
        kept = set(self.kept[name])
        return [set(range(one * width, (one + 1) * width)) <= kept for one in range(candidates)]


def wanda_sp(pruned, module, reader, places):
    """Mean over the channels of a head of Σ over outputs |w| · ‖x‖₂."""
    read = pruned.read(reader).flatten(0, 1)
    total = 0.0
    for column in places:
        norm = float(read[:, column].square().mean().sqrt())
        total += sum(abs(float(weight)) * norm for weight in reader.weight[:, column].detach())
    return total / len(places)


def flap(pruned, module, reader, places):
    """Mean over the channels of a head of the sample variance times Σ w²."""
    read = pruned.read(reader).flatten(0, 1)
    weights = reader.weight.detach()
    return sum(float(read[:, column].var() * weights[:, column].square().sum()) for column in places) / len(places)


def llm_pruner(pruned, module, reader, places):
    """Σ |w · ∂L/∂w| over all that goes, of the mean loss of all examples at once."""
    network = copy.deepcopy(pruned.model)
    F.cross_entropy(network(pruned.inputs), pruned.labels).backward()
    names = {one: name for name, one in pruned.model.named_modules()}
    total = 0.0
    for name, layer in module.named_children():
        own = network.get_submodule(names[layer])
        if layer is reader:
            total += float((own.weight * own.weight.grad)[:, places].abs().sum())
            continue
        rows = places
        if pruned.kind == "decoder" and name in ("k_proj", "v_proj"):
            rows = [places[0] // 2 + offset for offset in range(len(places) // 2)]
        total += sum(float((each * each.grad)[rows].abs().sum()) for each in own.parameters())
    return total


def head_gates(pruned, module, reader, places):
    """Mean over examples of |∂L/∂gate|, with a real gate and one example at a time."""
    total = 0.0
    for inputs, label in zip(pruned.inputs, pruned.labels, strict=True):
        gate = torch.ones((), dtype=torch.float64, requires_grad=True)
        factors = torch.ones(reader.in_features, dtype=torch.float64).index_put((torch.tensor(places),), gate)
        handle = reader.register_forward_pre_hook(lambda _, read, factors=factors: (read[0] * factors,))
        F.cross_entropy(pruned.model(inputs[None]), label[None]).backward()
        handle.remove()
        total += abs(float(gate.grad))
    pruned.model.zero_grad()
    return total / len(pruned.inputs)


FORMULAS = {"wanda-sp": wanda_sp, "flap": flap, "llm-pruner": llm_pruner, "head-gates": head_gates}


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("method", FORMULAS)
def test_what_stays_is_what_the_formula_says(workloads, method, kind):
    pruned = Pruned(method, kind, workloads[kind], seed=3)
    stays, scores = [], []
    for name, module, reader, candidates in pruned.parts():
        # Gates of all neurons, an example at a time, are many passes: a few tell.
        few = candidates if "attn" in name or method != "head-gates" else candidates[:6]
        found = [FORMULAS[method](pruned, module, reader, places) for places in few]
        kept = pruned.stays(name, len(candidates))[: len(few)]
        assert len(set(found)) == len(found)
        if method == "flap":
            each = torch.tensor(found, dtype=torch.float64)
            channels = torch.tensor([flap(pruned, module, reader, [place]) for place in range(reader.in_features)])
            if pruned.kind == "decoder" and "attn" in name:
                # A channel of the keys stands for one of each query head.
                channels, each = channels.view(2, 2, 4).sum(dim=1).flatten(), each * 2
            scores.append((each - channels.mean()) / channels.std())
            stays.append(torch.tensor(kept))
            continue
        lowest = min(score for score, stay in zip(found, kept, strict=True) if stay) if any(kept) else float("inf")
        highest = max((score for score, stay in zip(found, kept, strict=True) if not stay), default=-float("inf"))
        assert lowest > highest, name
        if len(few) == len(candidates):
            assert sum(kept) == len(candidates) // 2
    if method == "flap":
        # One threshold for all layers; the best of each stays, whatever its score.
        gone = torch.cat([score[~stay] for score, stay in zip(scores, stays, strict=True)])
        other = torch.cat([score[stay & (score < score.max())] for score, stay in zip(scores, stays, strict=True)])
        assert len(gone) and gone.max() < other.min()
    shown = len(pruned.inputs)
    assert shown == EXAMPLES
    has_gradients = bool(pruned.method.budget(workloads[kind]).samples)
    consumed = pruned.consumption
    assert (consumed.training_samples, consumed.scoring_samples) == ((shown, 0) if has_gradients else (0, shown))


@pytest.mark.parametrize("kind", HEADS)
def test_the_block_that_changes_the_stream_least_goes(workloads, kind):
    """ShortGPT against cosines of single tokens, taken between blocks and not at them."""
    pruned = Pruned("shortgpt", kind, workloads[kind], seed=3)
    model, streams = pruned.model, []
    with torch.no_grad():
        if kind == "decoder":
            stream = model.embed(pruned.inputs)
        else:
            stream = model.places(model.patches(pruned.inputs).flatten(2).transpose(1, 2))
        for block in model.blocks:
            streams.append(stream)
            stream = stream + block.attn(block.norm1(stream))[0]
            stream = stream + block.mlp(block.norm2(stream))
        streams.append(stream)
    influences = []
    for before, after in itertools.pairwise(streams):
        cosines = [
            float(one @ other) / (float(one.norm()) * float(other.norm()))
            for one, other in zip(before.flatten(0, 1), after.flatten(0, 1), strict=True)
        ]
        influences.append(1 - sum(cosines) / len(cosines))
    gone = influences.index(min(influences))
    assert [bool(stays) for stays in pruned.kept.values()] == [number != gone for number in range(2)]
    lead = "k_proj" if kind == "decoder" else "q_proj"
    assert list(pruned.kept) == [f"blocks.{number}.attn.{lead}" for number in range(2)]
    consumed = pruned.consumption
    assert (consumed.training_samples, consumed.scoring_samples) == (0, EXAMPLES)


def test_chance_takes_each_block_and_others_with_other_seeds(workloads):
    taken = [
        tuple(map(bool, Pruned("global-random-block", "decoder", workloads["decoder"], n).kept.values()))
        for n in range(8)
    ]
    assert set(taken) == {(True, False), (False, True)}


def test_what_arrives_at_torchs_own_attention_is_heard():
    """It never calls the layer that reads its heads."""
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(12, 3, 20, 0.0, batch_first=True).double().eval()
    inputs = torch.randn(4, 5, 12).double()
    outputs = model(inputs)
    found = arrivals(model, ["self_attn.out_proj", "linear2"], [(inputs[:1], None), (inputs[1:], None)])
    read = torch.relu(model.linear1(model.norm1(inputs + model.self_attn(inputs, inputs, inputs)[0]))).flatten(0, 1)
    torch.testing.assert_close(found["linear2"].squares, read.square().mean(dim=0))
    torch.testing.assert_close(found["linear2"].variance, read.var(dim=0))
    assert found["self_attn.out_proj"].squares.min() > 0
    torch.testing.assert_close(model(inputs), outputs)


def test_layers_that_read_in_groups_and_layers_that_are_never_called_are_told():
    model = nn.Sequential(nn.Conv2d(4, 4, 1, groups=2), nn.Flatten(), nn.Linear(4, 2))
    with pytest.raises(MethodError, match="layer '0' does not read its inputs one by one"):
        arrivals(model, ["0"], [])
    with pytest.raises(MethodError, match="layer '2' is never called"):
        arrivals(model, ["2"], [])


def test_activations_of_tokens_are_averaged_as_those_of_pixels_are():
    layer = nn.Linear(5, 3)
    tokens = torch.randn(4, 6, 5, generator=torch.Generator().manual_seed(0))
    found = input_activations(layer, [PrunableLayer("", layer, None)], tokens)
    torch.testing.assert_close(found[""], tokens.mean(dim=0).abs().mean(dim=0, keepdim=True))


def test_a_threshold_that_falls_into_a_head_ends_among_the_neurons_behind_it(workloads):
    """A head is worth many neurons: where it alone were left to go or stay, no two arms would have one size (F103)."""
    workload = workloads["vit"]
    task = Pruned("flap", "vit", workload, 0).task
    costs = shapes.costs(workload)
    inside = 0
    for seed in range(12):
        draw = generator(seed, "scores")
        scores = {unit.name: torch.rand(unit.channels, generator=draw) for unit in task.prunable}
        candidates = [unit.candidates(scores[unit.name]) for unit in task.prunable]
        kept = task.keep(scores, "global")
        left = costs.of_widths({unit.name: len(kept[unit.name]) for unit in task.prunable})
        assert abs(left / task.target.macs - 1) <= 0.01
        stay, gone = [], []
        for unit, (values, channels) in zip(task.prunable, candidates, strict=True):
            stays = [bool(set(some) <= set(kept[unit.name])) for some in channels.tolist()]
            for value, it_stays in zip(values.tolist(), stays, strict=True):
                if not it_stays:
                    gone.append(value)
                elif value < float(values.max()):
                    stay.append((value, unit.step))
        # Below what went only heads stay, and the best of each layer.
        below = [step for value, step in stay if value < max(gone)]
        assert all(step > 1 for step in below)
        inside += bool(below)
    assert inside
