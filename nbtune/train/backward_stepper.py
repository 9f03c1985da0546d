"""The step of full training that updates in backward: one micro-batch, whose backward leaves nothing to update."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from nbtune.models.memory_estimate import UPDATED_AT_ONCE
from nbtune.train.attempt import Attempt
from nbtune.train.mean_loss import torn_update
from nbtune.train.optimizer import make_optimizer
from nbtune.train.stepper import Stepper, seed_of
from nbtune.train.updates_in_backward import UpdatesInBackward

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from nbtune.data.batching.collate import Batch
    from nbtune.spec.learning import OptimArgs
    from nbtune.train.loss import Loss

_WHOLE = ("adafactor", "muon")
"""Optimizers that look at rows and columns."""
_WEIGHTS = 2**32  # numbers that no micro-step has (negative ones would not do: Python hashes -1 and -2 alike)


class BackwardStepper(Stepper):
    """What `Stepper` does, with no gradients between backward and update.

    Gradients are clipped by the norm of the step before, or what of this step's is known where that is more; the first
    step's norm is measured by a pass of its own. `learning_rate` is set before a step's micro-batch.

    Args:
        optimizer: of `nbtune.spec.learning.OPTIMIZERS`.
        weight_decay, kinds: of each weight that is trained, as `nbtune.train.optimizer.make_optimizer` takes them.
    """

    optimizer: UpdatesInBackward

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        optimizer: str,
        *,
        weight_decay: Sequence[float],
        kinds: Sequence[str],
        args: OptimArgs,
        max_grad_norm: float,
        seed: int,
        device: torch.device,
    ) -> None:
        def make(parts: Sequence[nn.Parameter], index: int) -> torch.optim.Optimizer:
            about: Any = {"weight_decay": weight_decay[index], "args": args, "kinds": [kinds[index]] * len(parts)}
            return make_optimizer(parts, optimizer, learning_rate=0.0, **about)

        trained = [p for p in model.parameters() if p.requires_grad]
        limit = max_grad_norm or float("inf")
        updates = UpdatesInBackward(
            trained,
            make,
            seed=lambda step, index: seed_of(seed, step, _WEIGHTS + index),
            max_norm=limit,
            part=None if optimizer in _WHOLE else UPDATED_AT_ONCE,
        )
        super().__init__(model, loss, updates, max_grad_norm=limit, seed=seed, device=device)

    def accumulate(self, batch: Batch, *, denominator: float, step: int, micro_step: int) -> None:
        """Update by a step's only micro-batch.

        Raises:
            TrainError: memory was short when some weights had changed.
        """
        assert micro_step == 0, "gradients of several micro-batches are not added up"
        assert self.learning_rate is not None, "no learning rate was said"
        about: Any = {"denominator": denominator, "step": step, "micro_step": micro_step}
        if self.optimizer.clips and self.optimizer.norm is None:
            self.optimizer.begin(step, None)
            super().accumulate(batch, **about)
            self.optimizer.end()
            self._sum = self._figures = None
        self.optimizer.begin(step, self.learning_rate)
        with Attempt() as attempt:
            super().accumulate(batch, **about)
        if attempt.short:
            if self.optimizer.torn:
                raise torn_update()
            raise MemoryError
        self.optimizer.end()

    def _clip(self, limit: float) -> torch.Tensor:
        """Return the norm of the gradients that there were."""
        assert self.optimizer.norm is not None
        return self.optimizer.norm

    def state_dict(self) -> dict[str, Any]:
        """Return it as `Stepper` does, with the norm that the next step is clipped by."""
        return {**super().state_dict(), "norm": self.optimizer.norm}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Undo `state_dict`; the weights are there already."""
        super().load_state_dict(state)
        self.optimizer.norm = None if state["norm"] is None else state["norm"].to(self.device)
