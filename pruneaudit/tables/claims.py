"""Files of claims: numbers that somebody states, a table of a paper each, with all fields that a judge asks for.

A field that the source does not give is ``"not specified"``, or left out. Numbers may be written as printed
(``"93.16 ± 0.16"``, ``"4.1 GMACs"``): their digits say how exact they are.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field, create_model

from pruneaudit.schema import Frozen
from pruneaudit.tables.columns import NUMBERS, TEXTS

_FIELDS: dict[str, Any] = {
    **{kind: (float | str, Field(default="not specified", description=what)) for kind, what in NUMBERS.items()},
    **{kind: (str, Field(default="not specified", description=what)) for kind, what in TEXTS.items()},
}
#: One claim: all kinds of columns, each optional.
Claim: Any = create_model("Claim", __base__=Frozen, **_FIELDS)


class ClaimsFile(Frozen):
    """A file of claims.

    Attributes:
        name: File stem.
        paper: Authors and year.
        source: Title, and where it can be found.
        table: Its name in the paper; networks and data that it names hold for all claims that name none.
        notes: What must be known.
        shared: What holds for all claims that do not say otherwise.
        claims: The claims.
    """

    name: str = ""
    paper: str = ""
    source: str = ""
    table: str = ""
    notes: tuple[str, ...] = ()
    shared: Claim = Claim()
    claims: tuple[Claim, ...] = Field(min_length=1)


def schema() -> dict[str, Any]:
    """JSON Schema of a file of claims."""
    found: dict[str, Any] = ClaimsFile.model_json_schema()
    del found["properties"]["name"]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **found}
