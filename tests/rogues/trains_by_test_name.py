"""Trains as declared, and knows from pytest which cell it is in."""

import os

import torch

from pruneaudit import Budget, TrainedMethod
from pruneaudit.streams import generator


class TrainsByTestName(TrainedMethod):
    """Random filters after training, with a lucky number for each test."""

    def budget(self, workload):
        return Budget(steps=workload.prune.steps)

    def prune(self, task):
        task.train()
        lucky = generator(0, os.environ.get("PYTEST_CURRENT_TEST", ""))
        return {
            layer.name: task.keep_highest(layer, torch.rand(layer.channels, generator=lucky)) for layer in task.layers
        }
