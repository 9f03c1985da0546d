"""Which column plays which role, what a row of each format says, and what a yes or no is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nbtune.data.formats.detect import detect
from nbtune.data.formats.reader import Parts
from nbtune.data.formats.values import flag, own_choice
from nbtune.errors import DataError, NbtuneError
from nbtune.spec import SourceSpec

NAN = float("nan")
ASK, SAY = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}


def form(row: dict[str, Any], kind: str = "sft", **fields: Any) -> Any:
    return detect(list(row), [row], SourceSpec(source="rows", **fields), "rows", kind)


def told(text: Any) -> Any:
    """A text as (role, words) of messages, or as (words, whether they are trained)."""
    if isinstance(text, Parts):
        return list(text.parts)
    return [(message["role"], message["content"]) for message in text.messages]


YES, NO = (
    (True, 1, 1.0, "true", " Yes ", "1", np.bool_(True), np.int64(1)),
    (False, 0, 0.0, "false", "NO", "0", np.int64(0)),
)
NEITHER = (2, -1, 0.5, NAN, "", "maybe", "10", None, [1], {}, np.int64(2), b"yes")


def test_a_yes_is_a_yes_and_a_no_a_no_and_nothing_else_is_either() -> None:
    assert [flag(value, "it") for value in (*YES, *NO)] == [True] * len(YES) + [False] * len(NO)
    for value in NEITHER:
        with pytest.raises(DataError, match="not a yes or no"):
            flag(value, "it")


@pytest.mark.parametrize("key", ["weight", "loss_weight"])
def test_a_weight_of_a_message_leaves_it_out_or_says_nothing(key: str) -> None:
    for value in (1, 1.0, "1", np.int64(1), None, NAN):
        assert own_choice({key: value}, "it") is None
    for value in (0, 0.0, "0", np.float32(0)):
        assert own_choice({key: value}, "it") is False
    for value in (2, -1, 0.5, "half", [0]):
        with pytest.raises(DataError, match=f"`{key}` of it is .*trained .1. or not .0."):
            own_choice({key: value}, "it")
    assert own_choice({"train": True, key: 0}, "it") is True, "what says yes or no comes before a weight"
    assert own_choice({"training": "no", "train": None}, "it") is False


# -- rows to imitate -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("row", "fields", "mapping"),
    [
        ({"messages": [ASK, SAY], "conversations": [ASK]}, {}, {"messages": "messages"}),
        ({"messages": [ASK], "conversations": [ASK, SAY]}, {"columns": {"messages": "conversations"}},
         {"messages": "conversations"}),
        ({"id": 7, "Conversation": [ASK, SAY]}, {}, {"messages": "Conversation"}),
        ({"odd": [{"x": 1}], "talk": [ASK, SAY]}, {}, {"messages": "talk"}),
        ({"prompt": "q", "answer": 7, "response": "a"}, {}, {"prompt": "prompt", "completion": "response"}),
        ({"question": "q", "answer": "a", "response": "b"}, {"columns": {"completion": "response"}},
         {"prompt": "question", "completion": "response"}),
        ({"instruction": "q", "output": "a", "tools": None, "history": None}, {"format": "alpaca"},
         {"instruction": "instruction", "output": "output", "history": "history", "tools": "tools"}),
        ({"note": 7, "words": "w"}, {"format": "text"}, {"text": "words"}),
        ({"text": "w", "words": "v"}, {"format": "text"}, {"text": "text"}),
        ({"document": "w", "text": "v"}, {"format": "text"}, {"text": "text"}),
    ],
)  # fmt: skip
def test_a_role_is_played_by_the_column_that_says_so(
    row: dict[str, Any], fields: dict[str, Any], mapping: dict[str, str]
) -> None:
    got = form(row, **fields)
    assert {role: column for role, column in got.mapping.items() if column is not None} == mapping
    assert got.read(row)


def test_two_columns_of_text_are_not_one() -> None:
    with pytest.raises(NbtuneError, match="no column `text`"):
        form({"words": "w", "more": "v"}, format="text")


@pytest.mark.parametrize("history", [None, [], NAN])
def test_a_history_may_be_empty(history: Any) -> None:
    row = {"instruction": "q", "output": "a", "history": history}
    assert told(form(row, format="alpaca").read(row)) == [("user", "q"), ("assistant", "a")]


def test_a_history_is_questions_and_answers_of_text_alone() -> None:
    row: dict[str, Any] = {"instruction": "q", "output": "a", "history": [["p", "b"], ["r", 7]]}
    before = [("user", "p"), ("assistant", "b"), ("user", "r"), ("assistant", "7")]
    assert told(form(row, format="alpaca").read(row)) == [*before, ("user", "q"), ("assistant", "a")]
    for bad in ([["p", NAN]], [["p", None]], [["p"]], [["p", "b", "c"]], "p", 7, [["p", ["b"]]]):
        with pytest.raises(DataError, match="history"):
            form(row, format="alpaca").read({**row, "history": bad})


def test_pieces_are_trained_unless_they_say_no() -> None:
    pieces: list[Any] = [
        {"text": "a", "label": True},
        {"text": "b", "label": 0},
        {"text": "c"},
        {"text": "d", "label": NAN},
    ]
    got = form({"segments": pieces}, format="segments")
    read = got.read({"segments": pieces})
    assert told(read) == [("a", True), ("b", False), ("c", True), ("d", True)]
    assert (read.raw, read.ends) == (True, False)
    for bad in ([{"text": "a"}, "b"], ["b", {"text": "a"}], [{"text": 7}], [{"text": "a"}, {"label": True}], "a", None):
        with pytest.raises(DataError, match="must be a list of"):
            got.read({"segments": bad})


# -- rows that judge -----------------------------------------------------------------------------------------------

PAIR = {"prompt": "q", "chosen": "a", "rejected": "b"}


@pytest.mark.parametrize("higher", ["chosen", "rejected"])
@pytest.mark.parametrize(
    ("one", "other"),
    [("score_chosen", "score_rejected"), ("chosen_rating", "rejected_rating"), ("CHOSEN_SCORE", "REJECTED_SCORE")],
)
def test_a_pair_whose_scores_are_the_other_way_round_is_doubted(one: str, other: str, higher: str) -> None:
    scores = (2, 1) if higher == "chosen" else (1, 2)
    row = {**PAIR, "score": 3, one: scores[0], other: scores[1]}  # one of no answer stands before them
    read = form(row, "pairs").read
    assert read(row).doubted == (higher == "rejected")
    for same in ((1, 1), (1, "2"), (None, 2), (1, None)):
        assert not read({**row, one: same[0], other: same[1]}).doubted
    alone = {key: value for key, value in row.items() if key != other}
    assert not form(alone, "pairs").read(alone).doubted


def test_a_margin_is_a_number_from_0_on() -> None:
    row = {**PAIR, "margin": 0.5}
    read = form(row, "pairs").read
    for value, by in ((0, 1.0), (0.5, 1.5), (np.float32(2), 3.0), (None, 1.0), (NAN, 1.0)):
        assert read({**row, "margin": value}).values == (by, 0.0)
    for bad in (True, -0.1, "1", float("inf"), [1]):
        with pytest.raises(DataError, match=r"`margin` is .*, not a number from 0 on"):
            read({**row, "margin": bad})


SAID = {1: True, 0: False, -1: False, "Yes": True, "no": False, "1": True}


@pytest.mark.parametrize("name", ["label", "kto_tag", "rating"])
def test_what_is_judged_is_the_last_answer(name: str) -> None:
    talk = [ASK, SAY, {"role": "user", "content": "r"}, {"role": "assistant", "content": "b"}]
    rows: list[dict[str, Any]] = [
        {"prompt": "q", "completion": "a", name: True}, {"messages": [ASK, SAY], name: True},
        {"prompt": [ASK], "completion": [SAY], name: True}, {"prompt": [ASK], "completion": [ASK, SAY], name: True},
        {"completion": [ASK, SAY], name: True}, {"completion": [ASK, SAY], "system": "s", name: True},
    ]  # fmt: skip
    for row in rows:
        got = form(row, "feedback")
        assert got.mapping["label"] == name
        whole = [("system", "s")] * ("system" in row) + [("user", "q"), ("assistant", "a")]
        for value, good in SAID.items():
            read = got.read({**row, name: value})
            assert (told(read.rows[0]), read.values) == (whole, (float(good),))
    long = form({"messages": talk, name: 1}, "feedback").read({"messages": talk, name: 1})
    assert [message.get("train") for message in long.rows[0].messages] == [None, False, None, None]
    for row in ({"prompt": "q", "completion": None, name: 1}, {"messages": [ASK], name: 1}):
        with pytest.raises(DataError, match=r"that could be judged|whose last message is the user's"):
            form({**row, **({"completion": "a"} if "completion" in row else {})}, "feedback").read(row)


def test_an_answer_alone_that_is_judged_is_text_and_no_talk() -> None:
    row = {"completion": "a", "label": 1, "system": "s"}
    assert told(form(row, "feedback").read(row).rows[0]) == [("a", True)]


def test_conversations_share_what_both_begin_with() -> None:
    last = [SAY, {"role": "assistant", "content": "b"}]
    for before in ([ASK], [ASK, SAY, {"role": "user", "content": "r"}]):
        row = {"chosen": [*before, last[0]], "rejected": [*before, last[1]]}
        read = form(row, "pairs").read(row)
        for text, answer in zip(read.rows, last, strict=True):
            assert told(text) == [(m["role"], m["content"]) for m in [*before, answer]]
            assert [m.get("train") for m in text.messages if m["role"] == "assistant"][:-1] == [False] * (
                len(before) // 2
            )
        longer = {**row, "rejected": [*before, last[1], ASK, SAY]}
        assert len(told(form(longer, "pairs").read(longer).rows[1])) == len(before) + 3


@pytest.mark.parametrize("bad", [None, "a", [], ["a", 7], [7, "a"], ["a", ""], ["a", "\n"], {"a": 1}])
def test_steps_are_texts_that_can_be_told_apart(bad: Any) -> None:
    row = {"prompt": "q", "completions": ["a", "b"], "labels": [True, False]}
    got = form(row, "stepwise")
    read = got.read(row)
    assert told(read.rows[0]) == [("q", False), ("a", False), ("\n", True), ("b", False), ("\n", True)]
    assert (read.values, read.steps) == ((0.0,), (True, False))
    assert got.read({**row, "labels": [1, "yes"]}).values == (1.0,)
    for wrong in ({"completions": bad}, {"labels": [True]}, {"labels": True}):
        with pytest.raises(DataError):
            got.read({**row, **wrong})


def test_a_label_is_its_place_among_those_that_are_named() -> None:
    row = {"text": "w", "label": "bad"}
    read = form(row, "labelled").read(row)
    assert [read.judged(names) for names in (("bad", "good"), ("good", "bad"), ())] == [(0.0,), (1.0,), (0.0,)]
    with pytest.raises(DataError, match="its label 'bad' is none of good, fine"):
        read.judged(("good", "fine"))
