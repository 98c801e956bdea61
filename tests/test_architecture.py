"""The structure that docs/architecture.md promises."""

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "pruneaudit"
# From the ground up; members of one floor may import each other.
FLOORS = [
    {"errors", "ratios", "schedule", "streams"},
    {"config"},
    {"claims"},
    {"catalog", "cells", "scaffold", "settings"},
    {"records", "ledger", "merging", "progress"},
    {"workloads"},
    {"measure"},
    {"pruning", "shapes"},
    {"training"},
    {"contract", "task", "answers"},
    {"stages", "conduct", "conformance"},
    {"campaign", "executors"},
    {"audit"},
    {"report"},
    {"planning", "cards", "cli", "plugin"},
]
LEVEL = {name: level for level, names in enumerate(FLOORS) for name in names}
NO_TORCH = [
    "pruneaudit",
    "pruneaudit.plugin",
    "pruneaudit.plugin.session",
    "pruneaudit.plugin.controller",
    "pruneaudit.plugin.live",
    "pruneaudit.ledger",
    "pruneaudit.progress",
    "pruneaudit.merging",
    "pruneaudit.scaffold",
    "pruneaudit.audit.docket",
    "pruneaudit.measure.trainability",
    "pruneaudit.audit.rules",
    "pruneaudit.report.writer",
    "pruneaudit.report.terminal",
    "pruneaudit.report.github",
    "pruneaudit.report.serve",
    "pruneaudit.conformance",
    "pruneaudit.cli",
]


def imports(path, everywhere):
    """Names of pruneaudit's modules that a file imports; without `everywhere` only at run time of the import."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.unparse(block.test)
        for node in ast.walk(block)
    }
    nodes = ast.walk(tree) if everywhere else tree.body
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module and id(node) not in typing_only:
            if node.module == "pruneaudit":
                yield from (alias.name for alias in node.names)
            elif node.module.startswith("pruneaudit."):
                yield node.module.split(".")[1]


def test_every_module_has_a_floor():
    found = {
        path.name.removesuffix(".py") for path in PACKAGE.iterdir() if path.name not in ("__init__.py", "__pycache__")
    }
    assert found == set(LEVEL)


def test_imports_only_go_down():
    wrong = []
    for path in sorted(PACKAGE.rglob("*.py")):
        own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if own == "__init__":
            continue
        # The catalogue loads a method's class by the contract when it is asked to, not when it is imported.
        everywhere = own != "catalog"
        wrong += [
            f"{path.relative_to(ROOT)} -> {name}"
            for name in imports(path, everywhere)
            if LEVEL.get(name, -1) > LEVEL[own]
        ]
    assert not wrong


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
