"""The line of a magic: every field of RunSpec is a flag, and what cannot be read is said with the nearest flag."""

from __future__ import annotations

from pathlib import Path

import pytest

from nbtune.errors import SpecError
from nbtune.notebook import flags, usage
from nbtune.spec import RunSpec, from_yaml


def test_each_field_of_the_spec_is_a_flag_and_is_explained() -> None:
    offered = flags.finetune_parser().flags()
    text = usage.finetune_help()
    for name, info in RunSpec.model_fields.items():
        assert f"--{name.replace('_', '-')}" in offered
        assert f"\n  {name} " in text
        assert info.description is not None


def test_flags_win_over_the_body() -> None:
    request = flags.parse_finetune("--steps 7 --learning-rate 2e-5 --set adapter.r=4 --packing")
    spec = from_yaml("data: rows\nsteps: 100\nadapter: {type: dora}\n", request.overrides)
    assert (spec.steps, spec.learning_rate, spec.adapter.r, spec.adapter.type, spec.packing) == (
        7,
        2e-5,
        4,
        "dora",
        True,
    )


def test_own_flags() -> None:
    request = flags.parse_finetune("--name demo --wait --dry-run --queue --runs 'C:\\my runs'")
    assert (request.name, request.wait, request.dry_run, request.on_busy, request.runs_dir) == (
        "demo",
        True,
        True,
        "queue",
        Path("C:\\my runs"),
    )


@pytest.mark.parametrize(
    ("line", "cause", "fix"),
    [
        ("--stps 3", "no flag `--stps`", "`--steps`"),
        ("--name", "expected one argument", "%%finetune?"),
        ("--set adapter.r", "has no value", "--set key=value"),
        ("--restart --queue", "exclude each other", "keep one"),
        ("demo", "no argument `demo`", "its flags"),
        ("--name 'demo", "quote", "close it"),
        ("--set steps={", "cannot be read", "brackets"),
    ],
)
def test_a_wrong_line_is_said_with_its_cause_and_fix(line: str, cause: str, fix: str) -> None:
    with pytest.raises(SpecError) as caught:
        flags.parse_finetune(line)
    assert cause in caught.value.cause
    assert fix in caught.value.fix


def test_words_of_a_choice_come_from_the_field() -> None:
    assert flags.choices(RunSpec.model_fields["dtype"].annotation) == ["auto", "fp32", "bf16", "fp16"]
    assert flags.choices(RunSpec.model_fields["accelerate"].annotation) == ["true", "false"]
    assert flags.choices(RunSpec.model_fields["packing"].annotation) == ["auto", "true", "false"]


def test_help_fits_into_a_page_and_its_columns_stand_apart() -> None:
    for text in (usage.finetune_help(), usage.nbtune_help()):
        assert max(map(len, text.splitlines())) <= 100
        assert not [line for line in text.splitlines() if "--ollama-type TYPEits" in line]
