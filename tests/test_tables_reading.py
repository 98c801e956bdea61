"""Reading tables: every form that people have gives the same rows, and bad input is one line, never a traceback."""

import json
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from work import calls

from pruneaudit.errors import ConfigError
from pruneaudit.tables.claims import schema
from pruneaudit.tables.columns import check_mapping
from pruneaudit.tables.command import audit_files, unread
from pruneaudit.tables.numbers import Number, is_missing, parse, uses_decimal_comma
from pruneaudit.tables.readers import READERS, read
from pruneaudit.tables.rows import understand

MARKDOWN = """## ResNet-56 / CIFAR-10

| Method | Base (%) | Pruned (%) | $\\Delta$ Acc (%) | Speed Up |
|:--|:--:|:--:|:--:|:--:|
| HRank [[6]](#6) | 93.26 | 92.17 | -0.09 | 2.00x |
| **Ours** | 93.53 | **93.77** | +0.38 | 2.13x |
"""
LATEX = r"""
\begin{table}
\caption{ResNet-56 on CIFAR-10, three runs.}
\begin{tabular}{l S c c c}
\toprule
\multirow{2}{*}{Method} & \multicolumn{3}{c}{Accuracy} & Speed Up \\
 & {Base (\%)} & {Pruned (\%)} & {$\Delta$ Acc (\%)} & \\
\midrule
HRank~\cite{hrank} & 93.26 & 92.17 & $-0.09$ & 2.00$\times$ \\
\textbf{Ours} & 93.53 & \textbf{93.77} & $+$0.38 & $2.13\times$ \\
\bottomrule
\end{tabular}
\end{table}
"""
HTML = """<h2>ResNet-56 / CIFAR-10</h2><table><thead>
<tr><th rowspan=2>Method<th colspan=3>Accuracy<th rowspan=2>Speed Up</tr>
<tr><th>Base (%)<th>Pruned (%)<th>&Delta; Acc (%)</tr></thead>
<tr><td>HRank</td><td>93.26</td><td>92.17</td><td>&minus;0.09</td><td>2.00&times;</td></tr>
<tr><td><b>Ours</b></td><td>93.53</td><td><b>93.77</b></td><td>+0.38</td><td>2.13&times;</td></tr></table>"""
CSV = "Network,Dataset,Method,Base (%),Pruned (%),Δ Acc (%),Speed Up\n" + "".join(
    f"ResNet-56,CIFAR-10,{row}\n" for row in ("HRank,93.26,92.17,−0.09,2.00x", "Ours,93.53,93.77,+0.38,2.13×")
)
TEXT = """Table 1: ResNet-56 on CIFAR-10

Method   Base (%)   Pruned (%)   Δ Acc (%)   Speed Up
HRank    93.26      92.17        –0.09       2.00×
Ours     93.53      93.77        +0.38       2.13×
"""
TIGHT = """Results of ResNet-56 on CIFAR-10

Method Base Pruned Drop Speedup
Soft filter pruning 93.26 92.17 -0.09 2.00x
Ours 93.53 93.77 +0.38 2.13x
"""
EXPORT = json.dumps(
    [
        {"network": "resnet56", "dataset": "cifar10", "method": "HRank", "base_accuracy": 93.26, "accuracy": 92.17,
         "drop": -0.09, "speedup": 2.0},
        {"network": "resnet56", "dataset": "cifar10", "method": "Ours", "base_accuracy": 93.53, "accuracy": 93.77,
         "drop": 0.38, "speedup": 2.13},
    ]
)  # fmt: skip
CLAIMS = """paper = "Somebody 2024"
table = "Table 1"
[shared]
network = "ResNet-56"
dataset = "CIFAR-10"
epochs = "not specified"
[[claims]]
method = "HRank"
base_accuracy = 93.26
accuracy = 92.17
drop = -0.09
speedup = 2.00
[[claims]]
method = "Ours"
base_accuracy = 93.53
accuracy = "93.77"
drop = 0.38
speedup = "2.13x"
"""
FORMS = {
    "a.md": MARKDOWN,
    "a.tex": LATEX,
    "a.html": HTML,
    "b.md": f"# Results\n\n{HTML}\n",
    "a.csv": CSV,
    "semicolon.csv": CSV.replace("Δ Acc (%)", "Δ Acc, %")
    .replace(",", ";")
    .replace("Acc; %", "Acc, %")
    .replace(".", ","),
    "a.tsv": CSV.replace(",", "\t"),
    "a.txt": TEXT,
    "tight.txt": TIGHT,
    "a.json": EXPORT,
    "a.toml": CLAIMS,
}


@pytest.mark.parametrize("name", FORMS)
def test_all_forms_of_a_table_say_the_same(name, tmp_path):
    path = tmp_path / name
    path.write_text(FORMS[name], encoding="utf-8")
    audited = audit_files([path])
    (table,) = audited.tables
    assert [row.method.split()[0] for row in table.rows[1:]] == ["Ours"]
    facts = [
        [row.number(kind).value for kind in ("base_accuracy", "accuracy", "drop", "speedup")] for row in table.rows
    ]
    assert facts == [[93.26, 92.17, -0.09, 2.0], [93.53, 93.77, 0.38, 2.13]]
    assert {row.network.name for row in table.rows} == {"resnet56"}
    assert [one.mark.expected for one in audited.findings if one.rule.id == "T001"] == ["-1.09", "+0.24"]
    lines = path.read_text(encoding="utf-8").split("\n")
    for finding in audited.findings:
        if finding.mark.subject == "Ours" and name not in ("a.json", "a.toml"):
            assert "Ours" in lines[finding.mark.line - 1], "the line is the row's"
    assert not table.grid.notes and not unread(table)


@pytest.mark.parametrize(
    ("text", "value", "step", "spread"),
    [
        ("93.50", 93.5, 0.01, None),
        ("93.16 ± 0.16", 93.16, 0.01, 0.16),
        ("93.16±.16", 93.16, 0.01, 0.16),
        ("93.16 +/- 0.16", 93.16, 0.01, 0.16),
        ("93.16 (0.16)", 93.16, 0.01, 0.16),
        ("93.16 (±0.16)", 93.16, 0.01, 0.16),
        ("93.16(16)", 93.16, 0.01, 0.16),
        ("$93.16\\pm0.16$", 93.16, 0.01, 0.16),
        ("93.5†", 93.5, 0.1, None),
        ("93.5 [12]", 93.5, 0.1, None),
        ("93.5*", 93.5, 0.1, None),
        ("−0.38", -0.38, 0.01, None),
        ("–0.38", -0.38, 0.01, None),
        ("↓ 52.3%", 52.3, 0.1, None),
        ("1.2e3", 1200, 100, None),
        ("2.5 × 10^6", 2.5e6, 1e5, None),
        ("1,234,567", 1234567, 1, None),
        ("93,5", 93.5, 0.1, None),
        ("1.234.567,8", 1234567.8, 0.1, None),
        ("~93.5 %", 93.5, 0.1, None),
    ],
)
def test_numbers_as_papers_print_them(text, value, step, spread):
    number = parse(text)
    assert number.value == pytest.approx(value) and number.step == pytest.approx(step)
    assert (number.spread.value if number.spread else None) == (pytest.approx(spread) if spread else None)


@pytest.mark.parametrize(
    ("text", "unit", "counts"),
    [
        ("125M MACs", "m", "macs"),
        ("4.1 GFLOPs", "g", "flops"),
        ("4.1G FLOPs (50%)", "g", "flops"),
        ("4.1G (50%) FLOPs", "g", "flops"),
        ("25.6M params", "m", ""),
        ("4.1G", "g", ""),
    ],
)
def test_a_size_says_what_it_counts(text, unit, counts):
    assert (parse(text).unit, parse(text).counts) == (unit, counts)


@pytest.mark.parametrize("note", ["$^\\dagger$", "$^{\\ddagger}$", "$^*$", "†", " [12]", ""])
@pytest.mark.parametrize("name", ["a.md", "a.tex"])
def test_a_footnote_is_no_part_of_a_name(name, note, tmp_path):
    path = tmp_path / name
    text = f"\\begin{{tabular}}{{cc}}Method & Acc \\\\\nSFP{note} & 93 \\\\\nL$^1$ & 92\n\\end{{tabular}}"
    if name == "a.md":
        text = f"| Method | Acc |\n|---|---|\n| SFP{note} | 93 |\n| L^1 | 92 |\n"
    path.write_text(text, encoding="utf-8")
    assert [row.method for row in audit_files([path]).tables[0].rows] == ["SFP", "L^1"]


@pytest.mark.parametrize("text", ["", "–", "—", "N/A", "NaN", "not specified", "?", "-"])
def test_nothing_is_nothing(text):
    assert is_missing(text) and parse(text) is None


@pytest.mark.parametrize("text", ["1e400", "93.5 vs 92", "1-2", "v2", "ResNet-56", "3x3", "9" * 5000, "1.2.3.4"])
def test_what_is_no_number_is_none(text):
    assert parse(text) is None


def test_what_stands_in_parentheses_is_kept_apart():
    assert parse("62.72M (50.0%)").aside == Number(50.0, 0.1, "%")
    assert parse("93.77 (+0.24)").aside == Number(0.24, 0.01)


@pytest.mark.parametrize(
    "text",
    ["75.60 (↓0.55)", "75.60 ($\\downarrow$0.55)", "75.60↓0.55", "$75.60_{\\downarrow 0.55}$", "75.60 (0.55 ▼)"],
)
def test_an_arrow_before_a_number_in_parentheses_is_a_change(text):
    assert parse(text) == Number(75.6, 0.01, aside=Number(0.55, 0.01, arrow=-1))
    assert str(parse(text).aside.directed()) == "-0.55"


def test_a_triangle_is_a_change_of_either_sign():
    assert parse("75.60 (△0.55)") == Number(75.6, 0.01, aside=Number(0.55, 0.01))


def test_a_comma_is_what_its_column_makes_of_it():
    assert uses_decimal_comma(["93,5", "92,165"]) and not uses_decimal_comma(["1,234", "93.5"])
    assert parse("92,165", True).value == 92.165 and parse("92,165").value == 92165


@pytest.mark.parametrize("piece", ["1,", "1.1", "9", "(1", "1 ", "*", "[1,", "^{*}", "1[1]", "±1", "1e1", "↓1", " "])
def test_a_strange_cell_takes_no_time(piece):
    # An expression that goes back and forth over 190 characters takes minutes or years; this one is given much less.
    begin = time.process_time()
    parse(f"1{piece * (190 // len(piece))}!")
    assert time.process_time() - begin < 5


@given(st.text(alphabet="0123456789.,+-−–±×%()[]{}*^†↓↑eExXkKMG $~ab", max_size=20))
@settings(max_examples=150, deadline=None)
def test_any_cell_is_parsed_or_refused(text):
    number = parse(text)
    assert number is None or (number.step > 0 and str(number))


@given(
    name=st.sampled_from(sorted(READERS)),
    head=st.sampled_from(
        ["", "| a | b |\n|---|---|\n", "\\begin{tabular}{cc}", "<table><tr>", "a,b\n", "[[claims]]\n", "{"]
    ),
    body=st.text(alphabet="ab|&\\<>{}[]/\"'=-_$%#.,;:±\n\t 0123456789 tdrhmulticolumnrow", max_size=120),
)
@example(name=".toml", head="[[claims]]\n", body="")
@settings(max_examples=150, deadline=None)
def test_no_file_breaks_a_reader(name, head, body, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / f"fuzz{name}"
    path.write_text(head + body, encoding="utf-8")
    try:
        audited = audit_files([path])
    except ConfigError as error:
        assert "\n" not in str(error) and path.name in str(error)
    else:
        json.dumps(audited.as_json(), allow_nan=False)
        assert all("\n" not in finding.line for finding in audited.findings)


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("a.csv", b"", "empty"),
        ("a.md", b"\x00\x01\x02", "binary"),
        ("a.xlsx", b"PK", "convert it"),
        ("a.md", b"# no table here", "no table"),
        ("a.json", b"{", "not valid JSON"),
        ("a.json", b"[1, 2]", "list of objects"),
        ("a.json", b"[" * 100_000 + b"]" * 100_000, "too deeply"),
        ("a.toml", b"a = ", "not valid TOML"),
        ("a.toml", b"a = " + b"[" * 5000 + b"]" * 5000, "too deeply"),
        ("a.toml", b"a = 1", "[[claims]]"),
        ("a.toml", b'[[claims]]\nmethdo = "x"', "Did you mean 'method'?"),
        ("a.csv", b'a,b\n"x,1', "a.csv:2"),
        ("a.txt", b"some prose that is\nno table at all\nand goes on", "two spaces or a tab"),
    ],
)
def test_bad_files_are_refused_in_one_line(name, content, why, tmp_path):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ConfigError) as refused:
        audit_files([path])
    assert why in str(refused.value) and "\n" not in str(refused.value) and name in str(refused.value)


def test_a_huge_file_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "huge.csv"
    with path.open("wb") as file:
        file.truncate(100 * 2**20)
    tracemalloc.start()
    with pytest.raises(ConfigError, match="100 MB"):
        read(path)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def test_ragged_rows_are_kept_and_named(tmp_path):
    path = tmp_path / "ragged.csv"
    path.write_text("Method,Accuracy,Drop\nA,93.5\nB,93.1,0.4,lost\nC,93.0,about half\n", encoding="utf-8")
    audited = audit_files([path])
    assert [row.method for row in audited.tables[0].rows] == ["A", "B", "C"]
    text = "\n".join(audited.notes())
    assert "ragged.csv:2" in text and "ragged.csv:3" in text and "['lost']" in text and "'about half'" in text


def test_a_wide_table_has_a_row_for_each_arm_and_point(tmp_path):
    path = tmp_path / "wide.md"
    path.write_text(
        "## ResNet-56 / CIFAR-10\n\n| Method | PR 0.3 | PR 0.5 |\n|---|---|---|\n"
        "| L1 | 93.79 (0.06) | 93.51 (0.07) |\n\n"
        "| Model | Unpruned | Fine-tuned | Scratch-E |\n|---|---|---|---|\n"
        "| ResNet-56-A | 93.14±.12 | 92.97±.17 | 92.96±.26 |\n",
        encoding="utf-8",
    )
    first, second = audit_files([path]).tables
    assert [(row.number("ratio").value, row.number("accuracy").value) for row in first.rows] == [
        (0.3, 93.79),
        (0.5, 93.51),
    ]
    assert [(row.method, row.number("base_accuracy").value) for row in second.rows] == [
        ("Fine-tuned", 93.14),
        ("Scratch-E", 93.14),
    ]


def test_values_tell_conditions_and_speeds_from_what_headers_seem_to_say(tmp_path):
    path = tmp_path / "two.md"
    path.write_text(
        "| Method | S3.2 | S4.1: + same pruning epochs |\n|---|---|---|\n| L1 | 89.3 ± 2.0 | 89.6 ± 4.0 |\n"
        "| TPP | 93.3 ± 1.3 | 93.4 ± 1.2 |\n\n"
        "| | dense | 0.5 |\n|---|---|---|\n| loop | 1x | 1x |\n| compiled | 6.55x | 11.2x |\n",
        encoding="utf-8",
    )
    audited = audit_files([path])
    first, second = audited.tables
    assert [column.kind for column in first.columns] == ["method", "accuracy", "accuracy"]
    assert [column.kind for column in second.columns] == ["method", "other", "other"]
    assert not {one.rule.id for one in audited.findings} & {"T021", "T022", "T003"}


def test_a_guess_can_be_corrected(tmp_path):
    path = tmp_path / "own.csv"
    path.write_text("Method,Before,Ours now,Lost\nA,93.5,92.0,0.5\n", encoding="utf-8")
    assert not [one for one in audit_files([path]).findings if one.rule.id == "T001"]
    mapping = check_mapping(["ours NOW=accuracy", "Lost=drop"])
    (finding,) = [one for one in audit_files([path], mapping).findings if one.rule.id == "T001"]
    assert finding.mark.expected == "+1.5"


@pytest.mark.parametrize(
    ("mapping", "why"),
    [
        ("Base", "HEADER=KIND"),
        ("Base=acuracy", "Did you mean 'accuracy'?"),
        ("Bass=accuracy", "'Base'?"),
        ("Foo=accuracy", "Columns: Method, Base"),
    ],
)
def test_a_wrong_correction_is_refused(mapping, why, tmp_path):
    path = tmp_path / "own.csv"
    path.write_text("Method,Base\nA,93.5\n", encoding="utf-8")
    with pytest.raises(ConfigError) as refused:
        audit_files([path], check_mapping([mapping]))
    assert why in str(refused.value)


REAL = r"""
\begin{table*}[t]
\caption{Comparison of pruned ResNet-50 on ImageNet.}
\resizebox{\textwidth}{!}{
\begin{tabular}{c|l|c|c|c|c|c}
\hline
Model & Method & \tabincell{c}{Baseline\\Top-1 Acc. (\%)}
& \begin{tabular}[c]{@{}c@{}}Pruned\\ Top-1 Acc. (\%)\end{tabular}
& $\Delta$ Top-1 & FLOPs $\downarrow$ (\%) & \#Params (M) \\
\hline\hline
\multirow{3}{*}{ResNet-50} & SFP~\cite{sfp} & 76.15 & 74.61 & -1.54 & 41.8 & - \\
 & HRank~\cite{hrank} & 76.15 & 74.98 & -1.17 & 43.8 & 16.15 \\ \cline{2-7}
 & \textbf{Ours} & 76.15 & \textbf{76.30} & \textbf{+0.25} & 44.8 & 15.1 \\
\hline
\end{tabular}}
\end{table*}
"""


def test_latex_as_papers_write_it(tmp_path):
    path = tmp_path / "paper.tex"
    path.write_text(REAL, encoding="utf-8")
    audited = audit_files([path])
    (table,) = audited.tables
    kinds = ["network", "method", "base_accuracy", "accuracy", "drop", "macs_removed", "params"]
    assert [column.kind for column in table.columns] == kinds
    assert [(row.method, row.network.name) for row in table.rows] == [
        ("SFP", "resnet50"),
        ("HRank", "resnet50"),
        ("Ours", "resnet50"),
    ]
    assert table.rows[2].entries["accuracy"].bold and round(table.rows[1].number("params").value) == 16_150_000
    (finding,) = [one for one in audited.findings if one.rule.kind == "contradiction"]
    assert (finding.rule.id, finding.mark.expected) == ("T001", "+0.15")


LOG = """[05/01] => Args:
[05/01] => dataset: cifar10
[05/01] => method: group_sl
[05/01] => model: resnet56
[05/01] => seed: None
[05/01] => Params: 0.86 M => 0.45 M (52.27%)
[05/01] => FLOPs: 127.12 M => 59.71 M (46.97%, 2.13X )
[05/01] => Acc: 0.9353 => 0.8012
[05/01] => Epoch 98/100, Acc=0.9381, Val Loss=0.2, lr=0.0001
[05/01] => Epoch 99/100, Acc=0.9367, Val Loss=0.2, lr=0.0001
[05/01] => Best Acc=0.9389
"""


def test_a_training_log_is_a_row(tmp_path):
    path = tmp_path / "resnet56.log"
    path.write_text(LOG, encoding="utf-8")
    audited = audit_files([path])
    (row,) = audited.tables[0].rows
    assert (row.method, row.number("accuracy").value, row.number("base_accuracy").value) == ("group_sl", 93.89, 93.53)
    assert row.number("macs").value == pytest.approx(59.71e6) and row.number("macs_kept").value == pytest.approx(0.4697)
    assert [one.rule.id for one in audited.findings] == ["T018"], "the best epoch on the test set is reported"


def test_the_schema_of_claims_is_the_published_one():
    published = Path(__file__).parent.parent / "docs" / "claims.schema.json"
    assert json.loads(published.read_text(encoding="utf-8")) == schema()
    import tomllib

    import jsonschema

    jsonschema.validate(tomllib.loads(CLAIMS), schema())
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"claims": [{"acuracy": 3}]}, schema())


def test_reading_takes_work_in_proportion_to_the_rows(tmp_path):
    def work(many):
        path = tmp_path / f"{many}.csv"
        rows = (
            f"ResNet-56,CIFAR-10,method {place % 97},0.{place % 9 + 1},93.53,{90 + place % 300 / 100:.2f},"
            f"{place % 7}.{place % 89:02},{1 + place % 50 / 10}x"
            for place in range(many)
        )
        header = "Network,Dataset,Method,PR,Base,Accuracy,Drop,Speedup"
        path.write_text("\n".join([header, *rows]), encoding="utf-8")
        return calls(lambda: audited.append(audit_files([path])))

    audited = []
    work(20)  # whatever is made once
    assert work(1_600) < 4.5 * work(400)
    assert [len(one.tables[0].rows) for one in audited] == [20, 1_600, 400]


def test_starting_loads_no_torch_and_no_pandas():
    code = "import sys, pruneaudit.cli, pruneaudit.tables.command\n"
    code += "from pruneaudit.tables.catalogue import rules; rules()\n"
    code += "sys.exit(', '.join({'torch', 'pandas', 'scipy', 'numpy', 'pydantic', 'jinja2'} & set(sys.modules)) or 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_headers_are_understood_as_the_field_writes_them(tmp_path):
    headers = {
        "Acc. drop": "drop",
        "Δ": "drop",
        "Top-1 ↓ (%)": "drop",
        "FLOPs ↓ (%)": "macs_removed",
        "FLOPs (G)": "macs",
        "GMACs": "macs",
        "OrigGFLOPS": "base_macs",
        "Pruned FLOPs (%)": "macs_removed",
        "Remaining Params": "params_kept",
        "Pruned Acc (%)": "accuracy",
        "Top-1": "accuracy",
        "Top-1 ↑": "accuracy",
        "Top-1 err. (%)": "error",
        "Error (Top-1)": "error",
        "Base Top-1 error (%)": "base_error",
        "Top-1 err. $\\uparrow$": "other",
        "Err. increase": "other",
        "Acc. increase": "drop",
        "FLOPs increase": "other",
        "Accuracy (± standard error)": "accuracy",
        "Acc@1": "accuracy",
        "Baseline Top-1 (%)": "base_accuracy",
        "Unpruned": "base_accuracy",
        "#Params": "params",
        "Param. (M)": "params",
        "PR": "ratio",
        "Pruning rate": "ratio",
        "Speedup": "speedup",
        "Speed-up": "speedup",
        "CR": "compression",
        "Compression ratio": "compression",
        "Sparsity": "params_removed",
        "Fine-tuning epochs": "epochs",
        "LR schedule": "schedule",
        "# Runs": "runs",
        "Backbone": "network",
        "Val. Acc": "other",
        "Top-5": "other",
        "Latency (ms)": "other",
        "workload_version": "other",
        # Of two rows, one of which says what is counted.
        "FLOPs | ↓ (%)": "macs_removed",
        "FLOPs | reduction (%)": "macs_removed",
        "FLOPs | Drop": "macs_removed",
        "FLOPs (G) | ↓ (%)": "macs_removed",
        "FLOPs (G) | Drop": "other",
        "FLOPs (G) | Pruned": "macs",
        "Base | Params (M)": "base_params",
        "Params (%) | Remaining": "params_kept",
        "Base | Top-1": "base_accuracy",
        "Top-1 | Drop": "drop",
        "Top-1/Top-5 | Base": "base_accuracy",
        "Top-5 (%) | Pruned": "other",
        "Top-5 | Acc. drop": "other",
        "Latency (ms) | Base": "other",
    }
    path = tmp_path / "one.csv"
    for header, kind in headers.items():
        path.write_text(f'Method,"{header}"\nA,1.5\n', encoding="utf-8")
        (table,) = [understand(grid) for grid in read(path)]
        assert (header, table.columns[1].kind) == (header, kind)
