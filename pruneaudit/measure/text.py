"""What a metric of texts is of."""

from __future__ import annotations

import hashlib

import torch

from pruneaudit.ledger.records import TextMeasure
from pruneaudit.workloads.data import Dataset


def text_measure(dataset: Dataset) -> TextMeasure | None:
    """Which tokens of the test split are scored, and how many each sees; None where an example has one label."""
    labels = dataset.test.labels
    if labels.dim() < 2:
        return None
    return TextMeasure(
        window=labels.shape[1],
        tokens=labels.numel(),
        ids=hashlib.sha256(labels.to(torch.int64).cpu().contiguous().numpy().tobytes()).hexdigest(),
        trained=dataset.train.labels.shape[1],
        bytes=dataset.bytes_of(dataset.test),
    )
