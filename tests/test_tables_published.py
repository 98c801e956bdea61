"""Real tables: what each published one must produce, the corpus of ShrinkBench counted again, strictest setups."""

import json
import os
import re
import tomllib
from pathlib import Path

import pytest
import typer
from test_tables_rules import R56, table
from work import calls

from pruneaudit.catalog.discovery import content_root
from pruneaudit.cli import tables
from pruneaudit.errors import ConfigError
from pruneaudit.tables import corpus
from pruneaudit.tables.command import audit_files
from pruneaudit.tables.page import page
from pruneaudit.tables.setups import setups

PUBLISHED = content_root() / "protocols" / "published"
PINNED = tomllib.loads((PUBLISHED / "tables" / "findings.toml").read_text(encoding="utf-8"))
#: Exports of ShrinkBench's repository (its analysis/assets/existing-results), which are not ours to ship.
CORPUS = os.environ.get("PRUNEAUDIT_CORPUS", "")


def test_every_published_table_is_pinned():
    files = [*PUBLISHED.glob("*.toml"), *(PUBLISHED / "tables").iterdir()]
    assert {path.relative_to(PUBLISHED).as_posix() for path in files} - {"tables/findings.toml"} == set(PINNED)


@pytest.mark.parametrize("name", PINNED)
def test_a_published_table_gives_its_findings_and_no_others(name):
    findings = audit_files([PUBLISHED / name]).findings
    assert [f"{one.rule.id} {one.mark.subject}".strip() for one in findings] == PINNED[name]


def test_the_bold_headline_is_what_the_accuracies_give():
    found = audit_files([PUBLISHED / "tables" / "torch-pruning-readme.md"]).findings
    wrong = {one.mark.subject: one.mark.expected for one in found if one.rule.id == "T001"}
    assert wrong == {"HRank": "-1.09", "Ours": "+0.24", "GReg-1": "-6.47", "Ours w/o SL": "-5.90"}


def test_columns_with_the_wrong_ratio_are_given_the_right_one():
    found = audit_files([PUBLISHED / "tables" / "wang2023-table7.md"]).findings
    assert {one.mark.subject: one.mark.expected for one in found if one.rule.id == "T014"} == {
        "0.3": "0.1",
        "0.5": "0.3",
        "0.7": "0.5",
        "0.9": "0.7",
    }


def test_a_benchmark_of_sixteen_methods_is_read_as_its_readers_do():
    audited = audit_files([PUBLISHED / "tables" / "pruningbench-readme.md"])
    lines = [finding.line for finding in audited.findings]
    first = next(line for line in lines if "T015" in line)
    assert "27 % (HRank) to 71 % (MagnitudeL1) of the parameters" in first, "rows of one 2x tier"
    # Its "pruning ratio" is what is left, which no base says: the sizes of all rows do.
    assert sum("T010" in line and "is what is left" in line for line in lines) == 2
    assert any("T008 CP: rank 7 with 42.574 stands below rank 6 with 36.600" in line for line in lines)
    assert sum("has 9 cells where the header has 8" in note for note in audited.notes()) == 8


def test_the_field_compares_under_s1_and_s2():
    pairs = setups(audit_files([PUBLISHED / "tables" / "wang2023-tables1-3.csv"]).tables)
    shown = {tuple(row.method for row in pair.arms): pair for pair in pairs}
    # Only GReg's two methods share base, epochs and schedule; whatever is compared with them does not.
    assert {arms for arms, pair in shown.items() if pair.name not in ("S1", "S2")} == {("GReg-1", "GReg-2")}
    assert shown["GReg-1", "GReg-2"].name == "S3.2"
    assert shown["SFP", "CC"].name == "S2" and "epochs of SFP not specified" in shown["SFP", "CC"].why
    assert "speedup 1.72" in shown["SFP", "CC"].why, "a tier is wider than its name"
    assert shown["DCP", "GReg-2"].name == "S1" and "76.01 % and 76.13 %" in shown["DCP", "GReg-2"].why


def test_pruning_against_scratch_is_sx(tmp_path):
    header = "method | ratio | speedup | accuracy | base_accuracy | base_epochs | pruning_epochs | epochs"
    rows = [
        "L1 | 0.5 | 2.0 | 93.5 | 93.8 | 160 | 0 | 40",
        "Scratch-A | 0.5 | 2.0 | 93.1 | – | – | – | 200",
        "Scratch-B | 0.5 | 2.0 | 93.1 | – | – | – | 360",
        "Scratch-E | 0.5 | 2.0 | 93.0 | – | – | – | 160",
    ]
    path = tmp_path / "a.md"
    path.write_text(table(header, *rows, title=R56), encoding="utf-8")
    shown = {
        pair.arms[1].method: pair.name for pair in setups(audit_files([path]).tables) if pair.arms[0].method == "L1"
    }
    assert shown == {"Scratch-A": "SX-A", "Scratch-B": "SX-B", "Scratch-E": "S1"}


def test_the_report_marks_the_cell_and_says_what_should_stand_there(tmp_path):
    text = page(audit_files([PUBLISHED / "tables" / "torch-pruning-readme.md"]))
    assert 'class="contradiction"' in text and "+0.38<ins>+0.24</ins>" in text
    path = tmp_path / "evil.csv"
    path.write_text("Method,Base,Accuracy,Drop\n<script>alert(1)</script>,93.5,93.0,0.9\n", encoding="utf-8")
    assert "<script>" not in page(audit_files([path]))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_can_be_read_on_a_phone_and_without_colours(scheme, browser, tmp_path):
    path = tmp_path / "tables.html"
    path.write_text(page(audit_files([PUBLISHED / "tables" / "torch-pruning-readme.md"])), encoding="utf-8")
    tab = browser.new_page(viewport={"width": 400, "height": 800}, color_scheme=scheme)
    tab.goto(path.as_uri())
    # Fonts differ between machines: a name that fits in one is wider than the page in another.
    for spacing in ("normal", "4px"):
        tab.add_style_tag(content=f"body {{ letter-spacing: {spacing}; }}")
        assert tab.evaluate("document.documentElement.scrollWidth") <= 400, "tables scroll, the page does not"
    frames = {
        kind: tab.evaluate("kind => getComputedStyle(document.querySelector('td.' + kind)).outlineStyle", kind)
        for kind in ("contradiction", "unequal", "missing")
    }
    assert frames == {"contradiction": "solid", "unequal": "dashed", "missing": "dotted"}
    # WCAG 2.1, contrast of text against the page.
    text = tab.evaluate("getComputedStyle(document.querySelector('td ins')).color")
    light, dark = sorted((_luminance(text), 1.0 if scheme == "light" else _luminance("rgb(18, 18, 18)")), reverse=True)
    assert (light + 0.05) / (dark + 0.05) >= 4.5
    tab.close()


def _luminance(colour):
    """Relative luminance of ``rgb(r, g, b)``."""
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_pairs_of_a_large_table_are_bounded(tmp_path):
    path = tmp_path / "many.csv"
    rows = (f"ResNet-56,CIFAR-10,method {place},0.5,93.5,{90 + place % 300 / 100:.2f}" for place in range(300))
    path.write_text("\n".join(["Network,Dataset,Method,PR,Base,Accuracy", *rows]), encoding="utf-8")
    audited = audit_files([path])
    setups = []
    assert calls(lambda: setups.extend(audited.setups())) < 200 * 10_000
    assert len(setups) == 10_000 and "of more than 10,000 pairs" in audited.cut()[0]
    few = audit_files([PUBLISHED / "tables" / "wang2023-tables1-3.csv"])
    assert few.cut() == [] and len(few.setups()) == len({tuple(map(id, one.arms)) for one in few.setups()})


def test_the_command_writes_its_report(tmp_path, capsys):
    file = PUBLISHED / "tables" / "torch-pruning-readme.md"
    tables([file], to=tmp_path, fail_on="T005")
    assert ":19: T001 Ours" in capsys.readouterr().out
    content = json.loads((tmp_path / "tables.json").read_text(encoding="utf-8"))
    assert len(content["findings"]) == 13 and (tmp_path / "tables.html").exists()
    with pytest.raises(typer.Exit) as ended:
        tables([file], fail_on="contradiction")
    assert ended.value.exit_code == 1
    with pytest.raises(ConfigError, match="T001"):
        tables([file], fail_on="T0001")


# The corpus


def small_corpus(folder):
    (folder / corpus.PAPERS).write_text(
        'Name,Compares To\nfirst,\nsecond,"first"\nthird,"first,second,unknown"\n', encoding="utf-8"
    )
    (folder / corpus.RESULTS).write_text(
        "Name,Paper,Dataset,Model,Top1,stdTop1,OrigTop1,OrigGFLOPS\n"
        "1,first,ImageNet,ResNet-50,75.1%,,76.13%,4.1\n2,second,ImageNet,ResNet-50,75.0%,0.1,75.30%,7.7\n"
        "3,third,CIFAR-10,VGG-16,93.1%,,93.5%,\n",
        encoding="utf-8",
    )
    return folder


def test_a_corpus_is_counted(tmp_path):
    found = corpus.load(small_corpus(tmp_path))
    counts = found.counts()
    assert (counts["papers"], counts["compare with none"], counts["compare with one"]) == (3, 1, 1)
    assert (counts["never compared with"], counts["papers with a spread"], counts["papers on it"]) == (1, 1, 2)
    (base,) = found.bases()
    assert (base["network"], base["spread"], base["units"]) == ("ResNet-50", 0.83, {"2 x MACs": 1, "MACs": 1})


def test_a_folder_that_is_no_corpus_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="ShrinkBench"):
        corpus.load(tmp_path)


@pytest.mark.skipif(not CORPUS, reason="PRUNEAUDIT_CORPUS names no folder with ShrinkBench's exports")
def test_shrinkbench_counts_are_found_again():
    folder = Path(CORPUS)
    counts = corpus.load(folder).counts()
    found = audit_files([folder / corpus.RESULTS]).findings
    assert counts["papers"] == 81 and counts["results"] == 551
    assert (counts["compare with none"], counts["compare with one"], counts["compare with three at most"]) == (
        21,
        22,
        64,
    )
    assert (counts["never compared with"], counts["papers with a spread"]) == (33, 1)
    assert (counts["most common pair"], counts["papers on it"]) == ("VGG-16 / ImageNet", 22)
    # Contradictions among 551 rows, each of them looked at: a drop printed for three networks, units that are mixed,
    # bases that the named networks do not have.
    wrong = {one.mark.subject for one in found if one.rule.id == "T001"}
    assert wrong == {"zhuang-discriminative-channel"}
    assert {one.rule.id for one in found if one.rule.kind == "contradiction"} == {"T001", "T011", "T012"}
    assert "T012 sze-energy-aware" in {f"{one.rule.id} {one.mark.subject}" for one in found}, "AlexNet with 371 M"
