"""Columns that say something and are not read are named."""

from __future__ import annotations

from typing import Any

import pytest

from nbtune import data, models
from nbtune.data.formats.detect import detect
from nbtune.spec import SourceSpec, from_mapping

QA = {"instruction": "q", "output": "a"}
PAIR = {"prompt": "q", "chosen": "a", "rejected": "b"}


@pytest.mark.parametrize(
    ("row", "named"),
    [
        ({**QA, "images": ["a.png"]}, "`images`"),
        ({**QA, "input": "i", "context": "c"}, "`context`"),
        ({**QA, "instruction": "<image>What is it?"}, "<image>"),
        ({**PAIR, "history": [["q0", "a0"]]}, "`history`"),
        ({"messages": [{"role": "user", "content": "<video> q"}, {"role": "assistant", "content": "a"}]}, "<video>"),
        ({"text": "t", "audio": b"x"}, "`audio`"),
        ({**QA, "images": [], "context": None}, ""),
        ({**QA, "history": [["q0", "a0"]], "system": "s", "input": "i", "id": 3}, ""),
        ({**PAIR, "system": "s", "score": 0.5}, ""),
    ],
)
def test_what_is_not_read_is_named(row: dict[str, Any], named: str) -> None:
    found = detect(list(row), [row], SourceSpec(source="rows"), "rows").unread
    assert named in found
    assert bool(named) == bool(found)


def test_a_report_says_it() -> None:
    spec = from_mapping({"data": "rows", "eval": {"split": 0}})
    sources = data.resolve(spec.data, {"rows": [{**QA, "images": ["a.png"]}] * 3})
    made = data.prepare_data(sources, models.load_tokenizer("nbtune/tiny"), spec=spec, max_len=64, seed=0)
    assert any("`images`" in warning and "not learnt" in warning for warning in made.report.warnings)
