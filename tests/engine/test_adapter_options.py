"""Options of an adapter through `nbtune.finetune`: counted by the plan, resumed exactly, opened by peft, merged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from tests.engine.test_asked import trained
from tests.support.family_cases import SIZES
from tests.support.tiny_models import save_speaking

OPTIONS: dict[str, dict[str, Any]] = {
    "lora": {
        "type": "lora", "r": 4, "rank_pattern": {"down_proj": 8}, "alpha_pattern": {"q_proj": 16},
        "layers_to_transform": [1], "init_lora_weights": "gaussian", "modules_to_save": ["lm_head", "embed_tokens"],
    },
    "pissa": {"type": "lora", "r": 4, "init_lora_weights": "pissa", "target_modules": ["q_proj", "down_proj"]},
    "tokens": {"type": "lora", "r": 2, "trainable_token_indices": [7, 9], "target_modules": ["q_proj"]},
    "ia3": {"type": "ia3", "modules_to_save": ["lm_head"]},
    "bias": {"type": "lora", "r": 4, "bias": "all"},
    "full": {"type": "full", "unfrozen_parameters": [r"model\.layers\.1\.", "lm_head"]},
}  # fmt: skip


RATES: dict[str, dict[str, float]] = {
    "pissa": {},
    "bias": {},
    "ia3": {"head_rate": 0.5},
    "tokens": {"embedding_rate": 0.5},
    "full": {"head_rate": 0.5},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("base")
    return str(save_speaking("llama", folder, **{**SIZES, "tie_word_embeddings": False, "attention_bias": True}))


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("tied")
    return str(save_speaking("llama", folder, **{**SIZES, "tie_word_embeddings": True}))


@pytest.mark.parametrize("kind", OPTIONS)
def test_a_run_of_it_is_planned_resumed_opened_and_merged(
    start: Any, base: str, tied: str, tmp_path: Path, kind: str
) -> None:
    base = tied if kind == "tokens" else base
    about: dict[str, Any] = {
        "model": base, "adapter": OPTIONS[kind], "steps": 4, "batch_size": 2, "learning_rate": 1e-2,
        "optim_args": RATES.get(kind, {"embedding_rate": 0.5, "head_rate": 0.5}),
        "checkpoint": {"every": 2, "keep": 9},
    }  # fmt: skip
    run = start(**about).wait()
    assert run.state == "finished", run.error
    whole = trained(run)
    assert run.plan.trainable_parameters == whole.numel()
    run.resume(step=2).wait()
    assert torch.equal(trained(run), whole)
    ids = torch.arange(10).unsqueeze(0)
    with torch.no_grad():
        merged = AutoModelForCausalLM.from_pretrained(run.export.merged(tmp_path / "merged").path)(ids).logits
        stock = AutoModelForCausalLM.from_pretrained(base)
        assert float((stock(ids).logits - merged).abs().max()) > 1e-3
        if kind != "full":
            opened = PeftModel.from_pretrained(stock, run.folder / "adapter").eval()(ids).logits
        else:
            opened = AutoModelForCausalLM.from_pretrained(run.folder / "adapter")(ids).logits
    torch.testing.assert_close(opened, merged, rtol=1e-5, atol=1e-5)
    assert run.plan.abilities.merging.holds
