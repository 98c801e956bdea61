"""Slurm: runs that are ready at one time are submitted as one array, each element ``pruneaudit run``. Imports no torch.

By ``sbatch``, ``squeue`` and ``scancel`` themselves: results are in the ledger, so that what a Python library for Slurm
does beyond them (pickled functions, and states asked of ``sacct``) is not needed; without accounting, such a library
never learns of a task that was cancelled. A task that is preempted and requeued is still in the queue: it goes on from
the run's last checkpoint, and counts as no loss.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Collection, Sequence
from pathlib import Path

from pruneaudit.campaign.executors.assignment import Assignment, Terms
from pruneaudit.campaign.executors.dispatch import Ended, RefusedError
from pruneaudit.errors import ConfigError
from pruneaudit.ledger.store import write_json

#: Elements of an array, at most: Slurm's own limit, where nobody changed it.
MOST = 1000
#: Seconds between looks at the queue: whoever asks more often is a burden to all users.
PAUSE = 2.0
#: Seconds that a command of Slurm may take.
_PATIENCE = 60.0
#: What ends a task that cannot succeed when it is tried again, see the command's exit codes.
_BAD_INPUT = "2:0"


def check(options: str) -> None:
    """See that jobs can be submitted from here.

    Args:
        options: Options of ``sbatch``, in the user's own words.

    Raises:
        ConfigError: They cannot, or the options are torn.
    """
    try:
        shlex.split(options)
    except ValueError as error:
        raise ConfigError(
            f"--audit-task {options}: {error}; give options of sbatch, such as '--partition=gpu'"
        ) from None
    lacking = [name for name in ("sbatch", "squeue", "scancel") if shutil.which(name) is None]
    if lacking:
        raise ConfigError(
            f"--audit-executor slurm: there is no {lacking[0]} here; start on a machine that submits jobs to Slurm"
        )


class Slurm:
    """Tasks as elements of Slurm's job arrays.

    Args:
        folder: Where their assignments are written, and what they print; all nodes see it.
        session: Id of the session: jobs are named by it.
        options: Options of ``sbatch``, in the user's own words.
    """

    def __init__(self, folder: Path, session: str, options: str = "") -> None:
        self._folder = folder
        self._name = f"pruneaudit-{session[:12]}"
        self._options = shlex.split(options)
        self._arrays = 0
        # Elements that are under way, as squeue names them, and their runs.
        self._under_way: dict[str, str] = {}
        # The last element of each run.
        self._tasks: dict[str, str] = {}

    def prepare(self, terms: Terms) -> None:
        """Nothing: each task is a process of its own."""

    def submit(self, assignments: Sequence[Assignment]) -> None:
        """Submit arrays, whose order is the assignments'."""
        for start in range(0, len(assignments), MOST):
            self._submit(assignments[start : start + MOST])

    def _submit(self, assignments: Sequence[Assignment]) -> None:
        self._arrays += 1
        ids = [assignment.spec.run_id for assignment in assignments]
        self._folder.mkdir(parents=True, exist_ok=True)
        for run_id, assignment in zip(ids, assignments, strict=True):
            write_json(self._folder / f"{run_id}.json", assignment.model_dump(mode="json", exclude_defaults=True))
        listed = self._folder / f"array-{self._arrays}.txt"
        listed.write_text("".join(f"{run_id}\n" for run_id in ids), encoding="ascii")
        where, python = shlex.quote(str(self._folder)), shlex.quote(sys.executable)
        script = (
            "#!/bin/sh\n"
            f'run=$(sed -n "$((SLURM_ARRAY_TASK_ID + 1))p" {shlex.quote(str(listed))})\n'
            f'exec {python} -m pruneaudit run {where}/"$run".json\n'
        )
        # One processor for each rank, unless the user says otherwise: options that come later win.
        ranks = max(assignment.spec.recipe.ranks for assignment in assignments)
        asked = ["--ntasks=1", f"--cpus-per-task={ranks}", "--requeue", *self._options]
        ours = [f"--array=0-{len(ids) - 1}", f"--job-name={self._name}", "--parsable", "--open-mode=append"]
        said = _slurm("sbatch", *asked, *ours, f"--output={self._folder}/%A_%a.log", script=script)
        # Of one cluster among several: JOB;CLUSTER.
        job = said.strip().partition(";")[0]
        if not job.isdigit():
            raise RefusedError(f"sbatch said no number of a job: {said.strip()[:200]}")
        tasks = {f"{job}_{number}": run_id for number, run_id in enumerate(ids)}
        self._under_way |= tasks
        self._tasks |= {run_id: task for task, run_id in tasks.items()}

    def ended(self, over: threading.Event) -> Collection[str]:
        """Runs whose tasks are in the queue no more."""
        if over.wait(PAUSE) or not self._under_way:
            return []
        try:
            listed = _slurm("squeue", "--noheader", "--array", f"--name={self._name}", "--format=%i").split()
        except RefusedError:
            # Its controller is busy, or starts again: jobs go on meanwhile.
            return []
        gone = self._under_way.keys() - set(listed)
        return [self._under_way.pop(task) for task in sorted(gone)]

    def cancel(self) -> None:
        """Cancel all arrays of the session."""
        if self._under_way:
            jobs = sorted({task.partition("_")[0] for task in self._under_way})
            # What is over cannot be cancelled, which is no mistake.
            subprocess.run(["scancel", *jobs], capture_output=True, timeout=_PATIENCE, check=False)

    def words(self) -> str:
        """Nothing."""
        return ""

    def how(self, run_id: str) -> Ended:
        """How a task ended: as Slurm remembers for some minutes, and the last line that it printed."""
        task = self._tasks[run_id]
        facts = ["Slurm tells no more of it"]
        exit_code = ""
        try:
            shown = _slurm("scontrol", "--oneliner", "show", "job", task)
        except RefusedError:
            pass
        else:
            found = dict(re.findall(r"(JobState|ExitCode|Reason)=(\S+)", shown))
            exit_code = found.get("ExitCode", "")
            facts = [f"{found.get('JobState', 'unknown')}, exit code {exit_code or 'unknown'}"]
            facts += [found["Reason"]] if found.get("Reason", "None") != "None" else []
        log = self._folder / f"{task}.log"
        said = _last_line(log)
        facts += [f"{log} ends with: {said}"] if said else []
        return Ended(f"Slurm's task {task}: {'; '.join(facts)}", lost=exit_code != _BAD_INPUT)


def _last_line(path: Path) -> str:
    """The last line of a file that is not blank; empty where there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 4096))
            lines = file.read().decode(errors="replace").split("\n")
    except OSError:
        return ""
    return next((line.strip()[:300] for line in reversed(lines) if line.strip()), "")


def _slurm(*command: str, script: str = "") -> str:
    """What a command of Slurm prints.

    Raises:
        RefusedError: It fails; the message is what it says.
    """
    try:
        done = subprocess.run(command, input=script, capture_output=True, text=True, timeout=_PATIENCE, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RefusedError(f"{command[0]}: {error}") from None
    if done.returncode:
        said = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
        raise RefusedError(f"{command[0]} refuses: {said}")
    return done.stdout
