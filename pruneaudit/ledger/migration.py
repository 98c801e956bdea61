"""Reads what older versions wrote: one pure step for each version of the layout. No file is ever rewritten.

A change of what a record holds raises ``records.SCHEMA_VERSION`` and adds a step here, so that no ledger becomes
worthless. A field with a default that says of old records what is true of them needs no more than an empty step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pruneaudit.ledger.records import SCHEMA_VERSION

#: Content of a JSON file.
Content = dict[str, Any]


class NewerError(Exception):
    """A file of a layout that this version does not know: a newer one wrote it."""

    def __init__(self, version: object) -> None:
        super().__init__(
            f"written with schema version {version}, this pruneaudit reads {OLDEST} to {SCHEMA_VERSION}; "
            "update pruneaudit, or choose another folder with --audit-ledger"
        )


def _from_2(content: Content) -> Content:
    """Until then accuracy was the only metric, and nothing was measured beside it: what the defaults say.

    And a run took what the processor does best; nobody noted what that was.
    """
    return content


#: What leads from a version to the next.
_STEPS: dict[int, Callable[[Content], Content]] = {2: _from_2}
#: The oldest layout that can be read.
OLDEST = min(_STEPS)


def check(version: object) -> None:
    """Refuse a layout that cannot be read.

    Raises:
        NewerError: It is none of the versions until now.
    """
    if not isinstance(version, int) or not OLDEST <= version <= SCHEMA_VERSION:
        raise NewerError(version)


def migrated(content: Content) -> Content:
    """A record of any layout until now, in today's.

    Args:
        content: A run, a cell or a failure, as its file has it; it is left as it is.

    Raises:
        NewerError: A newer version wrote it.
    """
    # Failures did not tell their version before version 3.
    version = content.get("schema_version", OLDEST)
    check(version)
    for step in range(version, SCHEMA_VERSION):
        content = _STEPS[step](dict(content))
    return {**content, "schema_version": SCHEMA_VERSION}
