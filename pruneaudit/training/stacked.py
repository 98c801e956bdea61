"""Runs of one shape as one program."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from pruneaudit.measure.accuracy import Score
from pruneaudit.training.feed import Feed, Stream
from pruneaudit.training.grouped import StackedSGD, stack
from pruneaudit.training.runs import Run, Scores
from pruneaudit.workloads.data import Split

# Steps that CUDA libraries need to settle before one is captured.
_WARM_UP = 3
# Images that are classified at once: as in measure.accuracy.
_CHUNK = 512


@dataclass
class Leg:
    """What a stack's steps gave, of each model: sums over images, its share of the time, and the scores after them."""

    sizes: list[int]
    losses: list[float]
    hits: list[int]
    training_seconds: float
    seconds: float
    validation: list[Score]
    test: list[Score]


class Stack:
    """Runs as one program.

    All tensors that a step reads or changes are made here and stay: on CUDA the step is captured once and replayed.

    Args:
        runs: Runs of one shape, dataset, batch size and precision, all at the same place of their epochs.
        channels_last: Memory layout; None: contiguous for fp32 on CUDA, else channels last.
        beside: Stacks that share the device's time, this one included.
    """

    def __init__(self, runs: Sequence[Run], channels_last: bool | None = None, beside: int = 1) -> None:
        self.runs = list(runs)
        self._beside = beside
        first = runs[0].training
        self._data, self._precision, self._batch = first.dataset, first.precision, first.recipe.batch
        self._device, self._per_epoch = runs[0].device, runs[0].per_epoch
        if channels_last is None:
            channels_last = self._device.type != "cuda" or self._precision == "bf16"
        trainings = [run.training for run in runs]
        fused = runs[0].trained.backend == "fused"
        self.network = stack([training.model for training in trainings], channels_last, fused).train()
        self.optimiser = StackedSGD(
            self.network,
            [training.recipe.momentum for training in trainings],
            [training.recipe.weight_decay for training in trainings],
            first.recipe.nesterov,
            [{f"{name}.weight": mask for name, mask in (training.masks or {}).items()} for training in trainings],
        )
        for number, run in enumerate(runs):
            for name, parameter in run.training.model.named_parameters():
                buffer = run.trainer.optimiser.state.get(parameter, {}).get("momentum_buffer")
                if buffer is not None:
                    self.optimiser.momenta[name][number].copy_(buffer)
        vector = self.network.weights.vector
        self._first_epoch = runs[0].epoch
        streams = [Stream(run.training.seed, run.training.stream, run.epoch) for run in runs]
        self._feed = Feed(first.dataset, streams, self._batch, vector.dtype)
        smoothing = [training.recipe.label_smoothing for training in trainings]
        self._smoothing = vector.new_tensor(smoothing) if any(smoothing) else None
        self._rates = vector.new_zeros(self._per_epoch, len(runs))
        self._turn = torch.zeros(1, dtype=torch.int64, device=self._device)
        self._losses = torch.zeros(len(runs), dtype=torch.float64, device=self._device)
        self._hits = torch.zeros(len(runs), dtype=torch.int64, device=self._device)
        self._state = [vector, self.network.statistics.vector, self.network.tracked, self.optimiser.momentum]
        self._saved: list[torch.Tensor] = []
        self._pool = torch.cuda.graph_pool_handle() if self._device.type == "cuda" else None
        self._programs: dict[int, Program] = {}
        self._drawn = -1

    def leg(self) -> Generator[None, None, Leg]:
        """Make steps until an epoch or a run is at its end, and evaluate all models; yields after every step."""
        # Until it is saved anew, the state is what to go back to.
        self._saved = []
        started, phase = time.perf_counter(), self.runs[0].phase
        steps = min(self._per_epoch - phase, *(run.total - run.step for run in self.runs))
        if self._drawn != self.runs[0].epoch:
            self._feed.begin(self.runs[0].epoch - self._first_epoch, phase)
            self._drawn = self.runs[0].epoch
        self._rates[:steps].copy_(torch.tensor([run.rates(steps) for run in self.runs], dtype=self._rates.dtype).T)
        for tensor in (self._turn, self._losses, self._hits):
            tensor.zero_()
        self._saved = [tensor.clone() for tensor in self._state]
        last = len(self._data.train) - self._batch * (self._per_epoch - 1)
        sizes = [self._batch if step + 1 < self._per_epoch else last for step in range(phase, phase + steps)]
        for size in sizes:
            if size not in self._programs:
                self._programs[size] = Program(partial(self._step, size), self._device, self._pool)
            self._programs[size]()
            yield
        losses, hits = self._losses.tolist(), self._hits.tolist()
        shares = len(self.runs) * self._beside
        training_seconds = (time.perf_counter() - started) / shares
        scores = [self._evaluate(part) for part in (self._data.validation, self._data.test)]
        seconds = (time.perf_counter() - started) / shares
        return Leg(sizes, losses, hits, training_seconds, seconds, *scores)

    def _step(self, size: int) -> None:
        """One step of all models; asks the host for nothing."""
        images, labels = self._feed.next(size)
        with self._arithmetic():
            logits = self.network(images)
        logits = logits.float() if self._precision == "bf16" else logits
        losses = cross_entropies(logits, labels, self._smoothing)
        self.optimiser.gradients(losses)
        self.optimiser.rates.copy_(self._rates.index_select(0, self._turn)[0])
        self.optimiser.step()
        self._turn.add_(1)
        self._losses.add_(losses.detach().double() * size)
        self._hits.add_((logits.detach().argmax(dim=2) == labels).sum(dim=1))

    def _arithmetic(self) -> torch.autocast:
        # Without a cache: what one step has cast is not what a replayed one needs.
        bf16 = self._precision == "bf16"
        return torch.autocast(self._device.type, torch.bfloat16, enabled=bf16, cache_enabled=False)

    @torch.no_grad()
    def _evaluate(self, part: Split) -> list[Score]:
        """What :func:`evaluate` finds for each model."""
        self.network.eval()
        losses, hits = [], []
        for images, numbers in self._data.inputs(part, self.network.weights.vector.dtype, _CHUNK):
            labels = numbers.expand(len(self.runs), -1)
            with self._arithmetic():
                logits = self.network(images)
            logits = logits.float() if self._precision == "bf16" else logits
            losses.append(cross_entropies(logits, labels) * labels.shape[1])
            hits.append(logits.argmax(dim=2) == labels)
        self.network.train()
        correct = torch.cat(hits, dim=1).cpu().numpy()
        means = (torch.stack(losses).sum(dim=0) / len(part)).tolist()
        return [
            Score(accuracy=100.0 * int(right.sum()) / len(part), loss=loss, correct=right)
            for right, loss in zip(correct, means, strict=True)
        ]

    def account(self, leg: Leg) -> None:
        """Tell every run what a leg gave."""
        reason = next((program.reason for program in self._programs.values() if program.reason), "")
        for number, run in enumerate(self.runs):
            run.trained.reason = reason or run.trained.reason
            run.trained.seconds += leg.seconds
            if run.went(leg.sizes, leg.losses[number], leg.hits[number], leg.training_seconds):
                scores = Scores(run.training.dataset, leg.validation[number], leg.test[number])
                run.close(scores, partial(self._unpack, number))

    def unpack(self) -> None:
        """Write the state of all models back where it came from."""
        for number in range(len(self.runs)):
            self._unpack(number)

    def _unpack(self, number: int) -> None:
        run = self.runs[number]
        model = run.training.model
        model.load_state_dict({name: tensor[number] for name, tensor in self.network.stacked_state().items()})
        if run.training.recipe.momentum:
            for name, parameter in model.named_parameters():
                buffer = torch.empty_like(parameter).copy_(self.optimiser.momenta[name][number])
                run.trainer.optimiser.state[parameter]["momentum_buffer"] = buffer.detach()

    def go_back(self) -> None:
        """Give up a leg that did not come to its end: free what it took, and write back the state before it."""
        self._programs.clear()
        for tensor, saved in zip(self._state, self._saved, strict=False):
            tensor.copy_(saved)
        self.unpack()


class Program:
    """Work on tensors that stay: on CUDA done as it is a few times, then captured, then replayed.

    Attributes:
        reason: Why it could not be captured; empty: it could, or it was not yet tried.
    """

    def __init__(self, work: Callable[[], None], device: torch.device, pool: Any) -> None:
        self.reason = ""
        self._work, self._pool = work, pool
        self._left = _WARM_UP if device.type == "cuda" else math.inf
        self._graph: torch.cuda.CUDAGraph | None = None

    def __call__(self) -> None:
        """Do the work once."""
        if self._graph is None and not self._left and not self.reason:
            self._capture()
        if self._graph is not None:
            self._graph.replay()
            return
        self._work()
        self._left = max(0, self._left - 1)

    def _capture(self) -> None:
        graph = torch.cuda.CUDAGraph()
        try:
            # Capturing does nothing yet: this step is the first that is replayed.
            with torch.cuda.graph(graph, pool=self._pool, stream=torch.cuda.current_stream()):
                self._work()
        except torch.cuda.OutOfMemoryError:
            raise
        except RuntimeError as error:
            self.reason = f"steps were not captured: {str(error).splitlines()[0]}"
        else:
            self._graph = graph


def cross_entropies(logits: torch.Tensor, labels: torch.Tensor, smoothing: torch.Tensor | None = None) -> torch.Tensor:
    """Mean cross-entropy of each model.

    Args:
        logits: ``[K, N, classes]``.
        labels: ``[K, N]``.
        smoothing: Label smoothing of each model, ``[K]``, or None.

    Returns:
        ``[K]``.
    """
    logs = F.log_softmax(logits, dim=2)
    losses = F.nll_loss(logs.flatten(0, 1), labels.flatten(), reduction="none").view(labels.shape).mean(dim=1)
    if smoothing is not None:
        losses = (1 - smoothing) * losses - smoothing * logs.mean(dim=(1, 2))
    return losses
