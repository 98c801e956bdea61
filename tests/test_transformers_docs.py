"""docs/transformers.md: its commands select what they are to select, and its tables name what there is."""

import importlib.util
import re
import shlex
from pathlib import Path

import folders
import pytest

from pruneaudit.audit.catalogue import required, rules
from pruneaudit.catalog.discovery import Catalog

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "transformers.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.M | re.S)
COMMANDS = [line for language, block in BLOCKS if not language for line in block.splitlines()]
TOML = [block for language, block in BLOCKS if language == "toml"]
SUITE = [command for command in COMMANDS if command.startswith("pytest suite") and "--audit-methods" in command]
STUDIES = [command for command in COMMANDS if command.startswith('pytest suite -k "study')]


@pytest.mark.parametrize("command", SUITE, ids=[shlex.split(command)[3] for command in SUITE])
def test_a_command_collects_cells_and_rules_of_what_it_names(checkout, command):
    words = shlex.split(command)
    expression, protocol = words[3], words[words.index("--audit-protocols") + 1] if "pt" in words else "s3.2"
    outcome = checkout.pytest(*words[1:-2], "--collect-only", "-q")
    assert outcome.code == 0, outcome.text
    workload = expression.partition(" ")[0]
    cells = [line for line in outcome.lines if line.startswith("suite/test_cells.py")]
    methods = words[words.index("--audit-methods") + 1].split(",")
    for method in methods:
        assert any(f"[{workload}-{method}-{protocol}-r" in line for line in cells), method
    ratios = 1 if "r0.5" in expression else len(Catalog().workload(workload).ratios)
    assert len(cells) == 3 * ratios * len(methods)
    checks = {
        line.rpartition("-")[2].rstrip("]") for line in outcome.lines if line.startswith("suite/test_fairness.py")
    }
    assert checks and checks <= set(required(Catalog().protocol(protocol)))


@pytest.mark.parametrize("command", STUDIES)
def test_a_command_of_a_study_collects_its_panels(checkout, command):
    words = shlex.split(command)
    study = Catalog().study(words[3].rpartition(" ")[2])
    outcome = checkout.pytest(*words[1:-2], "--collect-only", "-q")
    items = [line for line in outcome.lines if line.startswith("suite/")]
    assert outcome.code == 0 and study.population is not None, outcome.text
    assert items == [
        f"suite/test_studies.py::test_study[{study.name}-{'+'.join(one)}]" for one in study.population.panels
    ]


def test_the_rules_and_methods_of_the_page_are_there():
    wanted = set(re.findall(r"^\| (F\d{3}) \|", PAGE, re.M))
    always = {rule.id for rule in rules().values() if rule.always}
    assert len(wanted) == 7 and wanted <= {*required(Catalog().protocol("pt")), *always} <= set(rules())
    named = re.findall(r"^\| `([a-z0-9-]+)`", PAGE, re.M)
    assert {"wanda-sp", "flap", "llm-pruner", "head-gates", "isomorphic"} <= set(named) <= set(Catalog().methods)


@pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="needs pruneaudit[transformers]")
def test_the_workload_by_path_is_planned_and_measured_as_the_page_says(checkout):
    """Its commands, in a folder with a small model and texts."""
    folders.model(checkout.root / "model")
    folders.texts(checkout.root / "texts")
    checkout.write("decoder.toml", TOML[0])
    plan, suite = (shlex.split(command) for command in COMMANDS if "decoder.toml" in command)
    planned = checkout.python("-m", *plan)
    assert planned.code == 0, planned.text
    assert "2 cells stand on 5 distinct runs" in planned.text
    needs = [line.split(" GiB")[0] for line in planned.lines if "of a GPU's memory at most" in line]
    assert [line.split(":")[1].split()[0] for line in needs] == ["pretrain", "prune", "retrain"], planned.text
    measured = checkout.pytest("suite", *suite[3:], "--audit-figures", "none")
    assert measured.code in (0, 1) and "cells: 2 selected, 2 ok" in measured.text, measured.text


@pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="needs pruneaudit[transformers]")
def test_questions_are_asked_as_the_page_says(checkout):
    """Its two tables, its file of questions and its command."""
    folders.model(checkout.root / "model")
    folders.texts(checkout.root / "texts")
    decoder, task = TOML
    metric = decoder.partition("[metric]")[2].partition("[")[0]
    checkout.write("zero-shot.toml", decoder.replace(f"[metric]{metric}", f"{task}\n"))
    (rows,) = (block for language, block in BLOCKS if language == "json")
    (checkout.root / "tasks").mkdir()
    checkout.write("tasks/test.jsonl", rows)
    checkout.write("tasks/validation.jsonl", rows.replace("old", "young"))
    (command,) = (shlex.split(command) for command in COMMANDS if "zero-shot.toml" in command)
    measured = checkout.pytest("suite", *command[3:], "--audit-figures", "none")
    assert measured.code in (0, 1) and "cells: 2 selected, 2 ok" in measured.text, measured.text
    report = (checkout.root / "reports" / "latest" / "report.md").read_text()
    assert "acc_norm in percent; differences below 0.5 points do not matter" in report
