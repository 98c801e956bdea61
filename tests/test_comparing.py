"""A report is compared with a reference: equal number by number, or what differs and what explains it."""

import json

import pytest
from builders import CATALOG, changed, evidence, kind, scored, store

from pruneaudit.errors import ConfigError
from pruneaudit.ledger.store import Ledger
from pruneaudit.report.comparing import compare
from pruneaudit.report.results import gather_ledger

SEEDS = (0, 1, 2)


def report(folder, accuracies, torch="2.14.1", computed=None, **labels):
    """The results.json of l1 at some accuracies, one for each seed, made with these versions."""
    ledger = Ledger(folder / "ledger")
    for seed, accuracy in enumerate(accuracies):
        arm = scored(evidence("l1", seed=seed, **labels), accuracy)
        told = {"kind": computed, "environment": {**arm.result.environment, "torch": torch}}
        runs = {name: changed(getattr(arm, name), **told) for name in ("base", "topup", "prune")}
        result = changed(arm.result, **told)
        store(ledger, type(arm)(arm.cell, *runs.values(), (result,), result))
    (folder / "results.json").write_text(json.dumps(gather_ledger(CATALOG, ledger).as_json()))
    return folder


@pytest.fixture
def folders(tmp_path):
    found = tmp_path / "latest", tmp_path / "reference"
    for folder in found:
        folder.mkdir()
    return found


def test_equal_results_are_equal_whatever_the_versions(folders):
    ours, reference = (report(folder, [90.0, 92.0], torch=torch) for folder, torch in zip(folders, "12", strict=True))
    found = compare(ours, reference)
    assert found.lines == (f"equal: 2 of 2 results are those of {reference}",) and not found.is_fault


def test_other_versions_explain_what_differs(folders):
    ours, reference = report(folders[0], [90.0, 92.0]), report(folders[1], [90.0, 95.0], torch="2.15.0")
    found = compare(ours, reference)
    text = "\n".join(found.lines)
    assert not found.is_fault
    assert "not equal" in text and "1 of 2 results differ, typically by 2.12 and at most by 3.00" in text
    assert "l1 under s3.2 at ratio 0.5, seed 1: 92.00 here, 95.00 there" in text
    assert "torch: 2.14.1 here, 2.15.0 there" in text and "pip install -c constraints.txt" in text
    assert "arithmetic" not in text.replace("and arithmetic, results should be equal", "")


def test_another_arithmetic_explains_it_and_its_label_does_not_hide_the_cell(folders):
    ours = report(folders[0], [91.0], computed=kind(), arithmetic="portable")
    reference = report(folders[1], [90.0])
    found = compare(ours, reference)
    assert not found.is_fault
    (line,) = (line for line in found.lines if line.startswith("arithmetic: "))
    assert line.startswith("arithmetic: portable: torch 2.9.0 AVX2") and line.endswith("not told there")


def test_what_nothing_explains_is_a_fault(folders):
    found = compare(*(report(folder, [accuracy]) for folder, accuracy in zip(folders, (90.0, 91.0), strict=True)))
    assert found.is_fault and "one of the two is at fault" in found.lines[-1]


def test_results_that_are_lacking_are_no_equality(folders):
    found = compare(report(folders[0], [90.0]), report(folders[1], [90.0, 92.0]))
    assert found.is_fault and found.lines[-1] == "1 of the reference's 2 results are not here"
    # What the reference lacks was not asked of it.
    assert not compare(folders[1], folders[0]).is_fault


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"environments": [], "cells": [1]}', '{"environments": 3}'])
def test_what_is_no_report_is_told_in_one_line(folders, content):
    ours = report(folders[0], [90.0])
    (folders[1] / "results.json").write_text(content)
    for reference in (folders[1], folders[1] / "nowhere"):
        with pytest.raises(ConfigError, match=r"is no results\.json of a report; give the folder of one"):
            compare(ours, reference)


def test_reports_of_other_things_are_not_compared(folders):
    ours, reference = report(folders[0], [90.0]), report(folders[1], [])
    with pytest.raises(ConfigError, match="no result in common"):
        compare(ours, reference)
