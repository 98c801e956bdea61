"""Records are signed: a ledger that somebody edited says so, one of other machines and of older versions is read."""

import json
import multiprocessing
import os
import shutil
from pathlib import Path

import pytest
from builders import CATALOG, WEIGHTS, evidence, failed_cell, failure, run_record, run_spec, store
from hypothesis import given, settings
from hypothesis import strategies as st

from pruneaudit.errors import DamagedError
from pruneaudit.ledger.chain import Link, Writer, account, keys_folder, own_key
from pruneaudit.ledger.merging import merge
from pruneaudit.ledger.store import Ledger, sealed
from pruneaudit.report.results import gather_ledger
from pruneaudit.report.terminal import summary
from pruneaudit.report.writer import markdown

OLD = Path(__file__).parent / "fixtures" / "ledger-v2"


@pytest.fixture
def ledger(tmp_path):
    """Two arms, a failed seed, and the attempt that failed, as one process writes them."""
    ledger = Ledger(tmp_path / "ledger")
    for name in ("l1", "tpp"):
        store(ledger, evidence(name))
    ledger.fail(failure(run_spec(seed=1)))
    ledger.save_cell(failed_cell(evidence(seed=1).cell.cell), "failed-seed")
    return ledger


@pytest.fixture
def elsewhere(monkeypatch, tmp_path):
    """What another machine does, with a key of its own."""

    def does(action, name="another machine"):
        with monkeypatch.context() as there:
            there.setenv("XDG_STATE_HOME", str(tmp_path / name))
            return action(), keys_folder()

    return does


def lines(root):
    return Ledger(root, writable=False).account().lines()


def record_of(root, pattern):
    return next((root / "runs").glob(f"{pattern}/record.json"))


def rewrite(path, **changes):
    """Edit a record as somebody does who knows how digests are made."""
    content = json.loads(path.read_text()) | changes
    link = content.pop("link")
    del content["digest"]
    path.write_text(json.dumps(sealed(content) | {"link": link}))


def test_what_the_harness_wrote_needs_no_word(ledger):
    found = Ledger(ledger.root, writable=False).account()
    assert found.lines() == [] and found.signed == len(list(ledger.runs())) + 1 + 3
    assert gather_ledger(CATALOG, ledger).ledger == []
    assert "ledger" not in gather_ledger(CATALOG, ledger).as_json()


@pytest.mark.parametrize("pattern", ["runs/*prune*/record.json", "failures/*.json", "cells/*l1*.json"])
def test_an_edited_record_is_told_though_its_digest_is_right(ledger, pattern):
    (path, *_) = ledger.root.glob(pattern)
    rewrite(path, **({"error": "none"} if "failures" in pattern else {"accuracy": 99.0}))
    again = Ledger(ledger.root, writable=False)
    list(again.runs()), again.failures(), again.cells()
    assert set(again.damaged) == {path}
    assert "edited: this pruneaudit did not write it so" in again.damaged[path] and "\n" not in again.damaged[path]


def test_a_number_that_was_edited_is_not_judged(ledger):
    path = record_of(ledger.root, "*retrain-l1*")
    rewrite(path, accuracy=99.0)
    results = gather_ledger(CATALOG, Ledger(ledger.root, writable=False))
    (cell,) = (row for row in results.cells if row["method"] == "l1" and row["seed"] == 0)
    assert cell["status"] == "failed" and str(path) in cell["error"] and "edited" in cell["error"]


def test_a_record_that_lost_its_link_is_told(ledger):
    path = record_of(ledger.root, "*retrain-l1*")
    content = json.loads(path.read_text()) | {"accuracy": 99.0}
    del content["link"], content["digest"]
    path.write_text(json.dumps(content))
    told = lines(ledger.root)
    assert any(line.startswith("1 record(s) are not signed") and path.parent.name in line for line in told)
    assert any(line.startswith("1 record(s) that were written to this ledger are not there any more") for line in told)
    results = gather_ledger(CATALOG, Ledger(ledger.root, writable=False))
    assert results.ledger == results.as_json()["ledger"] == told
    assert any(told[0] in line for line in summary(results))
    assert "## Who wrote the records" in markdown(results)


def test_a_removed_failure_leaves_a_gap(ledger):
    """With its record, but not with the cell that was written behind it."""
    next((ledger.root / "failures").iterdir()).unlink()
    (line,) = lines(ledger.root)
    assert line.startswith("1 record(s) that were written to this ledger are not there any more")


@settings(max_examples=60, deadline=None)
@given(views=st.lists(st.booleans(), min_size=1, max_size=12), data=st.data())
def test_whatever_is_removed_before_the_end_leaves_a_gap(views, data):
    writer, links = Writer(), {}
    key = own_key()
    for number, view in enumerate(views):
        link = writer.link(f"digest {number}", view)
        assert link.fits(f"digest {number}", key)
        assert not link.fits(f"digest {number}0", key) and not link.fits(f"digest {number}", key[::-1])
        links[str(number)] = link
        if not view:
            writer.written(link)
    assert account(links, [], [link.key]).lines() == []
    added = [name for name, link in links.items() if not link.view]
    if added:
        gone = data.draw(st.sampled_from(added))
        left = {name: link for name, link in links.items() if name != gone}
        told = account(left, [], [link.key]).missing
        behind = any(int(name) > int(gone) for name in left)
        assert told == ({link.writer: [links[gone].number]} if behind else {})
        assert account(left, [links[gone]], [link.key]).missing == {}


@pytest.mark.parametrize("field", ["writer", "number", "before", "view", "key"])
def test_no_part_of_a_link_can_be_changed(field):
    link, key = Writer().link("digest"), own_key()
    other = {"number": 1, "view": True}.get(field, "0" * 16)
    assert not link.model_copy(update={field: other}).fits("digest", key)


def test_a_run_in_another_place_is_told(ledger):
    one, other = record_of(ledger.root, "*retrain-l1*"), record_of(ledger.root, "*retrain-tpp*")
    shutil.copy(other, one)
    with pytest.raises(DamagedError, match="which was moved here; delete"):
        Ledger(ledger.root).get(one.parent.name.rpartition("-")[2])


def add(root, seed):
    Ledger(root).commit(run_record(run_spec(seed=seed)), WEIGHTS)


def test_several_writers_and_forks_are_several_chains(tmp_path):
    root = tmp_path / "ledger"
    ledger = Ledger(root)
    ledger.commit(run_record(), WEIGHTS)
    fork = multiprocessing.get_context("fork")
    processes = [
        fork.Process(target=lambda seed=seed: ledger.commit(run_record(run_spec(seed=seed)), WEIGHTS))
        for seed in (1, 2, 3)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    ledger.commit(run_record(run_spec(seed=4)), WEIGHTS)
    assert len(list(ledger.runs())) == 5 and lines(root) == []
    writers = {json.loads(path.read_text())["link"]["writer"] for path in root.glob("runs/*/record.json")}
    assert len(writers) == 4


def test_older_ledgers_are_judged_and_told(tmp_path):
    root = Path(shutil.copytree(OLD, tmp_path / "old"))
    (line,) = lines(root)
    assert "record(s) are not signed: an older pruneaudit wrote them, or anybody" in line
    results = gather_ledger(CATALOG, Ledger(root, writable=False))
    assert results.ledger == [line] and results.verdicts


def test_records_of_other_machines_are_read_and_told_until_their_key_is_here(tmp_path, elsewhere):
    root = tmp_path / "ledger"
    _, folder = elsewhere(lambda: add(root, 0))
    add(root, 1)
    (line,) = lines(root)
    assert line.startswith("1 record(s) are signed with key ") and "copy own.key" in line
    place = Path(line.rpartition(" to ")[2])
    shutil.copy(folder / "own.key", place)
    try:
        assert lines(root) == []
        rewrite(record_of(root, "*seed0*"), accuracy=99.0)
        ledger = Ledger(root)
        assert len(list(ledger.runs())) == 1 and "edited" in str(list(ledger.damaged.values()))
    finally:
        place.unlink()


def test_where_no_key_can_be_kept_records_are_unsigned(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    add(tmp_path / "ledger", 0)
    assert len(list(Ledger(tmp_path / "ledger").runs())) == 1
    assert [line.partition(":")[0] for line in lines(tmp_path / "ledger")] == ["1 record(s) are not signed"]


def test_the_key_is_nobody_elses_and_stays(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    first = own_key()
    assert own_key() == first and len(first) == 32
    assert [path.name for path in keys_folder().iterdir()] == ["own.key"]
    assert os.stat(keys_folder() / "own.key").st_mode & 0o777 == 0o600
    assert os.stat(keys_folder()).st_mode & 0o777 == 0o700


# Merging


def test_a_merge_vouches_for_nobody(tmp_path, elsewhere):
    """Signatures go with their records, and what was left out, since it was there, is not taken for removed."""
    left, right = tmp_path / "left", tmp_path / "right"
    store(Ledger(left), evidence("l1"))
    elsewhere(lambda: store(Ledger(right), evidence("tpp")))
    merge(tmp_path / "all", [left, right])
    # The base, and the top-up, of both are one.
    (line,) = lines(tmp_path / "all")
    assert line.startswith("3 record(s) are signed with key ")
    merge(tmp_path / "further", [tmp_path / "all", left])
    assert lines(tmp_path / "further") == [line]


def test_what_a_merge_left_out_counts_only_with_a_signature(tmp_path):
    left, right = Ledger(tmp_path / "left"), Ledger(tmp_path / "right")
    store(left, evidence("l1"))
    store(right, evidence("tpp"))
    merge(tmp_path / "all", [left.root, right.root])
    (note,) = (tmp_path / "all" / "merged").iterdir()
    assert lines(tmp_path / "all") == []
    content = json.loads(note.read_text())
    del content["link"], content["digest"]
    note.write_text(json.dumps(sealed(content)))
    (line,) = lines(tmp_path / "all")
    assert line.startswith("2 record(s) that were written to this ledger are not there any more")


def test_a_record_that_says_a_thing_twice_is_not_merged(ledger, tmp_path):
    path = record_of(ledger.root, "*retrain-l1*")
    text = path.read_text()
    path.write_text('{"accuracy": 99.0,' + text[1:])
    with pytest.raises(DamagedError, match="says 'accuracy' twice"):
        merge(tmp_path / "all", [ledger.root])
    assert not (tmp_path / "all").exists()


def test_a_link_is_read_as_strictly_as_it_is_written():
    with pytest.raises(ValueError, match="writer"):
        Link(writer="../..", number=0, before="", view=False, key="", mac="")
