"""Disks that fill up, that may not be written, that come from elsewhere or from later: a sentence, and nothing lost."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

import nbtune
from nbtune import events
from nbtune.errors import ExportError, NbtuneError, TrainError
from nbtune.store import checkpoints

CAN_MOUNT = sys.platform == "linux" and os.geteuid() == 0 and shutil.which("mount") is not None
pytestmark = pytest.mark.skipif(not CAN_MOUNT, reason="small and read-only disks are mounted: needs root on Linux")


@pytest.fixture
def disk(tmp_path):
    """A file system of 96 MB where the runs are."""
    where = tmp_path / "runs"
    where.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96m", "tmpfs", str(where)], capture_output=True)
    if made.returncode:
        pytest.skip("this machine's root may not mount")
    yield where
    subprocess.run(["umount", "--lazy", str(where)], check=True)


def _fill(disk: Path) -> None:
    with (disk / "filler").open("wb", buffering=0) as file:
        for size in (2**20, 4096):
            with contextlib.suppress(OSError):
                while file.write(bytes(size)):
                    pass


def _sentence(error: NbtuneError) -> None:
    assert "\n" not in error.cause
    assert error.fix
    assert "Error" not in error.cause


def _contents(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("detach", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_disk_that_is_full_at_a_checkpoint(disk, start, until, detach):
    run = start(steps=100_000, checkpoint={"every": 2}, detach=detach)
    until(run, lambda e: isinstance(e, events.Checkpoint))
    _fill(disk)
    with pytest.raises(TrainError, match="No space left on device") as caught:
        run.wait(240)
    _sentence(caught.value)
    again = nbtune.attach(run.folder)
    assert again.state == "failed"
    assert again.error is not None
    assert "No space left on device" in again.error.cause
    last = checkpoints.latest(run.folder)
    assert last is not None
    assert sorted(path.name for path in last.iterdir()) == ["optimizer.pt", "progress.json", "trainable.safetensors"]
    (disk / "filler").unlink()
    saved = int(last.name.removeprefix("step-"))
    again.resume()
    until(again, lambda e: isinstance(e, events.Step) and e.step == saved + 3)
    again.stop(wait=True)
    assert again.state == "stopped"
    assert not list(run.folder.glob("checkpoints/.*"))
    assert list(again.history.index) == list(range(1, again.step + 1))


def test_a_disk_that_is_full_at_an_export(disk, start):
    run = start().wait()
    _fill(disk)
    for make in (run.export.adapter, run.export.merged, run.export.ollama, run.export.adapter_gguf):
        with pytest.raises(ExportError) as caught:
            make()
        _sentence(caught.value)


def test_a_disk_that_is_full_before_the_run_begins(disk, start):
    _fill(disk)
    with pytest.raises(NbtuneError) as caught:
        start(steps=2).wait(240)
    _sentence(caught.value)
    assert [path.name for path in disk.iterdir()] == ["filler"]


def test_a_folder_that_may_only_be_read_is_still_a_run(disk, start, tmp_path):
    run = start(steps=3).wait()
    run.free()
    subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
    before = _contents(run.folder)
    again = nbtune.attach(run.folder)
    assert (again.state, again.step, len(again.history)) == ("finished", 3, 3)
    assert isinstance(again.generate("Hello", max_new_tokens=3), str)
    assert again.export.gguf("q8_0", out=tmp_path / "out")[0].bytes > 0
    for ask in (again.stop, again.checkpoint, lambda: again.resume(step=3).wait(), again.export.gguf, start):
        with pytest.raises(NbtuneError, match=r"Read-only file system|cannot be written to") as caught:
            ask()
        _sentence(caught.value)
    assert _contents(run.folder) == before


def test_a_run_root_on_a_mounted_drive_is_written_there_alone(disk, start, tmp_path):
    run = start(steps=4, checkpoint={"every": 2}).wait()
    assert run.folder.is_relative_to(disk)
    assert {path.name for path in tmp_path.iterdir()} == {"runs"}
    assert run.export.gguf("q8_0")[0].path.is_relative_to(disk)


def test_a_clock_that_goes_backwards(start, until, monkeypatch):
    first = start("demo", steps=2).wait()
    now = time.time
    monkeypatch.setattr(time, "time", lambda: now() - 86_400)
    second = start("demo", steps=100_000, checkpoint={"every": 1})
    until(second, lambda e: isinstance(e, events.Checkpoint))
    assert nbtune.attach("demo", first.folder.parent).folder == second.folder
    monkeypatch.setattr(time, "time", lambda: now() - 2 * 86_400)
    assert second.state == "running"
    seen = second.step
    until(second, lambda e: isinstance(e, events.Step) and e.step > seen)
    second.stop(wait=True)
    assert list(second.history.index) == list(range(1, second.step + 1))
    assert [run.folder for run in nbtune.runs(first.folder.parent)] == [second.folder, first.folder]


def test_a_folder_that_was_copied_while_its_run_was_at_work(start, until, tmp_path):
    run = start(steps=100_000, checkpoint={"every": 1})
    until(run, lambda e: isinstance(e, events.Step) and e.step >= 3)
    run.pause()
    until(run, lambda e: isinstance(e, events.State) and e.state == "paused")
    copy = tmp_path / "elsewhere" / run.folder.name
    shutil.copytree(run.folder, copy)
    other = nbtune.attach(copy)
    assert (run.state, other.state) == ("paused", "interrupted")
    other.resume()
    until(other, lambda e: isinstance(e, events.State) and e.state == "queued")
    run.stop(wait=True)
    until(other, lambda e: isinstance(e, events.Step) and e.step > run.step)
    other.stop(wait=True)
    assert run.history["loss"].to_dict().items() <= other.history["loss"].to_dict().items()


def test_a_folder_of_a_newer_version_is_shown_and_never_written(start):
    run = start(steps=2).wait()
    run.free()
    for name, change in {
        "environment.json": {"version": 99},
        "plan.json": {"weights": "2bit", "colour": "green"},
    }.items():
        body = json.loads((run.folder / name).read_text())
        (run.folder / name).write_text(json.dumps({**body, **change}))
    with (run.folder / "events.jsonl").open("a") as file:
        file.write('{"v": 99, "type": "dream", "time": 1, "of": "sheep"}\n')
    before = _contents(run.folder)
    (again,) = nbtune.runs(run.folder.parent)
    assert (again.state, again.step, again.total_steps) == ("finished", 2, 2)
    assert len(again.history) == 2
    for ask in (
        lambda: again.plan,
        lambda: again.spec,
        again.resume,
        lambda: again.generate("Hello"),
        again.export.gguf,
    ):
        with pytest.raises(TrainError, match="made by a newer nbtune") as caught:
            ask()
        _sentence(caught.value)
    assert _contents(run.folder) == before
