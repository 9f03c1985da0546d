"""Arguments of calls reach a template in the form that it wants, so that both forms of a row train the same text."""

from __future__ import annotations

import json
from typing import Any

import pytest

from nbtune.data.formats.messages import messages_of
from nbtune.data.template.chat_template import ChatTemplate
from nbtune.errors import DataError
from tests.data.making import TOOLS, templates, tokenizer

ARGUMENTS = {"place": 'the "Old" Inn \\ Zoë', "n": 2, "deep": {"x": [1, None]}}
NAMES = sorted(name for name, text in templates().items() if "tool_calls" in text)
HEAD = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content or '' }}{% for c in m.tool_calls or [] %}"
TAIL = "{% endfor %}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
OWN = {
    "tojson": HEAD + "{{ c.function.arguments | tojson }}" + TAIL,  # Qwen2.5, Llama 3.1
    "items": HEAD + "{% for k, v in c.function.arguments.items() %}{{ k }}={{ v }};{% endfor %}" + TAIL,
    "added": HEAD + "{{ '(' + c.function.arguments + ')' }}" + TAIL,  # DeepSeek
    "as it is": HEAD + "{{ c.function.arguments }}" + TAIL,
    "either": HEAD + "{% set a = c.function.arguments %}{{ a if a is string else a | tojson }}" + TAIL,
}


def shown(template: ChatTemplate, arguments: Any, *, listed: bool = True) -> str:
    call = {"type": "function", "id": "abcdefghi", "function": {"name": "lookup", "arguments": arguments}}
    calls: Any = [call] if listed else json.dumps([call])
    talk = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "", "tool_calls": calls}]
    return template.render(messages_of(talk, "messages").messages, TOOLS).text


@pytest.mark.parametrize("name", [*NAMES, *OWN])
def test_json_text_and_mappings_train_the_same(name: str) -> None:
    template = ChatTemplate(tokenizer(OWN.get(name) or templates()[name]))
    try:
        mapping = shown(template, ARGUMENTS)
    except DataError:
        pytest.skip("it refuses calls")
    assert shown(template, json.dumps(ARGUMENTS, ensure_ascii=False)) == mapping
    assert shown(template, ARGUMENTS, listed=False) == mapping
    assert '\\"place' not in mapping
    assert "'place'" not in mapping


def test_json_that_is_no_object_is_refused_where_one_is_wanted() -> None:
    template = ChatTemplate(tokenizer(OWN["tojson"]))
    for given in ("no json", "3", "[1]", 3, [1], "[" * 100_000):
        with pytest.raises(DataError, match="no JSON object"):
            shown(template, given)
    assert shown(template, "") == shown(template, None) == shown(template, {})


def test_calls_that_are_none_are_refused() -> None:
    for calls in ("text", "[3]", 3, ["x"]):
        with pytest.raises(DataError, match="tool_calls"):
            messages_of([{"role": "assistant", "content": "", "tool_calls": calls}], "messages")


def test_a_call_is_trained_to_its_end_where_that_is_another_than_an_answers() -> None:
    """A model that never learnt it would go on after the call, and answer in the tool's place."""
    call = {"type": "function", "id": "c1", "function": {"name": "look", "arguments": {"what": "here"}}}
    talk = [
        {"role": "user", "content": "Where?"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "name": "look", "tool_call_id": "c1", "content": "There."},
        {"role": "assistant", "content": "Done."},
    ]
    ends = {}
    for name, text in templates().items():
        template = ChatTemplate(tokenizer(text))
        if template.has_marks or not template.turns.calls_end:
            continue
        rendered = template.render(talk, TOOLS)
        said = [rendered.text[start:end] for start, end, _ in rendered.trained]
        assert "look" in said[0], name
        assert said[0].endswith(template.turns.calls_end), name
        assert said[1].endswith(template.turns.terminators), name
        assert rendered.unended == (), name
        ends[name] = template.turns.calls_end
    assert ends["gptoss"] == "<|call|>"
    assert len(ends) >= 4
