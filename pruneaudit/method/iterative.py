"""Methods that prune in rounds: score, let a part go, train what is left, again."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch

from pruneaudit.errors import MethodError
from pruneaudit.method.contract import Budget, FilterScore, TrainedMethod
from pruneaudit.method.task import Kept, PruningTask
from pruneaudit.pruning.reconstruction import channel_tensors, silence
from pruneaudit.pruning.units import Unit
from pruneaudit.training.loop import Hooks
from pruneaudit.workloads.schema import Workload

#: Whether each round takes as many filters, or the same share of those that are left.
Shares = Literal["constant", "geometric"]


class IterativeScore(FilterScore, TrainedMethod):
    """A method that scores filters anew in every round, and trains the workload's pruning budget in equal parts.

    Each round scores the filters that are left, silences the lowest, and trains, the silent ones held at zero: what is
    removed in the end has been zero since. With one round this is one-shot pruning whose budget trains the pruned
    network, so that arms of other numbers of rounds differ in nothing else: equal steps, equal retraining.

    A ``constant`` course takes as many filters of a layer in every round, a ``geometric`` one the same share of those
    that are left: most of them early.

    Rounds are equally long, or, with ``patience``, each but the last ends once it no longer pays: after so many looks
    at the training loss (one an epoch; more often where the budget has fewer than four epochs a round) that found it no
    lower. The last round has all that is left, so that these arms, too, train the whole budget. Each look is a training
    of its own: momentum begins anew.
    """

    rewrites = True

    def __init__(self, rounds: int = 4, shares: Shares = "geometric", patience: int | None = None) -> None:
        self.rounds = rounds
        self.shares = shares
        self.patience = patience

    def budget(self, workload: Workload) -> Budget:
        """The workload's pruning budget."""
        return Budget(steps=workload.prune.steps or 0, lr=workload.prune.lr)

    def prune(self, task: PruningTask) -> Kept:
        """Score, silence and train, round by round.

        Raises:
            MethodError: There is no round, no patience, or filters of all layers compete.
        """
        if self.rounds < 1 or self.shares not in ("constant", "geometric"):
            raise MethodError(
                f"method '{self.name}': expected at least 1 round, constant or geometric, not {self.rounds} "
                f"and {self.shares}"
            )
        if self.patience is not None and self.patience < 1:
            raise MethodError(f"method '{self.name}': expected a patience of at least 1 look, not {self.patience}")
        if self.scope != "layerwise":
            raise MethodError(f"method '{self.name}': rounds are layer by layer; leave scope layerwise")
        kept: dict[str, list[int]] = {unit.name: list(range(unit.channels)) for unit in task.prunable}
        trained = 0
        for done in range(1, self.rounds + 1):
            self.prepare(task)
            with torch.no_grad():
                scores = {unit.name: self.score_unit(unit, task) for unit in task.prunable}
            task.scored()
            kept = {
                unit.name: self._left(unit, scores[unit.name], kept[unit.name], task.target.stay[unit.name], done)
                for unit in task.prunable
            }
            stays = {layer.name: task.stays_in(layer, kept) for layer in task.layers}
            for layer in task.layers:
                silence(layer, stays[layer.name])
            hooks = Hooks(gradients=_held(task, stays))
            if self.patience is not None and done < self.rounds:
                trained += self._while_it_pays(task, self.patience, done, trained, hooks)
            elif steps := task.steps * done // self.rounds - trained:
                task.train(steps, hooks)
                trained += steps
        return {layer.name: task.stays_in(layer, kept) for layer in task.layers}

    def _while_it_pays(self, task: PruningTask, patience: int, done: int, trained: int, hooks: Hooks) -> int:
        """Train until the loss has not been lower for some looks; each later round is left one look. Steps made."""
        look = min(task.steps_per_epoch, max(1, task.steps // (4 * self.rounds)))
        most = max(0, task.steps - trained - look * (self.rounds - done))
        lowest, waited, made = math.inf, 0, 0
        while made < most and waited < patience:
            steps = min(look, most - made)
            task.train(steps, hooks)
            made += steps
            loss = task.history.train_loss[-1]
            waited = 0 if loss < lowest else waited + 1
            lowest = min(lowest, loss)
        return made

    def _left(self, unit: Unit, scores: torch.Tensor, kept: Sequence[int], stay: int, done: int) -> list[int]:
        """Channels of a unit that stay after a round: the best of those that are left."""
        values = torch.full((unit.channels,), -torch.inf, dtype=torch.float64)
        values[list(kept)] = scores.detach().cpu().double()[list(kept)]
        ranked, channels = unit.candidates(values)
        count = stays_after(done, self.rounds, len(ranked), stay // unit.step, self.shares)
        order = torch.argsort(ranked, stable=True)[len(ranked) - count :]
        found: list[int] = channels[order].flatten().sort().values.tolist()
        return found


def stays_after(done: int, rounds: int, count: int, stay: int, shares: Shares) -> int:
    """How many of a layer's filters are left after a round.

    Args:
        done: Rounds that are over, this one included.
        rounds: Rounds of all.
        count: Filters of the dense layer.
        stay: Filters that are left after the last round.
        shares: How they are spread over the rounds.
    """
    part = done / rounds
    left = count * (stay / count) ** part if shares == "geometric" else count - (count - stay) * part
    return max(stay, round(left))


def _held(task: PruningTask, stays: Mapping[str, Sequence[int]]) -> Callable[[int], None]:
    """Silences the gradients of filters that are gone; neither momentum nor decay then moves a zero."""
    gone: list[tuple[torch.Tensor, list[int]]] = []
    for layer in task.layers:
        indices = sorted(set(range(layer.channels)) - set(stays[layer.name]))
        gone += [(tensor, indices) for tensor in channel_tensors(layer) if tensor.requires_grad]

    def silent(_step: int) -> None:
        for tensor, indices in gone:
            if tensor.grad is not None:
                tensor.grad[indices] = 0

    return silent
