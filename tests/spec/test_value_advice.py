"""Values that a key does not take: plain words for what it wants, and a line to write that is taken then."""

from __future__ import annotations

import re

import pytest

from nbtune.errors import SpecError
from nbtune.spec import from_mapping, from_yaml


def refused(line: str) -> SpecError:
    with pytest.raises(SpecError) as caught:
        from_yaml(f"data: rows\n{line}")
    assert caught.value.place == "line 2 of the cell"
    return caught.value


@pytest.mark.parametrize(
    ("line", "cause", "write"),
    [
        ("learning_rate: 0,001", "must be a number, not '0,001'", "learning_rate: 0.001"),
        ("adapter: {dropout: 10%}", "must be a number", "dropout: 0.1"),
        ("steps: 100 steps", "must be a whole number", "steps: 100"),
        ("eval: 0.1", "must be `key: value` pairs, not 0.1", "eval: {split: 0.1}"),
        ("eval: 10%", "must be `key: value` pairs", "eval: {split: 0.1}"),
        ("eval: test.csv", "must be `key: value` pairs", "eval: {data: test.csv}"),
        ("memory: 8 GB", "must be `key: value` pairs", "memory: {vram_gib: 8}"),
        ("checkpoint: 10 minutes", "must be `key: value` pairs", "checkpoint: {minutes: 10}"),
        ("adapter: 8", "must be `key: value` pairs, not 8", "adapter: {r: 8}"),
        ("samples: Who?", "must be a list, not 'Who?'", "samples: ['Who?']"),
        ("model: [a, b]", "must be a text, not a list", "model: meta-llama/Llama-3.2-1B-Instruct"),
        ("packing: maybe", "must be 'auto', or true or false", "packing: auto"),
        ("trust_remote_code: maybe", "must be true or false", "trust_remote_code: false"),
        ("device: GPU", "not 'GPU'", "device: cuda"),
        ("device: cuda:0", "not 'cuda:0'", "device: cuda"),
        ("optim: adam", "not 'adam'", "optim: adamw"),
        ("optim: AdamW-8bit", "", "optim: adamw_8bit"),
        ("method: SFT", "", "method: sft"),
        ("adapter: LoRA", "", "adapter: lora"),
        ("weights: 4-bit", "", "weights: nf4"),
        ("lr_scheduler_type: cosin", "", "lr_scheduler_type: cosine"),
        ("dtype: fp64", "must be 'auto', 'fp32'", "dtype: auto"),  # not fp16, which is spelt alike
    ],
)
def test_what_to_write_is_near_what_was_written_and_is_taken(line: str, cause: str, write: str) -> None:
    error = refused(line)
    assert cause in error.cause
    assert f"`{write}`" in error.fix
    inside = "." in error.cause.split("`")[1]  # `adapter.dropout`: the line is one of the part's
    part = error.cause.split("`")[1].split(".")[0]
    from_yaml(f"data: rows\n{write if not inside or write.startswith(part) else f'{part}: {{{write}}}'}")


def test_no_word_of_the_validator_reaches_its_reader() -> None:
    for line in ("eval: true", "adapter: [1]", "samples: 3", "steps: {}", "model: 3", "mix: 1", "beta: x", "gpus: x"):
        assert not re.search("input|dictionary|tuple|instance|boolean|parse|Spec", refused(line).cause), line


def test_a_colon_in_a_text_of_a_list_wants_quotes() -> None:
    with pytest.raises(SpecError) as caught:
        from_yaml("data: rows\nsamples:\n- Hello\n- Answer: what?\n")
    assert caught.value.place == "line 4 of the cell"
    assert '`- "Answer: what?"`' in caught.value.fix


def test_keys_that_exclude_each_other_are_said_with_a_line_and_a_way_out() -> None:
    with pytest.raises(SpecError, match="exclude each other") as caught:
        from_yaml("data: rows\nsteps: 3\nepochs: 2")
    assert (caught.value.place, caught.value.fix) == ("line 3 of the cell", "keep one")


@pytest.mark.parametrize(
    ("line", "fix"),
    [
        ("adapter:\ntype: lora", "it belongs to `adapter`, which stands above: put two spaces before it"),
        ("r: 8", "write `adapter: {r: 8}`"),
        ("split: 0.1", "write `eval: {split: 0.1}`"),
        ("split: test", "write `data: {source: rows, split: test}`"),
        ("columns: {prompt: a}", "write `data: {source: rows, columns: {prompt: a}}`"),
        ("vram_gib: 4", "write `memory: {vram_gib: 4}`"),
        ("name: demo", "`%%finetune --name demo`"),
        ("wandb: true", "keeps its own records"),
        ("warmup: 5", "did you mean `warmup_ratio`?"),
    ],
)
def test_a_key_in_the_wrong_place_is_told_its_own(line: str, fix: str) -> None:
    with pytest.raises(SpecError) as caught:
        from_yaml(f"data: rows\n{line}")
    assert fix in caught.value.fix


@pytest.mark.parametrize(
    ("data", "fix"),
    [
        ({"path": "a.csv"}, "write `source: a.csv`"),
        ({"name": "owner/rows"}, "write `source: owner/rows`"),
        ([{"prompt": "a", "completion": "b"}], "name the file or variable that holds the rows"),
    ],
)
def test_a_source_without_a_source_is_told_so(data: object, fix: str) -> None:
    with pytest.raises(SpecError) as caught:
        from_mapping({"data": data})
    assert fix in caught.value.fix


@pytest.mark.parametrize("line", ["steps: {steps}", "steps: $steps", "learning_rate: {rate}", "epochs: ${epochs}"])
def test_a_variable_is_not_put_in(line: str) -> None:
    """As a notebook with parameters would have it: a spec is text."""
    key = line.split(":")[0]
    assert refused(line).fix == (
        f"a spec is text, into which no variable is put: write the value, or Python: `finetune(…, {key}={key})`"
    )


def test_a_function_is_named() -> None:
    """As Python would have it: a spec is text, and says where the function is."""

    def polite(answer: str, row: dict[str, object]) -> float:
        return 1.0

    for body, key in (
        ({"eval": {"metrics": [polite]}}, 'metrics=["polite"]'),
        ({"data": {"source": "rows", "function": polite}}, 'function="polite"'),
    ):
        with pytest.raises(SpecError) as caught:
            from_mapping({"data": "rows", **body})
        assert caught.value.fix == f"name it: `{key}` with `rows=globals()`, where it is looked up, or `module:polite`"


@pytest.mark.parametrize(
    ("line", "cause", "fix"),
    [
        ("adapter: {type: qlora, init_lora_weights: pissa}", "others beside", "write `adapter: {type: lora}`, or drop"),
        ("adapter: {init_lora_weights: loftq}", "what 4 bits lost", "write `adapter: {type: qlora}`, or drop them"),
        ("adapter: {type: ia3, r: 8}", "`adapter.r` changes nothing of adapter `ia3`", "drop it"),
        ("adapter: {r: 7, init_lora_weights: orthogonal}", "want an even rank", "write for example"),
        ("adapter: {new_tokens: [a, a]}", "`a` is two of the new tokens", "name it once"),
        ("adapter: {target_modules: '('}", "`(` is no regular expression", "write for example"),
        ("train_spans: [{match: '(', train: true, regex: true}]", "`(` is no regular expression", "write for example"),
        ("cluster: {engine: ray, workers: [3, 1]}", "`workers` is a number from 1 on", "write for example"),
        ("row_weights: {r1: 0}", "`r1` is no row's mark", "write for example"),
    ],
)
def test_keys_of_a_part_that_do_not_go_together(line: str, cause: str, fix: str) -> None:
    """What is wrong is none of the forms that the part may have: nothing is said of these."""
    error = refused(line)
    assert cause in error.cause
    assert not re.search("pairs|, not ", error.cause), error.cause
    assert error.fix.startswith(fix)


def test_the_line_of_a_key_of_a_part_that_is_contradicted() -> None:
    with pytest.raises(SpecError) as caught:
        from_yaml("data: rows\nadapter:\n  type: qlora\n  init_lora_weights: pissa\n")
    assert caught.value.place == "line 4 of the cell"
