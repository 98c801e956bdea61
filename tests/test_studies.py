"""Studies: what they may state, populations that are measured once, sentences that are judged, pages."""

import csv
import json
import re
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from builders import RECIPE, evidence
from plays import brought
from trainers import needs_numba

from pruneaudit.audit.association import associate, repeat_tau
from pruneaudit.audit.statistics import difference
from pruneaudit.catalog.discovery import Catalog
from pruneaudit.catalog.protocols import Study, load_study
from pruneaudit.catalog.settings import Settings
from pruneaudit.catalog.studies import ArmClaim, Population, PopulationClaim, Series
from pruneaudit.errors import ConfigError, DamagedError
from pruneaudit.ledger.progress import Watcher
from pruneaudit.ledger.records import Jacobian
from pruneaudit.ledger.store import Ledger
from pruneaudit.pruning.removal import masked
from pruneaudit.studies import page
from pruneaudit.studies.answer import announcing, questions
from pruneaudit.studies.arms import Place, described, numbers
from pruneaudit.studies.judgement import altogether, judge_arms, judge_population
from pruneaudit.studies.page import write_panel
from pruneaudit.studies.panel import Panel
from pruneaudit.studies.population import Populations
from pruneaudit.training.runtime import Runtime
from pruneaudit.workloads.metrics import ACCURACY
from pruneaudit.workloads.models import build

torch.set_num_threads(1)

TINY = {
    "workload": "lenet5-digits",
    "model": "lenet5-mini",
    "panels": (("conv3",),),
    "ratio": 0.5,
    "masks": 5,
    "repeats": 1,
    "epochs": 1,
    "early": 0.5,
    "pretrain_epochs": 1,
    "train_images": 64,
    "test_images": 40,
    "wirings": ("correct", "legacy-l1"),
    "criteria": ("l1",),
}


def populations(tmp_path, told=lambda what, done, total: None, writable=True, **change):
    study = Study(name="tiny", population=Population(**{**TINY, **change}))
    settings = Settings("full", "fp64", None, "torch")
    return Populations(study, Catalog(), settings, Runtime(), Ledger(tmp_path / "ledger", writable), told)


PAGE = (Path(__file__).parent.parent / "docs" / "studies.md").read_text(encoding="utf-8")

# What a study may state


def test_every_study_here_can_be_read_and_asks_what_exists():
    catalog = Catalog()
    asked = [question for name in catalog.studies for question in questions(catalog.study(name))]
    assert {question.study.name for question in asked} > {"oracle-digits", "oracle-mnist", "value-of-pruning-digits"}
    assert len({question.id for question in asked}) == len(asked)
    for question in asked:
        assert question.workloads(catalog) and f"`{question.study.name}`" in PAGE
        places = question.pairs(catalog, lambda workload: workload.seeds[:1])
        assert bool(places) is (question.claim is not None)
        for _, left, right in places:
            for cell in (*left, *right):
                catalog.method(cell.method), catalog.protocol(cell.protocol)


def test_a_sentence_about_all_ratios_goes_through_them_in_order():
    (question, *_) = questions(Catalog().study("value-of-pruning-digits"))
    places = question.pairs(Catalog(), lambda workload: [0])
    assert [name for name, *_ in places] == [f"lenet5-digits r{ratio}" for ratio in (0.3, 0.5, 0.9)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ('wirings = ["wrong"]', "population.wirings.0: Input should be 'correct' or 'legacy-l1' (got 'wrong')"),
        ("maks = 3", "population.maks: unknown key. Did you mean 'masks'?"),
        ('panels = [["conv1"], ["conv1"]]', "no two panels the same"),
        ("masks = 2", "population.masks: Input should be greater than or equal to 3 (got 2)"),
        (
            '[[population.claims]]\ntext = "x"\nsource = "x"\nseries = "loss"\nstatistic = "tau"',
            "give either below or above",
        ),
        (
            '[[population.claims]]\ntext = "x"\nsource = "x"\nseries = "loss@legacy-l1"\nstatistic = "tau"\nbelow = 0',
            "wiring 'legacy-l1' is not among wirings",
        ),
        (
            '[[population.claims]]\ntext = "x"\nsource = "x"\nseries = "fpgm"\nstatistic = "tau"\nbelow = 0',
            "fpgm: no such criterion; name the method in criteria",
        ),
    ],
)
def test_a_study_that_is_wrong_says_where(tmp_path, change, message):
    lines = {"panels": 'panels = [["conv1"]]', "masks": "masks = 10", "ratio": "ratio = 0.5"}
    lines.pop(change.partition(" ")[0], None)
    text = "\n".join(["[population]", 'workload = "lenet5-digits"', *lines.values(), change])
    (tmp_path / "mine.toml").write_text(text)
    with pytest.raises(ConfigError) as error:
        load_study(tmp_path / "mine.toml")
    assert message in str(error.value) and "\n" not in str(error.value)


def test_reduced_budgets_measure_less():
    workload = Catalog().workload("lenet5-digits")
    whole = Population(**{**TINY, "masks": 252, "repeats": 3, "epochs": 30, "joint_images": 64, "repeated": 48})
    assert whole.scaled("full", workload) is whole
    smoke = whole.scaled("smoke", workload)
    assert (smoke.masks, smoke.repeats, smoke.epochs, smoke.joint_images) == (26, 2, 3, 4)
    assert smoke.repeated == 5


# Populations


def test_a_population_is_measured_once_and_its_nulls_hold(tmp_path):
    told = []
    first = populations(tmp_path, lambda *words: told.append(words))
    correct, legacy = first.measure(("conv3",))
    assert told[0] == ("base model", 0, 1) and ("conv3 legacy-l1 retrain 0", 0, 5) in told
    assert not correct.exhaustive and len(set(correct.masks)) == 5
    assert all(len(subset) == 5 for (subset,) in correct.masks)
    # Channels have other names, and nothing else changes; the other wiring depends on names.
    assert correct.relabelled_difference < 1e-10
    assert legacy.relabelled_difference > 1e-3
    assert correct.criteria["mismatch"] == legacy.criteria["mismatch"]
    assert set(correct.criteria) == {"loss", "early", "mismatch", "chance", "l1"}
    assert correct.accuracies != legacy.accuracies or correct.criteria["loss"] != legacy.criteria["loss"]

    again = []
    other = populations(tmp_path, lambda *words: again.append(words[0]), repeats=2)
    more, _ = other.measure(("conv3",))
    # Only the new repeat is trained.
    assert [line for line in again if "retrain 1" in line] == again and len(again) == 2
    assert more.accuracies[0] == correct.accuracies[0] and more.criteria == correct.criteria
    assert more.accuracies[1] != more.accuracies[0] or more.test_losses[1] != more.test_losses[0]

    # Whoever only judges takes what is there, trains nothing and writes nothing.
    assert other.outstanding(("conv3",)) == (30, 30, 0)
    assert populations(tmp_path, repeats=4).outstanding(("conv3",)) == (50, 30, 20)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "ledger").rglob("*")}
    judged = populations(tmp_path, lambda *words: pytest.fail("measured"), writable=False)
    assert judged.measure(("conv3",))[0] == correct
    with pytest.raises(ConfigError, match=r"conv3 correct retrain 2: not in .*without --audit-from") as error:
        populations(tmp_path, writable=False, repeats=3).measure(("conv3",))
    assert "\n" not in str(error.value)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "ledger").rglob("*")} == before


@needs_numba
def test_a_population_of_an_earlier_backend_is_gone_on_with_and_its_page_says_so(tmp_path):
    mine = populations(tmp_path / "now", wirings=("correct",))
    mine.measure(("conv3",))
    assert mine.facts["steps"] == "tiled, fp64, native arithmetic"
    # As it was left before parts told what made them.
    now, old = (Ledger(tmp_path / name / "ledger") for name in ("now", "old"))
    for path in (now.root / "populations" / mine.folder).glob("*.json"):
        part = now.part(mine.folder, path.stem)
        if part.pop("steps", "") and path.stem == "base":
            part["compiled"] = True
        old.save_part(mine.folder, path.stem, part)
    again = populations(tmp_path / "old", lambda *words: pytest.fail("measured"), wirings=("correct",))
    again.measure(("conv3",))
    assert again.facts["steps"] == "compiled, fp64, native arithmetic"
    more = populations(tmp_path / "old", wirings=("correct",), repeats=2)
    more.measure(("conv3",))
    assert more.facts["steps"] == "compiled and tiled, fp64, native arithmetic"


def test_some_networks_alone_are_retrained_several_times(tmp_path):
    mine = populations(tmp_path, repeats=3, repeated=3, wirings=("correct",))
    # One short retraining and one whole one of all five, two more of three.
    assert mine.outstanding(("conv3",)) == (16, 0, 16)
    (panel,) = mine.measure(("conv3",))
    assert mine.outstanding(("conv3",)) == (16, 16, 0)
    assert len(panel.several) == 3 and [len(values) for values in panel.accuracies] == [5]
    assert panel.repeats[0] == [panel.accuracies[0][place] for place in panel.several]
    assert [len(values) for values in panel.repeats] == [3, 3, 3]
    # They are those that a population of nothing but repeats has.
    (every,) = populations(tmp_path, repeats=3, wirings=("correct",)).measure(("conv3",))
    assert every.several is None and every.repeats == every.accuracies
    assert panel.repeats == [[values[place] for place in panel.several] for values in every.accuracies]
    # What two retrainings agree on is known from them, and all else from what every network has.
    found = panel.association("loss")
    assert found.repeat_tau == repeat_tau(np.array(panel.repeats)) and found.n == 5
    assert found.mean == pytest.approx(np.mean(panel.accuracies)) and found.regret_held_out is None
    rows = list(panel.rows())
    assert [row["accuracy_2"] != "" for row in rows] == [place in panel.several for place in range(5)]
    assert [row["accuracy_0"] for row in rows] == panel.accuracies[0]


def test_other_processes_are_told_which_networks_are_measured(tmp_path):
    ledger = Ledger(tmp_path / "ledger")
    announcing(ledger, Study(name="mine"))("conv3 correct retrain 0", 64, 252)
    assert Watcher(ledger).look().line() == "now mine conv3 correct retrain 0 network 64/252"
    ledger.report_progress([])
    assert Watcher(ledger).look().line() == ""


def test_a_plan_counts_networks_and_trains_none(tmp_path):
    mine = populations(tmp_path, lambda *words: pytest.fail("measured"), repeats=3, epochs=4, early=0.25)
    # Two wirings of five networks, each trained once for one epoch and three times for four.
    assert mine.outstanding(("conv3",)) == (40, 0, 2 * 5 * (1 + 3 * 4))
    assert mine.outstanding(("conv1", "conv2")) == (40, 0, 130)


def test_everything_that_can_change_a_number_is_in_the_name(tmp_path):
    name = populations(tmp_path).folder
    for change in ({"epochs": 2}, {"ratio": 0.4}, {"train_images": 65}, {"pretrain_epochs": 2}, {"model": ""}):
        assert populations(tmp_path, **change).folder != name
    for change in (
        {"repeats": 4},
        {"repeated": 3},
        {"criteria": ("l1", "l2")},
        {"panels": (("conv1",),)},
        {"joint_images": 9},
    ):
        assert populations(tmp_path, **change).folder == name
    mine = populations(tmp_path)
    mine.arithmetic = "portable"
    assert mine.folder != name


def test_a_damaged_part_is_told(tmp_path):
    ledger = Ledger(tmp_path / "ledger")
    ledger.save_part("tiny-1", "base", {"accuracy": 90.0})
    assert ledger.part("tiny-1", "base") == {"accuracy": 90.0} and ledger.part("tiny-1", "other") is None
    path = tmp_path / "ledger" / "populations" / "tiny-1" / "base.json"
    path.write_text(path.read_text().replace("90.0", "95.0"))
    with pytest.raises(DamagedError, match="delete it and run again"):
        ledger.part("tiny-1", "base")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"criteria": ("magnitude-layer",)}, "magnitude-layer gives filters no score"),
        ({"panels": (("conv3", "conv1"),)}, "panel conv3+conv1: name its layers in their order"),
        ({"criteria": ("loss",)}, "loss is no method of this project"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_one_line(tmp_path, change, message):
    with pytest.raises(ConfigError, match=re.escape(message)) as error:
        mine = populations(tmp_path, **change)
        mine.measure(mine.population.panels[0])
    assert "\n" not in str(error.value)


def test_all_sets_are_tried_where_there_are_not_too_many(tmp_path, monkeypatch):
    mine = populations(tmp_path, ratio=0.9, masks=10)
    monkeypatch.setattr(Populations, "base", build("lenet5-mini", 1, 10).double())
    masks, exhaustive = mine.masks(("conv3",))
    assert exhaustive and masks == [((channel,),) for channel in range(10)]


# Sentences


def panel(loss, accuracy, wiring="correct"):
    masks = [((place,),) for place in range(len(loss))]
    return Panel(
        ("conv1",), wiring, (len(loss),), masks, True, {"loss": list(loss), "early": list(-np.array(accuracy))},
        [list(accuracy)], [list(loss)], None, [list(accuracy)], masks[0], 0, list(loss),
    )  # fmt: skip


def claim(**change):
    given = {"text": "it tells", "source": "here", "series": Series.model_validate("loss"), "statistic": "tau"}
    return PopulationClaim(**{**given, "below": -0.2, **change})


def test_a_sentence_holds_does_not_hold_or_is_open():
    rising = np.arange(40.0)
    noise = np.random.default_rng(0).random(40)
    good, bad, none = panel(rising, 90 - rising), panel(rising, 50 + rising), panel(rising, 90 + noise)
    assert judge_population(claim(), {"correct": good}).says == "holds"
    assert judge_population(claim(), {"correct": bad}).says == "does not hold"
    assert judge_population(claim(below=0.0), {"correct": none}).says == "open"
    assert judge_population(claim(below=None, above=0.5), {"correct": bad}).says == "holds"
    judged = judge_population(claim(statistic="regret", below=1), {"correct": bad})
    assert (judged.says, judged.value) == ("does not hold", 39)


def test_what_ledgers_hold_of_populations_is_found_by_its_name(tmp_path):
    """A name that changes has whole populations measured anew: what is new and not said may be no part of it."""
    study = Catalog().study("oracle-digits")
    for arithmetic, digest in (("native", "d38dec2fa2a9a55e"), ("portable", "9ee7583e31a12b34")):
        mine = Populations(study, Catalog(), Settings(arithmetic=arithmetic), Runtime(), Ledger(tmp_path))
        assert mine.folder == f"oracle-digits-{digest}"


def test_a_title_is_as_wide_as_its_figure_whatever_layers_are_called(monkeypatch):
    drawn = []
    monkeypatch.setattr(page, "_svg", lambda figure: drawn.append(figure) or b"")
    rising = np.arange(40.0)
    layers = tuple(f"model.layers.{number}.self_attn.k_proj" for number in range(4))
    page.scatter(replace(panel(rising, 90 - rising), layers=layers), "97.00")
    (figure,) = drawn
    (axes,) = figure.axes
    figure.draw_without_rendering()
    box = axes.title.get_window_extent()
    assert box.x0 >= 0 and box.x1 <= figure.bbox.width and box.y1 <= figure.bbox.height
    assert all(name in axes.get_title() for name in (*layers, "tau -1.00", "dense 97.00"))


def test_two_criteria_are_compared_over_the_same_networks():
    rising = np.arange(40.0)
    accuracy = 90 + np.random.default_rng(0).random(40)
    both = {"correct": panel(rising, accuracy), "legacy-l1": panel(-accuracy, accuracy, "legacy-l1")}
    better = judge_population(claim(series="early", than="loss", below=0), both)
    assert better.says == "holds" and better.value == pytest.approx(-1 - associate(rising, [accuracy]).tau)
    same = judge_population(claim(series="loss@legacy-l1", than="early", below=0), both)
    assert (same.value, same.low, same.high, same.says) == (0, 0, 0, "does not hold")


@pytest.mark.parametrize(
    ("gap", "verdicts"),
    [
        (3.0, {"better": "holds", "worse": "does not hold", "not worse": "holds", "not better": "does not hold"}),
        (-3.0, {"better": "does not hold", "worse": "holds", "not worse": "does not hold", "not better": "holds"}),
        (0.0, {"better": "does not hold", "equivalent": "holds", "not worse": "holds", "not better": "holds"}),
    ],
)
def test_arms_are_judged_by_their_verdict(gap, verdicts):
    scatter = [0.01, -0.01, 0.02, -0.02, 0.015, -0.015, 0.0, 0.005]
    found = [("r0.5", difference([90 + gap + one for one in scatter], [90.0] * 8, 0.5))]
    for expects, says in verdicts.items():
        sentence = ArmClaim(text="x", source="x", protocol="s3.2", left="l1", right="random", expects=expects)
        assert judge_arms(sentence, found, ACCURACY)[0].says == says
    few = [("r0.5", difference([93.0, 93.1], [90.0, 90.0], 0.5))]
    assert judge_arms(sentence, few, ACCURACY)[0].says == "open"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"right": "l1"}, "'l1' under s3.2 is compared with itself"),
        ({"right": "l1", "right_protocol": "s3.2"}, "'l1' under s3.2 is compared with itself"),
        ({"quantity": "jsv"}, "state which differences of jsv do not matter"),
        ({"margin": 0}, "greater than 0"),
    ],
)
def test_a_sentence_about_arms_that_says_nothing_is_refused(change, message):
    given = {"text": "x", "source": "x", "protocol": "s3.2", "left": "l1", "right": "random", "expects": "better"}
    with pytest.raises(ValueError, match=message):
        ArmClaim(**{**given, **change})


def arm(seed=0, recipe=RECIPE, protocol="s3.2", curve=(60.0, 70.0, 80.0), jsv=(3.0, 1.0, 2.0), train=0.5):
    """What was measured of an arm at a seed, its trainability made up: base, pruned, at the end."""
    found = evidence(seed=seed, protocol=protocol)
    base, pruned, end = (Jacobian(mean=mean, std=0.1, condition=2.0, samples=64) for mean in jsv)
    result = {"recipe": recipe, "jacobian": end, "test_accuracy": list(curve), "accuracy": curve[-1]}
    return replace(
        found,
        base=found.base.model_copy(update={"jacobian": base, "jacobian_train": base}),
        prune=found.prune.model_copy(
            update={"jacobian": pruned, "jacobian_train": pruned.model_copy(update={"mean": train})}
        ),
        result=found.result.model_copy(update=result),
    )


def test_a_sentence_reads_what_it_is_about():
    place = Place("here", (arm(), arm(1)), (arm(0, jsv=(3.0, 0.7, 1.5), train=0.9), arm(1, curve=(50.0, 60.0, 90.0))))
    assert numbers("result", place) == ([80, 80], [80, 90])
    # The rate falls after two epochs.
    assert numbers("trainability", place) == ([65, 65], [65, 55])
    assert numbers("jsv", place) == ([1.0, 1.0], [0.7, 1.0])
    assert numbers("jsv-train", place) == ([0.5, 0.5], [0.9, 0.5])
    assert numbers("jsv-end", place) == ([2.0, 2.0], [1.5, 2.0])


def test_what_cannot_be_compared_of_arms_is_told():
    other = RECIPE.model_copy(update={"lr": "0:0.1,2:0.001"})
    with pytest.raises(ConfigError, match="here: trainability accuracies under different schedules rank the schedules"):
        numbers("trainability", Place("here", (arm(),), (arm(recipe=other),)))
    smooth = RECIPE.model_copy(update={"lr": "cosine:0.1:0.001"})
    with pytest.raises(ConfigError, match=r"here: trainability of lenet5-digits-l1-s3\.2-r0\.5-seed0 was"):
        numbers("trainability", Place("here", (arm(recipe=smooth),), (arm(recipe=smooth),)))


def test_one_method_under_two_setups_is_told_apart_on_the_page():
    sentence = ArmClaim(
        text="x", source="x", protocol="p3f6-1e-2", right_protocol="p3f6-1e-3", left="l1", right="l1", expects="better"
    )
    rising, flat = RECIPE.model_copy(update={"epochs": 8, "lr": "0:1e-3,7:1e-4"}), [70.0] * 8
    places = [Place("here", (arm(recipe=rising, curve=flat), arm(1, recipe=rising, curve=flat)), (arm(), arm(1)))]
    curves = [[70.0] * 8, [60.0, 62.0, 64.1, 66.0, 68.2, 70.0, 72.1, 72.1]]
    left = tuple(
        replace(one, result=one.result.model_copy(update={"validation_accuracy_curve": curve}))
        for one, curve in zip(places[0].left, curves, strict=True)
    )
    table = described(sentence, [replace(places[0], left=left)])
    first, second = (dict(zip(table["head"], row, strict=True)) for row in table["rows"])
    assert (first["arm"], second["arm"]) == ("l1 p3f6-1e-2", "l1 p3f6-1e-3")
    # One of two seeds was still getting better when its rate fell; two epochs of the other arm show no slope.
    assert (first["converged at the first decay"], second["converged at the first decay"]) == ("1 of 2", "")
    assert "trainability accuracy" not in first, "their schedules differ"
    assert (first["JSV base"], first["JSV pruned"], first["JSV pruned (train)"]) == ("3.00", "1.00", "0.50")
    found = [("r0.5", difference([93.0] * 8, [90.0] * 8, 0.5))]
    judged = judge_arms(sentence, found, ACCURACY)[0]
    assert judged.measured == "l1 p3f6-1e-2 less l1 p3f6-1e-3, n = 8: better; better?"


def test_a_sentence_about_all_places_holds_at_each():
    assert altogether(["holds", "holds"]) == "holds"
    assert altogether(["holds", "open"]) == altogether([]) == "open"
    assert altogether(["holds", "open", "does not hold"]) == "does not hold"


# The suite


def test_the_suite_answers_a_study_and_writes_its_page(checkout):
    (study,) = re.findall(r"^```toml\n(.*?)^```", PAGE, re.M | re.S)
    checkout.write("mine.toml", study.replace("Is the loss", "Is <loss>"))
    # Without Numba: what is compiled has tests of its own, and a copy would compile it anew.
    checkout.write(
        "hidden.py",
        "import importlib.util as util\n_find = util.find_spec\n"
        "util.find_spec = lambda name, *rest: None if name == 'numba' else _find(name, *rest)\n",
    )
    (command,) = re.findall(r"^```bash\npytest (.*)\n```", PAGE, re.M)
    outcome = checkout.pytest(*shlex.split(command), "-p", "hidden")
    assert outcome.code == 0, outcome.text
    assert "2 passed" in outcome.text
    # A sentence that does not hold, or that one seed cannot decide, fails nothing.
    assert any(line.startswith("does not hold: A random number tells nothing. [conv3: ") for line in outcome.lines)
    assert any(line.startswith("open: L1 is better than chance. [lenet5-digits r0.5: ") for line in outcome.lines)
    folder = checkout.report / "studies" / "mine"
    results = json.loads((folder / "results.json").read_text())
    assert [one["says"] for one in results["sentences"]] == ["does not hold", "open"]
    rows = list(csv.DictReader((folder / "networks" / "conv3.csv").open()))
    assert len(rows) == 10 and {row["kept"] for row in rows} == {str(channel) for channel in range(10)}
    found = associate([float(row["loss"]) for row in rows], [[float(row["accuracy_0"]) for row in rows]])
    assert results["parts"]["conv3"]["measured"][0]["associations"]["loss"]["tau"] == pytest.approx(found.tau)
    page = (folder / "report.html").read_text()
    assert "Is &lt;loss&gt; a good criterion?" in page and "Not measured yet" not in page and page.count("<svg") == 2
    # Jacobians along retraining end with the one that its record has.
    arms = results["parts"]["claim1"]["measured"]
    assert [one["arm"] for one in arms] == ["l1", "random"] and not any(one["batch"] for one in arms)
    records = {run.method: run for run in Ledger(checkout.ledger, writable=False).runs() if run.stage == "retrain"}
    for one in arms:
        assert len(one["running"]) == records[one["arm"]].recipe.epochs + 1
        assert one["running"][-1] == records[one["arm"]].jacobian.mean
    assert "tau" in (folder / "report.md").read_text()


def test_studies_are_asked_only_where_they_are_named(checkout):
    plain = checkout.pytest("suite", "--collect-only", "-q", "-k", "lenet5-digits and r0.5 and s1 and seed0")
    assert plain.code == 0 and "test_studies" not in plain.text
    named = checkout.pytest("suite", "--collect-only", "-q", "-k", "study")
    items = [line for line in named.lines if "::" in line]
    assert {Path(line.partition("::")[0]).name for line in items} == {"test_studies.py"}
    # Those that take hours are asked by name.
    assert any("[oracle-digits-conv1]" in line for line in items) and not any("mnist" in line for line in items)
    large = checkout.pytest("suite", "--collect-only", "-q", "-k", "study", "--audit-study", "oracle-mnist")
    assert "test_study[oracle-mnist-conv1+conv2+conv3]" in large.text


# Heads and neurons


def test_heads_of_a_decoder_are_a_population_like_filters(tmp_path):
    """Sets of whole heads, with grouped queries; compared by perplexity, of which less is better."""
    study = Study(
        name="heads",
        population=Population(
            workload="text",
            panels=(("blocks.0.attn.k_proj", "blocks.1.attn.k_proj"), ("blocks.1.mlp.gate_proj",)),
            ratio=0.5,
            masks=5,
            epochs=2,
            early=0.5,
            pretrain_epochs=2,
            criteria=("l1", "taylor"),
        ),
    )
    mine = Populations(study, brought(tmp_path), Settings("full", "fp64"), Runtime(), Ledger(tmp_path / "ledger"))
    heads, neurons = (mine.measure(panel)[0] for panel in mine.population.panels)
    # One of two heads of each block: all four networks.
    assert heads.exhaustive and heads.widths == (2, 2) and len(heads.masks) == 4
    assert neurons.widths == (12,) and len(neurons.masks) == 5 and len(neurons.masks[0][0]) == 6
    for panel in (heads, neurons):
        assert panel.relabelled_difference < 1e-10 and set(panel.criteria) == {
            "loss", "early", "mismatch", "chance", "l1", "taylor",
        }  # fmt: skip
        perplexities = [np.exp(loss) for loss in panel.test_losses[0]]
        assert panel.accuracies[0] == pytest.approx([-value for value in perplexities])
        best = panel.association("loss")
        assert -best.best == pytest.approx(min(perplexities))
        assert [row["perplexity_0"] for row in panel.rows()] == pytest.approx(perplexities)
    # What a network is scored with before it is retrained is what it gives when its heads are silent.
    network = mine.networks(mine.base, heads.layers, heads.masks[:1], heads.l1, "correct")[0]
    step = dict.fromkeys(heads.layers, 4)
    kept = {
        name: [place * step[name] + channel for place in subset for channel in range(4)]
        for name, subset in zip(heads.layers, heads.masks[0], strict=True)
    }
    images, _ = next(mine.dataset.inputs(mine.dataset.test, torch.float64, 4))
    silenced = masked(mine.base, kept, mine.dataset.example())
    torch.testing.assert_close(network(images), silenced(images), rtol=0, atol=1e-10)
    write_panel(tmp_path / "page", study, mine.facts, [heads], [])
    page = (tmp_path / "page" / "report.md").read_text()
    assert f"perplexity {np.mean([-v for v in heads.accuracies[0]]):.2f} ±" in page and "base perplexity: " in page
    assert "windows of text" in page and "accuracy" not in page


def test_what_no_set_can_say_is_refused_in_one_line(tmp_path):
    catalog = brought(tmp_path)
    given = {"workload": "text", "ratio": 0.5, "masks": 5, "epochs": 1, "panels": (("blocks.0.attn.k_proj",),)}
    for change, message in (
        ({"wirings": ("correct", "legacy-l1")}, "legacy-l1 is about layers that lose filters alone"),
        ({"panels": (("blocks.0.attn.q_proj",),)}, "name its layers in their order"),
    ):
        study = Study(name="heads", population=Population(**{**given, **change}))
        mine = Populations(study, catalog, Settings("full", "fp64"), Runtime(), Ledger(tmp_path / "ledger"))
        with pytest.raises(ConfigError, match=message) as error:
            mine.masks(mine.population.panels[0])
        assert "\n" not in str(error.value)
