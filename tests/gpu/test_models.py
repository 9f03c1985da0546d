"""Accelerated models on a real card: gradients, memory policies, packing, recorded steps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
)

from nbtune.models.accelerate import apply
from nbtune.models.adapters import add_adapter
from nbtune.models.cuda_graph_step import TrainStep
from nbtune.models.memory_estimate import MEMORY_POLICIES
from nbtune.spec import AdapterSpec

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def make(dtype: torch.dtype, window: int | None = None, family: str = "") -> Any:
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 4, "num_attention_heads": 8,
        "num_key_value_heads": 2, "vocab_size": 4096,
    }  # fmt: skip
    stock: Any = LlamaForCausalLM(LlamaConfig(**sizes)) if window is None else None
    if family:
        options = {"head_dim": 64, "sliding_window": 96, "layer_types": ["sliding_attention", "full_attention"] * 2}
        of_gemma = {**options, "query_pre_attn_scalar": 64} if family == "gemma3_text" else {}
        stock = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **sizes, **of_gemma))
    stock = stock or MistralForCausalLM(MistralConfig(**sizes, sliding_window=window))
    model = add_adapter(stock.to("cuda", dtype), AdapterSpec(r=16), seed=1)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.copy_(torch.randn(p.shape, generator=generator) * 0.02)
    return model.train()


def batch() -> dict[str, Any]:
    # enough tokens for the kernels that are chosen by the number of rows
    ids = torch.randint(0, 4096, (4, 640), generator=torch.Generator().manual_seed(9)).cuda()
    labels = ids.clone()
    labels[0, :400] = -100
    return {"input_ids": ids, "labels": labels, "use_cache": False}


def gradients(model: nn.Module, inputs: dict[str, Any]) -> tuple[float, dict[str, Tensor]]:
    loss = model(**inputs).loss
    loss.backward()
    found = {n: p.grad.float().clone() for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return loss.item(), found


def worst(found: dict[str, Tensor], truth: dict[str, Tensor]) -> float:
    return max(float((found[n] - truth[n]).norm() / truth[n].norm()) for n in truth)


@pytest.fixture(scope="module")
def truth() -> tuple[float, dict[str, Tensor]]:
    return gradients(make(torch.float32), batch())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("policy", MEMORY_POLICIES)
def test_gradients_of_every_lora_matrix(
    policy: Any, dtype: torch.dtype, truth: tuple[float, dict[str, Tensor]]
) -> None:
    model = make(dtype)
    stock = worst(gradients(model, batch())[1], truth[1])
    patch = apply(model, policy)
    assert not patch.report.left
    loss, found = gradients(model, batch())
    assert loss == pytest.approx(truth[0], rel=1e-5 if dtype == torch.float32 else 1e-4)
    assert worst(found, truth[1]) <= (1e-4 if dtype == torch.float32 else 1.3 * stock)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_documents(dtype: torch.dtype) -> None:
    positions = torch.cat([torch.arange(n) for n in (100, 300, 240)])[None].expand(4, -1).contiguous().cuda()
    inputs = {**batch(), "position_ids": positions}
    loss, found = gradients(make(torch.float32), inputs)
    model = make(dtype)
    apply(model)
    ours = gradients(model, inputs)
    assert ours[0] == pytest.approx(loss, rel=1e-5 if dtype == torch.float32 else 1e-4)
    assert worst(ours[1], found) <= (1e-4 if dtype == torch.float32 else 5e-2)


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_sliding_windows(dtype: torch.dtype, packed: bool) -> None:
    inputs = batch()
    if packed:
        positions = torch.cat([torch.arange(n) for n in (100, 300, 240)])[None].expand(4, -1)
        inputs["position_ids"] = positions.contiguous().cuda()
    loss, found = gradients(make(torch.float32, 96), inputs)
    model = make(dtype, 96)
    patch = apply(model)
    assert [layer.window for layer in patch.layers] == [96] * 4, patch.report
    ours = gradients(model, inputs)
    assert ours[0] == pytest.approx(loss, rel=1e-5 if dtype == torch.float32 else 1e-4)
    assert worst(ours[1], found) <= (1e-4 if dtype == torch.float32 else 5e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("family", ["gemma3_text", "qwen3", "olmo2", "qwen2"])
def test_families_whose_heads_have_norms_or_biases(family: str, dtype: torch.dtype) -> None:
    """Whichever way attention is computed: Gemma's windows, shorter than the rows, are masked."""
    inputs = batch()
    loss, found = gradients(make(torch.float32, family=family), inputs)
    model = make(dtype, family=family)
    stock = worst(gradients(model, inputs)[1], found)
    assert not apply(model).report.left
    ours = gradients(model, inputs)
    assert ours[0] == pytest.approx(loss, rel=1e-5 if dtype == torch.float32 else 3e-3)
    assert worst(ours[1], found) <= (1e-4 if dtype == torch.float32 else max(5e-2, 1.5 * stock))


def test_a_recorded_step_equals_torchs_own_optimizer() -> None:
    ours, plain = make(torch.float32), make(torch.float32)
    step = TrainStep(ours, apply(ours), max_grad_norm=1.0)
    apply(plain)
    parameters = [p for p in plain.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.01)
    generator = torch.Generator().manual_seed(4)
    for _ in range(6):
        micro = [torch.randint(0, 4096, (2, 128), generator=generator).cuda() for _ in range(2)]
        items = torch.tensor(2.0 * 2 * 127)
        for i, ids in enumerate(micro):
            inputs = {"input_ids": ids, "labels": ids, "num_items_in_batch": items, "use_cache": False}
            mine = step.accumulate(inputs, first=i == 0)
            loss = plain(**inputs).loss
            loss.backward()
            assert mine.item() == pytest.approx(loss.item(), rel=2e-5)
        norm = torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        assert step.update(1e-3).item() == pytest.approx(norm.item(), rel=1e-4)
    assert len(step._recorded) == 3  # the first and the further micro-batches, and the update
