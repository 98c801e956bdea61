"""Identity of runs and round trips of records."""

import hashlib
import json
import math
import re

import pytest
from builders import NOTHING, RECIPE, cell_record, changed, evidence, failure, run_record, run_spec
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field, ValidationError

from pruneaudit.ledger.records import SCHEMA_VERSION, VOLATILE, CellRecord, FailureRecord, RunRecord, RunSpec
from pruneaudit.ledger.store import write_json
from pruneaudit.workloads.recipes import Recipe

#: One other value for every field of the identity: every one of them can change numbers.
OTHER = {
    "workload": "other",
    "workload_version": 2,
    "stage": "retrain",
    "model": "resnet20",
    "model_args": {"width": 2},
    "model_source": "ef" * 32,
    "data": {"name": "digits", "size": 32, "mean": [0.3], "std": [0.4], "pad": 3},
    "data_digest": "ef" * 32,
    "recipe": {"epochs": 3, "lr": "0:0.01,2:0.0011", "batch": 64, "weight_decay": 1e-4},
    "seed": 1,
    "parent": "0123456789abcdef",
    "method": "l1",
    "method_digest": "ab" * 32,
    "method_parameters": {"gram": 10.0},
    "ratio": 0.5,
    "prunable": ["conv*"],
    "skip": ["conv1"],
    "layer_ratios": [["conv1", 0.3]],
    "operating_point": "share",
    "widths": {"conv1": 3},
    "shape_of": "0123456789abcdef",
    "checkpoint": "cd" * 32,
    "reading": {"key": "ema", "rename": [["^encoder", ""]]},
    "own_base_of": "l1",
    "precision": "fp64",
    "budget": "smoke",
    "backend": "compiled",
    "numerics": 2,
    "metric": "perplexity",
    "metric_digest": "ef" * 32,
    "arithmetic": "portable",
    "calibration": 128,
    "teacher": "0123456789abcdef",
}


def test_every_field_of_the_identity_has_an_other_value():
    assert set(OTHER) == set(RunSpec.model_fields)


@pytest.mark.parametrize("name", sorted(OTHER))
def test_a_changed_field_is_another_run(name):
    spec = run_spec()
    assert run_spec(**{name: OTHER[name]}).run_id != spec.run_id


@pytest.mark.parametrize(
    "change",
    [
        {"epochs": 4},
        {"batch": 32},
        {"momentum": 0.8},
        {"weight_decay": 0.0},
        {"nesterov": True},
        {"label_smoothing": 0.1},
        {"lr": "0:0.01"},
        {"epochs": None, "steps": 3},
    ],
    ids=lambda change: "-".join(change),
)
def test_a_changed_recipe_is_another_run(change):
    assert run_spec(recipe={**RECIPE.model_dump(), **change}).run_id != run_spec().run_id


def test_the_same_recipe_written_differently_is_the_same_run():
    assert run_spec(recipe={**RECIPE.model_dump(), "lr": "0:1e-2, 2:1e-3"}).run_id == run_spec().run_id


class LaterRecipe(Recipe):
    """The recipe of a release to come."""

    clip: float = 0.0


class LaterSpec(RunSpec):
    """The identity of a release to come: two more fields, and one more in its recipe."""

    recipe: LaterRecipe
    warmup: int = 0
    nested: dict[str, int] = Field(default_factory=dict)

    @property
    def run_id(self) -> str:
        # As in RunSpec, over the fields of that release.
        identity = self.model_dump(mode="json", include=set(LaterSpec.model_fields), exclude_defaults=True)
        return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


@pytest.mark.parametrize(
    "spec", [run_spec(), run_spec("prune", method="l1", ratio=0.5, recipe=NOTHING)], ids=["base", "prune"]
)
def test_a_field_added_later_with_its_default_renames_nothing(spec):
    later = LaterSpec.model_validate({**spec.model_dump(), "recipe": spec.recipe.model_dump()})
    assert later.run_id == spec.run_id
    assert later.model_copy(update={"warmup": 1}).run_id != spec.run_id
    assert later.model_copy(update={"nested": {"a": 1}}).run_id != spec.run_id
    assert later.model_copy(update={"recipe": later.recipe.model_copy(update={"clip": 1.0})}).run_id != spec.run_id


def test_ids_do_not_drift_between_releases():
    # A change here renames every run of every ledger: raise numerics or SCHEMA_VERSION only on purpose.
    assert run_spec().run_id == "b639ff9316c37e86"


def test_slug_and_folder_are_readable():
    prune = run_spec("prune", method="tpp", ratio=0.5, seed=2, recipe=NOTHING)
    assert prune.slug == "lenet5-digits-prune-tpp-r0.5-seed2"
    assert prune.folder == f"{prune.slug}-{prune.run_id}"
    assert re.fullmatch(r"[0-9a-f]{16}", prune.run_id)
    assert run_spec(own_base_of="l1").slug == "lenet5-digits-pretrain-l1-seed0"
    assert run_spec(budget="smoke", precision="bf16").slug == "lenet5-digits-pretrain-seed0-smoke-bf16"
    assert run_spec(arithmetic="portable").slug == "lenet5-digits-pretrain-seed0-portable"


def test_a_record_has_the_identity_of_its_spec():
    spec = run_spec("retrain", method="l1", ratio=0.9, parent="00" * 8)
    record = run_record(spec, accuracy=12.5)
    assert record.run_id == spec.run_id
    assert record.folder == spec.folder
    assert record.spec == spec
    # What was measured is no part of it.
    assert changed(record, accuracy=99.0, seconds=7.0, finished="2031").run_id == spec.run_id


@settings(deadline=None, max_examples=50)
@given(
    accuracy=st.floats(0, 100),
    rates=st.lists(st.tuples(st.floats(0, 1), st.integers(1, 10**6)), max_size=4),
    macs=st.one_of(st.none(), st.integers(0, 2**60)),
    kept=st.dictionaries(st.text(max_size=8), st.lists(st.integers(0, 512), max_size=5), max_size=3),
)
def test_a_run_record_survives_json(accuracy, rates, macs, kept):
    record = run_record(accuracy=accuracy, learning_rates=rates, training_macs=macs, kept=kept)
    again = RunRecord.model_validate_json(json.dumps(record.model_dump(mode="json"), allow_nan=False))
    assert again == record
    assert again.run_id == record.run_id


def test_cell_and_failure_survive_json():
    cell = evidence("l1", trials=3).cell
    assert CellRecord.model_validate_json(cell.model_dump_json()) == cell
    broken = failure(run_spec())
    assert FailureRecord.model_validate_json(broken.model_dump_json()) == broken


def test_a_cell_names_its_runs_once_in_order_of_stages():
    arm = evidence("l1", trials=3)
    assert arm.cell.runs == [run.run_id for run in (arm.base, arm.topup, arm.prune, *arm.trials)]
    scratch = evidence("scratch")
    assert scratch.cell.runs == [scratch.result.run_id]
    twice = cell_record("l1", "s3.2", 0, (arm.base, None, arm.base), (arm.result, arm.result), arm.result)
    assert twice.runs == [arm.base.run_id, arm.result.run_id]


def test_records_state_their_schema_and_refuse_strangers():
    assert run_record().schema_version == SCHEMA_VERSION
    assert evidence().cell.schema_version == SCHEMA_VERSION
    with pytest.raises(ValidationError, match="flops"):
        run_record(flops=3)
    with pytest.raises(ValidationError, match="frozen"):
        run_record().accuracy = 100.0


def test_volatile_fields_exist_and_are_no_identity():
    assert set(RunRecord.model_fields) >= VOLATILE
    assert not VOLATILE & set(RunSpec.model_fields)


def test_speedup_is_base_over_pruned():
    assert run_record(base_macs=1000, macs=400).speedup == 2.5


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_json_with_a_number_that_is_none_is_refused(tmp_path, value):
    path = tmp_path / "record.json"
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"accuracy": value})
    assert list(tmp_path.iterdir()) == []


def test_json_of_strangers_is_refused_and_the_old_file_stays(tmp_path):
    path = tmp_path / "record.json"
    write_json(path, {"b": 1, "a": 2})
    before = path.read_bytes()
    assert list(json.loads(before)) == ["a", "b"]
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert path.read_bytes() == before
