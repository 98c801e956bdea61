"""Where runs are computed: by the session's processes, or by a cluster (``--audit-executor``). Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pruneaudit.campaign.executors import on_ray, slurm
from pruneaudit.campaign.executors.apart import Post
from pruneaudit.campaign.executors.dispatch import Scheduler
from pruneaudit.campaign.executors.orders import Orders
from pruneaudit.errors import ConfigError, unknown
from pruneaudit.ledger.store import Ledger

LOCAL = "local"
#: Word of ``--audit-task`` that says that the nodes of a cluster do not see the session's ledger.
APART = "apart"


@dataclass(frozen=True)
class Cluster:
    """A cluster, and what each task asks of it.

    Attributes:
        kind: Which scheduler it has.
        host: Where Ray's head is; empty under Slurm.
        port: Its port.
        options: Options of ``sbatch``.
        cpus: Processors of a task of Ray.
        gpus: Devices of it; None: one where runs are trained on CUDA.
        apart: Whether its nodes do not see the ledger of the session.
    """

    kind: Literal["slurm", "ray"]
    host: str = ""
    port: int = 0
    options: str = ""
    cpus: float = 1.0
    gpus: float | None = None
    apart: bool = False

    def __str__(self) -> str:
        return self.kind if self.kind == "slurm" else f"ray at {self.host}:{self.port}"

    def scheduler(self, ledger: Ledger, session: str, device: str) -> Scheduler:
        """The cluster, which is asked for now.

        Args:
            ledger: Where its runs are to be; below it lies what tasks are told and print.
            session: Id of the session.
            device: ``cpu`` or ``cuda``, which runs are trained on.

        Raises:
            ConfigError: It does not answer.
        """
        if self.kind == "slurm":
            return slurm.Slurm(Orders(ledger, session).folder, session, self.options)
        post = Post(ledger) if self.apart else None
        return on_ray.Ray(self.host, self.port, self.cpus, self._gpus(device), post=post)

    def sharing(self, device: str) -> int:
        """How many tasks share a device."""
        gpus = self._gpus(device)
        return math.ceil(1 / gpus) if 0 < gpus < 1 else 1

    def _gpus(self, device: str) -> float:
        return float(device == "cuda") if self.gpus is None else self.gpus


def where(executor: str, task: str | None) -> Cluster | None:
    """What ``--audit-executor`` and ``--audit-task`` say; None: the session's own processes compute.

    Raises:
        ConfigError: There is no such executor, it cannot be had here, or a task cannot ask for that.
    """
    kind, _, address = executor.partition(":")
    if kind == "ray":
        host, port = on_ray.address_of(address)
        words = [word for part in (task or "").split(",") if (word := part.strip())]
        asked = _asked_of_ray([word for word in words if word != APART])
        return Cluster("ray", host, port, cpus=asked.get("cpus", 1.0), gpus=asked.get("gpus"), apart=APART in words)
    if address or kind not in (LOCAL, "slurm"):
        raise unknown("executor", executor, (LOCAL, "slurm", "ray", "ray:HOST:PORT"))
    if kind == "slurm":
        slurm.check(task or "")
        return Cluster("slurm", options=task or "")
    if task is not None:
        raise ConfigError("--audit-task says what a task asks of a cluster: add --audit-executor slurm or ray")
    return None


def _asked_of_ray(words: Sequence[str]) -> dict[str, float]:
    """Resources in words such as ``cpus=2`` and ``gpus=0.25``."""
    asked = {}
    for word in words:
        name, _, text = word.partition("=")
        try:
            amount = float(text)
        except ValueError:
            amount = -1.0
        # Of Ray's devices a task has a part of one, or whole ones.
        in_parts = name != "gpus" or amount <= 1 or amount.is_integer()
        if name not in ("cpus", "gpus") or not 0 <= amount < math.inf or not in_parts:
            raise ConfigError(
                f"--audit-task: '{word}' is nothing that a task of Ray asks for; give cpus=N, gpus=N or "
                f"{APART}, such as 'cpus=2,gpus=0.25'"
            )
        asked[name] = amount
    return asked
