"""Stored weights are evaluated again before a report is judged, once for each record, in a process of its own.

No method is imported there, and nothing of the process that trained is left. Who reports waits for some seconds at
most; what was not reached then is evaluated for the next report. Imports no torch.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from pruneaudit.campaign.asking import asked
from pruneaudit.catalog.discovery import Catalog
from pruneaudit.errors import AuditError, one_line
from pruneaudit.ledger.records import RunRecord
from pruneaudit.ledger.store import Ledger

#: A long session waits for evaluations for this share of its time, however short its patience is.
SHARE = 0.01
#: Seconds besides, in which the process starts and ends what it began.
_GRACE = 120.0


@dataclass
class Rechecked:
    """What came of evaluating stored weights again.

    Attributes:
        total: Runs that are judged.
        new: Those that were evaluated now, and agree.
        left: Those that nobody has evaluated again so far.
        wrong: What contradicts a record, one line each.
        reason: Why one of those that are left was not evaluated; empty: there was no time.
    """

    total: int = 0
    new: int = 0
    left: int = 0
    wrong: list[str] = field(default_factory=list)
    reason: str = ""

    def contradictions(self) -> list[str]:
        """Records that are not judged, one line each."""
        return [f"not judged, since its stored weights give something else: {line}" for line in self.wrong]

    def lines(self) -> list[str]:
        """What a reader must know, contradictions first; nothing where nothing was done."""
        found = self.contradictions()
        if self.new:
            found.append(f"stored weights of {self.new} run(s) were evaluated again: they give what their records say")
        if self.left:
            why = self.reason or "there was no time; the next report goes on"
            found.append(f"stored weights of {self.left} of {self.total} run(s) were not evaluated again: {why}")
        return found


def recheck(
    ledger: Ledger,
    catalog: Catalog,
    records: Iterable[RunRecord],
    seconds: float,
    device: str = "cpu",
    data_root: str | None = None,
) -> Rechecked:
    """Evaluate the stored weights of runs that nobody evaluated since their records were written.

    Records that they contradict are read no more (:meth:`Ledger.remember_checks`).

    Args:
        ledger: Where they are; it remembers what was found.
        catalog: Where their workloads are found.
        records: The runs.
        seconds: Time for evaluations; 0: nothing is evaluated, and nothing said.
        device: Where it is computed.
        data_root: Folder of datasets; None: what the environment says.
    """
    runs = {record.run_id: record for record in records}
    if seconds <= 0:
        return Rechecked()
    fresh = [record for record in runs.values() if not ledger.is_checked(record)]
    # What a GPU is needed for takes minutes elsewhere.
    workloads = catalog.workloads
    todo = [
        record.run_id
        for record in fresh
        if record.workload in workloads and (device == "cuda" or not workloads[record.workload].gpu)
    ]
    found = Rechecked(len(runs))
    if len(todo) < len(fresh):
        found.reason = "their workloads are not here, or need a GPU"
    done: list[tuple[RunRecord, str]] = []
    job = {
        "ledger": str(ledger.root),
        "root": str(catalog.root),
        "workloads": list(catalog.extra_workloads),
        "runs": todo,
        "seconds": seconds,
        "device": device,
        "data_root": data_root,
    }
    for said in asked(__name__, job, seconds + _GRACE) if todo else ():
        if said.get("run") not in todo:
            continue
        if said["word"] == "not evaluated":
            found.reason = str(said["why"])
            continue
        record = runs[said["run"]]
        done.append((record, str(said["why"])))
        if said["why"]:
            found.wrong.append(f"{record.folder}: {said['why']}")
        else:
            found.new += 1
    ledger.remember_checks(done)
    found.left = len(fresh) - len(done)
    return found


def main() -> None:
    """Evaluate what standard input names, and write a line of JSON for each run."""
    from pruneaudit.campaign.verification import contradiction
    from pruneaudit.training.runtime import Runtime
    from pruneaudit.workloads.data import data_root

    job = json.load(sys.stdin)
    # What user's code prints is no word of ours.
    out, sys.stdout = sys.stdout, sys.stderr
    ledger = Ledger(Path(job["ledger"]), writable=False)
    catalog = Catalog(root=Path(job["root"]), extra_workloads=tuple(job["workloads"]))
    runtime = Runtime(job["device"], data_root(job["data_root"]))
    runtime.prepare()
    began = time.monotonic()
    for run in job["runs"]:
        word, why = "evaluated", ""
        try:
            record = ledger.get(run)
            weights = ledger.digest_on_disk(record)
            if not weights:
                word, why = "not evaluated", "their files are not here"
            elif weights != record.weights_digest:
                why = "its weights changed after the run wrote them"
            elif record.precision == "bf16" and record.device != runtime.device:
                word, why = "not evaluated", f"in bf16 a {runtime.device} gives other answers"
            else:
                why = contradiction(ledger, catalog, runtime, record)
        except Exception as error:
            word = "not evaluated"
            why = str(error) if isinstance(error, AuditError) else one_line(error)
        print(json.dumps({"run": run, "word": word, "why": why}), file=out, flush=True)
        # One is evaluated whatever the time: reports come to an end with it.
        if time.monotonic() - began > job["seconds"]:
            return
