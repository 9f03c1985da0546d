"""A run's folder by somebody who read our code: links that lead out of it, pipes, files that unpack into anything.

Through no door is anything outside of it written, deleted or copied, and none waits.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import struct
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

import nbtune
from nbtune.cli import main
from nbtune.errors import NbtuneError, TrainError
from nbtune.store import checkpoints
from nbtune.store.event_log import EventWriter
from nbtune.untrusted import open_to_append
from tests.store.test_trust import made, stranger  # noqa: F401 — a run as if somebody had sent it
from tests.support.every import every

pytestmark = [pytest.mark.timeout(200), pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="links and pipes")]
STEP = "checkpoints/step-00000002"
WRITING: dict[str, Callable[[Any], Any]] = {
    "resume": lambda run: run.resume().wait(),
    "chat": lambda run: run.generate("Hi", max_new_tokens=1),
    "losses": lambda run: _measured(run),
    "export": lambda run: run.export.adapter(),
    "repeat": lambda run: nbtune.repeat(run.folder).wait(),
}
READING: dict[str, Callable[[Any], Any]] = {
    "runs": lambda run: main(["runs", "--runs", str(run.folder.parent)]),
    "attach": lambda run: (repr(run), run._repr_html_(), run.history, run.state, run.events(), run.saved_steps),
    "monitor": lambda run: run.monitor(),
    "script": lambda run: (run.script(), run.yaml()),
}


def _measured(run: Any) -> None:
    losses = run.losses()
    losses.wait()
    if losses.error is not None:
        raise losses.error


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """What is somebody's own, and lies outside."""
    place = tmp_path / "home"
    (place / "config").mkdir(parents=True)
    (place / ".bashrc").write_text("echo hello\n")
    (place / "config" / "a.json").write_text('{"prompt": "Hi"}')
    return place


def _contents(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


def _put(path: Path, make: Callable[[Path], Any]) -> None:
    """Put something else in a path's place."""
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    make(path)


def _through_all(run: Any, cause: str) -> None:
    for ask in READING.values():
        with suppress(NbtuneError):
            ask(run)
    for door, ask in WRITING.items():
        with pytest.raises(NbtuneError, match=cause) as caught:
            ask(run)
        assert caught.value.fix, door


LINKS = {
    "events.jsonl": ".bashrc",
    "losses.jsonl": ".bashrc",
    "worker.log": ".bashrc",
    "requests": "config",
    "columns": "config",
    "checkpoints": "config",
    "tokenizer": "config",
    f"{STEP}/optimizer.pt": ".bashrc",
}


@pytest.mark.parametrize("link", LINKS)
def test_what_a_link_leads_to_is_neither_written_nor_deleted(link, stranger, home):  # noqa: F811
    _put(stranger / link, lambda path: path.symlink_to(home / LINKS[link]))
    before = _contents(home)
    _through_all(nbtune.attach(stranger), "leads out of its folder")
    assert _contents(home) == before


@pytest.mark.parametrize("pipe", ["events.jsonl", "losses.jsonl", f"{STEP}/optimizer.pt", "adapter/x.safetensors"])
def test_a_pipe_is_named_and_not_waited_for(pipe, stranger):  # noqa: F811
    _put(stranger / pipe, os.mkfifo)
    _through_all(nbtune.attach(stranger), "a pipe or a device")


def test_a_log_that_is_no_file_is_not_written(tmp_path, home):
    (tmp_path / "events.jsonl").symlink_to(home / ".bashrc")
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "events.jsonl", tmp_path / "pipe", tmp_path):
        with pytest.raises(OSError, match=r"."):
            open_to_append(path)
    with pytest.raises(OSError, match=r"."):
        EventWriter(tmp_path / "events.jsonl")
    assert (home / ".bashrc").read_text() == "echo hello\n"


def test_a_checkpoint_that_unpacks_into_gigabytes_is_refused(stranger):  # noqa: F811
    file = stranger / STEP / "optimizer.pt"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packed, packed.open("archive/data/0", "w") as entry:
        for _ in range(64):
            entry.write(bytes(1 << 20))
    with pytest.raises(TrainError, match=r"optimizer\.pt is compressed"):
        nbtune.attach(stranger).resume().wait()


def test_an_optimizer_that_is_not_whole_is_said_in_a_sentence(stranger):  # noqa: F811
    """However it is damaged: torch has an error of its own for each way."""
    file, chance = stranger / STEP / "optimizer.pt", random.Random(0)
    whole = file.read_bytes()
    refused: list[str] = []
    for _ in range(60):
        data = bytearray(whole)
        for _ in range(chance.choice((1, 1, 8))):
            at = chance.randrange(len(data))
            data[at : at + chance.choice((1, 4))] = chance.randbytes(chance.choice((0, 1, 4, 40)))
        file.write_bytes(data[: chance.choice((len(data), len(data), chance.randrange(len(data))))])
        refused.append(_trouble_with(file))
    assert len([why for why in refused if why]) > 30
    assert every(why.startswith("optimizer.pt is ") and "\n" not in why for why in refused if why)
    file.write_bytes(whole[:-200])
    with pytest.raises(TrainError, match=r"optimizer\.pt is not whole"):
        nbtune.attach(stranger).resume().wait()


def _trouble_with(file: Path) -> str:
    """What is said of an optimizer's state; "" of one that is read all the same."""
    try:
        with checkpoints._whole_optimizer(file) as found:
            torch.load(found, map_location="cpu", weights_only=True)
    except TrainError as error:
        return error.cause
    return ""


def test_weights_whose_header_tells_of_gigabytes_are_not_read(stranger):  # noqa: F811
    file = stranger / STEP / "trainable.safetensors"
    size = 1 << 34
    header = json.dumps({"a": {"dtype": "F32", "shape": [size // 4], "data_offsets": [0, size]}}).encode()
    with file.open("wb") as out:
        out.write(struct.pack("<Q", len(header)) + header)
        out.truncate(8 + len(header) + size)  # a hole: it takes no room on the disk
    run = nbtune.attach(stranger)
    for ask in (WRITING["chat"], lambda run: run.at(2).generate("Hi", max_new_tokens=1), WRITING["resume"]):
        with pytest.raises(TrainError, match=r"another adapter or model|cannot be read"):
            ask(run)
