"""What a trainer of transformers' kind says, as events, and what it is told, whether it is watched or run here.

A figure that is not said is not there: a trainer says its loss every `logging_steps`.
"""

from __future__ import annotations

import math
import time
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from nbtune import device as machine
from nbtune import events
from nbtune.engine import foreign_facts
from nbtune.engine.answering import answered
from nbtune.engine.live_requests import answer_requests
from nbtune.engine.trainer_prompts import TrainerPrompts
from nbtune.store.control import FileControl


class TrainerEvents:
    """Say a trainer's figures, and hear wishes between its steps.

    Args:
        folder: the run's.
        trainer: whose figures they are.
        emit: takes events.
        prompts: what is asked now and then.
        state: the trainer's, where it begins.
        detail: said of the run while it works.
    """

    def __init__(
        self,
        folder: Path,
        trainer: Any,
        emit: Callable[[events.Event], None],
        prompts: TrainerPrompts,
        state: Any,
        detail: str,
    ) -> None:
        self.folder, self._trainer, self.emit = folder, weakref.ref(trainer), emit
        self._device, self._detail = next(trainer.model.parameters()).device, detail
        self._alone = int(getattr(trainer.args, "world_size", 1)) == 1
        self._prompts, self._control = prompts, FileControl(folder)
        wishes = self._control.look()
        self._saves, self._sampled, self._asked_to_stop = wishes.checkpoint, wishes.sample, ""
        self._seconds, self._began, self._tokens = 0.0, None, self._tokens_seen(state, {})
        self._step, self._total, self._best = int(state.global_step), int(state.max_steps), math.inf
        self._sources: dict[int, dict[str, float]] = {}
        machine.reset_peak(self._device)

    _began: float | None

    def shown(self) -> None:
        """Let whoever shows the run work between two steps."""

    # --- what it says -------------------------------------------------------------------------------------------------

    def step_began(self) -> None:
        self._began = time.monotonic()

    def step_ended(self) -> None:
        if self._began is not None:
            self._seconds, self._began = self._seconds + time.monotonic() - self._began, None

    def step(self, state: Any, logs: dict[str, Any]) -> None:
        """Say a step, with the seconds and tokens since the one before."""
        self._step = int(state.global_step)
        use, seen = machine.memory_use(self._device), self._tokens_seen(state, logs)
        tokens, seconds = max(0, seen - self._tokens), self._seconds
        self._tokens, self._seconds = seen, 0.0
        numbers = {key: foreign_facts.number_of(logs.get(key)) for key in ("loss", "learning_rate", "grad_norm")}
        self.emit(
            events.Step(
                step=self._step,
                loss=math.nan if numbers["loss"] is None else numbers["loss"],
                learning_rate=numbers["learning_rate"] or 0.0,
                grad_norm=numbers["grad_norm"] or 0.0,
                tokens=tokens,
                tokens_per_second=tokens / seconds if seconds else 0.0,
                seconds=seconds,
                epoch=float(state.epoch or 0.0),
                memory_allocated=use.allocated,
                memory_reserved=use.reserved,
                memory_peak=use.peak,
                metrics=foreign_facts.figures(logs),
            )
        )

    @staticmethod
    def _tokens_seen(state: Any, logs: dict[str, Any]) -> int:
        return int(foreign_facts.number_of(logs.get("num_tokens")) or getattr(state, "num_input_tokens_seen", 0) or 0)

    def evaluated(self, state: Any, metrics: dict[str, Any]) -> None:
        """Say an evaluation; of several sets the mean of their losses, and each."""
        step = int(state.global_step)
        name = next((key for key in metrics if key.endswith("_loss")), "")
        loss = foreign_facts.number_of(metrics.get(name))
        prefix = name.removesuffix("loss") or "eval_"
        of_step = self._sources.setdefault(step, {})
        if loss is not None and name != "eval_loss":
            of_step[prefix.removeprefix("eval_").removesuffix("_")] = loss
            loss = sum(of_step.values()) / len(of_step)
        best = loss is not None and loss < self._best
        self._best = min(self._best, loss) if loss is not None and not math.isnan(loss) else self._best
        told: dict[str, Any] = {"metrics": foreign_facts.figures(metrics, prefix), "sources": dict(of_step)}
        seconds = foreign_facts.number_of(metrics.get(f"{prefix}runtime")) or 0.0
        self.emit(events.Eval(step=step, loss=math.nan if loss is None else loss, seconds=seconds, best=best, **told))
        if self._prompts.due(evaluated=True):
            self._ask(step)

    # --- what it is told ----------------------------------------------------------------------------------------------

    def between(self, state: Any, control: Any) -> None:
        """Hear what is wished, and answer what is asked, between two micro-steps."""
        self.shown()
        wishes = self._control.look()
        if wishes.mode == "pause":
            self._pause(state)
            wishes = self._control.look()
        if wishes.ends and not self._asked_to_stop:
            self._asked_to_stop = wishes.mode
            control.should_training_stop = True
            self.emit(events.State(state="stopping", step=self._step, total_steps=self._total))
        if wishes.checkpoint != self._saves:
            self._saves, control.should_save = wishes.checkpoint, True
        wished = wishes.sample != self._sampled
        if wished or self._prompts.due():
            self._sampled = wishes.sample
            self._ask(int(state.global_step), wished=wished)
        self._answer(state)

    def _pause(self, state: Any) -> None:
        about: dict[str, Any] = {"step": int(state.global_step), "total_steps": self._total}
        self.emit(events.State(state="paused", **about))
        while self._control.look().mode == "pause":
            self.shown()
            self._answer(state)
            self._control.wait(0.05)
        self.emit(events.State(state="running", detail=self._detail, **about))

    def _answer(self, state: Any) -> None:
        trainer = self._trainer()
        if trainer is None or not self._alone:
            return
        about: dict[str, Any] = {"folder": self.folder, "step": int(state.global_step)}
        answer = partial(
            answered, trainer.model, tokenizer_of(trainer), ends=lambda: self._control.look().ends, **about
        )
        answer_requests(self.folder, answer)

    def _ask(self, step: int, *, wished: bool = False) -> None:
        trainer = self._trainer()
        if trainer is None or not self._alone or tokenizer_of(trainer) is None:
            return
        ends = lambda: self._control.look().ends  # noqa: E731
        for sample in self._prompts.answers(trainer.model, tokenizer_of(trainer), step, ends, wished=wished):
            self.emit(sample)


def tokenizer_of(trainer: Any) -> Any:
    """Return a trainer's tokenizer, also the one in its processor; None where it has none."""
    processing = getattr(trainer, "processing_class", None)
    inner = getattr(processing, "tokenizer", None)
    one = inner if hasattr(inner, "apply_chat_template") else processing
    return one if hasattr(one, "get_vocab") else None
