#!/usr/bin/env bash
# torch-pruning 1.6.1: in how many steps a ratio is reached decides the network, with no training between the steps.
#
# With one ratio for each layer, weights that nobody trains give the same widths in one step or in seven. With
# global_pruning they do not: after each step the filters that are left have fewer inputs, a group's scores are divided by
# their own mean anew, and the threshold of all layers falls elsewhere. Layers that lost most lose most again. "Ratio 0.5,
# global" is a network of 10.1 million MACs in one step, and of 6.4 in seven, with half as many parameters again: one-shot
# and iterative arms of one ratio differ in cost before either learns anything.
#
# And max_pruning_ratio bounds no step. It is looked at before a step, and leaves alone what has passed it: with
# max_pruning_ratio=0.2 every layer loses a half in one step, and a fifth in five.
#
# Seen, ResNet-18 on 32 pixels (37.2 million MACs, 11.2 million parameters), random weights, MagnitudeImportance(p=1), 0.5:
#   a layer's own  1, 3, 7 steps: 9940234 MACs, 2801450 parameters each
#   global         1 step: 10072060, 2831595; 3 steps: 7341879, 3644974; 7 steps: 6360943, 4266962
#   max 0.2, most that a layer lost: 0.5 in 1 step, 0.203 in 5
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet torch==2.14.1 torchvision==0.29.1 torch-pruning==1.6.1 numpy==2.4.6
"$folder/env/bin/python" -W ignore - <<'PY' | tee "$folder/seen"
import torch
import torch_pruning as tp
import torchvision
from torch import nn

inputs = torch.zeros(1, 3, 32, 32)


def widths(model):
    return [module.out_channels for module in model.modules() if isinstance(module, nn.Conv2d)]


def pruned(steps, **how):
    """MACs, parameters, and the largest part that a layer lost."""
    torch.manual_seed(0)
    model = torchvision.models.resnet18(num_classes=10).eval()
    before = widths(model)
    pruner = tp.pruner.BasePruner(
        model,
        inputs,
        importance=tp.importance.MagnitudeImportance(p=1),
        pruning_ratio=0.5,
        iterative_steps=steps,
        ignored_layers=[model.fc],
        **how,
    )
    for _ in range(steps):
        pruner.step()
    lost = max(1 - now / then for now, then in zip(widths(model), before, strict=True))
    macs, parameters = tp.utils.count_ops_and_params(model, inputs)
    return int(macs), parameters, round(lost, 3)


for steps in (1, 3, 7):
    print("own", steps, *pruned(steps)[:2], "global", *pruned(steps, global_pruning=True)[:2])
print("max 0.2:", *(pruned(steps, max_pruning_ratio=0.2)[2] for steps in (1, 5)))
PY
diff "$folder/seen" - <<'SEEN'
own 1 9940234 2801450 global 10072060 2831595
own 3 9940234 2801450 global 7341879 3644974
own 7 9940234 2801450 global 6360943 4266962
max 0.2: 0.5 0.203
SEEN
