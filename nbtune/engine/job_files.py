"""A run as a job of another tool: a file for SkyPilot, Kubeflow's Trainer or Hugging Face Jobs, in the run's folder.

    nbtune submit demo.yaml --job skypilot,gpus=H100:8
    nbtune submit demo.yaml --job kubeflow,nodes=2,gpus=8,volume=runs,image=registry/nbtune
    nbtune submit demo.yaml --job hf-jobs,flavor=a100-large,push=me/demo

Nothing is sent: the run's last word is the line that does. Machines, queues and starting again are those tools' work;
what they start is what `torchrun` and `gpus:` start (`nbtune.engine.node`), on the run's folder.
"""

from __future__ import annotations

import base64
import io
import re
import shlex
import tarfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from nbtune import __version__, events
from nbtune.atomic_io import write_text
from nbtune.data.sources.rows import Source
from nbtune.engine import slurm
from nbtune.errors import SpecError, TrainError
from nbtune.spec import RunSpec
from nbtune.store.event_log import add_event

_NAME = r"[A-Za-z0-9][\w.-]{0,62}"
_COUNT = r"[1-9]\d{0,3}"
_MOST = 700_000  # bytes of a run's folder, packed, that a script may carry
_PORT = 29500


@dataclass(frozen=True)
class _Kind:
    """A tool: its file, the line that takes it, its options with their shapes, which of them must be given."""

    file: str
    line: str
    options: Mapping[str, str]
    needed: tuple[str, ...]
    text: Callable[[Path, RunSpec, ExportedJob], str]


@dataclass(frozen=True)
class ExportedJob:
    """What a job asks another tool for.

    Args:
        kind: a name of `KINDS`.
        options: as a person writes them, each of its name's shape.
        processes: on each machine.
        sent: nothing is sent, whatever it says.
    """

    kind: str
    options: Mapping[str, str]
    processes: int
    sent: bool = False

    @property
    def nodes(self) -> int:
        """How many machines."""
        return int(self.options.get("nodes", "1"))

    def text(self, folder: Path, spec: RunSpec) -> str:
        """Return the file."""
        return KINDS[self.kind].text(folder, spec, self)

    def give(self, folder: Path, spec: RunSpec) -> None:
        """Write the file into the run's folder, and say how it is sent."""
        slurm.check_path(folder)
        kind, text = KINDS[self.kind], self.text(folder, spec)
        write_text(folder / kind.file, text)
        slurm.say_which_counts(folder, self.options, spec)
        line = kind.line.format(file=shlex.quote(str(folder / kind.file)), **self.options)
        add_event(folder, events.State(state="stopped", detail=f"not sent: {line}"))


Job = slurm.Job | ExportedJob


def job_of(asked: str | Mapping[str, Any] | list[str], spec: RunSpec) -> Job:
    """Return the job that options mean for a spec: another tool's where they begin with its name, else Slurm's.

    >>> job_of("skypilot,gpus=H100:8", RunSpec(data="rows")).processes
    8

    Raises:
        SpecError: an option is not known, lacks, or its value has not its shape.
    """
    text = asked if isinstance(asked, str) else ",".join(asked) if isinstance(asked, list) else ""
    name, _, rest = (part.strip() for part in text.partition(","))
    kind = KINDS.get(name)
    if "=" in name or not name or (kind is None and not rest):
        return slurm.Job.of(asked, spec)
    if kind is None:
        names = ", ".join(KINDS)
        raise SpecError(f"`{slurm.shown(name)}` is no tool that a job's file is made for", place="--job", fix=names)
    options = slurm.read(rest)
    for option, value in options.items():
        if option not in kind.options:
            known = ", ".join(kind.options)
            raise SpecError(f"`{slurm.shown(option)}` is none of its options", place=f"--job {name}", fix=known)
        shape = kind.options[option]
        slurm.check_shape(option, value, shape, place=f"--job {name}", fix=f"its shape is {shape}")
    for option in kind.needed:
        if option not in options and (option != "gpus" or spec.device != "cpu"):
            raise SpecError(f"`{option}` is to be named", place=f"--job {name}", fix=f"write `--job {name},{option}=…`")
    if name == "skypilot" and options.get("nodes", "1") != "1" and "volume" not in options:
        raise SpecError(
            "several machines need a folder that all see", place="--job skypilot",
            fix="make one (`sky volumes apply`) and name it: `volume=NAME`",
        )  # fmt: skip
    processes = slurm.processes_of(options, spec)
    if not processes and "gpus" in kind.options:
        what, fix = "`gpus: all` does not say how many a machine has", f"write `--job {name},…,gpus=8`"
        raise SpecError(what, place=f"--job {name}", fix=fix)
    return ExportedJob(name, options, processes or 1)


def refuse_what_stays(spec: RunSpec, sources: Iterable[Source]) -> None:
    """Refuse what another tool's machine would look for in vain: only the run's folder, with its rows, goes there.

    Raises:
        SpecError: a model's folder, another run, or the user's word for code that runs on this machine alone.
    """
    for key in ("model", "tokenizer", "teacher"):
        named = getattr(spec, key)
        if named and Path(named).expanduser().exists():
            raise SpecError(
                f"`{slurm.shown(named)}` lies on this machine, and the job runs on another", place=key,
                fix="push it to the Hub, and name it there",
            )  # fmt: skip
    if spec.rewards.models:
        fix = "judge by a function of a package, or train on machines that see this folder: `gpus:`, `--slurm`"
        raise SpecError("its reward models are runs of this machine", place="rewards.models", fix=fix)
    code = [source.name for source in sources if source.change is not None or source.rewards]
    if code or spec.trust_remote_code:
        what = f"the functions of `{slurm.shown(code[0])}`" if code else "the model's own code"
        raise SpecError(
            f"{what} may run where you have allowed it, and the job runs on another machine", place="--job",
            fix="use the function before, on the rows themselves" if code else "name a model that needs no code",
        )  # fmt: skip


class _Dumper(yaml.SafeDumper):
    """Writes texts of several lines as people do."""


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _text)


def _document(head: str, body: Mapping[str, Any]) -> str:
    text = yaml.dump(dict(body), Dumper=_Dumper, sort_keys=False, width=1000)
    return "".join(f"# {line}\n" for line in head.splitlines()) + text


def _name_for(folder: Path) -> str:
    """Return the run's name as Kubernetes and SkyPilot take names: small letters, digits, single hyphens between."""
    return re.sub(r"[^a-z0-9]+", "-", folder.name.lower())[-50:].lstrip("-0123456789") or "run"


def _skypilot(folder: Path, spec: RunSpec, job: ExportedJob) -> str:
    name, several, own = folder.name, job.nodes > 1, _name_for(folder)
    asked = {key: job.options[key] for key in ("infra", "cpus", "memory") if key in job.options}
    if spec.device != "cpu":
        asked["accelerators"] = job.options["gpus"]
    here, place = f"~/nbtune/{name}", f"/nbtune/{name}" if several else f'"$HOME"/nbtune/{name}'
    node = f"python -m nbtune.engine.node {place} --nnodes {job.nodes} --nproc-per-node {job.processes}"
    run = [node] if not several else [
        f'if [ "$SKYPILOT_NODE_RANK" = 0 ] && [ ! -e {place} ]; then',
        f"  cp -r {here} {place}.new && mv {place}.new {place}",
        "fi",
        f"until [ -e {place} ]; do sleep 1; done",
        'first=$(echo "$SKYPILOT_NODE_IPS" | head -n 1)',
        f'{node} --node-rank "$SKYPILOT_NODE_RANK" --rdzv-backend c10d --rdzv-id "$SKYPILOT_TASK_ID" '
        f'--rdzv-endpoint "$first:{_PORT}"',
    ]  # fmt: skip
    body: dict[str, Any] = {"name": own, "num_nodes": job.nodes, "resources": asked}
    body["file_mounts"] = {here: str(folder.absolute())}
    if several:
        body["volumes"] = {"/nbtune": job.options["volume"]}
    body |= {"setup": f"pip install 'nbtune=={__version__}'\n", "run": "\n".join(run) + "\n"}
    there = f"{own}:{'/' * several}nbtune/{name}"
    back = f"then `rsync -r {there} {shlex.quote(folder.absolute().parent.name)}/` brings it home"
    return _document(f"The run {name} for SkyPilot: sky launch -c {own} FILE;\n{back}", body)


def _kubeflow(folder: Path, spec: RunSpec, job: ExportedJob) -> str:
    place, name = f"/runs/{folder.name}", _name_for(folder)
    trainer: dict[str, Any] = {
        "image": job.options["image"], "numNodes": job.nodes, "numProcPerNode": job.processes,
        "command": ["python", "-m", "nbtune.engine.node", place],
    }  # fmt: skip
    if spec.device != "cpu":
        trainer["resourcesPerNode"] = {"limits": {"nvidia.com/gpu": job.processes}}
    pod = {
        "volumes": [{"name": "runs", "persistentVolumeClaim": {"claimName": job.options["volume"]}}],
        "containers": [{"name": "node", "volumeMounts": [{"name": "runs", "mountPath": "/runs"}]}],
    }
    patch = {"trainingRuntimeSpec": {"template": {"spec": {"replicatedJobs": [
        {"name": "node", "template": {"spec": {"template": {"spec": pod}}}}
    ]}}}}  # fmt: skip
    meta = {"name": name} | ({"namespace": job.options["namespace"]} if "namespace" in job.options else {})
    body = {
        "apiVersion": "trainer.kubeflow.org/v1alpha1", "kind": "TrainJob", "metadata": meta,
        "spec": {
            "runtimeRef": {"name": job.options.get("runtime", "torch-distributed")}, "trainer": trainer,
            "runtimePatches": [{"manager": "nbtune.dev/submit", **patch}],
        },
    }  # fmt: skip
    head = (
        f"The run {folder.name} for Kubeflow's Trainer. The claim `{job.options['volume']}` (ReadWriteMany) holds the\n"
        f"runs' folder, in which this run lies as {folder.name}/; the image has nbtune {__version__}.\n"
        "torchrun's options come from the Trainer (PET_…)."
    )
    return _document(head, body)


_SCRIPT = '''\
# /// script
# requires-python = ">=3.11"
# dependencies = ["nbtune=={version}"]
# ///
"""The run {name} for Hugging Face Jobs: {line}

It carries the run's folder, trains, and pushes the adapter to {push}."""

import base64
import io
import tarfile

import nbtune

FOLDER = """
{packed}
"""

if __name__ == "__main__":
    with tarfile.open(fileobj=io.BytesIO(base64.b64decode(FOLDER))) as packed:
        packed.extractall("runs", filter="data")
    run = nbtune.attach({name!r}, "runs").resume().wait()
    print(run.push_to_hub({push!r}))
'''


def _hf_jobs(folder: Path, spec: RunSpec, job: ExportedJob) -> str:
    kind, held = KINDS["hf-jobs"], io.BytesIO()
    with tarfile.open(fileobj=held, mode="w:xz") as packed:
        if folder.is_dir():
            packed.add(folder, folder.name, filter=_nameless)
    data = held.getvalue()
    if len(data) > _MOST:
        raise TrainError(
            f"the run's folder is too large for a script ({len(data) / 1e6:.1f} MB, packed)",
            fix="push the data to the Hub, and name it in `data:`",
        )
    text = base64.encodebytes(data).decode("ascii").rstrip()
    line = kind.line.format(file=kind.file, **job.options)
    return _SCRIPT.format(version=__version__, name=folder.name, line=line, push=job.options["push"], packed=text)


def _nameless(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """Leave out who made it, and what only this machine knows."""
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return None if member.issym() or member.islnk() or Path(member.name).name == "events.jsonl" else member


KINDS: dict[str, _Kind] = {
    "skypilot": _Kind(
        "job.skypilot.yaml", "sky launch {file}",
        {
            "nodes": _COUNT, "gpus": r"[A-Za-z][\w.-]*:[1-9]\d{0,2}", "infra": r"[\w.*/-]+", "cpus": r"\d+\+?",
            "memory": r"\d+\+?", "volume": _NAME,
        },
        ("gpus",), _skypilot,
    ),
    "kubeflow": _Kind(
        "job.kubeflow.yaml", "kubectl create -f {file}",
        {
            "nodes": _COUNT, "gpus": _COUNT, "image": r"[\w.:/@-]+", "volume": r"[a-z0-9][a-z0-9.-]*",
            "namespace": r"[a-z0-9][a-z0-9-]*", "runtime": r"[a-z0-9][a-z0-9.-]*",
        },
        ("image", "volume"), _kubeflow,
    ),
    "hf-jobs": _Kind(
        "job.hf.py", "hf jobs uv run --flavor {flavor} --secrets HF_TOKEN {file}",
        {"flavor": r"[a-z0-9][a-z0-9-]*", "push": r"[\w.-]+/[\w.-]+"},
        ("flavor", "push"), _hf_jobs,
    ),
}  # fmt: skip
