"""Language models by path: a folder of Hugging Face's is planned, read, pruned, recovered and exported; or refused."""

import importlib.util
import json
import math
import re
import shutil
import struct
from pathlib import Path

import folders
import pytest
import torch
from safetensors.torch import load_file, save_file

import pruneaudit
from pruneaudit.campaign.executors.local import LocalExecutor
from pruneaudit.campaign.export import export, network_of
from pruneaudit.campaign.footprint import footprint
from pruneaudit.campaign.planner import Campaign
from pruneaudit.campaign.stages import Stages
from pruneaudit.catalog.cells import Cell
from pruneaudit.catalog.discovery import Catalog
from pruneaudit.catalog.settings import Settings
from pruneaudit.errors import ConfigError, DataMissingError
from pruneaudit.ledger.store import Ledger
from pruneaudit.measure.cost import macs_by_layer, macs_by_torch, parameters
from pruneaudit.measure.metric import BY_ACCURACY, beside, value_of
from pruneaudit.pruning import shapes
from pruneaudit.training.precision import place
from pruneaudit.training.runtime import Runtime
from pruneaudit.workloads import sharded
from pruneaudit.workloads.checkpoints import found_in
from pruneaudit.workloads.data import facts, identity, load
from pruneaudit.workloads.models import build
from pruneaudit.workloads.models.described import narrow
from pruneaudit.workloads.models.tensors import state_of, take
from pruneaudit.workloads.networks import Network, version_of
from pruneaudit.workloads.schema import DataConfig, Reading

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None, reason="needs the extra pruneaudit[transformers]"
)
torch.set_num_threads(1)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a model, texts and a workload, and its catalogue."""
    folder = tmp_path_factory.mktemp("by-path")
    return folder, folders.by_path(folder)


@pytest.fixture
def copied(made, tmp_path):
    """A copy of the model's folder, to be damaged."""
    shutil.copytree(made[0] / "model", tmp_path / "model")
    return tmp_path / "model"


def campaign(catalog, ledger, **settings):
    return Campaign(
        catalog, ledger, Settings(**settings), LocalExecutor(ledger, Stages(ledger, catalog, Runtime()), "s")
    )


def read(folder):
    model = build(Network(model=f"hf:{folder}"), 0, 80)
    take(model, found_in(folder, Reading(), model, "the model").read())
    return model.eval()


@pytest.mark.parametrize("tied", [False, True])
def test_what_is_read_computes_what_its_library_computes(tmp_path, tied):
    import transformers

    folders.model(tmp_path, tie_word_embeddings=tied)
    net = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    assert len(list(tmp_path.glob("*.safetensors"))) > 1, "in shards"
    model, tokens = read(tmp_path), torch.randint(80, (3, 12), generator=torch.Generator().manual_seed(0))
    assert {each.dtype for each in model.parameters()} == {torch.bfloat16}
    assert parameters(model) == sum(each.numel() for each in net.parameters())
    with torch.no_grad():
        assert torch.equal(model(tokens), net(input_ids=tokens).logits.transpose(1, 2))
    assert ("net.lm_head.weight" in state_of(model)) != tied


def test_places_keep_their_digits_in_bfloat16(made):
    """Cast with the weights, rates of rotary places would tell far tokens no longer apart."""
    model = place(read(made[0] / "model"), "cpu", "pure-bf16")
    assert {each.dtype for each in model.parameters()} == {torch.bfloat16}
    assert model.net.model.rotary_emb.inv_freq.dtype == torch.float32


def test_a_folder_is_planned_without_a_weight(made, monkeypatch):
    folder, catalog = made
    monkeypatch.setattr(sharded, "read", lambda tensor: pytest.fail("a weight was read"))
    workload = catalog.workload("decoder")
    dense = shapes.dense_network(workload)
    assert all(each.is_meta for each in dense.parameters())
    example = shapes.example(workload)
    width, hidden, words, length = 32, 24, 80, 12
    each = 2 * width * width + 2 * width * width // 2 + 3 * width * hidden
    expected = length * (2 * each + width * words) + 2 * 2 * length * length * width
    assert sum(macs_by_layer(dense, example).values()) == macs_by_torch(dense, example) == expected
    assert shapes.widths_at(workload, 0.5) == {
        f"net.model.layers.{layer}.{name}": count
        for layer in (0, 1)
        for name, count in (("self_attn.k_proj", 8), ("mlp.gate_proj", 12))
    }
    work = campaign(catalog, Ledger(folder / "planned"), precision="pure-bf16")
    runs = {run.stage: run for run in work.plan(Cell("decoder", "s3.2", "taylor", 0.5, 0)).runs}
    needs = {stage: footprint(run, catalog) for stage, run in runs.items()}
    weights = 2 * parameters(dense) / 2**30
    base, prune, retrain = (needs[stage] for stage in ("pretrain", "prune", "retrain"))
    assert (base.weights, base.gradients, base.optimiser) == (pytest.approx(weights), 0, 0)
    assert (prune.weights, prune.gradients, prune.optimiser) == (pytest.approx(weights), pytest.approx(weights), 0)
    assert retrain.optimiser == pytest.approx(2 * retrain.gradients) and retrain.weights < weights
    assert base.activations < retrain.activations < prune.activations


def test_a_campaign_by_path_prunes_recovers_and_exports(made, tmp_path):
    _, catalog = made
    ledger = Ledger(tmp_path / "ledger")
    work = campaign(catalog, ledger, precision="pure-bf16")
    cells = {method: work.obtain(Cell("decoder", "s3.2", method, 0.5, 0)) for method in ("taylor", "shortgpt")}
    assert {cell.status for cell in cells.values()} == {"ok"}, [cell.error for cell in cells.values()]
    run, base = (ledger.get(getattr(cells["taylor"], stage)) for stage in ("result", "base"))
    assert base.provenance.endswith("bfloat16 weights from 2 files") and base.text.window == 12
    assert run.macs < base.macs and run.value < base.value, "random weights learn"
    assert ledger.get(run.parent).conduct.equivalence < 1e-10
    gone = ledger.get(ledger.get(cells["shortgpt"].result).parent).kept
    assert sorted(map(len, gone.values())) == [0, 16], "one of two blocks"
    export(ledger, catalog, run.run_id, tmp_path / "small.safetensors")
    workload = catalog.workload("decoder")
    loaded = pruneaudit.load_pruned(
        tmp_path / "small.safetensors", shapes.dense_network(workload), shapes.example(workload)
    )
    tokens = torch.arange(12)[None]
    with torch.no_grad():
        assert torch.equal(loaded(tokens), network_of(ledger, catalog, run).eval()(tokens))
        said = loaded.net.generate(tokens, max_new_tokens=4, do_sample=False, pad_token_id=0, use_cache=True)
    assert said.shape == (1, 16)


def test_another_folder_is_another_base_and_another_tokenizer_other_data(made, copied):
    """What an arm stands on is told by content: configuration, tokenizer and every shard."""
    first = sharded.digest(copied)
    assert first == sharded.digest(made[0] / "model")
    shard = sorted(copied.glob("*.safetensors"))[-1]
    tensors = load_file(shard)
    save_file({name: tensor * 2 for name, tensor in tensors.items()}, shard, {"format": "pt"})
    second = sharded.digest(copied)
    (copied / "tokenizer.json").write_text((copied / "tokenizer.json").read_text().replace('"river"', '"rivers"'))
    third = sharded.digest(copied)
    assert len({first, second, third}) == 3
    name = f"texts:{made[0] / 'texts'}"
    data = [identity(DataConfig(name=name, tokenizer=str(each), window=12)) for each in (made[0] / "model", copied)]
    assert data[0] != data[1]
    before = version_of(Network(model=f"hf:{copied}"))
    content = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps({**content, "rms_norm_eps": 1e-3}))
    assert version_of(Network(model=f"hf:{copied}")) != before


def test_texts_are_joined_and_cut_into_windows(made):
    _, catalog = made
    config = catalog.workload("decoder").data
    dataset = load(config)
    assert facts(config).classes == 80, "as many as the model has, though its tokenizer has fewer"
    assert dataset.test.images[0, 0] == 1 and (dataset.test.images == 1).sum() == 1, "a first token, once"
    assert torch.equal(dataset.test.images[0, 1:], dataset.test.labels[0, :-1])
    assert len(dataset.train) == (1 + 40 * 9 - 1) // 12
    # Bits per byte are by the text that the scored tokens are of: the first one, of no text, is not scored.
    (path,) = (made[0] / "texts").glob("*test*")
    text = path.read_text()
    ends = [word.end() for word in re.finditer(r"\w+|[^\w\s]+", text)]
    assert dataset.bytes_of(dataset.test) == len(text[: ends[len(dataset.test) * 12 - 1]].encode()) < len(text)
    network = build(Network(model="llama", args=(("width", 16), ("depth", 1))), 12, 80)
    score = BY_ACCURACY.evaluate(network, dataset, dataset.test, closely=True)
    of_all = score.loss * dataset.test.labels.numel()
    assert value_of("bits-per-byte", score) == pytest.approx(of_all / math.log(2) / dataset.bytes_of(dataset.test))
    assert {"loss", "bits-per-byte"} <= set(beside(score, "perplexity"))


@pytest.mark.parametrize("window", [0, 100_000])
def test_texts_need_a_window_that_they_fill(made, window):
    config = DataConfig(name=f"texts:{made[0] / 'texts'}", tokenizer=str(made[0] / "model"), window=window)
    with pytest.raises(ConfigError, match=r"both of texts:PATH|fill no window of 100000") as caught:
        facts(config)
    assert "\n" not in str(caught.value)


def test_texts_that_are_not_there_are_told_in_one_line(made, tmp_path):
    shutil.copytree(made[0] / "texts", tmp_path / "texts")
    (tmp_path / "texts" / "wiki.test.raw").unlink()
    config = DataConfig(name=f"texts:{tmp_path / 'texts'}", tokenizer=str(made[0] / "model"), window=12)
    with pytest.raises(DataMissingError, match="has no file with 'test' in its name"):
        facts(config)
    (tmp_path / "texts" / "wiki.test.jsonl").write_text("no json\n")
    with pytest.raises(ConfigError, match=r"wiki.test.jsonl cannot be read as jsonl: JSONDecodeError"):
        facts(config)


def _as_parquet(folder, documents):
    """The training texts as Hugging Face keeps C4's: a table with other columns beside the text."""
    import pandas

    (folder / "c4-train.00000.jsonl").unlink()
    half = len(documents) // 2
    for number, part in enumerate((documents[:half], documents[half:])):
        table = pandas.DataFrame({"url": range(len(part)), "text": part})
        table.to_parquet(folder / f"train-0000{number}-of-00002.parquet")


def test_texts_of_parquet_are_those_of_lines_of_json(made, tmp_path):
    pytest.importorskip("pyarrow")
    folder, catalog = made
    shutil.copytree(folder / "texts", tmp_path / "texts")
    # Documents of several lines, and an empty one, as WikiText-2 has them.
    documents = [*folders.sentences(0, 40), "the king\n\nthe queen", ""]
    lines = "\n".join(json.dumps({"text": document}) for document in documents)
    (tmp_path / "texts" / "c4-train.00000.jsonl").write_text(lines)
    config = catalog.workload("decoder").data.model_copy(update={"name": f"texts:{tmp_path / 'texts'}"})
    before = load(config)
    _as_parquet(tmp_path / "texts", documents)
    after = load(config.model_copy(update={"name": f"texts:{tmp_path / 'texts'}/"}))
    assert before.split_digest == after.split_digest and len(after.train) > 20
    (tmp_path / "texts" / "train-00001-of-00002.parquet").write_bytes(b"PAR1 no table")
    with pytest.raises(ConfigError, match=r"train-00001-of-00002.parquet cannot be read as parquet") as caught:
        facts(config.model_copy(update={"name": f"texts:{tmp_path / 'texts'}//"}))
    assert "\n" not in str(caught.value)


def test_parquet_without_pyarrow_says_how_to_get_it(made, tmp_path, monkeypatch):
    import pandas

    def absent(*given, **named):
        raise ImportError("Unable to find a usable engine")

    shutil.copytree(made[0] / "texts", tmp_path / "texts")
    (tmp_path / "texts" / "train.parquet").write_bytes(b"")
    monkeypatch.setattr(pandas, "read_parquet", absent)
    config = DataConfig(name=f"texts:{tmp_path / 'texts'}", tokenizer=str(made[0] / "model"), window=12)
    with pytest.raises(ConfigError, match=r"needs pyarrow: pip install 'pruneaudit\[parquet\]'"):
        facts(config)


def _cut(folder):
    shard = sorted(folder.glob("*.safetensors"))[0]
    shard.write_bytes(shard.read_bytes()[:-10])


def _without_shard(folder):
    sorted(folder.glob("*.safetensors"))[0].unlink()


def _no_weights(folder):
    for path in folder.glob("model*"):
        path.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"")


def _integers(folder):
    shard = sorted(folder.glob("*.safetensors"))[0]
    tensors = load_file(shard)
    save_file({name: tensor.to(torch.float8_e4m3fn) for name, tensor in tensors.items()}, shard)


def _header(content):
    """A damage: a shard whose header is this JSON."""

    def damage(folder):
        sorted(folder.glob("*.safetensors"))[0].write_bytes(struct.pack("<Q", len(content)) + content.encode())

    return damage


def _not_finite(folder):
    shard = sorted(folder.glob("*.safetensors"))[0]
    tensors = load_file(shard)
    save_file({name: torch.full_like(tensor, torch.nan) for name, tensor in tensors.items()}, shard)


def _wider(folder):
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**content, "intermediate_size": 28}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_cut, "ends before its tensor"),
        (_without_shard, r"shard model-00001-of-0000\d.safetensors is missing"),
        (_no_weights, "has neither model.safetensors nor .*, but pytorch_model.bin: save it once more"),
        (_integers, "is stored as F8_E4M3, as in quantised networks"),
        pytest.param(_header("[]"), "not a safetensors file or damaged", id="no-table"),
        pytest.param(
            _header('{"a": {"shape": [1], "data_offsets": [0, 4]}}'), "not a safetensors file or damaged", id="no-type"
        ),
        pytest.param(
            _header('{"a": {"dtype": "F32", "shape": [1], "data_offsets": [4]}}'),
            "not a safetensors file or damaged",
            id="no-end",
        ),
        (_not_finite, "values? that are no finite numbers"),
        (_wider, r"has shape \[24, 32\], the model needs \[28, 32\]"),
        (lambda folder: (folder / "config.json").write_text("{}"), "says no model_type"),
        (lambda folder: (folder / "config.json").unlink(), "No such file or directory; name a folder as Hugging Face"),
    ],
)
def test_a_damaged_folder_is_told_in_one_line(copied, damage, message):
    damage(copied)
    with pytest.raises(ConfigError, match=message) as caught:
        read(copied)
    assert "\n" not in str(caught.value)


# Other models


def described(folder, config):
    config.save_pretrained(folder)
    return Network(model=f"hf:{folder}")


def test_a_vision_tower_stays_whole_and_language_loses_heads_neurons_and_blocks(tmp_path):
    """A model of LLaVA's class: its tokens do not pass the tower for images, of which nothing goes."""
    from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig

    text = LlamaConfig(**folders.SIZES)
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=8, patch_size=4
    )
    described(tmp_path / "model", LlavaConfig(text_config=text, vision_config=vision, image_token_index=79))
    folders.tokenizer(tmp_path / "model")
    folders.texts(tmp_path / "texts")
    content = folders.WORKLOAD.replace('base = "model"\n', "")
    (tmp_path / "auto.toml").write_text(content.replace('["*.self_attn.k_proj", "*.mlp.gate_proj"]', '"auto"'))
    (tmp_path / "tower.toml").write_text(content.replace('"*.mlp.gate_proj"', '"*.mlp.fc1"'))
    catalog = Catalog(extra_workloads=(str(tmp_path / "auto.toml"), str(tmp_path / "tower.toml")))
    found = shapes.units(catalog.workload("auto"))
    names = {unit.name for unit in found.units}
    assert names == {
        f"net.model.language_model.layers.{layer}.{name}"
        for layer in (0, 1)
        for name in ("self_attn.k_proj", "mlp.gate_proj")
    }
    assert "tokens do not pass it" in {why for name, why in found.refused.items() if "vision_tower" in name}
    assert shapes.blocks_attend(catalog.workload("auto"))
    with pytest.raises(ConfigError, match=r"vision_tower.*cannot lose filters: tokens do not pass it"):
        shapes.units(catalog.workload("tower"))


@pytest.mark.parametrize("kind", ["LlamaConfig", "Qwen3Config", "Gemma3TextConfig", "MistralConfig"])
def test_a_narrow_network_is_of_the_same_kind(tmp_path, kind):
    import transformers

    config = getattr(transformers, kind)(**{**folders.SIZES, "num_hidden_layers": 7, "head_dim": 8})
    large = build(described(tmp_path, config), 0, 80)
    small = narrow(described(tmp_path, config))
    classes = {type(module).__name__ for module in large.modules()}
    assert classes == {type(module).__name__ for module in small.modules()}
    assert torch.isfinite(small(torch.zeros(2, 8, dtype=torch.int64))).all()
    assert parameters(small) < parameters(large)


def test_a_folder_that_is_no_language_model_is_refused(tmp_path):
    (Path(tmp_path) / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(ConfigError, match="vit is no language model that transformers knows"):
        build(Network(model=f"hf:{tmp_path}"), 0, 80)
