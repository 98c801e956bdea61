"""ShortGPT: whole blocks of a transformer, by how little they change what passes them."""

from typing import Any

import torch
import torch.nn.functional as F

from pruneaudit import Card, Kept, Method, PruningTask, shapes
from pruneaudit.config import Workload


class ShortGPT(Method):
    """Blocks that change the residual stream least first. Men et al. 2024 (arXiv 2403.03853), eq. 1.

    The influence of block i is 1 - E[xᵢ · xᵢ₊₁ / (‖xᵢ‖ ‖xᵢ₊₁‖)], with xᵢ what enters it of a token and xᵢ₊₁ what
    leaves it, over all tokens of the calibration examples. All are measured in one pass of the dense network.

    Deviation: the authors remove a number of blocks that they state; here as many go as bring the MACs nearest to those
    of uniform pruning, at least one. They calibrate on PG19; here all methods score with the same examples.
    """

    granularity = "block"
    scope = "global"
    card = Card(
        criterion="influence of the block: one minus the cosine between what enters and what leaves it",
        schedule="one-shot",
        base="trained",
        training="none",
        source="Men et al. 2024, arXiv 2403.03853",
    )

    def __init__(self, batches: int = 4) -> None:
        self.batches = batches

    def skip(self, workload: Workload) -> str | None:
        """Only blocks that attend keep the shape of what passes them."""
        return None if shapes.blocks_attend(workload) else f"{workload.model} has no blocks of attention"

    def prune(self, task: PruningTask) -> Kept:
        """Keep the blocks with the most influence."""
        sums = {layer.name: torch.zeros((), dtype=torch.float64) for layer in task.layers}
        tokens = dict.fromkeys(sums, 0)

        def listen(name: str) -> Any:
            def hear(block: Any, inputs: Any, outputs: Any) -> None:
                left = outputs[0] if isinstance(outputs, tuple) else outputs
                cosines = F.cosine_similarity(inputs[0].double(), left.double(), dim=-1)
                sums[name] += cosines.sum().cpu()
                tokens[name] += cosines.numel()

            return hear

        handles = [layer.block.register_forward_hook(listen(layer.name)) for layer in task.layers]
        with torch.no_grad():
            for inputs, _ in task.batches(self.batches):
                task.model(inputs)
        for handle in handles:
            handle.remove()
        task.scored()
        return task.keep({name: (1 - total / tokens[name]).view(1) for name, total in sums.items()}, self.scope)
