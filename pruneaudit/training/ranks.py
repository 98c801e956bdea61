"""One training by several processes, its ranks: each on a device of its own, and on its part of every batch.

What is trained is what a recipe's ``ranks`` says, and torch's ``DistributedDataParallel`` averages the gradients. Under
batch normalisation that is another training than the whole batch on one device, as each rank normalises by its own
part; without it, it is the same up to rounding. The first rank evaluates, all images and none twice, keeps the
checkpoints and tells how far the training is; the process that asked for it watches, and ends all ranks with any of
them.
"""

from __future__ import annotations

import copy
import io
import multiprocessing
import os
import pickle
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from pruneaudit.errors import AuditError, ConfigError, one_line
from pruneaudit.sandbox import end_with_parent
from pruneaudit.training.loop import Hooks, Steps, TorchSteps, Trainer
from pruneaudit.training.metering import Meter
from pruneaudit.training.precision import channels_last
from pruneaudit.training.runs import Trained, Training
from pruneaudit.training.runtime import Runtime
from pruneaudit.workloads.data import Dataset, Share, Streamed

#: How long a rank waits for the others: the first one may evaluate for hours.
_PATIENCE = timedelta(days=7)
#: Seconds in which ranks are to notice that one of them failed: one that evaluates does not for as long as it does.
_LAST_WORDS = 10.0
#: Seconds between two looks whether all ranks live: their lines may be held open by processes that read their data.
_LOOK = 1.0


class RankLostError(AuditError):
    """A process of a training died; the others were ended."""


def train(training: Training, until: int | None = None) -> Trained:
    """Train a network by as many ranks as its recipe says; it is then in place, as after a training by one process.

    Args:
        training: What to train, on a CPU or on the first of as many GPUs.
        until: Epoch after which to stop; None: the recipe's last.

    Returns:
        What became of it; images are those of all ranks.

    Raises:
        ConfigError: It cannot be trained so.
        RankLostError: A rank died.
        DivergedError: The loss became NaN or infinite.
    """
    recipe, device = training.recipe, next(training.model.parameters()).device
    if training.hooks is not None:
        raise ConfigError("what a method adds acts in one process; give its training one rank")
    if reason := recipe.indivisible(len(training.dataset.train)):
        raise ConfigError(reason)
    if device.type == "cuda" and torch.cuda.device_count() < recipe.ranks:
        raise ConfigError(
            f"{recipe.ranks} ranks need as many CUDA devices, and this process sees {torch.cuda.device_count()}; "
            "give --audit-ranks fewer, or pytest fewer workers (-n 0)"
        )
    if device.type != "cuda" and recipe.sync_batch_norm:
        raise ConfigError("sync_batch_norm: torch synchronises batch normalisation on CUDA devices only; leave it out")
    with tempfile.TemporaryDirectory(prefix="pruneaudit-ranks-") as folder:
        result = _Team(training, until, Path(folder) / "store", _start_method(device)).watch()
    state = torch.load(io.BytesIO(result.state), map_location=device, weights_only=True)
    training.model.load_state_dict(state)
    return result.trained


def _start_method(device: torch.device) -> str:
    """Forked where that is possible: a workload's own classes need not be importable, nor be sent."""
    forks = sys.platform.startswith("linux") and "fork" in multiprocessing.get_all_start_methods()
    # Neither CUDA nor, where torch sees a GPU, autograd outlives a fork.
    return "fork" if forks and device.type == "cpu" and not torch.cuda.is_available() else "spawn"


@dataclass(frozen=True)
class _Job:
    """What every rank is told."""

    training: Training
    device: str
    until: int | None
    store: Path

    def on(self, rank: int) -> Training:
        """The training as a rank has it, on its device."""
        given, ranks = self.training, self.training.recipe.ranks
        place = torch.device("cuda", rank) if self.device == "cuda" else torch.device("cpu")
        data = _with_workers(given.dataset, ranks).to(place)
        # A network that was sent lies in memory that all ranks share.
        model = channels_last(copy.deepcopy(given.model).to(place))
        return replace(given, model=model, dataset=data)


def _with_workers(dataset: Dataset, ranks: int) -> Dataset:
    """A dataset whose splits are read by so many times fewer processes, where more than none read them."""
    names = ("train", "validation", "test")
    parts = {name: part for name in names if isinstance(part := getattr(dataset, name), Streamed) and part.workers}
    fewer: dict[str, Any] = {name: replace(part, workers=max(1, part.workers // ranks)) for name, part in parts.items()}
    return replace(dataset, **fewer) if fewer else dataset


@dataclass(frozen=True)
class _Result:
    """What the first rank sends at the end: the network's state as torch saves it, and what became of the training."""

    state: bytes
    trained: Trained


@dataclass(frozen=True)
class _Failure:
    """What went wrong in a rank, and when by the clock that all processes of a machine share."""

    error: Exception
    text: str
    at: float = field(default_factory=time.monotonic)

    @classmethod
    def of(cls, rank: int, error: Exception) -> _Failure:
        """What a rank raised; what cannot be sent is told in a line."""
        text = f"raised in rank {rank}:\n{''.join(traceback.format_exception(error))}"
        try:
            pickle.loads(pickle.dumps(error))
        except Exception:
            error = AuditError(f"rank {rank}: {one_line(error)}")
        return cls(error.with_traceback(None), text)


class _Team:
    """The ranks of a training, as the process sees them that started them.

    Args:
        training: What they train.
        until: Epoch after which to stop; None: the recipe's last.
        store: File by which they find each other.
        method: How processes are started, of :mod:`multiprocessing`.
    """

    def __init__(self, training: Training, until: int | None, store: Path, method: str) -> None:
        self._progress, self._ranks = training.progress, training.recipe.ranks
        device = next(training.model.parameters()).device.type
        given = replace(training, progress=None)
        if method != "fork":
            # Sent by value, from where any process can read it.
            model, data = copy.deepcopy(training.model).cpu(), training.dataset.to(torch.device("cpu"))
            given = replace(given, model=model, dataset=data)
        self._job, self._context = _Job(given, device, until, store), multiprocessing.get_context(method)
        self._processes: list[Any] = []
        self._lines: dict[int, Connection] = {}
        # Ranks that will say no more, though their processes may not be over.
        self._silent: set[int] = set()
        # What went wrong in a rank, and who died without a word.
        self._failures: dict[int, _Failure] = {}
        self._lost: list[int] = []
        self._result: _Result | None = None

    def watch(self) -> _Result:
        """Start the ranks, and wait until all are at their end; whatever ends this ends them."""
        try:
            self._start()
            while self._lines and not (self._failures or self._lost):
                self._hear(_LOOK)
            # Whoever failed first has said so before others could notice it, and may be heard after them; who was
            # killed says nothing, and its end may be seen last.
            end = time.monotonic() + _LAST_WORDS
            while not self._lost and self._lines.keys() - self._failures.keys() and time.monotonic() < end:
                self._hear(_LOOK)
        finally:
            self._end()
        if self._lost:
            raise RankLostError(_epitaph(self._lost[0], self._ranks, self._processes[self._lost[0]].exitcode))
        if self._failures:
            first = min(self._failures.values(), key=lambda failure: failure.at)
            first.error.add_note(first.text)
            raise first.error
        assert self._result is not None
        return self._result

    def _start(self) -> None:
        for rank in range(self._ranks):
            ours, theirs = self._context.Pipe(duplex=False)
            # Their own processes read data: a daemon could have none.
            process = self._context.Process(  # type: ignore[attr-defined]
                target=_work, args=(rank, self._job, theirs), name=f"rank {rank}", daemon=False
            )
            try:
                with warnings.catch_warnings():
                    # What is forked makes no use of the threads that it does not have.
                    warnings.simplefilter("ignore", DeprecationWarning)
                    process.start()
            except (pickle.PicklingError, AttributeError, TypeError) as error:
                raise ConfigError(
                    f"data or network cannot be sent to the processes of a training: {one_line(error)}; define what "
                    "they are made of at the top of a module"
                ) from None
            finally:
                theirs.close()
            self._processes.append(process)
            self._lines[rank] = ours

    def _hear(self, timeout: float) -> None:
        """Wait for what ranks say, and see which of them are over, well or not."""
        open_ones = {line: rank for rank, line in self._lines.items() if rank not in self._silent}
        sentinels = [self._processes[rank].sentinel for rank in self._lines]
        for line in wait([*open_ones, *sentinels], timeout):
            if isinstance(line, Connection):
                self._take(open_ones[line], line)
        for rank, process in enumerate(self._processes):
            if rank in self._lines and process.exitcode is not None:
                with self._lines[rank] as line:
                    while rank not in self._silent and line.poll():
                        self._take(rank, line)
                del self._lines[rank]
                if process.exitcode != 0 and rank not in self._failures:
                    self._lost.append(rank)

    def _take(self, rank: int, line: Connection) -> None:
        """Hear one word of a rank."""
        try:
            said = line.recv()
        except (EOFError, OSError):
            self._silent.add(rank)
            return
        if isinstance(said, _Failure):
            self._failures[rank] = said
        elif isinstance(said, _Result):
            self._result = said
        elif self._progress is not None:
            self._progress(*said)

    def _end(self) -> None:
        """Leave nothing of the ranks: each is a group of processes, with those that read its data."""
        for process in self._processes:
            if process.is_alive():
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.kill()
        for process in self._processes:
            process.join()
        for line in self._lines.values():
            line.close()


def _epitaph(rank: int, ranks: int, status: int | None) -> str:
    """One line about a rank that died without a word."""
    how = f"ended with exit status {status}"
    if status is not None and status < 0:
        name = signal.Signals(-status).name if -status in set(signal.Signals) else f"signal {-status}"
        how = f"was ended by {name}" + (" (memory may have run out)" if name == "SIGKILL" else "")
    return f"rank {rank} of {ranks} {how}, and the others with it; start again: it goes on from its last checkpoint"


def _work(rank: int, job: _Job, line: Connection) -> None:
    """What a rank's process does."""
    with suppress(OSError, AttributeError):
        os.setpgid(0, 0)
        end_with_parent()
    # Handlers of the process that this one was forked from are not its own.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        if job.device == "cuda":
            torch.cuda.set_device(rank)
        Runtime(job.device).prepare()
        # They are all on this machine.
        if sys.platform.startswith("linux"):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        dist.init_process_group(
            backend_of(job.device),
            init_method=f"file://{job.store}",
            rank=rank,
            world_size=job.training.recipe.ranks,
            timeout=_PATIENCE,
        )
        result = _fit(rank, job, line.send)
        if not rank:
            line.send(result)
    except Exception as error:
        line.send(_Failure.of(rank, error))
    finally:
        # Who waits for this one notices it now, and fails by it: after what went wrong here was told.
        with suppress(Exception):
            dist.destroy_process_group()
        line.close()


def backend_of(device: str) -> str:
    """What gathers gradients over ranks on a kind of device."""
    return "nccl" if device == "cuda" else "gloo"


def _fit(rank: int, job: _Job, tell: Callable[[tuple[int, int, float]], None]) -> _Result:
    """Train as one rank."""
    training, started = job.on(rank), time.perf_counter()
    trained = Trained("torch")
    with Meter(training.model, trained.consumption, example=training.dataset.example()) as meter:
        trainer = RankTrainer(
            training.model,
            training.dataset,
            training.recipe,
            training.seed,
            training.stream,
            meter,
            training.precision,
            training.checkpoint,
            lambda *progress: tell(progress),
            training.state,
            training.masks,
            measure=training.measure,
            share=Share(rank, training.recipe.ranks),
        )
        trainer.fit(until=job.until)
    trained.history, trained.resumed_from = trainer.history, trainer.resumed_from
    trained.training_seconds, trained.seconds = trainer.training_seconds, time.perf_counter() - started
    state = io.BytesIO()
    if not rank:
        torch.save({name: tensor.cpu() for name, tensor in training.model.state_dict().items()}, state)
    return _Result(state.getvalue(), trained)


class RankTrainer(Trainer):
    """A trainer whose steps are made with other ranks."""

    def _steps(self, hooks: Hooks) -> Steps:
        return RankSteps(self, hooks)


class RankSteps(TorchSteps):
    """Torch's steps on a share of every batch, with the gradients of all ranks.

    Buffers are those of the first rank whenever the network is called, as is torch's default: of batch normalisation
    these are running statistics, which training does not read.

    Args:
        trainer: Whose network, data, recipe, optimiser and meter it works on; a process group is there.
        hooks: What a method adds: nothing.
    """

    def __init__(self, trainer: Trainer, hooks: Hooks) -> None:
        super().__init__(trainer, hooks)
        model, device = trainer.model, next(trainer.model.parameters()).device
        if trainer.recipe.sync_batch_norm:
            nn.SyncBatchNorm.convert_sync_batchnorm(model)
        # Torch's buckets of gradients are arranged anew after the first step, which changes the order of sums, so that
        # a training that is resumed would differ; not so where it looks for parameters that reach no loss.
        self._network = DistributedDataParallel(
            _WithOneUnused(model), device_ids=[device] if device.type == "cuda" else None, find_unused_parameters=True
        )
        self._normalises = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())
        self._seen, self._batch = 0, 0

    def run_epoch(self, epoch: int, step: int, total: int) -> tuple[float, int, int]:
        """Train for one epoch, see :class:`Steps`; sums are those of all ranks."""
        consumption = self._trainer.meter.consumption
        self._seen, self._batch, consumption.batch = consumption.training_samples, consumption.batch, 0
        return super().run_epoch(epoch, step, total)

    def _totals(self, loss: torch.Tensor, hits: torch.Tensor, seen: int) -> tuple[float, int, int]:
        """Sums over all ranks, images that the meters counted among them."""
        meter = self._trainer.meter
        here = meter.consumption
        found = [float(loss), float(hits), seen, here.training_samples - self._seen, here.batch]
        sums = torch.tensor(found, dtype=torch.float64, device=loss.device)
        dist.all_reduce(sums)
        counted, batch = int(sums[3]), max(self._batch, int(sums[4]))
        meter.restore(replace(here, training_samples=self._seen + counted, batch=batch))
        return float(sums[0]), int(sums[1]), int(sums[2])

    def _besides(self) -> dict[str, Any]:
        """What is done beside the optimiser and a plain loss, and how batches are shared."""
        recipe = self._trainer.recipe
        scope = "over all ranks" if recipe.sync_batch_norm else "each rank's own; running statistics of rank 0"
        return {
            **super()._besides(),
            "ranks": recipe.ranks,
            "batch_of_a_rank": recipe.batch // recipe.ranks,
            "gathered_by": dist.get_backend(),
            **({"batch_norm": scope} if self._normalises else {}),
        }

    def _weight(self, step: int) -> float:
        """A batch that ranks do not divide is longer for some."""
        trainer = self._trainer
        batch, count = trainer.recipe.batch, len(trainer.dataset.train)
        return trainer.share.weight(min(batch, count - step % trainer.per_epoch * batch))

    def _gathering(self, is_last: bool) -> AbstractContextManager[None]:
        """Gradients of all parts but the last are kept to the rank."""
        assert isinstance(self._network, DistributedDataParallel)
        return nullcontext() if is_last else self._network.no_sync()


class _WithOneUnused(nn.Module):
    """A network with a parameter that reaches no loss: torch warns who looks for such ones and has none."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.unused = nn.Parameter(torch.zeros(1, device=next(network.parameters()).device))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """What the network says."""
        found: torch.Tensor = self.network(images)
        return found
