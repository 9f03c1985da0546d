"""Before a run begins: its spec as a folder keeps it, whether one at work is the same, and the start from another one.

A run that begins with what another one has learnt has its weights in its own folder, ``start/``.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nbtune.data.prepare.labels import labels_of
from nbtune.data.sources.snapshot import changed_rows
from nbtune.disk import home_folder
from nbtune.errors import SpecError, TrainError
from nbtune.methods import METHODS
from nbtune.models.first_values import FILE as FIRST_VALUES
from nbtune.models.heads import SCORE, Head, head_of, names, read_head, write_head
from nbtune.spec import RunSpec
from nbtune.store import checkpoints, foreign
from nbtune.store.folder import name_of, read_spec
from nbtune.untrusted import refuse_links

if TYPE_CHECKING:
    import torch

    from nbtune.methods import Method
    from nbtune.train.reference import StartingWeights

OTHERS = "the weights it starts from are of another model or adapter"


def check(old: Path, spec: RunSpec) -> None:
    """Refuse a run in `old` whose weights are of another shape than `spec` trains.

    Raises:
        SpecError: another model, another adapter, or a head of scores for another use.
        TrainError: nothing was saved yet, or another trainer made it.
    """
    foreign.refuse(old, "begin with what it learnt")
    theirs = read_spec(old)
    same = [("model", theirs.model, spec.model)]
    same += [
        (f"adapter.{key}", getattr(theirs.adapter, key), getattr(spec.adapter, key))
        for key in type(spec.adapter).model_fields
        if key not in ("dropout", "init_lora_weights")
    ]
    if theirs.adapter.changes_base or spec.adapter.changes_base:  # what is trained stands beside another base
        same.append(("adapter.init_lora_weights", theirs.adapter.init_lora_weights, spec.adapter.init_lora_weights))
    for key, was, wanted in same:
        if was != wanted:
            raise SpecError(
                f"`{spec.start_from}` has `{key}: {was}`, this spec `{key}: {wanted}`: its weights do not fit",
                place="start_from",
                fix=f"write `{key}: {was}`, or drop `start_from`",
            )
    _check_heads(spec, theirs.method, read_head(old / "adapter"))
    if checkpoints.latest(old) is None:
        raise TrainError(f"the run `{old.name}` has nothing trained yet", fix="let it train until its first checkpoint")


def _check_heads(spec: RunSpec, method: str, head: Head | None) -> None:
    """Refuse scores that a method does not give, or gives of other labels; where nothing gave scores, they begin
    anew."""
    if METHODS[method].head and method != spec.method:
        raise SpecError(
            f"`{spec.start_from}` learnt scores by method `{method}`, which are nothing to method `{spec.method}`",
            place="start_from",
            fix=f"write `method: {method}`, or drop `start_from`",
        )
    mine = labels_of(spec)
    if head is not None and mine and mine != head.labels:
        raise SpecError(
            f"`{spec.start_from}` tells apart {names(head.labels)}, in this order, and this run {names(mine)}",
            place="start_from",
            fix=f"write `labels: [{names(head.labels)}]`, or drop `start_from`",
        )


def check_labels(folder: Path, spec: RunSpec) -> None:
    """Refuse rows of other labels than those of the head that a run in `folder` begins with.

    Raises:
        SpecError: they are others, or in another order.
    """
    _check_heads(spec, spec.method, read_head(folder / "start"))


def take_along(old: Path, folder: Path) -> None:
    """Copy what the run in `old` has learnt into a new run's folder, which then needs the other no more."""
    last = checkpoints.latest(old)
    assert last is not None
    if (old / FIRST_VALUES).exists():
        refuse_links(old, FIRST_VALUES, error=TrainError)
        shutil.copyfile(old / FIRST_VALUES, folder / FIRST_VALUES)
    refuse_links(old, last.relative_to(old).as_posix(), error=TrainError)
    (folder / "start").mkdir(exist_ok=True)
    shutil.copyfile(last / checkpoints.WEIGHTS, folder / "start" / checkpoints.WEIGHTS)
    if (head := read_head(old / "adapter")) is not None:
        write_head(head, folder / "start")


def same_beginning(old: Path, made: Path) -> None:
    """Give a new run's folder what the run in `old` began with."""
    refuse_links(old, "start", FIRST_VALUES, error=TrainError)
    if (old / "start").exists():
        shutil.copytree(old / "start", made / "start", dirs_exist_ok=True)
    if (old / FIRST_VALUES).exists():
        shutil.copyfile(old / FIRST_VALUES, made / FIRST_VALUES)


def begin_with(folder: Path, model: torch.nn.Module) -> None:
    """Put what was taken along into a model that has learnt nothing yet; without any nothing happens.

    Raises:
        TrainError: it is of another model or adapter.
    """
    file = folder / "start" / checkpoints.WEIGHTS
    if not file.exists():
        return
    scores = head_of(model)
    begun = any(f".{SCORE}." in name for name in checkpoints.shapes_in(file))
    anew = [] if scores is None or begun else list(scores[1].parameters())
    if not checkpoints.put_back(file, model, but=anew):
        raise _others(folder)


def reference_of(folder: Path, method: Method, model: torch.nn.Module) -> StartingWeights | None:
    """Return what a method's reference has in place of the trained weights: what was taken along; None: the method has
    no reference, or the run started from the base.

    Raises:
        TrainError: it is of another model or adapter.
    """
    file = folder / "start" / checkpoints.WEIGHTS
    if not method.reference or not file.exists():
        return None
    from nbtune.train.reference import StartingWeights

    if not checkpoints.fit(checkpoints.shapes_in(file), model):
        raise _others(folder)
    return StartingWeights(model, checkpoints.weights_in(file))


def _others(folder: Path) -> TrainError:
    return TrainError(OTHERS, place=folder.name)


def portable(spec: RunSpec) -> RunSpec:
    """Return the spec with the home folder written as ``~`` (a run folder can be shared), and a
    model's folder or file in full."""
    home = str(home_folder())

    def short(text: str) -> str:
        return "~" + text[len(home) :].replace(os.sep, "/") if text.startswith(home + os.sep) else text

    model, teacher = (str(Path(m).absolute()) if m and Path(m).exists() else m for m in (spec.model, spec.teacher))
    sources = tuple(source.model_copy(update={"source": short(source.source)}) for source in spec.data)
    held = spec.eval.data and spec.eval.data.model_copy(update={"source": short(spec.eval.data.source)})
    measured = spec.eval.model_copy(update={"data": held})
    start = spec.start_from and short(spec.start_from)
    tokenizer = spec.tokenizer
    if tokenizer is not None:
        tokenizer = short(str(Path(tokenizer).absolute()) if Path(tokenizer).is_dir() else tokenizer)
    changes = {
        "model": short(model or ""),
        "tokenizer": tokenizer,
        "data": sources,
        "eval": measured,
        "start_from": start,
    }
    return spec.model_copy(update={**changes, "teacher": teacher and short(teacher)})


def check_same(folder: Path, spec: RunSpec, variables: Mapping[str, Any]) -> None:
    """Refuse a run that is at work and not the one that is asked for.

    Raises:
        TrainError: its spec is another one, or a variable holds other rows than it trains on.
    """
    old, new = read_spec(folder).model_dump(), spec.model_dump()
    changed = [f"{key}: {old[key]!r} → {new[key]!r}" for key in new if old[key] != new[key]]
    others = [] if changed else changed_rows(folder / "data", variables)
    if not (changed or others):
        return
    difference = (
        f"with another spec ({'; '.join(changed)[:400]})" if changed else f"on other rows ({', '.join(others)})"
    )
    raise TrainError(
        f"the run `{name_of(folder)[0]}` is at work {difference}",
        fix="`--restart` stops it and starts anew, `--queue` starts when it has ended, another `--name` keeps both",
    )
