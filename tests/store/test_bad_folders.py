"""One bad folder disturbs nobody: lists name it in a line and go on."""

import contextlib
import json
import os
import shutil
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nbtune
from nbtune.cli import main
from nbtune.errors import NbtuneError
from nbtune.events import from_line
from nbtune.notebook.display import runs_table
from nbtune.store.event_log import Follower
from nbtune.untrusted import BadFile, harmless, load, parse
from nbtune.widgets.html import as_text
from tests.support.every import every

ROWS = [{"prompt": f"What is {k}?", "completion": f"It is {k}, sailor."} for k in range(8)]
SPEC = {"model": "nbtune/tiny", "data": "rows", "steps": 2, "batch_size": 2, "adapter": {"r": 2}, "eval": {"split": 0}}
DEEP = b"[" * 100_000
FILES = ("environment.json", "plan.json", "events.jsonl", "spec.yaml", "control.json", "owner.json")
BAD = {
    "environment.json": [b'{"created": null}', b'{"created": "today"}', b"[]", DEEP, b'{"version": {}}', b"{"],
    "plan.json": [b'{"total_steps": "many"}', b"3", DEEP, b'{"total_steps": 1' + b"0" * 400 + b"}", b'{"gpus": "x"}'],
    "events.jsonl": [b"\0" * 5000, b"garbage\n" * 99, b"{" + DEEP + b"\n"],
    "spec.yaml": [b"\0\xff\xfe", b"\x00"],
    "control.json": [b"[1]", DEEP, b"{"],
}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Runs of two names: `good`, and `bad`, which the tests spoil."""
    place = tmp_path_factory.mktemp("runs")
    run = nbtune.finetune(SPEC, rows={"rows": ROWS}, runs_dir=place, name="good").wait()
    shutil.copytree(run.folder, place / "bad-abc123")
    return place


def spoilt(root, file, data):
    """The folder `bad` as it was, with one file spoilt."""
    good = next(root.glob("good-*"))
    shutil.rmtree(root / "bad-abc123", ignore_errors=True)
    shutil.copytree(good, root / "bad-abc123")
    (root / "bad-abc123" / file).write_bytes(data)


def listed(root, capsys):
    assert main(["runs", "--runs", str(root)]) == 0
    said = capsys.readouterr()
    assert "Traceback" not in said.err
    return said


@pytest.mark.parametrize(("file", "number"), [(file, i) for file, datas in BAD.items() for i in range(len(datas))])
def test_a_bad_folder_is_named_and_the_others_are_listed(file, number, root, capsys):
    spoilt(root, file, BAD[file][number])
    said = listed(root, capsys)
    assert "good" in said.out
    assert "finished" in said.out
    if not said.out.count("bad"):
        (line,) = said.err.splitlines()
        assert "bad-abc123 cannot be read: " in line
        assert file in line
    else:  # an event that cannot be understood is passed over, as one of a newer version is
        assert file == "events.jsonl"

    assert main(["runs", "--runs", str(root), "--json"]) == 0
    bodies = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {body["name"] for body in bodies} == {"good", "bad"}
    assert "bad" in as_text(*_table(runs_table(nbtune.runs(root))))
    assert len([repr(run) for run in nbtune.runs(root)]) == 2


def _table(made):
    return made.columns, made.rows


def test_a_new_run_starts_beside_a_bad_folder(root):
    for file, datas in BAD.items():
        spoilt(root, file, datas[0])
        run = nbtune.finetune(SPEC, steps=1, rows={"rows": ROWS}, runs_dir=root, name="bad")
        assert run.wait().state == "finished"
        assert nbtune.attach("bad", root).id == run.id
        shutil.rmtree(run.folder)


@settings(max_examples=60)
@given(file=st.sampled_from(FILES), data=st.data())
def test_whatever_a_file_holds_both_runs_are_told_of(root, file, data):
    good = next(root.glob("good-*"))
    was = (good / file).read_bytes() if (good / file).exists() else b"{}"
    kind = data.draw(st.sampled_from(["bytes", "cut", "flip", "json"]))
    if kind == "bytes":
        body = data.draw(st.binary(max_size=300))
    elif kind == "cut":
        body = was[: data.draw(st.integers(0, len(was)))]
    elif kind == "flip":
        at = data.draw(st.integers(0, len(was) - 1))
        body = was[:at] + data.draw(st.binary(min_size=1, max_size=8)) + was[at + 1 :]
    else:
        values = st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
        )
        first = was.splitlines()[0] if file == "events.jsonl" else was
        keys = list(json.loads(first)) if first.startswith(b"{") else ["data"]
        body = json.dumps({key: data.draw(values) for key in keys}).encode() + b"\n"
    spoilt(root, file, body)
    runs = nbtune.runs(root)
    assert sorted(run.name for run in runs) == ["bad", "good"]
    text = as_text(*_table(runs_table(runs)))
    assert "good" in text
    assert "bad" in text
    for run in runs:
        assert repr(run)
        assert run.state
        assert run.step >= 0
        assert run.total_steps >= 0
        assert run.name == "bad" or not run.trouble
        assert isinstance(run.events(), list)
        for read in (lambda run=run: run.plan, lambda run=run: run.spec, lambda run=run: run.history):
            try:
                read()
            except NbtuneError as error:
                assert "bad-abc123" in str(error), error  # noqa: PT017 — some bytes are fine, others are an error


@pytest.mark.parametrize("head", [b"garbage\n" * 10, b"\0\n" * 9, b'{"type":"step"}\n', b"[" * 9999 + b"\n"])
def test_a_log_that_begins_with_garbage_is_read_on(head, tmp_path):
    """It was read again and again from its beginning."""
    log = tmp_path / "events.jsonl"
    log.write_bytes(head)
    follower = Follower(log)
    assert follower.read() == []
    with log.open("ab") as file:
        file.write(b'{"type":"state","state":"running","time":1.0}\n')
    assert [event.state for event in follower.read()] == ["running"]
    assert not follower.behind()


def test_a_monitor_opens_on_a_spoilt_log(root):
    spoilt(root, "events.jsonl", b"garbage\n" * 300_000)
    (root / "bad-abc123" / "state.json").write_text("[]")
    assert nbtune.attach(root / "bad-abc123").monitor() is not None


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
@pytest.mark.parametrize("file", FILES)
def test_a_pipe_is_not_waited_for(file, root, capsys):
    spoilt(root, file, b"")
    path = root / "bad-abc123" / file
    path.unlink()
    os.mkfifo(path)
    try:
        said = listed(root, capsys)
        assert "good" in said.out
        assert file == "spec.yaml" or "bad" in said.out + said.err  # a folder without a spec is no run's
    finally:
        path.unlink()


def test_names_with_control_characters_are_shown_as_escapes(root, capsys):
    spoilt(root, "plan.json", b"{}")
    other = root / "\x1b[31mred\u202e\n-abc124"
    shutil.copytree(next(root.glob("good-*")), other)
    try:
        said = listed(root, capsys)
        shown = said.out + said.err + repr(nbtune.attach(other))
        assert "\x1b" not in shown
        assert "\u202e" not in shown
        assert "red" in shown
        with pytest.raises(NbtuneError) as caught:
            nbtune.attach("nothing", root)
        assert "\x1b" not in str(caught.value)
    finally:
        shutil.rmtree(other)


def test_a_folder_that_vanishes_meanwhile(root, monkeypatch):
    spoilt(root, "plan.json", b"{}")
    runs = nbtune.runs(root)
    shutil.rmtree(root / "bad-abc123")
    assert "vanished" in next(run for run in runs if run.name == "bad").trouble
    assert every(repr(run) for run in runs)
    assert runs_table(runs)


def test_a_folder_of_a_far_future_is_not_the_newest_for_ever(root):
    spoilt(root, "environment.json", b'{"created": 1e300}')
    assert nbtune.runs(root)[0].name == "good"
    (root / "bad-abc123" / "environment.json").write_text(json.dumps({"created": time.time() + 9}))
    assert nbtune.runs(root)[0].name == "bad"


def test_a_name_ends_where_it_ends(tmp_path):
    with pytest.raises(NbtuneError, match="cannot be a run's name"):
        nbtune.finetune(SPEC, rows={"rows": ROWS}, name="demo\n")


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_json_of_others_is_an_object_or_a_bad_file(data):
    for read, fine in ((parse, dict), (from_line, object)):
        with contextlib.suppress(ValueError):
            assert isinstance(read(data), fine)


def test_limits_of_json(tmp_path):
    path = tmp_path / "x.json"
    for text, why in (
        ('{"a": ' + "[" * 65 + "]" * 65 + "}", "deeply"),
        ('{"a": ' + "[" * 99_999 + "}", "deeply"),
        ('{"a": 1' + "0" * 400 + "}", "too large"),
        ("[]", "no object"),
        ("{", "no whole JSON"),
    ):
        path.write_text(text)
        with pytest.raises(BadFile, match=why):
            load(path)
    path.write_text('{"a": "' + "x" * 99 + '"}')
    with pytest.raises(BadFile, match="larger"):
        load(path, largest=50)
    with pytest.raises(BadFile, match="no ordinary file"):
        load(Path("/dev/zero"))


@given(st.text())
def test_harmless_text_keeps_what_is_no_control(text):
    shown = harmless(text, line=True)
    assert "\n" not in shown
    assert "\x1b" not in shown
    assert not any(0xD800 <= ord(letter) < 0xE000 for letter in shown)
    if text.isprintable():
        assert shown == text
