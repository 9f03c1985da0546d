"""The training loop: accumulation, schedule, evaluation, checkpoints, control, events.

It knows no folder, no widget and no notebook: it is given functions (`Jobs`), says what happens through `emit`, and
looks at `control` between micro-batches. Metrics of a step are read one step late on a GPU, so that nothing waits
for the device.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from nbtune import events
from nbtune.device import MemoryUse, memory_use
from nbtune.device.streams import Later, Moment
from nbtune.train.attempt import Attempt
from nbtune.train.early_stopping import EarlyStopping
from nbtune.train.mean_loss import no_number, shown, trained_tokens, trained_weight
from nbtune.train.progress import Progress

if TYPE_CHECKING:
    from nbtune.data.batching.collate import Batch
    from nbtune.train.control import Control, Wishes
    from nbtune.train.loop_parts import Batches, Stepper
    from nbtune.train.mean_loss import HeldOut
    from nbtune.train.stepper import Updated


@dataclass(frozen=True)
class LoopOptions:
    """What the plan decided; `learning_rate` is the peak, `factor` the schedule over the 0-based step.

    `count` says what a micro-batch's loss is a sum over: trained tokens, or with preferences pairs
    (`AnswerLoss.count`). `agree` adds numbers up over the processes that train together; of `several` each may have
    another number of micro-batches, so that wishes are granted between steps only.
    """

    total_steps: int
    learning_rate: float
    factor: Callable[[int], float]
    eval_every: int
    checkpoint_every: int | None
    checkpoint_seconds: float
    count: Callable[[Batch], float] = trained_weight
    agree: Callable[[Sequence[float]], Sequence[Any]] = list
    several: bool = False
    stopping: EarlyStopping = field(default_factory=EarlyStopping)


@dataclass(frozen=True)
class Jobs:
    """What the loop has done by others.

    `save` writes a checkpoint and returns its event (or refuses to, where the weights are good for nothing), `evaluate`
    what it found of the held-out rows (None: there are none), `sample` asks the sample prompts,
    `between` is called at every micro-step boundary (requests to the live model are answered there), with a function to
    call with the wishes between two tokens of an answer: it says whether the answer has to end. `evaluate` and `sample`
    are given a function to call between their batches and tokens: a stop or a pause does not wait for their end.
    `give_up` makes a run need less memory, after so many finished steps (`beside`: for what is no step), and returns
    what is to be said of it, or raises where nothing is left to give up. None: memory that is short ends the run.
    """

    save: Callable[[Progress], events.Checkpoint]
    evaluate: Callable[[Callable[[], None]], HeldOut | None]
    sample: Callable[[int, Callable[[], None]], Iterable[events.Sample]]
    between: Callable[[Callable[[Wishes], bool]], None]
    give_up: Callable[..., events.Event] | None = None


def _tokens(batch: Batch) -> int:
    return batch.num_tokens


_Told = TypeVar("_Told")
_OVERFLOWS = 20  # steps in a row that fp16's loss scale may be too high before the run gives up


class _Stop(Exception):
    pass


@dataclass
class _Pending:
    """A step whose numbers are still on the device, and when the device began it."""

    began: Moment
    told: Later  # loss, norm, and the figures
    figures: Sequence[str]
    step: int
    learning_rate: float
    tokens: int
    trained_tokens: int
    epoch: float


def train(
    stepper: Stepper,
    batches: Batches,
    options: LoopOptions,
    jobs: Jobs,
    *,
    progress: Progress,
    emit: Callable[[events.Event], None],
    control: Control,
) -> Literal["finished", "stopped"]:
    """Train from `progress.step` to the end, or until a stop is wished; `progress` is kept up to date.

    Raises:
        TrainError: the loss, of a step or of held-out rows, is no number any more. What was saved stays.
    """
    return _Loop(stepper, batches, options, jobs, progress, emit, control).run()


class _Loop:
    def __init__(
        self,
        stepper: Stepper,
        batches: Batches,
        options: LoopOptions,
        jobs: Jobs,
        progress: Progress,
        emit: Callable[[events.Event], None],
        control: Control,
    ) -> None:
        self.stepper, self.batches, self.options, self.jobs = stepper, batches, options, jobs
        self.progress, self.emit, self.control = progress, emit, control
        self._seen, self._said = control.look(), ""
        self._pending: _Pending | None = None
        self._late = stepper.device.type != "cpu"
        self._overflows, self._holding = 0, False
        self._next: Sequence[Batch] | None = None  # made while the device is at work
        self._memory, self._memory_at = memory_use(stepper.device), -math.inf
        self._saved_at, self._saved_step = time.monotonic(), progress.step
        self._overdue = False
        self._began = Moment(stepper.device)

    def run(self) -> Literal["finished", "stopped"]:
        self._state("running")
        try:
            if self.progress.step == 0:
                self._sample()
            while self.progress.step < self.options.total_steps and not self.options.stopping.in_vain(self.progress):
                self._look()
                self._step()
                self._after_step()
        except _Stop:
            self.stepper.discard()
            self._state("stopping")
            self._flush()
            if self.control.look().mode != "drop":
                self._save()
            return "stopped"
        self._flush()
        for said in self.options.stopping.end(self.progress, self.options.total_steps):
            self.emit(said)
            self._saved_step = -1  # with other weights, perhaps
        self._save()
        return "finished"

    def _step(self) -> None:
        progress, index = self.progress, self.progress.step
        micro_batches = self._next or self.batches.step(index)
        own = [sum(map(count, micro_batches)) for count in (self.options.count, trained_tokens, _tokens)]
        late = time.monotonic() - self._saved_at > self.options.checkpoint_seconds
        counted, trained, tokens, late_ones = self.options.agree([*own, late])
        self._overdue = late_ones > 0  # by anybody's clock: all save, or none
        denominator = counted if counted > 0 else 1
        while (updated := self._updated(micro_batches, denominator, index)) is None:
            micro_batches = self.batches.step(index)  # the same rows, fewer at once
        figures, learning_rate = updated.figures, self._rate(index)
        told = Later(updated.loss, updated.norm, *figures.values())
        progress.step, progress.tokens = index + 1, progress.tokens + tokens
        progress.trained_tokens += trained
        self._next = self.batches.step(index + 1) if index + 1 < self.options.total_steps else None
        if self._late:
            self._flush()
        epoch = progress.step / self.batches.steps_per_epoch
        self._pending = _Pending(self._began, told, (*figures,), progress.step, learning_rate, tokens, trained, epoch)
        self._began = told
        if not self._late:
            self._flush()

    def _rate(self, index: int) -> float:
        peak = self.progress.learning_rate if self.progress.learning_rate is not None else self.options.learning_rate
        return peak * self.options.factor(index)

    def _updated(self, micro_batches: Sequence[Batch], denominator: float, index: int) -> Updated | None:
        """Do a step, and return what it tells; None: memory was short, nothing has changed, and it may be tried again
        with what was given up."""
        if self.jobs.give_up is None:
            self._accumulate(micro_batches, denominator, index)
            return self.stepper.update(self._rate(index))
        updated = None
        with Attempt() as attempt:
            self._accumulate(micro_batches, denominator, index)
            if not self.options.several:
                updated = self.stepper.update(self._rate(index))
        if self.options.several and not self.options.agree([attempt.short])[0]:
            return self.stepper.update(self._rate(index))
        if updated is None:  # here, or in another process
            self.stepper.discard()
            self.emit(self.jobs.give_up(self.progress.step))
        return updated

    def _accumulate(self, micro_batches: Sequence[Batch], denominator: float, index: int) -> None:
        self.stepper.learning_rate = self._rate(index)
        self.stepper.look_ahead(self._looking(micro_batches), step=index)
        for micro_step, batch in enumerate(self._looking(micro_batches)):
            self.stepper.accumulate(batch, denominator=denominator, step=index, micro_step=micro_step)

    def _looking(self, micro_batches: Sequence[Batch]) -> Iterator[Batch]:
        """Yield the micro-batches, with a look at the wishes between two of them."""
        for micro_step, batch in enumerate(micro_batches):
            if micro_step and self.options.several:
                self.jobs.between(self._while_answering)
            elif micro_step:
                self._look()
            yield batch

    def _flush(self) -> None:
        done, self._pending = self._pending, None
        if done is None:
            return
        loss, norm, *figures = done.told.read()
        seconds = max(done.told.since(done.began), 1e-9)  # the device's: the host may be ahead by a step
        memory = self._memory_now()
        self.emit(
            events.Step(
                step=done.step,
                loss=loss,
                learning_rate=done.learning_rate,
                grad_norm=norm,
                tokens=done.tokens,
                trained_tokens=done.trained_tokens,
                tokens_per_second=done.tokens / seconds,
                seconds=seconds,
                epoch=done.epoch,
                memory_allocated=memory.allocated,
                memory_reserved=memory.reserved,
                memory_peak=memory.peak,
                metrics=shown(dict(zip(done.figures, figures, strict=True))),
            )
        )
        overflowed = self.stepper.scaled and not math.isfinite(norm)
        self._overflows = self._overflows + 1 if overflowed else 0
        if not math.isfinite(loss) or (not math.isfinite(norm) and not 0 < self._overflows < _OVERFLOWS):
            raise no_number("the loss" if not math.isfinite(loss) else "the gradient", done.step)

    def _memory_now(self) -> MemoryUse:
        """Return the memory in use, asked at most ten times a second: it costs as much as a small step's launches."""
        now = time.monotonic()
        if now - self._memory_at > 0.1:
            self._memory, self._memory_at = memory_use(self.stepper.device), now
        return self._memory

    def _after_step(self) -> None:
        step, options = self.progress.step, self.options
        last = step == options.total_steps
        if step % options.eval_every == 0 or last:
            self._flush()
            self._evaluate()
            self._sample()
            self._restart_clock()
        due = options.checkpoint_every is not None and step % options.checkpoint_every == 0
        if (due or self._overdue) and not last:
            self._flush()
            self._save()
            self._restart_clock()

    def _beside(self, job: Callable[[], _Told]) -> _Told:
        """Return what is told by something that is no step; where memory is short it is done again, with less."""
        while True:
            with Attempt():
                return job()
            if self.jobs.give_up is None or self.options.several:
                raise MemoryError
            self.emit(self.jobs.give_up(self.progress.step, beside=True))

    def _evaluate(self) -> None:
        held = self._beside(lambda: self.jobs.evaluate(self._look_within))
        if held is None:
            return
        best = self.options.stopping.remember(self.progress, held.loss)
        self.emit(events.Eval(step=self.progress.step, best=best, **vars(held)))
        if held.tokens and not math.isfinite(held.loss):
            raise no_number("the loss of the held-out rows", self.progress.step)

    def _sample(self) -> None:
        with Attempt() as attempt:
            for event in self.jobs.sample(self.progress.step, self._look_within):
                self.emit(event)
        if attempt.short and self.options.several:
            raise MemoryError
        if attempt.short:
            self.emit(events.Warning(message="there was no memory for sample answers", step=self.progress.step))
        self._restart_clock()

    def _save(self) -> None:
        if self._saved_step != self.progress.step or self.progress.step == 0:
            self.emit(self._beside(lambda: self.jobs.save(self.progress)))
        self._saved_at, self._saved_step = time.monotonic(), self.progress.step

    def _look(self) -> None:
        """Answer the wishes that have come since last time."""
        self.jobs.between(self._while_answering)
        wishes = self.control.look()
        if wishes == self._seen and wishes.mode == "run":
            self._state("running")  # a pause may have come and gone during an answer
            return
        if wishes.ends:
            raise _Stop
        if wishes.mode == "pause":
            self._paused(grant=True)
            wishes = self.control.look()
        self._grant(wishes)
        self._restart_clock()

    def _look_within(self) -> None:
        """Heed, between two batches of an evaluation, or two tokens of an answer, a stop or a pause;
        the rest can wait."""
        wishes = self.control.look()
        if wishes.ends:
            raise _Stop
        if wishes.mode == "pause" and not self._holding:
            self._paused(grant=False)

    def _while_answering(self, wishes: Wishes) -> bool:
        """Heed, between two tokens of an answer to somebody, what stops it: nothing trains meanwhile, so a pause holds
        from now on and the answer goes on. Any other new wish ends it (True), and is granted behind it."""
        if wishes.ends:
            return True
        self._state("paused" if wishes.mode == "pause" else "running")
        seen, step = self._seen, (wishes.checkpoint, wishes.sample, wishes.learning_rate)
        return step != (seen.checkpoint, seen.sample, seen.learning_rate)

    def _grant(self, wishes: Wishes) -> None:
        if wishes.learning_rate != self._seen.learning_rate and wishes.learning_rate is not None:
            self.progress.learning_rate = wishes.learning_rate
            self.emit(
                events.Warning(
                    message=f"learning rate set to {wishes.learning_rate:g}, as asked", step=self.progress.step
                )
            )
        if wishes.checkpoint > self._seen.checkpoint:
            self._flush()
            self._saved_step = -1
            self._save()
        if wishes.sample > self._seen.sample:
            self._sample_once(wishes)
        self._seen = wishes

    def _sample_once(self, wishes: Wishes) -> None:
        """Sample on request: granted before it is done, so that a pause in the middle does not grant it again."""
        self._seen = wishes
        self._flush()
        self._sample()

    def _paused(self, *, grant: bool) -> None:
        """Hold; with `grant`, what else is wished is done meanwhile."""
        self._flush()
        self._state("paused")
        while (wishes := self.control.look()).mode == "pause":
            self._state("paused")
            if grant:
                self._holding = True  # answers that are wished during a pause are given during it
                self.jobs.between(self._while_answering)
                self._grant(wishes)
                self._holding = False
            self.control.wait(0.25)
        if wishes.ends:
            raise _Stop
        self._state("running")

    def _restart_clock(self) -> None:
        """Count the next step from here, after work that is no step's."""
        self._began = Moment(self.stepper.device)

    def _state(self, state: str) -> None:
        """Say a state, once until there is another one."""
        if state == self._said:
            return
        self._said = state
        self.emit(events.State(state=state, step=self.progress.step, total_steps=self.options.total_steps))
