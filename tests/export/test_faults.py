"""An export that is killed leaves no file that looks whole; the next one completes and cleans up."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nbtune.atomic_io import replace_file
from nbtune.errors import ExportError
from nbtune.export import ExportSource, LlamaRunner, export_gguf, export_merged
from tests.support.every import every
from tests.support.llama import llama_library
from tests.support.tiny_models import byte_level, save_model, save_tokenizer

# Exports in a process of its own, and says each tensor; the test kills it at one of them.
EXPORT = """
import sys
from pathlib import Path
from nbtune.export import ExportSource, export_gguf, export_merged

def say(done, total, what):
    print(what, flush=True)
    sys.stdin.readline()

base, out, kind = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
if kind == "merged":
    export_merged(ExportSource(base, name="tiny"), out / "merged", progress=say)
else:
    export_gguf(ExportSource(base, name="tiny"), ["f16", "q8_0"], out, progress=say)
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import LlamaConfig

    folder = tmp_path_factory.mktemp("base")
    tokenizer = save_tokenizer(byte_level(vocab=300), folder)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    save_model(LlamaConfig(vocab_size=len(tokenizer), num_attention_heads=2, num_key_value_heads=2, **sizes), folder)
    return folder


def killed(base: Path, out: Path, kind: str, after: int) -> None:
    """Start an export and kill it with the `after`-th tensor just written."""
    process = subprocess.Popen(
        [sys.executable, "-c", EXPORT, str(base), str(out), kind],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin
    assert process.stdout
    for _ in range(after):
        assert process.stdout.readline().strip()
        process.stdin.write("\n")
        process.stdin.flush()
    assert process.stdout.readline().strip()
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdin.close()
    process.stdout.close()


@pytest.mark.parametrize(
    ("kind", "after"), [pytest.param("gguf", 0, marks=pytest.mark.slow), ("gguf", 20), ("merged", 9)]
)
def test_killed_and_done_again(kind: str, after: int, base: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    killed(base, out, kind, after)
    left = list(out.iterdir())
    assert left, "the export had begun"
    assert every(path.name.startswith(".") and ".part-" in path.name for path in left)
    if kind == "merged":
        export_merged(ExportSource(base, name="tiny"), out / "merged")
        assert [path.name for path in out.iterdir()] == ["merged"]
        return
    made = export_gguf(ExportSource(base, name="tiny"), ["f16", "q8_0"], out)
    assert sorted(path.name for path in out.iterdir()) == ["tiny-f16.gguf", "tiny-q8_0.gguf"]
    with LlamaRunner(made[0].path, library=llama_library(), n_ctx=32) as llama:
        assert llama.tokenize(["the people"])


# Loads everything once; then each line "folder milliseconds" is an export by a copy of it, killed after so long.
EXPORTS = """
import os, signal, sys, threading
from pathlib import Path
import nbtune.export.gguf.writer, nbtune.export.gguf.vocabulary, torch, transformers, gguf, jinja2
from transformers import AutoTokenizer
from nbtune.export import ExportSource, export_gguf

base = Path(sys.argv[1])
for line in sys.stdin:
    out, wait = line.split()
    child = os.fork()
    if not child:
        if float(wait) >= 0:
            threading.Timer(float(wait) / 1000, os.kill, (os.getpid(), signal.SIGKILL)).start()
        export_gguf(ExportSource(base, name="tiny"), ["f16", "q4_k_m"], Path(out))
        os._exit(0)
    print(os.waitpid(child, 0)[1], flush=True)
"""


@pytest.mark.slow
def test_killed_at_fifty_points(base: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", EXPORTS, str(base)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as exports:
        assert exports.stdin
        assert exports.stdout

        def export(out: Path, milliseconds: float = -1.0) -> int:
            print(out, milliseconds, file=exports.stdin, flush=True)
            return int(exports.stdout.readline())  # type: ignore[union-attr]

        assert export(tmp_path / "first") == 0  # until it is up: what follows is timed
        began = time.monotonic()
        assert export(tmp_path / "whole") == 0
        took = 1000 * (time.monotonic() - began)
        expected = {path.name: path.read_bytes() for path in (tmp_path / "whole").iterdir()}
        assert len(expected) == 2
        rng, killed_so_far = random.Random(0), 0
        while killed_so_far < 50:
            out = tmp_path / f"out{killed_so_far}"
            if export(out, rng.random() * took) == 0:
                continue  # it was faster
            killed_so_far += 1
            for path in out.iterdir() if out.exists() else ():
                assert path.name.startswith(".") or path.read_bytes() == expected[path.name]
            assert export(out) == 0
            assert {path.name: path.read_bytes() for path in out.iterdir()} == expected
        exports.stdin.close()


def test_an_old_file_stays_until_the_new_one_is_whole(base: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny-f16.gguf").write_bytes(b"the old one")

    def stop(done: int, total: int, what: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_gguf(ExportSource(base, name="tiny"), ["f16"], tmp_path, progress=stop)
    assert [path.name for path in tmp_path.iterdir()] == ["tiny-f16.gguf"]
    assert (tmp_path / "tiny-f16.gguf").read_bytes() == b"the old one"


def test_a_full_disk_is_a_sentence(base: Path, tmp_path: Path) -> None:
    """The process may write files of 100 kB at most, so the write itself fails, as on a full disk."""
    code = (
        "import resource, signal, sys\nfrom pathlib import Path\nsys.stdout.reconfigure(encoding='utf-8')\n"
        "from nbtune.export import ExportSource, export_gguf\nfrom nbtune.errors import ExportError\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "try:\n    export_gguf(ExportSource(Path(sys.argv[1]), name='tiny'), ['f16'], Path(sys.argv[2]))\n"
        "except ExportError as error:\n    print(error)\n"
    )
    out = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, "-c", code, str(base), str(out)], capture_output=True, encoding="utf-8", check=False
    )
    assert "File too large" in done.stdout, done.stderr
    assert "→" in done.stdout
    assert list(out.iterdir()) == []


CAN_MOUNT = sys.platform == "linux" and os.geteuid() == 0 and shutil.which("mount") is not None


@pytest.mark.skipif(not CAN_MOUNT, reason="small and read-only disks are mounted: needs root on Linux")
@pytest.mark.parametrize("how", ["full", "read-only"])
def test_real_disks_that_are_full_or_may_not_be_written(how: str, base: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=17m", "tmpfs", str(disk)], check=False)
    if made.returncode:
        pytest.skip("this machine's root may not mount")
    try:
        (disk / "exports").mkdir()
        if how == "read-only":
            subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        filler = disk / "filler"

        def fill(done: int, total: int, what: str) -> None:
            if how == "full" and not filler.exists():  # somebody else takes the rest while the file is written
                _fill(filler)

        words = "the disk is full" if how == "full" else "this place cannot be written to"
        for make in (
            lambda: export_gguf(ExportSource(base, name="tiny"), ["f16"], disk / "exports", progress=fill),
            lambda: export_merged(ExportSource(base), disk / "exports" / "merged", progress=fill),
        ):
            filler.unlink(missing_ok=True) if how == "full" else None
            with pytest.raises(ExportError) as found:
                make()
            assert found.value.cause == words
            assert found.value.fix
            assert list((disk / "exports").iterdir()) == []
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_a_base_that_vanishes_while_it_is_read(base: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(base, copy)
    seen: list[str] = []

    def truncate(done: int, total: int, what: str) -> None:
        if not seen:
            os.truncate(copy / "model.safetensors", 4096)
        seen.append(what)

    with pytest.raises(ExportError, match="the weights end too early"):
        export_gguf(ExportSource(copy), ["f16"], tmp_path / "out", progress=truncate)
    assert list((tmp_path / "out").iterdir()) == []
    shutil.rmtree(copy)
    with pytest.raises(ExportError, match="the file is not there"):
        export_gguf(ExportSource(copy), ["f16"], tmp_path / "out")


def _fill(filler: Path) -> None:
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            pass


def _half_a_file(path: Path) -> None:
    with replace_file(path, shared=True, raises=ExportError) as part:
        part.write_bytes(b"half")
        raise OSError("something else")


def test_space_and_places(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 5_000_000})())
    with pytest.raises(ExportError, match="of disk, and 5 MB are free"):
        export_gguf(ExportSource(base), ["f16"], tmp_path / "out")
    monkeypatch.undo()
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(ExportError):
        export_gguf(ExportSource(base), ["f16"], tmp_path / "file" / "out")
    with pytest.raises(OSError, match="something else"):
        _half_a_file(tmp_path / "x")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]
    if os.geteuid() != 0:  # root may write everywhere
        locked = tmp_path / "locked"
        locked.mkdir(mode=0o500)
        with pytest.raises(ExportError, match="cannot be written to"):
            export_gguf(ExportSource(base), ["f16"], locked)
