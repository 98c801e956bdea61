"""How trainable a network is while it is retrained: the mean singular value of its Jacobian after every epoch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import FiniteFloat

from pruneaudit.audit.evidence import Evidence
from pruneaudit.catalog.discovery import Catalog
from pruneaudit.errors import ConfigError
from pruneaudit.ledger.records import NUMERICS_VERSION
from pruneaudit.ledger.store import Ledger
from pruneaudit.schema import Frozen
from pruneaudit.studies.kept import kept

if TYPE_CHECKING:
    from torch import nn

    from pruneaudit.training.runtime import Runtime


class Slopes(Frozen):
    """Mean singular values of the Jacobian along a retraining, before it and after each of its epochs.

    Attributes:
        running: In eval mode, where batch normalisation takes the statistics that it ran up.
        batch: In train mode, where it takes those of the batch; empty: the network has none.
    """

    running: list[FiniteFloat]
    batch: list[FiniteFloat]


def slopes_of(study: str, arm: Evidence, ledger: Ledger, catalog: Catalog, runtime: Runtime) -> Slopes:
    """Retrain an arm's network once more and look at it after every epoch; kept in the ledger.

    The second training must be the first one to the bit: what is looked at is then what was measured.

    Args:
        study: Name of the study, for errors.
        arm: What was measured of the arm.
        ledger: Where its runs are.
        catalog: Where its workload and method are found.
        runtime: Where it is trained.

    Raises:
        AuditError: It cannot be retrained here, or not to the same bits.
    """
    name = f"slopes-{NUMERICS_VERSION}"
    what = f"Jacobians along {arm.result.folder}"
    found = kept(ledger, study, name, arm.result.run_id, what, lambda: _measured(arm, ledger, catalog, runtime))
    return Slopes.model_validate(found)


def _measured(arm: Evidence, ledger: Ledger, catalog: Catalog, runtime: Runtime) -> dict[str, Any]:
    from pruneaudit.campaign.verification import compare, dataset_of, trained_again
    from pruneaudit.measure.trainability import jacobian, takes_batch_statistics

    record, before = arm.result, arm.prune
    where = f"{record.folder}: its Jacobians along retraining"
    if record.stage != "retrain" or before is None or before.jacobian is None:
        raise ConfigError(f"{where}: nothing was pruned and retrained there that takes images; leave per_epoch out")
    if record.recipe.ranks > 1:
        raise ConfigError(
            f"{where}: {record.recipe.ranks} ranks trained it, which show no network; leave per_epoch out"
        )
    runtime.prepare()
    dataset = dataset_of(catalog, runtime, record)
    running = [before.jacobian.mean]
    batch: list[float] = []

    def look(model: nn.Module, epoch: int) -> None:
        running.append(jacobian(model, dataset).mean)
        if before.jacobian_train is not None and takes_batch_statistics(model):
            batch.append(jacobian(model, dataset, batch_statistics=True).mean)

    again = compare(record, trained_again(ledger, catalog, runtime, record, look), tolerance=0.0)
    if again.word != "bit-identical":
        raise ConfigError(f"{where}: retrained again it is another network ({again.why}); leave per_epoch out")
    epochs = record.recipe.epochs or 0
    if len(running) != epochs + 1:
        raise ConfigError(f"{where}: what trains it shows no network after each epoch; leave per_epoch out")
    first = before.jacobian_train
    return {"running": running, "batch": [first.mean, *batch] if first is not None and batch else []}
