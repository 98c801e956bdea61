"""A base that is already sparse: its zeros are told, held where a workload says so, and never counted as weights."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from pruneaudit.campaign.executors.local import LocalExecutor
from pruneaudit.campaign.planner import Campaign
from pruneaudit.campaign.stages import Stages
from pruneaudit.catalog.cells import Cell
from pruneaudit.catalog.discovery import Catalog
from pruneaudit.catalog.settings import Settings
from pruneaudit.ledger.store import Ledger
from pruneaudit.training.runtime import Runtime
from pruneaudit.workloads.models import build
from pruneaudit.workloads.models.initialise import initialise
from pruneaudit.workloads.schema import Base

NAME = "lenet5-digits"


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """LeNet-5 with seven of ten weights of every layer zero."""
    network = build("lenet5", 1, 10)
    initialise(network, torch.Generator().manual_seed(0))
    with torch.no_grad():
        for weight in network.parameters():
            if weight.dim() > 1:
                smallest = weight.abs().flatten().argsort()[: round(0.7 * weight.numel())]
                weight.view(-1)[smallest] = 0
    path = tmp_path_factory.mktemp("sparse") / "base.safetensors"
    save_file(network.state_dict(), path)
    return path


def campaign(root, base, zeros):
    catalog = Catalog()
    catalog.workloads = {
        name: workload.model_copy(update={"base": Base(zeros=zeros)}) for name, workload in catalog.workloads.items()
    }
    ledger = Ledger(root)
    stages = Stages(ledger, catalog, Runtime(base=base))
    return Campaign(catalog, ledger, Settings("smoke", base=base), LocalExecutor(ledger, stages, "session"))


@pytest.fixture(scope="module")
def held(tmp_path_factory, base):
    return campaign(tmp_path_factory.mktemp("held"), base, "hold")


def runs_of(campaign, method, ratio=0.5, protocol="s3.2"):
    """Record of a cell, and its runs with their weights by stage."""
    record = campaign.obtain(Cell(NAME, protocol, method, ratio, 0))
    ledger = campaign.ledger
    runs = {run.stage: run for run in map(ledger.get, record.runs)}
    return record, runs, {stage: ledger.weights(run) for stage, run in runs.items()}


def not_zero(tensors):
    """Parameters of a network that are not zero, where only those of matrices may be."""
    named = {name: tensor for name, tensor in tensors.items() if not name.startswith("mask:")}
    return sum(int(one.count_nonzero()) if one.dim() > 1 else one.numel() for one in named.values())


@pytest.mark.parametrize(
    ("method", "ratio", "protocol"),
    [
        ("unpruned", 0.5, "s3.2"),
        ("l1", 0.5, "s4.2"),
        ("magnitude-layer", 0.9, "s3.2"),
        ("magnitude-global", 0.9, "s3.2"),
    ],
)
def test_held_zeros_stay_and_count_as_zeros(held, base, method, ratio, protocol):
    record, runs, weights = runs_of(held, method, ratio, protocol)
    assert record.error == "" and {"pretrain", "prune", "retrain"} <= set(runs)
    assert not_zero(load_file(base)) == runs["pretrain"].params < 0.32 * runs["pretrain"].base_params
    for stage, run in runs.items():
        assert run.params == not_zero(weights[stage]), stage
        assert run.macs == run.macs_recounted < 0.32 * run.base_macs
    assert runs["retrain"].macs == runs["prune"].macs == record.macs
    assert "70.0% of its weights are zero, and stay so" in runs["pretrain"].provenance
    first = load_file(base)["conv1.weight"]
    if method == "unpruned":
        assert torch.equal(weights["retrain"]["conv1.weight"] != 0, first != 0)
    if method == "l1":
        kept = runs["prune"].kept["conv1"]
        assert torch.equal(weights["retrain"]["conv1.weight"] != 0, first[kept] != 0)
        assert torch.equal(weights["topup"]["conv1.weight"] != 0, first != 0)
    if method.startswith("magnitude"):
        target = runs["prune"].conduct.target
        assert sum(runs["prune"].stay[name] for name in target.stay) == sum(target.stay.values())


def test_a_ratio_that_the_base_has_passed_already_is_one_line(held):
    record = held.obtain(Cell(NAME, "s3.2", "magnitude-layer", 0.5, 0))
    assert record.status == "failed"
    assert "weights that are not zero where ratio 0.5 lets" in record.error and "choose higher ratios" in record.error


def test_free_zeros_are_told_and_grow(tmp_path, base, held):
    record, runs, weights = runs_of(campaign(tmp_path, base, "free"), "unpruned")
    assert "70.0% of its weights are zero, and may grow: zeros = 'hold'" in runs["pretrain"].provenance
    assert runs["pretrain"].params == runs["pretrain"].base_params
    assert weights["retrain"]["conv1.weight"].count_nonzero() == weights["retrain"]["conv1.weight"].numel()
    assert record.labels != held.settings.labels(held.catalog.workload(NAME)), "one file, held or not, is two bases"
