"""A thread of this process as a launcher: it shares Python's lock with the user's cells."""

from __future__ import annotations

import sys

import pytest

from nbtune import events
from nbtune.engine.launcher import _short_turns


@pytest.fixture
def interval():
    before = sys.getswitchinterval()
    yield lambda: round(sys.getswitchinterval(), 6)
    sys.setswitchinterval(before)


def test_turns_are_short_while_a_run_works_and_as_before_afterwards(start, until, interval):
    sys.setswitchinterval(0.004)
    run = start(steps=5000)
    until(run, lambda e: isinstance(e, events.Step))
    assert interval() == 0.001
    run.stop(wait=True)
    assert interval() == 0.004


def test_an_interval_that_somebody_else_sets_stays(interval):
    sys.setswitchinterval(0.004)
    with _short_turns():
        sys.setswitchinterval(0.02)
    assert interval() == 0.02
    sys.setswitchinterval(0.0001)
    with _short_turns():
        assert interval() == 0.0001
    assert interval() == 0.0001


def test_a_run_that_ends_before_its_engine_has_a_word_says_why(start, monkeypatch):
    """It stood there as interrupted, without a reason: its thread had died of an import."""
    monkeypatch.setitem(sys.modules, "nbtune.engine.engine", None)
    run = start(steps=2)
    with pytest.raises(Exception, match=r"nbtune\.engine\.engine"):
        run.wait()
    assert run.state == "failed"
    assert "nbtune.engine.engine" in run.latest(events.State).detail
