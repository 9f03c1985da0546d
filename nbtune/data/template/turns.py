"""How a chat template begins and ends the turns of a conversation: found out once, from a few small renderings.

They say how a turn begins (what a generation prompt adds) and ends (the terminator: the last control token that stands
behind an answer both in the middle and at the end of a conversation). A template without a terminator is an error: the
tuned model would never stop.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import jinja2

from nbtune.data.template.special_tokens import Controls
from nbtune.errors import DataError

PROBE = ("qzuserzq", "qzanswerzq")


class Turns:
    """What a template writes around what is said.

    Args:
        render: a conversation as text; with `tools`, `add_generation_prompt`.
        controls: the tokenizer's control tokens, `special` its BOS and EOS by name.

    Attributes:
        as_parts: whether the template wants the text of a message as a list of parts.
        header: what stands before an answer (`"<|im_start|>assistant\\n"`), "" if it cannot be told apart; `headers`
            also the one without the thought that a generation prompt opens in it.
        opening: what stands between a question and its answer.
        terminators: what ends an answer (`"<|im_end|>"`), inside a conversation and at its end; `terminator` the last.
        appended: the terminator, where the template writes none behind the last answer of a conversation (there it is
            the header of a next turn that stops the model); else "".
        calls_end: what ends a turn that calls tools, "" if it ends as others do or there are no tools.
        between_calls: what stands between two calls of tools.

    Raises:
        DataError: the template fails on a plain conversation, or never ends an answer.
    """

    def __init__(self, render: Callable[..., str], controls: Controls, special: Mapping[str, str]) -> None:
        self._text, self._special = render, special
        self._learn(_Cutter(controls))

    def _learn(self, cut: _Cutter) -> None:
        self.as_parts = False
        question, prompted, one, two = self._probe()
        if any(word not in one for word in PROBE):
            self.as_parts = True  # templates of vision models want [{"type": "text", "text": …}]
            question, prompted, one, two = self._probe()
        if any(word not in one for word in PROBE):
            raise DataError("the chat template leaves out what is said", place="model", fix="use another template")
        self._edges = one, two
        after_prompt = prompted.rpartition(PROBE[0])[2]
        before_answer = one.rpartition(PROBE[1])[0].rpartition(PROBE[0])[2]
        ended = cut.common(question.rpartition(PROBE[0])[2], after_prompt)
        self.opening = cut.common(before_answer, after_prompt)
        self.header = self.opening[len(ended) :] if len(self.opening) > len(ended) else ""
        self.headers = cut.beginnings(self.header) if self.header else ()
        first = one.partition(PROBE[0])[0]
        self._openers = cut.openers(first, self._special)
        last = one.rpartition(PROBE[1])[2]
        middle = two.partition(PROBE[1])[2].partition(PROBE[0])[0]
        ends = self._find_terminators(cut, ended, first, last, middle)
        self.terminators = tuple(cut.without(end, self._openers) for end in ends)
        self.terminator = self.terminators[-1]
        self.appended = "" if cut.through_first(last) else self.terminator
        self._learn_calls(cut)

    def _learn_calls(self, cut: _Cutter) -> None:
        """Learn how a turn ends that calls tools, if it ends in its own way (gpt-oss: <|call|>), and what stands
        between two calls; nothing for templates without tools."""
        self.calls_end = self.between_calls = ""
        call = {"type": "function", "id": "qzcallzqa", "function": {"name": "qznamezq", "arguments": {"a": "qzlastzq"}}}
        tool = {"type": "function", "function": {"name": "qznamezq", "description": "d", "parameters": {}}}
        asked = [self.message("user", PROBE[0]), {"role": "assistant", "content": "", "tool_calls": [call, call]}]
        answers = [{"role": "tool", "name": "qznamezq", "tool_call_id": "qzcallzqa", "content": "qztoolzq"}] * 2
        try:
            alone, answered = self._text(asked, tools=[tool]), self._text([*asked, *answers], tools=[tool])
        except (jinja2.TemplateError, TypeError, KeyError, ValueError, AttributeError):
            return
        if "qzlastzq" not in alone or answered.count("qzlastzq") != alone.count("qzlastzq"):
            return
        common = cut.common(alone.rpartition("qzlastzq")[2], answered.rpartition("qzlastzq")[2])
        self.calls_end = cut.without(cut.last_tokens(common), self._openers)
        self.between_calls = alone.partition("qzlastzq")[2].partition("qznamezq")[0]
        if any(self.calls_end.endswith(t) for t in self.terminators):
            self.calls_end = ""

    def _probe(self) -> tuple[str, str, str, str]:
        user, answer = self.message("user", PROBE[0]), self.message("assistant", PROBE[1])
        try:
            asked, prompted = self._text([user]), self._text([user], add_generation_prompt=True)
            return asked, prompted, self._text([user, answer]), self._text([user, answer, user, answer])
        except (jinja2.TemplateError, TypeError, KeyError, ValueError, AttributeError) as error:
            if not self.as_parts:
                return "", "", "", ""
            raise DataError(
                f"the chat template fails on a plain conversation: {error}", place="model", fix="repair the template"
            ) from error

    def message(self, role: str, text: str) -> dict[str, Any]:
        """Return a message in the form that the template wants."""
        return {"role": role, "content": [{"type": "text", "text": text}] if self.as_parts else text}

    @staticmethod
    def in_parts(message: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return a message with its text as a list of parts."""
        content = message.get("content")
        return {**message, "content": [{"type": "text", "text": content}]} if isinstance(content, str) else message

    def _find_terminators(self, cut: _Cutter, asked: str, first: str, last: str, middle: str) -> tuple[str, ...]:
        """Return what ends an answer: inside a conversation, and at its end, if they differ.

        `asked` ends a question, `first` stands before the first one; `last` behind the last answer, `middle` between
        an answer and the next question.
        """
        both = cut.through_last(cut.common(last, middle))
        if both:
            return (both,)
        between = cut.through_last(middle[: len(middle) - cut.same_end(first, middle)])
        if not between and cut.through_last(asked) and middle.startswith(asked):
            between = cut.through_last(asked)  # gpt-oss: every message ends the same way, only the last answer not
        terminators = tuple(text for text in (between, cut.through_first(last)) if text)
        if terminators:
            return terminators
        if cut.through_first(middle):  # GLM: the header of the next turn is what stops
            return (cut.through_first(middle),)
        raise DataError(
            f"the chat template ends an answer with {last!r}, which holds no special token: a model trained so would "
            "never stop",
            place="model",
            fix="use a template that writes an end-of-turn token, or `{{ eos_token }}`, behind the assistant's text",
        )

    def tokens(self, controls: Controls) -> list[str]:
        """Return added tokens that the template writes around a plain conversation: they may not be forged by data."""
        if controls.added_pattern is None:
            return []
        tokens = {m for text in self._edges for m in controls.added_pattern.findall(text)}
        return sorted(t for t in tokens if not re.fullmatch(r"</?think>|\s+", t))


class _Cutter:
    """Common beginnings of two texts that do not end inside a control token."""

    def __init__(self, controls: Controls) -> None:
        self.pattern = controls.added_pattern

    def common(self, left: str, right: str) -> str:
        size = next(
            (i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right))
        )
        for text in (left, right):
            for match in self.pattern.finditer(text) if self.pattern else ():
                if match.start() < size < match.end():
                    size = match.start()
        return left[:size]

    def beginnings(self, header: str) -> tuple[str, ...]:
        """Return the header; and, where a generation prompt opens (or closes) a thought in it, what stands before that:
        a row may think otherwise."""
        matches = self.pattern.finditer(header) if self.pattern else ()
        thought = next((m.start() for m in matches if "think" in m.group().lower()), 0)
        return (header, header[:thought]) if thought else (header,)

    def through_last(self, text: str) -> str:
        """Return `text` up to the end of its last control token; "" if there is none."""
        ends = [m.end() for m in self.pattern.finditer(text)] if self.pattern else []
        return text[: ends[-1]] if ends else ""

    def through_first(self, text: str) -> str:
        """Return `text` up to the end of its first control token; "" if there is none."""
        match = self.pattern.search(text) if self.pattern else None
        return text[: match.end()] if match else ""

    def last_tokens(self, text: str) -> str:
        """Return the control tokens (and blanks between) that stand last in `text`, ordinary text behind them apart."""
        end = start = 0
        for match in self.pattern.finditer(text) if self.pattern else ():
            start = start if start < end and not text[end : match.start()].strip() else match.start()
            end = match.end()
        return text[start:end]

    def openers(self, first: str, special: Mapping[str, str]) -> frozenset[str]:
        """Return the control tokens that open a turn, by what stands before the first one: the start of a sequence, and
        what follows on it. A token that ends a sequence as well is none."""
        tokens = [m.group() for m in self.pattern.finditer(first)] if self.pattern else []
        start = special.get("bos_token")
        count = next((i for i, token in enumerate(tokens) if token != start), len(tokens))
        return frozenset(tokens[: count + 1]) - {special.get("eos_token", "")}

    def without(self, end: str, openers: frozenset[str]) -> str:
        """Return what ends a turn, without the openers of a next one behind it (Command A's template writes one even
        behind the last answer, so that it looks like a part of the end)."""
        matches = [*self.pattern.finditer(end)] if self.pattern else []
        while len(matches) > 1 and matches[-1].group() in openers:
            matches.pop()
        return end[: matches[-1].end()] if matches else end

    def same_end(self, left: str, right: str) -> int:
        """Return how many last characters are the same, not beginning inside a control token of `right`."""
        size, limit = 0, min(len(left), len(right))
        while size < limit and left[-1 - size] == right[-1 - size]:
            size += 1
        for match in self.pattern.finditer(right) if self.pattern else ():
            if match.start() < len(right) - size < match.end():
                size = len(right) - match.end()
        return size
