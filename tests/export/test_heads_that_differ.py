"""A config that ties the head, beside files in which head and embedding differ: transformers ties nothing then."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig

from nbtune.export import ExportSource, LlamaRunner, export_gguf, export_merged
from tests.support.families import CASES, LIMIT, family_tokenizer
from tests.support.llama import llama_library
from tests.support.tiny_models import save_model

IDS = [5, 70, 30, 12, 12, 49, 33, 7]


@pytest.fixture(params=["they differ", "they are the same"])
def base(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[ExportSource, bool]:
    case, tokenizer = CASES["llama 2, codellama, yi"], tmp_path / "tokenizer"
    tokenizer.mkdir()
    options = {**case.options, "tie_word_embeddings": False}
    size = len(family_tokenizer(case.tokenizer, tokenizer))
    save_model(LlamaConfig(vocab_size=size, **options), tmp_path / "base")
    same = request.param == "they are the same"
    if same:
        weights = load_file(tmp_path / "base/model.safetensors")
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
        save_file(weights, tmp_path / "base/model.safetensors", metadata={"format": "pt"})
    config = json.loads((tmp_path / "base/config.json").read_text())
    (tmp_path / "base/config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    return ExportSource(tmp_path / "base", tokenizer=tokenizer), same


def logits(folder: Path) -> Any:
    with torch.no_grad():
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(torch.tensor([IDS])).logits[0].numpy()


def test_a_gguf_has_the_head_of_the_files(base: tuple[ExportSource, bool], tmp_path: Path) -> None:
    source, _ = base
    wanted = logits(source.base)
    with LlamaRunner(export_gguf(source, ["f32"], tmp_path)[0].path, library=llama_library()) as llama:
        assert np.abs(llama.logits(IDS) - wanted).max() / np.ptp(wanted) < LIMIT


def test_a_merged_model_says_so_for_those_who_tie_what_a_config_ties(
    base: tuple[ExportSource, bool], tmp_path: Path
) -> None:
    """transformers before 5 does."""
    source, same = base
    export_merged(source, tmp_path / "merged")
    assert json.loads((tmp_path / "merged/config.json").read_text())["tie_word_embeddings"] == same
    assert np.array_equal(logits(tmp_path / "merged"), logits(source.base))
