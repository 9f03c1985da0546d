"""What `nbtune.watch` costs a trainer, in CPU seconds: `python -m tests.bench_watch [MODEL] [--steps 60] [--page]`.

Wall-clock time of a run with it beside one without says little below 1 %: two equal runs differ by more. So the
callback itself is timed, by the clock of the trainer's thread, between a callback before it and one behind it; its
threads by their own clocks, and with a page all threads of the kernel but its main one, since they send what the
monitor shows. What is done once (the folder, the plan, the saved model) is told apart from the steps.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
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
        self.others = "nbtune"
        self._first: dict[str, float] = {}
        self._looked = False
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
            if thread.ident is None or thread is threading.main_thread() or not thread.name.startswith(self.others):
                continue
            used = time.clock_gettime(time.pthread_getcpuclockid(thread.ident))
            name = f"{thread.name} {thread.ident}"
            self._first.setdefault(name, 0.0 if self._looked else used)
            self.threads[name] = used - self._first[name]
        self._looked = True


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


def measured(model: str, steps: int, folder: Path, *, page: bool = False) -> dict[str, Any]:
    """Train, watched; return seconds of CPU, and the callback's share of the trainer's.

    Args:
        page: in a kernel, below whose cell the monitor is; all its threads count.
    """
    clock = Clock()
    trainer = trainer_of(model, steps, folder, clock)
    run = nbtune.watch(trainer, "watched", folder)
    trainer.add_callback(clock.behind)
    assert run is not None
    clock.others = "" if page else clock.others
    clock.look()
    began, clocked = time.process_time(), time.monotonic()
    trainer.train()
    clock.look()
    whole, seconds = time.process_time() - began, time.monotonic() - clocked
    once = sum(clock.spent[moment] for moment in ("train_begin", "train_end", "save"))
    each, beside = sum(clock.spent.values()) - once, sum(clock.threads.values())
    alone = whole - once - each - beside
    return {
        "model": model,
        "steps": trainer.state.global_step,
        "page": page,
        "trainer_cpu_s": round(alone, 2),
        "trainer_ms_a_step": round(1000 * alone / steps, 1),
        "callback_ms_a_step": round(1000 * each / steps, 3),
        "threads_ms_a_step": round(1000 * beside / steps, 3),
        "threads_ms_a_second": round(1000 * beside / seconds, 3),
        "percent": round(100 * (each + beside) / alone, 2),
        "once_s": round(once, 2),
        "percent_with_begin_and_end": round(100 * (once + each + beside) / alone, 2),
        "ms_by_moment": {moment: round(1000 * spent, 1) for moment, spent in sorted(clock.spent.items())},
        "ms_by_thread": {
            name: round(1000 * spent, 1) for name, spent in sorted(clock.threads.items()) if spent > 0.001
        },
    }


CELL = """import torch, json, pathlib
from tests.bench_watch import measured
torch.set_num_threads(1)
found = measured({model!r}, {steps}, pathlib.Path("bench"), page=True)"""


def in_a_page(model: str, steps: int, folder: Path) -> str:
    """Do it in a cell of JupyterLab, with its monitor open in Chromium; return the line."""
    sys.path.insert(0, str(Path(__file__).parent / "e2e"))
    from lab import Browser, Lab

    with Lab(folder / "lab") as lab, Browser() as browser:
        page = browser.open(lab, [CELL.format(model=model, steps=steps), "print(json.dumps(found))"], width=1200)
        page.page.set_default_timeout(0)
        page.run(0)
        points = page.page.locator(".nbt-monitor").first.get_attribute("data-points")
        page.run(1)
        return json.dumps({**json.loads(page.output(1)), "points_in_the_page": points})


def main() -> None:
    """Print a line of JSON."""
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("model", nargs="?", default="nbtune/tiny")
    ask.add_argument("--steps", type=int, default=60)
    ask.add_argument("--page", action="store_true", help="with the monitor open in a page of JupyterLab")
    told = ask.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        if told.page:
            print(
                in_a_page(
                    str(Path(told.model).resolve()) if Path(told.model).exists() else told.model,
                    told.steps,
                    Path(folder),
                )
            )
        else:
            print(json.dumps(measured(told.model, told.steps, Path(folder))))


if __name__ == "__main__":
    main()
