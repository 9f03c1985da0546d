"""What a decoder layer is made of: its norms, its groups of linear layers, and how it is computed."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from nbtune.models.accelerate.activation_offload import ActivationOffload
from nbtune.models.accelerate.lora_dropout import Draws
from nbtune.models.accelerate.lora_linear import LinearGroup, wide
from nbtune.models.memory_estimate import MemoryPolicy


@dataclass
class Norm:
    """An RMSNorm: its weight, and which of the usual arithmetics it does (found by the probe)."""

    weight: nn.Parameter
    eps: float
    offset: float = 0.0
    cast: bool = True
    module: nn.Module | None = None
    _factor: tuple[Tensor, int, int] | None = None

    @property
    def how(self) -> dict[str, Any]:
        return {"offset": self.offset, "cast_before_mul": self.cast}

    def refresh(self) -> None:
        """Read the weight from its module again."""
        self.weight = self.module.weight  # type: ignore[union-attr, assignment]

    def factor(self) -> Tensor:
        """Return what a normalised row is multiplied with, fp32 `[H]`; made once for a frozen weight."""
        made = self._factor
        if made is None or self.weight.requires_grad or made[1:] != (self.weight.data_ptr(), self.weight._version):
            value = self.weight.detach().float() + self.offset
            self._factor = made = (value, self.weight.data_ptr(), self.weight._version)
        return made[0]


class Lane:
    """Hands a gradient from one layer to the one before it, in the buffer with room beside it that this one needs."""

    def __init__(self) -> None:
        self.last: Tensor | None = None

    def wide(self, rows: int, columns: int, like: Tensor) -> Tensor:
        """Return a buffer that the layer before may find again."""
        self.last = wide(rows, columns, like)
        return self.last

    def take(self, grad: Tensor, columns: int) -> Tensor | None:
        """Return the buffer in which `grad [T, H]` lies, if it is the last one and has so many columns."""
        last, self.last = self.last, None
        if last is None or last.shape != (grad.shape[0], columns) or grad.data_ptr() != last.data_ptr():
            return None
        return last if grad.stride() == last.stride() and grad.dtype == last.dtype else None


@dataclass
class Layer:
    """What a decoder layer is made of."""

    norm1: Norm
    qkv: LinearGroup
    out: LinearGroup
    norm2: Norm
    gate_up: LinearGroup
    down: LinearGroup
    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    act: str
    residual: float = 1.0
    q_norm: Norm | None = None
    k_norm: Norm | None = None
    window: int | None = None  # how many tokens each sees, itself included; None: all before it
    policy: MemoryPolicy = "keep"
    sharded: bool = False  # its parameters may be other tensors at each call
    stock_only: bool = False  # its stock forward is wanted just now
    as_tuple: bool = False  # its stock forward gives a tuple
    lane: Lane = field(default_factory=Lane)
    draws: Draws = field(default_factory=Draws)
    offload: ActivationOffload | None = None

    def groups(self) -> list[LinearGroup]:
        return [self.qkv, self.out, self.gate_up, self.down]

    def intact(self) -> bool:
        """Return whether nobody moved, merged, switched off or sharded its weights since they were attached."""
        return not self.stock_only and all(g.intact() for g in self.groups())

    def norms(self) -> list[Norm]:
        return [n for n in (self.norm1, self.norm2, self.q_norm, self.k_norm) if n is not None]

    def refresh(self) -> None:
        """Read its parameters from the modules again, where these may have changed."""
        if self.sharded:
            for norm in self.norms():
                norm.refresh()
            for group in self.groups():
                for m in group.members:
                    m.refresh()

    def parameters(self) -> list[nn.Parameter]:
        """Return what is trained in the layer, in the order of `backward`'s gradients."""
        norms = [n.weight for n in self.norms() if n.weight.requires_grad]
        return norms + [p for g in self.groups() for p in g.parameters()]
