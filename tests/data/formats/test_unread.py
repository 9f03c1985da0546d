"""Columns that say something and are not read are named."""

from __future__ import annotations

import re
from typing import Any

import pytest

from nbtune import data, models
from nbtune.data.formats.detect import detect
from nbtune.errors import DataError
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
        ({**QA, "inputs": "i"}, "`inputs`"),
        ({"question": "q", "choices": ["x", "y"], "answer": "a"}, "`choices`"),
        ({"question": "q", "rationale": "because", "answer": "a"}, "`rationale`"),
        ({"question": "q", "passage": {"text": "A town."}, "answer": "a"}, "`passage`"),
        ({"question": "q", "Notes of ours": "what nobody should forget", "answer": "a"}, "`Notes of ours`"),
        ({**PAIR, "rationale": "because a is true"}, "`rationale`"),
        ({"prompt": "Answer this: q?", "question": "q?", "completion": "a"}, ""),
        ({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "prompt": "q"}, ""),
        ({**QA, "source": "GPT4 LLM", "url": "https://a.b/c", "category": "open qa", "scores": [1, 2]}, ""),
        ({**PAIR, "input": "i"}, ""),
        ({"instruction": "q", "output": "a", "reflection": "why is it so", "corrected": "it is not so"}, ""),
    ],
)
def test_what_is_not_read_is_named(row: dict[str, Any], named: str) -> None:
    spec = SourceSpec(source="rows", format="reflection" if "reflection" in row else None)
    found = detect(list(row), [row], spec, "rows").unread
    assert named in found
    assert bool(named) == bool(found)


@pytest.mark.parametrize(
    ("row", "columns", "asked"),
    [
        ({"instruction": "Solve it", "question": "2+2?", "answer": "4"}, {}, "`instruction` and `question`"),
        ({"prompt": "Be brief.", "query": "2+2?", "response": "4"}, {}, "`prompt` and `query`"),
        ({"prompt": "p", "question": "q", "chosen": "a", "rejected": "b"}, {}, "`prompt` and `question`"),
        ({"instruction": "i", "question": "q", "answer": "4"}, {"instruction": "instruction", "input": "question"}, ""),
        ({"instruction": "i", "question": "q", "answer": "4"}, {"prompt": "question"}, ""),
        ({"prompt": "Q: q", "question": "q", "answer": "4"}, {}, ""),
    ],
)
def test_of_two_questions_none_is_left_out_by_a_guess(row: dict[str, Any], columns: dict[str, str], asked: str) -> None:
    spec = SourceSpec(source="rows", columns=columns)
    if not asked:
        detect(list(row), [row], spec, "rows")
        return
    with pytest.raises(DataError, match=f"{asked} may both be the question") as caught:
        detect(list(row), [row], spec, "rows")
    for named in re.findall(r"`columns: ({.*?})`", str(caught.value.fix)):
        words = dict(pair.split(": ") for pair in named.strip("{}").split(", "))
        detect(list(row), [row], SourceSpec(source="rows", columns=words), "rows")


def test_a_value_of_any_depth_is_looked_through() -> None:
    deep: Any = "the end of it all"
    for _ in range(5000):
        deep = [deep]
    itself: list[Any] = []
    itself.append(itself)
    row = {**QA, "passage": deep, "choices": itself, "notes": {"of": itself}}
    assert detect(list(row), [row], SourceSpec(source="rows"), "rows").unread.startswith("what stands in `passage`")


def test_a_report_says_it() -> None:
    spec = from_mapping({"data": "rows", "eval": {"split": 0}})
    sources = data.resolve(spec.data, {"rows": [{**QA, "images": ["a.png"]}] * 3})
    made = data.prepare_data(sources, models.load_tokenizer("nbtune/tiny"), spec=spec, max_len=64, seed=0)
    assert any("`images`" in warning and "not learnt" in warning for warning in made.report.warnings)
