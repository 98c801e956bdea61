"""Are the numbers of a ledger what its runs give? Stored weights are evaluated again, and runs trained again.

Each run is trained from its parent as the ledger has it, in a ledger of its own that is thrown away: what is wrong is
found where it is, and not in all that stands on it.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from pruneaudit.campaign.export import network_of
from pruneaudit.campaign.stages import Stages
from pruneaudit.catalog.discovery import Catalog
from pruneaudit.catalog.settings import TOGETHER
from pruneaudit.errors import AuditError, ConfigError, DamagedError, one_line
from pruneaudit.ledger.choices import CHOSEN
from pruneaudit.ledger.records import MEASURED_LATER, VOLATILE, RunRecord, Stage, pack, unpack
from pruneaudit.ledger.store import Ledger
from pruneaudit.measure.metric import Measure
from pruneaudit.training.loop import Observer
from pruneaudit.training.precision import place
from pruneaudit.training.runtime import Runtime
from pruneaudit.workloads.data import Dataset, load

#: ``bit-identical``: all that was measured is the same, to the last bit of the weights. ``within tolerance``: the
#: result differs by no more than is asked for. ``different``: by more. ``forged``: the record says what its own weights
#: do not give, or is not as it was written. ``not verified``: it cannot be trained or evaluated here. ``weights
#: agree``: its weights give what it says, and it was not trained again.
Word = Literal["bit-identical", "within tolerance", "different", "forged", "not verified", "weights agree"]
#: Words that a ledger should not have.
WRONG: tuple[Word, ...] = ("different", "forged")
#: Points of the metric that two trainings may differ by, unless told otherwise: margin of the protocols.
TOLERANCE = 0.5
#: Relative difference of a metric that is no share of images, by rounding.
_CLOSE = 0.01
#: Test images that rounding may decide otherwise where the stored weights are evaluated on another machine: one of so
#: many, and at least one.
_ROUNDED = 2000
_STAGES = get_args(Stage)


@dataclass(frozen=True)
class Verified:
    """What came out for a run.

    Attributes:
        run: Its folder's name.
        word: In one word.
        why: What differs, and what may explain it; empty: nothing does.
    """

    run: str
    word: Word
    why: str = ""


def verify(
    ledger: Ledger,
    catalog: Catalog,
    runtime: Runtime,
    runs: Iterable[str] = (),
    tolerance: float | None = None,
    retrain: bool = True,
) -> Iterator[Verified]:
    """Evaluate what runs stored, and train them again; records that cannot be read come first.

    Args:
        ledger: The ledger; it is only read.
        catalog: Where workloads and methods are found; foreign methods run in processes of their own where it says so.
        runtime: Where it is trained.
        runs: Ids, or how they begin; empty: all.
        tolerance: Difference of the result that is no difference, in the metric's unit; None: the metric's own margin,
            or half a percentage point.
        retrain: Whether to train again; else stored weights are evaluated, which takes seconds.

    Raises:
        ConfigError: There is no such run.
    """
    runtime.prepare()
    every = list(ledger.runs())
    wanted = tuple(runs)
    unreadable = {path.parent.name: problem for path, problem in ledger.damaged.items()}
    for begin in wanted:
        known = [record.run_id for record in every] + [name.rpartition("-")[2] for name in unreadable]
        if not any(run_id.startswith(begin) for run_id in known):
            raise ConfigError(
                f"ledger {ledger.root}: no run with an id that begins with '{begin}'; see `pruneaudit runs`"
            )

    def is_wanted(run_id: str) -> bool:
        return not wanted or run_id.startswith(wanted)

    for name, problem in sorted(unreadable.items()):
        if is_wanted(name.rpartition("-")[2]):
            edited = ": edited" in problem or "moved here" in problem
            yield Verified(name, "forged" if edited else "not verified", problem)
    for record in sorted(every, key=lambda one: (_STAGES.index(one.stage), one.folder)):
        if is_wanted(record.run_id):
            try:
                yield _verify(ledger, catalog, runtime, record, tolerance, retrain)
            except (AuditError, OSError) as error:
                yield Verified(record.folder, "not verified", one_line(error))


def _verify(
    ledger: Ledger, catalog: Catalog, runtime: Runtime, record: RunRecord, tolerance: float | None, retrain: bool
) -> Verified:
    try:
        wrong = contradiction(ledger, catalog, runtime, record)
    except DamagedError as error:
        return Verified(record.folder, "forged", str(error))
    if wrong:
        return Verified(record.folder, "forged", wrong)
    if not retrain:
        return Verified(record.folder, "weights agree")
    again = trained_again(ledger, catalog, runtime, record)
    return compare(record, again, _margin(catalog, record) if tolerance is None else tolerance)


def trained_again(
    ledger: Ledger, catalog: Catalog, runtime: Runtime, record: RunRecord, observer: Observer | None = None
) -> RunRecord:
    """Train a run once more from its parent as the ledger has it, in a ledger that is thrown away.

    Args:
        ledger: The ledger; it is only read.
        catalog: Where its workload and method are found.
        runtime: Where it is trained.
        record: The run.
        observer: Looks at the network after every epoch, if it is retrained; or None.

    Raises:
        AuditError: It cannot be trained here.
    """
    with tempfile.TemporaryDirectory(prefix="pruneaudit-verify-") as folder:
        beside = Ledger(Path(folder))
        for parent in ledger.above(record):
            beside.commit(parent, ledger.weights_file(parent))
        return Stages(beside, catalog, runtime, observer).execute(record.spec)


def contradiction(ledger: Ledger, catalog: Catalog, runtime: Runtime, record: RunRecord) -> str:
    """What of a record its stored weights contradict, evaluated on the test split; nothing where they agree.

    Raises:
        DamagedError: The weights are not those that the run wrote.
        ConfigError: The data are other ones here.
    """
    workload = catalog.workload(record.workload)
    dataset = dataset_of(catalog, runtime, record)
    model = place(network_of(ledger, catalog, record), runtime.device, record.precision)
    measure = Measure.of(workload.metric, workload.folder)
    score = measure.evaluate(model, dataset, dataset.test, record.precision)
    # Of texts, tokens.
    images = len(score.correct)
    rounded = max(1, images // _ROUNDED)
    if abs(score.accuracy - record.accuracy) > 100 * rounded / images + 1e-9:
        return (
            f"its weights get {score.accuracy:.2f} % of the test images right; the record says {record.accuracy:.2f} %"
        )
    unlike = (unpack(pack(score.correct), images) ^ unpack(record.correct, images)).bit_count()
    if unlike > rounded:
        return f"its weights get other test images right than the record says: {unlike} of {images} differ"
    if measure.name == record.metric and not math.isclose(measure.value(score), record.value, rel_tol=_CLOSE):
        return f"its weights give {measure.name} {measure.value(score):g}, and the record says {record.value:g}"
    return ""


def dataset_of(catalog: Catalog, runtime: Runtime, record: RunRecord) -> Dataset:
    """The data of a run.

    Raises:
        ConfigError: They are other ones here.
    """
    # Where a user's data are found is no part of a record.
    data = record.data.model_copy(update={"folder": catalog.workload(record.workload).data.folder})
    dataset = load(data, runtime.data_root, runtime.download, runtime.device)
    if dataset.split_digest != record.split_digest:
        raise ConfigError("its data are other ones here")
    return dataset


def _margin(catalog: Catalog, record: RunRecord) -> float:
    return catalog.workload(record.workload).metric.margin_under(TOLERANCE)


def compare(stored: RunRecord, again: RunRecord, tolerance: float) -> Verified:
    """What two trainings of one run have in common.

    Args:
        stored: As the ledger has it.
        again: As it was trained now.
        tolerance: Difference of the result that is no difference, in the metric's unit.
    """
    ours, theirs = (one.model_dump(mode="json", exclude=set(VOLATILE)) for one in (stored, again))
    differ = [name for name in ours if not _alike(ours[name], theirs[name], name)]
    if not differ:
        return Verified(stored.folder, "bit-identical")
    apart = abs(stored.value - again.value)
    word: Word = "within tolerance" if apart <= tolerance else "different"
    named = ", ".join(differ[:4]) + (f" and {len(differ) - 4} more" if len(differ) > 4 else "")
    why = f"{stored.value:.2f} in the ledger, {again.value:.2f} now; other values of {named}"
    return Verified(stored.folder, word, f"{why}; {explanation(stored, again)}")


def _alike(one: Any, other: Any, name: str) -> bool:
    return bool(one == other) or (name in MEASURED_LATER and not (one and other))


def explanation(stored: RunRecord, again: RunRecord) -> str:
    """What may explain that two trainings of one run differ: what they were made with."""
    unlike = differences(stored.environment, again.environment)
    if stored.device != again.device:
        unlike.insert(0, f"device {stored.device} and {again.device}")
    if stored.kind is not None and again.kind is not None:
        # Of one name, version and kernel, processors still compute otherwise.
        unlike += [part for part in stored.kind.differences(again.kind) if part not in unlike]
    if unlike:
        return f"it was made with {', '.join(unlike)}"
    if stored.backend in TOGETHER:
        return f"versions and hardware are the same; with {stored.backend} last bits depend on what trained beside it"
    return "versions and hardware are the same: something is drawn that no seed fixes, or somebody made the record"


def differences(stored: Mapping[str, str], again: Mapping[str, str]) -> list[str]:
    """What of two environments differs, and can change numbers, each as ``name then and now``."""
    names = dict.fromkeys([*stored, *again])
    return [
        f"{name} {stored.get(name, 'none')} and {again.get(name, 'none')}"
        for name in names
        if stored.get(name) != again.get(name) and name != CHOSEN
    ]
