"""What a plan says beforehand, beside what the run then takes: peak memory and seconds a step. One JSON line a run.

    python tests/gpu/bench_predictions.py list > docs/bench/predictions.jsonl      (before anything is measured)
    python tests/gpu/bench_predictions.py list --choice third
    python tests/gpu/bench_predictions.py make /tmp/shapes
    python tests/gpu/bench_predictions.py run /tmp/shapes docs/bench/predictions.jsonl --part 1/4
    python tests/gpu/bench_predictions.py table rows.jsonl

Models of published shapes with random weights, through `nbtune.finetune`. Several such processes may share a GPU: a
run is timed while no other one works (`--marks`), having been paused after its first steps. What is measured of memory
is what torch's allocator held at most, loading included, and the CUDA context beside it.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import random
import statistics
import tempfile
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prediction_lists import LISTS

WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "lazy", "dog"]
WARM, TIMED = 5, 6  # two steps as they are, then a recording of each kind
STEPS = 40  # some pass while a pause is asked for
CONTEXT = 0.85  # GiB, as measured on an H200
NAMES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
SHAPES: dict[str, tuple[str, tuple[int, ...], dict[str, Any]]] = {
    "smollm2-135m": ("llama", (576, 1536, 30, 9, 3), {"vocab_size": 49152}),
    "smollm2-360m": ("llama", (960, 2560, 32, 15, 5), {"vocab_size": 49152}),
    "llama-1b": ("llama", (2048, 8192, 16, 32, 8), {"vocab_size": 128256, "head_dim": 64}),
    "qwen2-0.5b": ("qwen2", (896, 4864, 24, 14, 2), {"vocab_size": 151936}),
    "qwen3-0.6b": ("qwen3", (1024, 3072, 28, 16, 8), {"vocab_size": 151936, "head_dim": 128}),
    "gemma3-1b": (
        "gemma3_text",
        (1152, 6912, 26, 4, 1),
        {"vocab_size": 262144, "head_dim": 256, "sliding_window": 512},
    ),
    "neox-410m": ("gpt_neox", (1024, 4096, 24, 16, 16), {"vocab_size": 50304, "tie_word_embeddings": False}),
    "olmo2-1b": ("olmo2", (2048, 8192, 16, 16, 16), {"vocab_size": 100352, "tie_word_embeddings": False}),
    "llama-8b-4l": ("llama", (4096, 14336, 4, 32, 8), {"vocab_size": 128256, "tie_word_embeddings": False}),
    "phi-1.3b": ("phi", (2048, 8192, 24, 32, 32), {"vocab_size": 51200, "tie_word_embeddings": False}),
}


def say(**figures: object) -> None:
    print(json.dumps(figures), flush=True)


def make(folder: Path) -> None:
    """Write the models that are not there."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    device = "cuda" if torch.cuda.is_available() else "cpu"
    for name, (kind, sizes, more) in SHAPES.items():
        place = folder / name
        if (place / "tokenizer.json").is_file():
            continue
        fields = {**dict(zip(NAMES, sizes, strict=True)), "max_position_embeddings": 32768, "tie_word_embeddings": True}
        ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
        config = AutoConfig.for_model(kind, **{**fields, **more, **ids}, dtype="bfloat16")
        torch.manual_seed(0)
        with torch.device(device):
            AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(place)
        tokenizer_of(kind).save_pretrained(place)


def tokenizer_of(kind: str) -> Any:
    """Return one that makes a token of each word. Qwen2's class reads merges alone, whatever tokenizer it is given."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    if kind == "qwen2":
        words = Tokenizer(models.BPE())
        words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=[*special.values()], initial_alphabet=alphabet)
        words.train_from_iterator([" ".join([*WORDS, *WORDS])] * 10, trainer)
    else:
        vocabulary = {word: i for i, word in enumerate([*special.values(), *WORDS])}
        words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
        words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, model_max_length=32768, **special)


def rows_of(spec: dict[str, Any], length: int, count: int) -> list[dict[str, str]]:
    """Rows that fill their length: one long text, which is cut into windows, or pairs."""
    chance = random.Random(0)

    def some(k: int) -> str:
        return " ".join(chance.choices(WORDS, k=k))

    if "method" not in spec:
        return [{"text": some(length * count)}]
    return [
        {"prompt": some(length // 4), "chosen": some(length - length // 4 - 8), "rejected": some(length // 2)}
        for _ in range(count)
    ]


@contextmanager
def loading(marks: Path) -> Iterator[None]:
    """Load beside others, once nobody waits for the GPU alone: so all load, then one after another is timed."""
    mine = marks / f"loading-{os.getpid()}"
    while mine.touch() or any(marks.glob("waiting-*")):
        mine.unlink()
        time.sleep(0.05 + random.random() / 20)
    try:
        yield
    finally:
        mine.unlink()


@contextmanager
def alone(marks: Path, beside: bool) -> Iterator[None]:
    """Have the GPU while nobody loads (`beside`: or while others do) and nobody else is timed."""
    mine = marks / f"waiting-{os.getpid()}"
    mine.touch()
    try:
        with (marks / "timing").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            while not beside and any(marks.glob("loading-*")):
                time.sleep(0.02)
            yield
    finally:
        mine.unlink()


def one(folder: Path, chosen: dict[str, Any], marks: Path, runs: Path, beside: bool) -> dict[str, Any]:
    """Run one of the list; what was planned, and what it took."""
    import nbtune
    from nbtune import events

    length, rows, spec = chosen["length"], chosen["rows"], dict(chosen["spec"])
    usual = {"sequence_len": length, "batch_size": rows, "steps": STEPS, "learning_rate": 1e-4}
    usual |= {"eval": {"split": 0, "every": 10**6}, "checkpoint": {"keep": 1}}
    if "method" not in spec:
        usual["train_on"] = "all"
    began = time.time()
    given = {**usual, **spec, "model": str(folder / chosen["shape"])}
    data = rows_of(spec, length, rows * (STEPS + 1 if "method" in spec else WARM + 12))

    def done() -> int:
        return sum(isinstance(e, events.Step) for e in run.events())

    def paused() -> bool:
        return any(isinstance(e, events.State) and e.state == "paused" for e in run.events())

    with loading(marks):
        run = nbtune.finetune(**given, data=data, name=f"p{chosen['number']}", runs_dir=str(runs))
        while run.alive and done() < WARM:
            time.sleep(0.02)
        run.pause()
        while run.alive and not paused():
            time.sleep(0.02)
    try:
        waited, before = time.time() - began, done()
        with alone(marks, beside):
            run.unpause()
            while run.alive and done() < min(before + TIMED, STEPS):
                time.sleep(0.02)
            run.stop(save=False)
        run.wait()
        steps = [e for e in run.events() if isinstance(e, events.Step)]
        plan = run.plan
        assert plan is not None
        timed = steps[before + 1 :] if len(steps) > before + 3 else steps[WARM:]  # the first after a pause waits
        planned, took = plan.peak_bytes / 2**30, statistics.median(e.seconds for e in timed)
        peak = max(e.memory_peak for e in steps) / 2**30 + CONTEXT
        reckoned = plan.seconds / plan.total_steps
        return {
            "planned_gib": round(planned, 3), "peak_gib": round(peak, 3), "memory": round(planned / peak - 1, 3),
            "reserved_gib": round(max(e.memory_reserved for e in steps) / 2**30 + CONTEXT, 3),
            "planned_s": round(reckoned, 5), "step_s": round(took, 5), "time": round(reckoned / took - 1, 3),
            "alone": len(steps) > before + 3, "micro": plan.micro_batch_size,
            "accumulated": plan.gradient_accumulation_steps, "activations": plan.activations,
            "weights": str(plan.weights), "started_s": round(waited, 1),
            "parts": {k: round(v / 2**30, 3) for k, v in plan.memory.model_dump().items()},
            "seconds": [round(e.seconds, 4) for e in steps], "tokens": steps[-1].tokens,
        }  # fmt: skip
    finally:
        run.stop(save=False, wait=True)
        run.free()


def listed(name: str) -> Iterator[dict[str, Any]]:
    first = 100 * list(LISTS).index(name)
    for number, (shape, length, rows, spec) in enumerate(LISTS[name], first):
        yield {"number": number, "shape": shape, "length": length, "rows": rows, "spec": spec}


def run_all(args: argparse.Namespace) -> None:
    from nbtune.errors import NbtuneError

    part, parts = (int(word) for word in args.part.split("/"))
    until = time.time() + args.seconds
    args.marks.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as runs:
        for line in args.list.read_text().splitlines()[part - 1 :: parts]:
            chosen = json.loads(line)
            if time.time() > until:
                say(**chosen, error="no time")
                continue
            try:
                say(**chosen, **one(args.folder, chosen, args.marks, Path(runs), args.beside))
            except (NbtuneError, RuntimeError, OSError, AssertionError, ValueError) as error:
                traceback.print_exc(limit=-4)
                say(**chosen, error=f"{type(error).__name__}: {error}"[:300])


def table(rows: list[dict[str, Any]]) -> None:
    """Print what is off, and how many are within the bounds."""
    done = [row for row in rows if "peak_gib" in row]
    for row in sorted(done, key=lambda r: r["number"]):
        print(
            f"{row['number']:3} {row['shape']:13} {row['length']:6} × {row['rows']:2} {json.dumps(row['spec']):44} "
            f"{row['peak_gib']:6.2f} GiB {row['memory']:+6.1%}  {row['step_s']:8.4f} s {row['time']:+6.1%}  "
            f"{row['activations']}, {row['weights']}"
        )
    if not done:
        return
    near = sum(abs(row["memory"]) <= 0.1 for row in done)
    least, times = min(row["memory"] for row in done), sum(abs(row["time"]) <= 0.2 for row in done)
    print(f"{len(done)} of {len(rows)}: memory within 10 % {near}, least {least:+.1%}; time within 20 % {times}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("list", "make", "run", "table"))
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("list", type=Path, nargs="?")
    parser.add_argument("--part", default="1/1")
    parser.add_argument("--seconds", type=float, default=1e9)
    parser.add_argument("--beside", action="store_true", help="also time it while others load")
    parser.add_argument("--choice", choices=LISTS, default="first", help="list: which")
    parser.add_argument(
        "--marks", type=Path, default=Path(tempfile.gettempdir()) / "predictions", help="who loads, waits"
    )
    args = parser.parse_args()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if args.what == "list":
        for chosen in listed(args.choice):
            say(**chosen)
    elif args.what == "make":
        make(args.folder)
    elif args.what == "table":
        table([json.loads(line) for line in args.folder.read_text().splitlines() if line.startswith("{")])
    else:
        run_all(args)


if __name__ == "__main__":
    main()
