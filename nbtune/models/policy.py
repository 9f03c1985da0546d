"""What a block keeps for its backward, and what it computes again."""

from typing import Literal, get_args

__all__ = ["MEMORY_POLICIES", "MemoryPolicy"]

MemoryPolicy = Literal["keep", "selective", "recompute", "offload"]
"""What stays in memory between a block's forward and its backward.

- ``keep``: the inputs of every matrix product; norms, rotary and the gated activation are computed again.
- ``selective``: like keep, without the MLP's gate and up: their product runs again (half of a layer's bytes).
- ``recompute``: the block's input alone; everything runs again.
- ``offload``: like recompute, and the block's input waits in pinned host memory.
"""

MEMORY_POLICIES: tuple[str, ...] = get_args(MemoryPolicy)
