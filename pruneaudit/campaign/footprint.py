"""What the memory of a GPU must hold for a stage, known before a weight is read: for ``pruneaudit plan``."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from pruneaudit.campaign.cost import widths, workload_of
from pruneaudit.catalog.discovery import Catalog
from pruneaudit.ledger.records import RunSpec
from pruneaudit.measure.skeleton import on_fakes
from pruneaudit.pruning import shapes
from pruneaudit.training.precision import PURE, weight_type
from pruneaudit.workloads.data import facts

_GIB = 2**30
#: Tensors of the size of the weights that an optimiser keeps; of others two are assumed.
_STATES = {"sgd": 1, "adam": 2, "adamw": 2, "adagrad": 1, "rmsprop": 1, "lion": 1, "adafactor": 1}


@dataclass(frozen=True)
class Footprint:
    """Memory of a stage on one device, in GiB.

    Attributes:
        weights: Of the network that trains, or is scored and pruned, and of the one that teaches it.
        gradients: As many.
        optimiser: What it keeps between steps.
        activations: What a batch leaves for its backward pass, its logits in float32 included, at most: where attention
            is computed in one kernel, which keeps no weights of pairs of tokens.
    """

    weights: float
    gradients: float
    optimiser: float
    activations: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.weights + self.gradients + self.optimiser + self.activations


def footprint(run: RunSpec, catalog: Catalog) -> Footprint:
    """What a run needs, by its plan; of a language model by path no weight is there.

    A pruning stage that trains nothing may ask for gradients of a batch; a base model that is read asks for none.

    Args:
        run: The run.
        catalog: Where its workload is found.

    Raises:
        AuditError: It names a workload, method or dataset that is not there.
    """
    workload = workload_of(run, catalog)
    model = shapes.network(workload, dict(widths(run, workload, catalog)))
    kind = weight_type(run.precision)
    count = sum(each.numel() for each in model.parameters())
    weights = count * kind.itemsize / _GIB
    is_read = run.checkpoint is not None
    steps = run.recipe.epochs or run.recipe.steps
    plain = run.recipe.optimiser.name == "sgd" and not run.recipe.momentum
    states = 0 if plain or not steps else _STATES.get(run.recipe.optimiser.name, 2)
    example = facts(workload.data).example(kind if run.precision == PURE else torch.float32)
    saved, logits = _saved(model.to(kind) if run.precision == PURE else model, example)
    batch = run.recipe.micro_batch
    # What is only evaluated keeps nothing for a backward pass.
    left = batch * (saved + logits) if steps or run.stage == "prune" else logits
    has_gradients = (bool(steps) or run.stage == "prune") and not is_read
    teacher = (
        sum(each.numel() for each in shapes.dense_network(workload).parameters()) if run.teacher is not None else 0
    )
    return Footprint(
        weights + teacher * kind.itemsize / _GIB, weights if has_gradients else 0.0, states * weights, left / _GIB
    )


def _saved(model: nn.Module, example: torch.Tensor) -> tuple[int, int]:
    """Bytes that one example leaves for a backward pass, weights left out, and those of its logits in float32."""

    def ask(network: nn.Module, inputs: torch.Tensor) -> tuple[int, int]:
        for parameter in network.parameters():
            parameter.requires_grad_(parameter.is_floating_point())
        known = {each.untyped_storage()._cdata for each in (*network.parameters(), *network.buffers())}
        found: dict[int, int] = {}

        def note(tensor: torch.Tensor) -> torch.Tensor:
            storage = tensor.untyped_storage()
            if storage._cdata not in known:
                found[storage._cdata] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            logits = network.train()(inputs)
            loss = F.cross_entropy(logits.float(), logits.argmax(dim=1))
        del loss
        return sum(found.values()), 4 * logits.numel()

    return on_fakes(model, example, ask)
