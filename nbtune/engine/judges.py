"""Reward functions as TRL calls them: what a user's code does wrong is said by row and reason, and it may not hang.

A function is called with texts, ``good(completions=[…], prompts=[…], <the rows' columns>=[…])``, as much of it as it
takes, and returns a number for each completion.
"""

from __future__ import annotations

import inspect
import math
import threading
from collections.abc import Callable, Sequence
from typing import Any

from nbtune.errors import TrainError
from nbtune.untrusted import shortened

PLACE = "nbtune_row"  # the column that says where a row stands
_FIX = "mend the function, and start again; or `resume`, which goes on from the last checkpoint with the one it has"
_SHOWN = 80  # characters of an answer


class Judge:
    """One reward function.

    Args:
        name: its own.
        function: the user's.
        seconds: how long a call may take.
        what: what it is called in errors.
    """

    def __init__(self, name: str, function: Callable[..., Any], seconds: float, what: str = "reward function") -> None:
        self._what = what
        self.__name__, self._function, self._seconds = name.rpartition(":")[2].rpartition(".")[2], function, seconds
        self._takes = _names(function)

    def __call__(self, *, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float]:
        """Return a reward for each completion.

        Raises:
            TrainError: it raised, took too long, or gave other than a number each.
        """
        places = columns.pop(PLACE, ["a row"] * len(completions))
        given = {"prompts": [said_text(one) for one in prompts], "completions": [said_text(one) for one in completions]}
        given |= {key: value for key, value in columns.items() if isinstance(value, list)}
        rewards = self._called(given, places)
        if not isinstance(rewards, Sequence) and hasattr(rewards, "tolist"):
            rewards = rewards.tolist()
        if not isinstance(rewards, Sequence) or isinstance(rewards, str) or len(rewards) != len(completions):
            what = f"{len(rewards)} rewards" if isinstance(rewards, Sequence) else f"a {type(rewards).__name__}"
            raise self._wrong(f"returned {what} for {len(completions)} completions", places[0])
        return [self._number(*both) for both in zip(rewards, places, given["completions"], strict=True)]

    def _number(self, reward: Any, place: str, answer: str) -> float:
        try:
            number = float(reward)
        except (TypeError, ValueError):
            raise self._wrong(f"gave {shortened(repr(reward), 40)}, no number", place, answer) from None
        if not math.isfinite(number):
            raise self._wrong(f"gave {number}", place, answer)
        return number

    def _called(self, given: dict[str, list[Any]], places: Sequence[str]) -> Any:
        try:
            return self._within(given, places)
        except TrainError:
            raise
        except Exception as error:
            for k, place in enumerate(places):  # which of them it was
                try:
                    self._within({key: value[k : k + 1] for key, value in given.items()}, [place])
                except TrainError:
                    raise
                except Exception as alone:
                    raise self._raised(alone, place, given["completions"][k]) from alone
            raise self._raised(error, f"{places[0]} and others of its step") from error

    def _raised(self, error: Exception, place: str, answer: str = "") -> TrainError:
        return self._wrong(f"raised {type(error).__name__}: {shortened(error, 120)}", place, answer)

    def _within(self, given: dict[str, list[Any]], places: Sequence[str]) -> Any:
        """Call it in a thread that is not waited for longer than the limit."""
        taken = given if self._takes is None else {key: given[key] for key in self._takes if key in given}
        found: list[Any] = []
        failed: list[BaseException] = []

        def call() -> None:
            try:
                found.append(self._function(**taken))
            except BaseException as error:  # noqa: BLE001 — the user's code may raise anything; it is raised again below
                failed.append(error)

        thread = threading.Thread(target=call, name=f"nbtune-reward-{self.__name__}", daemon=True)
        thread.start()
        thread.join(self._seconds)
        if thread.is_alive():
            raise self._wrong(f"took more than {self._seconds:g} s", places[0])
        if failed:
            error = failed[0]
            raise error if isinstance(error, Exception) else RuntimeError(f"it ended by {type(error).__name__}")
        return found[0]

    def _wrong(self, what: str, place: str, answer: str = "") -> TrainError:
        said = f" (the answer was {shortened(answer, _SHOWN)!r})" if answer else ""
        return TrainError(f"the {self._what} `{self.__name__}` {what}{said}", place=place, fix=_FIX)


def _names(function: Callable[..., Any]) -> list[str] | None:
    """Return which arguments a function takes by name; None: any."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return None
    if any(one.kind is one.VAR_KEYWORD for one in parameters):
        return None
    return [one.name for one in parameters if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY)]


def said_text(said: Any) -> str:
    """Return a prompt or an answer as text: of messages the last one's."""
    if isinstance(said, str):
        return said
    return str(said[-1].get("content") or "") if said else ""
