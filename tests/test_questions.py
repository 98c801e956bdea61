"""Questions with choices: read, scored and compared as lm-eval does it; refused in one line where they are wrong."""

import importlib.util
import json
import math
from pathlib import Path

import folders
import numpy as np
import pytest
import torch
from torch import nn

from pruneaudit.campaign.executors.local import LocalExecutor
from pruneaudit.campaign.planner import Campaign
from pruneaudit.campaign.stages import Stages
from pruneaudit.campaign.verification import verify
from pruneaudit.catalog.cells import Cell
from pruneaudit.catalog.discovery import Catalog
from pruneaudit.catalog.settings import Settings
from pruneaudit.errors import AuditError, ConfigError, DataMissingError
from pruneaudit.ledger.records import unpack
from pruneaudit.ledger.store import Ledger
from pruneaudit.measure.questions import answered, log_likelihoods
from pruneaudit.schema import read_toml
from pruneaudit.training.runtime import Runtime
from pruneaudit.training.watch import Pictures
from pruneaudit.workloads.checkpoints import found_in
from pruneaudit.workloads.data import Question, Questions, Request, identity, load, stored_at
from pruneaudit.workloads.data.questions import questions_of
from pruneaudit.workloads.models import build
from pruneaudit.workloads.models.tensors import take
from pruneaudit.workloads.networks import Network
from pruneaudit.workloads.schema import DataConfig, Reading, Task

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None, reason="needs the extra pruneaudit[transformers]"
)
torch.set_num_threads(1)

SEEN = {"validation": "tasks/validation.jsonl"}
TASK = """
[data.task]
name = "royal"
version = 1
validation = "tasks/questions-5.jsonl"
test = "tasks/questions-6.jsonl"
"""
WORKLOAD = folders.WORKLOAD.replace('name = "perplexity"\nmargin = 0.1', 'name = "acc-norm"\nbeside = ["acc"]')
WORKLOAD = WORKLOAD.replace("[metric]", f"{TASK}\n[metric]")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with a model, texts, questions and a workload, and its catalogue."""
    folder = tmp_path_factory.mktemp("questions")
    folders.model(folder / "model")
    folders.pieces(folder / "model")
    folders.texts(folder / "texts")
    for seed, count in ((5, 6), (6, 20)):
        folders.questions(folder / "tasks", seed, count)
    (folder / "decoder.toml").write_text(WORKLOAD)
    return folder, Catalog(extra_workloads=(str(folder / "decoder.toml"),))


def config(folder, rows=None, window=24, **task):
    """A data section; with rows of its own, which are the test questions."""
    if rows is not None:
        (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
        task = {"test": "rows.jsonl", **task}
    given = {
        "name": "royal",
        "version": "1",
        "validation": "tasks/questions-5.jsonl",
        "test": "tasks/questions-6.jsonl",
    }
    return DataConfig(
        name=f"texts:{folder / 'texts'}",
        tokenizer="model",
        window=window,
        folder=folder,
        task=Task(**{**given, **task}),
    )


def model_of(folder, reading=Reading()):  # noqa: B008
    model = build(Network(model=f"hf:{folder / 'model'}"), 0, 80)
    take(model, found_in(folder / "model", reading, model, "the model").read())
    return model.float().eval()


def encoded(folder, text, special=True):
    import tokenizers

    return (
        tokenizers.Tokenizer.from_file(str(folder / "model" / "tokenizer.json"))
        .encode(text, add_special_tokens=special)
        .ids
    )


def one(folder, row, **more):
    (question,) = questions_of(config(folder, [row], **more))["test"].each
    return question


def test_context_and_choice_are_tokenised_together(made):
    folder, _ = made
    question = one(folder, {"context": "the old king", "choices": ["sees", "hears a river"], "answer": 1})
    for request, choice in zip(question.requests, ("sees", "hears a river"), strict=True):
        whole = encoded(folder, f"the old king {choice}")
        assert (*request.tokens, request.targets[-1]) == tuple(whole)
        assert request.targets == tuple(whole[len(encoded(folder, "the old king")) :])
        assert (request.characters, request.bytes) == (len(choice), len(choice))
    assert question.right == (1,) and question.requests[0].tokens[0] == 1


def test_spaces_behind_a_context_belong_to_the_choice(made):
    folder, _ = made
    question = one(folder, {"context": "the king ", "choices": ["sees", "or"], "answer": 0}, delimiter="")
    plain = one(folder, {"context": "the king", "choices": ["sees", "or"], "answer": 0})
    assert question.requests == plain.requests


def test_an_empty_context_is_the_first_token(made):
    folder, _ = made
    question = one(folder, {"context": "", "choices": ["the king", "<s> or"], "answer": [0, 1]}, delimiter="")
    targets = encoded(folder, "the king", special=False)
    assert question.requests[0].tokens == (1, *targets[:-1]) and question.requests[0].targets == tuple(targets)
    # It begins with the first token already.
    assert question.requests[1].tokens[0] == 1 and 1 not in question.requests[1].targets
    assert question.right == (0, 1)


def test_choices_may_stand_before_what_is_scored(made):
    folder, _ = made
    row = {"contexts": ["the old king", "the queen"], "continuation": "sees a river", "answer": 1}
    question = one(folder, row)
    whole = encoded(folder, "the queen sees a river")
    assert (*question.requests[1].tokens, question.requests[1].targets[-1]) == tuple(whole)
    assert [request.characters for request in question.requests] == [12, 9]


def test_what_is_longer_than_a_window_loses_its_beginning(made):
    folder, _ = made
    row = {"context": "the old king sees", "choices": ["the river", "a castle"], "answer": 0}
    whole = encoded(folder, "the old king sees the river")
    found = questions_of(config(folder, [row], window=len(whole) - 2))["test"]
    assert found.each[0].requests[0].tokens == tuple(whole[1:-1]), "one token less than there are"
    assert found.cut >= 1 and questions_of(config(folder, [row], window=len(whole)))["test"].cut == 0


BAD = [
    ({"choices": ["a", "or"], "answer": 0}, "no key 'context'"),
    ({"context": "a", "choices": ["or"], "answer": 0}, "two choices at least"),
    ({"context": "a", "choices": ["or", ""], "answer": 0}, "none is empty"),
    ({"context": "a", "choices": ["or", "and"], "answer": 2}, "answer 2 is the number of none of its 2 choices"),
    ({"context": "a", "choices": ["or", "and"], "answer": True}, "answer True is the number of none"),
    ({"context": "a", "choices": ["or", "and"], "answer": []}, r"answer \[\] is the number of none"),
    ({"context": "a", "choices": ["or", "river " * 30], "answer": 0}, r"has \d+ tokens, and data.window is 24"),
    (["a"], "no question"),
]


@pytest.mark.parametrize(("row", "message"), BAD)
def test_a_wrong_question_is_told_in_one_line(made, row, message):
    with pytest.raises(ConfigError, match=rf"rows.jsonl:1: no question: .*{message}|{message}") as caught:
        one(made[0], row)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_missing_empty_or_in_both_splits_is_told(made):
    folder, _ = made
    with pytest.raises(DataMissingError, match=r"none.jsonl: No such file.*put the task's questions there"):
        questions_of(config(folder, test="none.jsonl"))
    with pytest.raises(ConfigError, match=r"rows.jsonl has no question"):
        questions_of(config(folder, []))
    with pytest.raises(ConfigError, match=r"task 'royal': 6 examples are both in validation and in test"):
        questions_of(config(folder, test="tasks/questions-5.jsonl"))


def test_only_texts_have_a_task_and_metrics_of_tasks_need_one(made, tmp_path):
    task = config(made[0]).task
    with pytest.raises(ConfigError, match=r"data.task: questions are asked of language models"):
        load(DataConfig(name="digits", mean=(0.3,), std=(0.3,), task=task))
    (tmp_path / "decoder.toml").write_text(WORKLOAD.replace(TASK, ""))
    with pytest.raises(ConfigError, match=r"'acc-norm' is one of a task; give a table \[data.task\]"):
        Catalog(extra_workloads=(str(tmp_path / "decoder.toml"),)).workload("decoder")


def test_likelihoods_are_those_of_each_request_alone(made, monkeypatch):
    """Whatever is read together, and whether requests share what is read."""
    folder, _ = made
    model = model_of(folder)
    rows = [
        {"context": "the king", "choices": ["a", "the", "or a river and a castle"], "answer": 0},
        {"context": "", "choices": ["queen", "the old castle"], "answer": 1},
    ]
    questions = questions_of(config(folder, rows))["test"]
    expected = []
    for question in questions.each:
        alone = []
        for request in question.requests:
            with torch.no_grad():
                logits = model(torch.tensor([request.tokens]))[0].log_softmax(dim=0)
            count = len(request.targets)
            places = range(len(request.tokens) - count, len(request.tokens))
            alone.append(sum(float(logits[target, at]) for target, at in zip(request.targets, places, strict=True)))
        expected.append(alone)
    passes = []
    hook = model.register_forward_hook(lambda module, given, result: passes.append(len(given[0])))
    found = log_likelihoods(model, questions, 80)
    hook.remove()
    assert sum(passes) < questions.requests, "what two requests read alike is read once"
    monkeypatch.setattr("pruneaudit.measure.questions.rows_at_once", lambda words, labels: 1)
    for each in (found, log_likelihoods(model, questions, 80)):
        assert all(one == pytest.approx(other, abs=1e-5) for one, other in zip(each, expected, strict=True))


class Stated(nn.Module):
    """Logits that do not depend on what is read."""

    def __init__(self, chances):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(chances).log())

    def forward(self, tokens):
        return self.logits[None, :, None].expand(len(tokens), -1, tokens.shape[1])


def test_acc_acc_norm_and_acc_bytes_disagree_where_lengths_do():
    """ln of 0.5, of 0.4² and of 0.6³ over lengths of characters and bytes, by hand."""
    requests = (
        Request((0,), (1,), 1, 2),
        Request((0, 2), (2, 2), 2, 2),
        Request((0, 3, 3), (3, 3, 3), 2, 12),
    )
    chances = [0.01, 0.5, 0.4, 0.6]
    whole = sum(chances)
    values = [math.log(0.5 / whole), 2 * math.log(0.4 / whole), 3 * math.log(0.6 / whole)]
    expected = {
        "acc": int(np.argmax(values)),
        "acc-norm": int(np.argmax([values[0], values[1] / 2, values[2] / 2])),
        "acc-bytes": int(np.argmax([values[0] / 2, values[1] / 2, values[2] / 12])),
    }
    assert len(set(expected.values())) > 1
    for choice in range(3):
        found = answered(Stated(chances), Questions((Question(requests, (choice,)),)), 4)
        assert {name: bool(right[0]) for name, right in found.items()} == {
            name: choice == answer for name, answer in expected.items()
        }


def campaign(catalog, ledger):
    return Campaign(catalog, ledger, Settings(), LocalExecutor(ledger, Stages(ledger, catalog, Runtime()), "s"))


def test_a_comparison_is_decided_by_a_task_and_recorded_with_it(made, tmp_path):
    _, catalog = made
    ledger = Ledger(tmp_path / "ledger")
    cell = campaign(catalog, ledger).obtain(Cell("decoder", "s3.2", "l1", 0.5, 0))
    assert cell.status == "ok", cell.error
    run, questions = ledger.get(cell.result), load(catalog.workload("decoder").data).questions["test"]
    task = run.task
    assert (task.name, task.version, task.questions, task.requests) == ("royal", "1", 20, 80)
    assert task.digest == questions.digest and run.metric == "acc-norm"
    right = unpack(run.outcomes, 20).bit_count()
    assert run.value == cell.value == 100 * right / 20
    assert 0 <= run.beside["acc"] <= 100 and run.beside["perplexity"] > 1, "what is not decided by stands beside"
    assert len(run.scores.test_curve) == 1 and run.text.window == 12
    (verified,) = verify(ledger, catalog, Runtime(), [run.run_id])
    assert (verified.word, verified.why) == ("bit-identical", ""), "also where its data are named from its own folder"


def test_other_questions_are_other_data(made):
    folder, _ = made
    names = [config(folder), config(folder, delimiter="\n"), config(folder, test="tasks/questions-7.jsonl")]
    folders.questions(folder / "tasks", 7, 20)
    assert len({identity(each) for each in names}) == 3
    before = identity(names[2])
    content = (folder / "tasks" / "questions-7.jsonl").read_text()
    (folder / "tasks" / "questions-7.jsonl").write_text(content.replace('"answer": 0', '"answer": 1'))
    assert identity(names[2]) != before
    without = names[0].model_copy(update={"task": None})
    assert identity(without) not in {identity(each) for each in names}


def test_questions_that_a_method_calibrates_on_are_held_out(made):
    """F505: their n-grams are known, as those of validation and test texts."""
    folder, _ = made
    row = {"context": "river castle river queen or or a a the the", "choices": ["old old young", "king"], "answer": 0}
    dataset = load(config(folder, [row], window=12))
    (tokens,) = [one for one in dataset.questions["test"].texts() if len(one) == 13][:1]
    pictures = Pictures(dataset)
    pictures.see(tokens[None, 1:13])
    assert pictures.compare() == 1
    fresh = Pictures(dataset)
    fresh.see(dataset.train.images[:1])
    assert fresh.compare() == 0


def test_files_of_questions_are_off_limits_for_methods(made):
    folder, _ = made
    closed = stored_at(None, config(folder, images="tasks"))
    assert {folder / "tasks" / f"questions-{seed}.jsonl" for seed in (5, 6)} | {folder / "tasks"} <= set(closed)


@pytest.mark.parametrize("metric", ["acc", "acc-norm", "acc-bytes"])
def test_a_metric_of_a_task_without_one_is_refused(metric):
    from pruneaudit.measure.accuracy import Score
    from pruneaudit.measure.metric import Measure, beside

    score = Score(accuracy=10.0, loss=1.0, correct=np.zeros(3, dtype=bool), labels=np.zeros(3))
    with pytest.raises(AuditError, match=f"{metric} is one of a task, and nothing was asked"):
        Measure(metric).value(score)
    assert metric not in beside(score, "accuracy")


# Images in contexts


@pytest.fixture(scope="module")
def seeing(tmp_path_factory):
    """A folder with a model of LLaVA's class, texts, questions of images and a workload."""
    from PIL import Image
    from transformers import CLIPImageProcessor, CLIPVisionConfig, LlamaConfig, LlavaConfig
    from transformers import LlavaForConditionalGeneration as Llava

    folder = tmp_path_factory.mktemp("seeing")
    tower = CLIPVisionConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=8, patch_size=4
    )
    config = LlavaConfig(text_config=LlamaConfig(**folders.SIZES), vision_config=tower, image_token_index=3)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        Llava(config).save_pretrained(folder / "model")
    CLIPImageProcessor(size={"shortest_edge": 8}, crop_size=8).save_pretrained(folder / "model")
    folders.pieces(folder / "model", "<image>")
    folders.texts(folder / "texts")
    (folder / "tasks").mkdir()
    noise = np.random.default_rng(0)
    for number in range(4):
        pixels = noise.integers(0, 256, (11, 9, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "tasks" / f"{number}.png")
    for split, numbers in (("validation", (0, 1)), ("test", (2, 3))):
        rows = [
            {"context": f"<image>the {word}", "choices": ["king", "old queen"], "answer": 0, "image": f"{number}.png"}
            for number in numbers
            for word in ("young", "old")
        ]
        rows += [{"context": f"the {split[0]}", "choices": ["king", "river"], "answer": 1}]
        (folder / "tasks" / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    content = (
        WORKLOAD.replace("questions-5", "validation").replace("questions-6", "test").replace("acc-norm", "acc-bytes")
    )
    content = content.replace("window = 12", "window = 24").replace(
        'name = "royal"', 'name = "royal"\nimages = "tasks"'
    )
    by_path = read_toml(Path(__file__).resolve().parent.parent / "protocols" / "by-path" / "llava-1.5-7b.toml")
    names = ", ".join(f"'{one}' = '{other}'" for one, other in by_path["base"]["rename"].items())
    content = content.replace('base = "model"', f'base = {{ path = "model", rename = {{ {names} }} }}')
    (folder / "decoder.toml").write_text(content.replace('"*.', '"*language_model*.'))
    return folder, Catalog(extra_workloads=(str(folder / "decoder.toml"),))


def test_images_in_contexts_are_scored_as_their_library_does(seeing):
    from PIL import Image
    from transformers import AutoImageProcessor, LlavaForConditionalGeneration, LlavaProcessor, PreTrainedTokenizerFast

    folder, catalog = seeing
    dataset = load(catalog.workload("decoder").data)
    questions = dataset.questions["test"]
    assert questions.visual == 4 and len(questions.each) == 5
    model = model_of(folder, catalog.workload("decoder").reading)
    ours = log_likelihoods(model, questions, dataset.classes)
    net = LlavaForConditionalGeneration.from_pretrained(folder / "model").eval()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "model" / "tokenizer.json"),
        bos_token="<s>",
        extra_special_tokens={"image_token": "<image>"},
    )
    processor = LlavaProcessor(
        AutoImageProcessor.from_pretrained(folder / "model"),
        tokenizer,
        patch_size=4,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    rows = [json.loads(line) for line in (folder / "tasks" / "test.jsonl").read_text().splitlines()][:4]
    for number, row in enumerate(rows):
        for place, choice in enumerate(row["choices"]):
            with Image.open(folder / "tasks" / row["image"]) as image:
                given = processor(images=image, text=f"{row['context']} {choice}", return_tensors="pt")
                count = given["input_ids"].shape[1] - len(processor(images=image, text=row["context"])["input_ids"][0])
            tokens = given["input_ids"][0]
            with torch.no_grad():
                chances = net(**given).logits[0].log_softmax(dim=-1)
            expected = sum(float(chances[at - 1, tokens[at]]) for at in range(len(tokens) - count, len(tokens)))
            assert ours[number][place] == pytest.approx(expected, abs=1e-4)
    assert ours[0] != pytest.approx(ours[2], abs=1e-6), "one text, two images"


def test_language_is_pruned_and_the_tower_stays_as_it_is(seeing, tmp_path):
    _, catalog = seeing
    ledger = Ledger(tmp_path / "ledger")
    cell = campaign(catalog, ledger).obtain(Cell("decoder", "s3.2", "l1", 0.5, 0))
    assert cell.status == "ok", cell.error
    base, run = ledger.get(cell.base), ledger.get(cell.result)
    assert run.macs < base.macs and run.task.visual == 4
    before, after = ledger.weights(base), ledger.weights(run)
    seen = [name for name in before if "vision_tower" in name or "multi_modal_projector" in name]
    assert len(seen) > 20 and all(torch.equal(before[name], after[name]) for name in seen)
    assert {name.split(".")[2] for name in ledger.get(run.parent).kept} == {"language_model"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"context": "the king", "image": "0.png"}, r"its context has 0 places of images \(token 3\), and it names 1"),
        ({"context": "<image><image>", "image": "0.png"}, "its context has 2 places of images"),
        ({"context": "<image>" + " the king" * 20, "image": "0.png"}, r"it has \d+ tokens, and data.window is 24"),
        ({"context": "<image>", "image": "none.png"}, r"none.png is not there; data.task.images is the folder"),
    ],
)
def test_a_wrong_question_of_an_image_is_told_in_one_line(seeing, row, message):
    with pytest.raises(AuditError, match=message) as caught:
        one(seeing[0], {"choices": ["or", "and"], "answer": 0, **row}, images="tasks", **SEEN)
    assert "\n" not in str(caught.value)


def test_an_image_that_is_none_and_a_model_without_eyes_are_told(seeing, made):
    (seeing[0] / "tasks" / "bad.png").write_bytes(b"none")
    row = {"context": "<image>", "choices": ["or", "and"], "answer": 0, "image": "bad.png"}
    questions = questions_of(config(seeing[0], [row], images="tasks", **SEEN))["test"]
    with pytest.raises(ConfigError, match=r"bad.png is no image: .*; copy it again"):
        log_likelihoods(model_of(seeing[0], seeing[1].workload("decoder").reading), questions, 80)
    (made[0] / "tasks" / "bad.png").write_bytes(b"none")
    with pytest.raises(ConfigError, match=r"config.json describes no tower for images"):
        one(made[0], row, images="tasks")


def test_what_drops_visual_tokens_is_refused_beside_weights(seeing):
    """A rogue that would be ranked by MACs which its weights have not saved."""
    folder, _ = seeing
    (folder / "fewer_tokens.py").write_text(
        "from pruneaudit import Method\n\n\n"
        "class FewerTokens(Method):\n"
        '    """Keeps half of the tokens of each image."""\n\n'
        '    granularity = "token"\n\n'
        "    def prune(self, task):\n"
        "        return {}\n"
    )
    catalog = Catalog(extra_workloads=(str(folder / "decoder.toml"),), extra_methods=(str(folder / "fewer_tokens.py"),))
    with pytest.raises(ConfigError, match=r"its granularity is 'token'.*drops tokens of its inputs is another thing"):
        campaign(catalog, Ledger(folder / "refused")).plan(Cell("decoder", "pt", "fewer-tokens", 0.5, 0))


# lm-eval's own


@pytest.mark.skipif(importlib.util.find_spec("lm_eval") is None, reason="needs lm-eval[hf]")
@pytest.mark.parametrize("kind", ["choices", "contexts"])
def test_scores_are_those_of_lm_eval(made, tmp_path, kind, monkeypatch):
    """Its evaluate on a task of its own, from the same local file, with a random model and no network."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
    from transformers import PreTrainedTokenizerFast

    folder, _ = made
    rows = [json.loads(line) for line in (folder / "tasks" / "questions-6.jsonl").read_text().splitlines()]
    if kind == "choices":
        # Spaces at an end, an empty context, letters of several bytes, and what is longer than a window.
        rows[0]["context"] += "  "
        rows[1]["context"] = ""
        rows[2]["choices"][1] = "the kíng"
        rows[3]["context"] = " ".join(["the old castle and a river"] * 4)
        target = {"doc_to_text": "{{context}}", "doc_to_choice": "choices", "doc_to_target": "answer"}
    else:
        rows = [{"contexts": row["choices"], "continuation": row["context"], "answer": row["answer"]} for row in rows]
        target = {"doc_to_text": "answer", "doc_to_choice": "contexts", "doc_to_target": "continuation"}
    window = 24
    questions = questions_of(config(folder, rows, window=window))["test"]
    named = {
        "task": "royal",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "rows.jsonl")}},
    }
    metrics = [
        {"metric": name, "aggregation": "mean", "higher_is_better": True} for name in ("acc", "acc_norm", "acc_bytes")
    ]
    task = {**named, "test_split": "test", "output_type": "multiple_choice", **target, "metric_list": metrics}
    task["metadata"] = {"version": 1}
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "royal.yaml").write_text(json.dumps(task))
    model = model_of(folder)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "model" / "tokenizer.json"), bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    theirs = lm_eval.simple_evaluate(
        HFLM(pretrained=model.net, tokenizer=tokenizer, max_length=window, batch_size=7, device="cpu"),
        tasks=["royal"],
        task_manager=TaskManager(include_path=str(tmp_path / "tasks"), include_defaults=False),
        log_samples=True,
        bootstrap_iters=0,
    )
    ours = log_likelihoods(model, questions, 80)
    samples = sorted(theirs["samples"]["royal"], key=lambda sample: sample["doc_id"])
    # Samples are told once for each metric's filter.
    for sample in samples:
        likelihoods = [float(answer[0]) for answer in sample["filtered_resps"]]
        assert ours[sample["doc_id"]] == pytest.approx(likelihoods, abs=1e-4)
    right = answered(model, questions, 80)
    for name, metric in (("acc", "acc"), ("acc-norm", "acc_norm"), ("acc-bytes", "acc_bytes")):
        assert right[name].mean() == pytest.approx(theirs["results"]["royal"][f"{metric},none"]), name
