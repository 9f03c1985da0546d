"""Large biases of q, k and v, as Qwen2.5 has, make a 16-bit gradient noisy, stock's as ours: it is taken."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from nbtune.models.accelerate import apply, patch, self_check
from nbtune.models.adapters import add_adapter
from nbtune.spec import AdapterSpec


def _model(dtype: torch.dtype) -> Any:
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(
        Qwen2Config(
            hidden_size=256, intermediate_size=512, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2,
            vocab_size=512, max_position_embeddings=512,
        )
    )  # fmt: skip
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.data.normal_()
    return add_adapter(model.to(dtype), AdapterSpec(r=8), seed=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_block_with_large_biases_is_taken(dtype: torch.dtype) -> None:
    assert "layers.0" in apply(_model(dtype)).report.taken


@pytest.mark.parametrize("factor", [0.8, 1.2])
def test_a_block_that_computes_something_else_is_left_alone_however_noisy_it_is(
    monkeypatch: pytest.MonkeyPatch, factor: float
) -> None:
    find = patch.find_layer

    def wrong(*args: Any) -> Any:
        layer = find(*args)
        layer.scale *= factor
        return layer

    monkeypatch.setattr(patch, "find_layer", wrong)
    report = apply(_model(torch.bfloat16)).report
    assert "the probe disagrees" in report.left["layers.0"]


def test_a_half_that_is_nearly_one_number_is_added_once_however_its_sum_is_rounded() -> None:
    torch.manual_seed(0)
    size: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "vocab_size": 256}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "attention_bias": True, "mlp_bias": True}
    model = LlamaForCausalLM(LlamaConfig(**size, **heads))
    layer = model.model.layers[0]
    layer.self_attn.o_proj.bias.data[5], layer.mlp.down_proj.bias.data[5] = 300.0, 402.0  # 702 has no number of 16 bits
    found = apply(add_adapter(model.to(torch.bfloat16), AdapterSpec(r=8), seed=0))
    assert "layers.0" in found.report.taken, found.report.left


@pytest.mark.parametrize("error", [ValueError("no such layout\nof rows"), RuntimeError("Bias is not supported")])
def test_a_block_that_fails_in_the_probe_is_left_alone(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """As on a card that nobody has tried: the run has its stock layers, and its report says why."""
    model = _model(torch.float32)
    ids = torch.arange(40).view(2, 20)
    before = model(input_ids=ids, labels=ids).loss

    def fails(*_: Any) -> Any:
        raise error

    with monkeypatch.context() as broken:
        broken.setattr(self_check, "run_layer", fails)
        report = apply(model).report
    assert "layers.0" not in report.taken
    said = f"nbtune's block fails in the probe: {type(error).__name__}: {str(error).splitlines()[0]}"
    assert report.left["layers.0"] == said
    assert torch.allclose(model(input_ids=ids, labels=ids).loss, before, atol=1e-5)


def test_memory_that_is_gone_is_no_answer_of_a_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> Any:
        raise torch.OutOfMemoryError("none left")

    monkeypatch.setattr(self_check, "run_layer", fails)
    with pytest.raises(torch.OutOfMemoryError):
        apply(_model(torch.float32))
