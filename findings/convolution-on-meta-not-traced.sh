#!/usr/bin/env bash
# torch 2.14.1 (2.13.0 alike): on the device meta torch.jit.trace takes linear layers, norms, pooling and attention, but no convolution.
#
# While a trace is recorded, sizes are tensors. The shape of a convolution's output is computed in Python on meta, and
# checked there with torch._check, which refuses a tensor as its condition: "cond must be a bool, but got a Tensor". So
# whatever counts by a trace (fvcore) can count a transformer that has no weights in memory, and no convolutional network;
# FlopCounterMode, which runs the network, counts both.
#
# Seen: conv raises TypeError by trace and by fvcore; the others pass, and fvcore's number is that of the CPU.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet torch==2.14.1 numpy==2.4.6 fvcore==0.1.5.post20221221
"$folder/env/bin/python" -W ignore - <<'PY'
import logging

logging.disable(logging.CRITICAL)
import torch
from fvcore.nn import FlopCountAnalysis
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

networks = {
    "conv": (nn.Conv2d(3, 8, 3), torch.zeros(1, 3, 8, 8)),
    "linear": (nn.Linear(8, 8), torch.zeros(1, 8)),
    "batch norm": (nn.BatchNorm2d(3), torch.zeros(1, 3, 8, 8)),
    "average": (nn.AdaptiveAvgPool2d(1), torch.zeros(1, 3, 8, 8)),
    "encoder": (nn.TransformerEncoderLayer(8, 2, 8, batch_first=True), torch.zeros(1, 3, 8)),
}
print("torch", torch.__version__)
refused = {}
for name, (network, example) in networks.items():
    expected = FlopCountAnalysis(network.eval(), example).total()
    network, example = network.to("meta"), example.to("meta")
    ways = {
        "trace": lambda: torch.jit.trace(network, example, check_trace=False),
        "fvcore": lambda: FlopCountAnalysis(network, example).total() == expected,
    }
    for way, ask in ways.items():
        try:
            assert ask()
        except TypeError as error:
            refused[name, way] = str(error).partition(".")[0]
    print(name, {way: refused.get((name, way), "passes") for way in ways})
assert set(refused) == {("conv", "trace"), ("conv", "fvcore")}
assert set(refused.values()) == {"cond must be a bool, but got a Tensor"}
network, example = (each.to("meta") for each in networks["conv"])
with FlopCounterMode(display=False) as counter:
    network(example)
assert counter.get_total_flops() == 2 * 36 * 8 * 27
PY
