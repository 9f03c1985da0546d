"""What can be read of a run's folder: what was asked, what it will cost, where it stands, what it has said.

The rooms that show a run or take it home (widgets, export) read it here, whichever process works on it, or none.
Nothing here starts, changes or loads one; what else a panel asks of a run that it was given is
`nbtune.store.run_handle`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nbtune import events as says
from nbtune.atomic_io import read_json
from nbtune.errors import NbtuneError, TrainError
from nbtune.folder_format import is_newer
from nbtune.planner import Plan
from nbtune.spec import RunSpec
from nbtune.store import checkpoints
from nbtune.store.batch_job import JOB_FILE
from nbtune.store.event_log import EventReader, Follower, Latest, Mark, Pump
from nbtune.store.folder import name_of, plan_of, read_spec, trouble
from nbtune.store.lock import is_owned
from nbtune.untrusted import BadFile, harmless, number

if TYPE_CHECKING:
    import pandas as pd

_LIVE_STATES = ("queued", "preparing", "running", "paused", "stopping")


class RunReader:
    """Read a run, in whatever state it is.

    Args:
        folder: its folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.name, self.id = name_of(folder)
        log = folder / "events.jsonl"
        self._reader, self._latest = EventReader(log), Latest(log)
        self._pump = Pump(log, lambda: self.alive, f"nbtune-pump-{folder.name}")

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
    def alive(self) -> bool:
        """Whether an engine works on it, or waits to."""
        return is_owned(self.folder)

    @property
    def submitted(self) -> bool:
        """Whether it is a job of Slurm's."""
        return (self.folder / JOB_FILE).is_file()

    @property
    def state(self) -> str:
        """One of `nbtune.events.STATES`."""
        last = self.latest(says.State)
        state = "queued" if last is None else last.state
        if state in _LIVE_STATES and not self.alive:
            # the engine may have ended between the two looks
            last = self.latest(says.State)
            state = "interrupted" if last is None or last.state in _LIVE_STATES else last.state
        return state

    @property
    def step(self) -> int:
        """Finished optimizer steps."""
        last = self.latest(says.Step)
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
            sentence = trouble(self.folder)
            body = read_json(self.folder / "plan.json")
            if not sentence and body is not None and not is_newer(self.folder):
                plan_of(body, self.folder)
            return sentence
        except NbtuneError as error:
            return error.cause
        except OSError as error:
            return f"it cannot be read ({error.strerror or error})"

    @property
    def error(self) -> NbtuneError | None:
        """What it failed of."""
        if self.state != "failed":
            return None
        last = self.latest(says.State)
        return TrainError.said(last.detail if last is not None and last.detail else "the run failed")

    @property
    def saved_steps(self) -> list[int]:
        """The steps of its checkpoints, in order."""
        return checkpoints.steps(self.folder)

    # --- what it has said -------------------------------------------------------------------------------------------

    def events(self, start: int = 0) -> list[says.Event]:
        """Return what it has said so far, from the `start`-th event on."""
        return self._reader.read()[start:]

    def pieces(self, start: int = 0) -> Iterator[tuple[list[says.Event], Mark]]:
        """Yield what it has said so far, some thousand events at a time, each with the mark behind it;
        nothing is kept."""
        follower = Follower(self.folder / "events.jsonl", start)
        while new := follower.read():
            yield new, follower.mark

    def latest(self, kind: type[Any]) -> Any:
        """Return the newest event of a type, such as `nbtune.events.Step`; None: there is none."""
        return self._latest.of(kind)

    @property
    def history(self) -> pd.DataFrame:
        """A row a step (index: step) with the fields of `nbtune.events.Step`, and `eval_loss` where it was measured.

        Each of a method's metrics has a column of its own (``accuracy``), and so has what was measured of held-out rows
        (``eval_accuracy``).

        A step that was done twice (after a crash, from the checkpoint before) is there once, as it was done last.
        """
        import pandas as pd

        columns = [field.name for field in fields(says.Step) if field.name not in ("step", "metrics")]
        steps: dict[int, dict[str, Any]] = {}
        evals: dict[str, dict[int, float]] = {"loss": {}}
        names: dict[str, None] = {}
        for event in self.events():
            if isinstance(event, says.Step):
                steps[event.step] = {**event.metrics, **{name: getattr(event, name) for name in columns}}
                names |= dict.fromkeys(event.metrics)
            elif isinstance(event, says.Eval):
                for name, value in {**event.metrics, "loss": event.loss}.items():
                    evals.setdefault(name, {})[event.step] = value
        columns += [name for name in names if name not in columns]
        frame = pd.DataFrame.from_dict(steps, orient="index", columns=columns).rename_axis("step").sort_index()
        for name, found in evals.items():
            frame[f"eval_{name}"] = pd.Series(found, dtype=float)
        return frame

    @property
    def scores(self) -> dict[str, tuple[float | None, float | None]]:
        """What was measured before the first step and after the last, by name (`eval.metrics`, tasks of lm-eval).

        >>> nbtune.attach("demo").scores
        {}
        """
        before: dict[str, float] = {}
        after: dict[str, float] = {}
        for event in self.events():
            if isinstance(event, says.Scores):
                (after if event.step else before).update(event.values)
        return {name: (before.get(name), after.get(name)) for name in {**before, **after}}

    def subscribe(self, callback: Callable[[list[says.Event], int], None], start: int = 0) -> Callable[[], None]:
        """Call `callback(events, first_index)` with what is new, at most four times a second; the past comes first.

        It is called from one thread a run, must be quick, and may touch widgets but not print. `first_index` is a
        `Mark`, whose `behind` is the mark to go on from. Returns a function that ends it. When the run ends, the thread
        says the last events and ends too.
        """
        return self._pump.add(callback, start)

    def __repr__(self) -> str:
        kind, name = type(self).__name__, harmless(f"{self.name} ({self.id})", line=True)
        if trouble_text := self.trouble:
            return f"<{kind} {name} cannot be read: {trouble_text}>"
        return f"<{kind} {name}: {self.state}, step {self.step} of {self.total_steps or '?'}>"


def readable(run: RunReader, facts: Callable[[Any], Any]) -> tuple[Any, str]:
    """Return (facts of a run, "") or (None, what is wrong with its folder): one bad folder must not hide the others."""
    try:
        reason = run.trouble
        return (None, harmless(reason, line=True)) if reason else (facts(run), "")
    except Exception as error:  # noqa: BLE001 — whatever else is wrong in there, the other runs are shown
        return None, harmless(f"{type(error).__name__}: {str(error)[:120]}", line=True)
