"""The labels of rows that have them, by name: as the spec says, or all that the rows know."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from nbtune.data.formats.labelled_format import label_of
from nbtune.data.formats.preference_format import Several
from nbtune.data.prepare.row_pipeline import format_of
from nbtune.data.sources.rows import Rows, Source, at_most
from nbtune.errors import DataError
from nbtune.methods import METHODS
from nbtune.spec import RunSpec

_MOST = 1000
_AT_HAND = 4096  # rows of a source that are looked through before a run is made
_NUMBER = re.compile(r"-?[0-9]{1,18}")


def with_labels(spec: RunSpec, sources: Sequence[Source]) -> RunSpec:
    """Return a spec that names its labels, in the order of their numbers.

    Labels that are all whole numbers are in their order, others in that of the alphabet. A method whose head has
    outputs of its own names, or none, gets them from there.

    Args:
        sources: all rows are looked at; those to evaluate on do not decide.
    Raises:
        DataError: rows have one label, or so many that they are none.
    """
    if not METHODS[spec.method].names_labels or spec.labels:
        return spec
    return _named(spec, [(source, source.rows) for source in sources if source.role == "train"])


def labels_at_hand(spec: RunSpec, sources: Sequence[Source]) -> RunSpec:
    """Return what `with_labels` does where all rows are at hand: few, in memory or in a file; else the spec as it is.

    >>> learns = next(method for method in nbtune.methods.METHODS.values() if method.names_labels)
    >>> spec = nbtune.spec.from_mapping({"data": "rows", "method": learns.name})
    >>> rows = [{"text": "It was good.", "label": "good"}, {"text": "It was bad.", "label": "bad"}]
    >>> nbtune.data.labels_at_hand(spec, nbtune.data.resolve(spec.data, {"rows": rows})).labels
    ('bad', 'good')

    Raises:
        DataError: as `with_labels`.
    """
    if not METHODS[spec.method].names_labels or spec.labels:
        return spec
    held: list[tuple[Source, Rows]] = []
    for source in sources:
        if source.role != "train":
            continue
        rows = (
            None if source.arrives or source.change is not None or len(source.files) > 1 else source.head(_AT_HAND + 1)
        )
        if rows is None or len(rows) > _AT_HAND:
            return spec
        held.append((source, at_most(source.spec.max_rows, rows)))
    return _named(spec, held) if held else spec


def _named(spec: RunSpec, held: Sequence[tuple[Source, Rows]]) -> RunSpec:
    method, found = METHODS[spec.method], set[str]()
    for source, rows in held:
        form = format_of(source, rows, spec.on_error, method.rows)
        form.check(method.rows, source.name)
        column = form.mapping["label" if method.rows == "labelled" else "tags"]
        for index in range(len(rows)):
            try:
                row = rows[index]
                found |= set() if row is None else _labels_in(row.get(column), column)
            except DataError:
                continue  # whoever reads the row says so, or leaves it out
        if len(found) > _MOST:
            raise DataError(
                f"`{column}` has more than {_MOST} different values: too many to be labels",
                place=source.name,
                fix="name the column that has them: `columns: {label: …}`",
            )
    if len(found) < 2:
        raise DataError(
            f"all rows have the same label ({''.join(found) or 'none'}): there is nothing to tell apart",
            place="data",
            fix="give rows of each label, or name all labels: `labels: [one, other]`",
        )
    labels = sorted(found)  # stable: of 1 and 01, too, every process has the same order
    if all(map(_NUMBER.fullmatch, labels)):
        labels.sort(key=int)
    return spec.model_copy(update={"labels": tuple(labels)})


def judge(read: Any, spec: RunSpec) -> Any:
    """Return a row as it was read, if its labels are among those that a spec names.

    Raises:
        DataError: they are not.
    """
    if isinstance(read, Several):
        read.judged(spec.labels)
        read.judged_steps(spec.labels)
    return read


def _labels_in(value: Any, column: str) -> set[str]:
    return {label_of(one, column) for one in (value if isinstance(value, list) else [value])}


def labels_of(spec: RunSpec) -> tuple[str, ...]:
    """Return what the outputs of a method's head are called; none of a method without one."""
    return METHODS[spec.method].labels or spec.labels


def much_alike(labels: Sequence[str]) -> str:
    """Return a warning that names labels which differ only in the case of letters; "" if there are none."""
    spelled = defaultdict(list)
    for label in labels:
        spelled[label.casefold()].append(label)
    twice = [f"`{names[0]}` and `{names[1]}`" for names in spelled.values() if len(names) > 1]
    return f"{', '.join(twice[:3])} are two labels: spell them alike, if they mean the same" if twice else ""


def without_answers(spec: RunSpec, kind: str) -> RunSpec:
    """Return a spec by which prompts that have no answer are kept: none of their tokens is learnt, all are read."""
    return spec.model_copy(update={"train_on": ("user",)}) if kind == "prompts" else spec
