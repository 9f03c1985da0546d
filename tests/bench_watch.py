"""What `nbtune.watch` costs a trainer, in CPU seconds: `python tests/bench_watch.py [MODEL] [--steps 60] [--monitor]`.

Wall-clock time of a run with it beside one without says little below 1 %: two equal runs differ by more. So the
callback itself is timed, by the clock of the trainer's thread, between a callback before it and one behind it; its
threads by their own clocks. What is done once (the folder, the plan, the saved model) is told apart from the steps.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import threading
import time
import warnings
from collections import defaultdict
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
warnings.filterwarnings("ignore")

import torch  # noqa: E402
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback  # noqa: E402

import nbtune  # noqa: E402

MOMENTS = ("train_begin", "step_begin", "substep_end", "step_end", "log", "save", "evaluate", "train_end")
TEXT = "The keel was laid in spring, and the rope, the sail and the oars came by cart from the next village. " * 4


class Clock:
    """Two callbacks, between which the one to be timed stands."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = defaultdict(float)
        self.calls: dict[str, int] = defaultdict(int)
        self.threads: dict[str, float] = {}
        self._began = 0.0
        self.before, self.behind = self._callback(self._begin), self._callback(self._end)

    def _callback(self, what: Any) -> TrainerCallback:
        def heard(moment: str) -> Any:
            return lambda self, *args, **more: what(moment)

        return type("Timed", (TrainerCallback,), {f"on_{moment}": heard(moment) for moment in MOMENTS})()

    def _begin(self, moment: str) -> None:
        self.look()
        self._began = time.thread_time()

    def _end(self, moment: str) -> None:
        self.spent[moment] += time.thread_time() - self._began
        self.calls[moment] += 1

    def look(self) -> None:
        """Read the clocks of nbtune's threads, which end with them."""
        for thread in threading.enumerate():
            if thread.ident is not None and thread.name.startswith("nbtune"):
                used = time.clock_gettime(time.pthread_getcpuclockid(thread.ident))
                self.threads[thread.name] = max(used, self.threads.get(thread.name, 0.0))


def trainer_of(model: str, steps: int, folder: Path, clock: Clock) -> Any:
    """Return TRL's trainer of LoRA on texts of some hundred tokens, two a step, each step in its log."""
    import trl
    from datasets import Dataset
    from peft import LoraConfig

    known = trl.SFTConfig.__dataclass_fields__  # transformers 5.24 has renamed it
    saving = next(name for name in ("activation_checkpointing", "gradient_checkpointing") if name in known)
    path = nbtune.models.resolve(model)
    rows = [{"prompt": f"Tell me of ship {k}.", "completion": TEXT} for k in range(2 * steps)]
    return trl.SFTTrainer(
        model=AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32),
        processing_class=AutoTokenizer.from_pretrained(path),
        train_dataset=Dataset.from_list(rows),
        peft_config=LoraConfig(r=8, target_modules="all-linear"),
        callbacks=[clock.before],
        args=trl.SFTConfig(
            output_dir=str(folder / "trl"), max_steps=steps, per_device_train_batch_size=2, logging_steps=1,
            report_to=[], use_cpu=True, bf16=False, save_strategy="no", disable_tqdm=True, learning_rate=1e-3,
            **{saving: False},
        ),
    )  # fmt: skip


def measured(model: str, steps: int, folder: Path, *, monitor: bool) -> dict[str, Any]:
    """Train, watched; return seconds of CPU, and the callback's share of the trainer's."""
    clock = Clock()
    trainer = trainer_of(model, steps, folder, clock)
    run = nbtune.watch(trainer, "watched", folder)
    trainer.add_callback(clock.behind)
    assert run is not None
    shown = run.monitor() if monitor else None
    began = time.process_time()
    trainer.train()
    clock.look()
    whole = time.process_time() - began
    once = sum(clock.spent[moment] for moment in ("train_begin", "train_end", "save"))
    each, beside = sum(clock.spent.values()) - once, sum(clock.threads.values())
    alone = whole - once - each - beside
    del shown
    return {
        "model": model,
        "steps": trainer.state.global_step,
        "monitor": monitor,
        "trainer_cpu_s": round(alone, 2),
        "trainer_ms_a_step": round(1000 * alone / steps, 1),
        "callback_ms_a_step": round(1000 * each / steps, 3),
        "threads_ms_a_step": round(1000 * beside / steps, 3),
        "percent": round(100 * (each + beside) / alone, 2),
        "once_s": round(once, 2),
        "percent_with_begin_and_end": round(100 * (once + each + beside) / alone, 2),
        "ms_by_moment": {moment: round(1000 * spent, 1) for moment, spent in sorted(clock.spent.items())},
        "ms_by_thread": {name: round(1000 * spent, 1) for name, spent in sorted(clock.threads.items())},
    }


def main() -> None:
    """Print a line of JSON."""
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("model", nargs="?", default="nbtune/tiny")
    ask.add_argument("--steps", type=int, default=60)
    ask.add_argument("--monitor", action="store_true", help="with the monitor's half that works in the kernel")
    told = ask.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        print(json.dumps(measured(told.model, told.steps, Path(folder), monitor=told.monitor)))


if __name__ == "__main__":
    main()
