"""A pruned transformer leaves the ledger, is loaded elsewhere, and says the same: layers may differ in width."""

import importlib.util
import json

import pytest
import torch
from plays import brought
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn

import pruneaudit
from pruneaudit.campaign.executors.local import LocalExecutor
from pruneaudit.campaign.export import export, network_of
from pruneaudit.campaign.planner import Campaign
from pruneaudit.campaign.stages import Stages
from pruneaudit.catalog.cells import Cell
from pruneaudit.catalog.settings import Settings
from pruneaudit.errors import ConfigError
from pruneaudit.ledger.store import Ledger
from pruneaudit.pruning import shapes
from pruneaudit.pruning.equivalence import trained_like
from pruneaudit.pruning.removal import shrink, units_named
from pruneaudit.streams import generator
from pruneaudit.training.runtime import Runtime

torch.set_num_threads(1)

TOKENS = torch.randint(100, (5, 12), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def pruned(tmp_path_factory):
    """A decoder whose layers lost different numbers of heads and neurons: catalogue, ledger and record."""
    catalog = brought(tmp_path_factory.mktemp("text"))
    ledger = Ledger(tmp_path_factory.mktemp("ledger"))
    executor = LocalExecutor(ledger, Stages(ledger, catalog, Runtime()), "session")
    cell = Campaign(catalog, ledger, Settings(), executor).obtain(Cell("text", "s3.2", "isomorphic", 0.5, 0))
    assert cell.status == "ok", cell.error
    return catalog, ledger, ledger.get(cell.result)


def exported(pruned, to):
    catalog, ledger, record = pruned
    export(ledger, catalog, record.run_id, to)
    return network_of(ledger, catalog, record).eval()


def test_weights_are_loaded_into_the_dense_network_and_go_on_alike(pruned, tmp_path):
    catalog, _, record = pruned
    judged = exported(pruned, tmp_path / "model.safetensors")
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        widths = json.loads(file.metadata()["widths"])
    assert widths == {name: len(kept) for name, kept in record.kept.items()}
    assert len({width for name, width in widths.items() if "gate_proj" in name}) == 2, "layers differ in width"
    workload = catalog.workload("text")
    dense = shapes.dense_network(workload)
    loaded = pruneaudit.load_pruned(tmp_path / "model.safetensors", dense, shapes.example(workload))
    assert loaded is dense and not loaded.training
    with torch.no_grad():
        assert torch.equal(loaded(TOKENS), judged(TOKENS))
    said = judged.generate(TOKENS, 10)
    assert torch.equal(loaded.generate(TOKENS, 10), said)
    assert torch.equal(loaded.generate(TOKENS, 10, cache=False), said)


def test_a_program_takes_any_batch_of_tokens(pruned, tmp_path):
    judged = exported(pruned, tmp_path / "model.pt2")
    program = torch.export.load(tmp_path / "model.pt2").module()
    for count in (1, 5):
        with torch.no_grad():
            torch.testing.assert_close(program(TOKENS[:count]), judged(TOKENS[:count]), rtol=1e-4, atol=1e-5)


@pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="needs pruneaudit[transformers]")
def test_a_llama_of_hugging_face_is_loaded_though_its_configuration_cannot_say_its_widths(tmp_path):
    import transformers

    class Decoder(nn.Module):
        def __init__(self):
            super().__init__()
            sizes = {"vocab_size": 100, "hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 2}
            heads = {"num_attention_heads": 8, "num_key_value_heads": 4, "bos_token_id": 0, "eos_token_id": 1}
            self.net = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, **heads))

        def forward(self, tokens):
            return self.net(input_ids=tokens, use_cache=False).logits.transpose(1, 2)

    example = TOKENS[:1]
    dense = Decoder().eval()
    trained_like(dense, generator(0, "weights"))
    names = [f"net.model.layers.{layer}.{unit}" for layer in (0, 1) for unit in ("self_attn.k_proj", "mlp.gate_proj")]
    units = units_named(dense, example, names)
    kept = {unit.name: list(range(unit.step * (1 + place), unit.channels)) for place, unit in enumerate(units)}
    small = shrink(dense, kept, example)
    facts = {"widths": json.dumps({name: len(stays) for name, stays in kept.items()}), "model": "llama"}
    tensors = {name: tensor.contiguous() for name, tensor in small.state_dict().items()}
    save_file(tensors, tmp_path / "a.safetensors", facts)
    loaded = pruneaudit.load_pruned(tmp_path / "a.safetensors", Decoder(), example)
    with torch.no_grad():
        assert torch.equal(loaded(TOKENS), small(TOKENS))
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    said = small.net.generate(TOKENS, **options)
    assert torch.equal(loaded.net.generate(TOKENS, use_cache=True, **options), said)
    assert torch.equal(loaded.net.generate(TOKENS, use_cache=False, **options), said)


def test_what_cannot_be_loaded_is_told_in_one_line(pruned, tmp_path):
    catalog, *_ = pruned
    exported(pruned, tmp_path / "model.safetensors")
    save_file({"weight": torch.zeros(1)}, tmp_path / "other.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"nothing")
    workload = catalog.workload("text")
    wider = shapes.dense_network(workload.model_copy(update={"model_args": (("width", 24), ("depth", 2))}))
    cases = [
        ("absent.safetensors", shapes.dense_network(workload), "cannot be read"),
        ("broken.safetensors", shapes.dense_network(workload), "cannot be read"),
        ("other.safetensors", shapes.dense_network(workload), "does not say its widths: write it with `pruneaudit"),
        ("model.safetensors", wider, "is a llama, and no network as given"),
        ("model.safetensors", nn.Linear(2, 2), "is a llama, and no network as given"),
    ]
    for name, network, message in cases:
        with pytest.raises(ConfigError, match=message) as caught:
            pruneaudit.load_pruned(tmp_path / name, network, shapes.example(workload))
        assert "\n" not in str(caught.value)
