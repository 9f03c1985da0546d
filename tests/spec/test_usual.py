"""Numbers that nobody means get a plain sentence; what docs, recipes and other tools' defaults say gets none."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from nbtune.errors import NbtuneError
from nbtune.methods import METHODS
from nbtune.spec import RunSpec, from_mapping, from_yaml, unusual
from nbtune.spec.usual import ANY, USUAL

REPO = Path(__file__).resolve().parents[2]


def kinds(annotation: Any) -> Iterator[Any]:
    yield annotation
    for inner in get_args(annotation):
        yield from kinds(inner)


def numbers(model: type[BaseModel], above: str = "") -> Iterator[str]:
    """Every key of a spec that may hold a number."""
    for name, field in model.model_fields.items():
        found = set(map(repr, kinds(field.annotation)))
        if found & {repr(int), repr(float)}:
            yield above + name
        for kind in kinds(field.annotation):
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from numbers(kind, f"{above}{name}.")


def nested(key: str, value: Any) -> dict[str, Any]:
    for name in reversed(key.split(".")):
        value = {name: value}
    return value


def test_every_number_of_a_spec_is_in_the_table_or_has_no_unusual_value() -> None:
    assert {*numbers(RunSpec)} == {*USUAL} | ANY
    assert not {*USUAL} & ANY


@pytest.mark.parametrize(
    "said",
    [
        "learning_rate: 1000", "learning_rate: 1e-15", "epochs: 10000", "batch_size: 10000000", "warmup_ratio: 1.0",
        "sequence_len: 10", "weight_decay: 50", "adapter: {dropout: 0.99}", "mix: {temperature: 1e6}",
        "adapter: {alpha: 100000}", "gradient_accumulation_steps: 100000", "neftune_noise_alpha: 1e5",
        "optim_args: {beta2: 0}", "optim_args: {eps: 1}", "memory: {vram_gib: 8000000000}", "eval: {split: 0.99}",
        "checkpoint: {minutes: 1e-5}", "optim_args: {ema_decay: 1e-9}", "steps: 1000000000", "max_grad_norm: 1e-12",
        "schedule: {warmup_steps: 9000000}", "adapter: {alpha_pattern: {q_proj: 100000}}",
        "{method: dpo, beta: 1e6}", "{method: simpo, loss: {gamma: 1e4}}", "micro_batch_size: 100000",
    ],
)  # fmt: skip
def test_a_number_that_nobody_means_gets_one_sentence(said: str) -> None:
    body = said if said.startswith("{") else f"{{{said}}}"
    (sentence,) = unusual(from_yaml(body.replace("{", "{data: rows, ", 1)))
    key = re.findall(r"(\w+): ", body.rstrip("}"))[-1]
    assert re.match(rf"`[\w.]*{key}: [^`]+` is far (above|below) what is usual \([^)]+\): \w", sentence), sentence


def test_the_number_is_shown_as_it_was_written() -> None:
    (said,) = unusual(from_mapping({"data": "rows", "adapter": {"r": 8, "alpha": 100_000}}))
    assert said.startswith("`adapter.alpha: 100000` is far above what is usual (half of `r` to 4 times it)")
    (said,) = unusual(from_mapping({"data": "rows", "schedule": {"warmup_steps": 90}}), steps=100)
    assert said.startswith("`schedule.warmup_steps: 90` is far above what is usual (at most a tenth of the steps)")
    assert not unusual(from_mapping({"data": "rows", "schedule": {"warmup_steps": 90}}), steps=1000)


def test_ordinary_values_get_none() -> None:
    """All examples of the reference, all defaults, what 0 means, and what large runs and tiny ones have."""
    for model, above in [(RunSpec, "")]:
        for name, field in model.model_fields.items():
            for example in field.examples or []:
                if isinstance(example, int | float) and above + name in USUAL:
                    assert USUAL[name].said(name, example, example) is None, name
    for method in METHODS.values():
        for option, value in method.options.items():
            usual = USUAL.get(option) or USUAL.get(f"loss.{option}")
            assert usual is None or isinstance(value, str) or usual.said(option, value, value) is None, option
    ordinary: list[dict[str, Any]] = [
        {},
        {"learning_rate": 1e-7, "adapter": "full", "batch_size": 1024},
        {"learning_rate": 0.02, "adapter": {"r": 1, "alpha": 32}, "optim": "muon"},
        {"warmup_ratio": 0, "weight_decay": 0, "max_grad_norm": 0, "neftune_noise_alpha": 0, "eval": {"split": 0}},
        {"epochs": 100, "batch_size": 1, "sequence_len": 32, "adapter": {"dropout": 0.5}},
        {"epochs": 0.01, "max_grad_norm": 1e9, "weight_decay": 0.3, "adapter": {"r": 256, "alpha": 512}},
        {"optim_args": {"beta1": 0, "beta2": 0.95, "eps": 1e-15, "lora_b_rate": 16, "ema_decay": 0.9999}},
        {"steps": 1_000_000, "checkpoint": {"minutes": 0.1, "every": 1, "keep": 100}, "eval": {"every": 100_000}},
        {"memory": {"vram_gib": 0.5, "ram_gib": 2048}, "eval": {"split": 0.5, "max_rows": 100_000}},
        {"method": "simpo", "beta": 10, "loss": {"gamma": 5.4}},
    ]
    for body in ordinary:
        assert unusual(from_mapping({"data": "rows", **body})) == (), body


def blocks_of(file: Path) -> list[str]:
    """The blocks of a page, the cells of a notebook."""
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".ipynb":
        return ["".join(cell["source"]) for cell in json.loads(text)["cells"]]
    return re.findall(r"^```\w*\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def test_what_docs_and_examples_say_gets_none() -> None:
    """Each block of YAML, or of a cell, that is a spec."""
    tried = 0
    pages = [REPO / "README.md", *(REPO / "docs").rglob("*.md"), *(REPO / "example_notebooks").glob("*.ipynb")]
    for block in [block for page in pages for block in blocks_of(page)]:
        body = re.sub(r"^%%finetune.*\n", "", block)
        try:
            spec = from_yaml(body if "data:" in body else f"data: rows\n{body}")
        except NbtuneError:
            continue
        tried += 1
        assert unusual(spec) == (), block
    assert tried > 30


def test_a_long_name_of_a_pattern_is_cut() -> None:
    (said,) = unusual(from_mapping({"data": "rows", "adapter": {"alpha_pattern": {"q_proj|" + "w" * 300: 1e9}}}))
    assert "w…: 1000000000` is far above" in said
    assert len(said) < 200
