"""Loss of a network after each of many removals of filters: what the removals have in common is computed once.

All removals share what comes before the first layers that lose inputs. Removals that differ in the filters of these
inputs alone share more: a layer's outputs are sums of what each filter contributes to them, and the rest of the network
sees the images of many removals as one batch. Any other removal is evaluated alone, with the smaller tensors that it
leaves. Nothing is written to the network.

Where layers lose filters together or in bundles, or the network cannot be traced, every removal is evaluated alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.func import functional_call
from torch.fx.proxy import TraceError

from pruneaudit.errors import MethodError
from pruneaudit.pruning.graph import loses_inputs
from pruneaudit.pruning.layers import PrunableLayer, inputs_left, units_of
from pruneaudit.pruning.reconstruction import Consumer, consumers
from pruneaudit.pruning.removal import Kept, silence_inputs
from pruneaudit.pruning.units import Unit

# Images that a layer sees at once, those of all removals or filters together. It bounds the memory, not the result;
# activations of more fall out of a processor's caches.
_IMAGES = 512


def losses_after_removal(
    model: nn.Module,
    layers: Sequence[PrunableLayer],
    removals: Sequence[Kept],
    batches: Sequence[tuple[torch.Tensor, torch.Tensor]],
) -> list[float]:
    """Mean cross-entropy over some images of the network that each removal leaves, without training.

    The same as that of the network of :func:`pruneaudit.pruning.removal.shrink`, up to rounding. The model's own layers
    do the work, with their hooks: those before the cut see each image once, those behind it once for every removal.

    Args:
        model: The dense network in eval mode, with layers that treat images alone.
        layers: Its prunable layers, with their groups.
        removals: Filters that stay, at least one in each layer, by unit.
        batches: Images ``[B, C, H, W]`` and labels ``[B]``.

    Returns:
        A loss in nats for each removal.
    """
    units = units_of(layers)
    network = None
    if all(unit.step == 1 for unit in units):
        with suppress(MethodError, TraceError):
            network = _Cut(model, layers)
    if network is None:
        return [_loss_without(model, units, kept, batches) for kept in removals]
    # Removals that are alike in all layers behind the cut.
    alike: dict[tuple[tuple[int, ...], ...], list[int]] = {}
    for number, kept in enumerate(removals):
        alike.setdefault(tuple(tuple(kept[layer.name]) for layer in network.behind), []).append(number)
    totals = torch.zeros(len(removals), dtype=torch.float64, device=batches[0][1].device)
    with torch.no_grad():
        for images, labels in batches:
            # The very tensor that was handed out: a meter knows it.
            values = network.head(images)
            for numbers in alike.values():
                together = [removals[number] for number in numbers]
                for some, part, logits in network.logits(values, together):
                    wanted = labels[part].repeat(len(logits) // len(labels[part]))
                    losses = F.cross_entropy(logits, wanted, reduction="none").double()
                    totals[numbers[some]] += losses.unflatten(0, (-1, len(labels[part]))).sum(dim=1)
    found: list[float] = (totals / sum(len(labels) for _, labels in batches)).tolist()
    return found


@torch.no_grad()
def _loss_without(
    model: nn.Module, units: Sequence[Unit], kept: Kept, batches: Sequence[tuple[torch.Tensor, torch.Tensor]]
) -> float:
    """Mean cross-entropy in nats while whoever reads the filters that go reads zeros."""
    hooks = silence_inputs(model, kept, units)
    try:
        total = sum(
            F.cross_entropy(model(images), labels, reduction="none").double().sum() for images, labels in batches
        )
    finally:
        for hook in hooks:
            hook.remove()
    return float(total) / sum(len(labels) for _, labels in batches)


class _Cut:
    """A network in two parts, cut at the first layers that lose inputs: the readers.

    Attributes:
        head: The part before: from images to the readers' inputs, and to whatever else the other part needs.
        behind: Prunable layers whose filters no reader reads.
    """

    def __init__(self, model: nn.Module, layers: Sequence[PrunableLayer]) -> None:
        self._names = {module: name for name, module in model.named_modules()}
        losing = {self._names[each.module]: (layer, each) for layer in layers for each in consumers(layer)}
        before, readers, after = list[fx.Node](), list[fx.Node](), list[fx.Node]()
        cut = set[fx.Node]()
        for node in fx.Tracer().trace(model).nodes:
            reads = node.op == "call_module" and node.target in losing
            part = after if cut.intersection(node.all_input_nodes) else readers if reads else before
            part.append(node)
            if part is not before:
                cut.add(node)
        self._readers = [losing[str(node.target)] for node in readers]
        read = {layer.name for layer, _ in self._readers}
        self.behind = [layer for layer in layers if layer.name not in read]
        inputs = [node.all_input_nodes[0] for node in readers]
        crossing = [node for node in before if cut.intersection(node.users).difference(readers)]
        self.head = fx.GraphModule(model, _part([], before, [*inputs, *crossing]))
        self._tail = fx.GraphModule(model, _part([*readers, *crossing], after))

    def logits(
        self, values: Sequence[torch.Tensor], removals: Sequence[Kept]
    ) -> Iterator[tuple[slice, slice, torch.Tensor]]:
        """What removals leave that are alike behind the cut.

        Args:
            values: What the head gave for some images.
            removals: Filters that stay, by layer.

        Yields:
            Some of the removals, some of the images, and their logits ``[removals · images, classes]``.
        """
        tensors = self._left_behind(removals[0])
        owners = {self._names[reader.module] for _, reader in self._readers}
        smaller = {name: tensor for name, tensor in tensors.items() if name.rpartition(".")[0] not in owners}
        stays = [_which_stay(removals, layer) for layer, _ in self._readers]
        inputs, crossing = values[: len(self._readers)], values[len(self._readers) :]
        images = len(inputs[0])
        filters = max(layer.channels for layer, _ in self._readers)
        size = images if len(removals) == 1 else max(1, _IMAGES // filters)
        for start in range(0, images, size):
            part = slice(start, min(start + size, images))
            readings = [
                _Reading(layer, reader, self._own(reader.module, tensors), maps[part], len(removals) > 1)
                for (layer, reader), maps in zip(self._readers, inputs, strict=True)
            ]
            count = max(1, _IMAGES // (part.stop - part.start))
            for first in range(0, len(removals), count):
                some = slice(first, min(first + count, len(removals)))
                read = [reading.of(every[some]) for reading, every in zip(readings, stays, strict=True)]
                others = [value[part].repeat(some.stop - some.start, *[1] * (value.dim() - 1)) for value in crossing]
                yield some, part, functional_call(self._tail, smaller, (*read, *others), tie_weights=False)

    def _left_behind(self, kept: Kept) -> dict[str, torch.Tensor]:
        """Tensors that get smaller behind the cut, by name."""
        found: dict[str, torch.Tensor] = {}
        for layer in self.behind:
            stays = torch.tensor(kept[layer.name])
            for item in layer.group:
                if not loses_inputs(item.dep):
                    # The layer, and the normalisations that its filters pass.
                    owner = item.dep.target.module
                    for name, tensor in (*owner.named_parameters(), *owner.named_buffers()):
                        if tensor.dim():
                            found[f"{self._names[owner]}.{name}"] = tensor[stays]
        for module, inputs in inputs_left(self.behind, kept).items():
            name = f"{self._names[module]}.weight"
            found[name] = found.get(name, module.get_parameter("weight"))[:, inputs]
        return found

    def _own(self, module: nn.Module, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Weight and bias of a layer."""
        prefix = self._names[module]
        return {name: tensors.get(f"{prefix}.{name}", tensor) for name, tensor in module.named_parameters()}


class _Reading:
    """What a reader makes of its input when some of the filters that it reads are gone.

    Args:
        layer: The layer with the filters.
        reader: The layer that reads them.
        own: The reader's weight and bias.
        maps: The reader's input with all filters, ``[N, inputs, ...]``.
        often: Whether several removals are asked for: what each filter contributes is then computed once.
    """

    def __init__(
        self,
        layer: PrunableLayer,
        reader: Consumer,
        own: Mapping[str, torch.Tensor],
        maps: torch.Tensor,
        often: bool,
    ) -> None:
        self._layer, self._reader, self._own, self._maps = layer, reader, own, maps
        self._contributions: torch.Tensor | None = None
        if often:
            without_bias = {**own, **({"bias": torch.zeros_like(own["bias"])} if "bias" in own else {})}
            outputs = [self._output([index], without_bias) for index in range(layer.channels)]
            # Channels last: what is summed then lies in memory as layers like it best.
            self._contributions = torch.stack([output.movedim(1, -1) for output in outputs])

    def of(self, stays: torch.Tensor) -> torch.Tensor:
        """Outputs after removals, ``[removals · N, outputs, ...]``.

        Args:
            stays: Which filters stay, ``[removals, filters]`` bool.
        """
        if self._contributions is None:
            return self._output(stays[0].nonzero().flatten().tolist(), self._own)
        added = self._contributions
        outputs = (stays.to(added) @ added.flatten(1)).view(-1, *added.shape[2:])
        if "bias" in self._own:
            outputs += self._own["bias"]
        return outputs.movedim(-1, 1)

    def _output(self, filters: Sequence[int], own: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Outputs when only some filters are read."""
        inputs = self._reader.inputs_of(filters)
        smaller = {**own, "weight": own["weight"][:, inputs]}
        found: torch.Tensor = functional_call(self._reader.module, smaller, self._maps[:, inputs], tie_weights=False)
        return found


def _which_stay(removals: Sequence[Kept], layer: PrunableLayer) -> torch.Tensor:
    """Which filters of a layer stay, ``[removals, filters]`` bool."""
    stays = torch.zeros(len(removals), layer.channels, dtype=torch.bool)
    for row, kept in zip(stays, removals, strict=True):
        row[list(kept[layer.name])] = True
    return stays


def _part(inputs: Sequence[fx.Node], nodes: Sequence[fx.Node], outputs: Sequence[fx.Node] | None = None) -> fx.Graph:
    """Some operations of a network as a graph of their own.

    Args:
        inputs: What they get from other operations.
        nodes: The operations, in order.
        outputs: What is asked for; None: the operations end with the network's output.
    """
    graph = fx.Graph()
    copies = {node: graph.placeholder(node.name) for node in inputs}
    for node in nodes:
        copies[node] = graph.node_copy(node, copies.__getitem__)
    if outputs is not None:
        graph.output(tuple(copies[node] for node in outputs))
    return graph
