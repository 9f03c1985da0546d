"""A run that is submitted as a job: what becomes of options that no job can have."""

from __future__ import annotations

from pathlib import Path

import pytest

import nbtune
from nbtune.errors import SpecError
from tests.engine.conftest import ROWS, SPEC


def refused(asked: str, words: str, runs: Path) -> None:
    """Submit a run with such options: a sentence of one line with these words and a way out, and nothing in `runs`."""
    with pytest.raises(SpecError) as caught:
        nbtune.submit({**SPEC, "device": "cpu", "steps": 2}, rows={"rows": ROWS}, slurm=asked, runs_dir=runs)
    assert words in caught.value.cause
    assert caught.value.fix
    assert "\n" not in str(caught.value.cause)
    assert not list(runs.iterdir())
