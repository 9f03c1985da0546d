"""The step where launches cost more than arithmetic: nbtune's own AdamW, gradients in place, CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch

from nbtune.device.streams import replayable
from nbtune.models.cuda_graph_step import TrainStep
from nbtune.spec.learning import OptimArgs
from nbtune.spec.loss_options import takes_logits
from nbtune.train.inputs import model_inputs
from nbtune.train.kept_reference import load_reference, reference_state
from nbtune.train.look_ahead import LooksAhead, survey
from nbtune.train.optimizer import adam
from nbtune.train.recorded_answers import RecordedAnswers
from nbtune.train.stepper import Updated, seed_of

if TYPE_CHECKING:
    from nbtune.data.batching.collate import Batch
    from nbtune.methods import Answers
    from nbtune.models import Built
    from nbtune.spec import RunSpec
    from nbtune.train.loss import AnswerLoss

_NO_CLIPPING = 1e30


def suits(built: Built, spec: RunSpec, dtype: str, device: torch.device) -> bool:
    """Return whether a run by one process can go by a `FusedStepper`, and gains by it.

    Args:
        built: with its head accelerated.
        dtype: the plan's.
    """
    patch = built.patch
    ours = (
        spec.optim == "adamw" and spec.optim_args.one_rate and dtype != "fp16" and (dtype == "fp32" or not _whole(spec))
    )
    if takes_logits(spec) or spec.neftune_noise_alpha or spec.optim_args.ema_decay:
        return False
    if not ours or not replayable(device) or patch is None or not patch.layers:
        return False
    return patch.draws_all(built.model)  # what else draws would not be drawn again by a resumed run


def records(built: Built, loss: AnswerLoss) -> bool:
    """Return whether a loss of whole answers can be recorded: nothing that it asks comes from the host's memory, or
    waits for the device."""
    if loss.method.head or built.patch is None or "head" not in built.patch.report.taken:
        return False
    return getattr(built.model, "nbtune_first_values", None) is None  # which come from there for the reference


def _whole(spec: RunSpec) -> bool:
    """Return whether some of the model's own weights are trained, of which fp32 copies are needed."""
    adapter = spec.adapter
    return adapter.type == "full" or bool(adapter.modules_to_save or adapter.trainable_token_indices)


class FusedStepper(LooksAhead):
    """What `nbtune.train.stepper.Stepper` does, for an accelerated model on a GPU.

    Args:
        built: with a patch whose head is nbtune's.
        weight_decay: AdamW's.
        max_grad_norm: 0 for no clipping.
        seed: with the step and micro-step it decides what a LoRA's dropout drops, so that a resumed run drops the same.
        args: AdamW's betas and epsilon.
        loss: of whole answers; None: the model's own head computes that of tokens.
    """

    scaled = False

    def __init__(
        self,
        built: Built,
        *,
        weight_decay: float,
        max_grad_norm: float,
        device: torch.device,
        seed: int = 0,
        args: OptimArgs | None = None,
        loss: AnswerLoss | None = None,
    ) -> None:
        self.device, self._seed = device, seed
        self._loss, self._answers = loss, None if loss is None else RecordedAnswers(loss)
        limit = max_grad_norm or _NO_CLIPPING
        told = adam(args or OptimArgs())
        of_answers: dict[str, Any] = {} if self._answers is None else {"loss": self._answers}
        self._step = TrainStep(
            built.model, built.patch, weight_decay=weight_decay, max_grad_norm=limit, **told, **of_answers
        )
        self._sum: torch.Tensor | None = None  # of losses, or of these and what else a step tells

    def _surveys(self) -> Callable[[Batch], Answers] | None:
        loss, answers = self._loss, self._answers
        if loss is None or answers is None or not loss.looks_ahead:
            return None
        return lambda batch: survey(
            batch, loss.method, device=self.device, ask=lambda one: answers.ask(self._step, one)
        )

    def _drawing(self, step: int, micro_step: int) -> AbstractContextManager[None]:
        return self._step.drawing(seed_of(self._seed, step, self._number(micro_step)))

    def accumulate(self, batch: Batch, *, denominator: float, step: int, micro_step: int) -> None:
        """See `Stepper.accumulate`."""
        seed = seed_of(self._seed, step, self._number(micro_step))
        told = self._step.accumulate(self._inputs(batch, denominator), first=self._sum is None, seed=seed)
        if self._answers is not None:
            told = self._answers.kept(batch, told)
        self._sum = told if self._sum is None else self._sum + told

    def _inputs(self, batch: Batch, denominator: float) -> dict[str, Any]:
        """Return what a step takes, left on the host: a recorded one sends it through pinned memory of its own."""
        if self._answers is not None:
            return self._answers.inputs(batch, denominator, self._of_step)
        inputs = model_inputs(batch, torch.device("cpu"), fused=True)
        inputs["num_items_in_batch"] = torch.tensor(float(denominator))  # a number would make every step another graph
        inputs["use_cache"] = False
        return inputs

    def update(self, learning_rate: float) -> Updated:
        """See `Stepper.update`."""
        assert self._sum is not None, "no micro-batch was accumulated"
        norm, told = self._step.update(learning_rate), self._sum
        self.discard()
        if not told.ndim:
            return Updated(told, norm, self._of_experts())
        assert self._loss is not None
        sums, counts = told[1:].view(2, -1)
        means = (sums / counts).unbind()
        return Updated(told[0], norm, {**dict(zip(self._loss.figures, means, strict=True)), **self._of_experts()})

    def take_weights(self) -> None:
        """See `Stepper.take_weights`: there are no others."""

    def end_with_average(self) -> bool:
        """See `Stepper.end_with_average`: there is none."""
        return False

    def discard(self) -> None:
        """See `Stepper.discard`."""
        self._sum = self._of_step = None

    def forget_recordings(self) -> None:
        """See `TrainStep.forget_recordings`."""
        self._step.forget_recordings()

    def _number(self, micro_step: int) -> int:
        """Return which micro-batch of the step that is."""
        return micro_step

    def state_dict(self) -> dict[str, Any]:
        """Return it in the form of `torch.optim.AdamW`'s, so that a run can go on with either stepper."""
        optimizer = self._step.optimizer
        moments = zip(optimizer.exp_avgs, optimizer.exp_avg_sqs, strict=True)
        step = optimizer.step_count.float().cpu()
        state = {i: {"step": step.clone(), "exp_avg": m, "exp_avg_sq": v} for i, (m, v) in enumerate(moments)}
        return {"optimizer": {"state": state}, "scaler": {}, **reference_state(self._loss)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Undo `state_dict`, of either stepper."""
        load_reference(self._loss, state)
        optimizer, saved = self._step.optimizer, state["optimizer"]["state"]
        for index, (mean, square) in enumerate(zip(optimizer.exp_avgs, optimizer.exp_avg_sqs, strict=True)):
            if index in saved:
                mean.copy_(saved[index]["exp_avg"])
                square.copy_(saved[index]["exp_avg_sq"])
        if saved:
            optimizer.step_count.fill_(int(saved[0]["step"]))
