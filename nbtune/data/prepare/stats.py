"""DataFacts: what the planner knows of the data, without loading it."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

_BOUNDS = tuple(2**k for k in range(4, 24))


class DataFacts(BaseModel):
    """Counts of rows and tokens; `exact` if every row was tokenised, else scaled up from a sample.

    `lengths` is a histogram of tokens per example: (upper bound, examples of at most so many tokens and more than the
    bound before). `trained_tokens` are those with a loss.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rows: int
    eval_rows: int = 0
    tokens_total: int = 0
    trained_tokens: int = 0
    longest: int = 0
    lengths: tuple[tuple[int, int], ...] = ()
    format: str = ""
    mapping: dict[str, str] = {}
    sources: tuple[str, ...] = ()
    exact: bool = False
    notes: tuple[str, ...] = ()

    @property
    def trained_share(self) -> float:
        """Trained tokens / tokens, 0..1."""
        return self.trained_tokens / self.tokens_total if self.tokens_total else 0.0


def histogram(lengths: Any, scale: float = 1.0) -> tuple[tuple[int, int], ...]:
    """Return `DataFacts.lengths` of token counts; the last bound is the longest itself."""
    import numpy as np

    values = np.asarray(lengths)
    if not len(values):
        return ()
    longest = int(values.max())
    bounds = [b for b in _BOUNDS if b < longest] + [longest]
    counts = np.bincount(np.searchsorted(bounds, values, side="left"), minlength=len(bounds))
    return tuple((b, round(float(c) * scale)) for b, c in zip(bounds, counts, strict=True) if c)
