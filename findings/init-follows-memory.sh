#!/usr/bin/env bash
# torch 2.13.0: what torch.nn.init draws for a weight depends on how the weight lies in memory.
#
# The same generator state gives a channels-last weight other values than a contiguous one, and not only in another order:
# the numbers themselves are others, and the generator is left in another state. A network that is moved to channels last
# before it is initialised therefore starts elsewhere than one that is moved afterwards, with the same seed.
#
# Seen: equal place by place False, the same numbers False, next draw equal False.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
"$folder/env/bin/python" - <<'PY'
import torch
from torch import nn


def drawn(layout):
    weight = torch.empty(8, 4, 3, 3).to(memory_format=layout)
    generator = torch.Generator().manual_seed(0)
    nn.init.kaiming_normal_(weight, generator=generator)
    return weight, torch.randn(16, generator=generator)


(plain, after), (last, after_last) = drawn(torch.contiguous_format), drawn(torch.channels_last)
same_numbers = torch.equal(plain.flatten().sort().values, last.flatten().sort().values)
next_equal = torch.equal(after, after_last)
print("torch", torch.__version__)
print("equal place by place", torch.equal(plain, last), "the same numbers", same_numbers, "next draw equal", next_equal)
assert not torch.equal(plain, last) and not same_numbers and not next_equal
PY
