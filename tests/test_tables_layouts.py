"""Tables as papers lay them out: what spans, stands in two rows or on its side, and what is printed around numbers."""

import csv
import io
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pruneaudit.errors import ConfigError
from pruneaudit.tables.command import audit_files
from pruneaudit.tables.grid import marked
from pruneaudit.tables.page import page
from pruneaudit.tables.readers import read

PAIR = ["ResNet-56 / CIFAR-10", "VGG-19 / CIFAR-100"]
LAYOUTS = {
    "two rows of headers": (
        "a.md",
        "## ResNet-56\n| | CIFAR-10 | | ImageNet | |\n|---|---|---|---|---|\n"
        "| Method | Top-1 | FLOPs ↓ | Top-1 | FLOPs ↓ |\n"
        "| SFP | 93.36 | 52.6% | 74.61 | 41.8% |\n",
        [
            ("SFP / CIFAR-10", {"accuracy": 93.36, "macs_removed": 0.526}),
            ("SFP / ImageNet", {"accuracy": 74.61, "macs_removed": 0.418}),
        ],
    ),
    "levels of pandas": (
        "a.csv",
        ",accuracy,accuracy,accuracy\n,mean,std,count\nmethod,,,\nl1,93.1,0.11,3\n",
        [("l1", {"accuracy": 93.1, "spread": 0.11, "runs": 3})],
    ),
    "describe() of pandas": (
        "a.csv",
        ",acc,acc,acc,acc,acc,acc,acc,acc\n,count,mean,std,min,25%,50%,75%,max\nmethod,,,,,,,,\nl1,3,93.1,0.1,93,93,93.1,93.2,93.2\n",
        [("l1", {"accuracy": 93.1, "spread": 0.1, "runs": 3})],
    ),
    "a header in the body": (
        "a.md",
        "| | | |\n|---|---|---|\n| Method | Base | Acc |\n| A | 93.5 | 93.0 |\n",
        [("A", {"base_accuracy": 93.5, "accuracy": 93.0})],
    ),
    "on its side": (
        "a.md",
        "| | SFP | Ours |\n|---|---|---|\n| Base acc. (%) | 93.59 | 93.53 |\n| Pruned acc. (%) | 93.36 | **93.77** |\n"
        "| Acc. drop | 0.23 | -0.24 |\n",
        [
            ("SFP", {"base_accuracy": 93.59, "accuracy": 93.36, "drop": 0.23}),
            ("Ours", {"base_accuracy": 93.53, "accuracy": 93.77, "drop": -0.24}),
        ],
    ),
    "arms are no quantities": (
        "a.md",
        "| | Top-1 |\n|---|---|\n| Baseline | 93.5 |\n| Pruned | 93.0 |\n| Fine-tuned | 93.3 |\n",
        [("Baseline", {"accuracy": 93.5}), ("Pruned", {"accuracy": 93.0}), ("Fine-tuned", {"accuracy": 93.3})],
    ),
    "names that span rows": (
        "a.csv",
        "Method,PR,Acc\nSFP,0.3,93.4\n,0.5,92.9\nOurs,0.3,93.6\n,0.5,93.0\n",
        [
            ("SFP", {"ratio": 0.3, "accuracy": 93.4}),
            ("SFP", {"ratio": 0.5, "accuracy": 92.9}),
            ("Ours", {"ratio": 0.3, "accuracy": 93.6}),
            ("Ours", {"ratio": 0.5, "accuracy": 93.0}),
        ],
    ),
    "ratios below a heading": (
        "a.tex",
        r"""\begin{tabular}{lcc}\toprule
\multirow{2}{*}{Method} & \multicolumn{2}{c}{Pruning ratio} \\ \cmidrule(lr){2-3}
 & 30\% & 50\% \\ \midrule
L1 & $93.43_{\pm 0.06}$ & \textbf{93.12}\,{\scriptsize$\pm$0.10} \\ \bottomrule
\end{tabular}""",
        [
            ("L1", {"ratio": 0.3, "accuracy": 93.43, "spread": 0.06}),
            ("L1", {"ratio": 0.5, "accuracy": 93.12, "spread": 0.1}),
        ],
    ),
    "arrows that say what is better": (
        "a.md",
        "| Method | Top-1 (%) ↑ | Acc. Loss | GFLOPs ↓ | Params (M) ↓ | FLOPs reduction |\n|---|---|---|---|---|---|\n"
        "| SFP | 74.61 | 1.54 | 2.38 | 16.1 | 1.72× |\n",
        [("SFP", {"accuracy": 74.61, "drop": 1.54, "macs": 2.38e9, "params": 16.1e6, "speedup": 1.72})],
    ),
    "Top-1 and Top-5 in one cell": (
        "a.md",
        "| Method | Baseline Top-1/Top-5 | Top-1/Top-5 (%) | Δ Top-1 / Top-5 |\n|---|---|---|---|\n"
        "| SFP | 76.15/92.87 | 74.61/92.06 | -1.54/-0.81 |\n",
        [("SFP", {"base_accuracy": 76.15, "accuracy": 74.61, "drop": -1.54})],
    ),
    "Top-1 and Top-5 as groups": (
        "a.md",
        "| Method | Top-1 (%) | | Top-5 (%) | | FLOPs |\n|---|---|---|---|---|---|\n"
        "|  | Base | Pruned | Base | Pruned | ↓ (%) |\n| SFP | 76.15 | 74.61 | 92.87 | 92.06 | 41.8 |\n",
        [("SFP", {"base_accuracy": 76.15, "accuracy": 74.61, "macs_removed": 0.418})],
    ),
    "networks above arms": (
        "a.md",
        "| Method | ResNet-56 | | VGG-16 | |\n|---|---|---|---|---|\n|  | Acc | FLOPs ↓ | Acc | FLOPs ↓ |\n"
        "| L1 | 93.06 | 27.6% | 93.40 | 34.2% |\n",
        [
            ("L1 / ResNet-56", {"accuracy": 93.06, "macs_removed": 0.276}),
            ("L1 / VGG-16", {"accuracy": 93.4, "macs_removed": 0.342}),
        ],
    ),
    "arms below what is counted": (
        "a.md",
        "| Model | Accuracy | | | FLOPs (M) | |\n|---|---|---|---|---|---|\n"
        "|  | Base | Fine-tuned | Scratch-E | Base | Pruned |\n"
        "| ResNet-56-A | 93.14 | 92.97 | 92.96 | 125 | 113 |\n",
        [
            ("Fine-tuned", {"base_accuracy": 93.14, "accuracy": 92.97, "base_macs": 125e6, "macs": 113e6}),
            ("Scratch-E", {"base_accuracy": 93.14, "accuracy": 92.96, "base_macs": 125e6, "macs": 113e6}),
        ],
    ),
    "footnotes that are no digits": (
        "a.md",
        "| Method | Base | Acc | Params (10<sup>6</sup>) |\n|---|---|---|---|\n"
        "| A[^1] | 93.5<sup>1</sup> | 93.1<sub>±0.2</sub> | 0.5 |\n\n[^1]: ours\n",
        [("A", {"base_accuracy": 93.5, "accuracy": 93.1, "spread": 0.2, "params": 5e5})],
    ),
    "the same in LaTeX": (
        "a.tex",
        r"\begin{tabular}{lc}\Xhline{2\arrayrulewidth} Method & Acc. \\ \hline "
        r"A & 93.5\textsuperscript{1} \\ \end{tabular}",
        [("A", {"accuracy": 93.5})],
    ),
    "a table over several pages": (
        "a.tex",
        r"""\begin{longtable}{lcc}\caption{MobileNet-V2 on ImageNet}\\
\hline Method & Top-1 & MACs (M) \\ \hline \endfirsthead
\hline Method & Top-1 & MACs (M) \\ \hline \endhead
\hline \multicolumn{3}{r}{continued} \endfoot
AMC~\cite{amc} & $70.8_{(-1.0)}$ & 220 \\
\end{longtable}""",
        [("AMC", {"accuracy": 70.8, "drop": -1.0, "macs": 220e6})],
    ),
    "names in front of pasted rows": (
        "a.txt",
        "Model      Method   Baseline  Pruned\nResNet-56  L1       93.04     93.06\n"
        "           HRank    93.26     93.17\n",
        [("L1", {"base_accuracy": 93.04, "accuracy": 93.06}), ("HRank", {"base_accuracy": 93.26, "accuracy": 93.17})],
    ),
    "networks in the names of columns": (
        "a.md",
        "| Method | ResNet-56 Acc. | ResNet-56 FLOPs ↓ | VGG-16 Acc. | VGG-16 FLOPs ↓ |\n|---|---|---|---|---|\n"
        "| L1 | 93.06 | 27.6% | 93.40 | 34.2% |\n",
        [
            ("L1 / resnet56", {"accuracy": 93.06, "macs_removed": 0.276}),
            ("L1 / vgg16", {"accuracy": 93.4, "macs_removed": 0.342}),
        ],
    ),
    "a column for each seed": (
        "a.csv",
        "method,ratio,acc,seed 0,seed 1\nl1,0.5,93.1,93.2,93.0\n",
        [("l1", {"ratio": 0.5, "accuracy": 93.1})],
    ),
    "a curve": (
        "a.csv",
        "epoch,train_loss,test_acc\n0,1.9,45.0\n1,1.2,60.1\n2,0.9,70.3\n",
        [("line 2", {"accuracy": 45.0}), ("line 3", {"accuracy": 60.1}), ("line 4", {"accuracy": 70.3})],
    ),
    "a caption right above": (
        "a.txt",
        "Table 3: ResNet-50 on ImageNet (3 runs).\nMethod    Base     Top-1\nSFP [7]   76.15    74.61±0.12\n* ours\n",
        [("SFP", {"base_accuracy": 76.15, "accuracy": 74.61, "spread": 0.12, "runs": 3})],
    ),
    "sizes of operating points among methods": (
        "a.md",
        "| Method | 0.3 | 0.5 |\n|---|---|---|\n| Speedup | 1.45x | 1.99x |\n| FLOPs ↓ (%) | 31.0 | 49.7 |\n"
        "| Deep Compression | 92.9 | 92.5 |\n| L1 | 93.1 | 92.8x |\n",
        [
            ("Deep Compression", {"accuracy": 92.9, "ratio": 0.3, "speedup": 1.45, "macs_removed": 0.31}),
            ("Deep Compression", {"accuracy": 92.5, "ratio": 0.5, "speedup": 1.99, "macs_removed": 0.497}),
            ("L1", {"accuracy": 93.1, "ratio": 0.3, "speedup": 1.45, "macs_removed": 0.31}),
            ("L1", {"ratio": 0.5, "speedup": 1.99, "macs_removed": 0.497}),
        ],
    ),
    "sizes of operating points below headings": (
        "a.tex",
        r"""\begin{tabular}{lcc}\toprule Method & 0.3 & 0.5 \\ \midrule
\multicolumn{3}{c}{ResNet-56} \\ Speedup & 1.45x & 1.99x \\ L1 & 93.1 & 92.8 \\
\multicolumn{3}{c}{VGG-19} \\ L1 & 73.1 & 72.8 \\ Speedup & 1.97x & 3.6x \\ Speedup & 2x & 4x \\ \bottomrule
\end{tabular}""",
        [
            ("L1", {"accuracy": 93.1, "ratio": 0.3, "speedup": 1.45}),
            ("L1", {"accuracy": 92.8, "ratio": 0.5, "speedup": 1.99}),
            ("L1", {"accuracy": 73.1, "ratio": 0.3}),
            ("L1", {"accuracy": 72.8, "ratio": 0.5}),
        ],
    ),
    "sizes beside a ratio": (
        "a.csv",
        "Method,Acc,Pruning Ratio\nA,78.7,16.45 M (69.39%)\nB,76.1,6.47 M (27.29%)\nC,77.8,7.15 M (30.15%)\n",
        [
            ("A", {"accuracy": 78.7, "params": 16.45e6, "params_kept": 0.6939}),
            ("B", {"accuracy": 76.1, "params": 6.47e6, "params_kept": 0.2729}),
            ("C", {"accuracy": 77.8, "params": 7.15e6, "params_kept": 0.3015}),
        ],
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_is_read_as_people_read_it(layout, tmp_path):
    name, text, rows = LAYOUTS[layout]
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    (table,) = audit_files([path]).tables
    found = [
        (row.method, {kind: entry.number.value for kind, entry in row.entries.items() if entry.number is not None})
        for row in table.rows
    ]
    assert found == [(method, pytest.approx(facts)) for method, facts in rows]


@pytest.mark.parametrize("heading", PAIR)
def test_a_heading_inside_a_table_names_the_rows_below(heading, tmp_path):
    path = tmp_path / "a.md"
    path.write_text(
        f"| Method | Base | Top-1 |\n|---|---|---|\n| **{heading}** | | |\n| SFP | 93.5 | 93.3 |\n", encoding="utf-8"
    )
    audited = audit_files([path])
    (row,) = audited.tables[0].rows
    assert row.network is not None and heading.startswith(("ResNet", "VGG")) and row.section == heading
    assert any(f"'{heading}' stands alone" in note for note in audited.notes())


def test_a_row_of_equal_cells_is_a_row(tmp_path):
    """Only a cell that spans a row is a heading: three numbers that are equal are three numbers."""
    path = tmp_path / "a.csv"
    path.write_text("Method,Base,Accuracy\n93,93,93\n", encoding="utf-8")
    (table,) = audit_files([path]).tables
    assert len(table.rows) == 1
    spans = tmp_path / "a.html"
    spans.write_text(
        "<table><tr><th>Method<th>Base<th>Acc</tr><tr><td colspan=3>2020</tr><tr><td>A<td>93.5<td>93.1</tr></table>",
        encoding="utf-8",
    )
    (table,) = audit_files([spans]).tables
    assert [(row.method, row.section) for row in table.rows] == [("A", "2020")]


def test_marks_of_a_table_on_its_side_are_on_their_cells(tmp_path):
    path = tmp_path / "a.md"
    path.write_text(
        "| | SFP | Ours |\n|---|---|---|\n| Base acc. | 93.59 | 93.53 |\n"
        "| Acc. | 93.36 | 93.77 |\n| Drop | 0.23 | -0.38 |\n",
        encoding="utf-8",
    )
    audited = audit_files([path])
    text = page(audited)
    assert text.count("<ins>") == 1 and "-0.38<ins>-0.24</ins>" in text
    assert any("turned around" in note for note in audited.notes())


def test_bounds_are_no_values(tmp_path):
    path = tmp_path / "a.md"
    path.write_text(
        "| Method | Base | Acc | Drop |\n|---|---|---|---|\n| A | 93.50 | 93.49 | <0.1 |\n", encoding="utf-8"
    )
    audited = audit_files([path])
    assert not [one for one in audited.findings if one.rule.id == "T001"]
    assert any("'<0.1'" in note for note in audited.notes())


def test_sizes_of_operating_points_are_named(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("Method,0.3,0.5\nSparsity,30%,50%\nL1,93,92\n", encoding="utf-8")
    notes = audit_files([path]).notes()
    assert any("line 2: 'Sparsity' is of the operating points, and no method" in note for note in notes)


def test_two_columns_of_one_kind_are_named(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("Method,Basis Top-1,Top-1\nA,93.5,93.1\n", encoding="utf-8")
    assert any("Top-1: the same as Basis Top-1" in note for note in audit_files([path]).notes())
    (table,) = audit_files([path], {"Basis Top-1": "base_accuracy"}).tables
    assert table.rows[0].number("accuracy").value == 93.1


@pytest.mark.parametrize("text", ["**93.77**", "__93.77__", r"\textbf{93.77}", r"\mathbf{93.77}"])
def test_bold_of_files_without_markup(text):
    assert marked(text) == marked(f" {text} ") and marked(text).bold and marked(text).text == "93.77"
    assert not marked(f"{text} (ours)").bold and marked(f"{text} (ours)").text == "93.77 (ours)"


@pytest.mark.parametrize(
    ("name", "cell", "bold"),
    [
        ("a.md", "**92.50** ± 0.10", True),
        ("a.md", "<b>92.50</b> (↓0.10)", True),
        ("a.md", r"$\mathbf{92.50} \pm 0.10$", True),
        ("a.csv", "**92.50** ± 0.10", True),
        ("a.tex", r"$\mathbf{92.50} \pm 0.10$", True),
        ("a.tex", r"\textbf{92.50}\,{\scriptsize$\pm$0.10}", True),
        ("a.html", "<b>92.50</b> ± 0.10", True),
        ("a.md", "92.50 ± **0.10**", False),
        ("a.md", "**92.5**0 ± 0.10", False),
        ("a.tex", r"92.50 $\pm$ \textbf{0.10}", False),
    ],
)
def test_a_bold_mean_is_bold_whatever_its_deviation_is(name, cell, bold, tmp_path):
    path = tmp_path / name
    path.write_text(_written(name, ["Method", "Acc"], [["A", cell], ["B", "93.1 ± 0.2"]]), encoding="utf-8")
    first, second = audit_files([path]).tables[0].rows
    assert first.entries["accuracy"].number.value == 92.5
    assert (first.entries["accuracy"].bold, second.entries["accuracy"].bold) == (bold, False)


@pytest.mark.parametrize(
    ("name", "content", "rows"),
    [
        ("a.jsonl", '{"method": "A", "accuracy": 93.50}\n{"method": "B", "accuracy": 93.10}\n', 2),
        ("a.json", '{"schema": {}, "data": [{"method": "A", "accuracy": 93.5}]}', 1),
        ("a.json", '{"columns": ["method", "accuracy"], "data": [["A", 93.5]]}', 1),
    ],
)
def test_exports_of_programs(name, content, rows, tmp_path):
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    (table,) = audit_files([path]).tables
    assert len(table.rows) == rows and table.rows[0].number("accuracy").value == 93.5


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("a.json", '{"columns": ["a", "a"], "data": [[1, 2]]}', "one name"),
        ("a.json", '{"columns": ["a", "b"], "data": [[1, 2, 3]]}', "row 1 of 'data' has 3 cells"),
        ("a.json", '[{"a": 1, "a": 2}]', "stated twice"),
        ("a.jsonl", '{"a": 1}\n{"a": \n', "a.jsonl:2"),
    ],
)
def test_exports_that_would_lose_a_cell_are_refused(name, content, why, tmp_path):
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match=r"a\.json") as refused:
        read(path)
    assert why in str(refused.value) and "\n" not in str(refused.value)


CELLS = st.sampled_from(
    ["", "A", "B-1", "Ours*", "93.5", "93.50 ± 0.1", "–", "1", "50%", "ResNet-56", "2.0x", "**9.1**"]
)


@given(
    name=st.sampled_from(["rows.csv", "rows.md", "rows.html", "rows.json", "rows.tex"]),
    header=st.lists(st.sampled_from(["Method", "Acc", "Base", "Drop", "PR", "", "Notes"]), min_size=2, max_size=5),
    rows=st.lists(st.lists(CELLS, min_size=1, max_size=5), min_size=1, max_size=6),
)
@settings(max_examples=120, deadline=None)
def test_no_row_is_dropped_without_a_word(name, header, rows, tmp_path_factory):
    """Every row that says anything is a row of the table, a part of its header, or named in a note."""
    width = len(header)
    rows = [(row + [""] * width)[:width] for row in rows]
    path = tmp_path_factory.getbasetemp() / name
    path.write_text(_written(name, header, rows), encoding="utf-8")
    try:
        audited = audit_files([path])
    except ConfigError as error:
        assert "\n" not in str(error)
        return
    (table,) = audited.tables
    if any("turned around" in remark for remark in table.remarks):
        return
    grid = table.grid
    said = sum(any(cell.strip() for cell in row) for row in rows)
    # Only a header that leaves cells open, or repeats one, takes rows below for its own.
    is_open = "" in header or len(set(header)) < len(header)
    heads = said - len(grid.lines) - sum("stands alone" in note for _, note in grid.notes)
    assert 0 <= heads <= (3 if is_open else 0)
    assert bool(heads) == any(" | " in one for one in grid.header) or "" in header
    silent = {line.number for line in grid.lines} - {row.line for row in table.rows}
    assert not silent or any("no result in any column" in remark for remark in table.remarks)


def _written(name, header, rows):
    """A table in the form of a file."""
    if name.endswith(".csv"):
        file = io.StringIO()
        csv.writer(file).writerows([header, *rows])
        return file.getvalue()
    if name.endswith(".md"):
        return "\n".join(f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows)) + "\n"
    if name.endswith(".html"):
        parts = ("".join(f"<td>{cell}</td>" for cell in row) for row in (header, *rows))
        return "<table>" + "".join(f"<tr>{part}</tr>\n" for part in parts) + "</table>"
    if name.endswith(".json"):
        names = [f"{one} {place}" for place, one in enumerate(header)]
        return json.dumps([dict(zip(names, row, strict=True)) for row in rows])
    body = "\\\\\n".join(" & ".join(cell.replace("%", "\\%") for cell in row) for row in (header, *rows))
    return f"\\begin{{tabular}}{{{'l' * len(header)}}}\n{body}\\\\\n\\end{{tabular}}\n"
