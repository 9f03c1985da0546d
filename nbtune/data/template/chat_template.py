"""Conversations as text with the stretches that are trained, by the tokenizer's own chat template.

What the assistant says is found from the template itself: with ``{% generation %}`` marks, they say it; without, what
it writes around turns does (`nbtune.data.template.turns`). A conversation is rendered once, on strings that remember
their origin; a turn's trained stretch runs from the end of its header to the end of its terminator.

What the template leaves out is found on the rendering, too (`nbtune.data.template.left_out`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any

import jinja2

from nbtune.data.template.environment import bounded, compile_template, tracked
from nbtune.data.template.left_out import REASONING, left_out
from nbtune.data.template.special_tokens import Controls
from nbtune.data.template.tool_calls import arguments_wanted, with_arguments
from nbtune.data.template.tracked_str import (
    CALLS,
    CLOSE,
    MARK,
    OPEN,
    OTHER,
    SAID,
    THOUGHT,
    Span,
    concat,
    joined,
    plain,
    spans_of,
    thought_in,
    track,
    without_kinds,
)
from nbtune.data.template.turns import PROBE, Turns
from nbtune.errors import DataError

# For base models: words only, and the one special token that every tokenizer has.
PLAIN_TEMPLATE = (
    "{{ bos_token or '' }}{% for message in messages %}"
    "{{ '### ' + message['role'] | capitalize + ':\n' + message['content'] }}"
    "{{ eos_token if message['role'] == 'assistant' else '' }}{{ '\n\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '### Assistant:\n' }}{% endif %}"
)
_MARKS = re.compile(r"\{%-?\s*generation\s*-?%\}")
_PARTS = {"tool_calls": CALLS, **dict.fromkeys(REASONING, THOUGHT)}


@dataclass(frozen=True, slots=True)
class Rendered:
    """A conversation as text.

    Attributes:
        text: what is encoded.
        spans: (start, end, message) of the characters that came from the data.
        trained: (start, end, message) of the stretches with a loss, in characters.
        unended: numbers of assistant messages behind which no terminator stands.
        left_out: (number, what) of the parts that the template leaves out; see `left_out`.
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
        template: its Jinja text; `variables` what else it may use: `bos_token`, `eos_token`, …
        turns: how it begins and ends turns.
        controls: the control tokens, with those that the template writes around turns.
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
        self.turns = Turns(self._text, controls, self.variables)
        self.controls = controls.beside(self.turns.tokens(controls))

    def _text(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> str:
        return plain(render_text(self.template, messages, **options, **self.variables))

    @cached_property
    def arguments(self) -> str:
        """In which form it wants the arguments of calls: `mapping`, `text`, or "" for either."""
        return arguments_wanted(self._text, self.turns.message("user", PROBE[0]))

    def render(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None = None
    ) -> Rendered:
        """Render one conversation.

        Raises:
            DataError: the template refuses the conversation, or a message's place in it cannot be found.
        """
        text, messages = self._rendered(messages, tools=tools)
        every = spans_of(text)
        text = plain(text) + (self.turns.appended if messages[-1]["role"] == "assistant" else "")
        data = tuple(span for span in every if span[2] != MARK)
        spans = without_kinds(data)
        rendered = self._by_marks(text, spans, every) if self.has_marks else self._by_turns(text, spans, messages)
        if not tools and _all_there(messages, data):
            return rendered
        lost = tuple(left_out(messages, tools, text, data, self.template))
        return replace(rendered, left_out=lost) if lost else rendered

    def prompt(
        self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]] | None = None
    ) -> tuple[str, tuple[Span, ...]]:
        """Return a conversation that the model is to go on with as text, and which of it came from the data.

        Raises:
            DataError: the template refuses it.
        """
        text, _ = self._rendered(messages, tools=tools, add_generation_prompt=True)
        return plain(text), without_kinds(tuple(span for span in spans_of(text) if span[2] != MARK))

    def _rendered(self, messages: Sequence[Mapping[str, Any]], **how: Any) -> tuple[str, Sequence[Mapping[str, Any]]]:
        """Return the tracked text, and the messages in the form that the template wants."""
        if any(message.get("tool_calls") for message in messages):
            messages = with_arguments(messages, self.arguments)
        if self.turns.as_parts:
            messages = [self.turns.in_parts(message) for message in messages]
        try:
            return render_text(self.template, messages, **how, **self.variables), messages
        except (jinja2.TemplateError, TypeError, KeyError, ValueError, AttributeError) as error:
            raise DataError(
                f"the chat template refuses the row: {error}", fix=_refusal(str(error), messages)
            ) from error

    def _by_marks(self, text: str, spans: tuple[Span, ...], every: Sequence[Span]) -> Rendered:
        """Return what the marks say, and the terminator where it stands behind a mark."""
        trained, unended = [], []
        data, at = [span for span in spans if span[2] >= 0], 0
        for start, end in joined((s, e) for s, e, tag in every if tag == MARK):
            while at < len(data) and data[at][1] <= start:
                at += 1
            number = data[at][2] if at < len(data) and data[at][0] < end else OTHER
            stop = next((end + len(t) for t in self.turns.terminators if text.startswith(t, end)), end)
            if not any(t and text.find(t, start, stop) >= 0 for t in (*self.turns.terminators, self.turns.calls_end)):
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
            over = any(t in gap for t in self.turns.terminators)
            if not over and self.turns.calls_end:
                over = self.turns.calls_end in gap and not self.turns.between_calls.endswith(gap)
            if not over:
                stretches[-1] = stretches[-1][0], stop
            elif self.turns.header and self.turns.header in gap:
                stretches.append((start, stop))
            else:
                break
        return stretches

    def _stop(self, text: str, low: int, high: int) -> int:
        """Return the end of the terminator between `low` and `high`; 0 if there is none."""
        ends = (*self.turns.terminators, self.turns.calls_end) if self.turns.calls_end else self.turns.terminators
        return min((at + len(t) for t in ends if (at := text.find(t, low, high)) >= 0), default=0)

    def _begin(self, text: str, low: int, high: int, number: int, messages: Sequence[Mapping[str, Any]]) -> int:
        """Return where the model starts to write: behind the header, at the latest at the content's first character."""
        for header in self.turns.headers:
            at = text.rfind(header, low, high)
            if at >= 0:
                return at + len(header)
        if self.turns.header:
            return high
        is_answer = number > 0 and messages[number - 1]["role"] == "user"
        return low + len(self.turns.opening) if is_answer and text.startswith(self.turns.opening, low, high) else high

    @staticmethod
    def _not_lost(text: str, message: Mapping[str, Any], number: int) -> None:
        content = message.get("content")
        if isinstance(content, str) and content.strip() and content.strip() in text:
            raise DataError(
                f"the chat template builds message {number} in a way that cannot be followed",
                fix="add {% generation %} marks to the template, around what the assistant writes",
            )


def _refusal(reason: str, messages: Sequence[Mapping[str, Any]]) -> str:
    roles = ", ".join(str(m.get("role")) for m in messages[:6])
    if "alternate" in reason.lower():
        return f"this template wants user and assistant in turn; the row has {roles}"
    if "system" in reason.lower():
        return "this template has no system role: put its text into the first user message"
    return f"the row's roles are {roles}; check what the template expects"


def render_text(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    add_generation_prompt: bool = False,
    **variables: Any,
) -> str:
    """Return one conversation as text; the result's spans say where each message and each ``generation`` block went.

    Args:
        messages: dicts with `role` and `content`; keys whose value is None count as missing, as in transformers.
        variables: what else the template may use: `bos_token`, `eos_token`, …

    Raises:
        jinja2.TemplateError: the template refuses the conversation.
    """
    chat = [_message(message, number) for number, message in enumerate(messages)]
    values = {
        "messages": chat,
        "tools": tracked(tools, OTHER) if tools else None,
        "documents": None,
        "add_generation_prompt": add_generation_prompt,
    }
    return bounded(compile_template(template), values | variables)


def _message(message: Mapping[str, Any], number: int) -> dict[str, Any]:
    chat = {
        key: value if key == "role" else tracked(value, number | _PARTS.get(key, 0))
        for key, value in message.items()
        if value is not None
    }
    if message["role"] == "assistant" and "content" in chat:
        chat["content"] = _answer(message["content"], number, calls=bool(message.get("tool_calls")))
    return _with_reasoning(chat)


def _answer(content: Any, number: int, *, calls: bool) -> Any:
    """Return what an assistant says, with its thought told apart."""
    if isinstance(content, str):
        return marked(content, number, calls=calls)
    answer = tracked(content, number)
    for part in answer if isinstance(answer, list) else ():
        if isinstance(part, dict) and isinstance(part.get("text"), str):
            part["text"] = marked(plain(part["text"]), number, calls=calls)
    return answer


def _with_reasoning(message: dict[str, Any]) -> dict[str, Any]:
    """Return a message whose thoughts stand under each of the names that templates have for them."""
    for key in REASONING:
        if key in message:
            return {"thinking": message[key], **message, "reasoning_content": message[key]}
    return message


def _all_there(messages: Sequence[Mapping[str, Any]], spans: Sequence[Span]) -> bool:
    """Return whether each message is a text alone of which all characters were rendered: nearly every row."""
    sizes: Counter[int] = Counter()
    for start, end, tag in spans:
        sizes[tag] += end - start
    contents = [message.get("content") if len(message) <= 2 else None for message in messages]
    return all(
        isinstance(content, str) and CLOSE not in content and sizes[number] >= len(content.strip())
        for number, content in enumerate(contents)
    )


def marked(text: str, number: int, *, calls: bool) -> str:
    """Return an answer's text with a mark over its thought (inside ``<think>``) and one over what else it says;
    `calls`: the answer calls tools besides."""
    thought = thought_in(text)
    if thought is None:
        return track(text, number | SAID if calls else number)
    start, end = thought
    head = max(0, start - len(OPEN))
    tail = end + len(CLOSE)
    pieces = (
        track(text[:head], number | SAID),
        track(text[head:start], number),
        track(text[start:end], number | THOUGHT),
        track(text[end:tail], number),
        track(text[tail:], number | SAID),
    )
    return concat(pieces)
