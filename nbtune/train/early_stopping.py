"""What follows from the held-out loss: when a run ends early, and with which weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from nbtune import events

if TYPE_CHECKING:
    from nbtune.train.progress import Progress


class Best(Protocol):
    """Who keeps the weights whose held-out loss is lowest."""

    def keep(self, step: int) -> None:
        """Keep the model's weights, which are those of that step."""

    def put_back(self, step: int) -> bool:
        """Give the model the weights of that step; False: they are not there."""


@dataclass(frozen=True)
class EarlyStopping:
    """The rules of a run; all that it remembers stands in `Progress`, so that a resumed run decides alike.

    Args:
        patience: evaluations in a row without a fall after which it ends; None: it trains to the end.
        threshold: what a fall is more than.
        best: keeps the best weights; None: nobody wants them back.
        average: gives the model the running average of its weights; None: nobody wants it.
    """

    patience: int | None = None
    threshold: float = 0.0
    best: Best | None = None
    average: Callable[[], bool] | None = None

    def remember(self, progress: Progress, loss: float) -> bool:
        """Take a held-out loss in; return whether it is the lowest so far."""
        fell = loss < progress.fell_to - self.threshold
        progress.stale, progress.fell_to = (0, loss) if fell else (progress.stale + 1, progress.fell_to)
        if not loss < progress.best_eval:
            return False
        progress.best_eval, progress.best_step = loss, progress.step
        if self.best is not None:
            self.best.keep(progress.step)
        return True

    def in_vain(self, progress: Progress) -> bool:
        """Return whether the loss has long enough not fallen."""
        return self.patience is not None and progress.stale >= self.patience

    def end(self, progress: Progress, total: int) -> Iterator[events.Warning]:
        """Give the model the weights that it ends with; yield what there is to say of it."""
        step, best = progress.step, progress.best_step
        if step < total:
            said = f"stopped early, at step {step} of {total}: the held-out loss has not fallen"
            yield events.Warning(message=f"{said} at {progress.stale} evaluations in a row", step=step)
        if self.best is not None and best not in (0, step) and self.best.put_back(best):
            said = f"it ends with the weights of step {best}, whose held-out loss was lowest"
            yield events.Warning(message=said, step=step)
        if self.average is not None and self.average():
            yield events.Warning(message="it ends with the running average of its weights, as asked", step=step)
