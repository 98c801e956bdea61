"""Code that users bring: how it is named, imported, and told from an edited version. Imports no torch.

A spec is ``file.py`` or ``file.py:name``, relative to the folder of whoever states it, or ``package.module:name``.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pruneaudit.errors import ConfigError

_PACKAGE = Path(__file__).resolve().parent
#: Folders of installed packages and of Python itself: what is imported from there is nobody's own code.
_INSTALLED = tuple(
    Path(folder).resolve()
    for folder in {sysconfig.get_path(kind) for kind in ("stdlib", "platstdlib", "purelib", "platlib")}
)


@dataclass(frozen=True)
class Source:
    """Where something is defined.

    Attributes:
        path: Python file, absolute; None where a module is named.
        module: Dotted name of the module; empty where there is a file.
        name: What it is called there; empty: whatever the file defines.
    """

    path: Path | None
    module: str
    name: str

    @classmethod
    def parse(cls, spec: str, folder: Path) -> Source:
        """The source that a spec names.

        Args:
            spec: ``file.py``, ``file.py:name`` or ``package.module:name``.
            folder: Where relative paths start.

        Raises:
            ConfigError: It is no such spec, or there is no such file.
        """
        where, colon, name = spec.rpartition(":")
        # A drive letter is no file, and a file may be named alone.
        where, name = (where, name) if colon and (where.endswith(".py") or not spec.endswith(".py")) else (spec, "")
        if where.endswith(".py"):
            path = (folder / Path(where).expanduser()).resolve()
            if not path.is_file():
                raise ConfigError(f"{spec}: no such file ({path})")
            return cls(path, "", name)
        if not (where and name and all(part.isidentifier() for part in where.split("."))):
            raise ConfigError(f"'{spec}': expected 'file.py:name' or 'package.module:name'")
        return cls(None, where, name)

    def __str__(self) -> str:
        """As it was written, with the whole path of a file."""
        return ":".join(part for part in (str(self.path or self.module), self.name) if part)

    def load(self, anew: bool = False) -> Any:
        """What is defined there: the named object, or the module.

        Args:
            anew: Import a file once more, whatever was imported before.

        Raises:
            AttributeError: Nothing of that name is defined there.
            Exception: Whatever importing it raises.
        """
        if self.path is not None and str(self.path.parent) not in sys.path:
            # So that it finds the files beside it; last, so that they hide nothing.
            sys.path.append(str(self.path.parent))
        module = importlib.import_module(self.module) if self.path is None else load_file(self.path, anew)
        found = module
        for part in self.name.split(".") if self.name else ():
            found = getattr(found, part)
        return found

    @property
    def file(self) -> Path | None:
        """The file that is read, found without importing it where there is one; None for compiled modules."""
        return self.path or next(iter(_files_of(self.module, [Path(entry or ".") for entry in sys.path])), None)

    def imports(self, package: str) -> bool:
        """Whether the source, or what it imports of its own, imports a package."""
        files = [] if self.file is None else own_files(self.file, self.module)
        return any(dotted.split(".")[0] == package for file in files for dotted in _imported(file, ""))

    @property
    def digest(self) -> str:
        """SHA-256 of the source: of the file alone where it imports nothing of its own, else of all that it does."""
        path = self.file
        if path is None:
            return hashlib.sha256(str(self).encode()).hexdigest()
        files = own_files(path, self.module)
        if len(files) == 1:
            return hashlib.sha256(path.read_bytes()).hexdigest()
        return hashlib.sha256(
            "".join(hashlib.sha256(one.read_bytes()).hexdigest() for one in files).encode()
        ).hexdigest()


def load_file(path: Path, anew: bool = False) -> Any:
    """Import a file under a name that no other module has; ``anew``: once more, whatever was imported before.

    Raises:
        ConfigError: It is no Python file.
        Exception: Whatever it raises.
    """
    content = path.read_bytes()
    identity = hashlib.sha256(str(path.resolve()).encode() + content).hexdigest()[:8]
    name = f"pruneaudit_method_{path.stem}_{identity}" + ("_again" if anew else "")
    if name in sys.modules and not anew:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        # Compiled from what was read: a bytecode cache may miss an edit within one second.
        exec(compile(content, str(path), "exec"), module.__dict__)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def own_files(path: Path, module: str = "") -> list[Path]:
    """A file and all that it imports, directly or not, of its author's own: what no installed package brings.

    Of a module in an installed package, its own package counts as its author's.

    Args:
        path: The file.
        module: Its dotted name, where it has one.

    Returns:
        The file first, then the others in a fixed order.
    """
    path = path.resolve()
    folders = [path.parent, *(Path(entry or ".").resolve() for entry in sys.path)]
    root = path.parents[module.count(".")] if module else None
    home = None if root is None else root / module.split(".")[0]
    found: dict[Path, None] = {}
    waiting = [(path, module)]
    while waiting:
        file, name = waiting.pop()
        if file in found:
            continue
        found[file] = None
        for wanted in _imported(file, name):
            for other in _files_of(wanted, [file.parent, *folders] if not name else folders):
                if _is_own(other, home):
                    inner = (
                        ".".join(other.relative_to(root).with_suffix("").parts)
                        if root and root in other.parents
                        else ""
                    )
                    waiting.append((other, inner.removesuffix(".__init__")))
    others = sorted(file for file in found if file != path)
    return [path, *others]


def _is_own(file: Path, home: Path | None) -> bool:
    if home is not None and (home in file.parents or file == home.with_suffix(".py")):
        return True
    if _PACKAGE in file.parents or any(folder in file.parents for folder in _INSTALLED):
        return False
    # Of another environment on the path: the system's under a virtual one, a user's own, Debian's.
    return not {"site-packages", "dist-packages"} & set(file.parts)


def _imported(file: Path, module: str) -> Iterator[str]:
    """Dotted names that a file imports, names of a module's objects among them."""
    try:
        tree = ast.parse(file.read_bytes())
    except (SyntaxError, ValueError):
        return
    package = module.split(".") if file.name == "__init__.py" else module.split(".")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}".lstrip(".") for alias in node.names)


def _files_of(dotted: str, folders: list[Path]) -> list[Path]:
    """Files that importing a dotted name runs, the module's own first; its last part may be an object's name."""
    parts = dotted.split(".")
    for folder in folders:
        files: list[Path] = []
        for count in range(1, len(parts) + 1):
            place = folder.joinpath(*parts[:count])
            file = next((one for one in (place / "__init__.py", place.with_suffix(".py")) if one.is_file()), None)
            if file is None and not place.is_dir():
                break
            files = [file.resolve(), *files] if file is not None else files
        if files:
            return files
    return []
