"""nbtune's attention under transformers' own interface: `attn_implementation="nbtune"`, for blocks that are left alone.

Documents of a pack are kept apart by their bounds, where sdpa needs a `[B, 1, S, S]` mask. What is neither causal nor a
pack of causal documents (windows, padding, a cache, a mask of the model's own) goes through transformers' sdpa.
"""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from nbtune.models.accelerate.attention import Packing, attend, packing_of

NAME = "nbtune"


def register() -> str:
    """Make the name known to transformers, as an attention and as a mask; return it."""
    from transformers import AttentionInterface, AttentionMaskInterface

    AttentionInterface.register(NAME, attention)
    AttentionMaskInterface.register(NAME, mask)
    return NAME


def attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> tuple[Tensor, None]:
    """Compute causal attention, as transformers calls it.

    Args:
        query: `[B, Hq, S, D]`; key, value: `[B, Hk, S, D]`.
        attention_mask: what `mask` made.
        kwargs: `scaling`, `dropout`, `is_causal`, `position_ids`, `cu_seq_lens_q` and so on.

    Returns:
        `[B, S, Hq, D]`, and no weights.

    Raises:
        ValueError: documents are packed, and something is done to their scores.
    """
    told = kwargs.get("cu_seq_lens_q") is not None and attention_mask is None
    packing = packing_of(None, kwargs) if told else getattr(attention_mask, "nbtune_packing", None)
    if packing is None and (attention_mask is not None or not _plain(module, query, key, value, kwargs)):
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)  # type: ignore[no-any-return]
    if packing is not None and not _plain(module, query, key, value, kwargs):
        raise ValueError("packed documents need attention without dropout, softcap, sinks or a window of their own")
    scale = kwargs.get("scaling")
    q, k, v = (t.transpose(1, 2) for t in (query, key, value))
    return attend(q, k, v, query.shape[-1] ** -0.5 if scale is None else scale, packing), None


def _plain(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, kwargs: dict[str, Any]) -> bool:
    """Return whether each token sees all before it, by scores that nothing is done to."""
    causal = kwargs.get("is_causal")
    causal = getattr(module, "is_causal", True) if causal is None else causal
    more = any(kwargs.get(name) is not None for name in ("softcap", "s_aux", "position_bias", "cache"))
    window = kwargs.get("sliding_window")
    return (
        bool(causal)
        and not more
        and not kwargs.get("dropout")
        and not (window and window < key.shape[2])
        and query.shape[2] == key.shape[2] > 1
        and key.shape[-1] == value.shape[-1] == query.shape[-1]
    )


def mask(
    batch_size: int,
    q_length: int = 0,
    kv_length: int = 0,
    q_offset: int = 0,
    kv_offset: int = 0,
    mask_function: Callable[..., Tensor] | None = None,
    attention_mask: Tensor | None = None,
    **kwargs: Any,
) -> Tensor | None:
    """Return what `attention` is told: nothing for causal rows, documents' bounds for packs, else sdpa's mask.

    Args:
        mask_function: of (batch, head, query, key) indices, True where a query sees a key.
        attention_mask: `[B, S]`, padding.
        kwargs: among others `cache_position`, the queries' places, by which transformers up to 5.2 tells their number.
    """
    from transformers.masking_utils import causal_mask_function

    places = kwargs.pop("cache_position", None)
    if places is not None:
        q_length, q_offset = len(places), int(places[0])
        kwargs.setdefault("device", places.device)
    function = mask_function or causal_mask_function
    whole = q_length == kv_length > 1 and isinstance(q_offset, int) and q_offset == kv_offset == 0
    window = kwargs.get("local_size")
    usual = function is causal_mask_function or kwargs.get("use_vmap") or (window and window < kv_length)
    if whole and attention_mask is None and not usual:
        packing = _documents(function, batch_size, q_length, kwargs.get("device", "cpu"))
        if packing is not None:
            marker = torch.empty((0, 0, 0, 0), dtype=torch.bool, device=kwargs.get("device", "cpu"))
            marker.nbtune_packing = packing  # type: ignore[attr-defined]
            return marker
    rest = {"kv_offset": kv_offset, "mask_function": function, "attention_mask": attention_mask, **kwargs}
    return _stock_mask(batch_size, q_length, kv_length, q_offset, **rest)


def _stock_mask(rows: int, queries: int, keys: int, offset: int, **rest: Any) -> Tensor | None:
    """Return sdpa's own mask, in whichever way this version of transformers is asked for it."""
    from transformers.masking_utils import sdpa_mask

    if "q_length" in inspect.signature(sdpa_mask).parameters:
        return sdpa_mask(rows, queries, keys, offset, **rest)  # type: ignore[no-any-return]
    places = torch.arange(offset, offset + queries, device=rest.get("device"))
    return sdpa_mask(batch_size=rows, cache_position=places, kv_length=keys, **rest)  # type: ignore[no-any-return]


def _documents(sees: Callable[..., Tensor], rows: int, length: int, device: Any) -> Packing | None:
    """Return the documents of a mask that is causal within documents and nothing else; None for one document a row, or
    others.

    Looked at in O(S): where a token does not see the one before it a document starts; within it each token must see
    itself and the start, and neither the token after it nor the one before the start.
    """
    batch, zero = torch.arange(rows, device=device)[:, None], torch.zeros((), dtype=torch.int64, device=device)
    at = torch.arange(length, device=device).expand(rows, length)

    def seen(query: Tensor, key: Tensor) -> Tensor:
        return sees(batch, zero, query, key).expand(query.shape)

    starts = torch.ones((rows, length), dtype=torch.bool, device=device)
    starts[:, 1:] = ~seen(at[:, 1:], at[:, :-1])
    first = torch.where(starts, at, 0).cummax(1).values
    before = seen(at, (first - 1).clamp(min=0)) & (first > 0)
    right = seen(at, at).all() & seen(at, first).all() & ~before.any() & ~seen(at[:, :-1], at[:, 1:]).any()
    if not bool(right) or int(starts.sum()) == rows:
        return None
    bounds = starts.flatten().nonzero().flatten().to(torch.int32)
    cu = torch.cat([bounds, bounds.new_tensor([rows * length])])
    return Packing(cu, int((cu[1:] - cu[:-1]).max()))
