"""Files under a folder, or of a pattern, looked for within bounds: a whole disk, a home, or what is no folder of files
(``/proc``) is refused in a sentence before it is entered.

What begins with a dot is left out unless a pattern names it, as in a shell.
"""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from nbtune.errors import DataError

MOST = 200_000  # names of files and folders that are looked at; a second or two on a local disk
_WILD = "*?["
_SYSTEM = ("proc", "sys", "dev")


def is_pattern(name: str) -> bool:
    """Return whether a name has characters of a pattern in it; it may be a file's own name all the same."""
    return any(character in name for character in _WILD)


def here(name: str, base: Path) -> Path | None:
    """Return the path that a name means beside `base`; None where no path can be called so, or nothing is there."""
    try:
        path = base / Path(name).expanduser()
        return path if path.exists() else None
    except (OSError, ValueError, RuntimeError):  # too long, with a NUL, of an unknown user (~who)
        return None


def files_under(top: Path, name: str) -> list[Path]:
    """Return all files under a folder, sorted; links to folders are not entered, but refused.

    Args:
        name: what errors call it.

    Raises:
        DataError: it is no folder for data, too much lies in it, or part of it cannot be read.
    """
    return sorted(_Walk(name).under(top))


def matching(pattern: str, base: Path, name: str) -> list[Path]:
    """Return the files that a pattern names (``*``, ``?``, ``[…]`` within a name, ``**`` over folders), sorted.

    Raises:
        DataError: as `files_under`.
    """
    path = Path(pattern)
    with suppress(RuntimeError):
        path = path.expanduser()
    start = Path(path.anchor) if path.anchor else base
    return sorted(set(_Walk(name).matches(start, path.parts[1:] if path.anchor else path.parts)))


def fits(path: Sequence[str], pattern: Sequence[str]) -> bool:
    """Return whether a path's parts are of a pattern's parts.

    >>> fits(("data", "a", "b.txt"), ("data", "**", "*.txt"))
    True
    """
    pattern = (*pattern, "*") if pattern and pattern[-1] == "**" else pattern
    at = {0}  # numbers of the pattern's parts that may be next
    for part in (*path, None):
        for number, wanted in enumerate(pattern):
            if number in at and wanted == "**":
                at.add(number + 1)  # of no folder at all
        if part is None:
            break
        at = {
            number if pattern[number] == "**" else number + 1
            for number in at
            if number < len(pattern) and (pattern[number] == "**" or _is_called(part, pattern[number]))
        }
    return len(pattern) in at


def _is_called(name: str, pattern: str) -> bool:
    return name == pattern or (name.startswith(".") <= pattern.startswith(".") and fnmatch.fnmatch(name, pattern))


class _Walk:
    def __init__(self, name: str) -> None:
        self._name, self._seen = name, 0

    def under(self, top: Path) -> Iterator[Path]:
        _refuse_special(top, self._name)
        folders = [top]
        while folders:
            for entry in self._entries(folders.pop()):
                path = Path(entry.path)
                if entry.name.startswith("."):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    folders.append(path)
                elif entry.is_symlink() and path.is_dir():
                    raise self._error(
                        f"`{path.relative_to(top).as_posix()}` in it is a link to another folder, and is not followed",
                        "name the files that are meant (a pattern may go through the link), or put the folder itself "
                        "there",
                    )
                elif entry.is_file():
                    yield path

    def matches(self, folder: Path, parts: Sequence[str]) -> Iterator[Path]:
        if not parts:
            if folder.is_file():
                yield folder
            return
        part, rest = parts[0], parts[1:]
        if part == "**":
            _refuse_special(folder, self._name)
            yield from self.matches(folder, rest or ("*",))
            yield from (
                file
                for entry in self._entries(folder)
                if entry.is_dir(follow_symlinks=False) and not entry.name.startswith(".")
                for file in self.matches(Path(entry.path), parts)
            )
        elif is_pattern(part):
            for entry in self._entries(folder):
                if _is_called(entry.name, part) and (not rest or entry.is_dir()):
                    yield from self.matches(Path(entry.path), rest)
        elif (path := here(part, folder)) is not None:
            yield from self.matches(path, rest)

    def _entries(self, folder: Path) -> list[os.DirEntry[str]]:
        try:
            with os.scandir(folder) as entries:
                found = []
                for entry in entries:
                    self._seen += 1
                    if self._seen > MOST:
                        raise self._error(
                            f"more than {MOST:,} files and folders lie in it", "name the folder, or files, of the data"
                        )
                    found.append(entry)
                return found
        except NotADirectoryError:
            return []
        except OSError as error:
            raise self._error(
                f"the folder `{folder.name or folder}` cannot be read ({error.strerror or error})",
                "name the folder, or files, of the data",
            ) from error

    def _error(self, cause: str, fix: str) -> DataError:
        return DataError(cause, place=self._name, fix=fix)


def _refuse_special(folder: Path, name: str) -> None:
    """Refuse a folder below which nobody's data lies alone.

    Raises:
        DataError: it is the root, a home or a folder of homes, or the system's own.
    """
    real, what = folder.resolve(), ""
    with suppress(RuntimeError, OSError):
        home = Path.home().resolve()
        what = "your home folder" if real == home else "a folder of home folders" if real in home.parents else ""
    if real == Path(real.anchor):
        what = "the root of everything on this machine"
    elif real.parts[1:2] and real.parts[1] in _SYSTEM and real.parts[2:3] != ("shm",):
        what = "the system's own, no folder of data"
    if what:
        raise DataError(f"`{folder}` is {what}", place=name, fix="name the folder, or files, of the data")
