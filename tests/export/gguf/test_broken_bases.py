"""A folder that is not whole, or whose config cannot be: refused by name before a file is begun."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from nbtune.errors import ExportError
from nbtune.export import ExportSource, LlamaRunner, export_gguf
from tests.support.families import CASES, LIMIT, family_tokenizer
from tests.support.llama import llama_library
from tests.support.tiny_models import save_model

OFTEN = ("llama 2, codellama, yi", "falcon h1", "qwen 3.5 moe")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Path, Path]]:
    """A family's tiny model and its tokenizer's folder."""
    there: dict[str, tuple[Path, Path]] = {}

    def get(name: str) -> tuple[Path, Path]:
        if name not in there:
            case, folder = CASES[name], tmp_path_factory.mktemp("family")
            (folder / "tokenizer").mkdir()
            size = len(family_tokenizer(case.tokenizer, folder / "tokenizer"))
            save_model(getattr(transformers, case.config)(vocab_size=size, **case.options), folder / "model")
            there[name] = folder / "model", folder / "tokenizer"
        return there[name]

    return get


def refused(base: tuple[Path, Path], out: Path, change: Callable[[dict[str, Any], dict[str, Any]], None]) -> str:
    """Change a model's weights or config and export it; return the sentence, with nothing written."""
    model = out / "model"
    shutil.copytree(base[0], model)
    weights, config = load_file(model / "model.safetensors"), json.loads((model / "config.json").read_text())
    change(weights, config)
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    (model / "config.json").write_text(json.dumps(config))
    with pytest.raises(ExportError) as caught:
        export_gguf(ExportSource(model, tokenizer=base[1]), ["f32"], out / "files")
    assert not list(out.rglob("*.gguf*"))
    assert caught.value.fix
    return caught.value.cause


FAMILIES = [pytest.param(name, marks=[] if name in OFTEN else pytest.mark.slow) for name in CASES]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_weight_that_is_not_there_is_named(name: str, made: Any, tmp_path: Path) -> None:
    inner = sorted(key for key in load_file(made(name)[0] / "model.safetensors") if "s.1." in key or "h.1." in key)
    gone = inner[len(inner) // 2]

    def drop(weights: dict[str, Any], _: dict[str, Any]) -> None:
        del weights[gone]

    said = refused(made(name), tmp_path, drop)
    assert gone.rpartition("s.1.")[2] in said or ("experts." in gone and "lacks expert" in said)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_weight_of_another_shape_is_named(name: str, made: Any, tmp_path: Path) -> None:
    matrices = [key for key, w in load_file(made(name)[0] / "model.safetensors").items() if w.ndim == 2]
    cut = next(key for key in matrices if "embed" not in key and "wte" not in key and "lm_head" not in key)

    def shorten(weights: dict[str, Any], _: dict[str, Any]) -> None:
        weights[cut] = weights[cut][:-1].clone()

    assert cut.rpartition(".")[0].rpartition(".")[2] in refused(made(name), tmp_path, shorten)


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("llama 2, codellama, yi", "hidden_size", "many"),
        ("llama 2, codellama, yi", "num_hidden_layers", [2]),
        ("llama 2, codellama, yi", "rope_parameters", 7),
        ("falcon h1", "mlp_multipliers", [1.0]),
        ("falcon h1", "ssm_multipliers", [1.0, 2.0]),
        ("falcon h1", "mamba_n_heads", None),
        ("nemotron h", "layers_block_type", ["mamba"]),
        ("qwen3 next", "layer_types", 3),
        ("jamba", "attn_layer_period", 0),
    ],
)
def test_a_config_that_cannot_be_is_said(name: str, key: str, value: Any, made: Any, tmp_path: Path) -> None:
    assert "config.json" in refused(made(name), tmp_path, lambda _, config: config.update({key: value}))


@pytest.mark.parametrize(
    ("name", "key"),
    [("hunyuan a13b", "rms_norm_eps"), ("ministral 3", "rope_parameters")],
)
def test_what_a_config_leaves_to_its_class_is_what_transformers_says(
    name: str, key: str, made: Any, tmp_path: Path
) -> None:
    """Companies' own files leave out what is usual in the class."""
    model = shutil.copytree(made(name)[0], tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    del config[key]
    (model / "config.json").write_text(json.dumps(config))
    file = export_gguf(ExportSource(model, tokenizer=made(name)[1]), ["f32"], tmp_path)[0].path
    stock = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    ids = [5, 6, 7, 8, 9]
    with torch.no_grad():
        wanted = stock(torch.tensor([ids])).logits[0].numpy()
    with LlamaRunner(file, library=llama_library()) as llama:
        assert np.abs(llama.logits(ids) - wanted).max() / np.ptp(wanted) < LIMIT
