"""How long big data takes to become tokens: nbtune beside TRL, on the same rows, template and tokenizer.

    python tests/data/bench_preparing.py [ROWS [TRL_ROWS]]

Three-turn conversations of words from the installed packages' texts; a byte-level tokenizer of 32,000 tokens; Qwen
2.5's template with generation marks, as TRL ships it. TRL prepares as it does by default, and with one process a core;
it is slow, so it is given fewer rows and compared by tokens a second. Each start is a new Python, so that its memory is
its own: PSS of all its processes, looked at ten times a second (Linux).
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)


def make(folder: Path, rows: int) -> None:
    """`rows.jsonl` and `tokenizer.json`."""
    import transformers
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

    root = Path(transformers.__file__).parent
    texts = [file.read_text(encoding="utf-8")[:20_000] for file in sorted(root.glob("models/**/*.py"))[:400]]
    tokenizer = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(_SPLIT), "isolated"), byte_level])
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=32_000, initial_alphabet=alphabet, show_progress=False)
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    words = [word for text in texts for word in text.split() if word.isascii() and len(word) < 12][:200_000]
    rng = random.Random(0)

    def some(least: int, most: int) -> str:
        count, at = rng.randint(least, most), rng.randrange(len(words) - most)
        return " ".join(words[at : at + count])

    with (folder / "rows.jsonl").open("w", encoding="utf-8") as handle:
        for _ in range(rows):
            talk = [t for _ in range(3) for t in (("user", some(5, 30)), ("assistant", some(10, 70)))]
            row = {"messages": [{"role": role, "content": text} for role, text in talk]}
            handle.write(json.dumps(row) + "\n")


def load(folder: Path) -> Any:
    """The tokenizer, with Qwen 2.5's template."""
    from importlib.util import find_spec

    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    names = {"bos_token": "<s>", "eos_token": "<|endoftext|>", "pad_token": "<pad>"}
    backend = Tokenizer.from_file(str(folder / "tokenizer.json"))
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, **names)
    fast.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    trl = find_spec("trl")
    assert trl is not None
    assert trl.origin is not None
    template = Path(trl.origin).parent / "chat_templates/qwen2_5_training.jinja"
    fast.chat_template = template.read_text(encoding="utf-8")
    return fast


def ours(folder: Path, rows: int) -> dict[str, float]:
    """A start of nbtune on the file: seconds to the first batch and to the last row."""
    import torch  # noqa: F401 — a run has it by then

    from nbtune import data
    from nbtune.spec import from_mapping

    tokenizer, spec = load(folder), from_mapping({"data": str(folder / "rows.jsonl")})
    watch = _Memory()
    began, used = time.perf_counter(), _cpu()
    prepared = data.prepare_data(data.resolve(spec.data), tokenizer, spec=spec, max_len=4096, seed=0, work_here=True)
    data.BatchPlan(prepared.train, micro_batch_size=8).step(0)
    first = time.perf_counter() - began
    count = len(prepared.train)
    seconds = time.perf_counter() - began
    time.sleep(0.2)  # the helpers' last CPU seconds are counted when they have ended
    result = {"first": first, "seconds": seconds, "cpu": _cpu() - used, "tokens": prepared.report.tokens}
    return {**result, "rows": count, "peak_gb": watch.stop()}


def trl(folder: Path, rows: int, processes: int = 0) -> dict[str, float]:
    """TRL's own preparation of the first rows, with `assistant_only_loss`."""
    import itertools

    import datasets
    from transformers import LlamaConfig, LlamaForCausalLM
    from trl import SFTConfig, SFTTrainer

    tokenizer = load(folder)
    with (folder / "rows.jsonl").open(encoding="utf-8") as handle:
        given = datasets.Dataset.from_list([json.loads(line) for line in itertools.islice(handle, rows)])
    tiny = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), num_key_value_heads=1, **tiny))
    args = SFTConfig(
        output_dir=str(folder / "out"),
        assistant_only_loss=True,
        max_length=4096,
        report_to=[],
        use_cpu=True,
        bf16=False,
        dataset_num_proc=processes or None,
    )
    watch = _Memory()
    began, used = time.perf_counter(), _cpu()
    made = SFTTrainer(model=model, args=args, train_dataset=given, processing_class=tokenizer).train_dataset
    seconds, cpu = time.perf_counter() - began, _cpu() - used
    return {"seconds": seconds, "cpu": cpu, "tokens": sum(map(len, made["input_ids"])), "peak_gb": watch.stop()}


def _cpu() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


class _Memory:
    """The highest sum of PSS over this process and its children, GB."""

    def __init__(self) -> None:
        self._peak, self._over = 0.0, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._over.wait(0.1):
            self._peak = max(self._peak, self._now())

    @staticmethod
    def _now() -> float:
        import psutil

        me, total = psutil.Process(), 0
        for process in [me, *me.children(recursive=True)]:
            try:
                text = Path(f"/proc/{process.pid}/smaps_rollup").read_text(encoding="ascii")
            except OSError:
                continue
            total += sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("Pss:"))
        return total / 1e6

    def stop(self) -> float:
        self._over.set()
        self._thread.join()
        return self._peak


def _run(what: str, folder: Path, *numbers: int) -> dict[str, float]:
    environment = {
        **os.environ,
        "NBTUNE_CACHE": str(folder / "cache"),
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_DATASETS_CACHE": str(folder / "datasets"),
    }
    command = [sys.executable, __file__, what, str(folder), *map(str, numbers)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def main(rows: int = 20_000, trl_rows: int = 2000) -> None:
    """Print what was measured, as Markdown."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make(folder, rows)
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        found = {
            "TRL": _run("trl", folder, trl_rows),
            f"TRL, {cores} processes": _run("trl", folder, trl_rows, cores),
            f"nbtune, {rows:,} rows": _run("ours", folder, rows),
            "nbtune, a second start": _run("ours", folder, rows),
            "TRL, again": _run("trl", folder, trl_rows),
        }
        print("| | first batch | all | tokens/s | CPU s per million tokens | peak memory |\n|---|---|---|---|---|---|")
        for what, r in found.items():
            first = f"{r['first']:.1f} s" if "first" in r else "–"
            rate, cpu = r["tokens"] / r["seconds"], r["cpu"] / r["tokens"] * 1e6
            print(f"| {what} | {first} | {r['seconds']:.1f} s | {rate:,.0f} | {cpu:.2f} | {r['peak_gb']:.2f} GB |")


if __name__ == "__main__":
    if len(sys.argv) > 2 and sys.argv[1] in ("ours", "trl"):
        sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
        print(json.dumps(globals()[sys.argv[1]](Path(sys.argv[2]), *map(int, sys.argv[3:]))))
    else:
        main(*map(int, sys.argv[1:]))
