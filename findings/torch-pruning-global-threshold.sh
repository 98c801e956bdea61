#!/usr/bin/env bash
# torch-pruning 1.6.1: with global_pruning a higher ratio may remove fewer filters, and spares the layers that are weakest.
#
# One threshold is found over the scores of all layers; of each layer the filters below it go. Where this would be all
# filters of a layer, none of them goes, and nothing takes their place or says so. So a layer whose filters are all weak,
# the first that a global criterion should thin, stays whole, and near ratio 1 so do the others.
#
# Seen, 10 weak filters in the first and 40 strong ones in the second convolution, by ratio asked, filters that stay:
# 0.1: 10 + 35, 0.3: 10 + 25, 0.5: 10 + 15, 0.9: 4 + 40 (44 of 50 instead of 5).
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet torch==2.13.0 torch-pruning==1.6.1 numpy==2.4.6
"$folder/env/bin/python" - <<'PY'
from importlib.metadata import version

import torch
import torch_pruning as tp
from torch import nn


def left(ratio):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 10, 3), nn.ReLU(), nn.Conv2d(10, 40, 3), nn.ReLU(), nn.Flatten(), nn.Linear(640, 5)
    )
    with torch.no_grad():
        model[0].weight.mul_(0.01)
    pruner = tp.pruner.MagnitudePruner(
        model,
        torch.zeros(1, 3, 8, 8),
        importance=tp.importance.MagnitudeImportance(p=2, normalizer=None),
        global_pruning=True,
        pruning_ratio=ratio,
        ignored_layers=[model[5]],
    )
    pruner.step()
    return model[0].out_channels, model[2].out_channels


found = {ratio: left(ratio) for ratio in (0.1, 0.3, 0.5, 0.9)}
print("torch", torch.__version__, "torch-pruning", version("torch-pruning"))
for ratio, widths in found.items():
    print(f"ratio {ratio}: {widths[0]} + {widths[1]} filters stay")
assert found == {0.1: (10, 35), 0.3: (10, 25), 0.5: (10, 15), 0.9: (4, 40)}
PY
