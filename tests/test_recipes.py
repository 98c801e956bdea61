"""Recipes as papers and libraries state them: read from TOML, planned, trained for a few steps; and by whom."""

import dataclasses
import itertools
import math
import re
import shutil

import pytest
import torch
from builders import FakeExecutor, changed, evidence, run_record, run_spec
from test_optimisers import BATCH, DATA, PER_EPOCH, fitted, largest_difference, network
from torch import nn

from conftest import ROOT
from pruneaudit.audit.catalogue import get_rule
from pruneaudit.audit.evidence import Evidence
from pruneaudit.campaign.calibration import kind
from pruneaudit.campaign.cost import cost
from pruneaudit.campaign.executors.local import LocalExecutor
from pruneaudit.campaign.planner import Campaign, own_recipe
from pruneaudit.campaign.stages import Stages
from pruneaudit.catalog.cells import Cell
from pruneaudit.catalog.discovery import Catalog, content_root
from pruneaudit.catalog.settings import Settings
from pruneaudit.errors import ConfigError
from pruneaudit.ledger.store import Ledger
from pruneaudit.measure.trainability import trainability_accuracy
from pruneaudit.report.curves import Curve
from pruneaudit.report.published import _follows
from pruneaudit.training.loop import Hooks
from pruneaudit.training.many import train_many
from pruneaudit.training.runs import Training
from pruneaudit.training.runtime import Runtime
from pruneaudit.workloads.data import facts
from pruneaudit.workloads.recipes import Optimiser, Recipe, steps_per_epoch
from pruneaudit.workloads.schedule import Schedule
from pruneaudit.workloads.schema import load_workload

# What is not the recipe.
IMAGENET = """
version = 1
source = "a test"
model = "resnet50"
prunable = ["layer*.conv1", "layer*.conv2"]
ratios = [0.5]
seeds = [0]
gpu = true

[data]
name = "imagenet"
mean = [0.485, 0.456, 0.406]
std = [0.229, 0.224, 0.225]
validation = 50000
"""
CIFAR = """
version = 1
source = "a test"
model = "{model}"
prunable = {prunable}
ratios = [0.5]
seeds = [0]
gpu = true

[data]
name = "{data}"
mean = [0.485, 0.456, 0.406]
std = [0.229, 0.224, 0.225]
pad = 4
flip = true
validation = 5000
"""

# pytorch/vision, references/classification/README.md: 8 GPUs with 32 images each.
TORCHVISION_1 = """
[sgd]
batch = 256
momentum = 0.9
weight_decay = 1e-4

[pretrain]
epochs = 90
lr = "0:0.1,30:0.01,60:0.001"

[prune]
steps = 1000
lr = "0:1e-3"

[retrain]
epochs = 90
lr = "0:0.1,30:0.01,60:0.001"

[scratch]
epochs = 90
lr = "0:0.1,30:0.01,60:0.001"

[tune]
schedules = ["0:0.1,30:0.01,60:0.001", "0:0.01,30:0.001,60:1e-4"]
"""

# pytorch/vision, "How to train state-of-the-art models" (IMAGENET1K_V2): 8 GPUs with 128 images each. Its averaging of
# every 32 steps with decay 0.99998 is scaled by batch · 32 / epochs: 1 - 2e-5 · 1024 · 32 / 600. What it does beside a
# recipe (TrivialAugment, random erasing, repeated augmentation, sizes of images) is the data's.
TORCHVISION_2 = """
[optimiser]
name = "sgd"
batch = 1024
momentum = 0.9
weight_decay = 2e-5
no_decay = ["norm"]
label_smoothing = 0.1
mixup = 0.2
cutmix = 1.0
ema = 0.9989
ema_every = 32

[pretrain]
epochs = 600
lr = "cosine:0.5, warmup 5 from 0.005, open"

[prune]
steps = 1000
lr = "0:1e-3"

[retrain]
epochs = 600
lr = "cosine:0.5, warmup 5 from 0.005, open"

[scratch]
epochs = 600
lr = "cosine:0.5, warmup 5 from 0.005, open"

[tune]
schedules = ["cosine:0.5, warmup 5 from 0.005, open", "cosine:0.05, warmup 5 from 5e-4, open"]
"""

# DeiT-S (Touvron et al. 2021, table 9; facebookresearch/deit): 5e-4 · batch / 512, timm's schedule, optimiser and
# mixing. Two passes of 512 make up a batch where memory is short. The pruning stage is SGD's.
DEIT = """
[optimiser]
name = "adamw"
betas = [0.9, 0.999]
eps = 1e-8
batch = 1024
accumulate = 2
weight_decay = 0.05
no_decay = ["bias", "norm", "pos_embed", "cls_token"]
label_smoothing = 0.1
mixup = 0.8
cutmix = 1.0
ema = 0.99996

[pretrain]
epochs = 300
lr = "cosine:1e-3->1e-5, warmup 5 from 1e-6, open"

[prune]
steps = 1000
lr = "0:1e-3"
optimiser = "sgd"
momentum = 0.95
accumulate = 1
ema = 0
mixup = 0
cutmix = 0

[retrain]
epochs = 30
lr = "cosine:5e-4->1e-5, warmup 2, per step"
clip = 1.0

[scratch]
epochs = 300
lr = "cosine:1e-3->1e-5, warmup 5 from 1e-6, open"

[tune]
schedules = ["cosine:5e-4->1e-5, warmup 2, per step", "cosine:1e-4->1e-6, warmup 2, per step", "linear:5e-4, per step"]
"""

# Wang et al. 2023 (arXiv 2301.05219), tables 6 and 7 and appendix A, cosine rows.
WANG = """
[sgd]
batch = {batch}
momentum = 0.9
weight_decay = 5e-4

[pretrain]
epochs = 200
lr = "0:0.1,100:0.01,150:0.001"

[prune]
steps = 1000
lr = "0:1e-3"

[retrain]
epochs = 120
lr = "cosine:1e-2:1e-4"

[scratch]
epochs = 200
lr = "cosine:0.1:1e-4"

[tune]
schedules = ["cosine:1e-2:1e-4", "cosine:1e-3:1e-4", "0:1e-2,60:1e-3,90:1e-4", "0:1e-3,80:1e-4"]
"""

# Liu et al. 2019 (arXiv 1810.05270), ImageNet: 90 epochs, retraining of 20 at the last rate; Scratch-B is an arm.
LIU = """
[sgd]
batch = 256
weight_decay = 1e-4

[pretrain]
epochs = 90
lr = "0:0.1,30:0.01,60:0.001"

[prune]
steps = 1000
lr = "0:1e-3"

[retrain]
epochs = 20
lr = "0:1e-3"

[scratch]
epochs = 90
lr = "0:0.1,30:0.01,60:0.001"

[tune]
schedules = ["0:1e-3", "0:1e-2,10:1e-3"]
"""

RESNET56 = CIFAR.format(model="resnet56", prunable='["layer*.conv1"]', data="cifar10")
VGG19 = CIFAR.format(model="vgg19", prunable='["features.*"]', data="cifar100")
PAPERS = {
    "torchvision-v1": IMAGENET + TORCHVISION_1,
    "torchvision-v2": IMAGENET + TORCHVISION_2,
    "deit": IMAGENET + DEIT,
    "wang-table6": RESNET56 + WANG.format(batch=128),
    "wang-table7": VGG19 + WANG.format(batch=256),
    "liu-imagenet": IMAGENET + LIU,
}
#: On digits, for whole campaigns.
DIGITS = """
version = 1
source = "a test"
model = "lenet5"
prunable = ["conv*"]
ratios = [0.5]
seeds = [0]

[data]
name = "digits"
size = 32
mean = [0.3054]
std = [0.3763]

[optimiser]
name = "adamw"
batch = 256
accumulate = 2
weight_decay = 0.05
no_decay = ["bias"]
label_smoothing = 0.1
ema = 0.5

[pretrain]
epochs = 2
lr = "cosine:1e-3, warmup 2 steps"

[prune]
steps = 1
lr = "0:1e-3"

[retrain]
epochs = 2
lr = "cosine:1e-3, per step, open"

[scratch]
epochs = 2
lr = "cosine:1e-3"

[tune]
schedules = ["cosine:1e-3, per step, open", "cosine:1e-2, per step, open"]
"""


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    """The project's content and these workloads."""
    root = tmp_path_factory.mktemp("content")
    shutil.copytree(content_root() / "methods", root / "methods", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(content_root() / "protocols", root / "protocols", ignore=shutil.ignore_patterns("published"))
    for name, text in {**PAPERS, "adamw-digits": DIGITS}.items():
        (root / "protocols" / "workloads" / f"{name}.toml").write_text(text, encoding="utf-8")
    return Catalog(root=root)


# Read


def test_torchvisions_reference_of_resnet50_is_read(known):
    recipe = known.workload("torchvision-v2").pretrain
    assert recipe == Recipe(
        epochs=600,
        lr="cosine:0.5:0, warmup 5 from 0.005, open",
        batch=1024,
        momentum=0.9,
        weight_decay=2e-5,
        no_decay=("norm",),
        label_smoothing=0.1,
        mixup=0.2,
        cutmix=1.0,
        ema=0.9989,
        ema_every=32,
    )


def test_deits_recipe_is_read_and_a_stage_may_have_an_optimiser_of_its_own(known):
    workload = known.workload("deit")
    assert workload.retrain.optimiser == Optimiser(name="adamw", options=(("betas", (0.9, 0.999)), ("eps", 1e-8)))
    assert (workload.retrain.clip, workload.scratch.clip, workload.retrain.micro_batch) == (1.0, 0.0, 512)
    assert (workload.prune.optimiser, workload.prune.momentum) == (Optimiser(), 0.95)
    assert (workload.prune.weight_decay, workload.prune.mixup) == (0.05, 0)
    assert hash(workload) == hash(known.workload("deit").model_copy())


def test_a_recipe_survives_json(known):
    for name in PAPERS:
        recipe = known.workload(name).retrain
        assert Recipe.model_validate_json(recipe.model_dump_json()) == recipe
        assert Recipe.model_validate(recipe.model_dump()) == recipe


def test_the_rate_of_a_step_is_not_guessed():
    recipe = Recipe(epochs=2, lr="linear:1, per step", batch=4)
    assert recipe.rate(1, 5, 4) == pytest.approx(1 - 5 / 8)
    with pytest.raises(ValueError, match="needs the steps of an epoch"):
        recipe.rate(1, 5)


def test_the_order_of_options_is_no_difference():
    one = Recipe(epochs=1, lr="0:1", batch=1, optimiser={"name": "AdamW", "eps": 1e-6, "betas": [0.9, 0.95]})
    other = Recipe(epochs=1, lr="0:1", batch=1, optimiser={"name": "adamw", "betas": (0.9, 0.95), "eps": 1e-6})
    assert run_spec(recipe=one).run_id == run_spec(recipe=other).run_id
    plain = Recipe(epochs=1, lr="0:1", batch=1)
    assert run_spec(recipe=plain).run_id != run_spec(recipe=one).run_id
    assert run_spec(recipe=Recipe(epochs=1, lr="0:1", batch=1, optimiser="sgd")).run_id == run_spec(recipe=plain).run_id


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('name = "adamw"', 'name = "adamx"', "pretrain.optimiser.name: unknown optimiser 'adamx'."),
        ('name = "adamw"\n', "", "optimiser.name: missing; a class of torch.optim"),
        ('name = "adamw"', "name = 3", "optimiser: name: expected the name of a class of torch.optim"),
        ('name = "adamw"', 'name = "adamw"\nbeta = [0.9, 0.99]', "optimiser.beta: AdamW has no such option."),
        (
            "label_smoothing",
            "label_smoothin",
            "AdamW has no such option. Did you mean 'label_smoothing'? Known: betas,",
        ),
        ("epochs = 2\n", "epochs = 2\nmixupp = 0.2\n", "pretrain.mixupp: unknown key. Did you mean 'mixup'?"),
        ('name = "adamw"', 'name = "adamw"\nmomentum = 0.9', "optimiser.momentum: AdamW has no such option."),
        ('name = "adamw"', 'name = "lbfgs"', "optimiser.name: LBFGS computes the loss anew"),
        ('name = "adamw"', 'name = "rprop"', "optimiser.weight_decay: Rprop has none; leave it out"),
        ("[prune]", "[sgd]\nbatch = 3\n[prune]", "optimiser: give either [sgd] or [optimiser], not both"),
        (
            "steps = 1\n",
            "steps = 1\nnesterov = true\n",
            "prune: nesterov: belongs to sgd; state options of adamw under",
        ),
        ("accumulate = 2", "accumulate = 3", "accumulate: a batch of 256 cannot be 3 equal parts"),
        ("ema = 0.5", "ema = 1.0", "ema: Input should be less than 1"),
        ("ema = 0.5", "ema_every = 32", "ema_every: does nothing without ema"),
        ("ema = 0.5", 'clip_by = "value"', "clip_by: does nothing without clip"),
        ("ema = 0.5", "mixup = -1", "mixup: Input should be greater than or equal to 0"),
        ("weight_decay = 0.05\n", "", "no_decay: there is no weight_decay to leave parameters out of"),
        (
            'lr = "cosine:1e-3"',
            'lr = "cosine:1e-3, warmup 2"',
            "scratch: lr: a warm-up of 2 epochs leaves nothing of 2",
        ),
        (
            'schedules = ["cosine:1e-3, per step, open", ',
            'schedules = ["cosine:1e-3, per step, open", "cosine:1e-2, warmup 3", ',
            "tune.schedules: 'cosine:0.01:0, warmup 3, open': a warm-up of 3 epochs leaves nothing of 2",
        ),
    ],
)
def test_what_is_wrong_is_told_with_file_and_key(tmp_path, old, new, message):
    path = tmp_path / "mine.toml"
    assert old in DIGITS
    path.write_text(DIGITS.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load_workload(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ") and message in text and "\n" not in text


def test_the_page_about_recipes_is_complete_and_its_example_is_read(tmp_path):
    page = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    rows = [
        line.split("|")[1]
        for line in page.partition("## Keys")[2].partition("## Optimisers")[0].splitlines()
        if "|" in line
    ]
    named = {key for row in rows for key in re.findall("`([a-z_]+)`", row)}
    # Set by the plan of a run, and by what its method declares.
    assert named == set(Recipe.model_fields) - {"start", "span", "distillation"}
    (example,) = re.findall("```toml\n(.*?)```", page, re.DOTALL)
    path = tmp_path / "mine.toml"
    path.write_text(IMAGENET + example, encoding="utf-8")
    workload = load_workload(path)
    assert (workload.pretrain.optimiser.name, workload.prune.optimiser.name) == ("adamw", "sgd")
    for text in re.findall('`"([a-z0-9]+:[^"]*)"`', page.partition("## Learning rates")[2]):
        Schedule.parse(text.replace(",…", ""))


# Planned


@pytest.mark.parametrize("name", PAPERS)
def test_papers_are_planned_and_every_budget_keeps_their_shape(known, name):
    workload = known.workload(name)
    images = facts(workload.data).train
    for protocol, budget in itertools.product(("s3.1", "s3.2", "s4.2", "sx-a", "sx-b"), ("full", "short", "smoke")):
        campaign = Campaign(known, None, Settings(budget=budget), FakeExecutor())
        scaled = workload.scaled(budget)
        plan = campaign.plan(Cell(name, protocol, "l1", 0.5, 0))
        assert plan.base.recipe == scaled.pretrain
        assert scaled.retrain.lr in scaled.tune.schedules
        assert len(plan.trials) == (len(workload.tune.schedules) if protocol == "s3.1" else 1)
        for run in plan.runs:
            needed = cost(run, known)
            assert needed.epochs * images == pytest.approx(run.recipe.images(images))
            per_epoch = steps_per_epoch(images, run.recipe.batch)
            last = run.recipe.total_steps(per_epoch) - 1
            if last >= 0:
                assert run.recipe.rate(last // per_epoch, last, per_epoch) > 0


@pytest.mark.parametrize("protocol", ["sx-a", "sx-b"])
@pytest.mark.parametrize("name", ["torchvision-v2", "deit", "wang-table6"])
def test_scratch_ends_at_the_rate_that_retraining_ends_at(known, protocol, name):
    campaign = Campaign(known, None, Settings(), FakeExecutor())
    ends = []
    for method in ("l1", "scratch"):
        run = campaign.plan(Cell(name, protocol, method, 0.5, 0)).trials[0]
        per_epoch = steps_per_epoch(facts(run.data).train, run.recipe.batch)
        last = run.recipe.total_steps(per_epoch) - 1
        ends.append(run.recipe.rate(last // per_epoch, last, per_epoch))
    assert ends[0] == ends[1] > 0, "F604 compares them exactly"


def test_a_warm_up_is_a_schedule_that_stages_share(known):
    """Under S4.2 a method goes on where the top-up stopped, unless the rate is constant."""
    workload = known.workload("deit")
    warm = workload.model_copy(update={"prune": workload.prune.model_copy(update={"lr": "0:0.001, warmup 100"})})
    for chosen, span in ((workload, 0), (warm, 1000)):
        catalog = Catalog(root=known.root)
        vars(catalog)["workloads"] = {**known.workloads, "deit": chosen}
        plan = Campaign(catalog, None, Settings(), FakeExecutor()).plan(Cell("deit", "s4.2", "l1", 0.5, 0))
        assert plan.topup.recipe.span == span


def test_a_published_rate_comes_with_its_optimiser(known):
    """Papers' rates are SGD's: AdamW would diverge at 0.01."""
    published = dataclasses.replace(known.method("l1").create().published, workload="adamw-digits", epochs=2)
    recipe = own_recipe(published, known.workload("adamw-digits"), known)
    assert (recipe.optimiser.name, recipe.momentum, recipe.lr) == ("sgd", 0.9, str(Schedule.parse(published.lr)))
    same = own_recipe(dataclasses.replace(published, optimiser="adamw"), known.workload("adamw-digits"), known)
    assert same.optimiser == known.workload("adamw-digits").retrain.optimiser


def test_runs_that_take_other_time_are_timed_apart():
    plain = run_spec()
    others = [{"optimiser": {"name": "adamw"}}, {"ema": 0.9}, {"accumulate": 2}, {"mixup": 0.1}]
    kinds = [kind(plain, 1)]
    kinds += [kind(run_spec(recipe=Recipe.model_validate({**dict(plain.recipe), **change})), 1) for change in others]
    assert len(set(kinds)) == len(kinds)


# Trained


class Patches(nn.Module):
    """A small vision transformer with the parameters that DeiT leaves out of weight decay."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Conv2d(1, 8, 4, stride=4)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, 8))
        self.pos_embed = nn.Parameter(torch.zeros(1, 5, 8))
        self.norm1, self.norm2 = nn.LayerNorm(8), nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, dropout=0.1, batch_first=True)
        self.head = nn.Linear(8, 10)

    def forward(self, images):
        tokens = self.embed(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.cls_token.expand(len(tokens), -1, -1), tokens], dim=1) + self.pos_embed
        normed = self.norm1(tokens)
        tokens = tokens + self.attention(normed, normed, normed, need_weights=False)[0]
        return self.head(self.norm2(tokens)[:, 0])


def small(recipe, **changes):
    """A paper's recipe over two epochs of four steps."""
    return Recipe.model_validate({**dict(recipe.for_epochs(2)), "batch": BATCH, **changes})


@pytest.mark.parametrize("name", PAPERS)
def test_papers_recipes_take_real_steps(known, name):
    recipe = small(known.workload(name).scratch)
    torch.manual_seed(0)
    model = Patches().double() if name == "deit" else network()
    made = fitted(model, recipe)
    history, seen = made.history, made.meter.consumption
    assert all(math.isfinite(loss) for loss in history.train_loss + history.test_loss)
    assert seen.optimiser_steps == 2 * PER_EPOCH
    rates = [rate for rate, steps in seen.rates for _ in range(steps)]
    assert rates == [recipe.rate(step // PER_EPOCH, step, PER_EPOCH) for step in range(2 * PER_EPOCH)]
    noted = {
        "torchvision-v2": {"no_decay": ["norm"], "mixup": 0.2, "cutmix": 1.0, "ema": "0.9989, every 32 steps"},
        "deit": {
            "no_decay": ["bias", "norm", "pos_embed", "cls_token"],
            "mixup": 0.8,
            "cutmix": 1.0,
            "ema": "0.99996",
            "accumulation": 2,
            "betas": [0.9, 0.999],
        },
    }
    assert seen.settings.items() >= noted.get(name, {}).items()
    if name == "deit":
        groups = made.optimiser.param_groups
        names = {parameter: name for name, parameter in model.named_parameters()}
        assert [group["weight_decay"] for group in groups] == [0.05, 0.0]
        assert sorted(names[parameter] for parameter in groups[0]["params"]) == [
            "attention.in_proj_weight",
            "attention.out_proj.weight",
            "embed.weight",
            "head.weight",
        ]


def test_a_campaign_of_adamw_measures_what_it_plans(known, tmp_path):
    ledger = Ledger(tmp_path / "ledger")
    executor = LocalExecutor(ledger, Stages(ledger, known, Runtime("cpu")), "session")
    campaign = Campaign(known, ledger, Settings(backend="grouped"), executor)
    cells = [Cell("adamw-digits", "s3.2", method, 0.5, 0) for method in ("l1", "random")]
    assert [campaign.obtain(cell).status for cell in cells] == ["ok", "ok"]
    arms = [evidence_of(ledger, campaign, cell) for cell in cells]
    run = arms[0].result
    assert (
        run.fallback
        == "not grouped: its recipe has optimiser adamw, no_decay, ema, accumulate, which torch's loop alone does"
    )
    assert "steps" not in run.hyper_parameters, "torch made the steps"
    assert run.hyper_parameters["optimiser"] == "adamw"
    assert run.epochs == 2.0
    rates = [rate for rate, steps in run.learning_rates for _ in range(steps)]
    assert len(rates) == run.optimiser_steps and len(set(rates)) == len(rates)
    assert [get_rule(rule).check(*arms).verdict for rule in ("F321", "F322")] == ["pass", "pass"]
    assert get_rule("F501").check(arms[0]).verdict == "pass"


def evidence_of(ledger, campaign, cell):
    """What was measured of a cell, as sessions gather it."""
    record = ledger.cell(campaign.settings.key(cell, campaign.catalog.workload(cell.workload)))
    runs = [ledger.get(run) if run else None for run in (record.base, record.topup, record.prune)]
    trials = tuple(ledger.get(run) for run in record.trials)
    return Evidence(record, *runs, trials, ledger.get(record.result))


# Who trains them


@pytest.mark.parametrize("backend", ["grouped", "fused", "graphed", "tiled"])
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"optimiser": "adamw"}, "optimiser adamw"),
        ({"optimiser": {"name": "sgd", "dampening": 0.5}}, "options of the optimiser"),
        ({"weight_decay": 0.1, "no_decay": ["norm"]}, "no_decay"),
        ({"mixup": 0.2, "cutmix": 1.0}, "mixup, cutmix"),
        ({"ema": 0.9}, "ema"),
        ({"clip": 0.1}, "clip"),
        ({"accumulate": 2}, "accumulate"),
    ],
)
def test_other_backends_say_why_they_leave_it_to_torch(backend, change, reason):
    recipe = Recipe.model_validate({"epochs": 2, "lr": "0:0.01", "batch": BATCH, **change})
    trainings = [Training(network(seed=seed), DATA, recipe, seed, "retrain", "fp64") for seed in range(2)]
    alone = [dataclasses.replace(one, model=network(seed=one.seed)) for one in trainings]
    found, expected = train_many(trainings, backend), train_many(alone)
    for one, other in zip(found, expected, strict=True):
        assert one.error is None and one.backend == "torch"
        assert one.reason == f"not {backend}: its recipe has {reason}, which torch's loop alone does"
        assert one.history == other.history
    assert all(largest_difference(a.model, b.model) == 0 for a, b in zip(trainings, alone, strict=True))


@pytest.mark.parametrize(
    "lr", ["cosine:0.02->1e-3, warmup 3 steps", "0:0.02,2:0.001, warmup 1, per step", "poly:0.02, power 2, warmup 1"]
)
def test_grouped_steps_follow_any_schedule(lr):
    recipe = Recipe(epochs=3, lr=lr, batch=BATCH, weight_decay=5e-4)
    made = {}
    for backend in ("torch", "grouped"):
        trainings = [Training(network(seed=seed), DATA, recipe, seed, "retrain", "fp64") for seed in range(2)]
        results = train_many(trainings, backend)
        assert all(result.backend == backend and result.error is None for result in results)
        made[backend] = trainings, results
    for (one, other), (left, right) in zip(
        zip(made["torch"][0], made["grouped"][0], strict=True),
        zip(made["torch"][1], made["grouped"][1], strict=True),
        strict=True,
    ):
        assert largest_difference(one.model, other.model) <= 1e-10
        assert left.consumption == right.consumption


def test_compiled_steps_follow_a_rate_of_every_step():
    pytest.importorskip("numba")
    from test_tiled_lenet import digits

    from pruneaudit.workloads.models import build
    from pruneaudit.workloads.models.initialise import initialise

    data, recipe = digits(), Recipe(epochs=2, lr="cosine:0.02, warmup 3 steps", batch=32)
    models = []
    for backend in ("torch", "tiled"):
        model = build("lenet5", 1, 10).double()
        initialise(model, torch.Generator().manual_seed(0))
        (result,) = train_many([Training(model, data, recipe, 0, "retrain", "fp64")], backend)
        assert (result.backend, result.error) == (backend, None)
        models.append(model)
    assert largest_difference(*models) <= 1e-10


def test_what_a_method_adds_sees_steps_not_parts():
    """Of a batch in parts the penalty counts once, and gradients are seen when they are whole."""
    seen, models = [], []
    for parts in (1, 4):
        model = network(norm=False)
        hooks = Hooks(
            penalty=lambda step, model=model: model[3].weight.square().sum(),
            gradients=lambda step, model=model: seen.append((step, float(model[3].weight.grad.norm()))),
        )
        recipe = Recipe(epochs=1, lr="0:0.01", batch=BATCH, accumulate=parts)
        (result,) = train_many([Training(model, DATA, recipe, 0, "retrain", "fp64", hooks=hooks)])
        assert result.error is None
        models.append(model)
    assert [step for step, _ in seen] == [0, 1, 2, 3] * 2
    assert [norm for _, norm in seen[:4]] == pytest.approx([norm for _, norm in seen[4:]], rel=1e-10)
    assert largest_difference(*models) <= 1e-12


# Judged


def with_settings(method, **settings):
    arm = evidence(method)
    known = {"optimiser": "adamw", "betas": [0.9, 0.999], "weight_decay": 0.05, "batch": 64}
    return dataclasses.replace(arm, result=changed(arm.result, hyper_parameters={**known, **settings}))


@pytest.mark.parametrize(
    "difference",
    [
        {"optimiser": "adam"},
        {"betas": [0.9, 0.95]},
        {"weight_decay": [0.0, 0.05], "no_decay": ["norm"]},
        {"clip": "norm 1"},
        {"mixup": 0.8},
        {"ema": "0.999"},
        {"accumulation": 2},
    ],
)
def test_f322_tells_any_difference_of_recipes(difference):
    check = get_rule("F322").check
    assert check(with_settings("l1"), with_settings("tpp")).verdict == "pass"
    assert check(with_settings("l1", **difference), with_settings("tpp", **difference)).verdict == "pass"
    assert check(with_settings("l1"), with_settings("tpp", **difference)).verdict == "fail"


def test_rates_of_every_step_are_compared_exactly_and_told_briefly():
    def arm(method, last):
        rates = [(1e-3 / step, 1) for step in range(1, 1000)] + [(last, 1)]
        found = evidence(method)
        return dataclasses.replace(found, result=changed(found.result, learning_rates=rates))

    check = get_rule("F321").check
    same = check(arm("l1", 1e-6), arm("tpp", 1e-6))
    assert same.verdict == "pass"
    assert len(same.left) < 80 and same.left.startswith("0.001×1, …, 1e-06×1 (1000 rates, ")
    middle = arm("tpp", 1e-6)
    rates = list(middle.result.learning_rates)
    rates[500] = (rates[500][0] * 1.01, 1)
    other = dataclasses.replace(middle, result=changed(middle.result, learning_rates=rates))
    assert check(arm("l1", 1e-6), other).verdict == "fail"


def test_a_warmed_up_grid_is_known_by_its_highest_rates():
    trials = [run_record(changed_rates) for changed_rates in map(warm_spec, ("1e-3", "1e-2", "1e-1"))]
    arm = dataclasses.replace(evidence(trials=3), trials=tuple(trials), result=trials[1])
    assert get_rule("F313").check(arm).left == "0.01 of 0.001, 0.01, 0.1"
    assert get_rule("F313").check(arm).verdict == "pass"
    edge = dataclasses.replace(arm, result=trials[2])
    assert get_rule("F313").check(edge).verdict == "fail"


def warm_spec(rate):
    return run_spec(recipe=Recipe(epochs=5, lr=f"cosine:{rate}, warmup 2 from 1e-6", batch=64))


def test_smooth_schedules_have_no_stages():
    for lr in ("linear:0.1", "poly:0.1, power 2", "cosine:0.1, warmup 2"):
        recipe = Recipe(epochs=4, lr=lr, batch=64)
        assert trainability_accuracy([1.0, 2.0, 3.0, 4.0], recipe) is None
        arm = dataclasses.replace(evidence(), result=run_record(run_spec("retrain", recipe=recipe)))
        assert get_rule("F605").check(arm).verdict == "not measured"


def test_a_published_schedule_of_every_step_is_recognised():
    schedule = Schedule.parse("cosine:0.1, warmup 1, per step")
    rates = [(step / 4, schedule.rate(step, 20, 4)) for step in range(20)]
    assert _follows(Curve([1.0] * 5, rates, 4), 5, schedule)
    assert not _follows(Curve([1.0] * 5, rates, 4), 5, Schedule.parse("cosine:0.1, warmup 1"))
    assert not _follows(Curve([1.0] * 5, [(start, 2 * rate) for start, rate in rates], 4), 5, schedule)
