"""Reports: rows of builtins, tables that never mix what must not be mixed, files that are whole."""

import csv
import io
import json
import os
import re
import statistics
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from builders import changed, evidence, failed_cell, finding, store
from hypothesis import given, settings
from hypothesis import strategies as st

from pruneaudit.catalog import Catalog
from pruneaudit.cells import Cell
from pruneaudit.ledger import Ledger
from pruneaudit.report.results import Results, gather, gather_ledger
from pruneaudit.report.tables import accuracy_table, audit_matrix
from pruneaudit.report.terminal import summary
from pruneaudit.report.writer import markdown, write
from pruneaudit.settings import Settings

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
FINDING_COLUMNS = ["rule", "verdict", "protocol", "workload", "ratio", "arms", "measured", "runs"]
STRANGER = "<script>alert(1)</script>|x"


@pytest.fixture
def ledger(tmp_path):
    return Ledger(tmp_path / "ledger")


def cell(method, seed=0, protocol="s3.2"):
    return Cell("lenet5-digits", protocol, method, 0.5, seed)


def filled(ledger):
    """Two arms over three seeds, one scratch cell, one failed cell, and the same arms under the smoke budget."""
    for seed, (ours, theirs) in enumerate([(90.0, 91.0), (92.0, 91.5), (91.0, 93.0)]):
        store(ledger, evidence("l1", seed=seed), ours)
        store(ledger, evidence("tpp", seed=seed), theirs)
    store(ledger, evidence("scratch", "sx-a"), 88.25)
    store(ledger, evidence("l1", "sx-a"), 89.5)
    broken = failed_cell(cell("random"), "run lenet5-digits-prune-random failed: RuntimeError: a | b")
    ledger.save_cell(broken, broken.cell.id)
    store(ledger, evidence("l1", budget="smoke"), 11.0)
    return ledger


def row(method="l1", seed=0, accuracy=90.0, **fields):
    """A row of a measured cell."""
    given = dict.fromkeys(("error", "total_epochs")) | {
        "workload": "lenet5-digits",
        "protocol": "s3.2",
        "method": method,
        "ratio": 0.5,
        "seed": seed,
        "labels": [],
        "status": "ok",
        "accuracy": accuracy,
        "speedup": 2.5,
        "runs": [],
    }
    return given | fields


# Rows


def test_rows_have_the_promised_columns(ledger):
    results = gather_ledger(CATALOG, filled(ledger))
    assert results.cells and results.findings
    for one in results.cells:
        assert set(one) >= set(CELL_COLUMNS)
    for one in results.findings:
        assert set(one) >= set(FINDING_COLUMNS)
    assert len({tuple(one) for one in results.cells}) == 1, "every row has the same columns"
    # Builtins only: what JSON gives back is what was there.
    assert json.loads(json.dumps(results.as_json(), allow_nan=False)) == results.as_json()


def test_a_session_lists_every_selected_cell(ledger):
    filled(ledger)
    skipped = {cell("tpp", 2): "lenet5-digits needs data"}
    selected = [cell("tpp", 2), cell("unpruned"), cell("random"), cell("l1")]
    results = gather(CATALOG, Settings(), ledger, selected, [finding()], skipped)
    found = {(one["method"], one["seed"]): one for one in results.cells}
    assert list(found) == [("l1", 0), ("random", 0), ("tpp", 2), ("unpruned", 0)]
    assert {one["status"] for one in found.values()} == {"ok", "failed", "skipped", "missing"}
    assert found["tpp", 2]["error"] == "lenet5-digits needs data"
    assert found["unpruned", 0]["error"] == "the session ended before it was measured"
    assert "RuntimeError" in found["random", 0]["error"]
    for key in (("tpp", 2), ("unpruned", 0), ("random", 0)):
        assert found[key]["accuracy"] is None and found[key]["runs"] == []
    assert [one["rule"] for one in results.findings] == ["F321"]
    assert list(results.protocols) == ["s3.2"]


def test_a_session_reads_the_cells_of_its_own_settings(ledger):
    filled(ledger)
    results = gather(CATALOG, Settings("smoke"), ledger, [cell("l1"), cell("tpp")], [])
    assert [(one["method"], one["status"], one["accuracy"], one["labels"]) for one in results.cells] == [
        ("l1", "ok", 11.0, ["smoke"]),
        ("tpp", "missing", None, ["smoke"]),
    ]


def test_a_whole_ledger_is_judged(ledger):
    results = gather_ledger(CATALOG, filled(ledger))
    assert len(results.cells) == 10
    verdicts = {
        (one["protocol"], *one["arms"], one["rule"]): one["verdict"] for one in results.findings if not one["labels"]
    }
    required = CATALOG.protocol("s3.2").requires
    assert {verdicts["s3.2", "l1", "tpp", rule] for rule in required} == {"pass"}
    # Random pruning failed at seed 0 and was not measured at the others.
    assert {verdicts["s3.2", "l1", "random", rule] for rule in required} == {"incomplete"}
    assert verdicts["sx-a", "l1", "scratch", "F801"] == "pass"
    assert len(verdicts) == 3 * len(required) + len(CATALOG.protocol("sx-a").requires)


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
    assert [key[1] for key in results.statistics("lenet5-digits", ())] == ["tpp"]
    assert {row["verdict"] for row in results.findings} <= {"incomplete"}
    session = gather(CATALOG, Settings(), ledger, [cell("l1"), cell("tpp")], [])
    assert {row["method"]: row["status"] for row in session.cells} == {"l1": "missing", "tpp": "ok"}


def test_rows_name_runs_that_the_ledger_holds(ledger):
    results = gather_ledger(CATALOG, filled(ledger))
    for one in results.cells + results.findings:
        for run in one["runs"]:
            assert ledger.get(run).run_id == run
    assert all(one["runs"] for one in results.cells if one["status"] == "ok")


# Statistics


@settings(deadline=None, max_examples=100)
@given(st.lists(st.floats(0, 100), min_size=2, max_size=8))
def test_the_deviation_is_the_sample_standard_deviation(values):
    results = Results([row(seed=seed, accuracy=value) for seed, value in enumerate(values)], [])
    (statistic,) = results.statistics("lenet5-digits", ()).values()
    assert statistic.n == len(values)
    assert statistic.mean == pytest.approx(np.mean(values))
    assert statistic.std == pytest.approx(np.std(values, ddof=1), abs=1e-9)
    assert statistic.std == statistics.stdev(values)


def test_one_seed_has_no_deviation():
    results = Results([row(accuracy=90.0)], [])
    (statistic,) = results.statistics("lenet5-digits", ()).values()
    assert statistic.std is None and str(statistic) == "90.00"
    assert "±" not in accuracy_table(results, "lenet5-digits", ())[1][0][-1]
    three = Results([row(seed=seed, accuracy=value) for seed, value in enumerate((90.0, 92.0, 91.0))], [])
    assert accuracy_table(three, "lenet5-digits", ()) == (
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
    base = results.base("lenet5-digits", ())
    assert (base.mean, base.n, base.std) == (91.0, 2, statistics.stdev([90.0, 92.0]))
    assert results.base("lenet5-digits", ("fp64",)) is None


def test_cells_without_a_result_count_for_nothing():
    rows = [row(seed=0), row(seed=1, accuracy=None, status="failed"), row(seed=2, accuracy=None, status="missing")]
    (statistic,) = Results(rows, []).statistics("lenet5-digits", ()).values()
    assert (statistic.n, statistic.mean, statistic.std) == (1, 90.0, None)


def test_labels_never_mix_in_one_table():
    rows = [
        row(seed=0, accuracy=90.0),
        row(seed=1, accuracy=10.0, labels=["smoke"]),
        row(seed=2, accuracy=50.0, labels=["fp64"]),
    ]
    results = Results(rows, [finding(labels=("smoke",), verdict="fail").model_dump(mode="json")])
    assert results.groups() == [("lenet5-digits", ()), ("lenet5-digits", ("fp64",)), ("lenet5-digits", ("smoke",))]
    for labels, value in (((), "90.00"), (("fp64",), "50.00"), (("smoke",), "10.00")):
        assert [line[-1] for line in accuracy_table(results, "lenet5-digits", labels)[1]] == [value]
    assert audit_matrix(results, "lenet5-digits", ())[1] == []
    assert audit_matrix(results, "lenet5-digits", ("smoke",))[1] == [["s3.2", "l1 vs tpp", "FAIL"]]


def test_the_matrix_shows_the_worst_verdict():
    order = ["pass", "not measured", "incomplete", "fail"]
    marks = []
    for worst in range(len(order)):
        findings = [
            finding(verdict=verdict, ratio=0.1 * number).model_dump(mode="json") for number, verdict in enumerate(order)
        ]
        marks.append(audit_matrix(Results([row()], findings[: worst + 1]), "lenet5-digits", ())[1][0][-1])
        assert audit_matrix(Results([row()], findings[worst::-1]), "lenet5-digits", ())[1][0][-1] == marks[-1]
    assert marks == ["ok", "n/m", "INC", "FAIL"]


def test_a_method_without_a_ratio_shows_a_dash():
    results = Results([row(), row("tpp", ratio=0.9, speedup=10.0)], [])
    assert accuracy_table(results, "lenet5-digits", ()) == (
        ["protocol", "method", "n", "ratio 0.5 (2.50x)", "ratio 0.9 (10.00x)"],
        [["s3.2", "l1", "1", "90.00", "–"], ["s3.2", "tpp", "1", "–", "90.00"]],
    )


# Files


def small_ledger(ledger):
    """What the golden files show: a pass, a failure at one seed, a cell that failed, and a reduced budget."""
    for seed, (ours, theirs) in enumerate([(90.0, 91.0), (92.0, 91.5)]):
        store(ledger, evidence("l1", seed=seed), ours)
        arm = evidence("tpp", seed=seed)
        slow = changed(arm.result, learning_rates=[(0.1, 6)]) if seed else arm.result
        store(ledger, replace(arm, trials=(slow,), result=slow), theirs)
    store(ledger, evidence("l1", "sx-a"), 89.5)
    broken = failed_cell(cell("scratch", protocol="sx-a"), "run lenet5-digits-scratch failed: RuntimeError: a | b")
    ledger.save_cell(broken, broken.cell.id)
    store(ledger, evidence("l1", budget="smoke"), 11.0)
    return ledger


@pytest.mark.parametrize("name", ["report.md", "tables/cells.csv", "tables/findings.csv", "tables/accuracy.csv"])
def test_files_are_what_they_were(ledger, tmp_path, name):
    """Write them anew with ``UPDATE_GOLDEN=1 pytest tests/test_report.py -k what_they_were``, then read the diff."""
    write(gather_ledger(CATALOG, small_ledger(ledger)), tmp_path / "report")
    found = (tmp_path / "report" / name).read_bytes().decode("utf-8")
    # Ids of runs follow the digests of the method files, which may change without the report changing.
    found = re.sub(r"(?<![.\w])[0-9a-f]{16}\b", "RUN", found)
    golden = GOLDEN / Path(name).name
    if os.environ.get("UPDATE_GOLDEN"):
        golden.parent.mkdir(exist_ok=True)
        golden.write_bytes(found.encode("utf-8"))
    assert found == golden.read_bytes().decode("utf-8")


def test_write_leaves_whole_files_and_nothing_else(ledger, tmp_path):
    folder = tmp_path / "deep" / "report"
    results = gather_ledger(CATALOG, filled(ledger))
    written = write(results, folder)
    present = sorted(path for path in folder.rglob("*") if path.is_file())
    assert sorted(written) == present
    names = {str(path.relative_to(folder)) for path in present}
    assert names >= {"report.md", "results.json", "tables/cells.csv", "tables/findings.csv", "tables/accuracy.csv"}
    assert not [path for path in folder.rglob("*") if "part" in path.name]
    before = {path: path.read_bytes() for path in present}
    assert write(results, folder) == written
    assert {path: path.read_bytes() for path in present} == before


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
    write(gather_ledger(CATALOG, filled(ledger)), tmp_path)

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    text = (tmp_path / "results.json").read_text(encoding="utf-8")
    content = json.loads(text, parse_constant=refuse)
    assert content["schema_version"] == 1
    assert list(content) == sorted(content)
    keys = [
        (one["workload"], one["labels"], one["protocol"], one["method"], one["ratio"], one["seed"])
        for one in content["cells"]
    ]
    assert keys == sorted(keys) and len(keys) == 10
    keys = [
        (one["workload"], one["labels"], one["protocol"], one["ratio"], one["arms"], one["rule"])
        for one in content["findings"]
    ]
    assert keys == sorted(keys)
    # As a file of the same content, however the cells came in.
    assert text == json.dumps(content, indent=1, sort_keys=True) + "\n"


def test_the_order_of_cells_and_findings_does_not_matter(ledger):
    filled(ledger)
    cells = [record.cell for record in ledger.cells() if not record.labels]
    findings = [finding(rule) for rule in ("F101", "F321", "F103")]
    one = gather(CATALOG, Settings(), ledger, cells, findings)
    assert one == gather(CATALOG, Settings(), ledger, cells[::-1], findings[::-1])


def test_tables_can_be_read_back(ledger, tmp_path):
    results = gather_ledger(CATALOG, filled(ledger))
    write(results, tmp_path)

    def read(name):
        return list(csv.DictReader(io.StringIO((tmp_path / "tables" / name).read_text(encoding="utf-8"))))

    assert [one["method"] for one in read("cells.csv")] == [one["method"] for one in results.cells]
    assert next(one["accuracy"] for one in read("cells.csv")) == str(results.cells[0]["accuracy"])
    assert {one["verdict"] for one in read("findings.csv")} == {one["verdict"] for one in results.findings}
    (three,) = [one for one in read("accuracy.csv") if one["method"] == "tpp"]
    assert float(three["std"]) == statistics.stdev([91.0, 91.5, 93.0]) and three["n"] == "3"
    (single,) = [one for one in read("accuracy.csv") if one["labels"] == "smoke"]
    assert single["std"] == "" and single["n"] == "1"


def test_an_empty_report_is_a_report(tmp_path):
    write(Results([], []), tmp_path)
    assert "0 cells attempted" in (tmp_path / "report.md").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "results.json").read_text())["cells"] == []


def test_names_of_strangers_cannot_break_out_of_the_markdown(ledger, tmp_path):
    rows = [
        row(STRANGER),
        row("random", status="failed", accuracy=None, error=f"raised {STRANGER}\n# heading `code`"),
        row("tpp", status="ok", accuracy=80.0),
    ]
    rogue = finding(
        verdict="fail", arms=(STRANGER, "tpp"), measured={STRANGER: STRANGER, "tpp": 1}, note=f"{STRANGER}\n\n# two"
    )
    findings = [{"claim": "", **rogue.model_dump(mode="json")}]
    text = markdown(Results(rows, findings))
    assert "<script" not in text and "&lt;script&gt;alert(1)&lt;/script&gt;\\|x" in text
    assert "# heading" not in [line.strip() for line in text.splitlines()]
    assert not any(line.startswith(("# heading", "# two")) for line in text.splitlines())
    for line in text.splitlines():
        if STRANGER.split("(")[0].replace("<", "&lt;").replace(">", "&gt;") in line:
            assert line.startswith("|") and line.endswith("|"), "still one line of a table"
    # In the data files the name stays what it is.
    write(Results(rows, findings), tmp_path)
    assert json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))["cells"][0]["method"] == STRANGER


def test_a_label_of_a_stranger_cannot_break_out_of_a_heading():
    text = markdown(Results([row(workload="<b>|w", labels=["<i>"])], []))
    assert "<b>" not in text and "<i>" not in text


# Terminal


def test_the_summary_says_what_is_missing_and_why(ledger):
    filled(ledger)
    selected = [cell("l1"), cell("random"), cell("unpruned"), cell("tpp")]
    rogue = finding(verdict="fail", measured={"l1": "0.1×6", "tpp": "0.01×6"})
    results = gather(CATALOG, Settings(), ledger, selected, [rogue, finding("F101")], {cell("tpp"): "no data"})
    lines = summary(results)
    text = "\n".join(lines)
    assert "cells: 4 selected, 1 failed, 1 missing, 1 ok, 1 skipped" in lines
    assert "  skipped (1): no data" in lines
    assert "  missing (1): the session ended before it was measured" in lines
    assert "  failed (1): run lenet5-digits-prune-random failed: RuntimeError: a | b" in lines
    assert "findings: 2 checks, 1 fail, 1 pass" in lines
    assert "  F321 fail: lenet5-digits s3.2 ratio 0.5 seed 0: l1: 0.1×6; tpp: 0.01×6" in lines
    assert "lenet5-digits: test accuracy in percent at the last epoch" in text


def test_markdown_lists_what_failed_with_its_reason(ledger):
    text = markdown(gather_ledger(CATALOG, filled(ledger)))
    assert "10 cells attempted, 9 valid" in text
    assert "RuntimeError: a \\| b" in text
    assert "## Findings that are no pass" in text and "## Cells without a result" in text
    assert "## lenet5-digits \\[smoke\\]" in text
