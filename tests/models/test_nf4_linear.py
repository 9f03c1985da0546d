"""4-bit frozen weights: the blocks compute what bitsandbytes' own layers do, biased or not, adapted or not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from nbtune.models.accelerate import apply
from nbtune.models.accelerate.nf4_linear import Nf4Group
from nbtune.models.adapters import add_adapter
from nbtune.spec import AdapterSpec
from tests.models.test_accelerate import FAMILIES, SIZES, assert_equal, batch, loss_and_gradients


def four_bit(family: str, adapter: AdapterSpec) -> Any:
    """A model of random weights in nf4, its adapter not zero."""
    from bitsandbytes.nn import Linear4bit, Params4bit

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **{**SIZES, **FAMILIES[family][0]}))
    generator = torch.Generator().manual_seed(1)
    for layer in model.model.layers:
        for parent in (layer.self_attn, layer.mlp):
            for name, linear in list(parent.named_children()):
                if not isinstance(linear, torch.nn.Linear):
                    continue
                biased = linear.bias is not None
                made = Linear4bit(
                    linear.in_features, linear.out_features, biased, torch.float32, quant_type="nf4", device="meta"
                )
                made.weight = Params4bit(linear.weight.detach(), requires_grad=False, quant_type="nf4").to("cpu")
                made.support_avx512bf16_for_cpu = False
                if biased:
                    noise = torch.randn(linear.bias.shape, generator=generator) * 0.1
                    made.bias = torch.nn.Parameter(noise, requires_grad=False)
                setattr(parent, name, made)
    model.is_loaded_in_4bit = True  # as `from_pretrained` says, so that peft takes its own 4-bit layer
    model = add_adapter(model, adapter, seed=2)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_B" in name:
                p.copy_(torch.randn(p.shape, generator=generator) * 0.1)
    return model.train()


@pytest.mark.parametrize("targets", [None, ("q_proj", "down_proj")], ids=["all", "some"])
@pytest.mark.parametrize("family", ["llama", "qwen2"])
def test_biases_and_layers_without_an_adapter(family: str, targets: tuple[str, ...] | None) -> None:
    chosen = {} if targets is None else {"target_modules": targets}
    model = four_bit(family, AdapterSpec(r=4, alpha=6, **chosen))
    stock = loss_and_gradients(model, batch())
    patch = apply(model)
    groups = [g for layer in patch.layers for g in layer.groups()]
    assert [type(g) for g in groups] == [Nf4Group] * 8, patch.report.lines()
    assert any(g.bias is not None for g in groups) == (family == "qwen2")
    assert_equal(loss_and_gradients(model, batch()), stock, 2e-5)
    patch.remove()
    assert loss_and_gradients(model, batch())[0] == pytest.approx(stock[0], rel=1e-6)


@pytest.mark.parametrize("name", ["mamba", pytest.param("gemma3n_text", marks=pytest.mark.slow)])
def test_a_weight_that_a_model_reads_past_its_layer_is_not_packed(name: str, tmp_path: Path) -> None:
    """Packed, it has another shape: the model's own code would multiply with that."""
    from bitsandbytes.nn import Linear4bit

    from nbtune.models import build, counted, model_facts
    from nbtune.spec.placement import Placement
    from tests.support.model_classes import save

    folder, adapter = str(save(name, tmp_path)), AdapterSpec(type="qlora", r=4)
    built = build(
        folder, adapter=adapter, dtype=torch.float32, device="cpu", tokenizer=False, weights=Placement(format="nf4")
    )
    ids = torch.arange(3, 15)[None]
    loss = built.model.train()(input_ids=ids, labels=ids).loss
    loss.backward()
    assert torch.isfinite(loss)
    packed = [m for m in built.model.modules() if isinstance(m, Linear4bit)]
    assert packed
    facts = counted(model_facts(folder), folder, adapter)
    assert facts.linear == sum(m.in_features * m.out_features for m in packed)
