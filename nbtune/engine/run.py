"""Run: the handle of a run. It reads the run's folder and writes wishes into it; it never calls into the loop.

So a handle works the same whether the run lives in this process, in another one, or no more.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nbtune import events as says
from nbtune.engine.answering import Answering
from nbtune.engine.launcher import Launched, launch
from nbtune.errors import NbtuneError, TrainError
from nbtune.folder_format import is_newer, refuse_newer
from nbtune.planner import Plan
from nbtune.spec import RunSpec
from nbtune.store import checkpoints, control, run_consent
from nbtune.store.event_log import EventReader, EventWriter, Follower, Latest, Mark, Pump
from nbtune.store.files import DISK_ERRORS, read_json
from nbtune.store.folder import name_of, plan_of, read_spec, trouble
from nbtune.store.lock import is_owned
from nbtune.untrusted import BadFile, harmless, number

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Run", "readable"]

_LIVE_STATES = ("queued", "preparing", "running", "paused", "stopping")


class Run(Answering):
    """A run, in whatever state it is.

    Args:
        folder: its folder.
        launched: its thread, when it was started here.
    """

    def __init__(self, folder: Path, launched: Launched | None = None) -> None:
        self.folder = folder
        self.name, self.id = name_of(folder)
        self._reader = EventReader(folder / "events.jsonl")
        self._launched = launched
        self._latest = Latest(folder / "events.jsonl")
        self._pump = Pump(folder / "events.jsonl", lambda: self.alive, f"nbtune-pump-{folder.name}")

    # --- what it is -------------------------------------------------------------------------------------------------

    @property
    def spec(self) -> RunSpec:
        """What was asked for."""
        return read_spec(self.folder)

    @property
    def plan(self) -> Plan | None:
        """How it is done; None until it was planned.

        Raises:
            TrainError: a newer nbtune planned it.
        """
        body = read_json(self.folder / "plan.json")
        if body is None:
            return None
        return plan_of(body, self.folder)

    @property
    def state(self) -> str:
        """One of `nbtune.events.STATES`."""
        last = self._last(says.State)
        state = "queued" if last is None else last.state
        if state in _LIVE_STATES and not self.alive:
            # the engine may have ended between the two looks
            last = self._last(says.State)
            state = "interrupted" if last is None or last.state in _LIVE_STATES else last.state
        return state

    @property
    def alive(self) -> bool:
        """Whether an engine works on it, or waits to."""
        return (self._launched is not None and self._launched.alive) or is_owned(self.folder)

    @property
    def step(self) -> int:
        """Finished optimizer steps."""
        last = self._last(says.Step)
        return 0 if last is None else last.step

    @property
    def total_steps(self) -> int:
        """Steps of the whole run; 0 until it was planned."""
        with suppress(BadFile):
            return max(0, int(number(read_json(self.folder / "plan.json") or {}, "total_steps", 0)))
        return 0

    @property
    def trouble(self) -> str:
        """What is wrong with its folder, in a sentence, where it cannot be shown among others; else nothing."""
        try:
            found = trouble(self.folder)
            body = read_json(self.folder / "plan.json")
            if not found and body is not None and not is_newer(self.folder):
                plan_of(body, self.folder)
            return found
        except NbtuneError as error:
            return error.cause
        except OSError as error:
            return f"it cannot be read ({error.strerror or error})"

    @property
    def error(self) -> NbtuneError | None:
        """What it failed of."""
        if self.state != "failed":
            return None
        if self._launched is not None and isinstance(self._launched.error, NbtuneError):
            return self._launched.error
        last = self._last(says.State)
        return TrainError.said(last.detail if last is not None and last.detail else "the run failed")

    def events(self, start: int = 0) -> list[says.Event]:
        """What it has said so far, from the `start`-th event on."""
        return self._reader.read()[start:]

    def pieces(self, start: int = 0) -> Iterator[tuple[list[says.Event], Mark]]:
        """What it has said so far, some thousand events at a time, each with the mark behind it; nothing is kept."""
        follower = Follower(self.folder / "events.jsonl", start)
        while new := follower.read():
            yield new, follower.mark

    def _last(self, kind: type[Any]) -> Any:
        return self._latest.of(kind)

    @property
    def history(self) -> pd.DataFrame:
        """A row a step (index: step) with the fields of `nbtune.events.Step`, and `eval_loss` where it was measured.

        A step that was done twice (after a crash, from the checkpoint before) is there once, as it was done last.
        """
        import pandas as pd

        steps: dict[int, dict[str, Any]] = {}
        evals: dict[int, float] = {}
        for event in self.events():
            if isinstance(event, says.Step):
                steps[event.step] = {k: v for k, v in vars(event).items() if k != "step"}
            elif isinstance(event, says.Eval):
                evals[event.step] = event.loss
        columns = [field.name for field in fields(says.Step) if field.name != "step"]
        frame = pd.DataFrame.from_dict(steps, orient="index", columns=columns).rename_axis("step").sort_index()
        frame["eval_loss"] = pd.Series(evals, dtype=float)
        return frame

    def say(self, event: says.Event) -> None:
        """Add an event that is not the engine's: an export that began, ended or failed.

        A folder that cannot be written is a source all the same: then nothing is written down.

        Raises:
            TrainError: a newer nbtune made the folder.
        """
        refuse_newer(self.folder)
        try:
            writer = EventWriter(self.folder / "events.jsonl", owner=False)
        except OSError as error:
            if error.errno in DISK_ERRORS:
                return
            raise
        try:
            writer(event)
        finally:
            writer.close()

    # --- what it should do ------------------------------------------------------------------------------------------

    def _wish(self, **changes: Any) -> None:
        control.wish(self.folder, **changes)
        self._pump.expect()

    def pause(self) -> None:
        """Hold at the next micro-step; the model stays in memory."""
        self._wish(mode="pause")

    def unpause(self) -> None:
        """Go on after `pause`."""
        self._wish(mode="run")

    def stop(self, *, save: bool = True, wait: bool = False) -> None:
        """Save and end at the next micro-step; `resume` goes on from there.

        Args:
            save: False ends without a new checkpoint: what was learnt since the last one is lost.
            wait: return when it has ended.
        """
        self._wish(mode="stop" if save else "drop")
        if wait:
            self._join(None)

    def checkpoint(self) -> None:
        """Save at the next micro-step."""
        self._wish(checkpoint=True)

    def sample(self) -> None:
        """Ask the sample prompts at the next micro-step."""
        self._wish(sample=True)

    def set_learning_rate(self, learning_rate: float) -> None:
        """A new peak for the schedule, from the next step on; it is journalled.

        Raises:
            TrainError: it is not above 0.
        """
        if not learning_rate > 0:
            raise TrainError(f"a learning rate must be above 0, not {learning_rate}")
        self._wish(learning_rate=float(learning_rate))

    def resume(self, *, step: int | None = None, detach: bool = False, own_process: bool = False) -> Run:
        """Go on from the last checkpoint, or from the one of `step`, in the same folder.

        Args:
            step: of an earlier checkpoint; later ones are set aside in ``checkpoints/aside``.
            detach: in a process of its own, which survives this one.
            own_process: in a process of its own, which this one stops when it ends in order.

        Raises:
            TrainError: it is finished, it is at work, or there is no such checkpoint.
        """
        refuse_newer(self.folder)
        run_consent.check(self.folder)
        if self.alive:
            raise TrainError(f"the run `{self.name}` is at work", fix="`unpause` it if it is paused")
        if step is not None:
            checkpoints.go_back(self.folder, step)
        elif self.state == "finished":
            raise TrainError(f"the run `{self.name}` is finished", fix="start a new one with more steps")
        control.wish(self.folder, mode="run")
        self.say(says.State(state="queued", step=self.step, total_steps=self.total_steps))
        self._launched = launch(self.folder, detach=detach, own_process=own_process)
        return self

    def wait(self, timeout: float | None = None) -> Run:
        """Wait until it has ended. An interrupt (Ctrl-C) stops the waiting, not the run.

        Raises:
            NbtuneError: what it failed of.
            TrainError: its process is gone.
            TimeoutError: it still works after `timeout` seconds.
        """
        if not self._join(timeout):
            raise TimeoutError(f"the run {self.name} is still {self.state} after {timeout:g} s")
        state = self.state
        if state == "failed":
            error = self.error
            assert error is not None
            raise error from (self._launched.error if self._launched is not None else None)
        if state == "interrupted":
            last = self._last(says.State)
            why = last.detail if last is not None and last.state == "interrupted" else "its process is gone"
            raise TrainError(f"the run `{self.name}` was interrupted: {why}", fix=f"`%nbtune resume {self.name}`")
        return self

    def _join(self, timeout: float | None) -> bool:
        end = None if timeout is None else time.monotonic() + timeout
        while self.alive:
            if end is not None and time.monotonic() > end:
                return False
            if self._launched is not None:
                self._launched.join(0.1)
            else:
                time.sleep(0.1)
        return True

    # --- the model --------------------------------------------------------------------------------------------------

    def free(self) -> int:
        """Drop the model that is kept for `generate`; returns the bytes that came back.

        Raises:
            TrainError: the run is at work.
        """
        if self.alive:
            raise TrainError(f"the run `{self.name}` is at work", fix="stop it first")
        return 0 if self._launched is None else self._launched.free()

    # --- who listens ------------------------------------------------------------------------------------------------

    def subscribe(self, callback: Callable[[list[says.Event], int], None], start: int = 0) -> Callable[[], None]:
        """Call `callback(events, first_index)` with what is new, at most four times a second; the past comes first.

        It is called from one thread a run, must be quick, and may touch widgets but not print. `first_index` is a
        `Mark`, whose `behind` is the mark to go on from. Returns a function that ends it. When the run ends, the thread
        says the last events and ends too.
        """
        return self._pump.add(callback, start)

    def __repr__(self) -> str:
        name = harmless(f"{self.name} ({self.id})", line=True)
        if found := self.trouble:
            return f"<Run {name} cannot be read: {found}>"
        return f"<Run {name}: {self.state}, step {self.step} of {self.total_steps or '?'}>"


def readable(run: Any, facts: Callable[[Any], Any]) -> tuple[Any, str]:
    """(facts of a run, "") or (None, what is wrong with its folder): one bad folder must not hide the others."""
    try:
        trouble = getattr(run, "trouble", "")
        return (None, harmless(trouble, line=True)) if trouble else (facts(run), "")
    except Exception as error:  # noqa: BLE001 — whatever else is wrong in there, the other runs are shown
        return None, harmless(f"{type(error).__name__}: {str(error)[:120]}", line=True)
