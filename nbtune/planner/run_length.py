"""How often a run sees its rows where the spec says neither steps nor epochs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from nbtune.methods import METHODS

if TYPE_CHECKING:
    from nbtune.spec import RunSpec

_PASSES = 3
_MOST = 12  # passes that few rows get
_NARROW, _FEW_OF_NARROW, _FEW = 256, 48, 12  # steps that few rows get: of a model so wide, and of wide ones


def epochs_of(spec: RunSpec, per_epoch: int, hidden_size: int) -> float:
    """Return how often each row is seen: as asked, or three times; of few rows as often as makes 12 steps (48 of a
    narrow model), at most 12.

    That is for adapters that learn answers or texts: in a dozen steps a narrow model learns next to nothing, while a
    wider one knows few rows by heart after 24 (docs/explanation/defaults.md). Every weight, preferences and scores
    have three passes.

    Args:
        spec: its `epochs`, `method` and `adapter` count.
        per_epoch: steps in which each row is seen once.
        hidden_size: of the model, in numbers per token.
    """
    if spec.epochs is not None:
        return spec.epochs
    method = METHODS[spec.method]
    if spec.adapter.type == "full" or method.learning_rate_share != 1 or not method.by_tokens:
        return _PASSES
    few = max(_FEW, min(_FEW_OF_NARROW, _FEW_OF_NARROW * (_NARROW / max(1, hidden_size)) ** 2))
    return max(_PASSES, min(_MOST, math.ceil(few / max(1, per_epoch))))


def said_of(epochs: float) -> str:
    """Return the plan's line on it.

    >>> said_of(12)
    'neither steps nor epochs were given: 12 epochs, since the rows are few'
    """
    return f"neither steps nor epochs were given: {epochs:g} epochs{', since the rows are few' * (epochs > _PASSES)}"
