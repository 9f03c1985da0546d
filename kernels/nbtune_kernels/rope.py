"""Rotary position embedding of q and k in one launch, out of place or in place.

    pair (a, b) at angle t:   a' = a cos t - b sin t,   b' = b cos t + a sin t
    half layout:        pairs (i, i + R/2)      (Llama, Mistral, Qwen, Gemma, NeoX)
    interleaved layout: pairs (2i, 2i + 1)      (GPT-J, Cohere, GLM)

The backward pass is the transpose: the same with -sin (`inverse=True`); a scale inside cos and sin (YaRN) stays.
Only the first R = `rotary_dim` elements of a head turn. Su et al. 2021, arXiv 2104.09864.
"""

import torch
from torch import Tensor

from nbtune_kernels._runtime import FUSED, cdiv, compute_capability, fresh, jit, next_power_of_2, op, tl, use_triton
from nbtune_kernels.tables import launch


def reference(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool = False, rotary_dim: int | None = None) -> Tensor:
    """Rotate `x [B, S, heads, D]` by `cos, sin [B or 1, S, R]` with stock Hugging Face arithmetic, differentiable."""
    r = rotary_dim or x.shape[-1]
    turn, rest = x[..., :r], x[..., r:]
    if interleaved:
        other = torch.stack((-turn[..., 1::2], turn[..., ::2]), -1).flatten(-2)
    else:
        other = torch.cat((-turn[..., r // 2 :], turn[..., : r // 2]), -1)
    out = turn * cos.unsqueeze(-2) + other * sin.unsqueeze(-2)
    return torch.cat((out.to(x.dtype), rest), -1)


# ---------------------------------------------------------------- Triton: a program turns some heads of one token


@jit
def _rotate_heads(
    x_ptr, out_ptr, x_head, out_head, cos, sin, first_head, heads, half,
    DIM: tl.constexpr, INTERLEAVED: tl.constexpr, REST: tl.constexpr, HEADS: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    pair = tl.arange(0, HALF)[None, :]
    first = 2 * pair if INTERLEAVED else pair
    second = first + 1 if INTERLEAVED else pair + half
    head = first_head + tl.arange(0, HEADS)[:, None]
    mask = (head < heads) & (pair < half)
    a = tl.load(x_ptr + head * x_head + first, mask, other=0.0).to(tl.float32)
    b = tl.load(x_ptr + head * x_head + second, mask, other=0.0).to(tl.float32)
    tl.store(out_ptr + head * out_head + first, (a * cos - b * sin).to(out_ptr.dtype.element_ty), mask)
    tl.store(out_ptr + head * out_head + second, (b * cos + a * sin).to(out_ptr.dtype.element_ty), mask)
    if REST > 0:  # out of place: the part of each head that does not turn
        col = 2 * half + tl.arange(0, REST)[None, :]
        keep = (head < heads) & (col < DIM)
        tl.store(out_ptr + head * out_head + col, tl.load(x_ptr + head * x_head + col, keep, other=0.0), keep)


@jit
def _kernel(
    q_ptr, k_ptr, oq_ptr, ok_ptr, cos_ptr, sin_ptr, length, q_heads, k_heads, half, q_groups, groups,
    q_batch, q_token, q_head, k_batch, k_token, k_head, oq_batch, oq_token, oq_head, ok_batch, ok_token, ok_head,
    c_batch, c_token, c_step,
    DIM: tl.constexpr, INTERLEAVED: tl.constexpr, INVERSE: tl.constexpr, REST: tl.constexpr,
    HEADS: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    index = tl.program_id(0) // groups
    group = tl.program_id(0) % groups
    batch = (index // length).to(tl.int64)
    token = (index % length).to(tl.int64)
    pair = tl.arange(0, HALF)[None, :]
    at = batch * c_batch + token * c_token + pair * c_step
    cos = tl.load(cos_ptr + at, pair < half, other=0.0).to(tl.float32)
    sin = tl.load(sin_ptr + at, pair < half, other=0.0).to(tl.float32)
    if INVERSE:
        sin = -sin
    if group < q_groups:
        _rotate_heads(
            q_ptr + batch * q_batch + token * q_token, oq_ptr + batch * oq_batch + token * oq_token, q_head, oq_head,
            cos, sin, group * HEADS, q_heads, half, DIM, INTERLEAVED, REST, HEADS, HALF,
        )  # fmt: skip
    else:
        _rotate_heads(
            k_ptr + batch * k_batch + token * k_token, ok_ptr + batch * ok_batch + token * ok_token, k_head, ok_head,
            cos, sin, (group - q_groups) * HEADS, k_heads, half, DIM, INTERLEAVED, REST, HEADS, HALF,
        )  # fmt: skip


def _launch(q, k, cos, sin, r, interleaved, inverse, out) -> None:
    out_q, out_k = out
    batch, length, q_heads, dim = q.shape
    if cos.stride() != sin.stride():
        cos, sin = cos.contiguous(), sin.contiguous()
    k2, ok2 = (q, out_q) if k is None else (k, out_k)
    k_heads = 0 if k is None else k.shape[2]
    rest = next_power_of_2(dim - r) if r < dim and out_q is not q else 0
    table = launch("rope", compute_capability(q.device))
    half = next_power_of_2(r // 2)
    heads = max(1, min(table["pairs"] // half, next_power_of_2(q_heads)))
    q_groups, groups = cdiv(q_heads, heads), cdiv(q_heads, heads) + cdiv(k_heads, heads)
    _kernel[(batch * length * groups,)](
        q, k2, out_q, ok2, cos, sin, length, q_heads, k_heads, r // 2, q_groups, groups,
        *q.stride()[:3], *k2.stride()[:3], *out_q.stride()[:3], *ok2.stride()[:3],
        cos.stride(0) if cos.shape[0] > 1 else 0, cos.stride(1), 2 if interleaved and cos.shape[-1] == r else 1,
        DIM=dim, INTERLEAVED=interleaved, INVERSE=inverse, REST=rest,
        HEADS=heads, HALF=half, **FUSED, num_warps=table["warps"],
    )  # fmt: skip


# ---------------------------------------------------------------- plain torch


def _angles(t: Tensor, rotary_dim: int, interleaved: bool) -> Tensor:
    """Return the R/2 distinct values of `[B or 1, S, R or R/2]`, fp32."""
    if t.shape[-1] == rotary_dim:
        t = t[..., ::2] if interleaved else t[..., : rotary_dim // 2]
    return t.float()


def _rotate_torch(x: Tensor, cos: Tensor, sin: Tensor, r: int, interleaved: bool, inverse: bool, out: Tensor) -> None:
    c, s = _angles(cos, r, interleaved).unsqueeze(-2), _angles(sin, r, interleaved).unsqueeze(-2)
    s = -s if inverse else s
    first, second = (slice(0, r, 2), slice(1, r, 2)) if interleaved else (slice(0, r // 2), slice(r // 2, r))
    a, b = x[..., first].float(), x[..., second].float()
    turned_a, turned_b = a * c - b * s, b * c + a * s  # both before either is written: out may be x
    out[..., first] = turned_a.to(x.dtype)
    out[..., second] = turned_b.to(x.dtype)
    if out is not x and r < x.shape[-1]:
        out[..., r:] = x[..., r:]


def _rotate(q, k, cos, sin, r, interleaved, inverse, out) -> None:
    """Rotate into `out`, where q and k go; k may be None, and then there is nothing for it."""
    if use_triton(q):
        return _launch(q, k, cos, sin, r, interleaved, inverse, out)
    _rotate_torch(q, cos, sin, r, interleaved, inverse, out[0])
    if k is not None:
        _rotate_torch(k, cos, sin, r, interleaved, inverse, out[1])


# ---------------------------------------------------------------- ops


@op(
    "rope(Tensor q, Tensor? k, Tensor cos, Tensor sin, int rotary_dim, bool interleaved, bool inverse,"
    " Tensor(a!) out_q, Tensor(b!)? out_k) -> ()",
    lambda *_: None,
)
def _rope(q, k, cos, sin, rotary_dim, interleaved, inverse, out_q, out_k):
    _rotate(q, k, cos, sin, rotary_dim, interleaved, inverse, (out_q, out_k))


@op(
    "rope_(Tensor(a!) q, Tensor(b!)? k, Tensor cos, Tensor sin, int rotary_dim, bool interleaved, bool inverse) -> ()",
    lambda *_: None,
)
def _rope_inplace(q, k, cos, sin, rotary_dim, interleaved, inverse):
    _rotate(q, k, cos, sin, rotary_dim, interleaved, inverse, (q, k))


# ---------------------------------------------------------------- public


def rope(
    q: Tensor,
    k: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    *,
    interleaved: bool = False,
    rotary_dim: int | None = None,
    inverse: bool = False,
    inplace: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Rotate q and k.

    Args:
        q: `[B, S, Hq, D]`; k: `[B, S, Hk, D]` or None. Any strides with a unit last one: views of a packed projection,
            or transposes of `[B, H, S, D]`.
        cos, sin: `[B or 1, S, R]` (each angle twice, as Hugging Face makes them: halves, or neighbours when
            interleaved) or `[B or 1, S, R/2]`. GLM's doubled-by-halves angles with interleaved pairs: give
            `cos[..., : R // 2]`.
        rotary_dim: R, how much of each head turns (default D).
        inverse: the transposed rotation, which is the backward pass.
        inplace: write over q and k (they must not overlap each other).

    Returns:
        The rotated q and k (contiguous unless in place).

    Raises:
        ValueError: cos has angles for another `rotary_dim`, or q or k no unit last stride.
    """
    r = rotary_dim or q.shape[-1]
    if cos.shape[-1] not in (r, r // 2):
        raise ValueError(f"cos has {cos.shape[-1]} angles per token; rotary_dim {r} needs {r} or {r // 2}")
    if q.stride(-1) != 1 or (k is not None and k.stride(-1) != 1):
        raise ValueError("q and k need a unit stride in their last dimension")
    if inplace:
        _rope_inplace(q, k, cos, sin, r, interleaved, inverse)
        return q, k
    out_q, out_k = fresh(q), None if k is None else fresh(k)
    _rope(q, k, cos, sin, r, interleaved, inverse, out_q, out_k)
    return out_q, out_k
