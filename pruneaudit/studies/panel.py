"""What was measured of one population of pruned networks under one wiring."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from pruneaudit.audit.association import Association, associate
from pruneaudit.catalog.studies import Wiring, panel_name
from pruneaudit.workloads.metrics import ACCURACY, Metric

if TYPE_CHECKING:
    from pruneaudit.pruning.joint import Joint, Mask


@dataclass
class Panel:
    """One population under one wiring: the same number of filters, heads or neurons gone everywhere.

    Attributes:
        layers: Layers that lost filters.
        wiring: How the networks were put together.
        widths: Filters (heads, neurons) of these layers before.
        masks: For each network, the filters that stay of each layer.
        exhaustive: Whether these are all there are; else they were drawn at random.
        criteria: What was known of each network before it was retrained, by criterion; smaller promises more.
        accuracies: Test accuracy in percent after retraining, ``[repeats][networks]``: those repeats that all have. Of
            another metric its merit, which is greater the better: perplexities are negative.
        test_losses: Test loss in nats, the same.
        several: Places of the networks that alone were retrained several times; None: all were.
        repeats: Their test accuracies, ``[repeats][several]``; those of all where all were.
        l1: The set that keeps the filters with the largest L1 norm.
        l1_place: Its place among the networks, where it is one of them.
        joint: What is known of all combinations of filters of several layers; None: it was not asked for.
        metric: What the networks are compared by.
        relabelling: The loss of each network when the channels of the base were named in another order: a name means
            nothing, so that nothing may change.
    """

    layers: tuple[str, ...]
    wiring: Wiring
    widths: tuple[int, ...]
    masks: list[Mask]
    exhaustive: bool
    criteria: dict[str, list[float]]
    accuracies: list[list[float]]
    test_losses: list[list[float]]
    several: list[int] | None
    repeats: list[list[float]]
    l1: Mask
    l1_place: int | None
    relabelling: list[float]
    joint: Joint | None = None
    metric: Metric = ACCURACY

    @property
    def name(self) -> str:
        """Its layers, joined."""
        return panel_name(self.layers)

    @property
    def relabelled_difference(self) -> float:
        """Largest difference that relabelling made, relative to the loss."""
        losses = zip(self.criteria["loss"], self.relabelling, strict=True)
        return max(abs(one - other) / (1 + abs(one)) for one, other in losses)

    def association(self, criterion: str) -> Association:
        """A criterion against accuracy after retraining."""
        several = None if self.several is None else tuple(map(tuple, self.repeats))
        return _associated(tuple(self.criteria[criterion]), tuple(map(tuple, self.accuracies)), several)

    def rows(self) -> Iterator[dict[str, Any]]:
        """Its networks, one row each: what anybody can compare by any statistic."""
        of_all, metric = len(self.accuracies), self.metric.name
        for place, mask in enumerate(self.masks):
            own = self.several.index(place) if self.several is not None and place in self.several else None
            seldom = {
                f"{metric}_{repeat}": "" if own is None else self.metric.merit(self.repeats[repeat][own])
                for repeat in range(of_all, len(self.repeats))
            }
            yield {
                "panel": self.name,
                "wiring": self.wiring,
                "kept": " ".join(",".join(map(str, subset)) for subset in mask),
                **{name: values[place] for name, values in self.criteria.items()},
                **{f"{metric}_{repeat}": self.metric.merit(one[place]) for repeat, one in enumerate(self.accuracies)},
                **seldom,
                **{f"test_loss_{repeat}": values[place] for repeat, values in enumerate(self.test_losses)},
            }


@lru_cache(maxsize=256)
def _associated(
    criterion: tuple[float, ...],
    accuracies: tuple[tuple[float, ...], ...],
    several: tuple[tuple[float, ...], ...] | None,
) -> Association:
    return associate(criterion, accuracies, several)
