"""Models that are read tensor by tensor: the very weights that transformers reads, in less memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from nbtune.models import piecewise_loading
from nbtune.models.loading import load_model
from nbtune.spec import Placement
from tests.models.test_accelerate import SIZES

AWAY, NF4 = Placement(format="32bit", resident=0), Placement(format="nf4")


def saved(tmp_path: Path, family: str = "llama", **config: Any) -> str:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **{**SIZES, **config}), dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / family, max_shard_size="50KB")
    return str(tmp_path / family)


@pytest.mark.parametrize("weights", [AWAY, NF4], ids=["whole", "nf4"])
@pytest.mark.parametrize("family", ["llama", "gemma", "qwen2"])
def test_as_transformers_reads_them(
    family: str, weights: Placement, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, whole = saved(tmp_path, family), piecewise_loading.load_by_pieces
    monkeypatch.setattr(piecewise_loading, "_ROUNDED_AT_ONCE", 256)
    made: list[Any] = []
    monkeypatch.setattr(piecewise_loading, "load_by_pieces", lambda *a, **k: made.append(whole(*a, **k)) or made[-1])
    ours = load_model(path, dtype=torch.float32, device="cpu", weights=weights)
    assert made == [ours]
    monkeypatch.setattr(piecewise_loading, "load_by_pieces", lambda *_, **__: None)
    theirs = load_model(path, dtype=torch.float32, device="cpu", weights=weights)
    for (name, a), (other, b) in zip(ours.named_parameters(), theirs.named_parameters(), strict=True):
        assert (name, a.dtype, type(a), a.requires_grad) == (other, b.dtype, type(b), b.requires_grad and False)
        assert torch.equal(a, b)
    for (name, a), (other, b) in zip(ours.named_buffers(), theirs.named_buffers(), strict=True):
        assert name == other
        assert torch.equal(a, b)
    assert ours.config.to_dict() == theirs.config.to_dict()
    ids = torch.arange(3, 40)[None]
    assert torch.equal(ours(ids).logits, theirs(ids).logits)


def test_what_is_not_just_its_weights_is_left_to_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files of older releases hold what is computed now."""
    path, whole = saved(tmp_path), piecewise_loading.load_by_pieces
    more = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}
    first = sorted(Path(path).glob("*.safetensors"))[0]
    save_file(load_file(first) | more, first, {"format": "pt"})
    made: list[Any] = []
    monkeypatch.setattr(piecewise_loading, "load_by_pieces", lambda *a, **k: made.append(whole(*a, **k)))
    load_model(path, dtype=torch.float32, device="cpu", weights=AWAY)
    assert made == [None]


def test_layers_whose_weights_lie_transposed_are_rounded_as_they_are_used(tmp_path: Path) -> None:
    """GPT-2's, read tensor by tensor, were packed the wrong way round: it trained on other weights."""
    from bitsandbytes.functional import dequantize_4bit

    config: dict[str, Any] = {"n_embd": 64, "n_head": 4, "n_layer": 2, "loss_type": "ForCausalLM"}
    path = saved(tmp_path, "gpt2", **config)
    true = load_model(path, dtype=torch.float32, device="cpu").transformer.h
    rounded = load_model(path, dtype=torch.float32, device="cpu", weights=NF4).transformer.h
    for name in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"):
        weight = rounded[0].get_submodule(name).weight
        told, wanted = dequantize_4bit(weight.data, weight.quant_state), true[0].get_submodule(name).weight.T
        assert told.shape == wanted.shape, name
        assert (told - wanted).norm() < 0.2 * wanted.norm(), name


CHILD = """
import json, sys, torch
from nbtune.device import memory_use
from nbtune.models.loading import load_model
from nbtune.spec import Placement
load_model("nbtune/tiny", dtype=torch.float32, device="cpu", weights=Placement(format="nf4"))
before = memory_use(torch.device("cpu")).peak  # ours alone: `ru_maxrss` begins with that of whoever starts us
model = load_model(sys.argv[1], dtype=torch.float32, device="cpu", weights=Placement(format="nf4"))
after = memory_use(torch.device("cpu")).peak
print(json.dumps({"more": after - before, "held": model.get_memory_footprint()}))
"""


def test_the_peak_is_what_stays_and_one_tensor(tmp_path: Path) -> None:
    path = saved(tmp_path, hidden_size=512, intermediate_size=4096, num_hidden_layers=12)
    files = sum(file.stat().st_size for file in Path(path).glob("*.safetensors"))
    environment = {
        **os.environ,
        "MALLOC_MMAP_THRESHOLD_": "65536",
    }  # what is freed is gone: glibc's own is not measured
    command = [sys.executable, "-c", CHILD, path]
    run = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    found = json.loads(run.stdout.splitlines()[-1])
    assert found["held"] < 0.5 * files
    assert found["more"] > 0.5 * found["held"], "what was loaded is not seen in it"
    assert found["more"] < found["held"] + 0.25 * files, (found, files)
