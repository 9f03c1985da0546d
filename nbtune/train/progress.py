"""Where a run is."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass
class Progress:
    """Where a run is; saved in each checkpoint. `step` counts finished optimizer steps, `stale` the evaluations since
    the held-out loss last fell, `best_step` is that of the lowest."""

    step: int = 0
    tokens: int = 0
    trained_tokens: int = 0
    best_eval: float = math.inf
    best_step: int = 0
    fell_to: float = math.inf
    stale: int = 0
    learning_rate: float | None = None
