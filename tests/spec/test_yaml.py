"""A cell's body: what people write, what it means, and what they are told when it is wrong."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbtune.errors import SpecError
from nbtune.spec import AdapterSpec, RunSpec, SourceSpec, from_mapping, from_yaml, parse_value, to_yaml
from tests.support.every import every


def refused(text: str, **options: object) -> SpecError:
    with pytest.raises(SpecError) as caught:
        from_yaml(text, **options)  # type: ignore[arg-type]
    return caught.value


def test_the_cell_of_the_design_is_read() -> None:
    spec = from_yaml(
        "model: nbtune/tiny             # the embedded model\n"
        "data: rows\n"
        "method: sft\n"
        "adapter: {type: lora, r: 8}\n"
        "steps: 200\n"
    )
    assert spec == RunSpec(
        model="nbtune/tiny", data=(SourceSpec(source="rows"),), adapter=AdapterSpec(type="lora", r=8), steps=200
    )


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("2e-5", 2e-5),
        ("2E-5", 2e-5),
        ("2.0e-5", 2e-5),
        ("0.00002", 2e-5),
        (".5e-3", 5e-4),
        ("1_0e-5", 1e-4),
        ("1", 1.0),
    ],
)
def test_a_number_is_read_as_people_mean_it(written: str, meant: float) -> None:
    assert from_yaml(f"data: rows\nlearning_rate: {written}").learning_rate == pytest.approx(meant, rel=1e-12)


@pytest.mark.parametrize(("written", "meant"), [("200", 200), ("1_000", 1000), ("1e3", 1000)])
def test_a_whole_number_too(written: str, meant: int) -> None:
    assert from_yaml(f"data: rows\nsteps: {written}").steps == meant


def test_a_key_with_nothing_behind_it_is_unset() -> None:
    assert from_yaml("data: rows\nsteps:\nadapter:\n  alpha:\n") == from_yaml("data: rows")


@pytest.mark.parametrize("word", ["yes", "no", "on", "off", "2024-01-01"])
def test_a_word_stays_a_word(word: str) -> None:
    assert from_yaml(f"data: {word}").data[0].source == word


def test_a_name_is_short_for_its_source_and_a_list_is_a_mix() -> None:
    spec = from_yaml("data:\n  - rows\n  - {source: extra.jsonl, weight: 2}\neval: {data: held_out}\n")
    assert spec.data == (SourceSpec(source="rows"), SourceSpec(source="extra.jsonl", weight=2.0))
    assert spec.eval.data == SourceSpec(source="held_out")


def test_a_word_for_the_adapter_is_its_kind() -> None:
    assert from_yaml("data: rows\nadapter: qlora").adapter == AdapterSpec(type="qlora")


def test_the_body_is_not_a_template() -> None:
    assert from_yaml('data: rows\nsamples: ["{name}", "$HOME"]').samples == ("{name}", "$HOME")


def test_flags_win_over_the_body() -> None:
    spec = from_yaml("data: rows\nadapter: qlora\nsteps: 5", overrides={"adapter.r": 8, "steps": 7, "model": "m"})
    assert (spec.steps, spec.model, spec.adapter) == (7, "m", AdapterSpec(type="qlora", r=8))


@pytest.mark.parametrize(
    ("text", "line", "cause", "fix"),
    [
        (
            "data: rows\nlerning_rate: 2",
            2,
            "there is no key `lerning_rate`",
            "did you mean `learning_rate`? (Learning rate",
        ),
        ("data: rows\nadapter:\n  tipe: lora", 3, "no key `tipe` in `adapter`", "did you mean `type`?"),
        ("data:\n - source: a\n   weigth: 2", 3, "no key `weigth`", "did you mean `weight`?"),
        ("data: rows\nzzzz: 1", 2, "there is no key `zzzz`", "known keys: "),
        ("data: rows\nsteps: many", 2, "`steps`", "`steps: 200`"),
        ("data: rows\nsteps: 3.5", 2, "`steps`", "`steps: 200`"),
        ("data: rows\nsteps: 0", 2, "greater than or equal to 1, not 0", "`steps: 200`"),
        ("data: rows\nlearning_rate: .inf", 2, "`learning_rate`", "`learning_rate: 0.0002`"),
        ("data: rows\neval:\n  split: 2", 3, "`eval.split`", "`split: 0.1`"),
        ("data: rows\nadapter: qloro", 2, "`adapter.type`", "did you mean `adapter: qlora`?"),
        ("data: rows\nadapter: {type: {}}", 2, "`adapter.type`", "`type: lora`"),
        ("data: rows\npacking: perhaps", 2, "`packing`", "`packing: auto`"),
        ("data: rows\nsteps: 3\nsteps: 4", 3, "`steps` is there twice", "the first is on line 2"),
        ("data: rows\nsteps: [3", 2, "this is not YAML", ""),
        ("data: rows\nsamples: [Who: are: you]", 2, "this is not YAML", "in quotes"),
        ("data: a: b", 1, "this is not YAML", "`key: value`"),
        ("just words", 1, "`key: value` lines", "`data: rows`"),
        ("- a\n- b", 1, "`key: value` lines", "`data: rows`"),
        ("data: rows\n? [a]\n: 3", 2, "cannot be a key", "`key: value`"),
        ("data: []", 1, "`data`", "`data: rows`"),
    ],
)
def test_what_is_wrong_is_said_with_its_line_and_what_to_write(text: str, line: int, cause: str, fix: str) -> None:
    error = refused(text)
    assert error.place == f"line {line} of the cell"
    assert cause in error.cause
    assert fix in error.fix


def test_lines_are_those_that_the_user_sees() -> None:
    assert refused("data: rows\nstep: 3", first_line=2).place == "line 3 of the cell"
    assert refused("data: rows\nstep: 3", name="run.yaml").place == "line 2 of run.yaml"


def test_without_data_the_error_says_how_to_name_rows() -> None:
    error = refused("steps: 3")
    assert "`data` is missing" in error.cause
    assert "data: rows.jsonl" in error.fix


@pytest.mark.parametrize(
    "text",
    [
        "data: rows\nsteps: 3\nepochs: 2",
        "data: rows\nbatch_size: 8\nmicro_batch_size: 3\ngradient_accumulation_steps: 2",
        "data: rows\nbatch_size: 3\nmicro_batch_size: 2",
        "data: rows\nbatch_size: 1\nmicro_batch_size: 2",
        "data: rows\nadapter: full\nweights: nf4",
    ],
)
def test_contradictions_are_refused_by_name(text: str) -> None:
    keys = [line.split(":")[0] for line in text.splitlines()[1:]]
    assert every(key in refused(text).cause for key in keys)


@pytest.mark.parametrize(
    "text", ["data: !!python/object/apply:os.getcwd []", "data: !!python/name:os.system", "data: !x y"]
)
def test_nothing_in_a_body_is_run(text: str) -> None:
    assert "not YAML that nbtune reads" in refused(text).cause


def test_an_unknown_key_is_refused_from_python_too() -> None:
    with pytest.raises(SpecError, match="did you mean `steps`"):
        from_mapping({"data": "rows", "step": 3})


words = st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "S", "Zs"]), min_size=1, max_size=20)
specs = st.builds(
    RunSpec,
    model=words,
    data=st.lists(
        st.builds(
            SourceSpec, source=words, weight=st.floats(0.001, 1e6), columns=st.dictionaries(words, words, max_size=2)
        ),
        min_size=1,
        max_size=3,
    ).map(tuple),
    adapter=st.builds(AdapterSpec, type=st.sampled_from(["lora", "qlora", "dora"]), r=st.integers(1, 1024)),
    steps=st.none() | st.integers(1, 10**9),
    learning_rate=st.none() | st.floats(1e-12, 1.0),
    samples=st.lists(words, max_size=3).map(tuple),
    packing=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)


@given(specs)
def test_what_is_written_is_read_back(spec: RunSpec) -> None:
    assert from_yaml(to_yaml(spec)) == spec


@pytest.mark.parametrize("word", ["1e5", "0E0", "-2e-3", "yes", "true", "null", "12", "a: b", "# a", " a", "é\n"])
def test_a_text_that_looks_like_something_else_is_quoted(word: str) -> None:
    spec = RunSpec(data=(SourceSpec(source=word),), model=word, samples=(word,))
    assert from_yaml(to_yaml(spec)) == spec


def test_what_is_written_is_short() -> None:
    assert to_yaml(from_yaml("data: rows\nsteps: 20")) == "model: nbtune/tiny\ndata: rows\nsteps: 20\n"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("2e-5", 2e-5),
        ("true", True),
        ("yes", "yes"),
        ("{type: lora}", {"type": "lora"}),
        ("", None),
        ("a b", "a b"),
    ],
)
def test_one_value_of_a_flag(text: str, value: object) -> None:
    assert parse_value(text) == value
    assert type(parse_value(text)) is type(value)


def test_a_flag_that_is_not_yaml_is_refused() -> None:
    with pytest.raises(SpecError, match="cannot be read"):
        parse_value("[1, 2")


@pytest.mark.parametrize("line", ["steps: true", "learning_rate: false", "adapter: {r: true}", "eval: {every: true}"])
def test_yes_is_no_number(line: str) -> None:
    with pytest.raises(SpecError, match=r"must be a number, not (true|false)") as caught:
        from_yaml(f"data: rows\n{line}\n")
    assert caught.value.place == "line 2 of the cell"
    assert from_yaml("data: rows\npacking: true\nadapter: {use_rslora: true}\n").packing is True
