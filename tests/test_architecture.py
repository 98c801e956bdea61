"""The structure that docs/architecture.md promises."""

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "pruneaudit"
# From the ground up. Rooms of one floor do not know each other; `pruneaudit/__init__.py` and `config.py` are the public
# face, which hands on names from any room and which no room imports: only the scaffold, whose files do, asks for them.
FLOORS = [
    {"cores", "errors", "sandbox", "state", "streams", "version"},
    {"kernels", "schema", "sources"},
    {"arithmetic"},
    {"workloads"},
    {"catalog"},
    {"ledger"},
    {"measure"},
    {"pruning", "training"},
    {"method"},
    {"campaign"},
    {"audit"},
    {"report", "tables"},
    {"studies"},
    {"plugin"},
    {"doctor"},
    {"cli"},
    {"__main__"},
]
LEVEL = {name: level for level, names in enumerate(FLOORS) for name in names}
FACE = {"__init__", "config"}
NO_TORCH = [
    "pruneaudit",
    "pruneaudit.arithmetic",
    "pruneaudit.plugin",
    "pruneaudit.plugin.session",
    "pruneaudit.plugin.controller",
    "pruneaudit.plugin.gate",
    "pruneaudit.plugin.live",
    "pruneaudit.plugin.collection",
    "pruneaudit.ledger.store",
    "pruneaudit.ledger.progress",
    "pruneaudit.ledger.merging",
    "pruneaudit.method.scaffold",
    "pruneaudit.audit.docket",
    "pruneaudit.measure.trainability",
    "pruneaudit.audit.rules",
    "pruneaudit.tables.command",
    "pruneaudit.tables.judge",
    "pruneaudit.report.stated",
    "pruneaudit.report.writer",
    "pruneaudit.report.terminal",
    "pruneaudit.report.github",
    "pruneaudit.report.serve",
    "pruneaudit.studies.answer",
    "pruneaudit.method.conformance",
    "pruneaudit.campaign.conformance",
    "pruneaudit.campaign.scaffold",
    "pruneaudit.campaign.executors.dispatch",
    "pruneaudit.campaign.executors.where",
    "pruneaudit.cli",
]


def modules():
    """All modules of the package by dotted name, without the package's own."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts)] = path
    return found


MODULES = modules()


def imports(path):
    """Modules of pruneaudit that a file imports: anywhere in it, types included."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            named = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            named = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in named:
            if name == "pruneaudit" or name.startswith("pruneaudit."):
                inner = name.removeprefix("pruneaudit").removeprefix(".")
                # A name that a module defines, or the module itself.
                yield next((one for one in (inner, inner.rpartition(".")[0]) if one in MODULES), "__init__")


def test_every_module_has_a_floor():
    assert {name.split(".")[0] for name in MODULES} - FACE == set(LEVEL)


def test_imports_only_go_down():
    wrong = []
    for own, path in MODULES.items():
        room = own.split(".")[0]
        for name in () if room in FACE else imports(path):
            other = name.split(".")[0]
            if own == "method.scaffold" and other == "__init__":
                continue
            if other != room and (other in FACE or LEVEL[other] >= LEVEL[room]):
                wrong.append(f"{path.relative_to(ROOT)} -> {name}")
    assert not wrong


def test_no_modules_import_each_other_in_a_circle():
    graph = {own: set(imports(path)) - {own} for own, path in MODULES.items() if own not in FACE}
    # The package of a room stands for none of its modules, and its __init__ may name all of them.
    order = TopologicalSorter(graph)
    try:
        order.prepare()
    except CycleError as error:
        raise AssertionError(" -> ".join(error.args[1])) from None


def test_content_imports_the_library_only():
    for folder in ("suite", "methods"):
        for path in (ROOT / folder).glob("*.py"):
            text = path.read_text(encoding="utf-8")
            assert not any(f"{verb} {name}" in text for verb in ("from", "import") for name in ("suite", "methods")), (
                path
            )


def test_imports_no_torch():
    """One after the other in one process, which has no torch in the end."""
    code = "import importlib, sys\nfor name in sys.argv[1:]:\n    importlib.import_module(name)\n"
    code += "    if 'torch' in sys.modules:\n        sys.exit(f'{name} imports torch')"
    done = subprocess.run([sys.executable, "-c", code, *NO_TORCH], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 0, done.stderr
