"""What a metric of texts is of."""

from __future__ import annotations

import hashlib

import torch

from pruneaudit.ledger.records import TextMeasure
from pruneaudit.workloads.data import Split


def text_measure(split: Split, training: Split) -> TextMeasure | None:
    """Which tokens are scored, and how many each sees; None where an example has one label.

    Args:
        split: Tokens with a label each, ``[N, T]``.
        training: Those that the network trained on.
    """
    labels = split.labels
    if labels.dim() < 2:
        return None
    ids = hashlib.sha256(labels.to(torch.int64).cpu().contiguous().numpy().tobytes()).hexdigest()
    return TextMeasure(window=labels.shape[1], tokens=labels.numel(), ids=ids, trained=training.labels.shape[1])
