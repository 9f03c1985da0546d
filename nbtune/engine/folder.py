"""A new run's folder, with all that its engine will look for in it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from nbtune.disk import disk_error
from nbtune.engine import objects
from nbtune.engine.job_files import Job
from nbtune.errors import NbtuneError, TrainError
from nbtune.spec import RunSpec
from nbtune.store import run_consent


def put_in(
    run: Path, spec: RunSpec, fill: Callable[[Path], None], *, detach: bool = False, job: Job | None = None
) -> None:
    """Put into a run's new folder what `fill` does; a job is given to Slurm, or kept for another tool. A folder that
    cannot be filled, or the job of which is refused, goes again."""
    try:
        fill(run)
        if spec.trust_remote_code:  # this user says it, here and now: what resumes this run later may know
            run_consent.allow_code(run, spec)
        objects.check_there(run, detach=detach)
        if job is not None:
            job.give(run, spec)
    except (NbtuneError, OSError) as error:
        shutil.rmtree(run, ignore_errors=True)
        if isinstance(error, NbtuneError):
            raise
        raise disk_error(error, TrainError, "the rows could not be written down", place=run.parent.name) from error
