"""One training by several processes: what they see, what comes out, and what becomes of it when one of them dies."""

import copy
import dataclasses
import json
import multiprocessing
import os
import pickle
import re
import shlex
import signal
import time
import tomllib
from multiprocessing.reduction import ForkingPickler

import pytest
import torch
import torch.nn.functional as F
from builders import changed, evidence, write_method
from hypothesis import given
from hypothesis import strategies as st
from pictures import folder
from test_training import digits
from torch import nn

from conftest import ROOT
from pruneaudit.audit.catalogue import get_rule
from pruneaudit.campaign.planner import Planner
from pruneaudit.catalog.cells import Cell, Resolved
from pruneaudit.catalog.discovery import Catalog
from pruneaudit.catalog.settings import Settings
from pruneaudit.errors import ConfigError
from pruneaudit.streams import generator
from pruneaudit.training import ranks
from pruneaudit.training.checkpoint import Checkpoint
from pruneaudit.training.loop import DivergedError
from pruneaudit.training.many import train_many
from pruneaudit.training.mixing import Mixing
from pruneaudit.training.runs import Training
from pruneaudit.workloads.data import Share, load, loading
from pruneaudit.workloads.models.initialise import initialise
from pruneaudit.workloads.recipes import Recipe
from pruneaudit.workloads.schema import DataConfig

torch.set_num_threads(1)
FORK = multiprocessing.get_context("fork")
#: Seconds. Nothing here takes that long unless it hangs.
PATIENCE = 60.0
# 100 images in batches of 30: the last one of an epoch has 10, which three ranks do not divide.
RECIPE = Recipe(epochs=2, lr="0:0.05,1:0.01", batch=30, weight_decay=5e-4)


def network(*norm):
    """A small network in float64, the same each time."""
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1, bias=False), *norm, nn.ReLU(), nn.Flatten(), nn.Linear(256, 10))
    model = model.double()
    initialise(model, generator(0, "test"))
    return model.to(memory_format=torch.channels_last)


def train(model, recipe=RECIPE, count=1, dataset=None, **options):
    """What becomes of a network by so many ranks, and of its training."""
    model = copy.deepcopy(model)
    given = Training(model, dataset or digits(), recipe.over(count), 0, "retrain", "fp64", **options)
    (trained,) = train_many([given])
    return model, trained


def trained(model, recipe=RECIPE, count=1, **options):
    model, found = train(model, recipe, count, **options)
    assert found.error is None
    return model, found


def apart(one, other):
    """The largest difference of two networks, running statistics included."""
    second = other.state_dict()
    return max(float((tensor - second[name]).abs().max()) for name, tensor in one.state_dict().items())


# What each rank sees


@given(size=st.integers(1, 300), of=st.integers(1, 9), before=st.integers(0, 1))
def test_shares_of_a_batch_are_the_batch(size, of, before):
    batch = torch.arange(100, 100 + size)
    shares = [Share(number, of, before if of > 1 else 0) for number in range(of)]
    taken = [share.take(batch) for share in shares]
    own = [part[share.before :] for part, share in zip(taken, shares, strict=True)]
    assert torch.equal(torch.cat(own), batch)
    assert max(map(len, own)) - min(map(len, own)) <= 1
    assert sum(share.weight(size) for share in shares) == pytest.approx(of)
    for part, share in zip(taken, shares, strict=True):
        if share.before and len(part) > 1:
            assert int(part[0]) == (int(part[1]) - 101) % size + 100


@pytest.fixture
def leaves(tmp_path, monkeypatch):
    """A dataset of pictures that are decoded while they are used, by so many workers."""
    monkeypatch.setenv("PRUNEAUDIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(loading, "usual_workers", lambda: 0)
    root = folder(tmp_path / "leaves", {"train": {"cat": 16, "dog": 14}, "test": {"cat": 4, "dog": 5}}, (10, 9))
    load.cache_clear()
    keys = {"train": ("RandomResizedCrop(8)", "RandomHorizontalFlip"), "test": ("Resize(8)", "CenterCrop(8)")}
    dataset = load(DataConfig(name=f"imagefolder:{root}", **keys))

    def by(workers):
        return dataclasses.replace(dataset, train=dataclasses.replace(dataset.train, workers=workers))

    return by


def test_workers_ranks_and_a_resume_in_mid_epoch_change_no_tensor(leaves):
    def seen(workers, count, start):
        """Images and labels from a batch of an epoch on, as all ranks together see them."""
        passes = [
            leaves(workers).batches(3, "retrain", 1, 7, torch.float64, start, Share(number, count))
            for number in range(count)
        ]
        return [[torch.cat(parts) for parts in zip(*step, strict=True)] for step in zip(*passes, strict=True)]

    whole = seen(0, 1, 0)
    assert [len(labels) for _, labels in whole] == [7, 7, 7, 6]
    for workers, count, start in [(1, 1, 2), (3, 1, 0), (0, 2, 1), (1, 2, 2), (3, 2, 0)]:
        found = seen(workers, count, start)
        for (images, labels), (expected, of_expected) in zip(found, whole[start:], strict=True):
            assert torch.equal(images, expected) and torch.equal(labels, of_expected)


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_ranks_mix_the_images_that_one_process_would_mix(kind):
    mixing = Mixing(Recipe(epochs=1, lr="0:1", batch=7, **{kind: 1.0}), 10)
    images, labels = torch.rand(7, 3, 8, 8), torch.randint(10, (7,))
    whole = mixing(images, labels, 0, "retrain", 1, 2)
    parts = [Share(number, 2, before=1) for number in range(2)]
    found = [mixing(share.take(images), share.take(labels), 0, "retrain", 1, 2) for share in parts]
    for one, expected in zip(zip(*found, strict=True), whole, strict=True):
        assert torch.equal(torch.cat([part[1:] for part in one]), expected)


# What comes out


@pytest.mark.parametrize(
    ("norm", "count", "more"),
    [
        ((nn.GroupNorm(2, 4),), 3, {}),
        ((), 2, {"accumulate": 3, "clip": 0.5, "ema": 0.9, "mixup": 1.0, "label_smoothing": 0.1, "nesterov": True}),
    ],
    ids=["group-norm", "all-keys"],
)
def test_without_batch_norm_ranks_train_what_one_process_trains(norm, count, more):
    model, recipe = network(*norm), Recipe(**{**dict(RECIPE), **more})
    masks = {"0": torch.arange(36).reshape(4, 1, 3, 3) % 3 > 0}
    with torch.no_grad():
        model[0].weight.mul_(masks["0"])
    (one, alone), (other, shared) = (trained(model, recipe, number, masks=masks) for number in (1, count))
    assert apart(one, other) <= 1e-12
    for name, curve in vars(alone.history).items():
        assert vars(shared.history)[name] == pytest.approx(curve, rel=0, abs=1e-12), name
    # Images are counted over ranks, and the largest batch is that of all together.
    assert vars(shared.consumption) | {"settings": {}} == vars(alone.consumption) | {"settings": {}}
    assert shared.consumption.settings.items() > {"ranks": count, "batch_of_a_rank": 30 // count}.items()


def test_under_batch_norm_each_rank_normalises_by_its_own_part():
    model = network(nn.BatchNorm2d(4))
    (one, _), (two, found) = (trained(model, RECIPE, number) for number in (1, 2))
    assert apart(one, two) > 1e-3
    assert found.consumption.settings["batch_norm"] == "each rank's own; running statistics of rank 0"
    # As anyone would write it: gradients are the mean of both parts', and the second part leaves no statistics.
    optimiser = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    dataset = digits()
    for epoch in range(2):
        optimiser.param_groups[0]["lr"] = (0.05, 0.01)[epoch]
        for images, labels in dataset.batches(0, "retrain", epoch, 30, torch.float64):
            optimiser.zero_grad()
            half = len(images) // 2
            (F.cross_entropy(model(images[:half]), labels[:half]) / 2).backward()
            kept = copy.deepcopy(dict(model.named_buffers()))
            (F.cross_entropy(model(images[half:]), labels[half:]) / 2).backward()
            for name, buffer in model.named_buffers():
                buffer.copy_(kept[name])
            optimiser.step()
    assert apart(model, two) <= 1e-12


def test_dropout_is_each_ranks_own_and_the_same_again():
    model = network(nn.Dropout(0.5))
    (one, _), (again, _), (alone, _) = (trained(model, RECIPE, count) for count in (2, 2, 1))
    assert apart(one, again) == 0 < apart(one, alone)


# Killed and resumed


def children(pid):
    """Ids of the living processes that a process started."""
    with open(f"/proc/{pid}/task/{pid}/children", encoding="ascii") as file:
        return [int(child) for child in file.read().split()]


def lives(pid):
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until(what):
    end = time.monotonic() + PATIENCE
    while not what():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.parametrize("count", [2, 3])
def test_a_training_that_is_killed_goes_on_bit_by_bit_whatever_reads_its_data(leaves, tmp_path, count):
    # With three ranks the order in which gradients are added up matters.
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2)).double()
    recipe = Recipe(epochs=4, lr="cosine:0.1, per step", batch=12, ema=0.9)
    whole, history = trained(model, recipe, count, dataset=leaves(0))
    ours, theirs = FORK.Pipe()

    def doomed():
        def progress(done, _all, _metric):
            if done == 2:
                theirs.send(children(os.getpid()))
                os.kill(os.getpid(), signal.SIGKILL)

        train(model, recipe, count, dataset=leaves(0), checkpoint=Checkpoint(path, "cpu"), progress=progress)

    path = tmp_path / "state.safetensors"
    process = FORK.Process(target=doomed)
    process.start()
    left = ours.recv()
    process.join(PATIENCE)
    # Whoever is killed takes its ranks along: nobody is there to end them.
    assert len(left) == count
    wait_until(lambda: not any(map(lives, left)))
    resumed, found = trained(model, recipe, count, dataset=leaves(2), checkpoint=Checkpoint(path, "cpu"))
    assert found.resumed_from >= 2
    assert apart(whole, resumed) == 0
    assert found.history == history.history and found.consumption == history.consumption


def test_another_number_of_ranks_does_not_go_on(tmp_path):
    checkpoint, model = Checkpoint(tmp_path / "state.safetensors", "cpu"), network()
    trained(model, RECIPE, 2, checkpoint=checkpoint)
    for count in (1, 3):
        _, found = train(model, RECIPE, count, checkpoint=checkpoint)
        assert isinstance(found.error, ConfigError)
        assert f"begun by 2 rank(s) and goes on with as many only, not with {count}" in str(found.error)


def test_a_rank_that_dies_ends_the_training_with_one_line_and_leaves_none():
    started = []

    def progress(done, _all, _metric):
        if done == 1:
            pids = {process.name: process.pid for process in multiprocessing.active_children()}
            started.extend(pids[name] for name in ("rank 0", "rank 1"))
            os.kill(started[1], signal.SIGKILL)

    # More than any rank trains before it is killed: it tells of each, and that line holds some thousand of them.
    _, found = train(network(), RECIPE.for_epochs(10**6), 2, progress=progress)
    assert isinstance(found.error, ranks.RankLostError)
    text = str(found.error)
    assert text.startswith("rank 1 of 2 was ended by SIGKILL") and "\n" not in text
    assert len(started) == 2 and not any(map(lives, started))


def test_what_goes_wrong_in_a_rank_is_told_as_by_one_process(leaves, tmp_path):
    _, found = train(network(), Recipe(epochs=3, lr="0:0.01,1:1e200", batch=30), 2)
    assert isinstance(found.error, DivergedError) and "in epoch 2 of 3: it diverged" in str(found.error)
    assert len(found.error.losses) == 1 and "raised in rank" in found.error.__notes__[0]
    victim = next((tmp_path / "leaves" / "train" / "dog").iterdir())
    victim.write_bytes(b"no picture")
    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(72, 2)).double()
    _, found = train(model, Recipe(epochs=1, lr="0:0.1", batch=10), 2, dataset=leaves(0))
    assert isinstance(found.error, ConfigError) and victim.name in str(found.error)


@pytest.mark.parametrize("then", [lambda: time.sleep(PATIENCE), lambda: os._exit(3)], ids=["slowly", "by a crash"])
def test_what_went_wrong_first_is_told_however_its_rank_leaves_the_others(monkeypatch, then):
    leave = ranks.dist.destroy_process_group

    def fit(rank, _job, _tell):
        if rank == 1:
            monkeypatch.setattr(ranks.dist, "destroy_process_group", lambda: leave() or then())
            raise ConfigError("no picture")
        ranks.dist.barrier()

    monkeypatch.setattr(ranks, "_fit", fit)
    _, found = train(network(), RECIPE, 2)
    assert isinstance(found.error, ConfigError) and "no picture" in str(found.error)


def test_ranks_that_are_sent_their_network_train_a_copy_each_of_what_can_be_sent(tmp_path, monkeypatch):
    """Where nothing can be forked, tensors that are sent lie in memory that all share; test_cuda.py trains so."""
    given = Training(network(), digits(), RECIPE.over(2), 0, "retrain", "fp64")
    job = ranks._Job(given, "cpu", None, tmp_path / "store")
    models = [pickle.loads(bytes(ForkingPickler.dumps(job))).on(rank).model for rank in (0, 1)]
    with torch.no_grad():
        models[0][0].weight.zero_()
    assert apart(models[1], given.model) == 0
    monkeypatch.setattr(ranks, "_start_method", lambda _device: "spawn")

    class Local(nn.Sequential):
        pass

    _, found = train(Local(*network()), RECIPE, 2)
    assert isinstance(found.error, ConfigError) and "cannot be sent to the processes" in str(found.error)


# Recipes, plans, rules


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"ranks": 4}, "ranks: a batch of 30 cannot be 4 equal parts"),
        ({"ranks": 5, "accumulate": 5}, "ranks: a batch of 30 cannot be 5 equal parts of 5 equal parts each"),
        ({"sync_batch_norm": True}, "sync_batch_norm: does nothing without ranks"),
    ],
)
def test_recipes_that_no_ranks_can_train_are_refused(keys, said):
    with pytest.raises(ValueError, match=said):
        Recipe(epochs=1, lr="0:1", batch=30, **keys)


def test_what_cannot_be_trained_by_ranks_says_why():
    for recipe, said in [
        (RECIPE.model_copy(update={"batch": 99}), "the last batch of an epoch has 1 image(s) for 3 ranks"),
        (RECIPE.model_copy(update={"sync_batch_norm": True}), "synchronises batch normalisation on CUDA devices only"),
    ]:
        given = Training(network(), digits(), recipe.model_copy(update={"ranks": 3}), 0, "retrain", "fp64")
        (found,) = train_many([given])
        assert isinstance(found.error, ConfigError) and said in str(found.error)


def planned(count, method="l1", workload="lenet5-digits", **cell):
    catalog, settings = Catalog(), Settings(ranks=count)
    cell = Cell(workload, cell.get("protocol", "s4.1"), method, 0.5, 0)
    return Planner(catalog, settings, Resolved.of(cell, catalog)).plan()


def test_ranks_are_part_of_every_training_and_of_no_pruning():
    plain, one, two = (planned(count) for count in (0, 1, 2))
    assert [run.run_id for run in plain.runs] == [run.run_id for run in one.runs]
    assert not {run.run_id for run in plain.runs} & {run.run_id for run in two.runs}
    assert {run.stage: run.recipe.ranks for run in two.runs} == {"pretrain": 2, "topup": 1, "prune": 1, "retrain": 2}
    assert two.base.slug.endswith("-ranks2") and two.prune.slug == plain.prune.slug
    # What a method adds to retraining acts in one process.
    assert [run.recipe.ranks for run in planned(2, "l1-kernorth", protocol="s3.2").trials] == [1]
    workload = Catalog().workload("lenet5-digits")
    assert Settings(ranks=2).labels(workload) == ("ranks2",) and Settings().labels(workload) == ()
    with pytest.raises(ConfigError, match="pretrain has batches of 64 images, of which 3 ranks cannot"):
        planned(3)
    # 1,079 images in batches of 64 leave 55.
    with pytest.raises(ConfigError, match=r"pretrain by 64 ranks: the last batch of an epoch has 55 image"):
        planned(64)


def block(language):
    """The block of docs/scale.md about ranks, in a language; empty: a command."""
    section = (ROOT / "docs" / "scale.md").read_text(encoding="utf-8").partition("## One run on several devices")[2]
    return re.search(f"^```{language}\n(.*?)^```", section, re.M | re.S)[1]


def test_gregs_two_devices_are_another_training_than_one():
    """GReg's code trains ImageNet with DataParallel on two devices, 128 images each: as docs/scale.md states it."""
    stated = Recipe.model_validate(tomllib.loads(block("toml"))["retrain"])
    assert (stated.batch, stated.micro_batch, stated.ranks) == (256, 128, 2)
    workload = Catalog().workload("greg-resnet34-imagenet")
    recipe = workload.over(2).retrain
    assert (recipe.batch, recipe.micro_batch, recipe.ranks) == (256, 128, 2)
    assert recipe != workload.retrain == recipe.over(1)


def test_two_arms_by_different_numbers_of_ranks_are_not_comparable():
    def arm(count):
        one = evidence("l1", "s2")
        recipe = one.result.recipe.over(count)
        facts = {"ranks": count, "batch_of_a_rank": recipe.batch // count} if count > 1 else {}
        hyper = one.result.hyper_parameters | facts
        return dataclasses.replace(one, result=changed(one.result, recipe=recipe, hyper_parameters=hyper))

    check = get_rule("F322").check
    assert check(arm(2), arm(2)).verdict == "pass"
    outcome = check(arm(1), arm(2))
    assert outcome.verdict == "fail" and "ranks=2" in outcome.right


# Sessions

WORKLOAD = """version = 1
source = "a test"
model = "lenet5"
prunable = ["conv*"]
ratios = [0.5]
seeds = [0]

[data]
name = "imagefolder:leaves"
train = ["RandomResizedCrop(32)", "RandomHorizontalFlip"]
test = ["Resize(32)", "CenterCrop(32)"]
validation = 5

[sgd]
batch = 16

[pretrain]
epochs = 2
lr = "0:1e-2"

[prune]
steps = 2
lr = "0:1e-3"

[retrain]
epochs = 2
lr = "0:1e-2"

[scratch]
epochs = 2
lr = "0:1e-2"

[tune]
schedules = ["0:1e-2", "0:1e-3"]
"""
# No method of this project: it prunes in a process of its own.
BODY = "    def score(self, layer, task):\n        return layer.weight.abs().flatten(1).sum(dim=1)\n"


def test_a_session_trains_a_folder_by_two_ranks_and_judges_it(checkout):
    folder(checkout.root / "leaves", {"train": {"cat": 26, "dog": 25}, "val": {"cat": 4, "dog": 5}}, (36, 33), "L")
    checkout.write("leaves.toml", WORKLOAD)
    spec = write_method(checkout.root, "stranger", BODY)
    command = shlex.split(block(""))
    assert command[:3] == ["pytest", "--pyargs", "pruneaudit.suite"]
    options = [*command[3:], "--audit-method", spec, "--audit-methods", "l1,stranger"]
    cache = {"PRUNEAUDIT_CACHE": str(checkout.root / "cache")}
    outcome = checkout.pytest("suite", *options, **cache)
    assert outcome.code == 0, outcome.text
    assert "2 ranks" in outcome.text
    results = json.loads((checkout.report / "results.json").read_text(encoding="utf-8"))
    assert {tuple(row["labels"]) for row in results["cells"]} == {("ranks2",)}
    found = {row["rule"]: row for row in results["findings"]}
    assert found["F322"]["verdict"] == found["F608"]["verdict"] == "pass"
    assert "batch=16, batch_of_a_rank=8" in found["F322"]["measured"]["l1"]
    # What is trained is what is planned.
    options = [option for option in options if option not in ("-n", "--audit-ranks", "2")] + ["--audit-ranks", "2"]
    planned = checkout.python("-m", "pruneaudit", "plan", *options, "--no-probe", "--json", **cache)
    assert planned.code == 0, planned.text
    plan = json.loads(planned.text[planned.text.index("{") :])
    assert plan["runs"] == plan["stored"] == len(list((checkout.ledger / "runs").iterdir()))
