"""Rows that judge, at their edges: what is learnt of them is what they say, and what cannot be is named."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from nbtune.data import Prepared, measure, resolve
from nbtune.errors import DataError, SpecError
from nbtune.spec import from_mapping
from tests.data.formats.test_preference import prepare, shown
from tests.data.making import CHATML, tokenizer

PAIR = {"prompt": "2+2?", "chosen": "4", "rejected": "5"}
SAYS: list[dict[str, str]] = [{"role": "user", "content": "hi"}]


def labelled(rows: list[Any], **fields: Any) -> Prepared:
    return prepare(rows, "labelled", method="classification", **fields)


def judged(prepared: Prepared) -> list[list[float]]:
    """The labels of each example's steps, in order."""
    told = [prepared.train.steps(i) for i in range(len(prepared.train))]
    return [values[~np.isnan(values)].tolist() for values in told if values is not None]


@pytest.mark.parametrize("other", ["4", "4 ", " 4"])
def test_a_pair_of_equal_answers_is_left_out_with_a_word(other: str) -> None:
    """Where the template strips what differs, as here, and where nothing does."""
    stripping = tokenizer(CHATML.replace("message['content']", "(message['content'] | trim)"))
    prepared = prepare([PAIR, PAIR | {"rejected": other}], "pairs", method="dpo", fast=stripping)
    assert [example.row for example in prepared.train] == [0, 0]
    assert any("1 of 2 rows is left out: both answers are the same" in w for w in prepared.report.warnings)


def test_answers_that_differ_only_beyond_what_is_kept_are_no_pair() -> None:
    long = PAIR | {"chosen": "word " * 100 + "a", "rejected": "word " * 100 + "b"}
    prepared = prepare([PAIR, long], "pairs", method="dpo", max_len=48)
    assert [f[3] for f in prepared.report.fates] == ["both answers are the same within 48 tokens: neither is better"]


def test_a_margin_that_nobody_reads_is_said() -> None:
    row = PAIR | {"margin": 2.0}
    assert any("dpo does not read it" in w for w in prepare([row], "pairs", method="dpo").report.warnings)
    assert not any("margin" in w for w in prepare([row], "pairs", method="reward").report.warnings)


def test_rows_that_are_left_out_are_counted_but_not_those_that_the_spec_leaves_out() -> None:
    rows = [{"prompt": "q", "completion": "a"}, {"prompt": "q", "completion": ""}, {"prompt": "q", "completion": None}]
    prepared = prepare(rows, "sft", on_error="skip")
    [said] = [w for w in prepared.report.warnings if "left out" in w]
    assert said.startswith("2 of 3 rows are left out (1: ")
    assert "`completion` is missing" in said
    assert "nothing in it would be trained" in said
    assert not any("left out" in w for w in prepare(rows[:1], "sft").report.warnings)


@pytest.mark.parametrize("overflow", ["truncate_left", "truncate_right"])
def test_steps_of_a_solution_that_is_cut_keep_their_own_labels(overflow: str) -> None:
    row = {"prompt": "2+3?\n", "completions": ["so it goes"] * 6, "labels": [True] * 3 + [False] * 3}
    whole = prepare([row], "stepwise", method="prm", max_len=400)
    assert judged(whole) == [[1, 1, 1, 0, 0, 0]]
    size = len(whole.train[0].input_ids)
    cut = prepare([row], "stepwise", method="prm", max_len=size * 2 // 3, overflow=overflow)
    [left] = judged(cut)
    assert 3 <= len(left) <= 5
    assert left == ([1, 1, 1, 0, 0, 0][-len(left) :] if overflow == "truncate_left" else [1, 1, 1, 0, 0][: len(left)])


@pytest.mark.parametrize("steps", [["a", "", "c"], ["a", "b", ""], ["a", "\n", ""]])
def test_an_empty_step_is_refused_for_its_label_would_be_anothers(steps: list[str]) -> None:
    row = {"prompt": "q", "completions": steps, "labels": [True, False, True]}
    with pytest.raises(DataError, match="cannot be told apart"):
        prepare([row], "stepwise", method="prm")


@pytest.mark.parametrize("key", ["train_on", "train_spans", "terminators"])
@pytest.mark.parametrize("method", ["prm", "reward", "classification"])
def test_which_tokens_are_trained_is_nothing_to_a_method_that_scores(method: str, key: str) -> None:
    value = {"train_on": "all", "train_spans": [{"match": "a", "train": False}], "terminators": "none"}[key]
    with pytest.raises(SpecError, match=f"drop `{key}`"):
        from_mapping({"data": "rows", "method": method, key: value})


def test_a_conversation_that_ends_with_a_question_has_a_label() -> None:
    rows = [{"messages": SAYS, "label": label} for label in "ab"]
    prepared = labelled([*rows, {"messages": SAYS, "label": "a", "system": "s"}])
    assert [text for text, _ in shown(prepared)][1:] == [
        "<|im_start|>user\nhi<|im_end|>\n",
        "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n",
    ]
    assert prepared.train.value_of is not None
    assert prepared.train.value_of.tolist() == [0, 1, 0]
    assert len(labelled([{"text": text, "label": text} for text in "ab"]).train) == 2  # a token each


@pytest.mark.parametrize("labels", [["²", "1"], ["--1", "1"], ["9" * 5000, "1"]])
def test_labels_that_look_like_numbers_are_labels(labels: list[str]) -> None:
    assert len(labelled([{"text": "some text", "label": label} for label in labels]).train) == 2


def test_labels_that_differ_in_case_are_asked_about() -> None:
    rows = [{"text": "some text", "label": label} for label in (True, "True", "no")]
    assert "`True` and `true` are two labels: spell them alike, if they mean the same" in labelled(rows).report.warnings
    assert not any("two labels" in w for w in labelled(rows[::2]).report.warnings)


@pytest.mark.parametrize("good", ["1", 1, 1.0, "yes", True])
def test_judged_answers_are_known_by_their_columns_however_the_label_is_spelled(good: Any) -> None:
    rows = [{"prompt": "q", "completion": "a", "label": good}, {"prompt": "q", "completion": "b", "label": good}]
    prepared = prepare(rows, "feedback", method="kto")
    assert prepared.train.value_of is not None
    assert prepared.train.value_of.tolist() == [1, 1]
    assert any("all answers are judged good" in w for w in prepared.report.warnings)
    with pytest.raises(DataError, match="not a yes or no"):
        prepare([rows[0], rows[0] | {"label": "maybe"}], "feedback", method="kto")


def test_texts_to_continue_are_known_by_their_column_also_where_some_are_numbers() -> None:
    assert prepare([{"text": "a b"}, {"text": 5}], "texts", method="pretrain").report.sources[0].format == "text"


def test_a_plan_sees_the_rows_that_are_trained_by_their_roles() -> None:
    spec = from_mapping({"data": "rows", "train_on": ["user"]})
    facts = measure(resolve(spec.data, {"rows": [{"messages": SAYS}] * 4}), tokenizer(CHATML), spec)
    assert facts.longest > 0
    assert facts.trained_tokens > 0


def test_numbers_and_truths_of_numpy_are_numbers_and_truths() -> None:
    pair = prepare([PAIR | {"margin": np.int64(2)}], "pairs", method="reward")
    assert pair.train.value_of is not None
    assert pair.train.value_of.tolist() == [3, 0]
    rows = [{"text": "some text", "label": label} for label in (np.int64(1), np.bool_(True), np.str_("c"), 1)]
    assert len(labelled(rows).train) == 4
    with pytest.raises(DataError, match="not a number from 0 on"):
        prepare([PAIR | {"margin": np.bool_(True)}], "pairs", method="reward")
