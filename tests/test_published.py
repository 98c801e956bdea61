"""Published accuracies beside our runs: files that are right, runs that are the same, and no bare "reproduced"."""

import math
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from builders import evidence, failed_cell, scored, store
from scipy import stats

from pruneaudit.campaign.planner import Planner
from pruneaudit.catalog.cells import Cell, Resolved
from pruneaudit.catalog.claims import load_table
from pruneaudit.catalog.discovery import Catalog, content_root
from pruneaudit.catalog.settings import Settings
from pruneaudit.errors import ConfigError
from pruneaudit.ledger.store import Ledger
from pruneaudit.pruning import shapes
from pruneaudit.report.curves import Curve
from pruneaudit.report.published import PUBLISHED_NOTE, published, published_notes, published_table, welch
from pruneaudit.report.results import Results, gather_ledger
from pruneaudit.workloads.schedule import Schedule

CATALOG = Catalog()
TABLES = CATALOG.claims
R56, USUAL, SMALL = "resnet56-cifar10", "0:1e-2,60:1e-3,90:1e-4", "0:1e-3,80:1e-4"


# What is shipped


def test_the_tables_that_people_compare_with_are_there():
    sizes = {name: len(table.claims()) for name, table in TABLES.items()}
    assert {"wang2023-table6": 24, "wang2023-table7": 24, "tpp2023-table1": 50}.items() <= sizes.items()
    assert {"liu2019-table1-cifar10", "liu2019-table4", "liu2019-table9", "liu2019-table10", "tpp2023-table2"} <= set(
        sizes
    )


def test_two_papers_with_the_same_runs_state_the_same_numbers():
    # TPP's Table 1 is a part of Wang et al.'s Table 6.
    wang, tpp = ({row.label: row for row in TABLES[name].rows} for name in ("wang2023-table6", "tpp2023-table1"))
    for ours, theirs in (("scratch, step", "Scratch"), ("L1, step, 1e-2", "L1, 1e-2"), ("L1, step, 1e-3", "L1, 1e-3")):
        left, right = wang[ours], tpp[theirs]
        assert (left.mean, left.std) == (right.mean[:4], right.std[:4])
        assert (left.epochs, left.lr, left.method) == (right.epochs, right.lr, right.method)


@pytest.mark.parametrize(
    "point",
    # Their counters disagree with MACs by up to 3 % where few filters are left.
    sorted({(p.workload, p.ratio, p.speedup) for table in TABLES.values() for p in table.points if p.speedup}),
    ids=str,
)
def test_a_point_is_the_workload_at_that_speedup(point):
    workload, ratio, speedup = point
    known = CATALOG.workload(workload)
    if ratio not in known.ratios:
        pytest.skip("a gap: the workload has no such ratio")
    reached = shapes.shape(known).macs / shapes.target(known, ratio, "filter", "layerwise").macs
    assert reached == pytest.approx(speedup, rel=0.02)


@pytest.mark.parametrize("name", ["tpp2023-table1", "wang2023-table6", "wang2023-table7", "liu2019-table1-cifar10"])
def test_a_claim_with_a_known_schedule_is_one_that_our_runs_can_meet(name):
    """Either the claim's setup or the one that tunes trains by exactly this schedule; what cannot is on this list."""
    gaps = {"L1, cosine, 1e-3", "L1, cosine, 1e-2"}
    first = TABLES[name].points[0]
    for claim in (one for one in TABLES[name].claims() if one.point == first and one.schedule is not None):
        recipes = set()
        for protocol in (claim.row.protocol, "s3.1"):
            cell = Cell(first.workload, protocol, claim.row.method, first.ratio, 0)
            plan = Planner(CATALOG, Settings(), Resolved.of(cell, CATALOG)).plan()
            recipes |= {(run.recipe.epochs, run.recipe.lr) for run in plan.trials}
        assert ((claim.epochs, str(claim.schedule)) in recipes) != (claim.row.label in gaps), claim.row.label


def test_what_no_run_of_ours_is_says_why():
    for table in TABLES.values():
        for row in table.rows:
            assert row.unlike or (row.method and row.protocol)
    assert "every convolution" in TABLES["liu2019-table10"].rows[0].unlike


# Files


GOOD = """
paper = "A. Uthor 2020"
source = "A paper"
table = "Table 1"
n = 3
std = "sample"
epoch = "last"
points = [{ workload = "lenet5-digits", ratio = 0.5, speedup = 2.5, base = 90.0 }]
[[rows]]
label = "L1"
method = "l1"
protocol = "s3.2"
epochs = 3
lr = "0:0.01,2:0.001"
mean = [91.0]
std = [0.5]
"""


def root(folder, text=GOOD):
    """A copy of the project's content with one published table."""
    shutil.copytree(content_root() / "methods", folder / "methods", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(content_root() / "protocols", folder / "protocols", ignore=shutil.ignore_patterns("published"))
    (folder / "protocols" / "published").mkdir()
    (folder / "protocols" / "published" / "mine.toml").write_text(text, encoding="utf-8")
    return Catalog(root=folder)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("n = 3", "n = 3 4", "not valid TOML"),
        ("n = 3\n", "", "n: missing"),
        ("n = 3", "n = 0", "n: Input should be greater than or equal to 1 (got 0)"),
        ('"sample"', '"both"', "std: Input should be 'sample', 'population' or 'not said' (got 'both')"),
        ("epochs = 3", "epoch = 3", "rows.0.epoch: unknown key. Did you mean 'epochs'?"),
        ("speedup = 2.5", "speeedup = 2.5", "points.0.speeedup: unknown key. Did you mean 'speedup'?"),
        ("ratio = 0.5", "ratio = 1.5", "points.0.ratio: "),
        ("[91.0]", "[91.0, 92.0]", "row 'L1': mean has 2 entries; the table has 1 points"),
        ("[91.0]", "[910.0]", "row 'L1': 910 is no accuracy in percent"),
        ("[0.5]", "[-0.5]", "row 'L1': -0.5 is no standard deviation"),
        ("n = 3", "n = 1", "row 'L1': one run has no standard deviation"),
        ("epochs = 3\n", "", "row 'L1': epochs and lr go together"),
        ('"0:0.01,2:0.001"', '"fast"', "'fast' is no learning-rate schedule"),
        ('protocol = "s3.2"\n', "", "row 'L1': give method and protocol, or say in 'unlike'"),
        ('method = "l1"', 'method = "l11"', "unknown method 'l11'. Did you mean 'l1'?"),
        ('"s3.2"', '"s3.3"', "unknown protocol 's3.3'."),
        ('"lenet5-digits"', '"lenet"', "unknown workload 'lenet'."),
    ],
)
def test_a_bad_file_is_one_line_that_names_the_file(tmp_path, old, new, message):
    with pytest.raises(ConfigError) as caught:
        _ = root(tmp_path, GOOD.replace(old, new, 1)).claims
    text = str(caught.value)
    assert text.startswith(str(tmp_path / "protocols" / "published" / "mine.toml")) and message in text
    assert "\n" not in text


def test_what_a_paper_leaves_out_is_no_claim(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(GOOD.replace("[91.0]", "[nan]"), encoding="utf-8")
    assert load_table(path).claims() == []


@pytest.mark.parametrize(("kind", "expected"), [("sample", 0.1), ("population", 0.1225), ("not said", 0.1225)])
def test_a_deviation_is_compared_as_a_sample_deviation(tmp_path, kind, expected):
    path = tmp_path / "mine.toml"
    path.write_text(GOOD.replace('"sample"', f'"{kind}"').replace("[0.5]", "[0.1]"), encoding="utf-8")
    (claim,) = load_table(path).claims()
    assert claim.sample_std == pytest.approx(expected, abs=1e-4)


CLAIMED = """
paper = "A. Uthor 2020"
source = "A paper"
table = "Table 2"
[shared]
workload = "lenet5-digits"
runs = 3
epochs = 3
schedule = "0:0.01,2:0.001"
[[claims]]
method = "l1"
protocol = "s3.2"
ratio = 0.5
speedup = 2.5
base_accuracy = "90.0"
accuracy = "91.0 ± 0.5"
[[claims]]
method = "l1, longer"
ratio = 0.7
accuracy = 89.5
schedule = "not specified"
epochs = "not specified"
"""


def test_claims_one_by_one_are_a_table_too(tmp_path):
    first, second = root(tmp_path, CLAIMED).claims["mine"].claims()
    (whole,) = root(tmp_path / "whole", GOOD).claims["mine"].claims()
    assert first.point == whole.point and (first.mean, first.std, first.epochs) == (91.0, 0.5, 3)
    assert first.schedule == whole.schedule and first.table.n == 3
    assert (second.row.unlike, second.schedule, second.std) == ("no setup of ours retrains so", None, None)
    nine = [claim for claim in TABLES["liu2019-table9"].claims() if claim.point.workload == "liu-vgg16-a-cifar10"]
    assert [(claim.mean, claim.std) for claim in nine] == [(93.62, 0.09), (93.6, 0.15), (92.65, 0.18), (92.67, 0.22)]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("runs = 3\n", "", "claim 1: runs: missing"),
        ("ratio = 0.7\n", "", "claim 2: ratio: missing"),
        ("accuracy = 89.5", 'accuracy = "good"', "'good' is no accuracy"),
        ("accuracy = 89.5", "accuracy = 89.5\nruns = 5", "unlike numbers of runs"),
        ('method = "l1"', 'method = "l11"', "unknown method 'l11'"),
    ],
)
def test_claims_that_runs_cannot_be_found_by_are_refused(old, new, message, tmp_path):
    with pytest.raises(ConfigError, match=r"mine\.toml") as refused:
        _ = root(tmp_path, CLAIMED.replace(old, new, 1)).claims
    assert message in str(refused.value) and "\n" not in str(refused.value)


# Runs that are the same


class Runs:
    """Rows of cells and runs, made by hand."""

    def __init__(self):
        self.cells, self.runs, self.curves = [], [], {}

    def add(self, *trained, method="l1", ratio=0.9, seed=0, protocol="s3.2", **fields):
        """A cell that stands on runs by these schedules: ``(epochs, schedule, accuracy)`` each."""
        about = [method, f"{ratio}", f"{seed}", protocol, *fields.get("labels", [])]
        names = ["-".join([*about, f"{number}"]) for number in range(len(trained))]
        for name, (epochs, lr, accuracy) in zip(names, trained, strict=True):
            schedule = Schedule.parse(lr)
            rates = [(float(epoch), schedule.rate(epoch, epochs)) for epoch in range(epochs)]
            self.curves[name] = Curve([accuracy] * epochs, rates)
            stage = "scratch" if method == "scratch" else "retrain"
            self.runs.append({"run": name, "stage": stage, "accuracy": accuracy, "epochs": float(epochs)})
        given = {"workload": R56, "labels": [], "budget": "full", "precision": "fp32", "status": "ok"}
        given |= {"base_accuracy": 93.78, "speedup": 11.41, "accuracy": 1.0, "runs": ["base", *names]}
        where = {"protocol": protocol, "method": method, "ratio": ratio, "seed": seed}
        self.cells.append(given | where | fields)
        return self

    def rows(self, catalog=CATALOG):
        return published(catalog, self.cells, self.runs, self.curves)

    def row(self, label="L1, step, 1e-2", ratio=0.9, file="wang2023-table6", **fields):
        (found,) = [
            row
            for row in self.rows()
            if (row["row"], row["ratio"], row["file"]) == (label, ratio, file)
            and all(row[key] == value for key, value in fields.items())
        ]
        return found


def test_every_claim_on_a_workload_is_listed_whether_or_not_we_have_it():
    rows = Runs().add((120, USUAL, 86.5)).rows()
    assert {row["file"] for row in rows} == {"wang2023-table6", "tpp2023-table1", "feng2024-figures"}
    assert len(rows) == 24 + 50 + 2
    ours = {(row["file"], row["row"]) for row in rows if row["n"]}
    assert ours == {("wang2023-table6", "L1, step, 1e-2"), ("tpp2023-table1", "L1, 1e-2")}
    assert {row["reading"] for row in rows if not row["n"]} == {"no run of ours"}
    assert all(row["difference"] is row["mean"] is row["speedup"] is None for row in rows if not row["n"])
    assert Runs().rows() == [] and Runs().add((8, "0:1", 1.0), workload="resnet20-digits").rows() == []


def test_a_run_is_the_claims_only_by_its_own_schedule():
    runs = Runs().add((120, USUAL, 86.5))
    assert runs.row()["mean"] == 86.5 and runs.row()["measured_under"] == ["s3.2"]
    for label in ("L1, step, 1e-3", "L1, cosine, 1e-2", "L1, cosine, 1e-3"):
        assert runs.row(label)["n"] == 0
    assert Runs().add((120, "cosine:1e-2:1e-4", 86.5)).row("L1, cosine, 1e-2")["mean"] == 86.5
    assert Runs().add((119, USUAL, 86.5)).row()["n"] == 0
    assert Runs().add((120, "0:1e-2,61:1e-3,90:1e-4", 86.5)).row()["n"] == 0
    # The end of their cosine from scratch is not known: no schedule is that one.
    assert Runs().add((200, "cosine:0.1:1e-4", 88.0), method="scratch").row("scratch, cosine")["n"] == 0


def test_trials_of_the_tuned_setup_hold_the_other_schedules():
    runs = Runs()
    for seed in range(2):
        runs.add((120, USUAL, 86.0 + seed), (120, SMALL, 87.0 + seed), protocol="s3.1", seed=seed)
    small, usual = runs.row("L1, step, 1e-3"), runs.row()
    assert (small["mean"], small["n"], small["measured_under"]) == (87.5, 2, ["s3.1"])
    assert small["runs"] == ["l1-0.9-0-s3.1-1", "l1-0.9-1-s3.1-1"]
    assert usual["mean"] == 86.5
    # A seed that both setups measured counts once, as the claim's own setup has it.
    both = runs.add((120, USUAL, 86.0), seed=0).row()
    assert (both["n"], both["mean"], both["measured_under"]) == (2, 86.5, ["s3.1", "s3.2"])


@pytest.mark.parametrize(
    "fields",
    [
        {"protocol": "s1"},
        {"protocol": "s2"},
        {"protocol": "s4.1"},
        {"method": "l2"},
        {"ratio": 0.7},
        {"workload": "greg-resnet56-cifar10"},
        *({"status": status} for status in ("failed", "missing", "skipped", "outdated")),
    ],
    ids=str,
)
def test_another_setup_method_or_point_is_another_run_and_what_is_not_ok_is_none(fields):
    runs = Runs().add((120, USUAL, 86.5), **fields).add((120, USUAL, 93.0), ratio=0.3)
    assert runs.row()["n"] == 0 and runs.row(ratio=0.3)["n"] == 1


def test_schedules_that_a_short_budget_makes_alike_are_told_apart():
    runs = Runs().add((2, "0:1e-2,1:1e-4", 75.0), labels=["short"], budget="short")
    assert runs.row()["n"] == 1 and runs.row("L1, cosine, 1e-2")["n"] == 0


def test_networks_from_random_weights_have_no_base_model():
    row = Runs().add((200, "0:0.1,100:0.01,150:0.001", 88.0), method="scratch", base_accuracy=50.0).row("scratch, step")
    assert row["mean"] == 88.0 and row["base"] is None and row["differs"] == []


# What is read into it


@pytest.mark.parametrize(
    ("accuracies", "reading"),
    [
        ((86.75, 86.65, 86.85), "undecided"),
        ((86.0, 87.0, 88.0), "undecided"),
        ((89.5, 89.6, 89.7), "higher"),
        ((80.0, 80.1, 80.2), "lower"),
        ((86.75,), "one seed"),
        ((), "no run of ours"),
    ],
)
def test_a_difference_is_read_from_its_interval(accuracies, reading):
    # Published: 86.75 ± 0.31 over three runs; so wide an interval of their own proves no agreement within 0.5 points.
    runs = Runs().add((120, USUAL, 93.8), ratio=0.3)
    for seed, accuracy in enumerate(accuracies):
        runs.add((120, USUAL, accuracy), seed=seed)
    row = runs.row()
    assert row["reading"] == reading
    assert (row["low"] is not None) == (len(accuracies) > 1)
    if accuracies:
        assert row["difference"] == pytest.approx(np.mean(accuracies) - 86.75)


def test_agreement_is_an_interval_within_the_margin():
    runs = Runs()
    for seed, accuracy in enumerate((93.8, 93.9, 94.0)):
        runs.add((120, USUAL, accuracy), seed=seed, ratio=0.3, speedup=1.45)
    row = runs.row(ratio=0.3)
    assert row["reading"] == "agrees" and -0.5 < row["low"] < row["high"] < 0.5


def test_without_their_deviation_nothing_is_decided():
    runs = Runs()
    for seed in range(3):
        where = {"workload": "greg-resnet50-imagenet", "ratio": 0.567, "speedup": 2.31, "method": "tpp", "seed": seed}
        runs.add((90, "0:1e-2,30:1e-3,60:1e-4,75:1e-5", 75.6 + seed / 10), **where)
    row = runs.row("TPP", 0.567, "tpp2023-table2")
    assert (row["reading"], row["n"], row["low"]) == ("no std", 3, None)


def test_another_network_is_not_compared():
    runs = Runs()
    for seed in range(3):
        runs.add((120, USUAL, 86.7 + seed / 10), seed=seed, speedup=9.0, base_accuracy=90.0)
    row = runs.row()
    assert row["reading"] == "not comparable" and row["low"] is None
    assert row["differs"] == ["speedup 9.00x, theirs 11.41x", "base model 90.00 %, theirs 93.78 %"]


@pytest.mark.parametrize(
    ("label", "fields", "trained", "what"),
    [
        ("short", {"budget": "short"}, (2, "0:1e-2,1:1e-4"), "budget short: 2 of 120 epochs"),
        ("bf16", {"precision": "bf16"}, (120, USUAL), "precision bf16"),
        ("base12345678", {}, (120, USUAL), "base model from a file (base12345678)"),
    ],
)
def test_other_settings_are_shown_with_what_differs_and_never_as_the_same(label, fields, trained, what):
    runs = Runs()
    for seed in range(3):
        runs.add((*trained, 86.7 + seed / 10), seed=seed, labels=[label], **fields)
    row = runs.row()
    assert (row["labels"], row["n"], row["reading"]) == ([label], 3, "not comparable")
    assert row["low"] is None and row["difference"] is not None and what in row["differs"]
    # Full-length cells beside them have rows of their own.
    runs.add((120, USUAL, 86.7))
    assert runs.row(labels=[])["n"] == 1 and runs.row(labels=[label])["n"] == 3


def test_the_interval_is_welchs():
    left, right = (86.1, 87.3, 86.6, 86.9), (85.0, 85.2, 85.9)
    expected = stats.ttest_ind(left, right, equal_var=False).confidence_interval(0.95)
    found = welch(np.mean(left) - np.mean(right), (np.std(left, ddof=1), 4), (np.std(right, ddof=1), 3))
    assert found == pytest.approx((expected.low, expected.high))
    assert welch(1.0, (0.0, 3), (0.0, 3)) == (1.0, 1.0)


# Tables


def shown(runs, labels=()):
    results = Results(runs.cells, [])
    results.published = runs.rows()
    rows = results.of("published", R56, labels)
    return published_table(rows), published_notes(rows)


def test_a_table_shows_both_sides_and_every_gap():
    runs = Runs()
    for seed, accuracy in enumerate((89.5, 89.6, 89.7)):
        runs.add((120, USUAL, accuracy), seed=seed, speedup=11.58)
    (header, table), notes = shown(runs)
    assert len(table) == 76 and all(len(line) == len(header) for line in table)
    lines = {(line[0], line[1], line[3]): dict(zip(header, line, strict=True)) for line in table}
    assert lines["Wang et al. 2023, Table 6", "L1, step, 1e-2", "0.9"] == {
        "table": "Wang et al. 2023, Table 6",
        "row": "L1, step, 1e-2",
        "setup": "s3.2",
        "ratio": "0.9",
        "retraining": "120 epochs, 0:0.01,60:0.001,90:0.0001",
        "published": "86.75 ± 0.31 (n = 3, 11.41x)",
        "ours": "89.60 ± 0.10 (n = 3, 11.58x)",
        "difference": "+2.85 [+1.98, +3.72]",
        "reading": "higher",
        "differs": "speedup 11.58x, theirs 11.41x",
    }
    gap = lines["TPP, Wang & Fu 2023, Table 1", "TPP, 1e-2", "0.95"]
    assert (gap["ours"], gap["difference"], gap["reading"]) == ("–", "", "no run of ours")
    assert lines["Feng et al. 2024, scatter plots", "mean of 1,000 sets", "0.5"]["setup"] == "none"
    (tpp,) = [note for note in notes if note.startswith("TPP")]
    assert "best epoch on the test set" in tpp and "of the population (n)" in tpp and "110,000 steps" in tpp
    assert not any("reproduced" in value for line in table for value in line)
    assert "Nothing else is called reproduced" in PUBLISHED_NOTE


def test_labels_have_tables_of_their_own():
    runs = Runs().add((120, USUAL, 86.0)).add((2, "0:1e-2,1:1e-4", 60.0), labels=["short"], budget="short")
    full, short = (dict(zip(range(99), shown(runs, labels)[0][1], strict=False)) for labels in ((), ("short",)))
    assert not any("60.00" in line[6] for line in full.values())
    assert any("60.00" in line[6] for line in short.values())
    assert shown(runs, ("fp64",)) == ((shown(runs)[0][0], []), [])


# From a ledger


def test_a_ledger_beside_a_paper(tmp_path):
    catalog = root(tmp_path / "content")
    ledger = Ledger(tmp_path / "ledger")
    for seed, accuracy in enumerate((90.0, 91.0, 92.0)):
        store(ledger, scored(evidence("l1", seed=seed), accuracy))
    store(ledger, scored(evidence("l1", "s4.2", seed=7), 50.0))
    store(ledger, scored(evidence("l1", seed=5, budget="smoke"), 11.0))
    broken = failed_cell(Cell("lenet5-digits", "s3.2", "l1", 0.5, 6))
    ledger.save_cell(broken, broken.cell.id)
    results = gather_ledger(catalog, ledger)
    (full, smoke) = published(catalog, results.cells, results.runs, results.curves)
    assert (full["mean"], full["std"], full["n"], full["speedup"]) == (91.0, 1.0, 3, 2.5)
    assert (full["published_mean"], full["published_std"], full["difference"]) == (91.0, 0.5, 0.0)
    assert full["reading"] == "undecided" and full["base"] == 90.0 and full["differs"] == []
    assert all(ledger.get(run).stage == "retrain" for run in full["runs"])
    # Its three epochs are no scaled recipe: another schedule than the claim's at that budget.
    assert (smoke["labels"], smoke["n"]) == (["smoke"], 0)


def test_rows_are_builtins_with_the_same_columns():
    rows = Runs().add((120, USUAL, 86.0)).rows()
    assert len({tuple(row) for row in rows}) == 1
    for row in rows:
        for value in row.values():
            assert value is None or type(value) in (str, int, float, list)
            assert not isinstance(value, float) or math.isfinite(value)


def test_the_wheel_takes_the_tables_along():
    text = (Path(__file__).resolve().parent.parent / "pyproject.toml").read_text(encoding="utf-8")
    assert re.search(r'^protocols = "pruneaudit/protocols"$', text, re.M)
