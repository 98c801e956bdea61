"""Counts what a stage really consumes, whoever drives it.

The meter hangs on the layers of the network (forward hooks) and on every optimiser of the process (step hooks), so a
method that trains in a loop of its own is counted like one that asks the harness to train. What a method computes
without either is counted by its operations.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from pruneaudit.streams import isolated
from pruneaudit.training.operations import Operations, unheard


@dataclass
class Consumption:
    """What was measured.

    Attributes:
        training_samples: Images that passed the network with gradients on.
        scoring_samples: Images that passed it without.
        optimiser_steps: Steps of any optimiser.
        rates: Learning rate of every step, run-length coded: ``[rate, steps]`` in order; of several parameter groups
            the highest.
        batch: Largest batch that passed with gradients on.
        settings: The optimiser's settings other than the learning rate, as seen at the steps (of several parameter
            groups all different values), and what who trained noted beside them.
        added: By class of optimiser, values that it steps and that were no parameters of the network when counting
            began; 0: it steps the network's own, but is none of the harness. Nothing where the harness alone trained
            what it was given.
        own_macs: Multiply-adds of what the code under the meter computed by itself, in passes of the network and
            elsewhere, forward and backward; where that is asked for.
        frozen: Parameters of the network that had no gradient at any step, by name; nothing where there was no step.
        taught_samples: Images that passed a declared teacher.
        steps_macs: By number of images in a step, how many steps there were and the multiply-adds of all that was
            computed in them; where that is asked for.
    """

    training_samples: int = 0
    scoring_samples: int = 0
    optimiser_steps: int = 0
    rates: list[list[float]] = field(default_factory=list)
    batch: int = 0
    settings: dict[str, Any] = field(default_factory=dict)
    added: dict[str, int] = field(default_factory=dict)
    own_macs: int = 0
    frozen: list[str] = field(default_factory=list)
    taught_samples: int = 0
    steps_macs: dict[str, list[int]] = field(default_factory=dict)

    def step(self, rate: float) -> None:
        """Count one optimiser step."""
        self.optimiser_steps += 1
        if self.rates and self.rates[-1][0] == rate:
            self.rates[-1][1] += 1
        else:
            self.rates.append([rate, 1])

    def compute(self, macs: int) -> None:
        """Count what the code under the meter computed."""
        self.own_macs += macs


# Of a group of parameters: what it is about, the rate, which is noted by itself, and how torch computes a step.
_NO_SETTINGS = ("params", "lr", "initial_lr", "foreach", "fused", "capturable", "differentiable")


class Meter:
    """Counts, while entered, the passes of one network and the steps of all optimisers.

    Samples are counted at every convolution and linear layer, and the busiest layer counts: a method that calls
    ``model.forward`` or a part of the network by itself is then seen like one that calls the network. A layer that the
    network calls more than once in a pass counts by so much less. A copy of the network carries these hooks and counts
    here, too.

    Args:
        model: The network.
        consumption: Where to go on counting.
        witness: Called with every batch of images that passes the network and that the harness did not hand out.
        example: One input, to see how often a pass of the network calls each layer; None: once.
        by_operation: Whether every operation is counted as well, but those of the harness (:meth:`harness`).
        by_step: Whether instead all operations of each of the harness's steps are: a method acts in them, in whatever
            hook.
    """

    def __init__(
        self,
        model: nn.Module,
        consumption: Consumption | None = None,
        witness: Callable[[torch.Tensor], None] | None = None,
        example: torch.Tensor | None = None,
        by_operation: bool = False,
        by_step: bool = False,
    ) -> None:
        self.consumption = consumption if consumption is not None else Consumption()
        self._model = model
        self._witness = witness
        self._example = example
        self._paused = False
        self._notes: dict[str, Any] = {}
        # Kept alive while counting: a number of a tensor that is gone may be another's.
        self._given: dict[int, nn.Parameter] = {}
        self._moved: set[int] = set()
        self._ours: torch.optim.Optimizer | None = None
        self._calls: list[int] = []
        self._handles: list[Any] = []
        # Not for who pauses the meter: a method can.
        self._operations = Operations(self.consumption.compute) if by_operation else None
        self._step_macs = 0
        self._of_steps = Operations(self._compute_in_step) if by_step else None
        self._entered = ExitStack()
        self._training: list[int] = []
        self._scoring: list[int] = []
        self._admitted: weakref.WeakValueDictionary[int, torch.Tensor] = weakref.WeakValueDictionary()

    def __enter__(self) -> Self:
        layers = [module for module in self._model.modules() if isinstance(module, nn.modules.conv._ConvNd | nn.Linear)]
        found = {} if self._example is None else calls_in_a_pass(self._model, layers, self._example)
        self._calls = [max(1, found.get(layer, 1)) for layer in layers]
        self._begin()
        self._given = {id(parameter): parameter for parameter in self._model.parameters()}

        def step(optimiser: torch.optim.Optimizer, _args: Any, _kwargs: Any) -> None:
            self.note_steps(optimiser, [max(float(group["lr"]) for group in optimiser.param_groups)])

        hooks = [
            layer.register_forward_pre_hook(self._counter(number), with_kwargs=True)
            for number, layer in enumerate(layers)
        ]
        self._handles = [*hooks, *self._reading(), register_optimizer_step_pre_hook(step)]
        self._entered.enter_context(self.own_code())
        return self

    def note_steps(self, optimiser: torch.optim.Optimizer, rates: Sequence[float]) -> None:
        """Count steps of an optimiser, at the rates that they took; nothing while the meter is not entered, or paused.

        Args:
            optimiser: Whose they are. Torch's own tell of themselves; who makes an optimiser's steps for it says so.
            rates: The highest rate of each step.
        """
        if self._paused or not self._handles or not rates:
            return
        for rate in rates:
            self.consumption.step(rate)
        groups = optimiser.param_groups
        found = [float(group["lr"]) for group in groups]
        settings: dict[str, Any] = {"optimiser": type(optimiser).__name__.lower()}
        for key in dict.fromkeys(key for group in groups for key in group if _is_setting(key, groups)):
            values = _different(group[key] for group in groups if key in group)
            settings[key] = values[0] if len(values) == 1 else values
        if len(set(found)) > 1:
            settings["learning_rates_of_groups"] = sorted(rate / max(found) for rate in found)
        self.consumption.settings = settings | self._notes
        self._moved.update(id(value) for group in groups for value in group["params"] if value.grad is not None)
        added = sum(value.numel() for group in groups for value in group["params"] if id(value) not in self._given)
        if added or optimiser is not self._ours:
            known = self.consumption.added
            known[settings["optimiser"]] = max(added, known.get(settings["optimiser"], 0))

    def own_code(self) -> AbstractContextManager[Any]:
        """Where the code under the meter runs: its operations are counted, if anybody's are."""
        return nullcontext() if self._operations is None else self._operations

    def harness(self) -> AbstractContextManager[None]:
        """Where the harness computes for it: passes and steps are counted, operations are not."""
        return nullcontext() if self._operations is None and self._of_steps is None else unheard()

    def _compute_in_step(self, macs: int) -> None:
        self._step_macs += macs

    @contextmanager
    def stepping(self, images: int) -> Iterator[None]:
        """A step of the harness on so many images: what is computed in it is counted, where that is asked for."""
        if self._of_steps is None:
            yield
            return
        self._step_macs = 0
        with self._of_steps:
            yield
        counted = self.consumption.steps_macs.setdefault(str(images), [0, 0])
        counted[0] += 1
        counted[1] += self._step_macs

    def _reading(self) -> list[Any]:
        """A hook where tokens enter: the first layer that is counted sees only what they became."""
        of_tokens = self._example is not None and not self._example.is_floating_point()
        table = next((module for module in self._model.modules() if isinstance(module, nn.Embedding)), None)
        if self._witness is None or table is None or not of_tokens:
            return []
        witness = self._witness

        def read(_layer: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
            tokens = inputs[0] if inputs else named.get("input")
            if not self._paused and tokens is not None and not self._is_admitted(_plain(tokens)):
                with torch._C._DisableFuncTorch():
                    witness(_plain(tokens).detach())

        return [table.register_forward_pre_hook(read, with_kwargs=True)]

    def _begin(self) -> None:
        """Go on from what has been consumed."""
        self._training = [self.consumption.training_samples * calls for calls in self._calls]
        self._scoring = [self.consumption.scoring_samples * calls for calls in self._calls]

    def _counter(self, number: int) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any]], None]:
        """The hook of one layer. A plain closure: copying a network copies its hooks, and a copy still counts here."""

        def forward(_layer: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
            batch = inputs[0] if inputs else named.get("input")
            if self._paused or batch is None:
                return
            plain = _plain(batch)
            images = plain.numel() * len(batch) // max(1, batch.numel())
            if number == 0 and self._witness is not None and not self._is_admitted(plain):
                # Within a transformation of torch.func every operation is part of it.
                with torch._C._DisableFuncTorch():
                    self._witness(plain.detach().reshape(images, *batch.shape[1:]))
            consumption, calls = self.consumption, self._calls[number]
            if torch.is_grad_enabled():
                self._training[number] += images
                consumption.training_samples = max(consumption.training_samples, self._training[number] // calls)
                consumption.batch = max(consumption.batch, images)
            else:
                self._scoring[number] += images
                consumption.scoring_samples = max(consumption.scoring_samples, self._scoring[number] // calls)

        return forward

    def admit(self, images: torch.Tensor) -> None:
        """Tell the meter that the harness hands out this batch of training images."""
        self._admitted[id(images)] = images

    def _is_admitted(self, images: torch.Tensor) -> bool:
        return self._admitted.get(id(images)) is images

    def restore(self, consumption: Consumption) -> None:
        """Go on from what an earlier attempt of this stage had counted."""
        vars(self.consumption).update(vars(consumption))
        self._begin()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._entered.close()
        for handle in self._handles:
            handle.remove()
        if self._moved & self._given.keys():
            names = {id(parameter): name for name, parameter in self._model.named_parameters()}
            still = self._given.keys() - self._moved
            self.consumption.frozen = sorted(names[number] for number in still if number in names)
        self._handles, self._given, self._moved = [], {}, set()

    @contextmanager
    def noting(self, facts: Mapping[str, Any], optimiser: torch.optim.Optimizer | None = None) -> Iterator[None]:
        """Keep facts with the settings of the steps that follow: who trains says what no optimiser shows.

        Args:
            facts: What else was done.
            optimiser: The harness's own.
        """
        before, self._notes, self._ours = (self._notes, self._ours), dict(facts), optimiser
        try:
            yield
        finally:
            self._notes, self._ours = before

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Do not count: the harness evaluates."""
        before, self._paused = self._paused, True
        try:
            yield
        finally:
            self._paused = before


def training_macs(model: nn.Module, example: torch.Tensor) -> int:
    """Multiply-adds of a plain training step for each of its images, by the operations that reach torch's kernels.

    Args:
        model: The network; not changed.
        example: One input, ``[1, ...]``.
    """
    counted = Consumption()
    network, parameter = copy.deepcopy(model).train(), next(model.parameters())
    inputs = example.to(parameter) if example.is_floating_point() else example.to(parameter.device)
    # Two: statistics of one image of one pixel are none.
    with isolated(0, parameter.device), Operations(counted.compute), torch.enable_grad():
        logits = network(inputs.expand(2, *inputs.shape[1:]))
        logits.float().sum().backward()
    return counted.own_macs // 2


def beside_the_network(steps: Mapping[str, Sequence[int]], each: int) -> tuple[float, float | None]:
    """What was computed in steps beside the passes of the network, in training images that cost as much.

    Args:
        steps: By number of images in a step, how many steps there were and their multiply-adds.
        each: Multiply-adds of the network's own passes for an image, see :func:`training_macs`.

    Returns:
        All of it; and how much of it goes with the number of images, for each of them (None where all steps had as
        many): what images pass costs more for more of them, and what is computed of weights does not.
    """
    images = sum(int(size) * count for size, (count, _) in steps.items())
    macs = sum(found for _, found in steps.values())
    means = sorted((int(size), found / count) for size, (count, found) in steps.items())
    slope = None
    if len(means) > 1:
        (few, least), (many, most) = means[0], means[-1]
        slope = max(0.0, (most - least) / (many - few) / each - 1)
    return max(0.0, macs / each - images), slope


def _is_setting(key: str, groups: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a key of parameter groups says how weights move; maximising is unusual enough to be told."""
    return key not in _NO_SETTINGS and (key != "maximize" or any(group.get(key) for group in groups))


def _different(values: Iterable[Any]) -> list[Any]:
    """Different values in order, tuples as the lists that records make of them."""
    found: list[Any] = []
    for value in values:
        plain = list(value) if isinstance(value, tuple) else value
        if plain not in found:
            found.append(plain)
    return sorted(found) if all(isinstance(value, int | float) for value in found) else sorted(found, key=repr)


@torch.no_grad()
def calls_in_a_pass(model: nn.Module, layers: Iterable[nn.Module], example: torch.Tensor) -> dict[nn.Module, int]:
    """How often one pass of a network calls each of some layers.

    Args:
        model: The network; not changed.
        layers: Some of its layers.
        example: One input, ``[1, C, H, W]``.
    """
    found: dict[nn.Module, int] = {}

    def count(layer: nn.Module, _inputs: tuple[Any, ...], _named: dict[str, Any]) -> None:
        found[layer] = found.get(layer, 0) + 1

    modes = [(module, module.training) for module in model.modules()]
    handles = [layer.register_forward_pre_hook(count, with_kwargs=True) for layer in layers]
    parameter = next(model.parameters())
    try:
        model.eval()
        model(example.to(parameter) if example.is_floating_point() else example.to(parameter.device))
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes:
            module.training = mode
    return found


def _plain(batch: torch.Tensor) -> torch.Tensor:
    """A batch without the wrapping of torch.func: under ``vmap`` one image is seen, and many pass."""
    while torch._C._functorch.is_functorch_wrapped_tensor(batch):
        batch = torch._C._functorch.get_unwrapped(batch)
    return batch
