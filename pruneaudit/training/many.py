"""Trains many networks: one after the other, or those of one shape as one program.

A run gives the same history, weights, checkpoints and consumption whatever trains beside it and in whatever order, up
to rounding: in float64 all backends agree to 1e-10. In fp32 rounding grows chaotically over a training, so a comparison
stays with one backend.
"""

from __future__ import annotations

import copy
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import cast

import torch

from pruneaudit.catalog.settings import TOGETHER
from pruneaudit.training import ranks
from pruneaudit.training.fused import obstacle
from pruneaudit.training.grouped import CannotStackError, signature, stack
from pruneaudit.training.loop import BACKENDS
from pruneaudit.training.memory import OutOfMemoryError, is_out_of_memory
from pruneaudit.training.metering import Meter
from pruneaudit.training.runs import Backend, Run, Trained, Training
from pruneaudit.training.stacked import Stack

#: Models at once where memory does not say: activations of more fall out of a processor's caches.
CPU_WIDTH = 8
#: Single models side by side on streams of one GPU.
STREAMS = 4
# Share of the free memory that is planned with, and how much more than what autograd keeps of a batch is needed: by
# gradients of activations, by the last, smaller batch (its memory comes on top of a captured step's), by evaluation.
_USABLE, _PEAK = 0.8, 2.0
# Vectors of the size of the weights: weights, gradients, momenta, what is saved of them, rates, owners, masks.
_VECTORS = 8


def train_many(
    trainings: Sequence[Training],
    backend: Backend = "torch",
    width: int | None = None,
    channels_last: bool | None = None,
    save_every: float = 0.0,
    memory: float = 1.0,
    finished: Callable[[dict[int, Trained]], None] | None = None,
) -> list[Trained]:
    """Train networks; what goes wrong with one of them costs that one alone.

    ``torch`` trains one after the other; ``tiled`` too, with compiled steps where there are some.
    ``grouped`` trains those of one architecture and widths, dataset, batch size and precision together: recipes, seeds
    and masks are each run's own, and who is at the end makes room for the next. ``fused`` does the same with fewer,
    compiled kernels, where torch can compile. ``graphed`` trains single models, side by side on streams of a GPU. On
    CUDA all three capture their steps once and replay them. Methods that act in training, and networks whose layers
    have no grouped form, are trained one after the other by torch.

    Args:
        trainings: What to train; none shares its network with another, all are on one device.
        backend: What trains them.
        width: Models at once; None: as many as fit (``grouped``, ``fused``), or :data:`STREAMS` (``graphed``).
        channels_last: Memory layout of grouped networks; None: contiguous for fp32 on CUDA, else channels last.
        save_every: Seconds between two checkpoints of a run at least; who trains alone asks its checkpoint.
        memory: Share of the device's free memory that may be taken: other processes may train on it, too.
        finished: Called with the results of trainings, by their numbers, as soon as they are at their end together,
            their networks trained; what it raises ends all.

    Returns:
        Results in the order of the trainings.
    """
    results: list[Trained] = []
    groups: dict[object, list[Run]] = {}

    def end(numbers: Sequence[int]) -> None:
        if finished is not None and numbers:
            finished({number: results[number] for number in numbers})

    for number, training in enumerate(trainings):
        reason, key = "", None
        try:
            key = _key(training) if backend in TOGETHER else None
        except CannotStackError as error:
            reason = f"not {backend}: {error}"
        if key is None:
            results.append(_alone(training, backend if backend in BACKENDS else "torch"))
            results[-1].reason = reason or results[-1].reason
            end([number])
            continue
        results.append(Trained(backend))
        try:
            run = Run(number, training, results[-1], save_every)
        except Exception as error:
            results[-1].error = error
            end([number])
        else:
            groups.setdefault(key, []).append(run)
    for runs in groups.values() if backend == "fused" else ():
        if lack := _unfusable(runs[0]):
            for run in runs:
                run.trained.backend, run.trained.reason = "grouped", f"not fused: {lack}"
    # Runs of one length leave together, and those of one stream share their batches.
    queues = [
        deque(sorted(runs, key=lambda run: (run.step - run.total, run.training.stream, run.training.seed)))
        for runs in groups.values()
    ]
    beside = 1
    if backend == "graphed" and queues:
        queues = [deque(run for runs in queues for run in runs)]
        beside = width or (STREAMS if queues[0][0].device.type == "cuda" else 1)
    make = partial(Stack, channels_last=channels_last, beside=beside)
    for queue in queues:
        at_once = 1 if backend == "graphed" else width or fitting(queue[0].training, memory)
        _drive([_lane(queue, at_once, make, end) for _ in range(beside)], queue)
    return results


def _key(training: Training) -> object:
    """What runs must have in common to train together.

    Raises:
        CannotStackError: The run trains alone, always.
    """
    if training.hooks is not None:
        raise CannotStackError("its method acts in training")
    recipe, data = training.recipe, training.dataset
    if recipe.only_torch:
        raise CannotStackError(recipe.only_torch)
    if data.obstacle:
        raise CannotStackError(data.obstacle)
    return signature(training.model), id(data.resident.images), recipe.batch, training.precision, recipe.nesterov


def _unfusable(run: Run) -> str:
    """Why a network has no compiled form here; empty: it has."""
    network = stack([run.training.model], fused=True)
    return obstacle(run.device) if network.fused else "no ReLU follows a normalisation"


def _alone(training: Training, steps: str = "torch") -> Trained:
    """Train one network by the plain loop, in this process or in as many as its recipe says."""
    if training.recipe.ranks > 1:
        return _by_ranks(training, steps)
    trained, started = Trained("torch"), time.perf_counter()
    example, acts = training.dataset.example(), training.hooks is not None
    with Meter(training.model, trained.consumption, example=example, by_step=acts) as meter:
        try:
            trainer = training.trainer(meter, steps)
            try:
                trainer.fit(training.hooks)
            finally:
                trained.history, trained.resumed_from = trainer.history, trainer.resumed_from
                trained.training_seconds = trainer.training_seconds
        except Exception as error:
            trained.error = OutOfMemoryError(error) if is_out_of_memory(error) else error
        else:
            trained.backend = cast(Backend, trainer.backend)
            trained.reason = f"not {steps}: {trainer.fallback}" if trainer.fallback else ""
    trained.seconds = time.perf_counter() - started
    return trained


def _by_ranks(training: Training, steps: str) -> Trained:
    """Train one network by several processes."""
    started = time.perf_counter()
    try:
        trained = ranks.train(training)
    except Exception as error:
        trained = Trained("torch", error=OutOfMemoryError(error) if is_out_of_memory(error) else error)
    trained.reason = f"not {steps}: {training.recipe.only_torch}" if steps != "torch" else ""
    trained.seconds = time.perf_counter() - started
    return trained


def fitting(training: Training, memory: float = 1.0) -> int:
    """Models like this one that fit into a share of the free memory of its device, at least 1."""
    device = next(training.model.parameters()).device
    if device.type != "cuda":
        return CPU_WIDTH
    try:
        needed = footprint(training)
    except RuntimeError:
        # Its first step will say what is wrong with it.
        return 1
    # What earlier groups have left in torch's own cache is free, too.
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(device)
    return max(1, int(_USABLE * memory * free / needed))


def footprint(training: Training) -> int:
    """Bytes that one model takes at the peak of a step: what autograd keeps of a batch, found without computing."""
    model = copy.deepcopy(training.model).to("meta").train()
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    example = training.dataset.example(next(model.parameters()).dtype).to("meta")
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(example.expand(training.recipe.batch, *example.shape[1:]))
    weights = sum(parameter.nbytes for parameter in model.parameters())
    return int(_PEAK * sum(tensor.untyped_storage().nbytes() for tensor in kept.values())) + _VECTORS * weights


def _drive(lanes: Sequence[Iterator[None]], queue: Sequence[Run]) -> None:
    """Let lanes make one step each in turn, on CUDA each on a stream of its own."""
    devices = {run.device for run in queue if run.device.type == "cuda"}
    streams = [torch.cuda.Stream(*devices) if devices else None for _ in lanes]
    for stream in filter(None, streams):
        stream.wait_stream(torch.cuda.current_stream(stream.device))
    running = list(zip(lanes, streams, strict=True))
    while running:
        for pair in list(running):
            with torch.cuda.stream(pair[1]):
                if next(pair[0], running) is running:
                    running.remove(pair)
    for stream in filter(None, streams):
        torch.cuda.current_stream(stream.device).wait_stream(stream)


def _lane(
    queue: deque[Run], width: int, make: Callable[[Sequence[Run]], Stack], end: Callable[[Sequence[int]], None]
) -> Iterator[None]:
    """Train runs from a queue, up to ``width`` at once, in lockstep; yields after every step.

    All runs of the lane are at the same place of their epochs, each in its own epoch. Who is at the end leaves, and at
    an epoch's end the next ones join. Where memory does not suffice, the last steps are done again with half as many.
    """
    active: list[Run] = []
    stack: Stack | None = None
    while active or queue:
        newcomers = _join(queue, active, width)
        end(_gone(newcomers))
        newcomers = [run for run in newcomers if not run.over]
        if newcomers and stack is not None:
            stack.unpack()
            stack = None
        active = [*active, *newcomers]
        failure: Exception | None = None
        try:
            if active:
                stack = stack or make(active)
                leg = yield from stack.leg()
                stack.account(leg)
        except Exception as error:
            # Or it would keep the tensors of the failed step.
            traceback.clear_frames(error.__traceback__)
            failure = error
        if is_out_of_memory(failure) and len(active) > 1:
            if stack is not None:
                stack.go_back()
            width = len(active) // 2
            queue.extendleft(reversed(active[width:]))
            active, stack = active[:width], None
            torch.cuda.empty_cache()
        elif failure is not None:
            failure = OutOfMemoryError(failure) if is_out_of_memory(failure) else failure
            # Nobody can tell which of them it is about.
            for run in active:
                run.trained.error = failure
            end(_gone(active))
            active, stack = [], None
        elif stack is not None and any(run.over for run in active):
            stack.unpack()
            leaving = _gone(active)
            active, stack = [run for run in active if not run.over], None
            end(leaving)


def _join(queue: deque[Run], active: Sequence[Run], width: int) -> list[Run]:
    """Take runs from the queue that are at the place of the active ones in their epochs, and all that are over."""
    found: list[Run] = []
    joining = list(active)
    for run in list(queue):
        if run.over:
            found.append(run)
        elif len(joining) < width and run.phase == [*joining, run][0].phase:
            joining.append(run)
            found.append(run)
    for run in found:
        queue.remove(run)
    return found


def _gone(runs: Sequence[Run]) -> list[int]:
    """Numbers of the runs that are at their end."""
    return [run.number for run in runs if run.over]
