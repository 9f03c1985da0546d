"""A run that starts from a folder of peft's, whoever trained it: ranks by name, rsLoRA, DoRA, modules trained whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import nbtune
from nbtune.errors import SpecError
from tests.engine.conftest import ROWS
from tests.engine.test_asked import STILL
from tests.support.family_cases import SIZES
from tests.support.tiny_models import save_speaking

THEIRS: dict[str, dict[str, Any]] = {
    "ranks": {"r": 4, "lora_alpha": 12, "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 5},
              "target_modules": ["q_proj", "v_proj", "down_proj"], "use_rslora": True, "layers_to_transform": [1],
              "modules_to_save": ["lm_head"]},
    "dora": {"r": 3, "use_dora": True, "trainable_token_indices": [5, 7],
             "target_modules": r".*\.0\.mlp\.(up|down)_proj"},
}  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("base")
    return str(save_speaking("llama", folder, **{**SIZES, "tie_word_embeddings": False}))


def learnt(base: str, folder: Path, config: Any) -> Path:
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(p.requires_grad * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)) * 0.02)
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", THEIRS)
def test_it_begins_with_what_they_learnt(start: Any, base: str, tmp_path: Path, kind: str) -> None:
    """At a rate of nearly nothing the run's adapter is theirs, in its file and as peft opens it."""
    theirs = learnt(base, tmp_path / "theirs", LoraConfig(task_type="CAUSAL_LM", **THEIRS[kind]))
    run = start(model=base, start_from=str(theirs), steps=1, batch_size=2, learning_rate=STILL).wait()
    assert run.state == "finished", run.error
    mine, truth = (load_file(where / "adapter_model.safetensors") for where in (run.folder / "adapter", theirs))
    assert mine.keys() == truth.keys()
    for name, value in truth.items():
        torch.testing.assert_close(mine[name], value, rtol=0, atol=1e-7)
    assert run.plan.trainable_parameters == sum(value.numel() for value in truth.values())
    ids = torch.arange(10).unsqueeze(0)
    said = [
        PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), where).eval()(ids).logits.detach()
        for where in (theirs, run.folder / "adapter")
    ]
    torch.testing.assert_close(said[1], said[0])


def test_what_does_not_go_on_is_refused_beforehand(base: str, tmp_path: Path) -> None:
    about: dict[str, Any] = {"model": base, "data": ROWS, "steps": 1, "device": "cpu"}
    theirs = learnt(base, tmp_path / "theirs", LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    assert nbtune.plan(start_from=str(theirs), adapter={"dropout": 0.1, "r": 4}, **about).trainable_parameters > 0
    with pytest.raises(SpecError, match=r"`adapter: {r: 8}` is asked for, and the adapter in `theirs` has 4"):
        nbtune.plan(start_from=str(theirs), adapter={"r": 8}, **about)
    scaled = IA3Config(target_modules=["down_proj"], feedforward_modules=["down_proj"], task_type="CAUSAL_LM")
    with pytest.raises(SpecError, match="type IA3, and one goes on from a LoRA"):
        nbtune.plan(start_from=str(learnt(base, tmp_path / "scaled", scaled)), **about)


def test_an_adapter_of_another_base_is_refused_in_the_plan(base: str, tmp_path: Path) -> None:
    """With the run's own sentence, and the name of the base that it was trained on."""
    about: dict[str, Any] = {"data": ROWS, "steps": 1, "device": "cpu"}
    for name, targets in {"narrow": ["q_proj"], "many": ["q_proj", "down_proj"]}.items():
        theirs = learnt(base, tmp_path / name, LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM"))
        for ask in (nbtune.plan, nbtune.finetune):
            with pytest.raises(SpecError, match=r"the adapter in .* is of another model: ") as caught:
                ask(model="nbtune/tiny", start_from=str(theirs), runs_dir=tmp_path / "runs", **about)  # type: ignore[operator]
            assert f"write `model: {base}`" in caught.value.fix
    assert not list(tmp_path.glob("runs/*"))
    (theirs / "adapter_model.safetensors").unlink()
    with pytest.raises(SpecError, match=r"it has no adapter_model\.safetensors"):
        nbtune.validate(model=base, start_from=str(theirs), **about)
