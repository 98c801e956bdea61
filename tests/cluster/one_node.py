"""A Slurm of one node in a folder: munge, slurmctld and slurmd of Debian's packages, started and ended by root."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "scancel", "scontrol")
PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge", "slurm-wlm-basic-plugins")
#: Seconds until it is given up that a daemon answers.
PATIENCE = 120.0

_CONFIGURATION = """
ClusterName=one
SlurmctldHost={host}
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/builtin
SchedulerParameters=sched_interval=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
MinJobAge=300
KillWait=2
ReturnToService=2
SlurmctldTimeout=300
SlurmdTimeout=300
MessageTimeout=60
NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=usual Nodes={node} Default=YES PriorityTier=1 PreemptMode=REQUEUE MaxTime=INFINITE State=UP
PartitionName=urgent Nodes={node} Default=NO PriorityTier=9 PreemptMode=OFF MaxTime=INFINITE State=UP
"""


def lacking() -> str | None:
    """Why there can be no Slurm here, in one line; None: there can."""
    if os.getuid() != 0:
        return "Slurm's daemons are started as root"
    if missing := [name for name in NEEDED if shutil.which(name) is None]:
        return f"no {', '.join(missing)} here: apt-get install {' '.join(PACKAGES)}"
    return None


@contextmanager
def slurm(folder: Path) -> Iterator[dict[str, str]]:
    """A running Slurm; gives the environment in which its commands find it.

    Args:
        folder: Where all of it is kept; users other than root can look into it.
    """
    for path in (folder, folder / "munge", folder / "state", folder / "spool"):
        path.mkdir(parents=True, exist_ok=True)
    munge = pwd.getpwnam("munge")
    (folder / "munge" / "key").write_bytes(os.urandom(128))
    os.chmod(folder / "munge" / "key", 0o400)
    for path in (folder / "munge", folder / "munge" / "key"):
        os.chown(path, munge.pw_uid, munge.pw_gid)
    host = socket.gethostname().partition(".")[0]
    (folder / "slurm.conf").write_text(
        _CONFIGURATION.format(host=host, node="node1", folder=folder, ports=_free_ports(2)), encoding="utf-8"
    )
    environment = {"SLURM_CONF": str(folder / "slurm.conf")}
    started: list[subprocess.Popen[bytes]] = []

    def start(*command: str, user: str | None = None) -> None:
        with (folder / "output.txt").open("ab") as output:
            started.append(
                subprocess.Popen(
                    command, env=os.environ | environment, stdout=output, stderr=output, user=user, group=user
                )
            )

    try:
        # The socket's folder belongs to munge; all may ask it.
        os.chmod(folder / "munge", 0o755)
        start(
            "munged", "--foreground", "--force", f"--key-file={folder}/munge/key", f"--socket={folder}/munge/socket",
            f"--pid-file={folder}/munge/pid", f"--log-file={folder}/munge/log", f"--seed-file={folder}/munge/seed",
            user="munge",
        )  # fmt: skip
        _wait(lambda: (folder / "munge" / "socket").exists(), folder, started)
        start("slurmctld", "-D", "-c")
        start("slurmd", "-D", "-N", "node1")
        _wait(lambda: "idle" in _said(environment, "sinfo", "-h", "-o", "%t"), folder, started)
        yield environment
    finally:
        subprocess.run(["scancel", "--user=root"], env=os.environ | environment, capture_output=True, check=False)
        for process in reversed(started):
            process.terminate()
        for process in reversed(started):
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _said(environment: dict[str, str], *command: str) -> str:
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, check=False)
    return done.stdout


def _wait(condition: Callable[[], bool], folder: Path, started: list[subprocess.Popen[bytes]]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        if time.monotonic() > deadline or any(process.poll() is not None for process in started):
            said = [path.read_text(errors="replace")[-1500:] for path in (folder / "output.txt", *folder.glob("*.log"))]
            raise RuntimeError("Slurm does not start: " + "\n".join(said))
        time.sleep(0.2)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()
