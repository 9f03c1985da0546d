"""Attention on un-repeated key and value heads, by the fastest way that the shape and the card allow.

What is trained together is told by a `Packing`: None means whole rows, each causal.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from nbtune_kernels import scored_attention
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from nbtune.device import describe


@dataclass(frozen=True)
class Packing:
    """Documents that share rows: a token sees its own document only.

    Args:
        cu_seqlens: int32 `[documents + 1]`, the first token of each in the flattened batch, and the end. Repeated
            ends (empty documents) are padding to a fixed length.
        longest: at least the length of the longest document.
    """

    cu_seqlens: Tensor
    longest: int


def packing_of(position_ids: Tensor | None, kwargs: dict[str, Any]) -> Packing | None:
    """Read how a batch is packed: from `cu_seq_lens_q` and `max_length_q`, else from positions that start again.

    Args:
        position_ids: `[B or 1, S]` or None. Reading them waits for the device once.
        kwargs: what the model's forward was called with.
    """
    given = kwargs.get("cu_seq_lens_q")
    if given is not None:
        longest = kwargs.get("max_length_q")
        longest = int(longest) if longest is not None else int((given[1:] - given[:-1]).max())
        return Packing(given.to(torch.int32), longest)
    if position_ids is None:
        return None
    flat = position_ids.reshape(-1)
    starts = torch.ones_like(flat, dtype=torch.bool)
    torch.ne(flat[1:], flat[:-1] + 1, out=starts[1:])
    rows, length = position_ids.shape
    starts.view(rows, length)[:, 0] = True
    first = starts.nonzero().flatten().to(torch.int32)
    if first.shape[0] == rows:
        return None
    cu = torch.cat([first, first.new_tensor([flat.shape[0]])])
    return Packing(cu, int((cu[1:] - cu[:-1]).max()))


def right_padded(mask: Tensor) -> bool:
    """Return whether it is a 2-D mask with its zeros at the end of rows: under causal attention no real token sees
    them."""
    if mask.ndim != 2:
        return False
    mask = mask.bool()
    return not bool((mask[:, 1:] & ~mask[:, :-1]).any()) and bool(mask[:, 0].all())


_FLASH, _CUDNN = SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION
# From this compute capability on, up to this size of a head: backends, best first. Measured on an H200, 4×2048 tokens,
# 32/8 heads, ms forward + backward: of 128, cuDNN 0.29 + 0.89, flash 0.56 + 1.64; of 64, 0.23 + 0.70 and 0.32 + 1.00.
# Below sm_80 there is neither.
_TABLE: list[tuple[tuple[int, int], int, list[SDPBackend]]] = [
    ((9, 0), 128, [_CUDNN, _FLASH]),
    ((8, 0), 256, [_FLASH, _CUDNN]),
    ((0, 0), 10**6, []),
]


@cache
def _order(index: int, head_dim: int) -> list[SDPBackend]:
    """Return the backends for a card and a size of heads, best first."""
    backends = next(best for since, most, best in _TABLE if _capability(index) >= since and head_dim <= most)
    return [*backends, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    packing: Packing | None,
    window: int | None = None,
    cap: float | None = None,
    slopes: Tensor | None = None,
) -> Tensor:
    """Compute causal attention, recorded for autograd if q, k, v are.

    Args:
        q: `[B, S, Hq, D]`; k, v: `[B, S, Hk, D]`, any strides with a unit last one.
        scale: of the scores.
        packing: which tokens belong together.
        window: how many tokens each sees, itself included; None: all before it.
        cap: c, of scores that become `c tanh(s / c)`.
        slopes: fp32 `[Hq]`, by how much scores fall a token of distance (ALiBi).

    Returns:
        `[B, S, Hq, D]`, contiguous.
    """
    if window is not None and window >= (q.shape[1] if packing is None else packing.longest):
        window = None  # nobody is so far from anybody
    if cap is not None or slopes is not None:
        fq, fk, fv = (t.reshape(-1, t.shape[2], t.shape[3]) for t in (q, k, v))
        told = packing or _whole_rows(q)
        options: dict[str, Any] = {"scale": scale, "cap": cap, "slopes": slopes, "window": window}
        out = scored_attention(fq, fk, fv, told.cu_seqlens, told.longest, **options)
        return out.view(q.shape)
    if packing is not None or window is not None:
        return _masked(q, k, v, scale, packing, window)
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    grouped = q.shape[1] != k.shape[1]
    if grouped and not (q.is_cuda and _capability(q.device.index) >= (8, 0)):
        k, v = (t.repeat_interleave(q.shape[1] // k.shape[1], 1) for t in (k, v))
        grouped = False
    if not q.is_cuda:
        out = scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale)
    else:
        with sdpa_kernel(_order(q.device.index, q.shape[-1]), set_priority=True):
            out = scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=grouped)
    return out.transpose(1, 2).contiguous()


def _whole_rows(q: Tensor) -> Packing:
    """Return rows of q `[B, S, H, D]` as documents of one length."""
    b, s = q.shape[:2]
    return Packing(torch.arange(0, b * s + 1, s, device=q.device, dtype=torch.int32), s)


def _masked(q: Tensor, k: Tensor, v: Tensor, scale: float, packing: Packing | None, window: int | None) -> Tensor:
    b, s, heads, dim = q.shape
    if (
        q.is_cuda
        and q.dtype in (torch.bfloat16, torch.float16)
        and _capability(q.device.index) >= (8, 0)
        and dim <= 256
    ):
        fq, fk, fv = (t.reshape(b * s, t.shape[2], dim) for t in (q, k, v))
        return _flash(fq, fk, fv, packing or _whole_rows(q), scale, window).view(b, s, heads, dim)
    # token i sees j if j <= i, j is in i's window, and both lie in one document
    mask = torch.ones(s, s, dtype=torch.bool, device=q.device).tril()
    if window is not None:
        mask = mask.triu(1 - window)
    if packing is not None:
        index = torch.arange(b * s, device=q.device, dtype=torch.int32)
        document = torch.searchsorted(packing.cu_seqlens, index, right=True).view(b, 1, s)
        mask = mask & (document[..., :, None] == document[..., None, :])
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    if q.shape[1] != k.shape[1]:
        k, v = (t.repeat_interleave(q.shape[1] // k.shape[1], 1) for t in (k, v))
    return scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=scale).transpose(1, 2).contiguous()


@cache
def _capability(index: int) -> tuple[int, int]:
    return describe(torch.device("cuda", index)).capability


def _flash(q: Tensor, k: Tensor, v: Tensor, packing: Packing, scale: float, window: int | None) -> Tensor:
    cu, longest = packing.cu_seqlens, packing.longest
    sides = {} if window is None else {"window_size_left": window - 1, "window_size_right": 0}
    out = torch.ops.aten._flash_attention_forward(
        q, k, v, cu, cu, longest, longest, 0.0, True, False, scale=scale, **sides
    )
    return out[0]
