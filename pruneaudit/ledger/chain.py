"""Who wrote a record: a keyed digest beside it, which refers to the one that the same process wrote before.

The key is this user's, outside all ledgers: methods in processes of their own cannot reach it. What the digest of a
record (:func:`pruneaudit.ledger.store.sealed`) tells of disks, its link tells of people: whoever changes a number and
the digest with it cannot make the link anew, and whoever removes a record leaves a gap in its writer's chain.

What it cannot tell: whoever has the key may write what they like, and the last records of a writer can be removed
together with all that was written after them. For that there is ``pruneaudit verify``, which trains anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import os
import secrets
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from pydantic import Field

from pruneaudit.schema import Frozen
from pruneaudit.state import state_folder

_Hexadecimal = Annotated[str, Field(pattern="^[0-9a-f]*$", max_length=64)]
#: Records that are named in a line; the others are counted.
_NAMED = 3


class Link(Frozen):
    """What ties a record to its writer.

    Attributes:
        writer: The process that wrote it, by a name of chance.
        number: How many records it had added before. A view (a cell) adds none: it is written anew.
        before: Keyed digest of the last of them; empty: there was none.
        view: Whether the record is a view.
        key: Name of the key, a digest of it.
        mac: HMAC-SHA256 of all this and the digest of the record.
    """

    writer: _Hexadecimal
    number: Annotated[int, Field(ge=0)]
    before: _Hexadecimal
    view: bool
    key: _Hexadecimal
    mac: _Hexadecimal

    def fits(self, digest: str, key: bytes) -> bool:
        """Whether this key made the link for a record of this digest."""
        return hmac.compare_digest(self.mac, _mac(key, digest, self))


def _mac(key: bytes, digest: str, link: Link) -> str:
    text = f"{digest} {link.writer} {link.number} {link.before} {link.view} {link.key}"
    return hmac.new(key, text.encode(), hashlib.sha256).hexdigest()


def keys_folder() -> Path:
    """Where keys are: this user's own, and those of other machines that somebody put beside it."""
    return state_folder() / "keys"


def known_keys() -> dict[str, bytes]:
    """All keys that are here, by name."""
    found = {}
    with contextlib.suppress(OSError):
        for path in sorted(keys_folder().glob("*.key")):
            with contextlib.suppress(OSError, ValueError):
                key = bytes.fromhex(path.read_text(encoding="ascii"))
                found[_name(key)] = key
    return found


def _name(key: bytes) -> str:
    return hashlib.sha256(key).hexdigest()[:16]


def own_key() -> bytes | None:
    """This user's key, made where there is none; None: nothing can be kept."""
    path = keys_folder() / "own.key"
    # Whole or not at all, and the first one stays: several workers may begin at once.
    part = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
                file.write(secrets.token_hex(32))
            with contextlib.suppress(FileExistsError):
                os.link(part, path)
        return bytes.fromhex(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


class Writer:
    """Makes the links of what one process adds to a ledger."""

    def __init__(self) -> None:
        self._begin()

    def _begin(self) -> None:
        self._process, self._name, self._number, self._before = os.getpid(), secrets.token_hex(8), 0, ""
        self._key: bytes | None = None

    def link(self, digest: str, view: bool = False) -> Link | None:
        """The link of a record that is about to be written; None where no key can be kept."""
        if self._process != os.getpid():
            # A fork: two processes must not be one writer.
            self._begin()
        self._key = self._key or own_key()
        if self._key is None:
            return None
        bare = Link(
            writer=self._name, number=self._number, before=self._before, view=view, key=_name(self._key), mac=""
        )
        return bare.model_copy(update={"mac": _mac(self._key, digest, bare)})

    def written(self, link: Link | None) -> None:
        """Go on behind a record that has been written."""
        if link is not None:
            self._number, self._before = link.number + 1, link.mac


@dataclass
class Account:
    """What links say of a ledger as a whole.

    Attributes:
        signed: Records whose link a key of this machine made.
        unsigned: Those without a link: older ones, those of a machine that could keep no key, or edited ones.
        elsewhere: Those whose key is not here, by its name.
        missing: Records that were written and are not there, by writer.
        torn: Records that do not follow from what their writer wrote before.
    """

    signed: int = 0
    unsigned: list[str] = field(default_factory=list)
    elsewhere: dict[str, int] = field(default_factory=dict)
    missing: dict[str, list[int]] = field(default_factory=dict)
    torn: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """What a reader must know, one line for each kind."""
        lines = []
        if self.missing:
            count = sum(map(len, self.missing.values()))
            writer, numbers = next(iter(sorted(self.missing.items())))
            lines.append(
                f"{count} record(s) that were written to this ledger are not there any more: somebody removed them, "
                f"such as number {numbers[0] + 1} of writer {writer}"
            )
        if self.torn:
            lines.append(
                f"{len(self.torn)} record(s) do not follow from what their writer wrote before: {_some(self.torn)}"
            )
        if self.unsigned:
            lines.append(
                f"{len(self.unsigned)} record(s) are not signed: an older pruneaudit wrote them, or anybody: "
                f"{_some(self.unsigned)}"
            )
        for key, count in sorted(self.elsewhere.items()):
            lines.append(
                f"{count} record(s) are signed with key {key}, which is not here: to have them checked, copy own.key "
                f"of the machine that wrote them to {keys_folder() / f'{key}.key'}"
            )
        return lines


def _some(names: list[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(sorted(names)[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def account(links: Mapping[str, Link | None], omitted: Iterable[Link], keys: Iterable[str]) -> Account:
    """What the links of a ledger say together.

    Args:
        links: Link of each record, by its name; those that do not fit were refused when they were read.
        omitted: Links of records that a merge left out, since the ledger had them already.
        keys: Names of the keys that are here.
    """
    found, known = Account(), set(keys)
    chains: dict[str, dict[int, Link]] = defaultdict(dict)
    seen: dict[str, int] = defaultdict(int)
    for name, link in links.items():
        if link is None:
            found.unsigned.append(name)
            continue
        if link.key in known:
            found.signed += 1
        else:
            found.elsewhere[link.key] = found.elsewhere.get(link.key, 0) + 1
        seen[link.writer] = max(seen[link.writer], link.number + (not link.view))
        if not link.view and chains[link.writer].setdefault(link.number, link) is not link:
            found.torn.append(name)
    for link in omitted:
        chains[link.writer].setdefault(link.number, link)
    for name, one in links.items():
        earlier = chains[one.writer].get(one.number - 1) if one is not None else None
        if one is not None and earlier is not None and earlier.mac != one.before:
            found.torn.append(name)
    for writer, count in seen.items():
        if gaps := [number for number in range(count) if number not in chains[writer]]:
            found.missing[writer] = gaps
    return found
