"""A network with a residual stream, depthwise layers and groups goes through planning, stages and rules."""

import pytest
import torch
from wirings import NETWORKS

from pruneaudit.audit.catalogue import get_rule, required
from pruneaudit.audit.evidence import Case
from pruneaudit.audit.judge import judge
from pruneaudit.campaign.executors.local import LocalExecutor
from pruneaudit.campaign.planner import Campaign
from pruneaudit.campaign.stages import Stages
from pruneaudit.catalog.cells import Arm, Cell, Comparison
from pruneaudit.catalog.discovery import Catalog
from pruneaudit.catalog.settings import Settings
from pruneaudit.ledger.store import Ledger
from pruneaudit.pruning import shapes
from pruneaudit.pruning.layers import AUTO
from pruneaudit.training.runtime import Runtime
from pruneaudit.workloads import models

torch.set_num_threads(1)

NAME = "lenet5-digits"
RATIO = 0.5
#: By network. With depthwise layers and residual streams: a control, one threshold for all layers, a method that trains
#: and a scratch arm; of a layer that is called twice: a control and a score.
METHODS = {
    "mobilenet": ("random", "group-l2-global", "tpp", "scratch-of-group-l2-global"),
    "twice": ("random", "l1"),
}


@pytest.fixture(scope="module", params=METHODS)
def campaign(request, tmp_path_factory):
    """One cell of each method under S3.2, trained in the smoke budget, every unit of the network prunable."""
    catalog, known = Catalog(), Catalog.workload
    usual = known(catalog, NAME)
    # Maps of a quarter of the pixels, with the same layers.
    update = {"model": request.param, "prunable": AUTO, "data": usual.data.model_copy(update={"size": 16})}
    workload = usual.model_copy(update=update)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(models.MODELS, request.param, NETWORKS[request.param])
        patch.setattr(Catalog, "workload", lambda self, name: workload if name == NAME else known(self, name))
        ledger = Ledger(tmp_path_factory.mktemp("ledger"))
        executor = LocalExecutor(ledger, Stages(ledger, catalog, Runtime()), "session")
        made = Campaign(catalog, ledger, Settings("smoke"), executor)
        for method in METHODS[request.param]:
            assert made.obtain(Cell(NAME, "s3.2", method, RATIO, 0)).error == ""
        yield made


def record(campaign, method, stage="result"):
    return campaign.ledger.get(getattr(campaign.obtain(Cell(NAME, "s3.2", method, RATIO, 0)), stage))


def test_records_are_about_units(campaign):
    workload = campaign.catalog.workload(NAME)
    asked = shapes.widths_at(workload, RATIO)
    for method in {"random", "l1", "tpp"}.intersection(METHODS[workload.model]):
        pruned = record(campaign, method, "prune")
        assert {unit: len(kept) for unit, kept in pruned.kept.items()} == asked
        assert pruned.conduct.channels == shapes.costs(workload).filters
        assert pruned.macs == pruned.macs_recounted == shapes.costs(workload).of_widths(asked)
        assert pruned.conduct.equivalence < 1e-12
        assert pruned.prunable == AUTO


def test_a_scratch_arm_has_the_widths_that_a_method_found(campaign):
    if "group-l2-global" not in METHODS[campaign.catalog.workload(NAME).model]:
        pytest.skip("no such arm")
    scratch, donor = record(campaign, "scratch-of-group-l2-global"), record(campaign, "group-l2-global")
    assert (scratch.macs, scratch.params) == (donor.macs, donor.params)


def test_a_layer_that_is_called_twice_sees_each_image_once(campaign):
    for method in METHODS[campaign.catalog.workload(NAME).model]:
        run = record(campaign, method)
        assert run.epochs == run.recipe.epochs


def test_every_rule_of_the_protocol_holds(campaign):
    judged = set()
    others = {"l1", "group-l2-global", "tpp"}.intersection(METHODS[campaign.catalog.workload(NAME).model])
    for left in others:
        comparison = Comparison(NAME, "s3.2", left, "random", RATIO, (0,))
        for rule_id in required(campaign.catalog.protocol("s3.2")):
            rule = get_rule(rule_id)
            for subject in (comparison, *comparison.arms):
                if (rule.scope == "arm") == isinstance(subject, Arm) and all(map(rule.applies, subject.methods)):
                    finding = judge(rule_id, Case.read(subject, campaign.obtain, campaign.ledger))
                    assert finding.verdict == "pass", finding.line
                    judged.add(rule_id)
    assert {"F103", "F322", "F502", "F503", "F504", "F507", "F509", "F510"} <= judged
