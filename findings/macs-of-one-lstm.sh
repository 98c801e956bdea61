#!/usr/bin/env bash
# torch 2.14.1, fvcore 0.1.5.post20221221, thop 0.1.1.post2209072238, torchprofile 0.1.0: none counts all recurrences.
#
# Torch's FlopCounterMode and fvcore agree on an LSTM on a CPU: it costs nothing. For fvcore that is so of every
# recurrence, and it names the operator among those that it skips. Torch counts a GRU, and an LSTM with a projection, which
# are taken apart into products of matrices; a plain LSTM is one operator (mkldnn_rnn_layer) that has no formula, and
# nothing says so. thop counts element-wise work with it, and takes an LSTM with a projection for one without.
# torchprofile has the LSTM right, and no other one. So two independent counters that agree may both miss nearly all of a
# network, and the speedup of what was pruned beside its LSTM comes out too large.
#
# Seen, MACs of 28 steps of 28 numbers with a state of 32 (each step multiplies by each matrix of weights once):
#   LSTM             215040: FlopCounterMode      0, fvcore 0, thop 229376, torchprofile 215040
#   GRU              161280: FlopCounterMode 161280, fvcore 0, thop 172928, torchprofile      0
#   LSTM, 8 outputs  136192: FlopCounterMode 136192, fvcore 0, thop 229376, torchprofile  32256
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet torch==2.14.1 torchvision==0.29.1 numpy==2.4.6 fvcore==0.1.5.post20221221 \
    thop==0.1.1.post2209072238 torchprofile==0.1.0 setuptools==80.9.0
"$folder/env/bin/python" -W ignore - <<'PY'
import logging

logging.disable(logging.CRITICAL)
import thop
import torch
import torchprofile
from fvcore.nn import FlopCountAnalysis
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

sequence = torch.zeros(1, 28, 28)


def by_torch(network):
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(sequence)
    return counter.get_total_flops() // 2


counters = {
    "FlopCounterMode": by_torch,
    "fvcore": lambda network: FlopCountAnalysis(network, sequence).total(),
    "thop": lambda network: int(thop.profile(network, (sequence,), verbose=False)[0]),
    "torchprofile": lambda network: torchprofile.profile_macs(network, sequence),
}
networks = {
    "LSTM": nn.LSTM(28, 32, batch_first=True),
    "GRU": nn.GRU(28, 32, batch_first=True),
    "LSTM, 8 outputs": nn.LSTM(28, 32, proj_size=8, batch_first=True),
}
found = {}
for name, network in networks.items():
    weights = sum(each.numel() for each in network.parameters() if each.dim() == 2)
    found[name] = [28 * weights, *(count(network.eval()) for count in counters.values())]
    print(f"{name:16}{found[name][0]:7}:", dict(zip(counters, found[name][1:])))
assert found == {
    "LSTM": [215040, 0, 0, 229376, 215040],
    "GRU": [161280, 161280, 0, 172928, 0],
    "LSTM, 8 outputs": [136192, 136192, 0, 229376, 32256],
}
PY
