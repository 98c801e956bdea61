"""Seeds until a comparison is decided, against a fixed number of them and against an e-process; simulated, seconds.

python benchmarks/decide.py
"""

from __future__ import annotations

import numpy as np

from pruneaudit.audit.sequential import Plan, stops
from pruneaudit.audit.statistics import seeds_needed

SIMULATED = 400
#: True mean differences, in standard deviations of the paired differences, and seeds at most of the plans for them.
EFFECTS = {0.5: (20, 60, 100), 1.0: (20, 40), 2.0: (20, 40), 4.0: (20, 40)}
FAMILIES = (1, 3, 12)


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


if __name__ == "__main__":
    main()
