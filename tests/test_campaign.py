"""From cells to runs: what protocols share, what they top up, what they choose, and that it measures what it plans."""

import math
import re
import shutil

import pytest
import torch
from builders import FakeExecutor, FakeStages, catalog, run_record, write_method
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from pruneaudit.audit.catalogue import get_rule, required
from pruneaudit.audit.evidence import Case
from pruneaudit.audit.judge import judge
from pruneaudit.campaign.executors.local import LocalExecutor
from pruneaudit.campaign.planner import Campaign, own_recipe, scratch_epochs
from pruneaudit.campaign.stages import Stages
from pruneaudit.catalog.cells import Arm, Cell, Comparison
from pruneaudit.catalog.discovery import Catalog, content_root
from pruneaudit.catalog.settings import Settings
from pruneaudit.errors import AuditError, ConfigError
from pruneaudit.ledger.records import VOLATILE
from pruneaudit.ledger.store import Ledger
from pruneaudit.pruning import shapes
from pruneaudit.training.runtime import Runtime
from pruneaudit.workloads.data import facts
from pruneaudit.workloads.models import build
from pruneaudit.workloads.recipes import steps_per_epoch

WORKLOAD = "lenet5-digits"
PROTOCOLS = ("s1", "s2", "s3.1", "s3.2", "s4.1", "s4.2", "sx-a", "sx-b")
PRUNING = ("l1", "random", "tpp", "unpruned")
SCRATCH = ("scratch", "scratch-e", "scratch-b")
CATALOG = Catalog()


def planning(known=CATALOG, choice=None):
    """A campaign that plans: it needs no ledger for that."""
    return Campaign(known, None, choice or Settings(), FakeExecutor())


def cell(protocol, method, seed=0, ratio=0.5, workload=WORKLOAD):
    return Cell(workload, protocol, method, ratio, seed)


def plans(methods=PRUNING, **where):
    """Plan by protocol and method."""
    campaign = planning()
    return {
        (protocol, method): campaign.plan(cell(protocol, method, **where))
        for protocol in PROTOCOLS
        for method in methods
    }


# Who shares which run


def test_one_base_for_a_seed_is_shared_by_all_but_s1():
    found = plans(PRUNING + SCRATCH)
    (shared,) = {plan.base.run_id for (protocol, _), plan in found.items() if protocol != "s1"}
    # A scratch arm starts from nothing; its base only stands for comparison.
    assert {found["s1", method].base.run_id for method in SCRATCH} == {shared}
    assert plans(seed=1)["s3.2", "l1"].base.run_id != shared
    assert plans(ratio=0.9)["s3.2", "l1"].base.run_id == shared


def test_bases_of_s1_are_independent():
    found = plans()
    own = {found["s1", method].base.run_id for method in PRUNING}
    assert len(own) == len(PRUNING)
    assert found["s3.2", "l1"].base.run_id not in own
    assert {found["s1", method].base.own_base_of for method in PRUNING} == set(PRUNING)


def test_one_prune_run_for_method_ratio_and_seed():
    campaign = planning()
    runs = {
        (method, ratio, seed): {
            campaign.plan(cell(protocol, method, seed, ratio)).prune.run_id for protocol in ("s2", "s3.1", "s3.2")
        }
        for method in PRUNING
        for ratio in (0.5, 0.9)
        for seed in (0, 1)
    }
    assert all(len(ids) == 1 for ids in runs.values())
    assert len(set.union(*runs.values())) == len(runs)


@pytest.mark.parametrize("method", PRUNING)
def test_topped_up_protocols_share_their_pruning_stage(method):
    found = plans()
    topped = [found[protocol, method] for protocol in ("s4.1", "s4.2", "sx-a", "sx-b")]
    assert all(plan == topped[0] for plan in topped)
    # A method that uses the whole budget anyway is the same run in the looser protocols.
    assert (topped[0].prune == found["s3.2", method].prune) == (method == "tpp")


def test_arms_share_their_top_up():
    found = plans()
    assert len({found["s4.1", method].topup.run_id for method in ("l1", "random", "unpruned")}) == 1


def test_s2_and_s3_share_a_retraining_where_recipes_are_equal():
    found = plans()
    # Random pruning has no published recipe: it retrains by the workload's own.
    assert found["s2", "random"].trials == found["s3.2", "random"].trials
    assert found["s2", "l1"].trials != found["s3.2", "l1"].trials
    for method in PRUNING:
        assert found["s3.2", method].trials[0] in found["s3.1", method].trials


def test_scratch_is_one_run_wherever_the_recipe_is_the_workloads():
    found = plans(SCRATCH)
    own = ("s1", "s2", "s3.1", "s3.2", "s4.1", "s4.2")
    runs = {key: plan.trials[0].run_id for key, plan in found.items()}
    (usual,) = {runs[protocol, "scratch"] for protocol in own}
    assert len({usual, runs["sx-a", "scratch"], runs["sx-b", "scratch"]}) == 3
    for method in ("scratch-e", "scratch-b"):
        assert len({runs[protocol, method] for protocol in PROTOCOLS}) == 1
    assert all(plan.prune is None and plan.topup is None for plan in found.values())


def test_runs_are_distinct_and_parents_come_first():
    cells = [cell(protocol, method, seed) for seed in (1, 0) for protocol in PROTOCOLS for method in PRUNING + SCRATCH]
    runs = planning().runs(cells)
    ids = [run.run_id for run in runs]
    assert len(set(ids)) == len(ids)
    for position, run in enumerate(runs):
        assert run.parent is None or run.parent in ids[:position]
    # One shared and four own bases for each seed.
    assert sum(run.stage == "pretrain" for run in runs) == 2 * 5


CELLS = [
    cell(protocol, method, seed, ratio)
    for protocol in PROTOCOLS
    for method in PRUNING + SCRATCH
    for seed in (0, 1)
    for ratio in (0.5, 0.9)
]


@pytest.fixture(scope="module")
def reference():
    """Plan of each cell, each made alone."""
    return {one: planning().plan(one) for one in CELLS}


@settings(deadline=None, max_examples=20)
@given(selection=st.lists(st.sampled_from(CELLS), min_size=1, max_size=12, unique=True))
def test_plans_do_not_depend_on_the_selection(reference, selection):
    campaign = planning()
    expected = {run.run_id for one in selection for run in reference[one].runs}
    assert {run.run_id for run in campaign.runs(selection)} == expected
    for one in selection:
        assert campaign.plan(one) == reference[one]


@pytest.mark.parametrize("name", ["workload", "numerics", "budget", "precision"])
def test_settings_are_part_of_every_run(name):
    usual = planning().plan(cell("s3.2", "tpp")).runs
    choice = {"budget": Settings("short"), "precision": Settings(precision="fp64")}.get(name)
    if choice is None:
        assert all(getattr(run, name) for run in usual)
        return
    other = planning(choice=choice).plan(cell("s3.2", "tpp")).runs
    assert not {run.run_id for run in usual} & {run.run_id for run in other}


# Top-ups


@pytest.fixture
def own_catalog(tmp_path):
    """A copy of the content where the pruning rate falls once, with two more methods."""
    root = tmp_path / "content"
    for folder in ("methods", "protocols"):
        shutil.copytree(content_root() / folder, root / folder)
    path = root / "protocols" / "workloads" / f"{WORKLOAD}.toml"
    text = path.read_text(encoding="utf-8")
    stage = '[prune]\nsteps = 102\nlr = "0:3e-3,50:1e-3"'
    text, changes = re.subn(r'\[prune\]\nsteps = \d+\nlr = "[^"]*"', stage, text)
    assert changes == 1
    path.write_text(text, encoding="utf-8")
    for name, steps in (("brief", 30), ("lengthy", 500)):
        write_method(
            root / "methods",
            name,
            f"    def budget(self, workload):\n        return Budget(steps={steps}, lr='0:0.5')\n\n"
            "    def score(self, layer, task):\n        return layer.weight.flatten(1).sum(dim=1)\n",
        )
    return Catalog(root=root)


@pytest.mark.parametrize(
    ("protocol", "topup", "prune"),
    [
        ("s1", None, (30, "0:0.5", 0)),
        ("s2", None, (30, "0:0.5", 0)),
        ("s3.1", None, (30, "0:0.5", 0)),
        ("s3.2", None, (30, "0:0.5", 0)),
        # At the method's own pruning rate.
        ("s4.1", (72, "0:0.5", 0), (30, "0:0.5", 0)),
        ("sx-a", (72, "0:0.5", 0), (30, "0:0.5", 0)),
        ("sx-b", (72, "0:0.5", 0), (30, "0:0.5", 0)),
        # The imposed schedule, which the method takes up where the top-up left it.
        ("s4.2", (72, "0:0.003,50:0.001", 0), (30, "0:0.003,50:0.001", 72)),
    ],
)
def test_a_shorter_pruning_stage_is_topped_up(own_catalog, protocol, topup, prune):
    plan = planning(own_catalog).plan(cell(protocol, "brief"))
    parts = [
        None if run is None else (run.recipe.steps, run.recipe.lr, run.recipe.start) for run in (plan.topup, plan.prune)
    ]
    assert parts == [topup, prune]
    assert plan.prune.parent == (plan.topup or plan.base).run_id


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_pruning_stage_as_long_as_the_budget_or_longer_is_not_topped_up(own_catalog, protocol):
    assert planning(own_catalog).plan(cell(protocol, "tpp")).topup is None
    plan = planning(own_catalog).plan(cell(protocol, "lengthy"))
    # What it spends beyond the budget is for the audit to see, not for the plan to cut.
    assert plan.topup is None and plan.prune.recipe.steps == 500


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_one_shot_method_trains_nothing_but_the_top_up(protocol):
    workload = CATALOG.workload(WORKLOAD)
    plan = planning().plan(cell(protocol, "l1"))
    assert plan.prune.recipe.steps == 0
    if protocol in ("s4.1", "s4.2", "sx-a", "sx-b"):
        assert plan.topup.recipe == workload.prune
        assert plan.topup.method is None, "plain training: any arm may share it"
    else:
        assert plan.topup is None


# Tuning


def tuned(known=CATALOG):
    """Validation and test accuracy by schedule, in opposite order; the second schedule is best on validation."""
    grid = known.workload(WORKLOAD).tune.schedules
    validation = dict(zip(grid, (80.0, 90.0, 70.0), strict=True))
    return grid, validation


def test_every_schedule_is_tried_once_and_validation_decides(tmp_path):
    grid, validation = tuned()

    def measured(spec):
        if spec.stage != "retrain":
            return {}
        found = validation[spec.recipe.lr]
        return {"validation_accuracy": found, "accuracy": 100 - found, "best_accuracy": 100.0}

    executor = FakeExecutor(measured)
    campaign = Campaign(CATALOG, Ledger(tmp_path / "ledger"), Settings(), executor)
    record = campaign.obtain(cell("s3.1", "l1"))
    plan = campaign.plan(cell("s3.1", "l1"))
    assert [run.recipe.lr for run in plan.trials] == list(grid)
    assert len({run.recipe.epochs for run in plan.trials}) == 1
    assert record.trials == tuple(run.run_id for run in plan.trials)
    assert record.result == plan.trials[1].run_id
    assert (record.validation_accuracy, record.accuracy) == (90.0, 10.0)
    # The others were tried, but the reported result does not pay for them.
    assert len(executor.obtained) == 2 + len(grid)
    assert record.total_epochs == sum(run_record(run).epochs for run in (plan.base, plan.prune, plan.trials[1]))


def test_the_first_of_the_grid_wins_a_tie(tmp_path):
    campaign = Campaign(CATALOG, Ledger(tmp_path / "ledger"), Settings(), FakeExecutor())
    assert campaign.obtain(cell("s3.1", "tpp")).result == campaign.plan(cell("s3.1", "tpp")).trials[0].run_id


def test_parents_are_obtained_before_their_children(tmp_path):
    executor = FakeExecutor()
    campaign = Campaign(CATALOG, Ledger(tmp_path / "ledger"), Settings(), executor)
    campaign.obtain(cell("s4.1", "l1"))
    assert [run.stage for run in executor.obtained] == ["pretrain", "topup", "prune", "retrain"]


# Published recipes


def test_a_published_recipe_is_used_as_it_stands_on_its_own_workload():
    recipe = own_recipe(CATALOG.method("l1").cls.published, CATALOG.workload("resnet56-cifar10"), CATALOG)
    assert (recipe.epochs, recipe.lr, recipe.batch) == (40, "0:0.001", 128)
    tpp = own_recipe(CATALOG.method("tpp").cls.published, CATALOG.workload("resnet56-cifar10"), CATALOG)
    assert (tpp.epochs, tpp.lr) == (120, "0:0.01,60:0.001,90:0.0001")


def test_a_published_recipe_scales_its_epochs_and_keeps_its_rates():
    usual = CATALOG.workload("resnet20-digits")
    workload = usual.model_copy(update={"retrain": usual.retrain.for_epochs(10)})
    recipe = own_recipe(CATALOG.method("l1").cls.published, workload, CATALOG)
    # 40 epochs · 10 / 120, rounded.
    assert (recipe.epochs, recipe.lr, recipe.batch) == (3, "0:0.001", workload.retrain.batch)
    assert recipe.weight_decay == workload.retrain.weight_decay
    tpp = own_recipe(CATALOG.method("tpp").cls.published, workload, CATALOG)
    assert (tpp.epochs, tpp.lr) == (10, "0:0.01,5:0.001,7:0.0001")


@pytest.mark.parametrize("protocol", ["s1", "s2"])
def test_the_loose_protocols_retrain_by_the_published_recipe(protocol):
    (run,) = planning().plan(cell(protocol, "l1")).trials
    usual = CATALOG.workload(WORKLOAD).retrain
    assert (run.recipe.epochs, run.recipe.lr) == (round(40 * usual.epochs / 120), "0:0.001")
    assert run.recipe != usual


@pytest.mark.parametrize("recipe_of", ["l1", "tpp", "greg-1", "random"])
def test_a_cross_validated_recipe_is_one_recipe_for_all_arms(recipe_of):
    """``xv-METHOD``: S3.2, but every arm retrains by METHOD's published recipe; the workload's, where there is none."""
    campaign, workload = planning(), CATALOG.workload(WORKLOAD)
    plans = {method: campaign.plan(cell(f"xv-{recipe_of}", method)) for method in (*PRUNING, "greg-1")}
    recipes = {run.recipe for plan in plans.values() for run in plan.trials}
    published = CATALOG.method(recipe_of).create().published
    assert recipes == {workload.retrain if published is None else own_recipe(published, workload, CATALOG)}
    for method, plan in plans.items():
        usual = campaign.plan(cell("s3.2", method))
        assert (plan.base, plan.topup, plan.prune) == (usual.base, usual.topup, usual.prune), "only retraining differs"
        assert len(plan.trials) == 1
    # The method's own arm is the one of S2: nothing is trained for it that S2 did not train.
    assert plans[recipe_of].trials == campaign.plan(cell("s2", recipe_of)).trials


def test_cross_validated_recipes_differ_where_published_ones_do():
    campaign = planning()
    (ours,), (theirs,) = (campaign.plan(cell(f"xv-{name}", "random")).trials for name in ("l1", "tpp"))
    assert (ours.recipe.epochs, ours.recipe.lr) == (3, "0:0.001")
    assert theirs.recipe.epochs == 10 and theirs.recipe.lr.startswith("0:0.01,")
    assert ours.run_id != theirs.run_id and ours.parent == theirs.parent


# Scratch arms


def epochs_of(recipe, images):
    """Epochs that a recipe measures: the last, partial pass counts by its images."""
    per_epoch = steps_per_epoch(images, recipe.batch)
    whole, rest = divmod(recipe.total_steps(per_epoch), per_epoch)
    return whole + min(rest * recipe.batch, images) / images


def images_of(spec):
    """Images that a run trains on, partial passes included."""
    images = facts(spec.data).train
    return round(epochs_of(spec.recipe, images) * images)


def test_scratch_epochs_of_resnet56():
    workload = CATALOG.workload("resnet56-cifar10")
    # 200 epochs of pretraining, 110,000 steps of 128 out of 45,000 images, 120 epochs of retraining.
    assert steps_per_epoch(facts(workload.data).train, 128) == 352
    dense, pruned = 200 + 110_000 / 352, 120
    assert dense == 512.5
    assert scratch_epochs(workload, 1.0) in (632, 633)
    speedup = shapes.speedup(workload, 0.5)
    assert round(speedup, 2) == 1.99
    planned = {
        (protocol, method): planning().plan(cell(protocol, method, 0, 0.5, "resnet56-cifar10")).trials[0].recipe.epochs
        for protocol in ("s3.2", "sx-a", "sx-b")
        for method in SCRATCH
    }
    assert planned["s3.2", "scratch"] == 200
    assert planned["sx-a", "scratch"] == scratch_epochs(workload, 1.0)
    # Steps count the last batch as a whole one, images do not: 0.001 epochs apart.
    assert abs(planned["sx-b", "scratch"] - (dense * speedup + pruned)) <= 0.501 + 0.001 * speedup
    # Liu et al.: the base model's epochs, and its computation rounded down, whatever the protocol.
    assert {planned[protocol, "scratch-e"] for protocol in ("s3.2", "sx-a", "sx-b")} == {200}
    assert {planned[protocol, "scratch-b"] for protocol in ("s3.2", "sx-a", "sx-b")} == {math.floor(200 * speedup)}


@pytest.mark.parametrize("budget", ["smoke", "short", "full"])
@pytest.mark.parametrize("name", sorted(CATALOG.workloads))
def test_totals_of_scratch_and_pruning_are_equal_in_every_workload(name, budget):
    """The plan itself must pass F801 and F802: half an epoch of the pruned network is what rounding may cost."""
    usual = CATALOG.workload(name)
    workload, images = usual.scaled(budget), facts(usual.data).train
    dense = workload.pretrain.epochs + epochs_of(workload.prune, images)
    assert abs(scratch_epochs(workload, 1.0) - (dense + workload.retrain.epochs)) <= 0.5
    # Counting MACs of the large networks takes long; the property below covers their factors.
    for ratio in usual.ratios if name in ("lenet5-digits", "resnet56-digits") else ():
        speedup = shapes.speedup(usual, ratio)
        assert abs(scratch_epochs(workload, speedup) - (dense * speedup + workload.retrain.epochs)) <= 0.5


@pytest.mark.parametrize("budget", ["smoke", "short", "full"])
@pytest.mark.parametrize("ratio", [0.5, 0.9])
def test_planned_runs_of_scratch_and_pruning_have_equal_totals(ratio, budget):
    campaign, workload = planning(choice=Settings(budget)), CATALOG.workload(WORKLOAD)
    images, dense, pruned = facts(workload.data).train, shapes.shape(workload).macs, shapes.shape(workload, ratio).macs
    for method in ("l1", "tpp"):
        runs = campaign.plan(cell("sx-a", method, ratio=ratio)).runs
        (scratch,) = campaign.plan(cell("sx-a", "scratch", ratio=ratio)).trials
        assert abs(images_of(scratch) - sum(map(images_of, runs))) <= images / 2
        runs = campaign.plan(cell("sx-b", method, ratio=ratio)).runs
        macs = sum(images_of(run) * (pruned if run.stage == "retrain" else dense) for run in runs)
        (scratch,) = campaign.plan(cell("sx-b", "scratch", ratio=ratio)).trials
        assert abs(images_of(scratch) * pruned - macs) <= images * pruned / 2


@settings(deadline=None, max_examples=200)
@given(
    name=st.sampled_from(["lenet5-digits", "resnet56-cifar10", "vgg19-cifar100"]),
    pretrain=st.integers(1, 300),
    steps=st.integers(1, 200_000),
    retrain=st.integers(1, 200),
    batch=st.integers(1, 512),
    factor=st.one_of(st.just(1.0), st.floats(1, 30)),
)
def test_scratch_epochs_equal_the_total_to_half_an_epoch(name, pretrain, steps, retrain, batch, factor):
    """In MACs of the pruned network: K1 dense epochs cost ``factor`` each, K2 cost one each."""
    usual = CATALOG.workload(name)
    prune = usual.prune.model_copy(update={"steps": steps, "batch": batch})
    workload = usual.model_copy(
        update={
            "pretrain": usual.pretrain.for_epochs(pretrain),
            "prune": prune,
            "retrain": usual.retrain.for_epochs(retrain),
        }
    )
    total = (pretrain + epochs_of(prune, facts(usual.data).train)) * factor + retrain
    assert abs(scratch_epochs(workload, factor) - total) <= 0.5 * (1 + 1e-9)


def paper_workload(pretrain, prune, retrain):
    """A workload of whole epochs, as the paper counts them."""
    usual = CATALOG.workload("resnet56-cifar10")
    images, batch = facts(usual.data).train, usual.prune.batch
    stage = usual.prune.model_copy(update={"steps": prune * steps_per_epoch(images, batch)})
    return usual.model_copy(
        update={
            "pretrain": usual.pretrain.for_epochs(pretrain),
            "prune": stage,
            "retrain": usual.retrain.for_epochs(retrain),
        }
    )


@pytest.mark.parametrize("pretrain", [1, 120])
@pytest.mark.parametrize("speedup", [1.0, 1.11, 1.93, 3.09, 7.68, 12.06])
@pytest.mark.parametrize(("prune", "retrain"), [(15, 105), (30, 90), (60, 60), (90, 30)])
def test_scratch_equivalents_of_the_papers_setups(pretrain, prune, retrain, speedup):
    """P30F90 at 1.93x (Table 4): (K1 + 30) · 1.93 + 90 epochs from scratch cost the same, K1 + 120 are as long."""
    workload = paper_workload(pretrain, prune, retrain)
    assert scratch_epochs(workload, 1.0) == pretrain + prune + retrain
    equal = (pretrain + prune) * speedup + retrain
    assert abs(scratch_epochs(workload, speedup) - equal) <= 0.5


@pytest.mark.parametrize(
    ("setup", "speedup", "epochs"),
    [
        # Pretraining of 120 epochs (Table 4), by hand: 150 · 1.93 + 90 = 379.5 rounds to even, 150 · 7.68 + 90 = 1242.
        ((120, 30, 90), 1.93, 380),
        ((120, 30, 90), 7.68, 1242),
        ((120, 60, 60), 3.09, 616),
        ((120, 90, 30), 12.06, 2563),
        # The rule's own example: 481 dense and 120 pruned epochs at a speedup of 2.
        ((200, 281, 120), 2.0, 1082),
    ],
)
def test_scratch_epochs_by_hand(setup, speedup, epochs):
    assert scratch_epochs(paper_workload(*setup), speedup) == epochs


@settings(deadline=None, max_examples=200)
@given(
    pretrain=st.integers(1, 300),
    prune=st.integers(1, 200),
    retrain=st.integers(1, 200),
    speedup=st.floats(1, 30),
    pruned=st.integers(1_000, 10**9),
)
def test_scratch_costs_the_macs_of_the_pruned_arm_to_half_an_epoch(pretrain, prune, retrain, speedup, pruned):
    """Summed stage by stage in MACs, as F802 sums what was measured, for any network and any lengths."""
    workload = paper_workload(pretrain, prune, retrain)
    images = facts(workload.data).train
    dense = pruned * speedup
    arm = images * (pretrain * dense + prune * dense + retrain * pruned)
    scratch = scratch_epochs(workload, speedup) * images * pruned
    assert abs(scratch - arm) <= images * pruned / 2 * (1 + 1e-9)
    assert scratch_epochs(workload, speedup) >= scratch_epochs(workload, 1.0) == pretrain + prune + retrain


@pytest.mark.parametrize(
    ("name", "budget"),
    [
        *((name, budget) for name in ("lenet5-digits", "resnet20-digits") for budget in ("smoke", "short", "full")),
        ("resnet56-cifar10", "full"),
    ],
)
def test_scratch_ends_at_the_rate_of_the_pruned_arm(name, budget):
    """Appendix A, rule 1, wherever the budgets are to be equal; a scratch arm of its own recipe is left alone."""
    campaign, workload = planning(choice=Settings(budget)), CATALOG.workload(name).scaled(budget)
    last = workload.retrain.rate(workload.retrain.epochs - 1, 0)
    for protocol in ("sx-a", "sx-b"):
        (run,) = campaign.plan(cell(protocol, "scratch", ratio=workload.ratios[0], workload=name)).trials
        assert run.recipe.rate(run.recipe.epochs - 1, 0) == last
        assert run.recipe.rate(0, 0) == workload.scratch.rate(0, 0)
        if name == "resnet56-cifar10":
            # Scratch ends at 1e-3 in its own recipe, retraining at 1e-4.
            start, rate = run.recipe.schedule.points[-1]
            assert rate == 1e-4 and start > run.recipe.schedule.points[-2][0] > 0
    (usual,) = campaign.plan(cell("s3.2", "scratch", ratio=workload.ratios[0], workload=name)).trials
    assert usual.recipe == workload.scratch


# An external base


def test_an_external_base_is_one_run_for_all_seeds_and_its_digest_is_identity(tmp_path):
    paths = []
    for number in range(2):
        paths.append(tmp_path / f"base{number}.safetensors")
        network = build("lenet5", 1, 10)
        torch.nn.init.constant_(network.conv1.bias, number)
        save_file(network.state_dict(), paths[-1])
    one, other = (planning(choice=Settings(base=path)) for path in paths)
    bases = {one.plan(cell(protocol, "l1", seed)).base.run_id for seed in (0, 1, 2) for protocol in PROTOCOLS}
    assert len(bases) == 1
    base = one.plan(cell("s3.2", "l1")).base
    assert base.checkpoint and base.recipe.steps == 0
    assert other.plan(cell("s3.2", "l1")).base.checkpoint != base.checkpoint
    usual = planning().plan(cell("s3.2", "l1"))
    ids = [{run.run_id for run in campaign.plan(cell("s3.2", "l1")).runs} for campaign in (one, other)]
    assert not ids[0] & ids[1] and not ids[0] & {run.run_id for run in usual.runs}
    # The seeds still differ in everything else.
    assert one.plan(cell("s3.2", "l1", 0)).prune != one.plan(cell("s3.2", "l1", 1)).prune


def test_an_external_base_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.safetensors: No such file"):
        planning(choice=Settings(base=tmp_path / "nowhere.safetensors")).plan(cell("s3.2", "l1"))


# What cannot be planned or fails


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (
            "    def budget(self, workload):\n        return 1 / 0\n\n    score = None\n",
            "method 'broken' cannot be planned: ZeroDivisionError: division by zero",
        ),
        (
            "    def __init__(self):\n        raise OSError('no')\n\n    score = None\n",
            "cannot be created: OSError: no",
        ),
        (
            "    score = None\n\n    def skip(self, workload):\n        return 'needs a GPU'\n",
            "method 'broken' does not apply to lenet5-digits: needs a GPU",
        ),
    ],
    ids=["budget", "constructor", "skip"],
)
def test_a_method_that_cannot_be_planned_is_a_failed_cell(tmp_path, body, said):
    known = catalog(write_method(tmp_path, "broken", body))
    executor = FakeExecutor()
    campaign = Campaign(known, Ledger(tmp_path / "ledger"), Settings(), executor)
    record = campaign.obtain(cell("s4.1", "broken"))
    assert record.status == "failed" and record.accuracy is None and record.runs == []
    assert said in record.error and "\n" not in record.error
    assert executor.obtained == []
    assert campaign.ledger.cell(cell("s4.1", "broken").id) == record
    # It costs no other cell.
    assert campaign.runs([cell("s4.1", "broken"), cell("s4.1", "l1")]) == campaign.plan(cell("s4.1", "l1")).runs
    assert campaign.obtain(cell("s4.1", "l1")).status == "ok"
    with pytest.raises(AuditError):
        campaign.plan(cell("s4.1", "broken"))


def test_a_failing_method_fails_its_cells_only(tmp_path):
    ledger = Ledger(tmp_path / "ledger")

    def campaign(session, broken):
        stages = FakeStages(ledger, tmp_path / "log", broken=broken)
        return Campaign(CATALOG, ledger, Settings(), LocalExecutor(ledger, stages, session))

    first = campaign("first", lambda spec: spec.method == "l1" and spec.stage == "prune")
    records = {method: first.obtain(cell("s3.2", method)) for method in ("l1", "random", "scratch")}
    assert {method: record.status for method, record in records.items()} == {
        "l1": "failed",
        "random": "ok",
        "scratch": "ok",
    }
    assert records["l1"].error == "run lenet5-digits-prune-l1-r0.5-seed0 failed: RuntimeError: the optimiser exploded"
    assert [failure.spec.method for failure in ledger.failures()] == ["l1"]
    # The next session tries again, and its record replaces the failed one.
    second = campaign("second", lambda spec: False)
    assert second.obtain(cell("s3.2", "l1")).status == "ok"
    assert ledger.cell(cell("s3.2", "l1").id).status == "ok"
    assert len(ledger.failures()) == 1


@pytest.mark.parametrize("ratio", [0.0, 1.0, 1.5, -0.1])
def test_a_ratio_outside_its_range_is_refused(ratio):
    with pytest.raises(ConfigError, match="outside"):
        planning().plan(cell("s3.2", "l1", ratio=ratio))


# Real cells, end to end

REAL = [cell(protocol, method) for protocol in ("s3.2", "sx-b") for method in ("l1", "tpp", "scratch", "unpruned")]


def real_campaign(root, base=None):
    ledger = Ledger(root)
    stages = Stages(ledger, CATALOG, Runtime(base=base))
    return Campaign(CATALOG, ledger, Settings("smoke", base=base), LocalExecutor(ledger, stages, "session"))


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """Eight cells, trained in the smoke budget."""
    campaign = real_campaign(tmp_path_factory.mktemp("real"))
    for one in REAL:
        assert campaign.obtain(one).error == ""
    return campaign


@pytest.mark.parametrize("one", REAL, ids=lambda one: one.id)
def test_what_is_measured_is_what_was_planned(real, one):
    record, plan = real.obtain(one), real.plan(one)
    workload = CATALOG.workload(WORKLOAD)
    images, dense = facts(workload.data).train, shapes.shape(workload).macs
    pruned = dense if one.method == "unpruned" else shapes.shape(workload, 0.5).macs
    runs = plan.trials if one.method == "scratch" else plan.runs
    macs = [pruned if run.stage in ("retrain", "scratch") else dense for run in runs]
    assert record.total_macs == sum(3 * images_of(run) * cost for run, cost in zip(runs, macs, strict=True))
    assert record.total_epochs == pytest.approx(sum(epochs_of(run.recipe, images) for run in runs), rel=1e-12)
    assert record.macs == pruned and record.speedup == dense / pruned
    for run in plan.runs:
        measured = real.ledger.get(run.run_id)
        assert measured.spec == run
        assert measured.optimiser_steps == run.recipe.total_steps(steps_per_epoch(images, run.recipe.batch))
        assert measured.samples == images_of(run)
        assert sum(steps for _, steps in measured.learning_rates) == measured.optimiser_steps


def test_every_stage_starts_from_the_weights_its_parent_wrote(real):
    for run in real.ledger.runs():
        if run.parent is not None:
            assert run.parent_digest == real.ledger.get(run.parent).weights_digest


@pytest.mark.parametrize("protocol", ["s3.2", "sx-b"])
def test_honest_arms_pass_every_rule(real, protocol):
    arms = ("l1", "tpp") if protocol == "s3.2" else ("tpp", "scratch")
    known = {record.cell: record for record in real.ledger.cells()}
    comparison = Comparison(WORKLOAD, protocol, *arms, 0.5, (0,))
    subjects = (comparison, *comparison.arms)
    cases = {subject: Case.read(subject, known.get, real.ledger) for subject in subjects}
    judged = set()
    for rule_id in required(CATALOG.protocol(protocol)):
        rule = get_rule(rule_id)
        for subject in subjects:
            if (rule.scope == "arm") == isinstance(subject, Arm) and all(map(rule.applies, subject.methods)):
                finding = judge(rule_id, cases[subject], labels=("smoke",))
                assert finding.verdict == "pass", finding.line
                judged.add(rule_id)
    # Rules on scratch arms and on the random control look at none of these.
    other = {"F506", "F510"} - ({"F506"} if "scratch" in arms else set())
    assert judged == set(required(CATALOG.protocol(protocol))) - other


def test_order_of_cells_does_not_change_a_number(real, tmp_path):
    other = real_campaign(tmp_path / "other")
    for one in reversed(REAL):
        assert other.obtain(one) == real.obtain(one)
    ours, theirs = (
        {run.run_id: run.model_dump(exclude=set(VOLATILE)) for run in campaign.ledger.runs()}
        for campaign in (real, other)
    )
    assert ours == theirs
    assert len(ours) == len(real.runs(REAL))


def test_nothing_is_trained_twice(real):
    before = {run.run_id: run.finished for run in real.ledger.runs()}
    again = real_campaign(real.ledger.root)
    for one in REAL:
        again.obtain(one)
    assert {run.run_id: run.finished for run in again.ledger.runs()} == before


def test_an_external_base_is_evaluated_and_its_cost_is_not_measured(real, tmp_path):
    base = real.ledger.get(real.obtain(cell("sx-b", "l1")).base)
    path = tmp_path / "base.safetensors"
    path.write_bytes((real.ledger.root / "runs" / base.folder / "weights.safetensors").read_bytes())
    campaign = real_campaign(tmp_path / "ledger", base=path)
    records = {method: campaign.obtain(cell("sx-b", method)) for method in ("l1", "scratch")}
    assert {record.error for record in records.values()} == {""}
    external = campaign.ledger.get(records["l1"].base)
    assert external.epochs is None and external.training_macs is None and external.provenance.startswith("external")
    assert external.accuracy == base.accuracy
    assert records["l1"].total_epochs is None and records["l1"].total_macs is None
    # The same weights in, the same weights out: nothing but the base's identity differs.
    ours = campaign.ledger.get(records["l1"].result)
    theirs = real.ledger.get(real.obtain(cell("sx-b", "l1")).result)
    assert ours.run_id != theirs.run_id and ours.weights_digest == theirs.weights_digest
    assert records["l1"].labels == ("smoke", f"base{external.checkpoint[:8]}")
    comparison = Comparison(WORKLOAD, "sx-b", "l1", "scratch", 0.5, (0,))
    known = {record.cell: record for record in records.values()}
    case = Case.read(comparison, known.get, campaign.ledger)
    for rule in ("F801", "F802"):
        finding = judge(rule, case)
        assert finding.verdict == "not measured" and "external base" in finding.note
