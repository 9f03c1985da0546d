"""Decoder layers of many structures, each executed by the same blocks: losses and gradients equal stock."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from nbtune.models.accelerate import Patch, apply
from nbtune.models.adapters import add_adapter
from nbtune.spec import AdapterSpec
from tests.models import test_accelerate
from tests.models.test_accelerate import SIZES, assert_equal, batch, loss_and_gradients, make

PLAIN = {"vocab_size": 256, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
MULTI_HEAD = {**SIZES, "num_key_value_heads": 4}
FALCON = {**PLAIN, "num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 64}
GPT = {**PLAIN, "n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128}
OPT = {**PLAIN, "hidden_size": 64, "ffn_dim": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
# name: (model type, config, what its report says of a layer)
CASES: dict[str, tuple[str, dict[str, Any], str]] = {
    "norms before and behind, capped": ("gemma2", {**SIZES, "head_dim": 16, "sliding_window": 8}, "capped at 50"),
    "windows and angles in turn": ("gemma3_text", {**SIZES, "head_dim": 16, "sliding_window": 8}, "window of 8"),
    "norms behind, of whole queries": ("olmo2", SIZES, "silu MLP"),
    "the same with windows": ("olmo3", {**SIZES, "sliding_window": 8}, "window of 8"),
    "norms without weights": ("olmo", SIZES, "silu MLP"),
    "pairs of halves turn": ("glm4", {**SIZES, "head_dim": 16}, "silu MLP"),
    "parallel, by groups, in part": ("gpt_neox", {**MULTI_HEAD}, "plain gelu MLP of 96 beside it"),
    "in sequence, by groups": ("gpt_neox", {**MULTI_HEAD, "use_parallel_residual": False}, "plain gelu MLP of 96,"),
    "parallel, one norm": ("phi", {**MULTI_HEAD, "partial_rotary_factor": 0.5}, "gelu_tanh MLP of 96 beside it"),
    "one key for all": ("falcon", FALCON, "4/1 heads"),
    "groups of queries": ("falcon", {**FALCON, "new_decoder_architecture": True, "num_kv_heads": 2}, "4/2 heads"),
    "neighbours turn": ("cohere", SIZES, "silu MLP of 96 beside it"),
    "layers without angles": ("cohere2", {**SIZES, "sliding_window": 8, "num_hidden_layers": 4}, "window of 8"),
    "norms with biases": ("stablelm", SIZES, "silu MLP"),
    "plain and biased": ("starcoder2", {**SIZES, "sliding_window": 8}, "plain gelu_tanh MLP"),
    "one added to weights, relu2": ("nemotron", SIZES, "plain relu2 MLP"),
    "alibi": ("mpt", {**PLAIN, "d_model": 64, "n_heads": 4, "n_layers": 2, "max_seq_len": 128}, "ALiBi"),
    "alibi by groups": ("bloom", {**PLAIN, "hidden_size": 64, "n_layer": 2, "n_head": 4}, "ALiBi"),
    "places at the bottom": ("gpt_bigcode", GPT, "plain gelu_tanh MLP"),
    "weights that lie transposed": ("gpt2", GPT, "plain gelu_tanh MLP"),
    "places at the bottom, relu": ("opt", {**OPT, "max_position_embeddings": 128}, "plain relu MLP"),
    "some layers without angles": ("smollm3", {**SIZES, "num_hidden_layers": 4}, "silu MLP"),
}
LIMIT = 5e-5  # keys' gradients are small differences of large numbers; all others are nearer


def model_of(
    case: str,
    monkeypatch: pytest.MonkeyPatch,
    dtype: torch.dtype = torch.float32,
    adapter: AdapterSpec = test_accelerate.LORA,
) -> Any:
    family, config, _ = CASES[case]
    still = dict.fromkeys(("attention_dropout", "hidden_dropout", "attn_pdrop", "resid_pdrop", "embd_pdrop"), 0.0)
    still |= {"residual_dropout": 0.0, "embedding_dropout": 0.0, "dropout": 0.0}
    known = {n: v for n, v in still.items() if n in _fields(family)}
    monkeypatch.setattr(test_accelerate, "SIZES", {})
    monkeypatch.setitem(test_accelerate.FAMILIES, family, ({**config, **known}, True))
    return make(family, adapter, dtype)


def _fields(family: str) -> set[str]:
    from transformers import AutoConfig

    return set(AutoConfig.for_model(family).to_dict())


def taken(patch: Patch) -> list[str]:
    return [what for name, what in patch.report.taken.items() if name.startswith("layers.")]


def packed(lengths: tuple[int, ...]) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
    """Documents in one row, and each by itself, with the number of all their trained tokens."""
    documents = [batch(rows=1, length=n, seed=n) for n in lengths]
    row = {k: torch.cat([d[k] for d in documents], 1) for k in ("input_ids", "labels")}
    for start in torch.tensor(lengths).cumsum(0)[:-1].tolist():
        row["labels"][0, start] = -100
    row["position_ids"] = torch.cat([torch.arange(n) for n in lengths])[None]
    n = int((row["labels"][:, 1:] != -100).sum())
    return {**row, "num_items_in_batch": n}, [{**d, "num_items_in_batch": n} for d in documents]


@pytest.mark.parametrize("case", CASES)
def test_equals_stock(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(case, monkeypatch)
    mask = torch.ones(2, 24, dtype=torch.int64)
    mask[1, -9:] = 0
    rows = batch(length=24)
    padded = {**rows, "attention_mask": mask, "labels": rows["labels"].masked_fill(mask == 0, -100)}
    stock = [loss_and_gradients(model, b) for b in (batch(length=6), rows, padded)]
    patch = apply(model)
    assert len(taken(patch)) == len(patch.layers) == model.config.num_hidden_layers, patch.report.lines()
    assert CASES[case][2] in taken(patch)[0]
    for b, truth in zip((batch(length=6), rows, padded), stock, strict=True):
        assert_equal(loss_and_gradients(model, b), truth, LIMIT)
    for policy in ("selective", "recompute"):
        patch.set_policy(policy)  # type: ignore[arg-type]
        assert_equal(loss_and_gradients(model, rows), stock[1], LIMIT)
    row, documents = packed((12, 3, 9))
    assert_equal(loss_and_gradients(model, row), loss_and_gradients(model, *documents), LIMIT)
    patch.remove()
    assert loss_and_gradients(model, rows)[0] == pytest.approx(stock[1][0], rel=1e-6)


@pytest.mark.parametrize(
    "case",
    [
        "norms before and behind, capped",
        "norms behind, of whole queries",
        "parallel, one norm",
        "one added to weights, relu2",
        "weights that lie transposed",
    ],
)
def test_full_fine_tuning(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(case, monkeypatch, adapter=AdapterSpec(type="full"))
    stock = loss_and_gradients(model, batch())
    patch = apply(model)
    assert len(taken(patch)) == 2, patch.report.lines()
    assert_equal(loss_and_gradients(model, batch()), stock, LIMIT)


@pytest.mark.parametrize("case", ["norms before and behind, capped", "parallel, by groups, in part", "alibi"])
def test_bf16_is_taken_too(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(case, monkeypatch, torch.bfloat16)
    stock = loss_and_gradients(model, batch())
    patch = apply(model)
    assert len(taken(patch)) == 2, patch.report.lines()
    assert loss_and_gradients(model, batch())[0] == pytest.approx(stock[0], rel=1e-2)


def test_a_decoder_that_hands_its_layers_something_else_is_left_alone() -> None:
    """Gemma 3n's layers get four streams at once."""
    from tests.support import model_classes

    model = add_adapter(model_classes.make("gemma3n_text"), test_accelerate.LORA, seed=0)
    patch = apply(model)
    assert not taken(patch)
    assert "does not run it as others do" in patch.report.left["layers.0"]


def test_weights_that_nobody_knows_keep_a_layer_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of("norms with biases", monkeypatch)
    model.base_model.model.model.layers[1].gate = torch.nn.Parameter(torch.ones(1))
    patch = apply(model)
    assert len(taken(patch)) == 1
    assert "weights beside its linear layers and norms: gate" in patch.report.left["layers.1"]
