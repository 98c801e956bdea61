"""Rules of MACs, parameters and ratios: against each other, and against the network that is named."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from pruneaudit.tables.networks import Network
from pruneaudit.tables.rows import Row, Table
from pruneaudit.tables.rule import Mark, cells_of, rule

#: What is removed, as people write it, and the kinds of columns that say how much.
_WHAT = {"macs": ("MACs", "speedup"), "params": ("parameters", "compression")}
#: Counters differ: with or without normalisation, pooling, shortcuts. Beyond this it is another network.
_NEAR = 0.1
#: Statements of what is left that differ by less agree: spreadsheets pad numbers with zeros that were not measured.
_SLACK = 1.01


@dataclass(frozen=True)
class _Left:
    """One way of saying how much of the MACs or parameters is left.

    Attributes:
        kinds: Columns that say it.
        text: As printed.
        low: Smallest share that is left by it.
        high: Largest one.
    """

    kinds: tuple[str, ...]
    text: str
    low: float
    high: float

    def agrees(self, other: _Left) -> bool:
        """Whether both can be true."""
        return self.low <= other.high * _SLACK + 1e-4 and other.low <= self.high * _SLACK + 1e-4

    @property
    def middle(self) -> float:
        """Share that is left, most likely."""
        return (self.low + self.high) / 2


def lefts(row: Row, what: str) -> list[_Left]:
    """Everything that a row says of how much of MACs or parameters is left."""
    title, factor = _WHAT[what]
    found = []
    base, after = row.number(f"base_{what}"), row.number(what)
    if base is not None and after is not None and base.low > 0 and after.value >= 0:
        text = f"{row.text(f'base_{what}')} to {row.text(what)} {title}"
        found.append(_Left((f"base_{what}", what), text, max(after.low, 0) / base.high, after.high / base.low))
    gone = row.number(f"{what}_removed")
    if gone is not None and -1 <= gone.value <= 1:
        # Some print what is gone as a negative change.
        value = abs(gone.value)
        text = f"{row.text(f'{what}_removed')} of {title} removed"
        found.append(_Left((f"{what}_removed",), text, 1 - value - gone.half, 1 - value + gone.half))
    kept = row.number(f"{what}_kept")
    if kept is not None and 0 <= kept.value <= 1.5:
        found.append(_Left((f"{what}_kept",), f"{row.text(f'{what}_kept')} of {title} left", kept.low, kept.high))
    speedup = row.number(factor)
    if speedup is not None and speedup.low > 0:
        found.append(_Left((factor,), f"{factor} {row.text(factor)}", 1 / speedup.high, 1 / speedup.low))
    return found


def is_whole(row: Row) -> bool:
    """Whether nothing that a row states says that anything was removed or lost, as of a base."""
    changes = [number.value for kind in ("ratio", "drop") if (number := row.number(kind)) is not None]
    stated = [left for what in _WHAT for left in lefts(row, what)]
    return not any(changes) and all(left.low < 1.01 and left.high > 0.99 for left in stated)


def of_another_base(row: Row, base: Row) -> Iterator[tuple[tuple[str, ...], str]]:
    """Kinds and texts of what a row says is left that is not so of the sizes of its base, a row of the same table.

    Rows are counted by whoever printed them first, so that only what is beyond counters' differences is said.
    """
    for what, (title, _) in _WHAT.items():
        before, after = base.number(what), row.number(what)
        if before is None or after is None or before.low <= 0 or row.number(f"base_{what}") is not None:
            continue
        if row.entries[what].is_sized != base.entries[what].is_sized or after.low > before.high:
            continue
        text = f"{base.text(what)} to {row.text(what)} {title}"
        sizes = _Left((what,), text, max(after.low, 0) / before.high, after.high / before.low)
        for stated in lefts(row, what):
            less, more = sorted((sizes, stated), key=lambda left: left.middle)
            if more.low > less.high * (1 + _NEAR):
                yield (what, *stated.kinds), f"{sizes.text}, but {stated.text}"
                break


def _contradictions(table: Table, what: str) -> Iterator[tuple[Row, _Left, _Left]]:
    for row in table.rows:
        stated = lefts(row, what)
        for place, first in enumerate(stated):
            other = next((one for one in stated[place + 1 :] if not first.agrees(one)), None)
            if other is not None:
                yield row, first, other
                break


def _exchanged(first: _Left, other: _Left) -> str:
    """How two statements agree if one of them means its opposite; empty where they do not."""
    if abs(first.middle - 0.5) < 0.02:
        return ""
    turned = _Left(other.kinds, other.text, 1 - other.high, 1 - other.low)
    if not first.agrees(turned):
        return ""
    # Of the two, one that is a share can be exchanged by a slip of the pen.
    share = next((one for one in (first, other) if one.kinds[0].endswith(("_removed", "_kept"))), other)
    meant = "removed" if share.kinds[0].endswith("_kept") else "left"
    return f"they agree if '{share.text}' is what is {meant}"


@rule(
    "T009",
    "Speedup, share removed and MACs (or compression and parameters) say the same",
    "ShrinkBench (Blalock et al. 2020), section 5: ambiguous metrics",
    "contradiction",
)
def t009(table: Table) -> Iterator[Mark]:
    """All that a row says of what is left: base and pruned MACs, share removed or left, speedup; likewise parameters.

    Where no row of a table agrees, the two columns count different things, and that is said once.

    Example: 125.5M to 62.7M MACs with a speedup of 2.55x: it is 2.00x.
    """
    for what, (title, factor) in _WHAT.items():
        broken = [found for found in _contradictions(table, what) if not _exchanged(found[1], found[2])]
        stated = sum(len(lefts(row, what)) > 1 for row in table.rows)
        if len(broken) > 2 and len(broken) == stated:
            row, first, other = broken[0]
            message = f"in none of {stated} rows do {title} agree: {first.text}, but {other.text}; say what each counts"
            yield Mark(table, row.line, message, cells_of(row, first.kinds + other.kinds))
            continue
        for row, first, other in broken:
            right = f"{1 / first.middle:.2f}x" if first.middle > 0 else ""
            yield Mark(
                table,
                row.line,
                f"{first.text}, but {other.text}: the first is a {factor} of {right}, "
                f"{100 * (1 - first.middle):.1f} % removed",
                cells_of(row, first.kinds + other.kinds),
                right if factor in other.kinds else f"{100 * (1 - first.middle):.1f} %",
                row.method,
            )


@rule(
    "T010",
    "What is removed is not printed as what is left",
    "ShrinkBench (Blalock et al. 2020), section 5: 'pruned %' means removed here and kept there",
    "contradiction",
)
def t010(table: Table) -> Iterator[Mark]:
    """Statements of one row that disagree as they stand and agree once a share is exchanged for its rest.

    Where sizes stand beside shares, without a base: sizes divided by what is left give one base for all rows.

    Example: a speedup of 2.70x with "37 % FLOPs removed": 37 % are left, 63 % removed.
    """
    for what in _WHAT:
        if what in table.exchanged:
            rows, base = table.exchanged[what]
            entry = rows[0].entries[f"{what}_kept"]
            message = (
                f"{entry.text} in column '{table.grid.header[entry.column]}' is what is left: so all {len(rows)} rows "
                f"have one base of {_readable(base)} {_WHAT[what][0]}, and as what is removed they have none in common"
            )
            yield Mark(table, rows[0].line, message, cells_of(rows[0], (f"{what}_kept",)), "", rows[0].method)
        for row, first, other in _contradictions(table, what):
            why = _exchanged(first, other)
            if why:
                message = f"{first.text}, but {other.text}; {why}"
                yield Mark(table, row.line, message, cells_of(row, first.kinds + other.kinds), "", row.method)


def _factor(value: float, known: tuple[int, ...], near: float = _NEAR) -> int:
    """1 or 2 where a number is one of the known ones or its double, else 0."""
    for times in (1, 2):
        if any(abs(value / (times * one) - 1) <= near for one in known):
            return times
    return 0


def base_macs(row: Row) -> float | None:
    """MACs of the base as stated, or as implied by pruned MACs and speedup; None where no unit is stated."""
    base, entry = row.number("base_macs"), row.entries.get("base_macs")
    if base is not None and entry is not None and entry.is_sized:
        return base.value
    after, entry, speedup = row.number("macs"), row.entries.get("macs"), row.number("speedup")
    gone = row.number("macs_removed")
    if after is None or entry is None or not entry.is_sized:
        return None
    if speedup is not None and speedup.value >= 1:
        return after.value * speedup.value
    return after.value / (1 - gone.value) if gone is not None and 0 <= gone.value < 0.98 else None


def times_known(value: float, network: Network) -> int:
    """1 or 2 where base MACs are those of a network or their double, else 0."""
    return _factor(value, network.all_macs)


@rule(
    "T011",
    "Multiply-adds and operations (two for each) do not stand in one column",
    "ShrinkBench corpus: ResNet-50 as 4.1 and as 7.7 'GFLOPs', VGG-16 as 15.5 and 30.9",
    "contradiction",
)
def t011(table: Table) -> Iterator[Mark]:
    """Base MACs of named networks against what these networks have: once or twice as many, and never both in one table.

    What is called MACs must not be the double; what is called FLOPs may be either, if all are.

    Example: ResNet-50 with 4.09 and VGG-16 with 30.9 GFLOPs.
    """
    found: list[tuple[Row, int, float, Network]] = []
    for row in table.rows:
        value = base_macs(row)
        if value is not None and row.network is not None:
            factor = _factor(value, row.network.all_macs)
            if factor:
                found.append((row, factor, value, row.network))
    factors = [factor for _, factor, _, _ in found]
    rarer = 2 if factors.count(2) <= factors.count(1) else 1
    is_mixed = len(set(factors)) > 1
    for row, factor, value, network in found:
        counts = {row.entries[kind].counts for kind in ("base_macs", "macs") if kind in row.entries}
        if (is_mixed and factor == rarer) or (factor == 2 and "macs" in counts):
            unit = "operations, two for each multiply-add" if factor == 2 else "multiply-adds"
            reason = (
                "other rows count " + ("multiply-adds" if factor == 2 else "operations")
                if is_mixed
                else "and are called MACs"
            )
            yield Mark(
                table,
                row.line,
                f"{_readable(value)} of {network.name} are {unit}, {reason}",
                cells_of(row, ("base_macs", "macs")),
                _readable(value / 2 if factor == 2 else value * 2),
                row.method,
            )


@rule(
    "T012",
    "A base network has the parameters and MACs of the network that is named",
    "ShrinkBench (Blalock et al. 2020): AlexNet's FLOPs from 371 M to 1,500 M",
    "contradiction",
)
def t012(table: Table) -> Iterator[Mark]:
    """Base MACs (or their double) and parameters of named networks on named data against their shipped counts, to 10 %.

    Example: ResNet-50 on ImageNet with 2.6 G MACs: it has 4.09 G.
    """
    seen = set()
    for row in table.rows:
        if row.network is None:
            continue
        entry, params = row.entries.get("base_macs"), row.number("base_params")
        value = base_macs(row)
        if value is not None and entry is not None and not _factor(value, row.network.all_macs):
            kinds: tuple[str, ...] = ("base_macs",)
            message = (
                f"{row.network.name} on {row.network.dataset} has {_readable(row.network.macs)} MACs, "
                f"not {_readable(value)}"
            )
            if (message, row.method) not in seen:
                seen.add((message, row.method))
                yield Mark(table, row.line, message, cells_of(row, kinds), _readable(row.network.macs), row.method)
        entry = row.entries.get("base_params")
        if params is None or entry is None or not entry.is_sized:
            continue
        if not any(abs(params.value / one - 1) <= _NEAR for one in row.network.all_params):
            message = (
                f"{row.network.name} on {row.network.dataset} has {_readable(row.network.params)} parameters, not "
                f"{_readable(params.value)}"
            )
            if (message, row.method) not in seen:
                seen.add((message, row.method))
                yield Mark(
                    table,
                    row.line,
                    message,
                    cells_of(row, ("base_params",)),
                    _readable(row.network.params),
                    row.method,
                )


def _readable(count: float) -> str:
    for unit, factor in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= factor * 0.9995:
            return f"{count / factor:.3g} {unit}"
    return f"{count:.0f}"


@rule(
    "T013",
    "A pruned network is smaller than its base, and something is left of it",
    "ShrinkBench (Blalock et al. 2020), section 5: compression ratio as old/new and as new/old",
    "contradiction",
)
def t013(table: Table) -> Iterator[Mark]:
    """Shares below 0 or at 1, factors below 1, pruned MACs or parameters above those of the base.

    Example: a speedup of 0.63x where 37 % were removed: it is 1.59x.
    """
    for row in table.rows:
        for what, (title, factor) in _WHAT.items():
            base, after, speedup = row.number(f"base_{what}"), row.number(what), row.number(factor)
            if base is not None and after is not None and after.low > base.high * 1.001 and _same_unit(row, what):
                message = f"{row.text(what)} {title} left of {row.text(f'base_{what}')}"
                yield Mark(table, row.line, message, cells_of(row, (what, f"base_{what}")), "", row.method)
            if speedup is not None and 0 < speedup.high < 0.98:
                message = f"{factor} {row.text(factor)} is below 1: the inverse is {1 / speedup.value:.2f}x"
                yield Mark(table, row.line, message, cells_of(row, (factor,)), f"{1 / speedup.value:.2f}x", row.method)
            gone = row.number(f"{what}_removed")
            if gone is not None and abs(gone.value) >= 1 and gone.step < 0.5:
                message = f"{row.text(f'{what}_removed')} of all {title} cannot be removed"
                yield Mark(table, row.line, message, cells_of(row, (f"{what}_removed",)), "", row.method)


def _same_unit(row: Row, what: str) -> bool:
    return row.entries[what].is_sized == row.entries[f"base_{what}"].is_sized


@rule(
    "T014",
    "An operating point is labelled with its own ratio",
    "Wang et al. 2023, Table 7: columns printed 0.3 to 0.9 hold the speedups of 0.1 to 0.7",
    "contradiction",
)
def t014(table: Table) -> Iterator[Mark]:
    """Stated speedups of a network against those of its layers at each ratio, where three points or more are stated.

    Nothing is said where a speedup belongs to no ratio (another choice of layers); what counts is that all belong to
    others than the stated ones. With a granularity of filters, nothing is left below the square of what is kept.

    Example: VGG-19 on CIFAR-100 with 1.23x at ratio 0.3: that is ratio 0.1, 0.3 gives 1.97x.
    """
    stated: dict[Network, dict[float, tuple[float, Row]]] = defaultdict(dict)
    for row in table.rows:
        ratio, speedup = row.number("ratio"), row.number("speedup")
        if ratio is None or speedup is None or row.network is None:
            continue
        if row.network.speedups:
            stated[row.network].setdefault(round(ratio.value, 4), (speedup.value, row))
        filters = any(word in row.text("granularity").lower() for word in ("filter", "channel"))
        least = (1 - ratio.high) ** 2
        if filters and 0 < ratio.value < 1 and 1 / speedup.high < least * 0.8 and speedup.low > 0:
            message = (
                f"without {row.text('ratio')} of the filters at least {100 * least:.1f} % of the MACs are left, a "
                f"speedup of {1 / least:.2f}x; printed is {row.text('speedup')}"
            )
            yield Mark(table, row.line, message, cells_of(row, ("ratio", "speedup")), "", row.method)
    for network, points in stated.items():
        counted = dict(network.speedups)
        moved = {}
        for share, (factor, row) in points.items():
            own = counted.get(share)
            if own is not None and abs(factor / own - 1) > 0.05:
                real = next((other for other, value in counted.items() if abs(factor / value - 1) < 0.02), None)
                if real is not None:
                    moved[share] = (real, row)
        if len(moved) >= 3 and len(moved) == len(points):
            for share, (real, row) in moved.items():
                yield Mark(
                    table,
                    row.line,
                    f"{row.text('speedup')} of {network.name} belongs to ratio {real:g}; at {share:g} it is "
                    f"{counted[share]:.2f}x",
                    cells_of(row, ("ratio", "speedup")),
                    f"{real:g}",
                    row.text("ratio"),
                )


@rule(
    "T015",
    "Rows of one tier keep about as many parameters",
    "PruningBench: rows of one '2x' tier keep 27 to 71 % of the parameters",
    "unequal",
)
def t015(table: Table) -> Iterator[Mark]:
    """Shares of parameters left within one network, data and tier (the operating point as the table calls it).

    Example: two methods at "2x", one with 27 % and one with 71 % of the parameters.
    """
    tiers: dict[tuple[tuple[str, str], str], list[tuple[float, Row]]] = defaultdict(list)
    for row in table.rows:
        tier = row.text("tier") or row.text("ratio") or row.section
        if not tier and row.number("speedup") is not None:
            tier = f"{row.number('speedup').value:.1f}x"  # type: ignore[union-attr]
        stated = lefts(row, "params")
        if tier and stated and 0 < stated[0].middle <= 1:
            tiers[row.task, tier].append((stated[0].middle, row))
    for (_, tier), members in tiers.items():
        (low, least), (high, most) = min(members, key=lambda one: one[0]), max(members, key=lambda one: one[0])
        if high / low > 1.5:
            yield Mark(
                table,
                least.line,
                f"at {tier} rows keep {100 * low:.0f} % ({least.method}) to {100 * high:.0f} % ({most.method}) of the "
                "parameters",
                cells_of(least, ("params", "params_removed", "params_kept", "compression")),
                "",
                least.method,
            )


@rule(
    "T016",
    "Accuracy and size of a row are of one network",
    "fxmeng/Pruning-Filter-in-Filter, issue 11: best parameters and best FLOPs of two settings in one row",
    "contradiction",
    scope="files",
)
def t016(tables: list[Table]) -> Iterator[Mark]:
    """Settings that a row names for accuracy and for MACs; and rows whose accuracy and MACs other rows state apart.

    Example: a summary with 93.64 at 50 % where the detailed table has 93.64 at 40 % and 93.20 at 50 %.
    """
    details: dict[tuple[object, ...], list[tuple[Table, Row, float, float]]] = defaultdict(list)
    for table in tables:
        for row in table.rows:
            first, second = row.text("accuracy_setting"), row.text("macs_setting")
            if first and second and first != second:
                message = f"the accuracy is of setting '{first}', MACs and parameters are of '{second}'"
                yield Mark(
                    table, row.line, message, cells_of(row, ("accuracy_setting", "macs_setting")), "", row.method
                )
            accuracy, stated = row.number("accuracy"), lefts(row, "macs")
            # Without a name a row is nobody's, and without a task any network's.
            if accuracy is not None and stated and row.text("method") and all(row.task):
                details[row.task, row.method.lower()].append((table, row, accuracy.value, round(stated[0].middle, 4)))
    for members in details.values():
        for table, row, reached, left in members:
            others = [one for one in members if one[0] is not table]
            same = [one for one in others if one[2] == reached]
            size = [one for one in others if one[3] == left]
            if same and size and not any(one in size for one in same):
                message = (
                    f"{row.text('accuracy')} stands in {same[0][0].path.name}:{same[0][1].line} for another size, "
                    f"this size in {size[0][0].path.name}:{size[0][1].line} with {size[0][1].text('accuracy')}"
                )
                yield Mark(
                    table, row.line, message, cells_of(row, ("accuracy", "macs", "macs_removed")), "", row.method
                )
