"""One living owner; a dead one never blocks."""

import json
import signal
import subprocess
import sys

import pytest

from nbtune.errors import TrainError
from nbtune.store.owner import Ownership, is_owned

HOLD = """
import sys
from pathlib import Path
from nbtune.store.owner import Ownership
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


def test_a_pid_that_was_used_again_is_no_owner(tmp_path):
    process = _hold(tmp_path)
    owner = json.loads((tmp_path / "owner.json").read_text())
    owner["started"] -= 1000.0
    (tmp_path / "owner.json").write_text(json.dumps(owner))
    assert not is_owned(tmp_path)
    process.communicate("")


def test_a_thread_that_died_in_a_living_process_is_no_owner(tmp_path):
    with Ownership(tmp_path):
        left = (tmp_path / "owner.json").read_text()
    (tmp_path / "owner.json").write_text(left)
    assert not is_owned(tmp_path)
    with Ownership(tmp_path):
        pass
