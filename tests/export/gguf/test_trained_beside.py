"""IA3's factors and trained biases in GGUF files: llama.cpp answers as the model does, or the export is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nbtune.errors import NbtuneError
from nbtune.export import ExportSource, LlamaRunner, export_gguf
from nbtune.models.adapters import add_adapter, save_adapter
from nbtune.models.first_values import as_the_base
from nbtune.spec import AdapterSpec
from tests.support.families import CASES, LIMIT, family_tokenizer, use_half_gelu
from tests.support.llama import llama_library
from tests.support.tiny_models import save_model

OPTIONS: dict[str, dict[str, Any]] = {
    "ia3": {"type": "ia3"},
    "all biases": {"r": 4, "bias": "all"},
    "biases of layers": {"r": 4, "bias": "lora_only", "target_modules": "all-linear"},
}
OFTEN = ("llama with biases", "qwen 1.5, 2, 2.5", "gpt-2", "phi 3", "gpt-neox, pythia")
EXPLAINED_LIMIT = 2e-4  # with llama.cpp's table of GELU in both: tests/export/gguf/test_families.py
TEXT = "The people over there said: 2024 def return import lambda x"


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Any]]:
    made: dict[str, tuple[Path, Any]] = {}

    def get(kind: str) -> tuple[Path, Any]:
        if kind not in made:
            folder = tmp_path_factory.mktemp(kind)
            made[kind] = (folder, family_tokenizer(kind, folder))
        return made[kind]

    return get


def learnt(name: str, adapter: AdapterSpec, folder: Path, size: int) -> Any:
    """A family's model with an adapter whose every weight has changed; both are saved."""
    import transformers

    case = CASES[name]
    config = getattr(transformers, case.config)(vocab_size=size, **case.options)
    made: Any = add_adapter(save_model(config, folder / "model", spread=3.0), adapter, seed=0)
    with torch.no_grad():
        for number, p in enumerate(p for p in made.parameters() if p.requires_grad):
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(number)) * 0.1)
    save_adapter(made, folder / "adapter")
    return made.eval()


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("name", [one if one in OFTEN else pytest.param(one, marks=pytest.mark.slow) for one in CASES])
def test_llama_cpp_says_what_was_learnt(
    name: str, options: str, tmp_path: Path, tokenizers: Callable[[str], tuple[Path, Any]]
) -> None:
    folder, tokenizer = tokenizers(CASES[name].tokenizer)
    try:
        made = learnt(name, AdapterSpec(**OPTIONS[options]), tmp_path, len(tokenizer))
    except NbtuneError as refused:
        pytest.skip(f"refused before it is trained: {refused}")
    ids = tokenizer(TEXT)["input_ids"]
    with torch.no_grad():
        expected = made(input_ids=torch.tensor([ids])).logits[0].numpy()
        with as_the_base(made):
            before = made(input_ids=torch.tensor([ids])).logits[0].numpy()
    source = ExportSource(tmp_path / "model", adapter=tmp_path / "adapter", name="tiny", tokenizer=folder)
    try:
        path = export_gguf(source, ["f32"], tmp_path)[0].path
    except NbtuneError as refused:
        pytest.skip(f"refused before a file is written: {refused}")
    with LlamaRunner(path, library=llama_library(), n_ctx=64) as llama:
        got = llama.logits(ids)
    gelu = use_half_gelu(made)
    if gelu:
        with torch.no_grad():
            expected = made(input_ids=torch.tensor([ids])).logits[0].numpy()
    off, learnt_ = (float(np.abs(one - expected).max() / np.ptp(expected)) for one in (got, before))
    assert off < (EXPLAINED_LIMIT if gelu else LIMIT)
    assert learnt_ > 10 * off, "what was learnt is in it"
