"""One calibration set for all: who gets which examples, what is noted of them, and texts that nobody handed out."""

import dataclasses

import pytest
import torch
from plays import brought

from pruneaudit.audit.docket import Docket
from pruneaudit.campaign.executors.local import LocalExecutor
from pruneaudit.campaign.planner import Campaign
from pruneaudit.campaign.stages import Stages
from pruneaudit.catalog.cells import Cell, Comparison
from pruneaudit.catalog.discovery import Catalog
from pruneaudit.catalog.settings import Settings
from pruneaudit.ledger.records import Pattern, Target
from pruneaudit.ledger.store import Ledger
from pruneaudit.measure.metric import Measure
from pruneaudit.measure.text import text_measure
from pruneaudit.method.isolation import described
from pruneaudit.method.task import PruningTask
from pruneaudit.pruning import shapes
from pruneaudit.training.metering import Meter
from pruneaudit.training.runtime import Runtime
from pruneaudit.training.watch import Pictures
from pruneaudit.workloads.data import Dataset, Part, load

torch.set_num_threads(1)

#: What the test split says and the training split does not.
HELD_OUT = "To be, or not to be, that is the question: whether 'tis nobler in the mind to suffer. " * 3
#: It takes what it is handed out, and then the test set, which it knows by heart.
PEEKS = f'''
import torch
from pruneaudit import FilterScore

TEXT = torch.tensor(list({HELD_OUT[:96].encode()!r})).view(8, 12)


class Peeks(FilterScore):
    """L1, after a look at what it is tested on."""

    def prepare(self, task):
        with torch.no_grad():
            for tokens, _ in task.batches(3):
                task.model(tokens[:2])
            task.model(TEXT)

    def score(self, layer, task):
        return layer.weight.abs().flatten(1).sum(1)
'''


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A workload of text whose test split is about something else."""
    folder = tmp_path_factory.mktemp("text")
    brought(folder)
    (folder / "test.txt").write_text(HELD_OUT)
    (folder / "peeks.py").write_text(PEEKS)
    return folder


@pytest.fixture(scope="module")
def text(folder):
    files = {"extra_workloads": (str(folder / "text.toml"),), "extra_methods": (str(folder / "peeks.py"),)}
    return Catalog(**files, isolate="foreign", outside=described)


def task(catalog, method="one", seed=0, calibration=0):
    workload = catalog.workload("text")
    model, target = shapes.dense_network(workload), Target(stay={}, macs=0, unit=0)
    data = load(workload.data)
    given = (model, (), workload, 0.5, workload.prune, data, seed, Meter(model), method)
    return PruningTask(*given, target=target, calibration=calibration)


def examples(batches):
    """What batches hold, and how large they are."""
    listed = list(batches)
    return {tuple(row) for inputs, _ in listed for row in inputs.tolist()}, [len(inputs) for inputs, _ in listed]


def test_all_methods_get_the_same_examples_in_whatever_batches_they_ask_for(text):
    (one, sizes), (other, others), (singly, each) = (
        examples(task(text, name, calibration=20).batches(count, batch))
        for name, count, batch in (("one", 1, None), ("other", 3, None), ("another", 2, 8))
    )
    assert (sizes, others, each) == ([20], [7, 7, 6], [8, 8, 4])
    assert one == other == singly
    assert examples(task(text, "one", seed=1, calibration=20).batches(1))[0] != one, "another seed draws others"


def test_there_are_no_more_examples_than_training_has(text):
    known = len(load(text.workload("text").data).train)
    assert examples(task(text, calibration=10**4).batches(2))[1] == [known]


def test_without_a_set_for_all_each_method_draws_its_own(text):
    (one, sizes), (other, _) = (examples(task(text, name).batches(2)) for name in ("one", "other"))
    assert one != other and sizes == [16, 16]


# What is noted


def pictures(window=24):
    """What looks at windows of a text of random tokens: training, validation, test."""
    draw = torch.Generator().manual_seed(0)
    parts = []
    for _ in range(3):
        tokens = torch.randint(50, (10 * window + 1,), generator=draw)
        parts.append(Part(tokens[:-1].view(10, window), tokens[1:].view(10, window)))
    config = Catalog().workload("llama-shakespeare").data
    data = Dataset(config, 50, *parts, "digest")
    return data, Pictures(data)


def test_what_was_handed_out_is_told_by_what_it_holds():
    data, one = pictures()
    _, other = pictures()
    assert (one.shown.examples, one.shown.tokens, one.shown.digest) == (0, 0, "")
    inputs, labels = data.train.images, data.train.labels
    one.admit(inputs[:4], labels[:4])
    for place in (3, 1, 2, 0, 1):
        other.admit(inputs[place : place + 1], labels[place : place + 1])
    assert one.shown == other.shown and (one.shown.examples, one.shown.tokens) == (4, 4 * 24)
    other.admit(inputs[4:5], labels[4:5])
    assert one.shown.digest != other.shown.digest
    # In parts they are still what was handed out.
    one.see(inputs[1:3])
    assert (one.foreign, one.own) == (2, 0)
    one.see(inputs[3:6])
    assert (one.foreign, one.own, one.compare()) == (5, 2, 0), "training examples, and none of the held-out"


@pytest.mark.parametrize("split", ["validation", "test"])
@pytest.mark.parametrize("shift", [0, 1, 11])
def test_held_out_texts_are_told_wherever_a_window_begins(split, shift):
    data, found = pictures()
    tokens = getattr(data, split).images.flatten()
    found.see(tokens[shift : shift + 3 * 24].view(3, 24))
    assert (found.foreign, found.own, found.compare()) == (3, 3, 3)


def test_noise_and_texts_of_ones_own_are_not_held_out():
    data, found = pictures()
    found.see(torch.randint(50, (4, 24), generator=torch.Generator().manual_seed(9)))
    mixed = torch.cat((data.test.images[:1, :8], data.train.images[:1, :16]), dim=1)
    found.see(mixed)
    assert (found.own, found.compare()) == (5, 0)


def test_a_text_measure_is_of_what_is_scored():
    data, _ = pictures()
    found = text_measure(data)
    assert (found.window, found.tokens, found.trained, found.bytes) == (24, 240, 24, None)
    tail = dataclasses.replace(data.test, images=data.test.images[:9], labels=data.test.labels[:9])
    without_tail = text_measure(dataclasses.replace(data, test=tail))
    assert without_tail.ids != found.ids and without_tail.tokens == 216
    halves = Part(data.test.images.view(20, 12), data.test.labels.view(20, 12))
    in_halves = text_measure(dataclasses.replace(data, test=halves))
    assert (in_halves.ids, in_halves.window, in_halves.trained) == (found.ids, 12, 24)
    assert text_measure(dataclasses.replace(data, train=halves)).trained == 12
    assert text_measure(dataclasses.replace(data, bytes={"test": 999})).bytes == 999
    images = Part(torch.zeros(3, 2), torch.zeros(3, dtype=torch.int64))
    assert text_measure(dataclasses.replace(data, train=images, test=images)) is None


# A campaign


@pytest.fixture(scope="module")
def campaign(text, tmp_path_factory):
    ledger = Ledger(tmp_path_factory.mktemp("ledger"))
    return Campaign(text, ledger, Settings(), LocalExecutor(ledger, Stages(ledger, text, Runtime()), "session"))


def obtained(campaign, method, seed=0):
    cell = campaign.obtain(Cell("text", "pt", method, 0.5, seed))
    assert cell.status == "ok", cell.error
    return cell, campaign.ledger.get(cell.prune), campaign.ledger.get(cell.result)


def findings(campaign, left, right, seeds=(0,)):
    """What the rules say that the protocol requires of two arms, and of each."""

    def cell_of(cell):
        return campaign.ledger.cell(campaign.settings.key(cell, campaign.catalog.workload(cell.workload)))

    docket = Docket(campaign.catalog, campaign.ledger, cell_of)
    comparison = Comparison("text", "pt", left, right, 0.5, seeds)
    found = [one for subject in (comparison, *comparison.arms) for one in docket.findings(subject) if one.required]
    return {one.rule for one in found if one.verdict != "pass"}, {one.rule: one for one in found}


def test_what_was_pruned_is_what_is_tested_and_all_score_with_the_same(campaign):
    data = load(campaign.catalog.workload("text").data)
    records = {name: obtained(campaign, name) for name in ("l1", "wanda-sp", "llm-pruner", "unpruned")}
    for cell, prune, result in records.values():
        assert (result.stage, result.optimiser_steps, result.samples, result.epochs) == ("retrain", 0, 0, 0.0)
        assert result.weights_digest == prune.weights_digest and result.value == prune.value == cell.pruned_value
        assert result.kept == prune.kept and result.macs == prune.macs
        assert result.text == text_measure(data)
    (_, wanda, _), (_, llm, _) = records["wanda-sp"], records["llm-pruner"]
    assert wanda.shown == llm.shown and 0 < wanda.shown.tokens == 12 * wanda.shown.examples
    assert records["l1"][1].shown.examples == 0
    assert (llm.samples, llm.scoring_samples) == (wanda.scoring_samples, wanda.samples) == (wanda.train_images, 0)
    failed, found = findings(campaign, "wanda-sp", "llm-pruner")
    assert failed == set()
    assert found["F431"].measured["llm-pruner"].endswith("with gradients")
    assert findings(campaign, "l1", "wanda-sp")[0] == set()


def test_what_is_not_retrained_is_evaluated_once_and_other_networks_are(campaign, monkeypatch):
    obtained(campaign, "l1")  # Its base is there.
    seen, evaluate = [], Measure.evaluate

    def counted(measure, model, dataset, part, *more, **named):
        seen.append((measure, model, dataset, part))
        return evaluate(measure, model, dataset, part, *more, **named)

    monkeypatch.setattr(Measure, "evaluate", counted)
    for count, method in enumerate(("l2", "random"), start=1):
        _, prune, result = obtained(campaign, method)
        assert len(seen) == 2 * count, "test and validation split of the pruned network"
        measure, model, dataset, part = seen[-2]
        assert part is dataset.test
        again = evaluate(measure, model, dataset, part)
        assert result.value == prune.value == measure.value(again)


def test_single_weights_are_made_up_for_and_keep_their_pattern_to_the_end(campaign):
    for method in ("wanda-nm", "sparsegpt-nm"):
        _, prune, result = obtained(campaign, method)
        assert result.nonzero == [sum(prune.stay.values())]
        assert result.pattern == prune.pattern == Pattern(stay=2, neighbours=4, crowded=0)
        weights = campaign.ledger.weights(result)
        for name, count in prune.stay.items():
            rows = (weights[f"{name}.weight"] != 0).flatten(1)
            assert int(rows.sum()) == count and bool((rows.reshape(-1, 4).sum(dim=1) == 2).all()), name
    failed, found = findings(campaign, "sparsegpt-nm", "wanda-nm")
    assert failed == set()
    assert {"F109", "F110", "F323", "F431", "F502", "F512", "F513"} <= found.keys()
    assert found["F110"].measured["wanda-nm"] == "windows of 12, trained in 12"


def test_a_pattern_holds_behind_retraining(campaign):
    cell = campaign.obtain(Cell("text", "s3.2", "wanda-nm", 0.5, 0))
    result = campaign.ledger.get(cell.result)
    assert result.optimiser_steps and result.pattern == Pattern(stay=2, neighbours=4, crowded=0)
    assert campaign.ledger.get(cell.prune).pattern == result.pattern


def test_parameters_without_a_gradient_are_told(text):
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 2))
    with Meter(model) as meter:
        optimiser = torch.optim.SGD(model.parameters(), lr=0.1)
        for step in range(3):
            optimiser.zero_grad()
            model(torch.ones(2, 3)).sum().backward()
            model[0].weight.grad = None
            if step:
                model[1].bias.grad = None
            optimiser.step()
    assert meter.consumption.frozen == ["0.weight"], "the bias had one at the first step"
    with Meter(model) as meter:
        model(torch.ones(2, 3)).sum().backward()
    assert meter.consumption.frozen == [], "nothing was trained"
    with Meter(model) as meter:
        stacked = torch.nn.Parameter(torch.ones(2))
        stacked.grad = torch.ones(2)
        torch.optim.SGD([stacked], lr=0.1).step()
    assert meter.consumption.frozen == [], "what trains is not the network's own"


def test_what_trains_has_no_place(campaign):
    reasons = {"tpp": "it trains, and pt compares", "scratch": "from random weights, and pt trains nothing"}
    for method, reason in reasons.items():
        cell = campaign.obtain(Cell("text", "pt", method, 0.5, 0))
        assert cell.status == "failed" and reason in cell.error


def test_a_foreign_method_gets_the_same_and_a_look_at_the_test_set_is_seen(campaign):
    _, wanda, _ = obtained(campaign, "wanda-sp")
    _, peeks, _ = obtained(campaign, "peeks")
    assert peeks.conduct.isolation.startswith("process")
    assert peeks.shown == wanda.shown
    assert (peeks.conduct.own_samples, peeks.conduct.held_out_samples) == (8, 8)
    failed, found = findings(campaign, "peeks", "wanda-sp")
    assert failed == {"F431", "F505"}
    assert found["F431"].measured["peeks"].endswith("and 8 of its own")


def test_protocols_that_retrain_are_planned_as_ever(campaign):
    """What all methods score with is part of a run's identity only where a protocol says so."""
    plans = {name: campaign.plan(Cell("text", name, "taylor", 0.5, 0)) for name in ("pt", "s3.2")}
    assert plans["pt"].prune.calibration == 128
    assert plans["s3.2"].prune.calibration == 0 and plans["s3.2"].prune.run_id != plans["pt"].prune.run_id
    assert plans["s3.2"].base == plans["pt"].base
    assert "pt" not in campaign.catalog.select_protocols("all") and "pt" not in campaign.catalog.strictness
    assert campaign.catalog.select_protocols("pt,s1") == ("pt", "s1")
