"""Our encoders against llama.cpp's own quantiser, both read by gguf's decoder; and the files that they make."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGUFReader

from nbtune.export import ExportSource, export_gguf
from nbtune.export.gguf.kquants import ENCODERS
from nbtune.spec.gguf_types import TYPES
from tests.support.llama import LlamaOracle, llama_library
from tests.support.quantised import COLUMNS, EQUAL, KINDS, NAMES, compare, loss, ours, theirs, weights
from tests.support.tiny_models import byte_level, save_model, save_tokenizer


@pytest.fixture(scope="module")
def llama() -> Iterator[LlamaOracle]:
    with LlamaOracle(library=llama_library()) as runner:
        yield runner


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", NAMES)
def test_no_more_is_lost_than_by_llama_cpp(name: str, kind: str, llama: LlamaOracle, tmp_path: Path) -> None:
    x = weights(kind)
    if name.startswith("IQ"):
        x = x[:16]  # llama.cpp's own is slow
    seen = compare(llama, x, name, tmp_path)
    assert seen.ours <= 1.01 * seen.theirs
    if name in EQUAL:
        assert seen.equal_blocks == 1.0


def test_the_page_names_every_encoding(repo: Path) -> None:
    page = (repo / "docs" / "reference" / "gguf-types.md").read_text(encoding="utf-8")
    assert [line.split("|")[1].strip() for line in page.splitlines() if line.startswith("| ")][1:] == list(NAMES)


@pytest.mark.parametrize("name", [n for n in ENCODERS if n not in ("IQ4_NL", "IQ4_XS")])
def test_importance_is_heeded(name: str, llama: LlamaOracle, tmp_path: Path) -> None:
    x = weights("gaussian")
    importance = np.random.default_rng(5).chisquare(1, COLUMNS).astype(np.float32)
    got = loss(x, ours(x, name, importance), importance)
    assert got < loss(x, ours(x, name), importance)
    assert got <= 1.01 * loss(x, theirs(llama, x, name, tmp_path, importance), importance)


@pytest.mark.parametrize("name", ENCODERS)
def test_odd_blocks(name: str) -> None:
    """All zero, constant, one value alone, only negative, tiny and large."""
    x = np.zeros((8, 256), np.float32)
    x[1], x[2, 17], x[3], x[4] = 0.25, -3.0, -np.abs(weights("gaussian")[0, :256]), 1e-7
    x[5] = 1000 * weights("gaussian")[1, :256]
    x[6, ::2] = 1.0
    y = ours(x, name)
    assert np.isfinite(y).all()
    assert (y[0] == 0).all()
    limit = {"Q2_K": 0.45, "Q3_K": 0.25}.get(name, 0.13)
    for row in (1, 2, 3, 5, 6):
        assert loss(x[row], y[row]) <= limit * np.sqrt((x[row] ** 2).mean())
    assert np.abs(y[4]).max() < 1e-5


@pytest.fixture(
    scope="module", params=["llama", *(pytest.param(name, marks=pytest.mark.slow) for name in ("phi3", "mixtral"))]
)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Any]:
    import transformers

    folder = tmp_path_factory.mktemp(request.param)
    tokenizer = save_tokenizer(byte_level(vocab=300), folder)
    sizes = {"vocab_size": len(tokenizer), "hidden_size": 256, "intermediate_size": 256, "max_position_embeddings": 64}
    options: dict[str, dict[str, Any]] = {
        "llama": {
            "num_hidden_layers": 17,
            "num_attention_heads": 4,
            "num_key_value_heads": 1,
            "tie_word_embeddings": True,
        },
        "phi3": {"num_hidden_layers": 9, "num_attention_heads": 4, "num_key_value_heads": 4, "pad_token_id": 0},
        "mixtral": {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 8},
    }
    names = {"llama": "LlamaConfig", "phi3": "Phi3Config", "mixtral": "MixtralConfig"}
    config = getattr(transformers, names[request.param])(**sizes, **options[request.param])
    return request.param, folder, save_model(config, folder, spread=1.0)


def encodings(path: Path) -> dict[str, str]:
    return {tensor.name: tensor.tensor_type.name for tensor in GGUFReader(path).tensors}


def test_mixes_are_the_usual_ones_and_llama_cpp_runs_them(
    model: tuple[str, Path, Any], llama: LlamaOracle, tmp_path: Path
) -> None:
    name, folder, torch_model = model
    kinds = [kind for kind in TYPES if kind not in ("f16", "bf16")]
    made = {file.type: file.path for file in export_gguf(ExportSource(folder, name=name), kinds, tmp_path)}
    tokens = [5, 70, 200, 12, 12, 299, 33, 7]
    with torch.no_grad():
        expected = torch_model(torch.tensor([tokens])).logits[0].numpy()
    off: dict[str, float] = {}
    for kind in kinds:
        with LlamaOracle(made[kind], library=llama_library()) as runner:
            off[kind] = float(np.abs(runner.logits(tokens) - expected).mean())
    assert max(off.values()) < 2 * off["q2_k"]
    before = np.inf
    for kind in ("q2_k", "q3_k_m", "q4_k_m", "q5_k_m", "q6_k", "q8_0", "f32"):
        assert off[kind] < before, f"{kind} is no better than the type before it"
        before = off[kind]
    for kind in kinds:
        if kind == "f32":
            continue
        target = tmp_path / "theirs.gguf"
        number = TYPES[kind].number
        llama.ask("quantize", source=str(made["f32"]), target=str(target), ftype=number, pure=False, threads=1)
        expected_types = encodings(target)
        if kind == "q3_k_l" and name == "mixtral":  # llama.cpp forgets attention's output there
            expected_types |= {key: "Q5_K" for key in expected_types if "attn_output" in key}
        assert encodings(made[kind]) == expected_types, kind


def test_rows_of_an_odd_length_are_told(tmp_path: Path) -> None:
    from transformers import LlamaConfig

    tokenizer = save_tokenizer(byte_level(vocab=300), tmp_path / "model")
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=288,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=4,
    )
    save_model(config, tmp_path / "model")
    file = export_gguf(ExportSource(tmp_path / "model"), ["q4_k_m"], tmp_path)[0]
    assert "rows of 288, 96 values" in file.notes[0]
    assert "Q4_K became Q5_0" in file.notes[0]
    with LlamaOracle(file.path, library=llama_library()) as runner:
        assert runner.logits([1, 2, 3]).shape == (3, len(tokenizer))
