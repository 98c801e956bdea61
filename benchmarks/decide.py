"""Seeds until a comparison is decided, against a fixed number of them and against an e-process; simulated, seconds.

python benchmarks/decide.py
"""

from __future__ import annotations

import numpy as np

from pruneaudit.audit.sequential import Plan, stops

SEEDS = 20
SIMULATED = 600
#: True mean differences, in standard deviations of the paired differences.
EFFECTS = (0.5, 1.0, 2.0, 4.0)
FAMILIES = (1, 3, 12)


def planned(gaps: np.ndarray, alpha: float) -> np.ndarray:
    """Looks at which differences ``[C, n]`` stop by a plan of one comparison at this level; 0: never."""
    return stops(Plan(seeds=SEEDS, comparisons=1, margin=1.0, alpha=alpha), gaps)[:, 0]


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


def main() -> None:
    """Print the table of RESULTS.md."""
    random = np.random.default_rng(0)
    noise = random.normal(size=(SIMULATED, SEEDS))
    print(
        "| comparisons | difference, spreads | decided | mean seeds | fixed seeds of that power | ratio | e-process |"
    )
    print("|---|---|---|---|---|---|---|")
    for family in FAMILIES:
        alpha = 0.05 / family
        for effect in EFFECTS:
            gaps = noise + effect
            looks = planned(gaps, alpha)
            power = float((looks > 0).mean())
            mean = float(np.where(looks > 0, looks, SEEDS).mean())
            same = next((n for n in range(6, SEEDS + 1) if fixed(gaps, alpha, n) >= power - 0.01), SEEDS)
            bets = e_process(gaps, alpha)
            other = f"{(bets > 0).mean():.0%}, {np.where(bets > 0, bets, SEEDS).mean():.1f}"
            print(
                f"| {family} | {effect:g} | {power:.0%} | {mean:.1f} | {same} | {mean / same:.2f} | {other} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
