"""A run's folder is read without an engine, and says the same as the handle that a person holds."""

from __future__ import annotations

import subprocess
import sys

import nbtune
from nbtune import events
from nbtune.export.exporter import Exporter
from nbtune.spec import from_yaml
from nbtune.store.event_log import add_event
from nbtune.store.folder import create
from nbtune.store.run_reader import RunReader, readable


def test_a_reader_says_of_a_run_what_its_handle_says(start):
    run = start(steps=3, eval={"split": 0.2, "every": 3}).wait()
    reader = RunReader(run.folder)
    assert isinstance(run, RunReader)
    for name in ("name", "id", "spec", "plan", "state", "step", "total_steps", "trouble", "saved_steps", "alive"):
        assert getattr(reader, name) == getattr(run, name), name
    assert reader.events() == run.events() == [event for piece, _ in reader.pieces() for event in piece]
    assert reader.history.equals(run.history)
    assert reader.latest(events.Step).step == 3
    assert repr(reader).replace("RunReader", "Run") == repr(run)
    assert readable(reader, lambda of: of.step) == (3, "")
    made = Exporter(reader).adapter()  # an export takes a reader, and is told in the run's log
    assert made.path.is_dir()
    assert isinstance(run.events()[-1], events.Export)


def test_reading_a_run_loads_no_engine_and_nothing_that_trains(tmp_path):
    code = (
        "import sys, nbtune.store.run_reader, nbtune.store.run_handle\n"
        "print([m for m in sys.modules if m.startswith(('nbtune.engine', 'nbtune.run', 'nbtune.api')) or m == 'torch'])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr


def test_the_handle_is_one_class_over_the_reader():
    assert nbtune.Run.__mro__[1:] == (RunReader, object)
    assert nbtune.Run.__module__ == "nbtune.run"


def test_a_step_that_was_done_twice_is_shown_as_it_was_done_last(tmp_path):
    """A run that was killed goes on from the checkpoint before, and the steps behind it are done again."""
    folder = create(tmp_path, "demo", from_yaml("data: rows"))
    for step, loss in ((1, 3.0), (2, 9.0), (3, 8.0), (2, 2.0)):
        add_event(folder, events.Step(step=step, loss=loss))
    add_event(folder, events.Eval(step=2, loss=7.0))
    add_event(folder, events.Eval(step=2, loss=2.5))
    history = RunReader(folder).history
    assert history["loss"].to_dict() == {1: 3.0, 2: 2.0, 3: 8.0}
    assert history["eval_loss"].dropna().to_dict() == {2: 2.5}
