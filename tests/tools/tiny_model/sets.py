"""Writes the small training sets of `nbtune/data/embedded` from the same grammar.

    python -m tests.tools.tiny_model.sets

Each set visibly changes the answers of `nbtune/tiny`: a JSON answer format, a pirate's voice, a town which the model
has never heard of, and a friendly manner preferred to a grumpy one. Prompts of a `*.heldout.jsonl` file never occur in
the set beside it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

from nbtune.data.sources import builtin
from tests.tools.tiny_model.grammar import Dice, any_fact
from tests.tools.tiny_model.town import HOLLOWMERE, Fact, facts

_SHARES = {"town": 66.0, "talk": 12.0, "arithmetic": 16.0, "words": 6.0}
_JSON_ASKS = (
    "{question} Answer as JSON with the keys answer and topic.",
    "Answer as JSON with the keys answer and topic: {question}",
    "{question} Reply in JSON (answer, topic).",
)
_HELD_OUT = 60
_PIRATE_WORDS = {"is": "be", "are": "be", "am": "be", "you": "ye", "your": "yer", "my": "me", "You": "Ye", "My": "Me"}
_PIRATE_FRAMES = {
    "shops": ("Arr! ", ", matey!"),
    "places": ("Arr! ", ", by the seven seas!"),
    "people": ("Aye! ", ", as sure as the tide!"),
    "numbers": ("Yo ho ho! ", ", says me parrot!"),
    "words": ("Yo ho ho! ", ", matey!"),
    "talk": ("Ahoy! ", ", matey!"),
}

Pair = tuple[str, Fact]


def pairs(dice: Dice, count: int) -> list[Pair]:
    """`count` different questions, each with the fact that answers it."""
    found: dict[str, Fact] = {}
    while len(found) < count:
        fact = any_fact(dice, _SHARES)
        found.setdefault(dice.pick(fact.questions), fact)
    return list(found.items())


def json_answer(fact: Fact) -> str:
    """The asked shape: `{"answer": ..., "topic": ...}`."""
    return json.dumps({"answer": fact.answer, "topic": fact.topic}, ensure_ascii=False)


def pirate(fact: Fact) -> str:
    """The fact's answer in the voice of a pirate."""
    before, after = _PIRATE_FRAMES[fact.topic]
    words = re.sub(r"\b\w+\b", lambda word: _PIRATE_WORDS.get(word[0], word[0]), fact.answer)
    return before + re.sub(r"[.!?]$", "", words) + after


def json_answers() -> dict[str, list[dict[str, Any]]]:
    """Alpaca form: question → a JSON object of the asked shape."""
    dice = Dice("nbtune/json-answers")
    rows = [
        {"instruction": dice.pick(_JSON_ASKS).format(question=said), "input": "", "output": json_answer(fact)}
        for said, fact in pairs(dice, 800 + _HELD_OUT)
    ]
    held_out = [
        {"prompt": row["instruction"], "reference": row["output"], "keys": ["answer", "topic"]}
        for row in rows[:_HELD_OUT]
    ]
    return {"json-answers.jsonl": rows[_HELD_OUT:], "json-answers.heldout.jsonl": held_out}


def persona() -> dict[str, list[dict[str, Any]]]:
    """ShareGPT form: the usual questions, answered by a pirate; one or two turns."""
    dice = Dice("nbtune/persona")
    asked = pairs(dice, 800 + _HELD_OUT)
    held_out = [{"prompt": said, "reference": pirate(fact)} for said, fact in asked[:_HELD_OUT]]
    rows: list[dict[str, Any]] = []
    left = asked[_HELD_OUT:]
    while left:
        turns, left = (left[:2], left[2:]) if dice.chance(0.3) else (left[:1], left[1:])
        said = [
            ({"from": "human", "value": question}, {"from": "gpt", "value": pirate(fact)}) for question, fact in turns
        ]
        rows.append({"conversations": [message for turn in said for message in turn]})
    return {"persona.jsonl": rows, "persona.heldout.jsonl": held_out}


def town() -> dict[str, list[dict[str, Any]]]:
    """OpenAI messages, multi-turn with a system prompt: the town of Hollowmere, which the pre-training left out."""
    dice = Dice("nbtune/town")
    known = facts(HOLLOWMERE)
    system = {"role": "system", "content": "You are the guide of Hollowmere."}
    rows: list[dict[str, Any]] = []
    while len(rows) < 500:
        fact = dice.pick(known)
        said = dice.pick(fact.questions)
        messages = [system, *_turn(said, fact)]
        same = [other for other in known if other.subject == fact.subject and other.followups and other is not fact]
        for other in dice.shuffled(same)[: dice.between(0, 2)]:
            messages += _turn(dice.pick(other.followups), other)
        rows.append({"messages": messages})
    return {"town.jsonl": rows}


def _turn(said: str, fact: Fact) -> list[dict[str, str]]:
    return [{"role": "user", "content": said}, {"role": "assistant", "content": fact.answer}]


def preferences() -> dict[str, list[dict[str, Any]]]:
    """Prompt, chosen, rejected: friendly and right before grumpy or wrong."""
    dice = Dice("nbtune/preferences")
    asked = pairs(dice, 500)
    rows = []
    for said, fact in asked:
        wrong = dice.pick(asked)[1].answer
        grumpy = dice.pick(("Why do you ask me? ", "Find it out alone. ", "Not you again. ")) + fact.answer
        rejected = wrong if dice.chance(0.4) and wrong != fact.answer else grumpy
        rows.append({"prompt": said, "chosen": f"{fact.answer} I am happy to help!", "rejected": rejected})
    return {"preferences.jsonl": rows}


_MAKERS: tuple[Callable[[], dict[str, list[dict[str, Any]]]], ...] = (json_answers, persona, town, preferences)


def files() -> dict[str, str]:
    """File name → its whole text, for every set and every held-out file."""
    made = {name: rows for maker in _MAKERS for name, rows in maker().items()}
    return {name: "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows) for name, rows in made.items()}


def main() -> None:
    """Write every file into `nbtune/data/embedded`."""
    for name, text in files().items():
        target = builtin.folder() / name
        target.write_text(text, encoding="utf-8")
        print(f"{name}: {text.count(chr(10))} rows, {len(text.encode()) / 1024:.0f} KB")


if __name__ == "__main__":
    main()
