"""4-bit frozen weights: the blocks compute what bitsandbytes' own layers do, biased or not, adapted or not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from nbtune.models import build
from nbtune.models.accelerate import apply, nf4_linear
from nbtune.models.accelerate.nf4_linear import Nf4Group, StreamedNf4Group
from nbtune.models.adapters import add_adapter
from nbtune.models.memory_estimate import MEMORY_POLICIES
from nbtune.spec import AdapterSpec, Placement
from tests.models.test_accelerate import FAMILIES, SIZES, assert_equal, batch, loss_and_gradients


def four_bit(family: str, adapter: AdapterSpec, **sizes: int) -> Any:
    """A model of random weights in nf4, its adapter not zero."""
    from bitsandbytes.nn import Linear4bit, Params4bit

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **{**SIZES, **FAMILIES[family][0], **sizes}))
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


@pytest.mark.parametrize("layers", [1, 2])
def test_what_an_adapter_has_learnt_is_in_the_next_pass(layers: int) -> None:
    """Also where nobody else has written over the weights that lie beside it."""
    model = four_bit("llama", AdapterSpec(r=4, alpha=6), num_hidden_layers=layers)
    patch = apply(model)
    assert len(patch.layers) == layers, patch.report.lines()
    before = loss_and_gradients(model, batch())
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_" in name:
                p.mul_(-2.0 if "lora_B" in name else 1.5)
    ours = loss_and_gradients(model, batch())
    patch.remove()
    assert_equal(ours, loss_and_gradients(model, batch()), 2e-5)
    assert ours[0] != pytest.approx(before[0], rel=1e-4)


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


def four_bit_build(policy: Any = "keep", resident: int | None = None) -> Any:
    """The embedded model with LoRA that is not zero, 4-bit weights of some layers in the host's memory."""
    placed = Placement(format="nf4", resident=resident)
    how: dict[str, Any] = {"adapter": AdapterSpec(type="qlora", r=4), "weights": placed, "tokenizer": False}
    built = build("nbtune/tiny", dtype=torch.float32, device="cpu", policy=policy, **how)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, p in built.model.named_parameters():
            if "lora_B" in name:
                p.copy_(torch.randn(p.shape, generator=generator) * 0.1)
    built.model.train()
    return built


@pytest.mark.parametrize(
    ("policy", "resident"),
    [
        *((policy, 0) for policy in MEMORY_POLICIES),
        *(pytest.param(p, 2, marks=[] if p == "selective" else pytest.mark.slow) for p in MEMORY_POLICIES),
    ],
)
def test_four_bits_that_travel(policy: Any, resident: int) -> None:
    batches = [batch(seed=s, length=n) for s, n in ((5, 13), (6, 9), (7, 11))]
    here, away = four_bit_build(), four_bit_build(policy, resident)
    groups = [g for layer in away.patch.layers for g in layer.groups()]
    assert sum(isinstance(g, StreamedNf4Group) for g in groups) == 4 * (4 - resident)
    for b in batches:  # what comes next is known from the second step on
        assert_equal(loss_and_gradients(away.model, b), loss_and_gradients(here.model, b), 2e-6)
    with torch.no_grad():
        said = [b.model.eval().generate(batch()["input_ids"], max_new_tokens=4, do_sample=False) for b in (here, away)]
    assert torch.equal(*said)
    away.patch.remove()
    assert_equal(loss_and_gradients(away.model.train(), batch()), loss_and_gradients(here.model.train(), batch()), 2e-5)


@pytest.mark.parametrize("policy", MEMORY_POLICIES)
@pytest.mark.parametrize("resident", [None, 0])
def test_a_weight_is_decoded_twice_a_step(policy: Any, resident: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    built, decoded = four_bit_build(policy, resident), []
    monkeypatch.setattr(nf4_linear, "_decode", lambda *a, done=nf4_linear._decode: (decoded.append(a[1]), done(*a)))
    loss_and_gradients(built.model, batch())
    counts = {id(state): sum(state is other for other in decoded) for state in decoded}
    assert len(counts) == 4 * 7
    assert max(counts.values()) <= 2


def test_what_lies_beside_the_weights_is_of_this_step() -> None:
    """The scratch of the last layer is reused in its backward, and never in the next step."""
    built = four_bit_build("recompute")
    first = loss_and_gradients(built.model, batch())[0]
    with torch.no_grad():
        for name, p in built.model.named_parameters():
            if "lora_B" in name:
                p.mul_(-2)
    moved = loss_and_gradients(built.model, batch())[0]
    built.patch.remove()
    assert abs(moved - first) > 1e-4
    assert loss_and_gradients(built.model, batch())[0] == pytest.approx(moved, rel=1e-5)
