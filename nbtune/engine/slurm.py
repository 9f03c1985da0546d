"""A run as a job of Slurm: the file that `sbatch` takes, made from a few options, kept in the run's folder and sent.

    nbtune submit demo.yaml --slurm partition=gpu,nodes=2,gpus=8

The job starts `nbtune.engine.node` once on each node (torchrun and a last word); the processes of all nodes meet at the
first one. The run is a run as any other: its folder, which all nodes must see, has its events, and takes its wishes.
Who waits, where and for how long is Slurm's to say.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nbtune import events
from nbtune.atomic_io import write_json, write_text
from nbtune.errors import SpecError, TrainError
from nbtune.spec import RunSpec
from nbtune.store import batch_job
from nbtune.store.batch_job import JOB_FILE
from nbtune.store.event_log import add_event
from nbtune.store.lock import STARTING, lock_for_job
from nbtune.untrusted import harmless

_NAMES = r"[\w.,+@:/-]+"
_OPTIONS: dict[str, tuple[str, str]] = {  # what a person writes -> sbatch's own option, and what its value may be
    "nodes": ("nodes", r"[1-9]\d{0,3}"),
    "gpus": ("gpus-per-node", r"([A-Za-z][\w.-]*:)?[1-9]\d{0,2}"),
    "partition": ("partition", _NAMES),
    "account": ("account", _NAMES),
    "qos": ("qos", _NAMES),
    "reservation": ("reservation", _NAMES),
    "time": ("time", r"[\d:-]+|UNLIMITED|INFINITE"),
    "mem": ("mem", r"\d+[KMGT]?"),
    "cpus": ("cpus-per-task", r"[1-9]\d{0,3}"),
    "constraint": ("constraint", r"[\w.,+@:/&|()\[\]*-]+"),
    "nodelist": ("nodelist", r"[\w.,\[\]-]+"),
    "exclude": ("exclude", r"[\w.,\[\]-]+"),
}
_FREE_PORT = 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])'
_WARNING = 120  # seconds before the end of its time in which the run may stop and save


@dataclass(frozen=True)
class Job:
    """What a job asks Slurm for.

    Args:
        options: as a person writes them, each of its name's shape.
        processes: on each node; as many GPUs, unless the run is on the CPU.
        sent: it is given to Slurm at once.
    """

    options: Mapping[str, str]
    processes: int
    sent: bool = True

    @classmethod
    def of(cls, given: str | Mapping[str, Any] | list[str], spec: RunSpec) -> Job:
        """Read options: ``"partition=gpu,nodes=2,gpus=8"``, several such texts, or a mapping.

        >>> Job.of("partition=gpu,nodes=2,gpus=a100:8", RunSpec(data="rows")).processes
        8

        Raises:
            SpecError: an option is not known, or its value has not its shape.
        """
        options = read(given)
        for name, value in options.items():
            _check(name, value)
        processes = processes_of(options, spec)
        if not processes:
            raise SpecError(
                "`gpus: all` does not say how many a node has", place="--slurm", fix="write `--slurm …,gpus=8`"
            )
        return cls(options, processes)

    @property
    def nodes(self) -> int:
        """How many machines."""
        return int(self.options.get("nodes", "1"))

    def text(self, folder: Path, spec: RunSpec) -> str:
        """Return the job's file."""
        return script(folder, spec, self)

    def give(self, folder: Path, spec: RunSpec) -> None:
        """Write the file into the run's folder, and give it to Slurm unless that is not asked for."""
        keep(folder, spec, self)
        say_which_counts(folder, self.options, spec)
        if self.sent:
            send(folder)
        else:
            hold(folder, "as you asked")

    def directives(self, spec: RunSpec) -> list[str]:
        """Return the lines that `sbatch` reads. Each value has the shape of its option: no blank, no quote, no line's
        end."""
        on_cpu = spec.device == "cpu"
        asked = {"nodes": "1"} | ({} if on_cpu else {"gpus": str(self.processes)}) | dict(self.options)
        if on_cpu:
            asked.pop("gpus", None)
        return [f"#SBATCH --{_OPTIONS[name][0]}={asked[name]}" for name in _OPTIONS if name in asked]


def read(given: str | Mapping[str, Any] | list[str]) -> dict[str, str]:
    """Return options by their names.

    Raises:
        SpecError: one has no value, or two.
    """
    if isinstance(given, Mapping):
        return {str(name): str(value) for name, value in given.items()}
    options: dict[str, str] = {}
    last = ""
    for word in ",".join([given] if isinstance(given, str) else given).split(","):
        name, equals, value = word.partition("=")
        if equals:
            last = name.strip()
            if last in options:
                raise SpecError(f"`{shown(last)}` is given twice", place="--slurm", fix="leave one out")
            options[last] = value.strip()
        elif last and word:
            options[last] += f",{word}"  # a list of names, as sbatch takes it
        elif word.strip():
            raise SpecError(
                f"`{shown(word)}` has no value", place="--slurm", fix="write `partition=gpu,nodes=2,gpus=8`"
            )
    return options


def _check(name: str, value: str) -> None:
    if name not in _OPTIONS:
        raise SpecError(
            f"`{shown(name)}` is none of the options that a job takes",
            place="--slurm",
            fix=f"they are {', '.join(_OPTIONS)}; any other goes by hand into the file that `--print` shows",
        )
    check_shape(name, value, _OPTIONS[name][1], place="--slurm", fix=_FIXES.get(name, _PLAIN))


def check_shape(name: str, value: str, shape: str, *, place: str, fix: str) -> None:
    """Refuse a value that has not its option's shape, a regular expression of the whole: it becomes part of a file that
    others execute.

    Raises:
        SpecError: see above.
    """
    if not re.fullmatch(shape, value, re.ASCII):
        raise SpecError(f"{shown(value)!r} cannot be a job's `{name}`", place=place, fix=fix)


def processes_of(options: Mapping[str, str], spec: RunSpec) -> int:
    """Return how many processes each machine has: by a job's option `gpus`, else by the spec's; 0: neither says."""
    asked = options.get("gpus", "").rpartition(":")[2]
    if asked:
        return int(asked)
    return len(spec.gpus) if isinstance(spec.gpus, tuple) else spec.gpus if isinstance(spec.gpus, int) else 0


def say_which_counts(folder: Path, options: Mapping[str, str], spec: RunSpec) -> None:
    """Say that a job's `gpus` are not those that its spec asks for, where that is so."""
    asked = options.get("gpus", "")
    if not asked or "gpus" not in spec.model_fields_set or spec.gpus in ("all", int(asked.rpartition(":")[2])):
        return
    theirs = list(spec.gpus) if isinstance(spec.gpus, tuple) else spec.gpus
    add_event(folder, events.Warning(message=f"`gpus={asked}` of the job counts, not `gpus: {theirs}` of the spec"))


_PLAIN = "names are letters, digits and . , + @ : / - _"
_FIXES = {"nodes": "write a number", "gpus": "write a number, or a kind and a number: `a100:8`"} | {
    "time": "write minutes, `hours:minutes:seconds` or `days-hours`",
    "mem": "write a number with K, M, G or T",
    "cpus": "write a number",
}


def shown(text: str) -> str:
    """Return a person's words as a message may repeat them."""
    return harmless(text[:60], line=True)


def script(folder: Path, spec: RunSpec, job: Job) -> str:
    """Return the file that `sbatch` takes for a run's folder."""
    return f"""#!/bin/bash
# The run {folder.name} as a job of Slurm. `nbtune resume {folder.name}` sends it again; change it as you like.
#SBATCH --job-name={folder.name}
#SBATCH --ntasks-per-node=1
#SBATCH --signal=B:USR1@{_WARNING}
{chr(10).join(job.directives(spec))}

python={shlex.quote(sys.executable)}
run={shlex.quote(str(folder))}

# at the job's end its lock goes; shortly before its time is over, the run stops and is saved
end() {{ if grep -qs "\\"${{SLURM_JOB_ID:-none}}\\"" "$run/{STARTING}"; then rm -f "$run/{STARTING}"; fi; }}
trap end EXIT
trap '"$python" -m nbtune stop "$run"' USR1

# the processes meet at this node, at a free port, by a word that only they know
PET_RDZV_ID=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \\n')
export PET_RDZV_ID
port=$("$python" -c {shlex.quote(_FREE_PORT)})
[ -z "${{SLURM_CPUS_PER_TASK:-}}" ] || export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"

srun --kill-on-bad-exit=1 "$python" -m nbtune.engine.node "$run" \\
  --nnodes {job.nodes} --nproc-per-node {job.processes} \\
  --rdzv-backend c10d --rdzv-endpoint "$(hostname):$port" &
work=$!
while :; do
  wait "$work"
  code=$?
  kill -0 "$work" 2>/dev/null || exit "$code"
done
"""


def check_path(folder: Path) -> None:
    """Refuse a run's folder whose path cannot stand in a job's file.

    Raises:
        TrainError: see above.
    """
    if not str(folder).isprintable():
        raise TrainError("the path of the runs has characters that no job's file can hold", fix="use `--runs DIR`")


def keep(folder: Path, spec: RunSpec, job: Job) -> None:
    """Write the job's file into the run's folder.

    Raises:
        TrainError: its path cannot stand in such a file.
    """
    check_path(folder)
    write_text(folder / JOB_FILE, script(folder, spec, job))


def hold(folder: Path, why: str) -> None:
    """Say that the run waits for somebody to send it, and how."""
    line = f"sbatch {shlex.quote(os.path.relpath(folder / JOB_FILE))}"
    add_event(folder, events.State(state="stopped", detail=f"not sent, {why}: {line}"))


def send(folder: Path) -> str | None:
    """Give the run's job to Slurm and return its number; None where there is no `sbatch`: the run says what to do.

    Raises:
        TrainError: Slurm refuses it; its own words are said.
    """
    sbatch = shutil.which("sbatch")
    if sbatch is None:
        hold(folder, "there is no `sbatch` here")
        return None
    log = str(folder / "slurm-").replace("%", "%%") + "%j.log"
    command = [sbatch, "--parsable", f"--output={log}", str(folder / JOB_FILE)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        trouble = done.stderr
    except (OSError, subprocess.TimeoutExpired) as error:
        done, trouble = None, str(error)
    number = done.stdout.strip().partition(";")[0] if done is not None and done.returncode == 0 else ""
    if not number.isdigit():
        why = harmless(" ".join(trouble.split())[-300:], line=True)
        add_event(folder, events.State(state="failed", detail=f"Slurm does not take the job: {why}"))
        raise TrainError(
            f"Slurm does not take the job: {why}", place=f"{folder.name}/{JOB_FILE}", fix="change `--slurm`"
        )
    write_json(folder / STARTING, lock_for_job(folder, number))
    add_event(folder, events.State(state="queued", detail=f"job {number} of Slurm"))
    return number


def withdraw(folder: Path) -> None:
    """Take a run's job out of the queue, where it waits there."""
    number = batch_job.number_of(folder / STARTING)
    if number is None or batch_job.state_of(number) != "PENDING" or not batch_job.cancel(number):
        return
    (folder / STARTING).unlink(missing_ok=True)
    add_event(folder, events.State(state="stopped", detail=f"job {number} of Slurm was taken out of the queue"))
