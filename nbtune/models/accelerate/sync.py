"""Copies a model's LoRA parameters into the matrices that multiply with them: one launch for all of them."""

import torch
from nbtune_kernels._runtime import jit, tl, triton, use_triton
from torch import Tensor

__all__ = ["LoraSync"]

_BLOCK = 4096


@jit
def _copy_kernel(table, BLOCK: tl.constexpr, OUT: tl.constexpr):
    row = table + tl.program_id(0) * 6
    src = tl.load(row).to(tl.pointer_type(tl.float32))
    dst = tl.load(row + 1).to(tl.pointer_type(OUT))
    columns = tl.load(row + 2)
    pitch = tl.load(row + 3)
    count = tl.load(row + 4)
    scale = tl.load(row + 5).to(tl.float32) * (1.0 / 1073741824.0)
    i = tl.program_id(1).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    keep = i < count
    x = tl.load(src + i, mask=keep, other=0.0) * scale
    tl.store(dst + (i // columns) * pitch + i % columns, x.to(OUT), mask=keep)


class LoraSync:
    """Writes `factor * parameter` to its place, for every (place, parameter, factor).

    Args:
        pairs: places are matrices with unit inner stride at any pitch, in the compute dtype; parameters are contiguous.
    """

    def __init__(self, pairs: list[tuple[Tensor, Tensor, float]]):
        self.pairs = pairs
        self.table: Tensor | None = None
        self._addresses: list[int] = []

    def __call__(self) -> None:
        if not self.pairs:
            return
        place, parameter, _ = self.pairs[0]
        if use_triton(place) and place.is_cuda and all(p.dtype == torch.float32 for _, p, _ in self.pairs):
            self._launch(place)
            return
        with torch.no_grad():
            for place, parameter, factor in self.pairs:
                if factor == 1.0:
                    place.copy_(parameter)
                else:
                    place.copy_(parameter * factor)

    def _launch(self, place: Tensor) -> None:
        addresses = [p.data_ptr() for _, p, _ in self.pairs]
        if addresses != self._addresses:
            rows = [
                [p.data_ptr(), d.data_ptr(), p.shape[1], d.stride(0), p.numel(), round(f * 2**30)]
                for d, p, f in self.pairs
            ]
            self.table = torch.tensor(rows, dtype=torch.int64).to(place.device)
            self._addresses = addresses
        most = max(p.numel() for _, p, _ in self.pairs)
        kind = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.float32: tl.float32}[place.dtype]
        grid = (len(self.pairs), triton.cdiv(most, _BLOCK))
        _copy_kernel[grid](self.table, BLOCK=_BLOCK, OUT=kind, num_warps=4)
