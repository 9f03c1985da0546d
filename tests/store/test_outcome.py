"""What a run came to: base against tuned on held-out rows, with an interval; answers before and after; kept."""

import json

import numpy as np
import pytest

import nbtune
from nbtune import events
from nbtune.engine import evaluation
from nbtune.events import Eval
from nbtune.generate.sampling import CUT
from nbtune.store import outcome
from nbtune.store.outcome import compared, measure, remembered
from nbtune.store.row_losses import MeasuredRows, RowLoss
from tests.support.every import every


def rows(learnt):
    return [RowLoss("eval", "rows", k, k, f"r{k}", 9, 5, 3, 2.0 - each, 2.0) for k, each in enumerate(learnt)]


def test_an_interval_holds_the_mean_and_is_said_of_eight_rows_or_more():
    learnt = np.random.default_rng(1).normal(0.5, 0.3, 40)
    found = compared(rows(learnt))
    assert found.base - found.tuned == pytest.approx(learnt.mean())
    assert found.low < learnt.mean() < found.high
    width = 2 * 1.96 * learnt.std(ddof=1) / np.sqrt(40)  # of the normal distribution
    assert found.high - found.low == pytest.approx(width, rel=0.15)
    assert found.better == (learnt > 0).sum()
    few = compared(rows(learnt[:7]))
    assert (few.rows, few.low, few.high) == (7, None, None)
    assert compared([]).base is None


def test_a_row_counts_by_its_trained_tokens_as_where_held_out_rows_are_measured():
    short, long = (
        RowLoss("eval", "rows", k, k, f"r{k}", 99, n, 3, loss, 4.0) for k, n, loss in ((0, 10, 3.0), (1, 30, 1.0))
    )
    found = compared([short, long])
    assert (found.base, found.tuned, found.better) == (4.0, 1.5, 2)
    many = compared([short, long] * 8)
    assert many.low < 2.5 < many.high


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    told = [{"prompt": f"What is {k}?", "completion": f"It is {k}, sailor."} for k in range(60)]
    fields = {"model": "nbtune/tiny", "steps": 4, "batch_size": 4, "eval": {"split": 0.2}}
    made = nbtune.finetune(fields, data=told, runs_dir=tmp_path_factory.mktemp("runs"), name="came")
    return made.wait()


def test_held_out_rows_are_measured_and_asked_and_what_was_found_stays(run):
    (run.folder / "outcome.json").unlink(missing_ok=True)
    assert remembered(run) is None
    told = []
    found = measure(run, told.append)
    assert told[-1] == found
    assert [len(each.asked) for each in told] == [0, 1, 2]
    assert (found.rows, found.step) == (12, 4)
    whole = MeasuredRows(run).wait()  # those that were measured for the card do not hide the others
    held = [row for row in whole.rows.values() if row.part == "eval"]
    assert (len(held), whole.done) == (12, 60)
    counts = [row.trained for row in held]
    assert found.base == pytest.approx(np.average([row.base for row in held], weights=counts))
    assert found.tuned == pytest.approx(np.average([row.loss for row in held], weights=counts))
    assert found.tuned == pytest.approx(run.latest(Eval).loss, rel=1e-5)  # two numbers of one thing agree
    for asked, row in zip(found.asked, sorted(held, key=lambda row: row.index), strict=False):
        assert (asked.prompt, asked.wanted) == (f"What is {row.row}?", f"It is {row.row}, sailor.")
        assert asked.base.removesuffix(CUT) == run.generate(asked.prompt, base=True, max_new_tokens=96)
        assert asked.tuned.removesuffix(CUT) == run.generate(asked.prompt, max_new_tokens=96)
        assert not asked.seen
    assert remembered(run) == found


@pytest.mark.parametrize(
    "body", ["", "[]", "{}", '{"asked": 3}', '{"asked": [], "step": 4, "rows": "x"}', '{"asked": [{}]}']
)
def test_a_file_that_others_wrote_is_measured_anew(run, body):
    file = run.folder / "outcome.json"
    if not file.exists():
        measure(run, lambda _: None)
    before = file.read_text()
    file.write_text(body)
    assert remembered(run) is None
    file.write_text(json.dumps(json.loads(before) | {"step": 3}))  # of other weights
    assert remembered(run) is None
    file.write_text(before)
    assert remembered(run) is not None


def test_answers_that_are_cut_are_marked_before_and_after_and_as_samples(run, tmp_path, monkeypatch):
    monkeypatch.setattr(outcome, "_LENGTH", 1)
    (run.folder / "outcome.json").unlink(missing_ok=True)
    found = measure(run, lambda _: None)
    assert [each.endswith(CUT) for one in found.asked for each in (one.base, one.tuned)] == [True] * 4
    (run.folder / "outcome.json").unlink()
    monkeypatch.setattr(evaluation, "_SAMPLE_TOKENS", 1)
    asked = nbtune.finetune(
        data=[{"prompt": "Hi", "completion": "It is a long way home, sailor."}],
        samples=["Hi"],
        steps=1,
        runs_dir=tmp_path,
    ).wait()
    said = [event.answer for event in asked.events() if isinstance(event, events.Sample)]
    assert len(said) == 2
    assert every(answer.endswith(CUT) for answer in said)


def test_of_a_run_that_goes_on_meanwhile_the_weights_before_are_measured(run):
    class GoesOn:
        step = run.step

        def __getattr__(self, name):
            return getattr(run, name)

        def row_losses(self, *rows, **options):
            self.step += 1
            return run.row_losses(*rows, **options)

    (run.folder / "losses.jsonl").unlink(missing_ok=True)
    moving = GoesOn()
    assert measure(moving, lambda _: None).step == run.step < moving.step
