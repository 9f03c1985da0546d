"""What a run begins with, looked at before any work: its model, its reward models, and what it starts from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nbtune.engine import objects, peft_start, reward_models, warm_start
from nbtune.engine.run_loss import check_teacher
from nbtune.errors import NbtuneError, SpecError, TrainError
from nbtune.store import checkpoints
from nbtune.store.folder import find, runs_root

if TYPE_CHECKING:
    from nbtune.spec import RunSpec


@dataclass(frozen=True)
class Beginning:
    """What a spec starts from: `run`, another run's folder, or `adapter`, one that peft wrote; neither: the base."""

    run: Path | None = None
    adapter: Path | None = None

    @classmethod
    def of(cls, spec: RunSpec, root: Path) -> Beginning:
        """Find it, and refuse what does not fit.

        Args:
            spec: what was asked for, `portable`.
            root: where runs are looked up by name.

        Raises:
            SpecError: it is of another model or adapter.
            TrainError: there is none, or it has nothing trained yet.
        """
        if spec.start_from is None:
            return cls()
        if (theirs := peft_start.folder_of(spec)) is not None:
            peft_start.weights_of(theirs)
            return cls(adapter=theirs)
        with NbtuneError.about("start_from"):
            try:
                old = find(spec.start_from, root)
            except TrainError as error:
                if not Path(spec.start_from).expanduser().is_dir():
                    raise
                cause = f"the folder {spec.start_from} holds neither a run nor an adapter that peft wrote"
                fix = "name a run, or a folder with adapter_config.json and adapter_model.safetensors"
                raise SpecError(cause, fix=fix) from error
        warm_start.check(old, spec)
        return cls(run=old)

    def check_base(self, spec: RunSpec) -> None:
        """Refuse weights that cannot be of a spec's model, by the shapes that their file names: none is read.

        Args:
            spec: whose model can be looked at, as `Objects.described` gives it.

        Raises:
            SpecError: they are of another one.
        """
        if self.adapter is not None:
            peft_start.check(self.adapter, spec)
        last = checkpoints.latest(self.run) if self.run is not None else None
        file = last / checkpoints.WEIGHTS if last is not None else None
        if file is None or not file.is_file():
            return
        from nbtune.models import has_places_for

        if not has_places_for(checkpoints.shapes_in(file), spec.model, trust_remote_code=spec.trust_remote_code):
            fix = "name the model that it was trained on, or drop `start_from`"
            raise SpecError(warm_start.OTHERS, place="start_from", fix=fix)

    def take_along(self, folder: Path) -> None:
        """Copy what was learnt into a new run's folder, which then needs the other no more."""
        if self.run is not None:
            warm_start.take_along(self.run, folder)
        if self.adapter is not None:
            peft_start.take_along(self.adapter, folder)


def named_runs(spec: RunSpec, runs_dir: str | Path | None) -> Beginning:
    """Return what a spec starts from; its reward models are looked up, too.

    Raises:
        SpecError, TrainError: see `Beginning.of`, `reward_models.check_reward_models`.
    """
    spec, root = warm_start.portable(spec), runs_root(runs_dir)
    reward_models.check_reward_models(spec, root)
    return Beginning.of(spec, root)


def look_at(begins: Beginning, local: RunSpec) -> None:
    """Look at a model that is here, and whether its teacher, and what a run begins with, are of it.

    Args:
        begins: see `named_runs`.
        local: whose model can be looked at, as `Objects.described` gives it.

    Raises:
        NbtuneError: it is not whole, or something else is of another one.
    """
    from nbtune import models

    models.resolve(local.model, weights=False, trust_remote_code=local.trust_remote_code)
    objects.check_vocabulary(local)
    check_teacher(local)
    begins.check_base(local)
