"""Where a run stands: its state, how far it is, times, what holds its memory, what it failed of."""

from __future__ import annotations

import contextlib
import shlex
import time
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nbtune import events as ev
from nbtune.errors import NbtuneError
from nbtune.keepalive import heart
from nbtune.methods import METHODS
from nbtune.store import foreign
from nbtune.untrusted import from_here, harmless
from nbtune.widgets.sanitize import clean

if TYPE_CHECKING:
    from nbtune.store.run_handle import RunHandle
    from nbtune.store.run_reader import RunReader

_LEFT = ("stopped", "failed", "interrupted")  # ended before all was done
_TRUSTED = 1.0  # seconds for which a run that lived is taken to live


class RunStatus:
    """Know a run's status from its events, and from a look whether it lives.

    Args:
        run: the run.
    """

    def __init__(self, run: RunReader | RunHandle) -> None:
        self.run = run
        self.last = ev.State(state="queued", time=0.0)
        self.totals = Totals()
        self._seconds = 0.0  # a step, as a running mean
        self._at = -1  # the step that was said last; -1: not known
        self._clock = _Clock()
        self._plan: Any = None
        self._parts: list[str] = []
        self._alive_until, self._held = 0.0, False

    def see(self, event: ev.Event) -> None:
        """Take in what happened, in order."""
        self._clock.see(event)
        if isinstance(event, ev.Step):
            self.totals.add(event)
            made = max(1, event.step - self._at) if self._at >= 0 else 1  # another trainer says every tenth, or so
            seconds = event.seconds / made
            self._seconds = seconds if not self._seconds else 0.9 * self._seconds + 0.1 * seconds
            self._at = event.step
        elif isinstance(event, ev.State):
            self.last = event
            self._at = event.step if event.state == "running" else self._at
        elif isinstance(event, ev.Eval):
            self._held = True
        elif isinstance(event, ev.Device):
            self._parts = [clean(name, 40) for name in event.parts]  # a run's are always the same

    def dump(self) -> dict[str, Any]:
        """Return all of it as JSON that `restore` takes."""
        return {
            "last": ev.to_line(self.last),
            "seconds": self._seconds,
            "at": self._at,
            "clock": asdict(self._clock),
            "totals": asdict(self.totals),
            "parts": self._parts,
            "held": self._held,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a `dump`."""
        last = ev.from_line(state["last"])
        assert isinstance(last, ev.State)
        self.last, self._seconds, self._parts = last, state["seconds"], state.get("parts", [])
        self._held, self._at = bool(state.get("held")), int(state.get("at", -1))
        self._clock, self.totals = _Clock(**state["clock"]), Totals(**state["totals"])

    def now(self, step: int) -> dict[str, Any]:
        """Return state, progress and times in seconds, after `step` steps; JSON, about half a KB."""
        run, plan, state = self.run, self._known_plan(), self._state()
        total = int(getattr(plan, "total_steps", 0) or self.last.total_steps)
        return {
            "name": clean(run.name, 200),
            "id": clean(run.id, 80),
            "folder": _from_a_new_kernel(run.folder),
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
            "vram": has_vram(plan),
            "memory_total": int(getattr(plan, "available_bytes", 0) or 0),
            "asks": self.asks,
            "resumable": bool(state in _LEFT and not self._of_another_trainer),
            "never": self._never(state),
            "error": self._error(state),
        }

    def _known_plan(self) -> Any:
        if self._plan is None:
            self._plan = self.run.plan  # read from a file each time, and it does not change
        return self._plan

    @property
    def asks(self) -> bool:
        """Whether it can be asked for samples: it has prompts of its own, or held-out rows, as was seen."""
        return self._held or self._has_prompts

    @cached_property
    def _has_prompts(self) -> bool:
        try:
            return bool(self.run.spec.samples)
        except (OSError, NbtuneError):  # a run whose spec cannot be read
            return False

    @cached_property
    def _of_another_trainer(self) -> bool:
        return foreign.of(self.run.folder) is not None

    @cached_property
    def _unable(self) -> set[str]:
        found = {"losses", "rateForm"} if self._of_another_trainer else set[str]()
        with contextlib.suppress(OSError, NbtuneError):  # a run whose spec cannot be read
            found |= {"chat", "losses"} if METHODS[self.run.spec.method].head else set()
        return found

    def _never(self, state: str) -> list[str]:
        """Return the buttons that could do nothing for this run, by the monitor's names for them."""
        kept = state not in _LEFT or self.run.saved_steps or (self.run.folder / "adapter").is_dir()
        return sorted(self._unable | (set() if kept else {"chat", "export", "losses", "push"}))

    def _state(self) -> str:
        last_state = self.last.state
        if last_state in ev.ENDED or time.monotonic() < self._alive_until:
            return last_state
        if self.run.alive:  # costs a look at files, and at the process that owns them
            self._alive_until = time.monotonic() + _TRUSTED
            return last_state
        return str(self.run.state)

    def look_again(self) -> None:
        """Look again, as somebody knows that the run has ended: the next `status` asks whether it lives."""
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
            cause = f"{error.place}: {error.cause}" if error.place else error.cause
            return note_of("error", cause, "", error.fix, when)
        return note_of("error", f"{type(error).__name__}: {error}", "", "", when)


def _from_a_new_kernel(folder: Path) -> str:
    """Return a run's folder as a kernel that is started anew finds it, fit for a line of a cell.

    Its name would not do: what a cell set (the folder of runs, `%cd`) went with the kernel.
    """
    from IPython import get_ipython

    shell = get_ipython()  # type: ignore[no-untyped-call]
    start = Path(shell.starting_dir) if shell is not None else None
    return shlex.quote(harmless(from_here(folder, start), line=True))


@dataclass
class Totals:
    """Sums over all steps that were made, also those that were made twice."""

    steps: int = 0
    tokens: int = 0
    seconds: float = 0.0
    memory: int = 0  # bytes, the peak

    def add(self, step: ev.Step) -> None:
        """Add one more step."""
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


def note_of(level: str, message: str, cause: str, fix: str, when: float) -> dict[str, Any]:
    """Return a note as the page takes it; `level` is ``warning`` or ``error``, `when` seconds since 1970."""
    if cause and message[-1:].isalnum():  # else it is a sentence of its own
        message += ":"
    shown = {"message": clean(message, 500), "cause": clean(cause, 500), "fix": clean(fix, 500)}
    return {"level": level, "time": when, **shown}


def has_vram(plan: Any) -> bool:
    """Return whether a plan's device has memory of its own: a Mac's GPU works in the machine's RAM."""
    return str(getattr(plan, "device", "cpu")) not in ("cpu", "mps", "None")


def _memory_plan(plan: Any) -> list[list[Any]]:
    """Return what the plan expects to hold memory, biggest first: [name, bytes]."""
    memory = getattr(plan, "memory", None)
    parts = memory.model_dump() if memory is not None else {}
    return [[name, size] for name, size in sorted(parts.items(), key=lambda part: -part[1]) if size >= 2**20]
