"""What experts have learnt, in llama.cpp: merged, and as an adapter on the base's own file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nbtune.errors import ExportError
from nbtune.export import ExportSource, export_adapter_gguf, export_gguf
from nbtune.models.adapters import add_adapter, save_adapter
from nbtune.spec import AdapterSpec
from tests.support.families import CASES, LIMIT, family_tokenizer
from tests.support.llama import LlamaOracle, llama_library
from tests.support.tiny_models import save_model

SAMPLE = ("mixtral", "gpt-oss")
MIXTURES = (*SAMPLE, "granite moe", "olmoe", "qwen2 moe", "qwen3 moe", "deepseek v2", "deepseek v3")


def logits(path: Path, tokens: list[int], adapter: Path | None = None) -> np.ndarray:
    with LlamaOracle(path, library=llama_library(), n_ctx=64) as llama:
        if adapter is not None:
            llama.use_adapter(adapter)
        return llama.logits(tokens)


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in SAMPLE else pytest.mark.slow) for n in MIXTURES])
def test_llama_cpp_computes_what_experts_have_learnt(name: str, tmp_path: Path) -> None:
    import transformers

    case = CASES[name]
    tokenizer = family_tokenizer(case.tokenizer, tmp_path / "words")
    config = getattr(transformers, case.config)(vocab_size=len(tokenizer), **case.options)
    base = save_model(config, tmp_path / "base", spread=3.0)
    tokens = torch.randint(3, 90, (14,), generator=torch.Generator().manual_seed(0)).tolist()
    with torch.no_grad():
        bare = base(torch.tensor([tokens])).logits[0].numpy()
        model: Any = add_adapter(base, AdapterSpec(r=4, alpha=6), seed=0)
        generator = torch.Generator().manual_seed(5)
        for at, p in model.named_parameters():
            if "lora_B" in at:
                p.copy_(torch.randn(p.shape, generator=generator) * 0.1)
        true = model.eval()(torch.tensor([tokens])).logits[0].numpy()
    assert np.abs(bare - true).max() > 0.01 * np.ptp(true)
    source = ExportSource(
        tmp_path / "base", save_adapter(model, tmp_path / "adapter"), name="one", tokenizer=tmp_path / "words"
    )
    merged = export_gguf(source, ["f32"], tmp_path / "merged")[0].path
    assert np.abs(logits(merged, tokens) - true).max() / np.ptp(true) < LIMIT
    if name.startswith("deepseek"):
        with pytest.raises(ExportError, match="no adapter to attention by latent vectors"):
            export_adapter_gguf(source, tmp_path / "lora")
        return
    own = export_gguf(ExportSource(tmp_path / "base", name="own", tokenizer=tmp_path / "words"), ["f32"], tmp_path)
    adapter = export_adapter_gguf(source, tmp_path / "lora").path
    assert np.abs(logits(own[0].path, tokens, adapter) - true).max() / np.ptp(true) < LIMIT
