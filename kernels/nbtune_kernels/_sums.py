"""The second step of a sum over rows: every program of a kernel leaves a partial row, one more launch adds them.

Rows are added in a fixed order, so that two runs give the same bits.
"""

import torch
from torch import Tensor

from nbtune_kernels._runtime import FUSED, cdiv, jit, processors, tl

_ROWS, _COLUMNS = 64, 32


@jit
def _sum_partials_kernel(
    part_ptr, first_ptr, second_ptr, programs, width, stride, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    col = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    row = tl.arange(0, ROWS)
    at = part_ptr + tl.program_id(1) * width + row[:, None].to(tl.int64) * stride + col[None, :]
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, programs, ROWS):
        total += tl.load(at, (start + row[:, None] < programs) & (col[None, :] < width), other=0.0)
        at += ROWS * stride
    result = tl.sum(total, 0)
    if tl.program_id(1) == 0:
        tl.store(first_ptr + col, result.to(first_ptr.dtype.element_ty), col < width)
    else:
        tl.store(second_ptr + col, result.to(second_ptr.dtype.element_ty), col < width)


class Partials:
    """Partial sums of a kernel that walks `blocks` blocks of rows, and their total.

    Args:
        outs: one or two tensors `[width]` that get the totals; none: no sums are wanted, and a program takes one block.
        blocks: how much there is to walk.
        per_processor: programs a processor, at most, while sums are wanted.
        like: a tensor on the device; stands in for the buffer where no sums are wanted.
    """

    def __init__(self, outs: list[Tensor], blocks: int, per_processor: int, like: Tensor):
        self.outs, self.programs, self.buffer = outs, blocks, like
        if outs:
            self.programs = min(blocks, processors(like.device) * per_processor)
            shape = (self.programs, len(outs), outs[0].numel())
            self.buffer = torch.empty(shape, dtype=torch.float32, device=like.device)

    def total(self) -> None:
        """Add up what the programs left in `buffer [programs, outs, width]`."""
        if not self.outs:
            return
        width = self.outs[0].numel()
        _sum_partials_kernel[(cdiv(width, _COLUMNS), len(self.outs))](
            self.buffer, self.outs[0], self.outs[-1], self.programs, width, len(self.outs) * width,
            ROWS=_ROWS, COLUMNS=_COLUMNS, **FUSED, num_warps=4,
        )  # fmt: skip
