"""Accuracy of a network on a split."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from pruneaudit.workloads.data import Dataset, Split


@dataclass(frozen=True)
class Score:
    """Result of one pass over a split.

    Attributes:
        accuracy: Percent of images (of texts: of tokens) classified correctly, exact over a ragged last batch.
        loss: Mean cross-entropy per image (token).
        correct: Which images (tokens) were right, ``[N]`` bool.
        labels: Label of each image ``[N]``, where it was looked at closely.
        top5: Which images' labels were among the first five answers, ``[N]`` bool, where it was looked at closely;
            None where there are no more than five.
        own: What the user's function says of the split: a number, or ``[N]`` bool.
        bytes: Bytes of text that the tokens stand for, where it was looked at closely; None where that is not known.
        answered: Which questions of the workload's task were answered right, ``[N]`` bool, by metric; None where it has
            none, or nobody asked.
    """

    accuracy: float
    loss: float
    correct: np.ndarray
    labels: np.ndarray | None = None
    top5: np.ndarray | None = None
    own: float | np.ndarray | None = None
    bytes: int | None = None
    answered: Mapping[str, np.ndarray] | None = None


#: What a user's metric says of the logits ``[N, classes]`` and labels ``[N]`` of a split.
Function = Callable[[torch.Tensor, torch.Tensor], float | np.ndarray]


#: Bytes that the logits of a batch may have, in float32.
_LOGITS = 1 << 28
#: Windows of text that pass a network at one time on a processor, whose caches hold so much of them.
_AT_HAND = 64


def rows_at_once(classes: int, labels: int) -> int:
    """Inputs with so many labels each whose logits fit: those of 2,048 tokens, of 128,000, have a gigabyte."""
    return max(1, _LOGITS // (4 * classes * labels))


def _at_once(inputs: torch.Tensor) -> int:
    """How many of some inputs pass a network at one time: the bits are the same."""
    return len(inputs) if inputs.is_floating_point() or inputs.is_cuda else min(len(inputs), _AT_HAND)


def widened(logits: torch.Tensor) -> torch.Tensor:
    """Logits in a type in which losses are computed: float32 in place of bfloat16."""
    return logits.float() if logits.dtype == torch.bfloat16 else logits


@torch.no_grad()
def evaluate(
    model: nn.Module,
    dataset: Dataset,
    part: Split,
    precision: str = "fp32",
    batch: int = 512,
    closely: bool = False,
    function: Function | None = None,
) -> Score:
    """Classify a split in eval mode, without augmentation; the model's mode is restored.

    Args:
        model: The network.
        dataset: Its data.
        part: The split.
        precision: Arithmetic.
        batch: Images at once, at most: of texts as many as have logits of 256 MiB.
        closely: Keep labels and the first five answers, too.
        function: A metric of the user's own; it is given the logits of the whole split at once.
    """
    was_training = model.training
    model.eval()
    parameter = next(model.parameters())
    batch = min(batch, rows_at_once(dataset.classes, max(1, part.labels[:1].numel())))
    losses, hits = [], []
    known: list[torch.Tensor] = []
    first: list[torch.Tensor] = []
    answers: list[torch.Tensor] = []
    for images, labels in dataset.inputs(part, parameter.dtype, batch):
        with torch.autocast(images.device.type, torch.bfloat16, enabled=precision == "bf16"):
            parts = [model(part) for part in images.split(_at_once(images))]
        logits = widened(torch.cat(parts) if len(parts) > 1 else parts[0])
        losses.append(F.cross_entropy(logits, labels, reduction="sum"))
        hits.append(logits.argmax(dim=1) == labels)
        if closely or function is not None:
            known.append(labels)
        if closely and logits.shape[1] > 5:
            first.append((logits.topk(5, dim=1).indices == labels[:, None]).any(dim=1).flatten())
        if function is not None:
            answers.append(logits)
    model.train(was_training)
    correct = torch.cat(hits).flatten().cpu().numpy()
    loss = float(torch.stack(losses).sum() / len(correct))
    return Score(
        accuracy=100.0 * int(correct.sum()) / len(correct),
        loss=loss,
        correct=correct,
        labels=torch.cat(known).flatten().cpu().numpy() if known else None,
        top5=torch.cat(first).cpu().numpy() if first else None,
        own=function(torch.cat(answers), torch.cat(known)) if function is not None else None,
        bytes=dataset.bytes_of(part) if closely else None,
    )
