"""What a campaign stands on is looked at, and what is wrong is told with what to do."""

import json
import os
import shutil
from collections import namedtuple

import pytest
from builders import CATALOG, WEIGHTS, changed, evidence, run_record, run_spec, store
from faulty import disk
from typer.testing import CliRunner

from pruneaudit import arithmetic, doctor, sandbox
from pruneaudit.cli import app
from pruneaudit.doctor import Symptom, examine
from pruneaudit.ledger.chain import keys_folder
from pruneaudit.ledger.store import Ledger
from pruneaudit.workloads.data import load


@pytest.fixture
def ledger(tmp_path):
    """An arm on the data that are really here."""
    ledger = Ledger(tmp_path / "ledger")
    store(ledger, evidence())
    return ledger


def looked_at(steps, *arguments):
    return [symptom for step in steps for symptom in step(*arguments)]


def wrong(symptoms):
    return [symptom for symptom in symptoms if symptom.state == "wrong"]


def test_all_is_well(tmp_path):
    workload = CATALOG.workload("lenet5-digits")
    ledger = Ledger(tmp_path / "ledger")
    spec = run_spec(data=workload.data)
    ledger.commit(run_record(spec, split_digest=load(workload.data).split_digest), WEIGHTS)
    found = list(examine(ledger.root, CATALOG, None))
    assert wrong(found) == []
    told = {symptom.about: symptom.found for symptom in found}
    assert "torch 2." in told["packages"] and told["ledger"].startswith("1 runs, 0 failed attempts, 0 cells in ")
    assert told["data of lenet5-digits"] == "digits has the digest of the ledger's runs"
    assert {"python", "devices", "isolation", "key", "disk", "locks"} <= told.keys()


def test_other_data_are_told(ledger):
    (found,) = wrong(doctor._data(ledger.root, CATALOG, None))
    assert found.about == "data of lenet5-digits" and "is not what lenet5-digits-" in found.found and found.advice


def test_what_is_wrong_with_a_ledger_is_told(ledger):
    folders = {path.name.split("-")[2]: path for path in (ledger.root / "runs").iterdir()}
    (folders["retrain"] / "weights.safetensors").write_bytes(b"other")
    shutil.rmtree(folders["pretrain"])
    (folders["prune"] / "record.json").write_text("{")
    found = wrong(doctor._ledger(ledger.root))
    abouts = [symptom.about for symptom in found]
    assert abouts == ["records", "weights", "parents", "parents", "cells", "signatures"]
    assert all(symptom.advice or "delete" in symptom.found for symptom in found)
    assert not any("\n" in symptom.found for symptom in found)


def test_a_broken_ledger_and_none_are_told(tmp_path):
    (told,) = doctor._ledger(tmp_path / "none")
    assert told.state == "ok" and told.found.endswith("is none yet")
    (tmp_path / "ledger.json").write_text("[]")
    (told,) = doctor._ledger(tmp_path)
    assert told.state == "wrong" and "ledger.json is damaged" in told.found
    (told,) = doctor._ledger(tmp_path / "ledger.json")
    assert told.state == "wrong" and told.found.endswith("is no folder") and "--audit-ledger" in told.advice


def test_a_disk_that_is_full_or_read_only_is_told(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage(100, 99, 1))
    (full,) = doctor._disk(tmp_path / "new" / "ledger")
    assert full.state == "wrong" and f"at {tmp_path}" in full.found and "make room" in full.advice
    monkeypatch.setattr(os, "access", lambda place, mode: False)
    (closed,) = doctor._disk(tmp_path)
    assert closed.state == "wrong" and "cannot be written" in closed.found


def test_locks_that_are_none_are_told(ledger, monkeypatch):
    class NoLock:
        """What some shared disks make of a lock."""

        def __init__(self, *_, **__):
            pass

        def __enter__(self):
            pass

        __exit__ = acquire = release = lambda *_: None

    assert doctor._lock(ledger.root).state == "ok"
    monkeypatch.setattr(doctor, "FileLock", NoLock)
    assert doctor._lock(ledger.root) == Symptom(
        "locks",
        "wrong",
        "the file system gives one lock twice: processes would train the same run",
        "choose a ledger on another disk",
    )


def test_a_key_of_everybody_and_none_are_told(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert doctor._keys().state == "ok"
    (keys_folder() / "own.key").chmod(0o644)
    assert "can be read by others" in doctor._keys().found
    shutil.rmtree(keys_folder())
    with disk(tmp_path, 0):
        assert "records will not be signed" in doctor._keys().found


@pytest.mark.parametrize(
    ("version", "state", "said"),
    [(0, "note", "no Landlock"), (3, "ok", "network and signals are not kept"), (7, "ok", "confined by Landlock 7")],
)
def test_isolation_says_what_this_kernel_can(monkeypatch, version, state, said):
    monkeypatch.setattr(sandbox, "version", lambda: version)
    (found,) = doctor._isolation()
    assert found.state == state and said in found.found


@pytest.mark.parametrize(
    ("pinned", "lacking", "state", "said"),
    [
        (True, "", "ok", "portable: torch "),
        (False, "", "ok", "--audit-arithmetic portable can be had"),
        (False, "a processor with AVX2", "note", "needs a processor with AVX2"),
    ],
)
def test_the_kind_of_arithmetic_is_told(monkeypatch, pinned, lacking, state, said):
    monkeypatch.setattr(doctor, "is_pinned", lambda: pinned)
    monkeypatch.setattr(doctor, "lacks_portable", lambda: lacking)
    found = doctor._arithmetic()
    assert found.state == state and said in found.found and str(arithmetic.kind()) in found.found


def test_packages_that_do_not_fit_are_told(monkeypatch):
    versions = doctor.metadata.version
    monkeypatch.setattr(doctor.metadata, "version", lambda name: "1.0" if name == "torch" else versions(name))
    (found,) = wrong(doctor._versions())
    assert "torch 1.0, needed >=2.4" in found.found and found.advice


def test_the_command(ledger):
    done = CliRunner().invoke(app, ["doctor", "--ledger", str(ledger.root), "--json"])
    assert done.exit_code == 1
    rows = json.loads(done.output)
    assert [row["about"] for row in rows if row["state"] == "wrong"] == ["data of lenet5-digits"]
    done = CliRunner().invoke(app, ["doctor", "--ledger", str(ledger.root / "none")])
    assert done.exit_code == 0 and any(line.startswith("ok    isolation: ") for line in done.output.splitlines())


def test_a_run_is_not_trained_on_other_data_than_its_base(tmp_path):
    from pruneaudit.campaign.stages import Stages
    from pruneaudit.errors import ConfigError
    from pruneaudit.training.runtime import Runtime

    data = CATALOG.workload("lenet5-digits").data
    ledger = Ledger(tmp_path / "ledger")
    base = ledger.commit(changed(run_record(run_spec(data=data)), split_digest="ab" * 32), WEIGHTS)
    spec = run_spec("topup", data=data, parent=base.run_id)
    with pytest.raises(ConfigError, match=rf"data 'digits' are not those that {base.folder} was trained on"):
        Stages(ledger, CATALOG, Runtime()).execute(spec)
