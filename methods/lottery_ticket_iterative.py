"""The lottery ticket by iterative magnitude pruning: train, prune a little, go back to the start, again."""

import math
from collections.abc import Callable

import torch

from pruneaudit import Budget, Card, Hooks, Kept, PruningTask, PublishedRecipe, TrainedMethod
from pruneaudit.config import Workload


class LotteryTicketIterative(TrainedMethod):
    """Iterative magnitude pruning, each round back to the initialisation. Frankle & Carbin, ICLR 2019, sec. 2.

    A round removes ``share`` of the remaining weights, those of the smallest absolute value in all layers, and sets
    everything else back to the base model's initialisation. The first round judges the trained base model; before every
    other round the ticket is trained, its removed weights held at zero. Rounds are as many as it takes until
    (1 - share)^n of the weights are as few as one-shot pruning leaves, at least two. No round goes beyond the operating
    point, and the last one meets it.

    Deviation: papers train every round as long as the base model. Here all rounds share the workload's pruning budget
    in equal parts, at the first learning rate of the base model's training. A ticket retrains
    as long as its protocol says; only S1 and S2 give it a whole training.
    """

    granularity = "weight"
    scope = "global"
    rewrites = True
    published = PublishedRecipe(
        workload="resnet56-cifar10",
        epochs=160,
        lr="0:0.1,80:0.01,120:0.001",
        batch=64,
        weight_decay=1e-4,
        source="Liu et al., ICLR 2019, sec. 6 (their ResNet-50 for CIFAR-10 is nearest to this workload): train the "
        "ticket for 160 epochs",
    )
    card = Card(
        criterion="absolute weight after training",
        schedule="iterative: 20 % of the remaining weights a round",
        base="trained for the first round; weights of its initialisation",
        training="before every round but the first",
        source="Frankle & Carbin, ICLR 2019; Liu et al., ICLR 2019, sec. 6",
    )

    def __init__(self, share: float = 0.2) -> None:
        self.share = share

    def budget(self, workload: Workload) -> Budget:
        """The workload's pruning budget at the first learning rate of the base model's training."""
        return Budget(steps=workload.prune.steps or 0, lr=f"0:{workload.pretrain.rate(0, 0)}")

    def prune(self, task: PruningTask) -> Kept:
        """Prune and rewind; then train, prune and rewind in every further round."""
        start = task.initial(0)
        parameters = [layer.weight for layer in task.layers]
        trainings = self._rounds(task) - 1
        remaining = sum(weight.numel() for weight in parameters)
        for done in range(trainings):
            remaining -= math.floor(self.share * remaining)
            masks = _at_least(task, remaining)
            remaining = sum(int(mask.sum()) for mask in masks.values())
            task.model.load_state_dict(start)
            held = _hold(parameters, list(masks.values()))
            steps = task.steps * (done + 1) // trainings - task.steps * done // trainings
            task.train(steps, Hooks(gradients=held))
        masks = task.keep(_magnitudes(task), self.scope)
        task.model.load_state_dict(start)
        return masks

    def _rounds(self, task: PruningTask) -> int:
        """Rounds until as few weights are left as one-shot pruning of the base model would leave."""
        masks = task.keep(_magnitudes(task), self.scope).values()
        left = sum(int(mask.sum()) for mask in masks) / sum(mask.numel() for mask in masks)
        return max(2, math.ceil(math.log(left) / math.log(1 - self.share) - 1e-9))


def _magnitudes(task: PruningTask) -> dict[str, torch.Tensor]:
    return {layer.name: layer.weight.detach().abs() for layer in task.layers}


def _at_least(task: PruningTask, count: int) -> dict[str, torch.Tensor]:
    """Masks of the ``count`` largest weights of all layers, or of more where the operating point keeps more."""
    values = _magnitudes(task)
    order = torch.argsort(torch.cat([value.cpu().double().flatten() for value in values.values()]), stable=True)
    stays = torch.zeros(len(order), dtype=torch.bool)
    stays[order[len(order) - count :]] = True
    parts = stays.split([value.numel() for value in values.values()])
    asked = task.keep(values, "global")
    return {name: part.view_as(asked[name]) | asked[name] for name, part in zip(values, parts, strict=True)}


def _hold(parameters: list[torch.nn.Parameter], masks: list[torch.Tensor]) -> Callable[[int], None]:
    """Remove weights; the hook on gradients then keeps them at zero, since neither momentum nor decay moves a zero."""
    factors = [torch.zeros_like(weight).copy_(mask) for weight, mask in zip(parameters, masks, strict=True)]
    with torch.no_grad():
        torch._foreach_mul_(parameters, factors)

    def silence(_step: int) -> None:
        torch._foreach_mul_([weight.grad for weight in parameters], factors)

    return silence
