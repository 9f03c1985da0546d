"""What a lane learns beside others is what a run of the same spec learns."""

import pytest

import nbtune
from tests.tools.calibrate import split
from tests.tools.lanes import SEED, TOLD, Lanes, Rows, train


def test_two_lanes_are_the_runs_of_their_rates(tmp_path):
    rates, (rows, held) = (0.01, 0.003), split("labels", 12)
    told = train(
        Lanes("nbtune/tiny", "cpu", 16), Rows("labels", 12, "nbtune/tiny", 8), 3, [(r, SEED) for r in rates], TOLD
    )
    for rate, lane in zip(rates, told, strict=True):
        body = {"data": "var:rows", "eval": {"data": "var:held", "every": 3, "max_rows": 32}, "device": "cpu"}
        named = {"rows": rows, "held": held}
        run = nbtune.finetune({**body, "steps": 3, "learning_rate": rate}, rows=named, runs_dir=tmp_path)
        run.wait()
        assert lane["rate"] == rate
        assert not lane["diverged"]
        assert lane["curve"] == pytest.approx(run.history["loss"].tolist(), rel=1e-3)
        assert lane["held_out"] == pytest.approx(run.history["eval_loss"].dropna().iloc[-1], rel=1e-3)
