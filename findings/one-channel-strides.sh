#!/usr/bin/env bash
# torch 2.13.0: a convolution weight with one input channel has two memory layouts that are "contiguous channels last".
#
# tensor.contiguous(memory_format=torch.channels_last) returns a [N, 1, H, W] weight as it is, with the strides of the
# usual layout, because both conditions hold at once. tensor.to(memory_format=torch.channels_last), which Module.to() uses,
# gives it new strides. is_contiguous() says True of both. Kernels are chosen by the strides, so that two builds that differ
# in this call alone can train a pruned network (layers of one channel) to other bits from the same seed.
#
# Seen: contiguous (9, 9, 3, 1), to (9, 1, 3, 1), is_contiguous True True.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet torch==2.13.0 numpy==2.4.6
"$folder/env/bin/python" - <<'PY'
import torch

weight = torch.arange(36.0).view(4, 1, 3, 3)
layout = torch.channels_last
kept, moved = weight.contiguous(memory_format=layout), weight.to(memory_format=layout)
print("torch", torch.__version__)
print("contiguous", kept.stride(), "to", moved.stride())
print("is_contiguous", kept.is_contiguous(memory_format=layout), moved.is_contiguous(memory_format=layout))
assert kept.stride() == (9, 9, 3, 1) and moved.stride() == (9, 1, 3, 1)
assert kept.is_contiguous(memory_format=layout) and moved.is_contiguous(memory_format=layout)
assert torch.equal(kept, moved)
PY
