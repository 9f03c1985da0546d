"""Proof after an export, on the embedded model: the file's own figures, and that bits follow what is felt."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import nbtune.export
from nbtune.export import ExportSource, export_gguf
from nbtune.export.gguf.vocabulary import load_tokenizer
from nbtune.export.importance_matrix import importance
from nbtune.export.reference_model import reference_model
from nbtune.export.verification import verify_gguf
from tests.support.every import every
from tests.support.llama import llama_library
from tests.tools.tiny_model.grammar import documents
from tests.tools.tiny_model.tokens import pieces

BASE = Path(nbtune.export.__file__).parents[1] / "models" / "embedded" / "weights"


def texts(count: int, seed: str) -> list[str]:
    """Text as the embedded model knows it."""
    return ["".join(part for part, _ in pieces(document)) for document in documents(count, seed)]


CHAT = texts(30, "eval")


@pytest.fixture(scope="module")
def source() -> ExportSource:
    return ExportSource(BASE, name="tiny")


def test_fewer_bits_cost_more_and_the_figures_say_so(source: ExportSource, tmp_path: Path) -> None:
    files = export_gguf(source, ["f16", "q8_0", "q4_k_m", "q2_k"], tmp_path)
    with reference_model(source) as model:
        found = [
            verify_gguf(file, source, CHAT, model=model, prompts=["Hello! Who are you?"], library=llama_library())
            for file in files
        ]
    by_type = {quality.type: quality for quality in found}
    assert every(quality.same_tokens for quality in found)
    assert by_type["f16"].divergence < 1e-5
    assert by_type["f16"].agreement > 0.99
    assert by_type["f16"].tokens > 1000
    assert abs(by_type["f16"].perplexity / by_type["f16"].reference - 1) < 1e-3
    assert by_type["f16"].divergence < by_type["q8_0"].divergence < by_type["q4_k_m"].divergence
    assert by_type["q4_k_m"].divergence < by_type["q2_k"].divergence
    prompt, theirs, ours = by_type["q8_0"].answers[0]
    assert prompt == "Hello! Who are you?"
    assert theirs == ours
    assert theirs.strip()
    assert by_type["q4_k_m"].summary().startswith("q4_k_m, 1.")
    assert " MB, fits in 4 GB, perplexity " in by_type["q4_k_m"].summary()


def test_importance_makes_a_file_better(source: ExportSource, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(BASE)
    with reference_model(source) as model:
        felt = importance(model, tokenizer, texts(40, "calibration"))
        assert felt["model.layers.0.mlp.down_proj.weight"].shape == (model.config.intermediate_size,)
        assert not any(module._forward_pre_hooks for module in model.modules())
        plain = export_gguf(source, ["q4_k_s"], tmp_path / "plain")[0]
        weighed = export_gguf(source, ["q4_k_s"], tmp_path / "weighed", importance=felt)[0]
        losses = [verify_gguf(f, source, CHAT, model=model, library=llama_library()) for f in (plain, weighed)]
    assert losses[1].divergence < losses[0].divergence


def test_importance_finds_the_weights_under_an_adapter() -> None:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = get_peft_model(AutoModelForCausalLM.from_pretrained(BASE), LoraConfig(r=2, target_modules=["q_proj"]))
    felt = importance(model.eval(), load_tokenizer(BASE), CHAT[:1])
    linear = {f"{n}.weight" for n, m in model.base_model.model.named_modules() if isinstance(m, torch.nn.Linear)}
    expected = {name.replace(".base_layer", "") for name in linear if "lora_" not in name}
    assert set(felt) == expected
