"""Says that it leaves two of every four neighbours, and takes half of all weights wherever they are smallest."""

from pruneaudit import WeightScore


class HalfAtWill(WeightScore):
    """Magnitude within a layer, sold as 2:4."""

    def pattern(self):
        return 4

    def score(self, layer, task):
        return layer.weight.abs()
