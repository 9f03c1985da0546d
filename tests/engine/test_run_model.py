"""Asking a run's model: while it trains, through its folder, token by token; at a checkpoint; and with a stop."""

import pytest

import nbtune
from nbtune import events
from nbtune.errors import TrainError
from tests.support.every import every

ASKED = "What is 1 plus 2?"


def test_the_live_model_tells_its_tokens_and_its_losses_and_stops(start, until):
    run = start(steps=10_000)
    until(run, lambda e: isinstance(e, events.Step) and e.step >= 2)
    told = []
    said = run.generate(ASKED, max_new_tokens=8, told=told.append)
    assert "".join(token.text for token in told if not token.special).strip() == said
    assert every(0 < token.probability <= 1 and len(token.others) == 5 for token in told)
    assert run.generate(ASKED, base=True, seed=1, temperature=1.0, max_new_tokens=8) is not None
    losses = run.token_losses([5, 6, 7, 8])
    assert losses[0] is None
    assert every(loss > 0 for loss in losses[1:])
    told.clear()
    part = run.generate(ASKED, max_new_tokens=2000, told=told.append, should_stop=lambda: len(told) >= 2)
    assert part == "".join(token.text for token in told if not token.special).strip()
    step = run.step
    until(run, lambda e: isinstance(e, events.Step) and e.step > step + 2)  # it trains on
    run.stop(wait=True)
    assert list((run.folder / "requests").iterdir()) == []


def test_checkpoints_are_asked_beside_the_newest_weights_live_and_afterwards(start, until):
    run = start(steps=60, learning_rate=3e-3, batch_size=8, checkpoint={"every": 5, "keep": 20})
    until(run, lambda e: isinstance(e, events.Checkpoint) and e.step >= 10)
    early = run.at(5).generate(ASKED, max_new_tokens=12)
    ids = list(range(5, 25))
    early_losses = run.at(5).token_losses(ids)
    run.wait()
    assert run.saved_steps[0] == 5
    assert run.saved_steps[-1] == 60
    last = run.generate(ASKED, max_new_tokens=12)
    assert run.at(5).name == "demo · step 5"
    assert run.at(5).generate(ASKED, max_new_tokens=12) == early
    assert run.at(5).token_losses(ids) == pytest.approx(early_losses, abs=1e-3)
    assert run.token_losses(ids) != pytest.approx(early_losses, abs=1e-3)
    assert run.generate(ASKED, max_new_tokens=12) == last == run.at(60).generate(ASKED, max_new_tokens=12)
    with pytest.raises(TrainError, match="no checkpoint of step 7"):
        run.at(7).generate(ASKED)
    assert nbtune.attach(run.folder).at(5).generate(ASKED, max_new_tokens=12) == early
