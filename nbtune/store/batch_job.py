"""A run that waits in Slurm's queue, or works from there: its lock names the job, and `squeue` says where that is.

Nothing here schedules or watches machines: that is Slurm's work, which is asked now and then.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

from nbtune.atomic_io import read_json

JOB_FILE = "job.sbatch"  # in the folder of a run that was made for Slurm
JOB = "job"  # in a lock: the number of the job that will work on the run

_ASKED_AGAIN = 3.0  # seconds for which an answer of the queue holds
_PATIENCE = 20.0  # seconds that an answer may take
_ENDED = {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED"}
_ENDED |= {"REVOKED", "TIMEOUT"}
_answers: dict[str, tuple[float, str]] = {}  # job -> when it was asked, what its state was


def number_of(lock: Path) -> str | None:
    """Return the number of the job that a lock names; None: it names a process, or is not there."""
    job = (read_json(lock) or {}).get(JOB)
    return job if isinstance(job, str) and job.isascii() and job.isdigit() else None


def is_there(job: str) -> bool:
    """Return whether the job waits or works; where nobody can be asked, it does."""
    return state_of(job) not in _ENDED


def state_of(job: str) -> str:
    """Return what `squeue` says of a job, ``PENDING`` or ``RUNNING``; "": it cannot be asked here."""
    now = time.monotonic()
    asked, answer = _answers.get(job, (-_ASKED_AGAIN, ""))
    if now - asked >= _ASKED_AGAIN:
        answer = _ask(job)
        _answers[job] = (time.monotonic(), answer)
    return answer


def cancel(job: str) -> bool:
    """Take a job that has not begun out of the queue; False: that cannot be done here."""
    _answers.pop(job, None)
    done = _call("scancel", "--state=PENDING", job)
    return done is not None and done.returncode == 0


def _ask(job: str) -> str:
    done: Any = _call("squeue", "--noheader", f"--jobs={job}", "--format=%T")
    if done is None:
        return ""
    if done.returncode:  # it forgets a job minutes after its end; what else it may say is that it cannot answer
        return "COMPLETED" if "Invalid job id" in done.stderr else ""
    return next(iter(done.stdout.split()), "COMPLETED")


def _call(program: str, *arguments: str) -> subprocess.CompletedProcess[str] | None:
    """Return how one of Slurm's programs ended; None: it is not here, or does not answer."""
    path = shutil.which(program)
    if path is None:
        return None
    try:
        command = [path, *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
