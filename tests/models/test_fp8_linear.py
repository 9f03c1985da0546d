"""8-bit frozen weights: the rounded model's loss and, nearly, its gradients; decoded for what is not accelerated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from nbtune_kernels.fp8 import reference
from transformers import AutoModelForCausalLM

from nbtune.export import ExportSource, export_merged
from nbtune.models import build, save_adapter
from nbtune.models.accelerate import apply
from nbtune.models.accelerate.fp8_linear import Fp8Group
from nbtune.models.cuda_graph_step import TrainStep
from nbtune.spec import AdapterSpec, Placement
from tests.models.test_accelerate import batch, loss_and_gradients, make
from tests.support.every import every

FP8 = Placement(format="fp8")


def rounded(family: str) -> Any:
    """The stock model with the weights that 8 bits hold."""
    model = make(family)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "layers" in name and "base_layer.weight" in name:
                codes, scales = reference(p)
                p.copy_(codes.float() * scales[:, None])
    return model


@pytest.mark.parametrize("policy", ["keep", "recompute"])
@pytest.mark.parametrize("family", ["llama", "qwen2", "phi3", "granite"])
def test_it_trains_the_rounded_model(family: str, policy: Any) -> None:
    model = make(family)
    patch = apply(model, policy, weights=FP8)
    groups = [g for layer in patch.layers for g in layer.groups()]
    assert len(groups) == 8
    assert every(isinstance(g, Fp8Group) for g in groups)
    ours, stock = loss_and_gradients(model, batch()), loss_and_gradients(rounded(family), batch())
    assert ours[0] == pytest.approx(stock[0], rel=1e-2)
    for name, truth in stock[1].items():  # what is multiplied with the weights is rounded too, here and there
        assert torch.nn.functional.cosine_similarity(ours[1][name].flatten(), truth.flatten(), 0) > 0.98, name
    whole = loss_and_gradients(make(family), batch())
    assert stock[0] != whole[0]


def test_words_and_removal_are_the_rounded_models() -> None:
    ids, stock, model = batch()["input_ids"], rounded("llama").eval(), make("llama").eval()
    patch = apply(model, weights=FP8)
    with torch.no_grad():
        assert torch.equal(*[m.generate(ids, max_new_tokens=5, do_sample=False) for m in (model, stock)])
    patch.remove()
    assert loss_and_gradients(model, batch())[0] == pytest.approx(loss_and_gradients(stock, batch())[0], rel=1e-6)


def test_its_own_step_learns() -> None:
    model = make("llama")
    step = TrainStep(model, apply(model, weights=FP8))
    losses = []
    for _ in range(8):
        losses.append(float(step.accumulate(batch())))
        step.update(1e-2)
    assert losses[-1] < 0.95 * losses[0]
    with pytest.raises(RuntimeError, match="8 bits"):
        model(**batch(), output_attentions=True)


def test_what_cannot_be_eight_bit_is_left_alone() -> None:
    for adapter, why in ((AdapterSpec(type="full"), "trained"), (AdapterSpec(r=4, dropout=0.1), "dropout")):
        report = apply(make("llama", adapter), weights=FP8).report
        assert why in report.left["layers.0"]


def test_what_is_exported_is_what_was_trained(tmp_path: Path) -> None:
    make("llama", None).save_pretrained(tmp_path / "base")
    built = build(
        str(tmp_path / "base"),
        adapter=AdapterSpec(r=4),
        dtype=torch.float32,
        device="cpu",
        weights=FP8,
        tokenizer=False,
    )
    step = TrainStep(built.model, built.patch)
    for _ in range(3):
        step.accumulate(batch())
        step.update(1e-2)
    save_adapter(built.model, tmp_path / "adapter", base=str(tmp_path / "base"))
    source = ExportSource(tmp_path / "base", tmp_path / "adapter", weights=FP8)
    exported = AutoModelForCausalLM.from_pretrained(export_merged(source, tmp_path / "merged", "fp32").path)
    ids = batch()["input_ids"]
    with torch.no_grad():
        ours, theirs = (m.eval()(input_ids=ids, use_cache=True).logits for m in (built.model, exported))
    assert (ours - theirs).abs().max() <= 1e-5 * ours.abs().max()
