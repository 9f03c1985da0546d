"""An 8B-shape export through a GPU: random bf16 weights and a LoRA adapter on the RAM disk, q4_k_m beside them.

    python -m tests.gpu.bench_export [SHAPE] [TYPE] [--ram DIR] [--profile]

Merging, encoding and writing are timed together, twice: the first call pays for CUDA's start. `--profile` says where
the threads of this process stood in the second one, and how fast this machine's parts are.
"""

from __future__ import annotations

import argparse
import contextlib
import shutil
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch

from tests.export.bench_export import SHAPES, export_once, make

_GIB = 1 << 30


def main() -> None:
    """Make, export twice, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shape", nargs="?", default="8b", choices=SHAPES)
    parser.add_argument("type", nargs="?", default="q4_k_m")
    parser.add_argument("--ram", default="/dev/shm", help="where the files lie")
    parser.add_argument("--profile", action="store_true")
    asked = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    with tempfile.TemporaryDirectory(dir=_roomy(asked.ram, asked.shape)) as temporary:
        folder, began = Path(temporary), time.perf_counter()
        print(f"{torch.get_num_threads()} threads; files in {folder.parent}", flush=True)
        if asked.profile:
            _parts(folder, device)
        base, adapter = make(folder, asked.shape, device)
        print(f"made in {time.perf_counter() - began:.1f} s", flush=True)
        for turn in ("first", "second"):
            shutil.rmtree(folder / "out", ignore_errors=True)
            with _sampled() if asked.profile and turn == "second" else contextlib.nullcontext():
                cost = export_once(base, adapter, folder / "out", asked.type, device)
            print(
                f"{asked.shape} {asked.type} on {name}, {turn}: {cost.seconds:.1f} s ({cost.cpu:.1f} s of CPU), "
                f"file {cost.bytes / 1e9:.2f} GB, peak memory {cost.memory / _GIB:.2f} GiB",
                flush=True,
            )
        if device == "cuda":
            print(f"peak GPU memory {torch.cuda.max_memory_allocated() / _GIB:.2f} GiB")


def _roomy(folder: str, shape: str) -> str:
    """`folder`, or the usual place for temporary files where it is too small for base, adapter and export."""
    need = (25 if shape == "8b" else 5) * _GIB
    if Path(folder).is_dir() and shutil.disk_usage(folder).free > need:
        return folder
    print(f"{folder} has less than {need / _GIB:.0f} GiB: the files go to {tempfile.gettempdir()}", flush=True)
    return tempfile.gettempdir()


@contextlib.contextmanager
def _sampled(every: float = 0.005) -> Iterator[None]:
    """Print afterwards in which lines of nbtune this process's threads were found, in shares of the looks."""
    seen: Counter[tuple[str, str]] = Counter()
    looks, ended, mine = 0, threading.Event(), set[int]()

    def look() -> None:
        nonlocal looks
        mine.add(threading.get_ident())
        while not ended.wait(every):
            looks += 1
            names = {thread.ident: thread.name.rstrip("0123456789_") for thread in threading.enumerate()}
            for ident, frame in sys._current_frames().items():
                if ident not in mine:
                    seen[names.get(ident, "?"), _where(frame)] += 1

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        ended.set()
        watcher.join()
        for (thread, line), count in seen.most_common(24):
            print(f"{count / max(looks, 1):7.2f}  {thread:<16} {line}")


def _where(frame: object) -> str:
    """The innermost line of nbtune under `frame`, and what is called from there."""
    inner = f"{frame.f_code.co_name}"  # type: ignore[attr-defined]
    while frame is not None:
        path = frame.f_code.co_filename  # type: ignore[attr-defined]
        if "/nbtune/" in path or "/tests/" in path:
            return f"{path.rpartition('/')[2]}:{frame.f_lineno} {inner}"  # type: ignore[attr-defined]
        frame = frame.f_back  # type: ignore[attr-defined]
    return inner


def _parts(folder: Path, device: str) -> None:
    """Print how fast this machine writes, reads and copies 512 MiB (a second turn each: the first pays for pages)."""
    size = 512 << 20
    data = torch.randint(0, 255, (size,), dtype=torch.uint8)
    path = folder / "parts"

    def write() -> None:
        with open(path, "wb", buffering=0) as file:
            for at in range(0, size, 1 << 25):
                file.write(data[at : at + (1 << 25)].numpy().data)

    def read(room: torch.Tensor | None) -> None:
        with open(path, "rb", buffering=0) as file:
            for _ in range(0, size, 1 << 25):
                file.readinto(memoryview((torch.empty(1 << 25, dtype=torch.uint8) if room is None else room).numpy()))

    room = torch.empty(1 << 25, dtype=torch.uint8)
    work = {"write": write, "read into new memory": lambda: read(None), "read into the same memory": lambda: read(room)}
    if device == "cuda":
        pinned, there = torch.empty(size, dtype=torch.uint8, pin_memory=True), data.cuda()
        work["to the GPU"] = lambda: there.copy_(data)
        work["to the GPU, pinned"] = lambda: there.copy_(pinned)
        work["from the GPU"] = lambda: there.cpu()
        work["from the GPU, pinned"] = lambda: pinned.copy_(there)
    for what, call in work.items():
        call()
        began = time.perf_counter()
        call()
        if device == "cuda":
            torch.cuda.synchronize()
        print(f"  {what}: {size / 1e9 / (time.perf_counter() - began):.1f} GB/s", flush=True)
    path.unlink()


if __name__ == "__main__":
    main()
