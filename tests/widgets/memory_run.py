"""A run that lives in memory: `nbtune.store.run_handle.RunHandle` with real events, without a model.

Tests of the panels drive it by hand (`say`), or let it train a made-up curve (`go`). It has the pump of the real one:
one thread, past events first, at most four calls a second.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from nbtune import events as ev
from nbtune.errors import TrainError
from nbtune.generate.sampling import Token
from nbtune.models.memory_estimate import MemoryPlan
from nbtune.spec import RunSpec
from nbtune.store.event_log import Mark


class MemoryRun:
    def __init__(self, name: str = "demo", total_steps: int = 200, interval: float = 0.25) -> None:
        self.name, self.id, self.folder = name, "m3m0ry", Path(f"runs/{name}-m3m0ry")
        self.total_steps, self.interval = total_steps, interval
        self.spec = RunSpec(data="rows", steps=total_steps, samples=["Who are you?"])
        self.plan = SimpleNamespace(
            parameters=1_240_000_000,
            device="cpu",
            available_bytes=8 * 2**30,
            seconds=30.0,
            total_steps=total_steps,
            learning_rate=2e-4,
            memory=MemoryPlan(
                weights=700 * 2**20,
                adapter=20 * 2**20,
                gradients=20 * 2**20,
                optimizer=40 * 2**20,
                activations=500 * 2**20,
                head=60 * 2**20,
                reserve=2**28,
            ),
        )
        self.error: Exception | None = None
        self.alive, self.saved_steps = False, list[int]()  # no engine works on a folder of its
        self.wishes: list[tuple[float, str]] = []
        self.export = _Export(self)
        self._log: list[ev.Event] = []
        self._new = threading.Condition()
        self._listeners: dict[Callable, int] = {}
        self._pump: threading.Thread | None = None
        self._paused, self._stopped = threading.Event(), threading.Event()

    @property
    def state(self) -> str:
        states = [event.state for event in self._log if isinstance(event, ev.State)]
        return states[-1] if states else "queued"

    @property
    def step(self) -> int:
        return max((event.step for event in self._log if isinstance(event, ev.Step)), default=0)

    def events(self, start: int = 0) -> list[ev.Event]:
        return self._log[start:]

    def pieces(self, start: int = 0) -> Iterator[tuple[list[ev.Event], Mark]]:
        if events := self._log[start:]:
            yield events, Mark(start + len(events))

    def latest(self, kind: type[Any]) -> Any:
        return next((event for event in reversed(self._log) if isinstance(event, kind)), None)

    @property
    def history(self) -> Any:
        import pandas as pd

        evals = {event.step: event.loss for event in self._log if isinstance(event, ev.Eval)}
        steps = [event for event in self._log if isinstance(event, ev.Step)]
        columns = {name: [getattr(s, name) for s in steps] for name in ("loss", "learning_rate")}
        frame = pd.DataFrame(columns, index=pd.Index([s.step for s in steps], name="step"))
        frame["eval_loss"] = pd.Series(evals, dtype=float)
        return frame

    def say(self, *events: ev.Event) -> None:
        with self._new:
            self._log.extend(events)
            self._new.notify_all()

    def subscribe(self, callback: Callable[[list[ev.Event], int], None], start: int = 0) -> Callable[[], None]:
        with self._new:
            self._listeners[callback] = start
            self._new.notify_all()
            if self._pump is None:
                self._pump = threading.Thread(target=self._run_pump, daemon=True)
                self._pump.start()
        return lambda: self._listeners.pop(callback, None)

    def _waiting(self) -> list[tuple[Callable, int]]:
        return [(callback, at) for callback, at in self._listeners.items() if at < len(self._log)]

    def _run_pump(self) -> None:
        while True:
            with self._new:
                self._new.wait_for(self._waiting)
                batch = [(callback, at, self._log[at:]) for callback, at in self._waiting()]
                for callback, at, events in batch:
                    self._listeners[callback] = at + len(events)
            began = time.monotonic()
            for callback, at, events in batch:
                callback(events, at)
            time.sleep(max(0.0, self.interval - (time.monotonic() - began)))

    def go(self, steps: int | None = None, pause: float = 0.05) -> MemoryRun:
        """Trains a made-up curve in a thread, a step every `pause` seconds."""
        self._paused.clear(), self._stopped.clear()
        threading.Thread(target=self._train, args=(steps or self.total_steps, pause), daemon=True).start()
        return self

    def _train(self, steps: int, pause: float) -> None:
        self.say(ev.State(state="running", total_steps=self.total_steps))
        for step in range(self.step + 1, steps + 1):
            if self._stopped.wait(pause):
                self.say(ev.State(state="stopping", step=step), ev.State(state="stopped", step=step - 1))
                return
            if self._paused.is_set():
                self.say(ev.State(state="paused", step=step))
                while self._paused.is_set() and not self._stopped.wait(0.02):
                    pass
                self.say(ev.State(state="running", step=step))
            self.say(made_up_step(step, self.total_steps), made_up_device(step))
            if step % 20 == 0:
                self.say(ev.Eval(step=step, loss=0.15 + 2.4 * math.exp(-step / 40), best=True))
        self.say(ev.State(state="finished", step=steps))

    def _wish(self, name: str) -> None:
        self.wishes.append((time.time(), name))

    def pause(self) -> None:
        self._wish("pause"), self._paused.set()

    def unpause(self) -> None:
        self._wish("unpause"), self._paused.clear()

    def stop(self, save: bool = True, wait: bool = False) -> None:
        self._wish("stop" if save else "drop"), self._stopped.set()

    def checkpoint(self) -> None:
        self._wish("checkpoint")
        self.say(ev.Checkpoint(step=self.step, folder=f"checkpoints/step-{self.step:08d}", bytes=5_000_000))

    def sample(self) -> None:
        self._wish("sample")
        self.say(*[ev.Sample(step=self.step, prompt=prompt, answer="Ahoy!") for prompt in self.spec.samples])

    def generate(self, prompt: Any, *, base: bool = False, told: Callable[[Token], None], **options: Any) -> str:
        words = ["I", " am", " a", " model." if base else " captain."]
        for word in words:
            told(Token(7, word, 0.25))
        return "".join(words)

    def set_learning_rate(self, learning_rate: float) -> None:
        self._wish(f"rate {learning_rate:g}")

    def resume(self, step: int | None = None) -> MemoryRun:
        self._wish("resume" if step is None else f"resume {step}")
        return self.go(pause=0.01)

    def push_to_hub(self, repo_id: str, what: str = "adapter", private: bool = True, **options: Any) -> str:
        self._wish(f"push {repo_id} {private}")
        self.say(ev.Export(kind="push", path=repo_id, done=0.0))
        self.say(ev.Export(kind="push", path=f"https://huggingface.co/{repo_id}"))
        return f"https://huggingface.co/{repo_id}"


class _Export:
    def __init__(self, run: MemoryRun) -> None:
        self.run = run

    def gguf(self, *kinds: str, **options: Any) -> None:
        if "f16" in kinds:
            raise TrainError("no room for the f16 file", place="exports", fix="free 3 GB")
        for done in (0.3, 0.7, 1.0):
            path = "exports/demo-q8_0.gguf" if done == 1 else ""
            self.run.say(ev.Export(kind="gguf q8_0", path=path, bytes=3_400_000, done=done))

    def adapter(self) -> None:
        self.run.say(ev.Export(kind="adapter", path="exports/adapter", bytes=120_000))


def made_up_step(step: int, total: int = 200) -> ev.Step:
    noise = 0.25 * math.sin(12.9898 * step) * math.cos(78.233 * step)
    return ev.Step(
        step=step,
        loss=0.1 + 2.5 * math.exp(-step / (total / 5)) + noise * math.exp(-step / total),
        learning_rate=2e-4 * min(1.0, step / (0.1 * total)) * 0.5 * (1 + math.cos(math.pi * min(1, step / total))),
        grad_norm=1.0 + noise,
        tokens=2048,
        trained_tokens=700,
        tokens_per_second=4100 + 800 * noise,
        seconds=0.05,
        memory_allocated=_ram(step),
        memory_reserved=_ram(step),
        memory_peak=int(1.3 * 2**30),
    )


def _ram(step: int) -> int:
    """Return the bytes of a process that grows for a while."""
    return int(1.1 * 2**30 + 2e6 * min(step, 1000))


def made_up_device(step: int) -> ev.Device:
    """Of the same process as `made_up_step`."""
    known = {"weights": 700 * 2**20, "adapter": 20 * 2**20}
    rest = _ram(step) - sum(known.values())
    return ev.Device(step=step, parts={**known, "rest": rest}, busy=70 + 20 * math.sin(step))
