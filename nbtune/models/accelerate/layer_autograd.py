"""One decoder layer (norm, attention, add; norm, gated MLP, add) as a single autograd function.

    a = x + m * Wo attend(rope(Wqkv norm1(x)))        out = a + m * Wdown (act(gate) * up),  [gate, up] = Wgu norm2(a)

`keep` saves x, [q k v] after the rotary, the attention's output and its log-sum-exp, a, and [gate up]: no product's
input twice, no norm's or activation's output at all (they are memory-bound, and computed again). `selective` drops
[gate up], `recompute` everything but x; `offload` parks x in pinned host memory meanwhile.
"""

from dataclasses import dataclass
from typing import Any

import torch
from nbtune_kernels import (
    act_mul,
    act_mul_backward,
    add_rms_norm,
    rms_norm,
    rms_norm_apply,
    rms_norm_backward,
    rope,
)
from torch import Tensor, nn

from nbtune.models.accelerate.attention import Packing, attend
from nbtune.models.accelerate.grad_sinks import GradJobs, Ready
from nbtune.models.accelerate.layer_spec import Layer
from nbtune.models.accelerate.lora_linear import wide
from nbtune.models.accelerate.triton_epilogues import Partials, act_backward_grads, rotate_back


@dataclass
class _Attention:
    """Saved by the attention half."""

    rstd: Tensor
    xa: Tensor | None
    seed: Tensor | None
    raw: Tensor | None = None  # [q k v] before q and k are normalised, where they are
    leaves: tuple[Tensor, Tensor, Tensor] | None = None
    out: Tensor | None = None  # with attention's own graph behind it
    oa: Tensor | None = None
    qk_rstd: tuple[Tensor, Tensor] | None = None


@dataclass
class _Mlp:
    """Saved by the MLP half."""

    rstd: Tensor
    xa: Tensor | None
    seed: Tensor | None
    gate_up: Tensor | None
    ha: Tensor | None = None


def attention_forward(
    layer: Layer,
    x: Tensor,
    shape: tuple[int, int],
    cos: Tensor,
    sin: Tensor,
    packing: Packing | None,
    seed: Tensor | None,
) -> tuple[Tensor, _Attention]:
    """Return what attention adds to x `[T, H]`, and what the backward needs."""
    group, tokens = layer.qkv, x.shape[0]
    group.load()
    wide_x = wide(tokens, group.width_in, x)
    norm = layer.norm1
    _, rstd = rms_norm(x, norm.weight, norm.eps, **norm.how, out=wide_x[:, : group.inputs])
    saved = _Attention(rstd, group.project_beside(wide_x, seed), seed)
    qkv = torch.empty((tokens, group.outputs), dtype=x.dtype, device=x.device)
    group.forward(wide_x, qkv)
    del wide_x
    q, k, v = _heads(layer, qkv, shape)
    if layer.q_norm is not None and layer.k_norm is not None:
        saved.raw = qkv
        q, rq = rms_norm(q, layer.q_norm.weight, layer.q_norm.eps, **layer.q_norm.how)
        k, rk = rms_norm(k, layer.k_norm.weight, layer.k_norm.eps, **layer.k_norm.how)
        saved.qk_rstd = (rq, rk)
    rope(q, k, cos, sin, inplace=True, rotary_dim=cos.shape[-1])
    with torch.enable_grad():
        leaves = (q.detach().requires_grad_(), k.detach().requires_grad_(), v.detach().requires_grad_())
        out = attend(leaves[0], leaves[1], leaves[2], layer.scale, packing, layer.window)
    saved.leaves, saved.out = leaves, out  # type: ignore[assignment]
    flat = out.detach().view(tokens, -1)
    layer.out.load()
    saved.oa = layer.out.project(flat, seed)
    return layer.out.forward_plain(flat, saved.oa), saved


def _heads(layer: Layer, qkv: Tensor, shape: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """Return q `[B, S, Hq, D]`, k and v `[B, S, Hk, D]`, views of `[T, (Hq + 2 Hk) D]`."""
    q, k, v = qkv.split([layer.heads * layer.head_dim, *[layer.kv_heads * layer.head_dim] * 2], dim=1)
    return tuple(t.view(*shape, -1, layer.head_dim) for t in (q, k, v))  # type: ignore[return-value]


def attention_backward(
    layer: Layer,
    x: Tensor,
    saved: _Attention,
    cos: Tensor,
    sin: Tensor,
    wide_da: Tensor,
    need_dx: bool,
    jobs: GradJobs,
) -> tuple[Tensor | None, Tensor | None, list[Tensor | None]]:
    """Return dx `[T, H]` (None unless needed), norm1's gradient and the rest, of da in `[T, H + r]`."""
    tokens, group, norm = x.shape[0], layer.qkv, layer.norm1
    da = wide_da[:, : layer.out.outputs]
    wide_dy = wide_da
    if layer.residual != 1.0:
        wide_dy = wide(tokens, layer.out.width_out, x)
        torch.mul(da, layer.residual, out=wide_dy[:, : layer.out.outputs])
    assert saved.out is not None
    assert saved.leaves is not None
    flat = saved.out.detach().view(tokens, -1)
    layer.out.load()
    doa = layer.out.dxa_beside(wide_dy)
    grads_out = layer.out.gradients(jobs, flat, wide_dy[:, : layer.out.outputs], saved.oa, doa, seed=saved.seed)
    dout = layer.out.backward_wide(wide_dy, saved.seed).view(saved.out.shape)
    dq, dk, dv = torch.autograd.grad(saved.out, saved.leaves, dout)
    saved.out = saved.leaves = None
    del dout

    wide_dqkv = wide(tokens, group.width_out, x)
    into = _heads(layer, wide_dqkv[:, : group.outputs], dq.shape[:2])  # type: ignore[arg-type]
    if not rotate_back(dq, dk, dv, cos, sin, wide_dqkv):
        for place, value in zip(into, (dq, dk, dv), strict=True):
            place.copy_(value)
        rope(into[0], into[1], cos, sin, inplace=True, inverse=True, rotary_dim=cos.shape[-1])
    del dq, dk, dv
    grads_qk = _qk_norm_backward(layer, saved, into)

    group.load()
    dxa = group.dxa_beside(wide_dqkv, _rows_of(saved))
    grads_qkv = group.gradients(
        jobs,
        x,
        wide_dqkv[:, : group.outputs],
        saved.xa,
        dxa,
        rows=saved.rstd,
        columns=norm.factor(),
        seed=saved.seed,
    )
    dx, dweight, want = None, None, norm.weight.requires_grad
    if need_dx or want:
        dnorm = group.backward_wide(wide_dqkv, saved.seed)
        place = layer.lane.wide(tokens, layer.down.width_out, x)[:, : x.shape[1]]
        dx, dweight = rms_norm_backward(
            dnorm, x, norm.weight, saved.rstd, **norm.how, need_dweight=want, dresidual=da, out=place
        )
    return dx, dweight, [*grads_qk, *grads_qkv, *grads_out]


def _rows_of(saved: _Attention | _Mlp) -> Tensor | None:
    """Return the norm's factor of each row, which dA wants in `dxa`; with dropout the input is written out instead."""
    return saved.rstd if saved.seed is None else None


def _qk_norm_backward(layer: Layer, saved: _Attention, into: tuple[Tensor, Tensor, Tensor]) -> list[Tensor | None]:
    if layer.q_norm is None or layer.k_norm is None:
        return []
    assert saved.raw is not None
    assert saved.qk_rstd is not None
    raw = _heads(layer, saved.raw, into[0].shape[:2])  # type: ignore[arg-type]
    grads: list[Tensor | None] = []
    for norm, x, dy, rstd in zip((layer.q_norm, layer.k_norm), raw, into, saved.qk_rstd, strict=False):
        want = norm.weight.requires_grad
        _, dw = rms_norm_backward(dy, x, norm.weight, rstd, **norm.how, need_dweight=want, out=dy)
        grads += [dw] if want else []
    saved.raw = None
    return grads


def mlp_forward(
    layer: Layer, x: Tensor, added: Tensor, seed: Tensor | None, need_out: bool = True
) -> tuple[Tensor, Tensor | None, _Mlp]:
    """Return a = x + m * added, out `[T, H]`, and what the backward needs."""
    norm, group = layer.norm2, layer.gate_up
    group.load()
    wide_a = wide(x.shape[0], group.width_in, x)
    y = wide_a[:, : group.inputs]
    # the sum goes where `added` lies: it is nobody else's
    _, a, rstd = add_rms_norm(
        added, x, norm.weight, norm.eps, **norm.how, scale=layer.residual, out=y, out_residual=added
    )
    saved = _Mlp(rstd, group.project_beside(wide_a, seed), seed, _gate_up(layer, wide_a))
    del wide_a, y
    if not need_out:
        return a, None, saved
    gate, up = _halves(layer, saved.gate_up)
    down = layer.down
    wide_h = wide(x.shape[0], down.width_in, x)
    down.load()
    act_mul(gate, up, act=layer.act, out=wide_h[:, : down.inputs])
    saved.ha = down.project_beside(wide_h, seed)
    out = down.forward_wide_onto(a, wide_h, layer.residual)
    if layer.policy == "selective":
        saved.gate_up = None
    return a, out, saved


def _gate_up(layer: Layer, wide_a: Tensor) -> Tensor:
    """Return [gate up] `[T, 2 I]`, in a buffer with room for the LoRA of the way back."""
    group = layer.gate_up
    both = wide(wide_a.shape[0], group.width_out, wide_a)
    group.forward(wide_a, both[:, : group.outputs])
    return both


def _halves(layer: Layer, both: Tensor | None) -> tuple[Tensor, Tensor]:
    assert both is not None
    i = layer.down.inputs
    return both[:, :i], both[:, i : 2 * i]


def mlp_backward(
    layer: Layer, a: Tensor, saved: _Mlp, dout: Tensor, jobs: GradJobs
) -> tuple[Tensor, Tensor | None, list[Tensor | None]]:
    """Return da in `[T, H + r]`, norm2's gradient and the rest, of dout `[T, H]`."""
    norm, group, down, tokens = layer.norm2, layer.gate_up, layer.down, a.shape[0]
    again = saved.gate_up is None
    if again:
        group.load()
        saved.gate_up = _again(layer, a, saved)
    wide_dy = layer.lane.take(dout, down.width_out) if layer.residual == 1.0 else None
    if wide_dy is None:
        wide_dy = wide(tokens, down.width_out, a)
        torch.mul(dout, layer.residual, out=wide_dy[:, : down.outputs])
    down.load()
    dha = down.dxa_beside(wide_dy)
    dh = down.backward_wide(wide_dy, saved.seed)
    made = _activation_backward(layer, saved, dh, dha)
    dy = wide_dy[:, : down.outputs]
    ready = None if made is None else Ready(made, a=0)
    grads_down = down.gradients(jobs, dh, dy, saved.ha, dha, ready=ready, seed=saved.seed)
    wide_d: Tensor = saved.gate_up  # type: ignore[assignment]
    saved.gate_up = None
    if not again or group.matrix is down.matrix:
        group.load()
    dxa = group.dxa_beside(wide_d, _rows_of(saved))
    dnorm = group.backward_wide(wide_d, saved.seed)
    grads_gu = group.gradients(
        jobs,
        a,
        wide_d[:, : group.outputs],
        saved.xa,
        dxa,
        rows=saved.rstd,
        columns=norm.factor(),
        ready=None if made is None else Ready(made, bs=(1, 2)),
        seed=saved.seed,
    )
    wide_da = wide(tokens, layer.out.width_out, a)
    _, dweight = rms_norm_backward(
        dnorm,
        a,
        norm.weight,
        saved.rstd,
        **norm.how,
        need_dweight=norm.weight.requires_grad,
        dresidual=dout,
        out=wide_da[:, : a.shape[1]],
    )
    return wide_da, dweight, [*grads_gu, *grads_down]


def _activation_backward(layer: Layer, saved: _Mlp, dh: Tensor, dha: Tensor | None) -> Partials | None:
    """Turn gate and up into their gradients. The LoRA gradients that come with it, or None: then dh holds h."""
    gate, up = _halves(layer, saved.gate_up)
    r = layer.down.rank
    if dha is not None and saved.xa is not None and saved.seed is None and layer.gate_up.ranks == [r, r]:
        made = act_backward_grads(dh, gate, up, layer.act, dha, saved.xa, r)
        if made is not None:
            return made
    need_h = bool(layer.down.parameters())
    h = dh if need_h else None
    act_mul_backward(dh, gate, up, act=layer.act, need_h=need_h, out_h=h, out_dgate=gate, out_dup=up)
    return None


def _again(layer: Layer, a: Tensor, saved: _Mlp) -> Tensor:
    """Compute [gate up] once more, from the saved rstd and xA'."""
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
        seed = layer.draws.seed
        added, attention = attention_forward(layer, flat, shape, cos, sin, packing, seed)
        a, out, mlp = mlp_forward(layer, flat, added, seed)
        assert out is not None
        ctx.layer, ctx.shape, ctx.packing, ctx.seed = layer, shape, packing, seed
        if layer.policy in ("keep", "selective"):
            ctx.save_for_backward(flat, a, cos, sin)
            ctx.halves = (attention, mlp)
        elif layer.policy == "offload" and layer.offload is not None:
            ctx.save_for_backward(None, None, cos, sin)
            ctx.halves = (mlp.ha, layer.offload.park(flat))
        else:
            ctx.save_for_backward(flat, None, cos, sin)
            ctx.halves = (mlp.ha, None)
        return out.view(x.shape)

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple:  # type: ignore[override]
        layer: Layer = ctx.layer
        x, a, cos, sin = ctx.saved_tensors
        if ctx.halves is None:
            raise RuntimeError("an accelerated layer keeps its activations for one backward only")
        layer.refresh()
        if a is None:
            ha, ticket = ctx.halves
            x = x if ticket is None else layer.offload.fetch(ticket)  # type: ignore[union-attr]
            added, attention = attention_forward(layer, x, ctx.shape, cos, sin, ctx.packing, ctx.seed)
            a, _, mlp = mlp_forward(layer, x, added, ctx.seed, need_out=False)
            mlp.ha = ha
            del added
        else:
            attention, mlp = ctx.halves
        ctx.halves = None
        jobs = GradJobs()  # of both halves: fewer launches
        da, dw2, grads_mlp = mlp_backward(layer, a, mlp, dout.reshape(x.shape), jobs)
        del mlp, a
        dx, dw1, grads_attention = attention_backward(layer, x, attention, cos, sin, da, ctx.needs_input_grad[1], jobs)
        jobs.run()
        grads = [g for g in (dw1, dw2) if g is not None]
        dx = None if dx is None else dx.view(dout.shape)
        return (None, dx, None, None, None, *grads, *grads_attention, *grads_mlp)
