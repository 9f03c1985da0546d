"""The specs of docs/recipes: each is trained for some steps with the embedded model, and planned with the published
shape of its own model for the machine that it names."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import nbtune
from nbtune import models
from nbtune.spec import yaml_text

RECIPES = Path(__file__).resolve().parents[1] / "docs" / "recipes"
NAMES = sorted(path.stem for path in RECIPES.glob("*.yaml"))
SAMPLE = ("chat-lora", "classifier", "dpo")
EVERY = [pytest.param(name, marks=[] if name in SAMPLE else pytest.mark.slow) for name in NAMES]

_LLAMA = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 128256, "rms_norm_eps": 1e-5}
_QWEN = {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], "rms_norm_eps": 1e-6}


def _shape(
    kind: dict[str, Any], width: int, inner: int, layers: int, heads: tuple[int, int], **more: Any
) -> dict[str, Any]:
    sizes = {"hidden_size": width, "intermediate_size": inner, "num_hidden_layers": layers}
    sizes |= {"num_attention_heads": heads[0], "num_key_value_heads": heads[1], "max_position_embeddings": 32768}
    return {"tie_word_embeddings": False, **kind, **sizes, "dtype": "bfloat16", **more}


SHAPES = {  # as their config.json has them
    "Llama-3.2-1B-Instruct": _shape(_LLAMA, 2048, 8192, 16, (32, 8), tie_word_embeddings=True, head_dim=64),
    "Llama-3.2-3B-Instruct": _shape(_LLAMA, 3072, 8192, 28, (24, 8), tie_word_embeddings=True, head_dim=128),
    "Llama-3.1-8B": _shape(_LLAMA, 4096, 14336, 32, (32, 8)),
    "Llama-3.1-8B-Instruct": _shape(_LLAMA, 4096, 14336, 32, (32, 8)),
    "Llama-3.3-70B-Instruct": _shape(_LLAMA, 8192, 28672, 80, (64, 8)),
    "Qwen2.5-0.5B": _shape(_QWEN, 896, 4864, 24, (14, 2), tie_word_embeddings=True, vocab_size=151936),
    "Qwen2.5-0.5B-Instruct": _shape(_QWEN, 896, 4864, 24, (14, 2), tie_word_embeddings=True, vocab_size=151936),
    "Qwen2.5-1.5B-Instruct": _shape(_QWEN, 1536, 8960, 28, (12, 2), tie_word_embeddings=True, vocab_size=151936),
    "Qwen2.5-7B-Instruct": _shape(_QWEN, 3584, 18944, 28, (28, 4), vocab_size=152064),
    "Qwen3-8B": _shape(
        {"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "rms_norm_eps": 1e-6},
        *(4096, 12288, 36, (32, 8)),
        head_dim=128,
        vocab_size=151936,
    ),
}


_WITH_TOOLS = (
    "{{ tools | tojson }}{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
    "{% if m.tool_calls %}{{ m.tool_calls | tojson }}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def _recipe(name: str) -> tuple[str, dict[str, Any]]:
    """The machine that a recipe names, and its spec."""
    text = (RECIPES / f"{name}.yaml").read_text(encoding="utf-8")
    machine = re.search(r"^# machine: (\S+)$", text, re.MULTILINE)
    assert machine is not None
    return machine[1], dict(yaml_text.load(text))


def test_there_are_twenty_and_the_page_names_them_all() -> None:
    page = (RECIPES / "index.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| \[([\w-]+)\]", page, re.MULTILINE) == re.findall(r"\((\S+)\.yaml\)", page)
    assert sorted(re.findall(r"\((\S+)\.yaml\)", page)) == NAMES
    assert len(NAMES) == 20
    for name in NAMES:
        machine, spec = _recipe(name)
        (line,) = [line for line in page.splitlines() if f"({name}.yaml)" in line]
        assert f"`{machine}`" in line
        assert f"| {spec['model']} | {spec.get('method', 'sft')} |" in line


@pytest.mark.parametrize("name", EVERY)
def test_a_recipe_trains(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(RECIPES)
    _, spec = _recipe(name)
    spec = {key: value for key, value in spec.items() if key not in ("epochs", "gpus", "weights")}
    spec |= {"model": "nbtune/tiny", "steps": 3, "sequence_len": 128, "batch_size": 2}
    if "teacher" in spec:
        spec["teacher"] = "nbtune/tiny"
    if isinstance(spec.get("adapter"), dict) and "layers_to_transform" in spec["adapter"]:
        spec["adapter"]["layers_to_transform"] = [2, 3]
    if name == "tools":  # the embedded model's template knows none
        spec["chat_template"] = _WITH_TOOLS
    run = nbtune.finetune(spec, runs_dir=tmp_path).wait()
    assert run.state == "finished", run.error
    assert run.history["loss"].notna().all()


@pytest.mark.parametrize("name", EVERY)
def test_a_recipe_fits_the_machine_that_it_names(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(RECIPES)
    machine, spec = _recipe(name)
    for key in ("model", "teacher"):
        if spec.get(key, "nbtune/tiny") != "nbtune/tiny":
            spec[key] = _folder(tmp_path, spec[key])
    if name == "tools":  # nor does the tokenizer that stands in: a plan refuses rows whose calls would be lost
        spec["chat_template"] = _WITH_TOOLS
    plan = nbtune.plan(spec, machine=machine)
    assert plan.peak_bytes <= plan.available_bytes
    assert plan.total_steps > 0


def _folder(tmp_path: Path, model: str) -> str:
    """A folder with a model's published shape, the embedded model's tokenizer, and no weights."""
    folder = tmp_path / model.split("/")[-1]
    folder.mkdir()
    for file in Path(models.resolve("nbtune/tiny")).glob("*token*"):
        shutil.copy(file, folder)
    for file in Path(models.resolve("nbtune/tiny")).glob("*.jinja"):
        shutil.copy(file, folder)
    (folder / "config.json").write_text(json.dumps(SHAPES[folder.name]))
    _weights(folder)
    return str(folder)


def _weights(folder: Path) -> None:
    """A weight file of the model's real size in which no number is written: most of it is a hole."""
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.from_pretrained(folder))
    tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    header, end = {}, 0
    for name, tensor in model.state_dict().items():
        if name in tied:
            continue
        begin, end = end, end + 2 * tensor.numel()
        header[name] = {"dtype": "BF16", "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    path = folder / "model.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text)
    os.truncate(path, 8 + len(text) + end)
