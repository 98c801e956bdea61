"""Knows from pytest which cell it is in."""

import os

import torch

from pruneaudit import FilterScore
from pruneaudit.streams import generator


class ReadsTestName(FilterScore):
    """Random filters, with a lucky number for each test."""

    def score(self, layer, task):
        lucky = generator(0, os.environ.get("PYTEST_CURRENT_TEST", ""))
        return torch.rand(layer.channels, generator=lucky)
