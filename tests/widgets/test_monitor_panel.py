"""The kernel's half of the monitor, with a comm that records what would go to the page."""

from __future__ import annotations

import threading
import time

import comm
import numpy as np
import pytest
from comm.base_comm import BaseComm
from memory_run import MemoryRun, made_up_device, made_up_step

from nbtune import events as ev
from nbtune.keepalive import heart
from nbtune.widgets import monitor, monitor_panel
from nbtune.widgets.metrics import COLUMNS
from nbtune.widgets.panel import _reply_anywhere
from tests.support.every import every


class Recorder(BaseComm):
    """A comm without a kernel: it keeps what is published."""

    def publish_msg(self, msg_type, data=None, metadata=None, buffers=None, **keys):
        if not hasattr(self, "sent"):
            self.sent, self.news = [], threading.Condition()
        with self.news:
            self.sent.append((msg_type, data or {}, buffers or []))
            self.news.notify_all()

    def custom(self):
        return [(data["content"], buffers) for _, data, buffers in self.sent if data.get("method") == "custom"]

    def wait_for(self, what, timeout=240):
        with self.news:
            assert self.news.wait_for(lambda: any(what(content) for content, _ in self.custom()), timeout)
        return next(content for content, _ in self.custom() if what(content))


@pytest.fixture
def panel(monkeypatch):
    monkeypatch.setattr(comm, "create_comm", lambda **kw: Recorder(**kw))
    made = []

    def make(run):
        made.append(monitor(run))
        return made[-1]

    yield make
    for widget in made:
        widget.close()


def click(widget, wish, **values):
    message = {"method": "custom", "content": {"t": "do", "id": "1", "do": wish, **values}}
    widget._handle_msg({"content": {"data": message}, "buffers": []})
    return widget.comm.wait_for(lambda content: content["t"] == "ack")


def state_of(widget):
    state = widget.get_state()
    rows = np.frombuffer(state["snapshot_rows"]).reshape(len(COLUMNS), state["snapshot"]["rows"])
    return state["snapshot"], dict(zip(COLUMNS, rows, strict=True))


def test_steps_reach_the_page_as_doubles_and_a_state_is_always_fresh(panel):
    run = MemoryRun()
    widget = panel(run)
    run.say(ev.State(state="running"), made_up_step(1), made_up_step(2))
    body = widget.comm.wait_for(lambda content: content["t"] == "d" and content["rows"])
    assert (body["i0"], body["rows"], body["status"]["state"]) == (0, 2, "running")
    snapshot, columns = state_of(widget)
    assert snapshot["next"] == 2
    assert columns["step"].tolist() == [1, 2]


def test_a_monitor_of_a_run_that_is_over_opens_with_all_of_it(panel):
    run = MemoryRun()
    run.say(*[made_up_step(k) for k in range(1, 51)], ev.State(state="finished"))
    widget = panel(run)
    _, opening, buffers = widget.comm.sent[0]
    assert opening["state"]["snapshot"]["next"] == 50
    assert sum(len(buffer) for buffer in buffers) == 50 * len(COLUMNS) * 8


def test_a_second_monitor_sends_at_most_104_kb(panel):
    run = MemoryRun(total_steps=100_000)
    run.say(*[made_up_step(k, 100_000) for k in range(1, 100_001)], *[made_up_device(k) for k in range(1, 5001)])
    widget = panel(run)
    size = sum(len(repr(data)) + sum(map(len, buffers)) for _, data, buffers in widget.comm.sent)
    assert size <= 104_000  # abilities, metrics, the card: 100,000 before


def test_plotly_goes_as_a_message_and_never_into_the_state(panel):
    widget = panel(MemoryRun())
    widget._handle_msg({"content": {"data": {"method": "custom", "content": {"t": "plotly?"}}}, "buffers": []})
    content, buffers = next((c, b) for c, b in widget.comm.custom() if c["t"] == "plotly")
    assert content == {"t": "plotly"}
    assert 200_000 < len(buffers[0]) < 500_000
    assert sum(len(str(value)) for value in widget.get_state().values()) < 66_000


def test_buttons_set_wishes_and_are_answered(panel):
    run = MemoryRun()
    widget = panel(run)
    for button in ("pause", "unpause", "sample", "checkpoint", "stop", "drop"):
        assert "error" not in click(widget, button)
    assert "error" not in click(widget, "rate", rate=1e-5)
    asked = ["pause", "unpause", "sample", "checkpoint", "stop", "drop", "rate 1e-05"]
    assert [name for _, name in run.wishes] == asked


def test_a_run_goes_on_from_the_checkpoint_that_was_picked(panel):
    run = MemoryRun(total_steps=30)
    kept = [ev.Checkpoint(step=step, folder=f"checkpoints/{step}", bytes=100) for step in (2, 4, 6)]
    run.say(*[made_up_step(k) for k in range(1, 11)], *kept, ev.State(state="stopped"))
    widget = panel(run)
    # the spec keeps two of them
    assert [item["step"] for item in state_of(widget)[0]["checkpoints"]["items"]] == [4, 6]
    click(widget, "resume", step=4)
    widget.comm.wait_for(lambda content: content.get("status", {}).get("state") == "finished", timeout=240)
    assert "resume 4" in [name for _, name in run.wishes]


def test_what_is_made_in_the_export_panel_shows_in_the_monitor_too(panel):
    run = MemoryRun()
    run.say(made_up_step(1), ev.State(state="finished"))
    widget = panel(run)
    assert "error" not in click(widget, "open", what="export")
    until(lambda: widget.opened)
    assert widget.opened["what"] == "export"
    widget._beside.do_gguf(["q8_0"])
    until(lambda: widget._beside.files)
    assert widget._beside.files[-1]["path"] == "exports/demo-q8_0.gguf"


def test_a_run_that_nobody_can_be_compared_with_says_so(panel):
    run = MemoryRun()
    run.say(made_up_step(1), ev.State(state="finished"))
    widget = panel(run)
    said = click(widget, "open", what="compare")["error"]  # beside the button
    assert "no other run" in said
    assert "start a second one" in said


def test_the_card_comes_when_somebody_sees_that_the_run_has_ended_and_goes_when_it_goes_on(panel):
    run = MemoryRun(total_steps=30)
    run.plan.parameters = 3_000_000_000  # too big to be loaded unasked
    run.say(*[made_up_step(k) for k in range(1, 11)], ev.State(state="stopped"))
    widget = panel(run)
    assert widget.finish == ""  # nobody has looked
    see(widget, True)
    until(lambda: widget.finish)
    card = widget._card
    assert card.state == "asks"
    first, last = card.facts["loss"]
    assert first == pytest.approx(made_up_step(1).loss)
    assert last == pytest.approx(sum(made_up_step(k).loss for k in range(6, 11)) / 5)
    card.do_measure()  # it has no folder
    until(lambda: card.state == "failed")
    assert card.outcome["error"]
    run.resume = lambda step=None: run
    click(widget, "resume")
    until(lambda: widget.finish == "")
    assert widget._card is None


@pytest.mark.parametrize(("what", "values"), [("dance", {}), ("open", {"what": "zip"}), ("pause", {"hard": True})])
def test_a_wish_that_makes_no_sense_is_refused_in_words(panel, what, values):
    assert click(panel(MemoryRun()), what, **values)["error"]


def test_resume_goes_on_in_the_same_panel(panel):
    run = MemoryRun(total_steps=30)
    run.say(*[made_up_step(k) for k in range(1, 11)], ev.State(state="stopped"))
    widget = panel(run)
    click(widget, "resume")
    widget.comm.wait_for(lambda content: content.get("status", {}).get("state") == "finished", timeout=240)
    assert state_of(widget)[0]["next"] == 30


def test_the_end_is_assigned_so_that_a_notebook_without_a_page_holds_it(panel):
    run = MemoryRun()
    widget = panel(run)
    run.say(*[made_up_step(k) for k in range(1, 6)], ev.State(state="finished"))
    widget.comm.wait_for(lambda content: content.get("status", {}).get("state") == "finished")
    with widget.comm.news:
        updated = lambda: [d for _, d, _ in widget.comm.sent if d.get("method") == "update"]  # noqa: E731
        assert widget.comm.news.wait_for(updated, 240)
    assert updated()[-1]["state"]["snapshot"]["next"] == 5


def test_a_live_run_gives_signs_of_life_as_often_as_is_set_and_a_closed_panel_none(panel, monkeypatch):
    monkeypatch.setattr(heart, "seconds", 0.5)
    run = MemoryRun()
    widget = panel(run)
    assert widget.get_state()["snapshot"]["status"]["beat"] == 0.5  # the page waits for the next sign, and no longer
    run.say(ev.State(state="running"))
    widget.comm.wait_for(lambda content: content["t"] == "hb", timeout=240)
    widget.close()
    assert widget._over.is_set()
    assert not run._listeners


def test_the_chat_opens_in_the_monitor_and_is_put_away(panel):
    run = MemoryRun()
    run.say(made_up_step(1), ev.State(state="finished"))
    widget = panel(run)
    assert "error" not in click(widget, "open", what="chat")
    until(lambda: widget.opened)
    assert widget.opened == {"what": "chat", "model": widget._beside.model_id}
    assert widget._beside.sides[1]["name"] == "demo"
    widget.do_close()
    assert widget.opened == {}
    assert widget._beside is None


def test_two_clicks_at_once_open_one_panel(panel, monkeypatch):
    run, begun, goes = MemoryRun(), threading.Event(), threading.Event()
    run.say(made_up_step(1), ev.State(state="finished"))
    widget, made = panel(run), []

    def slowly(_run):
        begun.set()
        assert goes.wait(240)
        made.append(panel(MemoryRun()))
        return made[-1]

    monkeypatch.setitem(monitor_panel.BESIDE, "chat", slowly)
    clicks = [threading.Thread(target=widget._open, args=("chat",)) for _ in range(2)]
    for each in clicks:
        each.start()
    assert begun.wait(240)
    goes.set()
    for each in clicks:
        each.join(240)
    assert len(made) == 1
    assert made[0].comm is not None  # it is not closed by the second click
    assert widget.opened["model"] == made[0].model_id


def test_a_page_that_missed_what_was_said_is_given_all_of_it(panel):
    run = MemoryRun()
    widget = panel(run)
    run.say(ev.State(state="running"), made_up_step(1))
    widget.comm.wait_for(lambda content: content["t"] == "d" and content["rows"])
    widget._handle_msg({"content": {"data": {"method": "custom", "content": {"t": "state?"}}}, "buffers": []})
    states = [data["state"] for _, data, _ in widget.comm.sent if data.get("method") == "update"]
    assert {"snapshot", "opened", "finish"} <= set(states[-1])
    assert "_esm" not in states[-1]
    assert states[-1]["snapshot"]["next"] == 1


def test_a_monitor_that_is_closed_closes_what_is_shown_in_it_also_what_comes_later(panel):
    run = MemoryRun(total_steps=30)
    run.plan.parameters = 3_000_000_000
    run.say(made_up_step(1), ev.State(state="stopped"))
    widget = panel(run)
    see(widget, True)
    click(widget, "open", what="chat")
    until(lambda: widget.finish and widget.opened)
    inner = [widget._card, widget._beside]
    assert every(one.comm for one in inner)
    widget.close()
    assert [one.comm for one in inner] == [None, None]
    widget._open("export")
    assert widget._beside.comm is None


def test_a_monitor_opens_no_panel_that_there_is_not(panel):
    assert "'zip'" in click(panel(MemoryRun()), "open", what="zip")["error"]


def test_what_the_machine_does_is_thinned_out_and_survives_a_restart_of_the_view(panel):
    run = MemoryRun(total_steps=5000)
    run.say(*[event for k in range(1, 1001) for event in (made_up_step(k), made_up_device(k))])
    snapshot, _ = state_of(panel(run))
    told = snapshot["machine"]["items"]
    assert len(told) <= 48
    assert told[-1]["step"] == 1000
    assert told[0]["step"] < 50
    assert snapshot["status"]["memory_parts"] == ["weights", "adapter", "rest"]
    assert sum(told[-1]["parts"]) == made_up_step(1000).memory_allocated
    view = panel(run).view
    assert view.dump()["parts"] == ["weights", "adapter", "rest"]


def see(widget, seen, page="a page"):
    message = {"method": "custom", "content": {"t": "seen", "page": page, "seen": seen}}
    widget._handle_msg({"content": {"data": message}, "buffers": []})


def test_a_panel_that_nobody_sees_sends_nothing_until_somebody_looks(panel, monkeypatch):
    monkeypatch.setattr(monitor_panel, "RARELY", 0.2)
    run = MemoryRun()
    widget = panel(run)
    run.say(ev.State(state="running"), made_up_step(1))
    widget.comm.wait_for(lambda content: content["t"] == "d" and content["rows"])
    see(widget, True)
    see(widget, False, "another page")
    assert run._listeners  # one of two pages shows it
    see(widget, False)
    assert not run._listeners
    sent, news = len(widget.comm.sent), made_up_step
    for step in range(2, 3000):
        run.say(news(step, 3000))
    until(lambda: widget.view.series.next == 2999)  # it is taken in now and then, for whoever looks
    assert len(widget.comm.sent) == sent
    see(widget, True)
    body, _ = widget.comm.custom()[-1]
    assert (body["t"], body["i0"], body["status"]["step"]) == ("d", 1, 2999)
    run.say(news(3000, 3000))
    widget.comm.wait_for(lambda content: content["t"] == "d" and content["i0"] == 2999)


def test_the_end_of_a_run_is_told_and_kept_though_nobody_sees_it(panel, monkeypatch):
    monkeypatch.setattr(monitor_panel, "RARELY", 0.1)
    run = MemoryRun()
    widget = panel(run)
    see(widget, False)
    run.say(ev.State(state="running"), made_up_step(1), ev.State(state="finished"))
    widget.comm.wait_for(lambda content: content.get("status", {}).get("state") == "finished")
    until(lambda: widget.snapshot.get("next") == 1)


def until(true):
    deadline = time.monotonic() + 240
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_only_a_comm_that_reroutes_replies_is_told_not_to():
    class Rerouting:
        def _reply_subshell_for(self, data, default):
            return "the main shell"

    comm_, plain = Rerouting(), object()
    _reply_anywhere(comm_)
    _reply_anywhere(plain)
    assert comm_._reply_subshell_for({}, "the page's choice") == "the page's choice"
    assert Rerouting()._reply_subshell_for({}, "") == "the main shell"
