"""The log survives a crash in the middle of a line, and readers see only whole events."""

from hypothesis import given, settings
from hypothesis import strategies as st

from nbtune import events
from nbtune.store.event_log import EventReader, EventWriter

text = st.text(max_size=30)
some_events = st.lists(
    st.one_of(
        st.builds(
            events.Step, step=st.integers(0, 10**9), loss=st.floats(allow_nan=False), tokens=st.integers(0, 10**12)
        ),
        st.builds(events.Warning, message=text, cause=text),
        st.builds(events.Sample, step=st.integers(0, 99), prompt=text, answer=text),
        st.builds(events.State, state=st.sampled_from(events.STATES), detail=text),
    ),
    max_size=12,
)


@settings(max_examples=40, deadline=None)
@given(written=some_events, more=some_events, cut=st.integers(0, 400))
def test_a_torn_tail_is_dropped_and_the_log_goes_on(tmp_path_factory, written, more, cut):
    path = tmp_path_factory.mktemp("log") / "events.jsonl"
    writer = EventWriter(path)
    for event in written:
        writer(event)
    writer.close()
    body = path.read_bytes()
    kept = body[: max(0, len(body) - cut)]
    path.write_bytes(kept)
    whole = kept.count(b"\n")
    reader = EventReader(path)
    assert reader.read() == written[:whole]
    writer = EventWriter(path)
    for event in more:
        writer(event)
    writer.close()
    assert EventReader(path).read() == written[:whole] + more


def test_a_reader_goes_on_where_it_stopped(tmp_path):
    path = tmp_path / "events.jsonl"
    reader, writer = EventReader(path), EventWriter(path)
    assert reader.read() == []
    for step in range(3):
        writer(events.Step(step=step, loss=1.0))
        assert [event.step for event in reader.read()] == list(range(step + 1))
    writer.close()


def test_events_of_a_newer_version_are_kept_and_do_not_stop_the_reader(tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_text(
        '{"v":9,"type":"weather","rain":true,"time":1.0}\nnot json\n{"v":9,"type":"step","step":1,"loss":2.0,"new":1}\n'
    )
    weather, step = EventReader(path).read()
    assert weather == events.Unknown(name="weather", fields={"rain": True}, time=1.0)
    assert (step.step, step.loss) == (1, 2.0)


def test_who_only_appends_ends_a_torn_line_and_loses_neither_event(tmp_path):
    path = tmp_path / "events.jsonl"
    path.write_bytes(events.to_line(events.Step(step=1, loss=2.0)).encode() + b'{"v": 1, "type": "st')
    guest = EventWriter(path, owner=False)
    guest(events.Export(kind="gguf"))
    guest.close()
    assert [event.type for event in EventReader(path).read()] == ["step", "export"]


def test_a_line_that_the_disk_took_half_of_is_lost_alone(tmp_path, monkeypatch):
    import os

    import pytest

    writer, write = EventWriter(tmp_path / "events.jsonl"), os.write
    writer(events.Step(step=1, loss=2.0))
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:10]))
    with pytest.raises(OSError, match="No space left"):
        writer(events.Step(step=2, loss=2.0))
    monkeypatch.undo()
    writer(events.Step(step=3, loss=2.0))
    writer.close()
    assert [event.step for event in EventReader(tmp_path / "events.jsonl").read()] == [1, 3]
