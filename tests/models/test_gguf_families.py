"""Each family's GGUF file as a base: what is learnt runs on the very file in llama.cpp; forms that others write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nbtune import models
from nbtune.export import ExportSource, export_adapter_gguf
from nbtune.models.adapters import add_adapter, save_adapter
from nbtune.spec import AdapterSpec
from tests.models.test_gguf_file import FP32, apart, logits, made, own_cache
from tests.support.families import GELU_LIMIT, LIMIT, has_gelu
from tests.support.family_cases import CASES, takes_adapter
from tests.support.family_variants import VARIANTS
from tests.support.llama import LlamaOracle, llama_library

__all__ = ["own_cache"]  # the fixture, for this file's tests too
OFTEN = ("granite 4 h", "qwen3 next")


@pytest.mark.parametrize(
    "name",
    [
        n if n in OFTEN else pytest.param(n, marks=pytest.mark.slow)
        for n, case in (CASES | VARIANTS).items()
        if takes_adapter(case)
    ],
)
def test_what_is_learnt_upon_a_file_runs_on_it(name: str, tmp_path: Path) -> None:
    _, _, [path] = made(name, tmp_path)
    base = models.load_model(str(path), dtype=FP32, device="cpu")
    limit = GELU_LIMIT if has_gelu(base) else LIMIT
    tokens = torch.randint(3, 90, (14,), generator=torch.Generator().manual_seed(0)).tolist()
    bare = logits(base, tokens)
    model: Any = add_adapter(base, AdapterSpec(r=4, alpha=6), seed=0)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for at, p in model.named_parameters():
            if "lora_B" in at:
                p.copy_(torch.randn(p.shape, generator=generator) * 0.1)
    true = logits(model.eval(), tokens)
    assert apart(bare, true) > 0.01
    folder = models.resolve(str(path))
    source = ExportSource(folder, save_adapter(model, tmp_path / "adapter"), name="one", tokenizer=folder)
    with LlamaOracle(path, library=llama_library(), n_ctx=64) as llama:
        llama.use_adapter(export_adapter_gguf(source, tmp_path / "lora").path)
        assert apart(torch.from_numpy(llama.logits(tokens).copy()), true) < limit


def rewritten(path: Path, out: Path, keys: dict[str, Any], tensors: dict[str, Any], without: tuple[str, ...]) -> Path:
    """Copy an fp32 file with more keys and tensors, and without some."""
    from gguf import GGUFReader, GGUFWriter

    reader = GGUFReader(path)
    arch = reader.fields["general.architecture"].contents()
    writer = GGUFWriter(out, arch)
    for field in reader.fields.values():
        if field.name.startswith("GGUF.") or field.name == "general.architecture" or field.name in keys:
            continue
        inner = field.types[1] if len(field.types) > 1 else None
        writer.add_key_value(field.name, field.contents(), field.types[0], inner)
    for key, value in keys.items():
        writer.add_uint32(key, value)
    stored = {tensor.name: tensor.data for tensor in reader.tensors if tensor.name not in without}
    for name, data in {**stored, **tensors}.items():
        writer.add_tensor(name, np.ascontiguousarray(data, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out


@pytest.mark.parametrize("name", ["deepseek v2", "deepseek v3"])
def test_attention_kept_for_one_latent_head_is_read(name: str, tmp_path: Path) -> None:
    """As llama.cpp's converter writes DeepSeek's: keys' and values' halves of `kv_b` apart, the keys' turned."""
    from gguf import GGUFReader

    model, tokenizer, [path] = made(name, tmp_path)
    config = model.config
    heads, nope, rotary = config.num_attention_heads, config.qk_nope_head_dim, config.qk_rope_head_dim
    tensors, without = {}, []
    for tensor in GGUFReader(path).tensors:
        if tensor.name.endswith("attn_kv_b.weight"):
            both = tensor.data.reshape(heads, nope + config.v_head_dim, -1)
            start = tensor.name.removesuffix("attn_kv_b.weight")
            tensors[f"{start}attn_k_b.weight"] = both[:, :nope].transpose(0, 2, 1)
            tensors[f"{start}attn_v_b.weight"] = both[:, nope:]
            without.append(tensor.name)
    keys = {
        "attention.head_count_kv": 1,
        "attention.key_length": config.kv_lora_rank + rotary,
        "attention.value_length": config.kv_lora_rank,
        "attention.key_length_mla": nope + rotary,
        "attention.value_length_mla": config.v_head_dim,
    }
    named = {f"deepseek2.{key}": value for key, value in keys.items()}
    other = rewritten(path, tmp_path / "latent.gguf", named, tensors, tuple(without))
    ids = tokenizer("The people over there").input_ids
    got = models.load_model(str(other), dtype=FP32, device="cpu")
    assert apart(logits(got, ids), logits(model, ids)) < 1e-6
    with LlamaOracle(other, library=llama_library(), n_ctx=64) as llama:
        assert apart(torch.from_numpy(llama.logits(ids).copy()), logits(model, ids)) < LIMIT


def test_blocks_that_predict_further_tokens_are_left_out(tmp_path: Path) -> None:
    model, tokenizer, [path] = made("glm 4.5", tmp_path)
    layers = model.config.num_hidden_layers
    keys = {"glm4moe.block_count": layers + 1, "glm4moe.nextn_predict_layers": 1}
    more = {f"blk.{layers}.nextn.eh_proj.weight": np.ones((64, 128)), f"blk.{layers}.attn_norm.weight": np.ones(64)}
    other = rewritten(path, tmp_path / "more.gguf", keys, more, ())
    ids = tokenizer("The people over there").input_ids
    got = models.load_model(str(other), dtype=FP32, device="cpu")
    assert got.config.num_hidden_layers == layers
    assert apart(logits(got, ids), logits(model, ids)) < 1e-6
