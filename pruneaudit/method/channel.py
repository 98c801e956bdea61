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
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from pruneaudit.errors import AuditError

#: Sizes of what follows: facts and tensors, in bytes.
_HEAD = struct.Struct("!QQ")
#: Largest facts, and tensors of a job without a network, that the referee reads in one message.
MOST_FACTS, MOST_TENSORS = 1 << 26, 1 << 24


class HungUpError(AuditError):
    """The other side is gone, silent for too long, or says what is no message."""


class SilentError(HungUpError):
    """The other side lets wait for too long."""


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
        most: Bytes of tensors that are heard at once; None: whatever is said.
    """

    def __init__(self, end: socket.socket, most: int | None = MOST_TENSORS) -> None:
        self._socket, self._most = end, most
        # Whoever speaks from several threads speaks in turns.
        self._speaks = threading.Lock()

    def close(self) -> None:
        """Hang up."""
        self._socket.close()

    def tell(self, thing: Any, patience: float | None = None) -> None:
        """Say something as the referee.

        Args:
            thing: What to say.
            patience: Seconds in which it must be taken; None: for ever.

        Raises:
            HungUpError: Nobody listens.
        """
        self._send(pickle.dumps(thing, protocol=pickle.HIGHEST_PROTOCOL), b"", patience)

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
            patience: Seconds to wait for its next word, and to its end; None: for ever.

        Raises:
            SilentError: It says nothing for so long.
            HungUpError: It is gone, or says what is no message.
        """
        try:
            facts, tensors = self._receive(patience)
        except TimeoutError:
            raise SilentError(f"said nothing for {patience:g} seconds") from None
        finally:
            self._socket.settimeout(None)
        try:
            said = json.loads(facts)
            return Message(str(said["kind"]), dict(said["facts"]), load(tensors) if tensors else {})
        except (ValueError, KeyError, TypeError, RecursionError, SafetensorError) as error:
            raise HungUpError(f"said what is no message: {error}") from None

    def _send(self, facts: bytes, tensors: bytes, patience: float | None = None) -> None:
        until = _until(patience)
        try:
            with self._speaks:
                for part in (_HEAD.pack(len(facts), len(tensors)), facts, tensors):
                    self._wait_until(until)
                    self._socket.sendall(part)
        except TimeoutError:
            raise SilentError(f"did not listen for {patience:g} seconds") from None
        except OSError as error:
            raise HungUpError(f"is gone: {error.strerror}") from None
        finally:
            if until is not None:
                self._socket.settimeout(None)

    def _receive(self, patience: float | None = None) -> tuple[bytearray, bytes]:
        until = _until(patience)
        facts, tensors = _HEAD.unpack(self._exactly(_HEAD.size, until))
        if self._most is not None and (facts > MOST_FACTS or tensors > self._most):
            raise HungUpError(f"said too much at once: {facts + tensors} bytes")
        return self._exactly(facts, until), bytes(self._exactly(tensors, until))

    def _wait_until(self, until: float | None) -> None:
        """Let the next call wait no longer: who says or takes one byte now and then does not begin anew.

        Raises:
            TimeoutError: It is over already.
        """
        if until is not None:
            left = until - time.monotonic()
            if left <= 0:
                raise TimeoutError
            self._socket.settimeout(left)

    def _exactly(self, count: int, until: float | None = None) -> bytearray:
        content = bytearray(count)
        view, got = memoryview(content), 0
        while got < count:
            try:
                self._wait_until(until)
                found = self._socket.recv_into(view[got:])
            except TimeoutError:
                raise
            except OSError as error:
                raise HungUpError(f"is gone: {error.strerror}") from None
            if not found:
                raise HungUpError("ended before it answered")
            got += found
        return content


def _until(patience: float | None) -> float | None:
    """When patience is over, by the clock that only goes forward."""
    return None if patience is None else time.monotonic() + patience
