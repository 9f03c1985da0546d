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
from nbtune.export.gguf.pretokenizers import CL100K, QWEN2
from tests.support.llama import llama_library
from tests.support.tiny_models import byte_level, save_model, save_tokenizer, sentencepiece_like, split, strings

LIMIT = 1e-4
# llama.cpp looks the GELU of these up in a table of half-precision values.
LIMITS = {"gemma": 5e-3, "gemma2": 5e-3, "gemma3_text": 5e-3, "phi": 5e-3, "falcon": 5e-3, "mpt": 5e-3}

SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32}
LONG = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "long_factor": [1.0 + i / 4 for i in range(8)],
    "short_factor": [1.0 + i / 16 for i in range(8)],
}


@dataclasses.dataclass(frozen=True)
class Case:
    config: str
    options: dict[str, Any]
    tokenizer: str = "llama3"


CASES = {
    "llama 2, codellama, yi": Case("LlamaConfig", SIZES, "sentencepiece"),
    "llama 3, smollm, deepseek distilled": Case("LlamaConfig", {**SIZES, "tie_word_embeddings": True}),
    "llama with biases": Case("LlamaConfig", {**SIZES, "attention_bias": True, "mlp_bias": True}),
    "llama with wide heads": Case("LlamaConfig", {**SIZES, "head_dim": 32}),
    "llama with linear scaling": Case(
        "LlamaConfig", {**SIZES, "rope_parameters": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}}
    ),
    "llama with yarn": Case("LlamaConfig", {**SIZES, "rope_parameters": YARN}),
    "mistral": Case("MistralConfig", {**SIZES, "sliding_window": None}, "sentencepiece"),
    "mixtral": Case("MixtralConfig", {**SIZES, "num_local_experts": 4, "num_experts_per_tok": 2}, "sentencepiece"),
    "qwen 1.5, 2, 2.5": Case("Qwen2Config", SIZES, "qwen2"),
    "qwen2 moe": Case(
        "Qwen2MoeConfig", {**SIZES, **EXPERTS, "num_experts": 4, "shared_expert_intermediate_size": 48}, "qwen2"
    ),
    "qwen3": Case("Qwen3Config", {**SIZES, "head_dim": 32}, "qwen2"),
    "qwen3 moe": Case("Qwen3MoeConfig", {**SIZES, **EXPERTS, "num_experts": 4, "norm_topk_prob": True}, "qwen2"),
    "phi 1, 2": Case("PhiConfig", {**SIZES, "num_key_value_heads": 4, "partial_rotary_factor": 0.5}, "gpt2"),
    "phi 3": Case("Phi3Config", {**SIZES, "pad_token_id": 0}, "sentencepiece"),
    "phi 3 long": Case(
        "Phi3Config",
        {
            **SIZES,
            "pad_token_id": 0,
            "max_position_embeddings": 512,
            "original_max_position_embeddings": 256,  # llama.cpp chooses by the size of its context, at least 256
            "rope_parameters": LONG,
        },
        "sentencepiece",
    ),
    "phi 4": Case("Phi3Config", {**SIZES, "pad_token_id": 0}, "dbrx"),
    "gemma": Case("GemmaConfig", {**SIZES, "head_dim": 32}, "gemma"),
    "gemma 2": Case(
        "Gemma2Config", {**SIZES, "head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 8}, "gemma"
    ),
    "gemma 3": Case(
        "Gemma3TextConfig",
        {**SIZES, "head_dim": 32, "num_hidden_layers": 7, "query_pre_attn_scalar": 32, "sliding_window": 8},
        "gemma",
    ),
    "falcon 7b": Case("FalconConfig", {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 64}, "gpt2"),
    "falcon 40b": Case(
        "FalconConfig",
        {
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "hidden_size": 64,
            "new_decoder_architecture": True,
            "num_kv_heads": 2,
        },
        "gpt2",
    ),
    "mpt": Case("MptConfig", {"d_model": 64, "n_heads": 4, "n_layers": 2, "max_seq_len": 128}, "gpt2"),
    "olmo 2": Case("Olmo2Config", SIZES, "dbrx"),
    "granite": Case(
        "GraniteConfig",
        {
            **SIZES,
            "attention_multiplier": 0.2,
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.5,
            "logits_scaling": 2.0,
        },
        "digits",
    ),
    "smollm 3": Case("SmolLM3Config", {**SIZES, "num_hidden_layers": 5, "pad_token_id": 0}, "llama3"),
}


def _tokenizer(kind: str, folder: Path) -> Any:
    from tokenizers import pre_tokenizers

    makers: dict[str, Callable[[], Any]] = {
        "dbrx": lambda: byte_level([split(CL100K)]),
        "digits": lambda: byte_level([pre_tokenizers.Digits(True)], regex=True),
        "gemma": lambda: sentencepiece_like(prefix=False),
        "gpt2": lambda: byte_level(),
        "llama3": lambda: byte_level([split(CL100K)], ignore_merges=True),
        "qwen2": lambda: byte_level([split(QWEN2)]),
        "sentencepiece": lambda: sentencepiece_like(prefix=True),
    }
    spm = kind in ("sentencepiece", "gemma")
    bos = "<s>" if spm else "<|begin|>" if kind == "llama3" else None
    return save_tokenizer(makers[kind](), folder, bos=bos, eos="</s>" if spm else "<|im_end|>", add_bos=bos is not None)


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Any]]:
    made: dict[str, tuple[Path, Any]] = {}

    def get(kind: str) -> tuple[Path, Any]:
        if kind not in made:
            folder = tmp_path_factory.mktemp(kind)
            made[kind] = (folder, _tokenizer(kind, folder))
        return made[kind]

    return get


@pytest.mark.parametrize("name", CASES)
def test_family(name: str, tmp_path: Path, tokenizers: Callable[[str], tuple[Path, Any]]) -> None:
    import transformers

    case = CASES[name]
    folder, tokenizer = tokenizers(case.tokenizer)
    config = getattr(transformers, case.config)(vocab_size=len(tokenizer), **case.options)
    model = save_model(config, tmp_path / "model", spread=3.0)
    source = ExportSource(tmp_path / "model", name="tiny", tokenizer=folder)
    path = export_gguf(source, ["f32"], tmp_path)[0].path
    texts = strings(200, seed=len(name), specials=("<|im_start|>", "<|im_end|>", "</s>"))
    tokens = tokenizer("The people over there said: 2024 東京 def return import lambda x, HELLO World")["input_ids"]
    with torch.no_grad():
        expected = model(torch.tensor([tokens])).logits[0].numpy()
    with LlamaRunner(path, library=llama_library(), n_ctx=64) as llama:
        assert llama.tokenize(texts, add_special=True) == [tokenizer(text)["input_ids"] for text in texts]
        got = llama.logits(tokens)
    assert np.abs(got - expected).max() / np.ptp(expected) < LIMITS.get(config.model_type, LIMIT)


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
