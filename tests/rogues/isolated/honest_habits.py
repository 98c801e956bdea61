"""L1 with habits of honest methods: frozen weights, things hung on modules, library calls that start processes."""

import platform
import threading

import torch
from torch.utils.data import DataLoader, TensorDataset

from pruneaudit import FilterScore


class HonestHabits(FilterScore):
    """L1 norm, the way people write it."""

    def prepare(self, task):
        """Twenty masks scored on training batches, activations kept on modules, a lock, a loader with a worker."""
        task.model.requires_grad_(False)
        platform.processor()
        for layer in task.layers:
            layer.module.register_forward_hook(lambda module, _inputs, output: setattr(module, "seen", output))
            layer.module.lock = threading.Lock()
        for images, labels in task.batches(1):
            for images_of_one, _ in DataLoader(TensorDataset(images, labels), batch_size=16, num_workers=1):
                with torch.no_grad():
                    task.model(images_of_one)
            for number in range(20):
                with torch.no_grad():
                    self._silenced(task, images[:8], number)

    def _silenced(self, task, images, number):
        """How the network does without some filters."""
        layer = task.layers[number % len(task.layers)]
        before = layer.weight[:1].clone()
        layer.weight[:1] = 0
        task.model(images)
        layer.weight[:1] = before

    def score(self, layer, task):
        """The norm of a filter, as numpy."""
        return layer.weight.flatten(1).abs().sum(1).numpy()
