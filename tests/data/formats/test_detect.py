"""What rows mean: detected, named, or refused with the way to say it."""

from __future__ import annotations

from typing import Any

import pytest

from nbtune.data.formats.detect import detect
from nbtune.data.formats.messages import Chat
from nbtune.data.formats.reader import Parts
from nbtune.errors import DataError, NbtuneError, SpecError
from nbtune.spec import SourceSpec


def read(row: dict[str, Any], **fields: Any) -> tuple[str, dict[str, str], Any]:
    form = detect(list(row), [row], SourceSpec(source="rows", **fields), "rows")
    return form.name, form.mapping, form.read(row)


def turns(chat: Any) -> list[tuple[str, str]]:
    assert isinstance(chat, Chat)
    return [(message["role"], message["content"]) for message in chat.messages]


QA = [("user", "q"), ("assistant", "a")]
CHATS = [
    ({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}, "messages", QA),
    ({"chat": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "id": 3}, "messages", QA),
    ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, "sharegpt", QA),
    (
        {"system": "s", "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        "sharegpt",
        [("system", "s"), *QA],
    ),
    ({"instruction": "q", "output": "a"}, "alpaca", QA),
    ({"instruction": "q", "input": "", "output": "a"}, "alpaca", QA),
    ({"instruction": "q", "input": "i", "output": "a"}, "alpaca", [("user", "q\n\ni"), ("assistant", "a")]),
    (
        {"instruction": "q", "output": "a", "system": "s", "history": [["q0", "a0"]]},
        "alpaca",
        [("system", "s"), ("user", "q0"), ("assistant", "a0"), *QA],
    ),
    ({"prompt": "q", "completion": "a"}, "prompt-completion", QA),
    ({"Question": "q", "Answer": "a", "n": 3}, "prompt-completion", QA),
    ({"input": "q", "output": "a"}, "prompt-completion", QA),
    ({"query": "q", "response": "a"}, "prompt-completion", QA),
    (
        {
            "prompt": [{"role": "user", "content": "q"}],
            "completion": [{"role": "assistant", "content": "a"}],
        },
        "prompt-completion",
        QA,
    ),
]


@pytest.mark.parametrize(("row", "name", "expected"), CHATS)
def test_chats(row: dict[str, Any], name: str, expected: list[tuple[str, str]]) -> None:
    found, _, chat = read(row)
    assert found == name
    assert turns(chat) == expected


def test_text() -> None:
    for row in ({"text": "t"}, {"content": "t", "url": "u"}, {"anything": "t"}):
        name, _, parts = read(row)
        assert name == "text"
        assert parts == Parts((("t", True),), windows=True)


def test_segments() -> None:
    name, _, parts = read({"segments": [{"text": "<s>q", "label": False}, {"text": "a</s>", "label": True}]})
    assert name == "segments"
    assert parts == Parts((("<s>q", False), ("a</s>", True)), ends=False, raw=True)


def test_columns_that_are_named_win() -> None:
    row = {"frage": "q", "antwort": "a", "text": "t"}
    name, mapping, chat = read(row, columns={"prompt": "frage", "completion": "antwort"})
    assert (name, mapping) == ("prompt-completion", {"prompt": "frage", "completion": "antwort"})
    assert turns(chat) == QA
    name, mapping, _ = read({"a": "x", "b": "y"}, columns={"text": "b"})
    assert (name, mapping) == ("text", {"text": "b"})


def test_a_format_that_is_named_wins() -> None:
    row = {"prompt": "q", "completion": "a", "text": "t"}
    assert read(row, format="completion")[2] == Parts((("t", True),), windows=True)
    assert read(row, format="alpaca", columns={"instruction": "text"})[1] == {
        "instruction": "text",
        "output": "completion",
    }


@pytest.mark.parametrize(
    ("row", "fields", "message", "hint"),
    [
        (
            {"question": "q", "reply": "a"},
            {"columns": {"prompt": "qestion", "completion": "reply"}},
            "qestion",
            "question",
        ),
        ({"x": "1", "y": "2"}, {}, "`x`, `y`", "columns"),
        ({"text": "t"}, {"format": "alpaka"}, "alpaka", "alpaca"),
        ({"x": "t", "y": "u"}, {"format": "alpaca"}, "instruction", "columns"),
        ({"x": "t"}, {"format": "messages"}, "messages", "columns"),
    ],
)
def test_columns_and_formats_that_are_not_there(row: Any, fields: Any, message: str, hint: str) -> None:
    with pytest.raises(NbtuneError, match=message) as caught:
        read(row, **fields)
    assert hint in caught.value.fix
    assert caught.value.place == "rows"
    assert isinstance(caught.value, SpecError | DataError)


def _advice(row: dict[str, Any], kind: str = "sft") -> str:
    with pytest.raises(DataError) as caught:
        detect(list(row), [row], SourceSpec(source="crew.csv"), "crew.csv", kind)
    return str(caught.value.fix)


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ("frage antwort", "{prompt: frage, completion: antwort}"),
        ("Antwort id Frage", "{prompt: Frage, completion: Antwort}"),
        ("kontext frage antwort", "{prompt: frage, completion: antwort, context: kontext}"),
        ("context question answers", "{prompt: question, completion: answers, context: context}"),
        ("质量 问题 回答", "{prompt: 问题, completion: 回答}"),
        ("q a", "{prompt: q, completion: a}"),
    ],
)
def test_columns_are_proposed_only_by_what_they_are_called(columns: str, said: str) -> None:
    row = dict.fromkeys(columns.split(), "x")
    advice = _advice(row)
    assert f"`data: {{source: crew.csv, columns: {said}}}`" in advice
    # what is proposed is read as it says
    spec = SourceSpec(source="crew.csv", columns=from_mapping_of(said))
    assert detect(list(row), [row], spec, "crew.csv").mapping == dict(spec.columns)


def from_mapping_of(text: str) -> dict[str, str]:
    return dict(pair.split(": ") for pair in text.strip("{}").split(", "))


@pytest.mark.parametrize(
    "row",
    [
        {"context": "c", "question": "q", "answers": {"text": ["a"], "answer_start": [1]}},  # SQuAD
        {"a: b": "x", "2": "x"},
        {"title": "t", "url": "u"},
        {"question": "q", "antwort": "a", "reply": "b"},  # which of two?
        {"frage": "q", "vraag": "q", "antwort": "a"},
        {"frage": "q", "antwort": 3.0, "label": 1},
        {"chosen": "a", "frage": "b"},
        {"context": "c", "passage": "p", "frage": "q", "antwort": "a"},
    ],
)
def test_columns_whose_names_say_nothing_are_asked_for(row: dict[str, Any]) -> None:
    advice = _advice(row)
    assert "columns: {prompt: …, completion: …}" in advice
    assert not any(f"prompt: {column}" in advice or f"completion: {column}" in advice for column in row)
    if isinstance(row.get("answers"), dict):
        assert "`answers`" in advice


@pytest.mark.parametrize(("kind", "wanted"), [("pairs", "prompt: …, chosen: …, rejected: …"), ("feedback", "label: …")])
def test_columns_that_a_method_wants_are_named(kind: str, wanted: str) -> None:
    assert wanted in _advice({"frage": "q", "antwort": "a"}, kind)


def test_preferences_are_recognised_and_not_for_sft() -> None:
    row = {"prompt": "q", "chosen": "a", "rejected": "b"}
    form = detect(list(row), [row], SourceSpec(source="rows"), "rows")
    assert (form.name, form.kind) == ("preference", "pairs")
    with pytest.raises(DataError, match="sft") as caught:
        form.check("sft", "rows")
    assert "chosen" in caught.value.fix
    fields = {"format": "prompt-completion", "columns": {"prompt": "prompt", "completion": "chosen"}}
    assert turns(read(row, **fields)[2]) == QA


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        (None, "missing"),
        ("hello", "str"),
        ([], "no messages"),
        (["x"], "message 0"),
        ([{"role": "user"}], "no content"),
        ([{"content": "x"}], "no usable role"),
        ([{"role": "<|im_end|>", "content": "x"}], "no usable role"),
        ([{"role": "user", "content": {"x": 3}}], "dict, not text"),
        ([{"role": "user", "content": [{"type": "image"}]}], "image"),
        ([{"role": "function_call", "content": "no json"}], "not JSON"),
    ],
)
def test_messages_that_are_none(messages: Any, message: str) -> None:
    good = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
    form = detect(["messages"], [good], SourceSpec(source="rows"), "rows")
    with pytest.raises(DataError, match=message) as caught:
        form.read({"messages": messages})
    assert caught.value.fix


def test_spellings_of_roles_parts_and_calls() -> None:
    chat = read(
        {
            "conversations": [
                {"from": "system", "value": "s"},
                {"from": "human", "value": "q"},
                {"from": "function_call", "value": '{"name": "f", "arguments": {"x": 1}}'},
                {"from": "observation", "value": "7"},
                {"from": "gpt", "value": "a"},
            ]
        }
    )[2]
    assert [m["role"] for m in chat.messages] == ["system", "user", "assistant", "tool", "assistant"]
    assert chat.messages[2]["tool_calls"][0]["function"] == {"name": "f", "arguments": {"x": 1}}
    parts = [{"type": "text", "text": "q1 "}, {"type": "text", "text": "q2"}]
    chat = read({"messages": [{"role": "user", "content": parts}, {"role": "assistant", "content": "a"}]})[2]
    assert chat.messages[0]["content"] == "q1 q2"
    text = '[{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]'
    assert turns(read({"messages": text}, format="messages")[2]) == QA


PEER_ROWS = [
    ("alpaca_chat.load_qa", {"question": "q", "answer": "a"}),
    ("alpaca_chat.load_camel_ai", {"message_1": "q", "message_2": "a"}),
    ("alpaca_w_system.load_open_orca", {"question": "q", "response": "a"}),
    ("alpaca", {"instruction": "q", "output": "a"}),
    ("alpaca:chat", {"instruction": "q", "output": "a"}),
    ("gpteacher", {"instruction": "q", "response": "a"}),
    ("metharme", {"prompt": "q", "generation": "a"}),
    ("oasst", {"INSTRUCTION": "q", "RESPONSE": "a"}),
    ("summarizetldr", {"article": "q", "summary": "a"}),
    ("chat_template", {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}),
    ("pygmalion", {"conversations": [{"role": "human", "value": "q"}, {"role": "bot", "value": "a"}]}),
    ("sharegpt", {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}),
    ("openai", {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}),
]


@pytest.mark.parametrize(("name", "row"), PEER_ROWS)
def test_names_that_peers_have(name: str, row: dict[str, Any]) -> None:
    assert turns(read(row, format=name)[2]) == QA


@pytest.mark.parametrize(
    ("name", "row", "said"),
    [
        ("explainchoice", {"question": "q", "choices": ["a", "b"], "explanation": "e"}, ['q\n\n- "a"\n- "b"', "e"]),
        ("concisechoice", {"question": "q", "choices": ["a", "b"], "solution": "s"}, ['q\n\n- "a"\n- "b"', "s"]),
        ("jeopardy", {"question": "q", "category": "c", "answer": "a"}, ["q\n\nc", "what is a"]),
        (
            "reflection",
            {"instruction": "i", "input": "", "output": "o", "reflection": "r", "corrected": "c"},
            ["i", "o", "r", "c"],
        ),
        ("creative_acr.load_answer", {"instruction": "i", "answer": "x", "revision": "r"}, ["i", "r"]),
    ],
)
def test_axolotls_formats_with_a_shape_of_their_own(name: str, row: dict[str, Any], said: list[str]) -> None:
    assert [text for _, text in turns(read(row, format=name)[2])] == said


@pytest.mark.parametrize(
    ("name", "row", "format_"),
    [
        ("chatml.intel", {"system": "s", "question": "q", "chosen": "a", "rejected": "b"}, "preference"),
        ("llama3.icr", {"input": "q", "chosen": "a", "rejected": "b"}, "preference"),
        ("chatml.argilla", {"instruction": "q", "chosen_response": "a", "rejected_response": "b"}, "preference"),
        (
            "chatml.ultra",
            {"prompt": "q", "chosen": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
            | {"rejected": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "b"}]},
            "preference",
        ),
        ("chatml.prompt_pairs", {"prompt": "q", "completion": "a", "label": True}, "feedback"),
        (
            "llama3.argilla_chat",
            {"completion": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "label": True},
            "feedback",
        ),
        ("passthrough", {"prompt": "q", "chosen": "a", "rejected": "b"}, "preference:plain"),
    ],
)
def test_axolotls_names_of_judged_rows(name: str, row: dict[str, Any], format_: str) -> None:
    form = detect(list(row), [row], SourceSpec(source="rows", format=name), "rows")
    assert form.name == format_
    first = form.read(row).rows[0]
    if format_.endswith("plain"):
        assert first.parts == (("q", False), ("a", True))
    else:
        assert [m["content"] for m in first.messages][-2:] == ["q", "a"]
        assert [m["content"] for m in first.messages].count("q") == 1


def test_every_peers_name_leads_somewhere() -> None:
    from nbtune.data.formats.aliases import PEERS
    from nbtune.data.formats.detect import FORMATS

    assert {target.split(":")[0] for target, _ in PEERS.values()} <= set(FORMATS)


def test_plain_styles_need_no_template() -> None:
    row = {"instruction": "Add.", "input": "1, 2", "output": "3"}
    name, _, parts = read(row, format="alpaca:plain")
    assert name == "alpaca:plain"
    asked, said = parts.parts
    assert said == ("3", True)
    assert asked[0].startswith("Below is an instruction that describes a task, paired with an input")
    assert asked[0].endswith("### Instruction:\nAdd.\n\n### Input:\n1, 2\n\n### Response:\n")
    assert asked[1] is False
    row = {"prompt": "q ", "completion": "a"}
    assert read(row, format="prompt-completion:plain")[2] == Parts((("q ", False), ("a", True)))


def test_messages_with_keys_and_roles_of_their_own() -> None:
    row = {"talk": [{"who": "Customer", "says": "q"}, {"who": "Agent", "says": "a"}]}
    columns = {"messages": "talk", "role": "who", "content": "says", "user": "Customer", "assistant": "Agent"}
    assert turns(read(row, format="messages", columns=columns)[2]) == QA
    assert turns(read(row, columns=columns)[2]) == QA


@pytest.mark.parametrize(
    ("row", "name"),
    [
        ({"prompt": "q", "chosen": "a", "rejected": "b"}, "preference"),
        ({"chosen": [{"role": "user", "content": "q"}], "rejected": [{"role": "user", "content": "q"}]}, "preference"),
        ({"prompt": "q", "completion": "a", "label": True}, "feedback"),
        ({"prompt": "q", "completions": ["a"], "labels": [True]}, "stepwise"),
        ({"prompt": "q"}, "prompts"),
        ({"prompt": [{"role": "user", "content": "q"}], "answer": "3"}, "prompts"),
    ],
)
def test_what_sft_cannot_learn_from_is_named(row: dict[str, Any], name: str) -> None:
    form = detect(list(row), [row], SourceSpec(source="rows"), "rows")
    assert form.name == name
    assert form.kind != "sft"
    with pytest.raises(DataError, match="cannot learn") as caught:
        form.check("sft", "rows")
    assert caught.value.fix
    assert caught.value.place == "rows"


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Reverse salt", "want": "tlas"},
        {"question": "2 + 2", "answer": "4"},
        {"problem": "2 + 2", "solution": "4", "level": 1},
        {"prompt": "q", "chosen": "a", "rejected": "b"},
    ],
)
def test_of_rows_whose_answers_are_judged_the_question_is_read_and_the_rest_is_for_the_rewards(
    row: dict[str, Any],
) -> None:
    form = detect(list(row), [row], SourceSpec(source="rows"), "rows", "prompts")
    form.check("prompts", "rows")
    assert form.unread == ""
    asked = form.read(row).rows[0]
    assert turns(asked) == [("user", next(iter(row.values())))]


def test_answers_within_a_prompt_are_not_learnt() -> None:
    talk = [{"role": "user", "content": "q0"}, {"role": "assistant", "content": "a0"}, {"role": "user", "content": "q"}]
    _, _, chat = read({"prompt": talk, "completion": [{"role": "assistant", "content": "a"}]})
    assert turns(chat) == [("user", "q0"), ("assistant", "a0"), *QA]
    assert [message.get("train") for message in chat.messages] == [False, False, False, None]
