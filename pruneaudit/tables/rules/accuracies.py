"""Rules of accuracies, differences and spreads: arithmetic that can be checked from the page."""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator

from pruneaudit.tables import networks
from pruneaudit.tables.numbers import Number, most_spread
from pruneaudit.tables.rows import Row, Table, accuracy
from pruneaudit.tables.rule import Mark, cells_of, rule

_ACCURACIES = ("base_accuracy", "accuracy", "base_error", "error")


@rule(
    "T001",
    "A difference is the base's accuracy minus the pruned network's, as printed",
    "Torch-Pruning's README: 93.53 to 93.77 printed as +0.38; TPP 2023, Table 1",
    "contradiction",
)
def t001(table: Table) -> Iterator[Mark]:
    """Base minus accuracy, each as uncertain as its last digit, against the difference in the direction of the table.

    Example: 93.53 and 93.77 with +0.38: the difference is +0.24.
    """
    for row, base, after, drop in _triples(table):
        if is_relative(base, after, drop):
            continue
        lost = base.value - after.value
        slack = base.half + after.half + drop.half
        usual = table.drop_signs.get(bool(drop.arrow), 0)
        signs = (usual,) if usual else (1, -1)
        if all(abs(drop.value - sign * lost) > slack for sign in signs):
            sign = usual or (1 if drop.value * lost >= 0 else -1)
            decimals = max(0, round(-math.log10(drop.step)))
            right = f"{sign * lost:+.{decimals}f}"
            opposite = abs(drop.value + sign * lost) <= slack
            note = " (the other sign than the rest of the column)" if opposite else ""
            yield Mark(
                table,
                row.line,
                f"printed difference {row.text('drop')}, but {base} and {after} differ by {right}{note}",
                cells_of(row, ("drop", *_ACCURACIES)),
                right,
                row.method,
            )


def _triples(table: Table) -> Iterator[tuple[Row, Number, Number, Number]]:
    """Rows that state both accuracies and their difference."""
    for row in table.rows:
        base, after, drop = accuracy(row, base=True), accuracy(row), row.number("drop")
        if base is not None and after is not None and drop is not None:
            yield row, base, after, drop


def is_relative(base: Number, after: Number, drop: Number) -> bool:
    """Whether a difference is a share of the base's accuracy, and no difference of accuracies."""
    lost = base.value - after.value
    if base.value <= 0 or abs(abs(drop.value) - abs(lost)) <= base.half + after.half + drop.half:
        return False
    slack = drop.half + (base.half + after.half) * 100 / base.value
    return drop.value * lost != 0 and abs(abs(drop.value) - abs(lost) * 100 / base.value) <= slack and abs(lost) > 0.5


@rule(
    "T002",
    "A difference is in percentage points, or says that it is relative",
    "Papers that print (base - accuracy) / base as accuracy drop",
    "contradiction",
)
def t002(table: Table) -> Iterator[Mark]:
    """A difference that is no difference of the accuracies, but their relative difference in percent.

    Example: 76.15 to 74.61 as drop of 2.02: 1.54 points are 2.02 % of 76.15.
    """
    for row, base, after, drop in _triples(table):
        header = next((c.header for c in table.columns if c.place == row.entries["drop"].column), "")
        if is_relative(base, after, drop) and "rel" not in header.lower():
            lost = base.value - after.value
            yield Mark(
                table,
                row.line,
                f"{row.text('drop')} is the drop relative to {base}; in points it is {lost:.2f}",
                cells_of(row, ("drop", *_ACCURACIES)),
                f"{lost:.2f}",
                row.method,
            )


@rule(
    "T003",
    "Accuracies of one table are all percents or all fractions, and none is impossible",
    "Tables merged by hand from several sources",
    "contradiction",
)
def t003(table: Table) -> Iterator[Mark]:
    """Accuracies below 0 or above 100, and fractions among percents (or the reverse).

    Example: 93.5, 92.8 and 0.931 in one column.
    """
    for row in table.rows:
        for kind in ("accuracy", "base_accuracy"):
            number = row.number(kind)
            if number is None:
                continue
            if number.value > 100 + number.half or number.value < 0:
                low = f"{row.text(kind)} is no accuracy; are fractions and percents mixed?"
                yield Mark(table, row.line, low, cells_of(row, (kind,)), "", row.method)
            elif 0 < number.value <= 1 and number.step < 0.1 and _typical(table, kind) > 20:
                message = f"{row.text(kind)} among accuracies in percent"
                yield Mark(table, row.line, message, cells_of(row, (kind,)), f"{100 * number.value:g}", row.method)


def _typical(table: Table, kind: str) -> float:
    values = sorted(number.value for row in table.rows if (number := row.number(kind)) is not None)
    return values[len(values) // 2] if values else 0.0


@rule(
    "T004",
    "No two results have the same mean and the same deviation",
    "Liu et al. 2019, Table 10: two rows with 93.42 ± 0.40",
    "contradiction",
)
def t004(table: Table) -> Iterator[Mark]:
    """Equal pairs of mean and deviation in one column, where so many results would hardly have one by chance.

    The chance is estimated from the table: how many values the digits allow within its range, and how often means and
    deviations alone agree. Above 5 % nothing is said. Rows of one method that share the pair are one result.

    Example: Scratch-E of ResNet-32 and of ResNet-56 both 93.42 ± 0.40.
    """
    columns: dict[int, list[tuple[Row, Number, Number]]] = defaultdict(list)
    for row in table.rows:
        mean, spread = row.number("accuracy"), row.number("spread")
        if mean is not None and spread is not None and spread.value > 0:
            # One claim that is repeated beside others stands in one table of paper twice.
            columns[row.entries["accuracy"].column].append((row, mean, spread))
    for members in columns.values():
        pairs = Counter((str(mean), str(spread)) for _, mean, spread in members)
        for pair, count in pairs.items():
            same = [row for row, mean, spread in members if (str(mean), str(spread)) == pair]
            if count < 2 or len({(row.method, *row.task, row.point) for row in same}) < 2 or _is_one(same):
                continue
            # Of one method's results fewer could agree by chance than of all.
            near = [one for one in members if one[0].method == same[0].method]
            group = near if all(row.method == same[0].method for row in same) else members
            chance = _chance([mean for _, mean, _ in group], [spread for _, _, spread in group])
            if chance > 0.05:
                continue
            first, *rest = same
            for row in rest:
                yield Mark(
                    table,
                    row.line,
                    f"{pair[0]} ± {pair[1]} is printed for {_label(first)} (line {first.line}), too; the chance of "
                    f"such a pair in a table like this is {max(chance, 0.0001):.1g}",
                    cells_of(row, ("accuracy", "spread")),
                    "",
                    _label(row),
                )


def _label(row: Row) -> str:
    parts = [row.text("network") or row.text("workload"), row.method, row.text("ratio")]
    return " ".join(part for part in parts if part)


def _is_one(rows: list[Row]) -> bool:
    """Whether rows state one result several times: same network and data, and another method's name or none at all."""
    # "l1, tuned" and "l1, 1e-2", scratch and scratch-e may be one training.
    methods = {re.split(r"[^a-z0-9]", row.method.lower())[0] for row in rows}
    points = {row.text("ratio") or row.text("tier") for row in rows}
    return len(methods) == 1 and len(points) == 1 and len({row.task for row in rows}) == 1


def _chance(means: list[Number], spreads: list[Number]) -> float:
    """Pairs of results that would agree in mean and deviation by chance."""
    n = len(means)
    if n < 2:
        return 1.0
    return n * (n - 1) / 2 * _collision(means) * _collision(spreads)


def _collision(numbers: list[Number]) -> float:
    """Chance that two of some numbers are printed alike."""
    step = max(number.step for number in numbers)
    values = [number.value for number in numbers]
    even = 1 / (round((max(values) - min(values)) / step) + 1)
    counts = Counter(str(number) for number in numbers)
    n = len(numbers)
    # The pair in question is not evidence of how common pairs are.
    seen = max(0, sum(count * (count - 1) for count in counts.values()) / 2 - 1) / (n * (n - 1) / 2)
    return max(even, seen)


def _test_images(row: Row) -> int | None:
    stated = row.number("test_images")
    if stated is not None and stated.value >= 1:
        return int(stated.value)
    return networks.test_images(row.text("dataset") or row.text("workload"))


def _runs(row: Row) -> int | None:
    stated = row.number("runs")
    if stated is not None:
        return int(stated.value) if stated.value >= 1 and float(stated.value).is_integer() else None
    return 1 if row.number("seed") is not None else None


@rule(
    "T005",
    "An accuracy is a number of right answers out of the test images",
    "GRIM: Brown and Heathers 2017, Soc. Psychol. Personal. Sci. 8(4)",
    "contradiction",
)
def t005(table: Table) -> Iterator[Mark]:
    """Whether some number of right answers in the stated runs gives the printed accuracy, where the images are known.

    Example: 93.537 in one run of 10,000 test images.
    """
    for row in table.rows:
        images, runs, number = _test_images(row), _runs(row), row.number("accuracy")
        if images is None or runs is None or number is None or not 0 <= number.value <= 100:
            continue
        answers = images * runs
        low, high = (number.value - number.half) * answers / 100, (number.value + number.half) * answers / 100
        if math.ceil(low - 1e-6) > math.floor(high + 1e-6):
            nearest = round(number.value * answers / 100)
            yield Mark(
                table,
                row.line,
                f"no number of right answers out of {images:,} in {runs} run(s) gives {row.text('accuracy')}; "
                f"the nearest is {100 * nearest / answers:.4f}",
                cells_of(row, ("accuracy", "runs")),
                f"{100 * nearest / answers:.4f}",
                row.method,
            )


@rule(
    "T006",
    "A mean with its deviation is one that the stated number of runs can give",
    "GRIMMER: Anaya 2016, PeerJ Preprints 4:e2400v1; Bhatia and Davis 2000, Am. Math. Mon. 107(4)",
    "contradiction",
)
def t006(table: Table) -> Iterator[Mark]:
    """Whether whole numbers of right answers exist with this mean and this deviation (of sample or population).

    No deviation is negative, and none exceeds that of values that are all 0 or 100.

    Example: ± 0.16 of a single run; 93.33 ± 0.00 of three runs of 10,000 images; 93.5 ± 50.
    """
    for row in table.rows:
        mean, spread, runs = row.number("accuracy"), row.number("spread"), _runs(row)
        if mean is None or spread is None:
            continue
        impossible = _unbounded(mean, spread, runs, row.text("spread_kind"))
        if impossible:
            yield Mark(table, row.line, impossible, cells_of(row, ("accuracy", "spread")), "", row.method)
        if impossible or runs is None:
            continue
        if runs == 1:
            if spread.value > spread.half:
                yield Mark(
                    table,
                    row.line,
                    f"± {spread} of a single run",
                    cells_of(row, ("spread", "runs")),
                    "no deviation",
                    row.method,
                )
            continue
        images = _test_images(row)
        if images is None or not 0 <= mean.value <= 100 or runs > 50:
            continue
        if not _possible(mean, spread, runs, images, row.text("spread_kind")):
            yield Mark(
                table,
                row.line,
                f"no {runs} runs of {images:,} test images have {mean} ± {spread}",
                cells_of(row, ("accuracy", "spread", "runs")),
                "",
                row.method,
            )


def _unbounded(mean: Number, spread: Number, runs: int | None, kind: str) -> str:
    """Why no values from 0 to 100 have this mean and this deviation; empty where some have."""
    if spread.value < 0:
        return f"a deviation of {spread} is negative"
    if runs == 1:
        return ""
    most = most_spread(mean, runs or 2)
    if kind.lower() == "population" and runs:
        most *= math.sqrt((runs - 1) / runs)
    if spread.low <= most:
        return ""
    of = f"{runs} accuracies" if runs else "accuracies"
    return f"± {spread}, but {of} with a mean of {mean} deviate by {most:.1f} at most"


def _possible(mean: Number, spread: Number, runs: int, images: int, kind: str) -> bool:
    """Whether whole numbers of right answers have this mean and deviation: GRIMMER's three tests."""
    total = images * runs / 100
    sums = range(math.ceil(mean.low * total - 1e-6), math.floor(mean.high * total + 1e-6) + 1)
    if len(sums) == 0:
        return False
    if len(sums) > 2000:
        return True
    divisors = {"sample": (runs - 1,), "population": (runs,)}.get(kind.lower(), (runs - 1, runs))
    for whole in sums:
        for divisor in divisors:
            low, high = (
                (max(0.0, edge) * images / 100) ** 2 * divisor + whole**2 / runs for edge in (spread.low, spread.high)
            )
            # The sum of squares has the parity of the sum, and is as small as equal parts make it.
            rest = whole % runs
            least = (whole // runs) ** 2 * (runs - rest) + (whole // runs + 1) ** 2 * rest
            first = max(math.ceil(low - 1e-6), least)
            first += (first - whole) % 2
            if first <= high + 1e-6:
                return True
    return False


@rule(
    "T007",
    "A lead that is printed as one is larger than chance on the test images",
    "PruningBench: 96 of 219 neighbours in rank are within 0.2 points; the binomial error at 93.5 % of 10,000 is 0.25",
    "missing",
)
def t007(table: Table) -> Iterator[Mark]:
    """The gap behind the only bold accuracy, or between neighbours in rank, against the standard error of the gap.

    With deviations and runs of both, the error is theirs; else the binomial one of the test images, once for each.

    Example: 93.81 bold above 93.79 on 10,000 images: the error of the gap is 0.34 points.
    """
    for members in comparable(table):
        if any(row.number("rank") is not None for row in members):
            yield from _ranked(table, members)
            continue
        bold = [row for row in members if row.entries["accuracy"].bold]
        if len(bold) != 1 or len(members) < 2:
            continue
        first = bold[0]
        others = [row for row in members if row is not first]
        second = max(others, key=lambda row: _value(row))
        gap = _value(first) - _value(second)
        error = _error_of_gap(first, second)
        if error is not None and 0 <= gap < error:
            yield Mark(
                table,
                first.line,
                f"bold {row_text(first)} leads {second.method} by {gap:.2f} points; the standard error of this gap is "
                f"{error:.2f}",
                cells_of(first, ("accuracy",)),
                "",
                first.method,
            )


def _ranked(table: Table, members: list[Row]) -> Iterator[Mark]:
    order = [row for _, row in _by_rank(members)]
    ties, errors = 0, []
    for first, second in itertools.pairwise(order):
        error = _error_of_gap(first, second)
        if error is not None and abs(_value(first) - _value(second)) < error:
            ties += 1
            errors.append(error)
    if ties:
        yield Mark(
            table,
            order[0].line,
            f"{ties} of {len(order) - 1} neighbours in rank are closer than the standard error of their gap "
            f"({min(errors):.2f} to {max(errors):.2f} points)",
            cells_of(order[0], ("rank", "accuracy")),
        )


def _by_rank(rows: list[Row]) -> list[tuple[float, Row]]:
    """Rows with a rank, the first one first."""
    ranked = [(rank.value, row) for row in rows if (rank := row.number("rank")) is not None]
    return sorted(ranked, key=lambda pair: pair[0])


def row_text(row: Row) -> str:
    """Accuracy as printed."""
    return row.text("accuracy")


def _value(row: Row) -> float:
    number = row.number("accuracy")
    assert number is not None
    return number.value


def _error_of_gap(left: Row, right: Row) -> float | None:
    """Standard error of a difference of two accuracies, in points; None where there is no telling."""
    squares = 0.0
    for row in (left, right):
        mean, spread, runs = row.number("accuracy"), row.number("spread"), _runs(row)
        if mean is None:
            return None
        if spread is not None and runs is not None and runs > 1:
            squares += spread.value**2 / runs
            continue
        images = _test_images(row)
        if images is None or not 0 < mean.value < 100:
            return None
        squares += mean.value * (100 - mean.value) / images
    return math.sqrt(squares)


def comparable(table: Table) -> list[list[Row]]:
    """Rows with accuracies that are compared: same task, group, operating point and ranking."""
    found: dict[tuple[object, ...], list[Row]] = defaultdict(list)
    ranking, before = 0, 0.0
    for row in table.rows:
        if row.number("accuracy") is None or row.number("seed") is not None or is_base(row):
            continue
        rank = row.number("rank")
        if rank is not None:
            # Where ranks begin again, another ranking begins.
            ranking += rank.value < before
            before = rank.value
        place = (row.entries["accuracy"].column, row.task, row.group, row.section)
        found[(*place, row.text("ratio"), row.text("tier"), ranking)].append(row)
    return list(found.values())


def is_base(row: Row) -> bool:
    """Whether a row is of the dense network."""
    return bool(re.search(r"\b(base(line)?|unpruned|dense|original|full)\b", row.method.lower()))


def _is_as_small(row: Row, other: Row) -> bool:
    """Whether a row is not known to be larger than another one."""
    for kind, sign in (("speedup", 1), ("macs_removed", 1), ("macs", -1), ("params_removed", 1), ("params", -1)):
        left, right = row.number(kind), other.number(kind)
        if left is not None and right is not None:
            return sign * (left.value - right.value) >= -0.005 * abs(right.value)
        if (left is None) != (right is None):
            return False
    return True


@rule(
    "T008",
    "What is bold is best, and ranks follow the numbers",
    "PruningBench: two boards whose order contradicts the accuracies",
    "contradiction",
)
def t008(table: Table) -> Iterator[Mark]:
    """Bold accuracies against the others of their group, and ranks against accuracies.

    A row that is better than a bold one counts where it is not known to be pruned less: bold is best at its size.

    Example: bold 93.64 above 93.77 in one column; rank 1 with less accuracy than rank 2.
    """
    for members in comparable(table):
        order = _by_rank(members)
        for (_, first), (_, second) in itertools.pairwise(order):
            if _value(first) < _value(second) - 1e-9:
                yield Mark(
                    table,
                    second.line,
                    f"rank {second.text('rank')} with {row_text(second)} stands below rank {first.text('rank')} with "
                    f"{row_text(first)}",
                    cells_of(second, ("rank", "accuracy")),
                    "",
                    second.method,
                )
        bold = [row for row in members if row.entries["accuracy"].bold]
        if not bold or len(bold) > len(members) / 2:
            continue
        least = min(bold, key=_value)
        better = [
            row
            for row in members
            if not row.entries["accuracy"].bold and _value(row) > _value(least) and _is_as_small(row, least)
        ]
        if better:
            best = max(better, key=_value)
            yield Mark(
                table,
                least.line,
                f"{row_text(least)} is bold, {row_text(best)} of {best.method} is not",
                cells_of(least, ("accuracy",)),
                row_text(best),
                least.method,
            )
