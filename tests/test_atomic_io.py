"""Files and folders are whole or not there."""

import errno
import os
import signal
import subprocess
import sys
import time

import pytest

from nbtune.atomic_io import (
    create_file,
    discard,
    hidden,
    publish_folder,
    read_json,
    replace_file,
    replace_folder,
    sweep,
    try_lock,
    write_bytes,
    write_json,
    write_text,
)
from nbtune.disk import check_space, disk_error, disk_errors, folder_bytes, free_bytes, gigabytes
from nbtune.errors import DataError, ExportError, TrainError


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


def test_what_gets_a_name_is_on_the_disk_before_it(tmp_path, monkeypatch):
    """Of a file, and of each file of a folder, all bytes: else a name may stay with nothing in it."""
    file, folder, flushed = tmp_path / "file.json", tmp_path / "adapter", {}
    really = os.fsync

    def fsync(fd):
        really(fd)
        if not folder.exists() or not any(folder.rglob("new*")):
            flushed[os.fstat(fd).st_ino] = os.fstat(fd).st_size

    monkeypatch.setattr(os, "fsync", fsync)
    for _ in range(2):
        write_json(file, {"a": 1})
        assert flushed.pop(file.stat().st_ino) == file.stat().st_size
    for _ in range(2):
        with replace_folder(folder) as fresh:
            (fresh / "deep").mkdir()
            for name in ("new.bin", "deep/new.bin"):
                (fresh / name).write_bytes(b"x" * 5000)
        made = [path.stat() for path in folder.rglob("new*")]
        assert [flushed.pop(about.st_ino) for about in made] == [5000, 5000]
        discard(folder)


def test_a_folder_that_cannot_take_its_name_leaves_the_old_one(tmp_path):
    """Here since the new one is gone when it is to be named."""
    target = tmp_path / "adapter"
    for _ in range(2):
        with replace_folder(target) as fresh:
            (fresh / "weights").write_text("old")
    with pytest.raises(FileNotFoundError), replace_folder(target) as fresh:
        fresh.rename(tmp_path / "elsewhere")
    assert (target / "weights").read_text() == "old"
    assert sorted(os.listdir(tmp_path)) == ["adapter", "elsewhere"]


def test_an_empty_folder_is_nobodys_and_one_with_the_marker_is_ours(tmp_path):
    target = tmp_path / "out"
    target.mkdir()
    for text in ("one", "two"):
        with replace_folder(target, marker="config.json", raises=ExportError) as fresh:
            (fresh / "config.json").write_text(text)
    assert (target / "config.json").read_text() == "two"


def test_a_file_that_is_created_has_all_its_bytes_when_it_gets_its_name(tmp_path, monkeypatch):
    really, seen = os.link, []

    def link(source, target):
        seen.append((source.read_bytes(), target.exists()))
        really(source, target)

    monkeypatch.setattr(os, "link", link)
    assert create_file(tmp_path / "owner.json", b"mine", mode=0o600)
    assert not create_file(tmp_path / "owner.json", b"theirs")
    assert seen == [(b"mine", False), (b"theirs", True)]
    assert (tmp_path / "owner.json").read_bytes() == b"mine"
    assert (tmp_path / "owner.json").stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["owner.json"]


def test_json_is_never_read_half_while_it_is_written_over_and_over(tmp_path):
    path = tmp_path / "control.json"
    write_json(path, {"n": -1, "pad": "x" * 20_000})
    writer = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys; from pathlib import Path; from nbtune.atomic_io import write_json\n"
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
        if not try_lock(first):
            pytest.skip("no system's lock on this machine")
        assert not try_lock(second)
        first.close()
        assert try_lock(second)


def test_a_text_is_the_same_bytes_everywhere(tmp_path):
    write_text(tmp_path / "a", "ä\nb\n")
    assert (tmp_path / "a").read_bytes() == b"\xc3\xa4\nb\n"
    write_json(tmp_path / "a", {"b": [1], "a": "ä"})
    assert (tmp_path / "a").read_bytes() == b'{\n  "a": "\\u00e4",\n  "b": [\n    1\n  ]\n}\n'
    write_bytes(tmp_path / "a", b"\r\n")
    assert (tmp_path / "a").read_bytes() == b"\r\n"
    assert os.listdir(tmp_path) == ["a"]


@pytest.mark.parametrize("shared", [False, True])
def test_a_file_that_fails_leaves_the_old_one(shared, tmp_path):
    write_text(tmp_path / "a", "old")

    def fail():
        with replace_file(tmp_path / "a", shared=shared) as beside:
            beside.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert (tmp_path / "a").read_text() == "old"
    assert os.listdir(tmp_path) == ["a"]


def test_only_an_export_makes_the_folder_that_is_missing(tmp_path):
    """A run's folder that was taken away does not come back with one file in it."""
    with pytest.raises(FileNotFoundError):
        write_text(tmp_path / "gone" / "control.json", "")
    assert not (tmp_path / "gone").exists()
    with replace_file(tmp_path / "exports" / "a", shared=True) as beside:
        beside.write_text("whole")
    assert (tmp_path / "exports" / "a").read_text() == "whole"


def test_a_file_is_created_once_and_whole(tmp_path, monkeypatch):
    assert create_file(tmp_path / "key", b"first", mode=0o600)
    assert not create_file(tmp_path / "key", b"second")
    assert (tmp_path / "key").read_bytes() == b"first"
    if os.name != "nt":
        assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600

    def no_links(*_):
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", no_links)
    assert create_file(tmp_path / "other", b"first")
    assert not create_file(tmp_path / "other", b"second")
    assert (tmp_path / "other").read_bytes() == b"first"
    assert sorted(os.listdir(tmp_path)) == ["key", "other"]


KILLED = """
import os, sys
from pathlib import Path
from nbtune import atomic_io
what, target = sys.argv[1], Path(sys.argv[2])
shared = what.endswith("shared")
if what.startswith("file"):
    with atomic_io.replace_file(target, shared=shared) as beside:
        beside.write_text("half")
        os._exit(9)
if what.startswith("folder"):
    with atomic_io.replace_folder(target, shared=shared) as fresh:
        (fresh / "half").write_text("half")
        os._exit(9)
rename = Path.rename
def once(self, to):  # killed between the two renames: nothing has the name
    rename(self, to)
    os._exit(9)
Path.rename = once
with atomic_io.replace_folder(target, shared=shared) as fresh:
    (fresh / "new").write_text("new")
"""


def killed(what, target):
    done = subprocess.run([sys.executable, "-c", KILLED, what, str(target)], capture_output=True, text=True)
    assert done.returncode == 9, done.stderr
    left = [name for name in os.listdir(target.parent) if name.startswith(".")]
    assert left
    return left


@pytest.mark.parametrize("what", ["file", "folder", "swap"])
def test_what_a_killed_writer_leaves_is_swept_by_the_owner(what, tmp_path):
    target = tmp_path / "thing"
    if what == "swap":
        target.mkdir()
        (target / "old").write_text("old")
    left = killed(what, target)
    sweep(tmp_path)
    if what == "file":  # anybody writes files: it may be somebody's who is at it
        assert os.listdir(tmp_path) == left
        os.utime(tmp_path / left[0], (time.time() - 3600,) * 2)
        sweep(tmp_path)
    assert os.listdir(tmp_path) == (["thing"] if what == "swap" else [])
    if what == "swap":
        assert os.listdir(target) == ["old"]


@pytest.mark.parametrize("what", ["file-shared", "folder-shared", "swap-shared"])
def test_where_nobody_owns_the_folder_the_next_writer_clears_it(what, tmp_path):
    """A swap that was killed put the old folder where nobody looked, and the next try threw it away."""
    target = tmp_path / "thing"
    (tmp_path / ".thing.part-1-0a0b0c0d").write_text("of a process that lives")
    (tmp_path / ".other.part-999999999-0a0b0c0d").write_text("of another file")
    if what.startswith("swap"):
        target.mkdir()
        (target / "old").write_text("old")
    killed(what, target)
    with pytest.raises(ZeroDivisionError):
        with replace_folder(target, shared=True):
            raise ZeroDivisionError
    kept = [".other.part-999999999-0a0b0c0d", ".thing.part-1-0a0b0c0d"]
    assert sorted(os.listdir(tmp_path)) == kept + (["thing"] if what.startswith("swap") else [])
    if what.startswith("swap"):
        assert os.listdir(target) == ["old"]


def test_names_of_earlier_versions_are_swept(tmp_path):
    """These are on people's disks."""
    for name in (".adapter.0123abcd.tmp", ".step-00000004.0123abcd.gone", ".adapter.0123abcd.old"):
        (tmp_path / name).mkdir()
    for name in (".control.json.0123abcd.tmp", ".owner.json.0123abcd.gone", ".reserve.0.tmp", ".clock.0123abcd.tmp"):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (time.time() - 3600,) * 2)
    (tmp_path / ".gitignore").touch()
    (tmp_path / "adapter").mkdir()
    sweep(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [".gitignore", "adapter"]
    (tmp_path / ".gguf.part-999999999-0123abcd").mkdir()
    with replace_file(tmp_path / "gguf", shared=True) as beside:
        assert hidden(tmp_path / "gguf", "tmp", shared=True).name.startswith(f".gguf.part-{os.getpid()}-")
        beside.touch()
    assert sorted(os.listdir(tmp_path)) == [".gitignore", "adapter", "gguf"]


def test_a_folder_with_other_peoples_things_is_left_alone(tmp_path):
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / "thesis.tex").touch()
    (tmp_path / "file").touch()
    for name, words in (("theirs", "holds other things"), ("file", "a file of that name")):
        with pytest.raises(ExportError, match=words):
            with replace_folder(tmp_path / name, shared=True, marker="config.json", raises=ExportError):
                raise AssertionError
    assert sorted(os.listdir(tmp_path)) == ["file", "theirs"]


def test_of_two_who_publish_one_stays(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "about.json").write_text(name)
    publish_folder(tmp_path / "one", tmp_path / "key", "about.json")
    publish_folder(tmp_path / "two", tmp_path / "key", "about.json")
    assert (tmp_path / "key" / "about.json").read_text() == "one"
    assert os.listdir(tmp_path) == ["key"]
    (tmp_path / "three").mkdir()
    (tmp_path / "taken").write_text("a file")
    with pytest.raises(OSError):
        publish_folder(tmp_path / "three", tmp_path / "taken", "about.json")


def test_a_discarded_folder_is_gone(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    discard(tmp_path / "a")
    assert os.listdir(tmp_path) == []


# -- the disk ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "kind", "what", "cause", "fix"),
    [
        (
            errno.ENOSPC,
            TrainError,
            "it could not be saved",
            "it could not be saved: No space left on device",
            "free some disk",
        ),
        (errno.EFBIG, TrainError, "no save", "no save: File too large", "free some disk"),
        (
            errno.EROFS,
            TrainError,
            "it could not be saved",
            "it could not be saved: Read-only file system",
            "make the folder",
        ),
        (
            errno.EIO,
            TrainError,
            "it could not be saved",
            "it could not be saved: Input/output error",
            "look at the disk",
        ),
        (errno.ENOSPC, ExportError, "", "the disk is full", "another disk"),
        (errno.EACCES, ExportError, "", "this place cannot be written to", "choose another folder"),
        (errno.EFBIG, ExportError, "", "File too large (out.gguf)", "try again"),
        (errno.ENOSPC, DataError, "no place for it", "no place for it: No space left on device", "NBTUNE_CACHE"),
    ],
)
def test_what_a_disk_says_becomes_a_sentence(number, kind, what, cause, fix):
    error = disk_error(OSError(number, os.strerror(number)), kind, what, place="somewhere/out.gguf")
    assert type(error) is kind
    assert (error.cause, error.place) == (cause, "somewhere/out.gguf")
    assert fix in error.fix


def test_an_error_that_is_not_the_disks_stays_what_it_is():
    with pytest.raises(ExportError, match="the disk is full"), disk_errors(ExportError, place="out"):
        raise OSError(errno.ENOSPC, "full")
    with pytest.raises(OSError, match="something else"), disk_errors(ExportError, place="out"):
        raise OSError("something else")
    with pytest.raises(ValueError, match="a bug"), disk_errors(ExportError, place="out"):
        raise ValueError("a bug")


def test_room_is_looked_for_where_the_file_would_be(tmp_path):
    assert free_bytes(tmp_path / "not" / "yet" / "there") > 0
    check_space(tmp_path / "not" / "there", 0, ExportError)
    with pytest.raises(TrainError, match=r"this needs 1000000\.00 GB of disk, and .* are free"):
        check_space(tmp_path / "there", 10**15, TrainError)
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "c").write_bytes(bytes(5))
    assert folder_bytes(tmp_path) == 5
    assert [gigabytes(n) for n in (0, 12_000_000, 4_610_000_000)] == ["1e-06 MB", "12 MB", "4.61 GB"]
