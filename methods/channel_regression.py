"""Channel pruning by LASSO regression."""

import copy

import torch
from sklearn.linear_model import lars_path_gram

from pruneaudit import Card, Kept, Method, PruningTask
from pruneaudit.pruning.layers import PrunableLayer
from pruneaudit.pruning.reconstruction import (
    Consumer,
    consumers,
    contributions,
    correlations,
    nearest_solution,
    samples,
    silence,
)


class ChannelRegression(Method):
    """Chooses channels by LASSO on the next layer's outputs, then refits its weights. He et al., ICCV 2017, sec. 3.1.

    With x̂_c what channel c adds to an output of the next layer, and y that output (its bias apart) in the original
    network, β minimises ½ · Σ (y - Σ_c β_c · x̂_c)² + λ · Σ_c |β_c|; λ rises until the wanted number of β_c is left.
    Then least squares over the same samples refits the next layer's weights to the channels that are left. Layers are
    pruned from first to last; x̂ is what the network computes without the filters of earlier layers, so that a layer
    makes up for the error so far (sec. 3.2). As in the paper's experiments, the choice comes first and the refit once,
    after it, and x̂_c has the trained weights: β = 1 is the network as it is.

    Deviation: the whole path of solutions is followed exactly (LARS) instead of trying values of λ. Where fewer than
    the wanted number ever differ from zero (dead channels), the first of the others stay, too. Of several least-squares
    solutions the one nearest to the trained weights is taken. In a residual block the branch's own output is kept, not
    the sum with the shortcut (sec. 3.3), because a normalisation stands between.

    It does not apply to networks where layers lose filters together, or are read in groups or beside other channels:
    what a filter passes on is then more than the weights that read it.
    """

    rewrites = True
    coupled = False
    card = Card(
        criterion="LASSO on the next layer's outputs",
        schedule="one-shot, layer by layer",
        base="trained",
        training="none; least squares over images",
        source="He et al., ICCV 2017",
    )

    def __init__(self, batches: int = 8, positions: int = 10) -> None:
        self.batches = batches
        self.positions = positions

    def prune(self, task: PruningTask) -> Kept:
        """Layer by layer: choose, refit the next layer, silence."""
        batches = [images for images, _ in task.batches(self.batches)]
        original = copy.deepcopy(task.model)
        names = {module: name for name, module in task.model.named_modules()}
        kept = {}
        for layer in task.layers:
            found = []
            for number, consumer in enumerate(consumers(layer)):
                # The same positions in both networks.
                module = original.get_submodule(names[consumer.module])
                _, wanted = samples(original, module, batches, self.positions, task.generator(layer.name, number))
                windows, _ = samples(
                    task.model, consumer.module, batches, self.positions, task.generator(layer.name, number)
                )
                bias = consumer.module.bias
                found.append((consumer, windows, wanted if bias is None else wanted - bias.detach().double()))
            stays = choose(layer, found, layer.channels - task.removed(layer))
            for consumer, windows, wanted in found:
                refit(consumer, windows, wanted, stays)
            silence(layer, stays)
            kept[layer.name] = stays
        return kept


Samples = tuple[Consumer, torch.Tensor, torch.Tensor]


def choose(layer: PrunableLayer, found: list[Samples], count: int) -> list[int]:
    """Channels that LASSO leaves, sorted.

    Args:
        layer: The layer to prune.
        found: Each next layer with windows of its input and wanted outputs.
        count: How many channels stay.
    """
    gram = sum(contributions(consumer, windows, layer.channels) for consumer, windows, _ in found)
    products = sum(correlations(*one, layer.channels) for one in found)
    # LARS stops at absolute tolerances.
    scale = max(float(gram.diagonal().mean()), 1e-300)
    # From the largest λ, with no channel, to zero.
    _, _, path = lars_path_gram(
        (products / scale).numpy(), (gram / scale).numpy(), n_samples=1, max_iter=10 * layer.channels, method="lasso"
    )
    path = torch.as_tensor(path).abs().T
    left = (path > 0).sum(dim=1)
    # One joins at a time, so as many as wanted are left somewhere, unless others cannot make any difference.
    last = path[int((left <= count).nonzero().max())]
    order = sorted(range(layer.channels), key=lambda index: (not last[index], index))
    return sorted(order[:count])


def refit(consumer: Consumer, windows: torch.Tensor, wanted: torch.Tensor, stays: list[int]) -> None:
    """Least squares for a layer's weights of the channels that stay.

    Args:
        consumer: The layer.
        windows: Of its input, ``[S, inputs, taps]``.
        wanted: Its outputs, the bias apart, ``[S, out_channels]``.
        stays: Channels that stay.
    """
    inputs = consumer.inputs_of(stays)
    matrix = windows[:, inputs].flatten(1)
    trained = consumer.weight[:, inputs].flatten(1)
    change = nearest_solution(matrix, wanted - matrix @ trained.T).T.to(trained)
    weight = consumer.module.weight
    with torch.no_grad():
        weight[:, inputs] = (trained + change).to(weight).view(len(weight), len(inputs), *weight.shape[2:])
