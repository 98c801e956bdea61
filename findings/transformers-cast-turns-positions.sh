#!/usr/bin/env bash
# transformers 5.24.0 with torch 2.14.1: one checkpoint, asked for in bfloat16 and cast to it, is two networks.
#
# from_pretrained(dtype=torch.bfloat16) keeps the rates of rotary positions ("inv_freq", a buffer of no checkpoint) in
# float32; model.to(torch.bfloat16) and model.bfloat16() round them with the rest. Every parameter is then the same, bit
# for bit, and angles are not: they are position times rate, so that the error grows with the length of a text. Two arms
# of which one was loaded so and the other so differ without any pruning, at late positions most of all, and a digest
# of weights sees nothing.
#
# Seen: parameters alike; rates float32 and bfloat16; 0.37 radians apart at position 2047; logits differ.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet torch==2.14.1 transformers==5.24.0
"$folder/env/bin/python" - <<'PY' | tee "$folder/seen"
import tempfile

import torch
from transformers import LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
config = LlamaConfig(**sizes, vocab_size=99, max_position_embeddings=2048)


def rates(model):
    return next(buffer for name, buffer in model.named_buffers() if name.endswith("inv_freq"))


with tempfile.TemporaryDirectory() as checkpoint:
    LlamaForCausalLM(config).save_pretrained(checkpoint)
    asked = LlamaForCausalLM.from_pretrained(checkpoint, dtype=torch.bfloat16).eval()
    cast = LlamaForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).to(torch.bfloat16).eval()
pairs = zip(asked.parameters(), cast.parameters(), strict=True)
print("parameters alike:", all(torch.equal(one, other) for one, other in pairs))
print("rates of positions:", rates(asked).dtype, rates(cast).dtype)
angles = [2047 * rates(model).double() for model in (asked, cast)]
print("radians apart at position 2047:", round(float((angles[0] - angles[1]).abs().max()), 2))
tokens = torch.randint(0, 99, (1, 2048))
with torch.no_grad():
    logits = [model(tokens).logits for model in (asked, cast)]
print("logits alike:", torch.equal(*logits))
PY
grep -q "parameters alike: True" "$folder/seen"
grep -q "positions: torch.float32 torch.bfloat16" "$folder/seen"
grep -q "position 2047: 0.37" "$folder/seen"
grep -q "logits alike: False" "$folder/seen"
