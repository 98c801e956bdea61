"""What a method does beside deciding is measured, and stands where its verdict is."""

import pytest
import torch
from builders import CATALOG, changed, evidence, store
from small import prune
from torch import nn

from pruneaudit import Budget, TrainedMethod
from pruneaudit.audit.besides import besides
from pruneaudit.ledger.store import Ledger
from pruneaudit.report.page import page
from pruneaudit.report.results import gather_ledger
from pruneaudit.report.terminal import summary
from pruneaudit.report.writer import markdown
from pruneaudit.training.loop import Hooks


class Trains(TrainedMethod):
    """Smallest L1 norm first, after the harness's own training."""

    def budget(self, workload):
        return Budget(steps=workload.prune.steps)

    def scores(self, task):
        return task.keep({layer.name: layer.weight.abs().flatten(1).sum(dim=1) for layer in task.layers})

    def prune(self, task):
        task.train()
        return self.scores(task)


class Gates(Trains):
    """A gate for each filter of the first layer, trained by Adam beside the network."""

    def prune(self, task):
        gates = nn.Parameter(torch.ones(task.layers[0].channels, dtype=torch.float64))
        adam = torch.optim.Adam([gates], lr=0.01)

        def step(_number):
            adam.zero_grad()
            (gates**2).sum().backward()
            adam.step()

        task.train(hooks=Hooks(after_step=step))
        return self.scores(task)


class Registers(Trains):
    """A parameter that is hung onto the network, so that the harness's own optimiser trains it."""

    def prune(self, task):
        task.model.register_parameter("extra", nn.Parameter(torch.zeros(7, dtype=torch.float64)))
        task.train(hooks=Hooks(penalty=lambda step: task.model.extra.sum()))
        del task.model.extra
        return self.scores(task)


class OwnLoop(Trains):
    """Trains the network itself, with an optimiser of its own."""

    def prune(self, task):
        optimiser = torch.optim.RMSprop(task.model.parameters(), lr=1e-4)
        for images, labels in task.batches(2):
            optimiser.zero_grad()
            nn.functional.cross_entropy(task.model(images), labels).backward()
            optimiser.step()
        return self.scores(task)


@pytest.mark.parametrize(
    ("method", "added"),
    [(Trains, {}), (Gates, {"adam": 6}), (Registers, {"sgd": 7}), (OwnLoop, {"rmsprop": 0})],
    ids=["nothing", "parameters and optimiser", "parameters only", "optimiser only"],
)
def test_what_is_trained_beside_the_network_is_counted(method, added):
    assert prune(method(), "lenet5", steps=2).consumption.added == added


def arm(method, seed=0, acts="", **conduct):
    found = evidence(method, seed=seed)
    result = changed(
        found.result, hyper_parameters={**found.result.hyper_parameters, **({"method": acts} if acts else {})}
    )
    prune = changed(found.prune, conduct=found.prune.conduct.model_copy(update=conduct))
    return type(found)(found.cell, found.base, found.topup, prune, (result,), result)


def test_each_of_them_is_a_sentence():
    assert besides(arm("l1")) == []
    assert besides(arm("thinet", declares_rewriting=True, rewritten=("conv1.weight", "conv2.weight"))) == [
        "thinet rewrites 2 tensor(s) without training them, as it declares"
    ]
    assert besides(arm("tpp", added={"adam": 6000, "sgd": 0})) == [
        "tpp trains 6,000 parameter(s) of its own with adam",
        "tpp trains with an optimiser of its own, sgd",
    ]
    assert besides(arm("l1", acts="l1: 0.1 x orthogonality: every step")) == [
        "l1 acts in retraining: 0.1 x orthogonality: every step"
    ]


def test_it_is_told_wherever_the_verdict_is(tmp_path):
    ledger = Ledger(tmp_path / "ledger")
    for seed in range(2):
        store(ledger, arm("tpp", seed, added={"adam": 6}))
        store(ledger, arm("l1", seed))
    results = gather_ledger(CATALOG, ledger)
    sentence = "tpp trains 6 parameter(s) of its own with adam"
    (verdict,) = results.verdicts
    assert verdict["besides"] == [sentence] and sentence in verdict["summary"]
    for text in ("\n".join(summary(results)), markdown(results), page(results)):
        assert f"{sentence}." in text
