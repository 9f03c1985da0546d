"""A try at some work for which memory may be short."""

from __future__ import annotations

import gc
import traceback
from types import TracebackType
from typing import TYPE_CHECKING

from nbtune.device import is_out_of_memory

if TYPE_CHECKING:
    import torch


class Attempt:
    """Notes that memory was short, and lets go of all that the work held; any other error is raised.

    >>> with Attempt() as attempt:
    ...     raise MemoryError
    >>> attempt.short
    True
    """

    short = False

    def __enter__(self) -> Attempt:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> bool:
        if error is None or not is_out_of_memory(error):
            return False
        self.short = True
        traceback.clear_frames(trace)  # activations are locals of what has failed
        error.__traceback__ = None
        del trace
        gc.collect()
        return True


def versions(optimizer: torch.optim.Optimizer) -> list[int]:
    """Return how often each tensor that an optimizer works on was written to."""
    parameters = [p._version for group in optimizer.param_groups for p in group["params"]]
    states = [one._version for state in optimizer.state.values() for one in state.values() if hasattr(one, "_version")]
    return parameters + states


def counts_versions(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether what it writes is counted: torch's own operations do, other libraries' kernels do not."""
    return type(optimizer).__module__.startswith("torch.optim")
