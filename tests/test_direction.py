"""Where lower is better, "better" means lower everywhere: in verdicts, words, tables, plots and the gate."""

import csv
import json
import re
from dataclasses import replace

import numpy as np
import pytest
from builders import CATALOG, SEEDS, catalog_by, changed, evidence, measured_by, scored, store
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure

from pruneaudit.audit.catalogue import get_rule
from pruneaudit.audit.evidence import Case, Table
from pruneaudit.audit.statistics import difference, word
from pruneaudit.audit.verdicts import Judged, decide, tiers
from pruneaudit.catalog.cells import Comparison
from pruneaudit.ledger.records import CellScores, Scores
from pruneaudit.ledger.store import Ledger
from pruneaudit.report.badge import badge
from pruneaudit.report.figures import sheets
from pruneaudit.report.frames import load
from pruneaudit.report.github import error_lines
from pruneaudit.report.page import page
from pruneaudit.report.payload import payload
from pruneaudit.report.published import published
from pruneaudit.report.results import gather_ledger
from pruneaudit.report.schema import ResultsFile
from pruneaudit.report.sentences import sentences
from pruneaudit.report.standings import profiles
from pruneaudit.report.tables import accuracy_table, standings_table
from pruneaudit.report.terminal import summary
from pruneaudit.report.writer import markdown, write
from pruneaudit.workloads.metrics import ACCURACY, BUILT_IN, Metric

PERPLEXITY = Metric(name="perplexity")
WHERE = ("lenet5-digits", ())
#: Perplexities: l1's is the lowest, random's the highest, above what a percentage can be.
LEVELS = {"l1": 10.0, "tpp": 12.0, "random": 150.0}
NOISE = (0.0, 0.02, -0.02, 0.03, -0.03, 0.01, -0.01)


def filled(ledger, metric=PERPLEXITY, levels=LEVELS, protocol="s3.2"):
    """Arms over enough seeds for a verdict, all with the same accuracies."""
    for method, level in levels.items():
        for seed in SEEDS:
            arm = evidence(method, protocol, seed, trials=3 if protocol == "s3.1" else 1)
            # Not the same at every seed, and not for two methods.
            value = level + NOISE[seed] * (2 if method == "tpp" else 1)
            store(ledger, measured_by(scored(arm, 80.0), metric, value))
    return ledger


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("direction")


@pytest.fixture(scope="module")
def results(folder):
    return gather_ledger(catalog_by(PERPLEXITY), filled(Ledger(folder / "ledger")))


@pytest.fixture(scope="module")
def written(results, folder):
    write(results, folder / "report")
    return folder / "report"


def by_arms(results):
    return {" ".join(row["arms"]): row for row in results.verdicts}


# Verdicts and their words


def test_the_lower_one_is_better(results):
    verdicts = by_arms(results)
    assert {arms: row["verdict"] for arms, row in verdicts.items()} == {
        "l1 random": "better",
        "l1 tpp": "better",
        "random tpp": "worse",
    }
    # First minus second, as measured: what is better has the lower value.
    gap = verdicts["l1 tpp"]["difference"]
    assert gap["mean"] == pytest.approx(-2.0) and gap["high"] < 0 and gap["margin"] == 0.1
    assert verdicts["l1 tpp"]["summary"].startswith("-2.00 (lower is better), 95 % interval [-2.0")
    assert "differences below 0.1 do not matter" in verdicts["l1 tpp"]["summary"]


def test_sentences_say_it(results):
    told = {sentence.text.split(":")[0]: sentence for sentence in sentences(results.verdicts, PERPLEXITY)}
    assert set(told) == {"l1 is better than random", "l1 is better than tpp", "random is worse than tpp"}
    assert "-2.00 (lower is better), 95 % interval -2.0" in told["l1 is better than tpp"].text
    assert "points" not in "".join(sentence.text for sentence in told.values())


def test_a_difference_within_the_metrics_margin_is_equivalent_whatever_the_protocols_is(tmp_path):
    # 0.2 apart: within the protocol's 0.5 percentage points, and above the metric's 0.1.
    apart = filled(Ledger(tmp_path / "apart"), levels={"l1": 10.0, "tpp": 10.2})
    near = filled(Ledger(tmp_path / "near"), levels={"l1": 10.0, "tpp": 10.02})
    assert CATALOG.protocol("s3.2").margin == 0.5
    (row,) = gather_ledger(catalog_by(PERPLEXITY), apart).verdicts
    assert row["verdict"] == "better"
    found = gather_ledger(catalog_by(PERPLEXITY), near)
    assert found.verdicts[0]["verdict"] == "equivalent"
    (sentence,) = sentences(found.verdicts, PERPLEXITY)
    assert sentence.text == "l1 and tpp are equivalent: they differ by less than 0.1."


def test_standings_are_best_first(results):
    ((_, _, *groups),) = standings_table(results, *WHERE)[1]
    assert groups == ["l1", "tpp", "random"]


def test_there_is_no_mcnemar_without_outcomes_and_the_report_says_why(results):
    assert all(row["images"] == {} for row in results.verdicts)
    assert "No McNemar's test: perplexity has no outcome for each test image." in markdown(results)


# What is shown


def test_no_table_speaks_of_accuracy(results):
    text = markdown(results)
    assert "## lenet5-digits: perplexity\n\nTest perplexity (lower is better) after the last epoch" in text
    assert "Base model: 50.00 ± 0.00 (n = 7, speedup 1)." in text
    assert "First arm minus second, perplexity (lower is better), over paired seeds" in text
    assert "- lenet5-digits: perplexity (lower is better); differences below 0.1 do not matter" in text
    # Rules and protocols are about what they are about; all before them is about these results.
    shown = text.partition("## Protocols")[0]
    assert "accura" not in shown and "points" not in shown
    assert ["s3.2", "l1", "7", "10.00 ± 0.02"] in accuracy_table(results, *WHERE)[1]


def test_the_terminal_and_github_say_it(results):
    text = "\n".join(summary(results, lambda row: row["verdict"] == "worse"))
    assert "lenet5-digits: test perplexity (lower is better) at the last epoch" in text
    assert "first arm minus second, perplexity (lower is better)" in text
    assert "FAILS: lenet5-digits s3.2 ratio 0.5: random against tpp: worse; +138.00 (lower is better)" in text
    assert "accura" not in text
    (line,) = error_lines(results, lambda row: row["verdict"] == "worse")
    assert "random against tpp" in line and "lower is better" in line
    assert badge(results).message.startswith("fair")


def test_files_are_named_after_the_metric(written):
    names = {path.name for path in (written / "tables").iterdir()}
    assert {"perplexity.csv", "perplexity-lenet5-digits-s3.2.tex"} <= names
    assert "accuracy.csv" not in names
    with (written / "tables" / "perplexity.csv").open() as file:
        means = {row["method"]: float(row["mean"]) for row in csv.DictReader(file)}
    assert means == pytest.approx(LEVELS)


def test_only_the_lowest_is_bold_in_latex(written):
    text = (written / "tables" / "perplexity-lenet5-digits-s3.2.tex").read_text()
    bold = [line.split(" & ")[0] for line in text.splitlines() if r"\textbf" in line]
    assert bold == ["l1"]
    assert "Test perplexity (lower is better) of lenet5-digits" in text
    assert "ccura" not in text


def test_results_json_keeps_its_layout_and_names_the_metric(written):
    content = json.loads((written / "results.json").read_text())
    assert content["metrics"]["lenet5-digits"]["direction"] == "lower"
    row = next(row for row in content["cells"] if row["method"] == "l1" and row["seed"] == 0)
    assert (row["metric"], row["value"], row["base_value"]) == ("perplexity", 10.0, 50.0)
    # What is called accuracy is accuracy.
    assert row["accuracy"] == 80.0
    assert {verdict["metric"] for verdict in content["verdicts"]} == {"perplexity"}
    assert len(ResultsFile.model_validate(content).cells) == len(content["cells"])


def test_a_workload_of_accuracy_says_nothing_of_metrics(tmp_path):
    ledger = Ledger(tmp_path)
    for seed in (0, 1):
        store(ledger, scored(evidence("l1", seed=seed), 90.0))
        store(ledger, scored(evidence("tpp", seed=seed), 91.0))
    content = gather_ledger(CATALOG, ledger).as_json()
    assert "metrics" not in content
    assert not {"value", "metric", "beside"} & {name for row in content["cells"] for name in row}
    assert not any("metric" in row for row in content["verdicts"])


def test_figures_have_its_name_and_are_not_cut_at_100(results):
    found = {sheet.name: sheet for sheet in sheets(results)}
    sheet = found["perplexity-speedup-lenet5-digits"]
    assert {series.y for series in sheet.series} == {"test perplexity (lower is better)"}
    assert "test perplexity after the last epoch (lower is better)" in sheet.caption
    curves = found["curves-lenet5-digits"]
    assert {series.y for series in curves.series} == {"test perplexity (lower is better)"}
    axes = Figure().subplots()
    sheet.series[0].panels[0].draw(axes)
    low, high = axes.get_ylim()
    assert low < 10 and high > 150
    # Not upside down: what is lower is drawn lower, and the label says that it is better.
    assert low < high
    assert not any("accuracy" in name for name in found)


def test_the_page_has_its_own_words_and_the_values(results):
    content = payload(results)
    (group,) = content["groups"]
    assert group["metric"]["aside"] == " (lower is better)" and group["base"] == 50.0
    assert sorted(set(np.round(content["cells"]["accuracy"]))) == [10.0, 12.0, 150.0]
    assert set(np.round(content["curves"]["mean"]["of"]).flatten()) == {10.0, 12.0, 150.0}
    assert "l1 is better than tpp: -2.00 (lower is better)" in page(results)


def test_frames_have_the_values(folder, results, monkeypatch):
    monkeypatch.setattr("pruneaudit.report.frames.Catalog", lambda **extra: catalog_by(PERPLEXITY))
    frames = load(folder / "ledger")
    best = frames.cells.groupby("method")["value"].mean().idxmin()
    assert best == "l1" and set(frames.cells["metric"]) == {"perplexity"}
    assert frames.curves.groupby("method")["test_value"].mean()["l1"] == pytest.approx(10.0)
    assert set(frames.verdicts["verdict"]) == {"better", "worse"}


def test_cells_measured_by_another_metric_no_longer_count(tmp_path):
    ledger = filled(Ledger(tmp_path), levels={"l1": 10.0, "tpp": 12.0})
    found = gather_ledger(CATALOG, ledger)
    assert {row["status"] for row in found.cells} == {"outdated"}
    assert {row["error"] for row in found.cells} == {"measured by perplexity, now accuracy decides; run it again"}
    assert found.verdicts == []


def test_published_accuracies_are_compared_with_accuracies_only(tmp_path):
    catalog = catalog_by(PERPLEXITY)
    name = next(iter(catalog.claims.values())).points[0].workload
    other = catalog.workload(name).model_copy(update={"metric": PERPLEXITY})
    vars(catalog)["workloads"] = {**catalog.workloads, name: other}
    cell = {"workload": name, "labels": [], "status": "failed"}
    rows = published(catalog, [cell], [], {})
    assert rows and {row["reading"] for row in rows} == {"no run of ours"}
    assert {tuple(row["differs"]) for row in rows} == {("theirs is accuracy, here perplexity decides",)}


# Rules


def by_perplexity(arm, curve=None, validation=None, **more):
    """An arm whose result has these curves."""
    arm = measured_by(arm, PERPLEXITY, (curve or [10.0])[-1], validation)
    scores = arm.result.scores.model_copy(
        update={"test_curve": curve or [10.0] * 3, "validation_curve": curve or [10.0] * 3}
    )
    result = changed(arm.result, scores=scores, **more)
    return replace(arm, result=result, trials=(result, *arm.trials[1:]))


def test_f601_finds_the_best_epoch_reported_and_names_the_lowest():
    rule = get_rule("F601")
    honest = by_perplexity(evidence(), [12.0, 9.0, 10.0])
    outcome = rule.check(honest)
    assert outcome.verdict == "pass" and outcome.note == "best on test: 9 in epoch 2"
    scores = honest.cell.scores.model_copy(update={"test": 9.0})
    assert rule.check(replace(honest, cell=honest.cell.model_copy(update={"scores": scores}))).verdict == "fail"


def test_f314_takes_the_lowest_validation_value():
    rule = get_rule("F314")

    def arm(*values):
        made = measured_by(evidence("l1", "s3.1", trials=len(values)), PERPLEXITY, 10.0)
        trials = tuple(
            changed(run, scores=run.scores.model_copy(update={"validation": value}))
            for run, value in zip(made.trials, values, strict=True)
        )
        return replace(made, trials=trials, result=trials[0])

    assert rule.check(arm(9.0, 10.0, 11.0), arm(9.0, 10.0, 11.0)).verdict == "pass"
    assert rule.check(arm(10.0, 9.0, 11.0), arm(9.0, 10.0, 11.0)).verdict == "fail"


@pytest.mark.parametrize(
    ("curve", "verdict"), [([9.0, 8.0, 7.0], "fail"), ([7.0, 8.0, 9.0], "pass"), ([7.0, 7.0, 7.0], "pass")]
)
def test_f606_fails_where_the_metric_still_falls(curve, verdict):
    tail = [20.0] * 6 + [value + wobble for value, wobble in zip(curve, (0.0, 0.001, 0.0), strict=True)]
    recipe = evidence().result.recipe.model_copy(update={"epochs": 9, "lr": "0:0.01"})
    outcome = get_rule("F606").check(by_perplexity(evidence(), tail, recipe=recipe))
    assert outcome.verdict == verdict
    assert outcome.left.endswith(" per epoch") and "points" not in outcome.left


def test_trainability_is_of_the_metric():
    outcome = get_rule("F703").check(by_perplexity(evidence(), [14.0, 12.0, 10.0]), by_perplexity(evidence("tpp")))
    assert "TA 13.00" in outcome.left and "%" not in outcome.left


# Nothing looks at the sign alone


def metric(name, direction):
    return Metric(name=name, direction=direction, function="mine.py:score", margin=0.5)


GAIN, COST = metric("gain", "higher"), metric("cost", "lower")
ARMS = {(method, seed): evidence(method, "s3.2", seed) for method in ("l1", "tpp", "random") for seed in range(7)}
PAIRS = (("l1", "tpp"), ("l1", "random"), ("random", "tpp"))


def judged(values, what, sign):
    """The table of three arms over seven seeds."""
    found = {key: measured_quickly(arm, what, sign * values[key[0]][key[1]]) for key, arm in ARMS.items()}
    table = Table({arm.cell.cell: arm.cell for arm in found.values()}, CATALOG.strictness)
    return [
        Judged(
            Case(
                Comparison("lenet5-digits", "s3.2", left, right, 0.5, tuple(range(7))),
                {seed: (found[left, seed], found[right, seed]) for seed in range(7)},
                table=table,
            ),
            (),
            what.margin,
            metric=what,
        )
        for left, right in PAIRS
    ]


def measured_quickly(arm, what, value):
    """The arm with another value; its parents are nobody's business here."""
    scores = Scores(test=value, validation=value, test_curve=[value] * 3, validation_curve=[value] * 3)
    cell = arm.cell.model_copy(update={"metric": what, "scores": CellScores(test=value, base=0.0, validation=value)})
    return replace(arm, cell=cell, result=changed(arm.result, scores=scores))


VALUES = st.fixed_dictionaries(
    {
        name: st.lists(st.integers(-40, 40).map(lambda value: value / 8), min_size=7, max_size=7)
        for name in ("l1", "tpp", "random")
    }
)


@settings(max_examples=40, deadline=None)
@given(VALUES)
def test_negating_the_values_and_turning_the_direction_round_changes_no_verdict(values):
    gains, costs = (decide(judged(values, what, sign)) for what, sign in ((GAIN, 1), (COST, -1)))
    for gain, cost in zip(gains, costs, strict=True):
        assert gain.verdict == cost.verdict
        assert (gain.p_adjusted, gain.difference.p) == (cost.p_adjusted, cost.difference.p)
        assert gain.difference.mean == -cost.difference.mean
    means = {name: float(np.mean(found)) for name, found in values.items()}
    groups = [
        tiers({name: what.merit(sign * mean) for name, mean in means.items()}, verdicts)
        for what, sign, verdicts in ((GAIN, 1, gains), (COST, -1, costs))
    ]
    assert groups[0] == groups[1]
    for rule_id in ("F702", "F609", "F610"):
        rule = get_rule(rule_id)
        for gain, cost in zip(judged(values, GAIN, 1), judged(values, COST, -1), strict=True):
            assert rule.check(gain.case).verdict == rule.check(cost.case).verdict


def test_profiles_are_the_same_whichever_way_the_metric_goes():
    values = {("a", 0.5): (3.0, 2.0), ("a", 0.9): (1.0, 2.0), ("b", 0.5): (5.0, 4.4)}

    def shares(what, sign):
        rows = [
            {
                "workload": workload,
                "labels": [],
                "protocol": "s3.2",
                "method": method,
                "ratio": ratio,
                "status": "ok",
                "granularity": "filter",
                "accuracy": 1.0,
                "value": sign * value,
            }
            for (workload, ratio), both in values.items()
            for method, value in zip(("l1", "tpp"), both, strict=True)
        ]
        (found,) = profiles(rows, lambda workload: what)
        return found["share"], found["within"]

    assert shares(GAIN, 1) == shares(COST, -1)
    share, within = shares(COST, -1)
    assert within == [0.0, 0.5, 1.0, 2.0, 5.0, 10.0]
    assert share["l1"][0] == pytest.approx(2 / 3) and share["tpp"][2] == 1.0


def test_workloads_of_different_metrics_share_no_profile():
    def row(workload, method, ratio, **more):
        return {
            "workload": workload,
            "labels": [],
            "protocol": "s3.2",
            "method": method,
            "ratio": ratio,
            "status": "ok",
            "granularity": "filter",
            "accuracy": 90.0,
            **more,
        }

    rows = [
        row(workload, method, ratio, **({"value": 9.0} if workload == "b" else {}))
        for workload in ("a", "b")
        for method in ("l1", "tpp")
        for ratio in (0.5, 0.9)
    ]
    found = profiles(rows, lambda workload: PERPLEXITY if workload == "b" else ACCURACY)
    assert [(profile.get("metric"), profile["points"]) for profile in found] == [
        (None, ["a r0.5", "a r0.9"]),
        ("perplexity", ["b r0.5", "b r0.9"]),
    ]
    assert found[1]["within"] == [0.0, 0.1, 0.2, 0.4, 1.0, 2.0]


@pytest.mark.parametrize("name", BUILT_IN)
def test_the_word_of_every_built_in_metric_follows_its_direction(name):
    what = Metric(name=name)
    gap = difference([20.0 + 0.1 * n for n in range(8)], [10.0] * 8, 0.5)
    assert word(gap, 0.01, 1.0, what) == ("better" if what.direction == "higher" else "worse")


# The gate


@pytest.mark.parametrize(("method", "rival", "code"), [("l1", "tpp", 0), ("tpp", "l1", 1)])
def test_the_gate_lets_the_lower_one_pass(checkout, method, rival, code):
    toml = checkout.root / "protocols" / "workloads" / "lenet5-digits.toml"
    toml.write_text(toml.read_text() + '\n[metric]\nname = "perplexity"\n')
    filled(Ledger(checkout.root / "measured"), levels={"l1": 10.0, "tpp": 12.0})
    outcome = checkout.pytest(
        "suite", "--audit-methods", method, "--audit-against", rival, "--audit-protocols", "s3.2",
        "--audit-seeds", str(len(SEEDS)), "-k", "lenet5-digits and r0.5 and verdict",
        "--audit-from", "measured", "--audit-figures", "none", "-n0",
    )  # fmt: skip
    assert outcome.code == code, outcome.text
    assert re.search(
        rf"{method} vs {rival} +{'worse' if code else 'better'} +{'[+]' if code else '-'}2[.]00", outcome.text
    )
    assert "lower is better" in outcome.text
