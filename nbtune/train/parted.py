"""Trained weights that are parted among the processes of a run (FSDP2): each has a slice of each along its first
dimension, and this process's slices are tensors as any other.

Adding gradients up is FSDP2's work, as a layer's backward ends; the optimizer sees slices alone, so it is one that
looks at each number by itself (`nbtune.spec.learning.OPTIMIZERS`).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn


def is_parted(tensor: Tensor) -> bool:
    """Return whether this process has only a part of it."""
    return hasattr(tensor, "placements")


def mine(tensor: Tensor) -> Tensor:
    """Return this process's part, which shares its memory; of one that is whole, itself."""
    return tensor.to_local() if is_parted(tensor) else tensor  # type: ignore[attr-defined,no-any-return]


def part_of(whole: Tensor, like: Tensor) -> Tensor:
    """Return of a whole tensor the part that this process has of one like it."""
    if not is_parted(like):
        return whole
    from torch.distributed.tensor import distribute_tensor

    parted: Any = like
    part = distribute_tensor(whole.to(mine(like).device), parted.device_mesh, parted.placements, src_data_rank=None)
    return part.to_local()  # type: ignore[no-any-return]


def put_together(part: Tensor, like: Tensor) -> Tensor:
    """Return this process's part, of a tensor that is parted as another one, as a part of the whole."""
    from torch.distributed.tensor import DTensor

    parted: Any = like
    return DTensor.from_local(
        part, parted.device_mesh, parted.placements, run_check=False, shape=like.shape, stride=like.stride()
    )


def gathered(named: Iterable[tuple[str, nn.Parameter]], *, keep: bool) -> dict[str, Tensor]:
    """Return whole weights on the CPU; all processes must call this, and those that do not keep them get none.

    Args:
        named: parameters with their names, the same in each process.
        keep: whether this process wants them.
    """
    weights = {}
    for name, parameter in named:
        whole = parameter.detach()
        if is_parted(whole):
            whole = whole.full_tensor()  # type: ignore[attr-defined]
        if keep:
            weights[name] = whole.cpu().contiguous()
    return weights


def norm_of(gradients: Iterable[Tensor], parts: Iterable[Tensor]) -> Tensor:
    """Return the norm of gradients that each process has whole, and of its parts of others; all must call this."""
    import torch
    import torch.distributed as dist

    parts = list(parts)
    told = [torch.linalg.vector_norm(part, dtype=torch.float32) for part in parts if part.numel()]
    # who has nothing of any takes part all the same, on the device where the others do
    squares = torch.stack(told).square().sum() if told else torch.zeros((), device=parts[0].device if parts else None)
    dist.all_reduce(squares)
    for gradient in gradients:
        squares = squares + torch.linalg.vector_norm(gradient, dtype=torch.float32).square()
    return squares.sqrt()
