"""What docs/tables.md says is what the commands do; the hook and the action call them as they are."""

import os
import re
import shlex
import subprocess

import pytest
import yaml

from conftest import ROOT
from pruneaudit.cli import app
from pruneaudit.errors import ConfigError
from pruneaudit.tables.catalogue import rules

PAGE = (ROOT / "docs" / "tables.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.M | re.S)


def run(command, capsys):
    """Exit code and output of a command, which may write into a file."""
    words = shlex.split(command)
    target = None
    if ">" in words:
        target = words[words.index(">") + 1]
        words = words[: words.index(">")]
    assert words[0] == "pruneaudit"
    code = app(words[1:], standalone_mode=False) or 0
    text = capsys.readouterr().out
    if target is not None:
        with open(target, "w", encoding="utf-8") as file:
            file.write(text)
    return code, text


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with the files of the page."""
    monkeypatch.chdir(tmp_path)
    for language, mark in (("md", r"<!-- (\S+) -->"), ("toml", r"# (\S+)")):
        for block in blocks(language):
            (tmp_path / re.match(mark, block)[1]).write_text(block, encoding="utf-8")
    for name, metric in (("perplexities", "perplexity"), ("detection", "mAP50")):
        rows = [f"{method},0.5,{seed},{20 + seed / 10}" for method in ("l1", "mine") for seed in (0, 1)]
        text = "\n".join([f"method,ratio,seed,{metric}", *rows])
        (tmp_path / f"{name}.csv").write_text(text, encoding="utf-8")
    return tmp_path


def test_every_command_of_the_page_does_what_it_says(folder, capsys):
    commands = [line for block in blocks("sh") for line in block.splitlines()]
    assert len(commands) >= 9
    # What --to writes takes seconds; tests/test_judge.py looks at it.
    told = {command: run(command.replace(" --to judged", ""), capsys) for command in commands}
    (promised,) = blocks("text")
    assert told["pruneaudit tables results.md"] == (1, promised)
    assert {command: code for command, (code, _) in told.items() if code not in (0, 1)} == {}
    assert told["pruneaudit tables results.md --sarif --fail-on none"][0] == 0
    assert "T010" not in told['pruneaudit tables results.md --map "Speed Up=other" --setups'][1]
    assert "T022 ResNet-56 CIFAR-10: 2 retraining epochs" in told["pruneaudit tables claims.toml"][1]
    assert (folder / "audit" / "tables.html").is_file()
    assert "l1 against mine: indeterminate" in told["pruneaudit judge runs.csv --to judged"][1]
    assert "perplexity 20.05 ± 0.07 (lower is better)" in told["pruneaudit judge perplexities.csv"][1]
    (detection,) = (text for command, (_, text) in told.items() if "detection.csv" in command)
    assert "map50 20.05" in detection and "differences below 0.3 pp do not matter" in detection
    assert all(rule in told["pruneaudit tables --rules"][1] for rule in rules())


def test_the_page_sorts_all_rules_into_their_kinds():
    for kind in ("contradiction", "unequal", "missing"):
        (listed,) = re.findall(rf"\*\*{kind}\*\* \((.*?)\)", PAGE)
        named = set()
        for part in listed.split(", "):
            first, *last = (int(number) for number in re.findall(r"T0*(\d+)", part))
            named |= set(range(first, (last[0] if last else first) + 1))
        assert named == {int(rule.id[1:]) for rule in rules().values() if rule.kind == kind}, kind


def test_the_hook_calls_a_command_that_there_is(tmp_path, monkeypatch, capsys):
    (hook,) = yaml.safe_load((ROOT / ".pre-commit-hooks.yaml").read_text(encoding="utf-8"))
    (bad, none) = (tmp_path / "README.md", tmp_path / "results.md")
    bad.write_text("|Method|Base|Acc|Drop|\n|---|---|---|---|\n|A|93.5|93.0|0.9|\n", encoding="utf-8")
    none.write_text("# No table\n", encoding="utf-8")
    assert all(re.search(hook["files"], path.name) for path in (bad, none))
    assert run(f"{hook['entry']} {bad} {none}", capsys)[0] == 1
    with pytest.raises(ConfigError, match="no table"):
        run(f"{hook['entry']} {none}", capsys)


def test_the_action_checks_tables_first():
    content = yaml.safe_load((ROOT / ".github" / "actions" / "pruneaudit" / "action.yml").read_text(encoding="utf-8"))
    names = [step["name"] for step in content["runs"]["steps"]]
    assert names.index("Check tables") < names.index("Audit")
    assert _step()["if"] == "inputs.tables != ''"


def _step():
    """The step of the action that checks tables."""
    content = yaml.safe_load((ROOT / ".github" / "actions" / "pruneaudit" / "action.yml").read_text(encoding="utf-8"))
    (step,) = (step for step in content["runs"]["steps"] if step["name"] == "Check tables")
    return step


@pytest.mark.parametrize(
    ("files", "fail_on", "code", "said"),
    [
        ("bad.md", "contradiction", 1, "bad.md:3: T001 A: printed difference 0.9"),
        (" good.md\n\tbad.md ", "contradiction,T021", 1, "bad.md:3: T001 A"),
        ("good.md none.md", "contradiction", 0, ""),
        ("good.md bad.md", "none", 0, "bad.md:3: T001 A"),
        # Inputs are no text of the script: what they hold is a file's name, and never a command or an option.
        ("$(touch/evil) `touch/evil`;touch/evil --sarif", "contradiction", 2, "pruneaudit: $(touch/evil): "),
    ],
)
def test_the_step_of_the_action_does_what_it_says(files, fail_on, code, said, tmp_path, warm):
    (tmp_path / "bad.md").write_text("|Method|Base|Acc|Drop|\n|---|---|---|---|\n|A|93.5|93.0|0.9|\n", encoding="utf-8")
    (tmp_path / "good.md").write_text(
        "|Method|Base|Acc|Drop|\n|---|---|---|---|\n|A|93.5|93.0|0.5|\n", encoding="utf-8"
    )
    (tmp_path / "none.md").write_text("# No table\n", encoding="utf-8")
    (tmp_path / "touch").mkdir()
    command = tmp_path / "bin" / "pruneaudit"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{warm}" -m pruneaudit "$@"\n', encoding="utf-8")
    command.chmod(0o755)
    given = {"${{ inputs.tables }}": files, "${{ inputs.tables-fail-on }}": fail_on}
    step = _step()
    done = subprocess.run(
        ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", step["run"]],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={
            **os.environ,
            "PATH": f"{command.parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            **{name: given[value] for name, value in step["env"].items()},
        },
    )
    assert done.returncode == code, done.stderr
    assert said in done.stdout + done.stderr and "Traceback" not in done.stderr
    assert not list(tmp_path.rglob("evil"))
