"""Checkpoints: all that a run needs to go on as if it had never stopped.

checkpoints/step-00000120/  trainable.safetensors  optimizer.pt  progress.json
adapter/                    what other tools load, renewed with each checkpoint
"""

from __future__ import annotations

import math
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from nbtune import events
from nbtune.errors import TrainError
from nbtune.store.files import read_json, replace_folder, write_json
from nbtune.train.loop import Progress

if TYPE_CHECKING:
    from nbtune.models import Built
    from nbtune.train.fused_stepper import FusedStepper
    from nbtune.train.stepper import Stepper

__all__ = ["go_back", "latest", "load", "save"]


def latest(folder: Path) -> Path | None:
    """The newest whole checkpoint of a run folder; a half-written one is never taken."""
    whole = [path for path in sorted((folder / "checkpoints").glob("step-*")) if (path / "progress.json").exists()]
    return whole[-1] if whole else None


def go_back(folder: Path, step: int) -> None:
    """Make the checkpoint of `step` the newest: later ones go to ``checkpoints/aside``.

    Raises:
        TrainError: there is none of that step.
    """
    there = {int(path.name.removeprefix("step-")): path for path in (folder / "checkpoints").glob("step-*")}
    if step not in there:
        raise TrainError(
            f"there is no checkpoint of step {step}",
            place=folder.name,
            fix=f"there are {', '.join(map(str, sorted(there)))}" if there else "start a new run",
        )
    for later in (path for number, path in there.items() if number > step):
        with replace_folder(folder / "checkpoints" / "aside" / later.name) as fresh:
            shutil.copytree(later, fresh, dirs_exist_ok=True)
        shutil.rmtree(later)


def save(
    folder: Path, built: Built, stepper: Stepper | FusedStepper, progress: Progress, *, keep: int
) -> events.Checkpoint:
    """Write a checkpoint and the adapter, whole or not at all; the oldest beyond `keep` go.

    Raises:
        TrainError: the disk is full, or not writable. The checkpoint before is still there.
    """
    from nbtune.models import save_adapter

    target = folder / "checkpoints" / f"step-{progress.step:08d}"
    try:
        with replace_folder(target) as fresh:
            _write(fresh, built, stepper, progress)
        with replace_folder(folder / "adapter") as fresh:
            shutil.copytree(folder / "tokenizer", fresh, dirs_exist_ok=True)
            save_adapter(built.model, fresh, base=built.facts.name)
    except OSError as error:
        raise TrainError(
            f"the checkpoint could not be written: {error.strerror or error}",
            place=folder.name,
            fix="free some disk space, then resume: the checkpoint before is whole",
        ) from error
    for old in sorted((folder / "checkpoints").glob("step-*"))[:-keep]:
        shutil.rmtree(old, ignore_errors=True)
    size = sum(file.stat().st_size for file in target.iterdir())
    return events.Checkpoint(step=progress.step, folder=target.relative_to(folder).as_posix(), bytes=size)


def _write(fresh: Path, built: Built, stepper: Stepper | FusedStepper, progress: Progress) -> None:
    import torch
    from safetensors.torch import save_file

    weights = {name: p.detach().cpu().contiguous() for name, p in built.model.named_parameters() if p.requires_grad}
    save_file(weights, fresh / "trainable.safetensors")
    torch.save(stepper.state_dict(), fresh / "optimizer.pt")
    body = asdict(progress)
    body["best_eval"] = None if math.isinf(progress.best_eval) else progress.best_eval
    write_json(fresh / "progress.json", body)


def load(checkpoint: Path, built: Built, stepper: Stepper | FusedStepper) -> Progress:
    """Put weights, optimizer and progress back.

    Raises:
        TrainError: the checkpoint does not belong to this model.
    """
    import torch
    from safetensors.torch import load_file

    weights = load_file(checkpoint / "trainable.safetensors")
    mine = {name: p for name, p in built.model.named_parameters() if p.requires_grad}
    if mine.keys() != weights.keys():
        raise TrainError(
            "the checkpoint was made with another adapter or model", place=checkpoint.name, fix="start a new run"
        )
    with torch.no_grad():
        for name, parameter in mine.items():
            parameter.copy_(weights[name])
    stepper.load_state_dict(torch.load(checkpoint / "optimizer.pt", map_location="cpu", weights_only=True))
    body = read_json(checkpoint / "progress.json") or {}
    body["best_eval"] = math.inf if body.get("best_eval") is None else body["best_eval"]
    return Progress(**{k: v for k, v in body.items() if k in Progress.__dataclass_fields__})
