"""Columns that say what is to be done with rows, and cells that hold messages as text: done, refused, or named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nbtune import data
from nbtune.data.prepare.prepare import prepare_data
from nbtune.data.sources.by_value import spec_with_named_rows
from nbtune.errors import DataError
from nbtune.models import load_tokenizer

ASKED = {"role": "user", "content": "Say tar"}
MESSAGES = [ASKED, {"role": "assistant", "content": "Tar it is"}]
PAIR = {"prompt": "Say tar", "completion": "Tar it is"}


def prepared(rows: Any, method: str = "sft", **source: Any) -> Any:
    asked: dict[str, Any] = {"data": {"source": "rows", **source}, "method": method, "eval": {"split": 0}}
    spec, variables = spec_with_named_rows(asked, {}, {"rows": rows}, 1)
    sources = data.resolve(spec.data, variables)
    return prepare_data(sources, load_tokenizer("nbtune/tiny"), spec=spec, max_len=128, seed=0)


def said(rows: list[dict[str, Any]], **asked: Any) -> str:
    return "\n".join(prepared(rows, **asked).report.warnings)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ([{"weight": 0}, {"weight": 2}], "`weight` changes nothing: how often a row counts is said by `row_weights`"),
        ([{"Sample_Weight": "0.5"}, {}], "`Sample_Weight` changes nothing"),
        ([{"weight": 1}, {"weight": 1.0}], ""),
        ([{"weight": None}, {"weight": float("nan")}], ""),
        ([{"weight": "12 kg"}, {}], ""),  # of what is spoken of
        ([{"split": "train"}, {"split": "Test"}], "rows whose `split` is `Test` are learnt like all others"),
        ([{"split": "train"}, {"split": "train"}], ""),
        ([{"subset": "held-out"}, {}], "rows whose `subset` is `held-out`"),
        ([{"role": "user"}, {"role": "assistant"}], ""),  # beside a question and its answer it is no role of a message
    ],
)
def test_what_is_to_be_done_with_a_row_is_named_where_nobody_does_it(more: list[dict[str, Any]], words: str) -> None:
    rows = [{**PAIR, "prompt": f"Say {i}", **one} for i, one in enumerate(more)]
    (found,) = [said(rows)]
    assert words in found
    assert words or not found


def test_it_is_named_in_rows_that_judge_too() -> None:
    pairs = [{"prompt": f"Say {i}", "chosen": "Aye", "rejected": "No", "weight": i} for i in range(3)]
    assert "`weight` changes nothing" in said(pairs, method="dpo")
    labelled = [{"text": f"It was {i}", "label": i % 2, "weight": i} for i in range(4)]
    assert "`weight` changes nothing" in said(labelled, method="classification")
    asked = [{"prompt": f"Say {i}", "weight": i, "split": "test"} for i in range(3)]
    assert "changes nothing" not in said(asked, method="grpo"), "the rewards read what else there is"


def test_messages_row_by_row_are_named() -> None:
    rows = [{"message_id": i, "text": f"Say {i}", "role": role} for i, role in enumerate(["prompter", "assistant"])]
    assert "`role` is not read, each row is a text by itself" in said(rows)


@pytest.mark.parametrize("column", ["messages", "conversations"])
@pytest.mark.parametrize("spelled", ["role", "from"])
def test_messages_in_a_cell_of_a_table_are_messages(column: str, spelled: str, tmp_path: Path) -> None:
    listed = [{"from": m["role"], "value": m["content"]} if spelled == "from" else m for m in MESSAGES]
    rows = [{"id": i, column: json.dumps(listed)} for i in range(2)]
    whole, wanted = prepared(rows), prepared([{"messages": MESSAGES}] * 2)
    assert [whole.train[i].labels for i in range(2)] == [wanted.train[i].labels for i in range(2)]
    assert whole.report.sources[0].format == "messages"


def test_messages_as_python_prints_them_are_refused() -> None:
    with pytest.raises(DataError, match="`messages` is text that is not JSON"):
        prepared([{"messages": str(MESSAGES)}])


def test_messages_as_text_in_another_column_are_named() -> None:
    rows = [{"prompt": "Say tar", "chosen": json.dumps(MESSAGES[1:]), "rejected": "No"}] * 2
    assert "`chosen` holds messages that are written as text, and is learnt as these letters" in said(
        rows, method="dpo"
    )
    answers = [{"prompt": "As JSON", "completion": '[{"name": "tar"}]'}] * 2
    assert "written as text" not in said(answers)


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"name": "Ann"}, "with `name` in a message: nothing reads that"),
        ({"refusal": "I cannot"}, "with `refusal` in a message: nothing reads that"),
        ({"refusal": None, "name": None}, ""),
        ({"name": "Tar"}, ""),  # it stands in the text
    ],
)
def test_what_a_message_says_beside_its_content_is_named(more: dict[str, Any], words: str) -> None:
    rows = [{"messages": [ASKED, {"role": "assistant", "content": f"Tar it is {i}", **more}]} for i in range(2)]
    found = said(rows)
    assert words in found
    assert words or not found
