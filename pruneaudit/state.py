"""Where this user's own things are kept, apart from any project: keys of ledgers, what the machine told of itself."""

from __future__ import annotations

import os
from pathlib import Path


def state_folder() -> Path:
    """The folder, as the XDG base directory specification has it; it need not be there."""
    state = os.environ.get("XDG_STATE_HOME")
    return (Path(state) if state else Path("~/.local/state").expanduser()) / "pruneaudit"
