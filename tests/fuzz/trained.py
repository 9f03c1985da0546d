"""Specs that are accepted, trained for a step."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import yaml

import nbtune
from nbtune.errors import NbtuneError
from nbtune.methods import METHODS
from nbtune.spec import RunSpec, from_mapping
from tests.fuzz.cases import Case
from tests.fuzz.specs import body

ROWS: dict[str, list[dict[str, Any]]] = {
    "sft": [{"prompt": f"Say {k}", "completion": f"{k}, as you wish."} for k in range(12)],
    "pairs": [{"prompt": f"Say {k}", "chosen": f"{k}!", "rejected": "No."} for k in range(12)],
    "feedback": [{"prompt": f"Say {k}", "completion": f"{k}!", "label": k % 2 == 0} for k in range(12)],
}
KEPT: dict[str, Any] = {"steps": 1, "device": "cpu", "epochs": None, "model": "nbtune/tiny", "gpus": 1, "data": "rows"}
KEPT |= {"start_from": None}


def spec_of(chance: random.Random) -> RunSpec:
    """Return the next spec that is accepted; the work is made small, and its data are there."""
    while True:
        try:
            asked = from_mapping({**body(chance), "data": "rows"})
            return asked.model_copy(update=dict(from_mapping(_small(asked))))
        except NbtuneError:
            continue


def _small(asked: RunSpec) -> dict[str, Any]:
    given = yaml.safe_load(nbtune.spec.to_yaml(asked)) | KEPT
    given.update({name: min(given[name], most) for name, most in LARGEST.items() if given.get(name)})
    return {name: value for name, value in given.items() if value is not None}


LARGEST = {"batch_size": 8, "micro_batch_size": 4, "gradient_accumulation_steps": 4, "sequence_len": 512}


def make(chance: random.Random, folder: Path) -> Case:
    spec = spec_of(chance)
    rows = ROWS.get(METHODS[spec.method].rows, ROWS["sft"])
    return Case(lambda: attempt(spec, rows, folder), nbtune.spec.to_yaml(spec))


def attempt(spec: RunSpec, rows: list[dict[str, Any]], folder: Path) -> None:
    nbtune.finetune(spec, rows={"rows": rows}, runs_dir=folder, name="fuzz").wait().free()
