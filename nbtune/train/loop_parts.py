"""What the training loop works with, as it sees them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import torch

    from nbtune.data.batching.collate import Batch
    from nbtune.train.stepper import Updated


class Stepper(Protocol):
    """One optimizer step on a model; see `nbtune.train.stepper.Stepper`, which is one."""

    device: torch.device
    learning_rate: float | None
    """Of the step that is accumulated: some update in its backward."""

    @property
    def scaled(self) -> bool:
        """Whether gradients may overflow without anything being wrong."""

    def look_ahead(self, batches: Iterable[Batch], *, step: int) -> None:
        """Ask what the loss wants to know of all of a step's micro-batches, before the first of them."""

    def accumulate(self, batch: Batch, *, denominator: float, step: int, micro_step: int) -> None:
        """Add one micro-batch's gradients."""

    def update(self, learning_rate: float) -> Updated:
        """Clip and update; return what the step tells, scalars still on the device."""

    def discard(self) -> None:
        """Forget the gradients of an unfinished step."""


class Batches(Protocol):
    """The micro-batches of any optimizer step: a pure function of the step, which makes resuming exact."""

    @property
    def steps_per_epoch(self) -> float:
        """Optimizer steps in which every row is seen once."""

    def step(self, index: int) -> Sequence[Batch]:
        """Return the micro-batches of the 0-based optimizer step `index`."""
