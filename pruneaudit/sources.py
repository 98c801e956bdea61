"""Code that users bring: how it is named, imported, and told from an edited version. Imports no torch.

A spec is ``file.py`` or ``file.py:name``, relative to the folder of whoever states it, or ``package.module:name``.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import io
import os
import sys
import sysconfig
import threading
import tokenize
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache, lru_cache
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
    def may_read(self) -> bool:
        """Whether it could read files when it is imported or created; told from its source, without running it."""
        path = self.file
        return path is not None and any(map(_may_read, own_files(path, self.module)))

    @property
    def digest(self) -> str:
        """SHA-256 of the source: of the file alone where it imports and reads nothing of its own, else of all of that.

        Python files count by what they say (:func:`code_digest`), others by their bytes. What it reads was heard while
        it was imported and created (:func:`listening`); environment variables count where it names them literally and
        they are set.
        """
        path = self.file
        if path is None:
            return hashlib.sha256(str(self).encode()).hexdigest()
        files = own_files(path, self.module)
        read = sorted({data for file in files for data in _read_by.get(file, ()) if data.is_file()} - set(files))
        parts = [code_digest(one.read_bytes()) for one in files]
        parts += [file_digest(one) for one in read]
        names = sorted({name for file in files for name in _variables(file)})
        # Those of pytest change with every test: rules on what a method does see to that.
        parts += [f"{name}={os.environ[name]}" for name in names if name in os.environ and name[:7] != "PYTEST_"]
        return parts[0] if len(parts) == 1 else hashlib.sha256("".join(parts).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file, which may be larger than memory."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


#: Names through which code may see its own text.
_SEES_ITSELF = frozenset({"__doc__", "__file__", "inspect", "getdoc", "getsource", "linecache", "tokenize"})


def code_digest(content: bytes) -> str:
    """SHA-256 of what a Python file says: of its text without comments, docstrings, blank lines and trailing spaces.

    It is the same under any version of Python, which a syntax tree's text is not. Of a file that names what shows it
    its own text (``__doc__``, ``inspect``), or that cannot be parsed, the bytes count.
    """
    with suppress(SyntaxError, ValueError, tokenize.TokenError):
        content = _said(content.decode()).encode()
    return hashlib.sha256(content).hexdigest()


def _said(text: str) -> str:
    """The text of a Python file without what says nothing to Python.

    Raises:
        SyntaxError: It is no Python, or names what shows it its own text.
    """
    tree = _tree(text.encode())
    lines = [line.rstrip("\r\n") for line in io.StringIO(text)]
    gone: list[tuple[tuple[int, int], tuple[int, int]]] = []
    whole: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.NAME and token.string in _SEES_ITSELF:
            raise SyntaxError("it may see its own text")
        if token.type == tokenize.COMMENT:
            gone.append((token.start, token.end))
        elif token.end[0] > token.start[0]:
            # Blank lines and trailing spaces within a string are part of it.
            whole.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                start, end = (first.lineno, first.col_offset), (first.end_lineno or 0, first.end_col_offset or 0)
                # Offsets of a tree count bytes.
                gone.append(((start[0], _letters(lines, *start)), (end[0], _letters(lines, *end))))
    for (first_line, start_column), (last_line, end_column) in sorted(gone, reverse=True):
        head, tail = lines[first_line - 1][:start_column], lines[last_line - 1][end_column:]
        lines[first_line - 1 : last_line] = [head + tail, *[""] * (last_line - first_line)]
        whole.difference_update(range(first_line, last_line + 1))
    kept = ((line if number in whole else line.rstrip()) for number, line in enumerate(lines, 1))
    return "\n".join(line for number, line in enumerate(kept, 1) if line or number in whole)


def _letters(lines: Sequence[str], line: int, offset: int) -> int:
    """Letters of a line before an offset in bytes."""
    return len(lines[line - 1].encode()[:offset].decode())


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


@contextmanager
def listening() -> Iterator[None]:
    """Note which files a user's code opens for reading meanwhile: they are part of what it does.

    Those count that lie in the folder of the file that opens them, or below. Readers that are no Python (safetensors,
    say) are not heard, nor is what a module of a package read before anybody listened.
    """
    global _listeners
    _hear()
    with _counting:
        _listeners += 1
    try:
        yield
    finally:
        with _counting:
            _listeners -= 1


def heard_by() -> dict[Path, set[Path]]:
    """Files that each file's code was heard to read, both absolute."""
    return {reader: set(found) for reader, found in _read_by.items()}


def hear_of(read: Mapping[str, Iterable[str]], of: Collection[Path]) -> None:
    """Learn what was heard in another process, see :func:`heard_by`.

    Args:
        read: What was heard.
        of: Files that the other process may speak for: whoever runs there could make anybody's code another one.
    """
    for reader, found in ((Path(reader), map(Path, found)) for reader, found in read.items()):
        if reader in of:
            _read_by.setdefault(reader, set()).update(data for data in found if reader.parent in data.parents)


#: Files that each file's code read, both absolute.
_read_by: dict[Path, set[Path]] = {}
_listeners = 0
_counting = threading.Lock()


@cache
def _hear() -> None:
    """Hear of opened files from now on: an audit hook stays as long as its process."""

    def heard(event: str, arguments: tuple[Any, ...]) -> None:
        if not _listeners or event != "open" or not isinstance(arguments[0], str | bytes | os.PathLike):
            return
        mode, flags = arguments[1], arguments[2]
        if any(letter in mode for letter in "wax+") if isinstance(mode, str) else flags & (os.O_WRONLY | os.O_RDWR):
            return
        try:
            data = Path(os.fsdecode(arguments[0])).resolve()
        except (OSError, ValueError):
            return  # whoever opens it will see
        if data.suffix in (".py", ".pyc"):
            return  # what is imported is found without running it
        frame = sys._getframe(1)
        while frame is not None:
            # A name that compiled code was given: a path, or something like <frozen os>.
            reader = Path(frame.f_code.co_filename)
            if reader.is_absolute() and (found := reader.resolve()).parent in data.parents and _is_own(found, None):
                _read_by.setdefault(found, set()).add(data)
                return
            frame = frame.f_back  # type: ignore[assignment]

    sys.addaudithook(heard)


def _variables(file: Path) -> Iterator[str]:
    """Environment variables that a file names: ``os.environ["X"]``, ``os.environ.get("X")``, ``os.getenv("X")``."""
    for node in ast.walk(_parsed(file)):
        if isinstance(node, ast.Subscript) and _ends_in(node.value, "environ"):
            name: ast.expr | None = node.slice
        elif isinstance(node, ast.Call) and (
            _ends_in(node.func, "getenv")
            or (isinstance(node.func, ast.Attribute) and _ends_in(node.func.value, "environ"))
        ):
            name = next(iter(node.args), None)
        else:
            continue
        if isinstance(name, ast.Constant) and isinstance(name.value, str):
            yield name.value


def _may_read(file: Path) -> bool:
    """Whether a file uses more than what cannot read, or names what can."""
    for node in ast.walk(_parsed(file)):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and not node.level:
            modules = [str(node.module)]
        else:
            modules = []
        if any(module not in _QUIET and module.partition(".")[0] not in _QUIET for module in modules):
            return True
        named = [node.id] if isinstance(node, ast.Name) else [node.attr] if isinstance(node, ast.Attribute) else []
        named += [alias.name for alias in node.names] if isinstance(node, ast.ImportFrom) else []
        if any(name.startswith(_READERS) and name != "load_state_dict" for name in named):
            return True
    return False


#: Modules with nothing that reads a file, but for names that begin so.
_QUIET = frozenset(
    {"__future__", "abc", "collections", "copy", "dataclasses", "enum", "functools", "itertools", "math", "numbers"}
    | {"operator", "random", "statistics", "typing", "torch", "torch_pruning", "sklearn.linear_model", "pruneaudit"}
)
_READERS = ("open", "load", "read", "from_file", "hub", "exec", "eval", "__import__")


def _ends_in(node: ast.expr, name: str) -> bool:
    return name == (node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", None))


def _parsed(file: Path) -> ast.Module:
    """Syntax tree of a file; empty where it has none."""
    try:
        return _tree(file.read_bytes())
    except (SyntaxError, ValueError):
        return ast.Module([], [])


@lru_cache(maxsize=256)
def _tree(content: bytes) -> ast.Module:
    """Syntax tree of a file's content, which is asked for several times; not to be changed.

    Raises:
        SyntaxError: It has none.
    """
    return ast.parse(content)


def own_files(path: Path, module: str = "") -> list[Path]:
    """A file and all that it imports, directly or not, of its author's own: what no installed package brings.

    Of a module in an installed package, its own package counts as its author's; not so of this project, whose version
    and numerics are parts of every run, and whose edits elsewhere change nothing of what the module supplies.

    Args:
        path: The file.
        module: Its dotted name, where it has one.

    Returns:
        The file first, then the others in a fixed order.
    """
    path = path.resolve()
    folders = [path.parent, *(Path(entry or ".").resolve() for entry in sys.path)]
    root = path.parents[module.count(".")] if module else None
    home = None if root is None or _PACKAGE in path.parents else root / module.split(".")[0]
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
    tree = _parsed(file)
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
