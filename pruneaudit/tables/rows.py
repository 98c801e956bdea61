"""Rows of a table as claims: numbers in one unit each, and what the table says of all of them."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path

from pruneaudit.tables import networks
from pruneaudit.tables.columns import NUMBERS, OTHERS, Column, recognise, sizes_of_points, transposed
from pruneaudit.tables.grid import Cell, Grid, Line
from pruneaudit.tables.networks import Network
from pruneaudit.tables.numbers import SCALES, Number, cleaned, is_missing, most_spread, parse, uses_decimal_comma

_SHARES = {"ratio", "macs_removed", "macs_kept", "params_removed", "params_kept"}
_PERCENTS = {"accuracy", "base_accuracy", "error", "base_error", "drop", "spread"}
_SIZES = {"macs", "base_macs", "params", "base_params"}
#: Columns that several rows may share: an arm or an operating point has its own of the others.
_OF_POINT = _PERCENTS | {"runs", "macs", "params", "speedup", "macs_removed", "params_removed"}

#: References and footnotes of a name; what else is raised may be a part of it, as in L^1.
_NOTE = re.compile(r"\s*\[\^?\d[\d, ]*\]|\$?\^(?:\{[^{}]*\}|(?:\\(?:d*dag(?:ger)?|star|ast)|[*†‡§¶⋆∗★])+|$)\$?")


@dataclass(frozen=True, slots=True)
class Entry:
    """What a row says in one column.

    Attributes:
        text: As printed.
        number: Its number in the unit of its kind (accuracies in percent, shares from 0 to 1, sizes in ones), or None.
        bold: Whether it is printed bold.
        column: Place of the column, from 0; -1: stated outside of the row.
        is_sized: Whether a size has a unit, so that it can be compared with other sizes than those of its own table.
        counts: ``macs`` or ``flops`` where it is said.
    """

    text: str
    number: Number | None = None
    bold: bool = False
    column: int = -1
    is_sized: bool = False
    counts: str = ""


@dataclass(slots=True)
class Row:
    """One claim: a method at an operating point.

    Attributes:
        index: Place of its row in the table, from 0: where several columns hold a claim each, rows share one.
        line: Line of the file.
        group: Rows between two rules of the table have one number.
        section: Heading inside the table.
        arm: What the header says of its column, where a line of the table holds several claims.
        entries: What it says, by kind of column.
        network: The shipped network that it names, or None.
    """

    index: int
    line: int
    group: int
    section: str
    arm: str
    entries: dict[str, Entry]
    network: Network | None = None

    def number(self, kind: str) -> Number | None:
        """The number of a kind, or None."""
        entry = self.entries.get(kind)
        return None if entry is None else entry.number

    def text(self, kind: str) -> str:
        """The text of a kind; empty where it is not specified."""
        entry = self.entries.get(kind)
        return "" if entry is None or is_missing(entry.text) else entry.text

    def budget(self, kind: str) -> str:
        """Epochs or a schedule, for comparing: 120 and 120.0 are one number of epochs, 0:1e-2 and 0:0.01 one rate."""
        stated = self.number(kind)
        if stated is not None:
            return repr(stated.value)
        text = re.sub(r"\s*([,;:=])\s*", r"\1", cleaned(self.text(kind)).lower())
        return re.sub(r"(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?", lambda number: repr(float(number[0])), text)

    @property
    def method(self) -> str:
        """Its method without references, with arm and section where they tell rows apart."""
        name = _NOTE.sub("", self.text("method")).strip(" *†‡")
        parts = [part for part in (name, self.arm) if part]
        return " / ".join(parts) or self.text("paper") or f"line {self.line}"

    @property
    def task(self) -> tuple[str, str]:
        """Network and data as named, for telling which rows may be compared at all."""
        workload = self.text("workload")
        return (workload or plain_name(self.text("network")), "" if workload else plain_name(self.text("dataset")))

    @property
    def point(self) -> str:
        """Operating point as printed: what rows that are compared share."""
        for kind in ("tier", "ratio"):
            entry = self.entries.get(kind)
            if entry is not None and not is_missing(entry.text):
                return entry.text
        return f"group {self.group}" if self.group else self.section


@dataclass
class Table:
    """A table with its meaning.

    Attributes:
        grid: As it stands in the file.
        columns: Meaning of each column.
        rows: Its claims.
        drop_signs: +1 where its differences are base minus accuracy, -1 where they are the reverse; of those with an
            arrow for a sign, and of those without. None: no telling.
        facts: What caption, heading and file say of all rows, by kind of column.
        exchanged: Of MACs and parameters: rows whose "share removed" is what is left, and the base size that shows it.
        remarks: How it was read where it does not stand there so: turned around, cells filled, rows without a claim.
    """

    grid: Grid
    columns: list[Column]
    rows: list[Row]
    drop_signs: Mapping[bool, int] = field(default_factory=dict)
    facts: Mapping[str, str] = field(default_factory=dict)
    exchanged: Mapping[str, tuple[list[Row], float]] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)

    @property
    def path(self) -> Path:
        """Its file."""
        return self.grid.path

    @property
    def name(self) -> str:
        """How it is called in messages."""
        return self.grid.title or f"table {self.grid.place}"

    def says(self, kind: str) -> bool:
        """Whether any row states this."""
        return any(not is_missing(row.entries[kind].text) for row in self.rows if kind in row.entries)


@lru_cache(maxsize=65536)
def plain_name(text: str) -> str:
    """A name without case and punctuation."""
    return re.sub(r"[^a-z0-9]+", "", text.lower())


def understand(grid: Grid, mapping: Mapping[str, str] | None = None, as_printed: bool = True) -> Table:
    """A table with the meaning of its columns, and its rows as claims.

    Args:
        grid: The table.
        mapping: Kind of column by header, where the guess is wrong.
        as_printed: Whether people laid it out for reading: empty cells that begin a row then say what stands above.
    """
    remarks = []
    if as_printed:
        turned = transposed(grid, mapping)
        if turned is not None:
            grid = turned
            remarks.append("its columns are the rows of results: it was turned around")
    columns = recognise(grid, mapping)
    if as_printed:
        grid, filled = _filled(grid, columns)
        remarks += [f"{name}: empty cells count as the one above" for name in filled]
    texts = [[line.cells[column.place].text for line in grid.lines] for column in columns]
    commas = [uses_decimal_comma(column) for column in texts]
    fractions = _fractions(columns, texts, commas)
    shared = [column for column in columns if column.kind != OTHERS and not _is_own(column)]
    own: dict[str, list[Column]] = {}
    for column in columns:
        if column.kind != OTHERS and _is_own(column):
            own.setdefault(_arm(column), []).append(column)
    remarks += _second(columns)
    sizes = sizes_of_points(grid, columns)
    remarks += [
        f"line {grid.lines[index].number}: '{size.header}' is of the operating points, and no method"
        for index, size in sizes.items()
    ]
    of_points: dict[tuple[object, ...], list[Entry]] = {}
    for index, size in sizes.items():
        line = grid.lines[index]
        for column in columns:
            entry = _entry(replace(size, place=-1), line.cells[column.place], commas[column.place], fractions)
            of_points.setdefault((*_scope(line, columns), column.place, size.kind), []).append(entry)
    facts = _facts(grid)
    rows: list[Row] = []
    silent: list[int] = []
    for index, line in enumerate(grid.lines):
        if index in sizes:
            continue
        before = len(rows)
        common: dict[str, Entry] = {}
        for column in shared:
            _state(common, column, line.cells[column.place], commas[column.place], fractions)
        for arm, members in own.items() or [("", [])]:
            entries = dict(common)
            for column in members:
                _state(entries, column, line.cells[column.place], commas[column.place], fractions)
                for kind, text in column.point:
                    entries[kind] = _entry(replace(column, kind=kind), Cell(text), False, fractions)
                for kind in sorted({size.kind for size in sizes.values()} if column.point else ()):
                    stated = of_points.get((*_scope(line, columns), column.place, kind), [])
                    # Of two lines that say it nobody knows which is meant.
                    if len(stated) == 1:
                        entries.setdefault(kind, stated[0])
            if members and all(is_missing(line.cells[column.place].text) for column in members):
                continue
            arm_name = "" if any(column.point for column in members) else arm
            row = Row(index, line.number, line.group, line.section, arm_name, entries)
            _name(row, line.section, arm, facts)
            rows.append(row)
        if len(rows) == before:
            silent.append(line.number)
    if silent:
        lines = (
            f"line{'s' if len(silent) > 1 else ''} {', '.join(map(str, silent[:5]))}{' …' if len(silent) > 5 else ''}"
        )
        remarks.append(f"{lines}: no result in any column")
    table = Table(grid, columns, rows, facts=facts, exchanged=_exchange(rows), remarks=remarks)
    table.drop_signs = {arrow: sign for arrow in (False, True) if (sign := _drop_sign(rows, arrow))}
    return table


def _second(columns: Sequence[Column]) -> list[str]:
    """Columns that are taken for the same as one before them: their cells count only where that one's say nothing."""
    first: dict[tuple[object, ...], Column] = {}
    found = []
    for column in (one for one in columns if one.kind in NUMBERS):
        earlier = first.setdefault((column.kind, column.context, column.point), column)
        if earlier is not column:
            found.append(f"{column.header}: the same as {earlier.header}, which counts; --map tells them apart")
    return found


def _scope(line: Line, columns: Sequence[Column]) -> tuple[str, ...]:
    """What a line is of, apart from its method: its section, network and data."""
    named = ("network", "dataset", "workload")
    return (line.section, *(line.cells[column.place].text for column in columns if column.kind in named))


#: Columns whose empty cells say what stands above, where nothing stands left of them either.
_NAMED = {"method", "network", "dataset", "workload", "tier", "paper", "table", "ratio", "granularity", "framework"}


def _filled(grid: Grid, columns: Sequence[Column]) -> tuple[Grid, list[str]]:
    """The table with names that span rows repeated in each of them, and the headers of the columns where it was so."""
    lines: list[Line] = []
    found: dict[str, None] = {}
    above: Line | None = None
    for line in grid.lines:
        cells = list(line.cells)
        if above is not None and above.section == line.section and any(cell.text.strip() for cell in cells):
            for column in columns:
                if cells[column.place].text.strip():
                    break
                if column.kind in _NAMED and above.cells[column.place].text.strip():
                    cells[column.place] = above.cells[column.place]
                    found[column.header or f"column {column.place + 1}"] = None
        above = replace(line, cells=tuple(cells))
        lines.append(above)
    return (replace(grid, lines=lines), list(found)) if found else (grid, [])


def _is_own(column: Column) -> bool:
    """Whether a column holds one of several claims of a line."""
    return bool(column.point) or bool(column.context and column.kind in _OF_POINT)


def _arm(column: Column) -> str:
    return " ".join(text for _, text in column.point) or column.context


def _facts(grid: Grid) -> dict[str, str]:
    """What caption, heading and file say of all rows."""
    facts = dict(grid.facts)
    named = networks.find(grid.title)
    if named.network:
        facts.setdefault("network", named.network)
    if named.dataset:
        facts.setdefault("dataset", named.dataset)
    stated = _RUNS.search(grid.title)
    if stated is not None:
        count = stated["n"] or stated["count"].lower()
        facts.setdefault("runs", _COUNTS.get(count, count))
    if re.search(r"\b(?:last|final) epoch\b", grid.title, re.IGNORECASE):
        facts.setdefault("epoch_reported", "last")
    elif re.search(r"\bbest (?:test )?(?:epoch|accurac)", grid.title, re.IGNORECASE):
        facts.setdefault("epoch_reported", "best")
    return facts


def _exchange(rows: Sequence[Row]) -> dict[str, tuple[list[Row], float]]:
    """Move shares that are called removed, and are left, to where they belong.

    Without a stated base, sizes tell: divided by the share that is left, those of all rows give one base.
    """
    found: dict[str, tuple[list[Row], float]] = {}
    for what in ("macs", "params"):
        tasks: dict[tuple[str, str], list[tuple[Row, float, float]]] = {}
        for row in rows:
            size, share = row.number(what), row.number(f"{what}_removed")
            if size is not None and share is not None and 0 < share.value < 1 and size.value > 0:
                tasks.setdefault(row.task, []).append((row, size.value, share.value))
        for members in tasks.values():
            if len({share for _, _, share in members}) < 3 or any(row.number(f"base_{what}") for row, _, _ in members):
                continue
            left, gone = ([size / part(share) for _, size, share in members] for part in (_itself, _rest))
            if max(left) < min(left) * _ALIKE and max(gone) > min(gone) * _APART:
                for row, _, _ in members:
                    row.entries[f"{what}_kept"] = row.entries.pop(f"{what}_removed")
                found[what] = ([*found.get(what, ([], 0.0))[0], *(row for row, _, _ in members)], max(left))
    return found


#: Base sizes that differ by a smaller factor are one network's, rounded; by a larger one they are of several.
_ALIKE, _APART = 1.03, 1.2


def _itself(share: float) -> float:
    return share


def _rest(share: float) -> float:
    return 1 - share


#: How captions state the number of runs.
_RUNS = re.compile(
    r"\bn\s*=\s*(?P<n>\d+)|\b(?P<count>\d+|one|two|three|four|five|ten)\s+(?:independent\s+|random\s+)?"
    r"(?:runs?|seeds?|trials?|repetitions|times)\b",
    re.IGNORECASE,
)
_COUNTS = {"one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "ten": "10"}


def _name(row: Row, section: str, arm: str, facts: Mapping[str, str]) -> None:
    """Add what is said outside of the row, the nearest first, and look the network up."""
    for text in (arm, section):
        named = networks.find(text)
        for kind, found in (("network", named.network), ("dataset", named.dataset)):
            if found and kind not in row.entries:
                row.entries[kind] = Entry(found)
    if "workload" in row.entries and "network" not in row.entries:
        named = networks.find(row.text("workload").replace("-", " / "))
        named = networks.find(row.text("workload")) if not named.network else named
        for kind, found in (("network", named.network), ("dataset", named.dataset)):
            if found:
                row.entries[kind] = Entry(found)
    for kind, text in facts.items():
        if not row.text(kind):
            number = parse(text) if kind in NUMBERS else None
            row.entries[kind] = Entry(text, number)
    both = f"{row.text('network')} / {row.text('dataset')}"
    named = networks.find(both)
    row.network = networks.known().get((named.network, named.dataset))


def _state(entries: dict[str, Entry], column: Column, cell: Cell, comma: bool, fractions: frozenset[str]) -> None:
    """Put a cell into a row; the first column of a kind that says something counts, and asides say more."""
    entry = _entry(column, cell, comma, fractions)
    if column.kind in entries and not is_missing(entries[column.kind].text):
        return
    entries[column.kind] = entry
    number = entry.number
    if number is None:
        return
    spread = number.spread
    if column.kind == "accuracy" and spread is not None and "spread" not in entries:
        # What only stands in parentheses and cannot be a deviation is another number: Top-5, epochs.
        is_one = spread.low <= most_spread(number) or re.search(r"±|\+/?-|\\pm", cleaned(cell.text))
        entries["spread"] = Entry(str(spread) if is_one else cell.text, spread if is_one else None, False, column.place)
    aside = number.aside
    if aside is not None and aside.unit == "%" and aside.arrow <= 0 and column.kind in ("macs", "params"):
        entries.setdefault(f"{column.kind}_removed", Entry(f"{aside}%", aside.scaled(0.01), column=column.place))
    elif aside is not None and not aside.unit and column.kind == "accuracy":
        change = (aside.scaled(100) if column.kind in fractions else aside).directed()
        entries.setdefault("drop", Entry(str(change), change, column=column.place))


def _entry(column: Column, cell: Cell, comma: bool, fractions: frozenset[str]) -> Entry:
    kind = column.kind
    if kind not in NUMBERS:
        return Entry(cell.text, None, cell.bold, column.place)
    number = parse(cell.text, comma)
    if number is None and "/" in cell.text and "/" in column.header:
        # Top-1 / Top-5: the first one counts.
        number = parse(cell.text.partition("/")[0], comma)
    if number is None or is_missing(cell.text):
        return Entry(cell.text, None, cell.bold, column.place)
    unit = number.unit
    # What the cell says is nearer than what its column does.
    counts = number.counts or column.counts
    is_sized = False
    if kind in _PERCENTS:
        if unit == "x":
            return Entry(cell.text, None, cell.bold, column.place)
        if kind in fractions and unit != "%" and not (column.percent and kind in ("drop", "spread")):
            number = number.scaled(100)
        if kind == "drop":
            number = number.directed()
    elif kind in _SHARES:
        if unit == "x" or (kind.endswith("_removed") and number.arrow > 0):
            return Entry(cell.text, None, cell.bold, column.place)
        if unit == "%" or column.percent or abs(number.value) > 1.5:
            number = number.scaled(0.01)
    elif kind in _SIZES:
        factor = SCALES.get(unit, 0.0) or column.scale
        is_sized = bool(factor) or abs(number.value) >= 1e4
        if unit == "%":
            return Entry(cell.text, None, cell.bold, column.place)
        number = number.scaled(factor or 1.0)
    elif kind in ("speedup", "compression") and unit == "%":
        return Entry(cell.text, None, cell.bold, column.place)
    return Entry(cell.text, number, cell.bold, column.place, is_sized, counts)


def _fractions(columns: Sequence[Column], texts: Sequence[Sequence[str]], commas: Sequence[bool]) -> frozenset[str]:
    """Kinds of columns that hold fractions: most of their cells lie between 0 and 1 and have no percent sign.

    Accuracies of bases may be in percent beside fractions. All else, such as errors and drops, which may be below 1 %,
    is what the accuracies are.
    """
    counted: dict[str, Counter[bool]] = defaultdict(Counter)
    for column, cells, comma in zip(columns, texts, commas, strict=True):
        if column.kind in ("accuracy", "base_accuracy", "error", "base_error") and not column.percent:
            for text in cells:
                number = parse(text, comma)
                if number is not None and number.unit != "%" and number.value > 0:
                    counted[column.kind][number.value <= 1] += 1
    every = sum(counted.values(), Counter[bool]())

    def are_fractions(kind: str) -> bool:
        votes = counted["base_accuracy" if kind == "base_accuracy" else "accuracy"] or every
        return votes[True] > votes[False]

    return frozenset(filter(are_fractions, _PERCENTS))


def accuracy(row: Row, base: bool = False) -> Number | None:
    """Accuracy in percent, from the accuracy itself or from the error."""
    number = row.number("base_accuracy" if base else "accuracy")
    if number is not None:
        return number
    error = row.number("base_error" if base else "error")
    return None if error is None else Number(100 - error.value, error.step, "", error.spread)


def _drop_sign(rows: Sequence[Row], arrow: bool) -> int:
    """Which way the differences of a table are taken that have an arrow or have none, by the rows that decide it."""
    votes: Counter[int] = Counter()
    for row in rows:
        base, after, drop = accuracy(row, base=True), accuracy(row), row.number("drop")
        if base is None or after is None or drop is None or bool(drop.arrow) != arrow:
            continue
        lost = base.value - after.value
        slack = base.half + after.half + drop.half
        if abs(lost) > slack:
            if abs(drop.value - lost) <= slack:
                votes[1] += 1
            elif abs(drop.value + lost) <= slack:
                votes[-1] += 1
    if not votes:
        return 0
    (sign, most), *others = votes.most_common()
    return sign if not others or most > others[0][1] else 0
