#!/usr/bin/env bash
# torch-pruning 1.6.1: operations over the channel axis count as element-wise, and the cut changes what the rest computes.
#
# x.softmax(1) and x + x.mean(1, keepdim=True) make every channel depend on all others. The dependency graph passes channel
# indices straight through both, so that a filter in front of them is removed without a word; the network runs, but what
# is left of it is not the network in which that filter is silent. Only a comparison of outputs tells.
#
# Seen, largest difference of outputs relative to their scale, float64: none below 1e-12 for relu; for softmax and the
# mean over channels above 0.01.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6 torch-pruning==1.6.1
"$folder/env/bin/python" - <<'PY'
import copy

import torch
import torch_pruning
from torch import nn


class Network(nn.Module):
    def __init__(self, between):
        super().__init__()
        self.first, self.second, self.between = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 3), between

    def forward(self, images):
        return self.second(self.between(self.first(images)))


def difference(between):
    torch.manual_seed(0)
    whole, images = Network(between).double().eval(), torch.randn(2, 3, 12, 12, dtype=torch.float64)
    small = copy.deepcopy(whole)
    graph = torch_pruning.DependencyGraph().build_dependency(small, example_inputs=images)
    graph.get_pruning_group(small.first, torch_pruning.prune_conv_out_channels, idxs=[1, 4]).prune()
    with torch.no_grad():
        # Silent: whoever reads the two channels reads zeros.
        whole.second.weight[:, [1, 4]] = 0
        expected, found = whole(images), small(images)
    return float((expected - found).abs().max() / expected.abs().max())


found = {
    "relu": difference(torch.relu),
    "softmax": difference(lambda maps: maps.softmax(1)),
    "mean": difference(lambda maps: maps + maps.mean(1, keepdim=True)),
}
print("torch-pruning 1.6.1, torch", torch.__version__, {name: f"{value:.1e}" for name, value in found.items()})
assert found["relu"] < 1e-12 and found["softmax"] > 0.01 and found["mean"] > 0.01
PY
