"""Rotary position embedding of q and k in one launch, out of place or in place.

    pair (a, b) at angle t:   a' = a cos t - b sin t,   b' = b cos t + a sin t
    half layout:        pairs (i, i + R/2)      (Llama, Mistral, Qwen, Gemma, NeoX)
    interleaved layout: pairs (2i, 2i + 1)      (GPT-J, Cohere, GLM)

The backward pass is the transpose: the same with -sin (`inverse=True`); a scale inside cos and sin (YaRN) stays.
Only the first R = `rotary_dim` elements of a head turn. Su et al. 2021, arXiv 2104.09864.
"""

import torch
from torch import Tensor

from ._runtime import op


def reference(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool = False, rotary_dim: int | None = None) -> Tensor:
    """Stock Hugging Face arithmetic for `x [B, S, heads, D]` and `cos, sin [B or 1, S, R]`, differentiable."""
    r = rotary_dim or x.shape[-1]
    turn, rest = x[..., :r], x[..., r:]
    if interleaved:
        other = torch.stack((-turn[..., 1::2], turn[..., ::2]), -1).flatten(-2)
    else:
        other = torch.cat((-turn[..., r // 2 :], turn[..., : r // 2]), -1)
    out = turn * cos.unsqueeze(-2) + other * sin.unsqueeze(-2)
    return torch.cat((out.to(x.dtype), rest), -1)


def _angles(t: Tensor, rotary_dim: int, interleaved: bool) -> Tensor:
    """`[B or 1, S, R or R/2]` -> the R/2 distinct values, fp32."""
    if t.shape[-1] == rotary_dim:
        t = t[..., ::2] if interleaved else t[..., : rotary_dim // 2]
    return t.float()


def _rotate_torch(x: Tensor, cos: Tensor, sin: Tensor, r: int, interleaved: bool, inverse: bool, out: Tensor) -> None:
    c, s = _angles(cos, r, interleaved).unsqueeze(-2), _angles(sin, r, interleaved).unsqueeze(-2)
    s = -s if inverse else s
    first, second = (slice(0, r, 2), slice(1, r, 2)) if interleaved else (slice(0, r // 2), slice(r // 2, r))
    a, b = x[..., first].float(), x[..., second].float()
    out[..., first] = (a * c - b * s).to(x.dtype)
    out[..., second] = (b * c + a * s).to(x.dtype)
    if out is not x and r < x.shape[-1]:
        out[..., r:] = x[..., r:]


def _rotate(q, k, cos, sin, r, interleaved, inverse, out_q, out_k) -> None:
    _rotate_torch(q, cos, sin, r, interleaved, inverse, out_q)
    if k is not None:
        _rotate_torch(k, cos, sin, r, interleaved, inverse, out_k)


def _empty(x: Tensor) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


@op(
    "rope(Tensor q, Tensor? k, Tensor cos, Tensor sin, int rotary_dim, bool interleaved, bool inverse)"
    " -> (Tensor, Tensor)",
    lambda q, k, cos, sin, r, i, v: (q.new_empty(q.shape), q.new_empty(0) if k is None else k.new_empty(k.shape)),
)
def _rope(q, k, cos, sin, rotary_dim, interleaved, inverse):
    out_q, out_k = _empty(q), q.new_empty(0) if k is None else _empty(k)
    _rotate(q, k, cos, sin, rotary_dim, interleaved, inverse, out_q, out_k)
    return out_q, out_k


@op(
    "rope_(Tensor(a!) q, Tensor(b!)? k, Tensor cos, Tensor sin, int rotary_dim, bool interleaved, bool inverse) -> ()",
    lambda q, k, cos, sin, r, i, v: None,
)
def _rope_inplace(q, k, cos, sin, rotary_dim, interleaved, inverse):
    _rotate(q, k, cos, sin, rotary_dim, interleaved, inverse, q, k)


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
    """
    r = rotary_dim or q.shape[-1]
    if cos.shape[-1] not in (r, r // 2):
        raise ValueError(f"cos has {cos.shape[-1]} angles per token; rotary_dim {r} needs {r} or {r // 2}")
    if inplace:
        _rope_inplace(q, k, cos, sin, r, interleaved, inverse)
        return q, k
    out_q, out_k = _rope(q, k, cos, sin, r, interleaved, inverse)
    return out_q, out_k if k is not None else None
