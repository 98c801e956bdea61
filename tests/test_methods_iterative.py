"""Methods that prune in rounds: what is left after each, and that what is gone stays gone while the rest trains."""

import itertools

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from small import CATALOG, network, prune

from pruneaudit.campaign.planner import Campaign
from pruneaudit.catalog.cells import Cell
from pruneaudit.catalog.settings import Settings
from pruneaudit.errors import MethodError
from pruneaudit.method.iterative import IterativeScore, stays_after
from pruneaudit.method.task import PruningTask

ROUNDS = ("l1-once", "l1-constant", "l1-geometric", "l1-patience")


@given(st.integers(1, 12), st.integers(1, 300), st.integers(1, 300), st.sampled_from(["constant", "geometric"]))
def test_filters_only_go_and_the_last_round_meets_the_target(rounds, count, stay, shares):
    assume(stay <= count)
    left = [count, *(stays_after(done, rounds, count, stay, shares) for done in range(1, rounds + 1))]
    assert left[-1] == stay and left == sorted(left, reverse=True)
    # Both courses are what they are called, but for rounding.
    for done, after in enumerate(left):
        part = done / rounds
        exact = count - (count - stay) * part if shares == "constant" else count * (stay / count) ** part
        assert abs(after - exact) <= 0.5 + 1e-9


def test_courses_are_known_ones():
    assert [stays_after(done, 4, 16, 1, "geometric") for done in (1, 2, 3, 4)] == [8, 4, 2, 1]
    assert [stays_after(done, 5, 16, 1, "constant") for done in (1, 2, 3, 4, 5)] == [13, 10, 7, 4, 1]


@pytest.mark.parametrize("name", ["resnet20", "lenet5"])
def test_one_round_keeps_what_one_shot_pruning_keeps_and_trains_it(name):
    base = network(name)
    once, shot = prune("l1-once", name, base, ratio=0.5, steps=6), prune("l1", name, base, ratio=0.5)
    assert once.answer.kept == shot.answer.kept
    assert len(once.task.history.train_loss) == 2
    for layer in once.task.layers:
        gone = sorted(set(range(layer.channels)) - set(once.answer.kept[layer.name]))
        stays = once.answer.kept[layer.name]
        assert gone and not layer.weight[gone].any(), "what is gone stays at zero"
        assert not torch.equal(layer.weight[stays], base.get_submodule(layer.name).weight[stays]), "the rest trains"
        if layer.norm is not None:
            assert not layer.norm.weight[gone].any() and not layer.norm.bias[gone].any()


@pytest.mark.parametrize("method", ["l1-constant", "l1-geometric"])
def test_filters_go_round_by_round(method, monkeypatch):
    silent = []
    train = PruningTask.train

    def watched(task, steps=None, hooks=None):
        layer = task.layers[-1]
        before = [channel for channel in range(layer.channels) if not layer.weight[channel].any()]
        train(task, steps, hooks)
        after = [channel for channel in range(layer.channels) if not layer.weight[channel].any()]
        assert after == before, "a filter came back, or went, while others trained"
        silent.append((steps, before))

    monkeypatch.setattr(PruningTask, "train", watched)
    found = prune(method, "resnet20", ratio=0.9, steps=10)
    layer = found.task.layers[-1]
    counts = [layer.channels - len(gone) for _, gone in silent]
    shares = method.removeprefix("l1-")
    stay = len(found.answer.kept[layer.name])
    assert counts == [stays_after(done, 4, layer.channels, stay, shares) for done in (1, 2, 3, 4)]
    assert [steps for steps, _ in silent] == [2, 3, 2, 3], "equal parts of the budget, and all of it"
    assert all(set(one) <= set(other) for (_, one), (_, other) in itertools.pairwise(silent))
    assert sorted(set(range(layer.channels)) - set(found.answer.kept[layer.name])) == silent[-1][1]


@pytest.mark.parametrize(
    ("losses", "looks"),
    [
        # Every look is lower: rounds leave one look to each later one, and no more.
        ([], [13, 1, 1, 1]),
        # The second look of each round is no lower.
        ([5, 5, 4, 6, 3, 3], [2, 2, 2, 10]),
        # The third one of the first round is not, those of the second all are.
        ([5, 4, 4], [3, 11, 1, 1]),
    ],
)
def test_a_round_ends_by_patience_and_the_last_has_what_is_left(losses, looks, monkeypatch):
    trained = []
    train = PruningTask.train

    def watched(task, steps=None, hooks=None):
        layer = task.layers[-1]
        gone = sum(not layer.weight[channel].any() for channel in range(layer.channels))
        train(task, steps, hooks)
        task.history.train_loss[-1] = [*losses, *range(0, -16, -1)][len(trained)]
        trained.append((gone, steps))

    monkeypatch.setattr(PruningTask, "train", watched)
    prune("l1-patience", "resnet20", ratio=0.9, steps=16)
    rounds = [sum(steps for _, steps in some) for _, some in itertools.groupby(trained, key=lambda one: one[0])]
    assert rounds == looks and sum(rounds) == 16


def test_a_round_scores_what_the_round_before_left():
    # Scores turn round once something is gone: one-shot pruning would keep the upper half.
    class Turning(IterativeScore):
        def score(self, layer, task):
            rising = torch.arange(layer.channels, dtype=torch.float64)
            return rising if bool((layer.weight.flatten(1) != 0).any(dim=1).all()) else -rising

    method = Turning(2, "constant")
    method.name = "turning"
    found = prune(method, "lenet5", ratio=0.5, steps=2)
    (first, *_) = found.task.layers
    # Six filters: two of the lowest go (6 - 1.5 is rounded to 4), then the highest one.
    assert found.answer.kept[first.name] == [2, 3, 4]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rounds": 0}, "at least 1 round"),
        ({"shares": "linear"}, "constant or geometric"),
        ({"patience": 0}, "patience of at least 1"),
    ],
)
def test_rounds_that_are_none_are_refused(change, message):
    method = CATALOG.method("l1-constant").create()
    vars(method).update(change)
    with pytest.raises(MethodError, match=message):
        prune(method, "lenet5", steps=2)


def test_arms_that_differ_in_rounds_train_equally_long():
    campaign = Campaign(CATALOG, None, Settings(), None)
    plans = [campaign.plan(Cell("lenet5-digits", "s4.2", name, 0.9, 0)) for name in ROUNDS]
    assert all(plan.topup is None for plan in plans), "the whole budget is their own"
    assert len({(plan.base.run_id, plan.prune.recipe, plan.trials[0].recipe) for plan in plans}) == 1
    assert len({plan.prune.run_id for plan in plans}) == len(ROUNDS)
