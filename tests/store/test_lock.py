"""One living owner; a dead one never blocks, wherever it was."""

import json
import os
import shutil
import signal
import subprocess
import sys

import pytest

from nbtune.errors import TrainError
from nbtune.store import lock as owners
from nbtune.store.lock import Ownership, TakenOver, is_owned

HOLD = """
import sys
from pathlib import Path
from nbtune.store.lock import Ownership
with Ownership(Path(sys.argv[1])):
    print("mine", flush=True)
    sys.stdin.read()
"""


def _hold(folder):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "mine\n"
    return process


def _rewrite(folder, **changes):
    path = folder / "owner.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def _touched(folder, seconds_ago):
    path = folder / "owner.json"
    now = path.stat().st_mtime
    os.utime(path, (now - seconds_ago, now - seconds_ago))


def test_a_living_owner_in_another_process_is_respected_and_a_killed_one_is_not(tmp_path):
    process = _hold(tmp_path)
    assert is_owned(tmp_path)
    with pytest.raises(TrainError, match="at work already"), Ownership(tmp_path):
        pass
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert not is_owned(tmp_path)
    with Ownership(tmp_path):
        assert is_owned(tmp_path)
    assert not is_owned(tmp_path)
    assert os.listdir(tmp_path) == []


def test_a_pid_that_was_used_again_is_no_owner(tmp_path):
    process = _hold(tmp_path)
    _rewrite(tmp_path, started=json.loads((tmp_path / "owner.json").read_text())["started"] - 1000.0)
    assert not is_owned(tmp_path)
    process.communicate("")


def test_a_thread_that_died_in_a_living_process_is_no_owner(tmp_path):
    with Ownership(tmp_path):
        left = (tmp_path / "owner.json").read_text()
    (tmp_path / "owner.json").write_text(left)
    assert not is_owned(tmp_path)
    with Ownership(tmp_path):
        pass


@pytest.mark.parametrize("elsewhere", [{"host": "colab-1"}, {"boot": "before"}, {"space": "another container's"}])
def test_an_owner_on_another_machine_lives_as_long_as_it_touches_its_lock(tmp_path, elsewhere):
    process = _hold(tmp_path)
    _rewrite(tmp_path, pid=1, **elsewhere)
    assert is_owned(tmp_path)
    with pytest.raises(TrainError, match="at work already") as caught, Ownership(tmp_path):
        pass
    assert "90 s" in caught.value.fix
    _touched(tmp_path, seconds_ago=91)
    assert not is_owned(tmp_path)
    process.kill()
    process.communicate()
    with Ownership(tmp_path):
        assert is_owned(tmp_path)


def test_a_clock_that_was_set_back_or_forth_kills_no_owner_and_keeps_no_dead_one(tmp_path, monkeypatch):
    process = _hold(tmp_path)
    for hours in (-48, 48):
        monkeypatch.setattr(owners.time, "time", lambda hours=hours: 1_700_000_000.0 + hours * 3600)
        assert is_owned(tmp_path)
    process.kill()
    process.communicate()
    (tmp_path / "owner.json").write_text("")  # its maker was killed before it had written
    _touched(tmp_path, seconds_ago=-3600)  # and the clock was set back since
    assert not is_owned(tmp_path)


def test_the_lock_in_a_copied_folder_is_nobodys(tmp_path):
    (tmp_path / "run").mkdir()
    with Ownership(tmp_path / "run"):
        shutil.copytree(tmp_path / "run", tmp_path / "copy")
        (tmp_path / "link").symlink_to(tmp_path / "run")
        assert is_owned(tmp_path / "run")
        assert is_owned(tmp_path / "link")
        assert not is_owned(tmp_path / "copy")
        with Ownership(tmp_path / "copy"):
            pass
    (tmp_path / "run").rename(tmp_path / "moved")
    assert not is_owned(tmp_path / "moved")


def test_who_was_taken_for_dead_learns_it_and_leaves_the_new_owner_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(owners, "_BEAT", 0.02)
    with Ownership(tmp_path) as first:
        _rewrite(tmp_path, token="of another", host="another")
        assert first._lost.wait(240)
        with pytest.raises(TakenOver, match=r"taken over by another process .* on another"):
            first.check()
    assert json.loads((tmp_path / "owner.json").read_text())["token"] == "of another"
    assert is_owned(tmp_path)


def test_the_owner_touches_its_lock_and_makes_it_again(tmp_path, monkeypatch):
    monkeypatch.setattr(owners, "_BEAT", 0.02)
    with Ownership(tmp_path) as mine:
        _touched(tmp_path, seconds_ago=1000)
        old = (tmp_path / "owner.json").stat().st_mtime
        while (tmp_path / "owner.json").stat().st_mtime == old:
            mine._over.wait(0.01)
        (tmp_path / "owner.json").unlink()
        while not (tmp_path / "owner.json").exists():
            mine._over.wait(0.01)
        mine.check()


def test_a_file_system_without_links_has_locks_too(tmp_path, monkeypatch):
    def no_links(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", no_links)
    with Ownership(tmp_path):
        with pytest.raises(TrainError, match="at work already"), Ownership(tmp_path):
            pass
    assert os.listdir(tmp_path) == []


RACE = """
import os, sys
from pathlib import Path
from nbtune.errors import TrainError
from nbtune.store.lock import Ownership
folder, mark = Path(sys.argv[1]), Path(sys.argv[1]) / "inside"
print("ready", flush=True)
sys.stdin.readline()
won = 0
while won < 10:
    try:
        with Ownership(folder):
            os.close(os.open(mark, os.O_CREAT | os.O_EXCL))  # fails if another is inside, too
            os.unlink(mark)
            won += 1
            if won % 2:
                (folder / "owner.json").write_text('{"pid": 999999999, "started": 0}')  # as if it had been killed
    except TrainError:
        pass
"""


def test_of_many_who_want_a_dead_owners_run_one_gets_it(tmp_path):
    (tmp_path / "owner.json").write_text('{"pid": 999999999, "started": 0}')
    racers = [
        subprocess.Popen([sys.executable, "-c", RACE, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        for _ in range(3)
    ]
    for racer in racers:
        assert racer.stdout.readline() == b"ready\n"
    for racer in racers:
        racer.communicate(b"go\n", timeout=240)
    assert [racer.returncode for racer in racers] == [0, 0, 0]
