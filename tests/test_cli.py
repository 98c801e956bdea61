"""The ``pruneaudit`` command: what it prints, and what it says about bad input."""

import json
import os
import re
import subprocess
import sys

import pytest
from builders import WEIGHTS, evidence, failure, run_record, run_spec, scored, store, write_method

from conftest import ROOT
from pruneaudit import __version__, cli
from pruneaudit.audit.catalogue import rules
from pruneaudit.catalog import discovery
from pruneaudit.catalog.cells import Cell
from pruneaudit.catalog.discovery import Catalog
from pruneaudit.catalog.names import CORE_METHODS
from pruneaudit.ledger.store import Ledger

SCORE = "    def score(self, layer, task):\n        return layer.weight.flatten(1).sum(dim=1)\n"
PLAN = ("-k", "lenet5-digits and s3.2", "--audit-methods", "l1,tpp", "--audit-budget", "smoke", "--audit-seeds", "1")


@pytest.fixture
def run(monkeypatch, capsys):
    """Run the command in this process; give back exit code, stdout and stderr."""

    def call(*arguments):
        monkeypatch.setattr(sys, "argv", ["pruneaudit", *map(str, arguments)])
        try:
            cli.main()
            code = 0
        except SystemExit as error:
            code = error.code or 0
        out, err = capsys.readouterr()
        return code, out, err

    return call


@pytest.fixture(scope="module")
def command(warm):
    """Run the command in a process of its own: pytest inside a test would see the outer session."""

    def call(*arguments, folder, python=warm):
        return subprocess.run(
            [python, "-c", "from pruneaudit.cli import main; main()", *map(str, arguments)],
            capture_output=True,
            text=True,
            cwd=folder,
            timeout=900,
            check=False,
        )

    return call


def refused(answer, *words):
    """One line on stderr, exit code 2, no traceback, nothing on stdout."""
    code, out, err = answer
    assert code == 2
    assert out == ""
    assert len(err.splitlines()) == 1 and err.startswith("pruneaudit: ")
    assert "Traceback" not in err
    for word in words:
        assert word in err


@pytest.fixture
def ledger(tmp_path):
    """Two arms, one more run that failed."""
    store_of_runs = Ledger(tmp_path / "ledger")
    store(store_of_runs, scored(evidence("l1"), 90.0))
    store(store_of_runs, scored(evidence("tpp"), 91.0))
    store_of_runs.fail(failure(run_spec("scratch", ratio=0.5), error="run lenet5-digits-scratch failed: out of memory"))
    return store_of_runs


def test_help_says_how_the_audit_is_run_from_here(run, monkeypatch, tmp_path):
    monkeypatch.chdir(ROOT)
    assert "Run the audit itself with 'pytest suite'." in " ".join(run("--help")[1].split())
    monkeypatch.setattr(discovery, "content_root", lambda: discovery._PACKAGE)
    assert "Run the audit itself with 'pytest --pyargs pruneaudit.suite'." in " ".join(run("--help")[1].split())
    out = run("new-method", "my-pruner", "--to", tmp_path)[1]
    assert f"then: pytest --pyargs pruneaudit.suite --audit-method {tmp_path}/my_pruner.py" in out


# Lists


@pytest.mark.parametrize(
    ("name", "key", "known"),
    [
        ("methods", "name", lambda: set(CORE_METHODS)),
        ("protocols", "name", lambda: set(Catalog().protocols)),
        ("workloads", "name", lambda: set(Catalog().workloads)),
        ("rules", "id", lambda: set(rules())),
    ],
)
def test_lists_are_complete_as_table_and_as_json(run, name, key, known):
    code, out, err = run(name, "--json")
    assert (code, err) == (0, "")
    found = {row[key] for row in json.loads(out)}
    assert found >= known()
    code, table, err = run(name)
    assert (code, err) == (0, "")
    first = {line.split()[0] for line in table.splitlines()[1:]}
    assert first == found, "one line for each, its name first"


def test_methods_lists_a_users_own_file(run, tmp_path):
    spec = write_method(tmp_path, "my_pruner", SCORE)
    code, out, _ = run("methods", "--audit-method", spec, "--json")
    (row,) = [row for row in json.loads(out) if row["name"] == "my-pruner"]
    assert code == 0
    assert row["summary"] == "Made for a test." and row["removes"] == "filters" and not row["core"]
    assert row["published_recipe"] == "not specified"


def test_methods_refuses_a_file_that_is_not_there(run, tmp_path):
    refused(run("methods", "--audit-method", tmp_path / "nowhere.py"), "nowhere.py", "no such file")


def test_methods_refuses_a_file_that_cannot_be_imported(run, tmp_path):
    (tmp_path / "mine.py").write_text("import no_such_module_anywhere\n")
    refused(run("methods", "--audit-method", tmp_path / "mine.py"), "mine.py", "no_such_module_anywhere")


def test_methods_describes_a_file(run, tmp_path):
    spec = write_method(tmp_path, "my_pruner", SCORE)
    code, out, _ = run("methods", spec)
    assert code == 0 and out.startswith("name: my-pruner"), out


def test_runs_and_report_show_the_others_beside_a_damaged_record(run, ledger, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    victim = next((ledger.root / "runs").glob("*-tpp-*")) / "record.json"
    victim.write_text("{")
    code, out, _ = run("runs", "--ledger", ledger.root, "--json")
    rows = json.loads(out)
    (bad,) = [row for row in rows if row["status"] == "damaged"]
    assert code == 0 and str(victim) in bad["error"] and bad["slug"] == victim.parent.name
    assert any("-l1-" in row["slug"] and row["status"] == "ok" for row in rows)
    code, out, err = run("report", "--ledger", ledger.root, "--figures", "none")
    assert code == 0 and str(victim) in out, err
    found = {row["method"]: row for row in json.loads((tmp_path / "reports/latest/results.json").read_text())["cells"]}
    assert found["l1"]["status"] == "ok" and found["tpp"]["status"] == "failed"
    assert str(victim) in found["tpp"]["error"]


def test_the_module_is_the_command_and_ends_quietly_where_nobody_reads(checkout):
    outcome = checkout.python("-m", "pruneaudit", "--version", fresh=True)
    assert (outcome.code, outcome.text.strip()) == (0, __version__)
    reader, writer = os.pipe()
    os.close(reader)
    environ = os.environ | {"PYTHONPATH": str(checkout.root)}
    for arguments in (["protocols"], ["protocols", "--json"]):
        command = [sys.executable, "-m", "pruneaudit", *arguments]
        done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, env=environ, check=False)
        assert done.stderr == "" and done.returncode != 0
    os.close(writer)


def test_rules_explains_one(run):
    code, out, _ = run("rules", "F802")
    assert code == 0
    for text in (
        "id: F802",
        "claim: Same total training MACs",
        "source: Wang et al. 2023",
        "required_by: sx-b",
        "measures: ",
    ):
        assert text in out
    code, out, _ = run("rules", "F802", "--json")
    (row,) = json.loads(out)
    assert code == 0 and row["id"] == "F802" and row["required_by"] == ["sx-b"]


@pytest.mark.parametrize("rule_id", sorted(rules()))
def test_rules_explains_every_one(run, rule_id):
    """Claim, source, what is measured and an example: the page that a finding sends its reader to."""
    code, out, _ = run("rules", rule_id)
    rule = rules()[rule_id]
    lines = dict(line.split(": ", 1) for line in out.splitlines() if ": " in line)
    assert code == 0
    assert (lines["id"], lines["claim"], lines["source"]) == (rule_id, rule.claim, rule.source)
    assert lines["measures"] == rule.explanation != "" and lines["example"] == rule.example != ""
    assert lines["looks_at"] == (f"arm ({rule.on})" if rule.scope == "arm" else rule.scope)


def test_rules_explains_convergence(run):
    code, out, _ = run("rules", "F605")
    assert code == 0
    assert "claim: Converged before the first learning-rate decay" in out
    assert "source: Wang et al. 2023" in out and "example: 91.2, 91.3, 91.2, 91.3 % passes" in out


def test_an_unknown_rule_names_the_nearest(run):
    refused(run("rules", "F8o2"), "unknown rule 'F8o2'", "Did you mean 'F802'?")


def test_version(run):
    assert run("--version")[:2] == (0, f"{__version__}\n")


@pytest.mark.parametrize("arguments", [("no-such-command",), ("report", "--no-such-option"), ("rules", "F101", "F102")])
def test_wrong_usage_is_exit_code_2_without_traceback(run, arguments):
    code, _, err = run(*arguments)
    assert code == 2 and err and "Traceback" not in err


# Runs


def test_runs_lists_finished_and_failed(run, ledger):
    code, out, err = run("runs", "--ledger", ledger.root, "--json")
    assert (code, err) == (0, "")
    rows = json.loads(out)
    assert [row["status"] for row in rows] == ["ok"] * 6 + ["failed"]
    assert {row["run_id"] for row in rows if row["status"] == "ok"} == ledger.finished()
    assert rows[-1]["error"] == "run lenet5-digits-scratch failed: out of memory"
    code, table, _ = run("runs", "--ledger", ledger.root)
    assert code == 0 and len(table.splitlines()) == 1 + len(rows)


@pytest.mark.parametrize("name", ["runs", "report"])
def test_no_ledger_is_one_line_and_none_is_made(run, tmp_path, name):
    refused(run(name, "--ledger", tmp_path / "nowhere"), "nowhere is no ledger", "--ledger")
    assert not (tmp_path / "nowhere").exists()


# Reports


def test_report_judges_and_writes(run, ledger, tmp_path, spawned):
    code, out, err = run("report", "--ledger", ledger.root, "--to", tmp_path / "report")
    assert (code, err) == (0, "")
    results = json.loads((tmp_path / "report" / "results.json").read_text(encoding="utf-8"))
    assert {row["method"]: row["accuracy"] for row in results["cells"]} == {"l1": 90.0, "tpp": 91.0}
    required = [row for row in results["findings"] if row["required"]]
    assert {row["verdict"] for row in required} == {"pass"}
    # Every rule that S3.2 requires: of the pair, and of each arm that it applies to.
    wanted = {*results["protocols"]["s3.2"]["requires"], *(name for name, rule in rules().items() if rule.always)}
    arms = {rule_id for rule_id in wanted if rules()[rule_id].scope == "arm"}
    assert {row["rule"] for row in required if len(row["arms"]) == 2} == wanted - arms
    for method in ("l1", "tpp"):
        applied = {rule_id for rule_id in arms if rules()[rule_id].applies(method)}
        assert {row["rule"] for row in required if row["arms"] == [method]} == applied
    (verdict,) = results["verdicts"]
    assert (verdict["arms"], verdict["verdict"], verdict["forbidden_by"]) == (["l1", "tpp"], "indeterminate", [])
    assert verdict["difference"]["mean"] == -1.0
    assert "cells: 2 selected, 2 ok" in out
    assert f"findings: {len(required)} required checks, {len(required)} pass" in out
    for name in ("report.html", "report.md", "results.json", "tables/cells.csv", "figures/accuracy-speedup-"):
        assert f"wrote {tmp_path / 'report' / name}" in out.replace("\n", " ").replace("  ", " ") or name in out


def test_report_takes_the_waivers_of_a_study(run, tmp_path, spawned):
    """The cell of L1 reports another accuracy than its run: F601 fails, unless somebody stands in for it."""
    ledger = Ledger(tmp_path / "ledger")
    store(ledger, scored(evidence("l1"), 90.0), 93.0)
    store(ledger, scored(evidence("tpp"), 91.0))
    study = tmp_path / "mine.toml"
    study.write_text('[waive]\nF601 = "the last epoch was lost, see issue 7"\n', encoding="utf-8")
    found = {}
    for name, options in {"plain": (), "waived": ("--study", study)}.items():
        code, out, err = run("report", "--ledger", ledger.root, "--to", tmp_path / name, "--figures", "none", *options)
        assert (code, err) == (0, "")
        found[name] = (json.loads((tmp_path / name / "results.json").read_text(encoding="utf-8")), out)
    plain, waived = (found[name][0] for name in ("plain", "waived"))
    assert [row["forbidden_by"] for row in plain["verdicts"]] == [["F601"]]
    assert [row["verdict"] for row in plain["verdicts"]] == ["not comparable"] and plain["study"] is None
    assert [row["verdict"] for row in waived["verdicts"]] == ["indeterminate"]
    assert (
        waived["study"]["waive"] == waived["verdicts"][0]["waived"] == {"F601": "the last epoch was lost, see issue 7"}
    )
    assert "the last epoch was lost, see issue 7" in found["waived"][1]
    assert "the last epoch was lost, see issue 7" in (tmp_path / "waived" / "report.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('[waive]\nF6o4 = "a reason"\n', "unknown rule 'F6o4'. Did you mean 'F604'?"),
        ('[waive]\nF601 = ""\n', "F601: a waiver needs a reason"),
    ],
    ids=["rule", "reason"],
)
def test_report_refuses_a_wrong_waiver(run, ledger, tmp_path, content, said):
    study = tmp_path / "mine.toml"
    study.write_text(content, encoding="utf-8")
    refused(run("report", "--ledger", ledger.root, "--to", tmp_path / "report", "--study", study), said)
    assert not (tmp_path / "report").exists()


def test_report_on_an_empty_ledger_is_one_line(run, tmp_path, spawned):
    root = Ledger(tmp_path / "ledger").root
    refused(
        run("report", "--ledger", root, "--to", tmp_path / "report"), str(root), "holds no cell yet", "pytest suite"
    )
    assert not (tmp_path / "report").exists()


def test_report_on_a_ledger_with_runs_and_no_cells_is_one_line(run, tmp_path, spawned):
    ledger = Ledger(tmp_path / "ledger")
    ledger.commit(run_record(), WEIGHTS)
    refused(run("report", "--ledger", ledger.root, "--to", tmp_path / "report"), "holds no cell yet")


def test_report_where_nothing_can_be_written_is_one_line(run, ledger, tmp_path, spawned):
    (tmp_path / "file").write_text("")
    code, _, err = run("report", "--ledger", ledger.root, "--to", tmp_path / "file" / "report")
    assert code == 2 and len(err.splitlines()) == 1 and "--to" in err


# Plans, and what they promise


@pytest.fixture(scope="module")
def planned(tmp_path_factory, command):
    """A plan made before anything was trained: its folder and its facts."""
    folder = tmp_path_factory.mktemp("plan")
    done = command("plan", *PLAN, "--no-probe", "--json", "--audit-ledger", folder / "ledger", folder=folder)
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout)


def test_plan_counts_and_trains_nothing(planned):
    folder, facts = planned
    # Two ratios, two arms; a base, and for each of the four a prune stage and a retraining.
    assert (facts["cells"], facts["runs"], facts["stored"]) == (4, 9, 0)
    assert {row["stage"]: row["runs"] for row in facts["stages"]} == {"pretrain": 1, "prune": 4, "retrain": 4}
    assert facts["epochs"] == pytest.approx(sum(row["epochs"] for row in facts["stages"]))
    assert facts["training_macs"] == sum(row["training_macs"] for row in facts["stages"])
    assert facts["checks"] == 0
    assert (facts["minutes"], facts["device_hours"], facts["cost"]) == (None, None, None)
    ledger = Ledger(folder / "ledger")
    assert list(ledger.runs()) == [] and ledger.failures() == [] and ledger.cells() == []


def test_a_plan_of_verdicts_says_how_many_seeds_are_expected(command, tmp_path):
    options = ["-k", "lenet5-digits and l1-vs-tpp and s3.2 and r0.5", "--audit-methods", "l1,tpp"]
    facts = command(
        "plan", *options, "--audit-budget", "smoke", "--decide", "9", "--no-probe", "--json", folder=tmp_path
    )
    assert facts.returncode == 0, facts.stderr
    (row,) = json.loads(facts.stdout)["decide"]
    # Nothing is known of them: as many seeds as others take, and no promise.
    assert (row["comparison"], row["pilot_seeds"], row["decided"]) == ("l1 vs tpp", 0, None)
    assert 6 < row["expected_seeds"] < 7
    assert json.loads(facts.stdout)["cells"] == 14
    refused = command("plan", *options, "--pilot", "nowhere", "--no-probe", folder=tmp_path)
    assert refused.returncode == 2 and "give both" in refused.stderr


def test_a_campaign_measures_what_the_plan_says_and_then_costs_nothing(command, planned):
    from pruneaudit.campaign.executors.local import LocalExecutor
    from pruneaudit.campaign.planner import Campaign
    from pruneaudit.campaign.stages import Stages
    from pruneaudit.catalog.settings import Settings
    from pruneaudit.training.runtime import Runtime

    folder, facts = planned
    ledger, catalog = Ledger(folder / "ledger"), Catalog()
    executor = LocalExecutor(ledger, Stages(ledger, catalog, Runtime()), "session")
    campaign = Campaign(catalog, ledger, Settings("smoke"), executor)
    for ratio in (0.5, 0.9):
        for method in ("l1", "tpp"):
            assert campaign.obtain(Cell("lenet5-digits", "s3.2", method, ratio, 0)).error == ""
    runs = list(ledger.runs())
    assert len(runs) == facts["runs"]
    for row in facts["stages"]:
        measured = [run for run in runs if run.stage == row["stage"]]
        assert len(measured) == row["runs"]
        assert sum(run.epochs for run in measured) == pytest.approx(row["epochs"], rel=1e-9)
        assert sum(run.training_macs for run in measured) == row["training_macs"]
    assert sum(run.training_macs for run in runs) == facts["training_macs"]

    done = command("plan", *PLAN, "--no-probe", "--json", "--audit-ledger", folder / "ledger", folder=folder)
    again = json.loads(done.stdout)
    assert (again["runs"], again["stored"]) == (9, 9)
    assert (again["epochs"], again["training_macs"]) == (0, 0)


def test_plan_prints_cells_runs_epochs_macs_and_time(command, tmp_path):
    done = command(
        "plan",
        "-k",
        "lenet5-digits and s3.2",
        "--audit-methods",
        "l1,tpp",
        "--price",
        "1000",
        # What is fastest here is another question: test_backends.py.
        "--audit-backend",
        "torch",
        "--audit-ledger",
        tmp_path / "ledger",
        folder=tmp_path,
    )
    assert done.returncode == 0 and done.stderr == ""
    assert "12 cells stand on 27 distinct runs (0 of them in the ledger); to train: " in done.stdout
    assert "training MACs" in done.stdout and " epochs" in done.stdout
    assert "estimated time: " in done.stdout and "minutes with 1 worker(s)" in done.stdout
    hours, price = map(float, re.search(r"device hours: (\S+), (\S+) at 1000 an hour", done.stdout).groups())
    assert price == pytest.approx(1000 * hours, abs=5.01)
    assert [line.split()[1] for line in done.stdout.splitlines()[1:4]] == ["pretrain", "prune", "retrain"]
    assert list(Ledger(tmp_path / "ledger").runs()) == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("-k", "nothing_like_this"), "nothing is selected by -k 'nothing_like_this'"),
        (("--audit-methods", "l1-globall"), "unknown method 'l1-globall'. Did you mean 'l1-global'?"),
        (("--audit-no-such-option", "1"), "--audit-no-such-option"),
        (("-k", "l1 and and"), "l1 and and"),
        (("--price", "-1"), "--price: expected what an hour costs, not -1"),
    ],
    ids=["nothing", "method", "option", "expression", "price"],
)
def test_a_wrong_plan_is_one_line(command, tmp_path, arguments, said):
    done = command("plan", *arguments, "--audit-ledger", tmp_path / "ledger", folder=tmp_path)
    refused((done.returncode, done.stdout, done.stderr), said)
