"""Events: one JSON line each, the same after a round trip, readable by what is older and what is newer."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbtune import events
from nbtune.events import Event, Step, Unknown, from_line, to_line

KINDS = [
    events.State,
    events.Step,
    events.Eval,
    events.Sample,
    events.Check,
    events.Checkpoint,
    events.Warning,
    events.Export,
    events.Device,
    events.Processes,
]
_VALUES: dict[str, st.SearchStrategy[Any]] = {
    "int": st.integers(min_value=0, max_value=2**60),
    "float": st.floats(),
    "str": st.text(),
    "bool": st.booleans(),
    "tuple[int, ...]": st.lists(st.integers(min_value=0, max_value=2**60), max_size=3).map(tuple),
    "tuple[float, ...]": st.lists(st.floats(), max_size=3).map(tuple),
    "dict[str, int]": st.dictionaries(st.text(max_size=8), st.integers(min_value=0, max_value=2**60), max_size=3),
    "dict[str, float]": st.dictionaries(st.text(max_size=8), st.floats(), max_size=3),
}


def any_event() -> st.SearchStrategy[Event]:
    return st.one_of(
        [
            st.builds(kind, **{field.name: _VALUES[str(field.type)] for field in dataclasses.fields(kind)})
            for kind in KINDS
        ]
    )


def same(left: Event, right: Event) -> bool:
    pairs = zip(dataclasses.astuple(left), dataclasses.astuple(right), strict=True)
    return type(left) is type(right) and all(_equal(a, b) for a, b in pairs)


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(map(_equal, a, b))
    both_nan = isinstance(a, float) and isinstance(b, float) and math.isnan(a) and math.isnan(b)
    return both_nan or (type(a) is type(b) and a == b)


@given(any_event())
def test_a_line_gives_back_its_event(event: Event) -> None:
    line = to_line(event)
    assert line.endswith("\n")
    assert line.count("\n") == 1
    assert line.isascii()
    assert same(from_line(line), event)
    assert same(from_line(line.encode()), event)


@given(any_event())
def test_a_line_is_plain_json_that_says_its_type_and_version(event: Event) -> None:
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is not JSON")

    body = json.loads(to_line(event), parse_constant=refuse)
    assert body["type"] == event.type
    assert body["v"] == events.VERSION


def test_a_text_that_looks_like_a_number_stays_a_text() -> None:
    for word in ("nan", "inf", "-inf"):
        sample = events.Sample(step=1, prompt=word, answer=word)
        assert from_line(to_line(sample)) == sample


def test_an_event_of_a_newer_version_is_kept_as_it_was() -> None:
    line = json.dumps({"v": 9, "type": "dream", "time": 1.5, "depth": 3, "words": ["a"]})
    event = from_line(line)
    assert isinstance(event, Unknown)
    assert (event.name, event.time, event.fields) == ("dream", 1.5, {"depth": 3, "words": ["a"]})
    assert from_line(to_line(event)) == event


def test_a_field_of_a_newer_version_is_passed_over() -> None:
    body = json.loads(to_line(Step(step=3, loss=0.5, time=7.0)))
    event = from_line(json.dumps({**body, "colour": "blue"}))
    assert event == Step(step=3, loss=0.5, time=7.0)


@pytest.mark.parametrize(
    "line", ["", "{", '{"type": "st', "[]", "3", '{"v": 1}', "null", '{"type": []}', '{"type": "step"}']
)
def test_half_a_line_is_refused(line: str) -> None:
    with pytest.raises(ValueError):
        from_line(line)


def test_every_kind_has_a_name_of_its_own_and_cannot_be_changed() -> None:
    names = [kind.type for kind in KINDS]
    assert len(set(names)) == len(names)
    assert Event.type not in names
    with pytest.raises(dataclasses.FrozenInstanceError):
        Step(step=1, loss=1.0).loss = 2.0  # type: ignore[misc]


def test_the_states_that_end_a_run_are_states() -> None:
    assert set(events.ENDED) < set(events.STATES)
    assert len(set(events.STATES)) == len(events.STATES)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_numbers_that_json_has_no_word_for_are_written_wherever_they_lie(number: float) -> None:
    """What a metric or a judge says is somebody's own; such a number ended the run that wrote it down."""
    for event in (
        events.Step(step=1, loss=number, metrics={"margin": number, "accuracy": 0.5}),
        events.Group(step=1, prompt="?", answers=("a", "b"), rewards=(number, 1.0)),
        events.Processes(step=1, seconds=(number,), tokens=(3,), memory=(4,)),
    ):
        assert same(from_line(to_line(event)), event)
