"""What a panel knows of a run, made from its events alone: numbers, notes, samples, a status.

It hands out whole pictures (`snapshot`) and what is new since then (`delta`), both of bounded size.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from nbtune import events as ev
from nbtune.errors import NbtuneError
from nbtune.keepalive import heart
from nbtune.widgets.alerts import Hints
from nbtune.widgets.metrics import Series, merged, row_of
from nbtune.widgets.sanitize import clean, without_home

if TYPE_CHECKING:
    from nbtune.store.run_handle import RunHandle
    from nbtune.store.run_reader import RunReader
    from nbtune.widgets.metrics_on_disk import Columns

__all__ = ["Cursor", "RunView", "Totals"]

SNAPSHOT_ROWS = 512  # 45 KB
DELTA_ROWS = 512
_TRUSTED = 1.0  # seconds for which a run that lived is taken to live
LISTS = {"evals": 200, "notes": 30, "samples": 24, "exports": 20, "checkpoints": 30, "machine": 80}
_THIN = ("evals", "machine")  # of these the old ones are thinned out, of others forgotten


@dataclass
class Cursor:
    """How far a listener is: of the steps, and of each list."""

    generation: int = 0
    rows: int = 0
    lists: dict[str, int] = field(default_factory=lambda: dict.fromkeys(LISTS, 0))


class RunView:
    """A run as a panel shows it.

    Args:
        run: the run.
        columns: where its rows are kept on disk, too.
    """

    def __init__(self, run: RunReader | RunHandle, columns: Columns | None = None) -> None:
        self.run, self.columns = run, columns
        self.lock = threading.RLock()
        self.generation = 0
        self.series = Series()
        self.lists: dict[str, list[dict[str, Any]]] = {name: [] for name in LISTS}
        self.said = dict.fromkeys(LISTS, 0)  # how many items of each list there have been
        self.last = ev.State(state="queued", time=0.0)
        self._seconds = 0.0  # a step, as a running mean
        self._clock = _Clock()
        self._plan: Any = None
        self._parts: list[str] = []
        self._alive_until = 0.0
        self._hints = Hints()
        self.totals = Totals()

    def add(self, events: Sequence[ev.Event]) -> None:
        """Takes in what happened, in order."""
        with self.lock:
            for event in events:
                self._clock.see(event)
                self._take(event)
            if events:
                self._hint(self._hints.after_steps(self.series, self.last.total_steps), events[-1].time)

    def _hint(self, hint: tuple[str, str, str] | None, when: float) -> None:
        if hint is not None:
            self._append("notes", _note("warning", *hint, when))

    def note(self, message: str, *, level: str = "error", cause: str = "", fix: str = "") -> None:
        """A note that does not come from the run, such as why an export failed."""
        with self.lock:
            self._drop_unfinished()
            self._append("notes", _note(level, message, cause, fix, time.time()))

    def _take(self, event: ev.Event) -> None:
        if isinstance(event, ev.Step):
            if self.series.cut(event.step):
                self._went_back(event.step)
            if self.columns is not None:
                self.columns.add(row_of(self.series.next, event))
            self.series.add([event])
            self.totals.add(event)
            self._seconds = event.seconds if not self._seconds else 0.9 * self._seconds + 0.1 * event.seconds
        elif isinstance(event, ev.State):
            self.last = event
        elif isinstance(event, ev.Eval):
            self._append("evals", {"step": event.step, "loss": _rounded(event.loss), "best": event.best})
            self._hint(self._hints.after_eval(self.lists["evals"]), event.time)
        elif isinstance(event, ev.Sample):
            answer = {"step": event.step, "prompt": clean(event.prompt, 200), "answer": clean(event.answer, 600)}
            self._append("samples", answer)
        elif isinstance(event, ev.Checkpoint):
            self._checkpoint(event)
        elif isinstance(event, ev.Warning):
            self._append("notes", _note("warning", event.message, event.cause, event.fix, event.time))
        elif isinstance(event, ev.Export):
            self._export(event)
        elif isinstance(event, ev.Device):
            self._machine(event)

    def _machine(self, event: ev.Device) -> None:
        self._parts = [clean(name, 40) for name in event.parts]  # a run's are always the same
        parts = [int(size) for size in event.parts.values()]
        busy = round(event.busy, 1) if event.busy >= 0 else None
        self._append("machine", {"step": event.step, "parts": parts, "busy": busy})
        self._hint(self._hints.after_device(event.slowed, event.temperature, event.watts), event.time)

    def _went_back(self, step: int) -> None:
        self.generation += 1
        self._hints.forget()
        if self.columns is not None:
            self.columns.cut(self.series.next)
        for name in ("evals", "samples", "checkpoints", "machine"):
            self.lists[name] = [item for item in self.lists[name] if item["step"] < step]

    def _checkpoint(self, event: ev.Checkpoint) -> None:
        """The checkpoints that are kept: the run takes the oldest away, as the spec says."""
        keep = self._keep
        others = [item for item in self.lists["checkpoints"] if item["step"] != event.step]
        before = [item for item in self.lists["evals"] if item["step"] <= event.step and item["loss"] is not None]
        shown = {"step": event.step, "bytes": event.bytes, "loss": before[-1]["loss"] if before else None}
        self.lists["checkpoints"] = [*others, shown][-keep:]
        self.said["checkpoints"] += 1

    @cached_property
    def _keep(self) -> int:
        try:
            return int(self.run.spec.checkpoint.keep)
        except (AttributeError, OSError, NbtuneError):  # a run whose spec cannot be read
            return LISTS["checkpoints"]

    def _export(self, event: ev.Export) -> None:
        failed = not event.path or (event.kind == "push" and event.detail)
        if event.done >= 1 and failed:  # a panel that asked for it may know why already
            known = self.lists["notes"][-1:]
            if not (known and known[0]["message"].rpartition(": ")[2] in clean(event.detail)):
                self.note(f"{event.kind}: {event.detail}")
            self._drop_unfinished()
            return
        item = {
            "kind": clean(event.kind, 60),
            "path": clean(without_home(event.path), 400),
            "bytes": event.bytes,
            "done": event.done,
            "detail": clean(event.detail, 400),
            "seconds": event.seconds,
            "quality": {
                clean(name, 40): value for name, value in event.quality.items() if isinstance(value, int | float)
            },
            "time": event.time,
        }
        self._drop_unfinished()  # it moved on
        self.lists["exports"] = [one for one in self.lists["exports"] if one["path"] != item["path"]]  # more is known
        self._append("exports", item)

    def _drop_unfinished(self) -> None:
        done = [item for item in self.lists["exports"] if item["done"] >= 1]
        if len(done) < len(self.lists["exports"]):
            self.lists["exports"] = done
            self.said["exports"] += 1

    def _append(self, name: str, item: dict[str, Any]) -> None:
        items = self.lists[name]
        items.append(item)
        self.said[name] += 1
        if len(items) > 2 * LISTS[name]:
            self.lists[name] = _few(items, LISTS[name], thin=name in _THIN)

    def dump(self) -> dict[str, Any]:
        """All but the rows, as JSON that `restore` takes."""
        with self.lock:
            return {
                "generation": self.generation,
                "lists": {name: _few(items, LISTS[name], thin=name in _THIN) for name, items in self.lists.items()},
                "said": dict(self.said),
                "last": ev.to_line(self.last),
                "seconds": self._seconds,
                "clock": asdict(self._clock),
                "totals": asdict(self.totals),
                "parts": self._parts,
            }

    def restore(self, state: dict[str, Any]) -> None:
        """Goes on from a `dump` and the rows of `columns`."""
        with self.lock:
            assert self.columns is not None
            last = ev.from_line(state["last"])
            assert isinstance(last, ev.State)
            self.last, self._seconds, self.generation = last, state["seconds"], state["generation"]
            self.lists, self.said = {**self.lists, **state["lists"]}, {**self.said, **state["said"]}
            self._clock, self.totals = _Clock(**state["clock"]), Totals(**state["totals"])
            self._parts = state.get("parts", [])
            rows = self.columns.rows(0, self.columns.length, self.series.limit // 2)
            self.series.restore(rows, self.columns.length)

    def detail(self, low: float, high: float, limit: int = SNAPSHOT_ROWS) -> tuple[dict[str, Any], bytes]:
        """The steps from `low` to `high` and a little around them, in at most `limit` rows."""
        with self.lock:
            series = self.series
            if not len(series):
                return {"t": "r", "rows": 0}, b""
            step, first, count = (series.column(name) for name in ("step", "first", "count"))
            begin = max(0, int(np.searchsorted(step, low)) - 1)
            end = min(len(series) - 1, int(np.searchsorted(step, high)) + 1)
            if self.columns is None:
                rows = merged(series.rows[:, begin : end + 1], limit)
            else:
                rows = self.columns.rows(int(first[begin]), int(first[end] + count[end]), limit)
            return {"t": "r", "generation": self.generation, "rows": rows.shape[1]}, _bytes(rows)

    def status(self) -> dict[str, Any]:
        """State, progress and times in seconds; JSON, about half a KB."""
        with self.lock:
            run, plan, state = self.run, self._known_plan(), self._state()
            step = int(self.series.column("step")[-1]) if len(self.series) else 0
            total = int(getattr(plan, "total_steps", 0) or self.last.total_steps)
            return {
                "name": clean(run.name, 200),
                "id": clean(run.id, 80),
                "state": state,
                "live": state not in ev.ENDED,
                "beat": heart.seconds,
                "step": step,
                "total": total,
                "detail": clean(self.last.detail, 500) if self.last.state == state else "",
                "elapsed": self._clock.elapsed(live=state not in ev.ENDED),
                "eta": self._left(step, total, plan),
                "memory_plan": _memory_plan(plan),
                "memory_parts": self._parts,
                "peak_rate": float(getattr(plan, "learning_rate", 0.0) or 0.0),
                "gpu": str(getattr(plan, "device", "cpu")) not in ("cpu", "None"),
                "memory_total": int(getattr(plan, "available_bytes", 0) or 0),
                "exportable": step > 0,
                "resumable": bool(state in ("stopped", "failed", "interrupted")),
                "error": self._error(state),
            }

    def _known_plan(self) -> Any:
        if self._plan is None:
            self._plan = self.run.plan  # read from a file each time, and it does not change
        return self._plan

    def _state(self) -> str:
        said = self.last.state
        if said in ev.ENDED or time.monotonic() < self._alive_until:
            return said
        if self.run.alive:  # costs a look at files, and at the process that owns them
            self._alive_until = time.monotonic() + _TRUSTED
            return said
        return str(self.run.state)

    def look_again(self) -> None:
        """Somebody knows that the run has ended: the next `status` asks whether it lives."""
        self._alive_until = 0.0

    def _left(self, step: int, total: int, plan: Any) -> float | None:
        if step and total and self._seconds:
            return max(0, total - step) * self._seconds
        expected = getattr(plan, "seconds", None)
        return float(expected) if expected and not step else None

    def _error(self, state: str) -> dict[str, Any] | None:
        error = self.run.error if state == "failed" else None
        if error is None:
            return None
        when = self.last.time
        if isinstance(error, NbtuneError):
            return _note("error", f"{error.place}: {error.cause}" if error.place else error.cause, "", error.fix, when)
        return _note("error", f"{type(error).__name__}: {error}", "", "", when)

    def snapshot(self, limit: int = SNAPSHOT_ROWS) -> tuple[dict[str, Any], bytes]:
        """A whole picture: its JSON part, and the rows as little-endian doubles, column after column (≤ 46 KB)."""
        with self.lock:
            rows = self.series.snapshot(limit)
            body = {"t": "s", "generation": self.generation, "next": self.series.next, "rows": rows.shape[1]}
            for name, limit in LISTS.items():
                items = _few(self.lists[name], limit, thin=name in _THIN)
                body[name] = {"whole": True, "next": self.said[name], "items": items}
            return {**body, "status": self.status()}, _bytes(rows)

    def delta(self, cursor: Cursor) -> tuple[dict[str, Any], bytes]:
        """What is new since `cursor`, which is moved on; a whole picture where the run went back."""
        with self.lock:
            same = cursor.generation == self.generation
            rows = self.series.since(cursor.rows, DELTA_ROWS) if same else None
            start, ends = cursor.rows, cursor.lists
            cursor.generation, cursor.rows, cursor.lists = self.generation, self.series.next, dict(self.said)
            if rows is None:
                return self.snapshot()
            lists = {name: self._news(name, ends[name]) for name in LISTS if ends[name] < self.said[name]}
            body = {"t": "d", "generation": self.generation, "i0": start, "rows": rows.shape[1], **lists}
            return {**body, "status": self.status()}, _bytes(rows)

    def _news(self, name: str, start: int) -> dict[str, Any]:
        if name in ("exports", "checkpoints"):  # items move on, or go
            return {"whole": True, "next": self.said[name], "items": self.lists[name]}
        items = self.lists[name][-min(LISTS[name], self.said[name] - start) :]
        return {"i0": self.said[name] - len(items), "next": self.said[name], "items": items}


@dataclass
class Totals:
    """Sums over all steps that were made, also those that were made twice."""

    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0
    memory: int = 0  # bytes, the peak

    def add(self, step: ev.Step) -> None:
        """One more step."""
        self.steps += 1
        self.tokens += step.tokens
        self.seconds += step.seconds
        self.memory = max(self.memory, step.memory_peak or step.memory_allocated)


@dataclass
class _Clock:
    """Seconds in which the run lived; the time between a stop and a resume does not count."""

    before: float = 0.0
    seen: float = 0.0
    since: float | None = None

    def see(self, event: ev.Event) -> None:
        if isinstance(event, ev.State):
            begins = event.state in ("queued", "preparing")
            if self.since is not None and (begins or event.state in ev.ENDED):
                until = self.seen if begins else event.time
                self.before, self.since = self.before + max(0.0, until - self.since), None
            if self.since is None and event.state not in ev.ENDED:
                self.since = event.time
        self.seen = event.time

    def elapsed(self, *, live: bool) -> float:
        if self.since is None:
            return self.before
        return self.before + max(0.0, (time.time() if live else self.seen) - self.since)


def _note(level: str, message: str, cause: str, fix: str, when: float) -> dict[str, Any]:
    shown = {"message": clean(message, 500), "cause": clean(cause, 500), "fix": clean(fix, 500)}
    return {"level": level, "time": when, **shown}


def _few(items: list[dict[str, Any]], limit: int, *, thin: bool) -> list[dict[str, Any]]:
    """At most `limit` of `items`: the newest, or evenly picked ones with the best and the last."""
    if len(items) <= limit:
        return list(items)
    if not thin:
        return items[-limit:]
    best = max((k for k, item in enumerate(items) if item.get("best")), default=len(items) - 1)
    stride = -(-len(items) // (limit - 2))
    return [item for k, item in enumerate(items) if k % stride == 0 or k in (best, len(items) - 1)]


def _memory_plan(plan: Any) -> list[list[Any]]:
    """What the plan expects to hold memory, biggest first: [name, bytes]."""
    memory = getattr(plan, "memory", None)
    parts = memory.model_dump() if memory is not None else {}
    return [[name, size] for name, size in sorted(parts.items(), key=lambda part: -part[1]) if size >= 2**20]


def _rounded(value: float) -> float | None:
    return float(f"{value:.7g}") if np.isfinite(value) else None


def _bytes(rows: np.ndarray) -> bytes:
    return np.ascontiguousarray(rows, dtype="<f8").tobytes()
