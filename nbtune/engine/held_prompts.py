"""Questions of held-out rows, for a run whose spec has no sample prompts: asked now and then while it trains.

Beside the first answers stand the base's, so that the change is seen. What is asked by default must not cost a run
much, nor end it: it is asked at most once a minute (of weights that travel for each word only where somebody wishes
it), an answer is left where it takes long, and none is wanted any more after one that failed.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nbtune import events
from nbtune.errors import NbtuneError
from nbtune.generate import sampling

if TYPE_CHECKING:
    from nbtune.data import Prepared

OFTEN = 60.0  # seconds between two times that nobody asked for
LONG = 2.0  # seconds after which an answer that nobody asked for ends
_ASKED = 2
_LOOKED = 16  # rows among which they are found
_LONGEST = 4000  # characters
_TOKENS = 64


class HeldPrompts:
    """Ask two held-out rows.

    Args:
        folder: the run's.
        data: its rows.
        wished: how often samples were wished until now.
        unasked: they are also asked where nobody wishes it.
    """

    def __init__(self, folder: Path, data: Prepared, wished: Callable[[], int], *, unasked: bool = True) -> None:
        self._folder, self._data, self._wished, self._unasked = folder, data, wished, unasked
        self._granted, self._asked_at = wished(), time.monotonic()
        self._prompts: list[list[dict[str, Any]]] | None = None
        self._based = self._failed = False

    def answers(
        self, model: Any, tokenizer: Any, step: int, should_stop: Callable[[], bool]
    ) -> Iterator[events.Sample]:
        """Yield answers where they are due or wished; the first time the base's, too, as of step 0."""
        wished, now = self._wished(), time.monotonic()
        due = self._unasked and now - self._asked_at >= OFTEN
        if self._failed or (wished == self._granted and not due):
            return
        longest = LONG if wished == self._granted else math.inf
        self._granted = wished
        try:
            for messages in self._found():
                ask = partial(_ask, model, tokenizer, messages, longest, should_stop)
                asked = str(messages[-1]["content"])
                if not self._based and step and hasattr(model, "disable_adapter"):
                    yield events.Sample(step=0, prompt=asked, answer=ask(adapter=False))
                yield events.Sample(step=step, prompt=asked, answer=ask())
            self._based = True
        except (NbtuneError, RuntimeError, ValueError, TypeError):  # it was nobody's wish
            self._failed = True
        self._asked_at = time.monotonic()

    def _found(self) -> list[list[dict[str, Any]]]:
        if self._prompts is None:
            self._prompts = self._look()
        return self._prompts

    def _look(self) -> list[list[dict[str, Any]]]:
        from nbtune import data
        from nbtune.store.row_losses import row_exchange

        held, found = self._data.eval, list[list[dict[str, Any]]]()
        if held is None:
            return found
        sources = {source.name: source for source in data.open_snapshot(self._folder / "data")}
        for index in held.some(_LOOKED):
            messages, _ = row_exchange(sources[held.source_name(index)], held[index].row) or (None, "")
            if messages and isinstance(said := messages[-1].get("content"), str) and 0 < len(said) <= _LONGEST:
                found.append(messages)
            if len(found) == _ASKED:
                break
        return found


def _ask(
    model: Any,
    tokenizer: Any,
    messages: list[dict[str, Any]],
    longest: float,
    should_stop: Callable[[], bool],
    adapter: bool = True,
) -> str:
    """Return an answer, or what of it was said in so many seconds."""
    end = time.monotonic() + longest
    how: dict[str, Any] = {"should_stop": lambda: should_stop() or time.monotonic() >= end, "adapter": adapter}
    return sampling.marked_answer(model, tokenizer, messages, max_new_tokens=_TOKENS, **how)
