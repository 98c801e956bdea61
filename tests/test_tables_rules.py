"""Rules of tables: each finds its planted table, and says nothing of the honest one beside it."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pruneaudit.cli import tables
from pruneaudit.tables.catalogue import rules
from pruneaudit.tables.command import audit_files
from pruneaudit.tables.numbers import most_spread, parse
from pruneaudit.tables.rules.accuracies import _possible

R56 = "## ResNet-56 / CIFAR-10\n\n"
R50 = "## ResNet-50 / ImageNet\n\n"
V19 = "## VGG-19 / CIFAR-100\n\n"


def table(*rows, title=R56):
    header, *body = rows
    return (
        "\n".join([title, f"| {header} |", "|" + "---|" * (header.count("|") + 1), *(f"| {row} |" for row in body)])
        + "\n"
    )


# Rule: what it must find, how often, and the same table without the mistake.
CASES = {
    "T001": (
        table("Method | Base (%) | Pruned (%) | Δ Acc (%)", "A | 93.53 | 93.77 | +0.38", "B | 93.53 | 92.93 | -0.60"),
        1,
        table("Method | Base (%) | Pruned (%) | Δ Acc (%)", "A | 93.53 | 93.77 | +0.25", "B | 93.53 | 92.93 | -0.60"),
    ),
    "T002": (
        table(
            "Method | Baseline | Top-1 | Acc. drop", "A | 76.15 | 74.61 | 2.02", "B | 76.15 | 75.15 | 1.00", title=R50
        ),
        1,
        table(
            "Method | Baseline | Top-1 | Rel. drop", "A | 76.15 | 74.61 | 2.02", "B | 76.15 | 75.39 | 1.00", title=R50
        ),
    ),
    "T003": (
        table("Method | Accuracy (%)", "A | 93.5", "B | 0.931", "C | 92.8"),
        1,
        table("Method | Accuracy", "A | 0.935", "B | 0.931", "C | 0.928"),
    ),
    "T004": (
        table(
            "Model | Method | Accuracy",
            "ResNet-20 | Scratch-E | 92.22 ± 0.15",
            "ResNet-32 | Scratch-E | 93.42 ± 0.40",
            "ResNet-56 | Scratch-E | 93.42 ± 0.40",
            "ResNet-110 | Scratch-E | 94.21 ± 0.39",
            title="## CIFAR-10\n",
        ),
        1,
        # On 359 images so many means agree that equal pairs are no news; and one result may stand under two names.
        table(
            "Method | Accuracy",
            "A | 97.03 ± 0.28",
            "B | 97.03 ± 0.28",
            "C | 97.31 ± 0.28",
            "D | 97.31 ± 0.56",
            "scratch | 96.10 ± 1.28",
            "scratch-e | 96.10 ± 1.28",
        ),
    ),
    "T005": (
        table("Method | Accuracy | Runs", "A | 93.537 | 1", "B | 93.54 | 1", "C | 93.543 | 3"),
        1,
        table("Method | Accuracy | Runs", "A | 93.530 | 1", "B | 93.54 | 1", "C | 93.543 | 3", "D | 93.537 |"),
    ),
    "T006": (
        table(
            "Method | Accuracy | n",
            *("A | 93.337 ± 0.000 | 3", "B | 93.51 ± 0.16 | 1", "C | 93.335 ± 0.001 | 2"),
            *("D | 93.50 ± 50 | 5", "E | 93.50 ± 50 |", "F | 93.50 ± -0.5 | 3", "G | 93.50 ± 28.5 | 5"),
        ),
        7,
        # Another number than a deviation may stand in parentheses, such as Top-5's.
        table(
            "Method | Accuracy | n",
            *("A | 93.33 ± 0.01 | 3", "B | 93.51 ± 0.16 | 3", "C | 92.27 ± 0.00 | 3"),
            *("D | 93.50 (98.7) | 1", "E | 93.50 ± 27 | 5", "F | 93.50 ± 34 |", "G | 99.99 ± 0.0 | 3"),
        ),
    ),
    "T007": (
        table("Method | Accuracy", "A | **93.81**", "B | 93.79", "C | 92.00"),
        1,
        table("Method | Accuracy", "A | **94.81**", "B | 93.79", "C | 92.00"),
    ),
    "T008": (
        table("Method | Accuracy | Speed Up", "A | **93.64** | 2.00x", "B | 93.99 | 2.00x", "C | 93.01 | 2.00x"),
        1,
        # Better, but pruned less: bold is best of its size.
        table("Method | Accuracy | Speed Up", "A | **93.64** | 2.00x", "B | 93.99 | 1.50x", "C | 92.01 | 2.00x"),
    ),
    "T009": (
        table("Method | Base MACs (M) | MACs (M) | Speed Up", "A | 125.5 | 62.7 | 2.55x", "B | 125.5 | 62.7 | 2.00x"),
        1,
        table("Method | Base MACs (M) | MACs (M) | Speed Up", "A | 125.5 | 49.2 | 2.55x", "B | 125.5 | 62.7 | 2.00x"),
    ),
    "T010": (
        table("Method | FLOPs ↓ | Speedup", "A | 37% | 2.70x", "B | 52% | 2.08x"),
        1,
        table("Method | FLOPs ↓ | Speedup", "A | 63% | 2.70x", "B | 52% | 2.08x"),
    ),
    "T011": (
        table(
            "Model | Method | Base FLOPs (G) | FLOPs (G)",
            "ResNet-50 | A | 4.1 | 2.0",
            "ResNet-34 | B | 3.6 | 2.0",
            "ResNet-50 | C | 7.7 | 3.8",
            title="## ImageNet\n",
        ),
        1,
        table(
            "Model | Method | Base FLOPs (G) | FLOPs (G)",
            "ResNet-50 | A | 8.2 | 4.0",
            "ResNet-34 | B | 7.3 | 4.0",
            "ResNet-50 | C | 7.7 | 3.8",
            title="## ImageNet\n",
        ),
    ),
    "T012": (
        table("Method | Base MACs (G) | Base params (M)", "A | 2.6 | 25.6", "B | 4.1 | 18.0", title=R50),
        2,
        table("Method | Base MACs (G) | Base params (M)", "A | 4.14 | 25.6", "B | 3.8 | 25.5", title=R50),
    ),
    "T013": (
        table("Method | Speedup | Base params (M) | Params (M)", "A | 0.63x | 25.6 | 16.1", "B | 2.0x | 25.6 | 26.1"),
        2,
        table("Method | Speedup | Base params (M) | Params (M)", "A | 1.59x | 25.6 | 16.1", "B | 2.0x | 25.6 | 13.1"),
    ),
    "T014": (
        table("Method | PR | Speedup", "L1 | 0.3 | 1.23x", "L1 | 0.5 | 1.97x", "L1 | 0.7 | 3.60x", title=V19),
        3,
        table("Method | PR | Speedup", "L1 | 0.1 | 1.23x", "L1 | 0.3 | 1.97x", "L1 | 0.5 | 3.60x", title=V19),
    ),
    "T015": (
        table("Method | Tier | Params left (%)", "A | 2x | 27", "B | 2x | 71", "C | 4x | 20"),
        1,
        table("Method | Tier | Params left (%)", "A | 2x | 50", "B | 2x | 61", "C | 4x | 20"),
    ),
    "T016": (
        table("method | accuracy | accuracy_setting | macs_setting", "A | 93.6 | alpha=1 | alpha=2"),
        1,
        table("method | accuracy | accuracy_setting | macs_setting", "A | 93.6 | alpha=1 | alpha=1"),
    ),
    "T017": (
        table("Method | Accuracy", "A | 93.81", "B | 93.02"),
        1,
        table("Method | Accuracy | Runs", "A | 93.81 ± 0.11 | 3", "B | 93.02 ± 0.2 | 3"),
    ),
    "T018": (
        table("method | accuracy | epoch_reported", "A | 93.81 | best", "B | 93.02 | last"),
        1,
        table("method | accuracy | epoch_reported", "A | 93.81 | last", "B | 93.02 | last"),
    ),
    "T019": (
        table("Method | Ratio | Accuracy", "A | 0.5 | 93.8", "B | 0.5 | 93.1", "A | 0.9 | 90.1", "B | 0.9 | 88"),
        1,
        table("Method | Ratio | Accuracy", *(f"{m} | 0.{r} | 9{5 - r}.1" for m in "AB" for r in (1, 2, 3, 4, 5))),
    ),
    "T020": (
        table("Method | Accuracy", "A | 93.81", "L1 | 93.02"),
        1,
        table("Method | Accuracy", "A | 93.81", "L1-norm | 93.02", "Random | 92.1", "Scratch-B | 93.5"),
    ),
    "T021": (
        table("Method | Baseline | Accuracy", "A | 93.93 | 93.5", "B | 92.80 | 92.7"),
        1,
        table("Method | Baseline | Accuracy", "A | 93.53 | 93.5", "B | 93.5 | 92.7"),
    ),
    "T022": (
        table("Method | Accuracy | Fine-tuning epochs", "A | 93.81 | 180", "B | 93.02 | 20"),
        1,
        # Training from scratch is longer by what it is; and a budget is one, however it is written.
        table(
            "Method | Accuracy | Epochs | LR schedule",
            *(
                "A | 93.81 | 40 | 0:1e-2, 60:.001",
                "B | 93.02 | 40.0 | 0:0.01,60:1e-3",
                "Scratch-E | 93.5 | 160 | cosine",
            ),
        ),
    ),
    "T023": (
        table("method | accuracy | origin", "A | 93.81 | own", "B | 93.02 | copied"),
        1,
        table("method | accuracy | origin", "A | 93.81 | own", "B | 93.02 | own"),
    ),
    "T024": (
        table("Method | Accuracy | Framework", "A | 71.0 | Caffe", "B | 71.5 | PyTorch"),
        1,
        table("Method | Accuracy | Framework", "A | 71.0 | PyTorch", "B | 71.5 | PyTorch"),
    ),
}


def found(tmp_path, text, name="table.md"):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return audit_files([path]).findings


def test_every_rule_has_a_planted_and_an_honest_table():
    assert set(CASES) == set(rules())


@pytest.mark.parametrize("rule_id", CASES)
def test_a_rule_finds_what_is_planted_and_nothing_in_an_honest_table(rule_id, tmp_path):
    planted, count, honest = CASES[rule_id]
    assert [one.rule.id for one in found(tmp_path, planted)].count(rule_id) == count
    assert rule_id not in [one.rule.id for one in found(tmp_path, honest)]


@pytest.mark.parametrize("rule", rules().values(), ids=lambda rule: rule.id)
def test_a_rule_says_what_it_claims_who_asks_and_what_breaks_it(rule):
    assert rule.claim and rule.source and rule.explanation and rule.example


HONEST = table(
    "Method | Ratio | Base MACs (M) | MACs (M) | Speedup | Base (%) | Accuracy (%) | Drop | Runs | Epochs",
    *(
        f"{name} | 0.{ratio} | 125.5 | {125.5 / speedup:.1f} | {speedup}x | 93.53 | {accuracy:.2f} ± 0.1{ratio} | "
        f"{93.53 - accuracy:.2f} | 5 | {160 if name == 'Scratch' else 40}"
        for place, name in enumerate(("Mine", "L1", "Random", "Scratch"))
        for ratio, speedup in ((1, 1.14), (3, 1.45), (5, 1.99), (7, 3.59), (9, 11.58))
        for accuracy in (93.6 - 0.11 * ratio - 0.13 * place,)
    ),
)


def test_an_honest_table_prints_nothing_and_exits_with_0(tmp_path):
    path = tmp_path / "honest.md"
    path.write_text(HONEST, encoding="utf-8")
    done = subprocess.run([sys.executable, "-m", "pruneaudit", "tables", path], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")
    assert "Drop = drop" in done.stderr, "the guess is printed"


def test_two_files_tell_that_a_row_was_made_of_two_settings(tmp_path):
    (tmp_path / "detail.md").write_text(
        table("Method | FLOPs ↓ | Accuracy", "A | 40% | 93.64", "A | 50% | 93.20"), encoding="utf-8"
    )
    (tmp_path / "summary.md").write_text(table("Method | FLOPs ↓ | Accuracy", "A | 50% | 93.64"), encoding="utf-8")
    both = audit_files([tmp_path / "detail.md", tmp_path / "summary.md"])
    (finding,) = [one for one in both.findings if one.rule.id == "T016"]
    assert finding.mark.table.path.name == "summary.md" and "93.20" in finding.mark.message


def test_the_direction_of_a_difference_is_the_columns(tmp_path):
    drops = "A | 93.5 | 93.0 | 0.5", "B | 93.5 | 92.0 | 1.5", "C | 93.5 | 92.5 | -1.0"
    (finding,) = [one for one in found(tmp_path, table("Method | Base | Acc | Drop", *drops)) if one.rule.id == "T001"]
    assert finding.mark.subject == "C" and "sign" in finding.mark.message and finding.mark.expected == "+1.0"


@pytest.mark.parametrize(
    ("rows", "wrong"),
    [
        # An arrow is the sign, beside numbers with a sign and beside unsigned drops.
        (["A | 93.5 | 93.0 | ↓ 0.5%", "B | 93.5 | 92.0 | -1.5", "C | 93.5 | 93.8 | +0.3"], []),
        (["A | 93.5 | 93.0 | 0.5", "B | 93.5 | 92.0 | 1.5", "C | 93.5 | 93.6 | ↑0.1"], []),
        (["A | 93.5 | 93.0 | ↓0.5", "B | 93.5 | 92.0 | 1.5 ↓", "C | 93.5 | 92.5 | ↑1.0"], ["C"]),
        # In parentheses it is no deviation.
        (["A | 93.5 | 93.0 (↓0.5) |", "B | 93.5 | 92.0 (↓1.5) |", "C | 93.5 | 92.5 (↓1.5) |"], ["C"]),
        (["A | 0.935 | 0.930 (↓0.005) |", "B | 0.935 | 0.920 (-0.015) |", "C | 0.935 | 0.925 (↑0.015) |"], ["C"]),
    ],
)
def test_an_arrow_is_the_sign_of_a_difference(rows, wrong, tmp_path):
    marks = found(tmp_path, table("Method | Base | Acc | Diff | Runs", *(f"{row} | 1" for row in rows)))
    assert [one.mark.subject for one in marks if one.rule.kind == "contradiction"] == wrong


def test_a_share_behind_an_arrow_is_removed_and_never_added(tmp_path):
    rows = "Method | Acc | FLOPs (G) | FLOPs reduction", "A | 75 | 2.0 (↓51.1%) | 51.1%", "B | 75 | 4.2 (↑4.0%) | ↑4.0%"
    path = tmp_path / "table.md"
    path.write_text(table(*rows), encoding="utf-8")
    first, second = audit_files([path]).tables[0].rows
    assert first.number("macs_removed").value == pytest.approx(0.511) and second.number("macs_removed") is None


def test_filters_leave_at_least_the_square_of_what_is_kept(tmp_path):
    header = "method | granularity | ratio | speedup"
    rows = ["A | filter | 0.5 | 8.0x", "B | filter | 0.5 | 3.9x", "C | weight | 0.5 | 8.0x"]
    marks = [one.mark for one in found(tmp_path, table(header, *rows, title=R50)) if one.rule.id == "T014"]
    # 0.5 may be 0.55 as printed.
    assert [mark.subject for mark in marks] == ["A"] and "20.2 % of the MACs" in marks[0].message


def test_units_are_read_off_pruned_macs_and_speedup_too(tmp_path):
    header = "Model | Method | FLOPs (G) | Speedup"
    rows = ["ResNet-50 | A | 2.05 | 2.0x", "ResNet-34 | B | 1.83 | 2.0x", "ResNet-50 | C | 4.1 | 2.0x"]
    marks = [one.mark for one in found(tmp_path, table(header, *rows, title="## ImageNet\n")) if one.rule.id == "T011"]
    assert [mark.subject for mark in marks] == ["C"] and "two for each multiply-add" in marks[0].message


def test_what_a_cell_calls_macs_is_not_the_double(tmp_path):
    rows = ["A | 8.2G FLOPs | 4.1G FLOPs", "B | 8.2G MACs | 4.1G MACs"]
    marks = found(tmp_path, table("Method | Base FLOPs | FLOPs", *rows, title=R50))
    assert [one.mark.subject for one in marks if one.rule.id == "T011"] == ["B"]


def test_a_budget_is_one_however_it_is_written(tmp_path):
    path = tmp_path / "table.md"
    rows = "A | 93.81 | 40 | 0:1e-2", "B | 93.02 | 40.0 | 0: 0.01", "C | 93 | 40 | 0:.1"
    header = "Method | Acc | Epochs | LR schedule | PR | Base"
    path.write_text(table(header, *(f"{row} | 0.5 | 93.9" for row in rows)), encoding="utf-8")
    shown = {(one.arms[0].method, one.arms[1].method): one.name for one in audit_files([path]).setups()}
    assert shown == {("A", "B"): "S3.2", ("A", "C"): "S3.1", ("B", "C"): "S3.1"}


@pytest.mark.parametrize(
    ("base", "wrong"),
    [
        ("Baseline | 93.26 | – | 125.5 | 0 | 1x", {"Drop": ["0.50"], "Speed": ["2.00x"]}),
        ("ResNet-56 (base) | 93.26 | 0.0 | 125.5 | – | –", {"Drop": ["0.50"], "Speed": ["2.00x"]}),
        # Pruned, of two that are called so, or of another unit: no base of the others.
        ("Baseline | 93.26 | – | 62.7 | 50.0 | 2x", {}),
        ("Baseline | 93.26 | 0.4 | 125.5 | – | –", {}),
        ("Baseline | 93.26 | – | 125.5 | – | –\nBaseline, longer | 93.46 | – | 125.5 | – | –", {}),
        ("Baseline | – | – | 125.5M | – | –", {"Speed": ["2.00x"]}),
    ],
)
def test_rows_are_held_against_the_base_in_a_row_of_its_own(base, wrong, tmp_path):
    rows = [
        *base.split("\n"),
        "A | 93.06 | 0.20 | 88.7 | 29.3 | 1.41x",
        "Gains | 93.56 | -0.30 | 88.7 | 29.3 | 1.41x",
        # Another counter, and a difference that is relative.
        "Counter | 92.00 | 1.35 | 91.0 | 29.3 | 1.41x",
        "Drop | 93.06 | 0.50 | 88.7 | 29.3 | 1.41x",
        "Speed | 93.06 | 0.20 | 88.7 | – | 2.00x",
        "Scratch | 93.06 | 0.90 | 88.7 | – | 1.41x",
    ]
    marks = found(tmp_path, table("Method | Acc (%) | Acc. drop | FLOPs (M) | FLOPs ↓ (%) | Speedup", *rows))
    assert not [one for one in marks if one.rule.kind == "contradiction"], "it may be of another base"
    bases = [one.mark for one in marks if one.rule.id == "T021"]
    assert {mark.subject for mark in bases} == set(wrong)
    assert all(text in mark.message for mark in bases for text in wrong[mark.subject])


def test_ranks_are_held_against_the_numbers_and_their_error(tmp_path):
    rows = ["1 | A | 95.00", "2 | B | 93.61", "3 | C | 93.60", "4 | D | 93.70", "5 | E | 90.00"]
    found_by = {}
    for one in found(tmp_path, table("Rank | Method | Top-1", *rows)):
        found_by.setdefault(one.rule.id, []).append(one.mark)
    (ties,) = found_by["T007"]
    assert ties.message.startswith("2 of 4 neighbours in rank are closer than the standard error")
    (wrong,) = found_by["T008"]
    assert wrong.subject == "D" and "below rank 3 with 93.60" in wrong.message


def test_stated_deviations_decide_what_a_lead_is(tmp_path):
    """Sample deviations of many runs are smaller than the binomial error: training varies less than the test set."""
    rows = ["A | **93.81 ± 0.02** | 5", "B | 93.70 ± 0.02 | 5"]
    assert "T007" not in {one.rule.id for one in found(tmp_path, table("Method | Accuracy | Runs", *rows))}
    rows = ["A | **93.81 ± 0.4** | 5", "B | 93.70 ± 0.4 | 5"]
    assert "T007" in {one.rule.id for one in found(tmp_path, table("Method | Accuracy | Runs", *rows))}


def test_a_speedup_that_counts_something_else_is_said_once(tmp_path):
    rows = [f"{name} | 125.5 | 62.7 | {speed}x" for name, speed in zip("ABCD", (1.31, 1.33, 1.37, 1.29), strict=True)]
    marks = [
        one
        for one in found(tmp_path, table("Method | Base MACs (M) | MACs (M) | Speedup", *rows))
        if one.rule.id == "T009"
    ]
    assert len(marks) == 1 and "none of 4 rows" in marks[0].mark.message


@pytest.mark.parametrize(
    ("header", "rows", "wrong"),
    [
        ("Method | Acc | Std", ["A | 93.5 | 50", "B | 93.5 | -0.2", "C | 93.5 | 0.2"], ["A", "B"]),
        ("Method | Acc | Deviation from base", ["A | 93.5 | 0.1", "B | 93.5 | -0.2"], []),
        ("Method | Acc | Std (%)", ["A | 0.935 | 0.5", "B | 0.931 | 0.4"], []),
    ],
)
def test_a_deviation_of_a_column_of_its_own_is_possible(header, rows, wrong, tmp_path):
    marks = found(tmp_path, table(header, *rows))
    assert [one.mark.subject for one in marks if one.rule.kind == "contradiction"] == wrong


@given(answers=st.lists(st.integers(0, 359), min_size=2, max_size=8), decimals=st.integers(0, 4))
@settings(max_examples=80, deadline=None)
def test_no_real_deviation_is_beyond_the_largest(answers, decimals):
    import statistics

    values = [100 * count / 359 for count in answers]
    mean, spread = (parse(f"{value:.{decimals}f}") for value in (statistics.fmean(values), statistics.stdev(values)))
    assert spread.low <= most_spread(mean, len(values)) + 1e-9


@given(
    answers=st.lists(st.integers(0, 359), min_size=1, max_size=8),
    decimals=st.integers(1, 4),
    population=st.booleans(),
)
@settings(max_examples=80, deadline=None)
def test_results_of_real_runs_are_never_called_impossible(answers, decimals, population):
    import statistics

    values = [100 * count / 359 for count in answers]
    mean = statistics.fmean(values)
    spread = statistics.pstdev(values) if population or len(values) == 1 else statistics.stdev(values)
    printed = [parse(f"{value:.{decimals}f}") for value in (mean, spread)]
    assert len(values) == 1 or _possible(*printed, len(values), 359, "")


@given(st.floats(50, 99), st.floats(50, 99), st.integers(0, 3), st.integers(0, 3), st.integers(0, 3), st.booleans())
@settings(max_examples=60, deadline=None)
def test_rounding_is_never_a_contradiction(base, after, first, second, third, is_change):
    import tempfile

    drop = (after - base) if is_change else (base - after)
    row = f"A | {base:.{first}f} | {after:.{second}f} | {drop:.{third}f}"
    with tempfile.TemporaryDirectory() as folder:
        names = {one.rule.id for one in found(Path(folder), table("Method | Base | Acc | Drop", row))}
    assert not names & {"T001", "T002"}


def test_findings_as_json_and_sarif(tmp_path, capsys):
    path = tmp_path / "table.md"
    path.write_text(CASES["T001"][0], encoding="utf-8")
    tables([path], as_json=True, fail_on="none")
    content = json.loads(capsys.readouterr().out)
    (finding,) = [one for one in content["findings"] if one["rule"] == "T001"]
    assert (finding["row"], finding["expected"], finding["line"]) == ("A", "+0.24", 6)
    tables([path], as_sarif=True, fail_on="none")
    run = json.loads(capsys.readouterr().out)["runs"][0]
    place = run["results"][0]["locations"][0]["physicalLocation"]
    assert place["artifactLocation"]["uri"].endswith("table.md") and place["region"]["startLine"] >= 1
    assert {one["ruleId"] for one in run["results"]} == {one["id"] for one in run["tool"]["driver"]["rules"]}
