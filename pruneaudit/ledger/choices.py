"""What trains a workload's runs where nobody said it: chosen once for a ledger, and kept in it. Imports no torch."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import get_args

from pruneaudit.catalog.settings import RETIRED, Backend
from pruneaudit.ledger.records import RunSpec, Stage
from pruneaudit.schema import Frozen

#: Under which name a run's environment tells why its backend was chosen.
CHOSEN = "backend"
#: Settings that choices are made under each by itself, as those of a :class:`RunSpec` are called.
_SETTINGS = ("budget", "precision", "arithmetic")
_USUAL = {name: RunSpec.model_fields[name].default for name in (*_SETTINGS, "backend")}


class Choice(Frozen):
    """A backend, and why.

    Attributes:
        backend: What is asked to make the steps.
        why: In a sentence.
    """

    backend: Backend
    why: str


def choice_name(workload: str, budget: str, precision: str, arithmetic: str) -> str:
    """The name of a choice: results under other settings never meet in one table."""
    settings = zip(_SETTINGS, (budget, precision, arithmetic), strict=True)
    return "-".join([workload, *(value for name, value in settings if value != _USUAL[name])])


def made_by(folders: Iterable[str], workload: str, budget: str, precision: str, arithmetic: str) -> Backend | None:
    """What was asked to make the steps of a ledger's runs of a workload, as the names of their folders tell.

    Args:
        folders: Names, see :attr:`RunSpec.folder`.
        workload: The workload.
        budget: And the two below: settings of the runs.
        precision: See ``budget``.
        arithmetic: See ``budget``.

    Returns:
        The backend; of several the one that is first in the list of all, ``torch`` before all others and those that
        train no more behind them; None: there are no such runs.
    """
    known = re.compile(
        rf"{re.escape(workload)}-(?:{'|'.join(get_args(Stage))})(?:-.*)?-seed\d+((?:-[a-z0-9]+)*)-[0-9a-f]{{16}}"
    )
    settings = zip(_SETTINGS, (budget, precision, arithmetic), strict=True)
    wanted = {value for name, value in settings if value != _USUAL[name]}
    found: set[Backend] = set()
    for match in filter(None, map(known.fullmatch, folders)):
        labels = set(filter(None, match[1].split("-")))
        found |= {
            backend
            for backend in get_args(Backend)
            if labels == wanted | ({backend} if backend != _USUAL["backend"] else set())
        }
    return min(found, key=lambda one: (one in RETIRED, get_args(Backend).index(one)), default=None)
