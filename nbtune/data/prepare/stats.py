"""DataFacts: what the planner knows of the data, without loading it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict

if TYPE_CHECKING:
    import numpy as np

_BOUNDS = tuple(2**k for k in range(4, 24))


class DataFacts(BaseModel):
    """Counts of rows and tokens; `exact` if every row was tokenised, else scaled up from a sample.

    `lengths` is a histogram of tokens per example: (upper bound, examples of at most so many tokens and more than the
    bound before). `trained_tokens` are those with a loss. `pair` are the tokens of the longest pair of answers, what
    both begin with counted once (0: rows are no pairs). `chats`: some rows are conversations; None: nobody has looked.
    `whole`: all rows are texts, each trained from end to end. `untaught`: sentences about trained tokens of which the
    rows say nothing, where all were looked at.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rows: int
    eval_rows: int = 0
    tokens_total: int = 0
    trained_tokens: int = 0
    longest: int = 0
    pair: int = 0
    lengths: tuple[tuple[int, int], ...] = ()
    format: str = ""
    mapping: dict[str, str] = {}
    sources: tuple[str, ...] = ()
    exact: bool = False
    notes: tuple[str, ...] = ()
    chats: bool | None = None
    whole: bool = False
    untaught: tuple[str, ...] = ()

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


def longest_pair(rows: Callable[[int], tuple[np.ndarray, np.ndarray]], lengths: Any) -> int:
    """Return the tokens of the longest pair, what both begin with before the first that is learnt counted once.

    Args:
        rows: gives a row's ids, and which are trained: better and worse answers by turns.
        lengths: tokens of each.
    """
    import numpy as np

    values = np.asarray(lengths, np.int64)
    pairs = values[: len(values) // 2 * 2].reshape(-1, 2).sum(1)
    longest = 0
    for pair in np.argsort(-pairs):
        if pairs[pair] <= longest:
            break
        (better, learnt), (worse, also) = rows(2 * int(pair)), rows(2 * int(pair) + 1)
        most = max(0, min(int(np.argmax(learnt)), int(np.argmax(also))) - 1)
        same = better[:most] == worse[:most]
        alike = most if same.all() else int(np.argmin(same))
        longest = max(longest, int(pairs[pair]) - alike)
    return longest
