"""What passes between the referee and a method's own process: whatever one way, data only the other.

The referee is trusted, so that it may send objects (pickled). A method is not: from its process come numbers, texts and
tensors by value (JSON and safetensors), which run nothing when they are read.
"""

from __future__ import annotations

import json
import pickle
import socket
import struct
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from pruneaudit.errors import AuditError

#: Sizes of what follows: facts and tensors, in bytes.
_HEAD = struct.Struct("!QQ")
#: Largest facts, and tensors, that the referee reads in one message.
MOST_FACTS, MOST_TENSORS = 1 << 28, 1 << 36


class HungUpError(AuditError):
    """The other side is gone, silent for too long, or says what is no message."""


@dataclass(frozen=True)
class Message:
    """Something that a method's process says.

    Attributes:
        kind: What it is.
        facts: Numbers, texts, lists and mappings of them.
        tensors: Tensors on the CPU, by name.
    """

    kind: str
    facts: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)


class Line:
    """One end of a connection.

    Args:
        end: The connected socket.
    """

    def __init__(self, end: socket.socket) -> None:
        self._socket = end
        # Whoever speaks from several threads speaks in turns.
        self._speaks = threading.Lock()

    def close(self) -> None:
        """Hang up."""
        self._socket.close()

    def tell(self, thing: Any) -> None:
        """Say something as the referee.

        Raises:
            HungUpError: Nobody listens.
        """
        self._send(pickle.dumps(thing, protocol=pickle.HIGHEST_PROTOCOL), b"")

    def listen(self) -> Any:
        """Wait for the referee.

        Raises:
            HungUpError: It is gone.
        """
        facts, _ = self._receive()
        return pickle.loads(facts)

    def say(self, kind: str, tensors: Mapping[str, torch.Tensor] | None = None, **facts: Any) -> None:
        """Say something as a method's process: facts of JSON, and tensors by value.

        Raises:
            HungUpError: Nobody listens.
            TypeError: The facts are no JSON.
        """
        plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in (tensors or {}).items()}
        self._send(json.dumps({"kind": kind, "facts": facts}).encode(), save(plain) if plain else b"")

    def hear(self, patience: float | None = None) -> Message:
        """Wait for a method's process.

        Args:
            patience: Seconds to wait for its next word; None: for ever.

        Raises:
            HungUpError: It is gone, says nothing for so long, or says what is no message.
        """
        self._socket.settimeout(patience)
        try:
            facts, tensors = self._receive()
        except TimeoutError:
            raise HungUpError(f"said nothing for {patience:g} seconds") from None
        finally:
            self._socket.settimeout(None)
        try:
            said = json.loads(facts)
            return Message(str(said["kind"]), dict(said["facts"]), load(tensors) if tensors else {})
        except (ValueError, KeyError, TypeError, RecursionError, SafetensorError) as error:
            raise HungUpError(f"said what is no message: {error}") from None

    def _send(self, facts: bytes, tensors: bytes) -> None:
        try:
            with self._speaks:
                self._socket.sendall(_HEAD.pack(len(facts), len(tensors)))
                self._socket.sendall(facts)
                self._socket.sendall(tensors)
        except OSError as error:
            raise HungUpError(f"is gone: {error.strerror}") from None

    def _receive(self) -> tuple[bytearray, bytes]:
        facts, tensors = _HEAD.unpack(self._exactly(_HEAD.size))
        if facts > MOST_FACTS or tensors > MOST_TENSORS:
            raise HungUpError(f"said too much at once: {facts + tensors} bytes")
        return self._exactly(facts), bytes(self._exactly(tensors))

    def _exactly(self, count: int) -> bytearray:
        content = bytearray(count)
        view, got = memoryview(content), 0
        while got < count:
            try:
                found = self._socket.recv_into(view[got:])
            except TimeoutError:
                raise
            except OSError as error:
                raise HungUpError(f"is gone: {error.strerror}") from None
            if not found:
                raise HungUpError("ended before it answered")
            got += found
        return content
