"""Methods on networks whose layers lose channels together: built-in ones work, or say in one line why they do not."""

import sys

import pytest
import small
import torch
import torch.nn.functional as F
from small import CATALOG, prune
from wirings import NETWORKS

from pruneaudit import FilterScore, Method
from pruneaudit.errors import MethodError
from pruneaudit.method.conduct import equivalence
from pruneaudit.method.contract import ScratchArm
from pruneaudit.pruning import shapes
from pruneaudit.pruning.equivalence import trained_like
from pruneaudit.pruning.layers import AUTO
from pruneaudit.pruning.removal import shrink
from pruneaudit.pruning.subsets import losses_after_removal
from pruneaudit.streams import generator
from pruneaudit.workloads import models

torch.set_num_threads(1)

#: A layer that is called twice and shares its channels with the one before; depthwise layers and residual streams.
COUPLED = ("twice", "mobilenet")
DIGITS = CATALOG.workload("lenet5-digits")


@pytest.fixture(scope="module", autouse=True)
def known_networks():
    models.MODELS.update(NETWORKS)
    small.WORKLOADS.update({name: DIGITS.model_copy(update={"model": name, "prunable": AUTO}) for name in NETWORKS})
    yield
    for name in NETWORKS:
        del models.MODELS[name], small.WORKLOADS[name]


def trained(name, seed=0):
    network = NETWORKS[name]().double().eval()
    trained_like(network, generator(seed, "test"))
    return network


def of_kind(kind, granularity="filter"):
    """Ids of the built-in methods of a kind."""
    found = {name: CATALOG.method(name).create() for name in CATALOG.methods}
    return [name for name, method in found.items() if isinstance(method, kind) and method.granularity == granularity]


SCORES = of_kind(FilterScore)
#: Methods that pass on to the next layer what a filter computed take layers that lose filters alone.
ALONE = ("channel-regression", "thinet")
#: None of these networks has the residual width that SliceGPT rotates.
OTHERS = ("oracle", "slicegpt", "unpruned")
TRAINED = [name for name in of_kind(Method) if name not in (*SCORES, *ALONE, *of_kind(ScratchArm), *OTHERS)]


def assert_prunes(found, name, method):
    """Every unit loses its share, or all together reach the MACs, and what is left computes what was silenced."""
    workload = small.WORKLOADS[name]
    widths = {unit: len(kept) for unit, kept in found.answer.kept.items()}
    asked = shapes.widths_at(workload, 0.5)
    assert widths.keys() == asked.keys() == found.task.target.stay.keys()
    if CATALOG.method(method).create().scope == "layerwise":
        assert widths == asked
    else:
        known, target = shapes.costs(workload), found.task.target
        assert abs(known.of_widths(widths) - target.macs) <= target.unit
    assert equivalence(found.model, found.answer, small.few_digits(name)) < 1e-10


@pytest.mark.parametrize("name", COUPLED)
@pytest.mark.parametrize("method", SCORES)
def test_every_score_method_prunes_what_goes_together(method, name):
    reason = CATALOG.method(method).create().skip(small.WORKLOADS[name])
    if reason:
        pytest.skip(reason)
    assert_prunes(prune(method, name, trained(name)), name, method)


@pytest.mark.parametrize("method", TRAINED)
def test_every_method_that_trains_prunes_what_goes_together(method):
    # Scales of normalisations decide where every layer has one.
    name = "mobilenet" if method == "network-slimming" else "twice"
    assert_prunes(prune(method, name, trained(name), steps=4, lr="0:1e-4"), name, method)


@pytest.mark.parametrize("method", ALONE)
def test_methods_for_layers_alone_say_so_before_anything_trains(method):
    reason = "layer 'stem' goes together with 'shared'"
    arm = CATALOG.method(method).create()
    assert arm.skip(small.WORKLOADS["twice"]) == reason
    assert "in groups or with other channels beside it" in arm.skip(small.WORKLOADS["densenet"])
    assert arm.skip(DIGITS) is None
    with pytest.raises(MethodError, match=f"{reason}: this method takes layers that lose filters alone"):
        prune(method, "twice", trained("twice"))


@pytest.mark.parametrize("name", ["twice", "group-norm"])
def test_the_oracle_keeps_the_set_whose_network_has_the_lowest_loss(name):
    """Whole units, and whole groups of a normalisation."""
    model = trained(name)
    candidates = sys.modules[CATALOG.method("oracle").cls.__module__].candidates
    found = prune(CATALOG.method("oracle").cls(limit=6, batches=1), name, model)
    batches = list(found.task.batches(1))
    choices = list(candidates(found.task, 6))
    assert len(choices) == 6
    for choice in choices:
        assert {unit.name: len(choice[unit.name]) for unit in found.task.prunable} == found.task.target.stay
        assert not any(unit.problem(choice[unit.name]) for unit in found.task.prunable)
    losses = []
    with torch.no_grad():
        for choice in choices:
            smaller = shrink(model, choice, shapes.example(small.WORKLOADS[name]).double())
            losses.append(float(sum(F.cross_entropy(smaller(images), labels) for images, labels in batches)))
    assert found.answer.kept == choices[losses.index(min(losses))]
    told = losses_after_removal(found.task.model, found.task.layers, choices, batches)
    assert told == pytest.approx(losses, rel=1e-10)


def test_lists_of_methods_hold_what_they_say():
    assert {"l1", "random", "group-l2", "taylor", "hrank", "fpgm-global"} <= set(SCORES)
    assert {"tpp", "greg-1", "greg-2", "sfp", "groupnorm", "network-slimming"} <= set(TRAINED)


class Told(FilterScore):
    """Scores as told, by layer."""

    def __init__(self, scores, scope="layerwise"):
        self._scores = scores
        self.scope = scope

    def score(self, layer, task):
        return self._scores[layer.name]


def test_layers_that_go_together_compete_with_the_mean_of_their_scores():
    rising = torch.arange(12.0)
    last = torch.arange(10.0)
    scores = {"stem": rising, "shared": 3 * rising.flip(0), "last": last}
    found = prune(Told(scores), "twice", trained("twice"))
    # (i + 3 (11 - i)) / 2 falls with i.
    assert found.answer.kept == {"stem": [0, 1, 2, 3, 4, 5], "last": [5, 6, 7, 8, 9]}


def test_a_method_may_score_a_unit_itself():
    class Largest(Told):
        """The largest score of its layers decides."""

        def score_unit(self, unit, task):
            return torch.stack([self.score(layer, task) for layer in task.layers_of(unit)]).amax(0)

    scores = {"stem": torch.arange(12.0), "shared": torch.zeros(12), "last": torch.arange(10.0)}
    scores["shared"][0] = 20
    found = prune(Largest(scores), "twice", trained("twice"))
    assert found.answer.kept["stem"] == [0, 7, 8, 9, 10, 11]


def test_one_threshold_removes_neighbours_and_parts_together():
    """Groups of a normalisation go as a whole; each group of a convolution loses its lowest."""
    for name in ("group-norm", "unet"):
        draw = generator(1, name)
        network = trained(name)
        layers = {unit.name: unit.channels for unit in shapes.units(small.WORKLOADS[name]).units}
        scores = {layer: torch.rand(count, generator=draw) for layer, count in layers.items()}
        found = prune(Told(scores, "global"), name, network)
        widths = {unit: len(kept) for unit, kept in found.answer.kept.items()}
        known, target = shapes.costs(small.WORKLOADS[name]), found.task.target
        assert abs(known.of_widths(widths) - target.macs) <= target.unit
        assert len(set(widths.items()) - set(layers.items())) > 1
        assert equivalence(found.model, found.answer, small.few_digits(name)) < 1e-10


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shared": list(range(1, 7))}, "keeps other filters of layer 'shared' than of 'stem', which goes with it"),
        ({"stem": list(range(7))}, "misses its target in layer 'stem': keeps 7 of 12 filters; ratio 0.5 asks for 6"),
    ],
)
def test_answers_are_about_units(changes, message):
    class Answers(Method):
        """An answer for every layer."""

        def prune(self, task):
            return {"stem": list(range(6)), "last": list(range(5)), **changes}

    with pytest.raises(MethodError) as caught:
        prune(Answers(), "twice", trained("twice"))
    assert message in str(caught.value)


def test_an_answer_that_breaks_a_group_is_refused():
    class Answers(Method):
        """Half of the channels, but not whole groups."""

        def prune(self, task):
            return {unit.name: list(range(1, unit.channels // 2 + 1)) for unit in task.prunable}

    with pytest.raises(MethodError, match=r"layer 'features\.0': of 4 neighbours, a group of a norm"):
        prune(Answers(), "group-norm", trained("group-norm"))
