"""One optimizer step on a model: accumulate micro-batches, clip, update. The loop says when."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from nbtune.device.streams import fork_rng
from nbtune.train.attempt import Attempt, counts_versions, versions
from nbtune.train.averaged_weights import AveragedWeights
from nbtune.train.embedding_noise import noisy
from nbtune.train.kept_reference import load_reference, reference_state
from nbtune.train.look_ahead import LooksAhead
from nbtune.train.mean_loss import torn_update
from nbtune.train.optimizer import rates

if TYPE_CHECKING:
    from nbtune.data.batching.collate import Batch
    from nbtune.methods import Answers
    from nbtune.train.loss import Loss
    from nbtune.train.master_weights import Masters


def seed_of(seed: int, step: int, micro_step: int) -> int:
    """Return what alone decides what a micro-step draws, below 2^63: a resumed run draws the same."""
    return hash((seed, step, micro_step)) & (2**63 - 1)


def _plus(sum_: torch.Tensor | None, more: torch.Tensor | None) -> torch.Tensor | None:
    if sum_ is None or more is None:
        return sum_ if more is None else more
    return sum_ + more


class Updated(NamedTuple):
    """What a step tells, scalars still on the device; a figure that no row has is NaN."""

    loss: torch.Tensor
    norm: torch.Tensor
    figures: dict[str, torch.Tensor]


class Stepper(LooksAhead):
    """Forward, backward and update, with nothing that waits for the device.

    Args:
        model: what is trained; parameters with `requires_grad` are updated.
        loss: of a model and a batch, see `nbtune.train.loss`.
        optimizer: over those parameters, or their `masters`; its learning rates are set at each update.
        max_grad_norm: 0 for no clipping.
        seed: with the step and micro-step it decides every random draw (dropout), so that a resumed run draws the same.
        scaled: scale the loss up, for gradients that fp16 would round to zero; a step whose gradients overflowed is
            skipped on the device, and its norm is not finite.
        masters: what the optimizer works on instead of 16-bit parameters.
        ema_decay: keep a running average of the weights.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        loss: Loss,
        optimizer: torch.optim.Optimizer,
        *,
        max_grad_norm: float,
        seed: int,
        device: torch.device,
        scaled: bool = False,
        masters: Masters | None = None,
        ema_decay: float | None = None,
    ) -> None:
        self.model, self.optimizer, self.device = model, optimizer, device
        self.scaler = torch.amp.GradScaler(device.type, enabled=scaled, init_scale=2.0**12)
        self.scaler.scale(torch.zeros((), device=device))  # makes the scale: a process may have no row at first
        self._masters = masters
        if masters is not None:
            masters.follow(optimizer)
        self._loss, self._max_grad_norm, self._seed = loss, max_grad_norm, seed
        trained = [p for p in model.parameters() if p.requires_grad]
        self._parameters = trained if masters is None else masters.parameters
        self._average = None if ema_decay is None else AveragedWeights(self._parameters, ema_decay)
        places = {id(p): i for i, p in enumerate(self._parameters)}
        self._place = [places[id(p)] for group in optimizer.param_groups for p in group["params"]]
        self._random = noisy(model) or any(isinstance(m, torch.nn.Dropout) and m.p > 0 for m in model.modules())
        self._sum: torch.Tensor | None = None
        self._figures: torch.Tensor | None = None

    @property
    def scaled(self) -> bool:
        """Whether gradients may overflow without anything being wrong."""
        return self.scaler.is_enabled()

    def _surveys(self) -> Callable[[Batch], Answers | None] | None:
        return partial(self._loss.survey, self.model, device=self.device) if self._loss.looks_ahead else None

    def accumulate(self, batch: Batch, *, denominator: float, step: int, micro_step: int) -> None:
        """Add one micro-batch's gradients."""
        with self._drawing(step, micro_step):
            told = self._loss(self.model, batch, denominator=denominator, device=self.device, step=self._of_step)
            self.scaler.scale(told.loss).backward()
        self._sum = _plus(self._sum, told.loss.detach())
        self._figures = _plus(self._figures, told.figures)

    def update(self, learning_rate: float) -> Updated:
        """Clip and update; return what the step tells."""
        assert self._sum is not None, "no micro-batch was accumulated"
        limit = self._max_grad_norm or float("inf")
        self.scaler.unscale_(self.optimizer)
        norm = self._clip(limit)
        for group, share in rates(self.optimizer):
            group["lr"] = learning_rate * share
        self._step()
        self.scaler.update()
        if self._average is not None:
            self._average.add()
        loss, figures = self._sum, self._figures
        self.discard()
        if figures is None:
            return Updated(loss, norm, self._of_experts())
        means = (figures[0] / figures[1]).unbind()
        return Updated(loss, norm, {**dict(zip(self._loss.figures, means, strict=True)), **self._of_experts()})

    def take_weights(self) -> None:
        """Go on from the model's weights, which somebody else has changed."""
        if self._masters is not None:
            self._masters.load_state_dict(None)

    def end_with_average(self) -> bool:
        """Give the weights their average; False: there is none."""
        if self._average is None or not self._average.put_in():
            return False
        if self._masters is not None:
            self._masters.load_state_dict(self._masters.state_dict())  # the model's are those, rounded
        return True

    def _step(self) -> None:
        """Let the optimizer change the weights: all of them or, where memory was short before the first, none.

        Raises:
            TrainError: it was short after that.
        """
        before, fresh = versions(self.optimizer), not self.optimizer.state
        with Attempt() as attempt:
            self.scaler.step(self.optimizer)
        if not attempt.short:
            return
        if versions(self.optimizer)[: len(before)] != before or not counts_versions(self.optimizer):
            raise torn_update()
        if fresh:  # some of it may be half made
            self.optimizer.state.clear()
        if self.scaled:
            self.scaler.update(self.scaler.get_scale())  # else it remembers that gradients were unscaled
        raise MemoryError

    def _clip(self, limit: float) -> torch.Tensor:
        """Return the norm of the gradients, which are scaled down where it is larger."""
        return torch.nn.utils.clip_grad_norm_(self._parameters, limit)

    def discard(self) -> None:
        """Forget the gradients of an unfinished step."""
        self.optimizer.zero_grad(set_to_none=True)
        self._sum = self._figures = self._of_step = None

    def forget_recordings(self) -> None:
        """Do nothing: nothing is recorded."""

    @contextmanager
    def _drawing(self, step: int, micro_step: int) -> Iterator[None]:
        """Let these alone decide what is drawn within."""
        with fork_rng(self.device, needed=self._random):
            if self._random:
                torch.manual_seed(seed_of(self._seed, step, self._number(micro_step)))
            yield

    def _number(self, micro_step: int) -> int:
        """Return which micro-batch of the step that is."""
        return micro_step

    def state_dict(self) -> dict[str, Any]:
        """Return optimizer, loss scale, masters, what a reference has said; the weights are saved by who knows their
        names.

        The optimizer's state has the model's order, however parameters are grouped: either stepper reads it.
        """
        state = {self._place[i]: one for i, one in self.optimizer.state_dict()["state"].items()}
        masters = {} if self._masters is None else {"masters": self._masters.state_dict()}
        average = {} if self._average is None else {"average": self._average.state_dict()}
        more = {**masters, **average, **reference_state(self._loss)}
        return {"optimizer": {"state": state}, "scaler": self.scaler.state_dict(), **more}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Undo `state_dict`; the weights are there already."""
        load_reference(self._loss, state)
        saved = state["optimizer"]["state"]
        mine = {i: saved[key] for i, key in enumerate(self._place) if key in saved}
        self.optimizer.load_state_dict({"state": mine, "param_groups": self.optimizer.state_dict()["param_groups"]})
        if state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        if self._masters is not None:
            self._masters.load_state_dict(state.get("masters"))
        if self._average is not None and "average" in state:
            self._average.load_state_dict(state["average"])
