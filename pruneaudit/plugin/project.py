"""Which folder is the project: where pytest's own configuration is, or where the command is given.

Pytest looks for its root before plugins are loaded, and takes the value of an option that it does not know yet
(``--audit-data-root DIR``) for a path of tests. Its root, its configuration and its cache could so be those of a folder
of data. With ``=`` between option and value that cannot happen: a session whose root depends on such a value is
therefore started again, with the same arguments so written.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from fnmatch import fnmatch
from pathlib import Path

import pytest


def joined(arguments: Sequence[str], options: Collection[str]) -> list[str]:
    """Arguments of a command line with the values of some options behind ``=``."""
    words = iter(arguments)
    found: list[str] = []
    for word in words:
        if word == "--":
            return [*found, word, *words]
        value = next(words, None) if word in options else None
        found.append(word if value is None else f"{word}={value}")
    return found


def misled(config: pytest.Config) -> bool:
    """Whether pytest found another root, or another configuration, than from the paths of tests alone."""
    option = config.option
    try:
        from _pytest.config.findpaths import determine_setup

        root, file, *_ = determine_setup(
            inifile=option.inifilename,
            override_ini=option.override_ini,
            args=option.file_or_dir,
            rootdir_cmd_arg=option.rootdir or None,
            invocation_dir=config.invocation_params.dir,
        )
    except (ImportError, TypeError, AttributeError):
        return True  # another pytest: to start again is right as well, only slower
    return (root, file) != (config.rootpath, config.inipath)


def project(config: pytest.Config) -> Path:
    """The folder below which a session's ledger and reports are, unless told otherwise."""
    here = config.invocation_params.dir
    root = config.rootpath
    told = config.inipath is not None or config.option.rootdir or (root / "setup.py").is_file()
    return root if told else here


def from_here(config: pytest.Config) -> None:
    """Read folders on the command line from where it was typed, as pytest reads its own; others are the project's."""
    typed = {str(argument).partition("=")[0] for argument in config.invocation_params.args}
    for name in ("audit_ledger", "audit_from", "audit_baseline", "audit_report"):
        if f"--{name.replace('_', '-')}" in typed:
            setattr(config.option, name, str(config.invocation_params.dir / getattr(config.option, name)))


def hides(config: pytest.Config) -> str | None:
    """Which setting of the project keeps pytest from finding the suite; None: none does."""
    for name, ours in (("python_files", "test_cells.py"), ("python_functions", "test_cell")):
        patterns = config.getini(name)
        begins = name == "python_functions" and ours.startswith(tuple(patterns))
        if not begins and not any(fnmatch(ours, pattern) for pattern in patterns):
            return f"{name} = {' '.join(patterns)} leaves out the suite; add test_* to it, or give -o {name}='test_*'"
    return None


def above(folder: Path, path: str | Path) -> Path | None:
    """The nearest of the folders above that holds something under this relative path; None: there is none."""
    return next((parent / path for parent in folder.parents if (parent / path).exists()), None)
