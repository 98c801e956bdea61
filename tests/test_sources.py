"""Code that users bring is told from an edited version by all that is its own: imported, read, in the environment."""

import hashlib
import importlib
import sys

import pytest

from pruneaudit.catalog.discovery import Catalog
from pruneaudit.sources import Source

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
    assert digest(path) == before == Source(path, "", "").digest_of_code


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
    assert digest(quiet) == Source(quiet, "", "").digest_of_code
    assert not any(Source(source.path, "", "").may_read for source in Catalog().methods.values() if source.path)


CODE = """# Mine.
from pruneaudit import FilterScore


class Ours(FilterScore):  # as in the paper
    \"\"\"Ours.

    # no comment
    \"\"\"

    def score(self, layer, task):
        # The norm.
        text = '# no comment'
        return layer.weight.flatten(1).abs().sum(1)
"""


def test_a_comment_keeps_the_runs_of_a_method(tmp_path):
    def digest_of(text):
        path = tmp_path / "ours_file.py"
        path.write_text(text)
        return digest(path)

    before = digest_of(CODE)
    same = [
        CODE.replace("# Mine.\n", ""),
        CODE.replace("  # as in the paper", ""),
        CODE.replace("        # The norm.\n", "\n\n        # Their norm, see section 3.\n"),
        CODE.replace("):\n        #", "):   \n        #"),
        CODE + "\n\n# The end.\n",
        CODE.replace("# Mine.", "#!/usr/bin/env python\n# -*- coding: utf-8 -*-"),
    ]
    assert [digest_of(text) for text in same] == [before] * len(same)
    other = [
        CODE.replace("# no comment'", "# a comment'"),
        CODE.replace("    # no comment\n", ""),
        CODE.replace("Ours.\n\n", "Ours.\n"),
        CODE.replace("abs()", "square()"),
        CODE.replace("        return", "    return"),
    ]
    assert len({before, *map(digest_of, other)}) == len(other) + 1
    # What is no Python is another file with every byte.
    assert digest_of(CODE + "(") != digest_of(CODE + "( # more")


def test_methods_of_this_project_are_told_by_their_bytes():
    source = Catalog().method("l1")
    assert source.digest == hashlib.sha256(source.path.read_bytes()).hexdigest()
