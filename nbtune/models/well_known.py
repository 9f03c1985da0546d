"""Models that many begin with: what a gallery says of them before anything is downloaded.

Their configs' numbers are enough to plan by. What is gated asks for an account of the Hub that has agreed to its
licence.
"""

from __future__ import annotations

from dataclasses import dataclass

from nbtune.models.config_facts import ModelFacts, facts_by_config


@dataclass(frozen=True)
class WellKnown:
    """A model of the Hub: its licence, whether it is gated, and its facts."""

    name: str
    licence: str
    gated: bool
    facts: ModelFacts


@dataclass(frozen=True)
class _Family:
    licence: str
    positions: int
    architecture: str
    gated: bool = False


def _of(name: str, family: _Family, sizes: tuple[int, ...], *, tied: bool = True) -> WellKnown:
    config = {
        **dict(zip(_SIZES, sizes, strict=True)),
        "architectures": [family.architecture],
        "max_position_embeddings": family.positions,
        "tie_word_embeddings": tied,
        "dtype": "bfloat16",
    }
    return WellKnown(name, family.licence, family.gated, facts_by_config(name, config, {}))


# as each model's config.json has them
_SIZES = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "vocab_size",
)
_SMOL = _Family("apache-2.0", 8192, "LlamaForCausalLM")
_QWEN = _Family("apache-2.0", 40960, "Qwen3ForCausalLM")
_LLAMA_2 = _Family("llama3.2", 131072, "LlamaForCausalLM", gated=True)
_LLAMA_1 = _Family("llama3.1", 131072, "LlamaForCausalLM", gated=True)
WELL_KNOWN: tuple[WellKnown, ...] = (
    _of("HuggingFaceTB/SmolLM2-135M-Instruct", _SMOL, (576, 1536, 30, 9, 3, 64, 49152)),
    _of("HuggingFaceTB/SmolLM2-360M-Instruct", _SMOL, (960, 2560, 32, 15, 5, 64, 49152)),
    _of("Qwen/Qwen3-0.6B", _QWEN, (1024, 3072, 28, 16, 8, 128, 151936)),
    _of("meta-llama/Llama-3.2-1B-Instruct", _LLAMA_2, (2048, 8192, 16, 32, 8, 64, 128256)),
    _of("HuggingFaceTB/SmolLM2-1.7B-Instruct", _SMOL, (2048, 8192, 24, 32, 32, 64, 49152)),
    _of("Qwen/Qwen3-1.7B", _QWEN, (2048, 6144, 28, 16, 8, 128, 151936)),
    _of("meta-llama/Llama-3.2-3B-Instruct", _LLAMA_2, (3072, 8192, 28, 24, 8, 128, 128256)),
    _of("Qwen/Qwen3-4B", _QWEN, (2560, 9728, 36, 32, 8, 128, 151936)),
    _of("meta-llama/Llama-3.1-8B-Instruct", _LLAMA_1, (4096, 14336, 32, 32, 8, 128, 128256), tied=False),
    _of("Qwen/Qwen3-8B", _QWEN, (4096, 12288, 36, 32, 8, 128, 151936), tied=False),
)
