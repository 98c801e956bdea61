"""Workloads that users bring: a file, a folder of files, or an attribute of a module."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

from pruneaudit.catalog.names import method_id
from pruneaudit.errors import ConfigError, one_line
from pruneaudit.schema import read_toml
from pruneaudit.workloads.schema import Workload, placed, read_workload

WORKLOADS_GROUP = "pruneaudit.workloads"
_EXPECTED = "expected 'file.toml', a folder of them, or 'package.module:attribute'"


@dataclass(frozen=True)
class Brought:
    """A workload and where it was found, for messages."""

    workload: Workload
    where: str


def brought(spec: str, told: str = "") -> list[Brought]:
    """Workloads of a spec, as ``--audit-workload`` takes it.

    Args:
        spec: ``file.toml``, a folder, or ``package.module:attribute``: a path of either, a workload, or a mapping
            with what its file would hold.
        told: How messages name who gave it; empty: the option.

    Raises:
        ConfigError: Nothing is there, or it is no workload.
    """
    told = told or f"--audit-workload {spec}"
    path = Path(spec).expanduser()
    if spec and (spec.endswith(".toml") or path.is_dir()):
        return _in_path(path, told)
    module, colon, attribute = spec.partition(":")
    if not (colon and module and attribute):
        raise ConfigError(f"{told}: {_EXPECTED}")
    return _in_module(module, attribute, method_id(attribute.rpartition(".")[2]), told)


def installed(entry: EntryPoint) -> list[Brought]:
    """Workloads of an entry point of an installed package; one without a name of its own has the entry point's.

    Raises:
        ConfigError: Nothing is there, or it is no workload.
    """
    told = f"entry point '{entry.name}' of {WORKLOADS_GROUP}"
    if not entry.attr:
        raise ConfigError(f"{told}: expected 'package.module:attribute' (got '{entry.value}')")
    return _in_module(entry.module, entry.attr, entry.name, told)


def _in_path(path: Path, told: str) -> list[Brought]:
    if path.is_dir():
        files = sorted(file for file in path.glob("*.toml") if not file.name.startswith("_"))
        if not files:
            raise ConfigError(f"{told}: no TOML file in {path}")
    elif path.is_file():
        files = [path]
    else:
        raise ConfigError(f"{told}: no such file")
    return [Brought(_from_toml(file), str(file)) for file in files]


def _from_toml(path: Path) -> Workload:
    return read_workload(read_toml(path), method_id(path.stem), path, path.resolve().parent)


def _in_module(module_name: str, attribute: str, name: str, told: str) -> list[Brought]:
    try:
        module = importlib.import_module(module_name)
        value: Any = module
        for part in attribute.split("."):
            value = getattr(value, part)
    except Exception as error:
        raise ConfigError(f"{told}: cannot be imported: {one_line(error)}") from error
    folder = Path(getattr(module, "__file__", None) or ".").resolve().parent
    where = f"{module_name}:{attribute}"
    if isinstance(value, str | Path):
        return _in_path(folder / value, f"{told}: {folder / value}")
    if isinstance(value, Workload):
        return [Brought(placed(value, value.folder or folder, Path(where)), where)]
    if isinstance(value, Mapping):
        return [Brought(read_workload(value, name, Path(where), folder), where)]
    raise ConfigError(f"{told}: expected a path, a Workload or a mapping, not {type(value).__name__}")
