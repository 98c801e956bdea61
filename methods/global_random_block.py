"""Random removal of whole residual blocks, the control."""

import torch

from pruneaudit import Card, Kept, Method, PruningTask, shapes
from pruneaudit.config import Workload


class GlobalRandomBlock(Method):
    """Uniformly random blocks: the control of methods that remove whole blocks. After Blalock et al., MLSys 2020.

    As many go as bring the MACs nearest to those of uniform pruning, at least one.

    The id does not start with "random" because such controls must keep the same share of every layer within one filter
    (conformance check ``uniform-over-width``), and a block stays whole or goes.
    """

    granularity = "block"
    scope = "global"
    card = Card(
        criterion="none (a uniform draw)",
        schedule="one-shot",
        base="trained",
        training="none",
        source="Blalock et al., MLSys 2020",
    )

    def skip(self, workload: Workload) -> str | None:
        """Networks without residual blocks have nothing to draw from."""
        return None if shapes.costs(workload).blocks else f"{workload.model} has no residual blocks"

    def prune(self, task: PruningTask) -> Kept:
        """Keep the blocks that are drawn last."""
        draws = {
            layer.name: torch.rand(1, generator=task.generator(layer.name), dtype=torch.float64)
            for layer in task.layers
        }
        task.scored()
        return task.keep(draws, self.scope)
