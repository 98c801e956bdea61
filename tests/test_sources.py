"""Code that users bring is told from an edited version by all that is its own: imported, read, in the environment."""

import hashlib
import importlib
import sys
from pathlib import Path

import pytest

from pruneaudit.catalog.discovery import Catalog
from pruneaudit.sources import Source, code_digest

METHOD = """
from pruneaudit import FilterScore

class Ours(FilterScore):
    '''Sizes.'''
    {constructor}
    def score(self, layer, task):
        return layer.weight.abs().flatten(1).sum(dim=1)
"""

SCORES = """
import json
from pathlib import Path

TABLE = json.loads((Path(__file__).parent / "table.json").read_text())

def size(weight):
    return TABLE * weight.abs().flatten(1).sum(dim=1)
"""

READERS = {
    "at-import": "import json\nfrom pathlib import Path\n"
    "SIGN = json.loads((Path(__file__).parent / 'ours.json').read_text())\n" + METHOD.format(constructor=""),
    "by-open": "SIGN = open(__file__.replace('ours_file.py', 'ours.json')).read()\n" + METHOD.format(constructor=""),
    "in-constructor": "from pathlib import Path\n"
    + METHOD.format(
        constructor="def __init__(self):\n        self.sign = Path(__file__).with_name('ours.json').read_text()\n"
    ),
    "numpy": "import json, os\nimport numpy as np\nnp.loadtxt(os.path.join(os.path.dirname(__file__), 'ours.json'))\n"
    + METHOD.format(constructor=""),
    "in-helper": "from helper import SIGN\n" + METHOD.format(constructor=""),
}


def digest(path):
    """As a session of its own finds it."""
    return Catalog(extra_methods=(str(path),)).method("ours-file").digest


@pytest.fixture
def helper(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "helper.py").write_text(
        "from pathlib import Path\nSIGN = Path(__file__).with_name('ours.json').read_text()\n"
    )
    yield
    sys.modules.pop("helper", None)


@pytest.mark.parametrize("kind", READERS)
def test_what_a_method_reads_is_part_of_it(kind, tmp_path, helper):
    path, data = tmp_path / "ours_file.py", tmp_path / "ours.json"
    path.write_text(READERS[kind])
    data.write_text("1")
    before = digest(path)
    assert digest(path) == before, "a second session in the same process hears nothing anew and must know"
    data.write_text("-1")
    assert digest(path) != before
    data.write_text("1")
    assert digest(path) == before
    (tmp_path / "other.json").write_text("2")
    assert digest(path) == before


def test_what_is_not_its_own_is_no_part_of_it(tmp_path):
    path, elsewhere = tmp_path / "mine" / "ours_file.py", tmp_path / "elsewhere.json"
    path.parent.mkdir()
    elsewhere.write_text("1")
    path.write_text(
        f"open({str(elsewhere)!r}).read()\nopen({str(path.parent / 'log')!r}, 'w').write('x')\n"
        + METHOD.format(constructor="")
    )
    before = digest(path)
    elsewhere.write_text("2")
    (path.parent / "log").write_text("y")
    assert digest(path) == before == Source(path, "", "").digest


def test_a_variable_of_the_environment_is_part_of_it_while_it_is_set(tmp_path, monkeypatch):
    path = tmp_path / "ours_file.py"
    path.write_text("import os\nSIGN = os.environ.get('OURS_SIGN', '1'), os.getenv('OURS_B'), 'OURS_C' in os.environ\n"
                    + METHOD.format(constructor=""))  # fmt: skip
    for name in ("OURS_SIGN", "OURS_B"):
        monkeypatch.delenv(name, raising=False)
    found = [digest(path)]
    for name, value in (("OURS_SIGN", "1"), ("OURS_SIGN", "-1"), ("OURS_B", "1")):
        monkeypatch.setenv(name, value)
        found.append(digest(path))
    monkeypatch.setenv("UNRELATED", "1")
    path.write_text(path.read_text() + "os.environ.get('PYTEST_CURRENT_TEST')\n")
    found[-1] = digest(path)
    monkeypatch.setenv("PYTEST_CURRENT_TEST", "another")
    assert digest(path) == found[-1] and len(set(found)) == 4


def test_a_package_is_all_that_it_imports_and_reads(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    package = tmp_path / "ours_pkg"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "table.json").write_text("1")
    (package / "scores.py").write_text(SCORES)
    (package / "pruners.py").write_text("from ours_pkg.scores import size\n" + METHOD.format(constructor=""))

    def found():
        # A package is imported once in a process: forgotten, as in a session's own process.
        for name in [name for name in sys.modules if name.split(".")[0] == "ours_pkg"]:
            del sys.modules[name]
        importlib.invalidate_caches()
        return Catalog(extra_methods=("ours_pkg.pruners:Ours",)).method("ours").digest

    before = found()
    (package / "table.json").write_text("-1")
    edited = found()
    (package / "scores.py").write_text(SCORES.replace("TABLE *", "-TABLE *"))
    assert len({before, edited, found()}) == 3


def test_methods_that_can_read_nothing_are_not_imported_for_their_digest(tmp_path):
    quiet = tmp_path / "ours_file.py"
    quiet.write_text(
        "import math\nimport torch\n" + METHOD.format(constructor="") + "\nraise RuntimeError('imported')\n"
    )
    assert digest(quiet) == Source(quiet, "", "").digest
    assert not any(Source(source.path, "", "").may_read for source in Catalog().methods.values() if source.path)


# What a file says


CODE = '''
class A:

    def f(self):
        text = """kept\x20\x20

  # no comment
"""
        return text, "# nor this", (
            1,
        )
'''.lstrip()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("class A:\n", 'class A:\n    """A docstring: é."""\n'),
        ("class A:\n", '"""The file\'s,\n\n    over lines."""\n\n\nclass A:  # and a comment\n'),
        ("    def f(self):\n", '    def f(self):\n        """Its own."""  # twice\n\n'),
        ("            1,\n", "            1,  # one\n\n"),
        ("        return", "        # more\n\n        return"),
        (")\n", ")   \n\n\n"),
    ],
)
def test_comments_docstrings_and_blank_lines_say_nothing(old, new):
    edited = CODE.replace(old, new, 1)
    assert edited != CODE
    assert code_digest(edited.encode()) == code_digest(CODE.encode())


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("kept  \n", "kept\n"),
        ("\n\n  # no comment", "\n  # no comment"),
        ("# no comment", ""),
        ("# nor this", ""),
        ("1,", "1"),
        ("        return", '        "no docstring"\n        return'),
    ],
)
def test_everything_else_does(old, new):
    assert code_digest(CODE.replace(old, new, 1).encode()) != code_digest(CODE.encode())


@pytest.mark.parametrize("see", ["STRENGTH = float(A.__doc__)", "import inspect", "TEXT = open(__file__).read()"])
def test_a_file_that_sees_its_own_text_is_its_bytes(see):
    assert code_digest(f"{CODE}{see}\n".encode()) != code_digest(f"{CODE}{see}  # 2\n".encode())


def test_a_file_that_is_no_python_is_its_bytes():
    assert code_digest(b"def (") == hashlib.sha256(b"def (").hexdigest()
    assert code_digest(b"\xff\x00") == hashlib.sha256(b"\xff\x00").hexdigest()


def test_data_that_this_project_supplies_are_told_by_their_own_file():
    """An edit anywhere else in it is no other data: its version and numerics are parts of every run."""
    source = Source.parse("pruneaudit.workloads.data.texts:shakespeare", Path())
    assert source.digest == code_digest(source.file.read_bytes())
