"""Figures for papers: what is in them, that they are whole, the same twice, and safe from names of strangers."""

import functools
import json
import math
import os
import re
import subprocess
import sys
import warnings
from itertools import product
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
import matplotlib.figure
import pytest
from builders import evidence, scored, store
from rogues.records import UNCONVERGED, retrained

from pruneaudit.catalog.discovery import Catalog
from pruneaudit.errors import ConfigError
from pruneaudit.ledger.store import Ledger
from pruneaudit.report.curves import Curve
from pruneaudit.report.figures import figures, sheets
from pruneaudit.report.results import Results, gather_ledger
from pruneaudit.report.sheet import written
from pruneaudit.report.style import styles

ROOT = Path(__file__).resolve().parent.parent
EVERY = [
    "accuracy-parameters",
    "accuracy-speedup",
    "budget-epochs",
    "budget-macs",
    "curves",
    "learning-rates",
    "trainability",
]
STRANGERS = [
    "<script>alert(1)</script>",
    "$\\frac{1$ 100% _a^b\\",
    "=HYPERLINK(1)",
    "x" * 300,
    "W" * 300,
    "🦄 日本語",
    "two\nlines\x1b[31m\x00",
    "\u202eevil",
    "a" + "\u0301" * 299,
]


def results(
    methods=("l1", "tpp", "scratch"), setups=("s2", "s3.1", "s3.2"), ratios=(0.5, 0.9), seeds=2, epochs=6, **more
):
    """Hand-made results: accuracy falls with the ratio, later methods are worse, S3.1 tries three learning rates."""
    about = {"workload": "lenet5-digits", "labels": [], **more}
    runs, curves, cells, sizes = {}, {}, [], {}

    def run(stage, *identity, accuracy=90.0, rate=0.1):
        name = "-".join(map(str, (stage, *identity)))
        cost = {"epochs": float(epochs), "training_macs": 2e9 * epochs, "learning_rate": rate, "accuracy": accuracy}
        runs.setdefault(name, about | {"run": name, "stage": stage, **cost})
        rates = [(0.0, rate), (epochs // 2, rate / 10)]
        curves.setdefault(name, Curve([accuracy * (1 - 0.9 / (e + 1)) for e in range(epochs - 1)] + [accuracy], rates))
        return name

    for (place, method), setup, ratio, seed in product(enumerate(methods), setups, ratios, range(seeds)):
        accuracy = 97 - 30 * ratio**3 - 8 * place / len(methods) - seed * ratio
        scratch = method.startswith("scratch")
        stage = "scratch" if scratch else "retrain"
        trials = [
            run(stage, method, ratio, seed, rate, accuracy=accuracy - number, rate=rate)
            for number, rate in enumerate((0.01, 0.1, 0.001) if setup == "s3.1" else (0.01,))
        ]
        chain = [run("pretrain", seed), *([] if scratch else [run("prune", method, ratio, seed)])]
        sizes[method, ratio, seed] = about | {"method": method, "ratio": ratio, "seed": seed, "base_params": 1000}
        cells.append(
            about
            | {"protocol": setup, "method": method, "ratio": ratio, "seed": seed, "status": "ok", "error": ""}
            | {"accuracy": accuracy, "base_accuracy": 97.0 + seed, "speedup": 1 / (1 - ratio) * (1 + 0.01 * place)}
            | {"params": int(1000 * (1 - ratio)), "granularity": "filter"}
            | {"result": trials[0], "runs": [*chain, *trials]}
            | {"jsv": {"base": None if scratch else 2.0, "pruned": None if scratch else 0.5 + place, "end": 2.5}}
            | {"trainability_accuracy": accuracy - 20}
        )
    protocols = {setup: {"base": "own" if setup == "s1" else "shared"} for setup in setups}
    return Results(
        cells, [], architectures=list(sizes.values()), runs=list(runs.values()), curves=curves, protocols=protocols
    )


def files(found, what, columns=2):
    """One figure: its files by name."""
    return written([sheet for sheet in sheets(found) if sheet.name.startswith(what)], columns)


def svg_of(found, what, columns=2):
    return files(found, what, columns)[f"{what}-lenet5-digits.svg"]


def drawn(found, what):
    return ElementTree.fromstring(svg_of(found, what))


def ids(svg):
    return [element.get("id") for element in svg.iter() if element.get("id")]


def dots(svg, name):
    """How many dots of this id, in all colours, each panel has that has some: markers, or lines without length."""
    panels = [element for element in svg.iter() if re.fullmatch(r"axes_\d+", element.get("id", ""))]
    groups = [
        [group for group in panel.iter() if re.fullmatch(rf"{name}(-\d+)?", group.get("id", ""))] for panel in panels
    ]
    lines = re.compile(r"M (\S+ \S+)\s+L \1\s")
    return [
        sum(
            child.tag.endswith("}use") + len(lines.findall(child.get("d", "")))
            for group in found
            for child in group.iter()
        )
        for found in groups
        if found
    ]


def texts(svg):
    """What is written: matplotlib notes the text of outlines in comments, which the parser drops."""
    return re.findall(r"<!-- (.*?) -->", svg.decode())


def right_ends(svg):
    """Where each horizontal text ends, short of its last letter: points from the left edge."""
    for x, size, outlines in re.findall(
        r'translate\(([\d.]+) [\d.]+\) scale\(([\d.]+) -[\d.]+\)">(.*?)</g>', svg.decode(), re.DOTALL
    ):
        steps = [float(step) for step in re.findall(r"translate\(([\d.]+) ", outlines)]
        yield float(x) + float(size) * max(steps, default=0.0)


@functools.cache
def all_figures(columns):
    return figures(results(), columns)


@pytest.fixture
def everything():
    return all_figures(2)


def test_each_figure_comes_as_svg_and_as_pdf(everything):
    assert sorted(everything) == sorted(f"{what}-lenet5-digits.{form}" for what in EVERY for form in ("svg", "pdf"))
    for name, content in everything.items():
        if name.endswith("svg"):
            assert ElementTree.fromstring(content).tag.endswith("}svg")
        else:
            assert content.startswith(b"%PDF-") and content.rstrip().endswith(b"%%EOF")


def test_nothing_in_a_file_has_to_be_found_elsewhere(everything):
    for name, content in everything.items():
        if name.endswith("pdf"):
            # TrueType inside; Type 3 is refused by publishers.
            assert b"/FontFile2" in content and b"/Type3" not in content
        else:
            # Letters are outlines, and every reference is to the file itself.
            assert b"<text" not in content and b"<image" not in content
            assert all(target.startswith(b"#") for target in re.findall(rb'xlink:href="([^"]*)"', content))


@pytest.mark.parametrize(("columns", "inches"), [(1, 3.3), (2, 6.9)])
def test_figures_are_as_wide_as_a_column_of_a_paper_or_two(columns, inches):
    for name, content in all_figures(columns).items():
        if name.endswith("svg"):
            box = [float(number) for number in ElementTree.fromstring(content).get("viewBox").split()]
        else:
            (box,) = re.findall(rb"/MediaBox \[([^\]]*)\]", content)
            box = [float(number) for number in box.split()]
        assert box[2] == pytest.approx(72 * inches, abs=0.01)
        assert box[3] < 72 * 9


@pytest.mark.no_cover
def test_letters_are_as_large_in_one_column_as_in_two():
    for columns in (1, 2):
        svg = svg_of(results(), "accuracy-speedup", columns).decode()
        assert set(re.findall(r"scale\(([\d.]+) -", svg)) == {"0.07", "0.08"}


def test_another_width_is_refused():
    with pytest.raises(ConfigError, match="1 or 2 columns wide, not 3"):
        figures(results(), 3)


def test_results_without_measurements_give_no_figure():
    assert figures(Results([], [])) == {}
    failed = results()
    for row in failed.cells:
        row["status"] = "failed"
    assert figures(failed) == {}


def test_what_was_not_measured_is_not_drawn():
    found = results(setups=("s2",))
    found.curves, found.architectures, found.runs = {}, [], []
    for row in found.cells:
        row["jsv"], row["trainability_accuracy"] = dict.fromkeys(("base", "pruned", "end")), None
    assert sorted(figures(found)) == ["accuracy-speedup-lenet5-digits.pdf", "accuracy-speedup-lenet5-digits.svg"]


def test_a_stored_ledger_can_be_drawn(tmp_path):
    ledger = Ledger(tmp_path)
    for method, accuracy in (("l1", 91.0), ("tpp", 92.0)):
        store(ledger, scored(evidence(method, "s3.1", trials=3), accuracy))
    names = sorted(figures(gather_ledger(Catalog(), ledger)))
    every = [*EVERY, "differences-r0.5"]
    assert names == sorted(f"{what}-lenet5-digits.{form}" for what in every for form in ("svg", "pdf"))


@pytest.mark.no_cover
def test_figures_begun_before_all_is_judged_are_those_of_the_whole_report(tmp_path):
    ledger, begun = Ledger(tmp_path), []
    store(ledger, scored(evidence("tpp"), 92.0))
    store(ledger, scored(retrained(evidence("l1"), UNCONVERGED), 91.0))
    whole = gather_ledger(Catalog(), ledger, begin=begun.append)
    assert "rising" in ids(ElementTree.fromstring(svg_of(whole, "curves")))
    (workload,) = whole.groups
    # Verdicts are known at the end only: their figure comes last.
    early, late = figures(begun[0].drawn(*workload)), figures(whole)
    assert early.items() < late.items()
    assert {name.split("-")[0] for name in late.keys() - early.keys()} == {"differences"}


def test_differences_show_every_setup_with_interval_margin_and_verdict():
    found = results(setups=("s2", "s3.2"))

    def verdict(setup, word, mean):
        gap = {"mean": mean, "low": mean - 1, "high": mean + 1, "margin": 0.5}
        about = {"workload": "lenet5-digits", "labels": [], "protocol": setup, "ratio": 0.9, "arms": ["l1", "tpp"]}
        return about | {"verdict": word, "summary": word, "difference": gap}

    found.verdicts = [verdict("s2", "worse", -36.0), verdict("s3.2", "equivalent", -0.2)]
    content = svg_of(found, "differences-r0.9")
    svg = ElementTree.fromstring(content)
    assert [ids(svg).count(name) for name in ("margin", "zero", "interval", "worse", "equivalent")] == [2, 2, 2, 1, 1]
    assert {"S2", "S3.2", "l1 − tpp", "worse", "equivalent"} <= set(texts(content))
    assert "difference (percentage points)" in texts(content)


def test_a_band_is_not_cut():
    found = results(setups=("s3.2",), methods=("l1",))
    lowest = min(min(curve.values) for curve in found.curves.values())
    (sheet,) = [sheet for sheet in sheets(found) if sheet.name.startswith("curves")]
    axes = matplotlib.figure.Figure().add_axes((0, 0, 1, 1))
    sheet.series[0].panels[0].draw(axes)
    assert axes.get_ylim()[0] < lowest


def test_labels_have_figures_of_their_own():
    found, smoke = results(setups=("s2",)), results(setups=("s2",), labels=["smoke"])
    found.cells += smoke.cells
    names = {sheet.name for sheet in sheets(found)}
    assert {"accuracy-speedup-lenet5-digits", "accuracy-speedup-lenet5-digits-smoke"} <= names


def test_accuracy_shows_every_mean_every_seed_its_spread_and_the_base():
    svg = drawn(results(), "accuracy-speedup")
    # Three methods at two ratios over two seeds, in a panel for each of three protocols.
    assert dots(svg, "seeds") == [12] * 3
    assert [dots(svg, f"mean-{number}") for number in range(3)] == [[2] * 3] * 3
    spread = [element for element in svg.iter() if element.get("id") == "spread"]
    assert [sum(child.tag.endswith("}path") for child in group) for group in spread] == [6] * 3
    assert ids(svg).count("base") == 3


def test_one_seed_has_no_error_bar_and_own_bases_no_line():
    svg = drawn(results(setups=("s1", "s2"), seeds=1), "accuracy-speedup")
    assert dots(svg, "seeds") == [6, 6] and "spread" not in ids(svg)
    assert ids(svg).count("base") == 1


def test_the_chosen_learning_rates_are_ringed():
    svg = drawn(results(), "learning-rates")
    # A panel for each ratio: three methods, three rates, two seeds, of which one rate was chosen.
    assert dots(svg, "seeds") == [18] * 2
    assert dots(svg, "chosen") == [6] * 2


def test_curves_mark_where_the_rate_falls_and_where_the_accuracy_still_rose():
    found = results()
    stage = {"workload": "lenet5-digits", "labels": [], "protocol": "s3.2", "ratio": 0.9, "arms": ["tpp"], "seed": 1}
    found.findings = [
        stage | {"rule": "F605", "verdict": "fail"},
        stage | {"rule": "F606", "verdict": "pass"},
        stage | {"rule": "F606", "verdict": "fail", "protocol": "s2"},
    ]
    svg = drawn(found, "curves")
    # Retraining and training from scratch at two ratios; one method's first stage is shaded in one of them.
    assert ids(svg).count("drop") == 4
    assert ids(svg).count("band-0") == 4
    assert ids(svg).count("rising") == 1 == ids(svg).count("rising-0")


def test_a_cosine_has_no_drops():
    found = results()
    for name, curve in found.curves.items():
        found.curves[name] = Curve(curve.values, [(n / 4, math.cos(n / 16)) for n in range(24)])
    svg = svg_of(found, "curves")
    assert "drop" not in ids(ElementTree.fromstring(svg))
    assert "Dotted" not in str(texts(svg))


def test_budgets_have_a_bar_for_each_stage_and_one_for_what_tuning_cost():
    content = svg_of(results(), "budget-macs")
    svg = ElementTree.fromstring(content)
    groups = {name: [g for g in svg.iter() if g.get("id") == name] for name in ("pretrain", "prune", "tuning")}
    assert {name: len(found) for name, found in groups.items()} == {"pretrain": 3, "prune": 3, "tuning": 1}
    # A stage is 6 epochs of 2 GMACs.
    assert "training cost (GMACs)" in texts(content)


def test_trainability_leaves_dead_networks_below_the_axis():
    found = results()
    for row in found.cells:
        if row["method"] == "l1" and row["seed"] == 0:
            row["jsv"] = {"base": 2.0, "pruned": 0.0, "end": 0.0}
    # JSV at three stages of two methods, at one of scratch, over two seeds; TA of three methods.
    assert dots(drawn(results(), "trainability"), "seeds") == [14, 14, 6, 6]
    assert dots(drawn(found, "trainability"), "seeds") == [12, 12, 6, 6]


def test_the_caption_says_how_many_seeds_and_what_the_spread_is(everything):
    caption = " ".join(texts(everything["accuracy-speedup-lenet5-digits.svg"]))
    assert "mean ± sample standard deviation over n = 2 seeds" in caption
    assert "base model, 97.50 ± 0.71 % (n = 2)" in caption


def test_single_weights_are_named_so():
    found = results(setups=("s2",))
    for row in found.cells:
        if row["method"] == "tpp":
            row["granularity"] = "weight"
    assert "tpp (single weights)" in texts(svg_of(found, "accuracy-speedup"))


def test_of_a_crowd_only_the_measures_stand_out_and_each_has_a_row():
    names = [*(f"method-{number:02}" for number in range(40)), "l1", "random", "scratch"]
    found = results(names)
    accuracy = svg_of(found, "accuracy-speedup")
    assert "40 other methods" in texts(accuracy) and "method-07" not in texts(accuracy)
    assert ids(ElementTree.fromstring(accuracy)).count("means") == 3
    for what in ("accuracy-methods", "trainability-methods"):
        rows = svg_of(found, what)
        assert set(names) <= set(texts(rows))
        assert dots(ElementTree.fromstring(rows), "means") == [43, 43]


def test_panels_that_do_not_fit_a_page_go_on_in_a_further_file():
    found = files(results([f"method-{number:02}" for number in range(50)], seeds=1), "budget-epochs", columns=1)
    parts = [found[f"budget-epochs-lenet5-digits{part}.svg"] for part in ("", "-2")]
    assert [{"S2", "S3.1", "S3.2"} & set(texts(part)) for part in parts] == [{"S2", "S3.1"}, {"S3.2"}]


def test_the_same_results_give_the_same_bytes():
    code = (
        "import hashlib, sys; sys.path.insert(0, 'tests')\n"
        "from test_figures import results\n"
        "from pruneaudit.report.figures import figures\n"
        "for name, content in sorted(figures(results(setups=('s3.1',), ratios=(0.5,))).items()):\n"
        "    print(name, hashlib.sha256(content).hexdigest())\n"
    )
    outputs = []
    for seed in ("1", "2"):
        # Neither the hash of strings nor the date or zone of the day may show.
        environment = os.environ | {"PYTHONHASHSEED": seed, "TZ": f"UTC-{seed}", "SOURCE_DATE_EPOCH": seed * 9}
        command = [sys.executable, "-c", code]
        outputs.append(subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True).stdout)
    assert outputs[0] == outputs[1] and outputs[0].count(b"\n") == 2 * len(EVERY)


def test_the_users_own_settings_of_matplotlib_neither_count_nor_change(everything):
    with matplotlib.rc_context({"font.size": 20, "text.usetex": True, "svg.fonttype": "none", "axes.grid": True}):
        same = files(results(), "budget-macs")
        assert same.items() <= everything.items() and same
        assert matplotlib.rcParams["font.size"] == 20 and matplotlib.rcParams["text.usetex"]


@pytest.mark.parametrize("columns", [1, 2])
@pytest.mark.no_cover
def test_no_name_breaks_a_figure(columns):
    found = results(STRANGERS, ("s3.1", "$_{^" + "p" * 300), seeds=1, workload="$w_" + "ö" * 300, labels=["smoke\n"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = figures(found, columns)
    assert len(made) == 2 * len(EVERY)
    for name, content in made.items():
        assert re.fullmatch(r"[A-Za-z0-9_.-]{1,130}", name)
        if name.endswith("svg"):
            svg = ElementTree.fromstring(content)
            assert not [element for element in svg.iter() if element.tag.endswith("script")]
            assert max(right_ends(content)) < float(svg.get("viewBox").split()[2])
    said = texts(made[next(name for name in made if name.startswith("accuracy-speedup") and name.endswith("svg"))])
    assert "=HYPERLINK(1)" in said and "two lines [31m" in said and "$\\frac{1$ 100% _a^b\\" in said
    assert "á" in said and "� ���" in said
    assert any(re.fullmatch("x{10,40}…", text) for text in said)


def test_names_that_only_differ_where_they_are_cut_have_files_of_their_own():
    found = results(setups=("s2",), workload="w" * 200)
    found.cells += results(setups=("s2",), workload="w" * 201).cells
    assert len({sheet.name for sheet in sheets(found) if sheet.name.startswith("accuracy-speedup")}) == 2


def test_colours_are_the_same_in_all_figures_of_a_report(everything):
    looks = styles(["l1", "tpp", "scratch"])
    for what in ("accuracy-speedup", "curves", "learning-rates", "trainability"):
        content = everything[f"{what}-lenet5-digits.svg"].decode().lower()
        assert all(look.colour.lower() in content for look in looks.values())


def test_matplotlib_is_only_imported_where_figures_are_made():
    modules = "pruneaudit, pruneaudit.plugin, pruneaudit.plugin.session, pruneaudit.cli, pruneaudit.report.writer"
    code = f"import sys, {modules}; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_drawing_needs_no_display_no_pyplot_no_torch_and_says_nothing(tmp_path):
    code = (
        "import json, sys; sys.path.insert(0, 'tests')\n"
        "from pruneaudit.report.figures import figures\n"
        "from pruneaudit.report.results import Results\n"
        "cell = json.loads(sys.argv[1])\n"
        "assert figures(Results([cell], []))\n"
        "sys.exit(bool({'matplotlib.pyplot', 'torch', 'tkinter'} & set(sys.modules)))\n"
    )
    (cell,) = results(["l1"], ["s2"], [0.5], seeds=1).cells
    # A folder without a font cache, as on a new machine, and a backend that needs a display.
    environment = os.environ | {"MPLCONFIGDIR": str(tmp_path), "MPLBACKEND": "tkagg"}
    environment.pop("DISPLAY", None)
    command = [sys.executable, "-c", code, json.dumps(cell)]
    done = subprocess.run(command, cwd=ROOT, env=environment, check=False, capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
