"""What docs/gate-your-method.md says and what the GitHub action does, run in an environment that has the wheel only."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import pypdf
import pytest
import yaml
from warm import warm_python

from conftest import ROOT, Outcome
from pruneaudit.audit.statistics import seeds_needed
from pruneaudit.catalog.protocols import FAIL_ON

PAGE = ROOT / "docs" / "gate-your-method.md"
WORKLOADS = ROOT / "docs" / "workload-author.md"
WEEK = ROOT / "docs" / "first-week.md"
ACTION = ROOT / ".github" / "actions" / "pruneaudit" / "action.yml"
WORKFLOW = ROOT / ".github" / "workflows" / "gate.yml"


@dataclass
class Installed:
    """A fresh virtual environment with the project's wheel; what it depends on comes from the running interpreter."""

    root: Path

    @property
    def bin(self) -> Path:
        return self.root / "bin"

    def environ(self, **environ: str) -> dict[str, str]:
        """The environment's commands first on the path, and nothing of the test session that runs."""
        inherited = {
            key: value
            for key, value in os.environ.items()
            if not key.startswith(("PYTEST_", "PRUNEAUDIT_", "GITHUB_", "COV_", "PYTHONPATH", "VIRTUAL_ENV"))
        }
        return inherited | {"PATH": f"{self.bin}{os.pathsep}{os.environ['PATH']}"} | environ

    def bash(self, script: str, cwd: Path, **environ: str) -> Outcome:
        """Run a script as GitHub Actions does, with the environment's commands first on the path."""
        done = subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script],
            cwd=cwd,
            env=self.environ(**environ),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            timeout=900,
        )
        return Outcome(done.returncode, done.stdout)


@pytest.fixture(scope="session")
def installed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("installed")

    def run(*command):
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        assert done.returncode == 0, done.stdout

    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")
    run(*pip, "wheel", "--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", str(folder), str(ROOT))
    (wheel,) = folder.glob("pruneaudit-*.whl")
    environment = Installed(folder / "env")
    run(sys.executable, "-m", "venv", "--without-pip", str(environment.root))
    python = environment.bin / "python"
    # Before the line below: pip must not take the checkout's own installation for one in this environment.
    run(*pip, "--python", str(python), "install", "--no-deps", "--no-index", str(wheel))
    base = {"base": str(environment.root), "platbase": str(environment.root)}
    (libraries,) = {sysconfig.get_path(name, "venv", base) for name in ("purelib", "platlib")}
    borrowed = {sysconfig.get_path(name) for name in ("purelib", "platlib")}
    Path(libraries, "borrowed.pth").write_text("".join(f"{path}\n" for path in borrowed), encoding="utf-8")
    programs = folder / "programs"
    programs.mkdir()
    (environment.bin / "pruneaudit").rename(programs / "pruneaudit")
    (programs / "pytest").write_text("import pytest, sys; sys.exit(pytest.main())\n")
    with warm_python(str(python)) as warm:
        commands = {"pip": f'"{python}" -m pip'}
        commands |= {name: f'"{warm}" "{programs / name}"' for name in ("pytest", "pruneaudit")}
        for name, command in commands.items():
            script = environment.bin / name
            script.write_text(f'#!/bin/sh\nexec {command} "$@"\n')
            script.chmod(0o755)
        yield environment


def blocks(*languages, page=PAGE):
    """Fenced blocks of a page in these languages, in order."""
    text = page.read_text(encoding="utf-8")
    return [
        block for language, block in re.findall(r"^```(\w+)\n(.*?)^```", text, re.M | re.S) if language in languages
    ]


def test_the_environment_has_the_wheel_only(installed, tmp_path):
    code = """
        import pruneaudit, torch, pytest
        from importlib.metadata import files
        from importlib.util import find_spec
        from pruneaudit.catalog.discovery import Catalog, content_root
        places = [pruneaudit.__file__, content_root(), find_spec("pruneaudit.suite").origin]
        places += [Catalog().method("l1").path]
        print(*places, sep="\\n")
    """
    code = "\n".join(line.strip() for line in code.splitlines())
    outcome = installed.bash(f"python -c '{code}'", tmp_path)
    assert outcome.code == 0, outcome.text
    package = next(installed.root.glob("lib/python*/site-packages/pruneaudit"))
    init, content, suite, method = (Path(line) for line in outcome.lines[-4:])
    assert content == package and init == package / "__init__.py"
    assert suite == package / "suite" / "__init__.py" and method == package / "methods" / "l1.py"
    assert (package / "protocols" / "workloads" / "lenet5-digits.toml").is_file()


# The page


def write_files(page, folder):
    """Write the blocks of a page whose first line names a file."""
    for block in blocks("toml", "python", page=page):
        named = re.match(r"# ([\w./-]+\.(?:toml|py))\n", block)
        if named:
            path = folder / named[1]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(block, encoding="utf-8")


def test_the_page_does_what_it_says(installed, tmp_path):
    """Every command, in order; smoke-sized by the environment, as the page tells nobody to wait for hours."""
    write_files(PAGE, tmp_path)
    commands = [line for block in blocks("sh") for line in block.replace("\\\n", " ").splitlines() if line.strip()]
    assert len(commands) >= 15
    told = {}
    for command in commands:
        given = command
        if command.startswith("pip install"):
            if command == "pip install pruneaudit":
                continue
            assert command == "pip install .", "nothing that would be downloaded"
            given = "pip install --quiet --no-deps --no-index --no-build-isolation ."
        # How many seeds a verdict takes is no matter here (`test_gate.py`): with two everything is said and done.
        given = given.replace("--audit-seeds 7", "--audit-seeds 2")
        # Figures are what `pruneaudit report` draws here; what trains is chosen in the first week, below.
        options = "--audit-budget smoke --audit-figures none --audit-backend torch -p no:cacheprovider"
        outcome = installed.bash(given, tmp_path, PYTEST_ADDOPTS=options)
        told[command] = outcome.text
        # At this budget a rival may be better by chance; nothing may be unfair, unmeasured or misspelt.
        lost = [line for line in outcome.lines if "FAILS:" in line]
        assert outcome.code == 0 or (outcome.code == 1 and lost), f"{command}\n{outcome.text}"
        assert all(": worse; " in line for line in lost), outcome.text

    def texts(*words):
        return [text for command, text in told.items() if all(word in command for word in words)]

    (methods,) = texts("pruneaudit methods")
    assert "example-pruner" in methods
    assert (tmp_path / "reports" / "latest" / "report.md").is_file()
    (gate, _) = texts("--audit-against l1,random", "--audit-seeds 7")
    assert "verdicts: 2 comparisons" in gate and "2 of 7" in gate
    (baseline,) = texts("--audit-baseline")
    assert "against the baseline: 1 comparison, 1 " in baseline
    (merged,) = texts("--audit-from")
    assert "cells: 4 selected, 4 ok" in merged
    for text in (*texts("--audit-study"), *texts("pruneaudit report --study")):
        assert "F608" in text and "different versions of torch" in text
    properties = {
        (case.get("name"), found.get("name"))
        for case in ElementTree.parse(tmp_path / "audit.xml").iter("testcase")
        for found in case.iter("property")
    }
    assert ("test_gate[lenet5-digits-example-pruner-vs-l1-s3.2-r0.5-verdict]", "verdict") in properties
    assert ("test_fairness[lenet5-digits-example-pruner-vs-l1-s3.2-r0.5-F321]", "finding") in properties


def test_the_page_of_workloads_does_what_it_says(installed, tmp_path):
    """Own network, own data and own method, in a folder that knows the wheel only."""
    write_files(WORKLOADS, tmp_path)
    told = []
    for command in "".join(blocks("sh", page=WORKLOADS)).splitlines():
        is_audit = "pruneaudit.suite" in command or command.startswith("pruneaudit plan")
        options = "--audit-budget smoke --audit-figures none --audit-backend torch" if is_audit else ""
        outcome = installed.bash(command, tmp_path, PYTEST_ADDOPTS=f"-p no:cacheprovider {options}")
        assert outcome.code == 0, f"{command}\n{outcome.text}"
        told.append(outcome.text)
    scaffold, its_test, workloads, plan, audit, report, check = told
    assert "wrote start/gratings.toml" in scaffold and "1 passed" in its_test and "1 passed" in check
    assert "networks.py:Plain" in workloads and "18 cells stand on 27 distinct runs" in plan
    assert "scans [smoke]: test accuracy" in audit and "steady" in audit
    assert "1 comparison" in report
    results = json.loads((tmp_path / "reports" / "latest" / "results.json").read_text(encoding="utf-8"))
    assert {(cell["workload"], cell["method"], cell["status"]) for cell in results["cells"]} == {
        ("scans", "l1", "ok"),
        ("scans", "steady", "ok"),
    }


def transcript(page):
    """Commands of a page's console blocks, each with the lines that it shows; ``^C`` among them is a key, no line."""
    found = []
    for line in "".join(blocks("console", page=page)).splitlines():
        if line.startswith("$ "):
            found.append((line.removeprefix("$ "), []))
        else:
            found[-1][1].append(line)
    return found


def absent(shown, text):
    """The first line shown that a text does not have behind those before it, or None; ``…`` is anything in a line."""
    lines = (" ".join(line.split()) for line in text.splitlines())
    for line in shown:
        pattern = re.compile(".*".join(re.escape(" ".join(part.split())) for part in line.split("…")))
        if not any(pattern.search(found) for found in lines):
            return line
    return None


def interrupted(installed, command, folder, options):
    """Run a command until something has been trained, then press Ctrl-C: as in a terminal all its processes hear it."""
    before = set(folder.glob(".pruneaudit/ledger/runs/*"))
    with subprocess.Popen(
        ["bash", "-c", f"exec {command}"],
        cwd=folder,
        env=installed.environ(PYTEST_ADDOPTS=options),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    ) as process:
        while process.poll() is None and set(folder.glob(".pruneaudit/ledger/runs/*")) <= before:
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGINT)
        text = process.communicate(timeout=120)[0]
    return Outcome(process.returncode, text)


def test_the_first_week_goes_as_it_is_told(installed, tmp_path):
    """Every command of the transcript, with what it shows: methods, own workload, Ctrl-C, strict warnings, print."""
    write_files(WEEK, tmp_path)
    (tmp_path / "pyproject.toml").rename(tmp_path / "thursday.toml")
    options = "--audit-budget smoke --audit-figures none -p no:cacheprovider"
    real = installed.bin / "python", installed.root.parent / "programs" / "pytest"
    for command, shown in transcript(WEEK):
        given = command
        if command.startswith("pip install"):
            continue
        if "--junitxml" in command:
            (tmp_path / "thursday.toml").rename(tmp_path / "pyproject.toml")
        if "--junitxml" in command or "^C" in shown:
            # What a key interrupts is no fork of another process, and pytest warns of modules imported before it.
            given = command.replace("pytest", f"'{real[0]}' '{real[1]}'", 1)
        if command.startswith("pruneaudit report"):
            given = f"{command} --figures none"
        if command.startswith("chromium"):
            names = ("chromium", "chromium-browser", "google-chrome")
            path = os.environ.get("PRUNEAUDIT_CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
            if path is None:
                continue
            # Root may not use Chromium's sandbox, and tests in containers run as root.
            given = command.replace("chromium", f"'{path}' --no-sandbox", 1)
        if "^C" in shown:
            outcome = interrupted(installed, given, tmp_path, options)
            assert outcome.code == 130, outcome.text
        else:
            outcome = installed.bash(given, tmp_path, PYTEST_ADDOPTS=options)
            assert outcome.code == 0, f"{command}\n{outcome.text}"
        told = [line for line in shown if line not in ("^C", "…")]
        assert absent(told, outcome.text) is None, (
            f"{command}\nshows no '{absent(told, outcome.text)}':\n{outcome.text}"
        )
    names = {case.get("name") for case in ElementTree.parse(tmp_path / "audit.xml").iter("testcase")}
    assert "test_gate[lenet5-digits-median-vs-random-s3.2-r0.5-verdict]" in names
    assert any(name.startswith("test_conformance[lenet5-digits-median-") for name in names)
    if (tmp_path / "report.pdf").exists():
        # A browser that prints at once waits until the page is unpacked.
        text = "\n".join(page.extract_text() for page in pypdf.PdfReader(tmp_path / "report.pdf").pages)
        assert "Shown: " in text and "speedup, MACs(base) / MACs(pruned)" in text and "record.json" in text


def rows(start):
    """Rows of the page's table whose head begins so, as lists of cells."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    first = next(number for number, line in enumerate(lines) if line.startswith(f"| {start} |")) + 2
    table = []
    for line in lines[first:]:
        if not line.startswith("|"):
            break
        table.append([cell.strip() for cell in line.strip("|").split("|")])
    return table


def test_the_page_counts_seeds_as_the_audit_does():
    table = rows("comparisons in the table")[1:]
    bounds = [(re.findall(r"\d+", comparisons), int(seeds)) for comparisons, seeds in table]
    for numbers, seeds in bounds:
        for comparisons in range(int(numbers[0]), int(numbers[-1]) + 1):
            assert seeds_needed(comparisons=comparisons) == seeds
    assert seeds_needed(comparisons=int(bounds[-1][0][-1]) + 1) > bounds[-1][1]


def test_the_page_names_every_verdict_that_can_fail():
    named = {word for row in rows("verdict, of your method") for word in re.findall(r"`(\w+)`", row[-1])}
    assert named == set(FAIL_ON)


def test_the_page_lists_the_inputs_of_the_action():
    inputs = yaml.safe_load(ACTION.read_text(encoding="utf-8"))["inputs"]
    listed = {name.strip("`"): default.strip("`") for name, default, _ in rows("input of the action")}
    assert listed == {name: facts.get("default", "") for name, facts in inputs.items()}


@pytest.mark.parametrize("page", [PAGE, WORKLOADS, WEEK], ids=["methods", "workloads", "week"])
def test_the_page_names_files_that_are_there(page):
    for target in re.findall(r"\]\(([^)#]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).resolve().is_file(), target


# The action


def load(path):
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def steps_of(content):
    """All steps of an action or a workflow."""
    jobs = content.get("jobs", {"": content.get("runs")})
    return [step for job in jobs.values() for step in job["steps"]]


def test_the_action_uses_every_input_and_no_other():
    content = load(ACTION)
    used = set(re.findall(r"inputs\.([\w-]+)", str(content["runs"])))
    assert used == set(content["inputs"])
    assert [name for name, facts in content["inputs"].items() if facts.get("required")] == ["method"]
    assert all(
        isinstance(facts.get("default", ""), str) and facts["description"] for facts in content["inputs"].values()
    )


@pytest.mark.parametrize("path", [ACTION, WORKFLOW], ids=["action", "workflow"])
def test_no_value_becomes_text_of_a_script(path):
    """An input or a branch's name inside a script would be run."""
    scripts = [step["run"] for step in steps_of(load(path)) if "run" in step]
    assert scripts and not any("${{" in script for script in scripts)
    for script in scripts:
        bare = re.sub(r'"[^"]*"', "", script)
        assert not re.search(r"\$\{?[A-Z_]", bare), "a variable outside quotes is split and expanded"


@pytest.mark.parametrize("path", [ACTION, WORKFLOW], ids=["action", "workflow"])
def test_other_actions_are_pinned_to_their_major_version(path):
    pinned = {
        "actions/checkout@v4",
        "actions/setup-python@v5",
        "actions/upload-artifact@v4",
        "actions/download-artifact@v4",
        "./.github/actions/pruneaudit",
    }
    assert {step["uses"] for step in steps_of(load(path)) if "uses" in step} <= pinned


def test_results_are_kept_after_a_failure():
    *_, keep = load(ACTION)["runs"]["steps"]
    assert keep["if"] == "always()" and keep["uses"].startswith("actions/upload-artifact@")
    folder = load(ACTION)["inputs"]["results"]["default"]
    assert not folder.startswith("."), "hidden files are left out of artefacts"


def test_the_workflow_measures_in_parts_and_judges_the_whole():
    content = load(WORKFLOW)
    # YAML 1.1 takes the key ``on`` for true.
    assert content[True] == "pull_request" and content["permissions"] == {"contents": "read"}
    measure, judge = content["jobs"]["measure"], content["jobs"]["judge"]
    workloads = measure["strategy"]["matrix"]["workload"]
    assert len(workloads) == 2 and measure["strategy"]["fail-fast"] is False
    assert judge["needs"] == "measure" and judge["if"] == "${{ !cancelled() }}"
    inputs = load(ACTION)["inputs"]
    one, whole = (
        next(step["with"] for step in job["steps"] if step.get("uses", "").startswith("./")) for job in (measure, judge)
    )
    for given in (one, whole):
        assert set(given) <= set(inputs) and "method" in given
        known = set(re.findall(r"env\.(\w+)", str(given)))
        assert known <= set(content["env"])
    assert whole["workload"].split(" or ") == workloads and "--audit-from merged" in whole["arguments"]
    assert {name: one[name] for name in ("method", "against", "protocols", "seeds")} == {
        name: whole[name] for name in ("method", "against", "protocols", "seeds")
    }
    (download,) = (step["with"] for step in judge["steps"] if "download-artifact" in step.get("uses", ""))
    prefix = download["pattern"].removesuffix("*")
    assert one["artefact"] == f"{prefix}${{{{ matrix.workload }}}}" and not whole["artefact"].startswith(prefix)


def audit(installed, folder, **inputs):
    """Run the action's own step, with inputs as GitHub would give them."""
    content = load(ACTION)
    given = {name: facts.get("default", "") for name, facts in content["inputs"].items()}
    given |= {name.replace("_", "-"): value for name, value in inputs.items()}
    (step,) = (step for step in content["runs"]["steps"] if step.get("name") == "Audit")
    assert step["shell"] == "bash"
    environ = {
        key: given[re.fullmatch(r"\$\{\{ inputs\.([\w-]+) \}\}", value)[1]] for key, value in step["env"].items()
    }
    options = "-p no:cacheprovider --audit-figures none --audit-backend torch"
    return installed.bash(step["run"], folder, **environ, PYTEST_ADDOPTS=options)


SMALL = {
    "method": "l1",
    "against": "random",
    "workload": "lenet5-digits and r0.5 and (verdict or baseline)",
    "seeds": "1",
    "workers": "0",
    "arguments": "--audit-budget smoke\n  -q",
}


@pytest.fixture(scope="module")
def measured(installed, tmp_path_factory):
    """A folder in which the action has run once."""
    folder = tmp_path_factory.mktemp("action")
    outcome = audit(installed, folder, **SMALL | {"workers": "2"})
    assert outcome.code == 0, outcome.text
    return folder


def test_the_action_measures_and_judges(measured):
    results = measured / "audit-results"
    assert (results / "ledger" / "ledger.json").is_file() and (results / "report" / "report.md").is_file()
    names = [case.get("name") for case in ElementTree.parse(results / "junit.xml").iter("testcase")]
    assert names == ["test_gate[lenet5-digits-l1-vs-random-s3.2-r0.5-verdict]"]


@pytest.mark.parametrize(
    ("inputs", "code"),
    [
        ({"fail_on": "indeterminate"}, 1),
        ({"seeds": "2", "arguments": "--audit-budget smoke -q --audit-from audit-results/ledger"}, 3),
        ({"against": "l3"}, 4),
        ({"workload": "nothing-like-this"}, 5),
    ],
    ids=["a verdict fails", "incomplete", "wrong usage", "nothing selected"],
)
def test_the_action_ends_as_pytest_does(installed, measured, inputs, code):
    """The exit statuses of the page's table."""
    outcome = audit(installed, measured, **(SMALL | inputs))
    assert outcome.code == code, outcome.text
    assert str(code) in [row[0] for row in rows("exit status")]


def test_the_action_compares_with_a_baseline(installed, measured):
    shutil.copytree(measured / "audit-results" / "ledger", measured / "before it all")
    outcome = audit(installed, measured, **(SMALL | {"baseline": "before it all"}))
    assert outcome.code == 0 and "against the baseline: 1 comparison" in outcome.text, outcome.text


@pytest.mark.parametrize("method", ["my_pruner.py", "my_pruner:MyPruner"])
def test_the_action_takes_a_method_in_a_file_or_a_module(installed, tmp_path, method):
    text = "from pruneaudit import FilterScore\n\n\nclass MyPruner(FilterScore):\n    pass\n"
    (tmp_path / "my_pruner.py").write_text(text)
    less = {"against": "", "protocols": "", "seeds": "", "fail_on": ""}
    given = SMALL | {
        "method": method,
        "workload": "lenet5-digits and my-pruner",
        "arguments": "--collect-only -q",
        **less,
    }
    outcome = audit(installed, tmp_path, **given)
    assert outcome.code == 0, outcome.text
    assert "lenet5-digits-my-pruner-s1-r0.5-seed0" in outcome.text


@pytest.mark.parametrize(
    "name", ["method", "against", "protocols", "workload", "seeds", "fail_on", "workers", "baseline"]
)
def test_inputs_are_never_run(installed, tmp_path, name):
    rogue = "x'\"; touch pwned; $(touch pwned) `touch pwned` #"
    outcome = audit(
        installed, tmp_path, **(SMALL | {"arguments": "-q --collect-only $(touch pwned) `touch pwned`", name: rogue})
    )
    assert outcome.code in (4, 5), outcome.text
    assert not list(tmp_path.rglob("pwned*"))


def test_the_last_job_judges_what_the_others_measured(installed, measured, tmp_path):
    shutil.copytree(measured / "audit-results", tmp_path / "parts" / "pruneaudit-lenet5-digits")
    (merge,) = (step["run"] for step in steps_of(load(WORKFLOW)) if step.get("name") == "Merge")
    script = "".join(line for line in merge.splitlines(keepends=True) if not line.startswith("python -m pip"))
    outcome = installed.bash(script, tmp_path)
    assert outcome.code == 0 and "added to merged" in outcome.text, outcome.text
    outcome = audit(installed, tmp_path, **(SMALL | {"arguments": "--audit-from merged --audit-budget smoke"}))
    assert outcome.code == 0 and "cells: 2 selected, 2 ok" in outcome.text, outcome.text
