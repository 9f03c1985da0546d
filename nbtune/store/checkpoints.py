"""Checkpoints: all that a run needs to go on as if it had never stopped.

checkpoints/step-00000120/  trainable.safetensors  optimizer.pt  progress.json
                            in place of optimizer.pt optimizer/, of weights that are parted (`parted_state`)
adapter/                    what other tools load, renewed with each checkpoint
"""

from __future__ import annotations

import math
import os
import re
import shutil
import zipfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from nbtune import events
from nbtune.atomic_io import discard, read_json, replace_folder, write_json
from nbtune.device import is_out_of_memory
from nbtune.disk import disk_error
from nbtune.errors import NbtuneError, TrainError
from nbtune.store import parted_state
from nbtune.train.parted import gathered, mine, part_of
from nbtune.train.progress import Progress

if TYPE_CHECKING:
    import torch

    from nbtune.models import Built
    from nbtune.train.cuda_graph_stepper import FusedStepper
    from nbtune.train.distributed import Ranks
    from nbtune.train.stepper import Stepper

    Weights = dict[str, torch.Tensor]

_STEP = re.compile(r"step-(\d{1,18})")
WEIGHTS = "trainable.safetensors"  # of a checkpoint


def latest(folder: Path) -> Path | None:
    """Return the newest whole checkpoint of a run folder; a half-written one is never taken."""
    whole = _whole(folder)
    return whole[max(whole)] if whole else None


def steps(folder: Path) -> list[int]:
    """Return the steps of the whole checkpoints of a run folder, in order."""
    return sorted(_whole(folder))


def _whole(folder: Path) -> dict[int, Path]:
    """Return the whole checkpoints by their steps."""
    return {step: path for step, path in _all(folder).items() if (path / "progress.json").exists()}


def _all(folder: Path) -> dict[int, Path]:
    """Return the checkpoints by their steps; what is called otherwise is none."""
    matches = ((_STEP.fullmatch(path.name), path) for path in (folder / "checkpoints").glob("step-*"))
    return {int(match[1]): path for match, path in matches if match}


@contextmanager
def weights_of(folder: Path, step: int | None, model: torch.nn.Module) -> Iterator[None]:
    """Lend `model` with the trained weights of the checkpoint of `step`, for as long as this lasts; None: as it is.

    Raises:
        TrainError: there is no such checkpoint, or it is of another model.
    """
    if step is None:
        yield
        return
    import torch

    file = folder / "checkpoints" / f"step-{step:08d}" / WEIGHTS
    saved = steps(folder)
    if step not in saved:
        fix = f"there are {', '.join(map(str, saved))}" if saved else "let it train until its first checkpoint"
        raise TrainError(f"there is no checkpoint of step {step}", place=folder.name, fix=fix)
    told = shapes_in(file)
    mine = {n: p for n, p in model.named_parameters() if tuple(p.shape) == told.get(n)}
    if len(mine) != len(told):
        raise TrainError("the checkpoint was made with another adapter or model", place=folder.name)
    weights = weights_in(file)
    now = {name: parameter.detach().clone() for name, parameter in mine.items()}
    with torch.no_grad():
        try:
            for name, parameter in mine.items():
                parameter.copy_(weights[name])
            yield
        finally:
            for name, parameter in mine.items():
                parameter.copy_(now[name])


def go_back(folder: Path, step: int) -> None:
    """Make the checkpoint of `step` the newest: later ones go to ``checkpoints/aside``.

    Raises:
        TrainError: there is none of that step.
    """
    checkpoints = _all(folder)
    if step not in checkpoints:
        raise TrainError(
            f"there is no checkpoint of step {step}",
            place=folder.name,
            fix=f"there are {', '.join(map(str, sorted(checkpoints)))}" if checkpoints else "start a new run",
        )
    for later in (path for number, path in checkpoints.items() if number > step):
        aside = folder / "checkpoints" / "aside" / later.name
        aside.parent.mkdir(exist_ok=True)
        if aside.exists():
            discard(aside)
        later.rename(aside)


def save(
    folder: Path,
    built: Built,
    stepper: Stepper | FusedStepper,
    progress: Progress,
    *,
    keep: int,
    ranks: Ranks | None = None,
) -> events.Checkpoint:
    """Write a checkpoint and the adapter, whole or not at all; the oldest beyond `keep` go.

    Args:
        keep: how many stay.
        ranks: what is trained is parted among these processes, all of which call this; the first writes all but the
            optimizer's state.
    Raises:
        TrainError: the disk is full, or not writable; or a weight is no number. The checkpoint before is still there.
    """
    from nbtune.models import save_adapter

    named = [(name, p) for name, p in built.model.named_parameters() if p.requires_grad]
    weights = gathered(named, keep=ranks is None or ranks.first)
    if ranks is not None and not ranks.first:
        parted_state.write(Path(ranks.gather(None)[0]), built, stepper)
        return events.Checkpoint(step=progress.step, folder="")
    _refuse_broken(weights, progress.step)
    target = folder / "checkpoints" / f"step-{progress.step:08d}"
    try:
        with _disk_errors(), replace_folder(target) as fresh:
            if ranks is not None:
                ranks.gather(str(fresh))  # the others learn where
                parted_state.write(fresh, built, stepper)
            _write(fresh, weights, None if ranks is not None else stepper, progress)
        with _disk_errors(), replace_folder(folder / "adapter") as fresh:
            shutil.copytree(folder / "tokenizer", fresh, dirs_exist_ok=True)
            save_adapter(built.model, fresh, base=built.facts.name, trained=weights)
            _write_ends(built, fresh)
    except OSError as error:
        raise disk_error(error, TrainError, "the checkpoint could not be written", place=folder.name) from error
    for _, old in sorted(_all(folder).items())[:-keep]:
        with suppress(OSError):
            discard(old)
    size = sum(file.stat().st_size for file in target.rglob("*") if file.is_file())
    return events.Checkpoint(step=progress.step, folder=target.relative_to(folder).as_posix(), bytes=size)


def _refuse_broken(weights: Mapping[str, torch.Tensor], step: int) -> None:
    """Raise a `TrainError` for trained weights that hold NaN or infinity, or whose squares in fp32 do: nobody could go
    on from them, or use them."""
    import torch

    from nbtune.train.mean_loss import no_number

    if not weights:
        return
    norms = [torch.linalg.vector_norm(weight, dtype=torch.float32) for weight in weights.values()]
    sound = torch.stack(norms).isfinite().tolist()
    broken = [name for name, good in zip(weights, sound, strict=True) if not good]
    if broken:
        others = f" and {len(broken) - 1} more" if broken[1:] else ""
        raise no_number(f"the norm of the weight {broken[0]}{others}", step)


def _write_ends(built: Built, fresh: Path) -> None:
    """Write what the trained model's answers end with, where its base does not know: others that load the folder stop
    there, too."""
    from nbtune.data.tokenize.terminators import with_ends

    usual: Any = getattr(built.model, "generation_config", None)
    config: Any = built.model.config
    known = None if usual is None else usual.to_diff_dict()
    body = None if built.tokenizer is None else with_ends(known, config.to_dict(), built.tokenizer)
    if body is not None:
        write_json(fresh / "generation_config.json", body)


def _write(fresh: Path, weights: Weights, stepper: Stepper | FusedStepper | None, progress: Progress) -> None:
    import torch
    from safetensors.torch import save_file

    save_file(weights, fresh / WEIGHTS)
    if stepper is not None:
        with (fresh / "optimizer.pt").open("wb") as file, _Recorder(file) as recorder:
            torch.save(stepper.state_dict(), recorder)
    body = asdict(progress)
    body |= {key: None for key in ("best_eval", "fell_to") if math.isinf(body[key])}
    write_json(fresh / "progress.json", body)


class _Recorder:
    """A file for torch, which forgets why a write failed and says only that it did."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._error: OSError | None = None
        self.flush = file.flush

    def write(self, data: bytes) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self._error = error
            raise

    def __enter__(self) -> _Recorder:
        return self

    def __exit__(self, _kind: object, raised: BaseException | None, _traceback: object) -> None:
        if raised is not None and self._error is not None:
            raise self._error from raised


@contextmanager
def _disk_errors() -> Iterator[None]:
    """Turn safetensors' errors into ours: it gives the system's error as text."""
    try:
        yield
    except Exception as error:
        number = re.search(r"\(os error (\d+)\)", str(error))
        if number is None or isinstance(error, OSError):
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from error


def put_back(file: Path, model: torch.nn.Module, *, but: Collection[torch.nn.Parameter] = ()) -> bool:
    """Put saved weights into all that is trained but some; False, and nothing done, if they are of another model or
    adapter."""
    import torch

    left = {id(parameter) for parameter in but}
    if not fit(shapes_in(file), model, but=left):  # before any of it is read: a header may tell of any size
        return False
    weights = weights_in(file)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and id(parameter) not in left:
                mine(parameter).copy_(part_of(weights[name], parameter))
    return True


def weights_in(file: Path) -> dict[str, torch.Tensor]:
    """Return the weights of a file that a run saved.

    Raises:
        TrainError: it is not there, or not whole.
    """
    from safetensors.torch import load_file

    with _whole_weights(file):
        return load_file(file)


def shapes_in(file: Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the weights of a file that a run saved, by its header.

    Raises:
        TrainError: as `weights_in`.
    """
    from safetensors import safe_open

    with _whole_weights(file), safe_open(file, framework="pt") as opened:
        return {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118 — no mapping


@contextmanager
def _whole_weights(file: Path) -> Iterator[None]:
    from safetensors import SafetensorError

    try:
        yield
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:  # the last: no room to map it
        raise TrainError(
            f"its weights cannot be read: {str(error).splitlines()[0][:160]}",
            place=f"{file.parent.name}/{file.name}",
            fix="go on from an earlier checkpoint, or start the run again",
        ) from error


@contextmanager
def _whole_optimizer(file: Path) -> Iterator[Path]:
    """Say in a sentence what is wrong with an optimizer's state, whatever torch makes of it.

    Raises:
        TrainError: it cannot be read, is no such state, or is compressed: torch never writes such, and it would unpack
            into any amount of memory.
    """
    fix = "resume from an earlier step: `step=`"
    try:
        with zipfile.ZipFile(file) as entries:
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries.infolist()):
                raise TrainError(
                    f"{file.name} is compressed, and nbtune writes none that are", place=file.parent.name, fix=fix
                )
        yield file
    except NbtuneError:
        raise
    except Exception as error:  # bytes of a stranger: zipfile, pickle and torch each have errors of their own for them
        if is_out_of_memory(error):
            raise
        why = " ".join(str(error).split())[:120] or type(error).__name__
        raise TrainError(f"{file.name} is not whole: {why}", place=file.parent.name, fix=fix) from error


def fit(shapes: Mapping[str, tuple[int, ...]], model: torch.nn.Module, *, but: Collection[int] = ()) -> bool:
    """Return whether saved weights of these shapes are those of all that is trained, but parameters of these `id`s."""
    trained = ((name, p) for name, p in model.named_parameters() if p.requires_grad and id(p) not in but)
    return shapes == {name: tuple(p.shape) for name, p in trained}


def load_weights(checkpoint: Path, model: torch.nn.Module) -> None:
    """Put a checkpoint's weights into all that is trained.

    Raises:
        TrainError: the checkpoint does not belong to this model.
    """
    if not put_back(checkpoint / WEIGHTS, model):
        raise TrainError(
            "the checkpoint was made with another adapter or model", place=checkpoint.name, fix="start a new run"
        )


def load(checkpoint: Path, built: Built, stepper: Stepper | FusedStepper) -> Progress:
    """Put weights, optimizer and progress back.

    Raises:
        TrainError: the checkpoint does not belong to this model.
    """
    import torch

    load_weights(checkpoint, built.model)
    if (checkpoint / parted_state.FOLDER).is_dir():
        parted_state.read(checkpoint, built, stepper)
    else:
        with _whole_optimizer(checkpoint / "optimizer.pt") as file:
            stepper.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    body = read_json(checkpoint / "progress.json") or {}
    fields = {key: value for key, value in body.items() if key in Progress.__dataclass_fields__ and value is not None}
    if any(type(value) not in (int, float) for value in fields.values()) or type(fields.get("step")) is not int:
        raise TrainError(
            "progress.json holds no progress", place=checkpoint.name, fix="resume from an earlier step: `step=`"
        )
    return Progress(**fields)
