"""How long an export takes, and how much memory.

    python -m tests.export.bench_export [1b|8b] [TYPE] [--llama] [--out DIR]

A random model of a real shape (Llama 3.2 1B, Llama 3.1 8B) in bf16 with a LoRA adapter of rank 16 on every linear layer
is written to DIR, then exported, merging included. `--llama` times llama.cpp's own quantiser on the same machine, from
an f16 GGUF that it finds ready, with as many threads.
"""

from __future__ import annotations

import argparse
import json
import resource
import struct
import tempfile
import time
from pathlib import Path

import torch

SHAPES = {
    "tiny": (256, 512, 4, 4, 2, 2048),
    "1b": (2048, 8192, 16, 32, 8, 128256),
    "8b": (4096, 14336, 32, 32, 8, 128256),
}


def _tensors(shape: str) -> dict[str, tuple[int, ...]]:
    hidden, inner, layers, heads, kv, vocab = SHAPES[shape]
    small = hidden // heads * kv
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocab, hidden), "model.norm.weight": (hidden,)}
    if shape == "8b":
        found["lm_head.weight"] = (vocab, hidden)
    for i in range(layers):
        at = f"model.layers.{i}."
        for name, size in (("q", hidden), ("k", small), ("v", small)):
            found[f"{at}self_attn.{name}_proj.weight"] = (size, hidden)
        found[f"{at}self_attn.o_proj.weight"] = (hidden, hidden)
        found[f"{at}mlp.gate_proj.weight"] = found[f"{at}mlp.up_proj.weight"] = (inner, hidden)
        found[f"{at}mlp.down_proj.weight"] = (hidden, inner)
        found[f"{at}input_layernorm.weight"] = found[f"{at}post_attention_layernorm.weight"] = (hidden,)
    return found


def _write(path: Path, tensors: dict[str, tuple[int, ...]], dtype: torch.dtype, device: str, scale: float) -> None:
    """Random safetensors, tensor by tensor."""
    sizes = {name: torch.Size(shape).numel() * dtype.itemsize for name, shape in tensors.items()}
    header, at = {}, 0
    kind = {torch.bfloat16: "BF16", torch.float32: "F32"}[dtype]
    for name, shape in tensors.items():
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [at, at + sizes[name]]}
        at += sizes[name]
    text = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for shape in tensors.values():
            value = torch.randn(shape, device=device, dtype=torch.float32) * scale
            if len(shape) == 1:
                value = value + 1
            file.write(value.to(dtype).flatten().view(torch.uint8).cpu().numpy().data)


def make(folder: Path, shape: str, device: str) -> tuple[Path, Path]:
    """Base and adapter in `folder`."""
    from tests.support.tiny_models import byte_level, save_tokenizer

    hidden, inner, layers, heads, kv, vocab = SHAPES[shape]
    base, adapter = folder / "base", folder / "adapter"
    adapter.mkdir(parents=True)
    save_tokenizer(byte_level(), base)
    config = {"model_type": "llama", "hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": layers}
    config |= {"num_attention_heads": heads, "num_key_value_heads": kv, "vocab_size": vocab, "rms_norm_eps": 1e-5}
    config |= {"max_position_embeddings": 8192, "tie_word_embeddings": shape != "8b", "rope_theta": 500000.0}
    (base / "config.json").write_text(json.dumps(config))
    tensors = _tensors(shape)
    _write(base / "model.safetensors", tensors, torch.bfloat16, device, 0.02)
    factors: dict[str, tuple[int, ...]] = {}
    for name, (*size,) in tensors.items():
        if "proj" in name:
            stem = f"base_model.model.{name.removesuffix('.weight')}"
            factors[f"{stem}.lora_A.weight"], factors[f"{stem}.lora_B.weight"] = (16, size[1]), (size[0], 16)
    _write(adapter / "adapter_model.safetensors", factors, torch.float32, device, 0.01)
    (adapter / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 16, "lora_alpha": 32}))
    return base, adapter


def main() -> None:
    """Make, export, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shape", nargs="?", default="tiny", choices=SHAPES)
    parser.add_argument("type", nargs="?", default="q4_k_m")
    parser.add_argument("--llama", action="store_true")
    parser.add_argument("--out", default=None)
    asked = parser.parse_args()
    from nbtune.export import ExportSource, LlamaRunner, export_gguf

    device = "cuda" if torch.cuda.is_available() else "cpu"
    with tempfile.TemporaryDirectory(dir=asked.out) as temporary:
        folder = Path(temporary)
        base, adapter = make(folder, asked.shape, device)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        began, used = time.perf_counter(), time.process_time()
        file = export_gguf(ExportSource(base, adapter, name=asked.shape), [asked.type], folder / "out")[0]
        wall, cpu = time.perf_counter() - began, time.process_time() - used
        after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(f"{asked.shape} {asked.type} on {device}: {wall:.1f} s ({cpu:.1f} s of CPU), {file.bytes / 1e9:.2f} GB")
        print(f"peak memory {after / 2**20:.2f} GiB (before the export {before / 2**20:.2f}); mapped files count in it")
        if asked.llama:
            from tests.support.llama import llama_library

            source = export_gguf(ExportSource(base, adapter, name="f16"), ["f16"], folder / "out")[0].path
            with LlamaRunner(library=llama_library()) as llama:
                from nbtune.export.gguf.types import TYPES

                began, used = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
                number, threads = TYPES[asked.type].number, torch.get_num_threads()
                target = str(folder / "theirs.gguf")
                llama.ask("quantize", source=str(source), target=target, ftype=number, pure=False, threads=threads)
                wall = time.perf_counter() - began
            cpu = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - used
            print(f"llama.cpp, {threads} threads, f16 → {asked.type}: {wall:.1f} s ({cpu:.1f} s of CPU)")


if __name__ == "__main__":
    main()
