"""Results that people have: judged as measured ones, said to be stated, refused in one line where they are no runs."""

import csv
import json

import jsonschema
import pytest

from pruneaudit.catalog.discovery import Catalog, content_root
from pruneaudit.cli import judge as command
from pruneaudit.errors import ConfigError
from pruneaudit.report.results import STATED
from pruneaudit.report.schema import schema
from pruneaudit.report.stated import judge, lines
from pruneaudit.tables.judge import stated, template

CATALOG = Catalog()
REFERENCES = [
    path
    for path in sorted((content_root() / "reports" / "reference").glob("*digits*/results.json"))
    if "global" not in path.parent.name
]
EXPORTED = (
    "workload",
    "protocol",
    "method",
    "ratio",
    "seed",
    "accuracy",
    "base_accuracy",
    "speedup",
    "params",
    "granularity",
)


def written(path, rows, header="method,ratio,seed,accuracy"):
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return path


def runs_of(arms, seeds=8, **more):
    """CSV rows of arms: accuracy of each seed by a function of it."""
    facts = "".join(f",{value}" for value in more.values())
    return [f"{name},0.5,{seed},{value(seed):.2f}{facts}" for name, value in arms.items() for seed in range(seeds)]


TWO = {"a": lambda seed: 93 + 0.01 * seed, "b": lambda seed: 94 + 0.02 * seed}


@pytest.mark.parametrize("reference", REFERENCES, ids=lambda path: path.parent.name)
def test_a_csv_from_a_ledger_gets_the_verdicts_of_the_ledger(reference, tmp_path):
    measured = json.loads(reference.read_text(encoding="utf-8"))
    path = tmp_path / "results.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(EXPORTED)
        writer.writerows([cell[name] for name in EXPORTED] for cell in measured["cells"] if cell["status"] == "ok")
    rows = judge(CATALOG, stated(path)).verdicts
    # All but what says where the numbers come from, and which images were answered.
    same = ("verdict", "workload", "protocol", "ratio", "arms", "seeds", "difference", "family", "p_adjusted")
    key = [*same, "p_equivalent_adjusted", "forbidden_by"]
    assert len(measured["verdicts"]) > 0
    assert sorted(json.dumps([row[name] for name in key], sort_keys=True) for row in rows) == sorted(
        json.dumps([row[name] for name in key], sort_keys=True) for row in measured["verdicts"]
    )


def test_a_report_says_that_nothing_was_measured(tmp_path):
    path = written(tmp_path / "a.csv", runs_of(TWO))
    results = judge(CATALOG, stated(path))
    command(path, to=tmp_path / "report")
    files = [file for file in (tmp_path / "report").rglob("*") if file.is_file()]
    (verdict,) = results.verdicts
    assert verdict["verdict"] == "worse" and verdict["summary"].startswith(STATED)
    texts = {file.name: file.read_text(encoding="utf-8") for file in files if file.suffix in (".md", ".tex", ".html")}
    assert len(texts) == 3 and all(STATED in text for text in texts.values())
    assert not any("comes from a run record" in text or "after the last epoch, mean" in text for text in texts.values())
    content = json.loads((tmp_path / "report" / "results.json").read_text(encoding="utf-8"))
    jsonschema.validate(content, schema())
    assert any("F201" in line and "not measured" in line for line in lines(results))


FACTS = "method,ratio,seed,accuracy,protocol,base,speedup,epochs,schedule,epoch_reported"
FAIR = {"protocol": "s3.2", "base": "one", "speedup": "2.0", "epochs": "40", "schedule": "cosine", "epoch": "last"}


@pytest.mark.parametrize(
    ("unfair", "rule"),
    [
        ({"base": "two"}, "F201"),
        ({"speedup": "2.2"}, "F103"),
        ({"epochs": "80"}, "F311"),
        ({"schedule": "step"}, "F321"),
        ({"epoch": "best"}, "F601"),
    ],
)
def test_what_is_stated_and_unfair_forbids_the_comparison(unfair, rule, tmp_path):
    left, right = ({name: value} for name, value in TWO.items())
    fair = written(tmp_path / "fair.csv", [*runs_of(left, **FAIR), *runs_of(right, **FAIR)], FACTS)
    (verdict,) = judge(CATALOG, stated(fair)).verdicts
    assert (verdict["verdict"], verdict["forbidden_by"]) == ("worse", [])
    other = written(tmp_path / "unfair.csv", [*runs_of(left, **FAIR), *runs_of(right, **{**FAIR, **unfair})], FACTS)
    (verdict,) = judge(CATALOG, stated(other)).verdicts
    assert (verdict["verdict"], verdict["forbidden_by"]) == ("not comparable", [rule])


def test_a_setup_is_the_same_in_papers_spelling_and_an_unknown_one_is_told(tmp_path):
    """Written S3.2, none of its rules was asked, and nobody said so."""
    left, right = ({name: value} for name, value in TWO.items())

    def judged(protocol):
        facts = {**FAIR, "protocol": protocol}
        rows = [*runs_of(left, **facts), *runs_of(right, **{**facts, "epochs": "80"})]
        results = judge(CATALOG, stated(written(tmp_path / "a.csv", rows, FACTS)))
        return results.verdicts[0], [line for line in lines(results) if "is no setup of 'pruneaudit protocols'" in line]

    verdict, told = judged("S3.2")
    assert (verdict["protocol"], verdict["forbidden_by"], told) == ("s3.2", ["F311"], [])
    verdict, told = judged("S9")
    assert verdict["verdict"] == "worse" and told[0].startswith("S9 is no setup"), told


def test_a_base_in_percent_stands_beside_fractions(tmp_path):
    header = "method,ratio,seed,accuracy,base_accuracy"
    fractions = [f"{name},0.5,{seed},{value(seed) / 100:.4f},94.5" for name, value in TWO.items() for seed in range(3)]
    runs = stated(written(tmp_path / "a.csv", fractions, header))
    assert {run["base_accuracy"] for run in runs} == {94.5} and min(run["accuracy"] for run in runs) == 93.0
    # Networks that collapsed are right by chance: a column of their own is no column of fractions.
    collapsed = [f"a,0.5,{seed},{93 + seed}" for seed in range(2)] + ["a,0.99,0,1.00"]
    assert stated(written(tmp_path / "b.csv", collapsed))[-1]["accuracy"] == 1.0


def test_a_ratio_in_percent_is_the_share(tmp_path):
    rows = [*(f"a,70,{seed},93" for seed in range(2)), *(f"b,0.7,{seed},93" for seed in range(2))]
    assert {run["ratio"] for run in stated(written(tmp_path / "a.csv", rows))} == {0.7}


def test_a_correction_is_said_beside_the_p_that_was_measured(tmp_path):
    three = {**TWO, "c": lambda seed: 93.4 + 0.01 * (seed % 3)}
    results = judge(CATALOG, stated(written(tmp_path / "a.csv", runs_of(three))))
    told = [line for line in lines(results) if " against " in line]
    assert len(told) == 3 and all("p = 0.0078 " in line and "; p = 0.0234 after correction" in line for line in told), (
        told
    )


def test_a_budget_is_a_number_however_it_is_written(tmp_path):
    left, right = ({name: value} for name, value in TWO.items())
    step, same = '"0:1e-2,20:1e-3"', '"0:0.01, 20:0.001"'
    rows = [
        *runs_of(left, **{**FAIR, "schedule": step}),
        *runs_of(right, **{**FAIR, "epochs": "40.0", "schedule": same}),
    ]
    (verdict,) = judge(CATALOG, stated(written(tmp_path / "a.csv", rows, FACTS))).verdicts
    assert (verdict["verdict"], verdict["forbidden_by"]) == ("worse", [])


def test_a_mapping_of_no_column_is_refused(tmp_path):
    path = written(tmp_path / "a.csv", runs_of(TWO))
    with pytest.raises(ConfigError, match=r"'Foo=…': no column is called so\. Columns: method, ratio, seed, acc"):
        stated(path, {"Foo": "accuracy"})


def test_accuracy_has_one_direction(tmp_path):
    path = written(tmp_path / "a.csv", runs_of(TWO))
    with pytest.raises(ConfigError, match="--direction lower: more accuracy is better"):
        stated(path, metric={"direction": "lower"})


def test_a_looser_setup_allows_what_a_stricter_one_forbids(tmp_path):
    own = {**FAIR, "protocol": "s1"}
    rows = [*runs_of({"a": TWO["a"]}, **own), *runs_of({"b": TWO["b"]}, **{**own, "base": "two", "epochs": "9"})]
    (verdict,) = judge(CATALOG, stated(written(tmp_path / "a.csv", rows, FACTS))).verdicts
    assert (verdict["verdict"], verdict["forbidden_by"]) == ("worse", [])


def test_a_seed_that_one_arm_lacks_is_a_missing_cell(tmp_path):
    rows = [row.replace("a,0.5,3,93.03", "a,0.5,3,") + ",s3.2" for row in runs_of(TWO)]
    (verdict,) = judge(
        CATALOG, stated(written(tmp_path / "a.csv", rows, "method,ratio,seed,accuracy,protocol"))
    ).verdicts
    assert (
        verdict["verdict"] == "not comparable"
        and verdict["forbidden_by"] == ["F607"]
        and verdict["difference"]["n"] == 7
    )


LOWER = {"a": lambda seed: 21 + 0.01 * seed, "b": lambda seed: 22 + 0.02 * seed}


@pytest.mark.parametrize(
    ("header", "more", "said"),
    [
        ("method,ratio,seed,perplexity", {}, {}),
        ("method,ratio,seed,Perplexity", {}, {"name": "perplexity"}),
        ("method,ratio,seed,value,metric", {"metric": "perplexity"}, {}),
        ("method,ratio,seed,value,workload", {"workload": "llama-shakespeare"}, {}),
        ("method,ratio,seed,value", {}, {"name": "word-ppl", "direction": "lower", "margin": 0.1}),
        (
            "method,ratio,seed,value,metric,direction,margin",
            {"metric": "word-ppl", "direction": "lower", "margin": "0.1"},
            {},
        ),
    ],
)
def test_another_metric_decides_in_its_own_direction(header, more, said, tmp_path):
    path = written(tmp_path / "a.csv", runs_of(LOWER, **more), header)
    workloads = {name: workload.metric for name, workload in CATALOG.workloads.items()}
    results = judge(CATALOG, stated(path, metric=said, known=workloads.get))
    (verdict,) = results.verdicts
    assert verdict["verdict"] == "better" and verdict["difference"]["mean"] < 0, "less is better"
    assert verdict["metric"] in ("perplexity", "word-ppl") and verdict["difference"]["margin"] == 0.1
    assert "(lower is better)" in verdict["summary"] and "pp" not in verdict["summary"]
    assert results.cells[0]["accuracy"] is None and results.cells[0]["value"] == 21.0
    (standing,) = results.standings
    assert standing["groups"][0] == ["a"]
    assert "21.04" in lines(results)[0] or "21.035" in lines(results)[0]


def test_a_report_of_another_metric_is_of_that_metric(tmp_path):
    path = written(tmp_path / "a.csv", runs_of(LOWER), "method,ratio,seed,perplexity")
    command(path, to=tmp_path / "report")
    content = json.loads((tmp_path / "report" / "results.json").read_text(encoding="utf-8"))
    jsonschema.validate(content, schema())
    assert content["metrics"]["results"]["direction"] == "lower"
    text = (tmp_path / "report" / "report.md").read_text(encoding="utf-8")
    assert "perplexity" in text and STATED in text


@pytest.mark.parametrize(
    ("rows", "header", "said", "why"),
    [
        (["a,0.5,0,71"], "method,ratio,seed,value", {}, "no metric is named"),
        (["a,0.5,0,71"], "method,ratio,seed,value", {"name": "miou", "margin": 1.0}, "direction of 'miou'"),
        (["a,0.5,0,71"], "method,ratio,seed,value", {"name": "miou", "direction": "higher"}, "margin of 'miou'"),
        (["a,0.5,0,71"], "method,ratio,seed,value", {"name": "loss", "direction": "higher"}, "direction of 'loss'"),
        (
            ["a,0.5,0,7,loss", "a,0.5,1,7,top5"],
            "method,ratio,seed,value,metric",
            {},
            "a.csv:3: metric 'top5' of",
        ),
        (["a,0.5,0,about,loss"], "method,ratio,seed,value,metric", {}, "a.csv:2: value 'about' is no number"),
        (["a,0.5,0,7,loss,little"], "method,ratio,seed,value,metric,margin", {}, "margin 'little'"),
        (["a,0.5,0,171"], "method,ratio,seed,value", {"name": "accuracy"}, "no accuracy in percent"),
        (["a,0.5,0,93"], "method,ratio,seed,accuracy", {"name": "loss"}, "no row has a value of loss"),
    ],
)
def test_a_metric_that_nobody_describes_is_refused(rows, header, said, why, tmp_path):
    with pytest.raises(ConfigError) as refused:
        stated(written(tmp_path / "a.csv", rows, header), metric=said)
    assert why in str(refused.value) and "\n" not in str(refused.value) and "a.csv" in str(refused.value)


def test_few_seeds_only_describe(tmp_path):
    (verdict,) = judge(CATALOG, stated(written(tmp_path / "a.csv", runs_of(TWO, seeds=3)))).verdicts
    assert verdict["verdict"] == "indeterminate"


def test_a_margin_is_the_users(tmp_path):
    path = written(tmp_path / "a.csv", runs_of(TWO))
    (verdict,) = judge(CATALOG, stated(path), margin=2.0).verdicts
    assert verdict["verdict"] == "equivalent"


@pytest.mark.parametrize(
    ("rows", "header", "why"),
    [
        (["a,0.5,0,93"], "method,ratio,seed,speed", "no column for accuracy"),
        (["a,0.5,0,93", "a,0.5,0,94"], "method,ratio,seed,accuracy", "a.csv:3"),
        (["a,0.5,x,93"], "method,ratio,seed,accuracy", "seed 'x'"),
        (["a,0.5,1.5,93"], "method,ratio,seed,accuracy", "seed '1.5'"),
        (["a,2x,0,93"], "method,ratio,seed,accuracy", "ratio '2x'"),
        (["a,0.5,0,good"], "method,ratio,seed,accuracy", "accuracy 'good'"),
        (["a,0.5,0,193"], "method,ratio,seed,accuracy", "no accuracy in percent"),
        ([",0.5,0,93"], "method,ratio,seed,accuracy", "no method"),
        (["a,0.5,0,93,7"], "method,ratio,seed,accuracy", "5 cells"),
    ],
)
def test_what_is_no_run_is_refused_in_one_line(rows, header, why, tmp_path):
    with pytest.raises(ConfigError) as refused:
        stated(written(tmp_path / "a.csv", rows, header))
    assert why in str(refused.value) and "\n" not in str(refused.value) and "a.csv" in str(refused.value)


def test_the_template_is_a_file_to_begin_with(tmp_path, capsys):
    command(as_template=True)
    path = tmp_path / "mine.csv"
    path.write_text(capsys.readouterr().out, encoding="utf-8")
    command(path)
    assert "l1 against mine: indeterminate; stated, not measured" in capsys.readouterr().out
    assert path.read_text(encoding="utf-8") == template()


def test_without_a_file_it_says_where_to_begin():
    with pytest.raises(ConfigError, match="--template"):
        command()
