"""The chat: two models answer side by side, token by token; blind votes become a preference set."""

from __future__ import annotations

import itertools
import json
import random
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import traitlets

from nbtune.errors import NbtuneError
from nbtune.widgets.chat_models import Answerers
from nbtune.widgets.panel import Panel
from nbtune.widgets.sanitize import clean

if TYPE_CHECKING:
    from nbtune.engine.run_model import AtStep
    from nbtune.generate.sampling import Token
    from nbtune.store.run_handle import RunHandle

KEPT = 40  # turns that are shown
EVERY = 0.1  # seconds between two messages of new tokens
_SHOWN = 8000
_TEXT = 80  # characters of a token


@dataclass
class _Turn:
    """A question and its two answers; lists are by side."""

    number: int
    prompt: str
    order: list[int]  # the side at each place
    blind: bool
    asked: list[list[dict[str, Any]]] = field(default_factory=list)
    answers: list[str | None] = field(default_factory=lambda: [None, None])
    errors: list[str] = field(default_factory=lambda: ["", ""])
    tokens: list[list[list[Any]]] = field(default_factory=lambda: [[], []])
    limit: int = 0  # tokens
    vote: int | None = None
    stop: threading.Event = field(default_factory=threading.Event)

    def shown(self) -> dict[str, Any]:
        """Return it as the page sees it: while a blind vote is open, it does not say who answered."""
        hidden = self.blind and self.vote is None
        answers = [self.answers[side] for side in self.order]
        return {
            "number": self.number,
            "prompt": clean(self.prompt, _SHOWN),
            "answers": [None if answer is None else clean(answer, _SHOWN) for answer in answers],
            "errors": [self.errors[side] for side in self.order],
            "tokens": [len(self.tokens[side]) for side in self.order],
            "limit": self.limit,
            "cut": [self._is_cut(side) for side in self.order],
            "order": None if hidden else self.order,
            "blind": self.blind,
            "vote": self.vote,
            "stopped": self.stop.is_set(),
        }

    def _is_cut(self, side: int) -> bool:
        """Return whether an answer came to its limit, and not to an end of its own."""
        tokens = self.tokens[side]
        return self.answers[side] is not None and len(tokens) >= self.limit and not tokens[-1][3]


class Chat(Panel):
    """Two models side by side.

    Args:
        run: a run, or a run at a checkpoint (``run.at(100)``); while it trains, the live weights answer at a step
            boundary.
        other: another one to compare with; None: the base model of `run`.
        system: a system prompt for both.

    The page picks others by itself: runs of the same folder, and their checkpoints.

    `preferences` are the votes as rows of prompt, chosen, rejected, each a list of messages (`method: dpo` learns from
    them). Each side has a conversation of its own; in blind turns both go on from the answer that was voted for.
    """

    panel = "chat"
    choices = traitlets.List().tag(sync=True)
    sides = traitlets.List().tag(sync=True)
    turns = traitlets.List().tag(sync=True)
    blind = traitlets.Bool(False).tag(sync=True)
    votes = traitlets.Int(0).tag(sync=True)
    busy = traitlets.Bool(False).tag(sync=True)

    def __init__(self, run: RunHandle | AtStep, other: RunHandle | AtStep | None = None, system: str = "") -> None:
        self._system = [{"role": "system", "content": system}] if system else []
        self._who = Answerers(run, other)
        self.preferences: list[dict[str, Any]] = []
        self._whole: list[_Turn] = []
        self._numbers = itertools.count()
        super().__init__(sides=self._who.sides(), choices=self._who.choices())

    # --- who answers ------------------------------------------------------------------------------------------------

    def do_look(self) -> None:
        """Look which runs and checkpoints there are by now."""
        choices = self._who.choices()
        if choices != self.choices:
            self.choices = choices

    def do_pick(self, side: int, key: str) -> None:
        """Let another one answer on a side, by its key in `choices`; a new conversation begins."""
        if self.busy:
            raise NbtuneError("an answer is still being written", fix="wait for it, or stop it")
        self._who.pick(int(side), str(key))
        self.do_clear()
        self.sides = self._who.sides()

    # --- asking -----------------------------------------------------------------------------------------------------

    def do_ask(self, prompt: str, max_new_tokens: int = 512, temperature: float = 0.0) -> None:
        """Ask both with the same seed; each token comes as it is made."""
        if self.busy:
            raise NbtuneError("an answer is still being written", fix="wait for it, or stop it")
        prompt = str(prompt)
        if not prompt.strip():
            raise NbtuneError("there is nothing to answer")
        turn = _Turn(next(self._numbers), prompt, random.sample((0, 1), 2) if self.blind else [0, 1], self.blind)
        turn.limit = max(1, int(max_new_tokens))
        self.busy = True
        self._whole.append(turn)
        self._show()
        options = {"max_new_tokens": turn.limit, "temperature": float(temperature), "seed": turn.number}
        turn.asked = [self._conversation(side, turn.blind) for side in (0, 1)]
        self.in_background(lambda: self._answer(turn, options), lambda error: self._failed(turn, error))

    def do_stop(self) -> None:
        """End the answers that are being written; what was said of them stays."""
        turn = self._whole[-1] if self._whole else None
        if turn is None or not self.busy:
            return
        turn.stop.set()
        self._leave(turn)

    def _answer(self, turn: _Turn, options: dict[str, Any]) -> None:
        for side in turn.order:
            stream = _Stream(self, turn, side)
            try:
                answer = self._who.ask(side, turn.asked[side], told=stream, should_stop=turn.stop.is_set, **options)
                stream.flush()
            except NbtuneError as error:
                answer = None
                turn.errors[side] = self.words(error)
            if turn.stop.is_set():
                return  # `do_stop` has said so
            turn.answers[side] = answer
            self._show()
        self._leave(turn)

    def _leave(self, turn: _Turn) -> None:
        """End the turn: what has no whole answer has what was said so far."""
        for side in (0, 1):
            if turn.answers[side] is None and turn.tokens[side]:
                turn.answers[side] = "".join(text for text, _, _, special in turn.tokens[side] if not special).strip()
        if self._whole and turn is self._whole[-1]:
            self._show()
            self.busy = False

    def _failed(self, turn: _Turn, error: BaseException) -> None:
        if not turn.stop.is_set():
            turn.errors = [self.words(error)] * 2
            self._leave(turn)

    def _conversation(self, side: int, blind: bool) -> list[dict[str, Any]]:
        """Return what a side is asked: the system prompt, the turns that it knows an answer to, and the last question.

        Both sides of a blind turn are asked the same: a turn before counts with the answer that was voted for.
        """
        messages = list(self._system)
        for turn in self._whole[:-1]:
            side_shown = side if not blind else turn.order[turn.vote] if turn.vote in (0, 1) else None
            answer = None if side_shown is None else turn.answers[side_shown]
            if answer is not None:
                messages += [{"role": "user", "content": turn.prompt}, {"role": "assistant", "content": answer}]
        return [*messages, {"role": "user", "content": self._whole[-1].prompt}]

    def do_tokens(self, turn: int, place: int) -> list[list[Any]]:
        """Return the tokens of the answer at `place` (0 left, 1 right): [text, loss, [[other text, its probability],
        …], special] each."""
        found = self._turn(turn)
        return found.tokens[found.order[int(place)]]

    # --- judging ----------------------------------------------------------------------------------------------------

    def do_vote(self, turn: int, place: int) -> bool:
        """Vote for the answer shown at `place` (0 left, 1 right); 2: neither is better. False: both say the same."""
        voted, answers = self._turn(turn), self._turn(turn).answers
        ready = voted.blind and voted.vote is None and None not in answers and not voted.stop.is_set()
        if not ready or int(place) not in (0, 1, 2):
            raise NbtuneError("there is nothing to vote on")
        voted.vote = int(place)
        if place < 2 and answers[0] != answers[1]:  # of two equal answers there is nothing to learn
            side = voted.order[voted.vote]
            chosen, rejected = ([{"role": "assistant", "content": answers[k]}] for k in (side, 1 - side))
            self.preferences.append({"prompt": voted.asked[side], "chosen": chosen, "rejected": rejected})
            self.votes = len(self.preferences)
        self._show()
        return answers[0] != answers[1]

    def do_save(self, name: str = "preferences.jsonl") -> str:
        """Append the votes to a file in the working folder; return its name."""
        path = Path(Path(name).name).with_suffix(".jsonl")
        with path.open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in self.preferences)
        self.preferences.clear()
        self.votes = 0
        return path.name

    def do_blind(self, on: bool) -> None:
        """Hide and shuffle who answers, from the next question on."""
        self.blind = bool(on)

    def do_clear(self) -> None:
        """Forget the conversation; the votes stay."""
        self.do_stop()
        self._whole = []
        self._show()

    def _turn(self, number: int) -> _Turn:
        found = next((turn for turn in self._whole if turn.number == int(number)), None)
        if found is None:
            raise NbtuneError("that turn is not here any more")
        return found

    def _show(self) -> None:
        self.turns = [turn.shown() for turn in self._whole[-KEPT:]]


class _Stream:
    """Hears the tokens of one answer, and sends them on some at a time."""

    def __init__(self, panel: Chat, turn: _Turn, side: int) -> None:
        self.panel, self.turn, self.place = panel, turn, turn.order.index(side)
        self.tokens, self.sent, self.sent_at = turn.tokens[side], 0, 0.0

    def __call__(self, token: Token) -> None:
        if self.turn.stop.is_set():
            return
        others = [[clean(text, _TEXT), round(share, 5)] for text, share in token.others]
        self.tokens.append([clean(token.text, _TEXT), round(token.loss, 4), others, token.special])
        if time.monotonic() - self.sent_at >= EVERY:
            self.flush()

    def flush(self) -> None:
        """Send what was not sent."""
        new = self.tokens[self.sent :]
        if new and not self.turn.stop.is_set():
            body = {"t": "tokens", "turn": self.turn.number, "place": self.place, "i0": self.sent, "tokens": new}
            self.panel.send(body)
        self.sent, self.sent_at = self.sent + len(new), time.monotonic()
