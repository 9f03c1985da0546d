"""Questions of a trainer's own rows, asked now and then while it trains, as `nbtune.engine.held_prompts` does in ours.

What nobody asked for must not cost: at most once a minute, and less than half a percent of the time. What it costs is
found out by a few words first, since on a slow machine the very first answers can take a tenth of a short training.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

from nbtune import events
from nbtune.errors import NbtuneError
from nbtune.generate import sampling

OFTEN = 60.0  # seconds between two times that nobody asked for
_SHARE = 0.005  # of the time
_ASKED, _LOOKED = 2, 16
_LONGEST = 4000  # characters
_TOKENS = 64
_TRIED = 4  # tokens, by which it is found out what an answer takes
_COLUMNS = ("messages", "conversations", "prompt")


class TrainerPrompts:
    """Ask some prompts.

    Args:
        samples: what the user wants to be asked, before, at each evaluation and at the end; none: two of the rows.
        rows: the trainer's held-out rows, or those that it learns from.
    """

    def __init__(self, samples: tuple[str, ...], rows: Any) -> None:
        self._samples, self._rows = samples, rows
        self._found: list[Any] | None = list(samples) or None
        self._began = self._asked_at = time.monotonic()
        self._spent = 0.0
        self._cost: float | None = None  # seconds that asking takes; unknown before the first time
        self._failed, self._based = False, bool(samples)  # the user's are asked before anything is learnt

    @property
    def prompts(self) -> list[Any]:
        """The prompts: texts, or messages."""
        if self._found is None:
            self._found = list(islice(_prompts(self._rows), _ASKED))
        return self._found

    def due(self, *, evaluated: bool = False) -> bool:
        """Return whether they are to be asked now, without anybody's wish."""
        if self._failed:
            return False
        if self._samples:
            return evaluated
        return time.monotonic() - self._asked_at >= OFTEN and self._cheap()

    def _cheap(self) -> bool:
        return self._spent + (self._cost or 0.0) <= _SHARE * (time.monotonic() - self._began)

    def answers(
        self, model: Any, tokenizer: Any, step: int, ends: Callable[[], bool], *, wished: bool = False
    ) -> Iterator[events.Sample]:
        """Yield the answers; with them, once, what the base says to rows (as of step 0).

        Rows that nobody wished to be asked are left until they are cheap.
        """
        began = time.monotonic()
        how: dict[str, Any] = {"max_new_tokens": _TOKENS, "should_stop": ends}
        try:
            if not (wished or self._samples or self._cost is not None):
                self._cost = self._try(model, tokenizer, ends)
                self._spent += time.monotonic() - began
                began = time.monotonic()
                if not self._cheap():
                    return
            for prompt in self.prompts:
                asked = prompt if isinstance(prompt, str) else str(prompt[-1]["content"])
                if not self._based and step and hasattr(model, "disable_adapter"):
                    base = sampling.marked_answer(model, tokenizer, prompt, adapter=False, **how)
                    yield events.Sample(step=0, prompt=asked, answer=base)
                answer = sampling.marked_answer(model, tokenizer, prompt, **how)
                yield events.Sample(step=step, prompt=asked, answer=answer)
            self._based = True
        except (NbtuneError, RuntimeError, ValueError, TypeError, AttributeError, KeyError):  # no model that writes
            self._failed = True
        self._asked_at = time.monotonic()
        self._cost = self._asked_at - began
        self._spent += self._cost

    def _try(self, model: Any, tokenizer: Any, ends: Callable[[], bool]) -> float:
        """Return how many seconds all answers may take, by the first words of one."""
        told, began = [], time.monotonic()
        for prompt in self.prompts[:1]:
            sampling.answer(
                model, tokenizer, prompt, max_new_tokens=_TRIED, should_stop=ends,
                told=lambda _: told.append(time.monotonic()),
            )  # fmt: skip
        if not told:
            return time.monotonic() - began
        first, each = told[0] - began, (told[-1] - told[0]) / max(1, len(told) - 1)
        answers = len(self.prompts) * (1 if self._based or not hasattr(model, "disable_adapter") else 2)
        return answers * (first + (_TOKENS - 1) * (each or first))


def _prompts(rows: Any) -> Iterator[Any]:
    """Yield what some rows ask: messages, or a text."""
    if isinstance(rows, Mapping):
        rows = next(iter(rows.values()), None)
    for row in islice(_first(rows), _LOOKED):
        prompt = _prompt_of(row)
        if prompt and len(prompt if isinstance(prompt, str) else str(prompt[-1]["content"])) <= _LONGEST:
            yield prompt


def _first(rows: Any) -> Iterable[Any]:
    """Return rows that can be read again: of a stream none, whose first rows would be gone."""
    return (
        (rows[k] for k in range(min(_LOOKED, len(rows)))) if hasattr(rows, "__getitem__") and rows is not None else ()
    )


def _prompt_of(row: Any) -> Any:
    if not isinstance(row, Mapping):
        return None
    value = next((row[name] for name in _COLUMNS if row.get(name)), None)
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not all(isinstance(one, Mapping) and "role" in one for one in value):
        return None
    messages = [{key: one[key] for key in ("role", "content")} for one in value if isinstance(one.get("content"), str)]
    last = max((k for k, one in enumerate(messages) if one["role"] == "assistant"), default=len(messages))
    return messages[:last] if len(messages) == len(value) else None
