"""Causal attention with capped scores and ALiBi, windows and documents, without whole scores.

    t_ij = scale q_i k_j;   s_ij = cap tanh(t_ij / cap) - slope (i - j)           (cap and slope may be missing)
    i sees j if 0 <= i - j < window, and both are in one document
    o = softmax(s) v;   lse_i = log sum_j exp s_ij

    p = exp(s - lse);   ds = p (do v' - delta),  delta_i = sum do_i o_i;   dt = ds (1 - tanh^2)
    dv = p' do;   dq = scale dt k;   dk = scale dt' q

Tokens lie one after the other, `[N, heads, D]`, documents by their bounds. Keys and values may have fewer heads. The
backward pass makes the scores twice, once for dq and once for dk and dv, so that nothing is added up by atomics: two
runs give the same bits. Dao 2023, arXiv 2307.08691; Press, Smith & Lewis 2021, arXiv 2108.12409.
"""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from nbtune_kernels._runtime import (
    FUSED,
    INTERPRETED,
    cdiv,
    compute_capability,
    next_power_of_2,
    op,
    tensor_cores,
    use_triton,
)
from nbtune_kernels.attention_kernels import delta_kernel, forward_kernel, keys_kernel, queries_kernel
from nbtune_kernels.tables import attention_tiles

_NVIDIA = not INTERPRETED and torch.version.hip is None
_LOG2E = 1.4426950408889634


def reference(
    q: Tensor, k: Tensor, v: Tensor, cu: Tensor, slopes: Tensor | None, scale: float, cap: float, window: int
) -> Tensor:
    """Compute `[N, Hq, D]` by whole scores of each document in fp32 (fp64 of fp64), differentiable by autograd."""
    bounds = cu.tolist()
    out = [_of_document(q[a:b], k[a:b], v[a:b], slopes, scale, cap, window)[0] for a, b in _spans(bounds)]
    return torch.cat(out).to(q.dtype)


def _spans(bounds: list[int]) -> list[tuple[int, int]]:
    return [(a, b) for a, b in pairwise(bounds) if b > a]


def _wide(x: Tensor, heads: int) -> Tensor:
    """Return `[H, L, D]` of `[L, Hk, D]`, in at least fp32, each head as often as it is used."""
    x = x if x.dtype == torch.float64 else x.float()
    return x.transpose(0, 1).repeat_interleave(heads // x.shape[1], 0)


def _scores(
    q: Tensor, k: Tensor, slopes: Tensor | None, scale: float, cap: float, window: int
) -> tuple[Tensor, Tensor | None]:
    """Return scores `[Hq, L, L]` of one document, -inf where nothing is seen; and how steep the cap is there, None
    without."""
    heads, at = q.shape[1], torch.arange(q.shape[0], device=q.device)
    s, steep = (_wide(q, heads) @ _wide(k, heads).transpose(1, 2)) * scale, None
    if cap:
        bent = torch.tanh(s / cap)
        s, steep = cap * bent, 1 - bent * bent
    back = at[:, None] - at[None, :]
    s = s if slopes is None else s - slopes.to(s.dtype)[:, None, None] * back
    unseen = (back < 0) | (back >= window) if window else back < 0
    return s.masked_fill(unseen, -torch.inf), steep


def _of_document(
    q: Tensor, k: Tensor, v: Tensor, slopes: Tensor | None, scale: float, cap: float, window: int
) -> tuple[Tensor, Tensor]:
    """Return o `[L, Hq, D]` and lse `[Hq, L]` of one document."""
    s, _ = _scores(q, k, slopes, scale, cap, window)
    lse = s.logsumexp(-1)
    return (torch.exp(s - lse[..., None]) @ _wide(v, q.shape[1])).transpose(0, 1), lse


# ---------------------------------------------------------------- launches


def _common(q: Tensor, k: Tensor, slopes: Tensor | None, scale: float, cap: float, window: int) -> dict[str, Any]:
    dim = q.shape[2]
    inner, outer = (scale / cap, cap * _LOG2E) if cap else (1.0, scale * _LOG2E)
    return {
        "window": window, "inner": inner, "outer": outer, "GROUP": q.shape[1] // k.shape[1], "CAP": bool(cap),
        "SLOPES": slopes is not None, "WINDOW": bool(window), "D": dim, "BD": max(16, next_power_of_2(dim)),
        "APPROX": _NVIDIA and q.is_cuda and q.dtype == torch.bfloat16 and compute_capability(q.device) >= 75,
        "PRECISION": "ieee" if q.dtype == torch.float32 else "tf32", **FUSED,
    }  # fmt: skip


def _launch_forward(q, k, v, cu, slopes, longest, scale, cap, window) -> tuple[Tensor, Tensor]:
    tokens, heads, dim = q.shape
    o = torch.empty((tokens, heads, dim), dtype=q.dtype, device=q.device)
    lse = torch.empty((heads, tokens), dtype=torch.float32, device=q.device)
    common = _common(q, k, slopes, scale, cap, window)
    tiles = attention_tiles("forward", common["BD"] * q.element_size(), compute_capability(q.device))
    forward_kernel[(cdiv(longest, tiles["BM"]), cu.shape[0] - 1, heads)](
        q, k, v, o, lse, cu, q if slopes is None else slopes, *q.stride()[:2], *k.stride()[:2], *v.stride()[:2],
        heads * dim, tokens, **common, **tiles,
    )  # fmt: skip
    return o, lse


def _launch_backward(do, q, k, v, o, lse, cu, slopes, longest, scale, cap, window) -> tuple[Tensor, Tensor, Tensor]:
    tokens, heads, dim = q.shape
    kv = k.shape[1]
    dq = torch.empty((tokens, heads, dim), dtype=q.dtype, device=q.device)
    dk, dv = (torch.empty((tokens, kv, dim), dtype=q.dtype, device=q.device) for _ in range(2))
    delta = torch.empty_like(lse)
    common = _common(q, k, slopes, scale, cap, window)
    capability, size = compute_capability(q.device), common["BD"] * q.element_size()
    delta_kernel[(cdiv(tokens, 16), heads)](
        o, do, delta, heads * dim, *do.stride()[:2], tokens, D=dim, BD=common["BD"], BM=16, **FUSED, num_warps=4
    )
    rest = (
        cu, q if slopes is None else slopes, *q.stride()[:2], *k.stride()[:2], *v.stride()[:2], *do.stride()[:2],
    )  # fmt: skip
    # of wide heads one at a time: both sums would not fit a processor's registers
    for which in ("keys",) if common["BD"] <= 128 else ("only_keys", "only_values"):
        tiles = attention_tiles(which, size, capability)
        keys_kernel[(cdiv(longest, tiles["BN"]), cu.shape[0] - 1, kv)](
            q, k, v, do, lse, delta, dk, dv, *rest, kv * dim, tokens, scale=scale, **common, **tiles,
            WANT_DK=which != "only_values", WANT_DV=which != "only_keys",
        )  # fmt: skip
    tiles = attention_tiles("queries", size, capability)
    queries_kernel[(cdiv(longest, tiles["BM"]), cu.shape[0] - 1, heads)](
        q, k, v, do, lse, delta, dq, *rest, heads * dim, tokens, scale=scale, **common, **tiles
    )
    return dq, dk, dv


# ---------------------------------------------------------------- plain torch


def _forward_torch(q, k, v, cu, slopes, scale, cap, window) -> tuple[Tensor, Tensor]:
    o = torch.zeros((q.shape[0], q.shape[1], q.shape[2]), dtype=q.dtype, device=q.device)
    lse = torch.zeros((q.shape[1], q.shape[0]), dtype=torch.float32, device=q.device)
    for a, b in _spans(cu.tolist()):
        part, logs = _of_document(q[a:b], k[a:b], v[a:b], slopes, scale, cap, window)
        o[a:b], lse[:, a:b] = part.to(q.dtype), logs * _LOG2E
    return o, lse


def _backward_torch(do, q, k, v, cu, slopes, scale, cap, window) -> tuple[Tensor, Tensor, Tensor]:
    made = tuple(torch.zeros(t.shape, dtype=t.dtype, device=t.device) for t in (q, k, v))
    heads, kv = q.shape[1], k.shape[1]
    for a, b in _spans(cu.tolist()):
        wide_q, wide_k, wide_v, wide_do = (_wide(t[a:b], heads) for t in (q, k, v, do))
        s, steep = _scores(q[a:b], k[a:b], slopes, scale, cap, window)
        p, dp = s.softmax(-1), wide_do @ wide_v.transpose(1, 2)
        dt = p * (dp - (p * dp).sum(-1, keepdim=True)) * scale
        dt = dt if steep is None else dt * steep
        of_heads = (dt @ wide_k, dt.transpose(1, 2) @ wide_q, p.transpose(1, 2) @ wide_do)
        for place, grad in zip(made, of_heads, strict=True):
            shared = grad if place is made[0] else grad.unflatten(0, (kv, heads // kv)).sum(1)
            place[a:b] = shared.transpose(0, 1)
    return made


def _by_kernels(q: Tensor) -> bool:
    # before sm_80 cuBLAS makes the products; those of wide heads in fp32, without tensor cores, compile for minutes
    slow = q.dtype == torch.float32 and q.shape[2] > 128 and not INTERPRETED
    return use_triton(q) and tensor_cores(q) and not slow


# ---------------------------------------------------------------- ops


@op(
    "scored_attention(Tensor q, Tensor k, Tensor v, Tensor cu, Tensor? slopes, int longest, float scale, float cap,"
    " int window) -> (Tensor, Tensor)",
    lambda q, *_: (q.new_empty(q.shape), q.new_empty((q.shape[1], q.shape[0]), dtype=torch.float32)),
)
def _attention(q, k, v, cu, slopes, longest, scale, cap, window):
    if _by_kernels(q):
        return _launch_forward(q, k, v, cu, slopes, longest, scale, cap, window)
    return _forward_torch(q, k, v, cu, slopes, scale, cap, window)


@op(
    "scored_attention_backward(Tensor do, Tensor q, Tensor k, Tensor v, Tensor o, Tensor lse, Tensor cu,"
    " Tensor? slopes, int longest, float scale, float cap, int window) -> (Tensor, Tensor, Tensor)",
    lambda do, q, k, v, *_: tuple(t.new_empty(t.shape) for t in (q, k, v)),
)
def _attention_backward(do, q, k, v, o, lse, cu, slopes, longest, scale, cap, window):
    if _by_kernels(q):
        return _launch_backward(do, q, k, v, o, lse, cu, slopes, longest, scale, cap, window)
    return _backward_torch(do, q, k, v, cu, slopes, scale, cap, window)


# ---------------------------------------------------------------- public


class _Differentiable(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, cu: Tensor, slopes: Tensor | None, options: tuple) -> Tensor:
        o, lse = _attention(q, k, v, cu, slopes, *options)
        ctx.save_for_backward(q, k, v, o, lse, cu, slopes)
        ctx.options = options
        return o

    @staticmethod
    def backward(ctx: Any, do: Tensor) -> tuple:  # type: ignore[override]
        q, k, v, o, lse, cu, slopes = ctx.saved_tensors
        do = do if do.stride(-1) == 1 else do.contiguous()
        return (*_attention_backward(do, q, k, v, o, lse, cu, slopes, *ctx.options), None, None, None)


def scored_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu: Tensor,
    longest: int,
    *,
    scale: float,
    cap: float | None = None,
    slopes: Tensor | None = None,
    window: int | None = None,
) -> Tensor:
    """Attend within documents, causally; recorded for autograd.

    Args:
        q: `[N, Hq, D]`; k, v: `[N, Hk, D]`, Hk a divisor of Hq; any strides with a unit last one.
        cu: int32 `[documents + 1]`, where each begins, and the end; repeated ends are empty documents.
        longest: at least the longest document's length.
        scale: of the scores.
        cap: Gemma 2's c in `c tanh(s / c)`; None for none.
        slopes: fp32 `[Hq]`, ALiBi's: a score falls by so much a token of distance; None for none.
        window: how many tokens each sees, itself included; None for all before it.

    Returns:
        `[N, Hq, D]`, contiguous.

    Raises:
        ValueError: q, k and v are not heads of one size, or Hk divides Hq not.
    """
    if q.shape[1] % k.shape[1] or k.shape != v.shape or q.shape[2] != k.shape[2]:
        raise ValueError(f"shapes {tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)} are no heads of one size")
    q, k, v = (t if t.stride(-1) == 1 else t.contiguous() for t in (q, k, v))
    options = (longest, scale, float(cap or 0.0), int(window or 0))
    return _Differentiable.apply(q, k, v, cu, slopes, options)  # type: ignore[no-any-return]
