"""The one reader of YAML: what it reads is YAML 1.2, and no text takes long or ends in an error of Python."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

import nbtune
from nbtune.errors import SpecError
from nbtune.spec import from_yaml, parse_value
from nbtune.spec.yaml_loader import BadYaml, load
from nbtune.spec.yaml_text import dump

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
WORDS = "data: rows,steps: ,adapter: ,r: ,&a ,*a,!!int ,!,<<: ,[,],{,},: ,- ,? ,| ,> ,  ,',#,=,~,017,1:30,.inf,1e999"
BRACKETS = st.lists(st.sampled_from([*"ab??? ,:#[]{}\n"]), max_size=9).map(lambda pieces: f"[{''.join(pieces)}]")
PIECES = st.sampled_from(
    [
        *WORDS.split(","),
        ",",
        '"',
        "\n",
        "\ndata: rows\n",
        "%YAML 1.1\n",
        "---\n",
        "...\n",
        "9" * 5000,
        "x" * 3000,
        *"\x00\x85\ud800\t",
    ]
)


@given(st.lists(PIECES, max_size=14).map("".join))
def test_whatever_is_written_is_a_spec_or_a_short_sentence_with_a_place(text: str) -> None:
    try:
        from_yaml(text)
    except SpecError as error:
        said, place = str(error), error.place
    else:
        return
    assert "cell" in place
    assert len(said) < 1200
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\ud800-\udfff]", said)


@given(PLAIN)
@example("\x85")
@example("a\u2028b")
@example({"k": "\r"})
def test_what_is_written_is_read_back_here_and_by_readers_of_yaml_1_1(value: object) -> None:
    text = dump(value)
    assert load(text) == value
    if "e" not in text:  # 1e5 in YAML 1.1 is a text
        assert yaml.safe_load(text) == value


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        *[("017", 17), ("08", 8), ("0o17", 15), ("0x1f", 31), ("1:30", "1:30"), ("0b11", "0b11"), ("yes", "yes")],
        *[("=", "="), ("<<", "<<"), ("1_000", 1000), ("1__0", "1__0"), ("-.inf", float("-inf"))],
        *[("1e3", 1000.0), (".5", 0.5), ("5.", 5.0)],
    ],
)
def test_numbers_are_those_of_yaml_1_2(written: str, meant: object) -> None:
    assert load(written) == parse_value(written) == meant


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("data: rows\n" + BOMB, 2, "anchors and aliases"),
        ("data: &a [*a]", 1, "anchors and aliases"),
        ("data: rows\nsteps: !!int abc", 2, "tags"),
        ("data: !!python/object/apply:os.getcwd []", 1, "tags"),
        ("data: " + "[" * 600 + "]" * 600, 1, "inside each other"),
        ("data: rows\nsteps: " + "9" * 5000, 2, "a number has 5000 characters"),
        ("data: rows\nsteps: 5\n" + "#" * (1 << 20), 0, "thousand characters"),
        ("data: rows\nsamples: [" + "1," * 120_000 + "]", 2, "100000 values"),
    ],
)
def test_what_would_never_end_is_refused_in_a_sentence(text: str, line: int, said: str) -> None:
    with pytest.raises(SpecError) as caught:
        from_yaml(text)
    assert said in caught.value.cause
    assert "not YAML that nbtune reads" in caught.value.cause
    assert len(str(caught.value)) < 250
    assert caught.value.place == (f"line {line} of the cell" if line else "the cell")


@pytest.mark.parametrize(
    "text", ['learning_rate: "{}"', "method: {}", "{}: 1", '"{}": 1', "adapter: {{{}: 1}}", "row_weights: {{{}: 1}}"]
)
def test_a_long_value_is_not_echoed_whole(text: str) -> None:
    with pytest.raises(SpecError) as caught:
        from_yaml("data: rows\n" + text.format("x" * 100_000))
    assert len(str(caught.value)) < 1000


def test_the_place_of_a_mistake_has_a_column() -> None:
    with pytest.raises(BadYaml, match=r"line 2, column 6"):
        load("a: 1\nb:  c: d\n")


def test_nobody_reads_yaml_otherwise() -> None:
    package = Path(nbtune.__file__).parent
    forbidden = re.compile(r"(?<![.\w])yaml\.(safe_|full_|unsafe_)?(load|compose)")
    others = [p for p in package.rglob("*.py") if forbidden.search(p.read_text())]
    assert [p.name for p in others] == ["yaml_loader.py"]


def test_a_question_between_brackets_needs_no_quotes() -> None:
    assert load("samples: [Who are you?, Where? Here?, a?b]") == {"samples": ["Who are you?", "Where? Here?", "a?b"]}
    assert load("{why?: because}") == {"why?": "because"}


@given(BRACKETS)
@example("[a?:a]")
@example("[b?# \n]")
@example("[\n ?b#?#a\n]")
def test_what_is_read_between_brackets_is_what_other_readers_read(text: str) -> None:
    if not yaml.__with_libyaml__:
        pytest.skip("PyYAML is here without libyaml")
    try:
        expected = yaml.load(text, yaml.CSafeLoader)
        found = load(text)
    except (yaml.YAMLError, BadYaml):
        return
    assert found == expected


def test_every_example_of_the_reference_is_yaml() -> None:
    page = Path(__file__).parents[2] / "docs" / "reference" / "spec.md"
    examples = re.findall(r"\| `([^`]+)` \|$", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(examples) > 100
    for text in examples:
        assert isinstance(load(text), dict), text
