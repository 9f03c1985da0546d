"""What was measured of a file: how near it is to the model that it was made of."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from nbtune.disk import gigabytes
from nbtune.planner.gpu_sizes import fits_in


@dataclass(frozen=True)
class Quality:
    """How near a file is to the model that it was made of.

    Args:
        type, bytes: of the file.
        same_tokens: whether every text and a rendered conversation became the same token ids.
        perplexity, reference: of the texts, by the file and by the model.
        divergence: mean Kullback-Leibler divergence of the file's next-token distributions from the model's, in nats.
        agreement: how often both think the same token likeliest (0..1).
        answers: (prompt, the file's answer, the model's answer).
        tokens: how many next tokens were compared.
    """

    type: str
    bytes: int
    same_tokens: bool
    perplexity: float
    reference: float
    divergence: float
    agreement: float
    answers: tuple[tuple[str, str, str], ...] = ()
    tokens: int = 0

    def facts(self) -> dict[str, Any]:
        """Return what was measured, as JSON has it."""
        return dataclasses.asdict(self)

    def figures(self) -> dict[str, float | bool]:
        """Return the numbers that an event holds: those that JSON can write."""
        names = ("perplexity", "reference", "divergence", "agreement", "same_tokens", "tokens")
        return {name: value for name in names if math.isfinite(value := getattr(self, name))}

    def words(self) -> str:
        """Return what it needs and what was lost: ``"fits in 8 GB, perplexity +1.3 %, KL 0.012"``."""
        change = round(100 * (self.perplexity / self.reference - 1), 1) + 0.0  # no "-0.0"
        fits = fits_in(self.bytes)
        words = f"{f'fits in {fits} GB, ' if fits else ''}perplexity {change:+.1f} %, KL {self.divergence:.2g}"
        return words if self.same_tokens else f"{words}, AND OTHER TOKENS"

    def summary(self) -> str:
        """Return one line: type, size, `words`."""
        return f"{self.type}, {gigabytes(self.bytes)}, {self.words()}"
