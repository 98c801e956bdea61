"""Which folder is the project: no option's value may move it, and collecting leaves nothing behind."""

import argparse
import contextlib
import io
import shutil

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from conftest import ROOT, Checkout
from pruneaudit.plugin.options import DEFAULTS, with_values
from pruneaudit.plugin.project import above, joined

SPY = """
def pytest_report_header(config):
    return [f"root {config.rootpath}", f"file {config.inipath}"]
"""
COLLECT = ("-p", "spy", "--pyargs", "pruneaudit.suite", "--collect-only", "-q", "-v", "-k", "lenet5-digits and s3.2")


@pytest.fixture
def foreign(tmp_path, warm):
    """Somebody else's repository beside an installed pruneaudit; all that is made lies below ``tmp_path``."""
    installed = tmp_path / "site" / "pruneaudit"
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "pruneaudit", installed, ignore=ignore)
    for name in ("suite", "methods", "protocols"):
        shutil.copytree(ROOT / name, installed / name, ignore=ignore)
    project = Checkout(tmp_path / "project", warm)
    project.write("pytest.ini", "[pytest]\n")
    project.write("spy.py", SPY)
    # As in many a data folder: it is a repository of its own.
    for name in ("data", "checkpoints"):
        Checkout(tmp_path, warm).write(f"{name}/pytest.ini", "[pytest]\n")
    return project


def run(project, *arguments):
    paths = f"{project.root}:{project.root.parent / 'site'}"
    return project.pytest(*arguments, PYTHONPATH=paths)


def below(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def test_no_value_of_an_option_moves_the_project_and_collecting_writes_nothing(foreign):
    everything = foreign.root.parent
    (everything / "checkpoints" / "base.txt").write_text("no checkpoint")
    before = below(everything)
    data = str(everything / "data")
    outcome = run(foreign, *COLLECT, "--audit-data-root", data, "--audit-report", str(everything / "data" / "report"))
    assert outcome.code == 0, outcome.text
    assert f"root {foreign.root}" in outcome.lines and f"file {foreign.root / 'pytest.ini'}" in outcome.lines
    assert f"ledger {foreign.root / '.pruneaudit' / 'ledger'}" in outcome.text
    assert below(everything) == before
    # What is wrong is said once, and by us.
    outcome = run(foreign, *COLLECT, "--audit-base", str(everything / "checkpoints" / "base.txt"))
    assert outcome.code == 4 and outcome.text.count("ERROR") == 1 and "no PyTorch checkpoint" in outcome.text
    assert below(everything) == before


def test_a_checkout_has_its_suite_under_the_same_name(foreign):
    """Installed with ``pip install -e``, its suite lies beside the package; the project is still the one at hand."""

    def collected(path, where):
        options = [where if word == "pruneaudit.suite" else word for word in COLLECT]
        outcome = foreign.pytest(*options, PYTHONPATH=f"{foreign.root}:{path}")
        assert outcome.code == 0, outcome.text
        assert f"root {foreign.root}" in outcome.lines
        return [line.strip() for line in outcome.lines if "<Function test_" in line]

    for where in ("pruneaudit.suite", "pruneaudit.suite.test_cells", "pruneaudit.suite.test_cells::test_cell"):
        assert collected(ROOT, where) == collected(foreign.root.parent / "site", where) != []
    outcome = foreign.pytest("--pyargs", "pruneaudit.suit", PYTHONPATH=str(ROOT))
    assert outcome.code == 4 and "module or package not found: pruneaudit.suit" in outcome.text


def test_folders_on_the_command_line_are_from_where_it_was_typed(foreign):
    """As ``pruneaudit report --ledger`` reads them; what the project's configuration says is the project's."""
    foreign.write("pytest.ini", "[pytest]\naddopts = --audit-report=pages\n")
    sub = Checkout(foreign.root / "sub", foreign.warm)
    sub.write("spy.py", SPY)
    paths = f"{sub.root}:{foreign.root.parent / 'site'}"
    outcome = sub.pytest(*COLLECT, "--audit-ledger", "mine", PYTHONPATH=paths)
    assert outcome.code == 0 and f"ledger {sub.root / 'mine'}" in outcome.text, outcome.text
    outcome = sub.pytest(*COLLECT, "--audit-from=mine", PYTHONPATH=paths)
    assert f"{sub.root / 'mine'} is no ledger" in outcome.text, outcome.text
    foreign.write("pages", "a file")
    outcome = sub.pytest(*COLLECT, PYTHONPATH=paths)
    assert outcome.code == 4 and f"--audit-report {foreign.root / 'pages'}" in outcome.text, outcome.text


@pytest.mark.parametrize("setting", ["python_files", "python_functions"])
def test_a_setting_that_hides_the_suite_is_told(foreign, setting):
    foreign.write("pytest.ini", f"[pytest]\n{setting} = check_*\n")
    outcome = run(foreign, *COLLECT)
    assert outcome.code == 5 and f"{setting} = check_* leaves out the suite; add test_* to it" in outcome.text
    outcome = run(foreign, *COLLECT, "-o", f"{setting}=test_*")
    assert outcome.code == 0, outcome.text


def test_a_new_ledger_below_another_one_says_so(foreign):
    """In a sub-folder of a project without configuration."""
    (foreign.root / "pytest.ini").unlink()
    foreign.write(".pruneaudit/ledger/ledger.json", '{"schema_version": 1}')
    sub = Checkout(foreign.root / "sub", foreign.warm)
    sub.write("spy.py", SPY)
    paths = f"{sub.root}:{foreign.root.parent / 'site'}"
    outcome = sub.pytest(*COLLECT, PYTHONPATH=paths)
    assert outcome.code == 0, outcome.text
    (line,) = [line for line in outcome.lines if "a new ledger begins" in line]
    assert str(sub.root / ".pruneaudit" / "ledger") in line
    assert f"--audit-ledger {foreign.root / '.pruneaudit' / 'ledger'}" in line
    assert not (sub.root / ".pruneaudit").exists()


def test_every_option_with_a_value_is_known():
    assert {"--audit-data-root", "--audit-ratios", "--audit-method"} <= with_values()
    flags = {name for name, default in DEFAULTS.items() if default is False}
    assert flags == {"audit_download"} and "--audit-download" not in with_values()


def meaning(words):
    """What argparse makes of a command line; None where it refuses it."""
    parser = argparse.ArgumentParser(exit_on_error=False, allow_abbrev=False)
    for option in ("--a", "--b"):
        parser.add_argument(option, action="append")
    parser.add_argument("--flag", action="store_true")
    parser.add_argument("-k")
    parser.add_argument("paths", nargs="*")
    with contextlib.redirect_stderr(io.StringIO()), contextlib.suppress(argparse.ArgumentError, SystemExit):
        return parser.parse_intermixed_args(words)
    return None


@given(st.lists(st.sampled_from(["--a", "--b", "--flag", "x", "y", "-k", "--a=1", "--"])))
@example(["--a", "x", "y", "--", "--b", "x"])
def test_joined_arguments_mean_the_same(words):
    before = meaning(words)
    found = joined(words, {"--a", "--b"})
    assert before is None or meaning(found) == before
    # No value stands alone any more where pytest would take it for a path.
    options = found[: found.index("--")] if "--" in found else found
    assert not {"--a", "--b"} & set(options[:-1])


def test_the_nearest_folder_above_wins(tmp_path):
    deep = tmp_path / "a" / "b" / "c"
    deep.mkdir(parents=True)
    for folder in (tmp_path, tmp_path / "a"):
        (folder / "mark").touch()
    assert above(deep, "mark") == tmp_path / "a" / "mark"
    assert above(deep, "no-such-mark") is None
