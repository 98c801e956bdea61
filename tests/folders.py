"""A model's folder as Hugging Face keeps it (shards of bfloat16, a tokenizer), texts, and a workload of both."""

import json

import torch

from pruneaudit.catalog.discovery import Catalog

#: Two layers with four query heads on two key/value heads, and fewer words than other networks have classes.
SIZES = {
    "vocab_size": 80,
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
WORKLOAD = """
version = 1
source = "a test"
model = "hf:model"
base = "model"
prunable = ["*.self_attn.k_proj", "*.mlp.gate_proj"]
ratios = [0.5]
seeds = [0]

[data]
name = "texts:texts"
tokenizer = "model"
window = 12

[metric]
name = "perplexity"
margin = 0.1

[optimiser]
name = "adamw"
batch = 8

[pretrain]
epochs = 1
lr = "0:1e-3"

[prune]
steps = 5
lr = "0:1e-3"
optimiser = "sgd"

[retrain]
epochs = 1
lr = "0:1e-3"

[scratch]
epochs = 1
lr = "0:1e-3"

[tune]
schedules = ["0:1e-3", "0:1e-2"]
"""
_WORDS = ("the", "a", "king", "queen", "sees", "hears", "old", "young", "castle", "river", "and", "or")


def sentences(seed, count):
    """Sentences of few words, drawn from a seed."""
    draw = torch.Generator().manual_seed(seed)
    return [
        " ".join(_WORDS[i] for i in torch.randint(len(_WORDS), (9,), generator=draw).tolist()) for _ in range(count)
    ]


def tokenizer(folder):
    """A tokenizer of words, which puts a first token before each text."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    words = {"<unk>": 0, "<s>": 1, "</s>": 2, **{word: 3 + place for place, word in enumerate(_WORDS)}}
    found = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    found.pre_tokenizer = pre_tokenizers.Whitespace()
    found.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    found.save(str(folder / "tokenizer.json"))


def model(folder, shard="20KB", **sizes):
    """A random Llama in shards, and its tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = LlamaForCausalLM(LlamaConfig(**{**SIZES, **sizes})).to(torch.bfloat16)
    net.save_pretrained(folder, max_shard_size=shard)
    tokenizer(folder)


def texts(folder):
    """Three splits, each in a form of its own."""
    folder.mkdir(exist_ok=True)
    (folder / "c4-train.00000.jsonl").write_text("\n".join(json.dumps({"text": line}) for line in sentences(0, 40)))
    (folder / "wiki.valid.raw").write_text("\n".join(sentences(1, 10)))
    (folder / "wiki.test.raw").write_text("\n".join(sentences(2, 10)))


def pieces(folder, *special):
    """A tokenizer of pieces of words, which puts a first token before each text: a space is part of the word behind."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    found = Tokenizer(models.BPE())
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    found.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=SIZES["vocab_size"], special_tokens=["<unk>", "<s>", "</s>", *special])
    found.train_from_iterator(sentences(9, 200), trainer)
    found.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    found.save(str(folder / "tokenizer.json"))


def questions(folder, seed, count, choices=4):
    """A file of questions: contexts and choices of random words, which differ in length."""
    folder.mkdir(exist_ok=True)
    draw = torch.Generator().manual_seed(seed)

    def words(most):
        number = int(torch.randint(1, most, (1,), generator=draw))
        return " ".join(_WORDS[i] for i in torch.randint(len(_WORDS), (number,), generator=draw).tolist())

    rows = [
        {
            "context": words(7),
            "choices": [words(4) for _ in range(choices)],
            "answer": int(torch.randint(choices, (1,), generator=draw)),
        }
        for _ in range(count)
    ]
    path = folder / f"questions-{seed}.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def by_path(folder, **sizes):
    """A catalogue with the workload ``decoder``, whose model and texts lie beside it."""
    model(folder / "model", **sizes)
    texts(folder / "texts")
    (folder / "decoder.toml").write_text(WORKLOAD)
    return Catalog(extra_workloads=(str(folder / "decoder.toml"),))
