"""Folders of models: a config with odd values, weights that are not whole, tokenizers that are damaged."""

from __future__ import annotations

import json
import random
import shutil
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import torch
from safetensors.torch import load_file, save_file

import nbtune
from nbtune.models.factory import build
from nbtune.spec import AdapterSpec
from tests.fuzz.cases import Case, Silent
from tests.fuzz.values import mangled, odd
from tests.support.tiny_models import byte_level, save_tokenizer

ROWS = [{"prompt": f"Say {k}", "completion": f"{k}, as you wish."} for k in range(4)]
NAMES = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "vocab_size",
    "model_type",
    "intermediate_size",
    "rope_theta",
    "head_dim",
    "tie_word_embeddings",
    "torch_dtype",
    "dtype",
    "architectures",
    "rms_norm_eps",
    "eos_token_id",
    "max_position_embeddings",
    "hidden_act",
    "rope_parameters",
    "quantization_config",
)


@cache
def good() -> Path:
    """Return a folder with a small model whose tokenizer is real."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = Path(mkdtemp(prefix="nbtune-fuzz-"))
    tokenizer = save_tokenizer(byte_level(), folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def make(chance: random.Random, folder: Path) -> Case:
    place = folder / "model"
    shutil.copytree(good(), place)
    said, bad_weights = chance.choice((_config, _config, _asks_for_more, _weights, _bytes, _tokenizer_value))(
        chance, place
    )
    return Case(lambda: attempt(place, bad_weights), said)


def _config(chance: random.Random, place: Path) -> tuple[str, bool]:
    file = place / chance.choice(("config.json", "config.json", "generation_config.json"))
    values = json.loads(file.read_text())
    name = chance.choice((*NAMES, *values))
    if chance.random() < 0.15:
        values.pop(name, None)
        said = f"{file.name} without {name}"
    else:
        values[name] = odd(chance)
        said = f"{file.name}: {name} = {values[name]!r}"[:500]
    file.write_text(json.dumps(values))
    return said, False


def _asks_for_more(chance: random.Random, place: Path) -> tuple[str, bool]:
    """The config has places for weights that are not in the files."""
    file = place / "config.json"
    values = json.loads(file.read_text())
    more: tuple[dict[str, Any], ...] = (
        {"num_hidden_layers": values["num_hidden_layers"] + chance.randint(1, 3)},
        {"tie_word_embeddings": False},
        {"attention_bias": True},
        {"mlp_bias": True},
        {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]},
        {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]},
    )
    asked = chance.choice(more)
    file.write_text(json.dumps(values | asked))
    return f"config.json: {asked}", True


def _tokenizer_value(chance: random.Random, place: Path) -> tuple[str, bool]:
    """One value, at any depth, is another."""
    files = [name for name in ("tokenizer.json", "tokenizer_config.json") if (place / name).is_file()]
    file = place / chance.choice(files)
    values = json.loads(file.read_text())
    holder, path = values, []
    for _ in range(chance.randint(1, 4)):
        keys = list(holder) if isinstance(holder, dict) else list(range(len(holder)))
        if not keys:
            break
        key = chance.choice(keys)
        path.append(key)
        if isinstance(holder[key], dict | list) and holder[key] and chance.random() < 0.7:
            holder = holder[key]
        else:
            holder[key] = odd(chance)
            break
    file.write_text(json.dumps(values))
    return f"{file.name}: {path}", False


def _weights(chance: random.Random, place: Path) -> tuple[str, bool]:
    file = place / "model.safetensors"
    tensors = load_file(file)
    name = chance.choice(list(tensors))
    how: dict[str, Any] = {
        "gone": lambda: tensors.pop(name),
        "wider": lambda: tensors.update({name: torch.cat([tensors[name], tensors[name]])}),
        "whole numbers": lambda: tensors.update({name: tensors[name].to(torch.int8)}),
        "one more": lambda: tensors.update({"model.layers.9.mlp.up_proj.weight": tensors[name].clone()}),
        "nan": lambda: tensors[name].flatten()[:1].fill_(float("nan")),
        "none": tensors.clear,
    }
    what = chance.choice(list(how))
    how[what]()
    save_file(tensors, file, metadata={"format": "pt"})
    return f"weights: {name} {what}", True


def _bytes(chance: random.Random, place: Path) -> tuple[str, bool]:
    file = place / chance.choice(sorted(path.name for path in place.iterdir()))
    data = file.read_bytes()
    pick = chance.random()
    if pick < 0.2:
        data = b"version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 9\n"
    elif pick < 0.3:
        data = b""
    elif pick < 0.6 and file.suffix == ".safetensors":
        data = data[: chance.randrange(len(data))]
    else:
        data = mangled(chance, data[:2000]) + data[2000:]
    file.write_bytes(data)
    return f"bytes of {file.name}: {data[:200]!r}", False


def attempt(place: Path, bad_weights: bool) -> None:
    """Plan a run, and load the model as one would."""
    spec = {"model": str(place), "data": "rows", "steps": 1, "eval": {"split": 0}, "device": "cpu"}
    nbtune.plan(spec, rows={"rows": ROWS})
    built = build(str(place), adapter=AdapterSpec(r=2), dtype=torch.float32, device="cpu")
    ids = torch.arange(16)[None]
    loss = built.model(input_ids=ids, labels=ids).loss
    if bad_weights and torch.isfinite(loss):
        raise Silent("weights that are not the model's were loaded")
    whole: dict[str, Any] = {"adapter": AdapterSpec(type="full"), "dtype": torch.float32, "device": "cpu"}
    if others := made_anew(build(str(place), accelerate=False, **whole).model, place):
        raise Silent(f"weights are others than the files': {others}")


def made_anew(model: torch.nn.Module, place: Path) -> list[str]:
    """Return the names of a model's weights that are not what stands in its file, whatever was said of them."""
    stored = load_file(place / "model.safetensors")
    head = stored.get("lm_head.weight", stored.get("model.embed_tokens.weight"))
    return [
        name
        for name, own in model.named_parameters()
        if (there := stored.get(name, head if name == "lm_head.weight" else None)) is None
        or not torch.equal(own.detach().nan_to_num(), there.to(own.dtype).nan_to_num())
    ]
