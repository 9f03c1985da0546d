"""A rate from a short sweep: of curves that are known, and of a run, which leaves none behind."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pytest

import nbtune
from nbtune.errors import TrainError
from nbtune.rate_finder import curve_of
from tests.engine.conftest import ROWS

RATES = [10 ** (-6 + 5 * step / 99) for step in range(100)]


def test_it_proposes_where_the_loss_falls_fastest() -> None:
    """A loss that falls around 1e-3 as a logistic curve and is no number from 3e-2 on."""
    losses = [4 - 2 / (1 + math.exp(-6 * (math.log10(rate) + 3))) if rate < 3e-2 else math.inf for rate in RATES]
    curve = curve_of(RATES, losses, 1e-4)
    assert 7e-4 < curve.proposed < 1.5e-3
    assert len(curve.losses) == len(curve.rates) == len(curve.smoothed) < 100
    assert f"learning_rate: {curve.proposed:.2g}" in str(curve)


@pytest.mark.parametrize("seed", range(5))
def test_it_is_not_taken_in_by_noise(seed: int) -> None:
    """Rows differ, and the first is the hardest: what one step loses against the next says nothing."""
    noise = random.Random(seed)
    losses = [
        4 - 2 / (1 + math.exp(-6 * (math.log10(rate) + 3))) + noise.gauss(0, 0.15) if rate < 3e-2 else math.inf
        for rate in RATES
    ]
    assert 2e-4 < curve_of(RATES, [6.0, *losses[1:]], 1e-4).proposed < 5e-3


@pytest.mark.parametrize("losses", [[2.0 + rate for rate in RATES], [math.nan] * 100, [1.0]])
def test_what_never_falls_has_none(losses: list[float]) -> None:
    with pytest.raises(TrainError, match="fell at no rate"):
        curve_of(RATES[: len(losses)], losses, 1e-4)


def test_it_sweeps_a_copy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NBTUNE_RUNS", str(tmp_path / "runs"))
    asked = {"model": "nbtune/tiny", "data": "rows", "device": "cpu", "batch_size": 2, "epochs": 2}
    curve = nbtune.lr_find({**asked, "eval": {"split": 0.2}}, rows={"rows": ROWS}, sweep_steps=24)
    assert curve.rates[0] == pytest.approx(curve.planned / 100)
    assert curve.rates[1] / curve.rates[0] == pytest.approx(10 ** (4 / 23))
    assert curve.rates[0] < curve.proposed < curve.rates[-1] <= curve.planned * 100 * (1 + 1e-6)
    assert min(curve.smoothed) < curve.smoothed[0] - 0.1
    assert not list(tmp_path.glob("runs/*"))
