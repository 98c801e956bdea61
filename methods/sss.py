"""Sparse structure selection of residual blocks."""

import torch
import torch.nn.functional as F

from pruneaudit import Budget, Card, Kept, PruningTask, TrainedMethod, shapes
from pruneaudit.config import Workload
from pruneaudit.training.loop import Hooks


class SSS(TrainedMethod):
    """Learns a sparse factor for every residual branch, removes those with the smallest. Huang & Wang, ECCV 2018.

    A block computes shortcut + λ · branch, with λ = 1 at first and ``strength`` · Σ|λ| added to the loss. Factors take
    steps of accelerated proximal gradient in its momentum form (sec. 3.3), at the optimiser's learning rate η and
    momentum μ, with S the soft threshold at η · ``strength``::

        z = S(λ - η · gradient)    v = z - λ + μ · v    λ = max(0, z + μ · v)

    No negative factors: the authors' code has it so. A branch ends with a normalisation, γ · x + β; the network holds
    λγ and λβ between steps, so that it always computes what training computed, and γ and β are what the optimiser
    sees. The gradient of λ is Σ (γ · gradient of λγ + β · gradient of λβ).

    Deviation: training starts from the shared base model, not from random weights. The paper removes blocks whose
    factor is zero; here as many go as the operating point asks for, smallest factor first (of zeros the first).
    """

    granularity = "block"
    scope = "global"
    card = Card(
        criterion="learned factor of the block",
        schedule="one-shot",
        base="trained",
        training="L1 penalty on a factor of every block, accelerated proximal gradient",
        source="Huang & Wang, ECCV 2018",
    )

    def __init__(self, strength: float = 0.01) -> None:
        self.strength = strength

    def budget(self, workload: Workload) -> Budget:
        """The workload's pruning budget."""
        return Budget(steps=workload.prune.steps, lr=workload.prune.lr)

    def skip(self, workload: Workload) -> str | None:
        """Networks without residual blocks have nothing to select; those of transformers have two branches each."""
        if not shapes.costs(workload).blocks:
            return f"{workload.model} has no residual blocks"
        attends = shapes.blocks_attend(workload)
        return f"no block of {workload.model} is one branch that ends in a normalisation" if attends else None

    def prune(self, task: PruningTask) -> Kept:
        """Train weights and factors, remove the blocks with the smallest factors."""
        norms = [getattr(layer.block, layer.block.branch[-1]) for layer in task.layers]
        parameters = [parameter for norm in norms for parameter in (norm.weight, norm.bias)]
        sizes = [parameter.numel() for parameter in parameters]
        like = {"dtype": parameters[0].dtype, "device": parameters[0].device}
        owner = torch.cat(
            [torch.full((2 * norm.num_features,), number, device=like["device"]) for number, norm in enumerate(norms)]
        )
        members = F.one_hot(owner).T.to(**like)
        state = task.state
        state["factors"] = torch.ones(len(norms), **like)
        state["velocity"] = torch.zeros(len(norms), **like)
        state["plain"] = torch.cat([parameter.detach() for parameter in parameters])

        def separate(step: int) -> None:
            """From the gradients of λγ and λβ to those of λ, γ and β: λ takes its step, the optimiser will see γ, β."""
            rate, momentum = task.recipe.rate(0, step), task.recipe.momentum
            factors = state["factors"]
            with torch.no_grad():
                gradients = [parameter.grad for parameter in parameters]
                joined = torch.cat(gradients)
                torch._foreach_copy_(gradients, (joined * factors[owner]).split(sizes))
                torch._foreach_copy_(parameters, state["plain"].split(sizes))
                shrunk = F.softshrink(factors - rate * (members @ (joined * state["plain"])), rate * self.strength)
                state["velocity"] = shrunk - factors + momentum * state["velocity"]
                state["factors"] = (shrunk + momentum * state["velocity"]).clamp_min(0)

        def multiply(step: int) -> None:
            """From γ and β back to λγ and λβ."""
            with torch.no_grad():
                state["plain"] = torch.cat(parameters)
                torch._foreach_copy_(parameters, (state["factors"][owner] * state["plain"]).split(sizes))

        task.train(hooks=Hooks(gradients=separate, after_step=multiply))
        return task.keep(
            {layer.name: factor for layer, factor in zip(task.layers, state["factors"].split(1), strict=True)},
            self.scope,
        )
