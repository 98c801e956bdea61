#!/usr/bin/env bash
# torch 2.14.1: FlopCounterMode cannot count a network that hands a view of a parameter to one of its modules under no_grad.
#
# A view of a parameter that is taken under torch.no_grad still says requires_grad=True, and has no grad_fn. The counter
# registers hooks on every input of a module that requires a gradient, asks for the node of autograd's graph behind it, and
# ends with "Expected gradient function to be set". Networks with a class token do so (timm's PiT and CaiT: expand). The
# parameter itself passes, and so does the view with gradients on, or after requires_grad_(False).
#
# Seen: AssertionError for the view under no_grad; 36 MACs in the other three ways.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet torch==2.14.1 numpy==2.4.6
"$folder/env/bin/python" -W ignore - <<'PY'
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


class Network(nn.Module):
    def __init__(self, as_it_is):
        super().__init__()
        self.token, self.layer, self.as_it_is = nn.Parameter(torch.ones(1, 6)), nn.Linear(6, 3), as_it_is

    def forward(self, values):
        return self.layer(self.token if self.as_it_is else self.token.view(1, 6)) + self.layer(values)


def counted(network, gradients=False):
    try:
        with torch.set_grad_enabled(gradients), FlopCounterMode(display=False) as counter:
            network(torch.zeros(1, 6))
    except AssertionError as error:
        return f"AssertionError: {error}"
    return counter.get_total_flops() // 2


found = {
    "view": counted(Network(False)),
    "parameter": counted(Network(True)),
    "view, with gradients": counted(Network(False), gradients=True),
    "view, frozen": counted(Network(False).requires_grad_(False)),
}
print("torch", torch.__version__, found)
assert found.pop("view") == "AssertionError: Expected gradient function to be set"
assert set(found.values()) == {36}
PY
