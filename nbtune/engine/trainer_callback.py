"""A trainer of transformers or TRL as a run: its callback writes the run's folder, and hears wishes.

Nothing of the trainer is replaced. Where a figure is not said, it is not there: a trainer says its loss every
`logging_steps`; the last step's is asked for, so that the run's end is known.
"""

from __future__ import annotations

import contextlib
import warnings
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from nbtune import events
from nbtune.atomic_io import write_json
from nbtune.engine import foreign_facts, foreign_model
from nbtune.engine.failures import for_people
from nbtune.engine.stack_watch import StackWatch, calling_frame
from nbtune.engine.telemetry import Gauge
from nbtune.engine.trainer_events import TrainerEvents, tokenizer_of
from nbtune.engine.trainer_prompts import TrainerPrompts
from nbtune.errors import NbtuneError
from nbtune.store.event_log import EventWriter, add_event
from nbtune.store.folder import delete
from nbtune.store.lock import Ownership

SELDOM = 10  # steps between two losses, beyond which it is said how to see each one


class _Passing(TrainerCallback):  # type: ignore[misc]
    """Pass what a trainer tells its callbacks on to a session."""

    _session: Any = None

    def _let(self, what: str, *given: Any) -> Any:
        """Do something for the run, where there is one."""
        return None if self._session is None else getattr(self._session, what)(*given)

    def on_step_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Begin to count its time."""
        self._let("step_began")

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Hear wishes."""
        self._let("step_ended")
        self._let("between", state, control)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **given: Any) -> None:
        """Say what it logs."""
        if logs and "loss" in logs:
            self._let("step", state, logs)

    def on_save(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Keep what is learnt, as it is now."""
        self._let("saved", state)


class WatchedTrainer(_Passing):
    """Write a run's folder while a trainer trains; a second training gets a folder of its own.

    Args:
        trainer: any `transformers.Trainer`.
        samples: prompts to ask.
        make: makes a run's folder, described.
        show: shows the run of a folder; what it returns is called at each step, and with True at the end.
    """

    def __init__(
        self,
        trainer: Any,
        samples: tuple[str, ...],
        make: Callable[[], Path],
        show: Callable[[Path], Callable[[bool], None]],
    ) -> None:
        self._trainer, self._samples, self._make, self._show = weakref.ref(trainer), samples, make, show
        self.folder = make()
        add_event(self.folder, events.State(state="queued", detail="waits for its trainer"))
        self._waiting: contextlib.ExitStack | None = _owned(self.folder)
        self._never = weakref.finalize(self, _forget, self.folder, self._waiting)
        self.shown = show(self.folder)

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Begin a run, or go on with it; where that fails, the training goes on without one."""
        trainer = self._trainer()
        if trainer is None or not state.is_world_process_zero:
            return
        self._let("given_up")
        self._session = None
        self._never.detach()
        held, self._waiting = self._waiting, None
        try:
            if held is None and state.global_step == 0:  # a second training of the same trainer
                self.folder = self._make()
                self.shown = self._show(self.folder)
            held = _owned(self.folder) if held is None else held
            self._session = _Session(self.folder, held, trainer, self._samples, self.shown, state)
        except (OSError, NbtuneError) as error:  # a full disk
            if held is not None:
                held.close()
            warnings.warn(f"nbtune cannot watch this training: {error}", RuntimeWarning, stacklevel=2)

    def on_substep_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Hear wishes."""
        self._let("between", state, control)

    def on_step_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Hear wishes; of the last step a figure is asked for."""
        super().on_step_end(args, state, control, **given)
        if self._session is not None and (state.global_step >= state.max_steps or control.should_training_stop):
            control.should_log = True

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **given: Any) -> None:
        """Say what it measured."""
        if metrics:
            self._let("evaluated", state, metrics)

    def on_train_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """End the run, with its model in its folder."""
        self._let("ended", state)
        self._session = None

    def _let(self, what: str, *given: Any) -> Any:
        """Do something for the run; where that fails, the watching ends, and not somebody's training."""
        session = self._session
        try:
            return super()._let(what, *given)
        except Exception as error:  # noqa: BLE001 — a full disk, a deleted folder, a bug
            self._session = None
            session.broken(error)


class SessionCallback(_Passing):
    """The session of a trainer that is run here, whose errors end it.

    Args:
        begin: makes the session, of the trainer's state.
    """

    def __init__(self, begin: Callable[[Any], Any]) -> None:
        self._begin = begin
        self.how: Any = "finished"

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Begin."""
        self._session = self._begin(state)

    def on_train_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Keep how it ended."""
        self.how = self._let("ended", state)


class _Session(TrainerEvents):
    """One training, written down."""

    def __init__(
        self,
        folder: Path,
        held: contextlib.ExitStack,
        trainer: Any,
        samples: tuple[str, ...],
        shown: Callable[[bool], None],
        state: Any,
    ) -> None:
        self._held, self._show = held, shown
        writer = EventWriter(folder / "events.jsonl")
        held.callback(writer.close)
        self._foreign = foreign_facts.whose(trainer)
        model = trainer.model
        emit = held.enter_context(Gauge(writer, model, next(model.parameters()).device))
        self.has_adapter = bool(getattr(model, "peft_config", None))
        rows = trainer.eval_dataset if trainer.eval_dataset is not None else trainer.train_dataset
        prompts, detail = TrainerPrompts(samples, rows), f"trained by {self._foreign.words}"
        super().__init__(folder, trainer, emit, prompts, state, detail)
        self._said_so = False
        self._describe(trainer, samples, state)
        if samples:
            self._ask(0)
        self._watch = StackWatch(calling_frame(), self._left, f"nbtune-watch-{folder.name}")

    def shown(self) -> None:
        self._show(False)

    def _describe(self, trainer: Any, samples: tuple[str, ...], state: Any) -> None:
        detail = self._detail
        if self._step:
            detail += f", which goes on from step {self._step}"
        plan = foreign_facts.plan_of_trainer(trainer, foreign_facts.spec_of(trainer, samples), self._total)
        write_json(self.folder / "plan.json", plan.model_dump(mode="json"))
        self.emit(events.State(state="running", step=self._step, total_steps=self._total, detail=detail))
        if int(getattr(state, "logging_steps", 0) or 0) > SELDOM:
            cause = f"its trainer says a loss every {state.logging_steps} steps"
            self.emit(
                events.Warning(message="few points in the chart", cause=cause, fix="`logging_steps=1` in its arguments")
            )

    # --- its end ------------------------------------------------------------------------------------------------------

    def save(self, step: int) -> None:
        """Keep the model in the folder, where there is room; what keeps it from that is said once."""
        trainer = self._trainer()
        if trainer is None:
            return
        why = foreign_model.why_not(trainer.model, trainer, self.folder)
        try:
            if not why:
                base = foreign_facts.model_name(trainer.model)
                foreign_model.save(trainer.model, tokenizer_of(trainer), self.folder, base)
        except (NbtuneError, RuntimeError, ValueError, TypeError) as error:  # its training is not ours to end
            why = str(error)[:300]
        if why and not self._said_so:
            self._said_so = True
            fix = "what its trainer saves lies where its arguments say (`output_dir`)"
            self.emit(events.Warning(message="the model is not kept with the run", cause=why, fix=fix, step=step))

    def saved(self, state: Any) -> None:
        """Keep an adapter, which is small, as often as its trainer saves."""
        if self.has_adapter:
            self.save(int(state.global_step))

    def broken(self, error: Exception) -> None:
        """Give up watching, not the training."""
        self._watch.leave()
        self._close("failed", f"nbtune could not watch any longer, its trainer goes on: {error!r}"[:500])

    def ended(self, state: Any) -> None:
        """Write the end of a training that has come to it."""
        self._watch.leave()
        step = int(state.global_step)
        if self._asked_to_stop != "drop":
            self.save(step)
        if self._prompts.due(evaluated=True):
            self._ask(step)
        stopped = bool(self._asked_to_stop) and step < self._total
        self._close("stopped" if stopped else "finished", f"trained by {self._foreign.words}")

    def given_up(self) -> None:
        """Write the end of a training that another one of the same trainer follows."""
        self._watch.join()
        self._close("failed", "its trainer began again, before it had come to its end")

    def _left(self, error: BaseException | None) -> None:
        """Write the end of a training that was left by an exception; in the watch's thread."""
        if isinstance(error, KeyboardInterrupt | SystemExit):
            self.save(self._step)
            self._close("stopped", f"interrupted; trained by {self._foreign.words}")
        elif error is None:
            self._close("failed", "its `train()` was left by an exception that was caught elsewhere")
        else:
            told = for_people(error, self.folder)
            self._close("failed", str(told) if told is not None else f"{type(error).__name__}: {error}"[:500])

    def _close(self, ended: str, detail: str) -> None:
        if self._held is _CLOSED:
            return
        held, self._held = self._held, _CLOSED
        with contextlib.suppress(OSError):  # the disk is full, or the folder was deleted
            self.emit(events.State(state=ended, step=self._step, total_steps=self._total, detail=detail))
        held.close()
        self._show(True)


_CLOSED = contextlib.ExitStack()


def _owned(folder: Path) -> contextlib.ExitStack:
    held = contextlib.ExitStack()
    held.enter_context(Ownership(folder))
    return held


def _forget(folder: Path, held: contextlib.ExitStack) -> None:
    """Take the folder away of a trainer that never trained."""
    held.close()
    with contextlib.suppress(OSError, NbtuneError):
        delete(folder)


def watched_by(trainer: Any) -> WatchedTrainer | None:
    """Return the callback that watches a trainer already."""
    callbacks = getattr(getattr(trainer, "callback_handler", None), "callbacks", [])
    return next((one for one in callbacks if isinstance(one, WatchedTrainer)), None)
