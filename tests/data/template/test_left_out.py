"""What a chat template leaves out is found, whatever the template: what is reported is what is missing."""

from __future__ import annotations

import logging
from typing import Any

import pytest

import nbtune.data
from nbtune.data.formats.messages import Chat
from nbtune.data.prepare.report import Prepared
from nbtune.data.sources.resolve import resolve
from nbtune.data.template.chat_template import ChatTemplate
from nbtune.data.tokenize.encoder import Encoder
from nbtune.errors import DataError
from nbtune.spec import from_mapping
from tests.data.making import CHATML, RECREATED, TOOLS, templates, tokenizer

NAMES = sorted(templates())
R1 = (  # what DeepSeek-R1's template does with an answer
    "{% for m in messages %}{% if m.role == 'user' %}<|user|>{{ m.content }}{% endif %}{% if m.role == 'assistant' %}"
    "<|assistant|>{% set c = m.content %}{% if '</think>' in c %}{% set c = c.split('</think>')[-1] %}{% endif %}"
    "{{ c }}<|im_end|>{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|><think>\n{% endif %}"
)


@pytest.fixture(autouse=True)
def _quiet() -> None:
    logging.getLogger("transformers").setLevel(logging.ERROR)


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def calling(text: str, word: str, **more: Any) -> dict[str, Any]:
    call = {"type": "function", "id": "callword9", "function": {"name": "weather", "arguments": {"city": word}}}
    return {"role": "assistant", "content": text, "tool_calls": [call], **more}


TALKS: dict[str, list[dict[str, Any]]] = {
    "thoughts in the content": [
        user("qworda"),
        {"role": "assistant", "content": "<think>\ntworda\n</think>\n\nworda"},
        user("qwordb"),
        {"role": "assistant", "content": "<think>\ntwordb\n</think>\n\nwordb"},
    ],
    "thoughts of their own": [
        user("qworda"),
        {"role": "assistant", "content": "worda", "reasoning_content": "tworda"},
        user("qwordb"),
        {"role": "assistant", "content": "wordb", "reasoning_content": "twordb"},
    ],
    "calls": [
        user("qworda"),
        calling("", "cworda"),
        {"role": "tool", "name": "weather", "tool_call_id": "callword9", "content": "rworda"},
        {"role": "assistant", "content": "wordb"},
    ],
    "calls with text and thoughts": [
        user("qworda"),
        calling("worda", "cworda", reasoning_content="tworda"),
        {"role": "tool", "name": "weather", "tool_call_id": "callword9", "content": "rworda"},
        {"role": "assistant", "content": "<think>\ntwordb\n</think>\n\nwordb"},
    ],
    "roles": [
        {"role": "system", "content": "sworda"},
        user("qworda"),
        {"role": "critic", "content": "xworda"},
        {"role": "assistant", "content": "worda"},
    ],
}


def missing_of(number: int, message: dict[str, Any], text: str) -> set[tuple[int, str]]:
    """What of a message is not in a text, by its own words."""
    content = message["content"]
    words = content.rpartition("</think>")[2].strip()
    thought = message.get("reasoning_content") or content.partition("</think>")[0].removeprefix("<think>").strip()
    thought = thought if "</think>" in content or "reasoning_content" in message else ""
    call = message["tool_calls"][0]["function"]["arguments"]["city"] if "tool_calls" in message else ""
    parts = {"words": words, "thoughts": thought, "calls": call}
    lost = {what for what, word in parts.items() if word and not contains(text, word)}
    there = {what for what, word in parts.items() if word}
    return {(number, "message")} if lost == there and there != {"calls"} else {(number, what) for what in lost}


def contains(text: str, word: str) -> bool:
    return word in text.replace("q" + word, "").replace("t" + word, "").replace("c" + word, "").replace("r" + word, "")


@pytest.mark.parametrize("name", [*NAMES, "r1"])
def test_what_is_reported_is_what_is_missing(name: str) -> None:
    fast = tokenizer(R1 if name == "r1" else templates()[name])
    template, seen = ChatTemplate(fast), 0
    for messages in TALKS.values():
        try:
            rendered = template.render(messages, TOOLS)
        except DataError:
            continue  # the template refuses it itself
        expected = {part for number, m in enumerate(messages) for part in missing_of(number, m, rendered.text)}
        expected |= {(-1, "tools")} if TOOLS[0]["function"]["description"] not in rendered.text else set()
        assert set(rendered.left_out) == expected
        result = Encoder(fast, template).encode([Chat(messages, TOOLS)])[0]
        holes = [what for _, what in expected if what in ("message", "calls")]
        assert isinstance(result, DataError) == bool(holes)
        seen += 1
    assert seen


def prepared(rows: list[Any], template: str, max_len: int = 256, **fields: Any) -> Prepared:
    spec = from_mapping({"data": "rows", "eval": {"split": 0}, **fields})
    return nbtune.data.prepare_data(
        resolve(spec.data, {"rows": rows}), tokenizer(template), spec=spec, max_len=max_len, seed=0, cached=False
    )


def test_thoughts_and_tools_that_are_not_shown_are_counted() -> None:
    think = {"prompt": "q", "completion": "<think>\nhm\n</think>\n\na"}
    both = prepared([think, {"prompt": "q", "completion": "b"}, think | {"prompt": "r"}], R1).report.warnings
    assert any("2 rows with thoughts" in warning for warning in both)
    assert not any("thoughts" in warning for warning in prepared([think], CHATML).report.warnings)
    assert not any("thoughts" in w for w in prepared([think], R1, thinking="drop").report.warnings)
    two = [{"messages": TALKS["thoughts in the content"]}]
    assert any("1 row with thoughts" in warning for warning in prepared(two, templates()["qwen3"]).report.warnings)
    shown = prepared([{"prompt": "q", "completion": "a", "tools": TOOLS}], CHATML).report.warnings
    assert any("1 row with tools" in warning for warning in shown)


def test_answers_before_the_last_without_an_end_are_counted() -> None:
    last = (
        "{% for m in messages %}{{ m.role + ': ' + m.content }}{{ '<|im_end|>' if loop.last else '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    answers = [{"role": "assistant", "content": word} for word in ("worda", "wordb")]
    one, two = ([user("qworda"), answers[0]], [user("qworda"), answers[0], user("qwordb"), answers[1]])
    rows = [{"messages": one}, {"messages": two}, {"messages": [user("qwordc"), answers[1]]}]
    said = [w for w in prepared(rows, last).report.warnings if "before" in w or "earlier answer" in w]
    assert len(said) == 1
    assert said[0].startswith("1 conversations have an earlier answer")
    assert not any("earlier answer" in w for w in prepared(rows, CHATML).report.warnings)
    assert not any("earlier answer" in w for w in prepared(rows, last, train_on="all").report.warnings)


@pytest.mark.parametrize("name", NAMES)
def test_no_real_template_leaves_an_answer_without_its_end(name: str) -> None:
    encoder = Encoder(fast := tokenizer(templates()[name]), ChatTemplate(fast))
    encoder.encode([Chat(TALKS["thoughts of their own"])])
    assert (encoder.midway, encoder.unended) == (0, 0)


def test_a_row_with_a_hole_is_refused_with_its_place() -> None:
    good = {"messages": [user("q"), {"role": "assistant", "content": "a"}]}
    called = {"messages": TALKS["calls"]}
    with pytest.raises(DataError, match="leaves out the tool calls of message 1") as caught:
        prepared([good, called], CHATML)
    assert "row 1" in str(caught.value.place)
    report = prepared([good, called], CHATML, on_error="skip").report
    assert report.used == 1
    assert [fate[1:3] for fate in report.fates] == [(1, "dropped")]
    with pytest.raises(DataError, match="message 0, of the role `system`"):
        prepared([{"messages": [{"role": "system", "content": "s"}, *good["messages"]]}], RECREATED["olmo"])


FIRST_CALL = CHATML.replace(
    "message['content'] + ",
    "message['content'] + ((message.tool_calls[0].function | tojson) if message.tool_calls else '') + ",
)
BEGINNING = CHATML.replace("message['content']", "message['content'][:12]")


@pytest.mark.parametrize(
    ("template", "messages", "said"),
    [
        ("qwen3", [user("q"), {"role": "assistant", "content": "<think>t</think>One <think>u</think>two"}], "a part"),
        (BEGINNING, [user("a question of some length"), {"role": "assistant", "content": "a"}], "a part"),
        (BEGINNING, [user("  short   "), {"role": "assistant", "content": "a"}], ""),
        (CHATML, [{**user("q"), "images": ["a.png"]}, {"role": "assistant", "content": "a"}], "`images`"),
        (CHATML, [user("q"), {"role": "assistant", "content": "a", "loss": False}], "`loss`"),
        (CHATML, [user("q"), {"role": "assistant", "content": "a", "thoughts": "hm"}], "`thoughts`"),
        (CHATML, [{**user("q"), "name": "Ada", "id": 7}, {"role": "assistant", "content": "a"}], "`name`"),
        (CHATML, [{**user("I, Ada"), "name": "Ada", "id": 7}, {"role": "assistant", "content": "a"}], ""),
    ],
)
def test_parts_of_a_message_that_nothing_reads_are_counted(template: str, messages: list[Any], said: str) -> None:
    warnings = prepared([{"messages": messages}], templates().get(template, template)).report.warnings
    told = [warning for warning in warnings if warning.startswith("there is 1 row")]
    assert len(told) == bool(said)
    assert said in "".join(told)


def test_the_second_of_two_calls_is_missed() -> None:
    def talk(*names: str) -> dict[str, Any]:
        calls = [
            {"type": "function", "function": {"name": name, "arguments": {"a": at}}} for at, name in enumerate(names)
        ]
        return {"messages": [user("q"), {"role": "assistant", "content": "", "tool_calls": calls}]}

    assert prepared([talk("f")], FIRST_CALL).report.used == 1
    for names in (("f", "g"), ("f", "f")):
        with pytest.raises(DataError, match="leaves out the tool calls of message 1"):
            prepared([talk(*names)], FIRST_CALL)
        assert prepared([talk(*names)], templates()["qwen2_5"]).report.used == 1


def test_calls_and_tools_in_openais_older_spelling_are_read() -> None:
    talk = [
        user("q"),
        {"role": "assistant", "content": None, "function_call": {"name": "weather", "arguments": '{"city": "cword"}'}},
        {"role": "function", "name": "weather", "content": "rword"},
        {"role": "assistant", "content": "a"},
    ]
    made = prepared([{"messages": talk, "functions": [TOOLS[0]["function"]]}], templates()["qwen2_5"], 4096)
    text = tokenizer(templates()["qwen2_5"]).decode(made.train[0].input_ids)
    assert "cword" in text
    assert TOOLS[0]["function"]["description"] in text
