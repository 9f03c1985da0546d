"""Texts that are no YAML, as people type them: where it says the slip is, and what to write instead."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbtune.errors import SpecError
from nbtune.spec import from_yaml


@pytest.mark.parametrize(
    ("text", "line", "cause", "fix"),
    [
        ("data: rows\nadapter:\n\ttype: lora", 3, "a tab", "spaces in its place"),
        ("data: rows\n\tsteps: 3", 2, "a tab", "spaces in its place"),
        ("%%finetune --name a\ndata: rows", 1, "a magic's", "leave out the line `%%finetune --name a`"),
        ("model:nbtune/tiny\ndata: rows", 1, "a space is missing", "write `model: nbtune/tiny`"),
        ("data:rows\nsteps:3", 1, "a space is missing", "write `data: rows`"),
        ("model=nbtune/tiny\ndata=rows", 1, "`=`", "write `model: nbtune/tiny`"),
        ('model = "nbtune/tiny",\ndata: rows', 1, "`=`", 'write `model: "nbtune/tiny"`'),
        ("data: rows\nlr=3", 2, "`=`", "write `lr: 3`"),
        ("model:\u00a0nbtune/tiny\ndata: rows", 1, "behind `model`", "that space anew"),
        ('model: "nbtune/tiny\ndata: rows', 1, "a quote is open", 'close the quote: `model: "nbtune/tiny"`'),
        ("data: rows\nadapter: {type: lora, r: 16\nsteps: 20", 2, "a bracket is open", "`}` is missing"),
        ("data: rows\nsamples: [a, b\nsteps: 20", 2, "a bracket is open", "`]` is missing"),
        ("data: rows\nsamples: [Who: are: you]", 2, "expected ','", "in quotes"),
        ('data: "C:\\Users\\me\\rows.csv"', 1, "begins a code", "`'C:\\Users\\me\\rows.csv'`"),
        ("data: rows\n steps: 3", 2, "further right", "below each other"),
        ("data: rows\nadapter:\n    r: 8\n  type: lora", 4, "fits no line above", "below each other"),
        ("data: rows\nmodel: a: b", 2, "mapping values", '`model: "a: b"`'),
        ("data: rows\n---\ndata: rows", 2, "a second text", "leave out the line `---`"),
        ("data: rows\nsteps 3\nseed: 4", 2, "`steps 3` is no `key: value`", "one `key: value` a line"),
        ("- data: rows", 1, "`key: value` lines", "without a dash"),
        ("prompt,completion\nWho?,Me", 1, "`key: value` lines", "write for example `data: rows`"),
    ],
)
def test_a_slip_is_said_where_it_was_made_and_what_to_write(text: str, line: int, cause: str, fix: str) -> None:
    with pytest.raises(SpecError) as caught:
        from_yaml(text)
    assert caught.value.place == f"line {line} of the cell"
    assert cause in caught.value.cause
    assert fix in caught.value.fix


def test_a_long_line_is_looked_at_in_no_time_and_shown_in_part() -> None:
    for text in (
        "9" * 100_000 + ": a: b",
        "a" + ": b" * 100_000,
        "data: rows\nx: [" + "a: b, " * 50_000,
        'd: "' + "\\" * 300_001,
    ):
        with pytest.raises(SpecError) as caught:
            from_yaml(text)
        assert len(str(caught.value)) < 600


def test_a_block_of_text_may_hold_what_would_be_a_slip_elsewhere() -> None:
    text = "data: rows\nchat_template: |\n  steps=3\n  %x\n  \tmodel:tiny {{ messages }}\n"
    assert from_yaml(text).chat_template == "steps=3\n%x\n\tmodel:tiny {{ messages }}\n"


@given(st.text(st.sampled_from("ab: -[]{}\"'\\\n\t=%,#|&*\u00a0"), max_size=40))
def test_whatever_is_typed_is_a_spec_or_an_error_with_a_fix(text: str) -> None:
    said = None
    try:
        from_yaml(text)
    except SpecError as error:
        said = error
    assert said is None or (said.cause and said.fix)
