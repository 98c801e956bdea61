"""Ledgers of older layouts are read, judged, merged and continued; records change with a version step only."""

import json
import os
import shutil
from pathlib import Path

import pytest
from builders import CATALOG, FakeStages, run_record

from pruneaudit.campaign.executors.local import LocalExecutor
from pruneaudit.campaign.planner import Campaign
from pruneaudit.catalog.cells import Cell
from pruneaudit.catalog.settings import Settings
from pruneaudit.errors import ConfigError
from pruneaudit.ledger.merging import merge
from pruneaudit.ledger.migration import OLDEST, NewerError, migrated
from pruneaudit.ledger.records import SCHEMA_VERSION, CellRecord, FailureRecord, RunRecord
from pruneaudit.ledger.store import Ledger
from pruneaudit.report.frames import load
from pruneaudit.report.results import gather_ledger
from pruneaudit.report.writer import write
from pruneaudit.workloads.metrics import Metric

FIXTURES = Path(__file__).parent / "fixtures"
#: Measured by pruneaudit 0.1.0: l1 and random under S3.2 at ratio 0.5, two seeds, smoke budget. One run has its
#: weights, the others four numbers; beside it what that version reported of it.
OLD = FIXTURES / "ledger-v2"
REPORTED = FIXTURES / "ledger-v2.results.json"
LAYOUT = Path(__file__).parent / "golden" / "record-layout.json"


@pytest.fixture
def old(tmp_path):
    """A copy of the ledger of an older layout."""
    return Path(shutil.copytree(OLD, tmp_path / "old"))


def files(root):
    """Content of all records of a ledger."""
    return {path.relative_to(root): path.read_bytes() for path in sorted(root.rglob("*.json")) if path.parent != root}


def versions(root):
    """Schema versions that the files of a ledger state; a failure stated none in version 2."""
    return {json.loads(content).get("schema_version") for content in files(root).values()}


def cell(method, seed=0, ratio=0.5, protocol="s3.2"):
    return Cell("lenet5-digits", protocol, method, ratio, seed)


def campaign(root, tmp_path):
    """A campaign that pretends to train."""
    ledger = Ledger(root)
    stages = FakeStages(ledger, tmp_path / "log")
    return Campaign(CATALOG, ledger, Settings(budget="smoke"), LocalExecutor(ledger, stages, "session")), stages


# Read


def test_the_fixture_is_of_the_older_layout():
    assert json.loads((OLD / "ledger.json").read_text()) == {"schema_version": 2}
    assert versions(OLD) == {2, None}


def test_it_is_reported_as_it_was_then(old, tmp_path):
    write(gather_ledger(CATALOG, Ledger(old, writable=False)), tmp_path / "report")
    ours, then = (json.loads(path.read_text()) for path in (tmp_path / "report" / "results.json", REPORTED))
    for content in (ours, then):
        # Rules may be added to, and methods and the version be other ones; what was measured and found stays.
        del content["pruneaudit"], content["published"], content["rules"]
    known = {row["rule"] for row in then["findings"]}
    ours["findings"] = [row for row in ours["findings"] if row["rule"] in known]
    assert ours["cells"] == then["cells"]
    assert ours["runs"] == then["runs"]
    assert ours["findings"] == then["findings"]
    # A verdict may say more than it did, and of an open one in other words what it lacks.
    for row, before in zip(ours["verdicts"], then["verdicts"], strict=True):
        assert {key: row[key] for key in before if key != "summary"} == {
            key: value for key, value in before.items() if key != "summary"
        }
    assert (ours["standings"], ours["architectures"]) == (then["standings"], then["architectures"])


def test_looking_at_it_changes_no_file(old):
    before = {path: path.read_bytes() for path in old.rglob("*") if path.is_file()}
    ledger = Ledger(old, writable=False)
    assert len(list(ledger.runs())) == 10 and len(ledger.cells()) == 4 and len(ledger.failures()) == 1
    load(old)
    assert {path: path.read_bytes() for path in old.rglob("*") if path.is_file()} == before


def test_records_say_what_was_true_of_them(old):
    ledger = Ledger(old, writable=False)
    for run in ledger.runs():
        assert (run.schema_version, run.metric, run.scores, run.beside) == (SCHEMA_VERSION, "accuracy", None, {})
        assert run.value == run.accuracy and run.curve == run.test_accuracy
        # Its folder is named after its id, as it was then.
        assert (old / "runs" / run.folder / "record.json").exists()
    for record in ledger.cells():
        assert record.metric.name == "accuracy" and record.value == record.accuracy
    (failure,) = ledger.failures()
    assert failure.schema_version == SCHEMA_VERSION and failure.spec.metric == "accuracy"


# Continued


def test_it_is_continued_and_nothing_is_trained_twice(old, tmp_path):
    before = files(old)
    work, stages = campaign(old, tmp_path)
    known = work.obtain(cell("l1"))
    assert known.status == "ok" and stages.batches == []
    assert known.accuracy == json.loads(before[Path("cells/lenet5-digits-l1-s3.2-r0.5-seed0-smoke.json")])["accuracy"]
    # Another seed, and a stricter protocol that retrains what is pruned already.
    fresh, tuned = work.obtain(cell("l1", seed=2)), work.obtain(cell("l1", protocol="s3.1"))
    assert fresh.status == tuned.status == "ok"
    assert tuned.prune == known.prune and tuned.base == known.base
    trained = [json.loads(line)["run"] for line in (tmp_path / "log").read_text().splitlines()]
    assert not set(trained) & {json.loads(content).get("run_id") for content in before.values()}
    # Old files stay as they are, the new ones are of today's layout.
    after = files(old)
    assert {path: after[path] for path in before} == before
    new = {json.loads(content)["schema_version"] for path, content in after.items() if path not in before}
    assert new == {SCHEMA_VERSION}
    assert len(gather_ledger(CATALOG, Ledger(old)).cells) == 6


def test_an_older_pruneaudit_refuses_a_ledger_that_was_continued(old):
    Ledger(old)
    assert json.loads((old / "ledger.json").read_text()) == {"schema_version": SCHEMA_VERSION}


# Merged


def test_it_merges_with_a_ledger_of_todays_layout(old, tmp_path):
    work, _ = campaign(tmp_path / "new", tmp_path)
    work.obtain(cell("l1", seed=2))
    for sources in ([old, tmp_path / "new"], [tmp_path / "new", old]):
        target = tmp_path / f"all-{sources[0].name}"
        added = merge(target, sources)
        assert (added.runs, added.cells, added.failures) == (13, 5, 1)
        # What is written is of today's layout, whatever it came from.
        assert versions(target) == {SCHEMA_VERSION}
        assert {row["status"] for row in gather_ledger(CATALOG, Ledger(target)).cells} == {"ok"}
        assert merge(target, sources).runs == 0
    assert versions(old) == {2, None}


def test_the_same_run_measured_today_agrees_with_the_old_one(old, tmp_path):
    (there,) = (run for run in Ledger(old).runs() if run.stage == "prune" and run.method == "l1" and run.seed == 0)
    again = Ledger(tmp_path / "new")
    parent = Ledger(old).get(there.parent)
    for run in (parent, there):
        # Only what older layouts did not measure.
        again.commit(run.model_copy(update={"beside": {"top5": 99.0}}), Ledger(old).weights_file(run))
    merge(tmp_path / "all", [old, tmp_path / "new"])
    other = Ledger(tmp_path / "other")
    other.commit(there.model_copy(update={"accuracy": 1.0}), Ledger(old).weights_file(there))
    with pytest.raises(ConfigError, match="differ in 'accuracy'"):
        merge(tmp_path / "none", [old, tmp_path / "other"])


def test_a_margin_that_changed_since_is_no_contradiction(old, tmp_path):
    other = Ledger(tmp_path / "new")
    for run in Ledger(old).runs():
        other.commit(run, Ledger(old).weights_file(run))
    for key, record in Ledger(old).cells_by_key().items():
        other.save_cell(record.model_copy(update={"metric": Metric(name="accuracy", margin=0.2)}), key)
    merge(tmp_path / "all", [old, tmp_path / "new"])
    key, record = next(iter(Ledger(old).cells_by_key().items()))
    other.save_cell(record.model_copy(update={"metric": Metric(name="perplexity")}), key)
    with pytest.raises(ConfigError, match="differ in 'metric'"):
        merge(tmp_path / "none", [old, tmp_path / "new"])


# Newer


def test_a_newer_record_is_refused_in_one_line(old):
    path = next((old / "runs").glob("*-pretrain-seed0-*/record.json"))
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema_version": SCHEMA_VERSION + 1, "more": 1}))
    with pytest.raises(ConfigError) as caught:
        list(Ledger(old).runs())
    message = str(caught.value)
    assert "\n" not in message and str(path) in message
    assert f"schema version {SCHEMA_VERSION + 1}, this pruneaudit reads {OLDEST} to {SCHEMA_VERSION}" in message
    assert "update pruneaudit" in message


def test_a_newer_cell_is_refused_too_not_measured_anew(old):
    path = next((old / "cells").iterdir())
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema_version": SCHEMA_VERSION + 1}))
    with pytest.raises(ConfigError, match="update pruneaudit"):
        Ledger(old).cell(path.stem)


@pytest.mark.parametrize("version", [OLDEST - 1, 0, "2", None, 2.5])
def test_a_layout_that_never_was_is_refused(version):
    with pytest.raises(NewerError):
        migrated({"schema_version": version})


def test_migration_leaves_what_it_is_given():
    content = {"schema_version": OLDEST, "accuracy": 1.0}
    assert migrated(content)["schema_version"] == SCHEMA_VERSION
    assert content == {"schema_version": OLDEST, "accuracy": 1.0}


def test_a_record_of_today_is_read_back_the_same():
    record = run_record()
    assert RunRecord.model_validate(migrated(json.loads(record.model_dump_json()))) == record


# Changed


def layout(*kinds):
    """Fields of records and of all that they hold: name and type by model."""
    found = {}
    for kind in kinds:
        schema = kind.model_json_schema()
        for name, model in ({kind.__name__: schema} | schema.get("$defs", {})).items():
            fields = model.get("properties", {})
            found[name] = {field: _type(facts) for field, facts in sorted(fields.items())}
    return dict(sorted(found.items()))


def _type(facts):
    """A field's type and default, without what is said of it."""
    kept = {key: value for key, value in facts.items() if key not in ("title", "description")}
    return json.dumps(kept, sort_keys=True)


def test_a_record_changes_with_a_version_step_only():
    """After raising SCHEMA_VERSION and adding a step to ``ledger/migration.py``: ``UPDATE_GOLDEN=1 pytest`` this test.

    Until a version is released, what is added to it needs no further step, only the golden file.
    """
    now = {"schema_version": SCHEMA_VERSION, "fields": layout(RunRecord, CellRecord, FailureRecord)}
    del now["fields"]["RunRecord"]["schema_version"], now["fields"]["CellRecord"]["schema_version"]
    del now["fields"]["FailureRecord"]["schema_version"]
    if os.environ.get("UPDATE_GOLDEN"):
        LAYOUT.write_text(json.dumps(now, indent=1) + "\n")
    golden = json.loads(LAYOUT.read_text())
    changed = {
        f"{model}.{field}"
        for model in now["fields"].keys() | golden["fields"].keys()
        for field in now["fields"].get(model, {}).keys() | golden["fields"].get(model, {}).keys()
        if now["fields"].get(model, {}).get(field) != golden["fields"].get(model, {}).get(field)
    }
    assert not changed, (
        f"records changed ({', '.join(sorted(changed))}): raise records.SCHEMA_VERSION, add a step to "
        "ledger/migration.py, keep a ledger of the last layout in tests/fixtures, and write the golden file anew"
    )
    assert golden["schema_version"] == SCHEMA_VERSION
