"""The web page of a report, in a real browser."""

import base64
import gzip
import io
import json
import re
import unicodedata
from dataclasses import replace
from pathlib import Path

import numpy as np
import pypdf
import pytest
from builders import CATALOG, catalog_by, evidence, failed_cell, finding, measured_by, scored, store
from PIL import Image

from pruneaudit.catalog.cells import Cell
from pruneaudit.ledger.store import Ledger
from pruneaudit.report import page as pages
from pruneaudit.report.page import page as html
from pruneaudit.report.results import Results, gather_ledger
from pruneaudit.workloads.metrics import Metric

#: Where pictures are left to be looked at.
SCREENSHOTS = Path(__file__).resolve().parent.parent / "build" / "screenshots"
SECTIONS = [
    "verdicts",
    "audit",
    "accuracy",
    "rates",
    "curves",
    "budget",
    "trainability",
    "strictest",
    "published",
    "excluded",
    "cells",
    "provenance",
]
PLOTTED = ["accuracy", "rates", "curves", "budget", "trainability"]
STRANGER = "<img src=x onerror=alert(1)><script>alert(1)</script>&\"'`${x}%{y}" + "🙂" + "x" * 300


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Three methods and a scratch arm under four protocols, three seeds, and a cell that failed."""
    ledger = Ledger(tmp_path_factory.mktemp("page") / "ledger")
    for seed in range(3):
        for protocol in ("s3.1", "s3.2", "sx-a"):
            for number, method in enumerate(("l1", "random", "tpp")):
                trials = 3 if protocol == "s3.1" else 1
                store(ledger, scored(evidence(method, protocol, seed, trials), 80.0 + 5 * number + seed))
        store(ledger, scored(evidence("scratch", "sx-a", seed), 91.0 - seed))
    store(ledger, scored(evidence("l1", "s2"), 70.0))
    broken = failed_cell(Cell("lenet5-digits", "s2", "tpp", 0.5, 0), "run failed: <b>it</b> broke")
    ledger.save_cell(broken, broken.cell.id)
    return gather_ledger(CATALOG, ledger)


@pytest.fixture(scope="module")
def opener(browser, results, tmp_path_factory):
    """Opens a report from disk; what it complains about, and what it asks of a network, is heard."""
    heard, contexts = [], []

    def show(shown=results, width=1600, **options):
        path = tmp_path_factory.mktemp("opened") / "report.html"
        path.write_text(html(shown), encoding="utf-8")
        context = browser.new_context(viewport={"width": width, "height": 900}, **options)
        contexts.append(context)
        tab = context.new_page()
        tab.on("console", lambda message: heard.append(f"console: {message.text}"))
        tab.on("pageerror", lambda error: heard.append(f"error: {error}"))
        tab.on("dialog", lambda dialog: (heard.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        tab.on("request", lambda asked: None if asked.url == path.as_uri() else heard.append(f"request: {asked.url}"))
        tab.goto(path.as_uri())
        tab.wait_for_selector("#controls:not([hidden])")
        tab.wait_for_selector("#comparisons :is(table, .empty)")
        return tab

    yield show, heard, contexts
    assert heard == []


@pytest.fixture
def opened(opener):
    """Opens a report; afterwards nothing may have been complained about, and nothing asked of a network."""
    show, heard, contexts = opener
    before = len(contexts)
    yield show
    for context in contexts[before:]:
        context.close()
    del contexts[before:]
    assert heard == []


@pytest.fixture(scope="module")
def tab(opener):
    """The page, opened once, for tests that look at it and choose nothing."""
    show, _, contexts = opener
    yield show()
    contexts[0].close()


def look(tab, section):
    """Bring a section into view, where it is drawn."""
    tab.evaluate("id => document.getElementById(id).scrollIntoView()", section)
    drawn = "id => [...document.querySelectorAll(`#${id} .plot`)].every(plot => plot.querySelector('.main-svg'))"
    tab.wait_for_function(drawn, arg=section)
    tab.wait_for_timeout(150)


def column(tab, section, name):
    """Texts of one column of a section's table."""
    heads = [head.rstrip(" ▲▼") for head in tab.locator(f"#{section} thead th").all_inner_texts()]
    return tab.locator(f"#{section} tbody td:nth-child({heads.index(name) + 1})").all_inner_texts()


def captions(tab, section):
    return tab.locator(f"#{section} figcaption").all_inner_texts()


def traces(tab, section):
    """Names of what the first plot of a section draws."""
    script = "id => [...new Set(document.querySelector(`#${id} .plot`).data.map(trace => trace.name))]"
    return tab.evaluate(script, section)


def renamed(results, old, new):
    """The same results with another name for a method, everywhere."""
    text = json.dumps(results.as_json()).replace(json.dumps(old), json.dumps(new))
    rows = json.loads(text)
    names = ("cells", "findings", "verdicts", "standings", "strictest", "architectures", "runs", "profiles")
    return replace(results, **{name: rows[name] for name in names})


def test_the_verdicts_come_first_and_need_no_script(results):
    text = html(results)
    assert text.index("Nothing tells l1, random and tpp apart") < text.index('id="audit"')
    assert "3 of the" in text


def test_every_plot_has_marks(tab):
    for section in PLOTTED:
        look(tab, section)
        plots = tab.locator(f"#{section} .plot")
        assert plots.count() > 0, section
        for number in range(plots.count()):
            marks = plots.nth(number).locator(".scatterlayer .point, .scatterlayer .js-line, .barlayer .point path")
            boxes = [marks.nth(place).bounding_box() for place in range(marks.count())]
            assert any(box and box["width"] + box["height"] > 3 for box in boxes), (section, number)


def test_plots_of_a_section_stand_side_by_side(tab):
    look(tab, "budget")
    boxes = [tab.locator("#budget .main-svg").nth(place).bounding_box() for place in (0, 3)]
    frames = [tab.locator("#budget figure").nth(place).bounding_box() for place in (0, 1)]
    for box, frame in zip(boxes, frames, strict=True):
        assert frame["x"] <= box["x"]
        assert box["x"] + box["width"] <= frame["x"] + frame["width"] + 1


def test_a_click_on_the_head_sorts_and_a_second_one_turns_it_round(opened):
    tab = opened()
    look(tab, "cells")
    head = tab.locator("#cells thead th", has_text="accuracy")
    head.locator("button").click()
    rising = [float(text) for text in column(tab, "cells", "accuracy") if text]
    assert rising == sorted(rising)
    assert head.get_attribute("aria-sort") == "ascending"
    head.locator("button").click()
    falling = [float(text) for text in column(tab, "cells", "accuracy") if text]
    assert falling == sorted(rising, reverse=True)
    assert len(rising) == 31
    # What has no value comes last both ways.
    assert column(tab, "cells", "accuracy")[-1] == ""


def test_the_filter_keeps_rows_with_all_words(opened):
    tab = opened()
    look(tab, "cells")
    tab.locator("#cells input[type=search]").fill("tpp s3.1")
    assert column(tab, "cells", "method") == ["tpp"] * 3
    assert column(tab, "cells", "protocol") == ["s3.1"] * 3
    assert tab.locator("#cells .count").inner_text() == "3 of 32 rows"


def test_the_protocol_switch_changes_all_sections(opened):
    tab = opened()
    assert tab.locator("#protocol").input_value() == "s3.2"
    look(tab, "accuracy")
    assert captions(tab, "accuracy")[0].startswith("s3.2: ")
    assert traces(tab, "accuracy") == ["l1", "random", "tpp"]
    tab.locator("#protocol").select_option("sx-a")
    look(tab, "accuracy")
    assert captions(tab, "accuracy")[0].startswith("sx-a: ")
    assert traces(tab, "accuracy") == ["l1", "random", "scratch", "tpp"]
    look(tab, "audit")
    assert column(tab, "audit", "comparison") == ["l1 vs scratch", "random vs scratch", "tpp vs scratch"]
    look(tab, "curves")
    assert captions(tab, "curves") == ["sx-a, ratio 0.5: retraining", "sx-a, ratio 0.5: scratch training"]


def test_accuracy_stands_against_speedup_or_parameters(opened):
    tab = opened()
    look(tab, "accuracy")
    where = "document.querySelector('#accuracy .plot').data[0].x[0]"
    # At one ratio methods stand side by side around it.
    assert tab.evaluate("document.querySelector('#accuracy .plot').data.map(trace => trace.x[0])") == pytest.approx(
        [2.25, 2.25, 2.5, 2.5, 2.75, 2.75]
    )
    low, high = tab.evaluate("document.querySelector('#accuracy .plot').layout.xaxis.range")
    assert low < 2.25 and high > 2.75
    assert tab.locator("#accuracy .xtick").count() == 1
    tab.get_by_role("button", name="parameters left").click()
    look(tab, "accuracy")
    assert 0 < tab.evaluate(where) < 100
    assert "parameters left" in tab.locator("#accuracy .plot").inner_text()


def test_a_plot_shows_means_with_error_bars_and_every_seed(tab):
    look(tab, "accuracy")
    drawn = tab.evaluate("document.querySelector('#accuracy .plot').data.filter(trace => trace.name === 'tpp')")
    seeds, means = drawn
    assert sorted(seeds["y"]) == [90, 91, 92]
    assert means["y"] == [91]
    assert means["error_y"]["array"] == [1]


@pytest.fixture(scope="module")
def perplexities(tmp_path_factory):
    """Two methods on a workload where lower is better, and one where accuracy decides."""
    metric = Metric(name="perplexity")
    ledger = Ledger(tmp_path_factory.mktemp("page") / "perplexities")
    for seed in range(3):
        for protocol in ("s3.1", "s3.2"):
            for method, value in (("l1", 110.0), ("tpp", 140.0)):
                arm = evidence(method, protocol, seed, trials=3 if protocol == "s3.1" else 1)
                store(ledger, measured_by(scored(arm, 80.0), metric, value + seed))
    return gather_ledger(catalog_by(metric), ledger)


def test_the_page_speaks_of_the_metric_that_decides(opened, perplexities, results):
    tab = opened(perplexities)
    for section in ("accuracy", "rates", "curves", "trainability"):
        look(tab, section)
        labels = tab.evaluate(
            "id => [...document.querySelectorAll(`#${id} .plot`)].map(plot => plot.layout.yaxis.title.text)", section
        )
        assert any(label.endswith("perplexity (lower is better)") for label in labels), (section, labels)
    drawn = tab.evaluate("document.querySelector('#accuracy .plot').data.filter(trace => trace.name === 'l1')")
    assert drawn[1]["y"] == [111] and "111.00, n = 3" in drawn[1]["text"][0].replace(" ± 1.00", "")
    assert not any("accura" in tab.locator(f"#{name}").inner_text().lower() for name in ("accuracy", "rates", "curves"))
    look(tab, "cells")
    assert column(tab, "cells", "perplexity")[0] == "110.00"
    assert "Test perplexity after the last epoch (lower is better): mean" in tab.locator("#accuracy").inner_text()
    assert "perplexity (lower is better) over paired seeds" in tab.locator("#verdicts").inner_text()
    assert tab.locator("nav a[href='#accuracy']").inner_text() == "Perplexity"
    tab.screenshot(path=picture("perplexity"))
    # Where accuracy decides, nothing else is said.
    tab = opened(results)
    look(tab, "accuracy")
    assert tab.locator("#accuracy h2").inner_text() == "Accuracy against speedup and size"
    assert "Test accuracy after the last epoch: mean" in tab.locator("#accuracy").inner_text()


def picture(name):
    """Where a screenshot is left to be looked at."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    return SCREENSHOTS / f"{name}.png"


def test_the_tuned_protocol_shows_all_rates_and_the_chosen_one(tab):
    look(tab, "rates")
    drawn = tab.evaluate("document.querySelector('#rates .plot').data[0]")
    assert drawn["x"] == [0.001, 0.01, 0.03]
    assert [width > 0 for width in drawn["marker"]["line"]["width"]] == [False, True, False]


def test_learning_rate_drops_are_marked_and_rising_stages_shaded(opened, results):
    rising = finding("F605", "fail", arms=("l1",), required=False).row()
    tab = opened(replace(results, findings=[*results.findings, rising], rules=results.rules | {"F605": CLAIM}))
    look(tab, "curves")
    shapes = tab.evaluate("document.querySelector('#curves .plot').layout.shapes")
    assert [(shape["type"], shape["x0"], shape["x1"]) for shape in shapes] == [("rect", 0, 2), ("line", 2, 2)]


CLAIM = {"claim": "Converged before the first learning-rate decay", "source": "a paper"}


def test_a_method_is_hidden_in_all_plots(opened):
    tab = opened()
    look(tab, "accuracy")
    chip = tab.locator("#methods button", has_text="tpp")
    chip.click()
    assert chip.get_attribute("aria-pressed") == "false"
    look(tab, "accuracy")
    assert traces(tab, "accuracy") == ["l1", "random"]
    look(tab, "trainability")
    assert "tpp" not in traces(tab, "trainability")


def test_budgets_add_up_to_what_the_cells_say(opened, results):
    tab = opened()
    look(tab, "budget")
    bars = tab.evaluate("document.querySelector('#budget .plot').data.map(trace => [trace.name, trace.x, trace.y])")
    total = sum(x[y.index("l1")] for _, x, y in bars)
    row = next(row for row in results.cells if (row["protocol"], row["method"]) == ("s3.2", "l1"))
    assert total == row["total_epochs"]
    tab.locator("#protocol").select_option("s3.1")
    look(tab, "budget")
    bars = tab.evaluate("document.querySelector('#budget .plot').data.map(trace => [trace.name, trace.x[0]])")
    assert dict(bars)["tuning"] == 6


def test_a_mark_of_the_audit_opens_both_values_and_the_records(tab, results):
    look(tab, "audit")
    tab.get_by_role("button", name="l1 vs tpp, F201: holds").click()
    dialog = tab.locator("#dialog")
    key = ("F201", "s3.2", ["l1", "tpp"])
    row = next(row for row in results.findings if (row["rule"], row["protocol"], row["arms"]) == key)
    assert all(str(value) in dialog.inner_text() for value in row["measured"].values())
    assert {"l1", "tpp"} <= set(dialog.locator("thead").first.inner_text().split())
    names = {f"runs/{run['slug']}-{run['run']}/record.json" for run in results.runs}
    found = set(re.findall(r"runs/\S+record\.json", dialog.inner_text()))
    assert found and found <= names
    tab.keyboard.press("Escape")
    assert not dialog.is_visible()
    assert tab.evaluate("document.activeElement.getAttribute('aria-label')") == "l1 vs tpp, F201: holds"


def test_a_cell_tells_the_command_that_measures_it(tab):
    look(tab, "cells")
    tab.get_by_role("button", name="Runs of lenet5-digits-tpp-s3.1-r0.5-seed2").click()
    command = tab.locator("#dialog pre").inner_text()
    assert command == (
        "pytest 'suite/test_cells.py::test_cell[lenet5-digits-tpp-s3.1-r0.5-seed2]' "
        "--audit-methods tpp --audit-protocols s3.1 --audit-seeds 3 --audit-backend torch"
    )
    assert tab.locator("#dialog tbody tr").count() == 6
    tab.keyboard.press("Escape")


def test_failed_cells_are_listed_with_their_reason(tab):
    look(tab, "excluded")
    assert column(tab, "excluded", "reason") == ["run failed: <b>it</b> broke"]


def test_everything_works_from_the_keyboard(opened):
    tab = opened()
    look(tab, "cells")
    tab.locator("#cells input[type=search]").focus()
    tab.keyboard.press("Tab")
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.textContent") == "protocol"
    tab.keyboard.press("Enter")
    assert tab.locator("#cells th").first.get_attribute("aria-sort") == "ascending"
    tab.locator("#methods button").first.focus()
    tab.keyboard.press("Space")
    assert tab.locator("#methods button").first.get_attribute("aria-pressed") == "false"
    assert tab.evaluate("document.activeElement.dataset.name") == "l1"


def test_light_and_dark_follow_the_reader(opened):
    def ground(tab):
        return tab.evaluate("getComputedStyle(document.body).backgroundColor")

    tab = opened(color_scheme="dark")
    dark = ground(tab)
    tab.get_by_role("button", name="theme: auto").click()
    assert ground(tab) == "rgb(255, 255, 255)" != dark
    tab.get_by_role("button", name="theme: light").click()
    assert ground(tab) == dark


@pytest.mark.parametrize(("width", "scheme"), [(1600, "light"), (400, "dark")])
def test_it_is_readable_at_both_widths(opened, width, scheme):
    """Pictures of every section are left in build/screenshots, to be looked at."""
    tab = opened(width=width, color_scheme=scheme)
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    for section in SECTIONS:
        look(tab, section)
        picture = tab.screenshot(path=SCREENSHOTS / f"{section}-{width}.png")
        assert np.asarray(Image.open(io.BytesIO(picture)).convert("L")).std() > 5, section
        assert tab.evaluate("document.documentElement.scrollWidth") <= width, section


def test_it_prints(opened, results):
    """Every section is on paper, whole, though nobody scrolled to it: heading, tables and plots as wide as the page."""
    # More runs than a table shows on a screen.
    shown = replace(results, runs=[{**run, "slug": f"{run['slug']}-{n}"} for n in range(2) for run in results.runs])
    assert len(shown.runs) > 100
    tab = opened(shown, color_scheme="dark")
    printed = pypdf.PdfReader(io.BytesIO(tab.pdf(format="A4")))
    # Fonts have one sign for some pairs of letters.
    pages = [unicodedata.normalize("NFKC", page.extract_text()) for page in printed.pages]
    headings = tab.locator("main h2").all_inner_texts()
    assert len(headings) == len(SECTIONS)
    found = [next(n for n, text in enumerate(pages) if f"\n{heading}\n" in f"\n{text}\n") for heading in headings]
    assert found == sorted(found), "every section is on paper, in order"
    for heading, number in zip(headings, found, strict=True):
        after = f"\n{pages[number]}\n".partition(f"\n{heading}\n")[2]
        assert len(after.splitlines()) > 1, f"nothing but its heading is on the page: {heading}"
    text = "\n".join(pages)
    assert "Shown: lenet5-digits, s3.2, all ratios." in pages[0]
    # What Chromium draws of plots is text, too: axes of each of them.
    for axis in ("speedup, MACs(base)", "first learning rate of retraining", "training MACs", "mean JSV"):
        assert axis in text, axis
    runs = [len(re.findall(r"record\.json", page)) for page in pages]
    assert sum(runs) == len(shown.runs), "a table is printed whole"
    continued = [page for page, rows in zip(pages, runs, strict=True) if rows]
    assert len(continued) > 1 and all("learning rate" in page for page in continued), "its head comes again"
    # The same that the browser does before it prints.
    tab.emulate_media(media="print")
    tab.evaluate("dispatchEvent(new Event('beforeprint'))")
    width = tab.evaluate("document.querySelector('main').getBoundingClientRect().right")
    for section in SECTIONS:
        assert tab.locator(f"#{section} h2").is_visible(), section
        assert tab.locator(f"#{section} :is(table, .main-svg, .empty)").count() > 0, section
    assert tab.locator("details:not([open])").count() == 0
    for what in (".main-svg", "table", "figure"):
        ends = tab.evaluate(
            "what => [...document.querySelectorAll(`main ${what}`)].map(one => one.getBoundingClientRect().right)", what
        )
        assert ends and max(ends) <= width + 1, what
    tab.evaluate("dispatchEvent(new Event('afterprint'))")
    assert tab.locator("details:not([open])").count() > 0


def test_differences_come_first_as_a_picture(tab, results):
    # Best seen without scrolling, and before any script has drawn.
    tab.evaluate("scrollTo(0, 0)")
    box = tab.locator("table.gaps").first.bounding_box()
    assert box["y"] + box["height"] < 900
    heads = tab.locator("table.gaps thead th").all_inner_texts()
    assert heads == ["first − second", "S2", "S3.1", "S3.2", "SX-A"]
    row = next(row for row in results.verdicts if row["arms"] == ["l1", "tpp"] and row["protocol"] == "s3.2")
    cell = tab.locator("table.gaps tbody tr", has_text="l1 − tpp").locator("td").nth(2)
    assert cell.inner_text().strip() == f"{row['difference']['mean']:+.2f}".replace("-", "−")
    assert row["summary"] in cell.locator("svg").get_attribute("aria-label")
    # Left of zero, as far as the mean is on the axis.
    x = float(re.search(r"translate\(([\d.]+)", cell.locator("svg g").get_attribute("transform"))[1])
    assert x < 75


def test_arms_that_nobody_compared_are_audited_and_a_setup_alone_has_room(opened, results):
    one = [row for row in results.cells if (row["method"], row["protocol"]) == ("l1", "s3.2")]
    single = [row for row in results.findings if row["arms"] == ["l1"] and row["protocol"] == "s3.2"]
    tab = opened(replace(results, cells=one, findings=single, verdicts=[]))
    look(tab, "audit")
    assert column(tab, "audit", "arm") == ["l1"]
    assert "Every comparison" not in tab.locator("#verdicts").inner_text()
    # The line of the base model lies within the frame, not on it.
    look(tab, "accuracy")
    plot = "document.querySelector('#accuracy .plot').layout"
    base, (low, high) = tab.evaluate(f"[{plot}.shapes[0].y0, {plot}.yaxis.range]")
    assert low < base < high
    pair = [row for row in results.verdicts if row["protocol"] == "s3.2"]
    forbidden = {
        **pair[0],
        "verdict": "not comparable",
        "forbidden_by": ["F101", "F102", "F103", "F104", "F105", "F607"],
    }
    tab = opened(replace(results, verdicts=[forbidden, *pair[1:]]))
    assert tab.locator("table.gaps.few").count() == 1
    look(tab, "verdicts")
    assert column(tab, "comparisons", "because of")[0] == "F607 F101 and 4 more rules"


def test_means_and_deviations_stand_in_a_table(tab):
    look(tab, "accuracy")
    assert "91.00 ± 1.00" in tab.locator("#means tbody").inner_text()


def test_rules_are_named_where_they_stand(tab):
    look(tab, "audit")
    head = tab.locator("#audit thead th", has_text="F201").inner_text()
    assert head.split() == ["F201", "Same", "base", "weights"]


def test_names_of_strangers_are_text(opened, results):
    tab = opened(renamed(results, "random", STRANGER), width=400)
    for section in SECTIONS:
        look(tab, section)
        assert tab.evaluate("document.documentElement.scrollWidth") <= 400, section
    assert STRANGER in column(tab, "cells", "method")
    assert tab.locator("img, main script").count() == 0
    look(tab, "audit")
    tab.get_by_role("button", name="F201: holds").first.click()
    assert STRANGER in tab.locator("#dialog").inner_text()
    tab.keyboard.press("Escape")
    look(tab, "cells")
    tab.locator("#cells input[type=search]").fill("onerror")
    tab.locator("#cells tbody button").first.click()
    assert tab.locator("#dialog pre").inner_text().count("'\\''") >= 2


def test_no_script_but_the_pages_own_can_run(browser, results, tmp_path):
    """Were a name to slip through, the content security policy would stop it."""
    path = tmp_path / "report.html"
    path.write_text(html(results).replace("</main>", "<script>window.slipped = 1</script></main>"), encoding="utf-8")
    tab = browser.new_page()
    tab.goto(path.as_uri())
    tab.wait_for_selector("#comparisons table")
    assert tab.evaluate("window.slipped") is None
    tab.close()


def test_an_empty_report_is_a_page(opened):
    tab = opened(Results(cells=[], findings=[]))
    assert "No two methods were compared" in tab.locator("#verdicts").inner_text()
    for section in SECTIONS:
        look(tab, section)


def test_what_arithmetic_alone_changes_is_a_section_where_it_was_measured(opened, results):
    row = {
        **{"workload": "lenet5-digits", "labels": [], "protocol": "s3.2", "ratio": 0.5, "pairs": 4, "differ": 3},
        **{"typical": 1.87, "largest": 3.0, "of_means": 2.5, "spread": None},
    }
    tab = opened(replace(results, noise=[row]))
    tab.locator("nav a", has_text="Noise floor").click()
    look(tab, "noise")
    assert tab.locator("#noise tbody td").all_inner_texts() == ["s3.2", "0.5", "3 of 4", "1.87", "3.00", "2.50", "–"]
    assert "In percentage points." in tab.locator("#noise p").inner_text()


def test_what_papers_state_stands_beside_ours(opened, results):
    stated = {
        **{"file": "a-table", "paper": "A paper", "source": "arXiv 0000.00000", "table": "Table 9", "row": "L1, step"},
        **{
            "workload": "lenet5-digits",
            "labels": [],
            "protocol": "s3.2",
            "method": "l1",
            "ratio": 0.5,
            "notes": ["Best epoch."],
        },
        **{
            "retraining": "0:0.01",
            "published_mean": 84.21,
            "published_std": 0.1,
            "published_n": 3,
            "published_speedup": 2.5,
        },
        **{
            "published_base": None,
            "mean": 81.0,
            "std": 1.0,
            "n": 3,
            "speedup": 2.5,
            "base": 90.0,
            "measured_under": ["s3.2"],
        },
        **{"runs": [], "difference": -3.21, "low": -5.6, "high": -0.8, "reading": "lower", "differs": []},
    }
    tab = opened(replace(results, published=[stated]))
    look(tab, "published")
    text = tab.locator("#published").inner_text()
    for part in ("A paper", "Table 9", "84.21 ± 0.10", "81.00 ± 1.00", "lower", "Best epoch."):
        assert part in text, part


def test_a_script_that_was_packed_before_is_believed_where_it_unpacks_to_what_it_should(tmp_path, monkeypatch):
    monkeypatch.setenv("PRUNEAUDIT_CACHE", str(tmp_path))
    monkeypatch.setattr(pages, "_plotly", lambda: "plots")
    pack = pages._packed_plotly.__wrapped__
    packed = pack()
    (kept,) = tmp_path.iterdir()
    assert kept.read_text() == packed
    times = []
    monkeypatch.setattr(pages, "_packed", lambda text: times.append(text) or packed)
    assert pack() == packed and not times
    another = base64.b64encode(gzip.compress(b"other plots")).decode()
    for found in ("", "no base64", packed[:-8], another):
        kept.write_text(found)
        assert pack() == packed == kept.read_text()
    assert times == ["plots"] * 4
    # Where nothing can be kept it is packed each time.
    monkeypatch.setenv("PRUNEAUDIT_CACHE", str(kept))
    assert pack() == packed and len(times) == 5
