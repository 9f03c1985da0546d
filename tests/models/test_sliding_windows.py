"""Sliding windows, wherever a family keeps them: accelerated rows that reach beyond them equal stock."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from nbtune.models.accelerate import apply
from nbtune.models.accelerate.layer_calls import Call, calls_of
from nbtune.models.accelerate.lora_member import LeftAlone
from nbtune.models.accelerate.sliding_windows import has_windows, shortened, window_of
from nbtune.models.memory_estimate import MEMORY_POLICIES
from tests.models import test_accelerate
from tests.models.test_accelerate import assert_equal, batch, loss_and_gradients, make
from tests.support.every import every
from tests.support.tiny_models import save_speaking

WINDOW = 16
SWITCHED = {"sliding_window": WINDOW, "use_sliding_window": True, "max_window_layers": 1}
# family: (config, the windows of the layers that are taken)
FAMILIES: dict[str, tuple[dict[str, Any], list[int | None]]] = {
    "mistral": ({"sliding_window": WINDOW, "head_dim": 16}, [WINDOW, WINDOW]),
    "phi3": ({"sliding_window": WINDOW}, [WINDOW, WINDOW]),
    "qwen2": (SWITCHED, [None, WINDOW]),
    "qwen3": ({**SWITCHED, "head_dim": 32}, [None, WINDOW]),
    "mixtral": ({"sliding_window": WINDOW, "num_local_experts": 4, "num_experts_per_tok": 2}, [WINDOW, WINDOW]),
    "starcoder2": ({"sliding_window": WINDOW}, [WINDOW, WINDOW]),
    "gemma2": ({"sliding_window": WINDOW, "head_dim": 16, "query_pre_attn_scalar": 16}, [WINDOW, None]),
}


@pytest.fixture(autouse=True)
def windowed(monkeypatch: pytest.MonkeyPatch) -> None:
    for family, (config, _) in FAMILIES.items():
        monkeypatch.setitem(test_accelerate.FAMILIES, family, (config, True))


def packed() -> dict[str, Any]:
    places = torch.cat([torch.arange(n) for n in (40, 9, 15)])[None]
    return {**batch(rows=1, length=64), "position_ids": places}


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_beyond_the_window_equal_stock(family: str) -> None:
    model = make(family)
    cu = torch.tensor([0, 40, 49, 64], dtype=torch.int32)
    told = {"cu_seq_lens_q": cu, "cu_seq_lens_k": cu, "max_length_q": 40, "max_length_k": 40}
    mask = torch.ones(2, 64, dtype=torch.int64)
    mask[1, -20:] = 0
    inside, beyond, both = batch(length=WINDOW), batch(length=64), packed()
    padded = {**beyond, "attention_mask": mask, "labels": beyond["labels"].masked_fill(mask == 0, -100)}
    cases = [inside, beyond, both, padded]
    stock = [loss_and_gradients(model, b) for b in cases]
    patch = apply(model)
    assert [layer.window for layer in patch.layers] == FAMILIES[family][1], patch.report.lines()
    for b, truth in zip(cases, stock, strict=True):
        assert_equal(loss_and_gradients(model, b), truth, 2e-5)
    if FAMILIES[family][1]:
        assert_equal(loss_and_gradients(model, {**both, **told}), stock[2], 1e-5)
        assert "a window of 16" in " ".join(patch.report.lines())
    assert model.config.get_text_config().sliding_window == WINDOW, "a probe left it short"


@pytest.mark.parametrize("policy", MEMORY_POLICIES)
def test_every_policy_keeps_the_window(policy: Any) -> None:
    model, b = make("mistral"), batch(length=64)
    stock = loss_and_gradients(model, b)
    apply(model, policy)
    assert_equal(loss_and_gradients(model, b), stock, 1e-5)


def test_a_window_longer_than_any_probe_is_found_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(test_accelerate.FAMILIES, "mistral", ({"sliding_window": 100, "head_dim": 16}, True))
    model, b = make("mistral"), batch(rows=1, length=120)
    stock = loss_and_gradients(model, b)
    patch = apply(model)
    assert [layer.window for layer in patch.layers] == [100, 100]
    assert_equal(loss_and_gradients(model, b), stock, 1e-5)


def windows_of(decoder: nn.Module) -> list[Any]:
    layers = list(decoder.layers)  # type: ignore[arg-type]
    with shortened(decoder):
        calls = calls_of(decoder, layers)
    return [_window_or_why(decoder, calls.get(i)) for i in range(len(layers))]


def _window_or_why(decoder: nn.Module, call: Call | None) -> Any:
    try:
        return window_of(decoder, call)
    except LeftAlone as why:
        return why


def test_windows_that_differ_are_told_apart_or_left_alone() -> None:
    """Two lengths, each shortened to the same: nobody can say which is the layer's."""
    model = make("mistral", None)
    assert windows_of(model.model) == [WINDOW, WINDOW]
    model.model.layers[0].local_window = 40
    reasons = windows_of(model.model)
    assert every("[16, 40]" in str(reason) for reason in reasons)
    assert not any(n.startswith("layers") for n in apply(model).report.taken)


def test_a_mask_that_is_no_window_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers.models.mistral import modeling_mistral

    def both_ways(**kwargs: Any) -> Any:
        return torch.ones(1, 1, *[kwargs["inputs_embeds"].shape[1]] * 2, dtype=torch.bool)

    monkeypatch.setattr(modeling_mistral, "create_sliding_window_causal_mask", both_ways)
    model, b = make("mistral"), batch(length=64)
    stock = loss_and_gradients(model, b)
    patch = apply(model)
    assert "its tokens see others" in patch.report.left["layers.0"]
    assert_equal(loss_and_gradients(model, b), stock, 1e-5)


def test_a_cap_is_asked_of_the_scores_and_not_of_a_name() -> None:
    """A number in a config caps nothing by itself; a cap that is in use under another name is left alone."""
    named, model = make("llama"), make("gemma2")
    named.config.attn_logit_softcapping = 50.0
    assert [layer.cap for layer in apply(named).layers] == [None, None]
    stock = loss_and_gradients(model, batch())
    for holder in [model.config, *(layer.self_attn for layer in model.base_model.model.model.layers)]:
        holder.attn_logit_softcapping = 30.0
    model.config.attn_logit_softcapping = None
    for layer in model.base_model.model.model.layers:
        layer.self_attn.temperature = layer.self_attn.__dict__.pop("attn_logit_softcapping")
        type(layer.self_attn).attn_logit_softcapping = property(lambda self: self.temperature)
    try:
        patch = apply(model)
        assert "none that is known" in patch.report.left["layers.0"]
        assert_equal(loss_and_gradients(model, batch()), stock, 1e-3)
    finally:
        del type(layer.self_attn).attn_logit_softcapping


def test_shortening_reaches_every_holder_and_is_undone() -> None:
    model = make("qwen2", None)
    kept = [m.sliding_window for m in model.modules() if hasattr(m, "sliding_window")]
    with contextlib.suppress(ZeroDivisionError), shortened(model):
        assert model.config.sliding_window == 5
        assert model.model.layers[1].self_attn.sliding_window == 5
        assert model.config.max_window_layers == 1
        raise ZeroDivisionError
    assert [m.sliding_window for m in model.modules() if hasattr(m, "sliding_window")] == kept
    assert has_windows(model)
    assert not has_windows(nn.Linear(2, 2))


@pytest.fixture(scope="module", params=["mistral", "phi3", "qwen2", "mixtral"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with a window, its tokenizer that of the embedded one."""
    sizes = {**test_accelerate.SIZES, **FAMILIES[request.param][0]}
    return save_speaking(request.param, tmp_path_factory.mktemp(request.param), **sizes)


@pytest.mark.parametrize("packing", [False, True])
def test_a_run_trains_the_same_with_and_without_acceleration(folder: Path, packing: bool, tmp_path: Path) -> None:
    import nbtune

    words = ["red", "green", "blue", "seven", "sailor", "harbour"]
    rows = [
        {"prompt": f"Say {i}", "completion": " ".join(words[(i * j) % 6] for j in range(1, 12 + i))} for i in range(12)
    ]
    spec = {"model": str(folder), "data": "rows", "steps": 3, "batch_size": 4, "learning_rate": 1e-2}
    spec |= {"dtype": "fp32", "device": "cpu", "sequence_len": 96, "packing": packing, "eval": {"split": 0}}
    losses = []
    for fast in (True, False):
        run = nbtune.finetune(
            {**spec, "accelerate": fast}, name=f"run-{fast}", rows={"rows": rows}, runs_dir=tmp_path
        ).wait()
        losses.append([e.loss for e in run.events() if hasattr(e, "loss") and hasattr(e, "grad_norm")])
    assert len(losses[0]) == 3
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
