"""Processes in which foreign methods run: what they begin with."""

from pruneaudit import sandbox
from pruneaudit.catalog.discovery import Catalog
from pruneaudit.method import isolation
from pruneaudit.training.runtime import Runtime

#: Keeps the contract, if what takes long to import was there before the method was.
IMPATIENT = """
import sys
from pruneaudit import FilterScore

ABSENT = [name for name in ("torch._dynamo", "fvcore.nn") if name not in sys.modules]


class Impatient(FilterScore):
    def score(self, layer, task):
        assert not ABSENT, f"still to be imported: {ABSENT}"
        return layer.weight.abs().flatten(1).sum(dim=1)
"""


def test_what_takes_long_to_import_is_imported_once_for_all_processes(tmp_path):
    """Four seconds of CPU in each: torch imports its compiler where a network without weights is asked."""
    path = tmp_path / "impatient.py"
    path.write_text(IMPATIENT, encoding="utf-8")
    catalog = Catalog(extra_methods=(str(path),), isolate="foreign", outside=isolation.described)
    isolation.check("meets-target", catalog, "impatient", "lenet5-digits", Runtime())


def test_all_is_open_but_what_is_hidden(tmp_path):
    """The largest places: a folder is parted where something below it is hidden, and links are left out."""
    for name in ("data/cifar/train", "data/cifar/test", "data/mnist", "code"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "data" / "notes").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "data")

    def beside(*hidden):
        found = sandbox._beside([tmp_path / name for name in hidden], tmp_path)
        return sorted(str(place.relative_to(tmp_path)) for place in found)

    assert beside() == ["."]
    assert beside("data/cifar/test") == ["code", "data/cifar/train", "data/mnist", "data/notes"]
    assert beside("data", "data/cifar/test") == ["code"]
    assert beside("data/notes", "data/mnist", "elsewhere") == ["code", "data/cifar"]
    assert beside("") == []
