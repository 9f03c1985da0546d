"""Products by groups: rows that lie sorted, each group of which has a matrix of its own.

    grouped_rows:  y_i = x_i W_g^T     of each row i of group g
    grouped_sums:  D_g = sum over rows i of group g of a_i^T b_i

`ends` int32 `[E]` says behind which row each group ends; a group may have none. torch's own grouped products are taken
where they run (16 bits, sm_80 and later), else one product a group.
"""

from collections.abc import Iterator

import torch
from torch import Tensor


def grouped_rows(x: Tensor, weights: Tensor, ends: Tensor) -> Tensor:
    """Return each row times its group's matrix.

    Args:
        x: `[S, K]`, sorted by group.
        weights: `[E, N, K]`, at any strides of which one is 1.
        ends: where groups end.

    Returns:
        `[S, N]`.
    """
    if _is_fast(x, weights):
        return torch.nn.functional.grouped_mm(x, weights.transpose(1, 2), offs=ends)
    out = x.new_empty(len(x), weights.shape[1])
    for group, start, end in _groups(ends):
        torch.mm(x[start:end], weights[group].t(), out=out[start:end])
    return out


def grouped_sums(a: Tensor, b: Tensor, ends: Tensor) -> Tensor:
    """Sum the outer products of each group's rows.

    Args:
        a, b: `[S, N]` and `[S, K]`, sorted by group.
        ends: where groups end.

    Returns:
        `[E, N, K]`; zero for a group without rows.
    """
    if _is_fast(a, b):
        return torch.nn.functional.grouped_mm(a.t(), b, offs=ends)
    out = a.new_zeros(len(ends), a.shape[1], b.shape[1])
    for group, start, end in _groups(ends):
        torch.mm(a[start:end].t(), b[start:end], out=out[group])
    return out


def _groups(ends: Tensor) -> Iterator[tuple[int, int, int]]:
    start = 0
    for group, end in enumerate(ends.tolist()):
        if end > start:
            yield group, start, end
        start = end


def _is_fast(*matrices: Tensor) -> bool:
    """Return whether torch's grouped products take these: whole 16 bytes from row to row."""
    if not (matrices[0].is_cuda and hasattr(torch.nn.functional, "grouped_mm")):
        return False
    return all(m.dtype == torch.bfloat16 and _aligned(m) for m in matrices) and _capable(matrices[0].device)


def _aligned(matrix: Tensor) -> bool:
    strides = [stride * matrix.element_size() for stride in matrix.stride() if stride != 1]
    return 1 in matrix.stride() and all(stride % 16 == 0 for stride in strides) and matrix.data_ptr() % 16 == 0


def _capable(device: torch.device) -> bool:
    from nbtune_kernels._runtime import compute_capability

    return compute_capability(device) >= 80
