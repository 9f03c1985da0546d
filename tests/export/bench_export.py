"""How long an export takes, and how much memory.

    python -m tests.export.bench_export [tiny|0.3b|1b|8b] [TYPE] [--llama] [--out DIR]

A random model of a real shape (Llama 3.2 1B, Llama 3.1 8B) in bf16 with a LoRA adapter of rank 16 on every linear layer
is written to DIR, then exported, merging included. `--llama` times llama.cpp's own quantiser on the same machine, from
an f16 GGUF that it finds ready, with as many threads.
"""

from __future__ import annotations

import argparse
import json
import resource
import struct
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch

SHAPES = {
    "tiny": (256, 512, 4, 4, 2, 2048),
    "0.3b": (1024, 4096, 16, 16, 4, 32000),
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


@dataclass(frozen=True)
class Cost:
    """What an export took: seconds, seconds of CPU, bytes of the file, peak bytes of memory and of disk."""

    seconds: float
    cpu: float
    bytes: int
    memory: int
    disk: int


def export_once(base: Path, adapter: Path, out: Path, kind: str, device: str | None = None) -> Cost:
    """Export in this process, which should have done nothing else before."""
    from nbtune.export import ExportSource, export_gguf

    disk = 0

    def look(_done: int, _total: int, _what: str) -> None:
        nonlocal disk
        disk = max(disk, sum(path.stat().st_size for path in out.iterdir()))

    began, used = time.perf_counter(), time.process_time()
    source = ExportSource(base, adapter, name="model")
    file = export_gguf(source, [kind], out, device=device, progress=look)[0]
    seconds, cpu = time.perf_counter() - began, time.process_time() - used
    return Cost(seconds, cpu, file.bytes, _peak_memory(), max(disk, file.bytes))


def _peak_memory() -> int:
    """Of this program alone: getrusage's figure is handed on from the process that started it."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) << 10


def measured(base: Path, adapter: Path, out: Path, kind: str, device: str | None = None) -> Cost:
    """`export_once` in a process of its own; its memory is the interpreter's, torch's and the export's."""
    code = (
        "import dataclasses, json, sys\nfrom pathlib import Path\nfrom tests.export.bench_export import export_once\n"
        "base, adapter, out, kind, device = sys.argv[1:]\n"
        "cost = export_once(Path(base), Path(adapter), Path(out), kind, device or None)\n"
        "print(json.dumps(dataclasses.asdict(cost)))"
    )
    arguments = [sys.executable, "-c", code, str(base), str(adapter), str(out), kind, device or ""]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True)
    return Cost(**json.loads(done.stdout.splitlines()[-1]))


def quantise(source: Path, target: Path, kind: str, threads: int) -> tuple[float, float]:
    """Seconds and seconds of CPU that llama.cpp's own quantiser takes."""
    from nbtune.spec.gguf_types import TYPES
    from tests.support.llama import LlamaOracle, llama_library

    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    with LlamaOracle(library=llama_library()) as llama:
        began = time.perf_counter()
        number = TYPES[kind].number
        llama.ask("quantize", source=str(source), target=str(target), ftype=number, pure=False, threads=threads)
        seconds = time.perf_counter() - began
    now = resource.getrusage(resource.RUSAGE_CHILDREN)
    return seconds, now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime


def main() -> None:
    """Make, export, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shape", nargs="?", default="tiny", choices=SHAPES)
    parser.add_argument("type", nargs="?", default="q4_k_m")
    parser.add_argument("--llama", action="store_true")
    parser.add_argument("--out", default=None)
    asked = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with tempfile.TemporaryDirectory(dir=asked.out) as temporary:
        folder = Path(temporary)
        base, adapter = make(folder, asked.shape, device)
        cost = measured(base, adapter, folder / "out", asked.type, device)
        print(f"{asked.shape} {asked.type} on {device}: {cost.seconds:.1f} s ({cost.cpu:.1f} s of CPU)")
        print(f"file {cost.bytes / 1e9:.3f} GB, peak disk {cost.disk / 1e9:.3f} GB, peak memory", end=" ")
        print(f"{cost.memory / 2**30:.2f} GiB (interpreter and torch included)", flush=True)
        if asked.llama:
            measured(base, adapter, folder / "f16", "f16")
            source = next((folder / "f16").glob("*.gguf"))
            threads = torch.get_num_threads()
            seconds, cpu = quantise(source, folder / "theirs.gguf", asked.type, threads)
            print(f"llama.cpp, {threads} threads, f16 → {asked.type}: {seconds:.1f} s ({cpu:.1f} s of CPU)")
            print(
                f"nbtune takes {cost.seconds / seconds:.2f} of llama.cpp's time, {cost.cpu / cpu:.2f} of its CPU time"
            )


if __name__ == "__main__":
    main()
