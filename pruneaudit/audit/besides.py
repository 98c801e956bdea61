"""What an arm does beside deciding what goes: to be read wherever its verdict is."""

from __future__ import annotations

from pruneaudit.audit.evidence import Evidence, measured
from pruneaudit.ledger.records import own_training


@measured
def besides(arm: Evidence) -> list[str]:
    """What else may explain an arm's result, in sentences without a full stop; mostly nothing.

    Weights that change without an optimiser's steps, what a method trains beside the network or with an optimiser of
    its own, and what it adds to the loss of retraining.
    """
    name, found = arm.cell.method, []
    conduct = arm.prune.conduct if arm.prune is not None else None
    if conduct is not None:
        if conduct.declares_rewriting and conduct.rewritten:
            found.append(f"{name} rewrites {len(conduct.rewritten)} tensor(s) without training them, as it declares")
        found += [f"{name} {phrase}" for phrase in own_training(conduct.added)]
    _, acts, what = str(arm.result.hyper_parameters.get("method", "")).partition(": ")
    return [*found, f"{name} acts in retraining: {what}"] if acts else found
