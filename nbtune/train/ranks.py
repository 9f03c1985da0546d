"""Several processes that train one model together: each has its own share of every step's batches.

    torchrun --nproc-per-node 2 -m nbtune.store.worker RUN_DIR

Every process runs the same loop. Before each step they agree on what the step's losses are divided by and on the
wishes; after it they add up their gradients. What is trained is small beside the model (LoRA), so one sum in one
buffer costs little. Only process 0 owns the run's folder, measures, saves and answers.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist

from nbtune import device as machine
from nbtune.train.control import Wishes
from nbtune.train.stepper import Stepper

if TYPE_CHECKING:
    from collections.abc import Sequence

    from nbtune.data.batches import Batch
    from nbtune.train.control import Control

__all__ = ["RankedControl", "RankedStepper", "Ranks"]


@dataclass(frozen=True)
class Ranks:
    """This process among those that `torchrun` started."""

    rank: int
    count: int

    @classmethod
    def join(cls) -> Ranks | None:
        """Meet the others, as torchrun's environment says; None where this process is alone."""
        count = int(os.environ.get("WORLD_SIZE", "1"))
        if count == 1:
            return None
        machine.claim(int(os.environ.get("LOCAL_RANK", "0")))
        dist.init_process_group(machine.collectives())
        return cls(dist.get_rank(), count)

    @property
    def first(self) -> bool:
        """Whether this is the process that owns the folder."""
        return self.rank == 0

    def wait(self) -> None:
        """Until all are here."""
        dist.barrier()

    def leave(self) -> None:
        """After the last word."""
        dist.destroy_process_group()


class RankedControl:
    """Process 0's wishes, for all: they change between two steps only, so that all do the same.

    Args:
        control: where process 0 looks.
    """

    def __init__(self, ranks: Ranks, control: Control) -> None:
        self._ranks, self._control = ranks, control
        self._agreed = Wishes()

    def agree(self, numbers: Sequence[int]) -> list[int]:
        """Sums of the numbers over all processes, which must all call this; wishes are passed on with them."""
        given: list[Any] = [None] * self._ranks.count
        dist.all_gather_object(given, (list(numbers), self._control.look() if self._ranks.first else None))
        self._agreed = given[0][1]
        return [sum(values) for values in zip(*(part for part, _ in given), strict=True)]

    def look(self) -> Wishes:
        """See `nbtune.train.control.Control.look`."""
        return self._agreed

    def wait(self, seconds: float) -> None:
        """See `nbtune.train.control.Control.wait`; all wait together."""
        self._control.wait(seconds)
        self.agree([])


class RankedStepper(Stepper):
    """A `Stepper` that adds up what all processes' micro-batches gave."""

    def __init__(self, ranks: Ranks, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._ranks = ranks

    def accumulate(self, batch: Batch, *, denominator: int, step: int, micro_step: int) -> None:
        """See `Stepper.accumulate`; every process draws other random numbers."""
        place = micro_step * self._ranks.count + self._ranks.rank
        super().accumulate(batch, denominator=denominator, step=step, micro_step=place)

    def update(self, learning_rate: float) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Stepper.update`; a process without a micro-batch of its own in this step adds nothing."""
        if self._sum is None:
            self._sum = torch.zeros((), device=self.device)
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in self._parameters]
        flat = torch.cat([*(g.float().flatten() for g in grads), self._sum.float().reshape(1)])
        dist.all_reduce(flat)
        start = 0
        for parameter, grad in zip(self._parameters, grads, strict=True):
            parameter.grad = flat[start : start + grad.numel()].view_as(grad).to(grad.dtype)
            start += grad.numel()
        self._sum = flat[-1]
        return super().update(learning_rate)
