"""What a panel knows of a run, made from its events alone: numbers, notes, samples, a status.

RunView  hands out whole pictures (`snapshot`) and what is new since then (`delta`), both of bounded size
Watched  keeps a view up to date: what happened so far from its columns and its log, then what is new
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nbtune import events as ev
from nbtune.errors import NbtuneError
from nbtune.export.saying import CANCELLED
from nbtune.store.event_log import Mark
from nbtune.untrusted import open_file
from nbtune.widgets import slowdowns
from nbtune.widgets.alerts import Hints
from nbtune.widgets.metrics import Series, figures_of_processes, merged, row_of
from nbtune.widgets.metrics_on_disk import Columns
from nbtune.widgets.run_status import RunStatus, note_of
from nbtune.widgets.sanitize import clean, without_home

if TYPE_CHECKING:
    from nbtune.store.run_handle import RunHandle
    from nbtune.store.run_reader import RunReader

SNAPSHOT_ROWS = 512  # 45 KB
DELTA_ROWS = 512
LISTS = {
    "evals": 200,
    "notes": 30,
    "samples": 24,
    "exports": 20,
    "checkpoints": 30,
    "machine": 46,
    "metrics": 120,
    "abilities": 12,
    "slowed": 2,
}
_GROUPS = 4  # steps of which the monitor shows a group
_THIN = ("evals", "machine", "metrics")  # of these the old ones are thinned out, of others forgotten


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
        self.standing = RunStatus(run)
        self._hints = Hints()

    def add(self, events: Sequence[ev.Event]) -> None:
        """Take in what happened, in order."""
        with self.lock:
            for event in events:
                self.standing.see(event)
                self._take(event)
            if events:
                self._hint(self._hints.after_steps(self.series, self.standing.last.total_steps), events[-1].time)

    def _hint(self, hint: tuple[str, str, str] | None, when: float) -> None:
        if hint is not None:
            self._append("notes", note_of("warning", *hint, when))

    def note(self, message: str, *, level: str = "error", cause: str = "", fix: str = "") -> None:
        """Add a note that does not come from the run, such as why an export failed."""
        with self.lock:
            self._drop_unfinished()
            self._append("notes", note_of(level, message, cause, fix, time.time()))

    def _take(self, event: ev.Event) -> None:
        if isinstance(event, ev.Step):
            if self.series.cut(event.step):
                self._went_back(event.step)
            if self.columns is not None:
                self.columns.add(row_of(self.series.next, event))
            self.series.add([event])
            if event.metrics:
                self._append("metrics", {"step": event.step, "values": _figures(event.metrics)})
        elif isinstance(event, ev.Eval):
            item = {"step": event.step, "loss": _rounded(event.loss), "best": event.best}
            self._append("evals", {**item, "metrics": _figures(event.metrics)} if event.metrics else item)
            self._hint(self._hints.after_eval(self.lists["evals"]), event.time)
        elif isinstance(event, ev.Scores):
            self._scores(event)
        elif isinstance(event, ev.Sample):
            answer = {"step": event.step, "prompt": clean(event.prompt, 200), "answer": clean(event.answer, 600)}
            self._append("samples", answer)
        elif isinstance(event, ev.Group):
            self._group(event)
        elif isinstance(event, ev.Checkpoint):
            self._checkpoint(event)
        elif isinstance(event, ev.Warning):
            self._append("notes", note_of("warning", event.message, event.cause, event.fix, event.time))
        elif isinstance(event, ev.Export):
            self._export(event)
        elif isinstance(event, ev.Device):
            self._machine(event)
        elif isinstance(event, ev.Processes):
            self._append("metrics", {"step": event.step, "values": figures_of_processes(event)})
            self._hint(self._hints.after_processes(event.seconds, event.tokens), event.time)
        elif isinstance(event, ev.Abilities):  # the loaded model's take the place of the plan's
            said = [{"what": clean(what, 40), "words": clean(words, 300)} for what, words in event.said.items()]
            self.lists["abilities"] = said[: LISTS["abilities"]]
            self.said["abilities"] += 1

    def _scores(self, event: ev.Scores) -> None:
        known = {item["step"] for item in self.lists["metrics"]}
        values = {name: value for name, value in event.values.items() if name != "loss"}
        if event.step >= max(known, default=0):  # of an older step no line is drawn back
            self._append("metrics", {"step": event.step, "values": _figures(values)})

    def _group(self, event: ev.Group) -> None:
        """Show the best and the worst of a group's answers among the samples, of the newest steps."""
        samples, judged = self.lists["samples"], list(zip(event.rewards, event.answers, strict=False))
        steps = sorted({item["step"] for item in samples if item.get("group")})[1 - _GROUPS :]
        self.lists["samples"] = [item for item in samples if not item.get("group") or item["step"] in steps]
        for which, (reward, said) in zip(("best", "worst"), judged[:1] + judged[1:][-1:], strict=False):
            answer = f"{reward:.3g} for {clean(said, 400)!r}, asked {clean(event.prompt, 160)!r}"
            self._append(
                "samples", {"step": event.step, "prompt": f"A group's {which}", "answer": answer, "group": True}
            )

    def _machine(self, event: ev.Device) -> None:
        parts = [int(size) for size in event.parts.values()]
        busy = round(event.busy, 1) if event.busy >= 0 else None
        self._append("machine", {"step": event.step, "parts": parts, "busy": busy})
        if event.slowed:
            self.lists["slowed"] = slowdowns.grown(self.lists["slowed"], event, self.said["machine"])
            self.said["slowed"] += 1
        self._hint(self._hints.after_device(event.slowed, event.temperature, event.watts), event.time)

    def _went_back(self, step: int) -> None:
        self.generation += 1
        self._hints.forget()
        if self.columns is not None:
            self.columns.cut(self.series.next)
        for name in ("evals", "samples", "checkpoints", "machine", "metrics"):
            self.lists[name] = [item for item in self.lists[name] if item["step"] < step]
        self.lists["slowed"] = slowdowns.cut(self.lists["slowed"], step)

    def _checkpoint(self, event: ev.Checkpoint) -> None:
        """Keep the checkpoints that the run keeps: it takes the oldest away, as the spec says."""
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
        if event.done >= 1 and failed and event.detail == CANCELLED:
            self._drop_unfinished()
            return
        if event.done >= 1 and failed:  # a panel that asked for it may know why already
            last_note = self.lists["notes"][-1:]
            if not (last_note and last_note[0]["message"].rpartition(": ")[2] in clean(event.detail)):
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
        self.lists["exports"] = [
            export for export in self.lists["exports"] if export["path"] != item["path"]
        ]  # more is known
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
        """Return all but the rows, as JSON that `restore` takes."""
        with self.lock:
            return {
                "generation": self.generation,
                "lists": {name: _few(items, LISTS[name], thin=name in _THIN) for name, items in self.lists.items()},
                "said": dict(self.said),
                **self.standing.dump(),
            }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a `dump` and the rows of `columns`."""
        with self.lock:
            assert self.columns is not None
            self.standing.restore(state)
            self.generation = state["generation"]
            self.lists, self.said = {**self.lists, **state["lists"]}, {**self.said, **state["said"]}
            rows = self.columns.rows(0, self.columns.length, self.series.limit // 2)
            self.series.restore(rows, self.columns.length)

    def detail(self, low: float, high: float, limit: int = SNAPSHOT_ROWS) -> tuple[dict[str, Any], bytes]:
        """Return the steps from `low` to `high` and a little around them, in at most `limit` rows."""
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
        """Return state, progress and times in seconds; JSON, about half a KB."""
        with self.lock:
            return self.standing.now(int(self.series.column("step")[-1]) if len(self.series) else 0)

    def snapshot(self, limit: int = SNAPSHOT_ROWS) -> tuple[dict[str, Any], bytes]:
        """Return a whole picture: its JSON part, and the rows as little-endian doubles, column after
        column (≤ 46 KB)."""
        with self.lock:
            rows = self.series.snapshot(limit)
            body = {"t": "s", "generation": self.generation, "next": self.series.next, "rows": rows.shape[1]}
            for name, limit in LISTS.items():
                items = _few(self.lists[name], limit, thin=name in _THIN)
                body[name] = {"whole": True, "next": self.said[name], "items": items}
            return {**body, "status": self.status()}, _bytes(rows)

    def delta(self, cursor: Cursor) -> tuple[dict[str, Any], bytes]:
        """Return what is new since `cursor`, which is moved on; a whole picture where the run went back."""
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
        if name in ("exports", "checkpoints", "abilities", "slowed"):  # items move on, or go
            return {"whole": True, "next": self.said[name], "items": self.lists[name]}
        items = self.lists[name][-min(LISTS[name], self.said[name] - start) :]
        return {"i0": self.said[name] - len(items), "next": self.said[name], "items": items}


class Watched:
    """`view` knows all that the run has said when this was made; after `listen`, also what it says later.

    Args:
        run: the run; of a long one its columns are kept in its folder.
    """

    def __init__(self, run: RunReader | RunHandle) -> None:
        self.run = run
        self._taking = threading.RLock()
        self._remove: Callable[[], None] = lambda: None
        self.columns = Columns(run.folder)
        self.view, self.mark = RunView(run, self.columns), Mark(0)
        if not self._restored():
            self.columns.reset()
            self.view, self.mark = RunView(run, self.columns), Mark(0)
        self.catch_up()

    def _restored(self) -> bool:
        """Return whether what was kept of the log could be taken up again; anybody may have written it."""
        try:
            state = self.columns.load()
            if state is None or not _belongs(state, self.run.folder / "events.jsonl"):
                return False
            self.mark = Mark(state["events"], state["offset"])
            self.view.restore(state)
        except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
            return False
        return True

    def catch_up(self) -> bool:
        """Take in what is new now; True if there was something."""
        with self._taking:
            before = int(self.mark)
            for events, mark in self.run.pieces(self.mark):
                self._take(events, mark)
            return int(self.mark) > before

    def listen(self, changed: Callable[[], None]) -> None:
        """Take in what the run says from now on, and call `changed` after it, at most four times a second."""

        def told(events: Sequence[ev.Event], first: int) -> None:
            with self._taking:
                new = events[max(0, int(self.mark) - int(first)) :]
                if not new:
                    return
                self._take(new, getattr(first, "behind", Mark(int(first) + len(events))))
            changed()

        self._remove()
        self._remove = self.run.subscribe(told, self.mark)

    def rest(self) -> None:
        """Listen no more, until `listen` is called again; what was said meanwhile is taken in then."""
        self._remove()

    def _take(self, events: Sequence[ev.Event], mark: Mark) -> None:
        self.view.add(events)
        self.mark = mark
        if mark.offset is not None:
            state = lambda: {**self.view.dump(), "events": int(mark), "offset": mark.offset}  # noqa: E731
            self.columns.save(state, all_of_it=self.view.standing.last.state in ev.ENDED)

    def close(self) -> None:
        """Stop listening; another one may write the columns."""
        self._remove()
        self.columns.close()


def _belongs(state: dict[str, Any], log: Path) -> bool:
    """Return whether the columns were made of this log: it is at least as long, and a line ends where they stopped."""
    try:
        with open_file(log, links=False) as file:
            file.seek(state["offset"] - 1)
            return file.read(1) == b"\n"
    except (OSError, KeyError, ValueError):
        return False


def _few(items: list[dict[str, Any]], limit: int, *, thin: bool) -> list[dict[str, Any]]:
    """Return at most `limit` of `items`: the newest, or evenly picked ones with the best and the last."""
    if len(items) <= limit:
        return list(items)
    if not thin:
        return items[-limit:]
    best = max((k for k, item in enumerate(items) if item.get("best")), default=len(items) - 1)
    stride = -(-len(items) // (limit - 2))
    return [item for k, item in enumerate(items) if k % stride == 0 or k in (best, len(items) - 1)]


def _figures(metrics: dict[str, float]) -> dict[str, float | None]:
    """Return a method's figures for a page: a dozen of them at most, whatever the log says; not those of a watched
    trainer that have no name of ours, and so no chart to stand in."""
    named = [(name, value) for name, value in metrics.items() if "/" not in name]
    return {clean(name, 40): _rounded(value) for name, value in named[:12]}


def _rounded(value: float) -> float | None:
    return float(f"{value:.7g}") if np.isfinite(value) else None


def _bytes(rows: np.ndarray) -> bytes:
    return np.ascontiguousarray(rows, dtype="<f8").tobytes()
