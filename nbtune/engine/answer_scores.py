"""How good a model's answers are, before the first step and after the last: the metrics of `eval`, and what it must not
forget.

What nobody can answer for is asked first: a metric that fails does so before anything is trained; after it a warning is
enough, since the weights are saved by then.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nbtune import events
from nbtune.engine.judges import PLACE, Judge
from nbtune.errors import NbtuneError, TrainError
from nbtune.generate import sampling
from nbtune.spec.text_metrics import TEXT_METRICS
from nbtune.untrusted import shortened

if TYPE_CHECKING:
    from nbtune.engine.evaluation import Measuring
    from nbtune.train.control import Control
    from nbtune.train.progress import Progress

_SECONDS = 60.0  # that a call of a user's metric may take
_SHOWN = 60  # characters of what was forgotten

Emit = Callable[[events.Event], None]


@dataclass(frozen=True)
class _Row:
    """A held-out row: what it asks, what it answers, where it stands, and all its columns."""

    asked: list[dict[str, Any]]
    reference: str
    place: str
    columns: dict[str, Any]


class _Ended(Exception):
    """A stop is wished."""


@contextmanager
def scored(folder: Path, measuring: Measuring, progress: Progress, control: Control, emit: Emit) -> Iterator[None]:
    """Measure the model before what is done within, if that is its first step, and after it, unless it was stopped.

    Args:
        folder: the run's.
        measuring: has its model and its rows.
        control: a wish to stop ends the scoring.
    """
    asked = measuring.spec.eval
    if not (asked.metrics or asked.must_keep):
        yield
        return
    scores = _Scores(folder, measuring, control)
    if progress.step == 0:
        emit(events.State(state="preparing", detail="asking the model before it learns, for `eval`"))
        scores.tell(0, emit)
    yield
    if control.look().ends:
        return
    try:
        scores.tell(progress.step, emit)
    except (NbtuneError, RuntimeError, ValueError, TypeError, ArithmeticError, LookupError) as error:
        said = f"the answers could not be scored after the last step: {shortened(error, 200)}"
        emit(events.Warning(message=said, step=progress.step))


class _Scores:
    def __init__(self, folder: Path, measuring: Measuring, control: Control) -> None:
        self._folder, self._measuring, self._control = folder, measuring, control
        self._spec = measuring.spec
        self._kept: dict[int, bool] = {}  # of the base, by the number of the rule

    def tell(self, step: int, emit: Emit) -> None:
        """Measure, and say it; nothing is said of what a stop has ended."""
        together, began = self._measuring.together, time.monotonic()

        def look() -> None:
            if (together or self._control).look().ends:
                raise _Ended

        try:
            values = self._of_tokens(look)
            failed: list[Exception] = []
            work = partial(self._led, step, emit, failed)
            answers = work(look) if together is None else together.led(work, look)
            for figures in answers:
                values |= figures
        except _Ended:
            return
        if failed:
            raise failed[0]
        rows = int(values.pop("", 0))
        emit(events.Scores(step=step, values=values, rows=rows, seconds=time.monotonic() - began))

    def _of_tokens(self, look: Callable[[], None]) -> dict[str, float]:
        if "perplexity" not in self._spec.eval.metrics:
            return {}
        found = self._measuring.evaluate(look)
        if found is None:
            return {}
        return {**found.metrics, "loss": found.loss, "perplexity": math.exp(min(found.loss, 50.0))}

    def _led(
        self, step: int, emit: Emit, failed: list[Exception], look: Callable[[], None]
    ) -> Iterator[dict[str, float]]:
        """Yield figures; an error waits until the other processes, which only look, are told that this is over."""
        try:
            yield from self._of_answers(step, emit, look)
        except (NbtuneError, RuntimeError, ValueError, TypeError, ArithmeticError, LookupError) as error:
            failed.append(error)

    def _of_answers(self, step: int, emit: Emit, look: Callable[[], None]) -> Iterator[dict[str, float]]:
        """Yield figures; under "" how many rows were answered."""
        asked = self._spec.eval
        if self._measuring.plan.weights.shards:
            emit(events.Warning(message="`eval`: no answers are scored where each device has a part of the weights"))
            return
        if "token_accuracy" in asked.metrics:
            yield {"token_accuracy": self._token_accuracy(look)}
        judged = [name for name in asked.metrics if name not in TEXT_METRICS or TEXT_METRICS[name].of]
        if judged:
            rows = self._rows()
            answers = [self._answer(row.asked, look) for row in rows]
            yield {"": float(len(rows))}
            for name in judged:
                yield self._judged(name, rows, answers)
        if asked.must_keep:
            yield {"kept": self._keeps(step, emit, look)}

    def _answer(self, asked: str | list[dict[str, Any]], look: Callable[[], None]) -> str:
        built, most = self._measuring.built, self._spec.eval.max_new_tokens

        def go_on() -> bool:
            look()
            return False

        assert built.tokenizer is not None
        return sampling.answer(built.model, built.tokenizer, asked, max_new_tokens=most, should_stop=go_on)

    def _rows(self) -> list[_Row]:
        from nbtune import data
        from nbtune.store.row_losses import row_exchange

        held, found = self._measuring.data.eval, list[_Row]()
        sources = {source.name: source for source in data.open_snapshot(self._folder / "data", verify=False)}
        group = 2 if self._measuring.pairwise else 1
        chosen = [] if held is None else held.some(self._spec.eval.answer_rows, group)[::group]
        for index in chosen:
            assert held is not None
            source, number = sources[held.source_name(index)], held[index].row
            exchange = row_exchange(source, number)
            if exchange is not None:
                columns = {str(key): value for key, value in (source.rows[number] or {}).items()}
                found.append(_Row(*exchange, str(source.rows.place(number)), columns))
        if not found:
            raise TrainError(
                "no held-out row is a question with an answer, so no answers can be scored",
                place="eval.metrics",
                fix="give rows of questions and answers (without tools) as `eval: {data: …}`, or drop these metrics",
            )
        self._functions = {name: judge for source in sources.values() for name, judge in source.rewards}
        return found

    def _judged(self, name: str, rows: list[_Row], answers: list[str]) -> dict[str, float]:
        references = [row.reference for row in rows]
        metric = TEXT_METRICS.get(name)
        if metric is not None and metric.of is not None:
            return dict(metric.of(answers, references))
        judge = Judge(name, self._functions[name], _SECONDS, what="metric")
        names = {name for row in rows for name in row.columns}
        columns: dict[str, list[Any]] = {name: [row.columns.get(name) for row in rows] for name in names}
        columns |= {"references": references, PLACE: [row.place for row in rows]}
        for taken in ("prompts", "completions"):
            columns.pop(taken, None)
        found = judge(prompts=[row.asked for row in rows], completions=answers, **columns)
        return {judge.__name__: sum(found) / len(found)}

    def _keeps(self, step: int, emit: Emit, look: Callable[[], None]) -> float:
        rules, kept, lost = self._spec.eval.must_keep, 0, list[str]()
        for number, rule in enumerate(rules):
            answer = self._answer(rule.prompt, look)
            right = bool(rule.pattern().search(answer))
            kept += right
            if step == 0:
                self._kept[number] = right
            if self._kept.get(number) and not right:
                lost.append(f"{shortened(rule.prompt, _SHOWN)!r} → {shortened(answer, _SHOWN)!r}")
        if lost:
            said = f"{len(lost)} of {len(rules)} prompts of `must_keep` are no longer answered right: {lost[0]}"
            fix = "train less (fewer steps, a lower rate), or mix in rows of what is to be kept"
            emit(events.Warning(message=said, fix=fix, step=step))
        return kept / len(rules)

    def _token_accuracy(self, look: Callable[[], None]) -> float:
        """Return the share of the held-out rows' trained tokens that the model holds likeliest."""
        import torch

        from nbtune.data.batching.collate import collate
        from nbtune.train.inputs import model_inputs

        measuring, right, all_of_them = self._measuring, 0, 0
        held, model = measuring.data.eval, measuring.built.model
        training = model.training
        model.eval()
        try:
            with torch.no_grad():
                for index in [] if held is None else held.some(self._spec.eval.max_rows):
                    assert held is not None
                    look()
                    batch = collate(held, [index])  # by itself: all logits of a row are there at once
                    logits = model(**model_inputs(batch, measuring.device, labels=False), use_cache=False).logits
                    labels = batch.labels[:, 1:].to(logits.device)
                    learnt = labels != -100
                    right += int(((logits[:, :-1].argmax(-1) == labels) & learnt).sum())
                    all_of_them += int(learnt.sum())
        finally:
            model.train(training)
        return right / max(1, all_of_them)
