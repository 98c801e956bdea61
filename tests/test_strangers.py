"""Ledgers of strangers are hostile: links, pipes, huge and deep files, names that lead elsewhere. Refused, reported."""

import json
import os
import shutil

import pytest
from builders import evidence, failure, run_spec, store

from pruneaudit.errors import ConfigError, DamagedError
from pruneaudit.ledger import store as store_module
from pruneaudit.ledger.merging import merge
from pruneaudit.ledger.progress import Watcher
from pruneaudit.ledger.store import Ledger, read_file, sealed
from pruneaudit.schema import MOST_OF_TOML, read_toml


@pytest.fixture
def ledger(tmp_path):
    """A stranger's."""
    ledger = Ledger(tmp_path / "theirs")
    store(ledger, evidence())
    ledger.fail(failure(run_spec(seed=3)))
    return ledger


def link_file(path, elsewhere):
    shutil.move(path, elsewhere)
    path.symlink_to(elsewhere)


def link_folder(path, elsewhere):
    shutil.move(path.parent, elsewhere)
    path.parent.symlink_to(elsewhere)


def pipe(path, _):
    path.unlink()
    os.mkfifo(path)


def huge(path, _):
    """A hole as large as a disk: a file of some bytes."""
    os.truncate(path, 1 << 41)


def folder(path, _):
    path.unlink()
    path.mkdir()


def deep(path, _):
    """What makes a reader that calls itself for every bracket fall over."""
    path.write_bytes(b"[" * 200_000)


@pytest.mark.parametrize("what", ["record.json", "weights.safetensors"])
@pytest.mark.parametrize("make", [link_file, link_folder, pipe, huge, folder, deep])
def test_what_is_no_file_of_a_ledger_is_not_read(ledger, tmp_path, make, what):
    (path,) = (ledger.root / "runs").glob(f"*-retrain-*/{what}")
    make(path, tmp_path / "elsewhere")
    again = Ledger(ledger.root, writable=False)
    with pytest.raises(DamagedError) as caught:
        again.weights_file(again.get(path.parent.name.rpartition("-")[2]))
    assert str(path.parent) in str(caught.value) and "\n" not in str(caught.value)
    with pytest.raises(DamagedError):
        merge(tmp_path / "ours", [ledger.root])
    assert not (tmp_path / "ours").exists()
    if what == "record.json":
        assert len(list(again.runs())) == 3 and list(again.damaged) == [path]


@pytest.mark.parametrize("make", [link_file, pipe, huge, deep])
@pytest.mark.parametrize("place", ["cells", "failures", "progress", "ledger.json"])
def test_nothing_else_of_it_is_followed(ledger, tmp_path, place, make):
    if place == "progress":
        ledger.report_progress([{"run": "a", "id": "0" * 16}])
    path = ledger.root / place
    path = path if path.is_file() else next(path.glob("*.json"))
    make(path, tmp_path / "elsewhere")
    if place == "ledger.json":
        with pytest.raises(ConfigError, match="ledger"):
            Ledger(ledger.root, writable=False)
        return
    again = Ledger(ledger.root, writable=False)
    assert again.cells() == [] or place != "cells"
    assert again.failures() == [] or place != "failures"
    assert again.progress() == [] or place != "progress"
    Watcher(again).look()
    assert list(again.damaged) == ([path] if place != "progress" else [])


def test_a_name_that_leads_elsewhere_is_no_name(ledger, tmp_path):
    """The slug of a failed attempt becomes the name of a file."""
    (path,) = (ledger.root / "failures").iterdir()
    content = json.loads(path.read_text())
    content["spec"]["workload"] = "../../elsewhere/lenet5-digits"
    del content["digest"], content["link"]
    path.write_text(json.dumps(sealed(content)))
    with pytest.raises(DamagedError, match="is not named by the run that failed; delete it"):
        merge(tmp_path / "ours", [ledger.root])
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["theirs"]


def test_no_run_leads_out_of_a_ledger(ledger, tmp_path):
    (path,) = (ledger.root / "runs").glob("*-retrain-*/record.json")
    content = json.loads(path.read_text()) | {"workload": "../../elsewhere"}
    del content["digest"], content["link"]
    path.write_text(json.dumps(sealed(content)))
    with pytest.raises(DamagedError, match="which was moved here"):
        merge(tmp_path / "ours", [ledger.root])
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["theirs"]


def test_only_as_much_is_read_as_was_there(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"12345")
    assert read_file(path) == b"12345" and read_file(path, 5) == b"12345"
    with pytest.raises(OSError, match="is larger than 0 MiB"):
        read_file(path, 4)
    assert store_module.MOST_OF_RECORD < store_module.MOST_OF_WEIGHTS


def test_settings_have_a_size(tmp_path):
    path = tmp_path / "workload.toml"
    path.write_bytes(b"# " + b"x" * MOST_OF_TOML)
    with pytest.raises(ConfigError, match="is larger than 4 MiB"):
        read_toml(path)
