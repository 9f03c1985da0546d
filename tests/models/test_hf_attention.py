"""nbtune's attention under transformers' interface: equal to sdpa and eager, and documents of a pack stay apart."""

from __future__ import annotations

import inspect
import itertools
from typing import Any

import pytest
import torch
from transformers.masking_utils import causal_mask_function, sdpa_mask

from nbtune.models.accelerate import hf_attention
from nbtune.models.accelerate.attention import right_padded
from tests.models.test_accelerate import FAMILIES, assert_equal, batch, loss_and_gradients, make
from tests.support.every import every

LENGTHS = (5, 9, 7)


@pytest.fixture(autouse=True, scope="module")
def registered() -> None:
    hf_attention.register()


def ours(family: str) -> Any:
    model = make(family)
    model.base_model.model.set_attn_implementation(hf_attention.NAME)
    assert model.config._attn_implementation == hf_attention.NAME
    return model


@pytest.mark.parametrize("family", [f for f in FAMILIES if f != "gemma2"])
def test_rows_padding_and_packs_equal_stock(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stock, model, b = make(family), ours(family), batch()
    assert_equal(loss_and_gradients(model, b), loss_and_gradients(stock, b), 2e-5)
    mask = torch.ones_like(b["input_ids"])
    mask[1, -4:] = mask[0, :3] = 0
    padded = {**b, "attention_mask": mask, "labels": b["labels"].masked_fill(mask == 0, -100)}
    assert_equal(loss_and_gradients(model, padded), loss_and_gradients(stock, padded), 2e-5)

    documents = [batch(rows=1, length=n, seed=n) for n in LENGTHS]
    n = sum(int((d["labels"][:, 1:] != -100).sum()) for d in documents)
    packed: dict[str, Any] = {k: torch.cat([d[k] for d in documents], 1) for k in ("input_ids", "labels")}
    packed["labels"][0, [5, 14]] = -100
    packed |= {"position_ids": torch.cat([torch.arange(m) for m in LENGTHS])[None], "num_items_in_batch": n}
    apart = loss_and_gradients(stock, *[{**d, "num_items_in_batch": n} for d in documents])
    seen = []
    attend = hf_attention.attend
    monkeypatch.setattr(hf_attention, "attend", lambda *a: seen.append(a[-1]) or attend(*a))
    assert_equal(loss_and_gradients(model, packed), apart, 5e-5)
    assert len(seen) == 2
    assert every(p.cu_seqlens.tolist() == [0, 5, 14, 21] and p.longest == 9 for p in seen), "it took a mask instead"


def test_what_it_does_not_know_goes_through_sdpa() -> None:
    config, _ = FAMILIES["mistral"]
    FAMILIES["mistral"] = ({**config, "sliding_window": 6}, True)
    try:
        stock, model = make("mistral"), ours("mistral")
    finally:
        FAMILIES["mistral"] = (config, True)
    assert_equal(loss_and_gradients(model, batch()), loss_and_gradients(stock, batch()), 2e-5)
    packed = {**batch(), "position_ids": torch.cat([torch.arange(n) for n in (4, 9)])[None].expand(2, -1)}
    assert_equal(loss_and_gradients(model, packed), loss_and_gradients(stock, packed), 2e-5)


@pytest.mark.parametrize("family", ["llama", "olmo2", "gpt_neox"])
def test_generation_equals_stock(family: str) -> None:
    ids = batch(rows=2)["input_ids"]
    mask = torch.ones_like(ids)
    mask[0, :4] = 0
    words = [
        m.eval().generate(input_ids=ids, attention_mask=mask, max_new_tokens=8, do_sample=False, use_cache=True)
        for m in (make(family), ours(family))
    ]
    assert torch.equal(*words)


def chunks(b: Any, h: Any, q: Any, k: Any) -> Any:
    return (k <= q) & (q // 4 == k // 4)


def gap(b: Any, h: Any, q: Any, k: Any) -> Any:
    return (k <= q) & ~((q - k >= 2) & (q - k <= 3))


def both_ways(b: Any, h: Any, q: Any, k: Any) -> Any:
    return (k <= q) | (k < 3) & (q < 3)


def window(b: Any, h: Any, q: Any, k: Any) -> Any:
    return (k <= q) & (q - k < 5)


def stock_mask(function: Any) -> Any:
    """transformers' own, for two rows of twelve: up to 5.2 by the queries' places, then by their number."""
    old = "cache_position" in inspect.signature(sdpa_mask).parameters
    queries = {"cache_position": torch.arange(12)} if old else {"q_length": 12}
    return sdpa_mask(batch_size=2, kv_length=12, mask_function=function, allow_is_causal_skip=False, **queries)


@pytest.mark.parametrize("function", [chunks, gap, both_ways, window, causal_mask_function])
def test_a_mask_is_made_unless_it_is_of_documents(function: Any) -> None:
    """Chunks without an offset are documents; a window, a gap or a prefix that sees both ways are not."""
    found = hf_attention.mask(2, 12, 12, mask_function=function, allow_is_causal_skip=False)
    packing = getattr(found, "nbtune_packing", None)
    if function is chunks:
        assert packing.cu_seqlens.tolist() == [0, 4, 8, 12, 16, 20, 24]
    else:
        assert torch.equal(found, stock_mask(function))


def test_other_documents_in_each_row() -> None:
    ids = torch.tensor([[0, 0, 0, 1, 1, 1], [0, 0, 0, 0, 0, 1]])

    def documents(b: Any, h: Any, q: Any, k: Any) -> Any:
        return (k <= q) & (ids[b, q] == ids[b, k])

    found: Any = hf_attention.mask(2, 6, 6, mask_function=documents, allow_is_causal_skip=False)
    assert found.nbtune_packing.cu_seqlens.tolist() == [0, 3, 6, 11, 12]


@pytest.mark.parametrize("kind", [torch.int64, torch.bool])
def test_padding_is_on_the_right_where_a_row_begins_with_a_token_and_never_goes_on_again(kind: torch.dtype) -> None:
    for row in itertools.product((0, 1), repeat=4):
        mask = torch.tensor([[1, 1, 1, 1], row, [1, 0, 0, 0]], dtype=kind)
        assert right_padded(mask) == (row[0] == 1 and list(row) == sorted(row, reverse=True)), row
    assert not right_padded(torch.ones(2, 1, 4, 4, dtype=kind))
