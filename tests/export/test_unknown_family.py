"""A family that nbtune does not write as GGUF is written merged, with the commands that finish it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import nbtune
from nbtune.export.base_model import BaseModelExporter
from nbtune.export.gguf.families import FAMILIES
from nbtune.export.gguf.unknown_family import is_unknown
from nbtune.untrusted import from_here
from tests.support.families import family_tokenizer
from tests.support.model_classes import CLASSES, config_of


def unknown(folder: Path) -> Path:
    assert CLASSES["opt"].kind not in FAMILIES
    tokenizer = family_tokenizer("gpt2", folder)
    config = config_of("opt")
    config.vocab_size = len(tokenizer)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def test_of_a_run_it_is_the_merged_model_and_the_commands(tmp_path: Path) -> None:
    model = str(unknown(tmp_path / "base"))
    rows = [{"prompt": "Hi", "completion": "Ahoy!"}] * 4
    more: dict[str, Any] = {"steps": 2, "learning_rate": 0.05, "eval": {"split": 0}}
    run = nbtune.finetune(model=model, data=rows, name="opt", runs_dir=tmp_path / "runs", **more).wait()
    assert "cannot write" in run.plan.abilities.gguf.words
    [made] = run.export.gguf("q4_k_m", "q8_0")
    assert made.type.startswith("merged")
    [note] = [note for note in made.notes if "llama.cpp" in note]
    for part in ("'opt'", "convert_hf_to_gguf.py", "--outtype q8_0", "--outtype bf16", "-q4_k_m.gguf Q4_K_M"):
        assert part in note
    ids = torch.arange(3, 12)[None]
    merged: Any = AutoModelForCausalLM.from_pretrained(made.path, dtype=torch.float32)
    base: Any = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    with torch.no_grad():
        assert not torch.allclose(merged(ids).logits, base(ids).logits, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("opt", "does not name it"),
        ("phimoe", "a third of their range off"),
        *(
            pytest.param(name, words, marks=pytest.mark.slow)
            for name, words in (
                ("gptj", "does not run it"),
                ("vaultgemma", "does not name it"), ("olmo_hybrid", "does not name it"),
                ("recurrent_gemma", "does not name it"),
            )
        ),
    ],
)  # fmt: skip
def test_the_merged_model_opens_and_what_is_said_of_its_command_is_what_llama_cpp_has(
    name: str, words: str, tmp_path: Path
) -> None:
    tokenizer = family_tokenizer("gpt2", tmp_path / name)
    config = config_of(name)
    config.vocab_size = len(tokenizer)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / name)
    [made] = BaseModelExporter(str(tmp_path / name)).gguf("f16", out=tmp_path / "out")
    AutoModelForCausalLM.from_pretrained(made.path)
    note = made.notes[-1]
    file = from_here(tmp_path / "out" / f"{name}-f16.gguf")
    assert f"convert_hf_to_gguf.py {from_here(made.path)} --outtype f16 --outfile {file}" in note
    assert words in note


def test_of_a_model_by_itself_too_and_what_is_no_model_is_refused_as_before(tmp_path: Path) -> None:
    folder = unknown(tmp_path / "base")
    [made] = BaseModelExporter(str(folder)).gguf("f16", out=tmp_path / "out")
    assert made.path == tmp_path / "out" / "merged"
    assert "--outtype f16" in made.notes[-1]
    assert not is_unknown(BaseModelExporter("nbtune/tiny")._source)
