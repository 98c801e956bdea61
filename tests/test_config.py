"""TOML files: what they may say, how they scale, and how a mistake is reported."""

import copy
import json
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import pytest
from pydantic import ValidationError

from pruneaudit.catalog.discovery import content_root
from pruneaudit.catalog.protocols import FAIL_ON, Study, load_protocol, load_study
from pruneaudit.catalog.settings import AUTO, Backend, Precision
from pruneaudit.errors import ConfigError
from pruneaudit.plugin.options import add_options
from pruneaudit.workloads.recipes import Recipe, steps_per_epoch
from pruneaudit.workloads.schema import Budget, load_workload

BASE = {
    "version": 1,
    "source": "a test",
    "model": "lenet5",
    "prunable": ["conv*"],
    "ratios": [0.5, 0.9],
    "seeds": [0, 1],
    "data": {"name": "digits", "size": 32, "mean": [0.3], "std": [0.4], "pad": 2},
    "sgd": {"batch": 64, "momentum": 0.9, "weight_decay": 1e-4},
    "pretrain": {"epochs": 200, "lr": "0:0.1,100:0.01,150:0.001"},
    "prune": {"steps": 1000, "lr": "0:1e-3"},
    "retrain": {"epochs": 120, "lr": "0:1e-2,60:1e-3,90:1e-4"},
    "scratch": {"epochs": 200, "lr": "0:0.1,100:0.01,150:0.001", "nesterov": True},
    "tune": {"schedules": ["0:1e-2,60:1e-3,90:1e-4", "0:1e-3,80:1e-4"]},
    "budget": {"smoke": 0.01, "short": 0.1},
}


def toml(content):
    """A nested dict of plain values as TOML."""
    lines = [f"{key} = {json.dumps(value)}" for key, value in content.items() if not isinstance(value, dict)]
    for key, table in content.items():
        if isinstance(table, dict):
            lines += [f"[{key}]", *(f"{name} = {json.dumps(value)}" for name, value in table.items())]
    return "\n".join(lines) + "\n"


def edited(**changes):
    """BASE with ``section__key`` values changed; ``...`` deletes."""
    content = copy.deepcopy(BASE)
    for path, value in changes.items():
        *sections, key = path.split("__")
        table = content
        for section in sections:
            table = table[section]
        if value is ...:
            del table[key]
        else:
            table[key] = value
    return content


@pytest.fixture
def workload(tmp_path):
    def load(**changes):
        path = tmp_path / "tiny.toml"
        path.write_text(toml(edited(**changes)), encoding="utf-8")
        return load_workload(path)

    return load


def refusal(call, *args, **kwargs):
    """The one-line message of a refusal."""
    with pytest.raises(ConfigError) as caught:
        call(*args, **kwargs)
    message = str(caught.value)
    assert "\n" not in message
    return message


# Recipes


@pytest.mark.parametrize("lengths", [{}, {"epochs": 3, "steps": 3}])
def test_recipe_has_exactly_one_length(lengths):
    with pytest.raises(ValidationError, match="give either epochs or steps"):
        Recipe(lr="0:1", batch=1, **lengths)


def test_recipe_rate_counts_epochs_or_steps():
    by_epochs = Recipe(epochs=4, lr="0:1,2:0.5", batch=1)
    assert [by_epochs.rate(epoch, 100 + epoch) for epoch in range(4)] == [1, 1, 0.5, 0.5]
    by_steps = Recipe(steps=4, lr="0:1,2:0.5", batch=1)
    assert [by_steps.rate(7, step) for step in range(4)] == [1, 1, 0.5, 0.5]
    late = Recipe(steps=2, lr="0:1,2:0.5", start=1, batch=1)
    assert [late.rate(0, step) for step in range(2)] == [1, 0.5]


def test_recipe_total_steps():
    assert steps_per_epoch(100, 64) == 2
    assert Recipe(epochs=3, lr="0:1", batch=1).total_steps(17) == 51
    assert Recipe(steps=40, lr="0:1", batch=1).total_steps(17) == 40
    assert Recipe(steps=0, lr="0:1", batch=1).total_steps(17) == 0


def test_recipe_for_epochs_moves_boundaries_in_proportion():
    recipe = Recipe(epochs=160, lr="0:0.1,80:0.01,120:0.001", batch=64, weight_decay=1e-4)
    longer = recipe.for_epochs(243)
    assert (longer.epochs, longer.lr) == (243, "0:0.1,121:0.01,182:0.001")
    assert longer.model_copy(update={"epochs": 160, "lr": recipe.lr}) == recipe
    assert recipe.for_epochs(160) == recipe
    with pytest.raises(ValueError, match="steps"):
        Recipe(steps=10, lr="0:1", batch=1).for_epochs(5)


def test_recipe_for_steps_moves_boundaries_in_proportion():
    recipe = Recipe(steps=1000, lr="0:1,500:0.1", batch=64)
    assert (recipe.for_steps(10).steps, recipe.for_steps(10).lr) == (10, "0:1,5:0.1")
    with pytest.raises(ValueError, match="steps"):
        Recipe(epochs=10, lr="0:1", batch=1).for_steps(5)


def test_recipe_lr_keeps_every_digit():
    assert Recipe(epochs=1, lr="0:0.123456789", batch=1).rate(0, 0) == 0.123456789


def test_recipe_is_frozen_and_knows_its_keys():
    recipe = Recipe(epochs=1, lr="0:1", batch=1)
    with pytest.raises(ValidationError, match="frozen"):
        recipe.epochs = 2
    with pytest.raises(ValidationError, match="Extra inputs"):
        Recipe(epochs=1, lr="0:1", batch=1, warmup=3)


# Workloads


def test_name_is_the_file_name_and_sgd_is_shared(workload):
    loaded = workload()
    assert loaded.name == "tiny"
    for stage in (loaded.pretrain, loaded.prune, loaded.retrain, loaded.scratch):
        assert (stage.batch, stage.momentum, stage.weight_decay) == (64, 0.9, 1e-4)
    assert loaded.scratch.nesterov and not loaded.pretrain.nesterov


def test_a_stage_overrides_the_shared_sgd(workload):
    loaded = workload(prune__batch=16, prune__weight_decay=0.0)
    assert (loaded.prune.batch, loaded.prune.weight_decay) == (16, 0.0)
    assert (loaded.retrain.batch, loaded.retrain.weight_decay) == (64, 1e-4)


def test_budgets_scale_every_length(workload):
    full = workload()
    assert full.scaled("full") is full
    short = full.scaled("short")
    assert (short.pretrain.epochs, short.pretrain.lr) == (20, "0:0.1,10:0.01,15:0.001")
    assert (short.prune.steps, short.prune.lr) == (100, "0:0.001")
    assert (short.retrain.epochs, short.retrain.lr) == (12, "0:0.01,6:0.001,9:0.0001")
    assert (short.scratch.epochs, short.scratch.lr) == (20, "0:0.1,10:0.01,15:0.001")
    assert short.tune.schedules == ("0:0.01,6:0.001,9:0.0001", "0:0.001,8:0.0001")
    smoke = full.scaled("smoke")
    assert (smoke.pretrain.epochs, smoke.prune.steps, smoke.retrain.epochs, smoke.scratch.epochs) == (2, 10, 1, 2)
    assert smoke.retrain.lr == "0:0.01"
    for scaled in (short, smoke):
        assert scaled.retrain.lr in scaled.tune.schedules
        assert scaled.ratios == full.ratios and scaled.seeds == full.seeds


def test_smallest_budget_leaves_one_of_each(workload):
    smoke = workload(budget__smoke=1e-6).scaled("smoke")
    assert (smoke.pretrain.epochs, smoke.prune.steps, smoke.retrain.epochs, smoke.scratch.epochs) == (1, 1, 1, 1)


@pytest.mark.parametrize("ratio", [0, 1, -0.1, 1.5, 50])
def test_ratio_outside_the_open_interval_is_refused(workload, ratio):
    message = refusal(workload, ratios=[0.5, ratio])
    assert "tiny.toml: ratios: " in message and f"{ratio:g} is outside (0, 1)" in message


def test_repeated_ratio_is_refused(workload):
    assert "each ratio once" in refusal(workload, ratios=[0.5, 0.5])


def with_shares(tmp_path, table, shares):
    """The workload with shares of single layers, as a user would write them."""
    path = tmp_path / "tiny.toml"
    path.write_text(f"{toml(edited())}\n[layer_ratios{table}]\n{shares}\n", encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("table", "shares", "message"),
    [
        ('."0.7"', '"conv1" = 0.5', "layer_ratios.0.7: no such ratio in ratios"),
        ('."0.5"', '"conv1" = 1.0', "layer_ratios.0.5.conv1: 1 is outside [0, 1)"),
        ('."0.5"', '"conv1" = -0.1', "layer_ratios.0.5.conv1: -0.1 is outside [0, 1)"),
        (".half", '"conv1" = 0.5', "layer_ratios"),
        ("", '"0.5" = 0.3', "layer_ratios"),
    ],
)
def test_shares_of_single_layers_are_checked(tmp_path, table, shares, message):
    assert message in refusal(load_workload, with_shares(tmp_path, table, shares))


def test_the_last_pattern_that_matches_gives_a_layer_its_share(tmp_path):
    loaded = load_workload(with_shares(tmp_path, '."0.5"', '"conv*" = 0.3\n"conv2" = 0.0'))
    assert [loaded.ratio_of(name, 0.5) for name in ("conv1", "conv2", "fc1")] == [0.3, 0.0, 0.5]
    assert loaded.ratio_of("conv1", 0.9) == 0.9 and loaded.shares_at(0.9) == {}
    assert hash(loaded) == hash(loaded.model_copy())


def test_retrain_lr_must_be_in_the_tuning_grid(workload):
    message = refusal(workload, tune__schedules=["0:1e-1", "0:1e-3,80:1e-4"])
    assert "tiny.toml" in message and "tune.schedules must contain retrain.lr" in message
    # Equal schedules count as equal however they are written.
    assert workload(retrain__lr="0:0.010,60:0.001,90:1e-4").retrain.lr == "0:0.01,60:0.001,90:0.0001"


def test_stages_have_their_units(workload):
    message = refusal(workload, pretrain={"steps": 10, "lr": "0:1"})
    assert "pretrain is measured in epochs" in message
    message = refusal(workload, prune={"epochs": 10, "lr": "0:1"})
    assert "prune is measured in steps" in message
    assert "prune is measured in steps" in refusal(workload, prune__steps=0)


@pytest.mark.parametrize(
    ("change", "key", "nearest"),
    [
        ({"ratois": [0.5]}, "ratois", "ratios"),
        ({"retrain__epoch": 3}, "retrain.epoch", "epochs"),
        ({"data__padding": 3}, "data.padding", "pad"),
        ({"budget__smok": 0.5}, "budget.smok", "smoke"),
        ({"sgd__weight_decy": 1e-4}, "sgd.weight_decy", "weight_decay"),
    ],
)
def test_unknown_key_names_the_nearest(workload, change, key, nearest):
    message = refusal(workload, **change)
    assert f"tiny.toml: {key}: unknown key. Did you mean '{nearest}'?" in message


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ({"retrain__epochs": "ten"}, ("retrain.epochs: ", "valid integer", "'ten'")),
        ({"retrain__epochs": 0}, ("retrain.epochs: ", "greater than or equal to 1")),
        ({"retrain__momentum": 1.0}, ("retrain.momentum: ", "less than 1")),
        ({"ratios": 0.5}, ("ratios: ", "valid tuple", "0.5")),
        ({"ratios": []}, ("ratios: ", "at least 1 item")),
        ({"version": "one"}, ("version: ", "valid integer", "'one'")),
        ({"data__mean": "grey"}, ("data.mean: ", "valid tuple", "'grey'")),
        ({"retrain__lr": "fast"}, ("retrain.lr: ", "'fast' is no learning-rate schedule")),
        ({"tune__schedules": ["0:1e-2,60:1e-3,90:1e-4"]}, ("tune.schedules: ", "at least 2 items")),
        ({"budget__smoke": 2}, ("budget.smoke: ", "less than or equal to 1")),
    ],
)
def test_wrong_value_names_file_key_and_expectation(workload, change, parts):
    message = refusal(workload, **change)
    assert "tiny.toml: " in message
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("change", "key"),
    [({"model": ...}, "model"), ({"retrain__lr": ...}, "retrain.lr"), ({"data__name": ...}, "data.name")],
)
def test_missing_key_is_named(workload, change, key):
    assert f"tiny.toml: {key}: missing" in refusal(workload, **change)


def test_stray_name_in_a_recipe_is_named(workload):
    assert "tiny.toml: retrain.name: unknown key." in refusal(workload, retrain__name="slow")


def test_name_cannot_be_set(workload):
    assert "delete this key" in refusal(workload, name="other")


def test_sgd_must_be_a_table(workload):
    assert "sgd: expected a table" in refusal(workload, sgd=3)


@pytest.mark.parametrize("load", [load_workload, load_protocol])
@pytest.mark.parametrize("content", [b"ratios = [0.5", b"\xff\xfe = 1"], ids=["open-list", "no-utf8"])
def test_broken_toml_names_the_file(tmp_path, load, content):
    path = tmp_path / "broken.toml"
    path.write_bytes(content)
    message = refusal(load, path)
    assert message.startswith(f"{path}: not valid TOML")


def test_toml_that_is_nested_too_deeply_is_refused(tmp_path):
    path = tmp_path / "deep.toml"
    path.write_text(f"ratios = {'[' * 5000}{']' * 5000}")
    assert refusal(load_workload, path) == f"{path}: lists or tables within each other too deeply to be read"


def test_protocol_value_outside_its_choices(tmp_path):
    shipped = (content_root() / "protocols" / "s2.toml").read_text(encoding="utf-8")
    path = tmp_path / "mine.toml"
    path.write_text(shipped.replace('base = "shared"', 'base = "lucky"'), encoding="utf-8")
    message = refusal(load_protocol, path)
    assert "mine.toml: base: " in message and "'shared'" in message and "'lucky'" in message


@pytest.mark.parametrize(
    ("retraining", "recipe_of", "fine"),
    [("method", "tpp", True), ("method", "", False), ("workload", "tpp", False), ("workload", "", True)],
)
def test_a_recipe_of_a_method_needs_the_method(tmp_path, retraining, recipe_of, fine):
    text = (content_root() / "protocols" / "s3.2.toml").read_text(encoding="utf-8")
    assert 'retraining = "workload"' in text
    path = tmp_path / "mine.toml"
    text = text.replace('retraining = "workload"', f'retraining = "{retraining}"\nrecipe_of = "{recipe_of}"')
    path.write_text(text, encoding="utf-8")
    if fine:
        assert (load_protocol(path).retraining, load_protocol(path).recipe_of) == (retraining, recipe_of)
    else:
        assert "mine.toml: retraining = 'method' and recipe_of go together" in refusal(load_protocol, path)


def test_a_margin_is_positive(tmp_path):
    text = (content_root() / "protocols" / "s3.2.toml").read_text(encoding="utf-8")
    path = tmp_path / "mine.toml"
    path.write_text(text + "margin = 0.0\n", encoding="utf-8")
    assert "mine.toml: margin: " in refusal(load_protocol, path)


# Studies


STUDY = {
    "title": "Is mine better?",
    "workloads": ["lenet5-digits"],
    "methods": ["l1", "tpp"],
    "protocols": ["s3.2"],
    "against": ["l1"],
    "fail_on": ["worse", "unfair"],
    "seeds": 6,
    "waive": {"F604": "the scratch arm is annealed further"},
}


@pytest.fixture
def study(tmp_path):
    def load(**changes):
        path = tmp_path / "mine.toml"
        path.write_text(toml({**STUDY, **changes}), encoding="utf-8")
        return load_study(path)

    return load


def test_a_study_is_read(study, tmp_path):
    loaded = study()
    assert loaded.name == "mine" and loaded.title == "Is mine better?"
    assert (loaded.methods, loaded.against, loaded.protocols) == (("l1", "tpp"), ("l1",), ("s3.2",))
    assert (loaded.fail_on, loaded.seeds, loaded.workloads) == (("worse", "unfair"), 6, ("lenet5-digits",))
    assert loaded.waive == {"F604": "the scratch arm is annealed further"}
    (tmp_path / "empty.toml").write_text("", encoding="utf-8")
    assert load_study(tmp_path / "empty.toml") == Study(name="empty"), "everything is the option's default"


@pytest.mark.parametrize("reason", ["", " ", "\t\n"])
def test_a_waiver_without_a_reason_is_refused(study, reason):
    assert "mine.toml: waive: F604: a waiver needs a reason" in refusal(study, waive={"F604": reason})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"againts": ["l1"]}, "againts: unknown key. Did you mean 'against'?"),
        ({"fail_on": ["wrse"]}, "fail_on.0: "),
        ({"seeds": 0}, "seeds: "),
        ({"decide": 12}, "decide says which seeds are trained: leave out seeds"),
        ({"methods": "l1"}, "methods: "),
        ({"name": "other"}, "name: the file name is the name; delete this key"),
    ],
)
def test_a_wrong_study_names_file_key_and_expectation(study, change, said):
    message = refusal(study, **change)
    assert "mine.toml: " in message and said in message


@pytest.mark.parametrize("word", FAIL_ON)
def test_a_study_may_fail_on_every_verdict_that_the_option_knows(study, word):
    assert study(fail_on=[word]).fail_on == (word,)


# Everything that is shipped


def shipped(folder):
    return sorted((content_root() / folder).glob("*.toml"))


@pytest.mark.parametrize("path", shipped("protocols/workloads"), ids=lambda path: path.stem)
def test_shipped_workloads_load_at_every_budget(path: Path):
    loaded = load_workload(path)
    assert loaded.name == path.stem and loaded.source
    hash(loaded)
    for budget in ("smoke", "short", "full"):
        scaled = loaded.scaled(budget)
        assert scaled.retrain.lr in scaled.tune.schedules
        assert scaled.prune.steps >= 1
        for stage in (scaled.pretrain, scaled.retrain, scaled.scratch):
            schedule = stage.schedule
            assert schedule.warmup < stage.epochs
            # Points of smooth schedules are shares of the length.
            assert schedule.kind != "step" or all(start < stage.epochs for start, _ in schedule.points)


@pytest.mark.parametrize("path", shipped("protocols"), ids=lambda path: path.stem)
def test_shipped_protocols_load(path: Path):
    loaded = load_protocol(path)
    assert loaded.name == path.stem and loaded.source and loaded.requires


def test_the_eight_setups_are_shipped():
    names = {path.stem for path in shipped("protocols")}
    assert names >= {"s1", "s2", "s3.1", "s3.2", "s4.1", "s4.2", "sx-a", "sx-b"}


def test_wang_recipes_are_as_published():
    root = content_root() / "protocols" / "workloads"
    for name, batch in (("resnet56-cifar10", 128), ("vgg19-cifar100", 256)):
        loaded = load_workload(root / f"{name}.toml")
        assert (loaded.pretrain.epochs, loaded.pretrain.lr) == (200, "0:0.1,100:0.01,150:0.001")
        assert (loaded.retrain.epochs, loaded.retrain.lr) == (120, "0:0.01,60:0.001,90:0.0001")
        assert (loaded.prune.steps, loaded.prune.lr) == (110_000, "0:0.001")
        assert (loaded.retrain.batch, loaded.retrain.weight_decay, loaded.retrain.momentum) == (batch, 5e-4, 0.9)
        assert loaded.data.augmentation == "crop4+flip"


def test_options_offer_what_the_types_allow():
    """They are written twice: options are read in every pytest session, also where nothing of ours is imported."""
    offered = {}
    group = SimpleNamespace(
        addoption=lambda name, **how: offered.update({name: tuple(how.get("metavar", "").strip("{}").split(","))})
    )
    add_options(SimpleNamespace(getgroup=lambda *_: group))
    for name, allowed in (("backend", (AUTO, *get_args(Backend))), ("budget", get_args(Budget))):
        assert offered[f"--audit-{name}"] == allowed
    assert offered["--audit-precision"] == get_args(Precision)
