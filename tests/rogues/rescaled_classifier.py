"""Rescales the classifier so that retraining starts at a better place."""

from pruneaudit import FilterScore


class RescaledClassifier(FilterScore):
    """L1, and a classifier that makes up for the activations which go."""

    def prune(self, task):
        classifier = list(task.model.parameters())[-2]
        classifier.data.mul_(1 / (1 - task.ratio))
        return super().prune(task)

    def score(self, layer, task):
        return layer.weight.abs().flatten(1).sum(dim=1)
