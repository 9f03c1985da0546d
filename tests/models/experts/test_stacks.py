"""An adapter on a mixture: on its experts' stacked weights, never on what chooses among them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import nbtune
from nbtune.engine.run_model import RunModel
from nbtune.errors import SpecError
from nbtune.models import build, counted, model_facts
from nbtune.models.adapter_targets import adapted_weights, left_out_lines, targets_of
from nbtune.models.adapters import add_adapter, save_adapter
from nbtune.models.experts.stacks import stacked_weights
from nbtune.spec import AdapterSpec
from tests.support.every import every
from tests.support.model_classes import make, save
from tests.support.tiny_models import save_speaking

MIXTURES = (
    "mixtral", "qwen2_moe", "qwen3_moe", "qwen3_next", "phimoe", "olmoe", "flex_olmo", "granitemoe", "granitemoeshared",
    "granitemoehybrid", "glm4_moe", "deepseek_v2", "deepseek_v3", "dots1", "gpt_oss", "llama4_text", "jamba",
    "lfm2_moe", "minimax", "minimax_m2", "ernie4_5_moe", "hunyuan_v1_moe", "jetmoe", "afmoe",
)  # fmt: skip
NONE = ("llama", "mamba", "falcon_h1", "gemma3n_text", "rwkv", "bloom", "recurrent_gemma", "zamba2")
ROWS = [{"prompt": f"What is {n}?", "completion": f"It is {n}, sailor."} for n in range(8)]
QWEN3 = {
    "hidden_size": 32, "intermediate_size": 48, "moe_intermediate_size": 16, "num_attention_heads": 4,
    "num_key_value_heads": 2, "num_hidden_layers": 2, "head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2,
    "norm_topk_prob": True,
}  # fmt: skip


SAMPLE = ("mixtral", "deepseek_v3", "gpt_oss", "jetmoe")


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in SAMPLE else pytest.mark.slow) for n in MIXTURES])
def test_every_expert_is_adapted_and_no_router(name: str) -> None:
    model = make(name)
    routers = {at for at, p in model.named_parameters() if p.dim() == 2 and p.shape[0] == 4 and "layers" in at}
    stacks = stacked_weights(model)
    assert stacks
    adapted = set(adapted_weights(model, targets_of(model, AdapterSpec())))
    assert stacks.keys() <= adapted
    assert not routers & adapted
    trained = {at for at, p in add_adapter(model, AdapterSpec(r=2), seed=0).named_parameters() if p.requires_grad}
    assert every("lora_" in at and "router" not in at and ".gate." not in at for at in trained)


def test_what_is_thick_without_experts_is_no_stack() -> None:
    for name in NONE:
        assert not stacked_weights(make(name)), name


@pytest.mark.parametrize("name", ["qwen2_moe", "deepseek_v3", "gpt_oss"])
def test_what_experts_add_is_counted_before_anything_is_loaded(name: str, tmp_path: Path) -> None:
    place = save(name, tmp_path)
    for adapter in (AdapterSpec(r=3), AdapterSpec(r=3, target_modules=("experts",)), AdapterSpec(r=3, dropout=0.1)):
        model = build(str(place), adapter=adapter, dtype=torch.float32, device="cpu", tokenizer=False).model
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        assert counted(model_facts(str(place)), str(place), adapter).trained == trained


def test_experts_are_named_by_their_weights_or_by_what_holds_them() -> None:
    model = make("qwen3_moe")
    every = set(stacked_weights(model))
    for names in (("experts",), ("gate_up_proj", "down_proj"), ("mlp.experts",)):
        targets = targets_of(model, AdapterSpec(target_modules=names))
        assert targets.modules == []
        assert set(adapted_weights(model, targets)) == every
    some = targets_of(model, AdapterSpec(target_modules=("q_proj", "experts.down_proj")))
    assert some.modules == ["q_proj"]
    assert {at.rpartition(".")[2] for at in adapted_weights(model, some)} == {"weight", "down_proj"}
    with pytest.raises(SpecError, match="gate_upproj") as typo:
        targets_of(model, AdapterSpec(target_modules=("gate_upproj",)))
    assert "gate_up_proj?" in str(typo.value.fix)


@pytest.mark.parametrize("options", [{"dropout": 0.1}, {"type": "dora"}])
def test_where_peft_cannot_adapt_experts_that_is_said(options: dict[str, object]) -> None:
    model, adapter = make("qwen3_moe"), AdapterSpec(**options)  # type: ignore[arg-type]
    assert targets_of(model, adapter).parameters == []
    assert any("neither DoRA, IA3 nor dropout" in line for line in left_out_lines(model, adapter))
    with pytest.raises(SpecError, match="neither DoRA, IA3 nor dropout"):
        targets_of(model, AdapterSpec(**options, target_modules=("experts",)))  # type: ignore[arg-type]


def test_a_run_trains_experts_which_stock_peft_opens(tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = save_speaking("qwen3_moe", tmp_path / "base", **QWEN3)
    spec = {"model": str(model), "data": ROWS, "steps": 3, "batch_size": 2, "adapter": {"r": 2}, "learning_rate": 1e-2}
    plan = nbtune.plan(spec)
    run = nbtune.finetune(spec, runs_dir=tmp_path / "runs").wait()
    ours = RunModel(run.folder).loaded().model.eval()
    moved = [p for at, p in ours.named_parameters() if "experts" in at and "lora_B" in at]
    assert moved
    assert every(bool(p.abs().max() > 0) for p in moved)
    assert plan.trainable_parameters == sum(p.numel() for p in ours.parameters() if p.requires_grad)
    stock = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    stock = PeftModel.from_pretrained(stock, run.folder / "adapter").eval()
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        torch.testing.assert_close(ours(input_ids=ids).logits, stock(input_ids=ids).logits, rtol=0, atol=1e-6)


def test_a_saved_adapter_names_experts_as_peft_does(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    model = add_adapter(make("deepseek_v3"), AdapterSpec(r=2), seed=0)
    saved = load_file(save_adapter(model, tmp_path) / "adapter_model.safetensors")
    stack = "base_model.model.model.layers.1.mlp.experts"
    assert saved[f"{stack}.base_layer.lora_A.weight"].shape == (2 * 4, 32)  # of gate and up: the innermost
    assert saved[f"{stack}.lora_B.weight"].shape == (32, 2 * 4)
    assert "base_model.model.model.layers.0.mlp.gate_proj.lora_A.weight" in saved  # a dense layer's as any layer's
