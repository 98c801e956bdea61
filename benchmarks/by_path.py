"""A decoder of a billion parameters by path: loaded, pruned, evaluated, recovered and saved, in how much memory.

    python benchmarks/by_path.py [FOLDER]        writes a random model of 2.2 GB there, in shards, unless it has one

Half of the key/value groups and neurons go by magnitude; SGD with momentum recovers what is left. Everything is
computed in bfloat16, as the files keep it. Each part runs in a process of its own, so that the most memory that it ever
held is its own; "above" is what it held before. Needs pruneaudit[transformers].
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from resident import largest_set
from safetensors.torch import save_file
from torch import nn

#: As TinyLlama 1.1B (Zhang et al. 2024): 22 layers, 32 query heads on 4 key/value heads, untied.
SIZES = {
    "vocab_size": 32000,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 22,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "max_position_embeddings": 2048,
}
#: Tokens of a window; windows that are scored, and that the network is recovered on, one for each step.
WINDOW, SCORED, STEPS = 128, 8, 4
RATIO = 0.5
PATTERNS = ("net.model.layers.*.self_attn.k_proj", "net.model.layers.*.mlp.gate_proj")


def main() -> None:
    """Run each part in a process of its own."""
    if len(sys.argv) == 3:
        PARTS[sys.argv[1]](Path(sys.argv[2]))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(sys.argv[1] if len(sys.argv) > 1 else temporary)
        for part in PARTS:
            if part != "write" or not (folder / "config.json").is_file():
                subprocess.run([sys.executable, __file__, part, str(folder)], check=True)


def write(folder: Path) -> None:
    """Write a random model, a shard for each layer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder.mkdir(parents=True, exist_ok=True)
    config = LlamaConfig(**SIZES)
    with torch.device("meta"):
        net = LlamaForCausalLM(config)
    # Layers share their values, shifted: drawing a billion takes minutes.
    values = torch.randn(1 << 22, generator=torch.Generator().manual_seed(0)).mul_(0.02).to(torch.bfloat16)
    shards: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, parameter in net.named_parameters():
        layer = next((part for part in name.split(".") if part.isdigit()), "words")
        shards.setdefault(f"model-{layer}.safetensors", {})[name] = tuple(parameter.shape)
    for number, (file, names) in enumerate(shards.items()):
        tensors = {
            name: torch.ones(shape, dtype=torch.bfloat16)
            if len(shape) == 1
            else values.roll(len(name) + number)
            .repeat(-(-math.prod(shape) // len(values)))[: math.prod(shape)]
            .view(shape)
            for name, shape in names.items()
        }
        save_file(tensors, folder / file, {"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, names in shards.items() for name in names}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config.save_pretrained(folder)
    count = sum(parameter.numel() for parameter in net.parameters())
    print(f"{count:,} parameters in {len(shards)} shards")


def load(folder: Path) -> None:
    """Load it, and say what that took beside the libraries."""
    described(folder)
    before = largest_set()
    model = loaded(folder)
    weights = sum(each.numel() * each.element_size() for each in model.parameters()) / 2**20
    above = largest_set() - before
    print(f"load: {weights:,.0f} MiB of weights in {above:,.0f} MiB above {before:,.0f}: {above / weights:.2f}x")


def prune(folder: Path) -> None:
    """Evaluate, prune, evaluate, recover, evaluate and save."""
    from pruneaudit.measure.accuracy import evaluate
    from pruneaudit.pruning.removal import units_named, without
    from pruneaudit.training.loop import Trainer
    from pruneaudit.training.metering import Meter
    from pruneaudit.workloads.data import Dataset, Part
    from pruneaudit.workloads.models.tensors import state_of
    from pruneaudit.workloads.recipes import Recipe
    from pruneaudit.workloads.schema import DataConfig

    torch.set_num_threads(2)
    draw = torch.Generator().manual_seed(1)
    words = torch.randint(SIZES["vocab_size"], (SCORED, WINDOW + 1), generator=draw)
    part = Part(words[:, :-1].contiguous(), words[:, 1:].contiguous())
    data = Dataset(DataConfig(name="random"), SIZES["vocab_size"], part, part, part, "random")
    model = loaded(folder)

    def told(what: str, began: float) -> None:
        loss = evaluate(model, data, part, "pure-bf16").loss
        count = sum(each.numel() for each in model.parameters())
        print(
            f"{what}: {count / 1e9:.2f} G parameters, loss {loss:.3f}, {time.perf_counter() - began:.0f} s, "
            f"at most {largest_set() / 1024:.2f} GiB so far"
        )

    told("dense", time.perf_counter())
    began = time.perf_counter()
    names = chosen(model)
    units = units_named(model, torch.zeros(1, WINDOW, dtype=torch.int64), names)
    kept = {}
    for unit in units:
        weight = dict(model.named_modules())[unit.name].weight.detach()
        scores, channels = unit.candidates(weight.abs().float().sum(dim=1))
        stays = scores.argsort(descending=True)[: len(scores) - int(RATIO * len(scores))]
        kept[unit.name] = channels[stays].flatten().sort().values.tolist()
    without(model, kept, units)
    told("pruned", began)
    began = time.perf_counter()
    recipe = Recipe(steps=STEPS, lr="0:1e-2", batch=1, momentum=0.9, clip=1.0)
    with Meter(model) as meter:
        Trainer(model, data, recipe, 0, "recovery", meter, "pure-bf16").fit()
    told(f"recovered by {STEPS} steps of SGD", began)
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        save_file(state_of(model), Path(temporary) / "small.safetensors")
        print(f"saved: {(Path(temporary) / 'small.safetensors').stat().st_size / 2**30:.2f} GiB")
    print(f"at most {largest_set() / 1024:.2f} GiB resident")


def loaded(folder: Path) -> nn.Module:
    """The model of a folder, as a session loads it."""
    from pruneaudit.training.precision import place
    from pruneaudit.workloads.checkpoints import found_in
    from pruneaudit.workloads.models.tensors import take
    from pruneaudit.workloads.schema import Reading

    model = described(folder)
    take(model, found_in(folder, Reading(), model, "the model").read())
    return place(model, "cpu", "pure-bf16").eval()


def described(folder: Path) -> nn.Module:
    """The same without its weights."""
    from pruneaudit.workloads.models import build
    from pruneaudit.workloads.networks import Network

    return build(Network(model=f"hf:{folder}"), 0, SIZES["vocab_size"])


def chosen(model: nn.Module) -> list[str]:
    """Layers that lead what is pruned."""
    from pruneaudit.pruning.layers import prunable_names

    return prunable_names(model, PATTERNS)


PARTS = {"write": write, "load": load, "prune": prune}

if __name__ == "__main__":
    main()
