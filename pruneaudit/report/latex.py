"""Paper-ready tables: booktabs, one for each workload and protocol, laid out like Wang et al. 2023, Tables 4 and 6."""

from __future__ import annotations

import itertools
import re
import statistics
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pruneaudit.catalog.names import UNPRUNED, is_scratch
from pruneaudit.errors import printable
from pruneaudit.report.results import Results, Statistic, statistic
from pruneaudit.report.tables import file_name, title
from pruneaudit.report.values import value

_SPECIAL = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
}
_PERCENT, _TIMES = r"\%", r"$\times$"
#: Letters that can be spelled: Latin ones with more than an accent, and Greek ones.
_LETTER = re.compile(r"(?:LATIN|GREEK) (?P<case>SMALL|CAPITAL) LETTER (?:FINAL )?(?P<letter>\w+)(?: WITH .*)?$")
#: Longer names would leave the page; titles stand in a line of their own.
_LONGEST = 60
_LONGEST_METHOD = 40
_LONGEST_TITLE = 110
#: Rows and ratios of one table. More go on in further tables.
_MOST_ROWS = 40
_MOST_RATIOS = 5
#: Up to so many ratios sparsity and speedup stand in one line.
_JOINED_RATIOS = 4
#: Marks of a line, and lines, that fit a page of one column by size of type; LaTeX's article has 345 by 550 points.
_TYPE = {r"\small": (60, 30), r"\footnotesize": (66, 45), r"\scriptsize": (75, 50)}
_DAGGER = r"$^\dagger$"
_COMMAND = re.compile(r"\$?\\(textbf\{|[a-z]+(\{\})?|.)\$?|[{}$^]")


# Rates of a schedule that are all written out.
_MOST_RATES = 24


@dataclass(frozen=True)
class _Row:
    """One line of a table: a method, or its retrainings by one schedule.

    Attributes:
        name: As LaTeX.
        method: Its id, where verdicts were passed on these results; empty for the trials of a tuned learning rate.
        found: The metric by ratio.
    """

    name: str
    method: str
    found: Mapping[float, Statistic]


def tables(results: Results) -> dict[str, str]:
    r"""Tables for each workload, set of labels and protocol, by file name; more than one where a page is too small.

    The files need ``\usepackage{booktabs}`` and nothing else.
    """
    found: dict[str, str] = {}
    for workload, labels in results.groups:
        for protocol in sorted({protocol for protocol, _, _ in results.statistics(workload, labels)}):
            table = _Table(results, workload, labels, protocol)
            parts = table.parts()
            for number, (columns, lines) in enumerate(parts, 1):
                stem = file_name(results.metric(workload).name, workload, (*labels, protocol))
                names = (stem if place == 1 else f"{stem}-{place}" for place in itertools.count(1))
                name = next(name for name in names if f"{name}.tex" not in found)
                part = f"Part {number} of {len(parts)}." if len(parts) > 1 else ""
                found[f"{name}.tex"] = table.text(name, columns, lines, part)
    return found


def _split(values: Sequence[Any], parts: int) -> list[Sequence[Any]]:
    """Parts of nearly the same size, at most so many."""
    size = -(-len(values) // parts)
    return [values[start : start + size] for start in range(0, len(values), size)]


def escaped(text: str, longest: int = _LONGEST) -> str:
    """Text from records for LaTeX: what is special is escaped, what is not ASCII is spelled near it.

    Pictures are left out; letters never are, by which alone names may differ.
    """
    plain = "".join(map(_spelled, unicodedata.normalize("NFC", text)))
    plain = " ".join(printable(plain, " ").split())
    short = plain if len(plain) <= longest else f"{plain[: longest - 3]}..."
    return "".join(_SPECIAL.get(mark, mark) for mark in short) or "?"


def _spelled(mark: str) -> str:
    """A mark in ASCII: an accent less, a Greek letter's name, or the number of a letter that has neither."""
    plain = unicodedata.normalize("NFKD", mark).encode("ascii", "ignore").decode("ascii")
    if plain:
        return plain
    if unicodedata.category(mark) == "Pd":
        return "-"
    found = _LETTER.match(unicodedata.name(mark, ""))
    if found is not None:
        return found["letter"].lower() if found["case"] == "SMALL" else found["letter"].capitalize()
    return f"U+{ord(mark):04X}" if mark.isalnum() else ""


class _Table:
    """Everything measured of one workload under one protocol."""

    def __init__(self, results: Results, workload: str, labels: tuple[str, ...], protocol: str) -> None:
        self.results, self.workload, self.labels, self.protocol = results, workload, labels, protocol
        self.facts = results.protocols.get(protocol, {})
        self.metric = results.metric(workload)
        self.found: dict[str, dict[float, Statistic]] = defaultdict(dict)
        for (setup, method, ratio), found in results.statistics(workload, labels).items():
            if setup == protocol:
                self.found[method][ratio] = found
        self.ratios = sorted({ratio for by_ratio in self.found.values() for ratio in by_ratio})
        self.removed = results.removed(workload, labels)
        self.best = {
            (row["ratio"], row["groups"][0][0])
            for row in results.of("standings", workload, labels)
            if row["protocol"] == protocol and len(row["groups"]) > 1 and len(row["groups"][0]) == 1
        }

    def rows(self) -> list[_Row]:
        """Methods by name, scratch arms last; below each its trials, where the protocol tunes the learning rate."""
        trials = self._trials() if self.facts.get("retraining") == "tuned" else {}
        rows = []
        for method in sorted(self.found, key=lambda name: (is_scratch(name), name)):
            # Zeros are no smaller network: such rows are not to be compared with the others.
            mark = _DAGGER if self.removed[method] == "weight" else ""
            name = escaped(method, _LONGEST_METHOD)
            rows.append(_Row(f"{name}{mark}{', tuned' if method in trials else ''}", method, self.found[method]))
            rows += [_Row(f"{name}{mark}, {rate}", "", found) for rate, found in trials.get(method, {}).items()]
        return rows

    def _trials(self) -> dict[str, dict[str, dict[float, Statistic]]]:
        """The metric by method, retraining schedule and ratio: every schedule that was tried, smallest rate first."""
        retrained = {row["run"]: row for row in self.results.runs if row["stage"] == "retrain"}
        tried: dict[tuple[tuple[float, float], ...], dict[str, dict[float, list[tuple[float, float]]]]] = {}
        for cell in self.results.of("cells", self.workload, self.labels):
            if cell["status"] == "ok" and cell["protocol"] == self.protocol:
                for run in dict.fromkeys(name for name in cell["runs"] if name in retrained):
                    by_method = tried.setdefault(tuple(self.results.curves[run].rates), {})
                    by_ratio = by_method.setdefault(cell["method"], {})
                    by_ratio.setdefault(cell["ratio"], []).append((value(retrained[run]), cell["speedup"]))
        found: dict[str, dict[str, dict[float, Statistic]]] = defaultdict(dict)
        for rates, by_method in sorted(tried.items(), key=lambda item: (_peak(item[0]), item[0])):
            alike = [other for other in tried if _peak(other) == _peak(rates)]
            for method, by_ratio in by_method.items():
                found[method][_schedule(rates, len(alike) == 1)] = {
                    ratio: statistic(
                        [reached for reached, _ in values],
                        statistics.fmean(speedup for _, speedup in values),
                        self.metric,
                    )
                    for ratio, values in by_ratio.items()
                }
        return found

    def parts(self) -> list[tuple[Sequence[float], Sequence[_Row]]]:
        """Ratios and rows of each table: as few tables as pages hold."""
        rows = self.rows()
        wide = [_split(self.ratios, count) for count in range(1, len(self.ratios) + 1)]
        # One ratio to a table is the narrowest that there is.
        columns = next((parts for parts in wide if all(self._fits(part, rows) for part in parts)), wide[-1])
        found = []
        for ratios in columns:
            lines = [row for row in rows if any(ratio in row.found for ratio in ratios)]
            found += [(ratios, part) for part in _split(lines, -(-len(lines) // _MOST_ROWS))]
        return found

    def _fits(self, ratios: Sequence[float], rows: Sequence[_Row]) -> bool:
        head, body = self._cells(ratios, rows)
        return len(ratios) <= _MOST_RATIOS and _width(head + body) <= max(widest for widest, _ in _TYPE.values())

    def _cells(self, ratios: Sequence[float], rows: Sequence[_Row]) -> tuple[list[list[str]], list[list[str]]]:
        """Head and body of a table."""
        head = [["Pruning ratio", *(f"{ratio:g}" for ratio in ratios)], *self._sizes(ratios)]
        return head, [
            [row.name, *(_cell(row.found.get(ratio), (ratio, row.method) in self.best) for ratio in ratios)]
            for row in rows
        ]

    def text(self, name: str, ratios: Sequence[float], rows: Sequence[_Row], part: str) -> str:
        """The table as a float: some of its ratios and rows."""
        head, body = self._cells(ratios, rows)
        lines = [
            r"\begin{table}",
            r"\centering",
            _size(head + body),
            r"\setlength{\tabcolsep}{4pt}",
            # LaTeX's own classes expect captions below what they tell of.
            r"\setlength{\belowcaptionskip}{4pt}",
            rf"\caption{{{self._caption(ratios, rows, part)}}}",
            rf"\label{{tab:{name.encode('ascii', 'ignore').decode()}}}",
            rf"\begin{{tabular}}{{l{'c' * len(ratios)}}}",
            r"\toprule",
            *(" & ".join(cells) + r" \\" for cells in head),
            r"\midrule",
            *(" & ".join(cells) + r" \\" for cells in body),
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
        return "\n".join([*lines, ""])

    def _caption(self, ratios: Sequence[float], rows: Sequence[_Row], part: str) -> str:
        counts = sorted({row.found[ratio].n for row in rows for ratio in ratios if ratio in row.found})
        n = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else str(counts[0])
        spread = "one seed." if counts == [1] else f"mean $\\pm$ sample standard deviation, n = {n}."
        base = self.results.base(self.workload, self.labels) if self.facts.get("base") == "shared" else None
        sentences = [
            f"Test {self._what()} of {escaped(title(self.workload, self.labels))} {self.results.moment},",
            spread,
            f"Setup {self._setup()}.",
            f"Base model: {_plain(base)}." if base is not None else "",
            "Bold: better than every method that it may be compared with, by the exact sign-flip test",
            "after Holm's correction; without it nothing is shown to be best.",
            "Tuned: for each seed the schedule that did best on validation; a rate: the schedule that starts at it."
            if any(not row.method for row in rows)
            else "",
            f"{_DAGGER}: single weights are zero, and the network is no smaller."
            if any(_DAGGER in row.name for row in rows)
            else "",
            part,
        ]
        return "\n".join(sentence for sentence in sentences if sentence)

    def _what(self) -> str:
        """The metric with its unit and direction."""
        inside = [text for text in (self.metric.unit, self.metric.note) if text]
        name = escaped(self.metric.title)
        return f"{name} ({', '.join(map(escaped, inside))})" if inside else name

    def _setup(self) -> str:
        """The protocol with MLPerf's word for it: closed where arms share base and retraining, else open."""
        closed = self.facts.get("base") == "shared" and self.facts.get("retraining") != "own"
        division = "closed" if closed else "open: arms differ in more than the pruning"
        return f"{escaped(self.protocol.upper())} ({division}): {escaped(self.facts.get('title', ''), _LONGEST_TITLE)}"

    def _sizes(self, ratios: Sequence[float]) -> list[list[str]]:
        """Heads of the columns: share of parameters that goes, and speedup; in one line where it fits."""
        found = self.results.of("architectures", self.workload, self.labels)
        networks = [row for row in found if self.protocol in row["protocols"]]
        sparsity = [
            _span(100 * (1 - row["params"] / row["base_params"]) for row in networks if row["ratio"] == ratio)
            for ratio in ratios
        ]
        speedup = [
            _span(
                factor
                for name, found in self.found.items()
                if name != UNPRUNED and ratio in found and (factor := found[ratio].speedup) is not None
            )
            for ratio in ratios
        ]
        spans = any("--" in text.strip("-") for text in (*sparsity, *speedup))
        if spans or len(ratios) > _JOINED_RATIOS:
            return [[r"Sparsity (\%)", *sparsity], [r"Speedup ($\times$)", *speedup]]
        both = (
            "--" if share == factor == "--" else f"{_with(share, _PERCENT)}/{_with(factor, _TIMES)}"
            for share, factor in zip(sparsity, speedup, strict=True)
        )
        return [["Sparsity/speedup", *both]]


def _with(number: str, unit: str) -> str:
    """A number with its unit, where there is one."""
    return number if number == "--" else f"{number}{unit}"


def _width(lines: Sequence[Sequence[str]]) -> int:
    """Marks of the widest line, columns aligned."""
    marks = [[len(_COMMAND.sub("x", cell).replace(" ", "")) for cell in line] for line in lines]
    return sum(max(column) for column in zip(*marks, strict=True))


def _size(lines: Sequence[Sequence[str]]) -> str:
    """The largest type in which these cells fit a page."""
    width = _width(lines)
    sizes = (size for size, (widest, most) in _TYPE.items() if width <= widest and len(lines) <= most)
    return next(sizes, list(_TYPE)[-1])


def _span(values: Iterable[float]) -> str:
    """Smallest and largest value, one where they print the same."""
    known = sorted(values)
    return "--".join(dict.fromkeys(f"{value:.2f}" for value in (known[0], known[-1]))) if known else "--"


def _schedule(rates: Sequence[tuple[float, float]], alone: bool) -> str:
    """A schedule by its highest rate, or whole where others have the same; of a curve both ends."""
    if alone:
        return _rate(_peak(rates))
    texts = [f"{epoch:.4g}:{_rate(rate)}" for epoch, rate in rates]
    if len(texts) > _MOST_RATES:
        texts = [*texts[:3], "...", texts[-1], f"({len(texts)} rates)"]
    return escaped(" ".join(texts))


def _peak(rates: Sequence[tuple[float, float]]) -> float:
    """Highest rate: the first one, unless it is warmed up."""
    return max(rate for _, rate in rates)


def _rate(rate: float) -> str:
    """A learning rate as papers write it: ``1e-2``."""
    digits, _, exponent = f"{rate:e}".partition("e")
    return f"{float(digits):g}e{int(exponent)}"


def _cell(found: Statistic | None, best: bool) -> str:
    if found is None:
        return "--"
    text = _plain(found)
    return rf"\textbf{{{text}}}" if best else text


def _plain(found: Statistic) -> str:
    number = found.metric.number
    return number(found.mean) if found.std is None else rf"{number(found.mean)} $\pm$ {number(found.std)}"
