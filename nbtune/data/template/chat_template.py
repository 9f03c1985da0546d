"""Conversations as text with the stretches that are trained, by the tokenizer's own chat template.

What the assistant says is found from the template itself. With ``{% generation %}`` marks, they say it. Without, three
small renderings say how a turn begins (what a generation prompt adds) and ends (the terminator: the last control
token that stands behind an answer both in the middle and at the end of a conversation). A conversation is then
rendered once, on strings that remember their origin; a turn's trained stretch runs from the end of its header to the
end of its terminator. A template without a terminator is an error: the tuned model would never stop.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

import jinja2

from nbtune.data.template.environment import compile_template, render
from nbtune.data.template.left_out import left_out, without_kinds
from nbtune.data.template.special_tokens import Controls
from nbtune.data.template.tool_calls import arguments_wanted, with_arguments
from nbtune.data.template.tracked_str import MARK, OTHER, Span, plain, spans_of
from nbtune.errors import DataError

# For base models: words only, and the one special token that every tokenizer has.
PLAIN_TEMPLATE = (
    "{{ bos_token or '' }}{% for message in messages %}"
    "{{ '### ' + message['role'] | capitalize + ':\n' + message['content'] }}"
    "{{ eos_token if message['role'] == 'assistant' else '' }}{{ '\n\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '### Assistant:\n' }}{% endif %}"
)
_MARKS = re.compile(r"\{%-?\s*generation\s*-?%\}")
_SAY = ("qzuserzq", "qzanswerzq")


@dataclass(frozen=True, slots=True)
class Rendered:
    """A conversation as text.

    Attributes:
        text: what is encoded.
        spans: (start, end, message) of the characters that came from the data.
        trained: (start, end, message) of the stretches with a loss, in characters.
        unended: numbers of assistant messages behind which no terminator stands.
        left_out: (number, what) of the parts that the template leaves out; see `nbtune.data.template.left_out`.
    """

    text: str
    spans: tuple[Span, ...]
    trained: tuple[Span, ...]
    unended: tuple[int, ...] = ()
    left_out: tuple[tuple[int, str], ...] = ()


def template_text(tokenizer: Any) -> str | None:
    """Return the tokenizer's chat template (the one called `default` if it has several); None if it has none."""
    template = getattr(tokenizer, "chat_template", None)
    if isinstance(template, Mapping):
        return template.get("default") or next(iter(template.values()), None)
    return template or None


class ChatTemplate:
    """A tokenizer's chat template with what was found out about it.

    Attributes:
        header: what stands before an answer (`"<|im_start|>assistant\\n"`), "" if it cannot be told apart.
        terminators: what ends an answer (`"<|im_end|>"`), inside a conversation and at its end; `terminator` the last.
        appended: the terminator, where the template writes none behind the last answer of a conversation (there it is
            the header of a next turn that stops the model); else "".
        calls_end: what ends a turn that calls tools, "" if it ends as others do or there are no tools.
        has_marks: whether the template has ``{% generation %}`` marks.
        thinks: whether it has a place for the thoughts of an answer.

    Raises:
        DataError: there is no template, it is not Jinja, or it never ends an answer.
    """

    def __init__(self, tokenizer: Any, template: str | None = None) -> None:
        text = template or template_text(tokenizer)
        if text is None:
            raise DataError(
                "the tokenizer has no chat template", place="model", fix="use an instruct model, or set a template"
            )
        self.template, self.tokenizer = text, tokenizer
        self.variables: dict[str, Any] = {
            key: str(value) for key, value in tokenizer.special_tokens_map.items() if isinstance(value, str)
        }
        self.has_marks = _MARKS.search(text) is not None
        self.thinks = "thinking" in text or "reasoning" in text
        try:
            compile_template(text)
        except jinja2.TemplateSyntaxError as error:
            raise DataError(f"the chat template is broken: {error}", place="model", fix="repair the template") from None
        controls = Controls(tokenizer)
        self._learn(controls)
        self.controls = Controls(tokenizer, extra=self._turn_tokens(controls))

    def _learn(self, controls: Controls) -> None:
        self.as_parts = False
        question, prompted, one, two = self._probe()
        if any(word not in one for word in _SAY):
            self.as_parts = True  # templates of vision models want [{"type": "text", "text": …}]
            question, prompted, one, two = self._probe()
        if any(word not in one for word in _SAY):
            raise DataError("the chat template leaves out what is said", place="model", fix="use another template")
        self._edges = one, two
        self._cut = cut = _Cutter(controls)
        after_prompt = prompted.rpartition(_SAY[0])[2]
        before_answer = one.rpartition(_SAY[1])[0].rpartition(_SAY[0])[2]
        ended = cut.common(question.rpartition(_SAY[0])[2], after_prompt)
        self._opening = cut.common(before_answer, after_prompt)
        self.header = self._opening[len(ended) :] if len(self._opening) > len(ended) else ""
        self._headers = cut.beginnings(self.header) if self.header else ()
        first = one.partition(_SAY[0])[0]
        self._openers = cut.openers(first, self.variables)
        last = one.rpartition(_SAY[1])[2]
        middle = two.partition(_SAY[1])[2].partition(_SAY[0])[0]
        ends = self._find_terminators(cut, ended, first, last, middle)
        self.terminators = tuple(cut.without(end, self._openers) for end in ends)
        self.terminator = self.terminators[-1]
        self.appended = "" if cut.through_first(last) else self.terminator
        self._learn_calls()

    def _learn_calls(self) -> None:
        """Learn how a turn ends that calls tools, if it ends in its own way (gpt-oss: <|call|>), and what stands
        between two calls; nothing for templates without tools."""
        self.calls_end = self._between_calls = ""
        call = {"type": "function", "id": "qzcallzqa", "function": {"name": "qznamezq", "arguments": {"a": "qzlastzq"}}}
        tool = {"type": "function", "function": {"name": "qznamezq", "description": "d", "parameters": {}}}
        asked = [self.message("user", _SAY[0]), {"role": "assistant", "content": "", "tool_calls": [call, call]}]
        answers = [{"role": "tool", "name": "qznamezq", "tool_call_id": "qzcallzqa", "content": "qztoolzq"}] * 2
        try:
            alone, answered = self._text(asked, tools=[tool]), self._text([*asked, *answers], tools=[tool])
        except (jinja2.TemplateError, TypeError, KeyError, ValueError, AttributeError):
            return
        if "qzlastzq" not in alone or answered.count("qzlastzq") != alone.count("qzlastzq"):
            return
        common = self._cut.common(alone.rpartition("qzlastzq")[2], answered.rpartition("qzlastzq")[2])
        self.calls_end = self._cut.without(self._cut.last_tokens(common), self._openers)
        self._between_calls = alone.partition("qzlastzq")[2].partition("qznamezq")[0]
        if any(self.calls_end.endswith(t) for t in self.terminators):
            self.calls_end = ""

    def _probe(self) -> tuple[str, str, str, str]:
        user, answer = self.message("user", _SAY[0]), self.message("assistant", _SAY[1])
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

    def _turn_tokens(self, controls: Controls) -> list[str]:
        """Return added tokens that the template writes around a plain conversation: they may not be forged by data."""
        if controls.added_pattern is None:
            return []
        tokens = {m for text in self._edges for m in controls.added_pattern.findall(text)}
        return sorted(t for t in tokens if not re.fullmatch(r"</?think>|\s+", t))

    def _text(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> str:
        return plain(render(self.template, messages, **options, **self.variables))

    @cached_property
    def arguments(self) -> str:
        """In which form it wants the arguments of calls: `mapping`, `text`, or "" for either."""
        return arguments_wanted(self._text, self.message("user", _SAY[0]))

    def render(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None = None
    ) -> Rendered:
        """Render one conversation.

        Raises:
            DataError: the template refuses the conversation, or a message's place in it cannot be found.
        """
        if any(message.get("tool_calls") for message in messages):
            messages = with_arguments(messages, self.arguments)
        if self.as_parts:
            messages = [_with_parts(message) for message in messages]
        try:
            text = render(self.template, messages, tools=tools, **self.variables)
        except (jinja2.TemplateError, TypeError, KeyError, ValueError, AttributeError) as error:
            raise DataError(
                f"the chat template refuses the row: {error}", fix=_refusal(str(error), messages)
            ) from error
        every = spans_of(text)
        text = plain(text) + (self.appended if messages[-1]["role"] == "assistant" else "")
        data = tuple(span for span in every if span[2] != MARK)
        spans = without_kinds(data)
        rendered = self._by_marks(text, spans, every) if self.has_marks else self._by_turns(text, spans, messages)
        lost = tuple(left_out(messages, tools, text, data))
        return replace(rendered, left_out=lost) if lost else rendered

    def _by_marks(self, text: str, spans: tuple[Span, ...], every: Sequence[Span]) -> Rendered:
        """Return what the marks say, and the terminator where it stands behind a mark."""
        trained, unended = [], []
        data, at = [span for span in spans if span[2] >= 0], 0
        for start, end in _joined((s, e) for s, e, tag in every if tag == MARK):
            while at < len(data) and data[at][1] <= start:
                at += 1
            number = data[at][2] if at < len(data) and data[at][0] < end else OTHER
            stop = next((end + len(t) for t in self.terminators if text.startswith(t, end)), end)
            if not any(t and text.find(t, start, stop) >= 0 for t in (*self.terminators, self.calls_end)):
                unended.append(number)
            trained.append((start, stop, number))
        return Rendered(text, spans, tuple(trained), tuple(unended))

    def _by_turns(self, text: str, spans: tuple[Span, ...], messages: Sequence[Mapping[str, Any]]) -> Rendered:
        trained, unended = [], []
        for number, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            own = [(s, e) for s, e, tag in spans if tag == number]
            if not own:
                self._not_lost(text, message, number)
                continue
            for start, end in self._utterances(text, own):
                before = max((e for _, e, _ in spans if e <= start), default=0)
                after = min((s for s, _, _ in spans if s >= end), default=len(text))
                start = self._begin(text, before, start, number, messages)
                stop = self._stop(text, end, after)
                if not stop:
                    unended.append(number)
                trained.append((start, stop or end, number))
        return Rendered(text, spans, tuple(trained), tuple(unended))

    def _utterances(self, text: str, own: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """Return where the message's own text stands: in one stretch, or, where it is ended and a header follows, in
        several (gpt-oss: the thought, then the answer). What a later turn repeats of it (a tool's name) is not its own.
        """
        stretches = [own[0]]
        for (_, end), (start, stop) in pairwise(own):
            gap = text[end:start]
            over = any(t in gap for t in self.terminators)
            over = over or (
                self.calls_end in gap and not self._between_calls.endswith(gap) if self.calls_end else False
            )
            if not over:
                stretches[-1] = stretches[-1][0], stop
            elif self.header and self.header in gap:
                stretches.append((start, stop))
            else:
                break
        return stretches

    def _stop(self, text: str, low: int, high: int) -> int:
        """Return the end of the terminator between `low` and `high`; 0 if there is none."""
        ends = (*self.terminators, self.calls_end) if self.calls_end else self.terminators
        return min((at + len(t) for t in ends if (at := text.find(t, low, high)) >= 0), default=0)

    def _begin(self, text: str, low: int, high: int, number: int, messages: Sequence[Mapping[str, Any]]) -> int:
        """Return where the model starts to write: behind the header, at the latest at the content's first character."""
        for header in self._headers:
            at = text.rfind(header, low, high)
            if at >= 0:
                return at + len(header)
        if self.header:
            return high
        is_answer = number > 0 and messages[number - 1]["role"] == "user"
        return low + len(self._opening) if is_answer and text.startswith(self._opening, low, high) else high

    @staticmethod
    def _not_lost(text: str, message: Mapping[str, Any], number: int) -> None:
        content = message.get("content")
        if isinstance(content, str) and content.strip() and content.strip() in text:
            raise DataError(
                f"the chat template builds message {number} in a way that cannot be followed",
                fix="add {% generation %} marks to the template, around what the assistant writes",
            )


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
        matches = list(self.pattern.finditer(end)) if self.pattern else []
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


def _joined(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return spans in order, those that touch as one."""
    joined: list[tuple[int, int]] = []
    for start, end in sorted(spans):
        if joined and joined[-1][1] >= start:
            joined[-1] = joined[-1][0], max(end, joined[-1][1])
        else:
            joined.append((start, end))
    return joined


def _with_parts(message: Mapping[str, Any]) -> Mapping[str, Any]:
    content = message.get("content")
    return {**message, "content": [{"type": "text", "text": content}]} if isinstance(content, str) else message


def _refusal(reason: str, messages: Sequence[Mapping[str, Any]]) -> str:
    roles = ", ".join(str(m.get("role")) for m in messages[:6])
    if "alternate" in reason.lower():
        return f"this template wants user and assistant in turn; the row has {roles}"
    if "system" in reason.lower():
        return "this template has no system role: put its text into the first user message"
    return f"the row's roles are {roles}; check what the template expects"
