"""A run that begins with what another one has learnt: its weights are copied into the new folder, ``start/``."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from nbtune.errors import SpecError, TrainError
from nbtune.spec import RunSpec
from nbtune.store import checkpoints
from nbtune.store.folder import read_spec

if TYPE_CHECKING:
    import torch

__all__ = ["begin_with", "check", "take_along"]


def check(old: Path, spec: RunSpec) -> None:
    """Whether the weights of the run in `old` are of the shape that `spec` trains.

    Raises:
        SpecError: another model, or another adapter.
        TrainError: nothing was saved yet.
    """
    theirs = read_spec(old)
    same = [("model", theirs.model, spec.model)]
    same += [
        (f"adapter.{key}", getattr(theirs.adapter, key), getattr(spec.adapter, key))
        for key in type(spec.adapter).model_fields
        if key != "dropout"
    ]
    for key, was, wanted in same:
        if was != wanted:
            raise SpecError(
                f"`{spec.start_from}` has `{key}: {was}`, this spec `{key}: {wanted}`: its weights do not fit",
                place="start_from",
                fix=f"write `{key}: {was}`, or drop `start_from`",
            )
    if checkpoints.latest(old) is None:
        raise TrainError(f"the run `{old.name}` has nothing trained yet", fix="let it train until its first checkpoint")


def take_along(old: Path, folder: Path) -> None:
    """Copies what the run in `old` has learnt into a new run's folder, which then needs the other no more."""
    last = checkpoints.latest(old)
    assert last is not None
    (folder / "start").mkdir(exist_ok=True)
    shutil.copyfile(last / checkpoints.WEIGHTS, folder / "start" / checkpoints.WEIGHTS)


def begin_with(folder: Path, model: torch.nn.Module) -> None:
    """Puts what was taken along into a model that has learnt nothing yet; without any nothing happens.

    Raises:
        TrainError: it is of another model or adapter.
    """
    file = folder / "start" / checkpoints.WEIGHTS
    if file.exists() and not checkpoints.put_back(file, model):
        raise TrainError("the weights it starts from are of another model or adapter", place=folder.name)
