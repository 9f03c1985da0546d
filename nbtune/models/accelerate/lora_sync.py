"""Copies a model's LoRA parameters into the matrices that multiply with them: two launches for all of them."""

import torch
from nbtune_kernels._runtime import FUSED, jit, tl, use_triton
from torch import Tensor

_FLAT = (4, 1024)  # tiles of A-like matrices: few rows, many columns
_TALL = 4096  # elements of the tiles of B-like ones


@jit
def _copy_kernel(table, ROWS: tl.constexpr, COLUMNS: tl.constexpr, OUT: tl.constexpr, ALIGNED: tl.constexpr):
    """Copy by row i of the table: source, destination, their pitches, rows and columns left, factor * 2^30."""
    at = table + tl.program_id(0) * 7
    src = tl.load(at).to(tl.pointer_type(tl.float32))
    dst = tl.load(at + 1).to(tl.pointer_type(OUT))
    src_pitch, dst_pitch, left = tl.load(at + 2), tl.load(at + 3), tl.load(at + 5)
    if ALIGNED:
        left = tl.multiple_of(left, 8)
        src, dst = tl.multiple_of(src, 16), tl.multiple_of(dst, 16)
        src_pitch, dst_pitch = tl.multiple_of(src_pitch, 8), tl.multiple_of(dst_pitch, 8)
    row, column = tl.arange(0, ROWS)[:, None], tl.arange(0, COLUMNS)[None, :]
    keep = (row < tl.load(at + 4)) & (column < left)
    factor = tl.load(at + 6).to(tl.float32) * (1.0 / 1073741824.0)
    x = tl.load(src + row * src_pitch + column, keep, other=0.0) * factor
    tl.store(dst + row * dst_pitch + column, x.to(OUT), keep)


class LoraSync:
    """Writes `factor * parameter` to its place, for every (place, parameter, factor).

    Args:
        pairs: places are matrices with unit inner stride at any pitch, in the compute dtype; parameters are contiguous.
    """

    def __init__(self, pairs: list[tuple[Tensor, Tensor, float]]):
        self.pairs = pairs
        self._parameters = [p for _, p, _ in pairs]
        self._addresses: list[int] = []
        self._tables: list[tuple[Tensor, int, int, bool]] = []
        self._single = all(p.dtype == torch.float32 for _, p, _ in pairs)

    def __call__(self) -> None:
        if not self.pairs:
            return
        place = self.pairs[0][0]
        if use_triton(place) and place.is_cuda and self._single:
            self._launch(place)
            return
        with torch.no_grad():
            for place, parameter, factor in self.pairs:
                if factor == 1.0:
                    place.copy_(parameter)
                else:
                    place.copy_(parameter * factor)

    def _launch(self, place: Tensor) -> None:
        addresses = list(map(Tensor.data_ptr, self._parameters))
        if addresses != self._addresses:
            self._tables, self._addresses = _tables(self.pairs), addresses
        out = {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.float32: tl.float32}[place.dtype]
        for table, rows, columns, aligned in self._tables:
            _copy_kernel[(table.shape[0],)](
                table, ROWS=rows, COLUMNS=columns, OUT=out, ALIGNED=aligned, **FUSED, num_warps=4
            )


def _tables(pairs: list[tuple[Tensor, Tensor, float]]) -> list[tuple[Tensor, int, int, bool]]:
    """Return (table on the device, rows and columns of its tiles, all aligned or not), one for each shape of tile."""
    tiles: dict[tuple[int, int], list[list[int]]] = {}
    for place, parameter, factor in pairs:
        rows, columns = parameter.shape
        shape = _FLAT if columns > 256 else (_TALL // _power(columns), _power(columns))
        for r in range(0, rows, shape[0]):
            for c in range(0, columns, shape[1]):
                src = parameter.data_ptr() + (r * columns + c) * parameter.element_size()
                dst = place.data_ptr() + (r * place.stride(0) + c) * place.element_size()
                entry = [src, dst, columns, place.stride(0), rows - r, columns - c, round(factor * 2**30)]
                tiles.setdefault(shape, []).append(entry)
    device = pairs[0][0].device
    return [
        (torch.tensor(rows, dtype=torch.int64).to(device), *shape, all(_is_aligned(row) for row in rows))
        for shape, rows in tiles.items()
    ]


def _is_aligned(row: list[int]) -> bool:
    return row[0] % 16 == 0 and row[1] % 16 == 0 and all(row[i] % 8 == 0 for i in (2, 3, 5))


def _power(n: int) -> int:
    return 1 << max(4, (n - 1).bit_length())
