"""What a decoder layer is made of: one description for all families, which one set of functions executes.

    u1 = pre1(x)          o1 = Wo attend(rotate(Wqkv u1))       a = x + m post1(o1)
    u2 = pre2(a)          o2 = Wd (act(gate) * up)              out = a + m post2(o2)         [gate, up] = Wgu u2

Each norm may be missing, and so may `up`. In a parallel layer u2 = pre2(x), and out = x + m (o1 + o2). An MLP that is
something else, a mixture of experts, stays the module that it is: o2 = mlp(u2).
"""

from dataclasses import dataclass, field
from typing import Any, Literal

from nbtune_kernels import rope
from torch import Tensor, nn

from nbtune.models.accelerate.activation_offload import ActivationOffload
from nbtune.models.accelerate.lora_dropout import Draws
from nbtune.models.accelerate.lora_linear import LinearGroup, wide
from nbtune.models.accelerate.norms import Norm
from nbtune.models.memory_estimate import MemoryPolicy

UNKNOWN: Any = object()
"""Stands where a `Packing`, or None for whole rows, may stand."""

NO_GROUP: Any = None
"""Stands where a layer has no linear layers of its own to compute."""

Angles = tuple[Tensor, Tensor]
"""cos and sin, `[B or 1, S, R]`."""

Rotary = Literal["none", "half", "pairs", "pairs of halves"]
"""Which numbers of a head turn together: i and i + R/2, or neighbours, whose angles stand side by side or not."""


class Lane:
    """Hands a gradient from one layer to the one before it, in the buffer with room beside it that this one needs."""

    def __init__(self) -> None:
        self.last: Tensor | None = None

    def wide(self, rows: int, columns: int, like: Tensor) -> Tensor:
        """Return a buffer [rows, columns] of like's dtype that the layer before may find again."""
        self.last = wide(rows, columns, like)
        return self.last

    def take(self, grad: Tensor, columns: int) -> Tensor | None:
        """Return the buffer in which `grad [T, H]` lies, if it is the last one and has so many columns."""
        last, self.last = self.last, None
        if last is None or last.shape != (grad.shape[0], columns) or grad.data_ptr() != last.data_ptr():
            return None
        return last if grad.stride() == last.stride() and grad.dtype == last.dtype else None


class Told:
    """How the tokens of this very forward belong together, for layers whose masks cannot say it."""

    packing: Any = UNKNOWN


@dataclass
class Layer:
    """What a decoder layer is made of; see the module's docstring.

    Args:
        qkv, out, gate_up, down: its linear layers; with `mlp` the last two are `NO_GROUP`.
        heads, kv_heads, head_dim: of attention.
        scale: of attention's scores; cap: c where they become c tanh(s / c); slopes: fp32 `[heads]`, by how much they
            fall a token of distance (ALiBi).
        act: of the MLP; gated: `gate_up` holds gate and up, in this order; mlp: the module that computes it, where it
            is none of two such linear layers.
        pre1, post1, pre2, post2: its norms. One that both halves share is `pre1` and `pre2`.
        parallel: both halves read x.
        residual: m.
        q_norm, k_norm: over each head, or over all of them at once.
        rotary: what turns.
        by_groups: q, k and v lie as [the queries of a key, the key, its value], once for each key; else all q, all k,
            all v.
    """

    qkv: LinearGroup
    out: LinearGroup
    gate_up: LinearGroup
    down: LinearGroup
    heads: int
    kv_heads: int
    head_dim: int
    scale: float
    act: str
    cap: float | None = None
    slopes: Tensor | None = None
    window: int | None = None  # how many tokens each sees, itself included; None: all before it
    gated: bool = True
    mlp: nn.Module | None = None
    lean: bool = False  # nearly all of `mlp` is experts, which compute gates and ups again by themselves
    pre1: Norm | None = None
    post1: Norm | None = None
    pre2: Norm | None = None
    post2: Norm | None = None
    parallel: bool = False
    residual: float = 1.0
    q_norm: Norm | None = None
    k_norm: Norm | None = None
    rotary: Rotary = "half"
    by_groups: bool = False
    policy: MemoryPolicy = "keep"
    sharded: bool = False  # its parameters may be other tensors at each call
    stock_only: bool = False  # its stock forward is wanted just now
    as_tuple: int = 0  # of how many elements its stock forward gives a tuple
    lane: Lane = field(default_factory=Lane)
    told: Told = field(default_factory=Told)
    draws: Draws = field(default_factory=Draws)
    offload: ActivationOffload | None = None

    def groups(self) -> list[LinearGroup]:
        return [self.qkv, self.out] if self.mlp is not None else [self.qkv, self.out, self.gate_up, self.down]

    def intact(self) -> bool:
        """Return whether nobody moved, merged, switched off or sharded its weights since they were attached."""
        return not self.stock_only and all(g.intact() for g in self.groups())

    def norms(self) -> list[Norm]:
        found = (self.pre1, self.post1, self.pre2, self.post2, self.q_norm, self.k_norm)
        return list({id(n): n for n in found if n is not None}.values())

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
        return [p for n in self.norms() for p in n.parameters()] + [p for g in self.groups() for p in g.parameters()]

    def split(self, qkv: Tensor, shape: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
        """Return q `[B, S, Hq, D]`, k and v `[B, S, Hk, D]` of `[T, (Hq + 2 Hk) D]`; by groups, q is `[B, S, Hk, g,
        D]`."""
        dim, each = self.head_dim, self.heads // self.kv_heads
        if not self.by_groups:
            q, k, v = qkv.split([self.heads * dim, *[self.kv_heads * dim] * 2], dim=1)
            return tuple(t.view(*shape, -1, dim) for t in (q, k, v))  # type: ignore[return-value]
        parts = qkv.view(*shape, self.kv_heads, each + 2, dim)
        q = parts[..., 0, :] if each == 1 else parts[..., :each, :]
        return q, parts[..., each, :], parts[..., each + 1, :]

    def rotate(self, q: Tensor, k: Tensor, angles: Angles | None, *, inverse: bool = False) -> None:
        """Turn q [B, S, heads, D] and k in place, by cos and sin; `inverse`: back."""
        if self.rotary == "none" or angles is None:
            return
        cos, sin = angles
        size = cos.shape[-1]
        if self.rotary == "pairs of halves":
            cos, sin = cos[..., : size // 2], sin[..., : size // 2]
        rope(q, k, cos, sin, interleaved=self.rotary != "half", rotary_dim=size, inverse=inverse, inplace=True)
