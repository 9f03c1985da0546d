"""What a plan says of a model before it is loaded is what the run finds on the loaded one, and what exports do."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import nbtune
from nbtune import events
from nbtune.errors import DataError, ExportError, NbtuneError, PlanError, SpecError
from nbtune.models import load_model
from nbtune.models.abilities import Abilities, Claim
from tests.support.every import every
from tests.support.tiny_models import save_speaking

SIZES = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1,
}  # fmt: skip
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_chunk_size": 16}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 300},
    "gemma2": {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 16, "num_hidden_layers": 4},
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 16, "sliding_window": 16},
    "bamba": {"attn_layer_indices": [1], **MAMBA},
    "bloom": {"n_head": 4, "n_layer": 2},
    "falcon_h1": {"mamba_d_ssm": 128, **MAMBA, "lm_head_multiplier": 0.5, "attention_in_multiplier": 1.5},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
}
TARGETS = {"falcon_h1": ["q_proj", "v_proj"]}
SETTINGS = {
    "llama": {},
    "mistral": {"sliding_window": "300"},
    "gemma2": {
        "attn_logit_softcapping": "50", "final_logit_softcapping": "30", "query_pre_attn_scalar": "16",
        "sliding_window": "16",
    },
    "gpt_oss": {"sliding_window": "16"},
    "falcon_h1": {"lm_head_multiplier": "0.5", "attention_in_multiplier": "1.5"},
}  # fmt: skip
WHOLE = {"llama", "mistral"}
LEAK = {"gpt_oss", "bamba", "falcon_h1"}  # bloom only where its blocks are stock
GGUF = {"llama", "mistral", "mixtral", "gemma2", "gpt_oss", "bloom", "bamba", "falcon_h1"}
ROWS = [{"prompt": f"What is {a} plus {b}?", "completion": f"It is {a + b}."} for a in range(4) for b in range(3)]


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A tiny random model of a family, as transformers saves it."""

    @cache
    def find(family: str) -> Path:
        return save_speaking(family, tmp_path_factory.mktemp(family), **{**SIZES, **FAMILIES[family]})

    return find


def spec_of(folder: Path, family: str, **fields: Any) -> dict[str, Any]:
    adapter = {"type": "lora", "r": 4, "target_modules": TARGETS.get(family, "all-linear")}
    spec = {"model": str(folder), "data": "rows", "steps": 1, "batch_size": 2, "device": "cpu", "dtype": "fp32"}
    return {**spec, "adapter": adapter, "eval": {"split": 0}, "learning_rate": 1e-3, **fields}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_plan_says_what_the_run_finds_and_what_exports_do(family: str, folder_of: Any, tmp_path: Path) -> None:
    spec = spec_of(folder_of(family), family)
    said = nbtune.plan(spec, rows={"rows": ROWS}).abilities
    run = nbtune.finetune(spec, name=family, rows={"rows": ROWS}, runs_dir=tmp_path).wait()
    assert run.plan is not None
    found = run.plan.abilities
    assert (said.tried, found.tried) == ("small", "loaded")
    same = {"tried", "weights"}
    assert said.model_dump(exclude=same) == found.model_dump(exclude=same)
    assert said.weights.holds
    assert found.weights.holds
    assert said.takes("layers") or family not in WHOLE
    assert said.packing.holds is (family not in LEAK), said.packing
    assert {k: said.settings[k] for k in SETTINGS.get(family, {})} == SETTINGS.get(family, {})
    assert not [event for event in run.events() if isinstance(event, events.Warning) and "plan" in event.message]
    assert said.ends.holds
    if said.merging.holds:
        run.export.merged()
        [made] = run.export.gguf("f16")
        assert made.type == "f16" if said.gguf.holds else made.type.startswith("merged")
    else:
        with pytest.raises(ExportError):
            run.export.merged()
    assert said.gguf.holds is (family in GGUF), said.gguf


@pytest.mark.parametrize("family", [*sorted(LEAK), "bloom"])
def test_packs_that_leak_are_refused_by_plan_and_run_in_one_sentence(
    family: str, folder_of: Any, tmp_path: Path
) -> None:
    spec = spec_of(folder_of(family), family, packing=True, sequence_len=96, accelerate=family in LEAK)
    with pytest.raises(PlanError, match="does not keep the rows of a pack apart") as planned:
        nbtune.plan(spec, rows={"rows": ROWS})
    run = nbtune.finetune(spec, name=family, rows={"rows": ROWS}, runs_dir=tmp_path)
    with pytest.raises(NbtuneError) as ran:
        run.wait()
    assert str(planned.value) == str(ran.value)


def damaged(folder: Path, to: Path, change: Any) -> Path:
    import shutil

    from safetensors.torch import load_file, save_file

    shutil.copytree(folder, to)
    tensors = load_file(to / "model.safetensors")
    change(tensors)
    save_file(tensors, to / "model.safetensors", metadata={"format": "pt"})
    return to


DAMAGE: dict[str, Any] = {
    "missing": lambda t: t.pop("model.layers.1.self_attn.q_proj.weight"),
    "a whole layer": lambda t: [t.pop(name) for name in list(t) if ".layers.2." in name],
    "left over": lambda t: t.update({"model.layers.7.mlp.up_proj.weight": t["model.norm.weight"].clone()}),
    "another shape": lambda t: t.update({"model.norm.weight": t["model.norm.weight"][:32].clone()}),
    "no head": lambda t: t.pop("lm_head.weight"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_weights_that_a_run_refuses_the_plan_refuses_with_the_same_sentence(
    what: str, folder_of: Any, tmp_path: Path
) -> None:
    folder = damaged(folder_of("llama"), tmp_path / "model", DAMAGE[what])
    import torch

    spec = spec_of(folder, "llama")
    with pytest.raises(SpecError) as planned:
        nbtune.plan(spec, rows={"rows": ROWS})
    with pytest.raises(NbtuneError) as loaded:
        load_model(str(folder), dtype=torch.float32, device="cpu")
    assert str(planned.value) == str(loaded.value)


@pytest.mark.parametrize(
    "asked",
    [
        {"data": ROWS, "train_on": []},
        {"data": [{"prompt": "Hi", "completion": " \n"}] * 4},
        {"data": [{"text": ""}] * 4, "method": "pretrain"},
    ],
    ids=["nothing is trained on", "empty answers", "empty texts"],
)
def test_rows_of_which_nothing_is_trained_are_refused_by_the_plan_too(asked: Any, tmp_path: Path) -> None:
    said = []
    for ask in (nbtune.plan, lambda **about: nbtune.finetune(**about, runs_dir=tmp_path).wait()):
        with pytest.raises(DataError, match="no token would be trained") as caught:
            ask(model="nbtune/tiny", steps=1, **asked)
        said.append(str(caught.value))
    assert said[0] == said[1]


def test_experts_that_are_stored_one_by_one_are_found_by_the_headers(folder_of: Any) -> None:
    names = nbtune.models.config_facts.headers_of(str(folder_of("mixtral")))
    assert any(".experts.0." in name for name in names), "transformers stores them otherwise by now"
    assert nbtune.plan(spec_of(folder_of("mixtral"), "mixtral"), rows={"rows": ROWS}).abilities.weights.holds


def test_a_plan_of_8b_parameters_needs_no_weights_and_little_memory(tmp_path: Path) -> None:
    """A small copy keeps the config's window, caps and multipliers, and the ratios of its widths."""
    import transformers

    from nbtune.models.miniature import miniature

    transformers.MistralConfig(sliding_window=4096).save_pretrained(tmp_path)
    small = miniature(str(tmp_path))
    config: Any = small.model.config
    assert sum(p.numel() for p in small.model.parameters()) < 20e6
    assert small.kinds == (0,) * 32
    assert config.sliding_window == 4096
    assert config.num_attention_heads // config.num_key_value_heads == 4
    assert config.hidden_size == 128 * config.num_attention_heads


def test_a_small_copy_keeps_a_choice_where_each_layer_says_how_many_experts_it_takes(tmp_path: Path) -> None:
    from nbtune.models.miniature import miniature
    from tests.support.model_classes import make

    make("hunyuan_v1_moe").config.save_pretrained(tmp_path)  # its moe_topk is a list
    small: Any = miniature(str(tmp_path)).model.config
    assert small.num_experts >= 4


def test_what_a_plan_tries_has_its_frozen_weights_in_the_format_of_the_run(tmp_path: Path) -> None:
    """GPT-2's weights lie transposed: its layers are nbtune's in 16 and 4 bits, and not in 8."""
    whole = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    path = save_speaking("gpt2", tmp_path, n_embd=64, n_head=4, n_layer=2, n_positions=512, **whole)
    asked = spec_of(path, "gpt2", device="auto", dtype="auto")
    for adapter in ("lora", "qlora"):
        spec = {**asked, "adapter": {"type": adapter, "r": 4}}
        said = nbtune.plan(spec, rows={"rows": ROWS}, machine="h200").abilities
        assert said.takes("layers"), said.blocks
    with pytest.raises(PlanError, match="2 layers are none: its weights lie transposed"):
        nbtune.plan({**asked, "weights": "fp8"}, rows={"rows": ROWS}, machine="h200")


def test_what_was_not_tried_is_not_claimed() -> None:
    nothing = Abilities()
    assert nothing.takes("layers") is None
    assert every("not known" in value for _, value in nothing.rows())
    assert Claim(holds=None, words="why").said("yes", "no") == "not known: why"


def test_the_run_keeps_and_says_them(folder_of: Any, tmp_path: Path) -> None:
    spec = spec_of(folder_of("llama"), "llama")
    run = nbtune.finetune(spec, name="llama", rows={"rows": ROWS}, runs_dir=tmp_path).wait()
    small, loaded = [event for event in run.events() if isinstance(event, events.Abilities)]
    assert (small.tried, loaded.tried) == ("small", "loaded")
    assert loaded.said["accelerated"] == "3 layers, the norm, the head"
    kept = json.loads((run.folder / "plan.json").read_text())["abilities"]
    assert Abilities.model_validate(kept) == run.plan.abilities  # type: ignore[union-attr]
    assert dict(run.plan.abilities.rows()) == loaded.said  # type: ignore[union-attr]
    assert events.from_line(events.to_line(loaded)) == loaded
    card = run.model_card("ada/llama")
    assert "| accelerated | 3 layers, the norm, the head |" in card
    assert "not known" not in card.split("## What was checked")[1].split("## How to use it")[0]
