#!/usr/bin/env bash
# torch 2.14.1: the first optimiser that a process makes imports torch's compiler, whether anything is compiled or not.
#
# Optimizer.add_param_group is kept out of torch.compile by a decorator that imports torch._dynamo when it is first
# called, which is in the constructor of every optimiser, one's own subclasses included. It is several hundred modules,
# almost as many as "import torch" itself, and two seconds of CPU on a slow core: each worker of a test session pays
# them in its first test that trains, and a process forked before pays them again in every child. Importing
# torch._dynamo where the parent waits anyway takes that away; lr_scheduler and autograd alone do not import it.
#
# Seen: not imported after a backward pass; imported by a subclass that does nothing, with over 700 modules more.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet torch==2.14.1
"$folder/env/bin/python" - <<'PY' | tee "$folder/seen"
import sys

import torch
from torch.optim import lr_scheduler  # noqa: F401


class Nothing(torch.optim.Optimizer):
    def __init__(self, parameters):
        super().__init__(parameters, {})


weight = torch.nn.Parameter(torch.ones(2))
weight.sum().backward()
before = len(sys.modules)
print("modules that import torch brings, at least:", before // 100 * 100)
print("compiler imported after a backward pass:", "torch._dynamo" in sys.modules)
Nothing([weight])
print("compiler imported by an optimiser that does nothing:", "torch._dynamo" in sys.modules)
print("more than 500 modules more:", len(sys.modules) - before > 500)
PY
grep -q "after a backward pass: False" "$folder/seen"
grep -q "that does nothing: True" "$folder/seen"
grep -q "modules more: True" "$folder/seen"
