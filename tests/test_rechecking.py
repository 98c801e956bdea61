"""Before a report is judged, stored weights are evaluated again in a clean process, once for each record."""

import json
import shutil
import subprocess

import numpy as np
import pytest
import torch
from court import Court, arm
from typer.testing import CliRunner

from pruneaudit.campaign.rechecking import Rechecked, recheck
from pruneaudit.catalog.discovery import Catalog
from pruneaudit.cli import app
from pruneaudit.errors import DamagedError
from pruneaudit.ledger.records import pack
from pruneaudit.ledger.store import Ledger, sealed
from pruneaudit.report.results import gather_ledger

torch.set_num_threads(1)
CATALOG = Catalog()


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A base, and what L1 makes of it."""
    court = Court(tmp_path_factory.mktemp("rechecked") / "ledger")
    court.measure(arm("l1"))
    return court.ledger.root


@pytest.fixture
def root(measured, tmp_path):
    return shutil.copytree(measured, tmp_path / "ledger")


@pytest.fixture
def python(monkeypatch, warm):
    """Starts at once."""
    monkeypatch.setattr("sys.executable", warm)


def results(ledger):
    return [run for run in ledger.runs() if run.stage != "prune"]


def forge(root, **more):
    """Claim that all is right, wherever a rule looks, without the signature, which nobody but the harness can make."""
    (run,) = (root / "runs").glob("*retrain-l1*/record.json")
    (cell,) = (root / "cells").glob("*l1*.json")
    for path in (run, cell):
        content = json.loads(path.read_text()) | {"accuracy": 100.0}
        if path == run:
            content["correct"] = pack(np.ones(content["test_images"], dtype=bool))
            content["test_accuracy"][-1] = 100.0
            content |= more
        path.write_text(json.dumps({name: content[name] for name in content if name not in ("digest", "link")}))
    return run


def test_what_was_evaluated_once_is_not_evaluated_again(root, python, monkeypatch):
    ledger = Ledger(root)
    found = recheck(ledger, CATALOG, results(ledger), 60)
    assert (found.total, found.new, found.left, found.wrong) == (2, 2, 0, [])
    assert found.lines() == ["stored weights of 2 run(s) were evaluated again: they give what their records say"]

    def never(*_, **__):
        raise AssertionError("a process was started")

    monkeypatch.setattr(subprocess, "Popen", never)
    again = Ledger(root)
    found = recheck(again, CATALOG, results(again), 60)
    assert (found.total, found.new, found.left) == (2, 0, 0) and found.lines() == []
    assert again.account().lines() == []


def test_who_has_no_time_evaluates_nothing_and_says_so(root, python):
    ledger = Ledger(root)
    assert recheck(ledger, CATALOG, results(ledger), 0) == Rechecked()
    found = recheck(ledger, CATALOG, results(ledger), 1e-9)
    assert found.left == 1 and found.new == 1, "one is evaluated whatever the time, so that reports come to an end"
    assert found.lines()[1].startswith("stored weights of 1 of 2 run(s) were not evaluated again: there was no time")
    # The next report goes on.
    assert recheck(ledger, CATALOG, results(ledger), 1e-9).left == 0


def test_a_number_that_weights_do_not_give_is_judged_by_nobody(root, python):
    path = forge(root)
    ledger = Ledger(root)
    (result,) = [run for run in ledger.runs() if run.stage == "retrain"]
    assert gather_ledger(CATALOG, ledger).cells[0]["status"] == "ok"
    found = recheck(ledger, CATALOG, results(ledger), 60)
    assert found.new == 1 and found.left == 0
    (line,) = found.contradictions()
    assert path.parent.name in line and line.endswith("% of the test images right; the record says 100.00 %")
    # Now, and in every later process.
    for later in (ledger, Ledger(root, writable=False)):
        with pytest.raises(DamagedError, match=r"record says 100.00 %; delete .* and run again"):
            later.get(result.run_id)
        (row,) = gather_ledger(CATALOG, later).cells
        assert row["status"] == "failed" and "the record says 100.00 %" in row["error"]
    # What is trained anew has another record, which is another matter.
    forge(root, seconds=1.0)
    assert Ledger(root).get(result.run_id).accuracy == 100


def test_notes_of_others_are_not_believed(root, python):
    ledger = Ledger(root)
    recheck(ledger, CATALOG, results(ledger), 60)
    (note,) = (root / "checked").iterdir()
    content = json.loads(note.read_text())
    link = content.pop("link")
    del content["digest"]
    for forged in (content, sealed(content), {**sealed(content | {"more": 1}), "link": link}):
        note.write_text(json.dumps(forged))
        assert Ledger(root).checks() == {}
    note.write_text("no JSON")
    assert Ledger(root).checks() == {}


def test_weights_that_changed_are_told_and_weights_that_are_gone_are_left(root, python):
    runs = {run.stage: run for run in Ledger(root).runs()}
    files = {stage: root / "runs" / run.folder / "weights.safetensors" for stage, run in runs.items()}
    content = bytearray(files["retrain"].read_bytes())
    content[-1] ^= 1
    files["retrain"].write_bytes(content)
    files["pretrain"].unlink()
    ledger = Ledger(root)
    found = recheck(ledger, CATALOG, results(ledger), 60)
    assert found.wrong == [f"{runs['retrain'].folder}: its weights changed after the run wrote them"]
    assert found.lines()[1] == "stored weights of 1 of 2 run(s) were not evaluated again: their files are not here"


def test_who_may_not_write_is_told_all_the_same(root, python):
    forge(root)
    ledger = Ledger(root, writable=False)
    assert len(recheck(ledger, CATALOG, results(ledger), 60).wrong) == 1
    assert not (root / "checked").exists()
    assert [row["status"] for row in gather_ledger(CATALOG, ledger).cells] == ["failed"]


def test_a_report_says_what_it_found(root, python, tmp_path):
    forge(root)
    command = ["report", "--ledger", str(root), "--to", str(tmp_path / "report"), "--figures", "none"]
    done = CliRunner().invoke(app, [*command, "--recheck", "60"])
    assert done.exit_code == 0, done.output
    text = " ".join(done.output.split())
    assert "not judged, since its stored weights give something else" in text and "1 failed" in text
    assert "record says 100.00 %" in (tmp_path / "report" / "report.md").read_text()


def test_a_session_that_judges_what_weights_do_not_give_is_incomplete(root, checkout):
    shutil.copytree(root, checkout.ledger)
    forge(checkout.ledger)
    chosen = ("suite", "-k", "lenet5-digits and s3.2 and r0.5 and l1 and not conformance", "--audit-methods", "l1")
    chosen += ("--audit-budget", "smoke", "--audit-seeds", "1", "--audit-from", str(checkout.ledger))
    assert checkout.pytest(*chosen).code == 0
    done = checkout.pytest(*chosen, "--audit-recheck", "60")
    assert done.code == 3, done.text
    (line,) = [line for line in done.lines if line.startswith("INCOMPLETE: ")]
    assert "its stored weights give something else" in line and line.endswith("the record says 100.00 %")
    assert "Traceback" not in done.text
