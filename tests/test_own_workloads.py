"""Workloads that users bring: where they are found, what is refused, and what becomes of their cells."""

import importlib.metadata
import json
import shutil

import pytest

from pruneaudit import cli
from pruneaudit.audit.currency import why_outdated
from pruneaudit.campaign.planner import Planner
from pruneaudit.catalog import discovery
from pruneaudit.catalog.cells import Cell, Resolved, Selection
from pruneaudit.catalog.discovery import Catalog, content_root
from pruneaudit.catalog.settings import Settings
from pruneaudit.errors import ConfigError
from pruneaudit.ledger.records import RunSpec
from pruneaudit.ledger.store import Ledger
from pruneaudit.report.frames import load

NETWORK = """
from torch import nn


class Tiny(nn.Sequential):
    def __init__(self, channels, classes, width=4):
        super().__init__(
            nn.Conv2d(channels, width, 3), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(128, classes),
        )
"""
WORKLOAD = """
version = 1
source = "a test"
model = "nets.py:Tiny"
prunable = ["0"]
ratios = [0.5]
seeds = [0]

[data]
name = "digits"
mean = [0.3]
std = [0.4]

[sgd]
batch = 256
momentum = 0.9

[pretrain]
epochs = 2
lr = "0:0.05"

[prune]
steps = 3
lr = "0:1e-3"

[retrain]
epochs = 1
lr = "0:0.01"

[scratch]
epochs = 2
lr = "0:0.05"

[tune]
schedules = ["0:0.01", "0:0.1"]
"""
CELL = Cell("tiny", "s3.2", "l1", 0.5, 0)


def planned(catalog):
    """The runs of the cell."""
    return Planner(catalog, Settings(), Resolved.of(CELL, catalog)).plan()


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "nets.py").write_text(NETWORK)
    (tmp_path / "tiny.toml").write_text(WORKLOAD)
    return tmp_path


def found(*specs):
    return Catalog(extra_workloads=tuple(map(str, specs)))


# Where they are found


def test_a_file(folder):
    workload = found(folder / "tiny.toml").workload("tiny")
    assert workload.folder == folder.resolve() == workload.data.folder
    assert len(workload.model_source) == 64


def test_a_relative_path_is_found_from_anywhere_afterwards(folder, monkeypatch):
    monkeypatch.chdir(folder)
    assert found("tiny.toml").workload("tiny").folder == folder.resolve()


def test_a_folder_brings_all_its_workloads(folder):
    shutil.copy(folder / "tiny.toml", folder / "Other_One.toml")
    shutil.copy(folder / "tiny.toml", folder / "_shared.toml")
    catalog = found(folder)
    assert catalog.extra_workload_names == ("other-one", "tiny")
    assert list(catalog.workloads)[: len(Catalog().workloads)] == list(Catalog().workloads)


@pytest.mark.parametrize("value", ["'tiny.toml'", "pathlib.Path('tiny.toml')", "'.'", "TABLES"])
def test_an_attribute_of_a_module(folder, monkeypatch, value):
    import tomllib

    module = f"audit_workloads_of_{abs(hash(value))}"
    (folder / f"{module}.py").write_text(f"import pathlib\nTABLES = {tomllib.loads(WORKLOAD)!r}\nTINY = {value}\n")
    monkeypatch.syspath_prepend(folder)
    workload = found(f"{module}:TINY").workload("tiny")
    assert workload.folder == folder.resolve() and workload.model_source


def test_a_workload_made_in_python(folder, monkeypatch):
    (folder / "audit_workload_made_in_python.py").write_text(
        "from pathlib import Path\nfrom pruneaudit.workloads.schema import load_workload\n"
        "TINY = load_workload(Path(__file__).with_name('tiny.toml'))\n"
    )
    monkeypatch.syspath_prepend(folder)
    workload = found("audit_workload_made_in_python:TINY").workload("tiny")
    assert workload == found(folder / "tiny.toml").workload("tiny")


def test_entry_point(folder, monkeypatch):
    import tomllib

    text = f"TABLES = {tomllib.loads(WORKLOAD)!r}\nFOLDER = '.'\n"
    (folder / "audit_workload_plugin.py").write_text(text)
    monkeypatch.syspath_prepend(folder)
    entries = [
        importlib.metadata.EntryPoint(name, f"audit_workload_plugin:{attribute}", "pruneaudit.workloads")
        for name, attribute in (("installed", "TABLES"), ("folder", "FOLDER"))
    ]
    monkeypatch.setattr(discovery, "entry_points", lambda group: entries if group.endswith("workloads") else [])
    catalog = Catalog()
    assert {"installed", "tiny"} <= set(catalog.workloads) and not catalog.extra_workload_names


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("absent.toml", "--audit-workload absent.toml: no such file"),
        ("tiny", "expected 'file.toml', a folder of them, or 'package.module:attribute'"),
        ("module:", "expected 'file.toml'"),
        ("no_such_module_of_a_test:X", "cannot be imported: ModuleNotFoundError"),
        ("json:nothing", "cannot be imported: AttributeError"),
        ("json:loads", "expected a path, a Workload or a mapping, not function"),
    ],
)
def test_bad_spec(spec, said):
    with pytest.raises(ConfigError) as caught:
        _ = found(spec).workloads
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_an_empty_folder(tmp_path):
    with pytest.raises(ConfigError, match="no TOML file in"):
        _ = found(tmp_path).workloads


def test_an_entry_point_that_is_broken_is_named(monkeypatch):
    entry = importlib.metadata.EntryPoint("arena", "no_such_package_of_a_test:X", "pruneaudit.workloads")
    monkeypatch.setattr(discovery, "entry_points", lambda group: [entry])
    with pytest.raises(ConfigError, match=r"entry point 'arena' of pruneaudit\.workloads: cannot be imported"):
        _ = Catalog().workloads


def test_collision_names_both_files(folder):
    path = folder / "lenet5-digits.toml"
    shutil.copy(folder / "tiny.toml", path)
    with pytest.raises(ConfigError) as caught:
        _ = found(path).workloads
    message, built_in = str(caught.value), content_root() / "protocols" / "workloads" / "lenet5-digits.toml"
    assert "two workloads are called 'lenet5-digits'" in message and "rename" in message
    assert str(path) in message and str(built_in) in message


def test_one_file_given_twice_is_one_workload(folder):
    assert found(folder, folder / "tiny.toml").extra_workload_names == ("tiny",)


@pytest.mark.parametrize("stem", ["my net", "größe", "-dash"])
def test_id_that_cannot_be_selected(folder, stem):
    shutil.copy(folder / "tiny.toml", folder / f"{stem}.toml")
    with pytest.raises(ConfigError, match=r"workload name '.*': use lower-case letters, digits"):
        _ = found(folder / f"{stem}.toml").workloads


def test_wrong_name_gets_did_you_mean(folder):
    with pytest.raises(ConfigError, match=r"unknown workload 'tinny'\. Did you mean 'tiny'\?"):
        found(folder / "tiny.toml").workload("tinny")


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("ratios", "ratio", "ratio: unknown key. Did you mean 'ratios'?"),
        ('model = "nets.py:Tiny"', 'model = "net.py:Tiny"', "model: net.py:Tiny: no such file"),
        ('model = "nets.py:Tiny"', 'model = "nets.py"', "model: 'nets.py': say what builds the network"),
        ("version = 1", 'version = 1\nfolder = "."', "folder: unknown key"),
        ("version = 1", 'version = 1\nmodel_source = "x"', "model_source: unknown key"),
        ("version = 1", "version = 1\nmodel_args = 3", "model_args: expected a table"),
        ("[data]", "[model_args]\nsizes = {a = 1}\n\n[data]", "model_args: sizes: expected a number, a text"),
        ('prunable = ["0"]', 'prunable = ["auto", "0"]', "prunable: 'auto' means everything"),
    ],
)
def test_what_is_wrong_in_a_file_is_one_line_with_file_and_key(folder, before, after, said):
    path = folder / "tiny.toml"
    path.write_text(WORKLOAD.replace(before, after))
    with pytest.raises(ConfigError) as caught:
        _ = found(path).workloads
    assert str(caught.value).startswith(f"{path}: ") and said in str(caught.value)


@pytest.mark.parametrize(("written", "read"), [('"auto"', ("auto",)), ('"0"', ("0",)), ('["0", "3"]', ("0", "3"))])
def test_prunable_is_a_pattern_or_several_or_auto(folder, written, read):
    path = folder / "tiny.toml"
    path.write_text(WORKLOAD.replace('prunable = ["0"]', f"prunable = {written}"))
    assert found(path).workload("tiny").prunable == read


# An edited network is another one


def plan(folder):
    return planned(found(folder / "tiny.toml"))


def test_runs_are_those_of_the_network_as_it_is(folder):
    before = plan(folder)
    assert plan(folder).prune.run_id == before.prune.run_id
    path = folder / "nets.py"
    path.write_text(NETWORK.replace("nn.ReLU()", "nn.SiLU()"))
    edited = plan(folder)
    assert not {run.run_id for run in before.runs} & {run.run_id for run in edited.runs}
    path.write_text(NETWORK)
    (folder / "tiny.toml").write_text(WORKLOAD.replace("[data]", "[model_args]\nwidth = 8\n\n[data]"))
    other = plan(folder)
    assert other.base.model_args == (("width", 8),) and other.base.run_id != before.base.run_id
    assert other.prune.run_id not in {before.prune.run_id, edited.prune.run_id}


def test_where_a_workload_lies_does_not_matter(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "copy"
    shutil.copytree(folder, elsewhere)
    assert [run.run_id for run in plan(elsewhere).runs] == [run.run_id for run in plan(folder).runs]


def test_arguments_survive_the_record(folder):
    (folder / "tiny.toml").write_text(WORKLOAD.replace("[data]", "[model_args]\nwidth = 8\n\n[data]"))
    spec = plan(folder).base
    again = RunSpec.model_validate(json.loads(spec.model_dump_json()))
    assert again.run_id == spec.run_id and again.model_args == spec.model_args


def test_a_network_that_does_not_fit_the_data_is_told_before_anything_trains(folder):
    (folder / "nets.py").write_text(NETWORK.replace("nn.Linear(128, classes)", "nn.Linear(128, 7)"))
    with pytest.raises(ConfigError, match=r"returns \[2, 7\] for two inputs in training, expected logits \[2, 10\]"):
        plan(folder)


# What becomes of its cells


ONE = ("--audit-methods", "l1", "--audit-protocols", "s3.2")
PLAN = (*ONE, "--audit-workload", "arena/tiny.toml", "-k", "tiny and seed0")


@pytest.fixture
def measured(checkout):
    """A checkout whose ledger holds one cell of an own workload."""
    checkout.write("arena/nets.py", NETWORK)
    checkout.write("arena/tiny.toml", WORKLOAD)
    outcome = checkout.pytest("suite", "-q", *PLAN)
    assert outcome.code == 0 and "1 passed" in outcome.text, outcome.text
    return checkout


def test_cells_of_an_own_workload(measured, capsys):
    """Measured once; reported, planned and loaded where its file is given; told to be elsewhere where it is not."""
    catalog = found(measured.root / "arena")
    ledger = Ledger(measured.ledger, writable=False)
    (record,) = ledger.cells()
    (base,) = (run for run in ledger.runs() if run.stage == "pretrain")
    assert base.model == "nets.py:Tiny" and base.model_source == catalog.workload("tiny").model_source
    assert why_outdated(record, catalog, ledger, {}) == ""
    assert "give its file with --audit-workload" in why_outdated(record, Catalog(), ledger, {})

    frames = load(measured.ledger, workloads=[str(measured.root / "arena")])
    assert list(frames.cells.status) == ["ok"]

    def command(*arguments):
        cli.app([*map(str, arguments)], standalone_mode=False)
        return capsys.readouterr().out

    arena = ("--audit-workload", measured.root / "arena")
    to = ("--ledger", measured.ledger, "--to", measured.root / "report", "--figures", "none")
    with pytest.raises(ConfigError, match="its workload is not here: tiny; give the files with --audit-workload"):
        command("report", *to)
    assert not (measured.root / "report").exists()
    assert "tiny: test accuracy" in command("report", *to, *arena)
    listed = json.loads(command("workloads", *arena, "--json"))
    assert listed[-1]["name"] == "tiny" and listed[-1]["model"] == "nets.py:Tiny"

    # Edited, it is measured anew; what was measured is outdated until then.
    measured.write("arena/nets.py", NETWORK.replace("nn.ReLU()", "nn.SiLU()"))
    edited = found(measured.root / "arena")
    assert "another version of the workload's network" in why_outdated(record, edited, ledger, {})
    planned = measured.python("-c", "from pruneaudit.cli import main; main()", "plan", *PLAN, "--no-probe", "--json")
    facts = json.loads(planned.text)
    assert (facts["cells"], facts["runs"], facts["stored"]) == (1, 3, 0)
    anew = measured.pytest("suite", "-q", *PLAN)
    assert anew.code == 0 and len(list(Ledger(measured.ledger, writable=False).runs())) == 6


def test_a_workload_is_added_to_all_others(folder):
    catalog = found(folder)
    everything = Selection(catalog, ("l1",), ("s3.2",)).chosen()
    assert [workload.name for workload in everything] == [*Catalog().workloads, "tiny"]


def test_a_workload_is_added_to_those_of_a_study(checkout):
    checkout.write("arena/nets.py", NETWORK)
    checkout.write("arena/tiny.toml", WORKLOAD)
    study = checkout.write("mine.toml", 'title = "x"\nworkloads = ["lenet5-digits"]\n')
    options = ("--audit-workload", "arena", "--audit-study", str(study), "--collect-only", "-k", "cell and seed0")
    outcome = checkout.pytest("suite", "-q", *ONE, *options)
    cells = [line.partition("[")[2].partition("-l1")[0] for line in outcome.lines if "test_cell[" in line]
    assert set(cells) == {"tiny", "lenet5-digits"}, outcome.text


def test_a_network_that_changes_while_the_suite_runs_is_told(folder, tmp_path):
    from pruneaudit.campaign.stages import Stages
    from pruneaudit.training.runtime import Runtime

    catalog = found(folder / "tiny.toml")
    spec = planned(catalog).base
    (folder / "nets.py").write_text(NETWORK + "EDITED = True\n")
    stages = Stages(Ledger(tmp_path / "ledger"), catalog, Runtime())
    with pytest.raises(ConfigError, match=r"workload 'tiny': nets\.py:Tiny changed while the suite ran; start again"):
        stages.execute(spec)
