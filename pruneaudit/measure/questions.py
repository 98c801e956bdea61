"""Multiple choice by log-likelihood, as lm-eval 0.4 scores it (``ConfigurableTask.process_results``)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import nn

from pruneaudit.ledger.records import TaskMeasure
from pruneaudit.measure.accuracy import rows_at_once, widened
from pruneaudit.workloads.data import Dataset, Questions
from pruneaudit.workloads.metrics import OF_TASKS

#: Requests at once, at most.
_REQUESTS = 64


@torch.no_grad()
def log_likelihoods(model: nn.Module, questions: Questions, words: int, precision: str = "fp32") -> list[np.ndarray]:
    """Log-likelihood of each continuation given its context: the sum over its tokens, in nats.

    Requests that a network reads alike, whose continuations differ in the last token alone, are read once.

    Args:
        model: A network that gives logits ``[N, words, T]`` of tokens ``[N, T]``; with images in a second argument.
        questions: What is asked.
        words: Tokens that there are.
        precision: Arithmetic.

    Returns:
        For each question ``[choices]`` float64.
    """
    was_training = model.training
    model.eval()
    parameter = next(model.parameters())
    asked: dict[tuple[tuple[int, ...], tuple[Path, ...]], list[tuple[int, int]]] = defaultdict(list)
    for number, question in enumerate(questions.each):
        for choice, request in enumerate(question.requests):
            asked[request.tokens, question.images].append((number, choice))
    found = [np.zeros(len(question.requests)) for question in questions.each]
    # Those of one length together, the longest first: a batch that does not fit is met at once. Images are of all of a
    # batch or of none.
    waiting = sorted(asked, key=lambda one: (len(one[1]) > 0, len(one[0]), one), reverse=True)
    while waiting:
        pictured, longest = bool(waiting[0][1]), len(waiting[0][0])
        count = min(_REQUESTS, rows_at_once(words, longest))
        batch = [one for one in waiting[:count] if bool(one[1]) == pictured]
        waiting = waiting[len(batch) :]
        # Behind a request stands nothing that it sees.
        tokens = torch.zeros(len(batch), longest, dtype=torch.int64)
        for row, (read, _) in zip(tokens, batch, strict=True):
            row[: len(read)] = torch.tensor(read)
        more = []
        if pictured:
            images = questions.pixels([path for _, paths in batch for path in paths])
            more = [images.to(parameter.device, parameter.dtype)]
        with torch.autocast(parameter.device.type, torch.bfloat16, enabled=precision == "bf16"):
            logits = model(tokens.to(parameter.device), *more)
        for one, row in zip(batch, logits, strict=True):
            for number, choice in asked[one]:
                targets = torch.tensor(questions.each[number].requests[choice].targets, device=row.device)
                ends = widened(row[:, len(one[0]) - len(targets) : len(one[0])]).log_softmax(dim=0)
                found[number][choice] = float(ends.gather(0, targets[None]).sum())
    model.train(was_training)
    return found


def answered(model: nn.Module, questions: Questions, words: int, precision: str = "fp32") -> Mapping[str, np.ndarray]:
    """Which questions are answered right, ``[N]`` bool, by each metric of tasks.

    The likeliest choice is the answer, the first one on ties: by its log-likelihood (``acc``), by that for each of its
    characters (``acc-norm``), for each of its bytes (``acc-bytes``).

    Args:
        model: The network.
        questions: What is asked.
        words: Tokens that there are.
        precision: Arithmetic.
    """
    right: dict[str, list[bool]] = {name: [] for name in OF_TASKS}
    likelihoods = log_likelihoods(model, questions, words, precision)
    for question, found in zip(questions.each, likelihoods, strict=True):
        lengths = {
            "acc": np.ones(len(found)),
            "acc-norm": np.array([one.characters for one in question.requests]),
            "acc-bytes": np.array([one.bytes for one in question.requests]),
        }
        for name, length in lengths.items():
            right[name].append(int(np.argmax(found / length)) in question.right)
    return {name: np.array(outcomes, dtype=bool) for name, outcomes in right.items()}


def task_measure(dataset: Dataset) -> TaskMeasure | None:
    """What metrics of tasks are of; None where a workload has no task."""
    task, questions = dataset.config.task, dataset.questions_of(dataset.test)
    if task is None or questions is None:
        return None
    return TaskMeasure(
        name=task.name,
        version=task.version,
        questions=len(questions.each),
        requests=questions.requests,
        digest=questions.digest,
        cut=questions.cut,
        visual=questions.visual,
    )
