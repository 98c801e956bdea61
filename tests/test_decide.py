"""Verdicts that are decided seed by seed, from training to the report: the same for any workers, killed and resumed."""

import json
import os
import signal
import subprocess
import time

from pruneaudit.audit.rounds import Family
from pruneaudit.ledger.progress import Watcher
from pruneaudit.ledger.records import VOLATILE
from pruneaudit.ledger.store import Ledger

MOST = 9
#: l2 and l2-global remove the same filters, l1 retrains at a hundredth of their rate, random removes others.
SESSION = (
    "suite/test_fairness.py", "--audit-workload", "tiny.toml", "-k", "tiny", "--audit-methods", "l2-global,l1,random",
    "--audit-against", "l2", "--audit-protocols", "s2", "--audit-decide", str(MOST),
)  # fmt: skip


def decided(arena, name, workers):
    """Run the session at a ledger of this name; bytes of its results."""
    folders = ("--audit-ledger", name, "--audit-report", f"{name}-report")
    outcome = arena.pytest(*SESSION, *folders, workers)
    assert outcome.code == 0, outcome.text
    return (arena.root / f"{name}-report" / "results.json").read_bytes()


def seeds_of(ledger, arm):
    return {record.seed for record in ledger.cells() if record.method == arm}


def killed(arena, name, when):
    """Start the session with two workers, and kill its controller as soon as something is so."""
    command = [arena.warm, "-m", "pytest", "-p", "no:cacheprovider", "-n2", *SESSION, "--audit-ledger", name]
    environ = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST_", "PRUNEAUDIT_"))}
    options = "--audit-figures none --audit-recheck 0 --audit-backend torch"
    own = {"PYTHONPATH": str(arena.root), "PYTEST_ADDOPTS": options}
    process = subprocess.Popen(
        command, cwd=arena.root, env=environ | own, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    deadline = time.monotonic() + 240
    while not when():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()


def test_two_arms_differ_and_two_do_not_whoever_trains_them(arena):
    alone = decided(arena, "alone", "-n0")
    ledger = Ledger(arena.root / "alone")
    rows = {row["arms"][0]: (row["verdict"], row["looks"]) for row in json.loads(alone)["verdicts"]}
    (family,) = ledger.planned(Family)
    plan = family.plan
    assert rows["l2-global"] == ("equivalent", plan.first_look)
    assert rows["l1"][0] == "worse" and plan.first_difference <= rows["l1"][1] <= MOST
    # What is decided takes no further seed, and alone nothing is trained that nobody looks at.
    assert seeds_of(ledger, "l2-global") == set(range(plan.first_look))
    assert seeds_of(ledger, "l1") == set(range(rows["l1"][1]))
    runs = {run for record in ledger.cells() for run in record.runs}
    assert ledger.finished() == runs

    # Two workers train ahead, two seeds at most and never beyond the plan; the results are the same to the last byte.
    assert decided(arena, "both", "-n2") == alone
    both = Ledger(arena.root / "both")
    assert {record.run_id: record.weights_digest for record in both.runs() if record.run_id in runs} == {
        record.run_id: record.weights_digest for record in ledger.runs()
    }
    assert runs <= both.finished()
    assert max(record.seed for record in both.runs()) < MOST

    # Killed in the middle of the rounds, and gone on with: nothing is looked at twice, nothing is left out.
    root = arena.root / "killed"
    killed(arena, "killed", lambda: len(list(root.glob("cells/*-seed6*"))) > 0)
    assert len(Ledger(root).finished()) < len(runs)
    resumed = json.loads(decided(arena, "killed", "-n2"))
    assert resumed["verdicts"] == json.loads(alone)["verdicts"]
    known = {record.run_id: record.model_dump(exclude=VOLATILE) for record in Ledger(root).runs()}
    assert all(known[record.run_id] == record.model_dump(exclude=VOLATILE) for record in ledger.runs())
    assert Ledger(root).planned(Family) == [family]
    assert Watcher(Ledger(root)).look().busy == ()
