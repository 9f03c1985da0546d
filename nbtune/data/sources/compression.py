"""Compressed files of rows (.gz .bz2 .xz .zst) as their bytes, all of them or the first."""

from __future__ import annotations

from pathlib import Path
from typing import IO, Any

from nbtune.errors import DataError

ALWAYS, TIMES = 256 << 20, 100  # bytes, and how many times its size, that a file may hold: text packs to a tenth
COMPRESSIONS = (".gz", ".bz2", ".xz", ".zst")


def unpack(file: Path, packed: str, name: str) -> bytes:
    """Return what a compressed file holds.

    Args:
        file: it.
        packed: how it is compressed, one of `COMPRESSIONS`.
        name: what people call it.

    Raises:
        DataError: it is broken or cut off.
        OSError: it cannot be read.
    """
    try:
        with _opened(file, packed) as handle:
            most = max(ALWAYS, TIMES * file.stat().st_size)
            data = bytes(handle.read(most + 1))
    except errors_of(packed) as error:
        raise DataError(f"it is broken or cut off: {error}", place=name, fix="copy or download it again") from error
    if len(data) > most:
        cause = f"it holds over {TIMES} times its own size ({most >> 20} MiB)"
        raise DataError(cause, place=name, fix="unpack it, if you trust it, and give the file")
    return data


def first_bytes(file: Path, packed: str, count: int) -> bytes:
    """Return at most `count` bytes from the beginning of what a file holds; ``packed=""``: it is not compressed.

    Raises:
        OSError, EOFError, ValueError: these cannot be read.
    """
    with _opened(file, packed) as handle:
        return bytes(handle.read(count))


def _opened(file: Path, packed: str) -> IO[bytes]:
    if packed == ".zst":
        import pyarrow

        return pyarrow.input_stream(str(file), compression="zstd")  # type: ignore[no-any-return]
    import bz2
    import gzip
    import lzma

    opener: Any = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}.get(packed, open)
    return opener(file, "rb")  # type: ignore[no-any-return]


def errors_of(packed: str) -> tuple[type[Exception], ...]:
    """Return what the libraries raise for a file that is not whole."""
    if packed == ".zst":
        import pyarrow

        return (OSError, pyarrow.ArrowException)
    import gzip
    import lzma
    import zlib

    return (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile)
