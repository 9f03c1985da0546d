"""A real Slurm of two nodes on this machine, as root: munged, slurmctld and two slurmd of Debian's packages, in one
folder, on the loopback, ended with the test."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

NODES = ("one", "two")
PROGRAMS = ("sbatch", "srun", "squeue", "slurmctld", "slurmd", "munged")
_PATH = "/usr/sbin:/usr/bin"


def is_here() -> bool:
    """Whether a Slurm can be started: its programs are here, and this is root on Linux."""
    return hasattr(os, "geteuid") and os.geteuid() == 0 and all(shutil.which(p, path=_PATH) for p in PROGRAMS)


def _ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _config(folder: Path) -> str:
    control, *nodes = _ports(3)
    host = socket.gethostname()
    lines = [
        "ClusterName=test", f"SlurmctldHost={host}(127.0.0.1)", "SlurmUser=root", "SlurmdUser=root",
        f"SlurmctldPort={control}", f"AuthInfo=socket={folder}/munge.socket", f"StateSaveLocation={folder}/state",
        f"SlurmdSpoolDir={folder}/spool-%n", f"SlurmctldPidFile={folder}/ctld.pid", f"SlurmdPidFile={folder}/%n.pid",
        f"SlurmctldLogFile={folder}/ctld.log", f"SlurmdLogFile={folder}/%n.log", "ProctrackType=proctrack/linuxproc",
        "TaskPlugin=task/none", "SelectType=select/cons_tres", "SelectTypeParameters=CR_Core", "ReturnToService=2",
        "MailProg=/bin/true", "KillWait=5", "SlurmdTimeout=20", "SchedulerType=sched/backfill", "InactiveLimit=0",
        "AccountingStorageType=accounting_storage/none", "JobAcctGatherType=jobacct_gather/none", "MpiDefault=none",
        *(
            f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=2 State=UNKNOWN"
            for name, port in zip(NODES, nodes, strict=True)
        ),
        f"PartitionName=debug Nodes={','.join(NODES)} Default=YES MaxTime=INFINITE State=UP OverSubscribe=YES:8",
    ]  # fmt: skip
    return "\n".join(lines) + "\n"


@contextmanager
def cluster(folder: Path) -> Iterator[dict[str, str]]:
    """Lend a Slurm; what is given is what differs in the environment of its users."""
    for part in ("state", "munge", *(f"spool-{name}" for name in NODES)):
        (folder / part).mkdir(parents=True, mode=0o755)
    (folder / "slurm.conf").write_text(_config(folder))
    (folder / "cgroup.conf").write_text("CgroupAutomount=no\n")
    key = folder / "munge" / "key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    mine = {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": f"{_PATH}:{os.environ['PATH']}"}
    environment = {**os.environ, **mine}

    def start(*command: str) -> subprocess.Popen[bytes]:
        with (folder / f"{Path(command[0]).name}.out").open("ab") as out:
            return subprocess.Popen(command, env=environment, stdout=out, stderr=out, stdin=subprocess.DEVNULL)

    daemons = []
    try:
        daemons.append(
            start(
                *("/usr/sbin/munged", "--foreground", "--force", f"--key-file={key}"),
                *(f"--socket={folder}/munge.socket", f"--pid-file={folder}/munge.pid"),
                *(f"--seed-file={folder}/munge.seed", f"--log-file={folder}/munge.log"),
            )
        )
        _until(lambda: (folder / "munge.socket").exists(), folder)
        daemons.append(start("/usr/sbin/slurmctld", "-D", "-c"))
        daemons.extend(start("/usr/sbin/slurmd", "-D", "-N", name) for name in NODES)
        _until(lambda: _idle(environment) == len(NODES), folder)
        yield mine
    finally:
        subprocess.run(["/usr/bin/scancel", "--full", "-u", "root"], env=environment, check=False, timeout=30)
        for daemon in reversed(daemons):
            daemon.terminate()
        for daemon in reversed(daemons):
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()


def _idle(environment: dict[str, str]) -> int:
    done = subprocess.run(
        ["/usr/bin/sinfo", "-h", "-N", "-o", "%T"], env=environment, capture_output=True, text=True, check=False
    )
    return done.stdout.split().count("idle")


def _until(true: object, folder: Path, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not true():  # type: ignore[operator]
        if time.monotonic() > end:
            logs = "\n".join(f"{path.name}: {path.read_text(errors='replace')[-800:]}" for path in folder.glob("*.log"))
            raise AssertionError(f"Slurm does not come up:\n{logs}")
        time.sleep(0.2)
