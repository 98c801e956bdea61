"""Several ledgers become one: everything that was measured, nothing twice, nothing that contradicts."""

import json
import os
import shutil
import sys

import pytest
from builders import WEIGHTS, changed, evidence, failed_cell, failure, run_record, run_spec, store
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pruneaudit import cli
from pruneaudit.errors import ConfigError, DamagedError, StorageError
from pruneaudit.ledger import store as ledger_module
from pruneaudit.ledger.merging import Merged, merge
from pruneaudit.ledger.records import SCHEMA_VERSION, VOLATILE
from pruneaudit.ledger.store import Ledger

NOTHING = Merged(0, 0, 0)


@pytest.fixture
def two(tmp_path):
    """Two ledgers with one arm each on a shared base model, and what failed in both."""
    left, right = Ledger(tmp_path / "left"), Ledger(tmp_path / "right")
    store(left, evidence("l1"))
    store(right, evidence("tpp"))
    left.fail(failure(run_spec("scratch"), error="out of memory"))
    right.fail(failure(run_spec("scratch"), error="no space left"))
    return left, right


def snapshot(root):
    """Content and time of everything below a folder."""
    return {
        str(path.relative_to(root)): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else None)
        for path in [root, *root.rglob("*")]
    }


def held(root):
    """What a ledger holds, whatever the time, the machine and the numbers of failures."""
    ledger = Ledger(root, writable=False)
    return (
        {run.run_id: run.model_dump(exclude=set(VOLATILE)) for run in ledger.runs()},
        sorted(failure.model_dump_json() for failure in ledger.failures()),
        ledger.cells_by_key(),
        [ledger.weights_file(run) for run in ledger.runs()],
    )


def refused(target, sources, *words):
    """One line that says all the words, and a target that is as it was."""
    before = snapshot(target) if target.exists() else None
    with pytest.raises(ConfigError) as caught:
        merge(target, sources)
    assert (snapshot(target) if target.exists() else None) == before
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert str(word) in message


# The union


def test_the_target_gets_everything_and_sources_stay(two, tmp_path):
    left, right = two
    before = snapshot(left.root), snapshot(right.root)
    assert merge(tmp_path / "new" / "all", [left.root, right.root]) == Merged(6, 2, 2)
    assert (snapshot(left.root), snapshot(right.root)) == before
    union = Ledger(tmp_path / "new" / "all")
    assert union.finished() == left.finished() | right.finished()
    assert {cell.method for cell in union.cells()} == {"l1", "tpp"}
    assert {failure.error for failure in union.failures()} == {"out of memory", "no space left"}
    for run in union.runs():
        assert union.weights(run)["weight"].tolist() == [0, 1, 2, 3]
    assert list((union.root / "partial").iterdir()) == []


def test_a_ledger_takes_in_another(two):
    left, right = two
    old = {path: content for path, content in snapshot(left.root).items() if path.startswith("runs/")}
    assert merge(left.root, [right.root]).cells == 1
    assert Ledger(left.root).finished() >= right.finished()
    new = snapshot(left.root)
    assert {path: new[path] for path in old} == old, "a finished run is never written again"


def test_a_second_merge_adds_nothing(two, tmp_path):
    target = tmp_path / "all"
    merge(target, [ledger.root for ledger in two])
    before = held(target)
    assert merge(target, [ledger.root for ledger in two]) == NOTHING
    assert held(target) == before


def test_runs_that_differ_in_time_and_machine_are_one_and_the_first_stays(two, tmp_path):
    left, right = two
    record = run_record(run_spec(seed=7))
    left.commit(record, WEIGHTS)
    right.commit(changed(record, seconds=9.0, finished="2026-02-02", environment={"device": "other"}), WEIGHTS)
    merge(tmp_path / "all", [left.root, right.root])
    assert Ledger(tmp_path / "all").get(record.run_id) == record


def test_state_locks_and_progress_stay_behind(two, tmp_path):
    left, right = two
    (left.workspace(run_spec(seed=5)) / "state.safetensors").write_bytes(b"state")
    left.report_progress([{"run": "a"}])
    with left.lock(run_spec(seed=5)):
        merge(tmp_path / "all", [left.root, right.root])
    union = Ledger(tmp_path / "all")
    assert list((union.root / "partial").iterdir()) == []
    assert union.progress() == []
    assert not (union.root / "locks" / f"{run_spec(seed=5).run_id}.lock").exists()


def test_failures_are_kept_all_and_identical_ones_once(tmp_path):
    left, right, spec = Ledger(tmp_path / "left"), Ledger(tmp_path / "right"), run_spec()
    for ledger, errors in ((left, ("a", "b")), (right, ("b", "c", "d"))):
        for error in errors:
            ledger.fail(failure(spec, error=error))
    own = snapshot(left.root / "failures")
    assert merge(left.root, [right.root]) == Merged(0, 2, 0)
    assert sorted(record.error for record in left.failures()) == ["a", "b", "c", "d"]
    now = snapshot(left.root / "failures")
    assert {name: now[name] for name in own if name != "."} == {name: own[name] for name in own if name != "."}


# Cells


def test_a_measured_cell_replaces_a_failed_one_and_never_the_other_way(tmp_path):
    left, right = Ledger(tmp_path / "left"), Ledger(tmp_path / "right")
    cell = store(right, evidence("l1"))
    key = cell.cell.id
    left.save_cell(failed_cell(cell.cell), key)
    assert merge(tmp_path / "a", [left.root, right.root]).cells == 1
    assert merge(tmp_path / "b", [right.root, left.root]).cells == 1
    assert Ledger(tmp_path / "a").cell(key) == Ledger(tmp_path / "b").cell(key) == cell
    assert merge(right.root, [left.root]) == NOTHING
    assert merge(left.root, [right.root]).cells == 1
    assert Ledger(left.root).cell(key) == cell


def test_of_two_failed_cells_one_stays_whatever_the_order(tmp_path):
    left, right, cell = Ledger(tmp_path / "left"), Ledger(tmp_path / "right"), evidence().cell
    left.save_cell(failed_cell(cell.cell, "a"), cell.cell.id)
    right.save_cell(failed_cell(cell.cell, "b"), cell.cell.id)
    merge(tmp_path / "one", [left.root, right.root])
    merge(tmp_path / "two", [right.root, left.root])
    assert held(tmp_path / "one") == held(tmp_path / "two")


# Contradictions


@pytest.mark.parametrize("into", ["new", "left"])
def test_a_run_with_another_content_is_refused_before_anything_is_copied(two, tmp_path, into):
    left, right = two
    record = run_record(run_spec(seed=9))
    left.commit(record, WEIGHTS)
    right.commit(changed(record, accuracy=12.5, seconds=3.0, best_accuracy=99.0), WEIGHTS)
    sources = [right.root] if into == "left" else [left.root, right.root]
    refused(tmp_path / into, sources, f"run {record.folder}", left.root, right.root, "differ in 'accuracy'")
    assert not (tmp_path / "new").exists()


def test_a_cell_with_another_content_is_refused_before_anything_is_copied(two, tmp_path):
    left, right = two
    cell = store(right, evidence("l1"), accuracy=12.5)
    refused(left.root, [right.root], f"cell {cell.cell.id}", left.root, right.root, "differ in 'accuracy'")


def test_weights_that_changed_are_told_before_anything_is_copied(two, tmp_path):
    left, right = two
    path = right.root / "runs" / next(run.folder for run in right.runs() if run.method == "tpp") / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    before = snapshot(left.root)
    with pytest.raises(DamagedError, match=f"^{path}: the weights changed"):
        merge(left.root, [right.root])
    assert snapshot(left.root) == before


def test_what_the_target_has_already_is_not_asked_of_a_source(two, tmp_path):
    left, right = two
    merge(left.root, [right.root])
    for path in right.root.glob("runs/*/weights.safetensors"):
        path.unlink()
    assert merge(left.root, [right.root]) == NOTHING


# What is no source or no target


def test_a_source_that_is_no_ledger_is_refused_and_not_made_one(two, tmp_path):
    left, _ = two
    (tmp_path / "folder").mkdir()
    for name in ("folder", "nowhere"):
        refused(tmp_path / "all", [left.root, tmp_path / name], tmp_path / name, "is no ledger")
    assert not (tmp_path / "nowhere").exists() and list((tmp_path / "folder").iterdir()) == []
    assert not (tmp_path / "all").exists()


def test_a_source_of_another_version_is_refused(two, tmp_path):
    left, right = two
    (right.root / "ledger.json").write_text(json.dumps({"schema_version": SCHEMA_VERSION + 1}))
    refused(tmp_path / "all", [left.root, right.root], right.root, f"schema version {SCHEMA_VERSION + 1}")


def test_a_ledger_is_not_merged_into_itself(two):
    left, right = two
    refused(left.root, [right.root, left.root.parent / "right" / ".." / "left"], "into itself")


def test_a_run_that_is_being_trained_in_the_target_is_not_disturbed(two, tmp_path):
    left, right = two
    spec = next(run.spec for run in right.runs() if run.method == "tpp" and run.stage == "prune")
    with left.lock(spec), pytest.raises(ConfigError, match=f"run {spec.slug} is under way; merge again"):
        merge(left.root, [right.root])
    assert merge(left.root, [right.root]).runs > 0
    assert Ledger(left.root).finished() >= right.finished()


def test_a_full_disk_is_one_line(two, tmp_path, monkeypatch):
    left, right = two

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(ledger_module, "write_json", full)
        with pytest.raises(StorageError, match="left: No space left on device; make room"):
            merge(left.root, [right.root])
    merge(left.root, [right.root])
    assert Ledger(left.root).finished() >= right.finished()


# Interruptions, orders


# The marker, two renames for each of six runs, two failures, two cells.
@pytest.mark.parametrize("steps", range(1 + 2 * 6 + 2 + 2))
def test_a_merge_that_was_killed_is_completed_by_the_next(two, tmp_path, monkeypatch, steps):
    roots = [ledger.root for ledger in two]
    merge(tmp_path / "whole", roots)
    replace, left = os.replace, [steps]

    def die(source, destination):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        replace(source, destination)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", die)
        with pytest.raises(KeyboardInterrupt):
            merge(tmp_path / "killed", roots)
    if steps:
        killed = Ledger(tmp_path / "killed", writable=False)
        finished = killed.finished()
        assert all(run.parent is None or run.parent in finished for run in killed.runs()), "no run without its parent"
        assert all(set(cell.runs) <= finished for cell in killed.cells()), "no cell without its runs"
    merge(tmp_path / "killed", roots)
    assert held(tmp_path / "killed") == held(tmp_path / "whole")


#: What a ledger may hold, as numbers: runs of seeds, failures and cells of them.
CONTENTS = st.fixed_dictionaries(
    {
        "runs": st.sets(st.integers(0, 4)),
        "failures": st.lists(st.tuples(st.integers(0, 1), st.sampled_from("ab")), max_size=4),
        "cells": st.dictionaries(st.integers(0, 2), st.sampled_from(["ok", "a", "b"])),
    }
)


def fill(root, contents):
    """A ledger with these contents."""
    ledger = Ledger(root)
    for seed in contents["runs"]:
        ledger.commit(run_record(run_spec(seed=seed), seconds=float(len(str(root)))), WEIGHTS)
    for seed, error in contents["failures"]:
        ledger.fail(failure(run_spec(seed=seed), error=error))
    for seed, status in contents["cells"].items():
        cell = evidence(seed=seed).cell
        ledger.save_cell(cell if status == "ok" else failed_cell(cell.cell, status), cell.cell.id)
    return root


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(contents=st.lists(CONTENTS, min_size=2, max_size=3))
def test_a_merge_is_a_union_whatever_the_order(tmp_path, contents):
    shutil.rmtree(tmp_path / "case", ignore_errors=True)
    roots = [fill(tmp_path / "case" / str(number), content) for number, content in enumerate(contents)]
    merge(tmp_path / "case" / "forth", roots)
    merge(tmp_path / "case" / "back", roots[::-1])
    merge(roots[0], roots[1:])
    union = held(tmp_path / "case" / "forth")
    assert held(tmp_path / "case" / "back") == union
    runs, failures, cells, _ = union
    assert {run["seed"] for run in runs.values()} == set().union(*(content["runs"] for content in contents))
    assert len(failures) == len({failure for content in contents for failure in content["failures"]})
    assert {cell.seed for cell in cells.values() if cell.status == "ok"} == {
        seed for content in contents for seed, status in content["cells"].items() if status == "ok"
    }
    assert held(roots[0])[0] == runs and held(roots[0])[2] == cells
    assert merge(tmp_path / "case" / "forth", [*roots, tmp_path / "case" / "back"]) == NOTHING


# The command


@pytest.fixture
def run(monkeypatch, capsys):
    """Run ``pruneaudit merge`` in this process: exit code, stdout and stderr."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["pruneaudit", "merge", *map(str, arguments)])
        try:
            cli.main()
            code = 0
        except SystemExit as error:
            code = error.code or 0
        return code, *capsys.readouterr()

    return call


def test_the_first_ledger_takes_in_all(run, two):
    left, right = two
    assert run(left.root, right.root) == (0, f"added to {left.root}: 2 run(s), 1 failure(s), 1 cell(s)\n", "")
    assert Ledger(left.root).finished() >= right.finished()


def test_with_a_target_the_first_ledger_stays(run, two, tmp_path):
    left, right = two
    before = snapshot(left.root)
    code, out, err = run(left.root, right.root, "--to", tmp_path / "all")
    assert (code, out, err) == (0, f"added to {tmp_path / 'all'}: 6 run(s), 2 failure(s), 2 cell(s)\n", "")
    assert snapshot(left.root) == before
    assert Ledger(tmp_path / "all").finished() == left.finished() | right.finished()


def test_wrong_arguments_are_one_line(run, two, tmp_path):
    left, right = two
    for arguments, said in (
        ((left.root,), "nothing to merge into"),
        ((tmp_path / "mistyped", right.root), "mistyped is no ledger"),
        ((left.root, tmp_path / "mistyped"), "mistyped is no ledger"),
        ((left.root, right.root, "--to", left.root), "into itself"),
    ):
        code, out, err = run(*arguments)
        assert (code, out) == (2, "")
        assert len(err.splitlines()) == 1 and err.startswith("pruneaudit: ") and said in err
    assert not (tmp_path / "mistyped").exists()
