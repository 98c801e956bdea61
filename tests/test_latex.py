"""Tables for papers: what they claim, and that no name of a stranger breaks them."""

import re
import shutil
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pruneaudit.report.latex import escaped, tables
from pruneaudit.report.results import Results

NAME = "accuracy-lenet5-digits.tex"


def rows(method, *accuracies, ratio=0.5, speedup=2.0, protocol="s3.2", labels=(), workload="lenet5-digits"):
    about = {"workload": workload, "labels": list(labels), "protocol": protocol, "method": method, "ratio": ratio}
    more = {"status": "ok", "speedup": speedup, "runs": ["base"], "base_accuracy": 98.0, "granularity": "filter"}
    return [about | more | {"seed": seed, "accuracy": accuracy} for seed, accuracy in enumerate(accuracies)]


def standing(groups, ratio=0.5, protocol="s3.2"):
    about = {"workload": "lenet5-digits", "labels": [], "protocol": protocol, "ratio": ratio}
    return about | {"groups": groups, "not_comparable": []}


PROTOCOLS = {
    "s2": {"title": "S1 and the same base model", "base": "shared", "retraining": "own"},
    "s3.2": {"title": "S3.1 and the same schedule", "base": "shared", "retraining": "workload"},
}


def table(cells, standings=()):
    return tables(Results(cells, [], standings=list(standings), protocols=PROTOCOLS))[NAME]


def test_a_table_as_it_stands_in_a_paper():
    cells = [
        *rows("tpp", 93, 95),
        *rows("l1", 90, 92),
        *rows("scratch-b", 99.0),
        *rows("l1", 80, 81, ratio=0.9, speedup=10.89),
        *rows("tpp", 85, 86, ratio=0.9, speedup=11.77),
        *rows("unpruned", 98, 98, ratio=0.9, speedup=1.0),
    ]
    assert (
        table(cells, [standing([["tpp"], ["l1"]]), standing([["l1", "tpp"]], 0.9)])
        == r"""\begin{table}
\centering
\caption{Test accuracy (\%) of lenet5-digits after the last epoch,
mean $\pm$ sample standard deviation, n = 1 to 2.
Base model: 98.00.
Bold: better than every method that it may be compared with, by the exact sign-flip test
after Holm's correction; without it nothing is shown to be best.}
\begin{tabular}{lcc}
\toprule
Method & 0.5 ($2.00\times$) & 0.9 ($10.89$--$11.77\times$) \\
\midrule
\multicolumn{3}{l}{S3.2 (closed): S3.1 and the same schedule} \\
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


def test_nothing_is_bold_that_no_verdict_set_apart():
    assert r"\textbf" not in table([*rows("l1", 50), *rows("tpp", 99)], [standing([["l1", "tpp"]])])
    # Alone in its row it was compared with nothing.
    assert r"\textbf" not in table(rows("l1", 50), [standing([["l1"]])])


def test_a_setup_whose_arms_retrain_on_their_own_is_open():
    text = table([*rows("l1", 50, protocol="s2"), *rows("l1", 60)])
    assert "S2 (open: arms differ in more than the pruning): S1 and the same base model" in text
    assert "S3.2 (closed): " in text


def test_single_weights_are_marked():
    masked = [{**row, "granularity": "weight"} for row in rows("magnitude-layer", 90)]
    text = table([*masked, *rows("l1", 80)])
    assert "magnitude-layer (single weights) & 90.00" in text and "l1 & 80.00" in text


def test_labels_have_tables_of_their_own():
    found = tables(Results([*rows("l1", 50), *rows("l1", 60, labels=("smoke",))], [], protocols=PROTOCOLS))
    assert sorted(found) == ["accuracy-lenet5-digits-smoke.tex", NAME]
    assert r"lenet5-digits [smoke]" in found["accuracy-lenet5-digits-smoke.tex"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("100%_of $x & {y}#~^", r"100\%\_of \$x \& \{y\}\#\textasciitilde{}\textasciicircum{}"),
        (r"\input{/etc/passwd}", r"\textbackslash{}input\{/etc/passwd\}"),
        ("<script>alert(1)</script>", r"\textless{}script\textgreater{}alert(1)\textless{}/script\textgreater{}"),
        ("=HYPERLINK(x)", "=HYPERLINK(x)"),
        ("café\n\\\\ 🎉", r"cafe \textbackslash{}\textbackslash{}"),
        ("🎉", "?"),
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


@pytest.mark.skipif(not has_latex(), reason="no LaTeX with booktabs here")
def test_latex_takes_the_table(tmp_path):
    text = table([*rows(r"\evil{%&_#$~^}<>|" + '"', 90, 91), *rows("tpp", 93, 94)], [standing([["tpp"], ["l1"]])])
    page = rf"\documentclass{{article}}\usepackage{{booktabs}}\begin{{document}}{text}\end{{document}}"
    (tmp_path / "page.tex").write_text(page)
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "page.tex"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]
