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
from tests.support.families import GELU_LIMIT, LIMIT, family_tokenizer, measure
from tests.support.family_cases import CASES, EXPERTS, MAMBA2, MINISTRAL, SIZES, YARN
from tests.support.family_variants import LLAMA3
from tests.support.llama import llama_library
from tests.support.tiny_models import save_model

# Where nothing is looked up in a table; a factor of states in another's place moves logits by 7e-5.
EXACT = 2e-5
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


# Those in which mutants are planted, and of each kind of block one; `make test-all` has all.
OFTEN = (
    "llama 2, codellama, yi", "llama 3, smollm, deepseek distilled", "llama with yarn", "mixtral", "qwen 1.5, 2, 2.5",
    "qwen3 moe", "gpt-oss", "deepseek v2", "phi 3 long", "gemma", "gemma 2", "gemma 3", "falcon 40b", "bloom",
    "granite", "gpt-2", "gpt-neox, pythia", "mamba 2", "falcon h1", "lfm 2 moe", "granite 4 h", "jamba", "nemotron 3",
    "qwen3 next", "qwen 3.5", "gemma 4", "gemma 4 moe",
)  # fmt: skip


@pytest.mark.parametrize("count", [200, pytest.param(2000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", [n if n in OFTEN else pytest.param(n, marks=pytest.mark.slow) for n in CASES])
def test_family(name: str, count: int, tmp_path: Path, tokenizers: Callable[[str], tuple[Path, Any]]) -> None:
    case = CASES[name]
    seen = measure(name, tmp_path, *tokenizers(case.tokenizer), count)
    assert seen.other == 0
    if seen.explained is None:
        assert seen.off < EXACT
    else:
        assert seen.explained < EXPLAINED_LIMIT * case.times
        assert seen.off < GELU_LIMIT * case.times


def test_the_page_names_every_family(repo: Path) -> None:
    page = (repo / "docs" / "reference" / "gguf-families.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1].strip() for line in page.splitlines() if line.startswith("| ")]
    assert rows[1:] == list(CASES)


def test_every_family_has_a_case() -> None:
    import transformers

    tried = {getattr(transformers, case.config).model_type for case in CASES.values()}
    also_see = {name for name, family in FAMILIES.items() if family.within}  # tests/export/test_sees_too.py
    assert set(FAMILIES) - also_see <= tried


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


def test_caps_of_logits_are_those_of_the_config(
    tmp_path: Path, tokenizers: Callable[[str], tuple[Path, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tight ones: llama.cpp takes 50 and 30 where a file does not say."""
    caps = {"attn_logit_softcapping": 2.0, "final_logit_softcapping": 4.0}
    case = CASES["gemma 2"]
    monkeypatch.setitem(CASES, "capped", dataclasses.replace(case, options={**case.options, **caps}))
    seen = measure("capped", tmp_path, *tokenizers(case.tokenizer), 10)
    assert seen.explained is not None
    assert seen.explained < EXPLAINED_LIMIT


@pytest.mark.parametrize(
    ("config", "options", "words"),
    [
        ("LlamaConfig", {"hidden_act": "gelu"}, "the activation is not silu"),
        ("Gemma2Config", {"query_pre_attn_scalar": 17, "head_dim": 32}, "query_pre_attn_scalar"),
        ("Qwen3MoeConfig", {**EXPERTS, "num_experts": 4, "norm_topk_prob": False}, "norm_topk_prob is off"),
        ("OlmoeConfig", {"num_key_value_heads": 4, "num_experts": 4, "clip_qkv": 8.0}, "it clips queries"),
        ("GptOssConfig", {"num_local_experts": 4, "swiglu_limit": 5.0}, "alpha and limit"),
        ("Qwen3Config", {"rope_parameters": LLAMA3}, "does not read the factors of its rotary scaling"),
        ("LlamaConfig", {"rope_parameters": {**YARN, "beta_fast": 16.0}}, "yarn scaling with its own beta_fast"),
        ("Qwen3Config", {"attention_bias": True}, "no place for the weight 'model.layers.0.self_attn.o_proj.bias'"),
        ("BloomConfig", {"apply_residual_connection_post_layernorm": True, "n_head": 4}, "behind its norms"),
        ("FalconH1Config", {**MAMBA2, "mamba_d_ssm": 128, "mamba_rms_norm": True}, "before their gate"),
        ("GraniteMoeHybridConfig", {**MAMBA2, "mamba_n_groups": 2}, "all groups of its states at once"),
        ("Olmo3Config", {"rope_theta": 10000.0}, "its windows turn otherwise"),
        ("GlmConfig", {"head_dim": 48, "pad_token_id": 0}, "heads together are not as wide"),
        ("NemotronConfig", {"head_dim": 48}, "heads together are not as wide"),
        ("Cohere2Config", {"head_dim": 48}, "heads together are not as wide"),
        ("AfmoeConfig", {**EXPERTS, "head_dim": 16, "num_experts": 4}, "not multiplied by the root"),
        ("MiniCPM3Config", {"scale_depth": 2.0, "num_key_value_heads": 4}, "scale_depth are not the released"),
        ("Ministral3Config", {"rope_parameters": {**MINISTRAL, "rope_type": "default"}}, "grow without yarn"),
        (
            "DbrxConfig",
            {
                "attn_config": {"rope_theta": 10000.0},
                "ffn_config": {"moe_normalize_expert_weights": None, "hidden_size": 64},
            },
            "are not made one",
        ),
        ("Gemma4TextConfig", {"layer_types": ["full_attention"] * 2}, "all of one kind"),
        ("Gemma3nTextConfig", {"laurel_rank": 32, "num_kv_shared_layers": 0}, "laurel_rank are not the released"),
        ("Llama4TextConfig", {"num_hidden_layers": 4, "use_qk_norm": False}, "not normed as theirs"),
        ("Llama4TextConfig", {"num_hidden_layers": 4, "no_rope_layers": [1, 0, 1, 0]}, "without rotary"),
        ("Llama4TextConfig", {"num_hidden_layers": 4, "attention_chunk_size": 64}, "chunks of text"),
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


def test_an_angle_that_llama_cpp_rounds_is_said(tmp_path: Path, tokenizers: Callable[[str], tuple[Path, Any]]) -> None:
    """gpt-oss as it is published: `truncate` is off, and llama.cpp does not know that."""
    from transformers import GptOssConfig

    case = CASES["gpt-oss"]
    folder, tokenizer = tokenizers(case.tokenizer)
    rope = {**case.options["rope_parameters"], "truncate": False}
    config = GptOssConfig(vocab_size=len(tokenizer), **{**case.options, "rope_parameters": rope})
    save_model(config, tmp_path / "model")
    file = export_gguf(ExportSource(tmp_path / "model", tokenizer=folder), ["f32"], tmp_path)[0]
    assert any("rotary scaling" in note for note in file.notes)


WINDOWED: dict[str, dict[str, Any]] = {
    "MistralConfig": {},
    "MixtralConfig": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "Phi3Config": {"pad_token_id": 0},
    "Qwen2Config": {"use_sliding_window": True, "max_window_layers": 1},
    "Qwen3Config": {"head_dim": 32, "use_sliding_window": True, "max_window_layers": 1},
}


def windowed(kind: str, window: int, context: int, folder: Path, vocabulary: int) -> Any:
    import transformers

    options = {**SIZES, **WINDOWED[kind], "sliding_window": window, "max_position_embeddings": context}
    return save_model(getattr(transformers, kind)(vocab_size=vocabulary, **options), folder, spread=3.0)


@pytest.mark.parametrize("kind", WINDOWED)
def test_a_window_that_llama_cpp_ignores_ends_the_context(
    kind: str, tmp_path: Path, tokenizers: Callable[[str], tuple[Path, Any]]
) -> None:
    """Up to there the numbers are transformers', beyond they are not, whatever keys the file has."""
    from gguf import GGUFReader

    folder, tokenizer = tokenizers("qwen2" if "Qwen" in kind else "sentencepiece")
    window = 256
    model = windowed(kind, window, 512, tmp_path / "model", len(tokenizer))
    file = export_gguf(ExportSource(tmp_path / "model", tokenizer=folder), ["f32"], tmp_path)[0]
    reader = GGUFReader(file.path)
    arch = reader.fields["general.architecture"].contents()
    assert reader.fields[f"{arch}.context_length"].contents() == window
    assert any("sliding window of 256" in note for note in file.notes)
    if kind == "Phi3Config":
        assert reader.fields["phi3.attention.sliding_window"].contents() == window
    tokens = torch.randint(3, 500, (window + 24,), generator=torch.Generator().manual_seed(1)).tolist()
    with torch.no_grad():
        expected = model(torch.tensor([tokens])).logits[0].numpy()
    with LlamaRunner(file.path, library=llama_library(), n_ctx=512) as llama:
        off = np.abs(llama.logits(tokens) - expected) / np.ptp(expected)
    assert off[:window].max() < LIMIT
    assert off[window:].max() > 100 * LIMIT, "llama.cpp runs it now: say so in the family"


@pytest.mark.parametrize("kind", WINDOWED)
def test_a_window_that_leaves_no_context_is_refused_by_name(
    kind: str, tmp_path: Path, tokenizers: Callable[[str], tuple[Path, Any]]
) -> None:
    folder, tokenizer = tokenizers("qwen2" if "Qwen" in kind else "sentencepiece")
    windowed(kind, 16, 512, tmp_path / "model", len(tokenizer))
    with pytest.raises(ExportError, match="sliding window of 16 tokens"):
        export_gguf(ExportSource(tmp_path / "model", tokenizer=folder), ["f32"], tmp_path / "out")
    windowed(kind, 512, 512, tmp_path / "wide", len(tokenizer))  # nobody reaches beyond it
    assert not export_gguf(ExportSource(tmp_path / "wide", tokenizer=folder), ["f32"], tmp_path)[0].notes
