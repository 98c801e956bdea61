#!/usr/bin/env bash
# torch 2.14.1: fake quantisation of float64 tensors puts them on float32's grid, and on two of them.
#
# Whoever checks a quantisation-aware pruning method in double precision (masked against shrunk, a gradient against
# differences) meets it: with one scale, 0.1, fake_quantize_per_tensor_affine gives 0.699999988079, as if 7 * 0.1 was
# computed in float32, and fake_quantize_per_channel_affine 0.700000010431, as if float32's 0.1 was multiplied in float64.
# Both return float64. They differ by 3e-8 on numbers that differ by nothing, so that a tolerance of 1e-9 tells one layer
# quantised by tensor from the same layer quantised by channel. In float32 they agree bit for bit.
#
# And of float64 the two do not take the same scales: by tensor a scale in float64 is taken (and rounded to float32
# without a word: the result is the same); by channel it is refused, so code that takes its scales from the weights,
# weight.abs().amax(1) / 7, runs in float32 and raises in float64.
#
# Seen (CPU):
#   float32 by tensor 0.699999988079 by channel 0.699999988079
#   float64 by tensor 0.699999988079 by channel 0.700000010431
#   float64 scale by tensor 0.699999988079
#   float64 scale by channel RuntimeError: Scale must be Float or BFloat16, found Double
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet torch==2.14.1 numpy==2.4.6
"$folder/env/bin/python" -W ignore - <<'PY' | tee "$folder/seen"
import torch


def by_tensor(x, scale):
    return torch.fake_quantize_per_tensor_affine(x, scale, torch.tensor(0), -8, 7).item()


def by_channel(x, scale):
    zero = torch.zeros(1, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(x.view(1, 1), scale.view(1), zero, 0, -8, 7).item()


tenth = torch.tensor(0.1)
for dtype in (torch.float32, torch.float64):
    x = torch.tensor(0.72, dtype=dtype)
    name = str(dtype).removeprefix("torch.")
    print(f"{name} by tensor {by_tensor(x, tenth):.12f} by channel {by_channel(x, tenth):.12f}")
print(f"float64 scale by tensor {by_tensor(x, torch.tensor(0.1, dtype=torch.float64)):.12f}")
try:
    print(f"float64 scale by channel {by_channel(x, torch.tensor(0.1, dtype=torch.float64)):.12f}")
except RuntimeError as error:
    print(f"float64 scale by channel RuntimeError: {str(error).splitlines()[0]}")
PY
diff "$folder/seen" - <<'SEEN'
float32 by tensor 0.699999988079 by channel 0.699999988079
float64 by tensor 0.699999988079 by channel 0.700000010431
float64 scale by tensor 0.699999988079
float64 scale by channel RuntimeError: Scale must be Float or BFloat16, found Double
SEEN
echo "as stated"
