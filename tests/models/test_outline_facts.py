"""What a plan says is trained is what the built model trains: every family, with any adapter; a typo is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import nbtune
from nbtune.errors import SpecError
from nbtune.models import add_adapter, build, counted, model_facts
from nbtune.models.adapter_targets import targets_of
from nbtune.models.config_facts import facts_by_config
from nbtune.models.loading import outline, resolve
from nbtune.models.memory_estimate import trainable_parameters
from nbtune.spec import AdapterSpec
from nbtune.spec.placement import FORMATS, Placement
from tests.support.family_cases import CASES

ROWS = [{"prompt": "Hi", "completion": "Ahoy!"}] * 4
NAMES = (
    "llama 3, smollm, deepseek distilled",
    "llama with biases",
    "llama with wide heads",
    "mixtral",
    "qwen2 moe",
    "qwen3",
    "qwen3 moe",
    "phi 1, 2",
    "phi 3",
    "gemma 2",
    "falcon 40b",
    "mpt",
    "olmo 2",
    "granite",
)


def folder_of(name: str, place: Path) -> Path:
    """A model's folder without its weights: a plan needs none."""
    case = CASES[name]
    getattr(transformers, case.config)(vocab_size=300, **case.options).save_pretrained(place)
    config = json.loads((place / "config.json").read_text())
    kind = transformers.AutoModelForCausalLM._model_mapping[type(transformers.AutoConfig.from_pretrained(place))]
    (place / "config.json").write_text(json.dumps({**config, "architectures": [kind.__name__]}))
    return place


def really_trained(place: Path, adapter: AdapterSpec) -> int:
    model = add_adapter(outline(str(place), dtype=torch.float32, device="cpu"), adapter, seed=0)
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


@pytest.mark.parametrize("chosen", [{"num_experts_per_tok": 2}, {"moe_topk": [2, 1]}, {"top_k_experts": 2}])
def test_a_token_goes_through_a_share_of_the_experts(chosen: dict[str, Any]) -> None:
    config = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_experts": 8, **chosen}
    assert facts_by_config("mixture", config, {}).experts_used == 0.25


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")  # peft's, of a tied head
@pytest.mark.parametrize("name", NAMES)
def test_what_is_trained_is_counted(name: str, tmp_path: Path) -> None:
    place = folder_of(name, tmp_path)
    layers = targets_of(outline(str(place), dtype=torch.float32, device="meta"), AdapterSpec()).modules
    some: list[Any] = ["all-linear", tuple(layers[:1]), tuple(layers[-2:]), ("lm_head", layers[0])]
    adapters = [AdapterSpec(r=3, type=kind, target_modules=each) for kind in ("lora", "dora") for each in some[:3]]
    adapters += [AdapterSpec(r=3, target_modules=some[3]), AdapterSpec(type="qlora", r=5), AdapterSpec(type="full")]
    facts = model_facts(str(place))
    for adapter in adapters:
        found = trainable_parameters(counted(facts, str(place), adapter), adapter)
        assert found == really_trained(place, adapter), adapter


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
@pytest.mark.parametrize(
    "targets", [("lm_head",), ("q_proj", "lm_head"), ("embed_tokens", "lm_head"), r".*(q_proj|head)"]
)
@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_an_adapter_on_a_tied_head_is_counted(kind: Any, targets: Any) -> None:
    adapter = AdapterSpec(type=kind, r=3, target_modules=targets)
    facts = model_facts("nbtune/tiny")
    assert facts.tied
    place = Path(resolve("nbtune/tiny"))
    assert trainable_parameters(counted(facts, "nbtune/tiny", adapter), adapter) == really_trained(place, adapter)


@pytest.mark.parametrize("name", ["mixtral", "qwen3 moe", "qwen3"])
def test_what_4_bits_cover_is_what_bitsandbytes_converts(name: str, tmp_path: Path) -> None:
    from bitsandbytes.nn import Linear4bit

    place = folder_of(name, tmp_path)
    outline(str(place), dtype=torch.float32, device="cpu").save_pretrained(place)
    nf4 = Placement(format="nf4")
    model = build(
        str(place), adapter=AdapterSpec(type="qlora"), dtype=torch.float32, device="cpu", weights=nf4,
        accelerate=False, tokenizer=False,
    ).model  # fmt: skip
    packed = sum(2 * m.weight.numel() for m in model.modules() if isinstance(m, Linear4bit))
    facts = counted(model_facts(str(place)), str(place), AdapterSpec(type="qlora"))
    assert facts.linear == packed
    left = sum(p.numel() for p in model.parameters() if p.dim() > 2)
    assert facts.stacked == left
    assert (left > 0) == (name != "qwen3")


def test_a_typo_among_several_names_is_refused_by_plan_and_run(tmp_path: Path) -> None:
    adapter = {"type": "lora", "target_modules": ["q_proj", "v_porj"]}
    with pytest.raises(SpecError, match="`v_porj`") as planned:
        nbtune.plan(data=ROWS, steps=1, adapter=adapter)
    with pytest.raises(SpecError) as built:
        build("nbtune/tiny", adapter=AdapterSpec(**adapter), dtype=torch.float32, device="cpu", tokenizer=False)
    assert str(planned.value) == str(built.value)
    assert planned.value.place == "adapter.target_modules"
    assert "v_proj?" in (planned.value.fix or "")


def test_a_plan_counts_memory_by_what_is_trained() -> None:
    one = nbtune.plan(data=ROWS, steps=1, adapter={"type": "lora", "r": 8, "target_modules": ["q_proj"]})
    every = nbtune.plan(data=ROWS, steps=1, adapter={"type": "lora", "r": 8})
    assert one.trainable_parameters < every.trainable_parameters / 5
    for plan in (one, every):
        assert plan.memory.optimizer == 8 * plan.trainable_parameters
        assert plan.memory.gradients == 4 * plan.trainable_parameters


def test_a_plan_counts_experts_in_4_bits(tmp_path: Path) -> None:
    from tests.support.families import family_tokenizer

    place = folder_of("mixtral", tmp_path)
    outline(str(place), dtype=torch.float32, device="cpu").save_pretrained(place)
    family_tokenizer("sentencepiece", place)
    spec: dict[str, Any] = {"model": str(place), "data": ROWS, "steps": 1}
    whole, rounded = nbtune.plan(spec), nbtune.plan({**spec, "adapter": "qlora"})
    facts = counted(model_facts(str(place)), str(place), AdapterSpec())
    assert facts.stacked > (facts.linear or 0)
    assert rounded.abilities.rounded == facts.stacked + (facts.linear or 0)
    assert whole.abilities.frozen_bytes - rounded.abilities.frozen_bytes == pytest.approx(
        (4 - FORMATS["nf4"].bytes) * rounded.abilities.rounded, abs=2
    )
