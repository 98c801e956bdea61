"""Verdicts that fail, ledgers that are judged, baselines, studies and waivers: what a build server runs."""

import json
import os
import re
import shutil
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

from pruneaudit.ledger.records import pack
from pruneaudit.ledger.store import sealed

MINE = '''
from pruneaudit import FilterScore


class Mine(FilterScore):
    """Filters whose weights spread least go first."""

    def score(self, layer, task):
        return layer.weight.flatten(1).std(dim=1)
'''
WHERE = "lenet5-digits and r0.5"
SEEDS = 6
ARMS = ("mine", "l1", "random")
COMMON = ("--audit-method", "mine.py", "--audit-protocols", "s3.2", "--audit-budget", "smoke")
#: As in projects that let no warning pass, but for what comes of the interpreter that has its imports done (`warm`).
STRICT = ("-W", "error", "-W", "ignore::pytest.PytestAssertRewriteWarning", "-o", "junit_family=xunit2")
GATE = ("suite", *COMMON, "--audit-seeds", str(SEEDS), "--audit-against")


def results(checkout):
    return json.loads((checkout.report / "results.json").read_text())


def verdicts(checkout, kind="verdicts"):
    return {row["arms"][0] + " " + row["arms"][1]: row["verdict"] for row in results(checkout)[kind]}


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """Folder of what is measured once for all tests of this file, by whichever worker comes first."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "gate"
    folder.mkdir(exist_ok=True)
    return folder


@pytest.fixture
def measured(checkout, shelf):
    """Ledger of three arms with six seeds, from one gated session without workers; tests change copies of it."""
    checkout.write("mine.py", MINE)
    with FileLock(shelf / "lock"):
        if not (shelf / "ledger").exists():
            making = shelf / "making"
            outcome = checkout.pytest(
                *GATE,
                "l1,random",
                "-k",
                WHERE,
                "-n0",
                "--audit-ledger",
                str(making),
                "--junitxml",
                "junit.xml",
                *STRICT,
            )
            assert outcome.code == 0, outcome.text
            (shelf / "text").write_text(outcome.text)
            shutil.copy(checkout.root / "junit.xml", shelf)
            shutil.copy(checkout.report / "results.json", shelf)
            making.rename(shelf / "ledger")
    return shelf / "ledger"


@pytest.fixture
def copied(checkout, measured):
    """A copy of the ledger that the test may change."""
    return Path(shutil.copytree(measured, checkout.root / "copied"))


def anew(record):
    """A record as if an older pruneaudit had written it so: one that was edited is told by its digest and its link."""
    return sealed({name: value for name, value in record.items() if name not in ("digest", "link")})


def change(ledger, method, seed, **values):
    """Change the run that an arm's accuracy comes from, and its cell with it."""
    path = ledger / "cells" / f"lenet5-digits-{method}-s3.2-r0.5-seed{seed}-smoke.json"
    cell = json.loads(path.read_text())
    (record,) = (ledger / "runs").glob(f"*-{cell['result']}/record.json")
    run = json.loads(record.read_text()) | values
    record.write_text(json.dumps(anew(run)))
    path.write_text(json.dumps(anew(cell | {"accuracy": run["accuracy"]})))


def give(ledger, method, correct, more=range(SEEDS)):
    """Let an arm get so many test images right, and so many more at each seed, and everything agree that it did."""
    for seed, further in zip(range(SEEDS), more, strict=True):
        (record,) = (ledger / "runs").glob(f"lenet5-digits-retrain-{method}-r0.5-seed{seed}-smoke-*/record.json")
        run = json.loads(record.read_text())
        right = np.arange(run["test_images"]) < correct + further
        accuracy = 100.0 * int(right.sum()) / len(right)
        change(
            ledger,
            method,
            seed,
            accuracy=accuracy,
            best_accuracy=max(accuracy, run["best_accuracy"]),
            test_accuracy=[*run["test_accuracy"][:-1], accuracy],
            correct=pack(right),
        )


def properties(junit, name):
    """Value of a property by test case."""
    return {
        case.get("name"): entry.get("value")
        for case in ET.parse(junit).iter("testcase")
        for entry in case.iter("property")
        if entry.get("name") == name
    }


def content(folder):
    """Every file and folder below, with its content and the time at which it was changed."""
    return {
        path: (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in sorted([folder, *folder.rglob("*")])
    }


# Rivals, and what fails


def test_only_the_candidate_is_judged_against_its_rivals(measured, shelf):
    """One session that measured and judged: ids, order, header, properties."""
    rows = json.loads((shelf / "results.json").read_text())
    names = [case.get("name") for case in ET.parse(shelf / "junit.xml").iter("testcase")]
    gates = [name for name in names if name.startswith("test_gate")]
    assert gates == [f"test_gate[lenet5-digits-mine-vs-{rival}-s3.2-r0.5-verdict]" for rival in ("l1", "random")]
    assert names[-2:] == gates, "the gate comes last"
    checked = {name.split("-")[2] for name in names if name.startswith("test_conformance")}
    assert checked == {"mine"}, "no id of conformance has a ratio: a stranger's method is checked all the same"
    assert {row["method"] for row in rows["cells"]} == set(ARMS), "rivals are measured as well"
    assert [row["arms"] for row in rows["verdicts"]] == [["mine", "l1"], ["mine", "random"]]
    judged = {tuple(row["arms"]) for row in rows["findings"]}
    assert judged == {("mine",), ("l1",), ("random",), ("mine", "l1"), ("mine", "random")}
    header = next(line for line in (shelf / "text").read_text().splitlines() if line.startswith("pruneaudit: "))
    assert "methods mine l1 random" in header
    assert "against l1 random · fails on worse unfair" in header, "the default with rivals"
    # Six seeds are too few for two comparisons, whatever they show: nothing here depends on the numbers.
    assert {row["verdict"] for row in rows["verdicts"]} <= {"indeterminate", "equivalent"}
    assert {row["family"] for row in rows["verdicts"]} == {2}


def test_junit_has_every_finding_and_verdict(measured, shelf):
    names = [case.get("name") for case in ET.parse(shelf / "junit.xml").iter("testcase")]
    findings, lines = (properties(shelf / "junit.xml", name) for name in ("finding", "verdict"))
    assert set(findings) == {name for name in names if name.startswith("test_fairness")} and findings
    assert set(lines) == {name for name in names if name.startswith("test_gate")}
    for name, line in findings.items():
        assert line.startswith(name.removesuffix("]").rpartition("-")[2]) and ": pass" in line
    for row in json.loads((shelf / "results.json").read_text())["verdicts"]:
        line = lines[f"test_gate[lenet5-digits-mine-vs-{row['arms'][1]}-s3.2-r0.5-verdict]"]
        assert line.endswith(f": mine against {row['arms'][1]}: {row['verdict']}; {row['summary']}")


def test_a_worse_candidate_fails_where_worse_is_named(checkout, copied):
    give(copied, "mine", 150)
    give(copied, "l1", 200)
    arguments = (*GATE, "l1", "-k", WHERE, "--audit-from", "copied")
    outcome = checkout.pytest(*arguments)
    assert outcome.code == 1 and "1 failed" in outcome.text, outcome.text
    assert verdicts(checkout) == {"mine l1": "worse"}
    assert any("mine against l1: worse; -13." in line for line in outcome.lines)
    assert any(line.strip().startswith("FAILS: ") for line in outcome.lines)
    # The same finding is no failure where it is not named.
    outcome = checkout.pytest(*arguments, "--audit-fail-on", "unfair,indeterminate")
    assert outcome.code == 0 and "FAILS" not in outcome.text, outcome.text
    assert verdicts(checkout) == {"mine l1": "worse"}


def test_too_few_seeds_fail_where_indeterminate_is_named(checkout, copied):
    give(copied, "mine", 150)
    give(copied, "l1", 200)
    arguments = (*GATE, "l1", "-k", WHERE, "--audit-from", "copied", "--audit-seeds", "3")
    outcome = checkout.pytest(*arguments, "--audit-fail-on", "worse, indeterminate")
    assert outcome.code == 1 and "1 failed" in outcome.text, outcome.text
    (row,) = results(checkout)["verdicts"]
    assert row["verdict"] == "indeterminate" and row["seeds"] == [0, 1, 2]
    assert "needs 6 seeds" in row["summary"]


def test_a_broken_rule_makes_the_comparison_unfair(checkout, copied):
    """Seed 4 alone was retrained at another learning rate: no accuracy may be compared any more."""
    give(copied, "mine", 250)
    give(copied, "l1", 200)
    change(copied, "mine", 4, learning_rates=[[0.03, 17]])
    outcome = checkout.pytest(*GATE, "l1", "-k", WHERE, "--audit-from", "copied", "-q")
    assert outcome.code == 1, outcome.text
    failed = [line for line in outcome.lines if line.startswith("FAILED ")]
    assert [line.split("[")[1].split("]")[0] for line in failed] == [
        "lenet5-digits-mine-vs-l1-s3.2-r0.5-F321",
        "lenet5-digits-mine-vs-l1-s3.2-r0.5-verdict",
    ]
    (row,) = results(checkout)["verdicts"]
    assert row["verdict"] == "not comparable" and row["forbidden_by"] == ["F321"]
    assert row["difference"]["mean"] > 10, "however much better it looks"


def test_the_gate_and_the_report_adjust_over_the_same_comparisons(checkout, copied):
    """One gate, but a finding of another comparison beside it: the report has two, so the gate counts two."""
    give(copied, "mine", 150)
    give(copied, "l1", 200)
    selection = "lenet5-digits and (mine-vs-l1-s3.2-r0.5-verdict or mine-vs-random-s3.2-r0.5-F101)"
    outcome = checkout.pytest(*GATE, "l1,random", "-k", selection, "--audit-from", "copied", "--junitxml", "junit.xml")
    assert outcome.code == 0 and "2 passed" in outcome.text, outcome.text
    rows = {row["arms"][1]: row for row in results(checkout)["verdicts"]}
    assert (rows["l1"]["verdict"], rows["l1"]["family"]) == ("indeterminate", 2)
    (line,) = properties(checkout.root / "junit.xml", "verdict").values()
    assert line.endswith(rows["l1"]["summary"])


def test_without_gate_options_there_is_no_gate(checkout):
    outcome = checkout.pytest("suite", "--collect-only", "-q", "--audit-protocols", "s3.2")
    assert outcome.code == 0 and "test_fairness" in outcome.text and "test_gate" not in outcome.text, outcome.text
    # Not even where it is asked for: a placeholder that is skipped would look like a gate that is open.
    outcome = checkout.pytest("suite/test_gate.py")
    assert outcome.code == 5 and "skipped" not in outcome.text, outcome.text


def test_a_workload_that_cannot_run_is_no_failure_of_the_gate(checkout, copied):
    selection = "(lenet5-digits or lenet5-mnist) and r0.5 and verdict"
    outcome = checkout.pytest(*GATE, "l1", "-k", selection, "--audit-seeds", "1", "--audit-ledger", "copied", "-rs")
    assert outcome.code == 0 and re.search(r"(\d+) passed, \1 skipped", outcome.text), outcome.text
    assert "lenet5-mnist: MNIST needs a data folder" in outcome.text
    assert "FAILS" not in outcome.text
    assert {row["workload"] for row in results(checkout)["verdicts"]} == {"lenet5-digits"}


STUDY = """
methods = ["l1", "random"]
protocols = ["s3.2"]
workloads = ["lenet5-digits"]
against = ["random"]
fail_on = ["worse", "unfair"]
seeds = 6
"""
USAGE = {
    "verdict": (("--audit-fail-on", "wrse"), "--audit-fail-on: unknown verdict 'wrse'. Did you mean 'worse'?"),
    "rival": (("--audit-methods", "l1", "--audit-against", "tp"), "unknown method 'tp'. Did you mean 'tpp'?"),
    "candidate": (("--audit-against", "l1"), "--audit-against: nothing to compare with the rivals; add --audit-method"),
    "open": (
        ("--audit-methods", "l1", "--audit-against", "random", "--audit-protocols", "sx-b"),
        "nothing can fail on worse, unfair: sx-b compare no two of l1 random (sx-a and sx-b compare with scratch)",
    ),
    "from": (("--audit-from", "nowhere"), "nowhere is no ledger"),
    "baseline": (("--audit-baseline", "nowhere"), "nowhere is no ledger"),
    "study": (("--audit-study", "nowhere.toml"), "nowhere.toml: No such file or directory"),
    "study name": (("--audit-study", "nowhere"), "unknown study 'nowhere'"),
    "reason": (("--audit-study", "reason.toml"), "reason.toml: waive: F604: a waiver needs a reason"),
    "rule": (("--audit-study", "rule.toml"), "unknown rule 'F6o4'. Did you mean 'F604'?"),
    "key": (("--audit-study", "key.toml"), "key.toml: againts: unknown key. Did you mean 'against'?"),
}


@pytest.mark.parametrize("kind", USAGE)
def test_wrong_gates_end_with_one_line(checkout, kind):
    checkout.write("reason.toml", STUDY + '[waive]\nF604 = " "\n')
    checkout.write("rule.toml", STUDY + '[waive]\nF6o4 = "a reason"\n')
    checkout.write("key.toml", STUDY + 'againts = ["l1"]\n')
    options, message = USAGE[kind]
    outcome = checkout.pytest("suite", *options)
    assert outcome.code == 4, outcome.text
    assert len([line for line in outcome.lines if line.strip()]) == 1, outcome.text
    assert message in outcome.text
    assert not checkout.ledger.exists()


def test_a_gate_that_selects_nothing_says_so(checkout):
    outcome = checkout.pytest("suite", "--audit-methods", "tpp", "--audit-against", "l1", "-k", "no-such-thing")
    assert outcome.code == 5, outcome.text


# Judging a ledger


SPY = """
import pytest
import pruneaudit.campaign.executors.local as local
import pruneaudit.workloads.data as datasets

def refuse(*arguments, **options):
    raise AssertionError("a session that only judges loads no data and obtains no run")

datasets.load = local.LocalExecutor.obtain = refuse
"""


def test_same_bytes_with_workers_without_and_from_a_ledger(checkout, measured):
    """-n2 trains anew, what -n0 trained is judged, and both ledgers say the same to the last byte."""
    checkout.write("spy.py", SPY)
    # What `measured` shows of conformance is nothing that a ledger keeps.
    arguments = (*GATE, "l1", "-k", f"{WHERE} and not conformance", "--audit-seeds", "1")
    trained = checkout.root / "trained"
    folders = ("--audit-ledger", str(trained), "--audit-report", "trains")
    outcome = checkout.pytest(*arguments, "-n2", *folders, "--junitxml", "junit.xml", *STRICT)
    assert outcome.code == 0 and "warning" not in outcome.text, outcome.text
    assert properties(checkout.root / "junit.xml", "finding") and properties(checkout.root / "junit.xml", "verdict")
    before = {ledger: content(ledger) for ledger in (trained, measured)}
    for path in (trained, *trained.rglob("*")):
        path.chmod(path.stat().st_mode & ~0o222)
    for name, ledger in (("judges", trained), ("other", measured)):
        # In an interpreter of its own sets have another order.
        source = ("--audit-from", str(ledger), "--audit-report", name)
        outcome = checkout.pytest(*arguments, "-p", "spy", *source, fresh=name == "other")
        assert outcome.code == 0, outcome.text
        assert "test_conformance" not in outcome.text and f"judging {ledger}" in outcome.text
        assert content(ledger) == before[ledger], "nothing is written, not even for a moment"
    assert not checkout.ledger.parent.exists(), "no ledger beside the one that is judged"
    texts = {(checkout.root / name / "results.json").read_bytes() for name in ("trains", "judges", "other")}
    assert len(texts) == 1
    assert json.loads(texts.pop())["verdicts"]


def test_what_a_ledger_lacks_is_incomplete_and_counted(checkout, measured):
    """Seed 6 was never measured: neither a success nor a failure of the candidate."""
    arguments = ("suite", *COMMON, "--audit-against", "l1", "--audit-from", str(measured))
    outcome = checkout.pytest(*arguments, "-k", WHERE, "--audit-seeds", str(SEEDS + 1))
    assert outcome.code == 3 and "failed" not in outcome.text.splitlines()[-1], outcome.text
    assert f"INCOMPLETE: 2 of 14 cells are not in {measured}; run the suite with --audit-ledger" in outcome.text
    assert {row["status"] for row in results(checkout)["cells"] if row["seed"] == SEEDS} == {"missing"}
    # Nothing there at all: one line, not one for each item.
    outcome = checkout.pytest(*arguments, "-k", "lenet5-mnist and r0.5", "--audit-seeds", "2")
    assert outcome.code == 3, outcome.text
    (line,) = [line for line in outcome.lines if line.startswith("INCOMPLETE")]
    assert line.startswith("INCOMPLETE: 4 of 4 cells are not in")
    assert "data folder" not in outcome.text, "no data is needed to judge"


# Earlier results


def test_a_version_that_did_not_change_is_not_worse(checkout, measured):
    arguments = (*GATE, "random", "-k", WHERE, "--audit-from", str(measured), "--audit-baseline", str(measured))
    outcome = checkout.pytest(*arguments, "--junitxml", "junit.xml")
    assert outcome.code == 0, outcome.text
    # Rivals are not on trial.
    (gate,) = [name for name in properties(checkout.root / "junit.xml", "verdict") if "baseline" in name]
    assert gate == "test_gate[lenet5-digits-mine-s3.2-r0.5-vs-baseline]"
    assert verdicts(checkout, "regressions") == {"mine baseline": "equivalent"}
    (row,) = results(checkout)["regressions"]
    assert (row["difference"]["mean"], row["seeds"]) == (0.0, list(range(SEEDS)))


def test_a_baseline_tells_worse_from_not_comparable(checkout, measured, copied):
    """L1 was better then; mine ran on another torch; of random the baseline has nothing."""
    give(copied, "l1", 350)
    for record in (copied / "runs").glob("*-mine-*/record.json"):
        run = json.loads(record.read_text())
        run["environment"]["torch"] = "2.0.1"
        record.write_text(json.dumps(anew(run)))
    for path in (copied / "cells").glob("*-random-*"):
        path.unlink()
    arguments = ("suite", *COMMON, "--audit-methods", "l1,random", "--audit-seeds", str(SEEDS))
    arguments += ("--audit-baseline", "copied", "-k", f"{WHERE} and baseline")
    outcome = checkout.pytest(*arguments, "--audit-from", str(measured))
    assert outcome.code == 1 and "3 failed" in outcome.text, outcome.text
    assert verdicts(checkout, "regressions") == {
        "l1 baseline": "worse",
        "mine baseline": "not comparable",
        "random baseline": "not comparable",
    }
    rows = {row["arms"][0]: row for row in results(checkout)["regressions"]}
    assert rows["l1"]["family"] == 1, "what may not be compared takes no share of the error rate"
    assert rows["mine"]["forbidden_by"] == ["F608"]
    assert rows["random"]["seeds"] == [] and "no seed is complete" in rows["random"]["summary"]


# Studies and waivers


def test_a_waiver_is_printed_recorded_and_forgives(checkout, copied):
    give(copied, "l1", 200)
    give(copied, "random", 190)
    change(copied, "l1", 4, learning_rates=[[0.03, 17]])
    reason = "seed 4 was run by hand, see issue 12"
    waivers = f'[waive]\nF321 = "{reason}"\nF604 = "the scratch arm is annealed further"\n'
    study = checkout.write("mine.toml", 'title = "Is L1 better than chance?"\n' + STUDY + waivers)
    arguments = ("suite", "--audit-budget", "smoke", "-k", "r0.5", "--audit-from", "copied", "--audit-study")
    outcome = checkout.pytest(*arguments, str(study), "-rx")
    assert outcome.code == 0 and " 1 xfailed" in outcome.text and not re.search(r"\d failed", outcome.text), (
        outcome.text
    )
    assert any(line.startswith("suite/test_fairness.py ") and "x" in line.split()[1] for line in outcome.lines)
    header = next(line for line in outcome.lines if line.startswith("pruneaudit: "))
    for part in ("methods l1 random", "seeds 0-5", "against random", "fails on worse unfair", "study mine"):
        assert part in header
    assert f"WAIVED F321: {reason}" in header and "WAIVED F604: the scratch arm is annealed further" in header
    rows = results(checkout)
    assert rows["study"]["waive"]["F321"] == reason and rows["study"]["title"] == "Is L1 better than chance?"
    assert {row["workload"] for row in rows["cells"]} == {"lenet5-digits"}
    waived = {row["rule"]: row["waived"] for row in rows["findings"] if row["waived"]}
    assert waived == {"F321": reason, "F604": "the scratch arm is annealed further"}
    (verdict,) = rows["verdicts"]
    assert (verdict["verdict"], verdict["forbidden_by"], verdict["waived"]) == ("better", [], waived)
    assert reason in (checkout.report / "report.md").read_text()
    # Without the waiver the same ledger is unfair.
    study.write_text(STUDY)
    outcome = checkout.pytest(*arguments, str(study))
    assert outcome.code == 1 and verdicts(checkout) == {"l1 random": "not comparable"}, outcome.text


def test_options_win_over_a_study(checkout):
    study = str(checkout.write("mine.toml", STUDY))
    alone = checkout.pytest("suite", "--collect-only", "--audit-study", study)
    assert "protocols s3.2@" in alone.text and "methods l1 random · seeds 0-5" in alone.text
    assert "l1-vs-random-s3.2-r0.5-verdict" in alone.text and "resnet" not in alone.text
    options = {
        "--audit-protocols": ("all", "protocols s1@"),
        "--audit-methods": ("core", "methods l1 random tpp scratch scratch-e scratch-b "),
        "--audit-seeds": ("2", "seeds 0-1"),
        "--audit-against": ("tpp", "against tpp"),
        "--audit-fail-on": ("better", "fails on better ·"),
    }
    given = [part for name, (value, _) in options.items() for part in (name, value)]
    outcome = checkout.pytest("suite", "--collect-only", "--audit-study", study, *given)
    assert outcome.code == 0, outcome.text
    header = next(line for line in outcome.lines if line.startswith("pruneaudit: "))
    for _, said in options.values():
        assert said in header


# Build servers, cross-validation


def test_a_build_server_sees_the_verdict_first_and_each_failure_once(checkout, copied):
    """Under workers, too: only the process that was started tells GitHub."""
    give(copied, "mine", 150)
    give(copied, "l1", 200)
    summary = checkout.write("summary.md", "what an earlier step said\n")
    environ = {"GITHUB_ACTIONS": "true", "GITHUB_STEP_SUMMARY": str(summary)}
    arguments = (*GATE, "l1", "-k", WHERE, "--audit-from", "copied", "-n2", "-q", "--junitxml", "junit.xml")
    outcome = checkout.pytest(*arguments, **environ)
    assert outcome.code == 1, outcome.text
    before, heading, rest = summary.read_text().partition("### pruneaudit\n")
    assert before.strip() == "what an earlier step said" and heading and before.endswith("\n")
    assert "### pruneaudit\n" not in rest
    sections = [line for line in rest.splitlines() if line.startswith("#### ")]
    # What fails may be said once more above them, but nothing else.
    assert next(line for line in sections if line != "#### Fails").startswith("#### Verdicts")
    (error,) = [line for line in outcome.lines if "::error" in line]
    assert error.startswith("::error title=mine against l1%3A worse::lenet5-digits [smoke] s3.2 ratio 0.5: -13.")
    names = {case.get("name") for case in ET.parse(checkout.root / "junit.xml").iter("testcase")}
    found = {name: properties(checkout.root / "junit.xml", name) for name in ("finding", "verdict")}
    assert set(found["finding"]) == {name for name in names if name.startswith("test_fairness")}
    assert list(found["verdict"]) == ["test_gate[lenet5-digits-mine-vs-l1-s3.2-r0.5-verdict]"]
    assert ": mine against l1: worse; " in next(iter(found["verdict"].values()))


def pruneaudit(checkout, *arguments):
    return checkout.python("-c", "from pruneaudit.cli import main; main()", *arguments)


def test_crossvalidate_measures_four_arms_and_f701_judges_them(checkout, measured, shelf):
    def recipes(rows):
        return [row for row in rows["findings"] if row["rule"] == "F701"]

    # Without them the rule says what to run.
    usual = recipes(json.loads((shelf / "results.json").read_text()))
    assert {row["verdict"] for row in usual} == {"not measured"} and not any(row["required"] for row in usual)
    assert {row["note"] for row in usual} == {f"run: pruneaudit crossvalidate mine {rival}" for rival in ARMS[1:]}
    options = ("-k", WHERE, "--audit-budget", "smoke", "--audit-seeds", "1", "-p", "no:cacheprovider")
    outcome = pruneaudit(checkout, "crossvalidate", "l1", "tpp", *options)
    assert outcome.code == 0, outcome.text
    rows = results(checkout)
    assert {(row["protocol"], row["method"], row["status"]) for row in rows["cells"]} == {
        (f"xv-{recipe}", method, "ok") for recipe in ("l1", "tpp") for method in ("l1", "tpp")
    }
    found = recipes(rows)
    assert {row["protocol"] for row in found} == {"xv-l1", "xv-tpp"}
    for row in found:
        assert row["verdict"] in ("pass", "fail")
        assert all("points under its recipe (n = 1)" in value for value in row["measured"].values())


@pytest.mark.parametrize("given", [("--audit-protocols", "s3.2"), ("--audit-protocols=s3.2",)], ids=["two", "one"])
def test_crossvalidate_adds_other_setups(checkout, given):
    checkout.write("mine.py", MINE)
    outcome = pruneaudit(checkout, "crossvalidate", "mine.py", "l1", "--collect-only", *given)
    assert outcome.code == 0, outcome.text
    header = next(line for line in outcome.lines if line.startswith("pruneaudit: "))
    assert "protocols xv-mine@" in header and " xv-l1@" in header and " s3.2@" in header
    assert "methods mine l1 ·" in header


def test_crossvalidate_needs_two_methods(checkout):
    for arguments, said in (
        (("l1", "l1"), "pruneaudit: crossvalidate needs two methods, not 'l1' twice"),
        (("l1", "tp"), "unknown method 'tp'. Did you mean 'tpp'?"),
    ):
        outcome = pruneaudit(checkout, "crossvalidate", *arguments)
        assert outcome.code == 2 and len(outcome.lines) == 1 and said in outcome.text, outcome.text


class TestDecide:
    """Seeds that are trained one after the other, only for what is open."""

    # Conformance, in ten processes, is no part of what is decided.
    GATE = ("suite/test_fairness.py", "suite/test_gate.py", *COMMON, "--audit-against", "l1,random")
    GATE += ("-k", f"{WHERE} and mine-vs")

    @pytest.fixture
    def killed(self, copied):
        """As a session leaves it that was killed after six seeds: mine is as good as l1, and not steadily as random."""
        give(copied, "mine", 300)
        give(copied, "l1", 300)
        give(copied, "random", 250, [0, 100] * 3)
        plan = {"seeds": 7, "comparisons": 2, "margin": 0.5, "alpha": 0.05, "first": 6, "spending": "pocock"}
        pairs = [["mine", "l1", 0.5], ["mine", "random", 0.5]]
        table = {"workload": "lenet5-digits", "protocol": "s3.2", "labels": ["smoke"], "pairs": pairs, "plan": plan}
        version = json.loads((copied / "ledger.json").read_text())["schema_version"]
        # Nobody had a verdict over them.
        shutil.rmtree(copied / "looks")
        (copied / "planned").mkdir()
        written = copied / "planned" / "lenet5-digits-s3.2-smoke.json"
        written.write_text(json.dumps({**table, "seen": 0, "schema_version": version}))
        return copied

    def test_a_killed_session_goes_on_with_what_is_open(self, checkout, killed):
        other = Path(shutil.copytree(killed, checkout.root / "other"))
        decided = []
        for ledger, workers in ((killed, "-n2"), (other, "-n0")):
            outcome = checkout.pytest(*self.GATE, "--audit-ledger", str(ledger), "--audit-decide", "7", workers)
            assert outcome.code == 0, outcome.text
            seeds = {name: len(list((ledger / "cells").glob(f"*-{name}-*.json"))) for name in ARMS}
            assert seeds == {"mine": 7, "l1": 6, "random": 7}
            decided.append(results(checkout)["verdicts"])
        assert [(row["verdict"], row["looks"]) for row in decided[0]] == [("equivalent", 6), ("indeterminate", 7)]
        assert decided[0] == decided[1]
        assert decided[0][0]["plan"]["seeds"] == 7
        # Judged from what is there, alike; and nobody may go on beyond the plan, with another or with none.
        again = checkout.pytest(*self.GATE, "--audit-from", str(killed))
        assert again.code == 0, again.text
        assert results(checkout)["verdicts"] == decided[0]
        for options, why in ((("--audit-decide", "9"), "holds another plan"), (("--audit-seeds", "9"), "seed by seed")):
            refused = checkout.pytest(*self.GATE, "--audit-ledger", str(killed), *options)
            assert refused.code == 1 and why in refused.text
        assert len(list((killed / "cells").glob("*-mine-*.json"))) == 7

    def test_seeds_without_a_plan_are_not_extended(self, checkout, copied):
        # A verdict over six seeds is remembered: over another number it would be one that was chosen.
        (looks,) = (copied / "looks").iterdir()
        known = json.loads(looks.read_text())
        # Without a signature, as an older version would have written it.
        known = {series: known[series] for series in known if series not in ("digest", "link")}
        assert set(map(tuple, known.values())) == {(6,)}
        looks.write_text(json.dumps({series: [8] for series in known}))
        outcome = checkout.pytest(*self.GATE, "--audit-from", str(copied), "--audit-seeds", "6")
        assert {tuple(row["forbidden_by"]) for row in results(checkout)["verdicts"]} == {("F611",)}, outcome.text
        # Nor is a plan made of seeds that are there.
        outcome = checkout.pytest(*self.GATE, "--audit-ledger", str(copied), "--audit-decide", "8")
        assert outcome.code == 1
        assert "holds 6 seeds trained without a plan" in outcome.text

    def test_a_study_may_decide_and_options_win(self, checkout):
        study = checkout.write("mine.toml", 'workloads = ["lenet5-digits"]\nmethods = ["l1", "tpp"]\ndecide = 12\n')
        known = ("suite", "--collect-only", "-k", WHERE, "--audit-study", str(study))
        for options, seeds in (((), "seeds 0-11 until decided"), (("--audit-seeds", "3"), "seeds 0-2 ·")):
            outcome = checkout.pytest(*known, *options)
            assert outcome.code == 0 and seeds in outcome.text, outcome.text
        study.write_text("decide = 5")
        outcome = checkout.pytest(*known)
        assert outcome.code == 4 and "study mine: decide: expected a number of at least 6" in outcome.text

    @pytest.mark.parametrize(
        ("options", "why"),
        [
            (("5",), "--audit-decide: expected a number of at least 6"),
            (("8", "--audit-seeds", "3"), "leave out --audit-seeds"),
        ],
    )
    def test_plans_that_cannot_be_kept_are_refused(self, checkout, options, why):
        checkout.write("mine.py", MINE)
        outcome = checkout.pytest(*self.GATE, "--audit-decide", *options)
        assert outcome.code == 4 and why in outcome.text
