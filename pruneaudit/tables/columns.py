"""What columns mean, by what the field calls them: "Acc. drop", "FLOPs ↓", "Pruned (%)", "#Params", "PR", "Speed Up".

A guess is made from the words of a header and never from one row's values; it is printed, and ``--map`` corrects it.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from pruneaudit.errors import ConfigError, nearest
from pruneaudit.tables import networks
from pruneaudit.tables.grid import Cell, Grid, Line
from pruneaudit.tables.numbers import SCALES, cleaned, is_missing, parse

#: Columns that hold numbers: what they say.
NUMBERS = {
    "ratio": "pruning ratio, as a share of what is pruned (filters, mostly)",
    "speedup": "MACs(base) / MACs(pruned)",
    "compression": "parameters(base) / parameters(pruned)",
    "macs": "MACs or FLOPs of the pruned network",
    "base_macs": "MACs or FLOPs of the base network",
    "macs_removed": "share of MACs or FLOPs that is gone",
    "macs_kept": "share of MACs or FLOPs that is left",
    "params": "parameters of the pruned network",
    "base_params": "parameters of the base network",
    "params_removed": "share of parameters that is gone: sparsity",
    "params_kept": "share of parameters that is left",
    "base_accuracy": "test accuracy of the base network",
    "accuracy": "test accuracy of the pruned network, at the end",
    "drop": "difference between the two",
    "base_error": "test error of the base network",
    "error": "test error of the pruned network",
    "spread": "standard deviation of the accuracy",
    "runs": "repetitions that the accuracy is a mean of",
    "epochs": "epochs of retraining, or of training from scratch",
    "pruning_epochs": "epochs of the pruning stage",
    "base_epochs": "epochs of the base network's training",
    "rank": "place of the method",
    "seed": "seed of a single run",
    "test_images": "number of test images",
}
#: Columns that hold text.
TEXTS = {
    "paper": "paper that states it",
    "table": "table of the paper",
    "workload": "network and data together",
    "protocol": "comparison setup that is claimed",
    "network": "network",
    "dataset": "data",
    "method": "pruning method",
    "base": "name of the base model; equal names, equal weights",
    "base_source": "where the base model is from",
    "schedule": "learning-rate schedule of retraining",
    "base_schedule": "learning-rate schedule of the base network's training",
    "pruning_schedule": "learning-rate schedule of the pruning stage",
    "epoch_reported": "last, or best on the test set",
    "origin": "own or copied",
    "framework": "library that the numbers were made with",
    "spread_kind": "sample (n - 1) or population (n)",
    "granularity": "filter, weight or block",
    "accuracy_setting": "name of the setting that the accuracy is of",
    "macs_setting": "name of the setting that MACs and parameters are of",
    "tier": "operating point, as the table calls it",
}
KINDS = NUMBERS | TEXTS
#: Columns that are known and say nothing that is checked.
OTHERS = "other"

_BASE = {
    "base",
    "baseline",
    "unpruned",
    "original",
    "orig",
    "dense",
    "full",
    "before",
    "pretrained",
    "ori",
    "reference",
}
_GONE = {
    "drop",
    "dropped",
    "down",
    "reduction",
    "reduced",
    "saved",
    "saving",
    "removed",
    "decrease",
    "decline",
    "pr",
    "red",
}
_CHANGE = {"delta", "change", "diff", "difference", "gap", "degradation", "d"} | (_GONE - {"pr", "red"})
#: Changes that have no name without what changes: "Loss" alone is that of training.
_CHANGE_OF = _CHANGE | {"loss", "lost", "gain", "improvement", "increase", "increased", "rise"}
_KEPT = {"kept", "remaining", "remain", "remained", "left", "retained", "keep"}
_SPREAD = {"std", "sd", "stdev", "stddev", "deviation"}
_AFTER = {"pruned", "final", "after", "finetuned", "ours", "retrained", "compressed", "result"}
_ARMS = {"finetuned", "retrained", "scratch", "random", "l1", "magnitude", "ticket", "reinit"}
_UNITS = {
    "in",
    "percent",
    "pp",
    "mean",
    "avg",
    "average",
    "test",
    "val1",
    "number",
    "of",
    "the",
    "imagenet",
    "up",
    "m",
    "g",
}
_ALIASES = {
    "acc": "accuracy",
    "accu": "accuracy",
    "accs": "accuracy",
    "accuracies": "accuracy",
    "acc1": "accuracy",
    "top1": "accuracy",
    "err": "error",
    "err1": "error",
    "errors": "error",
    "param": "params",
    "parameters": "params",
    "parameter": "params",
    "weights": "params",
    "nparam": "params",
    "flop": "flops",
    "mac": "macs",
    "madds": "macs",
    "madd": "macs",
    "acceleration": "speedup",
    "cr": "compression",
    "compress": "compression",
    "methods": "method",
    "approach": "method",
    "algorithm": "method",
    "pruner": "method",
    "criterion": "method",
    "importance": "method",
    "strategy": "method",
    "model": "network",
    "architecture": "network",
    "arch": "network",
    "backbone": "network",
    "networks": "network",
    "data": "dataset",
    "datasets": "dataset",
    "prune": "pruning",
    "sparsities": "sparsity",
    "trials": "runs",
    "seeds": "runs",
    "repeats": "runs",
    "repetitions": "runs",
    "numtrials": "runs",
    "finetune": "finetuned",
    "finetuning": "finetuned",
    "retrain": "retrained",
}
_TOP5 = {"top5", "err5"}
#: What is measured and not read.
_UNREAD = _TOP5 | {
    "validation",
    "val",
    "latency",
    "time",
    "fps",
    "memory",
    "throughput",
    "gpu",
    "train",
    "jsv",
}
_MEASURED = {"accuracy", "flops", "macs", "params", "error"}
_QUANTITIES = ("drop", "ratio", "speedup", "compression", "params_removed", "spread", "runs", "epochs")
_COUNTED = ("epochs", "pruning_epochs", "base_epochs", "runs", "rank", "seed")
_RATES = ("accuracy", "base_accuracy", "error", "base_error", "drop", "spread")
#: What shares are where cells hold factors, and where they hold sizes.
_FACTORS = {
    "macs": "speedup",
    "macs_removed": "speedup",
    "macs_kept": "speedup",
    "params": "compression",
    "params_removed": "compression",
    "params_kept": "compression",
}
_SHARES = {"macs_removed": "macs", "macs_kept": "macs", "params_removed": "params", "params_kept": "params"}
#: All that names of sizes consist of; those of methods have other words: "FLOPs-aware", "Deep Compression".
_OF_SIZES = _GONE | _KEPT | _UNITS | {"flops", "macs", "params", "speedup", "compression", "sparsity", "ratio", "rate"}
#: What a table of pandas counts below the name of a column, beside its mean.
_STATISTICS = {"min", "max", "median", "count", "sum", "var", "sem"}
_QUARTILES = {"25%", "50%", "75%"}
_TITLES = {
    "method",
    "network",
    "dataset",
    "paper",
    "workload",
    "framework",
    "rank",
    "seed",
    "granularity",
    "origin",
    "protocol",
}


@dataclass(frozen=True)
class Column:
    """A column with a meaning.

    Attributes:
        place: Where it stands, from 0.
        header: As printed.
        kind: One of :data:`KINDS`, or ``other``.
        context: What else the header says: the arm, the data or the operating point that its numbers are of.
        scale: Factor of its unit: 1e9 for ``GFLOPs``; 0 where no unit is stated.
        percent: Whether the header says percent.
        counts: ``macs`` or ``flops`` where the header says which.
        change: Whether a difference is named as a change (Δ), so that either sign may mean a loss.
        point: Operating point that the header states: ratio, speedup and sparsity as printed.
    """

    place: int
    header: str
    kind: str
    context: str = ""
    scale: float = 0.0
    percent: bool = False
    counts: str = ""
    change: bool = False
    point: tuple[tuple[str, str], ...] = ()


class _Words(NamedTuple):
    """A header in plain words."""

    words: list[str]
    scale: float
    percent: bool
    counts: str


def recognise(grid: Grid, mapping: Mapping[str, str] | None = None) -> list[Column]:
    """The meaning of each column of a table.

    Args:
        grid: The table.
        mapping: Kind by header, as the user knows better. Headers are compared without case and markup.

    Raises:
        ConfigError: A kind is unknown.
    """
    wanted = {plain(header): kind for header, kind in (mapping or {}).items()}
    columns = []
    ends = [header.rpartition(" | ")[2] for header in grid.header]
    for place, header in enumerate(grid.header):
        # What pandas' describe() prints are no operating points.
        is_quartile = ends[place] in _QUARTILES <= set(ends) and "min" in ends
        guess = Column(place, header, OTHERS) if is_quartile else _guess(place, header)
        # A column has the name as a whole, or the part of it that stands above or below.
        given = next((wanted[name] for name in map(plain, (header, *header.split(" | "))) if name in wanted), None)
        columns.append(replace(guess, kind=given) if given is not None else guess)
    kinds = {column.kind for column in columns}
    sizes = sizes_of_points(grid, columns)
    lines = [line for index, line in enumerate(grid.lines) if index not in sizes]
    for place, column in enumerate(columns):
        texts = [line.cells[place].text for line in lines[:200]]
        stated = [text for text in texts if not is_missing(text)]
        numbers = [parse(text) for text in stated]
        share = sum(number is not None for number in numbers) / len(stated) if stated else 0.0
        if column.kind == "base" and share > 0.5 and plain(column.header) not in wanted:
            # A name of a base model, or its accuracy.
            columns[place] = column = replace(column, kind="base_accuracy")
        corner = place == 0 and "method" not in kinds and plain(column.header) not in wanted
        if corner and column.kind in NUMBERS and stated and share < 0.34 and not _pairs(stated):
            # The corner of a table names its columns, not what stands below it.
            columns[place] = replace(column, kind="method")
            kinds.add("method")
            continue
        spreads = sum(number is not None and number.spread is not None for number in numbers)
        factors = sum(number is not None and number.unit == "x" for number in numbers)
        sized = sum(number is not None and number.unit in SCALES for number in numbers)
        if plain(column.header) in wanted:
            continue
        counted = [number.value for number in numbers if number is not None]
        if column.kind == "epochs" and len(counted) > 2 and _counts_up(counted):
            # The curve of one run, whose rows are no results.
            columns[place] = column = replace(column, kind=OTHERS)
        words = {*_words(column.header).words}
        if (
            column.kind == "spread"
            and words & {"deviation", "standard"} == {"deviation"}
            and min(counted, default=0) < 0
        ):
            # Those from the base, and no standard deviations.
            columns[place] = replace(column, kind=OTHERS)
        if column.kind in (OTHERS, *_COUNTED) and share > 0.8 and spreads > len(stated) / 2:
            # "S4.1: same pruning epochs" above accuracies names their conditions.
            columns[place] = replace(column, kind="accuracy", context=column.context or column.header)
        elif column.kind in _FACTORS and factors > len(stated) / 2:
            # "FLOPs reduction" of 2.1x.
            columns[place] = replace(column, kind=_FACTORS[column.kind])
        elif column.kind == "ratio" and sized > len(stated) / 2:
            # "Pruning ratio" of 16.5 M (69 %): what is counted so are parameters, mostly.
            columns[place] = replace(column, kind="params")
        elif column.kind in _SHARES and ((column.scale and not column.percent) or sized > len(stated) / 2):
            # "FLOPs (G) ↓": the arrow says that less is better.
            columns[place] = replace(column, kind=_SHARES[column.kind])
        elif column.kind in _RATES and factors > len(stated) / 2:
            # No accuracy is a factor: a table of times or speeds.
            columns[place] = replace(column, kind=OTHERS, point=())
    if "accuracy" not in {column.kind for column in columns} and not any(column.point for column in columns):
        for place, column in enumerate(columns):
            if plain(column.header) in ("mean", "result", "results", "performance", "pruned") and _are_accuracies(
                [line.cells[place].text for line in grid.lines]
            ):
                columns[place] = replace(column, kind="accuracy")
                break
    if "method" not in {column.kind for column in columns}:
        named = next((column for column in columns if plain(column.header) in ("name", "label", "row")), None)
        if named is not None:
            columns[named.place] = replace(named, kind="method")
    if "method" not in {column.kind for column in columns} and columns and columns[0].kind == OTHERS:
        texts = [line.cells[0].text for line in grid.lines]
        if sum(parse(text) is None and not is_missing(text) for text in texts) > len(texts) / 2:
            columns[0] = replace(columns[0], kind="method")
    return columns


def transposed(grid: Grid, mapping: Mapping[str, str] | None = None) -> Grid | None:
    """The table with a row for each of its columns, where its first column says what its rows hold; else None."""
    if len(grid.header) < 2 or len(grid.lines) < 2:
        return None
    wanted = {plain(header) for header in mapping or ()}
    if any(_quantity(header) or _point(header) or plain(header) in wanted for header in grid.header[1:]):
        return None
    labels = [" | ".join(filter(None, (line.section, line.cells[0].text))) for line in grid.lines]
    counted = [kind for kind in map(_quantity, labels) if kind]
    if len(set(counted)) < 2 or len(counted) < len(labels) / 2 or not {*counted} & {"accuracy", "error", "drop"}:
        return None
    lines = [
        Line(grid.number, (Cell(header), *(line.cells[place] for line in grid.lines)))
        for place, header in enumerate(grid.header)
        if place
    ]
    return replace(grid, header=("Method", *labels), lines=lines)


def sizes_of_points(grid: Grid, columns: Sequence[Column]) -> dict[int, Column]:
    """Lines that state a size of each operating point, by their place: those that are called so, as "Speedup" is."""
    if not any(column.point for column in columns):
        return {}
    label = next((column.place for column in columns if column.kind == "method"), 0)
    found = {index: _guess(0, line.cells[label].text) for index, line in enumerate(grid.lines)}
    return {
        index: size
        for index, size in found.items()
        if size.kind in {"speedup", "compression", *_FACTORS} and {*_words(size.header).words} <= _OF_SIZES
    }


def _counts_up(values: Sequence[float]) -> bool:
    """Whether values are 0, 1, 2 and so on."""
    return all(after - before == 1 for before, after in itertools.pairwise(values))


def _quantity(header: str) -> str:
    """Kind of number that a header names; empty where it may as well name a method, as "Baseline" and "Ours" do."""
    column = _guess(0, header)
    is_said = set(_words(header).words) & _MEASURED or column.kind in _QUANTITIES
    return column.kind if column.kind in NUMBERS and is_said and not column.point else ""


def _are_accuracies(texts: Sequence[str]) -> bool:
    """Whether all numbers lie between 0 and 100."""
    numbers = [number for text in texts if (number := parse(text)) is not None]
    return bool(numbers) and all(0 <= number.value <= 100 for number in numbers)


def check_mapping(texts: Sequence[str], more: Sequence[str] = ()) -> dict[str, str]:
    """``--map`` options ``HEADER=KIND`` as a mapping.

    Args:
        texts: The options.
        more: Kinds that the caller knows beside :data:`KINDS`.

    Raises:
        ConfigError: One has no ``=``, or names no kind.
    """
    found = {}
    kinds = [*KINDS, *more, OTHERS]
    for text in texts:
        header, mark, kind = text.rpartition("=")
        if not mark or not header:
            raise ConfigError(f"--map {text!r}: expected HEADER=KIND, such as 'Base=base_accuracy'")
        if kind not in kinds:
            raise ConfigError(
                f"--map {text!r}: no such kind of column.{nearest(kind, kinds)} Known: {', '.join(kinds)}"
            )
        found[header] = kind
    return found


def check_headers(mapping: Mapping[str, str], headers: Iterable[str]) -> None:
    """See that every header of a mapping is one of some tables.

    Raises:
        ConfigError: One is not; the message lists those that are.
    """
    known = dict.fromkeys(filter(None, headers))
    parts = {plain(part) for header in known for part in (header, *header.split(" | "))}
    for header in mapping:
        if plain(header) not in parts:
            hint = f"{nearest(header, known)} Columns: {', '.join(known)}"
            raise ConfigError(f"--map '{header}=…': no column is called so.{hint}")


def plain(header: str) -> str:
    """A header without case, markup and punctuation, to compare with."""
    return " ".join(re.sub(r"[^0-9a-zδ±]+", " ", cleaned(header).lower().replace("\\delta", "δ")).split())


def _pairs(texts: Sequence[str]) -> bool:
    """Whether cells hold two numbers each: before and after, or Top-1 and Top-5."""
    return sum(len(_two(text)) == 2 for text in texts) > len(texts) / 2


def _two(text: str) -> list[str]:
    return [part for part in re.split(r"/|→|->|=>", text) if parse(part) is not None]


def _words(header: str) -> _Words:
    text = header.replace("\\Delta", " delta ").replace("Δ", " delta ").replace("∆", " delta ").replace("△", " delta ")
    for arrow in ("↓", "\\downarrow", "⬇", "▼"):
        text = text.replace(arrow, " down ")
    for arrow in ("↑", "\\uparrow", "⬆", "▲"):
        text = text.replace(arrow, " up ")
    text = text.replace("\\%", "%")
    percent = "%" in text
    text = cleaned(text)
    scale, counts = 0.0, ""
    # Units in parentheses, and in front of what is counted: "FLOPs (G)", "GFLOPs", "MParams".
    unit = re.search(r"[(\[]\s?x?\s?(?:10\^?\{?(?P<power>\d+)\}?|(?P<scale>[kKMGBT])(?:MACs|FLOPs|B)?)\s?[)\]]", text)
    if unit is not None:
        scale = (
            10.0 ** int(unit["power"])
            if unit["power"] and int(unit["power"]) < 20
            else SCALES.get((unit["scale"] or "").lower(), 0.0)
        )
        text = text.replace(unit[0], " ")
    front = re.search(r"(?:\b|(?<=[a-z]))([KMGBT])-?(?=(?:FLOP|MAC|Param|flop|mac)s?\b|FLOPS\b)", text)
    if front is not None:
        scale = SCALES[front[1].lower()]
        text = text[: front.start()] + text[front.end() :]
    text = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", text)
    text = re.sub(r"[Tt]op[ -]?1\b|[Aa]cc@1\b|[Tt]op[ -]?1(?=\D)", " top1 ", text)
    text = re.sub(r"[Tt]op[ -]?5\b|[Aa]cc@5\b", " top5 ", text)
    text = re.sub(r"[Ss]peed[ -]?[Uu]ps?\b", " speedup ", text)
    text = re.sub(r"[Ff]ine[ -]?[Tt]un(?:ed|ing|e)\b", " finetuned ", text)
    text = re.sub(r"[Ll]earning[ -][Rr]ate", " lr ", text)
    named = re.findall(r"[a-z]+\d*|±", text.lower())
    if {"error", "err", "errors"} & {*named}:
        # Of "Top-1 error" the first word says which error, and no accuracy.
        named = [word for word in named if word != "top1"]
    words = [_ALIASES.get(word, word) for word in named]
    if "macs" in words:
        counts = "macs"
    elif "flops" in words:
        counts = "flops"
    return _Words(words, scale, percent, counts)


def _guess(place: int, header: str) -> Column:
    # Of "Top-1/Top-5" the first one counts, as in its cells.
    parts = [re.sub(r"(?i)(top[ -]?1\b.*?)\s*/\s*top[ -]?5\b", r"\1", part) for part in header.split(" | ") if part]
    if len(parts) > 1 and parts[-1].strip().lower() in _STATISTICS:
        return Column(place, header, "runs" if parts[-1].strip().lower() == "count" else OTHERS)
    if len(parts) > 1:
        parts = [part for part in parts if part.strip().lower() not in ("mean", "avg", "average")]
    if any(_TOP5 & {*_words(part).words} for part in parts):
        return Column(place, header, OTHERS)
    kinds: list[tuple[str, Column]] = _together(place, [(part, _of_part(place, part)) for part in parts])
    known = [(part, column) for part, column in kinds if column.kind != OTHERS]
    points = tuple(pair for _, column in kinds for pair in column.point)
    if not known:
        return Column(place, header, "accuracy" if points else OTHERS, header if points else "", point=points)
    # The lowest row of a header says what is counted, the rows above of what.
    part, column = known[-1]
    if points and column.kind in ("ratio", "speedup", "params_removed"):
        # "Pruning ratio" above 30 % and 50 %: what stands below is what was reached there.
        named = tuple((column.kind if kind == "ratio" else kind, text) for kind, text in points)
        rest = " | ".join(other for other, found in kinds if found.kind == OTHERS and not found.point)
        return Column(place, header, "accuracy", rest or header, point=named)
    rest = " | ".join(other for other, found in kinds if other != part and found.kind == OTHERS)
    context = " | ".join(text for text in (rest, column.context) if text)
    return replace(column, header=header, context=context, point=points)


def _together(place: int, kinds: list[tuple[str, Column]]) -> list[tuple[str, Column]]:
    """Parts of a header, with what is counted ("FLOPs") and what of it ("Base", "↓ (%)") as one of them."""
    words = {part: {*_words(part).words} for part, _ in kinds}
    counted = [one for one in kinds if words[one[0]] & (_MEASURED | _UNREAD)]
    # Without a word for what is counted it would be the accuracy.
    implied = ("accuracy", "base_accuracy", "base", "drop")
    roles = [one for one in kinds if one not in counted and (one[1].kind in implied or words[one[0]] & _KEPT)]
    if not counted or not roles:
        return kinds
    (what, above), (of, role) = counted[-1], roles[-1]
    both = _of_part(place, f"{what} {of}")
    if both.kind.endswith("_removed") and above.scale and not role.percent:
        # Of "FLOPs (G)" above "Drop" nobody knows whether it is in G or in percent.
        both = replace(both, kind=OTHERS)
    if both.kind == OTHERS:
        return [("", both)]
    rest = [one for one in kinds if one not in (counted[-1], roles[-1])]
    return [*rest, (f"{what} {of}", replace(both, context=both.context or role.context))]


def _of_part(place: int, part: str) -> Column:
    name = part.strip().lower()
    if name in KINDS:
        return Column(place, part, name, counts="")
    if name in ("flops", "base_flops", "flops_removed", "flops_kept"):
        return Column(place, part, name.replace("flops", "macs"), counts="flops")
    if re.fullmatch(r"(seed|run|trial|rep|repetition|fold)[\s_#-]*\d+", name):
        # One of several runs of the row.
        return Column(place, part, OTHERS)
    point = _point(part)
    if point:
        return Column(place, part, OTHERS, point=point)
    found = _words(part)
    kind = _kind(found)
    words = set(found.words)
    change = bool(words & {"delta", "change", "diff", "difference", "gap", "d"})
    # An arm, where the header is its name: "Fine-tuned", "Scratch-E".
    arm = part if kind == "accuracy" and "accuracy" not in words and words & _ARMS else ""
    named = networks.find(part)
    context = arm or (" ".join(filter(None, named)) if kind in NUMBERS else "")
    return Column(place, part, kind, context, found.scale, found.percent, found.counts, change)


def _point(part: str) -> tuple[tuple[str, str], ...]:
    """Operating point that a header states: ``0.5``, ``PR 50%``, ``2x``, ``31.14%/1.45x``."""
    text = re.sub(r"(?i)\b(?:pr|ratio|pruning|rate|sparsity|speed-?up|p|r)\b\s*[=:]?", " ", cleaned(part)).strip(" =:")
    found: list[tuple[str, str]] = []
    for piece in text.split("/"):
        number = parse(piece)
        if number is None or number.value <= 0 or number.spread is not None:
            return ()
        both = "/" in text
        # Sparsity stands beside a ratio, or is no round number as ratios are.
        is_sparsity = both and number.unit == "%" and (number.step < 1 or bool(found))
        kind = "speedup" if number.unit == "x" else "params_removed" if is_sparsity else "ratio"
        if kind == "ratio" and number.unit != "%" and not 0 < number.value < 1 and "%" not in part:
            return ()
        found.append((kind, piece.strip()))
    return tuple(found)


def _kind(found: _Words) -> str:
    listed = found.words
    words = set(listed)
    if not words:
        return OTHERS
    rest = words - _UNITS
    for word in listed:
        # "Pruning method" is one; "workload version" is no workload.
        others = words - _TITLES - _UNITS - {"name", "pruning", "base", "type", "compression"}
        if word in _TITLES and (not others or (word == "method" and not others & _MEASURED)):
            return word
    if words & _UNREAD:
        return OTHERS
    if words & {"tau", "kendall", "spearman", "correlation"}:
        return OTHERS
    if words & _SPREAD or listed == ["±"]:
        return OTHERS if words & _BASE else "spread"
    if "runs" in words or listed == ["n"]:
        return "runs"
    if "flops" in words or "macs" in words:
        return _size("macs", words, found.percent)
    if "params" in words:
        return _size("params", words, found.percent)
    if "speedup" in words:
        return "speedup"
    if "compression" in words:
        return "compression"
    if "sparsity" in words:
        return "params_removed"
    if "epochs" in words or "epoch" in words:
        if words & {"reported", "selected"}:
            return "epoch_reported"
        if words & {"total", "all"}:
            return OTHERS
        return "pruning_epochs" if "pruning" in words else "base_epochs" if words & (_BASE | {"pretrain"}) else "epochs"
    if words & {"lr", "schedule"}:
        return "pruning_schedule" if "pruning" in words else "schedule"
    if "accuracy" in words:
        return _accuracy("accuracy", words)
    if "error" in words:
        # Less is better, so that an arrow up says that it rose.
        return OTHERS if words & (_CHANGE_OF | {"up"}) else "base_error" if words & _BASE else "error"
    if words & {"ratio", "rate", "pr"} and not rest - {
        "ratio",
        "rate",
        "pr",
        "pruning",
        "pruned",
        "filter",
        "filters",
        "channel",
    }:
        return "ratio"
    if rest and rest <= _BASE:
        return "base_accuracy"
    if rest and rest <= _AFTER | _ARMS | {"e", "b"} and rest & (_AFTER | _ARMS):
        return "accuracy"
    if rest and rest <= _CHANGE:
        return "drop"
    return OTHERS


def _size(what: str, words: set[str], percent: bool) -> str:
    if words & {"speedup"} or {"old", "new"} <= words:
        return "speedup" if what == "macs" else "compression"
    if words & {"executed", "total", "training", "increase", "increased", "rise"}:
        return OTHERS
    if words & _KEPT:
        return f"{what}_kept"
    if words & _BASE:
        return f"base_{what}"
    if words & (_GONE | {"delta", "ratio", "rate", "sparsity"}) or ("pruned" in words and percent):
        return f"{what}_removed"
    return what


def _accuracy(what: str, words: set[str]) -> str:
    if words & _CHANGE_OF:
        return "drop"
    return "base_accuracy" if words & _BASE else what
