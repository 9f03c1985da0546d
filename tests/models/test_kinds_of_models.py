"""Models that are no causal language models of text are refused; of those that also see, only text is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

import nbtune
from nbtune.errors import SpecError
from nbtune.models import build
from nbtune.models.adapters import save_adapter
from nbtune.models.causal_check import refuse_unless_causal
from nbtune.models.trial import try_small
from nbtune.spec import AdapterSpec
from tests.support.model_classes import CLASSES, make

TEXT = {
    "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_hidden_layers": 2,
    "num_key_value_heads": 2, "vocab_size": 96,
}  # fmt: skip
EYES = {**TEXT, "image_size": 28, "patch_size": 14}
ROWS = [{"prompt": "Hi", "completion": "Ahoy!"}] * 4


def built(folder: Path, **how: Any) -> Any:
    how = {"adapter": AdapterSpec(r=4), **how}
    return build(str(folder), dtype=torch.float32, device="cpu", tokenizer=False, **how)


@pytest.mark.parametrize("kind", ["bert", "roberta", "xlnet"])
def test_a_model_that_sees_what_it_is_to_say_is_refused(kind: str, tmp_path: Path) -> None:
    sizes = {**TEXT, "d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48} if kind == "xlnet" else TEXT
    AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes)).save_pretrained(tmp_path)
    with pytest.raises(SpecError, match="the tokens behind it") as run:
        built(tmp_path)
    if kind == "roberta":
        return  # a small copy has no padding token, which RoBERTa does not do without: nothing is claimed
    with pytest.raises(SpecError) as planned:
        try_small(str(tmp_path), AdapterSpec(r=4))
    assert str(planned.value) == str(run.value)


def test_a_model_that_sees_only_two_tokens_more_is_refused() -> None:
    """Only what is said right before a place moves with it."""
    near = {"use_bidirectional_attention": True, "sliding_window": 3, "head_dim": 16}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model("gemma3_text", **TEXT, **near))
    with pytest.raises(SpecError, match="the tokens behind it"):
        refuse_unless_causal(model, "near")


def test_bert_as_a_decoder_is_taken(tmp_path: Path) -> None:
    config = AutoConfig.for_model("bert", **TEXT, is_decoder=True, hidden_dropout_prob=0.9)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    built(tmp_path)


def test_the_check_leaves_a_model_as_it_was() -> None:
    model = make("gpt2").train()
    model.transformer.h[0].eval()
    refuse_unless_causal(model, "gpt2")
    assert model.training
    assert not model.transformer.h[0].mlp.training


@pytest.mark.slow
def test_every_class_of_the_table_is_causal() -> None:
    for name in CLASSES:
        refuse_unless_causal(make(name), name)


def test_a_model_that_sees_and_has_no_class_for_text_is_refused_by_plan_and_run(tmp_path: Path) -> None:
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
    words = {**TEXT, "rope_parameters": rope, "bos_token_id": 1, "eos_token_id": 2}
    eyes = {"depth": 1, "embed_dim": 32, "hidden_size": 32, "num_heads": 4, "mlp_ratio": 2}
    config = AutoConfig.for_model("qwen2_vl", text_config=words, vision_config=eyes)
    AutoModelForImageTextToText.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(SpecError, match=r"qwen2_vl.*also sees or hears") as planned:
        nbtune.plan(model=str(tmp_path), data=ROWS, steps=1)
    with pytest.raises(SpecError) as run:
        built(tmp_path)
    assert str(planned.value) == str(run.value)
    for refusal in (planned.value, run.value):
        assert refusal.__cause__ is None  # its own cause: who goes from cause to cause would never end


def test_of_a_model_that_also_sees_only_text_is_trained_and_that_is_said(tmp_path: Path) -> None:
    text = {**TEXT, "head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 8}
    places = {"mm_tokens_per_image": 4, "image_token_index": 90, "boi_token_index": 91, "eoi_token_index": 92}
    config = AutoConfig.for_model("gemma3", text_config=text, vision_config=EYES, **places)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "base")
    ours = built(tmp_path / "base")
    trained = [name for name, p in ours.model.named_parameters() if p.requires_grad]
    assert trained
    assert not [name for name in trained if "vision" in name or "projector" in name]
    assert any("only text is trained" in line for line in ours.report)
    ids = torch.randint(3, 80, (1, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for name, p in ours.model.named_parameters():
            if "lora_B" in name:
                p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(1)) * 0.1)
    from peft import PeftModel

    stock: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    stock = PeftModel.from_pretrained(stock, save_adapter(ours.model, tmp_path / "adapter"))
    assert torch.allclose(stock(input_ids=ids).logits, ours.model(input_ids=ids).logits, atol=1e-5)
    named = AdapterSpec(r=4, target_modules=("q_proj",))
    assert not [
        n
        for n, p in built(tmp_path / "base", adapter=named).model.named_parameters()
        if p.requires_grad and "vision" in n
    ]
    with pytest.raises(SpecError, match="only text is trained"):
        built(tmp_path / "base", adapter=AdapterSpec(target_modules=("out_proj",)))
