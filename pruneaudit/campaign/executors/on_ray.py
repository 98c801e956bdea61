"""Ray: each run is a task, computed in one of Ray's worker processes. Imports no torch, and Ray when it is used.

The controller is Ray's driver, inside the cluster: on its head, or submitted by ``ray job submit``. Its address is
always named, and asked for before Ray is: without one, Ray begins a cluster of its own, or looks without end for one
that a dead driver noted in ``/tmp/ray``. Ray retries nothing here: the dispatcher does, for all clusters alike.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import os
import queue
import signal
import socket
import threading
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future
from functools import lru_cache
from typing import Any

from pruneaudit.campaign.executors import apart
from pruneaudit.campaign.executors.assignment import Assignment, Terms
from pruneaudit.campaign.executors.dispatch import Ended, RefusedError
from pruneaudit.errors import ConfigError, RunFailedError, one_line
from pruneaudit.ledger.records import RunSpec

#: Where `ray job submit` and `ray start` say which cluster a process is in.
ADDRESS = "RAY_ADDRESS"
#: Seconds that is waited for one of the tasks to end, and for the cluster to answer at first.
PAUSE, PATIENCE = 0.1, 10.0
#: Seconds between two questions how far tasks are, where nodes do not see the ledger.
LOOK = 1.0
#: How many things lie in Ray's object store for tasks that are submitted later.
KEPT = 64
#: Processes that load what tasks need before there are tasks: others load it with their first one.
MOST_PREPARED = 64


def address_of(named: str) -> tuple[str, int]:
    """Host and port of a cluster.

    Args:
        named: ``HOST:PORT``; empty: what the environment says.

    Raises:
        ConfigError: Nobody says it, it is none, or Ray is not installed.
    """
    if importlib.util.find_spec("ray") is None:
        raise ConfigError("--audit-executor ray needs Ray: pip install 'pruneaudit[cluster]'")
    address = named or os.environ.get(ADDRESS, "")
    host, _, port = address.rpartition(":")
    if not address:
        raise ConfigError(
            f"--audit-executor ray: no cluster is named; give ray:HOST:PORT (of `ray start --head`), or set {ADDRESS}, "
            "as `ray job submit` does"
        )
    if not host or "/" in host or not port.isdigit() or not 0 < int(port) < 1 << 16:
        raise ConfigError(f"--audit-executor ray: '{address}' is no HOST:PORT, such as 10.0.0.1:6379")
    return host, int(port)


def perform(assignment: str) -> None:
    """What a worker process of Ray does: a run that fails is noted in the ledger, and is no failure of the task."""
    try:
        Assignment.model_validate_json(assignment).perform()
    except RunFailedError:
        return


def prepare(terms: str, is_apart: bool) -> None:
    """What a worker process of Ray does before there are tasks: it loads what they need."""
    here = Terms.model_validate_json(terms)
    (apart.on_this_node(here) if is_apart else here).prepare()


class Board:
    """What tasks say last of how far they are, in a process of the cluster: nodes do not see the ledger."""

    def __init__(self) -> None:
        self._told: dict[str, apart.Told] = {}

    def tell(self, run_id: str, told: apart.Told) -> None:
        """Say it of a run."""
        self._told[run_id] = told

    def take(self) -> dict[str, apart.Told]:
        """What was said since this was asked last, by run."""
        told, self._told = self._told, {}
        return told


def perform_apart(assignment: str, luggage: apart.Luggage, board: Any) -> apart.Parcel:
    """What a worker process of Ray does that does not see the session's ledger."""
    return apart.perform(assignment, luggage, board.tell.remote)


class Ray:
    """Tasks of Ray.

    Args:
        host: Where the cluster's head is.
        port: Its port.
        cpus: Processors of each task, and no fewer than its run has ranks.
        gpus: Devices of each task, or the part of one.
        work: What a task does with its assignment, as JSON.
        post: Where nodes do not see the ledger: what a run stands on goes through Ray's object store to the task, and
            the run comes back the same way. None: they see it.

    Raises:
        ConfigError: There is no such cluster, or none of its nodes has what a task asks for.
    """

    def __init__(
        self,
        host: str,
        port: int,
        cpus: float = 1,
        gpus: float = 0,
        work: Callable[[str], None] = perform,
        post: apart.Post | None = None,
    ) -> None:
        _see_answers(host, port)
        import ray

        before = signal.getsignal(signal.SIGTERM)
        try:
            ray.init(address=f"{host}:{port}", namespace="pruneaudit", log_to_driver=False, logging_level=logging.ERROR)
        except Exception as error:
            raise ConfigError(
                f"--audit-executor ray:{host}:{port}: {one_line(error)[:300]}; pytest must run on a node of the "
                f"cluster (`ray start --address={host}:{port}`), with its versions of Ray and Python"
            ) from None
        finally:
            # In a main thread Ray puts its own way of ending in the place of the session's.
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, before)
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if not any(node.get("CPU", 0) >= cpus and node.get("GPU", 0) >= gpus for node in nodes):
            ray.shutdown()
            # Ray would wait for such a node without end.
            raise ConfigError(
                f"--audit-executor ray:{host}:{port}: no node has {cpus:g} CPUs and {gpus:g} GPUs for a task; "
                "ask for less with --audit-task, or add such a node first"
            )
        self._cpus = cpus
        # Processes that computed on a device are not used again, and a task of somebody's own needs who knows what.
        self._prepares = work is perform and not gpus
        self._places = sum(int(node.get("CPU", 0) // cpus) for node in nodes) if cpus else 0
        self._preparing: list[Any] = []
        # A worker that loaded torch for one run has it for the next.
        task: Any = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=0)(work if post is None else perform_apart)
        # One for all runs that need as many processors: to make one takes as long as to submit it.
        self._needing: Callable[[float], Any] = lru_cache(lambda count: task.options(num_cpus=count))
        self._post = post
        self._board: Any = None
        if post is not None:
            self._board = ray.remote(num_cpus=0, max_restarts=-1)(Board).remote()
        # What the board was asked, and when it is asked again.
        self._asked: Any = None
        self._next_look = 0.0
        # What was put into the object store last, by what it is for: siblings are submitted one after the other.
        self._stored: dict[object, Any] = {}
        self._over: queue.SimpleQueue[tuple[str, BaseException | None, Any]] = queue.SimpleQueue()
        self._under_way: dict[str, Any] = {}
        self._errors: dict[str, BaseException | None] = {}

    def prepare(self, terms: Terms) -> None:
        """Have the processes that will compute load torch while the session sees what it wants.

        One for each place that tasks have, up to some: each loads what its first task would have to load.
        """
        if not self._prepares:
            return
        import ray

        loading: Any = ray.remote(num_cpus=self._cpus, max_retries=0)(prepare)
        text = terms.model_dump_json(exclude_defaults=True)
        # What fails here fails in a task, too, which tells it.
        with contextlib.suppress(Exception):
            for _ in range(min(self._places, MOST_PREPARED)):
                self._preparing.append(loading.remote(text, self._post is not None))

    def submit(self, assignments: Sequence[Assignment]) -> None:
        """Submit tasks, in order."""
        for assignment in assignments:
            run_id = assignment.spec.run_id
            more = () if self._post is None else (self._luggage(assignment.spec, self._post), self._board)
            try:
                # Ray starts what was submitted first where it can.
                needing = self._needing(max(self._cpus, assignment.spec.recipe.ranks))
                task = needing.remote(assignment.model_dump_json(exclude_defaults=True), *more)
            except Exception as error:
                raise RefusedError(f"Ray takes no task: {one_line(error)}") from None
            self._under_way[run_id] = task
            task.future().add_done_callback(lambda future, run_id=run_id: self._note(run_id, future))

    def _luggage(self, spec: RunSpec, post: apart.Post) -> Any:
        """Where the object store has what a run stands on."""
        import ray

        key = spec.needs, spec.workload
        if key not in self._stored:
            self._stored[key] = ray.put(post.luggage(spec))
            # Tasks that were submitted hold what is theirs.
            for old in list(self._stored)[:-KEPT]:
                del self._stored[old]
        return self._stored[key]

    def _note(self, run_id: str, future: Future[Any]) -> None:
        error = future.exception()
        self._over.put((run_id, error, None if error is not None else future.result()))

    def ended(self, over: threading.Event) -> Collection[str]:
        """Runs whose tasks have ended."""
        found: list[str] = []
        seconds = PAUSE
        if self._post is not None:
            self._listen(self._post)
        while True:
            try:
                run_id, error, parcel = self._over.get(timeout=seconds) if seconds else self._over.get_nowait()
            except queue.Empty:
                return found
            if self._post is not None and parcel is not None:
                try:
                    self._post.receive(run_id, parcel)
                except apart.StrayError as stray:
                    error = stray
            if self._post is not None:
                self._post.over(run_id)
            self._errors[run_id] = error
            self._under_way.pop(run_id, None)
            found.append(run_id)
            seconds = 0.0

    def _listen(self, post: apart.Post) -> None:
        """Ask now and then how far tasks are, and wait for no answer."""
        import ray
        from ray.exceptions import RayError

        if self._asked is None and time.monotonic() >= self._next_look:
            self._next_look = time.monotonic() + LOOK
            self._asked = self._board.take.remote()
        elif self._asked is not None and ray.wait([self._asked], timeout=0)[0]:
            answer, self._asked = self._asked, None
            # The node that it was on may be gone.
            with contextlib.suppress(RayError):
                words = ray.get(answer)
                post.hear({run_id: told for run_id, told in words.items() if run_id in self._under_way})

    def how(self, run_id: str) -> Ended:
        """How a task ended."""
        from ray.exceptions import RayTaskError

        error = self._errors[run_id]
        if error is None:
            return Ended("Ray's task came to its end")
        # What Python raised in it is raised again by another try; a worker or a node that is gone is not its fault.
        raised = isinstance(error, RayTaskError)
        cause = error.cause if isinstance(error, RayTaskError) and isinstance(error.cause, Exception) else error
        return Ended(f"Ray's task: {one_line(cause)[:500]}", lost=not raised)

    def cancel(self) -> None:
        """Cancel all tasks, and leave the cluster."""
        import ray

        if not ray.is_initialized():
            return
        for task in (*self._under_way.values(), *self._preparing):
            # Training may not look at a polite word for long; what it has done is in the ledger.
            ray.cancel(task, force=True)
        self._under_way.clear()
        self._preparing.clear()
        self._stored.clear()
        if self._post is not None:
            self._post.close()
        ray.shutdown()

    def words(self) -> str:
        """How much travelled, where nodes do not see the ledger."""
        return "" if self._post is None else self._post.words


def _see_answers(host: str, port: int) -> None:
    """See that something listens there: Ray itself asks a dead address for half a minute.

    Raises:
        ConfigError: Nothing does.
    """
    try:
        socket.create_connection((host, port), PATIENCE).close()
    except OSError as error:
        raise ConfigError(
            f"--audit-executor ray:{host}:{port}: nothing answers there ({error.strerror or error}); "
            "`ray start --head` says where the cluster is"
        ) from None
