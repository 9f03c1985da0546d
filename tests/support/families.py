"""Tiny random models of every family that nbtune writes, and what llama.cpp makes of their files.

``python -m tests.support.families`` writes docs/reference/gguf-families.md from a run over all of them.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nbtune.export import ExportSource, LlamaRunner, export_gguf
from nbtune.models.gguf_file.pretokenizers import CL100K, QWEN2
from tests.support.llama import VERSION, llama_library
from tests.support.tiny_models import byte_level, save_model, save_tokenizer, sentencepiece_like, split, strings

LIMIT = 1e-4
"""The largest difference of a logit, as a part of the logits' range."""

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
MSCALED = {**YARN, "mscale": 0.8, "mscale_all_dim": 0.8}
LATENT = {
    **SIZES,
    **EXPERTS,
    "num_key_value_heads": 4,
    "num_hidden_layers": 3,
    "first_k_dense_replace": 1,
    "n_routed_experts": 8,
    "n_shared_experts": 2,
    "q_lora_rank": 24,
    "kv_lora_rank": 32,
    "qk_nope_head_dim": 16,
    "qk_rope_head_dim": 8,
    "v_head_dim": 24,
}
ROUTED = {
    **SIZES, "num_hidden_layers": 3, "n_routed_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
    "first_k_dense_replace": 1, "n_shared_experts": 1, "n_group": 1, "topk_group": 1,
}  # fmt: skip
STATES = {"hidden_size": 64, "state_size": 16, "num_hidden_layers": 2}
LONG = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "long_factor": [1.0 + i / 4 for i in range(8)],
    "short_factor": [1.0 + i / 16 for i in range(8)],
}


@dataclasses.dataclass(frozen=True)
class Case:
    """A model: transformers' class of its config, the config's fields, the kind of its tokenizer."""

    config: str
    options: dict[str, Any]
    tokenizer: str = "llama3"


CASES = {
    "llama 2, codellama, yi": Case("LlamaConfig", SIZES, "sentencepiece"),
    "llama 3, smollm, deepseek distilled": Case(
        "LlamaConfig",
        {
            **SIZES,
            "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
        },
    ),
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
    "olmoe": Case(
        "OlmoeConfig",
        {**SIZES, "num_key_value_heads": 4, "num_experts": 4, "num_experts_per_tok": 2},
        "dbrx",
    ),
    "granite moe": Case(
        "GraniteMoeConfig",
        {
            **SIZES,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "attention_multiplier": 0.2,
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.5,
            "logits_scaling": 2.0,
        },
        "digits",
    ),
    "gpt-oss": Case(
        "GptOssConfig",
        {
            **SIZES,
            "head_dim": 32,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "sliding_window": 8,
            "rope_parameters": YARN,
        },
        "llama3",
    ),
    "deepseek v2": Case(
        "DeepseekV2Config", {**LATENT, "n_group": 1, "topk_group": 1, "routed_scaling_factor": 2.0}, "gpt2"
    ),
    "deepseek v3": Case(
        "DeepseekV3Config",
        {**LATENT, "n_group": 2, "topk_group": 1, "routed_scaling_factor": 1.5, "rope_parameters": MSCALED},
        "gpt2",
    ),
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
    "arcee": Case("ArceeConfig", SIZES),
    "bloom": Case("BloomConfig", {"hidden_size": 64, "n_layer": 2, "n_head": 4}, "gpt2"),
    "cohere, command-r": Case("CohereConfig", {**SIZES, "logit_scale": 0.25}),
    "cohere 2": Case(
        "Cohere2Config", {**SIZES, "num_hidden_layers": 5, "logit_scale": 0.25, "sliding_window": 8, "head_dim": 16}
    ),
    "ernie 4.5": Case("Ernie4_5Config", {**SIZES, "head_dim": 32}),
    "exaone 4": Case("Exaone4Config", {**SIZES, "sliding_window": None, "layer_types": ["full_attention"] * 2}),
    "glm 4": Case("Glm4Config", {**SIZES, "head_dim": 16, "pad_token_id": 0}),
    "gpt-2": Case("GPT2Config", {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128}, "gpt2"),
    "gpt-neox, pythia": Case("GPTNeoXConfig", {**SIZES, "num_key_value_heads": 4}, "gpt2"),
    "nemotron": Case("NemotronConfig", {**SIZES, "head_dim": 16}),
    "olmo": Case("OlmoConfig", SIZES, "gpt2"),
    "olmo 3": Case("Olmo3Config", {**SIZES, "num_hidden_layers": 5, "sliding_window": 8}, "dbrx"),
    "seed-oss": Case("SeedOssConfig", {**SIZES, "head_dim": 32}),
    "stablelm": Case("StableLmConfig", SIZES, "gpt2"),
    "starcoder 2": Case("Starcoder2Config", SIZES, "gpt2"),
    "dots 1": Case(
        "Dots1Config",
        {
            **ROUTED,
            "num_key_value_heads": 4,
            "head_dim": 16,
            "layer_types": ["full_attention"] * 3,
            "routed_scaling_factor": 1.5,
            "norm_topk_prob": True,
        },
        "qwen2",
    ),
    "ernie 4.5 moe": Case(
        "Ernie4_5_MoeConfig",
        {
            **SIZES,
            "moe_intermediate_size": 32,
            "moe_num_experts": 8,
            "moe_k": 2,
            "moe_num_shared_experts": 2,
            "moe_layer_start_index": 1,
        },
    ),
    "glm 4.5": Case("Glm4MoeConfig", {**ROUTED, "head_dim": 16, "use_qk_norm": True, "pad_token_id": 0}),
    "hunyuan dense": Case("HunYuanDenseV1Config", {**SIZES, "head_dim": 16}),
    "jais 2": Case("Jais2Config", {**SIZES, "num_key_value_heads": 4, "head_dim": 16}),
    "starcoder": Case("GPTBigCodeConfig", {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128}, "gpt2"),
    "minimax m2": Case(
        "MiniMaxM2Config", {**SIZES, "head_dim": 16, "num_local_experts": 4, "num_experts_per_tok": 2}, "gpt2"
    ),
    "mamba": Case("MambaConfig", STATES, "gpt2"),
    "falcon mamba": Case("FalconMambaConfig", STATES, "gpt2"),
    "mamba 2": Case(
        "Mamba2Config",
        {**STATES, "num_heads": 8, "head_dim": 16, "n_groups": 2, "chunk_size": 16, "rms_norm": True},
        "gpt2",
    ),
}


def family_tokenizer(kind: str, folder: Path) -> Any:
    """A tokenizer of that kind, saved in `folder`."""
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


@dataclasses.dataclass(frozen=True)
class Seen:
    """What llama.cpp made of a family's file.

    Args:
        arch: llama.cpp's own description of the file.
        strings: how many were tokenized, `other` of them otherwise than by transformers.
        off: largest difference of a logit from transformers', as a part of the logits' range.
        explained: the same, with llama.cpp's GELU in transformers' place; None where the family has no GELU.
    """

    arch: str
    strings: int
    other: int
    off: float
    explained: float | None


def measure(name: str, folder: Path, tokenizer_folder: Path, tokenizer: Any, count: int) -> Seen:
    """Make the family's model in `folder`, export it in fp32, and let llama.cpp read `count` strings and compute."""
    import transformers

    case = CASES[name]
    config = getattr(transformers, case.config)(vocab_size=len(tokenizer), **case.options)
    model = save_model(config, folder / "model", spread=3.0)
    source = ExportSource(folder / "model", name="tiny", tokenizer=tokenizer_folder)
    path = export_gguf(source, ["f32"], folder)[0].path
    texts = strings(count, seed=len(name), specials=("<|im_start|>", "<|im_end|>", "</s>"))
    tokens = tokenizer("The people over there said: 2024 東京 def return import lambda x, HELLO World")["input_ids"]
    with LlamaRunner(path, library=llama_library(), n_ctx=64) as llama:
        read = llama.tokenize(texts, add_special=True)
        got = llama.logits(tokens)
        arch = str(llama.info["description"]).split(" ")[0]
    expected = [tokenizer(text)["input_ids"] for text in texts]
    other = sum(a != b for a, b in zip(read, expected, strict=True))
    off = _difference(got, _logits(model, tokens))
    explained = _difference(got, _logits(model, tokens)) if _use_half_gelu(model) else None
    return Seen(arch, count, other, off, explained)


def _logits(model: Any, tokens: list[int]) -> np.ndarray:
    with torch.no_grad():
        return model(torch.tensor([tokens])).logits[0].numpy()


def _difference(got: np.ndarray, expected: np.ndarray) -> float:
    return float(np.abs(got - expected).max() / np.ptp(expected))


class _HalfGelu(torch.nn.Module):
    """GELU as llama.cpp has it on a CPU: the tanh form, looked up in a table of half-precision values."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        table = torch.nn.functional.gelu(x.half().float(), approximate="tanh").half().float()
        return torch.where(x <= -10, torch.zeros_like(x), torch.where(x >= 10, x, table))


def _use_half_gelu(model: Any) -> bool:
    """Put llama.cpp's GELU in the place of the model's; whether it has any."""
    places = [(parent, key) for parent in model.modules() for key, child in parent.named_children() if _is_gelu(child)]
    for parent, key in places:
        setattr(parent, key, _HalfGelu())
    return bool(places)


def _is_gelu(module: torch.nn.Module) -> bool:
    return "gelu" in type(module).__name__.lower()


_PAGE = """\
# Families that are written as GGUF

Tiny random models of each family, exported in fp32 by nbtune and run by llama.cpp (node-llama-cpp {version}'s
library, on a CPU). *Tokens*: how many of {count} strings (Unicode, code, runs of whitespace, what looks like special
tokens) became the ids that transformers makes of them. *Logits*: the largest difference from transformers in fp32, as a
part of the logits' range. llama.cpp looks GELU up in a table of half-precision values, and has one form of it (tanh);
the last column is the difference from transformers *with that GELU*: what the table does not explain.

| family | `model_type` | llama.cpp loads it as | tokens | logits | with llama.cpp's GELU |
|---|---|---|---|---|---|
{rows}

Written by `python -m tests.support.families`; `tests/export/gguf/test_families.py` checks the same.
A family that is not here is written merged, with the llama.cpp command that makes the file; a config that llama.cpp
would run otherwise is refused before any work.
llama.cpp runs the sliding windows of Gemma and gpt-oss only. Of other families (Mistral, Mixtral, Phi-3, Qwen with
`use_sliding_window`) the file's context ends where the window does, and the export says so: up to there the numbers are
the same. A window of less than 256 tokens is refused.
"""


def main(count: int = 2000) -> None:
    """Measure every family, and write the page."""
    import transformers

    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        made: dict[str, tuple[Path, Any]] = {}
        for index, (name, case) in enumerate(CASES.items()):
            if case.tokenizer not in made:
                at = Path(temporary) / case.tokenizer
                made[case.tokenizer] = (at, family_tokenizer(case.tokenizer, at))
            seen = measure(name, Path(temporary) / str(index), *made[case.tokenizer], count)
            explained = "" if seen.explained is None else f"{seen.explained:.1e}"
            kind = getattr(transformers, case.config).model_type
            equal = f"{seen.strings - seen.other} of {seen.strings}"
            rows.append(f"| {name} | `{kind}` | {seen.arch} | {equal} | {seen.off:.1e} | {explained} |")
            print(rows[-1], flush=True)
    page = Path(__file__).parents[2] / "docs" / "reference" / "gguf-families.md"
    page.write_text(_PAGE.format(version=VERSION, count=count, rows="\n".join(rows)), encoding="utf-8")


if __name__ == "__main__":
    main()
