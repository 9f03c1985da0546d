"""What a run begins with, looked at before any work: its model, its reward models, and what it starts from."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from nbtune.engine import objects, peft_start, reward_models, warm_start
from nbtune.store import folder as run_folder

if TYPE_CHECKING:
    from nbtune.spec import RunSpec


def looked_at(spec: RunSpec, local: RunSpec, root: Path) -> tuple[Path | None, Path | None]:
    """Return the folder of the run that a spec starts from, or the one that peft wrote; None: it starts from neither.

    Args:
        spec: as it was asked for.
        local: the same, with a model that is there.
        root: where runs are.
    Raises:
        NbtuneError: one of them is not there, or does not fit.
    """
    from nbtune import models

    models.resolve(local.model, weights=False, trust_remote_code=local.trust_remote_code)
    objects.check_vocabulary(local)
    theirs = peft_start.folder_of(spec)
    older = run_folder.find(spec.start_from, root) if spec.start_from and theirs is None else None
    if theirs is not None:
        peft_start.check(theirs, local)
    if older is not None:
        warm_start.check(older, warm_start.portable(spec))
    reward_models.check_reward_models(spec, root)
    return older, theirs
