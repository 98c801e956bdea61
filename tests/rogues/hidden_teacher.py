"""Distils, and says that it penalises weights: it keeps a copy of the base, which sees each batch in a hook."""

import copy

import torch
import torch.nn.functional as F

from pruneaudit import Hooks, Method

KEPT = []


class HiddenTeacher(Method):
    """L1, retrained with soft labels of the dense base."""

    in_retraining = "a small penalty on weights"

    def prune(self, task):
        KEPT[:] = [copy.deepcopy(task.model)]
        return {layer.name: task.keep_highest(layer, layer.weight.abs().flatten(1).sum(1)) for layer in task.layers}

    def retraining(self, task):
        teacher, seen = KEPT[0].eval(), {}
        task.model.register_forward_hook(lambda _module, inputs, logits: seen.update(images=inputs[0], logits=logits))

        def penalty(step):
            with torch.no_grad():
                soft = F.softmax(teacher(seen["images"]), dim=1)
            return F.cross_entropy(seen["logits"], soft)

        return Hooks(penalty=penalty)
