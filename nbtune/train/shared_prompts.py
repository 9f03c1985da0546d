"""A pair's prompt goes through the model once: rows of a batch as a layout of tokens without copies.

`laid_out` finds what the two rows of a pair begin with alike, up to the token that predicts the first that is learnt,
and lays the tokens out once, one after another, without padding; places are what the batch had. Packs likewise.
`can_share` asks the model, once, whether it says the same of both.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from nbtune.models.accelerate.attention import Packing
from nbtune.models.accelerate.shared_tokens import SharedTokens

if TYPE_CHECKING:
    from nbtune.data.batching.collate import Batch
    from nbtune.models import Built

# few shapes, so that a recorded step is used again: tokens are rounded up to an eighth of the power of two below them,
# rows to a quarter, as their padding goes through attention alone
_TOKENS, _WIDTHS, _LEAST = 8, 4, 8
# What the last hidden states may differ by: sums of other shapes are rounded otherwise, in every layer anew.
_ALIKE = {torch.float16: 2e-2, torch.bfloat16: 1e-1}
_WORTH = 15 / 16  # of the rows' places: more tokens than these are left as they are


def laid_out(batch: Batch, inputs: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return what takes the place of a batch's inputs (`nbtune.train.inputs`, on the host), with which of the tokens
    are asked about as ``answers.rows``, and how they are shared as ``shared.…``; None: little is shared.

    Args:
        batch: pairs side by side, better and worse.
    """
    if batch.idle_pass:
        return None
    rows, width = batch.input_ids.shape
    token, first, second = _once(batch)
    count = _rounded(len(first), _TOKENS)
    if count > _WORTH * rows * width:
        return None
    behind = np.zeros(count - len(first), np.int64)
    first, second = np.concatenate([first, behind]), np.concatenate([second, behind])
    at = torch.from_numpy(first)
    wide = width if batch.cu_seqlens is not None else _rounded(width, _WIDTHS)
    spread = np.pad(token.reshape(rows, width), ((0, 0), (0, wide - width)))
    first, second = (place // width * wide + place % width for place in (first, second))
    found = {
        "input_ids": batch.input_ids.flatten()[at][None],
        "position_ids": batch.position_ids.flatten()[at][None],
        "answers.rows": torch.from_numpy(token)[batch.trained_rows],
        "shared.token": torch.from_numpy(spread.reshape(-1)),
        "shared.first": torch.from_numpy(first),
        "shared.second": torch.from_numpy(second),
        "shared.rows": (rows, wide),
    }
    if batch.cu_seqlens is not None:
        found |= {"shared.bounds": inputs["cu_seq_lens_q"], "shared.longest": inputs["max_length_q"]}
    return found


def shared_tokens(asked: Mapping[str, Any]) -> SharedTokens | None:
    """Return how the tokens of a question are shared; None: they are not."""
    if "shared.token" not in asked:
        return None
    token, first, second, rows = (asked[f"shared.{name}"] for name in ("token", "first", "second", "rows"))
    bounds = asked.get("shared.bounds")
    packing = None if bounds is None else Packing(bounds, asked["shared.longest"])
    return SharedTokens(token, first, second, rows, packing)


def _once(batch: Batch) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return each place's token `[B S]`, and each token's first and second place `[tokens]`."""
    ids = batch.input_ids.flatten().numpy()
    token = np.zeros(len(ids), np.int64)
    first: list[np.ndarray] = []
    second: list[np.ndarray] = []
    count = 0
    rows = list(documents(batch))
    for (a, a_end, a_row), (b, b_end, b_row) in zip(rows[::2], rows[1::2], strict=True):
        most = min(a_row - a, b_row - b)
        same = ids[a : a + most] == ids[b : b + most]
        alike = most if same.all() else int(np.argmin(same))
        better, worse = np.arange(a, a_end), np.arange(b + alike, b_end)
        token[better] = count + np.arange(len(better))
        token[b : b + alike] = count + np.arange(alike)
        token[worse] = count + len(better) + np.arange(len(worse))
        first += [better, worse]
        second += [np.arange(b, b + alike), better[alike:], worse]
        count += len(better) + len(worse)
    return token, np.concatenate(first), np.concatenate(second)


def documents(batch: Batch) -> Iterator[tuple[int, int, int]]:
    """Yield (start, end, first trained row) of each example, as places in the flattened batch."""
    rows = batch.trained_rows.numpy()[batch.trained_labels.numpy() != -100]
    if batch.cu_seqlens is None:
        width = batch.input_ids.shape[1]
        mask = batch.attention_mask
        lengths = [width] * len(batch.examples) if mask is None else mask.sum(1).tolist()
        spans = [(n * width, n * width + int(length)) for n, length in enumerate(lengths)]
    else:
        spans = list(pairwise(batch.cu_seqlens.tolist()))
    at = np.searchsorted(rows, [start for start, _ in spans])
    for (start, end), place in zip(spans, at.tolist(), strict=True):
        if place < len(rows) and rows[place] < end:
            yield start, end, int(rows[place])
        elif batch.cu_seqlens is None:
            yield start, end, end  # nothing in it is learnt


def _rounded(count: int, steps: int) -> int:
    """Return a number rounded up, to one of so many between a power of two and the next."""
    multiple = max(_LEAST, 2 ** (count.bit_length() - 1) // steps)
    return -(-count // multiple) * multiple


def can_share(built: Built) -> bool:
    """Return whether a model says the same of tokens that are laid out once: where all layers are nbtune's, and what
    comes before them goes by the positions that it is told."""
    patch = built.patch
    if patch is None or not patch.whole or "head" not in patch.report.taken:
        return False
    if any(layer.sharded for layer in patch.layers):  # all processes would have to ask
        return False
    from nbtune.models.accelerate.detect import causal_lm, decoder
    from nbtune.models.accelerate.layer_trace import evaluating

    lm: Any = causal_lm(built.model)
    inner: Any = decoder(lm)
    table = lm.get_input_embeddings().weight
    batch, device = _probe(table.shape[0]), patch.layers[0].qkv.device
    asked = laid_out(batch, {})
    assert asked is not None
    told = {name: value.to(device) if isinstance(value, Tensor) else value for name, value in asked.items()}
    shared = shared_tokens(told)
    assert shared is not None
    ids = batch.input_ids.to(device)
    layout = {name: told[name] for name in ("input_ids", "position_ids")} | {"shared_tokens": shared}
    with evaluating(built.model), torch.no_grad():
        rows, once = (
            inner(**inputs, use_cache=False, return_dict=True).last_hidden_state.flatten(0, 1).float()
            for inputs in ({"input_ids": ids}, layout)
        )
    answers = _moved(once[shared.token], rows).view(4, -1)  # each by itself: a wrong position tells them apart
    return bool(answers.median(-1).values.max() <= _ALIKE.get(table.dtype, 1e-3))


def _moved(ours: Tensor, theirs: Tensor) -> Tensor:
    """Return |ours − theirs| / |theirs| of each token."""
    return (ours - theirs).norm(dim=-1) / theirs.norm(dim=-1).clamp(min=1e-12)


def _probe(vocabulary: int) -> Batch:
    """Return two pairs of rows without padding that begin alike."""
    from nbtune.data.batching.collate import collate
    from nbtune.data.prepare.dataset import Builder

    draw, builder = np.random.default_rng(5), Builder(["probe"])
    for pair, prompt in enumerate((9, 14)):
        begin = draw.integers(0, vocabulary, prompt)
        for better in (1.0, 0.0):
            ids = np.concatenate([begin, draw.integers(0, vocabulary, 32 - prompt)]).astype(np.int32)
            builder.add(ids, np.arange(32) >= prompt, 0, pair, value=better)
    return collate(builder.build(), [0, 1, 2, 3])
