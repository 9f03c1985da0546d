"""The loss of distillation: cross-entropy, and the distance from what a teacher says of the same tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch.nn.functional import cross_entropy, log_softmax

from nbtune.device.streams import send
from nbtune.train.inputs import model_inputs
from nbtune.train.loss import LossOutput

if TYPE_CHECKING:
    from nbtune.data.batching.collate import Batch
    from nbtune.methods import Answers


@dataclass(frozen=True)
class DistillationLoss:
    """Σ w (α · -log p(label) + (1 - α) T² KL(q_T ‖ p_T)) / denominator over the trained tokens, w their rows' weights.

    Args:
        teacher: a causal language model with the same vocabulary, frozen.
        options: `temperature` T and `alpha` α.
    """

    teacher: torch.nn.Module
    options: Mapping[str, float | str]

    looks_ahead: ClassVar[bool] = False
    figures: ClassVar[tuple[str, ...]] = ("teacher_kl",)

    def survey(self, model: torch.nn.Module, batch: Batch, *, device: torch.device) -> None:
        """Ask nothing: a token's loss depends on no other row."""

    def count(self, batch: Batch) -> float:
        """Return what the losses of an optimizer step are divided by the sum of: trained tokens, as often as they
        count."""
        return batch.weight

    def __call__(
        self,
        model: torch.nn.Module,
        batch: Batch,
        *,
        denominator: float,
        device: torch.device,
        step: Answers | None = None,
    ) -> LossOutput:
        """Return Σ loss / denominator; arguments as of `nbtune.train.loss.TokenLoss`."""
        temperature, alpha = float(self.options["temperature"]), float(self.options["alpha"])
        labels = send(batch.trained_labels, device)
        counts = (labels != -100).float()
        if batch.loss_weights is not None:
            counts = send(batch.loss_weights, device)
        said = _logits(model, batch, device)
        with torch.no_grad():
            taught = _logits(self.teacher, batch, device)[:, : said.shape[1]]
        shared = said[:, : taught.shape[1]]  # padding of the vocabulary, which no token has
        of_teacher = log_softmax(taught / temperature, -1)
        apart = (of_teacher.exp() * (of_teacher - log_softmax(shared / temperature, -1))).sum(-1)
        each = alpha * cross_entropy(said, labels, ignore_index=-100, reduction="none")
        each = each + (1 - alpha) * temperature**2 * apart
        figures = torch.stack([(apart.detach() * counts).sum(), counts.sum()])[:, None]
        return LossOutput(torch.dot(each, counts) / denominator, figures)


def _logits(model: torch.nn.Module, batch: Batch, device: torch.device) -> torch.Tensor:
    """Return fp32 logits `[R, vocabulary]` of what predicts the trained tokens."""
    inputs: dict[str, Any] = model_inputs(batch, device)
    del inputs["labels"]
    logits: torch.Tensor = model(**inputs, use_cache=False).logits
    return logits.flatten(0, 1)[send(batch.trained_rows, device)].float()
