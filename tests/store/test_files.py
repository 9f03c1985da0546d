"""Files and folders are whole or not there."""

import os
import signal
import subprocess
import sys

import pytest

from nbtune.store.files import lock, read_json, replace_folder, write_json


def test_a_failing_fill_leaves_the_old_folder_and_no_litter(tmp_path):
    target = tmp_path / "adapter"
    with replace_folder(target) as fresh:
        (fresh / "weights").write_text("old")

    def fail():
        with replace_folder(target) as fresh:
            (fresh / "weights").write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert (target / "weights").read_text() == "old"
    assert os.listdir(tmp_path) == ["adapter"]


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    target = tmp_path / "adapter"
    for content in ("one", "two"):
        with replace_folder(target) as fresh:
            (fresh / content).write_text(content)
    assert os.listdir(target) == ["two"]


def test_json_is_never_read_half_while_it_is_written_over_and_over(tmp_path):
    path = tmp_path / "control.json"
    write_json(path, {"n": -1, "pad": "x" * 20_000})
    writer = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys; from pathlib import Path; from nbtune.store.files import write_json\n"
            "for n in range(10**9): write_json(Path(sys.argv[1]), {'n': n, 'pad': 'x' * 20_000})",
            str(path),
        ]
    )
    try:
        seen = -1
        while seen < 50:
            body = read_json(path)
            assert body is not None
            assert len(body["pad"]) == 20_000
            assert body["n"] >= seen
            seen = body["n"]
    finally:
        writer.send_signal(signal.SIGKILL)
        writer.wait()
    assert read_json(path) is not None


def test_what_is_not_json_reads_as_nothing(tmp_path):
    (tmp_path / "x.json").write_text('{"half": ')
    assert read_json(tmp_path / "x.json") is None
    assert read_json(tmp_path / "not-there.json") is None


def test_a_file_is_locked_by_one_until_it_is_closed(tmp_path):
    with (tmp_path / "lock").open("ab") as first, (tmp_path / "lock").open("ab") as second:
        if not lock(first):
            pytest.skip("no system's lock on this machine")
        assert not lock(second)
        first.close()
        assert lock(second)
