"""`run.losses()` and its panel, without a page: what it shows, what a click does, text where there is no page."""

import pytest

import nbtune
from nbtune.widgets.losses_panel import PAGE, LossesPanel


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    rows = [{"prompt": f"What is {k}?", "completion": f"<b>It is {k}</b>, sailor. " * (1 + k % 4)} for k in range(30)]
    fields = {"model": "nbtune/tiny", "data": "rows", "steps": 3, "batch_size": 4, "eval": {"split": 0.1}}
    made = nbtune.finetune(fields, rows={"rows": rows}, runs_dir=tmp_path_factory.mktemp("runs"), name="shown")
    return made.wait()


@pytest.fixture
def losses(run):
    found = run.losses()
    found.wait()
    return found


def test_text_and_html_hold_both_ends_and_no_markup_of_rows(losses):
    text, html = repr(losses), losses._repr_html_()
    assert text.startswith("shown: 30 of 30 rows measured, with the weights after step 3")
    assert "highest loss:" in text
    assert "lowest loss:" in text
    highest, lowest = losses.sorted()[0], losses.sorted(lowest=True)[0]
    for row in (highest, lowest):
        assert row.mark in text
        assert row.mark in html
    assert "<b>It" not in html
    assert "&lt;b&gt;It" in html
    bundle = losses._repr_mimebundle_()  # no page looks on
    assert set(bundle) == {"text/plain", "text/html"}


def test_the_frame_has_every_row_highest_first(losses):
    frame = losses.frame
    assert len(frame) == 30
    assert frame["loss"].is_monotonic_decreasing
    assert set(frame["part"]) == {"train", "eval"}


def test_the_panel_shows_a_page_of_rows_and_sorts(losses):
    panel = losses.panel()
    assert panel is losses.panel()
    assert panel.status["done"] == 30
    assert len(panel.view["rows"]) == PAGE
    assert [row["mark"] for row in panel.view["rows"]] == [row.mark for row in losses.sorted()[:PAGE]]
    panel.do_sort("tokens", True)
    assert [row["tokens"] for row in panel.view["rows"]] == sorted(row.tokens for row in losses.sorted())[:PAGE]
    panel.do_more()
    assert len(panel.view["rows"]) == 30
    assert panel.view["more"] == 0


class Late(LossesPanel):
    """One that is opened so slowly that the measuring has ended when it is there."""

    def _status(self):
        body = super()._status()
        self.losses.wait()
        return body


def test_a_measuring_that_ends_while_its_panel_is_opened_is_told(run):
    panel = Late(run.losses(again=True))
    assert panel.status["busy"] is False
    assert panel.status["done"] == len(panel.view["rows"]) + panel.view["more"] == 30
    panel.close()


def test_a_row_is_opened_with_its_tokens_losses(losses):
    panel, row = losses.panel(), losses.sorted()[3]
    panel._open(row.index)
    inspector = panel._inspector
    assert panel.opened == {"model": inspector.model_id, "index": row.index}
    assert inspector.row["raw"].count(f"What is {row.row}?") == 1
    inspector._judge()
    told = [
        loss for loss, (_, _, flags) in zip(inspector.row["losses"], inspector.row["tokens"], strict=True) if flags & 1
    ]
    assert sum(told) / len(told) == pytest.approx(row.loss, abs=1e-3)
    panel.do_close()
    assert panel.opened == {}
    assert inspector.comm is None
    panel._open(row.index)
    inspector = panel._inspector
    panel.close()
    assert inspector.comm is None


def test_a_runs_rows_are_inspected_from_its_folder(run):
    inspector = nbtune.inspect(run, row=2)
    assert "What is 2?" in inspector.row["raw"]
    inspector._change(lambda: inspector.inspection.with_training("all"))
    changed = inspector.inspection.with_training("all").with_span("sailor", False)
    assert changed.row(2)["index"] == 2
    read = inspector.inspection.with_reading(
        source=0, format="prompt-completion", columns={"prompt": "completion", "completion": "prompt"}
    )
    assert read.row(2)["rendered"].index("sailor") < read.row(2)["rendered"].index("What is 2?")


def test_clicks_change_what_is_wanted_and_say_their_line(losses):
    panel, mark = losses.panel(), losses.sorted()[0].mark
    assert panel.do_weight(mark, 0) == f'losses.drop("{mark}")'
    assert panel.changes["weights"] == {mark: 0}
    assert (panel.changes["dropped"], panel.changes["weighted"], panel.changes["undo"]) == (1, 0, True)
    other = losses.sorted()[1].mark
    assert panel.do_weight(other, 2) == f'losses.weight("{other}", 2)'
    run = losses.run.id
    wanted = f'run = nbtune.attach("{run}").go_on(row_weights={{"{mark}": 0, "{other}": 2}}, steps=4)'
    assert panel.do_code(4) == wanted
    assert panel.do_undo() == "losses.undo()"
    panel.do_weight(mark, 1)
    assert losses.row_weights == {}
    assert panel.do_code() == f'run = nbtune.attach("{run}").go_on()'


def test_continue_starts_a_run_with_these_rows(losses):
    panel, mark = losses.panel(), losses.sorted()[0].mark
    panel.in_background = lambda work, _failed: work()
    panel.do_weight(mark, 0)
    panel.do_go_on(2)
    assert panel.going["state"] == "begun"
    run = losses.next.wait()
    assert run.spec.row_weights == {mark: 0}
    assert run.spec.start_from == losses.run.folder.name
    assert (run.step, run.total_steps) == (2, 2)
