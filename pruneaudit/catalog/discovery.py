"""Finds what there is to run: methods, protocols and workloads, in a checkout and in an installed wheel alike.

Discovery reads file names only; a method is imported when a run needs it, so collecting cases imports no torch.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import importlib
import re
import shlex
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Literal

from pruneaudit.catalog.claims import PublishedTable, load_table
from pruneaudit.catalog.courses import Course
from pruneaudit.catalog.names import CORE_METHODS, CROSS_PREFIX, FOUND_BY, finder, method_id
from pruneaudit.catalog.protocols import Protocol, Study, load_protocol, load_study
from pruneaudit.catalog.workloads import WORKLOADS_GROUP, Brought, brought, installed
from pruneaudit.errors import ConfigError, MethodError, one_line, unknown
from pruneaudit.schema import read_toml
from pruneaudit.sources import Source, listening, load_file
from pruneaudit.workloads.schema import Workload, load_workload

ENTRY_POINT_GROUP = "pruneaudit.methods"
#: Which methods run in a process of their own.
Isolation = Literal["always", "foreign", "never"]
_PACKAGE = Path(__file__).resolve().parents[1]
_CONTRACT = "pruneaudit.method.contract.Method"
_ID = re.compile(r"[a-z0-9][a-z0-9.-]*")


def content_root() -> Path:
    """Folder that holds ``suite/``, ``methods/`` and ``protocols/``: the checkout, else the installed package."""
    checkout = _PACKAGE.parent
    return checkout if (checkout / "protocols" / "workloads").is_dir() else _PACKAGE


def suite_arguments() -> list[str]:
    """What pytest takes to run the suite: its folder in a checkout, its module where it is installed.

    With a path into site-packages pytest would look for its root directory, and we for the ledger, over there.
    """
    root = content_root()
    return ["--pyargs", "pruneaudit.suite"] if root == _PACKAGE else [str(root / "suite")]


def as_path(argument: str) -> str:
    """Where a module of the suite lies in a checkout, for what pytest takes with ``--pyargs``; else the argument.

    Args:
        argument: ``pruneaudit.suite``, ``pruneaudit.suite.test_cells::test_cell``, or another.
    """
    module, colons, test = argument.partition("::")
    package, *names = module.split(".")
    root = content_root()
    if package != "pruneaudit" or names[:1] != ["suite"] or root == _PACKAGE:
        return argument
    path = root.joinpath(*names)
    return f"{path if path.is_dir() else path.with_suffix('.py')}{colons}{test}"


def suite_command() -> str:
    """What runs the suite from here, for people."""
    *options, where = suite_arguments()
    path = Path(where)
    if not options and path.is_relative_to(Path.cwd()):
        where = str(path.relative_to(Path.cwd()))
    return shlex.join(["pytest", *options, where])


def cell_test() -> list[str]:
    """What pytest takes to measure one cell from here, but for its id in brackets."""
    *options, _ = suite_arguments()
    return [*options, "pruneaudit.suite.test_cells::test_cell"] if options else ["suite/test_cells.py::test_cell"]


@dataclass(frozen=True)
class MethodSource:
    """Where a method's class can be found, without importing it.

    Attributes:
        name: Id of the method, such as ``"greg-1"``.
        path: Python file that defines it, or None.
        target: ``package.module:Class`` where there is no file.
        attribute: Class in the file, where it was named; empty: the only Method that the file defines.
        arguments: Hyper-parameters that were given, by name.
        found_by: For a scratch arm: the method whose architecture it trains; None: that of uniform pruning.
        outside: Gives what the method says of itself, from a process of its own; None: it is imported here.
    """

    name: str
    path: Path | None = None
    target: str | None = None
    found_by: str | None = None
    attribute: str = ""
    arguments: tuple[tuple[str, Any], ...] = ()
    outside: Callable[[MethodSource], Any] | None = field(default=None, compare=False, repr=False)

    @cached_property
    def cls(self) -> Any:
        """The method's class.

        Raises:
            MethodError: It cannot be imported, or defines no single Method.
        """
        if self.outside is not None:
            return self.outside(self)
        where = self.path or self.target
        try:
            with listening():
                if self.path is not None:
                    cls: Any = _method_class(_module(self.path), self.path, self.attribute)
                else:
                    module_name, _, attribute = str(self.target).partition(":")
                    cls = getattr(importlib.import_module(module_name), attribute)
        except MethodError:
            raise
        except Exception as error:
            raise MethodError(f"method '{self.name}' cannot be imported from {where}: {one_line(error)}") from error
        if not (_is_method(cls)):
            raise MethodError(
                f"{where} is no Method; derive it from pruneaudit.FilterScore or pruneaudit.TrainedMethod"
            )
        return cls

    @property
    def built_in(self) -> bool:
        """Whether it is one of this project's own."""
        return self.path is not None and self.path.is_relative_to(content_root() / "methods")

    def begins(self) -> str:
        """File and line at which it decides, such as ``mine.py:12``; empty where it cannot be imported."""
        try:
            if self.outside is not None:
                return str(self.cls.begins)
            functions = [vars(self.cls).get(name) for name in ("score", "prune", "scores", "__init__")]
        except MethodError:
            return ""
        codes = [code for function in functions if (code := getattr(function, "__code__", None)) is not None]
        return f"{codes[0].co_filename}:{codes[0].co_firstlineno}" if codes else str(self.path or self.target)

    def create(self) -> Any:
        """A fresh instance, so that nothing one run leaves behind can reach the next."""
        try:
            with listening():
                method = self.cls(**dict(self.arguments))
            # Of a frozen dataclass as well.
            object.__setattr__(method, "name", self.name)
        except MethodError:
            raise
        except Exception as error:
            raise MethodError(f"method '{self.name}' cannot be created: {one_line(error)}") from error
        return method

    def anew(self) -> MethodSource:
        """The same method from a module that is imported once more, so that it remembers nothing.

        A method that comes from an installed package is the same again: its module belongs to others, too.
        """
        if self.path is None or self.outside is not None:
            return self
        again = replace(self)
        vars(again)["cls"] = _method_class(_module(self.path, anew=True), self.path, self.attribute)
        return again

    @property
    def code(self) -> Source:
        """The code that it is named by."""
        if self.path is None:
            module, _, attribute = str(self.target).partition(":")
            return Source(None, module, attribute)
        return Source(self.path.resolve(), "", "")

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the source that defines the method, and of what it reads: an edited method is another method.

        One of this project's keeps the digest under which its numbers were first measured, see :func:`shipped`.
        """
        # A class may be handed on by its package and defined in another file of it.
        target = Source(None, self.cls.__module__, self.cls.__name__) if self.path is None else self.code
        if target.may_read:
            # Most cannot, so that judging their runs imports no torch. What cannot be created says so elsewhere.
            with contextlib.suppress(Exception):
                self.create()
        return _identities().get(target.digest, target.digest)


@cache
def shipped() -> dict[str, dict[str, str]]:
    """This project's methods as they are released, by file name.

    Returns:
        ``file``: SHA-256 of its bytes; ``code``: digest of what it says (:func:`pruneaudit.sources.code_digest`);
        ``identity``: the digest in runs. The last two differ where the file was edited and no number changed.
    """
    return dict(read_toml(content_root() / "methods" / "shipped.toml"))


@cache
def _identities() -> dict[str, str]:
    """Digest in runs, by digest of the code."""
    return {each["code"]: each["identity"] for each in shipped().values()}


def _is_method(value: object) -> bool:
    """Whether something is a class that keeps the contract, known by name: the contract stands on the catalogue."""
    return isinstance(value, type) and any(f"{base.__module__}.{base.__name__}" == _CONTRACT for base in value.__mro__)


def _module(path: Path, anew: bool = False) -> Any:
    """Import a method's file; a user's one finds the files beside it, however pytest was started."""
    folder = str(path.parent)
    if folder not in sys.path and not path.is_relative_to(content_root() / "methods"):
        # Last, so that they hide nothing.
        sys.path.append(folder)
    return load_file(path, anew)


def _method_class(module: Any, path: Path, name: str = "") -> Any:
    """The one Method that a module defines, or the one of some name."""
    found = [value for value in vars(module).values() if _is_method(value) and value.__module__ == module.__name__]
    names = [value.__name__ for value in found]
    if name:
        if name not in names:
            raise MethodError(f"{path}: {unknown('method class', name, names)}")
        return found[names.index(name)]
    if len(found) != 1:
        several = f"; name one, as in {path.name}:{names[0]}" if found else ""
        raise MethodError(f"{path}: expected exactly one Method subclass, found {', '.join(names) or 'none'}{several}")
    return found[0]


#: ``file.py``, ``file.py:Class`` or ``package.module:Class``, and hyper-parameters in brackets.
_SPEC = re.compile(r"(?P<where>.+?\.py|[^:()]+)(?::(?P<attribute>\w+))?(?P<call>\(.*\))?", re.DOTALL)


def method_source(spec: str) -> MethodSource:
    """The method that a spec of ``--audit-method`` names, without importing it.

    Args:
        spec: ``file.py``, ``file.py:Class`` or ``package.module:Class``, each with hyper-parameters in brackets where
            they differ from their defaults: ``mine.py(strength=0.3)``.

    Raises:
        ConfigError: It is no such spec, or there is no such file.
    """
    parts = _SPEC.fullmatch(spec)
    where, attribute, call = parts.group("where", "attribute", "call") if parts else ("", None, None)
    arguments = _arguments(spec, call) if call else ()
    suffix = "".join(f"-{_slug(key)}-{_slug(value)}" for key, value in arguments)
    if where.endswith(".py"):
        path = Path(where).expanduser()
        if not path.is_file():
            raise ConfigError(f"--audit-method {spec}: no such file")
        name = method_id(attribute or path.stem) + suffix
        return MethodSource(name, path=path.resolve(), attribute=attribute or "", arguments=arguments)
    if not (where and attribute):
        raise ConfigError(
            f"--audit-method {spec}: expected 'file.py' or 'package.module:Class', with hyper-parameters as in "
            "'file.py:Class(strength=0.3)'"
        )
    return MethodSource(method_id(attribute) + suffix, target=f"{where}:{attribute}", arguments=arguments)


def _arguments(spec: str, call: str) -> tuple[tuple[str, Any], ...]:
    """Hyper-parameters in brackets: names and literals; nothing of it is run."""
    try:
        node = ast.parse(f"method{call}", mode="eval").body
        plain = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and not node.args
        if not isinstance(node, ast.Call) or not plain or any(one.arg is None for one in node.keywords):
            raise ValueError
        return tuple((str(one.arg), ast.literal_eval(one.value)) for one in node.keywords)
    except (SyntaxError, ValueError):
        raise ConfigError(
            f"--audit-method {spec}: hyper-parameters are names and literal values, as in (strength=0.3, mode='fast')"
        ) from None


def _slug(value: object) -> str:
    """A hyper-parameter as part of a name: what ``-k`` cannot select becomes a hyphen."""
    text = str(value).lower().replace("-", "minus-") if isinstance(value, int | float) else str(value).lower()
    return re.sub(r"[^a-z0-9.]+", "-", text).strip("-.") or "none"


def _check_name(kind: str, name: str) -> None:
    """Refuse a name that could not be selected, or that says something else."""
    if not _ID.fullmatch(name):
        raise ConfigError(f"{kind} name '{name}': use lower-case letters, digits, '.' and '-' only")
    if kind == "method" and (name == "all" or finder(name) is not None):
        said = "all methods" if name == "all" else f"the scratch arm of what '{finder(name)}' found"
        raise ConfigError(f"method name '{name}': it says {said}; choose another")


@dataclass
class Catalog:
    """Everything that can be run, by name.

    Attributes:
        root: Folder with ``methods/`` and ``protocols/``.
        extra_methods: Specs from ``--audit-method`` (:func:`method_source`).
        extra_workloads: Specs from ``--audit-workload``: ``file.toml``, a folder or ``package.module:attribute``.
        isolate: Which methods run in a process of their own: ``always`` all, ``foreign`` those that are not shipped,
            ``never`` none; None: none, and nothing is said of it.
        outside: Gives what an isolated method says of itself, see :class:`MethodSource`.
    """

    root: Path = field(default_factory=content_root)
    extra_methods: tuple[str, ...] = ()
    extra_workloads: tuple[str, ...] = ()
    isolate: Isolation | None = None
    outside: Callable[[MethodSource], Any] | None = None

    @cached_property
    def protocols(self) -> dict[str, Protocol]:
        """Protocols by name, from loosest to strictest as their names sort."""
        return {path.stem: load_protocol(path) for path in self._toml("protocols")}

    @cached_property
    def workloads(self) -> dict[str, Workload]:
        """Workloads by name: those of this project, then from installed packages, and the user's own.

        Raises:
            ConfigError: Two workloads share a name, or a name cannot be selected with ``-k``.
        """
        sources = [Brought(load_workload(path), str(path)) for path in self._toml("protocols/workloads")]
        for entry in sorted(entry_points(group=WORKLOADS_GROUP), key=lambda entry: entry.name):
            sources += installed(entry)
        found: dict[str, Brought] = {}
        for source in [*sources, *self._own_workloads]:
            name = source.workload.name
            _check_name("workload", name)
            if name in found and found[name] != source:
                raise ConfigError(
                    f"two workloads are called '{name}': {found[name].where} and {source.where}; rename one"
                )
            found[name] = source
        return {name: source.workload for name, source in found.items()}

    @cached_property
    def _own_workloads(self) -> list[Brought]:
        """Workloads that ``--audit-workload`` brought."""
        return [source for spec in self.extra_workloads for source in brought(spec)]

    @property
    def extra_workload_names(self) -> tuple[str, ...]:
        """Names of the workloads that ``--audit-workload`` brought."""
        return tuple(dict.fromkeys(source.workload.name for source in self._own_workloads))

    @cached_property
    def methods(self) -> dict[str, MethodSource]:
        """Methods by name: built in, from installed packages, and the user's own.

        Raises:
            ConfigError: Two methods share a name, or a name cannot be selected with ``-k``.
        """
        sources = [MethodSource(method_id(path.stem), path=path) for path in self._files("methods", ".py")]
        for entry in sorted(entry_points(group=ENTRY_POINT_GROUP), key=lambda entry: entry.name):
            sources.append(MethodSource(entry.name, target=entry.value))
        sources += [method_source(spec) for spec in self.extra_methods]
        found: dict[str, MethodSource] = {}
        for source in sources:
            _check_name("method", source.name)
            if source.name in found:
                raise ConfigError(
                    f"two methods are called '{source.name}': {found[source.name].path or found[source.name].target} "
                    f"and {source.path or source.target}; rename one"
                )
            found[source.name] = replace(source, outside=self.outside) if self.isolates(source) else source
        return dict(sorted(found.items()))

    def isolates(self, source: MethodSource) -> bool:
        """Whether a method runs in a process of its own."""
        return self.isolate == "always" or (self.isolate == "foreign" and not self.is_shipped(source))

    def is_shipped(self, source: MethodSource) -> bool:
        """Whether a method is one of this project's, as it was released: an edited one is anybody's."""
        if source.path is None or source.path.parent != self.root / "methods":
            return False
        known = shipped().get(source.path.name)
        return known is not None and known["file"] == hashlib.sha256(source.path.read_bytes()).hexdigest()

    @cached_property
    def studies(self) -> dict[str, Path]:
        """Files of the studies by name."""
        return {path.stem: path for path in self._toml("protocols/studies")}

    def study(self, choice: str) -> Study:
        """The study called so, or in the file called so."""
        if choice.endswith(".toml"):
            return load_study(Path(choice))
        if choice not in self.studies:
            raise unknown("study", choice, self.studies)
        return load_study(self.studies[choice])

    @cached_property
    def claims(self) -> dict[str, PublishedTable]:
        """Published tables by name.

        Raises:
            ConfigError: A file is no such table, or names a workload, method or protocol that there is not.
        """
        tables = {}
        for path in self._toml("protocols/published"):
            table = load_table(path)
            try:
                for point in table.points:
                    self.workload(point.workload)
                for row in table.rows:
                    # What no run of ours can match may name what there is not.
                    if not row.unlike:
                        self.method(row.method), self.protocol(row.protocol)
            except ConfigError as error:
                raise ConfigError(f"{path}: {error}") from None
            tables[path.stem] = table
        return tables

    @property
    def extra_names(self) -> tuple[str, ...]:
        """Names of the methods that ``--audit-method`` brought."""
        return tuple(method_source(spec).name for spec in self.extra_methods)

    def method(self, name: str) -> MethodSource:
        """The method called ``name``, or an error that names the nearest one.

        ``scratch-of-METHOD`` (and so for every scratch arm) trains the architecture that METHOD found.
        """
        found_by, arm = finder(name), name.partition(FOUND_BY)[0]
        if found_by is not None and arm in self.methods:
            return replace(self.methods[arm], name=name, found_by=self.method(found_by).name)
        if name not in self.methods:
            raise unknown("method", name, self.methods)
        return self.methods[name]

    def protocol(self, name: str) -> Protocol:
        """The protocol called ``name``, or an error that names the nearest one."""
        if name.startswith(CROSS_PREFIX):
            return self._cross_protocol(self.method(name.removeprefix(CROSS_PREFIX)).name)
        if name in self.protocols:
            return self.protocols[name]
        course = Course.parse(name)
        if course is None:
            raise unknown("protocol", name, self.protocols)
        # Whoever compares arms under it compares as strictly as S3.2 does.
        return self.protocols["s3.2"].model_copy(
            update={
                "name": name,
                "title": f"S3.2 with {course}",
                "source": "Wang et al. 2023 (arXiv 2301.05219), sec. 5 and appendix A",
                "retraining": "workload",
                "course": course,
            }
        )

    def _cross_protocol(self, method: str) -> Protocol:
        """S3.2 with a method's published recipe for every arm (the workload's where it has none, as in S2)."""
        return self.protocols["s3.2"].model_copy(
            update={
                "name": f"{CROSS_PREFIX}{method}",
                "title": f"S3.2 with the published recipe of {method} for every arm",
                "source": "Wang et al. 2023 (arXiv 2301.05219), sec. 6",
                "retraining": "method",
                "recipe_of": method,
            }
        )

    @property
    def strictness(self) -> tuple[str, ...]:
        """Protocols that compare pruning arms, from loosest to strictest."""
        return tuple(name for name in self._retraining if self.protocols[name].compare == "pruning")

    @property
    def _retraining(self) -> tuple[str, ...]:
        """Protocols that retrain: one that does not asks another question, and only where it is named."""
        return tuple(name for name, protocol in self.protocols.items() if protocol.retraining != "none")

    def workload(self, name: str) -> Workload:
        """The workload called ``name``, or an error that names the nearest one."""
        if name not in self.workloads:
            raise unknown("workload", name, self.workloads)
        return self.workloads[name]

    def select_methods(self, choice: str) -> tuple[str, ...]:
        """Names for ``core``, ``all`` or a comma-separated list, plus every ``--audit-method``."""
        if choice == "core":
            names = [name for name in CORE_METHODS if name in self.methods]
        elif choice == "all":
            names = list(self.methods)
        else:
            names = [self.method(name.strip()).name for name in choice.split(",") if name.strip()]
        return tuple(dict.fromkeys([*names, *self.extra_names]))

    def select_protocols(self, choice: str) -> tuple[str, ...]:
        """Names for ``all`` that retrain, or a comma-separated list."""
        if choice == "all":
            return self._retraining
        return tuple(dict.fromkeys(self.protocol(name.strip()).name for name in choice.split(",") if name.strip()))

    def _files(self, folder: str, suffix: str) -> list[Path]:
        directory = self.root / folder
        return sorted(path for path in directory.glob(f"*{suffix}") if not path.name.startswith("_"))

    def _toml(self, folder: str) -> list[Path]:
        return self._files(folder, ".toml")
