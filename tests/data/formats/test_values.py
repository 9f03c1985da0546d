"""No value of a row vanishes or becomes a word that nobody wrote: it is read as text, as missing, or refused."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pandas as pd
import pytest

from nbtune.data.formats.detect import detect
from nbtune.data.formats.reader import Parts
from nbtune.data.sources.variables import rows_of
from nbtune.errors import DataError
from nbtune.spec import SourceSpec

NAN = float("nan")


def read(row: dict[str, Any], **fields: Any) -> Any:
    return detect(list(row), [row], SourceSpec(source="rows", **fields), "rows").read(row)


def said(row: dict[str, Any], **fields: Any) -> str:
    """Everything that a row says."""
    found = read(row, **fields)
    texts = found.rows if hasattr(found, "rows") else (found,)
    parts = [t.parts if isinstance(t, Parts) else [(m["content"],) for m in t.messages] for t in texts]
    return "\n".join(piece[0] for part in parts for piece in part)


ROWS: list[tuple[dict[str, Any], str, str]] = [
    ({"instruction": "q", "output": "a"}, "input", "alpaca"),
    ({"instruction": "q", "output": "a"}, "context", "alpaca"),
    ({"instruction": "q", "output": "a"}, "system", "alpaca"),
    ({"instruction": "q", "output": "a"}, "input", "alpaca:plain"),
    ({"instruction": "q", "output": "a"}, "system", "alpaca:plain"),
    ({"prompt": "q", "completion": "a"}, "context", "prompt-completion"),
    ({"prompt": "q", "completion": "a"}, "system", "prompt-completion"),
    ({"prompt": "q", "completion": "a"}, "context", "prompt-completion:plain"),
    ({"prompt": "q", "completion": "a"}, "system", "prompt-completion:plain"),
    ({"prompt": [{"role": "user", "content": "q"}], "completion": "a"}, "system", "prompt-completion"),
    ({"prompt": "q", "completion": [{"role": "assistant", "content": "a"}]}, "context", "prompt-completion"),
    ({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}, "system", "messages"),
    ({"prompt": "q", "chosen": "a", "rejected": "b"}, "system", "preference"),
    ({"prompt": "q", "chosen": "a", "rejected": "b"}, "input", "preference"),
    ({"prompt": "q", "completion": "a", "label": True}, "system", "feedback"),
    ({"category": "q", "question": "q", "answer": "a"}, "category", "jeopardy"),
]
SCALARS = ["words", 42, 4.25, True, np.int64(42), np.float32(4.25), np.bool_(True), pd.Timestamp("2026-11-29")]
MISSING = [None, NAN, np.nan, np.float32("nan"), pd.NA, pd.NaT, ""]


@pytest.mark.parametrize(("row", "column", "form"), ROWS)
def test_a_value_is_read_missing_or_refused(row: dict[str, Any], column: str, form: str) -> None:
    without = said({key: value for key, value in row.items() if key != column}, format=form)
    for value in SCALARS:
        found = said({**row, column: value}, format=form)
        assert str(value) in found, value
        assert found != without, value
    for value in MISSING:
        assert said({**row, column: value}, format=form) == without, value
    for value in (["x"], {"x": 1}, b"x"):
        with pytest.raises(DataError, match=f"`{column}` is a "):
            read({**row, column: value}, format=form)


@pytest.mark.parametrize("value", MISSING[:-1])
@pytest.mark.parametrize(
    ("row", "column"),
    [
        ({"instruction": "q", "output": "a"}, "output"),
        ({"prompt": "q", "completion": "a"}, "prompt"),
        ({"text": "t"}, "text"),
        ({"prompt": "q", "chosen": "a", "rejected": "b"}, "rejected"),
        ({"messages": [{"role": "user", "content": "q"}]}, "messages"),
    ],
)
def test_what_is_wanted_and_missing_is_said(row: dict[str, Any], column: str, value: Any) -> None:
    form = detect(list(row), [row, {**row, column: value}], SourceSpec(source="rows"), "rows")
    with pytest.raises(DataError, match=f"`{column}` is missing"):
        form.read({**row, column: value})


def test_a_content_that_is_a_number_is_text_and_one_that_is_missing_is_said() -> None:
    chat = read({"messages": [{"role": "user", "content": "6·7"}, {"role": "assistant", "content": 42}]})
    assert chat.messages[1]["content"] == "42"
    with pytest.raises(DataError, match="no content"):
        read({"messages": [{"role": "user", "content": NAN}]})
    assert "weight" not in read({"messages": [{"role": "user", "content": "q", "weight": NAN}]}).messages[0]


@pytest.mark.parametrize("records", [True, False])
def test_a_frames_numbers_and_gaps(records: bool) -> None:
    frame = pd.DataFrame({"instruction": ["Double it", "Say a"], "input": [42, None], "output": ["84", "a"]})
    given = rows_of(frame.to_dict("records") if records else frame, "rows")
    form = detect(list(given[0]), [given[0], given[1]], SourceSpec(source="rows"), "rows")
    assert [form.read(row).messages[0]["content"] for row in given] == ["Double it\n\n42.0", "Say a"]
    assert math.isnan(json.loads("NaN"))  # what Python's json makes of a frame's gaps


def test_a_template_writes_nothing_for_what_is_missing() -> None:
    for value in (None, NAN, pd.NA):
        row = {"a": "x", "b": value}
        assert read(row, template="{{ a }}{{ b }}{% if b is not none %}!{% endif %}").parts[0][0] == "x"
    assert read({"a": 0, "b": False}, template="{{ a }}{{ b }}").parts[0][0] == "0False"


def test_labels_of_segments_are_read() -> None:
    pieces = [{"text": t, "label": label} for t, label in zip("abcd", ("false", 0, None, "true"), strict=True)]
    assert [on for _, on in read({"segments": pieces}).parts] == [False, False, True, True]
    with pytest.raises(DataError, match="not a yes or no"):
        read({"segments": [{"text": "a", "label": "perhaps"}]})


@pytest.mark.parametrize("history", [5, "q0", {"q0": "a0"}, [5], [["q0"]], [["q0", "a0", "x"]], [["q0", ["a0"]]]])
def test_a_history_that_is_none_is_refused_in_a_sentence(history: Any) -> None:
    with pytest.raises(DataError, match="`history`"):
        read({"instruction": "q", "output": "a", "history": history})
