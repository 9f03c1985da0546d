"""The loss of distillation: cross-entropy, and the distance from what a teacher says of the same tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch.nn.functional import cross_entropy, log_softmax

from nbtune.device.streams import send
from nbtune.train.loss import LossOutput, OfTokens, trained_logits
from nbtune.train.written_teacher import WrittenTeacher

if TYPE_CHECKING:
    from nbtune.data.batching.collate import Batch
    from nbtune.methods import Answers


@dataclass(frozen=True)
class DistillationLoss(OfTokens):
    """Σ w (α · -log p(label) + (1 - α) T² KL(q_T ‖ p_T)) / denominator over the trained tokens, w their rows' weights.

    Args:
        teacher: a causal language model with the same vocabulary, frozen; or what one has said of the rows, of which
            q is what its likeliest tokens have among themselves.
        options: `temperature` T and `alpha` α.
    """

    teacher: torch.nn.Module | WrittenTeacher
    options: Mapping[str, float | str]

    figures: ClassVar[tuple[str, ...]] = ("teacher_kl",)

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
        said = trained_logits(model, batch, device)
        of_teacher, of_student = self._both(said, batch, temperature, device)
        apart = (of_teacher.exp() * (of_teacher - of_student)).sum(-1)
        each = alpha * cross_entropy(said, labels, ignore_index=-100, reduction="none")
        each = each + (1 - alpha) * temperature**2 * apart
        figures = torch.stack([(apart.detach() * counts).sum(), counts.sum()])[:, None]
        return LossOutput(torch.dot(each, counts) / denominator, figures)

    def _both(
        self, said: torch.Tensor, batch: Batch, temperature: float, device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return log q_T and log p_T of the same tokens, `[R, tokens]`."""
        if isinstance(self.teacher, WrittenTeacher):
            written = self.teacher.of(batch, device)
            known = log_softmax(said[:, : self.teacher.vocabulary] / temperature, -1)
            return log_softmax(written.logprobs / temperature, -1), known.gather(1, written.ids)
        with torch.no_grad():
            taught = trained_logits(self.teacher, batch, device)[:, : said.shape[1]]
        shared = said[:, : taught.shape[1]]  # padding of the vocabulary, which no token has
        return log_softmax(taught / temperature, -1), log_softmax(shared / temperature, -1)
