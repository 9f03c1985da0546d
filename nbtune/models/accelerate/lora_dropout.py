"""LoRA dropout inside a block: each linear layer's adapter sees its input less a part of it.

    y_i = x W_i' + s_i D_i(x) A_i' B_i'        dx += D_i((dy_i s_i B_i) A_i)        dA_i = (dy_i s_i B_i)' D_i(x)

D_i's mask is decided by a seed, which each forward of the model draws anew, and by the layer's own stream: it is kept
nowhere, and made again for the backward.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from nbtune_kernels import dropout, lora_xa
from torch import Tensor, nn

from nbtune.models.accelerate.grad_sinks import GradJobs


class DroppingLayer(Protocol):
    """What is asked of a linear layer (`nbtune.models.accelerate.lora_member.Member`)."""

    module: nn.Module
    adapter: str
    dropout: float

    @property
    def rank(self) -> int: ...


class DroppingGroup(Protocol):
    """What is asked of a group of such layers (`nbtune.models.accelerate.lora_linear.LinearGroup`)."""

    inputs: int
    outputs: int
    device: torch.device
    matrix: Any
    stream: int

    @property
    def members(self) -> Sequence[DroppingLayer]: ...
    @property
    def a(self) -> Tensor: ...


@dataclass
class Draws:
    """What the layers of a model draw from.

    Args:
        seed: int64 `[1]`, of the forward that runs; None for no dropout.
        given: the seed that forwards take instead of one from torch's random state. What is recorded reads it anew at
            each replay.
    """

    seed: Tensor | None = None
    given: Tensor | None = None

    def draw(self, groups: Sequence[DroppingGroup]) -> None:
        """Draw a seed, if something is dropped and the model is in training."""
        first = next((m for g in groups for m in g.members if m.dropout), None)
        if first is None or not _module(first).training:
            self.seed = None
        elif self.given is not None:
            self.seed = self.given
        else:
            self.seed = torch.randint(2**62, (1,), dtype=torch.int64, device=groups[0].device)


def _module(member: DroppingLayer) -> nn.Module:
    return member.module.lora_dropout[member.adapter]  # type: ignore[no-any-return]


def _parts(group: DroppingGroup) -> list[tuple[slice, float, int]]:
    """Return (its rows of A, its rate, its stream) of every layer with an adapter."""
    out, start = [], 0
    for i, m in enumerate(group.members):
        if m.rank:
            out.append((slice(start, start + m.rank), m.dropout, group.stream + i))
        start += m.rank
    return out


def _drop(x: Tensor, rate: float, seed: Tensor, stream: int) -> Tensor:
    return dropout(x, rate, seed, stream=stream) if rate else x


def drop_project(group: DroppingGroup, x: Tensor, seed: Tensor) -> Tensor:
    """Return D_i(x) A_i' side by side, `[T, R]`, of x `[T, K]`."""
    return torch.cat([lora_xa(_drop(x, p, seed, n), group.a[rows]) for rows, p, n in _parts(group)], 1)


def drop_input_gradient(group: DroppingGroup, wide_dy: Tensor, seed: Tensor) -> Tensor:
    """Return dx `[T, K]` of [dy, dy sB] `[T, O + R]`."""
    dx = torch.mm(wide_dy[:, : group.outputs], group.matrix[: group.outputs, : group.inputs])
    dxa = wide_dy[:, group.outputs :]
    for rows, p, n in _parts(group):
        if p:
            dropout(torch.mm(dxa[:, rows], group.a[rows]), p, seed, stream=n, onto=dx)
        else:
            dx.addmm_(dxa[:, rows], group.a[rows])
    return dx


def drop_gradients(
    group: DroppingGroup, jobs: GradJobs, x: Tensor, dxa: Tensor, da: Tensor, seed: Tensor, accumulate: bool
) -> None:
    """Order dA `[R, K]` from x `[T, K]` and dy sB `[T, R]`."""
    for rows, p, n in _parts(group):
        jobs.add(dxa[:, rows], _drop(x, p, seed, n), da[rows], 1.0, False, accumulate)
