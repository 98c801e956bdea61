#!/usr/bin/env bash
# torch-pruning 1.6.1: in front of a grouped convolution, channels are removed from the wrong groups.
#
# Each group of a grouped convolution has weights for its own inputs. When inputs go, torch-pruning takes the places that
# stay in the first group for all groups. Where another set stays in another group, the network still runs, with as many
# channels as it should have, and its weights meet inputs that they were not trained on.
#
# Seen, largest difference to the network in which the same channels are silent, relative to its outputs, float64: below
# 1e-12 where both groups lose the same places, above 0.01 where they lose others.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet torch==2.13.0 torch-pruning==1.6.1 numpy==2.4.6
"$folder/env/bin/python" - <<'PY'
import copy
from importlib.metadata import version

import torch
import torch_pruning as tp
from torch import nn

torch.manual_seed(0)
model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3, groups=2), nn.Conv2d(4, 2, 3)).double().eval()
images = torch.randn(2, 3, 12, 12, dtype=torch.float64)


def difference(gone):
    silent, small = copy.deepcopy(model), copy.deepcopy(model)
    with torch.no_grad():
        silent[0].weight[gone] = 0
        silent[0].bias[gone] = 0
    graph = tp.DependencyGraph().build_dependency(small, images[:1])
    graph.get_pruning_group(small[0], tp.prune_conv_out_channels, idxs=gone).prune()
    assert small[0].out_channels == small[1].in_channels == 4
    with torch.no_grad():
        expected = silent(images)
        return float((small(images) - expected).abs().max() / expected.abs().max())


same, other = difference([0, 1, 4, 5]), difference([0, 1, 6, 7])
print("torch", torch.__version__, "torch-pruning", version("torch-pruning"))
print(f"the same places of both groups: {same:.1e}; others: {other:.2f}")
assert same < 1e-12 and other > 0.01
PY
