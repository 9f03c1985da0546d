"""What each family has learnt, in llama.cpp: merged, and as an adapter on the base's own file; experts, states and all.

The options of a config that change what is written (heads tied or not, biases, multipliers, rotary scaling, sizes that
differ) are set otherwise here than in the table of families.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nbtune.errors import ExportError
from nbtune.export import ExportSource, export_adapter_gguf, export_gguf
from nbtune.models.adapters import add_adapter, save_adapter
from nbtune.spec import AdapterSpec
from tests.support.families import GELU_LIMIT, LIMIT, family_tokenizer, has_gelu
from tests.support.family_cases import CASES, Case, takes_adapter
from tests.support.family_variants import VARIANTS
from tests.support.llama import LlamaOracle, llama_library
from tests.support.tiny_models import save_model

SAMPLE = ("mixtral", "gpt-oss", "falcon h1", "qwen 3.5", "gpt-2")
OTHERS = ("olmoe, tied", "falcon h1, tied")


def logits(path: Path, tokens: list[int], adapter: Path | None = None) -> np.ndarray:
    with LlamaOracle(path, library=llama_library(), n_ctx=64) as llama:
        if adapter is not None:
            llama.use_adapter(adapter)
        return llama.logits(tokens)


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in SAMPLE else pytest.mark.slow) for n in CASES])
def test_llama_cpp_computes_what_a_family_has_learnt(name: str, tmp_path: Path) -> None:
    learns(CASES[name], tmp_path)


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n in OTHERS else pytest.mark.slow) for n in VARIANTS])
def test_llama_cpp_computes_what_another_of_the_family_has_learnt(name: str, tmp_path: Path) -> None:
    learns(VARIANTS[name], tmp_path)


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")  # peft, of its own merging
@pytest.mark.parametrize("tied", [False, True])
def test_an_adapter_of_the_head_is_applied_or_refused(tied: bool, tmp_path: Path) -> None:
    """Where the head is the embedding too, llama.cpp knows no other matrix that an adapter could go onto."""
    case = CASES["llama with biases"]
    case = dataclasses.replace(case, options={**case.options, "tie_word_embeddings": tied})
    if not tied:
        learns(case, tmp_path, ("q_proj", "lm_head"))
        return
    with pytest.raises(ExportError, match="a LoRA GGUF cannot hold an adapter of a head that is the embedding too"):
        learns(case, tmp_path, ("q_proj", "lm_head"))


def learns(case: Case, folder: Path, targets: str | tuple[str, ...] = "all-linear") -> None:
    """Put an adapter whose numbers are no zeros onto a model of the case, and ask llama.cpp of both kinds of file."""
    import transformers

    tokenizer = family_tokenizer(case.tokenizer, folder / "words")
    config = getattr(transformers, case.config)(vocab_size=len(tokenizer), **case.options)
    base = save_model(config, folder / "base", spread=3.0)
    tokens = torch.randint(3, 90, (14,), generator=torch.Generator().manual_seed(0)).tolist()
    with torch.no_grad():
        bare = base(torch.tensor([tokens])).logits[0].numpy()
        limit = (GELU_LIMIT if has_gelu(base) else LIMIT) * case.times
        model: Any = add_adapter(base, AdapterSpec(r=4, alpha=6, target_modules=targets), seed=0)
        generator = torch.Generator().manual_seed(5)
        for at, p in model.named_parameters():
            if "lora_B" in at:
                p.copy_(torch.randn(p.shape, generator=generator) * 0.1)
        true = model.eval()(torch.tensor([tokens])).logits[0].numpy()
    assert np.abs(bare - true).max() > 0.01 * np.ptp(true)
    source = ExportSource(
        folder / "base", save_adapter(model, folder / "adapter"), name="one", tokenizer=folder / "words"
    )
    merged = export_gguf(source, ["f32"], folder / "merged")[0].path
    assert np.abs(logits(merged, tokens) - true).max() / np.ptp(true) < limit
    if not takes_adapter(case):
        with pytest.raises(ExportError, match=r"llama\.cpp applies no adapter to"):
            export_adapter_gguf(source, folder / "lora")
        return
    own = export_gguf(ExportSource(folder / "base", name="own", tokenizer=folder / "words"), ["f32"], folder)
    adapter = export_adapter_gguf(source, folder / "lora").path
    assert np.abs(logits(own[0].path, tokens, adapter) - true).max() / np.ptp(true) < limit
