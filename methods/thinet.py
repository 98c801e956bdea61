"""ThiNet: keeps what the next layer computes."""

import torch

from pruneaudit import Card, Kept, Method, PruningTask
from pruneaudit.pruning.reconstruction import consumers, contributions, nearest_solution, samples, silence


class ThiNet(Method):
    """Greedily removes the filters whose loss changes the next layer's inputs to ReLU least. Luo et al., ICCV 2017.

    An output of the next layer at one position is a sum over channels, y = Σ_c x̂_c (its bias apart). The set T of
    filters to remove grows by the filter with the smallest Σ (Σ_{c ∈ T} x̂_c)² over sampled outputs.
    Then the weights of each remaining channel c in the next layer are scaled by one number w_c, such that
    Σ (y - Σ_c w_c · x̂_c)² is smallest (sec. 3.2). Layers are pruned from first to last, on the network that
    earlier ones left.

    Deviation: all outputs at a sampled position count, not a random one of them, so that nothing depends on the order
    of filters. Of several solutions the one nearest to 1 is taken. No training between layers (the paper's one or two
    epochs each): all training is the retraining that every arm gets.

    It does not apply to networks where layers lose filters together, or are read in groups or beside other channels:
    what a filter passes on is then more than the weights that read it.
    """

    rewrites = True
    coupled = False
    card = Card(
        criterion="change of the next layer's outputs, greedily",
        schedule="one-shot, layer by layer",
        base="trained",
        training="none; least squares over images",
        source="Luo et al., ICCV 2017",
    )

    def __init__(self, batches: int = 8, positions: int = 10) -> None:
        self.batches = batches
        self.positions = positions

    def prune(self, task: PruningTask) -> Kept:
        """Layer by layer: choose, rescale the next layer, silence."""
        batches = [images for images, _ in task.batches(self.batches)]
        kept = {}
        for layer in task.layers:
            removed = task.removed(layer)
            grams = {}
            for number, consumer in enumerate(consumers(layer)):
                draw = task.generator(layer.name, number)
                windows, _ = samples(task.model, consumer.module, batches, self.positions, draw)
                grams[consumer] = contributions(consumer, windows, layer.channels)
            gone = greedy(sum(grams.values()), removed)
            stays = [index for index in range(layer.channels) if index not in gone]
            for consumer, gram in grams.items():
                scale = torch.ones(layer.channels, dtype=gram.dtype)
                scale[stays] += nearest_solution(gram[stays][:, stays], gram[stays][:, gone].sum(dim=1, keepdim=True))[
                    :, 0
                ]
                weight = consumer.module.weight
                factors = scale[consumer.filters].to(weight).view(1, -1, *[1] * (weight.dim() - 2))
                with torch.no_grad():
                    weight.mul_(factors)
            silence(layer, stays)
            kept[layer.name] = stays
        return kept


def greedy(gram: torch.Tensor, count: int) -> list[int]:
    """Channels whose joint contribution is small, added one by one (ties: the lower index).

    Args:
        gram: Products of the channels' contributions, ``[C, C]``.
        count: How many.
    """
    gone: list[int] = []
    with_gone = torch.zeros(len(gram), dtype=gram.dtype)
    for _ in range(count):
        # ‖s + x_c‖² without ‖s‖², which is the same for all c.
        growth = gram.diagonal() + 2 * with_gone
        growth[gone] = torch.inf
        gone.append(int(growth.argmin()))
        with_gone += gram[gone[-1]]
    return gone
