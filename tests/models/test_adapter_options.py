"""Each option of an adapter is peft's own: the same weights are trained, with the same gradients, and counted so.

Gradients are compared where arithmetic does not decide: in fp64, to 1e-6 of their size. In fp32 peft itself is off by
more than that of some (two of torch's own attentions differ by 1e-5 where hidden states hardly differ from token to
token), so there ours must be no further from peft's in fp64 than twice peft's own.
"""

from __future__ import annotations

import copy
import dataclasses
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from nbtune.errors import SpecError
from nbtune.export import ExportSource
from nbtune.export.merge import MergedModel
from nbtune.models import build, counted, model_facts
from nbtune.models.adapters import add_adapter, save_adapter
from nbtune.models.first_values import as_the_base
from nbtune.spec import AdapterSpec
from tests.support.family_cases import SIZES
from tests.train.test_optimizer import GPT2, tiny

IDS = torch.randint(0, 300, (2, 12), generator=torch.Generator().manual_seed(0))
IDS[0, 3], IDS[1, 5] = 7, 9  # which an option trains
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
# (hidden states that differ from token to token, as those of a model that has learnt something)
UNTIED = {**SIZES, "tie_word_embeddings": False, "initializer_range": 0.1}
LIMIT = 1e-6
OPTIONS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "regex": ({"target_modules": r".*\.1\.self_attn\.(q|v)_proj"}, {"target_modules": r".*\.1\.self_attn\.(q|v)_proj"}),
    "layers": ({"layers_to_transform": [1]}, {"layers_to_transform": [1]}),
    "layers of names": ({"layers_to_transform": [0], "target_modules": ["q_proj", "down_proj"]},
                        {"layers_to_transform": [0], "target_modules": ["q_proj", "down_proj"]}),
    "ranks": ({"rank_pattern": {"q_proj": 2, "1.mlp.down_proj": 8}},
              {"rank_pattern": {"q_proj": 2, "1.mlp.down_proj": 8}}),
    "alphas": ({"alpha_pattern": {"(q|k)_proj": 16}, "use_rslora": True},
               {"alpha_pattern": {"(q|k)_proj": 16}, "use_rslora": True}),
    "gaussian": ({"init_lora_weights": "gaussian"}, {"init_lora_weights": "gaussian"}),
    "orthogonal": ({"init_lora_weights": "orthogonal"}, {"init_lora_weights": "orthogonal"}),
    "pissa": ({"init_lora_weights": "pissa"}, {"init_lora_weights": "pissa"}),
    "olora": ({"init_lora_weights": "olora", "rank_pattern": {"q_proj": 2}, "use_rslora": True},
              {"init_lora_weights": "olora", "rank_pattern": {"q_proj": 2}, "use_rslora": True}),
    "tokens": ({"trainable_token_indices": [7, 9]}, {"trainable_token_indices": [7, 9]}),
    "head and embeddings": ({"modules_to_save": ["lm_head", "embed_tokens"]},
                            {"modules_to_save": ["lm_head", "embed_tokens"]}),
}  # fmt: skip


def gradients(model: Any) -> dict[str, torch.Tensor]:
    model.zero_grad(set_to_none=True)
    model(input_ids=IDS, labels=IDS).loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


def error(found: dict[str, torch.Tensor], truth: dict[str, torch.Tensor]) -> float:
    """Return by how much of its size a gradient is off, of the one that is furthest off."""
    assert found.keys() == truth.keys()
    return max(float((found[name] - value).double().norm() / value.double().norm()) for name, value in truth.items())


def same_gradients(place: str, adapter: AdapterSpec, truly: Any, accelerate: bool) -> Any:
    """See that a run's model learns as `truly` does, in fp64 and in fp32; return it, in fp32.

    It is made by the very function by which a run builds its model; of the two in fp64 the weights are `truly`'s.
    """
    about: dict[str, Any] = {"device": "cpu", "accelerate": accelerate, "tokenizer": False}
    built: Any = build(place, adapter=adapter, seed=3, dtype=torch.float32, **about).model.train()
    first: dict[str, Any] = {} if adapter.type == "full" else {"init_lora_weights": "default"}
    plain = adapter.model_copy(update=first)  # what peft draws and factors in fp32 is copied
    wide: Any = build(place, adapter=plain, seed=3, dtype=torch.float64, **about).model.train()
    for one in (built, truly):
        stir(one, lambda name: "lora_B" in name, 0.03)  # zero, it would hide A
    exact = copy.deepcopy(truly).double()
    weights = dict(exact.named_parameters())
    with torch.no_grad():
        for name, p in wide.named_parameters():
            p.copy_(weights[name])
    truth, own = gradients(exact), gradients(truly)
    assert error(gradients(wide), truth) <= LIMIT
    found = gradients(built)
    assert error(found, truth) <= max(LIMIT, 2 * error(own, truth))
    assert accelerate or error(found, own) <= LIMIT, "they are peft's own modules"
    return built


@pytest.mark.filterwarnings("ignore:Using Rank-Stabilized LoRA")  # peft's, of its own conversion
@pytest.mark.parametrize("accelerate", [False, True])
@pytest.mark.parametrize(("mine", "theirs"), OPTIONS.values(), ids=OPTIONS)
def test_it_is_pefts(tmp_path: Path, mine: dict[str, Any], theirs: dict[str, Any], accelerate: bool) -> None:
    place = str(tmp_path / "base")
    tiny("LlamaConfig", UNTIED).save_pretrained(place)
    base = AutoModelForCausalLM.from_pretrained(place)
    torch.manual_seed(3)
    asked = {"r": 4, "lora_alpha": 8, "target_modules": ALL, "task_type": "CAUSAL_LM", **theirs}
    truly, adapter = get_peft_model(base, LoraConfig(**asked)).train(), AdapterSpec(r=4, alpha=8, **mine)
    same_gradients(place, adapter, truly, accelerate)
    trained = sum(p.numel() for p in truly.parameters() if p.requires_grad)
    assert counted(model_facts(place), place, adapter).trained == trained


def stir(model: Any, wanted: Callable[[str], bool], by: float = 0.2) -> None:
    """Change some weights, by their names alone."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            if wanted(name):
                p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(len(name))) * by)


def same_merged(truth: Any, folder: Path) -> None:
    """What nbtune makes of the two folders is what peft merges, to 1e-6."""
    model = MergedModel(ExportSource(folder / "base", folder / "adapter"))
    theirs = truth.merge_and_unload().state_dict()
    assert len(model.names) > 10
    for name in model.names:
        torch.testing.assert_close(model.rows(name, 0, model.shape(name)[0]), theirs[name], rtol=1e-6, atol=1e-6)


BIASED = {**UNTIED, "attention_bias": True, "mlp_bias": True}
LORA = {"r": 4, "lora_alpha": 8, "target_modules": ALL}
BESIDE: dict[str, tuple[dict[str, Any], Any]] = {
    "all biases": ({"r": 4, "alpha": 8, "bias": "all"}, LoraConfig(**LORA, bias="all")),
    "biases of layers": ({"r": 4, "alpha": 8, "bias": "lora_only", "target_modules": ["q_proj"]},
                         LoraConfig(**{**LORA, "target_modules": ["q_proj"]}, bias="lora_only")),
    "ia3": ({"type": "ia3"}, IA3Config()),
    "ia3 of names": ({"type": "ia3", "target_modules": ["o_proj", "down_proj"], "layers_to_transform": [1]},
                     IA3Config(target_modules=r".*\.1\..*(o|down)_proj", feedforward_modules=r".*down_proj")),
}  # fmt: skip


@pytest.mark.parametrize("accelerate", [False, True])
@pytest.mark.parametrize(("mine", "theirs"), BESIDE.values(), ids=BESIDE)
def test_biases_and_factors_are_pefts(tmp_path: Path, mine: dict[str, Any], theirs: Any, accelerate: bool) -> None:
    """What is trained, its gradients, and what is merged after it has changed; without it the model is its base."""
    model = tiny("LlamaConfig", BIASED)
    stir(model, lambda name: name.endswith("bias"))
    model.save_pretrained(tmp_path / "base")
    adapter, place = AdapterSpec(**mine), str(tmp_path / "base")
    torch.manual_seed(3)
    base = AutoModelForCausalLM.from_pretrained(place)
    truly = get_peft_model(base, dataclasses.replace(theirs, task_type="CAUSAL_LM")).train()
    built = same_gradients(place, adapter, truly, accelerate)
    trained = {name: p for name, p in truly.named_parameters() if p.requires_grad}
    assert any("bias" in name or "ia3_l" in name for name in trained)
    assert counted(model_facts(place), place, adapter).trained == sum(p.numel() for p in trained.values())
    for one in (built, truly):
        stir(one, trained.__contains__)
    with torch.no_grad(), as_the_base(built.eval()):
        torch.testing.assert_close(built(input_ids=IDS).logits, model.eval()(input_ids=IDS).logits)
    save_adapter(built, tmp_path / "adapter")
    same_merged(truly, tmp_path)


def test_factors_of_turned_weights_are_merged_as_peft_does(tmp_path: Path) -> None:
    model = tiny("GPT2Config", GPT2)
    stir(model, lambda name: name.endswith("bias"))
    model.save_pretrained(tmp_path / "base")
    made: Any = add_adapter(model, AdapterSpec(type="ia3"), seed=0)
    trained = {name: p for name, p in made.named_parameters() if p.requires_grad}
    assert {p.shape[0] == 1 for p in trained.values()} == {True, False}, "of what is given, and of what comes out"
    stir(made, trained.__contains__)
    save_adapter(made, tmp_path / "adapter")
    same_merged(made, tmp_path)


@pytest.mark.parametrize("accelerate", [False, True])
def test_full_training_of_some_weights_leaves_the_others(tmp_path: Path, accelerate: bool) -> None:
    place = str(tmp_path / "base")
    tiny("LlamaConfig", UNTIED).save_pretrained(place)
    wanted = ["lm_head", r"model\.layers\.1\.(mlp|input_layernorm)"]
    adapter = AdapterSpec(type="full", unfrozen_parameters=wanted)
    base = AutoModelForCausalLM.from_pretrained(place).train()
    for name, p in base.named_parameters():
        p.requires_grad_(any(re.match(pattern, name) for pattern in wanted))
    built = same_gradients(place, adapter, base, accelerate)
    trained = {name: p.numel() for name, p in built.named_parameters() if p.requires_grad}
    assert {"lm_head.weight", "model.layers.1.mlp.up_proj.weight", "model.layers.1.input_layernorm.weight"} <= set(
        trained
    )
    assert len(trained) == 5
    assert counted(model_facts(place), place, adapter).trained == sum(trained.values())


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"r": 64, "init_lora_weights": "pissa"}, "only 32 directions"),
        ({"target_modules": "q_proj"}, "no linear layer's whole name"),
        ({"layers_to_transform": [7]}, "no layer 7"),
        ({"rank_pattern": {"qproj": 2}}, "`qproj` matches none"),
        ({"trainable_token_indices": [300]}, "no token 300"),
        ({"trainable_token_indices": [7], "modules_to_save": ["embed_tokens"]}, "is trained already"),
        ({"bias": "all"}, "this model has no biases"),
        ({"type": "ia3", "target_modules": ["qproj"]}, "no layer of this model is called"),
        ({"modules_to_save": ["head"]}, "no module of this model is called `head`"),
        ({"type": "full", "unfrozen_parameters": ["layers"]}, "no weight's name begins"),
    ],
)
def test_what_reaches_nothing_is_refused(options: dict[str, Any], why: str) -> None:
    with pytest.raises(SpecError, match=why):
        add_adapter(tiny("LlamaConfig", UNTIED), AdapterSpec(**options), seed=0)


@pytest.mark.parametrize("kind", ["LlamaConfig", "GPT2Config"])
def test_loftq_begins_with_what_four_bits_lost(tmp_path: Path, kind: str) -> None:
    """As much of it as the rank can hold: what is left has the singular values that are not in it."""
    functional = pytest.importorskip("bitsandbytes.functional")
    turned = kind == "GPT2Config"
    whole, end = tiny(kind, GPT2 if turned else UNTIED), "attn.c_attn" if turned else "self_attn.q_proj"
    whole.save_pretrained(tmp_path / "base")
    adapter = AdapterSpec(type="qlora", r=4, alpha=8, init_lora_weights="loftq", target_modules=(end,))
    about: dict[str, Any] = {"dtype": torch.float32, "device": "cpu", "accelerate": False, "tokenizer": False}
    built: Any = build(str(tmp_path / "base"), adapter=adapter, **about).model
    place = f"{'transformer.h' if turned else 'model.layers'}.1.{end}"
    layer = built.get_base_model().get_submodule(place)
    kept = layer.get_base_layer().weight
    rounded = functional.dequantize_4bit(kept.data, kept.quant_state).float()
    mine = whole.get_submodule(place).weight.detach()
    lost = (mine.T if turned else mine) - rounded
    assert float(lost.norm()) < 0.2 * float(mine.norm())
    begun = 2 * (layer.lora_B["default"].weight @ layer.lora_A["default"].weight).detach()
    rest = torch.linalg.svdvals(lost)[4:].square().sum()
    assert float((lost - begun).square().sum()) == pytest.approx(float(rest), rel=1e-4)
    assert float(rest) < 0.95 * float(lost.square().sum())


def test_a_tied_head_is_not_trained_apart() -> None:
    model = tiny("LlamaConfig", {**SIZES, "tie_word_embeddings": True})
    with pytest.raises(SpecError, match="embedding and head at once"):
        add_adapter(model, AdapterSpec(modules_to_save=("lm_head",)), seed=0)


@pytest.mark.filterwarnings("ignore:.*changes the base weights of the model")  # of its own conversion, too
@pytest.mark.parametrize("more", [{"init_lora_weights": "pissa"}, {"init_lora_weights": "olora", "use_rslora": True}])
def test_what_is_taken_out_of_the_base_is_saved_as_peft_converts_it(tmp_path: Path, more: dict[str, Any]) -> None:
    """Of twice the rank, so that it fits the base from which nothing was taken; without the adapter it is that base."""
    patterns = {} if "use_rslora" in more else {"rank_pattern": {"down_proj": 2}, "alpha_pattern": {"down_proj": 3.0}}
    options: dict[str, Any] = {"r": 4, **patterns, **more}
    model: Any = add_adapter(tiny("LlamaConfig", UNTIED), AdapterSpec(alpha=8, **options), seed=0)
    model.peft_config["default"].init_lora_weights = True  # else peft begins anew as it opens the copy
    model.save_pretrained(tmp_path / "start")
    with torch.no_grad():
        for p in model.parameters():
            p.add_(p.requires_grad * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)) * 0.1)
        with as_the_base(model):
            base = model(input_ids=IDS).logits
        torch.testing.assert_close(base, tiny("LlamaConfig", UNTIED)(input_ids=IDS).logits, rtol=1e-5, atol=1e-5)
    save_adapter(model, tmp_path / "mine")
    model.peft_config["default"].init_lora_weights = more["init_lora_weights"]
    model.save_pretrained(tmp_path / "theirs", path_initial_model_for_weight_conversion=str(tmp_path / "start"))
    found, truth = (load_file(tmp_path / who / "adapter_model.safetensors") for who in ("mine", "theirs"))
    assert found.keys() == truth.keys()
    for name, value in truth.items():
        torch.testing.assert_close(found[name], value)
    told = [LoraConfig.from_pretrained(tmp_path / who) for who in ("mine", "theirs")]
    for key in ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "init_lora_weights"):
        assert getattr(told[0], key) == pytest.approx(getattr(told[1], key)), key
