"""Oddities of the data are found and said."""

from __future__ import annotations

import random
from typing import Any

import pytest

import nbtune.data
from nbtune.data import Prepared, resolve
from nbtune.data.prepare.quality_checks import near_duplicates
from nbtune.spec import SourceSpec, from_mapping
from tests.data.making import CHATML, tokenizer


def prepare(rows: list[Any], **fields: Any) -> Prepared:
    spec = from_mapping({"data": "rows", **fields})
    return nbtune.data.prepare_data(
        resolve(spec.data, {"rows": rows}), tokenizer(CHATML), spec=spec, max_len=4096, seed=1
    )


def different(count: int, seed: int = 0, words: int = 40) -> list[dict[str, str]]:
    rng = random.Random(seed)

    def text() -> str:
        return " ".join("".join(rng.choices("abcdefghij", k=5)) for _ in range(words))

    return [{"prompt": text(), "completion": text()} for _ in range(count)]


def said(prepared: Prepared, part: str) -> bool:
    return any(part in warning for warning in prepared.report.warnings)


def test_clean_data_has_no_warnings() -> None:
    assert prepare(different(60)).report.warnings == []


def test_a_question_without_words_is_said() -> None:
    rows = different(40)
    sums = [{"prompt": " \n", "completion": "Sum: 120"}, {"prompt": "", "completion": "Mean: 3"}]
    assert said(prepare([*rows, *sums]), "2 rows have an empty question")
    assert said(prepare([*rows, sums[0]]), "1 row has an empty question: its answer is learnt all the same")
    assert not said(prepare(rows), "empty question")


def test_near_duplicates_are_found_and_others_are_not() -> None:
    rows = different(40)
    nearly = [{"prompt": r["prompt"], "completion": r["completion"] + " x"} for r in rows[:10]]
    prepared = prepare([*rows, *nearly], eval={"split": 0})
    pairs = near_duplicates([prepared.train])
    assert {(left[1], right[1]) for left, right in pairs} == {(i, 40 + i) for i in range(10)}
    assert said(prepared, "nearly the same as another one")


def test_rows_that_repeat_are_counted_in_one_sentence() -> None:
    rows = different(8)
    alike = prepare(rows * 5, eval={"split": 0})
    assert said(alike, "32 rows repeat another one")
    assert not said(alike, "nearly the same")
    nearly = [{"prompt": r["prompt"], "completion": r["completion"] + " x"} for r in rows]
    both = prepare(rows * 2 + nearly, eval={"split": 0})
    assert said(both, "8 rows repeat another one")
    assert said(both, "of 24 examples are nearly the same as another one")


@pytest.mark.parametrize(("count", "verb"), [(3, "are"), (1, "is")])
def test_leaks_into_the_held_out_rows_are_found(count: int, verb: str) -> None:
    rows = different(20)
    leak = [{"prompt": r["prompt"], "completion": r["completion"] + " x"} for r in rows[:count]]
    spec = from_mapping({"data": "rows", "eval": {"data": "held"}})
    names = {"rows": rows, "held": [*leak, *different(5, seed=9)]}
    held = resolve([SourceSpec(source="held")], names, role="eval")
    prepared = nbtune.data.prepare_data(
        resolve(spec.data, names) + held, tokenizer(CHATML), spec=spec, max_len=4096, seed=1
    )
    assert said(prepared, f"{count} of {count + 5} held-out rows {verb} nearly the same")


@pytest.mark.parametrize(
    ("row", "part"),
    [
        ({"prompt": "<|im_start|>user\nhi<|im_end|>", "completion": "ho"}, "twice"),
        ({"prompt": "### Instruction: hi", "completion": "ho"}, "twice"),
        ({"text": "[INST] hi [/INST] ho"}, "twice"),
        (
            {"messages": [{"role": r, "content": "x"} for r in ("user", "user", "assistant")]},
            "two questions without an answer",
        ),
        (
            {"messages": [{"role": r, "content": "x"} for r in ("assistant", "user", "assistant")]},
            "begin with an answer",
        ),
        (
            {"messages": [{"role": r, "content": "x"} for r in ("user", "assistant", "assistant")]},
            "two answers without a question",
        ),
    ],
)
def test_odd_rows(row: dict[str, Any], part: str) -> None:
    assert said(prepare([row]), part)


def test_a_tool_between_two_answers_is_no_oddity() -> None:
    roles = ("user", "assistant", "tool", "assistant")
    assert not said(prepare([{"messages": [{"role": role, "content": "x"} for role in roles]}]), "two answers")


@pytest.mark.parametrize("name", ["score_{}", "{}_score", "{}-rating", "reward_{}"])
@pytest.mark.parametrize(("better", "worse"), [(3, 7), (1.5, 2), (7, 3), (3, 3), (None, 3), (3, "x"), (True, "")])
def test_a_rejected_answer_with_the_higher_score_is_counted(name: str, better: Any, worse: Any) -> None:
    pair = {"prompt": "q", "chosen": "a", "rejected": "b"}
    scores = {name.format("chosen"): better, name.format("rejected"): worse}
    rows = [{**pair, **scores}, {**pair, "prompt": "p", name.format("chosen"): 9, name.format("rejected"): 1}]
    spec = from_mapping({"data": "rows", "method": "dpo"})
    found = nbtune.data.prepare_data(
        resolve(spec.data, {"rows": rows}), tokenizer(CHATML), spec=spec, max_len=4096, seed=1, kind="pairs"
    )
    odd = isinstance(worse, int | float) and better is not None and better < worse
    assert said(found, "of 1 of 2 pairs the rejected answer has the higher score") == odd


def test_whole_numbers_that_a_frame_with_gaps_made_fractions_are_named() -> None:
    import pandas

    frame = pandas.DataFrame({"prompt": ["a", "b", "c"], "completion": [1, 2, None]})
    assert said(prepare(frame, on_error="skip"), "`completion` are learnt with a fraction, such as `1.0`")
    assert not said(prepare(frame.convert_dtypes(), on_error="skip"), "fraction")
    assert said(prepare(frame, data={"source": "rows", "template": "{{ completion }}"}), "`completion` are learnt")
    frame["completion"] = [1.5, 2, None]
    assert not said(prepare(frame, on_error="skip"), "fraction")


def test_outliers_and_repetitions() -> None:
    outlier = prepare([*different(9, words=3), {"prompt": "q", "completion": "word " * 900}])
    assert said(outlier, "1 example is more than 20 times as long")
    assert said(prepare(different(3) * 5), "12 rows repeat another one")
    few = different(3)
    assert said(prepare([*few, few[0]], eval={"split": 0}), "1 row repeats another one")


def test_one_row_that_was_cut_is_said_as_one() -> None:
    spec = from_mapping({"data": "rows", "eval": {"split": 0}})
    rows = [*different(3, words=2), {"prompt": "q", "completion": "word " * 900}]
    few = nbtune.data.prepare_data(
        resolve(spec.data, {"rows": rows}), tokenizer(CHATML), spec=spec, max_len=100, seed=1
    )
    assert said(few, "1 row was cut: its end, with the token that ends an answer, is not learnt")


def test_a_stream_is_read_as_other_rows_are() -> None:
    import datasets

    rows = [{"prompt": f"p{i}", "completion": "c"} for i in range(700)]
    stream = datasets.IterableDataset.from_generator(lambda: iter(rows))
    found = resolve([SourceSpec(source="s")], {"s": stream})[0]
    assert len(found.rows) == 700
    assert found.rows[699] == rows[699]
