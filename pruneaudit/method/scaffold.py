"""Writes a first working method and its test for ``pruneaudit new-method``. Imports no torch."""

from __future__ import annotations

import importlib.util
import keyword
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import pruneaudit
from pruneaudit.catalog.discovery import Catalog
from pruneaudit.catalog.names import is_scratch, method_id
from pruneaudit.errors import ConfigError

#: The catalogue's rule for ids, without what no module's name can have.
_NAME = re.compile(r"[a-z][a-z0-9-]*")

# Neither file imports torch: import sorters that take pruneaudit for a part of the project, and those that take it for
# an installed package, then both leave the lines as they are.
_METHOD = '''"""REPLACE: what {id} does, in one line."""

from pruneaudit import FilterScore


class {cls}(FilterScore):
    """Smallest L2 norm first. REPLACE: your rule in one line, with authors, venue, year and section.

    REPLACE: where and why this differs from the publication.
    """

    # The retraining recipe of your paper, for S1 and S2; without one your method gets the workload's. To state it,
    # import PublishedRecipe from pruneaudit, too:
    #
    # published = PublishedRecipe(
    #     workload="resnet56-cifar10", epochs=40, lr="0:1e-3", source="REPLACE: where the paper says so"
    # )

    def score(self, layer, task):
        """Importance of each filter, ``[out_channels]``: the lowest are removed.

        ``layer.weight`` is ``[out_channels, in_channels, kH, kW]``.
        """
        return layer.weight.flatten(1).norm(dim=1)

    # To train while pruning, derive the class from TrainedMethod, import Budget, too, and add this. What changes the
    # training goes into task.train(hooks=Hooks(penalty=..., gradients=..., after_step=...)), with Hooks from
    # pruneaudit.training.loop:
    #
    # def budget(self, workload):
    #     """As many steps as the workload gives to pruning."""
    #     return Budget(steps=workload.prune.steps)
    #
    # def prune(self, task):
    #     """Train, then keep the filters with the highest scores."""
    #     task.train()
    #     return {{layer.name: task.keep_highest(layer, self.score(layer, task)) for layer in task.layers}}
'''

_TEST = '''"""Does {stem}.py keep the contract of a pruning method?"""

import importlib.util
import sys
from pathlib import Path

from pruneaudit import check_method

PATH = Path(__file__).with_name("{stem}.py")


def load():
    """Import the file next to this one, wherever pytest was started."""
    spec = importlib.util.spec_from_file_location(PATH.stem, PATH)
    module = importlib.util.module_from_spec(spec)
    sys.modules[PATH.stem] = module
    spec.loader.exec_module(module)
    return module


def test_{stem}_keeps_the_contract():
    """All conformance checks, on a small network and data that come with pruneaudit."""
    check_method(load().{cls})
'''


def new_method(name: str, folder: Path) -> tuple[str, Path, Path]:
    """Write a method and its test, both or none.

    Args:
        name: Id, file stem or class name: ``my-pruner``, ``my_pruner`` and ``MyPruner`` are the same.
        folder: Where to; made where it is missing.

    Returns:
        Id of the method, path of its file, path of its test.

    Raises:
        ConfigError: The name cannot be used, a file is there already, or nothing can be written.
    """
    identity = method_id(name)
    stem = identity.replace("-", "_")
    cls = "".join(part.capitalize() for part in stem.split("_"))
    method, test = folder / f"{stem}.py", folder / f"test_{stem}.py"
    refuse_existing(folder, (method, test))
    problem = _problem(identity, stem, cls)
    if problem:
        raise ConfigError(f"method name '{name}': {problem}")
    texts = {method: _METHOD, test: _TEST}
    write_new(folder, {path: text.format(id=identity, stem=stem, cls=cls) for path, text in texts.items()})
    return identity, method, test


def refuse_existing(folder: Path, paths: Iterable[Path]) -> None:
    """Refuse to write what is there already.

    Raises:
        ConfigError: A file is there, or cannot be.
    """
    try:
        for path in paths:
            if path.exists():
                raise ConfigError(f"{path} is there already; choose another name, or another folder with --to")
    except OSError as error:
        raise ConfigError(f"{folder}: {error.strerror}; choose another folder with --to") from None


def write_new(folder: Path, texts: Mapping[Path, str]) -> None:
    """Write files that are not there yet, all or none.

    Args:
        folder: Where they are; made where it is missing.
        texts: What is in each.

    Raises:
        ConfigError: One of them cannot be written.
    """
    written: list[Path] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for path, text in texts.items():
            with path.open("x", encoding="utf-8") as file:
                written.append(path)
                file.write(text)
    except BaseException as error:
        for path in written:
            path.unlink()
        if isinstance(error, OSError):
            raise ConfigError(f"{folder}: {error.strerror}; choose another folder with --to") from None
        raise


def _problem(identity: str, stem: str, cls: str) -> str | None:
    """Why a name cannot be selected, imported or told from others, and what to do; None where it can."""
    if not _NAME.fullmatch(identity):
        return "use letters, digits, '-' and '_' only, a letter first"
    if keyword.iskeyword(stem):
        return "it is a word of Python's own; choose another"
    source = Catalog().methods.get(identity)
    if source is not None:
        return f"{source.path or source.target} is method '{identity}' already; choose another"
    if is_scratch(identity):
        return "'scratch-…' is kept for arms that train from random weights; choose another"
    if importlib.util.find_spec(stem) is not None:
        # pytest puts the folder of a test first on the path.
        return f"a file {stem}.py would hide the installed module '{stem}'; choose another"
    if cls in pruneaudit.__all__:
        return f"pruneaudit has a {cls} of its own; choose another"
    return None
