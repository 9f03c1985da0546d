"""Rows rendered by a shortcut are those rendered in full, whatever a template asks of the texts."""

from __future__ import annotations

import random

import pytest

from nbtune.data.template.chat_template import ChatTemplate
from nbtune.data.template.watching import watch
from nbtune.errors import DataError
from tests.data.making import CHATML, conversation, templates, tokenizer

NAMES = sorted(templates())


def _check(name: str, count: int) -> None:
    template, rng = ChatTemplate(tokenizer(templates()[name])), random.Random(11)
    for number in range(count):
        messages = conversation(rng, system=number % 4 != 0, thinking=number % 2 == 1)
        if number % 7 == 3:
            messages[-1]["content"] = rng.choice(["", "\n", "</think> x", "<tool_response>", "a\n</think>\n\nb"])
        try:
            full = template._in_full(messages)
        except DataError:
            with pytest.raises(DataError):
                template.render(messages)
            continue
        assert template.render(messages) == full


@pytest.mark.parametrize("name", NAMES)
def test_a_shortcut_gives_what_the_template_gives(name: str) -> None:
    _check(name, 60)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_shortcuts_on_2000_conversations(name: str) -> None:
    _check(name, 2000)


def test_what_a_template_asks_is_kept_as_a_guard() -> None:
    template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if 'x' in m.content %}[{{ m.content | trim }}]"
        "{% else %}{{ m.content }}{% endif %}<|im_end|>{% endfor %}"
    )
    messages = [{"role": "user", "content": " ax "}, {"role": "assistant", "content": " b "}]
    trace = watch(template, messages)
    assert trace is not None
    assert trace.fixed == ("<|im_start|>user\n[", "]<|im_end|><|im_start|>assistant\n", "<|im_end|>")
    assert [(g.leaf.message, g.method, g.args, g.answer) for g in trace.guards] == [
        (0, "__contains__", ("x",), True),
        (1, "__contains__", ("x",), False),
    ]
    assert trace.leaves[0].of(messages) == "ax"
    assert trace.leaves[1].of(messages) == " b "


@pytest.mark.parametrize(
    "use",
    [
        "{{ m.content | length }}",
        "{{ m.content[0] }}",
        "{{ m.content.split('a')[0] }}",
        "{{ m.content | tojson }}",
        "{{ m.content | upper }}",
        "{{ '%s' % m.content }}",
        "{{ m.content in 'abc' }}",
        "{% for c in m.content %}{{ c }}{% endfor %}",
        "{{ '{}'.format(m.content) }}",
        "{{ {m.content: 1} }}",
        "{{ m.content.replace('a', 'b') }}",
        "{{ (m.content ~ 'z') | trim }}",
        "{{ [m.content, 'q'] | join(',') }}",
        "{{ m.content * 2 }}",
        "{{ m.content | default('') | reverse }}",
        "{{ m.content > 'a' }}",
        "{{ m | string }}",
        "{{ m }}",
    ],
)
def test_a_template_that_looks_closer_has_no_shortcut(use: str) -> None:
    template = "{% for m in messages %}" + use + "{{ m.content }}{% endfor %}"
    assert watch(template, [{"role": "user", "content": "abc"}]) is None


def test_the_template_is_not_run_for_every_row(monkeypatch: pytest.MonkeyPatch) -> None:
    import nbtune.data.template.chat_template as chat

    template = ChatTemplate(tokenizer(CHATML))
    calls = []
    render = chat.render
    monkeypatch.setattr(chat, "render", lambda *a, **k: calls.append(1) or render(*a, **k))
    for number in range(50):
        text = template.render([{"role": "user", "content": f"q{number}"}, {"role": "assistant", "content": "a"}]).text
        assert f"q{number}" in text
    assert len(calls) <= 3  # two rows, and one to compare with
