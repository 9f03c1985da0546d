"""Somebody else's run folder, looked at: no file outside of it is opened, and no log takes all time or memory."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

import nbtune
from nbtune import events
from nbtune.data import resolve
from nbtune.errors import NbtuneError, SpecError
from nbtune.spec import from_mapping
from nbtune.store import event_log
from nbtune.store.event_log import EventReader, Follower, Latest
from nbtune.store.lock import is_owned
from tests.store.test_hostile_folder import LINKS, READING, WRITING, _put
from tests.store.test_trust import entry_of, made, stranger, write_entry  # noqa: F401 — a run that somebody sent

pytestmark = [pytest.mark.timeout(200), pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="links and holes")]
_opened: list[str] = []
_watching: list[Path] = []


def _heard(event: str, arguments: tuple[Any, ...]) -> None:
    watched = _watching[-1:]  # of a moment: other threads open files, too
    if watched and event == "open" and isinstance(arguments[0], str | bytes | os.PathLike):
        path = os.path.realpath(os.fsdecode(arguments[0]))
        if path.startswith(f"{watched[0]}{os.sep}"):
            _opened.append(os.fsdecode(arguments[0]))


@pytest.fixture(scope="module")
def hook() -> None:
    sys.addaudithook(_heard)


@contextmanager
def opened_in(folder: Path) -> Iterator[list[str]]:
    """The files of a folder that are opened meanwhile."""
    _opened.clear()
    _watching.append(folder.resolve())
    try:
        yield _opened
    finally:
        _watching.clear()


OTHERS = (
    *("spec.yaml", "plan.json", "environment.json", "control.json", "owner.json", "data/sources.json"),
    *("trainer.json", "columns/state.json"),
)


@pytest.mark.parametrize("link", dict.fromkeys((*OTHERS, *LINKS)))
def test_no_door_that_shows_a_run_reads_what_a_link_leads_to(link, stranger, tmp_path, hook):  # noqa: F811
    home = tmp_path / "home"
    home.mkdir()
    named = home / "a.json"
    named.write_bytes((stranger / link).read_bytes() if (stranger / link).is_file() else b'{"version": 2}\n')
    (home / "state.json").write_text('{"version": 2, "rows": 20000, "state": {}}')
    folder = (stranger / link).is_dir() or link in ("columns", "requests")
    _put(stranger / link, lambda path: path.symlink_to(home if folder else named))
    with opened_in(home) as found:
        for ask in READING.values():
            with suppress(NbtuneError):
                ask(nbtune.attach(stranger))
    assert not found


@pytest.mark.parametrize("key", ["chat_template", "deepspeed"])
def test_a_runs_spec_names_no_file_that_is_read(key, stranger, tmp_path, hook):  # noqa: F811
    home = tmp_path / "home"
    home.mkdir()
    (home / "own.txt").write_text('{"zero_optimization": {"stage": 3}}')
    spec = stranger / "spec.yaml"
    spec.write_text(spec.read_text() + f"{key}: {home}/own.txt\n")
    with opened_in(home) as found:
        for ask in (*READING.values(), *WRITING.values()):
            with suppress(NbtuneError):
                ask(nbtune.attach(stranger))
        with pytest.raises(SpecError, match=r"is no (file|Jinja2 template)"):
            _ = nbtune.attach(stranger).spec
    assert not found


@pytest.mark.parametrize("name", ["{home}", "../home", "json", "a/..", ".", "you/it", "~/x"])
def test_what_is_called_a_set_of_the_hub_is_never_a_folder_here(name, stranger, tmp_path, monkeypatch, hook):  # noqa: F811
    home = tmp_path / "home"
    (home / "you" / "it").mkdir(parents=True)
    for place in (home, home / "you" / "it"):
        (place / "rows.jsonl").write_text('{"prompt": "my", "completion": "secret"}\n')
    monkeypatch.chdir(home)
    named = f"hub:{name.format(home=home)}"
    write_entry(stranger, {**entry_of(stranger), "kind": "hub", "files": [], "spec": {"source": named}})
    with opened_in(home) as found:
        for door in ("resume", "losses", "repeat"):
            with pytest.raises(NbtuneError, match=r"no name of a dataset|has that name, too"):
                WRITING[door](nbtune.attach(stranger))
        with pytest.raises(NbtuneError, match=r"no name of a dataset|has that name, too"):
            resolve(from_mapping({"data": named}).data)
    assert not found


ENDLESS: dict[str, tuple[int, bytes]] = {
    "a hole": (1 << 36, b""),
    "a hole with an end": (1 << 36, b"\n"),
    "nothing but ends": (0, b"\n" * (6 << 20)),
}


@pytest.mark.parametrize("way", ENDLESS)
def test_a_log_that_does_not_end_is_left_alone(way, stranger, monkeypatch):  # noqa: F811
    """Neither time nor memory goes into it: of a hole of a TiB some MiB are read at a time."""
    log = stranger / "events.jsonl"
    size, end = ENDLESS[way]
    if size:
        os.truncate(log, size)
    with log.open("ab") as file:
        file.write(end)
    read: list[int] = []
    opened = event_log.open_file

    def counted(*how: Any, **more: Any) -> Any:
        file = opened(*how, **more)
        whole = file.read
        file_read = lambda size: read.append(size) or whole(size)  # noqa: E731
        return _Counted(file, file_read)

    monkeypatch.setattr(event_log, "open_file", counted)
    for ask in (EventReader(log).read, Follower(log).read):
        assert [type(event) for event in ask()] == [events.State]
    assert Follower(log, 5).read() == []
    for kind in (events.State, events.Step):
        Latest(log).of(kind)
    assert sum(read) < 20 * event_log._LONGEST
    monkeypatch.undo()
    run = nbtune.attach(stranger)
    assert len(run.events()) == 1
    for ask_run in READING.values():
        ask_run(run)


class _Counted:
    """A file whose reads are counted."""

    def __init__(self, file: Any, read: Callable[[int], bytes]) -> None:
        self._file, self.read, self.seek = file, read, file.seek

    def __enter__(self) -> _Counted:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def test_losses_that_do_not_end_are_left_alone(stranger):  # noqa: F811
    losses = stranger / "losses.jsonl"
    losses.touch()
    os.truncate(losses, 1 << 36)
    assert not nbtune.attach(stranger).losses().rows


@pytest.mark.parametrize("owner", [{"pid": 2**30}, {"pid": 2**30, "started": None}, {"pid": -1}, {"pid": 0}])
@pytest.mark.parametrize("name", ["owner.json", "starting.json"])
def test_a_process_that_is_not_there_owns_no_run(owner, name, stranger):  # noqa: F811
    """Who is asked of it would wait for its answer."""
    (stranger / name).write_text(json.dumps(owner))
    assert not is_owned(stranger)


def test_what_is_pasted_is_no_program_of_somebody_else(stranger):  # noqa: F811
    spec = stranger / "spec.yaml"
    code = "__import__('os').system('touch struck')"
    text = spec.read_text()
    spec.write_text(text.replace("model: nbtune/tiny", f'model: "var:{code}"'))
    assert code in spec.read_text()
    assert "__import__" not in nbtune.attach(stranger).snippet()
    spec.write_text(text.replace("model: nbtune/tiny", "model: var:mine"))
    assert "base = mine " in nbtune.attach(stranger).snippet()
