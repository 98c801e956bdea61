"""What was judged before is not judged again, and changes no word of a report: whatever it rests on has changed since,
it is judged anew."""

import copy
import json
import os
import shutil
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest
from builders import CATALOG, WEIGHTS, changed, evidence, failed_cell, scored, store

from pruneaudit.audit import docket as docket_module
from pruneaudit.audit import precedents, rounds
from pruneaudit.audit.catalogue import get_rule
from pruneaudit.audit.docket import Docket
from pruneaudit.audit.rule import Outcome, registered
from pruneaudit.audit.sequential import Plan
from pruneaudit.catalog.cells import Cell
from pruneaudit.catalog.protocols import Study
from pruneaudit.ledger import index as index_module
from pruneaudit.ledger import store as store_module
from pruneaudit.ledger.store import Ledger
from pruneaudit.report.results import gather_ledger
from pruneaudit.workloads.metrics import ACCURACY

WORKLOAD, NAMES = "lenet5-digits", ("l1", "random", "tpp")


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A ledger with three arms over seven seeds under two protocols, indexed however small and new it is."""
    monkeypatch.setenv("PRUNEAUDIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(store_module, "LEAST", 1)
    monkeypatch.setattr(index_module, "_SETTLED", 0)
    ledger = Ledger(tmp_path / "ledger")
    for protocol in ("s2", "s3.2"):
        for name in NAMES:
            for seed in range(7):
                store(ledger, arm(name, protocol, seed))
    yield ledger.root
    precedents._code.cache_clear()


@pytest.fixture
def judged(monkeypatch):
    """Arms and comparisons that were judged since, by rules that look at them alone; and tables that were decided."""
    found = []
    judge, decide = docket_module.judge, docket_module.decide

    def noting(rule_id, case, *more):
        if not get_rule(rule_id).whole_table:
            found.append((case.subject.protocol, *case.subject.methods))
        return judge(rule_id, case, *more)

    def deciding(table):
        found.extend([("table", table[0].case.subject.protocol)] if table else [])
        return decide(table)

    monkeypatch.setattr(docket_module, "judge", noting)
    monkeypatch.setattr(docket_module, "decide", deciding)
    return found


def arm(name, protocol="s3.2", seed=0, accuracy=None):
    points = {"l1": 70, "random": 71, "tpp": 75}[name] if accuracy is None else accuracy
    return scored(evidence(name, protocol, seed), points + seed / 2)


def report(root, catalog=CATALOG, study=None):
    """All that a report says."""
    return json.dumps(gather_ledger(catalog, Ledger(root, writable=False), study).as_json())


def judged_anew(root, catalog=CATALOG, study=None):
    """The same where nothing was judged before."""
    with pytest.MonkeyPatch.context() as without:
        without.setattr(Ledger, "derived", lambda ledger: None)
        return report(root, catalog, study)


def the_same(root, catalog=CATALOG, study=None):
    """A report, which says what one says that judges all: at once, and by what it has kept then."""
    expected = judged_anew(root, catalog, study)
    assert report(root, catalog, study) == expected
    assert report(root, catalog, study) == expected
    return expected


def index():
    (found,) = Path(os.environ["PRUNEAUDIT_CACHE"]).rglob("*.sqlite")
    return sqlite3.connect(found)


def test_a_second_report_judges_nothing_and_says_the_same(root, judged):
    plain = the_same(root)
    assert json.loads(plain)["verdicts"][0]["verdict"] != "not comparable"
    judged.clear()
    assert report(root) == plain
    assert judged == []


def test_after_one_new_run_only_what_it_touches_is_judged(root, judged):
    """A cell is new at one point of one protocol: what stands at others is not judged again."""
    plain = report(root)
    store(Ledger(root), arm("l1", "s2", seed=7))
    judged.clear()
    assert report(root) != plain
    assert judged and {protocol for what, *more in judged for protocol in [more[0] if what == "table" else what]} == {
        "s2"
    }
    the_same(root)


def test_after_a_record_changed_only_its_arms_are_judged(root, judged):
    plain = report(root)
    cell = arm("l1", "s2").cell
    store(Ledger(root), replace(arm("l1", "s2"), cell=cell.model_copy(update={"base_accuracy": 12.25})))
    judged.clear()
    report(root)
    assert {tuple(entry) for entry in judged} == {("s2", "l1"), ("s2", "l1", "random"), ("s2", "l1", "tpp")} | {
        entry for entry in judged if entry[0] == "table"
    }
    assert the_same(root) != plain


def with_protocol(**fields):
    """The catalog where S3.2 says something else."""
    other = copy.copy(CATALOG)
    protocol = CATALOG.protocol("s3.2").model_copy(update=fields)
    other.__dict__["protocols"] = {**CATALOG.protocols, "s3.2": protocol}
    return other


@pytest.mark.parametrize("fields", [{"requires": ("F1",)}, {"margin": 40.0}, {"version": 99}])
def test_a_protocol_that_changed_is_judged_by_what_it_says_now(root, fields):
    plain = report(root)
    assert the_same(root, with_protocol(**fields)) != plain
    assert report(root) == plain


def test_a_rule_that_changed_is_asked_again(root, monkeypatch):
    plain = report(root)
    theirs = replace(get_rule("F103"), check=lambda left, right: Outcome("fail", 1, 2))
    monkeypatch.setitem(registered, "F103", theirs)
    precedents._code.cache_clear()
    assert precedents._code() == "", "a rule of a file that is not digested"
    failing = {row["rule"] for row in json.loads(report(root))["findings"] if row["verdict"] == "fail"}
    assert "F103" in failing
    assert "F103" not in {row["rule"] for row in json.loads(plain)["findings"] if row["verdict"] == "fail"}


def test_code_is_told_by_all_of_its_files(root, judged, monkeypatch, tmp_path):
    plain = report(root)
    package = tmp_path / "pruneaudit" / "audit"
    package.mkdir(parents=True)
    monkeypatch.setattr(precedents, "__file__", str(package / "precedents.py"))
    found = set()
    for text in ("", "one = 1\n", "one = 2\n"):
        (package / "rule.py").write_text(text)
        precedents._code.cache_clear()
        found.add(precedents._code())
    assert len(found) == 3
    judged.clear()
    assert report(root) == plain
    assert judged, "what other code judged was believed"


def waived(root):
    return Study(name="some", waive={"F606": "a reason"})


def looked_at(root):
    series = "-".join(sorted(arm(name).result.run_id for name in ("random", "tpp")))
    Ledger(root).remember_looks(rounds.table_name(WORKLOAD, "s3.2", ()), {series: [6]})


def trained_again(root):
    """A run of the same identity came out another way, and its cell is as it was."""
    result = arm("tpp").result
    shutil.rmtree(Ledger(root).file_of(result).parent)
    Ledger(root).commit(changed(result, accuracy=33.25), WEIGHTS)


def failed_otherwise(root):
    fails(root, "it broke otherwise")


def fails(root, error="it broke"):
    cell = Cell(WORKLOAD, "s3.2", "l1", 0.5, 3)
    Ledger(root).save_cell(failed_cell(cell, error), cell.id)


def another_table_around(root):
    """Nothing of an arm is new, and what the rules of a whole table see is."""
    for name, points in (("l1", 90), ("tpp", 60)):
        for seed in range(7):
            store(Ledger(root), arm(name, "s4.2", seed, points))


def gone(root):
    min((root / "cells").glob("*-tpp-s3.2-*")).unlink()


def another_file(root):
    one = arm("l1")
    older = changed(one.prune, method_digest="an older file")
    cell = one.cell.model_copy(update={"prune": older.run_id})
    store(Ledger(root), replace(one, prune=older, cell=cell))


@pytest.mark.parametrize(
    "change", [waived, looked_at, trained_again, failed_otherwise, another_table_around, gone, another_file]
)
def test_whatever_changes_the_report_is_that_of_one_who_judges_all(root, change):
    fails(root)
    before = the_same(root)
    study = change(root)
    after, before = json.loads(the_same(root, study=study)), json.loads(before)
    assert any(after[name] != before[name] for name in ("findings", "verdicts"))


def test_a_plan_is_part_of_what_is_asked(tmp_path, root):
    """By one that ends earlier a comparison stands elsewhere, though its records are the same."""
    found = []
    for seeds in (8, 20):
        ledger = Ledger(tmp_path / f"planned-{seeds}")
        pairs = (("l1", "tpp", 0.5),)
        plan = Plan(seeds=seeds, comparisons=1, margin=0.5)
        rounds.register(ledger, rounds.Family(workload=WORKLOAD, protocol="s3.2", labels=(), pairs=pairs, plan=plan),
                        lambda cell: None, ACCURACY)  # fmt: skip
        for name in ("l1", "tpp"):
            for seed in range(6):
                store(ledger, arm(name, seed=seed))
        found.append(the_same(ledger.root))
        planned = ledger.plan_file(rounds.table_name(WORKLOAD, "s3.2", ()))
        assert json.loads(found[-1])["verdicts"][0]["plan"]["seeds"] == seeds
        # As an edit of nobody could: without it, the same records were given a fixed number of seeds.
        planned.unlink()
        assert "plan" not in json.loads(the_same(ledger.root))["verdicts"][0]
    assert found[0] != found[1]


@pytest.mark.parametrize("edited", ["content", "name", "no blob", "no table", "no database"])
def test_what_was_forged_or_damaged_is_judged_anew(root, judged, edited):
    plain = report(root)
    database = index()
    with database:
        if edited == "content":
            database.execute("""UPDATE derived SET content = CAST(replace(content, '"fail"', '"pass"') AS BLOB)""")
            database.execute("UPDATE derived SET content = CAST(replace(content, 'pass', 'fail') AS BLOB)")
        elif edited == "name":
            rows = database.execute("SELECT * FROM derived").fetchall()
            names = [name for name, *_ in rows[1:] + rows[:1]]
            moved = [(name, *row) for name, (_, *row) in zip(names, rows, strict=True)]
            database.executemany("REPLACE INTO derived VALUES (?, ?, ?)", moved)
        elif edited == "no blob":
            database.execute("UPDATE derived SET content = 7, mac = NULL")
        elif edited == "no table":
            database.execute("DROP TABLE derived")
    database.close()
    if edited == "no database":
        (path,) = Path(os.environ["PRUNEAUDIT_CACHE"]).rglob("*.sqlite")
        path.write_bytes(b"no database" * 1000)
    judged.clear()
    assert report(root) == plain
    assert judged
    judged.clear()
    assert report(root) == plain
    assert judged == [], "it was not kept anew"


def test_records_that_nobody_here_signed_are_judged_every_time(root, judged, monkeypatch):
    """Nothing tells them from edited ones."""
    monkeypatch.setattr(store_module, "known_keys", dict)
    plain = report(root)
    judged.clear()
    assert report(root) == plain
    assert judged


def test_what_nobody_asks_for_any_more_is_forgotten(root):
    report(root)
    (few,) = index().execute("SELECT count(*) FROM derived").fetchone()
    for accuracy in (50.0, 55.0, 60.0):
        for protocol in ("s2", "s3.2"):
            for name in NAMES:
                store(Ledger(root), arm(name, protocol), accuracy=accuracy)
        report(root)
    (most,) = index().execute("SELECT count(*) FROM derived").fetchone()
    assert few < most <= 2 * few


def test_what_does_not_come_back_as_it_is_is_not_kept(root, judged, monkeypatch):
    monkeypatch.setattr(Docket, "_runs_of", lambda docket, subject: lambda seed: ("another",))
    plain = judged_anew(root)
    assert report(root) == plain
    judged.clear()
    assert report(root) == plain
    assert judged
