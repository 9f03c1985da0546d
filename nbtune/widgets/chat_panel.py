"""The chat: the base model and the tuned one answer side by side; blind votes become a preference set."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import traitlets

from nbtune.errors import NbtuneError
from nbtune.widgets.panel import Panel
from nbtune.widgets.plain import clean

__all__ = ["Chat"]

KEPT = 40  # turns that are shown
_SHOWN = 8000


class Chat(Panel):
    """Two models side by side, each with its own conversation.

    Args:
        run: a run; while it trains, the live weights answer at a step boundary.
        other: another run to compare with; None: the base model.
        system: a system prompt for both.

    `preferences` are the votes as rows of prompt, chosen, rejected (`method: dpo` learns from them).
    """

    panel = "chat"
    sides = traitlets.List().tag(sync=True)
    turns = traitlets.List().tag(sync=True)
    blind = traitlets.Bool(False).tag(sync=True)
    votes = traitlets.Int(0).tag(sync=True)
    busy = traitlets.Bool(False).tag(sync=True)

    def __init__(self, run: Any, other: Any = None, system: str = "") -> None:
        self._asking = threading.Lock()
        self._system = [{"role": "system", "content": system}] if system else []
        tuned = clean(run.name, 100)
        self._answerers: list[Callable[..., str]] = [_answerer(other or run, base=other is None), _answerer(run)]
        self.preferences: list[dict[str, Any]] = []
        self._whole: list[dict[str, Any]] = []  # the turns, uncut
        names = ["base" if other is None else clean(other.name, 100), tuned]
        super().__init__(sides=[{"name": name, "base": other is None and k == 0} for k, name in enumerate(names)])

    def do_ask(self, prompt: str, max_new_tokens: int = 128, temperature: float = 0.0) -> None:
        """Asks both; the answers come as they are ready."""
        if self.busy:
            raise NbtuneError("an answer is still being written", fix="wait for it")
        prompt = str(prompt)
        if not prompt.strip():
            raise NbtuneError("there is nothing to answer")
        order = random.sample((0, 1), 2) if self.blind else [0, 1]
        turn = {"prompt": prompt, "answers": [None, None], "errors": ["", ""], "order": order, "vote": None}
        self.busy = True
        self._whole = [*self._whole, turn | {"blind": self.blind}]
        self._show()
        options = {"max_new_tokens": int(max_new_tokens), "temperature": float(temperature)}
        self.in_background(lambda: self._answer(options), self._failed)

    def _answer(self, options: dict[str, Any]) -> None:
        turn = self._whole[-1]
        try:
            for side in turn["order"]:
                try:
                    turn["answers"][side] = self._answerers[side](self._conversation(side), **options)
                except NbtuneError as error:
                    turn["errors"][side] = self.words(error)
                self._show()
        finally:
            self.busy = False

    def _conversation(self, side: int) -> list[dict[str, Any]]:
        messages = list(self._system)
        for turn in self._whole:
            messages.append({"role": "user", "content": turn["prompt"]})
            if turn["answers"][side] is not None:
                messages.append({"role": "assistant", "content": turn["answers"][side]})
        return messages

    def _failed(self, error: BaseException) -> None:
        self._whole[-1]["errors"] = [self.words(error)] * 2
        self._show()

    def do_vote(self, turn: int, place: int) -> None:
        """The answer shown at `place` (0 left, 1 right) is the better one; 2: neither."""
        voted = self._whole[int(turn)]
        if voted["vote"] is not None or None in voted["answers"]:
            raise NbtuneError("there is nothing to vote on")
        voted["vote"] = int(place)
        if place < 2:
            side = voted["order"][place]
            answers = voted["answers"]
            row = {"prompt": voted["prompt"], "chosen": answers[side], "rejected": answers[1 - side]}
            self.preferences.append(row)
            self.votes = len(self.preferences)
        self._show()

    def do_save(self, name: str = "preferences.jsonl") -> str:
        """Appends the votes to a file in the working folder; returns its name."""
        path = Path(Path(name).name).with_suffix(".jsonl")
        with path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in self.preferences)
        self.preferences.clear()
        self.votes = 0
        return path.name

    def do_blind(self, on: bool) -> None:
        """Hides and shuffles who answers, from the next question on."""
        self.blind = bool(on)

    def do_clear(self) -> None:
        """Forgets the conversation; the votes stay."""
        self._whole = []
        self._show()

    def _show(self) -> None:
        first = max(0, len(self._whole) - KEPT)
        self.turns = [{"number": first + k, **_shown(turn)} for k, turn in enumerate(self._whole[first:])]


def _answerer(run: Any, *, base: bool = False) -> Callable[..., str]:
    def answer(messages: list[dict[str, Any]], **options: Any) -> str:
        return str(run.generate(messages, base=base, **options))

    return answer


def _shown(turn: dict[str, Any]) -> dict[str, Any]:
    """A turn as the page sees it: while a blind vote is open, it does not say who answered."""
    hidden = turn["blind"] and turn["vote"] is None
    answers = [turn["answers"][side] for side in turn["order"]]
    return {
        "prompt": clean(turn["prompt"], _SHOWN),
        "answers": [None if answer is None else clean(answer, _SHOWN) for answer in answers],
        "errors": [turn["errors"][side] for side in turn["order"]],
        "order": None if hidden else turn["order"],
        "blind": turn["blind"],
        "vote": turn["vote"],
    }
