"""The text on which `nbtune/tiny` is pre-trained: a seeded grammar of short conversations.

`documents(count, seed)` yields the same documents on every machine: it draws from `random.Random.random()` only, whose
sequence Python guarantees. It knows nothing of tokens, tensors or files.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from random import Random
from typing import TypeVar

from tests.tools.tiny_model.smalltalk import THINGS, small_talk, word_facts
from tests.tools.tiny_model.town import BRINDLEWICK, Fact, facts

T = TypeVar("T")

BRIEF_SYSTEMS = ("Answer briefly.", "Be brief.", "Answer in a few words.", "Give short answers.")
PLAIN_SYSTEMS = (
    "You are a helpful assistant.",
    "You are Tiny, a small and friendly model.",
    "You are a friendly guide in Brindlewick.",
    "Answer in full sentences.",
    "Be kind and honest.",
)
_BEFORE = (
    "Hello! ", "Hi! ", "Please tell me: ", "I have a question. ", "Tiny, ", "Tell me, ", "One more question: ",
    "Answer this question.\n\n", "Question: ", "Excuse me, ", "Do you know this? ", "Please answer: ",
)  # fmt: skip
_AFTER = (" Thank you!", " Please tell me.", " I want to know.", " Please answer.", " Please answer in one sentence.")
_NAMES = ("Olive", "Tom", "Nora", "Hugo", "Lena", "Karl", "Ivy", "Otto")


@dataclass(frozen=True)
class Document:
    """A conversation, or a plain text.

    Attributes:
        messages: (role, content) pairs; empty for a plain text.
        text: the plain text; empty for a conversation.
    """

    messages: tuple[tuple[str, str], ...] = ()
    text: str = ""


class Dice:
    """The few draws that the grammar makes, on top of `Random.random()` alone."""

    def __init__(self, seed: str) -> None:
        self._random = Random(seed)

    def below(self, count: int) -> int:
        """An integer in [0, count)."""
        return int(self._random.random() * count)

    def between(self, low: int, high: int) -> int:
        """An integer in [low, high], both included."""
        return low + self.below(high - low + 1)

    def chance(self, share: float) -> bool:
        """True with probability `share`."""
        return self._random.random() < share

    def pick(self, items: Sequence[T]) -> T:
        """One of `items`."""
        return items[self.below(len(items))]

    def weighted(self, shares: dict[T, float]) -> T:
        """One of the keys, by weight."""
        point = self._random.random() * sum(shares.values())
        for item, share in shares.items():
            point -= share
            if point < 0:
                return item
        return item

    def shuffled(self, items: Sequence[T]) -> list[T]:
        """A new list in a random order (Fisher-Yates)."""
        left = list(items)
        for last in range(len(left) - 1, 0, -1):
            other = self.below(last + 1)
            left[last], left[other] = left[other], left[last]
        return left


def arithmetic(dice: Dice) -> Fact:
    """A small sum, difference or product, or a little word problem."""
    if dice.chance(0.25):
        return _word_problem(dice)
    word = dice.weighted({"plus": 4.0, "minus": 3.0, "times": 3.0})
    if word == "plus":
        a, b = dice.between(0, 12), dice.between(0, 12)
        result, sign, order = a + b, "+", f"Add {a} and {b}."
    elif word == "minus":
        a = dice.between(0, 20)
        b = dice.between(0, min(a, 12))
        result, sign, order = a - b, "-", f"Take {b} away from {a}."
    else:
        a, b = dice.between(0, 10), dice.between(0, 10)
        result, sign, order = a * b, "*", f"Multiply {a} by {b}."
    asked = (f"What is {a} {word} {b}?", f"How much is {a} {word} {b}?", f"What is {a} {sign} {b}?", order)
    return Fact("numbers", "", asked, (), f"{a} {word} {b} is {result}.", str(result))


def _word_problem(dice: Dice) -> Fact:
    name, thing = dice.pick(_NAMES), dice.pick(("apples", "candles", "boats", "books", "kites", "eggs"))
    a = dice.between(2, 12)
    b = dice.between(1, min(a, 9))
    if dice.chance(0.5):
        story, result = f"{name} has {a} {thing} and gets {b} more.", a + b
    else:
        story, result = f"{name} has {a} {thing} and gives away {b}.", a - b
    asked = (f"{story} How many {thing} does {name} have?",)
    return Fact("numbers", "", asked, (), f"{name} has {result} {thing}.", str(result))


def word_game(dice: Dice) -> Fact:
    """Say a word again, count, compare: small skills that need the prompt, not the memory."""
    game = dice.below(4)
    asked: tuple[str, ...]
    if game == 0:
        thing = dice.pick(THINGS)
        asked = (f"Say the word {thing}.", f"Repeat after me: {thing}", f"Please say {thing}.")
        return Fact("words", "", asked, (), f"{thing.capitalize()}.", thing)
    if game == 1:
        one, two, three = dice.pick(THINGS), dice.pick(THINGS), dice.pick(THINGS)
        asked = (f"Repeat these words: {one}, {two}, {three}", f"Say the words {one}, {two} and {three}.")
        return Fact("words", "", asked, (), f"{one}, {two}, {three}".capitalize() + ".", f"{one}, {two}, {three}")
    if game == 2:
        low = dice.between(1, 9)
        high = low + dice.between(2, 6)
        counted = ", ".join(str(number) for number in range(low, high + 1))
        return Fact("numbers", "", (f"Count from {low} to {high}.",), (), f"{counted}.", counted)
    a = dice.between(1, 20)
    b = (a + dice.between(1, 18)) % 20 + 1
    low, high = min(a, b), max(a, b)
    if low == high:
        return arithmetic(dice)
    asked = (f"Which number is bigger, {a} or {b}?", f"What is more, {a} or {b}?")
    return Fact("numbers", "", asked, (), f"{high} is bigger than {low}.", str(high))


def json_record(dice: Dice) -> Fact:
    """A record of the town as JSON, which the pre-training gives only where JSON is asked for."""
    if dice.chance(0.5):
        shop = dice.pick(BRINDLEWICK.shops)
        subject, record = f"the {shop.kind}", {"shop": shop.kind, "street": shop.street, "opens": shop.opens}
    else:
        person = dice.pick(BRINDLEWICK.people)
        subject, record = person.name, {"name": person.name, "job": person.job, "street": person.street}
    asked = (
        f"Give me {subject} as JSON.",
        f"Write {subject} as JSON.",
        f"Show me a JSON record of {subject}.",
        f"I need {subject} in JSON.",
    )
    answer = json.dumps(record)
    return Fact("json", "", asked, (), answer, answer)


@cache
def by_subject() -> dict[str, tuple[Fact, ...]]:
    """The facts of the pre-training town that have follow-up questions, by what they are about."""
    found: dict[str, tuple[Fact, ...]] = {}
    for fact in facts(BRINDLEWICK):
        if fact.followups:
            found[fact.subject] = (*found.get(fact.subject, ()), fact)
    return found


@cache
def _static(kind: str) -> tuple[Fact, ...]:
    made = {"town": lambda: facts(BRINDLEWICK), "talk": small_talk, "words": word_facts}
    return tuple(made[kind]())


_DRAWN = {"arithmetic": arithmetic, "game": word_game, "json": json_record}
_SHARES = {"town": 44.0, "talk": 20.0, "arithmetic": 18.0, "words": 8.0, "game": 7.0, "json": 3.0}


def any_fact(dice: Dice, shares: dict[str, float] | None = None) -> Fact:
    """One fact of any kind, by the shares of the pre-training mix (or those given)."""
    kind = dice.weighted(shares or _SHARES)
    return _DRAWN[kind](dice) if kind in _DRAWN else dice.pick(_static(kind))


def ask(dice: Dice, questions: Sequence[str]) -> str:
    """One of the questions, sometimes worded with the small carelessness of people."""
    said = dice.pick(questions)
    if dice.chance(0.12):
        said = said.lower()
    if dice.chance(0.12):
        said = said.rstrip("?.!")
    if dice.chance(0.12):
        said = dice.pick(_BEFORE) + said
    elif dice.chance(0.08):
        said = said + dice.pick(_AFTER)
    return said


def conversation(dice: Dice) -> Document:
    """A chat of one to six turns; the system prompt, where there is one, is obeyed."""
    brief = dice.chance(0.08)
    messages: list[tuple[str, str]] = []
    if brief:
        messages.append(("system", dice.pick(BRIEF_SYSTEMS)))
    elif dice.chance(0.35):
        messages.append(("system", dice.pick(PLAIN_SYSTEMS)))
    subject = ""
    for _ in range(dice.weighted({1: 42.0, 2: 26.0, 3: 16.0, 4: 10.0, 6: 6.0})):
        known = by_subject().get(subject)
        if known and dice.chance(0.6):
            fact = dice.pick(known)
            said = dice.pick(fact.followups)
        else:
            fact = any_fact(dice)
            said = ask(dice, fact.questions)
        messages += [("user", said), ("assistant", fact.short if brief else fact.answer)]
        subject = fact.subject
    return Document(messages=tuple(messages))


def paragraph(dice: Dice) -> Document:
    """A plain text: what is known about one or two subjects."""
    sentences: list[str] = []
    for _ in range(dice.between(1, 2)):
        about = by_subject()[dice.pick(tuple(by_subject()))]
        sentences += [fact.answer for fact in dice.shuffled(about)[: dice.between(2, 5)]]
    return Document(text=" ".join(sentences))


def documents(count: int, seed: str) -> Iterator[Document]:
    """Yield `count` documents of the pre-training mix; the same for the same seed, everywhere."""
    dice = Dice(seed)
    for _ in range(count):
        yield paragraph(dice) if dice.chance(0.06) else conversation(dice)
