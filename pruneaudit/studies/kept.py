"""What studies measure beside runs is kept in the ledger, part by part. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pruneaudit.errors import ConfigError
from pruneaudit.ledger.store import Ledger


def kept(
    ledger: Ledger, study: str, folder: str, name: str, what: str, measure: Callable[[], dict[str, Any]]
) -> dict[str, Any]:
    """A part of what is measured: from the ledger, where it is there; else measured now, and kept.

    Args:
        ledger: The ledger.
        study: Name of the study, for the error.
        folder: Where the ledger keeps it: everything that can change a number is in the name.
        name: What the ledger calls it there.
        what: What it is, in a few words, for the error.
        measure: Measures it.

    Raises:
        ConfigError: It is not there, and the ledger is one that is only judged.
    """
    if not ledger.writable:
        stored = ledger.part(folder, name)
        if stored is None:
            raise ConfigError(
                f"study {study}: {what}: not in {ledger.root} (or of another version, budget or precision); measure it "
                "there first, without --audit-from"
            )
        return stored
    with ledger.population_lock(folder, name):
        found = ledger.part(folder, name)
        if found is None:
            found = measure()
            ledger.save_part(folder, name, found)
    return found
