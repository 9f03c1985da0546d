"""Reading a log without keeping it: in pieces, from a mark, and from the end."""

from __future__ import annotations

import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nbtune import events
from nbtune.store import event_log
from nbtune.store.event_log import EventReader, EventWriter, Follower, Latest, Mark, Pump

text = st.text(max_size=30)
some_events = st.lists(
    st.one_of(
        st.builds(events.Step, step=st.integers(0, 99), loss=st.floats(allow_nan=False)),
        st.builds(events.Sample, step=st.just(1), prompt=st.just('"type":"state"'), answer=text),
        st.builds(events.State, state=st.sampled_from(events.STATES), detail=text),
    ),
    max_size=30,
)


def write(path, said):
    writer = EventWriter(path)
    for event in said:
        writer(event)
    writer.close()


def everything(follower):
    found = []
    while new := follower.read():
        found += new
    return found


@pytest.fixture
def small(monkeypatch):
    """Pieces and blocks of some lines, so that every seam is met."""
    monkeypatch.setattr(event_log, "_PIECE", 500)
    monkeypatch.setattr(event_log, "_BLOCK", 70)


@settings(max_examples=60, deadline=None)
@given(written=some_events, more=some_events, start=st.integers(0, 40))
def test_pieces_marks_and_the_newest_agree_with_the_whole_log(tmp_path_factory, written, more, start):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(event_log, "_PIECE", 500)
        patch.setattr(event_log, "_BLOCK", 70)
        path = tmp_path_factory.mktemp("log") / "events.jsonl"
        latest = Latest(path)
        write(path, written)
        follower = Follower(path)
        assert everything(follower) == written
        assert follower.mark == len(written)
        later = Follower(path, min(start, len(written)))
        assert everything(later) == written[start:]
        for kind in (events.State, events.Step):
            assert latest.of(kind) == next((e for e in reversed(written) if isinstance(e, kind)), None)
        write(path, more)
        assert everything(follower) == more
        assert everything(Follower(path, Mark(len(written), later.mark.offset))) == more
        for kind in (events.State, events.Step):
            assert latest.of(kind) == next((e for e in reversed(written + more) if isinstance(e, kind)), None)


def test_a_line_that_is_not_whole_waits(tmp_path, small):
    path = tmp_path / "events.jsonl"
    write(path, [events.Step(step=1, loss=1.0)])
    line = events.to_line(events.Step(step=2, loss=1.0, tokens=5)).encode()
    follower, latest, reader = Follower(path), Latest(path), EventReader(path)
    with path.open("ab") as file:
        file.write(line[:20])
        file.flush()
        assert [event.step for event in everything(follower)] == [1]
        assert [event.step for event in reader.read()] == [1]
        assert latest.of(events.Step).step == 1
        file.write(line[20:])
    assert [event.step for event in everything(follower)] == [2]
    assert [event.step for event in reader.read()] == [1, 2]
    assert latest.of(events.Step).step == 2


def test_lines_that_no_version_wrote_and_very_long_ones(tmp_path, small):
    path = tmp_path / "events.jsonl"
    write(path, [events.Sample(step=1, prompt="a", answer="x" * 5000), events.Step(step=1, loss=1.0)])
    with path.open("ab") as file:
        file.write(b"not json\n" * 200)
    write(path, [events.Step(step=2, loss=1.0)])
    assert everything(Follower(path)) == EventReader(path).read()
    assert len(everything(Follower(path, 2))) == 1


def test_listeners_get_all_once_and_a_broken_one_silences_nobody(tmp_path):
    path = tmp_path / "events.jsonl"
    write(path, [events.Step(step=k, loss=1.0) for k in range(5)])
    over, heard, marks, done = threading.Event(), [], [], threading.Event()
    pump = Pump(path, lambda: not over.is_set(), "pump")

    def listen(new, first):
        heard.extend(event.step for event in new)
        marks.append((int(first), int(first.behind)))
        if len(heard) == 9:
            done.set()

    pump.add(lambda new, first: 1 / 0, 0)
    remove = pump.add(listen, 1)
    write(path, [events.Step(step=k, loss=1.0) for k in range(5, 10)])
    assert done.wait(240)
    assert heard == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert marks[-1][1] == 10
    remove()
    over.set()


def test_what_a_wish_led_to_is_told_off_the_schedule(tmp_path, monkeypatch):
    monkeypatch.setattr(event_log, "_EVERY", 60.0)  # it would be told after the test
    path = tmp_path / "events.jsonl"
    write(path, [events.State(state="running")])
    over, heard, news = threading.Event(), [], threading.Condition()
    pump = Pump(path, lambda: not over.is_set(), "pump")

    def listen(new, _):
        with news:
            heard.extend(new)
            news.notify_all()

    remove = pump.add(listen, 0)
    with news:
        assert news.wait_for(lambda: len(heard) == 1, 20)
    write(path, [events.Step(step=1, loss=1.0)])
    pump.expect()
    write(path, [events.Step(step=2, loss=1.0), events.State(state="paused", step=2)])
    with news:
        assert news.wait_for(lambda: len(heard) == 4, 20)
    assert heard[-1].state == "paused"
    over.set()
    remove()
    pump.expect()
