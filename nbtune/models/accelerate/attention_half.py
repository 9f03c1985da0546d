"""The attention of a decoder layer, from its input to what it adds, and back."""

from dataclasses import dataclass

import torch
from torch import Tensor

from nbtune.models.accelerate.attention import attend
from nbtune.models.accelerate.layer_spec import Angles, Layer
from nbtune.models.accelerate.lora_linear import wide
from nbtune.models.accelerate.norm_grads import NormGrads, seen
from nbtune.models.accelerate.norms import Norm, Stats
from nbtune.models.accelerate.shared_tokens import SharedTokens, Together
from nbtune.models.accelerate.triton_epilogues import rotate_back


@dataclass
class Attention:
    """Saved by the attention half."""

    stats: Stats | None
    xa: Tensor | None
    seed: Tensor | None
    raw: Tensor | None = None  # [q k v] before q and k are normalised, where they are
    leaves: tuple[Tensor, Tensor, Tensor] | None = None
    out: Tensor | None = None  # with attention's own graph behind it
    oa: Tensor | None = None
    qk_stats: tuple[Stats, Stats] | None = None
    added: Tensor | None = None  # what a norm behind it has read
    post: Stats | None = None
    shared: SharedTokens | None = None  # q, k, v and out are of rows, in which tokens stand more than once

    def heard(self) -> Tensor:
        """Return attention's output `[T, Hq D]`."""
        assert self.out is not None
        out = self.out.detach()
        return out.flatten(2).flatten(0, 1) if self.shared is None else self.shared.of_rows(out)


def attention_forward(
    layer: Layer,
    x: Tensor,
    shape: tuple[int, int],
    angles: Angles | None,
    packing: Together | None,
    seed: Tensor | None,
) -> tuple[Tensor, Attention]:
    """Return what attention adds to x `[T, H]`, before a norm behind it, and what the backward needs."""
    group, tokens = layer.qkv, x.shape[0]
    group.load()
    wide_x = wide(tokens, group.width_in, x)
    stats = None
    if layer.pre1 is None:
        wide_x[:, : group.inputs].copy_(x)
    else:
        _, stats = layer.pre1.forward(x, wide_x[:, : group.inputs])
    saved = Attention(stats, group.project_beside(wide_x, seed), seed)
    qkv = group.forward_wide(wide_x)
    del wide_x
    q, k, v = layer.split(qkv, shape)
    if layer.q_norm is not None and layer.k_norm is not None:
        saved.raw = qkv
        q, sq = _normalised(layer.q_norm, q)
        k, sk = _normalised(layer.k_norm, k)
        saved.qk_stats = (sq, sk)
    q = q.flatten(2, 3) if q.ndim == 5 else q  # a copy
    layer.rotate(q, k, angles)
    if isinstance(packing, SharedTokens):
        saved.shared, packing = packing, packing.packing
        q, k, v = (saved.shared.to_rows(t[0]) for t in (q, k, v))
    with torch.enable_grad():
        leaves = (q.detach().requires_grad_(), k.detach().requires_grad_(), v.detach().requires_grad_())
        out = attend(*leaves, layer.scale, packing, layer.window, layer.cap, layer.slopes)
    saved.leaves, saved.out = leaves, out
    flat = saved.heard()
    layer.out.load()
    saved.oa = layer.out.project(flat, seed)
    return layer.out.forward_plain(flat, saved.oa), saved


def _rows_of(norm: Norm, heads: Tensor) -> Tensor:
    """Return q or k `[B, S, H, D]` as the norm sees it: by heads, or `[B, S, H D]`."""
    assert norm.weight is not None
    return heads if norm.weight.shape[0] == heads.shape[-1] else heads.flatten(2)


def _normalised(norm: Norm, heads: Tensor) -> tuple[Tensor, Stats]:
    y, stats = norm.forward(_rows_of(norm, heads))
    return y.view(heads.shape), stats


def attention_backward(
    layer: Layer,
    x: Tensor,
    saved: Attention,
    angles: Angles | None,
    da: Tensor,
    wide_dy: Tensor,
    need_dx: bool,
    norms: NormGrads,
) -> tuple[Tensor | None, list[Tensor | None]]:
    """Return dx `[T, H]` (None unless needed), and gradients of the linear layers.

    Args:
        da: `[T, H]`, the gradient that passes by attention.
        wide_dy: `[T, H + r]`, that of what attention has added, with room for LoRA's.
    """
    tokens, group, norm = x.shape[0], layer.qkv, layer.pre1
    assert saved.out is not None
    assert saved.leaves is not None
    flat = saved.heard()
    layer.out.load()
    doa = layer.out.dxa_beside(wide_dy)
    grads_out = layer.out.gradients(norms.jobs, flat, wide_dy[:, : layer.out.outputs], saved.oa, doa, seed=saved.seed)
    del flat
    dout, shared = layer.out.backward_wide(wide_dy, saved.seed), saved.shared
    dout = dout if shared is None else shared.grad_to_rows(dout)
    dq, dk, dv = torch.autograd.grad(saved.out, saved.leaves, dout.view(saved.out.shape))
    saved.out = saved.leaves = None
    del dout
    if shared is not None:
        dq, dk, dv = shared.grad_of_queries(dq), shared.grad_of_keys(dk), shared.grad_of_keys(dv)
    wide_dqkv = wide(tokens, group.width_out, x)
    _heads_backward(layer, saved, (dq, dk, dv), angles, wide_dqkv, norms)
    del dq, dk, dv

    group.load()
    rows = saved.stats.rstd if saved.stats is not None and saved.seed is None and seen(norm) else None
    dxa = group.dxa_beside(wide_dqkv, rows)
    source = norms.source(norm, x, saved.stats, group)
    grads_qkv = group.gradients(
        norms.jobs, source.x, wide_dqkv[:, : group.outputs], saved.xa, dxa, rows=source.rows, columns=source.columns,
        seed=saved.seed,
    )  # fmt: skip
    dx = None
    if need_dx or (norm is not None and norm.parameters()):
        dnorm = group.backward_wide(wide_dqkv, saved.seed)
        handed = layer.post2 is None and layer.mlp is None
        place = layer.lane.wide(tokens, layer.down.width_out, x)[:, : x.shape[1]] if handed else None
        dx = norms.backward(norm, dnorm, x, saved.stats, da, place)
    return dx, [*grads_qkv, *grads_out]


def _heads_backward(
    layer: Layer,
    saved: Attention,
    grads: tuple[Tensor, Tensor, Tensor],
    angles: Angles | None,
    wide_dqkv: Tensor,
    norms: NormGrads,
) -> None:
    """Write the gradients of q, k and v, rotary and norms undone, to where the projection put q, k and v."""
    dq, dk, dv = grads
    into = layer.split(wide_dqkv[:, : layer.qkv.outputs], (dq.shape[0], dq.shape[1]))
    plain = not layer.by_groups and layer.rotary == "half"
    done = plain and angles is not None and rotate_back(dq, dk, dv, angles[0], angles[1], wide_dqkv)
    if not done:
        layer.rotate(dq, dk, angles, inverse=True)
    if layer.q_norm is not None and layer.k_norm is not None:
        assert saved.raw is not None
        assert saved.qk_stats is not None
        raw = layer.split(saved.raw, (dq.shape[0], dq.shape[1]))
        made = into[:2] if done else (dq, dk)
        for norm, x, dy, stats in zip((layer.q_norm, layer.k_norm), raw, made, saved.qk_stats, strict=False):
            rows, in_place = _rows_of(norm, dy), _rows_of(norm, dy) is dy and not norm.centred
            dx = norms.backward(norm, rows, _rows_of(norm, x.reshape(dy.shape)), stats, None, dy if in_place else None)
            if not in_place:
                dy.copy_(dx.view(dy.shape))
        saved.raw = None
    if not done:
        for place, value in zip(into, (dq, dk, dv), strict=True):
            place.copy_(value.view(place.shape) if place.ndim == 5 else value)
