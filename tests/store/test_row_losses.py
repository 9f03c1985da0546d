"""The losses of a run's rows: against the model's own, kept, stopped and gone on with, asked of a run at work."""

import json
import math
import shutil
import subprocess
import sys

import pytest

import nbtune
from nbtune import events
from nbtune.data.prepare.row_weights import mark_of
from nbtune.store.row_losses import MeasuredRows
from tests.support.every import every


def by_hand(run, index, *, base=False):
    """A row's loss of its tokens' losses, as the inspector tells them."""
    inspector = nbtune.inspect(run.rows_of_the_test)
    losses = run.token_losses(inspector.inspection.ids(index), base=base)
    trained = [flags & 1 for _, _, flags in inspector.inspection.row(index)["tokens"]]
    wanted = [loss for loss, learnt in zip(losses, trained, strict=True) if learnt and loss is not None]
    return sum(wanted) / len(wanted)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    rows = [{"prompt": f"What is {k}?", "completion": "It is known, sailor. " * (1 + k % 5)} for k in range(70)]
    fields = {"model": "nbtune/tiny", "data": "rows", "steps": 6, "batch_size": 4, "learning_rate": 1e-3}
    made = nbtune.finetune(fields, rows={"rows": rows}, runs_dir=tmp_path_factory.mktemp("runs"), name="measured")
    made.rows_of_the_test = rows
    return made.wait()


def test_each_row_has_the_mean_of_its_trained_tokens_losses(run):
    measured = MeasuredRows(run)
    measured.wait()
    assert (measured.done, measured.total, measured.in_all) == (70, 70, 70)
    rows = measured.sorted()
    assert [row.loss for row in rows] == sorted((row.loss for row in rows), reverse=True)
    assert {row.part for row in rows} == {"train", "eval"}  # 5 % are held out
    for row in (rows[0], rows[-1]):
        assert row.loss == pytest.approx(by_hand(run, row.index), abs=1e-4)
        assert row.base == pytest.approx(by_hand(run, row.index, base=True), abs=1e-4)
        assert row.learnt == row.base - row.loss
        assert row.mark == mark_of(run.rows_of_the_test[row.row])
        assert measured.text(row) == (f"What is {row.row}?", run.rows_of_the_test[row.row]["completion"])
        assert row.step == 6


def test_what_is_measured_stays_and_holds_no_text(run):
    MeasuredRows(run).wait()
    again = MeasuredRows(run)
    assert not again.busy
    assert again.done == 70
    text = (run.folder / "losses.jsonl").read_text()
    assert "sailor" not in text
    assert every(json.loads(line) for line in text.splitlines())

    with (run.folder / "losses.jsonl").open("a") as file:
        file.write('{"part": "train", "sou')  # a kernel that was killed
    assert MeasuredRows(run).done == 70


def test_it_stops_soon_and_goes_on_where_it_was(run, tmp_path):
    asked = []

    class Slow:
        """The run, but it stops the measuring after the first rows."""

        def __getattr__(self, name):
            return getattr(run, name)

        folder = tmp_path

        def row_losses(self, rows, **how):
            asked.append(len(rows))
            measured.stop()
            return run.row_losses(rows, **how)

    shutil.copytree(run.folder / "data", tmp_path / "data")
    shutil.copy(run.folder / "spec.yaml", tmp_path)
    measured = MeasuredRows.__new__(MeasuredRows)  # its thread begins before its name is bound
    measured.__init__(Slow(), base=False)
    measured.wait()
    first = asked[0]
    assert (measured.done, measured.total) == (first, 70)
    assert first < 70
    measured = MeasuredRows(run_in := Slow(), base=False)
    assert measured.done == first
    measured.wait()
    assert measured.done == first + asked[1]
    assert run_in.folder == tmp_path


def test_of_many_rows_some_are_measured_evenly(run):
    measured = MeasuredRows(run, limit=10, again=True)
    measured.wait()
    assert (measured.done, measured.total, measured.in_all) == (10, 10, 70)


def test_pairs_have_the_loss_of_the_better_answer(tmp_path):
    rows = [{"prompt": f"Say {k}", "chosen": f"Aye, {k}.", "rejected": f"No, {k}, never."} for k in range(6)]
    run = nbtune.finetune(
        {"model": "nbtune/tiny", "data": "rows", "steps": 2, "method": "dpo", "batch_size": 2, "eval": {"split": 0}},
        rows={"rows": rows}, name="pairs", runs_dir=tmp_path,
    ).wait()  # fmt: skip
    measured = MeasuredRows(run)
    measured.wait()
    assert measured.done == 6
    assert measured.text(measured.sorted()[0])[1].startswith("Aye, ")


def test_a_run_at_work_is_asked_at_a_step_boundary_and_trains_on(start, until):
    run = start(steps=4000)
    until(run, lambda event: isinstance(event, events.Step))
    measured = MeasuredRows(run)
    measured.wait()
    assert run.alive
    assert measured.done == 36
    steps = {row.step for row in measured.sorted()}
    assert min(steps) > 0
    assert every(math.isfinite(row.loss) for row in measured.sorted())
    run.stop(wait=True)
    assert run.state == "stopped"
    later = MeasuredRows(run)  # other weights: measured anew, but for the base
    before = {row.key: row.base for row in measured.sorted()}
    later.wait()
    assert {row.step for row in later.sorted()} == {run.step}
    assert {row.key: row.base for row in later.sorted()} == before


LEAVES = """
import atexit, threading
atexit.register(lambda: print([t.name for t in threading.enumerate() if t.name.startswith("nbtune-losses")]))
import sys, nbtune
nbtune.attach(sys.argv[1]).losses(again=True)
"""


def test_who_leaves_in_the_middle_ends_well(run, tmp_path):
    """The first that is registered is called last; torch's own threads abort an interpreter that ends within a step."""
    folder = shutil.copytree(run.folder, tmp_path / "left")
    command = [sys.executable, "-c", LEAVES, str(folder)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert (ended.returncode, ended.stdout.splitlines()[-1:]) == (0, ["[]"]), ended.stderr
