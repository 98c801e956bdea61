"""Tables of a report, as header and rows of text."""

from __future__ import annotations

import hashlib
import json
import re
import statistics
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from pruneaudit.audit.statistics import seeds_needed
from pruneaudit.catalog.names import is_scratch
from pruneaudit.report.results import Results, statistic
from pruneaudit.workloads.metrics import ACCURACY, BUILT_IN, PER_EXAMPLE, Metric
from pruneaudit.workloads.metrics import title as metric_title

Table = tuple[list[str], list[list[str]]]
Matrix = dict[tuple[str, ...], dict[str, str]]

_MARKS = {"pass": "ok", "fail": "FAIL", "not measured": "n/m", "incomplete": "INC"}
#: What the marks of an audit matrix mean, worst first.
_MEANING = {
    "FAIL": "required and broken",
    "INC": "cells are missing",
    "waived": "broken, and waived by the study",
    "n/m": "not measured",
    "no": "does not hold, not required",
    "ok": "holds",
}
_WORST = tuple(_MEANING)
#: What stands in a table of verdicts where seeds are few.
FEW_SEEDS = "Seeds n of m: better or worse needs m paired seeds among so many comparisons; fewer only describe."
#: Rules that a row names before it only counts them.
MOST_RULES = 4


def _mark(row: Mapping[str, Any]) -> str:
    if row["verdict"] == "fail" and row["waived"]:
        return "waived"
    if row["verdict"] == "fail" and not row["required"]:
        return "no"
    return _MARKS[row["verdict"]]


def accuracy_table(results: Results, workload: str, labels: tuple[str, ...]) -> Table:
    """Mean ± sample std of the metric by protocol and method, one column for each ratio.

    Where not all methods remove filters, a column says what they remove: such rows are not to be compared.
    """
    found = results.statistics(workload, labels)
    ratios = sorted({ratio for _, _, ratio in found})
    speedups = {
        ratio: sorted(
            {
                round(cell.speedup, 2)
                for (_, method, at), cell in found.items()
                if at == ratio and method != "unpruned" and cell.speedup is not None
            }
        )
        for ratio in ratios
    }
    removed = results.removed(workload, labels)
    mixed = set(removed.values()) != {"filter"}
    header = ["protocol", "method", *(["removes"] if mixed else []), "n"]
    header += [_ratio_header(ratio, speedups[ratio]) for ratio in ratios]
    rows = []
    for protocol, method in sorted({key[:2] for key in found}, key=lambda key: (key[0], is_scratch(key[1]), key[1])):
        cells = [found.get((protocol, method, ratio)) for ratio in ratios]
        counts = sorted({cell.n for cell in cells if cell is not None})
        what = [f"{removed[method]}s"] if mixed else []
        values = ["–" if cell is None else str(cell) for cell in cells]
        rows.append([protocol, method, *what, "/".join(map(str, counts)), *values])
    return header, rows


def beside_table(results: Results, workload: str, labels: tuple[str, ...]) -> Table:
    """Mean ± sample std of the metrics that the workload asks to see beside the one that decides."""
    metric, rows = results.metric(workload), results.of("cells", workload, labels)
    measured = set(metric.beside).union(*(row.get("beside") or () for row in rows))
    names = [name for name in metric.also if name != metric.name and name in measured]
    grouped: dict[tuple[str, str, float], list[Mapping[str, float]]] = defaultdict(list)
    for row in rows:
        if row["status"] == "ok":
            grouped[row["protocol"], row["method"], row["ratio"]].append(row.get("beside") or {})
    table = []
    for (protocol, method, ratio), found in sorted(grouped.items()):
        # Runs of older layouts do not have them: a mean over the others would be one of other seeds.
        cells = [
            str(statistic([one[name] for one in found], 1.0, Metric(name=name)))
            if all(name in one for one in found)
            else "–"
            for name in names
        ]
        table.append([protocol, method, f"{ratio:g}", str(len(found)), *cells])
    header = ["protocol", "method", "ratio", "n", *(Metric(name=name).axis for name in names)]
    return header, table if names else []


def size_table(results: Results, workload: str, labels: tuple[str, ...]) -> Table:
    """Speedup and share of parameters by method and ratio, means over seeds and protocols; nothing where all agree."""
    rows = results.of("architectures", workload, labels)
    ratios = sorted({row["ratio"] for row in rows})
    found: dict[str, dict[float, list[Mapping[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        found[row["method"]][row["ratio"]].append(row)
    table = []
    for method in sorted(found, key=lambda name: (is_scratch(name), name)):
        first = next(iter(found[method].values()))[0]
        table.append(
            [
                method,
                first["granularity"],
                first["scope"] or "",
                *(_size(found[method].get(ratio, [])) for ratio in ratios),
            ]
        )
    header = ["method", "removes", "threshold", *(f"ratio {ratio:g}" for ratio in ratios)]
    return header, table if len({tuple(row[3:]) for row in table}) > 1 else []


def _size(rows: Sequence[Mapping[str, Any]]) -> str:
    if not rows:
        return "–"
    speedup = statistics.fmean(row["base_macs"] / row["macs"] for row in rows)
    executed = statistics.fmean(row["base_macs"] / row["executed_macs"] for row in rows)
    params = statistics.fmean(100 * row["params"] / row["base_params"] for row in rows)
    dense = f" ({executed:.2f}x executed)" if f"{executed:.2f}" != f"{speedup:.2f}" else ""
    return f"{speedup:.2f}x{dense}, {params:.1f} % of params"


def architecture_table(results: Results, workload: str, labels: tuple[str, ...]) -> Table:
    """What one threshold for all layers left of each layer, in the network's order, mean over seeds."""
    rows = [row for row in results.of("architectures", workload, labels) if row["layers"]]
    found: dict[tuple[str, float, str], list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        found[row["method"], row["ratio"], " ".join(row["protocols"])].append(row)
    table = []
    for (method, ratio, protocols), members in sorted(found.items()):
        layers = members[0]["layers"]
        means = [statistics.fmean(member["layers"][layer] for member in members) for layer in layers]
        widths = "-".join(f"{mean:.1f}".removesuffix(".0") for mean in means)
        table.append([method, f"{ratio:g}", protocols, f"{members[0]['granularity']}s", str(len(members)), widths])
    return ["method", "ratio", "protocols", "what stays", "n", "in each layer"], table


def base_line(results: Results, workload: str, labels: tuple[str, ...]) -> str:
    """One line on the dense base models, or nothing where none is shared."""
    base = results.base(workload, labels)
    if base is None:
        return ""
    runs = results.of("runs", workload, labels)
    told = sorted({f", {row['provenance']}" for row in runs if row["stage"] == "pretrain" and "provenance" in row})
    return f"Base model: {base}{base.metric.unit_text} (n = {base.n}, speedup 1){''.join(told)}."


def _ratio_header(ratio: float, speedups: Sequence[float]) -> str:
    if not speedups:
        return f"ratio {ratio:g}"
    # One threshold for all layers reaches the speedup of uniform pruning up to a filter.
    ends = dict.fromkeys(f"{speedup:.2f}" for speedup in (speedups[0], speedups[-1]))
    return f"ratio {ratio:g} ({'–'.join(ends)}x)"


def _matrix(rows: Iterable[Mapping[str, Any]], key: Callable[[Mapping[str, Any]], tuple[str, ...]]) -> Matrix:
    """The worst mark by row and rule."""
    marks: Matrix = defaultdict(dict)
    for row in rows:
        line, mark = marks[key(row)], _mark(row)
        if mark != line.get(row["rule"]):
            line[row["rule"]] = min(mark, line.get(row["rule"], "ok"), key=_WORST.index)
    return marks


def audit_matrix(results: Results, workload: str, labels: tuple[str, ...]) -> Table:
    """Comparisons × rules: the worst verdict over ratios and seeds.

    How many of the required rules hold, a column for each one that somewhere does not, and the names of stricter rules
    that do not hold: what else may explain a difference.
    """
    rows = [row for row in results.of("findings", workload, labels) if len(row["arms"]) == 2]
    marks = _matrix(rows, lambda row: (row["protocol"], " vs ".join(row["arms"])))
    needed = {(row["protocol"], row["rule"]) for row in rows if row["required"]}
    required = {key: {rule: mark for rule, mark in marks[key].items() if (key[0], rule) in needed} for key in marks}
    shown = _not_ok(required)
    table = []
    for key in sorted(marks):
        found = required[key]
        loose = sorted(rule for rule, mark in marks[key].items() if mark == "no" and rule not in found)
        table.append([*key, _holding(found), *(found.get(rule, "") for rule in shown), " ".join(loose)])
    return ["protocol", "comparison", "required", *shown, "not controlled"], table if needed else []


def arm_matrix(results: Results, workload: str, labels: tuple[str, ...]) -> Table:
    """Methods × rules on single arms, required or not: the worst verdict over protocols, ratios and seeds.

    How many hold, and a column for each one that somewhere does not.
    """
    rows = [row for row in results.of("findings", workload, labels) if len(row["arms"]) == 1]
    marks = _matrix(rows, lambda row: tuple(row["arms"]))
    shown = _not_ok(marks)
    order = sorted(marks, key=lambda arms: (is_scratch(arms[0]), arms))
    return (
        ["method", "rules", *shown],
        [[*arms, _holding(marks[arms]), *(marks[arms].get(rule, "") for rule in shown)] for arms in order],
    )


def _not_ok(marks: Matrix) -> list[str]:
    """Rules with another mark than ok in some line."""
    return sorted({rule for found in marks.values() for rule, mark in found.items() if mark != "ok"})


def _holding(found: Mapping[str, str]) -> str:
    """How many rules of a line hold."""
    holding = sum(mark == "ok" for mark in found.values())
    return f"all {holding} ok" if holding == len(found) else f"{holding} of {len(found)} ok"


def legend(matrix: Table) -> str:
    """What the marks in an audit matrix mean; nothing where all is well."""
    marks = {cell for row in matrix[1] for cell in row}
    return "; ".join(f"{mark}: {text}" for mark, text in _MEANING.items() if mark in marks)


def named_rules(matrix: Table) -> list[str]:
    """Rules that an audit matrix names, in its head or as not controlled."""
    header, rows = matrix
    loose = {rule for row in rows for rule in row[-1].split()} if header[-1] == "not controlled" else set()
    return sorted({name for name in header if _is_rule(name)} | loose)


def _is_rule(name: str) -> bool:
    return name[:1] == "F" and name[1:].isdigit()


def verdict_table(rows: Iterable[Mapping[str, Any]], metric: Metric = ACCURACY) -> Table:
    """Verdicts with their evidence; differences in the metric's unit, first arm minus second."""
    header = ["protocol", "ratio", "comparison", "verdict", "difference", "95 % interval", "p", "seeds", "because of"]
    table = []
    for row in rows:
        gap = row["difference"]
        interval = "" if gap is None or gap["low"] is None else f"{metric.gap(gap['low'])} to {metric.gap(gap['high'])}"
        p = "" if row["p_adjusted"] is None else f"{row['p_adjusted']:.3g}"
        reasons = [_names(cause_first(row["forbidden_by"])), *(f"{rule} waived" for rule in row["waived"])]
        table.append(
            [
                row["protocol"],
                f"{row['ratio']:g}",
                " vs ".join(row["arms"]),
                row["verdict"],
                "" if gap is None else metric.gap(gap["mean"]),
                interval,
                p,
                _seeds(row),
                ", ".join(text for text in reasons if text),
            ]
        )
    return header, table


def _seeds(row: Mapping[str, Any]) -> str:
    """Paired seeds, with the number that better or worse needs where there are fewer; with a plan, its most."""
    n, needed = len(row["seeds"]), seeds_needed(comparisons=row["family"])
    if row.get("plan"):
        return f"{n} (planned: {row['plan']['seeds']})" if row["looks"] < row["plan"]["seeds"] else str(n)
    return f"{n} of {needed}" if n < needed else str(n)


def has_few_seeds(rows: Iterable[Mapping[str, Any]]) -> bool:
    """Whether some row has fewer paired seeds than better or worse needs."""
    return any(" of " in _seeds(row) for row in rows)


def standings_table(results: Results, workload: str, labels: tuple[str, ...]) -> Table:
    """Groups of methods that nothing tells apart, best first, by protocol and ratio."""
    rows = results.of("standings", workload, labels)
    most = max((len(row["groups"]) for row in rows), default=0)
    apart = any(row["not_comparable"] for row in rows)
    header = ["protocol", "ratio", *(f"group {number + 1}" for number in range(most))]
    table = []
    for row in rows:
        groups = [", ".join(group) for group in row["groups"]] + [""] * (most - len(row["groups"]))
        last = [", ".join(row["not_comparable"])] if apart else []
        table.append([row["protocol"], f"{row['ratio']:g}", *groups, *last])
    return [*header, *(["not comparable"] if apart else [])], table


#: What a noise floor is, in one sentence.
NOISE_NOTE = (
    "The same seeds computed in native and in portable arithmetic: a difference between methods that is no larger than "
    "what this moves the mean of an arm is within what another processor changes."
)


def noise_table(results: Results, workload: str, labels: tuple[str, ...]) -> Table:
    """What the arithmetic alone changes at each operating point, beside what another seed changes."""
    number = results.metric(workload).number
    rows = [
        [
            row["protocol"],
            f"{row['ratio']:g}",
            f"{row['differ']} of {row['pairs']}",
            *(number(row[name]) for name in ("typical", "largest", "of_means")),
            "–" if row["spread"] is None else number(row["spread"]),
        ]
        for row in results.of("noise", workload, labels)
    ]
    return ["protocol", "ratio", "cells that differ", "typically", "at most", "an arm's mean", "std over seeds"], rows


def strictest_matrix(results: Results, workload: str, labels: tuple[str, ...]) -> Table:
    """Method × method: the strictest setup whose rules hold between them at every ratio; – where none was measured.

    Where all were compared with a few rivals only, these are the columns.
    """
    setups: dict[tuple[str, str], str] = {}
    for row in results.of("strictest", workload, labels):
        left, right = row["arms"]
        setup = row["setup"] or "none"
        # Where ratios differ, the looser one: "none" sorts before "s…".
        for pair in ((left, right), (right, left)):
            setups[pair] = min(setup, setups.get(pair, setup))
    partners = Counter(left for left, _ in setups)
    names, most = sorted(partners), max(partners.values(), default=0)
    columns = [name for name in names if partners[name] >= most / 2]
    return ["", *columns], [[name, *(setups.get((name, other), "–") for other in columns)] for name in names]


def profile_words(profile: Mapping[str, Any]) -> tuple[str, str]:
    """What a profile compares, and what its distances are counted in."""
    name = profile.get("metric") or ACCURACY.name
    if name not in BUILT_IN:
        return metric_title(name), "of its unit"
    metric = Metric(name=name)
    return metric.title, "percentage points" if metric.unit == "%" else metric.unit or "points"


def metric_facts(results: Results) -> list[tuple[str, str]]:
    """What decides on each workload where that is not accuracy by the protocol's margin, in words."""
    return [
        (name, f"{metric.counted}; differences below {metric.margin:g}{metric.suffix} do not matter")
        for name, metric in sorted(results.metrics.items())
        if metric.margin is not None
    ]


def besides(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """What the arms of some verdicts do beside deciding what goes, each once."""
    return sorted({text for row in rows for text in row.get("besides", ())})


def no_outcomes(rows: Iterable[Mapping[str, Any]], metric: Metric) -> str:
    """Why no images are counted that one arm alone got right; nothing where they are, or nothing was compared."""
    compared = [row for row in rows if row["difference"] is not None]
    if metric.name in PER_EXAMPLE or not compared or any(row["images"] for row in compared):
        return ""
    return f"No McNemar's test: {metric.title} has no outcome for each test image."


def profile_table(profile: Mapping[str, Any]) -> Table:
    """Share of operating points within so many points of the best, by method."""
    header = ["method", *(f"≤ {most:g}" for most in profile["within"])]
    order = sorted(profile["share"], key=lambda name: ([-share for share in profile["share"][name]], name))
    return header, [[name, *(f"{share:.0%}" for share in profile["share"][name])] for name in order]


def trainability_table(results: Results, workload: str, labels: tuple[str, ...]) -> Table:
    """Mean Jacobian singular value before pruning, after it and at the end; trainability accuracy; means over seeds.

    Trainability accuracy is the mean of the metric over the first stage, whatever the metric is.
    Where they were measured: the metric right after pruning, and singular values in training mode.
    """
    grouped: dict[tuple[str, str, float], list[Mapping[str, Any]]] = defaultdict(list)
    for row in results.of("cells", workload, labels):
        if row["status"] == "ok":
            grouped[row["protocol"], row["method"], row["ratio"]].append(row)
    cells = [row for rows in grouped.values() for row in rows]
    stages = {"JSV base": "base", "JSV pruned": "pruned", "JSV end": "end"}
    if any(row["jsv"].get("pruned_train") is not None for row in cells):
        stages |= {"JSV base (train)": "base_train", "JSV pruned (train)": "pruned_train"}
    after = ["pruned"] if any(row.get("pruned_value") is not None for row in cells) else []
    header = ["protocol", "method", "ratio", *after, *stages, "TA"]
    table = []
    for (protocol, method, ratio), rows in sorted(grouped.items()):
        values = [[row["jsv"].get(stage) for row in rows] for stage in stages.values()]
        accuracies = [row["trainability_accuracy"] for row in rows]
        form = f"{{:.{results.metric(workload).decimals}f}}"
        shown = [_mean([row.get("pruned_value") for row in rows], form)] if after else []
        shown += [*(_mean(found, "{:.3g}") for found in values), _mean(accuracies, form)]
        if any(shown):
            table.append([protocol, method, f"{ratio:g}", *shown])
    return header, table


def _mean(values: list[Any], form: str) -> str:
    return "" if None in values else form.format(statistics.fmean(values))


def failed_findings(results: Results) -> list[dict[str, Any]]:
    """Required findings that are no pass, what is waived last; ``rules`` names all rules that saw the same.

    A cell that is missing leaves every rule of its comparisons incomplete, for one reason: that is one row.
    """
    merged: dict[str, dict[str, Any]] = {}
    for row in results.findings:
        if row["verdict"] != "pass" and row["required"]:
            seen = {name: value for name, value in row.items() if name not in ("rule", "runs")}
            found = merged.setdefault(json.dumps(seen, sort_keys=True), {**seen, "rules": []})
            found["rules"].append(row["rule"])
    order = ("fail", "incomplete", "not measured")
    return sorted(merged.values(), key=lambda row: (bool(row["waived"]), order.index(row["verdict"])))


def rules_text(row: Mapping[str, Any]) -> str:
    """The rules of a row of :func:`failed_findings`."""
    return _names(row["rules"])


def cause_first(rules: Sequence[str]) -> list[str]:
    """Rules with F607 first: where cells are missing, a rule that cannot be judged for that reason only repeats it."""
    return sorted(rules, key=lambda rule: rule != "F607")


def _names(rules: Sequence[str]) -> str:
    """Rules by name; of many the first two and how many more."""
    return " ".join(rules) if len(rules) <= MOST_RULES else f"{' '.join(rules[:2])} and {len(rules) - 2} more rules"


def measured_text(row: Mapping[str, Any]) -> str:
    """Measured value of each arm of a finding; nothing where nothing was measured."""
    values = [row["measured"].get(arm) for arm in row["arms"]]
    if all(value is None for value in values):
        return ""
    return "; ".join(f"{arm}: {value}" for arm, value in zip(row["arms"], values, strict=True))


def why_text(row: Mapping[str, Any]) -> str:
    """Note of a finding, and why it was waived."""
    return "; ".join(text for text in (row["note"], f"waived: {row['waived']}" if row["waived"] else "") if text)


def verdict_line(row: Mapping[str, Any]) -> str:
    """A verdict in one line."""
    where = f"{title(row['workload'], tuple(row['labels']))} {row['protocol']} ratio {row['ratio']:g}"
    return f"{where}: {' against '.join(row['arms'])}: {row['verdict']}; {row['summary']}"


def verdict_counts(rows: Iterable[Mapping[str, Any]]) -> str:
    """How many comparisons ended how."""
    counts = Counter(row["verdict"] for row in rows)
    total = sum(counts.values())
    words = ", ".join(f"{counts[word]} {word}" for word in sorted(counts))
    return f"{total} comparison{'' if total == 1 else 's'}, {words}"


def groups_of(rows: Iterable[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """Rows by heading of their workload and labels: rows of different labels never share a table."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        found.setdefault(title(row["workload"], tuple(row["labels"])), []).append(row)
    return found


def file_name(what: str, workload: str, labels: tuple[str, ...]) -> str:
    """Name of a file on one workload, without its ending: at most 120 plain marks.

    Where something had to go, a digest of the whole name keeps what only differs there apart.
    """
    name = "-".join([what, workload, *labels])
    plain = re.sub(r"[^A-Za-z0-9_.-]", "-", name)
    if plain == name and len(name) <= 120:
        return name
    return f"{plain[:111]}-{hashlib.sha256(name.encode(errors='backslashreplace')).hexdigest()[:8]}"


def title(workload: str, labels: tuple[str, ...]) -> str:
    """Heading of a workload's tables."""
    return f"{workload} [{', '.join(labels)}]" if labels else workload
