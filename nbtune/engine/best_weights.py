"""The trained weights whose held-out loss was lowest: one file in the run's folder, put back when the run ends."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nbtune.atomic_io import replace_folder
from nbtune.store import checkpoints

if TYPE_CHECKING:
    import torch

    from nbtune.spec import RunSpec
    from nbtune.train.cuda_graph_stepper import FusedStepper
    from nbtune.train.early_stopping import EarlyStopping
    from nbtune.train.stepper import Stepper


@dataclass(frozen=True)
class BestWeights:
    """Keeps them in ``best/``, and has the model and its optimizer take them back.

    Args:
        writes: this process owns the folder.
    """

    folder: Path
    model: torch.nn.Module
    stepper: Stepper | FusedStepper
    writes: bool = True

    def keep(self, step: int) -> None:
        """See `nbtune.train.loop.Best.keep`."""
        if not self.writes:
            return
        from safetensors.torch import save_file

        weights = {n: p.detach().cpu().contiguous() for n, p in self.model.named_parameters() if p.requires_grad}
        with replace_folder(self.folder / "best") as fresh:
            save_file(weights, fresh / f"step-{step:08d}.safetensors")

    def put_back(self, step: int) -> bool:
        """See `nbtune.train.loop.Best.put_back`."""
        file = self.folder / "best" / f"step-{step:08d}.safetensors"
        if not file.exists() or not checkpoints.put_back(file, self.model):
            return False
        self.stepper.take_weights()
        return True


def stopping_of(
    spec: RunSpec, folder: Path, model: torch.nn.Module, stepper: Stepper | FusedStepper, *, writes: bool
) -> EarlyStopping:
    """Return when a run ends by its held-out loss, and with which weights; arguments as of `BestWeights`."""
    from nbtune.train.early_stopping import EarlyStopping

    best = BestWeights(folder, model, stepper, writes) if spec.eval.load_best else None
    average = stepper.end_with_average if spec.optim_args.ema_decay else None
    return EarlyStopping(spec.eval.patience, spec.eval.threshold, best, average)
