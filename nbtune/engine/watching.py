"""Beginning to watch another library's trainer (`nbtune.watch`): its run's folder, and the callback that writes it."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

from nbtune.data.sources.snapshot import leave_out
from nbtune.engine import foreign_facts
from nbtune.errors import SpecError
from nbtune.models import handed_over
from nbtune.store import folder as run_folder
from nbtune.store import foreign


def watched(
    trainer: Any,
    name: str | None,
    root: Path,
    samples: tuple[str, ...],
    show: Callable[[Path], Callable[[bool], None]],
) -> Path | None:
    """Add the callback that writes a trainer's run; return the run's folder.

    A trainer that is watched already stays so, by its first name. In all processes but the first nothing is done.

    Args:
        trainer: of transformers' kind.
        name: the run's; None: its class's.
        root: where runs are.
        samples: prompts to ask.
        show: shows the run of a folder.

    Raises:
        SpecError: it is no trainer, or has no model yet.
    """
    if not all(hasattr(trainer, part) for part in ("add_callback", "callback_handler", "args", "train")):
        raise SpecError(
            f"a value of type {type(trainer).__name__} is no trainer of transformers'",
            place="trainer",
            fix="nbtune.watch(trainer), with the object whose `train()` you call",
        )
    if getattr(trainer, "model", None) is None:
        raise SpecError(
            "the trainer makes its model when it trains (`model_init`)", place="trainer", fix="give it `model=…`"
        )
    if int(getattr(trainer.args, "process_index", 0)) != 0:
        return None
    from nbtune.engine.trainer_callback import WatchedTrainer, watched_by

    known = watched_by(trainer)
    if known is not None:
        return known.folder
    called, own = name or type(trainer).__name__, weakref.ref(trainer)
    callback = WatchedTrainer(trainer, samples, lambda: _made(own(), called, root, samples), show)
    trainer.add_callback(callback)
    return callback.folder


def _made(trainer: Any, name: str, root: Path, samples: tuple[str, ...]) -> Path:
    """Make a run's folder that says whose it is."""
    folder = run_folder.create(root, name, foreign_facts.spec_of(trainer, samples))
    (folder / "train.py").unlink()  # which would repeat it
    whose = foreign_facts.whose(trainer)
    leave_out(folder / "data", f"the rows of {whose.words} are not kept with its run, so they cannot be measured here")
    foreign.keep(folder, whose, foreign_facts.arguments_of(trainer))
    if not foreign_facts.model_name(trainer.model) and getattr(trainer.model, "peft_config", None):
        handed_over.describe(trainer.model, folder / run_folder.OWN_MODEL)  # a base that is in no file
        handed_over.lend(trainer.model, folder / run_folder.OWN_MODEL)
    return folder
