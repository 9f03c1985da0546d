"""The optimizer's state of weights that are parted among several processes: torch's distributed checkpoint (DCP), each
process writing its own slices, in safetensors files. Any number of processes reads it again.

checkpoints/step-00000120/optimizer/  *.safetensors, one a process
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nbtune.errors import TrainError
from nbtune.train.parted import is_parted, mine, put_together

if TYPE_CHECKING:
    import torch

    from nbtune.models import Built
    from nbtune.train.cuda_graph_stepper import FusedStepper
    from nbtune.train.stepper import Stepper

FOLDER = "optimizer"
_MASTER = "master"  # beside the optimizer's own names: the fp32 copy of a 16-bit weight


def write(folder: Path, built: Built, stepper: Stepper | FusedStepper) -> None:
    """Write the state of all processes; all must call this, with the same new folder."""
    import torch
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter

    told, body = stepper.state_dict(), {}
    for place, (name, parameter) in enumerate(_trained(built)):
        for key, value in told["optimizer"]["state"].get(place, {}).items():
            body[f"{name}/{key}"] = _whole(torch.as_tensor(value), parameter)
    for name, parameter, copy in zip(*_copied(built), told.get("masters", []), strict=True):
        body[f"{name}/{_MASTER}"] = _whole(copy, parameter)
    with _quiet():
        dcp.save(body, storage_writer=HuggingFaceStorageWriter(str(folder / FOLDER), save_distributed=True))


def read(folder: Path, built: Built, stepper: Stepper | FusedStepper) -> None:
    """Put the state back, whatever number of processes has written it; all must call this.

    Raises:
        TrainError: it is of another model or optimizer, or cannot be read.
    """
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

    trained = dict(_trained(built))
    reader = HuggingFaceStorageReader(str(folder / FOLDER))
    try:
        with _quiet():
            known: dict[str, Any] = reader.read_metadata().state_dict_metadata
            places = {fqn: fqn.rpartition("/") for fqn in known}
            if any(name not in trained for name, _, _ in places.values()):
                raise TrainError("the checkpoint was made with another model", place=folder.name, fix="start a new run")
            body = {fqn: _room(known[fqn], trained[name]) for fqn, (name, _, _) in places.items()}
            dcp.load(body, storage_reader=HuggingFaceStorageReader(str(folder / FOLDER)))
    except TrainError:
        raise
    except Exception as error:  # a file that anybody may have written makes a reader raise anything
        why = str(error).splitlines()[0][:160] if str(error) else type(error).__name__
        raise TrainError(
            f"the optimizer's state cannot be read: {why}",
            place=folder.name,
            fix="resume from an earlier step",
        ) from error
    number = {name: place for place, name in enumerate(trained)}
    state: dict[int, dict[str, Any]] = {}
    copies = {}
    for fqn, (name, _, key) in places.items():
        if key == _MASTER:
            copies[name] = mine(body[fqn])
        else:
            state.setdefault(number[name], {})[key] = mine(body[fqn])
    names, _ = _copied(built)
    masters = [copies[name] for name in names] if copies.keys() >= set(names) and names else None
    stepper.load_state_dict({"optimizer": {"state": state}, "scaler": {}, "masters": masters})


def _trained(built: Built) -> Iterator[tuple[str, torch.nn.Parameter]]:
    return ((name, p) for name, p in built.model.named_parameters() if p.requires_grad)


def _copied(built: Built) -> tuple[list[str], list[torch.nn.Parameter]]:
    """Return names and parameters of which the optimizer has copies (`nbtune.train.master_weights`)."""
    from nbtune.train.master_weights import is_copied

    pairs = [(name, p) for name, p in _trained(built) if is_copied(p)]
    return [name for name, _ in pairs], [p for _, p in pairs]


def _whole(value: torch.Tensor, parameter: torch.nn.Parameter) -> torch.Tensor:
    """Return a tensor of the optimizer's as a part of the whole, where it is as its weight is."""
    same = is_parted(parameter) and value.shape == mine(parameter).shape and value.ndim > 0
    return put_together(value, parameter) if same else value


def _room(told: Any, parameter: torch.nn.Parameter) -> torch.Tensor:
    import torch

    dtype, size = told.properties.dtype, told.size
    if is_parted(parameter) and tuple(size) == tuple(parameter.shape):
        return put_together(torch.empty_like(mine(parameter), dtype=dtype), parameter)
    return torch.empty(size, dtype=dtype)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch's words about its own inside to itself."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
