"""A ledger as tables for pandas."""

import math

import pandas as pd
import pytest
from builders import evidence, failed_cell, scored, store

import pruneaudit
from pruneaudit.catalog.cells import Cell
from pruneaudit.errors import ConfigError
from pruneaudit.ledger.store import Ledger


@pytest.fixture
def ledger(tmp_path):
    ledger = Ledger(tmp_path / "ledger")
    for seed, (ours, theirs) in enumerate([(90.0, 91.0), (92.0, 91.5)]):
        store(ledger, scored(evidence("l1", seed=seed), ours))
        store(ledger, scored(evidence("tpp", seed=seed), theirs))
    broken = failed_cell(Cell("lenet5-digits", "s3.2", "random", 0.5, 0), "it broke")
    ledger.save_cell(broken, broken.cell.id)
    return ledger.root


def test_cells_are_one_row_each(ledger):
    cells = pruneaudit.load(ledger).cells
    assert len(cells) == 5 and not cells.duplicated(["workload", "protocol", "method", "ratio", "seed"]).any()
    assert cells[cells.status == "ok"].groupby("method").accuracy.mean().to_dict() == {"l1": 91.0, "tpp": 91.25}
    assert cells.loc[cells.method == "random", "error"].item() == "it broke"
    assert {"jsv_base", "jsv_pruned", "jsv_end", "speedup", "granularity", "total_macs"} <= set(cells)


def test_verdicts_and_findings_have_their_values_in_columns(ledger):
    frames = pruneaudit.load(str(ledger))
    row = frames.verdicts[frames.verdicts.arms.map(tuple) == ("l1", "tpp")].iloc[0]
    assert (row.verdict, row["mean"], row.n) == ("indeterminate", -0.25, 2)
    assert set(frames.findings.verdict) >= {"pass"} and "F321" in set(frames.findings.rule)


def test_curves_have_a_row_for_each_epoch_of_each_run(ledger):
    curves = pruneaudit.load(ledger).curves
    assert not curves.duplicated(["run_id", "epoch"]).any()
    one = curves[(curves.stage == "retrain") & (curves.method == "l1") & (curves.seed == 1)]
    # Epoch 0: the network as pruning left it.
    assert one.epoch.tolist() == [0, 1, 2, 3] and one.learning_rate.tolist()[1:] == [0.01, 0.01, 0.001]
    assert one.test_accuracy.tolist() == [75.0, 92.0, 92.0, 92.0] and one.train_loss.tolist()[1:] == [0.5] * 3
    assert math.isnan(one.train_loss.iloc[0]) and math.isnan(one.learning_rate.iloc[0])
    # A pruning stage without steps has no curve.
    assert "prune" not in set(curves.stage)


def test_an_empty_ledger_gives_empty_tables(tmp_path):
    frames = pruneaudit.load(Ledger(tmp_path / "ledger").root)
    assert all(isinstance(table, pd.DataFrame) and table.empty for table in vars(frames).values())


def test_a_folder_that_is_no_ledger_is_one_line(tmp_path):
    with pytest.raises(ConfigError, match=r"no ledger at .*nowhere; name the folder that --audit-ledger wrote"):
        pruneaudit.load(tmp_path / "nowhere")
    assert not (tmp_path / "nowhere").exists()


def test_loading_changes_nothing(ledger):
    before = {path: path.read_bytes() for path in ledger.rglob("*") if path.is_file()}
    pruneaudit.load(ledger)
    assert {path: path.read_bytes() for path in ledger.rglob("*") if path.is_file()} == before
