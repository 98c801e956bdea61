"""Tables for papers: what they claim, and that no name of a stranger breaks them."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from builders import evidence, scored, store
from hypothesis import given, settings
from hypothesis import strategies as st

from pruneaudit.catalog.discovery import Catalog
from pruneaudit.ledger.store import Ledger
from pruneaudit.report.curves import Curve
from pruneaudit.report.latex import escaped, tables
from pruneaudit.report.results import Results, gather_ledger

CATALOG = Catalog()
GOLDEN = Path(__file__).parent / "golden"
NAME = "accuracy-lenet5-digits-s3.2.tex"


def rows(method, *accuracies, ratio=0.5, speedup=2.0, protocol="s3.2", labels=(), workload="lenet5-digits"):
    about = {"workload": workload, "labels": list(labels), "protocol": protocol, "method": method, "ratio": ratio}
    more = {"status": "ok", "speedup": speedup, "runs": ["base"], "base_accuracy": 98.0, "granularity": "filter"}
    return [about | more | {"seed": seed, "accuracy": accuracy} for seed, accuracy in enumerate(accuracies)]


def standing(groups, ratio=0.5, protocol="s3.2"):
    about = {"workload": "lenet5-digits", "labels": [], "protocol": protocol, "ratio": ratio}
    return about | {"groups": groups, "not_comparable": []}


def network(method, ratio=0.5, params=50, protocols=("s3.2",), labels=()):
    about = {"workload": "lenet5-digits", "labels": list(labels), "method": method, "ratio": ratio}
    return about | {"params": params, "base_params": 100, "protocols": list(protocols)}


PROTOCOLS = {
    "s1": {"title": "Same dataset", "base": "own", "retraining": "own"},
    "s2": {"title": "S1 and the same base model", "base": "shared", "retraining": "own"},
    "s3.1": {"title": "S2 and the same epochs", "base": "shared", "retraining": "tuned"},
    "s3.2": {"title": "S3.1 and the same schedule", "base": "shared", "retraining": "workload"},
}


def all_tables(cells, standings=(), networks=(), **fields):
    given = {"standings": list(standings), "architectures": list(networks), "protocols": PROTOCOLS}
    return tables(Results(cells, [], **given, **fields))


def table(*arguments, **fields):
    return all_tables(*arguments, **fields)[NAME]


def lines(text, start):
    return [line.removesuffix(r" \\").split(" & ") for line in text.splitlines() if line.startswith(start)]


# Layout


def compared(ledger):
    """Two methods under two setups, one of which tunes the learning rate, and a scratch arm."""
    for seed, (ours, theirs) in enumerate([(90.0, 91.0), (92.0, 91.5)]):
        for protocol, trials in (("s3.2", 1), ("s3.1", 3)):
            store(ledger, scored(evidence("l1", protocol, seed, trials), ours))
            store(ledger, scored(evidence("tpp", protocol, seed, trials), theirs))
        store(ledger, scored(evidence("scratch", seed=seed), 88.0 + seed))
    return ledger


@pytest.mark.parametrize("protocol", ["s3.1", "s3.2"])
def test_tables_are_what_they_were(tmp_path, protocol):
    """Write them anew with ``UPDATE_GOLDEN=1 pytest tests/test_latex.py -k what_they_were``, then read the diff."""
    found = tables(gather_ledger(CATALOG, compared(Ledger(tmp_path / "ledger"))))
    assert sorted(found) == ["accuracy-lenet5-digits-s3.1.tex", NAME]
    name = f"accuracy-lenet5-digits-{protocol}.tex"
    golden = GOLDEN / name
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text(found[name], encoding="utf-8", newline="")
    assert found[name] == golden.read_bytes().decode("utf-8")


def test_a_table_as_it_stands_in_a_paper():
    cells = [
        *rows("tpp", 93, 95),
        *rows("l1", 90, 92),
        *rows("scratch-b", 99.0),
        *rows("l1", 80, 81, ratio=0.9, speedup=10.891),
        *rows("tpp", 85, 86, ratio=0.9, speedup=10.889),
        *rows("unpruned", 98, 98, ratio=0.9, speedup=1.0),
    ]
    standings = [standing([["tpp"], ["l1"]]), standing([["l1", "tpp"]], 0.9)]
    assert (
        table(cells, standings, [network("l1"), network("tpp"), network("l1", 0.9, 10)])
        == r"""\begin{table}
\centering
\small
\setlength{\tabcolsep}{4pt}
\setlength{\belowcaptionskip}{4pt}
\caption{Test accuracy (\%) of lenet5-digits after the last epoch,
mean $\pm$ sample standard deviation, n = 1 to 2.
Setup S3.2 (closed): S3.1 and the same schedule.
Base model: 98.00.
Bold: better than every method that it may be compared with, by the exact sign-flip test
after Holm's correction; without it nothing is shown to be best.}
\label{tab:accuracy-lenet5-digits-s3.2}
\begin{tabular}{lcc}
\toprule
Pruning ratio & 0.5 & 0.9 \\
Sparsity/speedup & 50.00\%/2.00$\times$ & 90.00\%/10.89$\times$ \\
\midrule
l1 & 91.00 $\pm$ 1.41 & 80.50 $\pm$ 0.71 \\
tpp & \textbf{94.00 $\pm$ 1.41} & 85.50 $\pm$ 0.71 \\
unpruned & -- & 98.00 $\pm$ 0.00 \\
scratch-b & 99.00 & -- \\
\bottomrule
\end{tabular}
\end{table}
"""
    )


def test_sizes_that_differ_stand_in_a_line_each():
    cells = [*rows("l1", 90), *rows("l1-global", 91, speedup=2.04), *rows("l1", 80, ratio=0.9, speedup=9.0)]
    text = table(cells, (), [network("l1"), network("l1-global", params=40), network("l1", 0.9, 10)])
    assert lines(text, "Sparsity") == [[r"Sparsity (\%)", "50.00--60.00", "90.00"]]
    assert lines(text, "Speedup") == [[r"Speedup ($\times$)", "2.00--2.04", "9.00"]]
    # A network of another setup or under other labels is not in this table.
    others = [network("l1"), network("l2", params=1, protocols=("s2",)), network("l1", params=2, labels=("smoke",))]
    assert "Sparsity/speedup & 50.00\\%/2.00$\\times$ \\\\" in table(rows("l1", 90), (), others)


def test_every_setup_has_a_table_of_its_own():
    found = all_tables([*rows("l1", 50, protocol="s2"), *rows("l1", 60)])
    assert sorted(found) == ["accuracy-lenet5-digits-s2.tex", NAME]
    assert r"\label{tab:accuracy-lenet5-digits-s2}" in found["accuracy-lenet5-digits-s2.tex"]
    assert [lines(text, "l1") for text in found.values()] == [[["l1", "50.00"]], [["l1", "60.00"]]]


def test_nothing_is_bold_that_no_verdict_set_apart():
    assert r"\textbf" not in table([*rows("l1", 50), *rows("tpp", 99)], [standing([["l1", "tpp"]])])
    # Alone in its row it was compared with nothing.
    assert r"\textbf" not in table(rows("l1", 50), [standing([["l1"]])])
    # Nor by a verdict under another setup.
    other = standing([["tpp"], ["l1"]], protocol="s2")
    assert r"\textbf" not in table([*rows("l1", 50), *rows("tpp", 99)], [other])


def test_a_setup_whose_arms_retrain_on_their_own_is_open():
    found = all_tables([*rows("l1", 50, protocol="s2"), *rows("l1", 60), *rows("l1", 70, protocol="s1")])
    open_, closed, own = (found[f"accuracy-lenet5-digits-{name}.tex"] for name in ("s2", "s3.2", "s1"))
    assert "Setup S2 (open: arms differ in more than the pruning): S1 and the same base model." in open_
    assert "Setup S3.2 (closed): " in closed
    bases = {"s3.2": PROTOCOLS["s3.2"] | {"base": "own"}}
    assert "Setup S3.2 (open: " in tables(Results(rows("l1", 60), [], protocols=bases))[NAME]
    # Under S1 each arm has a base model of its own.
    assert "Base model" not in own and "Base model: 98.00." in open_


def test_one_seed_has_no_deviation_to_speak_of():
    assert "after the last epoch,\none seed.\n" in table(rows("l1", 50))
    assert "n = 2." in table(rows("l1", 50, 51))


def test_single_weights_are_marked():
    masked = [{**row, "granularity": "weight"} for row in rows("magnitude-layer", 90)]
    text = table([*masked, *rows("l1", 80)])
    assert r"magnitude-layer$^\dagger$ & 90.00" in text and "l1 & 80.00" in text
    assert r"$^\dagger$: single weights are zero" in text and r"\dagger" not in table(rows("dagger", 80))


def tuned(*schedules):
    """A cell of each of two seeds, that tried these schedules."""
    cells, runs, curves = [], [], {}
    for cell in rows("l1", 90.0, 92.0, protocol="s3.1"):
        names = [f"{cell['seed']}-{number}" for number in range(len(schedules))]
        for number, (name, rates) in enumerate(zip(names, schedules, strict=True)):
            runs.append({"run": name, "stage": "retrain", "accuracy": 80.0 + number + cell["seed"]})
            curves[name] = Curve([], rates)
        cells.append({**cell, "runs": ["base", "prune", *names]})
    runs.append({"run": "prune", "stage": "prune", "accuracy": 10.0})
    return all_tables(cells, runs=runs, curves=curves)["accuracy-lenet5-digits-s3.1.tex"]


def test_trials_of_a_tuned_rate_have_a_row_each():
    text = tuned([(0.0, 1e-2), (5.0, 1e-3)], [(0.0, 0.1)], [(0.0, 1.5e-3)])
    assert lines(text, "l1") == [
        ["l1, tuned", r"91.00 $\pm$ 1.41"],
        ["l1, 1.5e-3", r"82.50 $\pm$ 0.71"],
        ["l1, 1e-2", r"80.50 $\pm$ 0.71"],
        ["l1, 1e-1", r"81.50 $\pm$ 0.71"],
    ]
    assert "Tuned: for each seed the schedule that did best on validation" in text
    assert "Tuned" not in table(rows("l1", 90))


def test_schedules_that_start_alike_are_written_out():
    text = tuned([(0.0, 1e-2), (5.0, 1e-3)], [(0.0, 1e-2)])
    assert [cells[0] for cells in lines(text, "l1, 0")] == ["l1, 0:1e-2", "l1, 0:1e-2 5:1e-3"]


def test_warmed_up_trials_are_called_by_their_highest_rate():
    text = tuned([(0.0, 1e-6), (1.0, 1e-2)], [(0.0, 1e-6), (1.0, 1e-3)])
    assert [cells[0] for cells in lines(text, "l1, 1")] == ["l1, 1e-3", "l1, 1e-2"]


def test_of_a_rate_of_every_step_both_ends_are_written():
    curve = [(step / 4, 1e-2 / (step + 1)) for step in range(400)]
    text = tuned(curve, [(0.0, 1e-2)])
    assert lines(text, "l1, 0")[1][0] == "l1, 0:1e-2 0.25:5e-3 0.5:3.33333e-3 ... 99.75:2.5e-5 (400 rates)"


def test_labels_have_tables_of_their_own():
    found = all_tables([*rows("l1", 50), *rows("l1", 60, labels=("smoke",))])
    assert sorted(found) == [NAME, "accuracy-lenet5-digits-smoke-s3.2.tex"]
    assert r"lenet5-digits [smoke]" in found["accuracy-lenet5-digits-smoke-s3.2.tex"]


def test_what_a_page_cannot_hold_goes_on_in_further_tables():
    many = [row for number in range(53) for row in rows(f"mine-{number:02}", 50.0)]
    wide = [row for number in range(1, 9) for row in rows("mine-00", 50.0, ratio=number / 10)]
    found = all_tables([*many, *wide])
    stem = NAME.removesuffix(".tex")
    assert list(found) == [NAME, f"{stem}-2.tex", f"{stem}-3.tex"]
    # Methods without a result at these ratios have no row there.
    assert [len(lines(text, "mine")) for text in found.values()] == [1, 27, 26]
    for number, (name, text) in enumerate(found.items(), 1):
        assert [len(head) for head in lines(text, "Pruning ratio")] == [5]
        assert f"Part {number} of 3." in text and rf"\label{{tab:{name.removesuffix('.tex')}}}" in text
    assert "Part" not in table(rows("l1", 50.0))


def test_names_that_leave_no_room_get_fewer_ratios():
    ratios = (0.3, 0.5, 0.7, 0.9)
    found = all_tables(
        [row for ratio in ratios for row in rows("a-name-of-forty-letters-that-says-it-all", 1, 2, ratio=ratio)]
    )
    assert [lines(text, "Pruning ratio")[0][1:] for text in found.values()] == [["0.3", "0.5"], ["0.7", "0.9"]]


def test_long_names_do_not_share_a_file():
    cells = [*rows("l1", 50, workload="w" * 200), *rows("l1", 60, workload="w" * 201)]
    first, second = all_tables(cells).values()
    assert "50.00" in first and "60.00" in second


# Names of strangers


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("100%_of $x & {y}#~^", r"100\%\_of \$x \& \{y\}\#\textasciitilde{}\textasciicircum{}"),
        (r"\input{/etc/passwd}", r"\textbackslash{}input\{/etc/passwd\}"),
        ("<script>alert(1)</script>", r"\textless{}script\textgreater{}alert(1)\textless{}/script\textgreater{}"),
        ("=HYPERLINK(x)", "=HYPERLINK(x)"),
        ("café\n\\\\ 🎉", r"cafe \textbackslash{}\textbackslash{}"),
        ("🎉", "?"),
        ("α-prune", "alpha-prune"),
        ("Σ–Łukasz", "Sigma-Lukasz"),
        ("方法", "U+65B9U+6CD5"),
        ("", "?"),
    ],
)
def test_names_of_strangers_are_text(name, expected):
    assert escaped(name) == expected


@settings(deadline=None)
@given(st.text(max_size=400))
def test_no_text_is_a_command_or_leaves_the_page(name):
    text = escaped(name)
    assert text.isascii() and text.isprintable()
    bare = re.sub(r"\\(textbackslash|textasciitilde|textasciicircum|textless|textgreater|textbar)\{\}", "x", text)
    bare = re.sub(r"\\[{}&%$#_]", "x", bare)
    assert not set(bare) & set("\\{}&%$#_~^<>|") and 1 <= len(bare) <= 60


def has_latex():
    if shutil.which("pdflatex") is None or shutil.which("kpsewhich") is None:
        return False
    return subprocess.run(["kpsewhich", "booktabs.sty"], capture_output=True, check=False).returncode == 0


def compiled(folder, texts):
    """The log of a document of the class that most papers start from."""
    page = r"\documentclass{article}\usepackage{booktabs}\begin{document}"
    page += "".join(rf"{text}Table~\ref{{{re.search(r'label{(.*?)}', text)[1]}}}\clearpage " for text in texts)
    (folder / "page.tex").write_text(page + r"\end{document}")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "page.tex"]
    for _ in range(2):
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-2000:]
    return done.stdout


@pytest.mark.skipif(not has_latex(), reason="no LaTeX with booktabs here")
def test_latex_takes_the_table(tmp_path):
    stranger = r"\evil{%&_#$~^}<>|" + '"'
    cells = [*rows(stranger, 90, 91), *rows("tpp", 93, 94), *rows(stranger, 1, workload=stranger, labels=(stranger,))]
    log = compiled(tmp_path, all_tables(cells, [standing([["tpp"], ["l1"]])]).values())
    assert "undefined" not in log


@pytest.mark.skipif(not has_latex(), reason="no LaTeX with booktabs here")
@pytest.mark.parametrize("ratios", [(0.3, 0.5, 0.7, 0.9), (0.3, 0.5, 0.7, 0.9, 0.95)], ids=len)
def test_a_table_fits_the_page(tmp_path, ratios):
    methods = [*CATALOG.methods, "scratch-b-of-network-slimming"]
    cells = [row for ratio in ratios for method in methods for row in rows(method, 92.11, 93.12, ratio=ratio)]
    networks = [network(method, ratio, 100 - 100 * ratio) for method in methods for ratio in ratios]
    # Every second table has sizes that differ, and so a line more.
    other = [{**row, "protocol": "s2", "speedup": 11 + row["ratio"] * (row["method"] == "tpp")} for row in cells]
    log = compiled(tmp_path, all_tables([*cells, *other], (), networks).values())
    assert "Overfull" not in log and "too large" not in log
