"""Reports: rows of builtins, tables that never mix what must not be mixed, files that are whole."""

import csv
import io
import json
import multiprocessing
import os
import re
import statistics
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from builders import changed, evidence, failed_cell, finding, scored, store
from hypothesis import given, settings
from hypothesis import strategies as st

from pruneaudit.audit.catalogue import required, rules
from pruneaudit.audit.statistics import difference
from pruneaudit.audit.verdicts import Verdict
from pruneaudit.catalog.cells import Arm, Cell, Comparison
from pruneaudit.catalog.discovery import Catalog
from pruneaudit.catalog.protocols import Study
from pruneaudit.catalog.settings import Settings
from pruneaudit.ledger.store import Ledger
from pruneaudit.report import writer
from pruneaudit.report.drawing import Drawing
from pruneaudit.report.payload import payload
from pruneaudit.report.results import Asked, Results, gather, gather_ledger
from pruneaudit.report.schema import CellRow
from pruneaudit.report.standings import profiles
from pruneaudit.report.tables import (
    accuracy_table,
    architecture_table,
    arm_matrix,
    audit_matrix,
    legend,
    profile_table,
    size_table,
    standings_table,
    strictest_matrix,
    trainability_table,
    verdict_table,
)
from pruneaudit.report.terminal import MOST_FINDINGS, MOST_ROWS, summary
from pruneaudit.report.writer import markdown, markdown_sections, write
from pruneaudit.version import __version__

CATALOG = Catalog()
GOLDEN = Path(__file__).parent / "golden"
#: What a reader of the files may rely on.
CELL_COLUMNS = [
    "workload",
    "protocol",
    "method",
    "ratio",
    "seed",
    "accuracy",
    "base_accuracy",
    "speedup",
    "params",
    "macs",
    "status",
    "runs",
]
FINDING_COLUMNS = ["rule", "verdict", "required", "waived", "protocol", "workload", "ratio", "arms", "measured"]
VERDICT_COLUMNS = [
    "verdict",
    "workload",
    "protocol",
    "ratio",
    "arms",
    "labels",
    "forbidden_by",
    "n",
    "mean",
    "low",
    "p",
]
STRANGER = "<script>alert(1)</script>|x"
WHERE = ("lenet5-digits", ())


@pytest.fixture
def ledger(tmp_path):
    return Ledger(tmp_path / "ledger")


def cell(method, seed=0, protocol="s3.2"):
    return Cell("lenet5-digits", protocol, method, 0.5, seed)


def versus(left="l1", right="tpp", protocol="s3.2", seeds=(0,)):
    return Comparison("lenet5-digits", protocol, left, right, 0.5, seeds)


def filled(ledger):
    """Two arms over three seeds, one scratch cell, one failed cell, and one arm under the smoke budget."""
    for seed, (ours, theirs) in enumerate([(90.0, 91.0), (92.0, 91.5), (91.0, 93.0)]):
        store(ledger, scored(evidence("l1", seed=seed), ours))
        store(ledger, scored(evidence("tpp", seed=seed), theirs))
    store(ledger, scored(evidence("scratch", "sx-a"), 88.0))
    store(ledger, scored(evidence("l1", "sx-a"), 89.5))
    broken = failed_cell(cell("random"), "run lenet5-digits-prune-random failed: RuntimeError: a | b")
    ledger.save_cell(broken, broken.cell.id)
    store(ledger, scored(evidence("l1", budget="smoke"), 11.0))
    return ledger


def slower(arm):
    """The same arm, retrained at another learning rate."""
    slow = changed(arm.result, learning_rates=[(0.1, 6)])
    return replace(arm, trials=(slow,), result=slow)


def row(method="l1", seed=0, accuracy=90.0, **fields):
    """A row of a measured cell."""
    given = dict.fromkeys(CellRow.model_fields) | {
        "budget": "full",
        "precision": "fp32",
        "error": "" if fields.get("status", "ok") == "ok" else "it broke",
        "workload": "lenet5-digits",
        "protocol": "s3.2",
        "method": method,
        "ratio": 0.5,
        "seed": seed,
        "labels": [],
        "status": "ok",
        "accuracy": accuracy,
        "speedup": 2.5,
        "granularity": "filter",
        "runs": [],
        "jsv": {"base": None, "pruned": None, "end": None},
        "trainability_accuracy": None,
    }
    return given | fields


def found(*args, **fields):
    """A row of a finding."""
    return finding(*args, **fields).row()


def verdict(word="indeterminate", left=(91.0, 92.0), right=(90.0, 90.5), **fields):
    """A row of a verdict of l1 against tpp."""
    given = {
        "workload": "lenet5-digits",
        "protocol": "s3.2",
        "ratio": 0.5,
        "arms": ("l1", "tpp"),
        "seeds": tuple(range(len(left))),
        "difference": difference(left, right, 0.5) if left else None,
        "p_adjusted": 0.5 if left else None,
        "summary": "what was found",
    }
    return Verdict.model_validate({"verdict": word, **given, **fields}).model_dump(mode="json")


def fails(row):
    return row["verdict"] in ("worse", "not comparable")


def section(results, start):
    """Body of the first section of the Markdown whose heading starts so."""
    return next(body for heading, body in markdown_sections(results) if heading.startswith(start))


# Rows


def test_columns_of_the_page_are_as_long_as_each_other_where_rows_differ(ledger):
    """A base model that was trained elsewhere says so, and no other run does."""
    results = gather_ledger(CATALOG, filled(ledger))
    some = results.runs[1]
    some["provenance"] = "external"
    runs = payload(results)["runs"]
    assert {len(values["at"] if isinstance(values, dict) else values) for values in runs.values()} == {
        len(results.runs)
    }
    elsewhere = [runs["provenance"]["of"][place] for place in runs["provenance"]["at"]]
    assert elsewhere == [row.get("provenance") for row in results.runs] and "external" in elsewhere


def test_rows_have_the_promised_columns(ledger):
    results = gather_ledger(CATALOG, filled(ledger))
    assert results.cells and results.findings and results.verdicts
    for one in results.cells:
        assert set(one) >= {*CELL_COLUMNS, "jsv", "trainability_accuracy"}
    for one in results.findings:
        assert set(one) >= set(FINDING_COLUMNS)
        # The cells of a check that passes name the runs; a report of thousands of checks does not repeat them.
        assert ("runs" in one) == (one["verdict"] != "pass")
    assert len({tuple(one) for one in results.cells}) == 1, "every row has the same columns"
    # Builtins only: what JSON gives back is what was there.
    assert json.loads(json.dumps(results.as_json(), allow_nan=False)) == results.as_json()


def test_a_session_lists_every_selected_cell(ledger):
    filled(ledger)
    selected = [cell("tpp", 2), cell("unpruned"), cell("random"), cell("l1")]
    asked = Asked(
        subjects=[versus("l1", "unpruned")],
        required={versus("l1", "unpruned"): {"F321"}},
        skipped={cell("tpp", 2): "lenet5-digits needs data"},
    )
    results = gather(CATALOG, Settings(), ledger, selected, asked)
    cells = {(one["method"], one["seed"]): one for one in results.cells}
    assert list(cells) == [("l1", 0), ("random", 0), ("tpp", 2), ("unpruned", 0)]
    assert {one["status"] for one in cells.values()} == {"ok", "failed", "skipped", "missing"}
    assert cells["tpp", 2]["error"] == "lenet5-digits needs data"
    assert cells["unpruned", 0]["error"] == "not measured"
    assert "RuntimeError" in cells["random", 0]["error"]
    for key in (("tpp", 2), ("unpruned", 0), ("random", 0)):
        assert cells[key]["accuracy"] is None and cells[key]["runs"] == []
    # Of the required rules what was selected, and what every verdict requires; the others say what is not controlled.
    assert [one["rule"] for one in results.findings if one["required"]] == [
        "F107",
        "F109",
        "F110",
        "F321",
        "F323",
        "F324",
        "F611",
    ]
    assert [one["verdict"] for one in results.verdicts] == ["not comparable"]
    assert list(results.protocols) == ["s3.2"]


def test_a_session_reads_the_cells_of_its_own_settings(ledger):
    filled(ledger)
    results = gather(CATALOG, Settings("smoke"), ledger, [cell("l1"), cell("tpp")], Asked())
    assert [(one["method"], one["status"], one["accuracy"], one["labels"]) for one in results.cells] == [
        ("l1", "ok", 11.0, ["smoke"]),
        ("tpp", "missing", None, ["smoke"]),
    ]


def test_a_whole_ledger_is_judged(ledger):
    results = gather_ledger(CATALOG, filled(ledger))
    assert len(results.cells) == 10
    findings = {
        (one["protocol"], *one["arms"], one["rule"]): one["verdict"] for one in results.findings if not one["labels"]
    }
    wanted = [rule for rule in required(CATALOG.protocol("s3.2")) if rules()[rule].scope != "arm"]
    assert {findings["s3.2", "l1", "tpp", rule] for rule in wanted} == {"pass"}
    # Random pruning failed at seed 0 and was not measured at the others.
    assert {findings["s3.2", "l1", "random", rule] for rule in wanted} <= {"incomplete", "fail"}
    assert findings["s3.2", "l1", "random", "F607"] == "fail"
    assert findings["sx-a", "l1", "scratch", "F801"] == "pass"
    assert findings["s3.2", "l1", "F501"] == findings["sx-a", "scratch", "F506"] == "pass"
    words = {(one["protocol"], *one["arms"]): one["verdict"] for one in results.verdicts if not one["labels"]}
    assert words == {
        ("s3.2", "l1", "random"): "not comparable",
        ("s3.2", "l1", "tpp"): "indeterminate",
        ("s3.2", "random", "tpp"): "not comparable",
        ("sx-a", "l1", "scratch"): "indeterminate",
    }


def test_cells_of_a_protocol_that_is_gone_are_listed_and_not_judged(ledger):
    store(ledger, evidence("l1", "s9.9"))
    results = gather_ledger(CATALOG, ledger)
    assert [one["protocol"] for one in results.cells] == ["s9.9"]
    assert results.findings == [] and results.protocols == {}
    assert "s9.9" in markdown(results)


@pytest.mark.parametrize("kind", ["workload", "protocol", "method", "training code"])
def test_cells_of_another_version_are_listed_and_neither_averaged_nor_judged(ledger, kind):
    store(ledger, evidence("tpp"))
    arm = evidence("l1")
    if kind == "method":
        arm = replace(arm, prune=changed(arm.prune, method_digest="an older file"))
        arm = replace(arm, cell=changed(arm.cell, prune=arm.prune.run_id))
    elif kind == "training code":
        arm = replace(arm, base=changed(arm.base, numerics=0))
        arm = replace(arm, cell=changed(arm.cell, base=arm.base.run_id))
    else:
        arm = replace(arm, cell=changed(arm.cell, **{f"{kind}_version": 9}))
    store(ledger, arm)
    results = gather_ledger(CATALOG, ledger)
    status = {row["method"]: (row["status"], row["error"]) for row in results.cells}
    assert status["tpp"] == ("ok", "") and status["l1"][0] == "outdated" and kind in status["l1"][1]
    assert [key[1] for key in results.statistics(*WHERE)] == ["tpp"]
    assert {tuple(row["arms"]) for row in results.findings} == {("tpp",)} and results.verdicts == []
    session = gather(CATALOG, Settings(), ledger, [cell("l1"), cell("tpp")], Asked())
    assert {row["method"]: row["status"] for row in session.cells} == {"l1": "missing", "tpp": "ok"}


def test_rows_name_runs_that_the_ledger_holds(ledger):
    results = gather_ledger(CATALOG, filled(ledger))
    for one in results.cells + results.findings:
        for run in one.get("runs", []):
            assert ledger.get(run).run_id == run
    assert all(one["runs"] for one in results.cells if one["status"] == "ok")


# Statistics


@settings(deadline=None, max_examples=100)
@given(st.lists(st.floats(0, 100), min_size=2, max_size=8))
def test_the_deviation_is_the_sample_standard_deviation(values):
    results = Results([row(seed=seed, accuracy=value) for seed, value in enumerate(values)], [])
    (statistic,) = results.statistics(*WHERE).values()
    assert statistic.n == len(values)
    assert statistic.mean == pytest.approx(np.mean(values))
    assert statistic.std == pytest.approx(np.std(values, ddof=1), abs=1e-9)
    assert statistic.std == statistics.stdev(values)


def test_one_seed_has_no_deviation():
    results = Results([row(accuracy=90.0)], [])
    (statistic,) = results.statistics(*WHERE).values()
    assert statistic.std is None and str(statistic) == "90.00"
    assert "±" not in accuracy_table(results, *WHERE)[1][0][-1]
    three = Results([row(seed=seed, accuracy=value) for seed, value in enumerate((90.0, 92.0, 91.0))], [])
    assert accuracy_table(three, *WHERE) == (
        ["protocol", "method", "n", "ratio 0.5 (2.50x)"],
        [["s3.2", "l1", "3", "91.00 ± 1.00"]],
    )


def test_the_base_line_counts_each_shared_base_once():
    rows = [
        row(seed=0, base_accuracy=90.0, runs=["base0", "a"]),
        row("tpp", seed=0, base_accuracy=90.0, runs=["base0", "b"]),
        row(seed=1, base_accuracy=92.0, runs=["base1", "c"]),
        row(protocol="s1", base_accuracy=10.0, runs=["own", "d"]),
        row(seed=2, base_accuracy=10.0, runs=["reduced", "e"], labels=["smoke"]),
        row(seed=3, base_accuracy=None, runs=[], status="failed"),
    ]
    results = Results(rows, [], protocols={"s1": {"base": "own"}, "s3.2": {"base": "shared"}})
    base = results.base(*WHERE)
    assert (base.mean, base.n, base.std) == (91.0, 2, statistics.stdev([90.0, 92.0]))
    assert results.base("lenet5-digits", ("fp64",)) is None


def test_cells_without_a_result_count_for_nothing():
    rows = [row(seed=0), row(seed=1, accuracy=None, status="failed"), row(seed=2, accuracy=None, status="missing")]
    (statistic,) = Results(rows, []).statistics(*WHERE).values()
    assert (statistic.n, statistic.mean, statistic.std) == (1, 90.0, None)


def test_a_method_without_a_ratio_shows_a_dash():
    results = Results([row(), row("tpp", ratio=0.9, speedup=10.0)], [])
    assert accuracy_table(results, *WHERE) == (
        ["protocol", "method", "n", "ratio 0.5 (2.50x)", "ratio 0.9 (10.00x)"],
        [["s3.2", "l1", "1", "90.00", "–"], ["s3.2", "tpp", "1", "–", "90.00"]],
    )


# Labels


def test_rows_of_different_labels_never_share_a_table():
    labelled = {(): "90.00", ("fp64",): "50.00", ("smoke",): "10.00"}
    results = Results(
        [
            row(seed=number, accuracy=float(value), labels=[*labels])
            for number, (labels, value) in enumerate(labelled.items())
        ],
        [found(labels=("smoke",), verdict="fail")],
        [verdict(labels=labels, arms=("l1", f"rival-{'-'.join(labels) or 'full'}")) for labels in labelled],
    )
    assert results.groups == [("lenet5-digits", labels) for labels in labelled]
    for labels, value in labelled.items():
        assert [line[-1] for line in accuracy_table(results, "lenet5-digits", labels)[1]] == [value]
    assert audit_matrix(results, *WHERE)[1] == []
    assert audit_matrix(results, "lenet5-digits", ("smoke",))[1] == [["s3.2", "l1 vs tpp", "0 of 1 ok", "FAIL", ""]]
    rivals = ["rival-full", "rival-fp64", "rival-smoke"]
    for text, heading in (
        (markdown(results), "## Verdicts: lenet5-digits"),
        ("\n".join(summary(results)), "first arm minus"),
    ):
        _, *parts = text.split(heading)
        assert [[rival for rival in rivals if rival in part] for part in parts] == [[rival] for rival in rivals]


@pytest.mark.parametrize("kind", ["finding", "cell", "failing verdict"])
def test_what_is_wrong_names_its_labels(kind):
    results = Results([row(labels=["smoke"])], [])
    if kind == "finding":
        results.findings = [found(labels=("smoke",), verdict="fail")]
    elif kind == "cell":
        results.cells = [row(labels=["smoke"], status="failed", error="it broke")]
    else:
        results.verdicts = [verdict("worse", labels=("smoke",))]
    lines = [line for line in summary(results, fails) if re.match(r"  (F321 fail|failed|FAILS)", line)]
    assert lines and ("lenet5-digits [smoke]" in lines[0] or kind == "cell")
    body = "\n".join(body for _, body in markdown_sections(results)) if kind != "failing verdict" else "\\[smoke\\]"
    assert "\\[smoke\\]" in body


# Verdicts


def test_verdicts_come_first(ledger):
    results = gather_ledger(CATALOG, filled(ledger))
    lines = summary(results)
    places = [
        next(number for number, line in enumerate(lines) if line.startswith(start))
        for start in (
            "verdicts: 4 comparisons, 2 indeterminate, 2 not comparable",
            "cells: ",
            "lenet5-digits: test acc",
        )
    ]
    assert places == sorted(places)
    headings = [heading for heading, _ in markdown_sections(results)]
    assert headings[0] == "Verdicts: lenet5-digits"
    assert headings.index("Cells without a result") < headings.index("lenet5-digits: accuracy")
    assert "4 comparisons, 2 indeterminate, 2 not comparable." in markdown(results).splitlines()[2]


def test_a_verdict_stands_with_its_evidence():
    rows = [
        verdict("better", (92.0,) * 5 + (93.0,), (90.0,) * 6, p_adjusted=0.03125),
        verdict("not comparable", (), (), seeds=(), forbidden_by=("F321", "F607"), arms=("l1", "random")),
        verdict("equivalent", waived={"F608": "another machine"}, ratio=0.9),
    ]
    header, table = verdict_table(rows)
    assert [len(line) for line in table] == [len(header)] * 3
    assert dict(zip(header, table[0], strict=True)) == {
        "protocol": "s3.2",
        "ratio": "0.5",
        "comparison": "l1 vs tpp",
        "verdict": "better",
        "difference": "+2.17",
        "95 % interval": "+1.74 to +2.60",
        "p": "0.0312",
        "seeds": "6",
        "because of": "",
    }
    assert table[1][3:] == ["not comparable", "", "", "", "0 of 6", "F607 F321"]
    many = verdict("not comparable", forbidden_by=("F101", "F102", "F103", "F104", "F201"), waived={"F608": "why"})
    assert verdict_table([many])[1][0][-1] == "F101 F102 and 3 more rules, F608 waived"
    assert table[2][1] == "0.9" and table[2][-1] == "F608 waived"


def test_too_few_seeds_are_told_and_enough_are_not():
    few = [verdict(family=2, seeds=tuple(range(6)))]
    assert verdict_table(few)[1][0][-2] == "6 of 7"
    assert any("better or worse needs m paired seeds" in line for line in summary(Results([row()], [], few)))
    assert "better or worse needs m paired seeds" in section(Results([row()], [], few), "Verdicts")
    enough = Results([row()], [], [verdict(family=2, seeds=tuple(range(7)))])
    assert not any("Seeds n of m" in text for text in (*summary(enough), section(enough, "Verdicts")))


def test_a_planned_comparison_says_how_many_seeds_it_may_take():
    plan = {"seeds": 12, "comparisons": 2, "margin": 0.5}
    rows = [verdict(family=2, seeds=tuple(range(n)), plan=plan, looks=n) for n in (6, 12)]
    assert [line[-2] for line in verdict_table(rows)[1]] == ["6 (planned: 12)", "12"]
    assert not any("Seeds n of m" in text for text in summary(Results([row()], [], rows)))


def test_what_fails_the_gate_stands_above_the_tables():
    rows = [verdict("worse", arms=("l1", f"m{number}"), summary=f"reason {number}") for number in range(25)]
    lines = summary(Results([row()], [], [verdict(), *rows]), fails)
    assert lines[1] == "verdicts: 26 comparisons, 1 indeterminate, 25 worse"
    told = [line for line in lines if line.startswith("  FAILS: ")]
    assert told[0] == "  FAILS: lenet5-digits s3.2 ratio 0.5: l1 against m0: worse; reason 0"
    assert len(told) == MOST_FINDINGS and lines[2 + MOST_FINDINGS] == "  and 5 more that fail"
    assert not any("FAILS" in line for line in summary(Results([row()], [], rows)))


def test_a_long_table_of_verdicts_is_cut_on_the_terminal_only():
    rows = [verdict(arms=("l1", f"m{number:03}")) for number in range(MOST_ROWS + 7)]
    results = Results([row()], [], rows)
    text = "\n".join(summary(results))
    assert f"m{MOST_ROWS - 1:03}" in text and f"m{MOST_ROWS:03}" not in text and "… 7 more in report.md" in text
    assert f"m{MOST_ROWS + 6:03}" in markdown(results)


def test_regressions_stand_in_a_table_of_their_own():
    results = Results([row()], [], regressions=[verdict("worse", arms=("l1", "baseline"))])
    lines = summary(results, fails)
    assert lines[1] == "against the baseline: 1 comparison, 1 worse" and lines[2].startswith("  FAILS: ")
    assert "l1 vs baseline" in section(results, "Against the baseline: lenet5-digits")


# Waivers


@pytest.fixture
def waived(ledger):
    """Two arms of which one retrained at another learning rate, which the study waives."""
    for seed in range(2):
        store(ledger, evidence("l1", seed=seed))
        store(ledger, slower(evidence("tpp", seed=seed)))
    study = Study(name="mine", waive={"F321": "the optimiser cannot | take it"})
    return gather_ledger(CATALOG, ledger, study)


def test_a_waived_finding_is_printed_with_its_reason(waived):
    (one,) = [row for row in waived.findings if row["waived"]]
    assert (one["rule"], one["verdict"]) == ("F321", "fail")
    lines = summary(waived)
    assert any("1 waived" in line and "1 fail" not in line for line in lines if line.startswith("findings: "))
    (line,) = [line for line in lines if line.startswith("  F321 fail: ")]
    assert line.endswith("(waived: the optimiser cannot | take it)")
    assert "waived by study mine: F321: the optimiser cannot | take it" in lines
    assert section(waived, "Waived by study mine") == "- F321: the optimiser cannot \\| take it"
    assert "| fail, waived |" in re.sub(" +", " ", section(waived, "Required findings"))
    assert waived.as_json()["study"]["waive"] == {"F321": "the optimiser cannot | take it"}


def test_a_waived_rule_forbids_nothing_and_stays_visible(waived):
    (one,) = waived.verdicts
    assert one["verdict"] == "indeterminate" and one["forbidden_by"] == []
    assert verdict_table([one])[1][0][-1] == "F321 waived"
    header, ((*_, marks, _),) = audit_matrix(waived, *WHERE)
    assert header[3:-1] == ["F321"] and marks == "waived"
    assert "waived: broken, and waived by the study" in legend(audit_matrix(waived, *WHERE))


def test_without_a_study_the_same_rule_forbids(waived, ledger):
    (one,) = gather_ledger(CATALOG, ledger).verdicts
    assert one["verdict"] == "not comparable" and one["forbidden_by"] == ["F321"]


# Matrices


def test_the_matrix_shows_the_worst_verdict():
    order = ["pass", "not measured", "incomplete", "fail"]
    marks = []
    for worst in range(len(order)):
        findings = [found(verdict=word, ratio=0.1 * number) for number, word in enumerate(order)]
        one = audit_matrix(Results([row()], findings[: worst + 1]), *WHERE)
        assert audit_matrix(Results([row()], findings[worst::-1]), *WHERE) == one
        marks.append(one[1][0][2:-1])
    assert marks == [["all 1 ok"], ["0 of 1 ok", "n/m"], ["0 of 1 ok", "INC"], ["0 of 1 ok", "FAIL"]]


def test_the_matrix_has_columns_for_what_does_not_hold_only(ledger):
    store(ledger, evidence("l1"))
    store(ledger, slower(evidence("tpp")))
    store(ledger, evidence("random"))
    matrix = audit_matrix(gather_ledger(CATALOG, ledger), *WHERE)
    assert matrix[0] == ["protocol", "comparison", "required", "F321", "not controlled"]
    assert {line[1]: line[2:4] for line in matrix[1]} == {
        "l1 vs random": ["all 17 ok", "ok"],
        "l1 vs tpp": ["16 of 17 ok", "FAIL"],
        "random vs tpp": ["16 of 17 ok", "FAIL"],
    }
    assert legend(matrix) == "FAIL: required and broken; ok: holds"
    everything_fine = (["method", "rules"], [["l1", "all 3 ok"]])
    assert legend(everything_fine) == ""


def test_what_is_not_controlled_is_named(ledger):
    for protocol in ("s2", "s3.2"):
        store(ledger, evidence("l1", protocol))
        store(ledger, slower(evidence("tpp", protocol)) if protocol == "s2" else evidence("tpp", protocol))
    results = gather_ledger(CATALOG, ledger)
    header, table = audit_matrix(results, *WHERE)
    loose = {line[0]: line[header.index("not controlled")].split() for line in table}
    assert "F321" in loose["s2"] and "F321" not in loose["s3.2"]
    # S2 asks for no learning rate: the comparison stands, with what else may explain the difference.
    assert next(row for row in results.verdicts if row["protocol"] == "s2")["verdict"] == "indeterminate"
    assert "  F321 Same retraining learning rate at every step" in summary(results)


def test_arms_have_a_matrix_of_their_own(ledger):
    store(ledger, evidence("l1"))
    arm = evidence("tpp")
    spends = changed(arm.prune, optimiser_steps=7)
    store(ledger, replace(arm, prune=spends))
    store(ledger, evidence("scratch"))
    results = gather_ledger(CATALOG, ledger)
    matrix = arm_matrix(results, *WHERE)
    lines = {line[0]: dict(zip(matrix[0], line, strict=True)) for line in matrix[1]}
    assert list(lines) == ["l1", "tpp", "scratch"], "scratch arms last"
    assert (lines["tpp"]["F501"], lines["l1"]["F501"]) == ("FAIL", "ok")
    assert "F501" not in audit_matrix(results, *WHERE)[0]
    # What one arm does not do as it says forbids the comparison.
    assert [row["forbidden_by"] for row in results.verdicts] == [["F501"]]
    assert any(line.startswith("lenet5-digits: audit of arms") for line in summary(results))


# Across comparisons


def test_methods_that_nothing_tells_apart_stand_in_one_group(ledger):
    for seed in range(7):
        store(ledger, scored(evidence("l1", seed=seed), 80.0 + seed))
        store(ledger, scored(evidence("random", seed=seed), 80.0 + (seed + 3) % 7))
        store(ledger, scored(evidence("tpp", seed=seed), 90.0 + seed))
    results = gather_ledger(CATALOG, ledger)
    assert {tuple(row["arms"]): (row["verdict"], row["family"]) for row in results.verdicts} == {
        ("l1", "random"): ("indeterminate", 3),
        ("l1", "tpp"): ("worse", 3),
        ("random", "tpp"): ("worse", 3),
    }
    assert standings_table(results, *WHERE) == (
        ["protocol", "ratio", "group 1", "group 2"],
        [["s3.2", "0.5", "tpp", "l1, random"]],
    )
    assert "within a group the order means nothing" in section(results, "lenet5-digits: standings")


def test_a_method_that_may_not_be_compared_is_not_ranked(ledger):
    for seed in range(2):
        store(ledger, evidence("l1", seed=seed))
        store(ledger, evidence("random", seed=seed))
        store(ledger, slower(evidence("tpp", seed=seed)))
    assert standings_table(gather_ledger(CATALOG, ledger), *WHERE) == (
        ["protocol", "ratio", "group 1", "not comparable"],
        [["s3.2", "0.5", "l1, random", "tpp"]],
    )


def test_the_strictest_setup_that_two_methods_meet(ledger):
    # One-shot methods under S3.2 spend the same on pruning, and so meet S4.2 as well.
    for method in ("l1", "random"):
        store(ledger, evidence(method))
    store(ledger, slower(evidence("tpp")))
    results = gather_ledger(CATALOG, ledger)
    assert strictest_matrix(results, *WHERE) == (
        ["", "l1", "random", "tpp"],
        [["l1", "–", "s4.2", "s2"], ["random", "s4.2", "–", "s2"], ["tpp", "s2", "s2", "–"]],
    )
    looser = {**results.strictest[0], "ratio": 0.9, "setup": "s3.1"}
    assert strictest_matrix(Results([], [], strictest=[*results.strictest, looser]), *WHERE)[1][0][2] == "s3.1"
    none = {**looser, "setup": None}
    assert strictest_matrix(Results([], [], strictest=[looser, none]), *WHERE)[1][0][2] == "none"
    assert "| random | s4.2 |" in re.sub(" +", " ", section(results, "lenet5-digits: strictest"))


def points(**changes):
    """Rows of two methods at two ratios; a change gives other fields to one of them."""
    rows = [
        row("l1", ratio=0.5, accuracy=90.0),
        row("tpp", ratio=0.5, accuracy=90.4),
        row("l1", ratio=0.9, accuracy=80.0),
        row("tpp", ratio=0.9, accuracy=70.0),
    ]
    rows[3] |= changes
    return rows


def test_a_profile_tells_how_often_a_method_is_near_the_best():
    (profile,) = profiles(points())
    assert profile_table(profile) == (
        ["method", "≤ 0", "≤ 0.5", "≤ 1", "≤ 2", "≤ 5", "≤ 10"],
        [
            ["l1", "50%", "100%", "100%", "100%", "100%", "100%"],
            ["tpp", "50%", "50%", "50%", "50%", "50%", "100%"],
        ],
    )
    results = Results(points(), [], profiles=[profile])
    assert "lenet5-digits r0.5, lenet5-digits r0.9" in section(results, "Performance profile: s3.2")


@pytest.mark.parametrize(
    "rows",
    [
        points()[:3],
        points(status="failed", accuracy=None),
        points(status="outdated"),
        points()[:2],
        [one for one in points() if one["method"] == "l1"],
    ],
    ids=["a cell is missing", "a cell failed", "a cell is outdated", "one operating point", "one method"],
)
def test_there_is_no_profile_without_all_cells(rows):
    assert profiles(rows) == []
    assert not any(heading.startswith("Performance profile") for heading, _ in markdown_sections(Results(rows, [])))


def test_trainability_stands_beside_the_accuracy():
    seeds = [
        row(jsv={"base": 1.0, "pruned": 0.5, "end": 1.1}, trainability_accuracy=60.0),
        row(seed=1, jsv={"base": 2.0, "pruned": 0.7, "end": 1.2}, trainability_accuracy=61.0),
        row("scratch", jsv={"base": None, "pruned": None, "end": 2.0}, trainability_accuracy=None),
        row("tpp"),
        row("random", status="failed", accuracy=None),
    ]
    results = Results(seeds, [])
    assert trainability_table(results, *WHERE) == (
        ["protocol", "method", "ratio", "JSV base", "JSV pruned", "JSV end", "TA"],
        [["s3.2", "l1", "0.5", "1.5", "0.6", "1.15", "60.50"], ["s3.2", "scratch", "0.5", "", "", "2", ""]],
    )
    assert "same retraining schedule" in section(results, "lenet5-digits: trainability")
    assert not any("trainability" in heading for heading, _ in markdown_sections(Results([row()], [])))


def test_trainability_comes_from_the_runs(ledger):
    store(ledger, evidence("l1"))
    ((*_, base, pruned, end, accuracy),) = trainability_table(gather_ledger(CATALOG, ledger), *WHERE)[1]
    assert (base, pruned, end, accuracy) == ("1.2", "1.2", "1.2", "75.00")


# Files


def small_ledger(ledger):
    """What the golden files show: a pass, a failure at one seed, a cell that failed, and a reduced budget."""
    for seed, (ours, theirs) in enumerate([(90.0, 91.0), (92.0, 91.5)]):
        store(ledger, scored(evidence("l1", seed=seed), ours))
        arm = scored(evidence("tpp", seed=seed), theirs)
        store(ledger, slower(arm) if seed else arm)
    store(ledger, scored(evidence("l1", "sx-a"), 89.5))
    broken = failed_cell(cell("scratch", protocol="sx-a"), "run lenet5-digits-scratch failed: RuntimeError: a | b")
    ledger.save_cell(broken, broken.cell.id)
    store(ledger, scored(evidence("l1", budget="smoke"), 11.0))
    return ledger


@pytest.mark.parametrize(
    "name",
    ["report.md", "tables/cells.csv", "tables/findings.csv", "tables/verdicts.csv", "tables/accuracy.csv"],
)
def test_files_are_what_they_were(ledger, tmp_path, name):
    """Write them anew with ``UPDATE_GOLDEN=1 pytest tests/test_report.py -k what_they_were``, then read the diff."""
    write(gather_ledger(CATALOG, small_ledger(ledger)), tmp_path / "report")
    text = (tmp_path / "report" / name).read_bytes().decode("utf-8")
    # Ids of runs follow the digests of the method files, which may change without the report changing.
    text = re.sub(r"(?<![.\w])[0-9a-f]{16}\b", "RUN", text).replace(f"pruneaudit {__version__}", "pruneaudit VERSION")
    # The last digits of a statistic are the numerical libraries' own.
    text = re.sub(r"\d+\.\d{7,}", lambda number: f"{float(number[0]):.5g}", text)
    golden = GOLDEN / Path(name).name
    if os.environ.get("UPDATE_GOLDEN"):
        golden.parent.mkdir(exist_ok=True)
        golden.write_bytes(text.encode("utf-8"))
    assert text == golden.read_bytes().decode("utf-8")


def test_write_leaves_whole_files_and_nothing_else(ledger, tmp_path):
    folder = tmp_path / "deep" / "report"
    results = gather_ledger(CATALOG, filled(ledger))
    written = write(results, folder)
    present = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != ".report-files")
    assert sorted(written) == present
    names = {str(path.relative_to(folder)) for path in present}
    badge = {"badge.svg", "badge.json"}
    tables = {f"tables/{name}.csv" for name in ("cells", "findings", "verdicts", "accuracy")}
    papers = {f"tables/accuracy-lenet5-digits-{what}.tex" for what in ("s3.2", "sx-a", "smoke-s3.2")}
    assert names == {"report.html", "report.md", "results.json", *badge, *tables, *papers}
    before = {path: path.read_bytes() for path in present}
    assert write(results, folder) == written
    assert {path: path.read_bytes() for path in present} == before


@pytest.mark.parametrize("how", ["the process dies", "the figure fails"])
def test_figures_that_cannot_be_drawn_cost_one_line_and_nothing_else(ledger, tmp_path, spawned, how):
    results = gather_ledger(CATALOG, filled(ledger))
    old = tmp_path / "figures" / "old.svg"
    old.parent.mkdir()
    old.write_text("of an earlier report", encoding="utf-8")
    (tmp_path / ".report-files").write_text("figures/old.svg\n", encoding="utf-8")
    # There are no three columns.
    with Drawing("3" if how == "the figure fails" else "auto") as drawing:
        drawing.begin(results)
        for process in multiprocessing.active_children() if how == "the process dies" else ():
            process.kill()
        with pytest.warns(RuntimeWarning, match=r"^figures of (\d) of \1 workloads are missing: .* is whole$") as said:
            written = write(results, tmp_path, drawing)
    assert len(said) == 1
    assert {tmp_path / "report.html", tmp_path / "tables" / "cells.csv"} < {path for path in written if path.exists()}
    assert not list(old.parent.iterdir())
    assert not multiprocessing.active_children()


def test_what_an_earlier_report_left_over_goes_and_what_is_not_ours_stays(ledger, tmp_path, spawned):
    write(gather_ledger(CATALOG, filled(ledger)), tmp_path, figures="2")
    mine = [tmp_path / "tables" / "mine.tex", tmp_path / "notes.md"]
    for path in mine:
        path.write_text("mine", encoding="utf-8")
    figures = sorted((tmp_path / "figures").iterdir())
    assert figures and {path.suffix for path in figures} == {".svg", ".pdf"}
    listed = tmp_path / ".report-files"
    listed.write_text(listed.read_text(encoding="utf-8") + "../elsewhere.md\nnotes.md\n", encoding="utf-8")
    outside = tmp_path.parent / "elsewhere.md"
    outside.write_text("mine", encoding="utf-8")
    write(Results(cells=[row()], findings=[]), tmp_path)
    assert not any(path.exists() for path in figures)
    papers = {path.name for path in (tmp_path / "tables").glob("*.tex")}
    assert papers == {"mine.tex", "accuracy-lenet5-digits-s3.2.tex"}
    assert all(path.read_text(encoding="utf-8") == "mine" for path in (*mine, outside))


def test_two_sessions_write_whole_files_into_one_folder(ledger, tmp_path):
    """The second begins while the first is at it: neither takes the other's half-written file."""

    def interrupted():
        yield "first, "
        writer._place({path: "second"})
        yield "to its end"

    folder = tmp_path / "report"
    path = folder / "results.json"
    writer._place({path: interrupted()})
    assert path.read_text() == "first, to its end"
    assert list(folder.iterdir()) == [path]
    # A whole report waits for a whole report.
    results, order = gather_ledger(CATALOG, filled(ledger)), []

    class Slow(Drawing):
        def images(self):
            other.start()
            other.join(0.5)
            order.append("first")
            yield from super().images()

    other = threading.Thread(target=lambda: order.append("second") if write(results, folder) else None)
    with Slow("none") as drawing:
        write(results, folder, drawing)
    other.join()
    assert order == ["first", "second"]


def test_a_report_that_cannot_be_finished_leaves_the_old_one(ledger, tmp_path):
    results = gather_ledger(CATALOG, filled(ledger))
    write(results, tmp_path)
    before = (tmp_path / "results.json").read_bytes()
    results.cells[0]["total_epochs"] = float("nan")
    with pytest.raises(ValueError, match="JSON"):
        write(results, tmp_path)
    assert (tmp_path / "results.json").read_bytes() == before
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith(".part")]


def test_results_are_strict_json_and_sorted(ledger, tmp_path):
    write(gather_ledger(CATALOG, filled(ledger), Study(name="mine", waive={"F608": "two machines"})), tmp_path)

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    text = (tmp_path / "results.json").read_text(encoding="utf-8")
    content = json.loads(text, parse_constant=refuse)
    assert content["schema_version"] == 4
    assert set(content) >= {
        "verdicts",
        "regressions",
        "standings",
        "strictest",
        "profiles",
        "runs",
        "published",
        "rules",
        "study",
    }
    assert content["study"]["waive"] == {"F608": "two machines"}
    assert list(content) == sorted(content)
    where = ("workload", "labels", "protocol")
    for name, order in (
        ("cells", (*where, "method", "ratio", "seed")),
        ("findings", (*where, "ratio", "arms", "rule")),
        ("verdicts", (*where, "ratio", "arms")),
    ):
        keys = [tuple(one[field] for field in order) for one in content[name]]
        assert keys and keys == sorted(keys)
    assert len(content["cells"]) == 10
    assert {one["rule"] for one in content["findings"]} == set(content["rules"])
    # One line for each row, its keys sorted: a file of the same content is the same file, however the cells came in.
    lines = [line.rstrip(",") for line in text.splitlines()]
    rows = [
        f"  {json.dumps(row, sort_keys=True)}"
        for key in content
        if isinstance(content[key], list)
        for row in content[key]
    ]
    assert [line for line in lines if line.startswith("  ")] == rows
    assert len(lines) == 2 + len(content) + len(rows) + sum(
        isinstance(content[key], list) and bool(content[key]) for key in content
    )


def test_the_order_of_cells_and_subjects_does_not_matter(ledger):
    filled(ledger)
    cells = [record.cell for record in ledger.cells() if not record.labels]
    subjects = [versus(), versus("l1", "random"), Arm("lenet5-digits", "s3.2", "l1", 0.5, (0,))]
    one = gather(CATALOG, Settings(), ledger, cells, Asked(subjects))
    assert one == gather(CATALOG, Settings(), ledger, cells[::-1], Asked(subjects[::-1]))


def table_of(folder, name):
    text = (folder / "tables" / name).read_bytes().decode("utf-8")
    return list(csv.DictReader(io.StringIO(text, newline="")))


def test_tables_can_be_read_back(ledger, tmp_path):
    results = gather_ledger(CATALOG, filled(ledger))
    write(results, tmp_path)
    cells, findings, accuracies = (table_of(tmp_path, f"{name}.csv") for name in ("cells", "findings", "accuracy"))
    assert [one["method"] for one in cells] == [one["method"] for one in results.cells]
    assert cells[0]["accuracy"] == str(results.cells[0]["accuracy"])
    assert {one["verdict"] for one in findings} == {one["verdict"] for one in results.findings}
    (three,) = [one for one in accuracies if one["method"] == "tpp"]
    assert float(three["std"]) == statistics.stdev([91.0, 91.5, 93.0]) and three["n"] == "3"
    (single,) = [one for one in accuracies if one["labels"] == "smoke"]
    assert single["std"] == "" and single["n"] == "1"


def test_verdicts_can_be_read_back(ledger, tmp_path):
    results = gather_ledger(CATALOG, filled(ledger))
    results.regressions = [verdict("worse", arms=("l1", "baseline"))]
    write(results, tmp_path)
    read = table_of(tmp_path, "verdicts.csv")
    assert set(read[0]) >= set(VERDICT_COLUMNS)
    assert [one["verdict"] for one in read] == [one["verdict"] for one in (*results.verdicts, *results.regressions)]
    known = {one["arms"]: one for one in read}
    assert float(known["l1 tpp"]["mean"]) == pytest.approx(statistics.fmean([-1.0, 0.5, -2.0]))
    assert known["l1 tpp"]["n"] == "3" and known["l1 tpp"]["p_adjusted"]
    assert "F607" in known["l1 random"]["forbidden_by"].split() and known["l1 random"]["mean"] == ""
    assert known["l1 baseline"]["verdict"] == "worse"


def test_an_empty_report_is_a_report(tmp_path):
    write(Results([], []), tmp_path)
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "0 cells: 0 attempted, 0 valid" in text and "## " not in text
    assert json.loads((tmp_path / "results.json").read_text())["cells"] == []


# Strangers


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r"])
def test_no_name_is_a_formula_in_a_spreadsheet(tmp_path, start):
    name = f'{start}HYPERLINK("http://x","y")'
    rows = [row(method=name), row(status="failed", accuracy=None, error=name)]
    named = verdict(arms=("l1", name), summary="-1.67 pp")
    write(Results(cells=rows, findings=[found(arms=("l1", name), note=name)], verdicts=[named]), tmp_path)
    for table in ("cells", "accuracy", "findings", "verdicts"):
        read = table_of(tmp_path, f"{table}.csv")
        fields = [field for one in read for field in one.values() if name in field]
        assert fields and not [field for field in fields if field.startswith(start)], table
    # Numbers stay numbers, and our own sentences what they are.
    assert [one["summary"] for one in read] == ["-1.67 pp"] and float(read[0]["mean"]) > 0


def test_names_of_strangers_cannot_break_out_of_the_markdown(tmp_path):
    rows = [
        row(STRANGER),
        row("random", status="failed", accuracy=None, error=f"raised {STRANGER}\n# heading `code`"),
        row("tpp", status="ok", accuracy=80.0),
    ]
    rogue = found(
        verdict="fail", arms=(STRANGER, "tpp"), measured={STRANGER: STRANGER, "tpp": 1}, note=f"{STRANGER}\n\n# two"
    )
    verdicts = [verdict("not comparable", arms=(STRANGER, "tpp"), forbidden_by=("F321",))]
    environments = [{"device": STRANGER}]
    results = Results(rows, [rogue], verdicts, environments=environments)
    text = markdown(results)
    assert "<script" not in text and "&lt;script&gt;alert(1)&lt;/script&gt;\\|x" in text
    assert not any(line.strip().startswith(("# heading", "# two")) for line in text.splitlines())
    for line in text.splitlines():
        if "&lt;script&gt;" in line:
            assert line.startswith("- device") or (line.startswith("|") and line.endswith("|")), "one line of a table"
    # In the data files the name stays what it is.
    write(results, tmp_path)
    assert json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))["cells"][0]["method"] == STRANGER


@pytest.mark.parametrize(
    ("error", "shown"),
    [
        ("no such file C:\\|x", "no such file C:\\\\\\|x"),
        ("![](http://stranger/pixel.png)", "\\!\\[\\](http://stranger/pixel.png)"),
        ("call of __init__ in my_pruner", "call of \\_\\_init\\_\\_ in my_pruner"),
        ("a *bold* ~claim~", "a \\*bold\\* \\~claim\\~"),
        ("red \x1b[31mtext\r\n\x07", "red \\[31mtext"),
    ],
)
def test_an_error_message_is_text_in_the_markdown(error, shown):
    body = section(Results([row(status="failed", error=error)], []), "Cells without")
    line = body.splitlines()[2]
    assert line.rstrip(" |").endswith(f"| {shown}")
    # As many columns as the header, however the backslashes stand.
    columns = [len(re.findall(r"(?<!\\)(?:\\\\)*\|", text)) for text in body.splitlines()]
    assert columns[0] == columns[2]


def test_a_label_of_a_stranger_cannot_break_out_of_a_heading():
    text = markdown(Results([row(workload="<b>|w", labels=["<i>"])], []))
    assert "<b>" not in text and "<i>" not in text


def test_nothing_of_a_stranger_can_steer_a_terminal():
    rogue = found(verdict="fail", measured={"l1": "\x1b[2J", "tpp": "a\nb"}, note="\rpassed")
    rows = [row("\x1b[31mred"), row(status="failed", error="one\ntwo\x07")]
    lines = summary(Results(rows, [rogue], [verdict("worse", summary="\x1b]0;title\x07")]), fails)
    assert all(mark.isprintable() for line in lines for mark in line)


# What is wrong


def test_the_summary_says_what_is_missing_and_why(ledger):
    store(ledger, slower(scored(evidence("tpp"), 91.0)))
    filled(ledger)
    selected = [cell("l1"), cell("random"), cell("unpruned"), cell("greg-1"), cell("tpp")]
    asked = Asked([versus()], {versus(): {"F101", "F321"}}, skipped={cell("greg-1"): "no data"})
    lines = summary(gather(CATALOG, Settings(), ledger, selected, asked))
    (line,) = [line for line in lines if line.startswith("cells: ")]
    assert line.startswith("cells: 5 selected, 1 failed, 1 missing, 2 ok, 1 skipped")
    assert line.endswith(", 2 valid")
    assert "  skipped (1): no data" in lines
    assert "  missing (1): not measured" in lines
    assert "  failed (1): run lenet5-digits-prune-random failed: RuntimeError: a | b" in lines
    assert "findings: 8 required checks, 1 fail, 7 pass" in lines
    (line,) = [line for line in lines if line.startswith("  F321 fail: ")]
    assert line.startswith("  F321 fail: lenet5-digits s3.2 ratio 0.5 seed 0: l1: 0.01×4")
    assert "lenet5-digits: test accuracy in percent at the last epoch, mean ± sample std" in lines


def test_markdown_lists_what_failed_with_its_reason(ledger):
    text = markdown(gather_ledger(CATALOG, filled(ledger)))
    assert "10 cells: 10 attempted, 9 valid" in text
    assert "RuntimeError: a \\| b" in text
    assert "## Required findings that are no pass" in text and "## Cells without a result" in text
    assert "## lenet5-digits \\[smoke\\]: accuracy" in text


def test_rules_that_saw_the_same_are_one_line():
    """A cell that is missing leaves every rule of its comparisons incomplete."""
    same = {"verdict": "incomplete", "measured": {}, "note": "lenet5-digits-tpp-s3.2-r0.5-seed0: not measured"}
    findings = [found(rule, **same) for rule in ("F101", "F102", "F103", "F104", "F201", "F311")]
    findings += [found("F607", "fail", seed=None, note="1 of 2 cells")]
    results = Results([row()], findings)
    lines = [line for line in summary(results) if line.startswith("  F")]
    assert lines[0] == "  F607 fail: lenet5-digits s3.2 ratio 0.5: l1: 0.01×4; tpp: 0.01×4 (1 of 2 cells)"
    assert lines[1] == (
        "  F101 F102 and 4 more rules incomplete: lenet5-digits s3.2 ratio 0.5 seed 0: l1 vs tpp "
        "(lenet5-digits-tpp-s3.2-r0.5-seed0: not measured)"
    )
    assert len(section(results, "Required findings").splitlines()) == 4
    assert "findings: 7 required checks, 1 fail, 6 incomplete" in summary(results)


def test_many_findings_are_counted():
    findings = [found(verdict="fail", ratio=number / 100) for number in range(1, MOST_FINDINGS + 6)]
    lines = summary(Results([row()], findings))
    assert sum(line.startswith("  F321 fail") for line in lines) == MOST_FINDINGS
    assert "  and 5 more in report.md" in lines


# Sizes and architectures


def architecture(method="l1-global", seed=0, layers=(), **fields):
    """A row of what a pruned network is."""
    known = {
        "workload": "lenet5-digits",
        "labels": [],
        "method": method,
        "ratio": 0.5,
        "seed": seed,
        "granularity": "filter",
        "scope": "global" if layers else "layerwise",
        "params": 60,
        "base_params": 100,
        "macs": 400,
        "base_macs": 1000,
        "executed_macs": 400,
        "layers": dict(layers),
        "run": f"run{seed}",
        "protocols": ["s3.2"],
    }
    return {**known, **fields}


def test_sizes_stand_beside_each_other_where_they_differ():
    rows = [
        architecture("l1"),
        architecture("l1-global", 0, {"conv1": 2}.items(), macs=410, executed_macs=410, params=40),
        architecture("l1-global", 1, {"conv1": 3}.items(), macs=390, executed_macs=390, params=50),
        architecture("magnitude-layer", granularity="weight", executed_macs=1000),
    ]
    header, table = size_table(Results([], [], architectures=rows), *WHERE)
    assert header == ["method", "removes", "threshold", "ratio 0.5"]
    assert table == [
        ["l1", "filter", "layerwise", "2.50x, 60.0 % of params"],
        ["l1-global", "filter", "global", "2.50x, 45.0 % of params"],
        ["magnitude-layer", "weight", "layerwise", "2.50x (1.00x executed), 60.0 % of params"],
    ]
    # Where every arm has the same size there is nothing to see.
    assert size_table(Results([], [], architectures=rows[:1] * 3), *WHERE)[1] == []


def test_architectures_that_a_threshold_found_are_means_over_seeds():
    rows = [
        architecture("l1-global", 0, [("conv1", 2), ("conv2", 9)]),
        architecture("l1-global", 1, [("conv1", 3), ("conv2", 9)]),
        architecture("l1"),
    ]
    _, table = architecture_table(Results([], [], architectures=rows), *WHERE)
    assert table == [["l1-global", "0.5", "s3.2", "filters", "2", "2.5-9"]]


def test_each_pruned_network_is_listed_once_with_its_protocols(ledger):
    for protocol in ("s3.2", "s2"):
        store(ledger, scored(evidence("l1", protocol), 90.0))
    store(ledger, scored(evidence("scratch", "sx-a"), 88.0))
    store(ledger, scored(evidence("scratch-e", "sx-a"), 88.0))
    rows = gather_ledger(CATALOG, ledger).architectures
    assert [row["method"] for row in rows] == ["l1", "scratch", "scratch-e"]
    rows = rows[:1]
    assert [(row["method"], row["granularity"], row["macs"], row["layers"]) for row in rows] == [
        ("l1", "filter", 400, {})
    ]
    assert rows[0]["protocols"] == ["s2", "s3.2"]


def test_what_is_removed_stands_beside_accuracies_that_must_not_be_compared():
    rows = [row("l1"), row("sss", granularity="block"), row("magnitude-layer", granularity="weight")]
    header, table = accuracy_table(Results(rows, []), *WHERE)
    assert header[:4] == ["protocol", "method", "removes", "n"]
    assert [line[1:3] for line in table] == [["l1", "filters"], ["magnitude-layer", "weights"], ["sss", "blocks"]]
    assert accuracy_table(Results(rows[:1], []), *WHERE)[0][:3] == ["protocol", "method", "n"]


def test_a_few_rivals_of_all_are_the_columns_of_the_strictest_setups():
    def meeting(left, right):
        return {"workload": "lenet5-digits", "labels": [], "ratio": 0.5, "arms": [left, right], "setup": "s3.2"}

    many = [meeting(name, rival) for name in "abcdefg" for rival in ("l1", "random")]
    header, table = strictest_matrix(Results([], [], strictest=many), *WHERE)
    assert header == ["", "l1", "random"] and [line[0] for line in table] == [*"abcdefg", "l1", "random"]
    every = [meeting("l1", "random"), meeting("l1", "tpp"), meeting("random", "tpp")]
    assert strictest_matrix(Results([], [], strictest=every), *WHERE)[0] == ["", "l1", "random", "tpp"]
