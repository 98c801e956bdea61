"""Figures of a report for papers: what each workload's figures show, as SVG and PDF.

Importing this module imports matplotlib: import it where figures are made.
"""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from pruneaudit.catalog.names import is_scratch
from pruneaudit.errors import ConfigError
from pruneaudit.report.arms import CROWD, Arms, Rows, limits
from pruneaudit.report.curves import Curve
from pruneaudit.report.differences import Gap, Picture, pictures
from pruneaudit.report.results import RISING, Results
from pruneaudit.report.sheet import (
    INK,
    PALE,
    WIDTHS,
    Axes,
    Mark,
    Panel,
    Series,
    Sheet,
    bars,
    linear_axis,
    log_axis,
    named_ticks,
    scattered,
    segments,
    written,
)
from pruneaudit.report.style import VERDICTS, Style, styles
from pruneaudit.report.tables import file_name, title
from pruneaudit.report.values import value

#: Learning rates of a run whose drops are marked in its curve; a cosine has one for each step.
MOST_RATES = 8
#: Stages of an arm in their order, and trainings that only served to choose a learning rate.
_STAGES = {
    "pretrain": Mark("pretrain", "#E3E6EA", dashes=None),
    "topup": Mark("top-up", "#8B95A3", dashes=None),
    "prune": Mark("prune", "#E69F00", dashes=None, hatch="\\\\\\\\"),
    "retrain": Mark("retrain; scratch: train", "#0072B2", dashes=None),
    "tuning": Mark("trials not chosen", "#FFFFFF", dashes=None, hatch="//////"),
}
_MEAN = "mean ± sample standard deviation"

#: Values over seeds by (ratio, method), of one protocol.
Seeds = Mapping[tuple[float, str], Sequence[float]]


def figures(results: Results, columns: int = 2, looks: Mapping[str, Style] | None = None) -> dict[str, bytes]:
    """All figures for which there is something to draw, by file name: each as SVG and as PDF.

    Args:
        results: What the report shows.
        columns: 1 or 2: as wide as one column of a paper (3.3 inches) or as two (6.9 inches).
        looks: How methods are drawn, where more are in the report than in these results.

    Raises:
        ConfigError: ``columns`` is something else.
    """
    if columns not in WIDTHS:
        raise ConfigError(f"figures are 1 or 2 columns wide, not {columns}")
    return written(sheets(results, looks), columns)


def sheets(results: Results, looks: Mapping[str, Style] | None = None) -> Iterator[Sheet]:
    """The figures before they have a size, one workload after the other."""
    looks = looks or styles(row["method"] for row in results.cells)
    for workload, labels in results.groups:
        arms = Arms(results, workload, labels, looks)
        yield from differences(results, workload, labels)
        if arms.cells:
            yield from _sheets(arms)


# Differences


def differences(results: Results, workload: str, labels: tuple[str, ...]) -> Iterator[Sheet]:
    """Differences with intervals and margins: a row for each comparison, a panel for each setup, as on the page."""
    for picture in pictures(results, workload, labels):
        names = [f"{left} − {right}" for left, right in (arms for arms, _ in picture.rows)]
        panels = [Panel(setup.upper(), partial(_gaps, picture, setup, names)) for setup in picture.setups]
        metric, name = picture.metric, title(workload, labels)
        found = {gap.verdict for _, gaps in picture.rows for gap in gaps.values() if gap.mean is not None}
        if not found:
            continue
        caption = (
            f"{name}, ratio {picture.ratio:g}: first arm minus second, test {metric.title} in {metric.points}, mean "
            "and 95 % interval over paired seeds. Band: the margin below which a difference does not matter."
        )
        caption += f" {picture.left_out} more comparisons are not shown." if picture.left_out else ""
        legend = [Mark(word, look[0], look[1]) for word, look in VERDICTS.items() if word in found]
        unit = f"difference ({metric.points})"
        stem = file_name(f"differences-r{picture.ratio:g}", workload, labels)
        yield Sheet(stem, [Series(panels, unit, names=names)], legend, caption, _row_heights(names))


def _gaps(picture: Picture, setup: str, names: Sequence[str], axes: Axes) -> None:
    """The differences of one setup, from top to bottom."""
    known = [(place, gaps[setup]) for place, (_, gaps) in enumerate(picture.rows) if setup in gaps]
    found: list[tuple[int, Gap, float]] = [(place, gap, gap.mean) for place, gap in known if gap.mean is not None]
    margin = max((gap.margin for _, gap, _ in found), default=0.0)
    axes.axvspan(-margin, margin, color=PALE, alpha=0.25, linewidth=0, zorder=0, gid="margin")
    axes.axvline(0, color=INK, linewidth=0.5, zorder=1, gid="zero")
    spans = [(gap.low, gap.high, place, gap) for place, gap, _ in found if gap.low is not None and gap.high is not None]
    lines = [[(low, place), (high, place)] for low, high, place, _ in spans]
    segments(axes, lines, [VERDICTS[gap.verdict][0] for *_, gap in spans], 0.9, "interval")
    for word, (colour, marker) in VERDICTS.items():
        if places := [(mean, place) for place, gap, mean in found if gap.verdict == word]:
            face = "white" if word == "indeterminate" else colour
            x, y = [x for x, _ in places], [y for _, y in places]
            look = {"markersize": 3.6, "markeredgewidth": 0.8, "markeredgecolor": colour, "markerfacecolor": face}
            axes.plot(x, y, marker, zorder=4, gid=word.replace(" ", "-"), **look)  # type: ignore[arg-type]
    _name_rows(axes, names)
    linear_axis(axes, "x", -picture.reach, picture.reach, 4)


def _sheets(arms: Arms) -> Iterator[Sheet]:
    speedups = {id(row): row["speedup"] for row in arms.cells}
    yield _accuracy(arms, "speedup", "speedup, MACs(base) / MACs(pruned) (×)", speedups)
    if arms.base_params:
        left = {id(row): 100 * row["params"] / arms.base_params for row in arms.cells}
        yield _accuracy(arms, "parameters", "parameters left (%)", left, falling=True)
    setup = arms.setup(arms.protocols)
    if setup is not None and len(arms.methods) > CROWD:
        points = ((ratio, name, rows) for (protocol, name, ratio), rows in arms.points.items() if protocol == setup)
        metric = arms.metric
        found = {(ratio, name): list(map(value, rows)) for ratio, name, rows in points}
        told = f"test {metric.title} after the last epoch"
        yield _rows(arms, metric.name, f"test {metric.axis}", setup, found, told)
    for figure in (_learning_rates, _curves, _budget, _trainability):
        yield from figure(arms)


# The metric against size


def _accuracy(arms: Arms, what: str, label: str, sizes: Mapping[int, float], falling: bool = False) -> Sheet:
    """The metric at each operating point, a panel for each protocol. ``sizes``: of each cell, by the id of its row."""
    among = len(arms.methods)
    ends = min(sizes.values()), max(sizes.values())
    room = max((ends[1] / ends[0]) ** 0.08, 1.08)
    low, high = ends[0] / room, ends[1] * room
    base = arms.base
    shown = [*map(value, arms.cells), *([base.mean] if base is not None else [])]
    ends_of_y = limits(shown, arms.metric, arms.statistics.values() if among <= CROWD else ())
    # Methods that remove the same share would hide each other.
    shifts = _shifts(arms.methods, low, high)

    def draw(protocol: str, axes: Axes) -> None:
        if base is not None and arms.results.protocols.get(protocol, {}).get("base") == "shared":
            axes.axhline(base.mean, color=INK, linewidth=0.5, linestyle=(0, (6, 3)), zorder=1, gid="base")
        lines: dict[str, list[tuple[float, float]]] = defaultdict(list)
        dots: dict[str, list[tuple[float, float]]] = defaultdict(list)
        spans, colours = [], []
        for method in arms.methods:
            for ratio in arms.ratios:
                if rows := arms.points.get((protocol, method, ratio)):
                    found = arms.statistics[protocol, method, ratio]
                    x = statistics.fmean(sizes[id(row)] for row in rows) * shifts[method]
                    lines[method].append((x, found.mean))
                    dots[method] += [(x, value(row)) for row in rows]
                    if found.std is not None:
                        spans.append([(x, found.mean - found.std), (x, found.mean + found.std)])
                        colours.append(arms.looks[method].colour)
        arms.draw(axes, {method: sorted(line) for method, line in lines.items()}, dots, among)
        if spans and among <= CROWD:
            segments(axes, spans, colours, 0.8, "spread")
        log_axis(axes, "x", low, high)
        if falling:
            # The more is removed, the further right, as with the speedup.
            axes.invert_xaxis()
        linear_axis(axes, "y", *ends_of_y)

    panels = [Panel(protocol.upper(), partial(draw, protocol)) for protocol in arms.protocols]
    seeds = arms.seeds(arms.points.values())
    caption = f"{arms.name}: test {arms.metric.title} after the last epoch{arms.metric.aside}, "
    if among > CROWD:
        caption += f"means over {seeds} seeds."
    else:
        caption += f"{_MEAN} over {seeds} seeds; small dots: seeds. Points are moved sideways to be told apart."
    if base is not None:
        caption += f" Long dashes: base model, {base}{arms.metric.unit_text} (n = {base.n})."
    series = Series(panels, label, f"test {arms.metric.axis}")
    return Sheet(arms.file(f"{arms.metric.name}-{what}"), [series], arms.legend(arms.methods), caption)


def _shifts(methods: Sequence[str], low: float, high: float) -> dict[str, float]:
    """Factors that set methods at the same place of a logarithmic axis apart, by a tenth of it in all."""
    width = 0.1 if len(methods) <= CROWD else 0.0
    return {name: (high / low) ** (width * ((n + 0.5) / len(methods) - 0.5)) for n, name in enumerate(methods)}


def _rows(arms: Arms, what: str, label: str, protocol: str, found: Seeds, told: str) -> Sheet:
    """A row for each method, where the lines of so many would hide each other: a panel for each ratio.

    Args:
        arms: The arms of the workload.
        what: First part of the file name.
        label: Of the x axis.
        protocol: The one that is shown.
        found: Values of the metric, or of its mean over a stage.
        told: What the caption says they are.
    """
    methods = arms.ordered(method for _, method in found)
    labels = [arms.label(method) for method in methods]
    ends = limits((value for seeds in found.values() for value in seeds), arms.metric)

    def draw(ratio: float, axes: Axes) -> None:
        dots, means, spans = [], [], []
        for place, method in enumerate(methods):
            colour, seeds = arms.looks[method].colour, found.get((ratio, method), ())
            dots += [(value, place, colour) for value in seeds]
            if seeds:
                mean, std = statistics.fmean(seeds), statistics.stdev(seeds) if len(seeds) > 1 else 0.0
                means.append((mean, place, colour))
                spans.append([(mean - std, place), (mean + std, place)])
        segments(axes, spans, [colour for *_, colour in means], 0.8, "spread")
        scattered(axes, dots, 1.7, "seeds")
        scattered(axes, means, 3.4, "means")
        _name_rows(axes, labels)
        linear_axis(axes, "x", *ends)

    panels = _by_ratio(protocol, (ratio for ratio, _ in found), draw)
    caption = f"{arms.name}: {told}, {_MEAN} over {arms.seeds(found.values())} seeds; small dots: seeds."
    return Sheet(
        arms.file(f"{what}-methods"), [Series(panels, label, names=labels)], (), caption, _row_heights(methods)
    )


def _name_rows(axes: Axes, labels: Sequence[str]) -> None:
    """Names from top to bottom."""
    named_ticks(axes, "y", len(labels) - 0.4, -0.6, labels)
    axes.tick_params("y", length=0)


def _row_heights(methods: Sequence[str]) -> float:
    """Inches of a panel with a row for each method."""
    return max(0.5, 0.125 * len(methods) + 0.1)


def _by_ratio(protocol: str, ratios: Iterable[float], draw: Callable[[float, Axes], None]) -> list[Panel]:
    return [Panel(f"{protocol.upper()}, ratio {ratio:g}", partial(draw, ratio)) for ratio in sorted(set(ratios))]


# The effect of the learning rate


def _learning_rates(arms: Arms) -> Iterator[Sheet]:
    """The metric by the first learning rate of the last stage, where arms were tuned: a panel for each ratio."""
    # By protocol and ratio, then by method: for each seed its trials, and which of them was chosen.
    tuned: dict[tuple[str, float], dict[str, list[list[tuple[float, float, bool]]]]] = {}
    for (protocol, method, ratio), rows in arms.points.items():
        for row in rows:
            trials = [
                (run["learning_rate"], value(run), run["run"] == row["result"])
                for run in (arms.runs[name] for name in row["runs"] if name in arms.runs)
                if run["stage"] in ("retrain", "scratch") and run["learning_rate"]
            ]
            if len({rate for rate, _, _ in trials}) > 1:
                tuned.setdefault((protocol, ratio), {}).setdefault(method, []).append(trials)
    if not tuned:
        return
    methods = arms.ordered(method for found in tuned.values() for method in found)
    seeds = [trials for found in tuned.values() for seeds in found.values() for trials in seeds]
    rates = sorted({rate for trials in seeds for rate, _, _ in trials})
    low, high = rates[0] / 1.5, rates[-1] * 1.5
    ends = limits((reached for trials in seeds for _, reached, _ in trials), arms.metric)
    shifts = _shifts(methods, low, high)

    def draw(place: tuple[str, float], axes: Axes) -> None:
        lines, dots, chosen = {}, {}, []
        for method in methods:
            trials = [trial for seed in tuned[place].get(method, ()) for trial in seed]
            by_rate = defaultdict(list)
            for rate, reached, best in trials:
                by_rate[rate * shifts[method]].append(reached)
                chosen += [(rate * shifts[method], reached)] if best else []
            if trials:
                lines[method] = [(x, statistics.fmean(found)) for x, found in sorted(by_rate.items())]
                dots[method] = [(x, reached) for x, found in by_rate.items() for reached in found]
        arms.draw(axes, lines, dots, len(methods))
        if chosen and len(methods) <= CROWD:
            x, y = [x for x, _ in chosen], [y for _, y in chosen]
            ring = {"markerfacecolor": "none", "markeredgecolor": INK, "markeredgewidth": 0.5, "markersize": 3.6}
            axes.plot(x, y, "o", zorder=5, gid="chosen", **ring)  # type: ignore[arg-type]
        log_axis(axes, "x", low, high, ticks=rates)
        linear_axis(axes, "y", *ends)

    panels = [
        Panel(f"{protocol.upper()}, ratio {ratio:g}", partial(draw, (protocol, ratio)))
        for protocol, ratio in sorted(tuned)
    ]
    n = arms.seeds(found for methods in tuned.values() for found in methods.values())
    what = arms.metric.title
    caption = f"{arms.name}: test {what} after the last epoch{arms.metric.aside}, means over {n} seeds"
    caption += f"; small dots: seeds; rings: trials chosen by validation {what}." if len(methods) <= CROWD else "."
    series = Series(panels, "first learning rate of retraining; scratch: of training", f"test {arms.metric.axis}")
    yield Sheet(arms.file("learning-rates"), [series], arms.legend(methods), caption)


# Learning curves


def _curves(arms: Arms) -> Iterator[Sheet]:
    """The metric by epoch of the runs that gave the results (Wang et al. 2023, Fig. 2): a panel for each ratio."""
    found: dict[tuple[str, float, str], list[Curve]] = defaultdict(list)
    for (protocol, method, ratio), rows in arms.points.items():
        for row in rows:
            curve = arms.results.curves.get(row["result"])
            if curve is not None and len(curve.values) > 1:
                found[protocol, ratio, method].append(curve)
    setup = arms.setup(protocol for protocol, _, _ in found)
    if setup is None:
        return
    shown = {(ratio, method): curves for (protocol, ratio, method), curves in found.items() if protocol == setup}
    methods = arms.ordered(method for _, method in shown)
    rising = _rising(arms, setup)
    # Training from scratch is another thing than retraining, often many times as long.
    parts = {
        "epoch of retraining": [method for method in methods if not is_scratch(method)],
        "epoch of training from scratch": [method for method in methods if is_scratch(method)],
    }
    series = []
    for label, some in parts.items():
        mine = {place: curves for place, curves in shown.items() if place[1] in some}
        if mine:
            series.append(_curve_series(arms, setup, mine, rising, len(methods), label))
    metric = arms.metric
    n = arms.seeds(shown.values())
    caption = [f"{arms.name}: test {metric.title} after each epoch{metric.aside}, means over {n} seeds."]
    caption += ["Bands: from the lowest seed to the highest."] if len(methods) <= CROWD else []
    if any(_drops(curve) for curves in shown.values() for curve in curves):
        caption.append("Dotted: the learning rate falls.")
    if any(place in shown for place in rising):
        moved = f"the {metric.title} of some seed still {metric.improved}"
        caption.append(f"Shaded: stages at whose end {moved} (F605, F606); strips: whose.")
    yield Sheet(arms.file("curves"), series, arms.legend(methods), " ".join(caption))


#: First and last epoch of some stages, by (ratio, method).
Stages = Mapping[tuple[float, str], Sequence[tuple[float, float]]]


def _curve_series(
    arms: Arms,
    protocol: str,
    shown: Mapping[tuple[float, str], Sequence[Curve]],
    rising: Stages,
    among: int,
    label: str,
) -> Series:
    """Panels of arms whose epochs are comparable.

    Args:
        arms: The arms of the workload.
        protocol: The one that is shown.
        shown: Curves over seeds by (ratio, method).
        rising: Stages to shade.
        among: Number of methods in the whole figure.
        label: Of the x axis.
    """
    methods = arms.ordered(method for _, method in shown)
    # A seed may be an epoch shorter, where as many MACs are trained: no mean of other seeds there.
    values = {place: list(zip(*(curve.values for curve in curves), strict=False)) for place, curves in shown.items()}
    lengths = [len(epochs) for epochs in values.values()]
    # The whole band: what is cut off would look like a curve that starts at the edge.
    ends = limits((value for epochs in values.values() for seeds in epochs for value in seeds), arms.metric)

    def draw(ratio: float, axes: Axes) -> None:
        here = {method: epochs for method in methods if (epochs := values.get((ratio, method)))}
        for drop in sorted({drop for method in here for curve in shown[ratio, method] for drop in _drops(curve)}):
            axes.axvline(drop, color=PALE, linewidth=0.7, linestyle=":", zorder=1, gid="drop")
        for number, (method, epochs) in enumerate(here.items()):
            if len(epochs[0]) > 1 and among <= CROWD:
                axes.fill_between(
                    range(1, len(epochs) + 1),
                    [min(seeds) for seeds in epochs],
                    [max(seeds) for seeds in epochs],
                    color=arms.looks[method].colour,
                    alpha=0.18,
                    linewidth=0,
                    gid=f"band-{number}",
                )
        means = {
            method: [(epoch, statistics.fmean(seeds)) for epoch, seeds in enumerate(epochs, 1)]
            for method, epochs in here.items()
        }
        arms.draw(axes, means, {}, among)
        if max(lengths) > 4 * min(lengths):
            log_axis(axes, "x", 0.9, max(lengths) * 1.1)
        else:
            linear_axis(axes, "x", 0, max(lengths) * 1.02)
        _shade(axes, arms, {method: rising[ratio, method] for method in here if (ratio, method) in rising})
        linear_axis(axes, "y", *ends)

    return Series(_by_ratio(protocol, (ratio for ratio, _ in shown), draw), label, f"test {arms.metric.axis}")


def _drops(curve: Curve) -> list[float]:
    """Epochs at which the learning rate falls."""
    if len(curve.rates) > MOST_RATES:
        return []
    pairs = zip(curve.rates, curve.rates[1:], strict=False)
    return [epoch for (_, before), (epoch, rate) in pairs if rate < before]


def _rising(arms: Arms, protocol: str) -> Stages:
    """Stages at whose end the metric of some seed still improved: the first by F605, the last by F606."""
    found = defaultdict(set)
    for row in arms.of(arms.results.findings):
        if row["rule"] in RISING and row["verdict"] == "fail" and row["protocol"] == protocol:
            (method,) = row["arms"]
            for cell in arms.points.get((protocol, method, row["ratio"]), ()):
                curve = arms.results.curves.get(cell["result"]) if cell["seed"] == row["seed"] else None
                if curve is not None:
                    edges = [0.0, *_drops(curve), float(len(curve.values))]
                    stage = edges[:2] if row["rule"] == RISING[0] else edges[-2:]
                    found[row["ratio"], method].add((stage[0], stage[1]))
    return {place: sorted(stages) for place, stages in found.items()}


def _shade(axes: Axes, arms: Arms, rising: Mapping[str, Sequence[tuple[float, float]]]) -> None:
    """Grey grounds for stages of some method, and at the bottom a strip for each method, unless they are many."""
    # Where the axis is logarithmic, epoch 0 is infinitely far.
    left, _ = axes.get_xlim()
    within = {method: [(max(start, left), end) for start, end in stages] for method, stages in rising.items()}
    for start, end in sorted({stage for stages in within.values() for stage in stages}):
        axes.axvspan(start, end, color=PALE, alpha=0.16, linewidth=0, zorder=0, gid="rising")
    for place, (method, stages) in enumerate(within.items() if len(within) <= CROWD else ()):
        for start, end in stages:
            axes.plot(
                [start, (start + end) / 2, end],
                [0.035 + 0.04 * place] * 3,
                transform=axes.get_xaxis_transform(),
                color=arms.looks[method].colour,
                linewidth=1.2,
                solid_capstyle="butt",
                marker=arms.looks[method].figure_marker,
                markevery=[1],
                markersize=3,
                markeredgewidth=0,
                zorder=2,
                gid=f"rising-{place}",
            )


# Budget


def _budget(arms: Arms) -> Iterator[Sheet]:
    """Epochs and MACs of each stage of each arm, at the largest ratio: a panel for each protocol."""
    ratio = arms.ratios[-1]
    points = {(protocol, method): rows for (protocol, method, r), rows in arms.points.items() if r == ratio}
    for what, column in (("epochs", "epochs"), ("macs", "training_macs")):
        found = {place: _spent(arms, rows, column) for place, rows in points.items()}
        spent = {place: stages for place, stages in found.items() if stages}
        if spent:
            most = max(sum(stages.values()) for stages in spent.values())
            unit, prefix = _unit(most) if what == "macs" else (1.0, "")
            label = f"training cost ({prefix}MACs)" if what == "macs" else "epochs"
            caption = (
                f"{arms.name}, ratio {ratio:g}: what each arm spent, means over "
                f"{arms.seeds(points[place] for place in spent)} seeds. Scratch arms need no base model."
            )
            yield _bars(arms, f"budget-{what}", label, caption, spent, unit)


def _bars(
    arms: Arms, what: str, label: str, caption: str, spent: Mapping[tuple[str, str], Mapping[str, float]], unit: float
) -> Sheet:
    """Stacked bars. ``spent``: on each stage, by (protocol, method); ``unit``: what is one on the axis."""
    methods = arms.ordered(method for _, method in spent)
    labels = [arms.label(method) for method in methods]
    stages = [stage for stage in _STAGES if any(stage in parts for parts in spent.values())]
    most = max(sum(parts.values()) for parts in spent.values()) / unit

    def draw(protocol: str, axes: Axes) -> None:
        ends = defaultdict(list)
        for place, method in enumerate(methods):
            right = 0.0
            for stage, amount in spent.get((protocol, method), {}).items():
                ends[stage].append((place, right, right + amount / unit))
                right += amount / unit
        for stage, places in ends.items():
            bars(axes, places, 0.72, _STAGES[stage], stage)
        _name_rows(axes, labels)
        linear_axis(axes, "x", 0, most * 1.03, 4)

    known = {protocol for protocol, _ in spent}
    panels = [Panel(protocol.upper(), partial(draw, protocol)) for protocol in arms.protocols if protocol in known]
    legend = [_STAGES[stage] for stage in stages]
    return Sheet(arms.file(what), [Series(panels, label, names=labels)], legend, caption, _row_heights(methods))


def _spent(arms: Arms, rows: Rows, column: str) -> dict[str, float]:
    """Mean of what an arm spent on each stage, in the order of stages."""
    spent: dict[str, float] = dict.fromkeys(_STAGES, 0.0)
    for row in rows:
        runs = [arms.runs[name] for name in row["runs"] if name in arms.runs]
        scratch = any(run["stage"] == "scratch" for run in runs)
        for run in runs:
            stage = run["stage"]
            if stage in ("retrain", "scratch"):
                stage = "retrain" if run["run"] == row["result"] else "tuning"
            elif scratch:
                # The base model that a scratch arm is compared with is no cost of its own.
                continue
            spent[stage] += (run[column] or 0) / len(rows)
    return {stage: amount for stage, amount in spent.items() if amount}


def _unit(most: float) -> tuple[float, str]:
    """The largest power of 1000 that is not above a value, and its prefix."""
    prefixes = ("", "k", "M", "G", "T", "P", "E")
    power = min(max(int(math.log10(most)) // 3, 0), len(prefixes) - 1)
    return 1000.0**power, prefixes[power]


# Trainability


def _trainability(arms: Arms) -> Iterator[Sheet]:
    """Mean Jacobian singular value (JSV) through the stages, trainability accuracy (TA): a panel for each ratio."""
    values: dict[tuple[str, float, str], list[tuple[int, list[float]]]] = {}
    accuracies: dict[tuple[str, float, str], list[float]] = {}
    for (protocol, method, ratio), rows in arms.points.items():
        by_stage = enumerate([_all(row["jsv"][stage] for row in rows) for stage in ("base", "pruned", "end")])
        if measured := [(place, seeds) for place, seeds in by_stage if any(seeds)]:
            values[protocol, ratio, method] = measured
        if percents := _all(row["trainability_accuracy"] for row in rows):
            accuracies[protocol, ratio, method] = percents
    setup = arms.setup(protocol for protocol, _, _ in (*values, *accuracies))
    if setup is None:
        return
    jsv = {(ratio, method): found for (protocol, ratio, method), found in values.items() if protocol == setup}
    ta = {(ratio, method): found for (protocol, ratio, method), found in accuracies.items() if protocol == setup}
    methods = arms.ordered(method for _, method in (*jsv, *ta))
    # A network that passes nothing on has 0, which is below every logarithmic axis.
    spread = [value for stages in jsv.values() for _, seeds in stages for value in seeds if value > 0]
    middle = (len(methods) - 1) / 2
    places = {method: number - middle for number, method in enumerate(methods)}

    def draw_values(ratio: float, axes: Axes) -> None:
        lines, dots = {}, {}
        for method in methods:
            if found := jsv.get((ratio, method)):
                shift = 0.2 * places[method] / len(methods) if len(methods) <= CROWD else 0.0
                lines[method] = [(place + shift, statistics.fmean(seeds)) for place, seeds in found]
                dots[method] = [(place + shift, value) for place, seeds in found for value in seeds]
        arms.draw(axes, lines, dots, len(methods))
        log_axis(axes, "y", min(spread) / 1.3, max(spread) * 1.3)
        named_ticks(axes, "x", -0.4, 2.4, ("base", "pruned", "end"))

    def draw_accuracies(ratio: float, axes: Axes) -> None:
        found = {method: ta[ratio, method] for method in methods if (ratio, method) in ta}
        lines = {method: [(places[method], statistics.fmean(seeds))] for method, seeds in found.items()}
        dots = {method: [(places[method], value) for value in seeds] for method, seeds in found.items()}
        arms.draw(axes, lines, dots, len(methods))
        linear_axis(axes, "y", *limits((value for seeds in ta.values() for value in seeds), arms.metric))
        named_ticks(axes, "x", -middle - 0.7, middle + 0.7, ["in the legend's order"])
        axes.tick_params("x", length=0)

    series, told = [], []
    if spread:
        series.append(Series(_by_ratio(setup, (ratio for ratio, _ in jsv), draw_values), "", "mean JSV"))
        told.append("mean Jacobian singular value (JSV) of the base model, after pruning and at the end")
    metric = arms.metric
    explained = f"trainability {metric.title} (TA), the mean test {metric.title} over the first learning-rate stage"
    if ta and len(methods) <= CROWD:
        series.append(Series(_by_ratio(setup, (ratio for ratio, _ in ta), draw_accuracies), "", metric.with_unit("TA")))
        told.append(explained)
    if series:
        n = arms.seeds(arms.points[setup, method, ratio] for ratio, method in {*jsv, *ta})
        dots = "; small dots: seeds" if len(methods) <= CROWD else ""
        caption = f"{arms.name}: {'; '.join(told)}. Means over {n} seeds{dots}."
        yield Sheet(arms.file("trainability"), series, arms.legend(methods), caption)
    if ta and len(methods) > CROWD:
        yield _rows(arms, "trainability", f"trainability {metric.axis}", setup, ta, explained)


def _all(values: Iterable[Any]) -> list[float]:
    """The values, or none where one is missing: a mean over fewer seeds would be another one."""
    found = list(values)
    return [] if None in found else found
