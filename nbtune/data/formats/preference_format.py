"""Rows that judge: a better and a worse answer, an answer and whether it is good, steps and which of them are right.

Such a row becomes `Several`: texts that belong together, each with what was judged of it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nbtune.data.formats.messages import Chat, Keys, messages_of, tools_of
from nbtune.data.formats.reader import Columns, Format, Parts, Reader, there
from nbtune.data.formats.values import Row, is_missing, optional, plainly, string
from nbtune.errors import DataError

_YES, _NO = {"true", "yes", "good", "1", "+1", "chosen"}, {"false", "no", "bad", "0", "-1", "rejected"}
JUDGED, JUDGED_ANSWERS = ("label", "kto_tag", "rating"), ("completion", "response", "output", "answer")
ASKED = ("prompt", "instruction", "question", "query", "problem", "input")
_SCORE, _CHOSEN = re.compile(r"score|rating|reward|grade", re.IGNORECASE), re.compile("chosen", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Several:
    """What becomes of one row: texts, and a value each (1 better or good, 0 worse or bad; of a better one with the
    margin by which it is, if the row says it).

    `steps`: for each stretch of the (only) text that is trained, whether it is right, or its label; none for other
    kinds.
    `label`: what the (only) text is called.
    `doubted`: the row's own scores say the opposite.
    """

    rows: tuple[Chat | Parts, ...]
    values: tuple[float, ...]
    steps: tuple[bool | str, ...] = ()
    label: str | None = None
    doubted: bool = False

    def judged(self, labels: Sequence[str]) -> tuple[float, ...]:
        """Return what was judged of each text: of one with a label its number; 0 where nobody has named the labels yet,
        because only lengths are asked.

        Raises:
            DataError: its label is none of those.
        """
        return self.values if self.label is None else (_number_of(self.label, labels),)

    def judged_steps(self, labels: Sequence[str]) -> tuple[float, ...]:
        """Return what was judged of each stretch, likewise."""
        return tuple(_number_of(step, labels) if isinstance(step, str) else float(step) for step in self.steps)


def _number_of(label: str, labels: Sequence[str]) -> float:
    if labels and label not in labels:
        raise DataError(
            f"its label {label!r:.60} is none of {', '.join(labels[:8])}{' …' * (len(labels) > 8)}",
            fix="correct it, or name it among `labels`",
        )
    return float(labels.index(label)) if labels else 0.0


def pairs_format(columns: Columns) -> Format:
    """Return a better and a worse answer: `prompt`, `chosen`, `rejected`, each text or messages; without `prompt` what
    both conversations begin with; Axolotl's `chosen_response` and LLaMA-Factory's `conversations` too. `margin`: by how
    much the one is better, for a reward model."""
    chosen = columns.need("chosen", ("chosen", "chosen_response"))
    rejected = columns.need("rejected", ("rejected", "rejected_response"))
    prompt = columns.may("prompt", (*ASKED, "conversations", "messages"))
    system, tools, more = columns.system, columns.tools, columns.may("input", ("input",))
    more, margin = None if more == prompt else more, columns.may("margin", ("margin",))
    keys, plain, scores = Keys.of(columns.given), columns.style == "plain", _scores(columns.names)

    def read(row: Row) -> Several:
        question = _question(row, prompt, more, system, keys)
        answers = [_answer(row, column, keys) for column in (chosen, rejected)]
        if question is None:
            question, answers = _shared(answers, (chosen, rejected))
            question = _instructed(question, optional(row, system)) if question else question
        answers = [_behind(question, answer) for answer in answers]
        texts = [_joined(question, answer, row.get(tools) if tools else None, plain) for answer in answers]
        doubted = scores is not None and _is_less(row.get(scores[0]), row.get(scores[1]))
        return Several(tuple(texts), (1.0 + _margin(row, margin), 0.0), doubted=doubted)

    mapping = there({"prompt": prompt, "chosen": chosen, "rejected": rejected, "system": system, "tools": tools})
    mapping |= there({"input": more, "margin": margin})
    return Format(f"preference{':plain' * plain}", mapping, read, "pairs")


def feedback_format(columns: Columns) -> Format:
    """Return an answer and whether it is good: `prompt`, `completion`, `label`; messages whose last one is judged."""
    label = columns.need("label", JUDGED)
    answer = columns.may("completion", JUDGED_ANSWERS)
    prompt = columns.may("prompt", (*ASKED, "messages", "conversations"))
    if prompt is None and answer is None:
        prompt = columns.need("prompt", ASKED)
    system, tools, more = columns.system, columns.tools, columns.may("input", ("input",))
    more = None if more == prompt else more
    keys, plain = Keys.of(columns.given), columns.style == "plain"

    def read(row: Row) -> Several:
        good = _truth(row.get(label), label)
        question = _question(row, prompt, more, system, keys) or []
        answer_said = [] if answer is None or row.get(answer) is None else _behind(question, _answer(row, answer, keys))
        if prompt is None and len(answer_said) > 1:
            answer_said = _instructed(answer_said, optional(row, system))
        talk = [*question, *answer_said]  # the last message is judged
        if answer is not None and not answer_said:
            raise DataError(f"it has no `{answer}` that could be judged", fix="give the answer, or leave the row out")
        if not answer_said and talk[-1]["role"] == "user":
            raise DataError(
                f"no answer stands in `{prompt}`, whose last message is the user's",
                fix="end it with the answer that is judged, or name the answers' column: `columns: {completion: …}`",
            )
        question, answer_said = (question, answer_said) if prompt and answer_said else (talk[:-1], talk[-1:])
        return Several((_joined(question, answer_said, row.get(tools) if tools else None, plain),), (float(good),))

    mapping = there({"prompt": prompt, "completion": answer, "label": label, "system": system, "tools": tools})
    mapping |= there({"input": more})
    return Format(f"feedback{':plain' * plain}", mapping, read, "feedback")


def stepwise_format(columns: Columns) -> Format:
    """Return a problem, steps, and which of them are right: `prompt`, `completions`, `labels`. Text without a template;
    a line break ends each step and carries its label."""
    prompt = columns.need("prompt", ASKED)
    steps, labels = columns.need("completions", ("completions", "steps")), columns.need("labels", ("labels", "ratings"))

    def read(row: Row) -> Several:
        texts, truths = row.get(steps), row.get(labels)
        if not isinstance(texts, list) or not texts or not all(isinstance(t, str) for t in texts):
            raise DataError(f"`{steps}` must be a list of texts", fix="give each step its text")
        if not isinstance(truths, list) or len(truths) != len(texts):
            raise DataError(f"`{labels}` must have one label a step ({len(texts)})", fix="label every step")
        if not all(text.strip("\r\n") for text in texts):
            raise DataError(
                "its steps cannot be told apart: one of them is empty, or nothing but line breaks",
                fix="leave such steps out, with their labels",
            )
        parts = [(string(row, prompt, "prompt"), False)]
        for text in texts:
            parts += [(text, False), ("\n", True)]
        truth = tuple(_truth(t, labels) for t in truths)
        return Several((Parts(tuple(p for p in parts if p[0]), ends=False),), (float(all(truth)),), truth)

    return Format("stepwise", {"prompt": prompt, "completions": steps, "labels": labels}, read, "stepwise")


def prompts_format(columns: Columns) -> Format:
    """Return prompts alone, for methods that answer themselves; other columns are for the rewards."""
    prompt = columns.need("prompt", (*ASKED, "messages", "conversations"))
    system, tools, keys = columns.system, columns.tools, Keys.of(columns.given)

    def read(row: Row) -> Several:
        question = _question(row, prompt, None, system, keys)
        assert question is not None
        return Several((Chat(question, tools_of(row.get(tools)) if tools else None),), (0.0,))

    return Format("prompts", there({"prompt": prompt, "system": system, "tools": tools}), read, "prompts")


def _question(
    row: Row, prompt: str | None, more: str | None, system: str | None, keys: Keys
) -> list[dict[str, Any]] | None:
    if prompt is None:
        return None
    value = row.get(prompt)
    if isinstance(value, list):
        return messages_of(value, prompt, system=optional(row, system), keys=keys).messages
    text, extra = string(row, prompt, "prompt"), optional(row, more)
    messages = [{"role": "user", "content": f"{text}\n\n{extra}" if extra.strip() else text}]
    return [{"role": "system", "content": optional(row, system)}, *messages] if optional(row, system) else messages


def _instructed(talk: list[dict[str, Any]], system: str) -> list[dict[str, Any]]:
    """Return a conversation with a row's system prompt, if it has none of its own."""
    return [{"role": "system", "content": system}, *talk] if system and talk[0]["role"] != "system" else talk


def _answer(row: Row, column: str, keys: Keys) -> list[dict[str, Any]]:
    value = row.get(column)
    if isinstance(value, Mapping):
        value = [value]
    if isinstance(value, list):
        return messages_of(value, column, keys=keys).messages
    return [{"role": "assistant", "content": string(row, column, "answer")}]


def _behind(question: Sequence[dict[str, Any]], answer: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return an answer without the questions that are repeated in front of it."""
    while len(answer) > 1 and answer[0] in question:
        answer = answer[1:]
    return answer


def _shared(
    answers: Sequence[list[dict[str, Any]]], names: tuple[str, str]
) -> tuple[list[dict[str, Any]], list[list[dict[str, Any]]]]:
    """Return what two conversations begin with, and what each has of its own."""
    left, right = answers
    same = 0
    while same < min(len(left), len(right)) - 1 and left[same] == right[same]:
        same += 1
    if left[same:] == right[same:]:
        raise DataError(f"`{names[0]}` and `{names[1]}` are the same", fix="leave such rows out")
    if (left[same]["role"], right[same]["role"]) != ("assistant", "assistant") and (same or len(left) > 1):
        raise DataError(
            f"`{names[0]}` and `{names[1]}` differ before the assistant answers: they are about two questions",
            fix="give both the same messages before their answers",
        )
    return left[:same], [left[same:], right[same:]]


def _joined(
    question: Sequence[dict[str, Any]], answer: Sequence[dict[str, Any]], tools: Any, plain: bool
) -> Chat | Parts:
    """Join question and answer; only the answer is trained."""
    if plain or (not question and len(answer) == 1):
        before = "".join(str(m["content"]) for m in question)
        parts = [(before, False)] if before else []
        return Parts((*parts, *((str(m["content"] or ""), True) for m in answer)))
    return Chat(
        [{**m, "train": False} if m["role"] == "assistant" else m for m in question] + list(answer), tools_of(tools)
    )


def _scores(names: Sequence[str]) -> tuple[str, str] | None:
    """Return the columns that hold a number for the better and for the worse answer, the higher the better."""
    for name in names:
        other = _CHOSEN.sub(lambda match: "REJECTED" if match[0].isupper() else "rejected", name, count=1)
        if _SCORE.search(name) and other != name and other in names:
            return name, other
    return None


def _is_less(left: Any, right: Any) -> bool:
    left, right = plainly(left), plainly(right)
    return all(isinstance(one, int | float) for one in (left, right)) and left < right


def _margin(row: Row, column: str | None) -> float:
    """Return by how much the better answer is better; 0 where nobody says."""
    value = plainly(row.get(column)) if column else None
    if is_missing(value):
        return 0.0
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise DataError(f"`{column}` is {value!r:.40}, not a number from 0 on", fix="write by how much it is better")
    return float(value)


def _truth(value: Any, column: str) -> bool:
    value = plainly(value)
    word = str(value).strip().lower()
    if isinstance(value, bool) or value in (0, 1, -1):
        return value > 0 if not isinstance(value, bool) else value
    if word in _YES or word in _NO:
        return word in _YES
    raise DataError(f"`{column}` is {value!r:.40}, not a yes or no", fix="write true or false")


READERS = (
    Reader("preference", pairs_format, columns=frozenset(("chosen", "rejected")), holds_messages=True),
    Reader("feedback", feedback_format, holds_messages=True),
    Reader("stepwise", stepwise_format, columns=frozenset(("completions", "labels"))),
    Reader("prompts", prompts_format, holds_messages=True),
)
