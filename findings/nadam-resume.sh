#!/usr/bin/env bash
# torch 2.13.0: loading the state of NAdam changes the type of one of its numbers, and with it the training.
#
# NAdam keeps mu_product as a float32 tensor, whatever the parameters are. Optimizer.load_state_dict() casts floating-point
# state (but for "step") to the type of its parameter, so that in float64 mu_product becomes a double. A run that is saved
# and loaded goes on with other rounding than one that was never stopped: resumption is not bit-identical.
#
# Seen: mu_product torch.float32 before, torch.float64 after; ten steps later the weights are not equal.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
"$folder/env/bin/python" - <<'PY'
import copy

import torch


def steps(weight, optimiser, count):
    for _ in range(count):
        optimiser.zero_grad()
        (weight**4).sum().backward()
        optimiser.step()


weight = torch.linspace(-1, 1, 7, dtype=torch.float64, requires_grad=True)
optimiser = torch.optim.NAdam([weight], lr=0.01)
steps(weight, optimiser, 5)
loaded = weight.detach().clone().requires_grad_()
resumed = torch.optim.NAdam([loaded], lr=0.01)
resumed.load_state_dict(copy.deepcopy(optimiser.state_dict()))
before, after = optimiser.state[weight]["mu_product"].dtype, resumed.state[loaded]["mu_product"].dtype
steps(weight, optimiser, 10)
steps(loaded, resumed, 10)
print("torch", torch.__version__)
print("mu_product", before, "before,", after, "after; weights equal:", torch.equal(weight, loaded))
assert (before, after) == (torch.float32, torch.float64) and not torch.equal(weight, loaded)
PY
