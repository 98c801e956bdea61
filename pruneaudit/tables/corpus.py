"""Meta-analysis of a corpus of papers: who compares with whom, on what bases, in what units.

Reads the layout of ShrinkBench's exports (Blalock et al. 2020): ``Papers-Grid view.csv`` says which papers each one
compares to, ``Results-Grid view.csv`` holds their results.
"""

from __future__ import annotations

import csv
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pruneaudit.errors import ConfigError
from pruneaudit.tables.readers import read
from pruneaudit.tables.rows import Table, accuracy, understand
from pruneaudit.tables.rules.sizes import base_macs, times_known

PAPERS, RESULTS = "Papers-Grid view.csv", "Results-Grid view.csv"


@dataclass(frozen=True)
class Corpus:
    """Papers and their results.

    Attributes:
        compares: Papers that each paper compares to.
        pairs: Papers on each pair of data and network, as named.
        results: Their results.
    """

    compares: dict[str, frozenset[str]]
    pairs: dict[tuple[str, str], frozenset[str]]
    results: Table

    def counts(self) -> dict[str, Any]:
        """The numbers of ShrinkBench's section 4, counted again."""
        sizes = Counter(len(others) for others in self.compares.values())
        compared = Counter(other for others in self.compares.values() for other in others)
        papers = len(self.compares)
        spread = {row.text("paper") for row in self.results.rows if row.number("spread") is not None}
        trials = {row.text("paper") for row in self.results.rows if row.number("runs") is not None}
        (dataset, network), users = max(self.pairs.items(), key=lambda pair: (len(pair[1]), pair[0]))
        return {
            "papers": papers,
            "results": len(self.results.rows),
            "pairs of data and network": len(self.pairs),
            "compare with none": sizes[0],
            "compare with one": sizes[1],
            "compare with three at most": sum(count for size, count in sizes.items() if size <= 3),
            "most that one compares with": max(sizes),
            "never compared with": papers - sum(paper in compared for paper in self.compares),
            "most compared with": [f"{name} ({count})" for name, count in compared.most_common(4)],
            "most common pair": f"{network} / {dataset}",
            "papers on it": len(users),
            "papers with a spread": len(spread),
            "papers that state the number of runs": len(trials),
        }

    def bases(self) -> list[dict[str, Any]]:
        """Base accuracies and units of MACs by data and network, where two papers and more state them."""
        accuracies: dict[tuple[str, str], dict[str, float]] = defaultdict(dict)
        units: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
        for row in self.results.rows:
            key = (row.text("dataset"), row.text("network"))
            base = accuracy(row, base=True)
            if base is not None:
                accuracies[key][row.text("paper")] = base.value
            macs = base_macs(row)
            if macs is not None and row.network is not None:
                units[key][{1: "MACs", 2: "2 x MACs"}.get(times_known(macs, row.network), "neither")] += 1
        found = []
        for key in sorted(accuracies, key=lambda key: -len(accuracies[key])):
            values = accuracies[key].values()
            if len(values) > 1:
                found.append(
                    {
                        "data": key[0],
                        "network": key[1],
                        "papers": len(values),
                        "base_from": min(values),
                        "base_to": max(values),
                        "spread": round(max(values) - min(values), 2),
                        "units": dict(sorted(units[key].items())),
                    }
                )
        return found


def load(folder: Path) -> Corpus:
    """Read a corpus.

    Raises:
        ConfigError: A file is not there, or has other columns.
    """
    papers = folder / PAPERS
    try:
        with papers.open(encoding="utf-8-sig", newline="") as file:
            rows = list(csv.DictReader(file))
    except OSError as error:
        raise ConfigError(f"{papers}: {error.strerror}; give the folder of ShrinkBench's exports") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{papers}: not a CSV: {error}") from None
    if not rows or not {"Name", "Compares To"} <= set(rows[0]):
        raise ConfigError(f"{papers}: expected columns 'Name' and 'Compares To'")
    compares = {row["Name"]: frozenset(_listed(row["Compares To"])) - {row["Name"]} for row in rows if row["Name"]}
    table = understand(read(folder / RESULTS)[0])
    pairs: dict[tuple[str, str], set[str]] = defaultdict(set)
    for row in table.rows:
        pairs[row.text("dataset"), row.text("network")].add(row.text("paper"))
    return Corpus(compares, {key: frozenset(names) for key, names in pairs.items()}, table)


def _listed(text: str | None) -> list[str]:
    return [name.strip() for name in (text or "").split(",") if name.strip()]
