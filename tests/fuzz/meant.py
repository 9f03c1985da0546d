"""What good rows must become: every text of them is read, answers are trained and nothing else, verdicts are kept."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nbtune.data.prepare.report import ALIKE, EMPTY
from tests.fuzz.cases import Silent

PARTS = {"question": "a", "input": "i", "system": "s", "rejected": "r", "end": "e"}
"""Parts of a row beside its answer, each with the letter that its mark begins with; the end is that of a long text."""

NOTHING_TO_LEARN = (EMPTY, ALIKE, "nothing is left of an answer")  # the last: the question alone is too long


def mark_of(part: str, mark: str) -> str:
    """Return the mark of a part of a row, whose answer has this one."""
    return PARTS[part] + mark[1:]


def marks_in(row: Mapping[str, Any], mark: str) -> dict[str, str]:
    """Return the marks that stand in a row, by its parts."""
    written = json.dumps(row)
    return {part: found for part in PARTS if (found := mark_of(part, mark)) in written} | {"answer": mark}


def check(
    rows: Sequence[Mapping[str, Any]], marks: Mapping[int, str], prepared: Any, tokenizer: Any, *, excused: bool = True
) -> None:
    """See that rows have become what they say.

    Args:
        rows: of the file.
        marks: of those that are good, by their number.
        prepared: what was made of them.
        excused: those of which the report says something (that they were cut, say) are not looked at.

    Raises:
        Silent: something is missing, trained that should not be, or judged otherwise; and the report does not say so.
    """
    said = {row for _, row, *_ in prepared.report.fates} if excused else set()
    found = [(prepared.train[i], prepared.train.value(i)) for i in range(len(prepared.train))]
    for number, mark in marks.items():
        if number in said:
            continue
        texts = [(*_texts(example, tokenizer), value) for example, value in found]
        for part, wanted in marks_in(rows[number], mark).items():
            _check_part(rows[number], part, wanted, texts)


def accounted(prepared: Any, count: int | None) -> None:
    """See that no row went without a word; where `on_error` is not set, only such with nothing to learn may go.

    Args:
        count: how many rows there were, where that is known.

    Raises:
        Silent: one was.
    """
    fates = prepared.report.fates
    if odd := [fate for fate in fates if fate[2] == "dropped" and fate[3] not in NOTHING_TO_LEARN]:
        raise Silent(f"left out, though errors are to be raised: {odd}")
    numbers = {example.row for example in prepared.train} | {row for _, row, *_ in fates}
    if count is not None and numbers != set(range(count)):
        raise Silent(f"of {count} rows {sorted(numbers)} are told of")


def _texts(example: Any, tokenizer: Any) -> tuple[str, str]:
    ids = np.array(example.input_ids)
    return tokenizer.decode(ids), tokenizer.decode(ids[np.array(example.labels) >= 0])


def _check_part(row: Mapping[str, Any], part: str, mark: str, texts: list[tuple[str, str, float | None]]) -> None:
    has = [(trained, value) for whole, trained, value in texts if mark in whole]
    if not has:
        raise Silent(f"the {part} {mark} of {row} is in nothing that is trained: {texts}")
    is_trained = any(mark in trained for trained, _ in has)
    if part == "end":
        return
    if part in ("answer", "rejected") and not is_trained:
        raise Silent(f"the {part} {mark} of {row} is not trained: {texts}")
    if part not in ("answer", "rejected") and is_trained and "text" not in row:
        raise Silent(f"the {part} {mark} of {row} is trained: {texts}")
    wanted = {"rejected": 0.0, "answer": float(row.get("label", True))}.get(part)
    if wanted is not None and any(value not in (None, wanted) for _, value in has):
        raise Silent(f"the {part} {mark} of {row} is judged otherwise: {texts}")
