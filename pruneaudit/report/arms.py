"""The measured arms of one workload, and how figures draw them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pruneaudit.catalog.names import CONTROLS, CORE_METHODS, is_derived
from pruneaudit.report.results import Results, Statistic
from pruneaudit.report.sheet import PALE, Axes, Mark, scattered, segments
from pruneaudit.report.style import Style
from pruneaudit.report.tables import file_name, title
from pruneaudit.workloads.metrics import Metric

#: Methods in a figure up to which each is drawn in its own way. Of more, only what serves as a measure for the others
#: is, the others are pale lines, and further figures have a row for each method.
CROWD = 12
#: The setup that is shown where a figure has room for one: in looser ones arms differ in their schedules too.
SETUP = "s3.2"

Rows = Sequence[Mapping[str, Any]]
Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Arms:
    """What was measured on one workload, with its labels.

    Attributes:
        results: All that the report shows.
        workload: Name of the workload.
        labels: What sets its results apart from others: a reduced budget, another precision.
        looks: How each method is drawn, in the order of all legends.
    """

    results: Results
    workload: str
    labels: tuple[str, ...]
    looks: Mapping[str, Style]

    def of(self, rows: Rows) -> list[Mapping[str, Any]]:
        """Those rows that are about this workload."""
        return [row for row in rows if row["workload"] == self.workload and tuple(row["labels"]) == self.labels]

    @cached_property
    def cells(self) -> list[Mapping[str, Any]]:
        """Measured cells."""
        return [row for row in self.of(self.results.cells) if row["status"] == "ok"]

    @cached_property
    def points(self) -> dict[tuple[str, str, float], Rows]:
        """Cells over seeds by (protocol, method, ratio)."""
        found = defaultdict(list)
        for row in self.cells:
            found[row["protocol"], row["method"], row["ratio"]].append(row)
        return dict(found)

    @cached_property
    def statistics(self) -> dict[tuple[str, str, float], Statistic]:
        """The metric over seeds by (protocol, method, ratio)."""
        return self.results.statistics(self.workload, self.labels)

    @cached_property
    def base(self) -> Statistic | None:
        """The metric of the dense base models that arms share."""
        return self.results.base(self.workload, self.labels)

    @cached_property
    def base_params(self) -> int | None:
        """Parameters of the dense network."""
        return next((row["base_params"] for row in self.of(self.results.architectures)), None)

    @cached_property
    def runs(self) -> dict[str, Mapping[str, Any]]:
        """Runs by id."""
        return {row["run"]: row for row in self.of(self.results.runs)}

    @cached_property
    def protocols(self) -> list[str]:
        """By name, and those with other recipes last."""
        return sorted({row["protocol"] for row in self.cells}, key=lambda name: (is_derived(name), name))

    @cached_property
    def ratios(self) -> list[float]:
        """Shares that were removed, smallest first."""
        return sorted({row["ratio"] for row in self.cells})

    @cached_property
    def methods(self) -> list[str]:
        """In the order of every legend."""
        return self.ordered(row["method"] for row in self.cells)

    @cached_property
    def removed(self) -> dict[str, str]:
        """What each method removes."""
        return self.results.removed(self.workload, self.labels)

    @property
    def metric(self) -> Metric:
        """What decides."""
        return self.results.metric(self.workload)

    @property
    def name(self) -> str:
        """Workload and labels."""
        return title(self.workload, self.labels)

    def file(self, what: str) -> str:
        """File name of a figure, without its ending."""
        return file_name(what, self.workload, self.labels)

    def setup(self, having: Iterable[str]) -> str | None:
        """Of protocols that have what is needed, the one that is shown: S3.2, else the first."""
        known = set(having)
        return SETUP if SETUP in known else next((name for name in self.protocols if name in known), None)

    def ordered(self, methods: Iterable[str]) -> list[str]:
        """Methods in the order of every legend: pruning methods by name, then the rest."""
        wanted = set(methods)
        return [name for name in self.looks if name in wanted]

    def label(self, method: str) -> str:
        """Name of a method. Zeros are no smaller network: who removes them is not to be compared with the others."""
        return f"{method} (single weights)" if self.removed.get(method) == "weight" else method

    def seeds(self, points: Iterable[Sequence[Any]]) -> str:
        """How many seeds the points have."""
        counts = sorted({len(seeds) for seeds in points})
        return f"n = {counts[0]}" if len(counts) == 1 else f"n = {counts[0]} to {counts[-1]}"

    def stands_out(self, method: str, among: int) -> bool:
        """Whether a method is drawn in its own way among so many: in a crowd, if others are measured by it."""
        return among <= CROWD or self.looks[method].dashed or method in CONTROLS or method in CORE_METHODS

    def legend(self, methods: Sequence[str]) -> list[Mark]:
        """How these methods are drawn."""
        apart = [name for name in methods if self.stands_out(name, len(methods))]
        looks = [(self.label(name), self.looks[name]) for name in apart]
        marks = [Mark(label, look.colour, look.figure_marker, "--" if look.dashed else "-") for label, look in looks]
        others = len(methods) - len(apart)
        return [*marks, *([Mark(f"{others} other methods", PALE)] if others else [])]

    def draw(self, axes: Axes, lines: Mapping[str, Points], dots: Mapping[str, Points], among: int) -> None:
        """Means as lines with markers, and a dot for every seed; in a crowd only means, most of them pale.

        Args:
            axes: Where.
            lines: Means of each method, from left to right.
            dots: Seeds of each method.
            among: Number of methods in the whole figure.
        """
        for number, (method, points) in enumerate(lines.items()):
            if self.stands_out(method, among):
                look, step = self.looks[method], max(1, len(points) // 5)
                axes.plot(
                    [x for x, _ in points],
                    [y for _, y in points],
                    color=look.colour,
                    linewidth=0.9,
                    linestyle=(0, (3, 1.2)) if look.dashed else "-",
                    marker=look.figure_marker,
                    markersize=3.6,
                    markeredgewidth=0.3,
                    markeredgecolor="white",
                    # Long curves have few markers, each at epochs of its own.
                    markevery=(number % step, step),
                    zorder=4,
                    gid=f"mean-{number}",
                )
        pale = [points for method, points in lines.items() if not self.stands_out(method, among)]
        if pale:
            segments(axes, pale, [PALE] * len(pale), 0.4, "means")
        seeds = [(x, y, self.looks[method].colour) for method, points in dots.items() for x, y in points]
        if seeds and among <= CROWD:
            scattered(axes, seeds, 1.7, "seeds")


def limits(values: Iterable[float], metric: Metric, spread: Iterable[Statistic] = ()) -> tuple[float, float]:
    """Ends of an axis that shows all values, and error bars; of percents as far as there are such percents."""
    ends = [*values, *(mean.mean + sign * (mean.std or 0.0) for mean in spread for sign in (-1, 1))]
    low, high = min(ends), max(ends)
    if metric.unit == "%":
        low, high = max(low, 0.0), min(high, 100.0)
    # What differs by less than this looks the same.
    room = 0.05 * max(high - low, 1.0 if metric.margin is None else 2 * metric.margin)
    return low - room, high + room
