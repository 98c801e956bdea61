"""Seeds until a comparison is decided, against a fixed number of them and against an e-process; simulated, seconds.

python benchmarks/decide.py
python benchmarks/decide.py LEDGER [OTHER]     verdicts per hour of training, from what a ledger of --audit-decide holds
python benchmarks/decide.py --plans LEDGER     the same for other plans, with seeds drawn like those of the ledger

The second form counts what the plans of a ledger decided, and what Holm's procedure would decide of its first eight
seeds, each by the seconds that its runs took. A worker computes with one core, so that these are hours of CPU. OTHER is
a ledger of the same comparisons over eight seeds, as another build or backend trained them.

The third one draws campaigns: accuracies of the arms of a table from the normal distribution of those that the ledger
holds, and each run for the seconds that the one of the second seed took (the first one compiles).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np

from pruneaudit.audit.rounds import Family
from pruneaudit.audit.sequential import Plan, decide, stops
from pruneaudit.audit.statistics import differences, holm, seeds_needed, word
from pruneaudit.catalog.cells import Cell
from pruneaudit.errors import AuditError, ConfigError
from pruneaudit.ledger.records import CellRecord
from pruneaudit.ledger.store import Ledger
from pruneaudit.workloads.metrics import ACCURACY

SIMULATED = 400
#: True mean differences, in standard deviations of the paired differences, and seeds at most of the plans for them.
EFFECTS = {0.5: (20, 60, 100), 1.0: (20, 40), 2.0: (20, 40), 4.0: (20, 40)}
FAMILIES = (1, 3, 12)
#: Seeds of the fixed design.
FIXED = 8

#: Campaigns that are drawn for each plan.
CAMPAIGNS = 40

RecordOf = Callable[[Cell], CellRecord | None]


def planned(gaps: np.ndarray, alpha: float) -> np.ndarray:
    """Looks at which differences ``[C, n]`` stop by a plan of one comparison at this level; 0: never."""
    return stops(Plan(seeds=gaps.shape[1], comparisons=1, margin=1.0, alpha=alpha), gaps)[:, 0]


def fixed(gaps: np.ndarray, alpha: float, seeds: int) -> float:
    """Power of the sign-flip test with a fixed number of seeds."""
    # The plan that looks once, after its last seed, spends all of alpha there.
    once = Plan(seeds=seeds, comparisons=1, margin=1.0, alpha=alpha, first=seeds)
    return float((stops(once, gaps[:, :seeds]) > 0).mean())


def e_process(gaps: np.ndarray, alpha: float) -> np.ndarray:
    """Looks at which an e-process reaches 1 / alpha (Ville's inequality), 0: never.

    Two bettors, one on each sign, share the stake; each bets a share that its bets up to now would have made (add-one
    estimate) on the next sign, so that under the null hypothesis the mean of their capital is a martingale.
    """
    signs = np.sign(gaps)
    before = np.cumsum(signs, axis=1) - signs
    share = before / (np.arange(gaps.shape[1]) + 2)
    capital = sum(np.cumprod(1 + np.clip(side * share, 0.25, 0.95) * side * signs, axis=1) for side in (1, -1)) / 2
    reached = capital >= 1 / alpha
    return np.where(reached.any(axis=1), reached.argmax(axis=1) + 1, 0)


def fixed_seeds(gaps: np.ndarray, alpha: float, power: float) -> int:
    """The fewest seeds with which one test at the end has this power, within a point."""
    low, high = 5, gaps.shape[1]
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fixed(gaps, alpha, middle) >= power - 0.01 else (middle, high)
    return high


def main() -> None:
    """Print the table of RESULTS.md."""
    noise = np.random.default_rng(0).normal(size=(SIMULATED, max(map(max, EFFECTS.values()))))
    print(
        "| comparisons | difference, spreads | plan | decided | mean seeds | fixed seeds | ratio | bound | e-process |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for family in FAMILIES:
        alpha = 0.05 / family
        for effect, plans in EFFECTS.items():
            for seeds in plans:
                gaps = noise[:, :seeds] + effect
                looks = planned(gaps, alpha)
                power = float((looks > 0).mean())
                mean = float(np.where(looks > 0, looks, seeds).mean())
                same = fixed_seeds(noise + effect, alpha, power)
                bets = e_process(gaps, alpha)
                other = f"{(bets > 0).mean():.0%}, {np.where(bets > 0, bets, seeds).mean():.1f}"
                # No test of signs stops sooner than all signs alike are rare enough.
                bound = seeds_needed(alpha) / same
                row = (family, f"{effect:g}", seeds, f"{power:.0%}", f"{mean:.1f}", same, f"{mean / same:.2f}")
                print(f"| {' | '.join(map(str, (*row, f'{bound:.2f}', other)))} |", flush=True)


def by_plan(families: Iterable[Family], record_of: RecordOf) -> tuple[int, list[Cell]]:
    """How many comparisons their plans decided, and the cells that they took."""
    decided, cells = 0, list[Cell]()
    for family in families:
        for comparison, stop in family.standing(record_of, ACCURACY).stops.items():
            decided += stop.word not in (None, "indeterminate")
            cells += [cell for arm in comparison.arms for cell in arm.cells()[: stop.looks]]
    return decided, cells


def by_fixed_seeds(families: Iterable[Family], record_of: RecordOf) -> tuple[int, list[Cell]]:
    """How many comparisons are decided of the first seeds, and the cells of these."""
    decided, cells = 0, list[Cell]()
    for family in families:
        arms = [[arm.cells()[:FIXED] for arm in comparison.arms] for comparison in family.comparisons]
        values = [[[record_of(cell) for cell in arm] for arm in pair] for pair in arms]
        found = differences(
            ([record.value for record in left], [record.value for record in right], family.plan.margin)
            for left, right in values
        )
        p, p_equivalent = (holm([getattr(one, name) for one in found]) for name in ("p", "p_equivalent"))
        decided += sum(word(*facts) != "indeterminate" for facts in zip(found, p, p_equivalent, strict=True))
        cells += [cell for pair in arms for arm in pair for cell in arm]
    return decided, cells


def planned_in(root: Path) -> list[Family]:
    """The plans of a ledger.

    Raises:
        ConfigError: There are none.
    """
    families = Ledger(root, writable=False).planned(Family)
    if not families:
        raise ConfigError(f"{root} holds no plan: give a ledger of pytest suite --audit-decide N")
    return families


class Drawn:
    """A table of a ledger, whose seeds are drawn anew.

    Args:
        family: The table.
        known: Records of the ledger, by cell.
        seconds: What each of its runs took.
    """

    def __init__(self, family: Family, known: Mapping[Cell, CellRecord], seconds: Mapping[str, float]) -> None:
        self.family = family
        arms = list(dict.fromkeys(arm for comparison in family.comparisons for arm in comparison.arms))
        values = [[known[cell].value for cell in arm.cells() if cell in known] for arm in arms]
        common = min(map(len, values))
        self.covariance = np.cov(np.array([one[:common] for one in values]))
        self.means = [float(np.mean(one)) for one in values]
        self.arms = {arm.method: place for place, arm in enumerate(arms)}
        #: Of each arm the runs of its second seed, and what they took.
        self.runs = [{run: seconds[run] for run in known[arm.cells()[1]].runs} for arm in arms]

    def play(self, plan: Plan, random: np.random.Generator) -> tuple[int, dict[tuple[str, int], float]]:
        """How many comparisons a plan decides of one draw, and what it trains, by run and seed, with its seconds."""
        drawn = random.multivariate_normal(self.means, self.covariance, 60)[: plan.seeds]
        pairs = [(self.arms[left], self.arms[right]) for left, right, _ in self.family.pairs]
        found = decide(plan, [(drawn[:, left] - drawn[:, right]).tolist() for left, right in pairs])
        taken: dict[tuple[str, int], float] = {}
        for stop, pair in zip(found, pairs, strict=True):
            for arm in pair:
                taken |= {(run, s): took for run, took in self.runs[arm].items() for s in range(stop.looks)}
        return sum(stop.word != "indeterminate" for stop in found), taken


def other_plans(root: Path) -> None:
    """Print the table of RESULTS.md that plans were chosen by."""
    ledger = Ledger(root, writable=False)
    known = {record.cell: record for record in ledger.cells()}
    seconds = {record.run_id: record.seconds for record in ledger.runs()}
    tables = [Drawn(family, known, seconds) for family in planned_in(root)]
    print(
        "| seeds at most | given up beyond | decided | minutes of training | decided per hour |\n|---|---|---|---|---|"
    )
    for seeds in (12, 16, 20, 30, 40):
        for futility in (None, 2.0, 1.0):
            decided, trained = 0, 0.0
            for campaign in range(CAMPAIGNS):
                runs: dict[tuple[str, int], float] = {}
                for number, table in enumerate(tables):
                    plan = table.family.plan.model_copy(update={"seeds": seeds, "futility": futility})
                    found, taken = table.play(plan, np.random.default_rng((campaign, number)))
                    decided, runs = decided + found, runs | taken
                trained += sum(runs.values())
            beyond = "never" if futility is None else f"{futility * seeds:.0f}"
            row = f"{decided / CAMPAIGNS:.1f} | {trained / 60 / CAMPAIGNS:.1f} | {3600 * decided / trained:.0f}"
            print(f"| {seeds} | {beyond} | {row} |", flush=True)


def per_hour(root: Path, other: Path) -> None:
    """Print the table of RESULTS.md for a ledger that decided, and one of a fixed number of seeds."""
    families = planned_in(root)
    print("| design | decided | minutes of training | decided per hour |\n|---|---|---|---|")
    for name, place, count in (("by plan", root, by_plan), (f"{FIXED} seeds", other, by_fixed_seeds)):
        ledger = Ledger(place, writable=False)
        known = {record.cell: record for record in ledger.cells()}
        decided, cells = count(families, known.get)
        runs = {run for cell in cells for run in known[cell].runs}
        seconds = sum(record.seconds for record in ledger.runs() if record.run_id in runs)
        comparisons = sum(len(family.pairs) for family in families)
        print(f"| {name} | {decided} of {comparisons} | {seconds / 60:.1f} | {3600 * decided / seconds:.0f} |")


if __name__ == "__main__":
    try:
        if sys.argv[1:2] == ["--plans"]:
            other_plans(Path(sys.argv[-1]))
        elif len(sys.argv) > 1:
            per_hour(Path(sys.argv[1]), Path(sys.argv[-1]))
        else:
            main()
    except AuditError as error:
        sys.exit(str(error))
