"""The answers that are compared, with their rewards: now and then a group of them is told, to be looked at."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

from nbtune import events
from nbtune.engine.judges import said_text
from nbtune.untrusted import shortened

_OFTEN = 2.0  # seconds between two groups that are told
_ANSWERS, _LETTERS = 16, 400  # of a group, and of each

Judges = Callable[..., list[float]]


class Groups:
    """Judges that remember the last group which all of them have judged.

    Args:
        judges: functions and reward models, as TRL calls them.
        size: answers of a group.
    """

    def __init__(self, judges: Sequence[Judges], size: int) -> None:
        self.judges = [_Remembering(judge, self) for judge in judges]
        self._size, self._told_at = size, float("-inf")
        self._asked, self._said = "", list[str]()
        self._rewards: dict[int, list[float]] = {}

    def judged(self, judge: Any, prompts: Sequence[Any], completions: Sequence[Any], rewards: list[float]) -> None:
        """Keep what a judge says of the first group of a step."""
        said = [shortened(said_text(one), _LETTERS) for one in completions[: self._size]]
        asked = shortened(said_text(prompts[0]), _LETTERS)
        if (asked, said) != (self._asked, self._said):
            self._asked, self._said, self._rewards = asked, said, {}
        self._rewards[id(judge)] = rewards[: self._size]

    def tell(self, step: int, emit: Callable[[events.Event], None]) -> None:
        """Say the last group, not too often."""
        now = time.monotonic()
        if len(self._rewards) < len(self.judges) or now - self._told_at < _OFTEN:
            return
        rewards = [float(sum(each)) for each in zip(*self._rewards.values(), strict=True)]
        best = sorted(zip(rewards, self._said, strict=True), key=lambda both: -both[0])
        shown = best if len(best) <= _ANSWERS else [*best[: _ANSWERS // 2], *best[-_ANSWERS // 2 :]]
        answers, values = tuple(text for _, text in shown), tuple(reward for reward, _ in shown)
        emit(events.Group(step=step, prompt=self._asked, answers=answers, rewards=values))
        self._told_at, self._rewards = now, {}


class _Remembering:
    def __init__(self, judge: Judges, groups: Groups) -> None:
        self.__name__, self._judge, self._groups = judge.__name__, judge, groups

    def __call__(self, *, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float]:
        rewards = self._judge(prompts=prompts, completions=completions, **columns)
        self._groups.judged(self._judge, prompts, completions, rewards)
        return rewards
