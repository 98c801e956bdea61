#!/usr/bin/env bash
# transformers 4.57.3 writes pruned heads into a checkpoint's configuration; 5.24.0 keeps the words and prunes nothing.
#
# Until 4.57 a model whose heads were removed was saved with "pruned_heads" in config.json, and loading it made a network
# of those sizes. In 5.24 models have no prune_heads, and "pruned_heads" is an attribute of the configuration that nobody
# reads: a model made of it is dense. Its pruned weights then fit nowhere. from_pretrained refuses them; with
# ignore_mismatched_sizes=True, which its message names, it gives the dense network, drawn at random wherever a head was
# removed, whose configuration still says that it is pruned. Counts of published head-pruned checkpoints depend on the
# version that reads them, and "parameters left" taken from the configuration is not what is computed.
#
# Seen, parameters of a BERT of two layers with four heads, three of eight removed (dense: 36322):
#   4.57.3: 33178 when saved, 33178 when loaded, the same answers
#   5.24.0: no prune_heads; made of the configuration 36322; loaded: refused; told to go on 36322 with heads {'0': [0, 1],
#           '1': [2]}, other answers
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet torch==2.14.1 numpy==2.4.6 transformers==4.57.3
cat >"$folder/common.py" <<'PY'
import logging
import os
import sys
import warnings

warnings.simplefilter("ignore")
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
import torch
import transformers
from transformers import BertConfig, BertForSequenceClassification

transformers.logging.set_verbosity_error()
logging.disable(logging.CRITICAL)
place = os.path.join(os.path.dirname(os.path.abspath(__file__)), "checkpoint")
tokens = torch.arange(1, 11)[None]


def parameters(model):
    return sum(parameter.numel() for parameter in model.parameters())


def answers(model):
    return model.eval()(tokens, attention_mask=torch.ones_like(tokens)).logits.detach()
PY
cat >"$folder/four.py" <<'PY'
from common import *

torch.manual_seed(0)
sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 50}
model = BertForSequenceClassification(BertConfig(**sizes))
print(transformers.__version__, "dense", parameters(model))
model.prune_heads({0: [0, 1], 1: [2]})
model.save_pretrained(place)
torch.save(answers(model), place + ".pt")
loaded = BertForSequenceClassification.from_pretrained(place)
print("saved", parameters(model), "loaded", parameters(loaded), torch.equal(answers(model), answers(loaded)))
PY
cat >"$folder/five.py" <<'PY'
from common import *

made = BertForSequenceClassification(BertConfig.from_pretrained(place))
print(transformers.__version__, "prune_heads:", hasattr(made, "prune_heads"), "made of it", parameters(made))
try:
    BertForSequenceClassification.from_pretrained(place)
    print("loaded")
except RuntimeError as error:
    print("refused:", "ignore_mismatched_sizes" in str(error))
loaded = BertForSequenceClassification.from_pretrained(place, ignore_mismatched_sizes=True)
same = torch.allclose(answers(loaded), torch.load(place + ".pt"), atol=1e-5)
print("told to go on:", parameters(loaded), loaded.config.pruned_heads, "same answers:", same)
PY
"$folder/env/bin/python" "$folder/four.py" 2>/dev/null | tee "$folder/seen"
"$folder/env/bin/pip" install --quiet transformers==5.24.0
"$folder/env/bin/python" "$folder/five.py" 2>/dev/null | tee -a "$folder/seen"
diff "$folder/seen" - <<'SEEN'
4.57.3 dense 36322
saved 33178 loaded 33178 True
5.24.0 prune_heads: False made of it 36322
refused: True
told to go on: 36322 {'0': [0, 1], '1': [2]} same answers: False
SEEN
