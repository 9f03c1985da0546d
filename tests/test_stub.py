"""An editor completes what the public functions take, and a type checker knows it: nbtune/__init__.pyi."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import jedi
import pytest

import nbtune
from nbtune.spec import RunSpec
from tests.support.stub import PAGE, stub


def test_it_says_what_the_spec_says_today() -> None:
    assert PAGE.read_text(encoding="utf-8") == stub(), "`make docs` writes it anew"


def test_it_has_every_public_name() -> None:
    said = set(re.findall(r"^(?:from \S+ import \w+ as |def )(\w+)|^(\w+): ", stub(), re.MULTILINE))
    assert not set(nbtune.__all__) - {name for names in said for name in names}


@pytest.mark.parametrize("function", ["finetune", "plan", "validate", "inspect"])
def test_an_editor_completes_every_key_of_a_run(function: str) -> None:
    text = f"import nbtune\n\nnbtune.{function}("
    offered = {one.name.removesuffix("=") for one in jedi.Script(text).complete(3, len(text.split("\n")[2]))}
    missing = set(RunSpec.model_fields) - offered
    assert not missing - ({"data"} if function == "inspect" else set())
    (signature,) = jedi.Script(text).get_signatures(3, len(text.split("\n")[2]))
    (model,) = [one for one in signature.params if one.name == "learning_rate"]
    assert "float | None" in model.description


GOOD = """
import nbtune
run = nbtune.finetune(data=[{"text": "x"}], method="dpo", adapter={"r": 8}, steps=3, name="x")
loss: float = run.history["loss"][0]
nbtune.models.load_tokenizer("nbtune/tiny")
nbtune.plan({"data": "rows"}, rows=globals(), eval={"split": 0.1})
"""
BAD = {
    "stepz": 'import nbtune\nnbtune.finetune(data="x", stepz=3)',
    "Literal": 'import nbtune\nnbtune.plan(data="x", method="sfft")',
    "rank": 'import nbtune\nnbtune.plan(data="x", adapter={"rank": 8})',
    "fintune": "import nbtune\nnbtune.fintune()",
}


@pytest.mark.slow
def test_a_type_checker_takes_what_is_right_and_finds_what_is_not(tmp_path: Path) -> None:
    for name, text in {"good": GOOD, **BAD}.items():
        file = tmp_path / f"{name.lower()}.py"
        file.write_text(text, encoding="utf-8")
        done = subprocess.run(
            [sys.executable, "-m", "mypy", "--ignore-missing-imports", "--follow-imports=silent", str(file)],
            capture_output=True,
            text=True,
            cwd=PAGE.parents[1],
        )
        assert (done.returncode == 0) == (name == "good"), f"{name}: {done.stdout}"
        assert name == "good" or name in done.stdout
