"""Every weight is trained, also in 16 bits."""

from __future__ import annotations

import pytest

from nbtune import events

FULL = {"adapter": "full", "learning_rate": 1e-4, "steps": 24}


@pytest.mark.parametrize("dtype", ["bf16", pytest.param("fp16", marks=pytest.mark.slow)])
def test_sixteen_bits_learn_what_fp32_learns(start, dtype):
    exact, short = start("exact", **FULL).wait(), start("short", dtype=dtype, **FULL).wait()
    assert (exact.state, short.state) == ("finished", "finished")
    # updates rounded to bf16 would end at 5.2 instead of 3.0
    assert short.history["loss"].iloc[-1] == pytest.approx(exact.history["loss"].iloc[-1], rel=0.05)


def test_a_stopped_run_in_bf16_goes_on_exactly(start, until):
    """Its end is so far away that none is too quick to be stopped."""
    fields = {**FULL, "dtype": "bf16", "lr_scheduler_type": "constant", "warmup_ratio": 0}
    run = start("part", **{**fields, "steps": 100_000})
    until(run, lambda event: isinstance(event, events.Step) and event.step >= 3)
    run.stop(wait=True)
    assert run.state == "stopped"
    seen = run.step
    run.resume()
    until(run, lambda event: isinstance(event, events.Step) and event.step >= seen + 3)
    run.stop(wait=True)
    assert run.step > seen
    whole = start("whole", **{**fields, "steps": run.step}).wait()
    assert run.history["loss"].tolist() == whole.history["loss"].tolist()


@pytest.mark.filterwarnings("ignore:Cannot enable progress bars:UserWarning")
@pytest.mark.parametrize("method", ["sft", "reward"])  # the second is saved with a head of scores
def test_nothing_is_printed_while_every_weight_is_saved(start, capfd, method):
    from transformers.utils import logging

    rows = [{"prompt": f"Who {k}?", "chosen": f"It is {k}.", "rejected": "No."} for k in range(8)]
    shown = logging.is_progress_bar_enabled()
    logging.enable_progress_bar()  # as everywhere but in these tests
    try:
        more = {"method": method, "rows": rows} if method == "reward" else {}
        assert start("usual", **{**FULL, "steps": 1, **more}).wait().state == "finished"
    finally:
        if not shown:
            logging.disable_progress_bar()
    assert capfd.readouterr() == ("", "")
