"""Every family that nbtune writes: llama.cpp loads it, reads the same tokens, computes the same logits in fp32."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nbtune.errors import ExportError
from nbtune.export import ExportSource, LlamaRunner, export_gguf
from nbtune.export.gguf.families import FAMILIES
from tests.support.families import CASES, EXPERTS, LIMIT, SIZES, family_tokenizer, measure
from tests.support.llama import llama_library
from tests.support.tiny_models import save_model

GELU_LIMIT = 5e-4  # llama.cpp looks GELU up in a table of half-precision values
# With its GELU in transformers' place: a last bit that differs can still move a value to the table's next entry.
EXPLAINED_LIMIT = 2e-4


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Any]]:
    made: dict[str, tuple[Path, Any]] = {}

    def get(kind: str) -> tuple[Path, Any]:
        if kind not in made:
            folder = tmp_path_factory.mktemp(kind)
            made[kind] = (folder, family_tokenizer(kind, folder))
        return made[kind]

    return get


@pytest.mark.parametrize("count", [200, pytest.param(2000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", CASES)
def test_family(name: str, count: int, tmp_path: Path, tokenizers: Callable[[str], tuple[Path, Any]]) -> None:
    seen = measure(name, tmp_path, *tokenizers(CASES[name].tokenizer), count)
    assert seen.other == 0
    if seen.explained is None:
        assert seen.off < LIMIT
    else:
        assert seen.explained < EXPLAINED_LIMIT
        assert seen.off < GELU_LIMIT


def test_the_page_names_every_family(repo: Path) -> None:
    page = (repo / "docs" / "reference" / "gguf-families.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1].strip() for line in page.splitlines() if line.startswith("| ")]
    assert rows[1:] == list(CASES)


def test_every_family_has_a_case() -> None:
    import transformers

    tried = {getattr(transformers, case.config).model_type for case in CASES.values()}
    assert set(FAMILIES) <= tried


def test_gemma_without_its_plus_one_is_another_model(
    tmp_path: Path, tokenizers: Callable[[str], tuple[Path, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import GemmaConfig

    folder, tokenizer = tokenizers("gemma")
    model = save_model(GemmaConfig(vocab_size=len(tokenizer), **CASES["gemma"].options), tmp_path / "model")
    monkeypatch.setitem(FAMILIES, "gemma", dataclasses.replace(FAMILIES["gemma"], norm_plus_one=False))
    path = export_gguf(ExportSource(tmp_path / "model", tokenizer=folder), ["f32"], tmp_path)[0].path
    tokens = tokenizer("The people over there")["input_ids"]
    with torch.no_grad():
        expected = model(torch.tensor([tokens])).logits[0].numpy()
    with LlamaRunner(path, library=llama_library()) as llama:
        assert np.abs(llama.logits(tokens) - expected).max() / np.ptp(expected) > 0.05


@pytest.mark.parametrize(
    ("config", "options", "words"),
    [
        ("LlamaConfig", {"hidden_act": "gelu"}, "the activation is not silu"),
        ("Gemma2Config", {"query_pre_attn_scalar": 17, "head_dim": 32}, "query_pre_attn_scalar"),
        ("Qwen3MoeConfig", {**EXPERTS, "num_experts": 4, "norm_topk_prob": False}, "norm_topk_prob is off"),
        ("FalconConfig", {"alibi": True, "num_hidden_layers": 1, "num_attention_heads": 4, "hidden_size": 64}, "ALiBi"),
    ],
)
def test_a_config_that_llama_cpp_would_run_otherwise_is_refused(
    config: str, options: dict[str, Any], words: str, tmp_path: Path, tokenizers: Callable[[str], tuple[Path, Any]]
) -> None:
    import transformers

    folder, tokenizer = tokenizers("gpt2")
    made = getattr(transformers, config)(vocab_size=len(tokenizer), **{**SIZES, **options})
    save_model(made, tmp_path / "model")
    with pytest.raises(ExportError, match=words):
        export_gguf(ExportSource(tmp_path / "model", tokenizer=folder), ["f32"], tmp_path / "out")
