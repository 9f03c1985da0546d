"""What others may have written, read and shown with care: JSON that we did not write a second ago, text for a terminal.

A run's folder may come from anybody, a disk may have damaged it, and it may vanish while it is read. `load` says in one
sentence what is wrong with a file; it never waits (for a pipe), never takes all memory, and raises nothing else.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import Any

from nbtune.disk import home_folder
from nbtune.errors import NbtuneError

LARGEST = 64 << 20  # bytes; what nbtune itself writes as one JSON value is far below
DEEPEST = 64  # lists and objects inside each other
_LARGEST_NUMBER = 2**63
SENTINEL = 10**40  # above transformers' "no limit", 10^30 as a float's nearest whole number, in tokenizers' files
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_BREAKS = re.compile(r"[\t\n]")
_PATH = re.compile(r"^(/|~|[A-Za-z]:[\\/]|\\\\|\.\.?/)")


class BadFile(ValueError):
    """What is wrong with a file, in a sentence without its name."""


class GaveUp(ValueError):
    """What a library written in Rust could not do: its own error for that, a panic, no `except Exception` sees."""


@contextmanager
def panics_as_errors() -> Iterator[None]:
    """Let a panic be an ordinary error.

    Raises:
        GaveUp: there was one.
    """
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # of pyo3, which gives its class no place to import it from
            raise
        raise GaveUp(str(error)) from None


def harmless(text: object, *, line: bool = False) -> str:
    r"""Return a text that may be shown in a terminal: control characters (which recolour, move, or delete) as escapes.

    Args:
        line: also tabs and ends of lines, as of a name.

    >>> harmless("red \x1b[31mname")
    'red \\x1b[31mname'
    """
    shown = _CONTROL.sub(_escaped, str(text))
    return _BREAKS.sub(_escaped, shown) if line else shown


def shortened(text: object, most: int = 100) -> str:
    """Return what may be shown of a text that somebody else wrote: on one line, harmless, a long one's beginning.

    >>> shortened("a" * 99, 5)
    'aaaaa…'
    """
    written = text if isinstance(text, str) else str(text)
    return harmless(written[:most], line=True) + ("…" if len(written) > most else "")


def _escaped(match: re.Match[str]) -> str:
    code = ord(match[0])
    short = {9: "\\t", 10: "\\n", 13: "\\r"}.get(code)
    return short or (f"\\x{code:02x}" if code < 32 else f"\\u{code:04x}")  # the latter is also JSON's


def is_machine_path(text: str) -> bool:
    """Return whether `text` is a path of a machine: absolute, of somebody's home, or from a working folder on.

    >>> is_machine_path("/home/ada/rows.jsonl"), is_machine_path("owner/set")
    (True, False)
    """
    return len(text) > 1 and "\n" not in text and "{" not in text and bool(_PATH.match(text))


def from_here(path: Path, start: Path | None = None) -> str:
    """Return a path as people write it in the working folder (or in `start`); a home folder is `~`, so nobody is told
    whose it is."""
    with suppress(ValueError):
        return path.absolute().relative_to(start or Path.cwd()).as_posix()
    home = home_folder()
    under_home = path.is_relative_to(home) and home != home.parent  # a home that is the root says nothing
    return f"~/{path.relative_to(home).as_posix()}" if under_home else path.as_posix()


_BLOB = re.compile(r"/(model|dataset)s--[^/]+/blobs/[^/]+$")


def refuse_links(root: Path, *parts: str, error: type[NbtuneError]) -> None:
    """Refuse a folder with a link that leads out of it (what it leads to is somebody's own, and would be copied, or
    written to), and one with a pipe or a device (which would be waited for).

    Args:
        root: the folder.
        parts: what of it is looked through; all of it where none is named. No link is entered.
        error: the caller's kind of error.

    Raises:
        NbtuneError: of that kind; names the first such link or pipe.
    """
    real = root.resolve()
    for path in (path for part in parts or ("",) for path in _odd(root / part)):
        place = harmless(path.relative_to(root.parent), line=True)
        if not path.is_symlink():
            raise error("this is a pipe or a device, no file", place=place, fix="delete it")
        if not path.resolve().is_relative_to(real):
            raise error(
                "this link leads out of its folder, and is not followed",
                place=place,
                fix="put the file itself there, if it is yours",
            )


def leads_out(path: Path, folder: Path) -> bool:
    """Return whether a file of a model's folder is a link to something of somebody's own, which would be copied and
    leave the house in an export: links into the Hub's cache, as its folders have them, are none."""
    if not path.is_symlink() and not path.parent.is_symlink():
        return False
    real = path.resolve()
    return not (real.is_relative_to(folder.resolve()) or _BLOB.search(real.as_posix()))


def _odd(top: Path) -> Iterator[Path]:
    """Yield the links, and what is neither a file nor a folder."""
    if not top.is_dir() or top.is_symlink():
        if top.is_symlink() or (top.exists() and not top.is_file()):
            yield top
        return
    for folder, folders, files in os.walk(top, followlinks=False):
        for name in (*folders, *files):
            path = Path(folder) / name
            if path.is_symlink() or not (path.is_dir() or path.is_file() or not path.exists()):
                yield path


def open_to_append(path: Path) -> int:
    """Return the descriptor of a regular file, made where it is missing, at whose end is written: no link is followed,
    and no pipe waited for.

    Raises:
        OSError: it cannot be written, or is something else.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    more = ("O_NOFOLLOW", "O_NONBLOCK", "O_BINARY", "O_CLOEXEC")  # not every system has all of them
    for name in more:
        flags |= getattr(os, name, 0)
    descriptor = os.open(path, flags, 0o644)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    raise OSError(errno.EINVAL, "it is no ordinary file", str(path))


def open_file(path: Path, *, links: bool = True) -> BufferedReader:
    """Return a regular file, opened to be read: a pipe or a device, which might never end, is an error.

    Args:
        links: it may be one; what a run's folder holds is none.

    Raises:
        OSError: it is not there, cannot be read, or is no file.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    if not links and path.is_symlink():  # one that is put there after this look is not followed, either
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
    descriptor = os.open(path, flags | (0 if links else getattr(os, "O_NOFOLLOW", 0)))
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(f"{path.name} is no ordinary file")
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_text(path: Path, largest: int = 4 << 20, *, links: bool = True) -> str:
    """Return the text of a regular file of at most so many bytes, in UTF-8.

    Raises:
        OSError: it is not there, cannot be read, is no file, or larger.
        UnicodeDecodeError: it is not UTF-8.
    """
    with open_file(path, links=links) as file:
        data = file.read(largest + 1)
    if len(data) > largest:
        raise OSError(f"{path.name} is larger than {largest >> 20} MiB")
    return data.decode("utf-8")


def load(
    path: Path, *, largest: int = LARGEST, number_below: int = _LARGEST_NUMBER, links: bool = True
) -> dict[str, Any]:
    """Return the object in a JSON file.

    Args:
        largest: bytes that it may have.
        number_below: bound of its whole numbers.
        links: as of `open_file`.
    Raises:
        FileNotFoundError: there is none.
        BadFile: it cannot be read, or is something else.
    """
    try:
        with open_file(path, links=links) as file:
            data = file.read(largest + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise BadFile(f"it cannot be read ({error.strerror or error})") from None
    if len(data) > largest:
        raise BadFile(f"it is larger than {largest >> 20} MiB")
    return parse(data, number_below)


def parse(data: bytes | str, number_below: int = _LARGEST_NUMBER) -> dict[str, Any]:
    """Return the object in a JSON text: of bounded depth, with numbers that a machine can hold.

    Raises:
        BadFile: it is something else.
    """
    try:
        body = json.loads(data, parse_int=lambda digits: _whole(digits, number_below))
    except BadFile:
        raise
    except RecursionError:
        raise BadFile("it is nested too deeply") from None
    except ValueError as error:
        raise BadFile(f"it is no whole JSON ({harmless(str(error)[:80], line=True)})") from None
    if not isinstance(body, dict):
        raise BadFile("it holds no object")
    if _depth(body) > DEEPEST:
        raise BadFile("it is nested too deeply")
    return body


def number(body: dict[str, Any], key: str, otherwise: float) -> float:
    """Return a finite number of an object; `otherwise` where it is missing.

    Raises:
        BadFile: something else stands there.
    """
    value = body.get(key, otherwise)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise BadFile(f"its `{key}` is no number")
    return value


def _whole(digits: str, below: int) -> int:
    if len(digits) > 50 or abs(int(digits)) >= below:
        raise BadFile("it holds a number that is too large")
    return int(digits)


def _depth(value: Any) -> int:
    """Return how many lists and objects lie inside each other; one level after another, so that none is too deep for
    it."""
    depth, level = 0, [value]
    while level := [item for item in level if isinstance(item, dict | list)]:
        depth += 1
        if depth > DEEPEST:
            break
        level = [part for item in level for part in (item.values() if isinstance(item, dict) else item)]
    return depth


def folder_named(name: str) -> Path | None:
    """Return the folder of a name, None if it is none: also where no file can be called so (too long, a NUL, an
    unknown user)."""
    with suppress(OSError, ValueError, RuntimeError):
        folder = Path(name).expanduser()
        return folder if folder.is_dir() else None
    return None
