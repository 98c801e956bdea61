"""Metrics: what is built in, what a workload may state, how each is computed; training and tuning follow it."""

import dataclasses
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from builders import CATALOG, catalog_by, run_spec
from small import few_digits
from torch import nn

from pruneaudit.campaign.executors.local import LocalExecutor
from pruneaudit.campaign.planner import Campaign
from pruneaudit.campaign.stages import Stages
from pruneaudit.catalog.cells import Cell
from pruneaudit.catalog.settings import Settings
from pruneaudit.errors import AuditError, ConfigError
from pruneaudit.ledger.progress import Training as Told
from pruneaudit.ledger.records import unpack
from pruneaudit.ledger.store import Ledger
from pruneaudit.measure.accuracy import Score
from pruneaudit.measure.metric import Measure, beside
from pruneaudit.report.results import gather_ledger
from pruneaudit.report.tables import beside_table
from pruneaudit.report.writer import markdown
from pruneaudit.streams import generator
from pruneaudit.training.loop import Trainer
from pruneaudit.training.many import train_many
from pruneaudit.training.metering import Meter
from pruneaudit.training.runs import Training
from pruneaudit.training.runtime import Runtime
from pruneaudit.workloads.data import Dataset, Part
from pruneaudit.workloads.metrics import ACCURACY, BUILT_IN, OF_TASKS, Metric, shown
from pruneaudit.workloads.models import build
from pruneaudit.workloads.models.initialise import initialise
from pruneaudit.workloads.recipes import Recipe
from pruneaudit.workloads.schema import DataConfig, load_workload

SMALL = """
import torch

def error(logits, labels):
    return 100.0 * (logits.argmax(dim=1) != labels).float().mean()

def wrong(logits, labels):
    return logits.argmax(dim=1) != labels

def raises(logits, labels):
    raise RuntimeError("no logits of mine")

def shapes(logits, labels):
    return logits

def nothing(logits, labels):
    return float("nan")

number = 3
"""


@pytest.fixture
def mine(tmp_path):
    """A file with metrics of the user's own."""
    (tmp_path / "mine.py").write_text(SMALL, encoding="utf-8")

    def metric(name, direction="lower", margin=0.5, **more):
        return Metric(name=f"my-{name}", direction=direction, margin=margin, function=f"mine.py:{name}", **more)

    return lambda name, **more: Measure.of(metric(name, **more), tmp_path)


# What a workload states


def stated(tmp_path, text):
    shipped = CATALOG.root / "protocols" / "workloads" / "lenet5-digits.toml"
    path = tmp_path / "mine.toml"
    path.write_text(f"{shipped.read_text(encoding='utf-8')}\n{text}\n", encoding="utf-8")
    return load_workload(path)


def test_a_workload_that_states_none_is_of_accuracy(tmp_path):
    assert stated(tmp_path, "").metric == ACCURACY
    others = {name: workload.metric.name for name, workload in CATALOG.workloads.items() if workload.metric != ACCURACY}
    assert others == dict.fromkeys(("llama-shakespeare", "llama-width-shakespeare"), "perplexity")


def test_a_name_brings_unit_direction_and_margin(tmp_path):
    metric = stated(tmp_path, '[metric]\nname = "perplexity"').metric
    assert (metric.unit, metric.direction, metric.margin) == ("", "lower", 0.1)
    metric = stated(tmp_path, '[metric]\nname = "loss"\nmargin = 0.002\nbeside = ["top5"]').metric
    assert (metric.unit, metric.direction, metric.margin, metric.beside) == ("nats", "lower", 0.002, ("top5",))
    # So that a difference of the margin is seen.
    assert metric.value(1.23456) == "1.2346 nats"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('name = "perplexty"', "there is no metric 'perplexty'. Did you mean 'perplexity'?"),
        ('name = "f1"', "One of your own needs function = 'file.py:name'"),
        ('name = "f1"\nfunction = "a.py:f1"', "a metric of your own states its direction and its margin"),
        ('name = "f1"\nfunction = "a.py:f1"\ndirection = "up"\nmargin = 1', "metric.direction: "),
        ('name = "F 1"\nfunction = "a.py:f1"\ndirection = "higher"\nmargin = 1', "small letters, digits and hyphens"),
        ('name = "cells"\nfunction = "a.py:f1"\ndirection = "higher"\nmargin = 1', "give your metric another name"),
        ('name = "loss"\nfunction = "a.py:f1"', "'loss' is built in; give your own metric another name"),
        ('name = "loss"\ndirection = "higher"', "the direction of 'loss' is 'lower'"),
        ('name = "accuracy"\nunit = "nats"', "the unit of 'accuracy' is '%'"),
        ('name = "loss"\nmargin = 0', "metric.margin: "),
        ('name = "loss"\nmargin = inf', "metric.margin: "),
        ('name = "loss"\nbeside = ["top-5"]', "beside: there is no metric 'top-5'. Did you mean 'top5'?"),
        ('name = "loss"\nmargins = 1.0', "metric.margins: unknown key. Did you mean 'margin'?"),
    ],
)
def test_what_is_no_metric_is_refused_in_one_line(tmp_path, text, message):
    with pytest.raises(ConfigError) as caught:
        stated(tmp_path, f"[metric]\n{text}")
    assert message in str(caught.value) and "mine.toml" in str(caught.value) and "\n" not in str(caught.value)


def test_the_protocols_margin_is_one_of_accuracies_and_a_stated_one_wins():
    assert ACCURACY.margin_under(0.7) == 0.7
    assert Metric(name="accuracy", margin=0.2).margin_under(0.7) == 0.2
    assert Metric(name="perplexity").margin_under(0.7) == 0.1


def test_runs_under_way_say_what_they_reached():
    assert (shown("accuracy", 94.24), shown("perplexity", 12.345)) == ("94.2 %", "perplexity 12.35")
    told = {"run": "a-run", "id": "0" * 16, "epoch": 1, "epochs": 3, "accuracy": 12.345}
    assert Told.model_validate(told | {"metric": "perplexity"}).words == "a-run epoch 1/3 perplexity 12.35"
    assert Told.model_validate(told).words == "a-run epoch 1/3 12.3 %"


# How each is computed


class Answers(nn.Module):
    """Gives logits ``[N, classes]`` that it was given, whatever the images are."""

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits, dtype=torch.float64))
        self.seen = 0

    def forward(self, images):
        rows = self.logits[self.seen : self.seen + len(images)]
        self.seen += len(images)
        return rows


def split(labels, classes):
    part = Part(torch.zeros(len(labels), 1, 1, 1, dtype=torch.uint8), torch.tensor(labels))
    return Dataset(DataConfig(name="made up", mean=(0.0,), std=(1.0,)), classes, part, part, part, "made up")


LOGITS = np.random.default_rng(0).normal(size=(1100, 12))
LABELS = np.random.default_rng(1).integers(0, 7, 1100).tolist()


#: Of the text that labels stand for, where they are tokens.
BYTES = 4321


def scored(measure, logits=LOGITS, labels=LABELS, closely=False, size=None):
    data = replace(split(labels, logits.shape[1]), bytes={} if size is None else {"test": size})
    return measure.evaluate(Answers(logits), data, data.test, "fp64", closely=closely)


def by_hand(name):
    labels = np.array(LABELS)
    log_p = LOGITS - np.log(np.exp(LOGITS).sum(axis=1, keepdims=True))
    loss = -log_p[np.arange(len(labels)), labels].mean()
    right = LOGITS.argmax(axis=1) == labels
    first = (np.argsort(-LOGITS, axis=1)[:, :5] == labels[:, None]).any(axis=1)
    return {
        "accuracy": 100 * right.mean(),
        "top5": 100 * first.mean(),
        "mean-class-accuracy": np.mean([100 * right[labels == label].mean() for label in range(7)]),
        "loss": loss,
        "perplexity": math.exp(loss),
        "bits-per-byte": loss * len(labels) / BYTES / math.log(2),
    }[name]


@pytest.mark.parametrize("name", [name for name in BUILT_IN if name not in OF_TASKS])
def test_built_in_metrics_are_what_their_definitions_say(name):
    measure = Measure.of(Metric(name=name))
    # More images than are classified at once, and classes that the split does not have.
    assert measure.value(scored(measure, size=BYTES)) == pytest.approx(by_hand(name), rel=1e-12)


def test_a_rare_class_weighs_as_much_as_a_frequent_one():
    logits = np.eye(2)[[0, 0, 0, 0]]
    measure = Measure("mean-class-accuracy")
    assert measure.value(scored(measure, logits, [0, 0, 0, 1])) == 50.0


def test_what_is_measured_beside_leaves_out_what_decides():
    found = beside(scored(Measure("loss"), closely=True), "loss")
    assert set(found) == {"top5", "mean-class-accuracy", "perplexity"}
    assert found["top5"] == pytest.approx(by_hand("top5"))
    # Of five classes the first five answers say nothing.
    assert "top5" not in beside(scored(Measure(), LOGITS[:, :5], [0] * 1100, closely=True), "accuracy")
    with pytest.raises(AuditError, match="top5 says nothing of five classes"):
        Measure("top5").value(scored(Measure("top5"), LOGITS[:, :5], [0] * 1100))
    with pytest.raises(AuditError, match="bits-per-byte says nothing where the bytes of texts are not told"):
        Measure("bits-per-byte").value(scored(Measure("bits-per-byte")))


def test_a_perplexity_that_is_no_number_is_refused_in_one_line():
    score = Score(accuracy=10.0, loss=1e4, correct=np.zeros(3, dtype=bool))
    with pytest.raises(AuditError, match="metric 'perplexity' is inf: nothing can be compared by it"):
        Measure("perplexity").value(score)
    assert "perplexity" not in beside(dataclasses.replace(score, labels=np.zeros(3)), "accuracy")


def test_a_metric_of_ones_own_sees_the_whole_split(mine):
    measure = mine("error")
    assert measure.value(scored(measure)) == pytest.approx(100 - by_hand("accuracy"), rel=1e-6)
    assert measure.outcomes(scored(measure)) is None
    # An outcome for each image: exact, and the images can be counted.
    measure = mine("wrong")
    score = scored(measure)
    assert measure.value(score) == 100.0 * int((~score.correct).sum()) / 1100
    assert np.array_equal(measure.outcomes(score), ~score.correct)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("raises", "metric 'my-raises' raised RuntimeError: no logits of mine"),
        ("shapes", "metric 'my-shapes' gave float64 of shape [1100, 12]; expected a number, or an outcome for each"),
        ("nothing", "metric 'my-nothing' is nan"),
    ],
)
def test_what_a_metric_of_ones_own_does_wrong_is_told_in_one_line(mine, name, message):
    measure = mine(name)
    with pytest.raises(AuditError) as caught:
        measure.value(scored(measure))
    assert message in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [("missing", "cannot be imported from"), ("number", "is no function of logits and labels")],
)
def test_a_metric_that_is_not_there_is_told_before_anything_trains(mine, name, message):
    with pytest.raises(ConfigError, match=message):
        mine(name)


# Training


@pytest.mark.parametrize("name", ["perplexity", "mean-class-accuracy"])
def test_every_backend_measures_it_after_every_epoch(name):
    data = few_digits("lenet5", train=96, held_out=40)
    recipe = Recipe(epochs=3, lr="0:0.02", batch=32, momentum=0.9)

    def training():
        model = build("lenet5", 1, 10).double()
        initialise(model, generator(0, "test"))
        return Training(model, data, recipe, 0, "retrain", "fp64", measure=Measure(name))

    found = {}
    for backend in ("torch", "tiled", "grouped"):
        trainings = [training(), training()]
        for result, one in zip(train_many(trainings, backend), trainings, strict=True):
            assert result.error is None and result.backend == backend
            last = Measure(name).value(Measure(name).evaluate(one.model, data, data.test, "fp64"))
            found[backend] = result.history
            assert result.history.test_metric[-1] == last
    history = found["torch"]
    assert len(history.test_accuracy) == len(history.test_metric) == len(history.validation_metric) == 3
    for other in found.values():
        assert other.test_metric == pytest.approx(history.test_metric, rel=1e-9)
        assert other.validation_metric == pytest.approx(history.validation_metric, rel=1e-9)


def test_progress_is_told_in_the_metric():
    data, told = few_digits("lenet5", train=64, held_out=20), []
    model = build("lenet5", 1, 10).double()
    recipe = Recipe(epochs=2, lr="0:0.01", batch=32)
    with Meter(model) as meter:
        trainer = Trainer(
            model, data, recipe, 0, "retrain", meter, "fp64",
            progress=lambda done, epochs, value: told.append(value), measure=Measure("perplexity"),
        )  # fmt: skip
        history = trainer.fit()
    assert told == history.test_metric
    assert told == pytest.approx([math.exp(loss) for loss in history.test_loss])


def test_the_metric_is_part_of_what_a_run_is_and_accuracy_renames_none():
    assert run_spec(metric="accuracy").run_id == run_spec().run_id
    assert run_spec(metric="perplexity").run_id != run_spec().run_id


# A whole campaign

CELL = Cell("lenet5-digits", "s3.1", "l1", 0.5, 0)


def campaign(metric, root):
    catalog, ledger = catalog_by(metric), Ledger(root)
    executor = LocalExecutor(ledger, Stages(ledger, catalog, Runtime()), "session")
    return Campaign(catalog, ledger, Settings(budget="smoke"), executor)


def test_a_campaign_by_perplexity_tunes_reports_and_shows_others_beside(tmp_path):
    metric = Metric(name="perplexity", beside=("accuracy", "top5"))
    work = campaign(metric, tmp_path)
    cell = work.obtain(CELL)
    assert cell.status == "ok", cell.error
    trials = [work.ledger.get(run) for run in cell.trials]
    result = work.ledger.get(cell.result)
    # Validation decides, and the lowest perplexity wins.
    assert result.validation_value == min(run.validation_value for run in trials)
    assert len({run.validation_value for run in trials}) == len(trials) > 1
    for run in trials:
        assert run.value == pytest.approx(math.exp(run.test_loss[-1]), rel=1e-5)
        assert run.value == run.curve[-1] and len(run.curve) == len(run.test_accuracy)
        assert run.accuracy == 100.0 * unpack(run.correct, run.test_images).bit_count() / run.test_images
        assert set(run.beside) == {"top5", "mean-class-accuracy", "loss"} and run.outcomes == ""
    assert cell.value == result.value and cell.scores.base == work.ledger.get(cell.base).value
    results = gather_ledger(work.catalog, work.ledger)
    (row,) = results.cells
    assert row["beside"] == {"accuracy": result.accuracy, "top5": result.beside["top5"]}
    header, (shown_row,) = beside_table(results, "lenet5-digits", ("smoke",))
    assert header[-2:] == ["accuracy (%)", "top-5 accuracy (%)"]
    assert shown_row[-2:] == [f"{result.accuracy:.2f}", f"{result.beside['top5']:.2f}"]
    assert "lenet5-digits \\[smoke\\]: other metrics" in markdown(results)
    # What is shown beside it changes nothing that is trained, nor whether it counts.
    vars(work.catalog)["workloads"] = campaign(Metric(name="perplexity"), tmp_path).catalog.workloads
    assert {row["status"] for row in gather_ledger(work.catalog, work.ledger).cells} == {"ok"}


def test_a_campaign_by_a_metric_of_ones_own(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(SMALL, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    metric = Metric(name="wrong", unit="%", direction="lower", margin=0.5, function="mine.py:wrong")
    work = campaign(metric, tmp_path / "ledger")
    cell = work.obtain(dataclasses.replace(CELL, protocol="s3.2"))
    assert cell.status == "ok", cell.error
    run = work.ledger.get(cell.result)
    assert run.value == pytest.approx(100 - run.accuracy)
    # Outcomes for McNemar's test are its own.
    count = run.test_images
    assert unpack(run.outcomes, count) == unpack(run.correct, count) ^ (2**count - 1)
    found = {row["rule"]: row for row in gather_ledger(work.catalog, work.ledger).findings}
    assert found["F601"]["verdict"] == "pass" and "recounted" in json.dumps(found["F601"]["measured"])
    # An edited metric is another one.
    (tmp_path / "mine.py").write_text(SMALL.replace("!= labels\n", "!= (labels)\n"), encoding="utf-8")
    (row,) = gather_ledger(work.catalog, work.ledger).cells
    assert row["status"] == "outdated" and "another version of mine.py:wrong" in row["error"]
    again = campaign(metric, tmp_path / "ledger")
    assert again.plan(dataclasses.replace(CELL, protocol="s3.2")).base.run_id != cell.base
