"""One decoder layer (norm, attention, add; norm, gated MLP, add) as a single autograd function.

    a = x + m * Wo attend(rope(Wqkv norm1(x)))        out = a + m * Wdown (act(gate) * up),  [gate, up] = Wgu norm2(a)

`keep` saves x, [q k v] after the rotary, the attention's output and its log-sum-exp, a, and [gate up]: no product's
input twice, no norm's or activation's output at all (they are memory-bound, and computed again). `selective` drops
[gate up], `recompute` everything but x; `offload` parks x in pinned host memory meanwhile.
"""

from dataclasses import dataclass
from typing import Any

import torch
from nbtune_kernels import act_mul, act_mul_backward, rms_norm, rms_norm_apply, rms_norm_backward, rope
from torch import Tensor, nn

from nbtune.models.accelerate.attention import Packing, attend
from nbtune.models.accelerate.linear import LinearGroup, wide
from nbtune.models.policy import MemoryPolicy

__all__ = ["Layer", "LayerFunction", "Norm"]


@dataclass
class Norm:
    """An RMSNorm: its weight, and which of the usual arithmetics it does (found by the probe)."""

    weight: nn.Parameter
    eps: float
    offset: float = 0.0
    cast: bool = True

    @property
    def how(self) -> dict[str, Any]:
        return {"offset": self.offset, "cast_before_mul": self.cast}


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
    policy: MemoryPolicy = "keep"

    def groups(self) -> list[LinearGroup]:
        return [self.qkv, self.out, self.gate_up, self.down]

    def norms(self) -> list[Norm]:
        return [n for n in (self.norm1, self.norm2, self.q_norm, self.k_norm) if n is not None]

    def parameters(self) -> list[nn.Parameter]:
        """What is trained in the layer, in the order of `backward`'s gradients."""
        norms = [n.weight for n in self.norms() if n.weight.requires_grad]
        return norms + [p for g in self.groups() for p in g.parameters()]


@dataclass
class _Attention:
    """Saved by the attention half."""

    rstd: Tensor
    xa: Tensor | None
    raw: Tensor | None  # [q k v] before q and k are normalised, where they are
    leaves: tuple[Tensor, Tensor, Tensor] | None = None
    out: Tensor | None = None  # with attention's own graph behind it
    oa: Tensor | None = None
    qk_rstd: tuple[Tensor, Tensor] | None = None


@dataclass
class _Mlp:
    """Saved by the MLP half."""

    rstd: Tensor
    xa: Tensor | None
    gate_up: Tensor | None
    ha: Tensor | None = None


def attention_forward(
    layer: Layer, x: Tensor, shape: tuple[int, int], cos: Tensor, sin: Tensor, packing: Packing | None
):
    """a `[T, H]` and what the backward needs, of x `[T, H]`."""
    group, norm, tokens = layer.qkv, layer.norm1, x.shape[0]
    wide_x = wide(tokens, group.width_in, x)
    _, rstd = rms_norm(x, norm.weight, norm.eps, **norm.how, out=wide_x[:, : group.inputs])
    xa = group.project_beside(wide_x)
    qkv = torch.empty((tokens, group.outputs), dtype=x.dtype, device=x.device)
    group.forward(wide_x, qkv)
    del wide_x
    saved = _Attention(rstd, None if xa is None else xa.clone(), None)
    q, k, v = _heads(layer, qkv, shape)
    if layer.q_norm is not None and layer.k_norm is not None:
        saved.raw = qkv
        q, rq = rms_norm(q, layer.q_norm.weight, layer.q_norm.eps, **layer.q_norm.how)
        k, rk = rms_norm(k, layer.k_norm.weight, layer.k_norm.eps, **layer.k_norm.how)
        saved.qk_rstd = (rq, rk)
    rope(q, k, cos, sin, inplace=True, rotary_dim=cos.shape[-1])
    with torch.enable_grad():
        leaves = tuple(t.detach().requires_grad_() for t in (q, k, v))
        out = attend(*leaves, layer.scale, packing)
    saved.leaves, saved.out = leaves, out  # type: ignore[assignment]
    flat = out.detach().view(tokens, -1)
    saved.oa = layer.out.project(flat)
    return layer.out.forward_onto(x, flat, saved.oa, layer.residual), saved


def _heads(layer: Layer, qkv: Tensor, shape: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """q `[B, S, Hq, D]`, k and v `[B, S, Hk, D]`, views of `[T, (Hq + 2 Hk) D]`."""
    q, k, v = qkv.split([layer.heads * layer.head_dim, *[layer.kv_heads * layer.head_dim] * 2], dim=1)
    return tuple(t.view(*shape, -1, layer.head_dim) for t in (q, k, v))  # type: ignore[return-value]


def attention_backward(layer: Layer, x: Tensor, saved: _Attention, cos: Tensor, sin: Tensor, da: Tensor, need_dx: bool):
    """dx `[T, H]` (None unless needed) and the gradients of the attention half, of da `[T, H]`."""
    tokens, group, norm = x.shape[0], layer.qkv, layer.norm1
    assert saved.out is not None
    assert saved.leaves is not None
    dy = da if layer.residual == 1.0 else da * layer.residual
    flat = saved.out.detach().view(tokens, -1)
    doa = layer.out.dxa(dy)
    grads_out = layer.out.gradients(flat, dy, saved.oa, doa)
    dout = layer.out.backward(dy, doa).view(saved.out.shape)
    dq, dk, dv = torch.autograd.grad(saved.out, saved.leaves, dout)
    saved.out = saved.leaves = None
    del dout, flat

    wide_dqkv = wide(tokens, group.width_out, x)
    into = _heads(layer, wide_dqkv[:, : group.outputs], dq.shape[:2])
    for place, value in zip(into, (dq, dk, dv), strict=True):
        place.copy_(value)
    del dq, dk, dv
    rope(into[0], into[1], cos, sin, inplace=True, inverse=True, rotary_dim=cos.shape[-1])
    grads_qk = _qk_norm_backward(layer, saved, into)

    dxa = group.dxa_beside(wide_dqkv)
    dnorm = group.backward_wide(wide_dqkv) if need_dx or norm.weight.requires_grad else None
    trained = group.parameters()
    y = rms_norm_apply(x, norm.weight, saved.rstd, **norm.how) if trained else None
    grads_qkv = group.gradients(y, wide_dqkv[:, : group.outputs], saved.xa, dxa) if trained else []
    dx, dweight = None, None
    if dnorm is not None:
        want = norm.weight.requires_grad
        dx, dweight = rms_norm_backward(
            dnorm, x, norm.weight, saved.rstd, **norm.how, need_dweight=want, dresidual=da, out=dnorm
        )
    return dx, dweight, grads_qk, grads_qkv, grads_out


def _qk_norm_backward(layer: Layer, saved: _Attention, into: tuple[Tensor, Tensor, Tensor]) -> list[Tensor]:
    if layer.q_norm is None or layer.k_norm is None:
        return []
    assert saved.raw is not None
    assert saved.qk_rstd is not None
    raw, grads = _heads(layer, saved.raw, into[0].shape[:2]), []  # type: ignore[arg-type]
    for norm, x, dy, rstd in zip((layer.q_norm, layer.k_norm), raw, into, saved.qk_rstd, strict=False):
        want = norm.weight.requires_grad
        _, dw = rms_norm_backward(dy, x, norm.weight, rstd, **norm.how, need_dweight=want, out=dy)
        grads += [dw] if want else []
    saved.raw = None
    return grads


def mlp_forward(layer: Layer, a: Tensor, policy: str, need_out: bool = True) -> tuple[Tensor | None, _Mlp]:
    """out `[T, H]` and what the backward needs, of a `[T, H]`."""
    norm, group = layer.norm2, layer.gate_up
    wide_a = wide(a.shape[0], group.width_in, a)
    _, rstd = rms_norm(a, norm.weight, norm.eps, **norm.how, out=wide_a[:, : group.inputs])
    xa = group.project_beside(wide_a)
    saved = _Mlp(rstd, None if xa is None else xa.clone(), _gate_up(layer, wide_a))
    del wide_a
    if not need_out:
        return None, saved
    gate, up = _halves(layer, saved.gate_up)
    wide_h = wide(a.shape[0], layer.down.width_in, a)
    act_mul(gate, up, act=layer.act, out=wide_h[:, : layer.down.inputs])
    ha = layer.down.project_beside(wide_h)
    saved.ha = None if ha is None else ha.clone()
    out = layer.down.forward_wide_onto(a, wide_h, layer.residual)
    if policy == "selective":
        saved.gate_up = None
    return out, saved


def _gate_up(layer: Layer, wide_a: Tensor) -> Tensor:
    """[gate up] `[T, 2 I]`, in a buffer with room for the LoRA of the way back."""
    group = layer.gate_up
    both = wide(wide_a.shape[0], group.width_out, wide_a)
    group.forward(wide_a, both[:, : group.outputs])
    return both


def _halves(layer: Layer, both: Tensor | None) -> tuple[Tensor, Tensor]:
    assert both is not None
    i = layer.down.inputs
    return both[:, :i], both[:, i : 2 * i]


def mlp_backward(layer: Layer, a: Tensor, saved: _Mlp, dout: Tensor):
    """da `[T, H]` and the gradients of the MLP half, of dout `[T, H]`."""
    norm, group, down, tokens = layer.norm2, layer.gate_up, layer.down, a.shape[0]
    if saved.gate_up is None:
        saved.gate_up = _again(layer, a, saved)
    wide_dy = wide(tokens, down.width_out, a)
    dy = wide_dy[:, : down.outputs]
    torch.mul(dout, layer.residual, out=dy) if layer.residual != 1.0 else dy.copy_(dout)
    dha = down.dxa_beside(wide_dy)
    dh = down.backward_wide(wide_dy)
    gate, up = _halves(layer, saved.gate_up)
    need_h = bool(down.parameters())
    ha = saved.ha
    act_mul_backward(
        dh, gate, up, act=layer.act, need_h=need_h, out_h=dh if need_h else None, out_dgate=gate, out_dup=up
    )
    if need_h and down.rank and ha is None:
        ha = down.project(dh)
    grads_down = down.gradients(dh, dy, ha, dha) if need_h else []
    del dh, dy, wide_dy
    wide_d, saved.gate_up = saved.gate_up, None
    dxa = group.dxa_beside(wide_d)
    dnorm = group.backward_wide(wide_d)
    trained = group.parameters()
    y = rms_norm_apply(a, norm.weight, saved.rstd, **norm.how) if trained else None
    grads_gu = group.gradients(y, wide_d[:, : group.outputs], saved.xa, dxa) if trained else []
    want = norm.weight.requires_grad
    da, dweight = rms_norm_backward(
        dnorm, a, norm.weight, saved.rstd, **norm.how, need_dweight=want, dresidual=dout, out=dnorm
    )
    return da, dweight, grads_gu, grads_down


def _again(layer: Layer, a: Tensor, saved: _Mlp) -> Tensor:
    """[gate up] once more, from the saved rstd and xA'."""
    group, norm = layer.gate_up, layer.norm2
    wide_a = wide(a.shape[0], group.width_in, a)
    rms_norm_apply(a, norm.weight, saved.rstd, **norm.how, out=wide_a[:, : group.inputs])
    if saved.xa is not None:
        wide_a[:, group.inputs :].copy_(saved.xa)
    return _gate_up(layer, wide_a)


class LayerFunction(torch.autograd.Function):
    """A whole decoder layer; see the module's docstring. Its backward can run once (it works in its own buffers)."""

    @staticmethod
    def forward(
        ctx: Any, layer: Layer, x: Tensor, cos: Tensor, sin: Tensor, packing: Packing | None, *_: nn.Parameter
    ) -> Tensor:
        shape = (x.shape[0], x.shape[1])
        flat = x.reshape(-1, x.shape[-1])
        a, attention = attention_forward(layer, flat, shape, cos, sin, packing)
        out, mlp = mlp_forward(layer, a, layer.policy)
        assert out is not None
        ctx.layer, ctx.shape, ctx.packing = layer, shape, packing
        if layer.policy in ("keep", "selective"):
            ctx.save_for_backward(flat, a, cos, sin)
            ctx.halves = (attention, mlp)
        else:
            ctx.save_for_backward(flat, None, cos, sin)
            ctx.halves = None
        return out.view(x.shape)

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple:  # type: ignore[override]
        layer: Layer = ctx.layer
        x, a, cos, sin = ctx.saved_tensors
        if a is None:
            a, attention = attention_forward(layer, x, ctx.shape, cos, sin, ctx.packing)
            _, mlp = mlp_forward(layer, a, layer.policy, need_out=False)
        elif ctx.halves is None:
            raise RuntimeError("an accelerated layer keeps its activations for one backward only")
        else:
            attention, mlp = ctx.halves
        ctx.halves = None
        dout2 = dout.reshape(x.shape)
        da, dw2, grads_gu, grads_down = mlp_backward(layer, a, mlp, dout2)
        del mlp, a
        dx, dw1, grads_qk, grads_qkv, grads_out = attention_backward(
            layer, x, attention, cos, sin, da, ctx.needs_input_grad[1]
        )
        grads = [g for g in (dw1, dw2) if g is not None]
        grads += [*grads_qk, *grads_qkv, *grads_out, *grads_gu, *grads_down]
        return (None, None if dx is None else dx.view(dout.shape), None, None, None, *grads)
