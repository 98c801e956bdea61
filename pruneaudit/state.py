"""Where this user's own things are kept, apart from any project: keys, caches, data, what its machine told."""

from __future__ import annotations

import os
from pathlib import Path

#: Environment variable that names another folder for caches.
CACHE_VARIABLE = "PRUNEAUDIT_CACHE"
#: And the one that names the folder of datasets.
DATA_VARIABLE = "PRUNEAUDIT_DATA"


def state_folder() -> Path:
    """The folder, as the XDG base directory specification has it; it need not be there."""
    state = os.environ.get("XDG_STATE_HOME")
    return (Path(state) if state else Path("~/.local/state").expanduser()) / "pruneaudit"


def cache_folder() -> Path:
    """Where what can be made anew is kept: ``$PRUNEAUDIT_CACHE``, else the user's cache folder."""
    chosen = os.environ.get(CACHE_VARIABLE)
    if chosen:
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "pruneaudit"


def data_root(option: str | None) -> Path | None:
    """The data folder: the option, else the environment variable, else none."""
    chosen = option or os.environ.get(DATA_VARIABLE)
    return Path(chosen).expanduser() if chosen else None
