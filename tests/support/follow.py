"""Which files of nbtune one thing goes through, from running it: the witness of docs/explanation/house.md."""

from __future__ import annotations

import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from tests.support.house import NBTUNE


class Followed:
    """What ran while it was followed.

    Attributes:
        files: every file of nbtune of which a function ran, in the order of their first use.
        calls: how often each function was called, as ``file:name``.
        ways: function -> the files on the call stack when it was called first, outermost first.
    """

    def __init__(self, *functions: str) -> None:
        self.files: dict[str, None] = {}
        self.calls: Counter[str] = Counter()
        self.ways: dict[str, list[str]] = {}
        self._wanted = set(functions)

    def see(self, frame: FrameType, event: str, argument: Any) -> None:
        """Note a call; for `sys.setprofile`."""
        if event != "call" or (name := _file(frame)) is None:
            return
        self.files[name] = None
        function = f"{name}:{frame.f_code.co_name}"
        self.calls[function] += 1
        if function in self._wanted and function not in self.ways:
            stack: list[str] = []
            above: FrameType | None = frame
            while above is not None:
                if (one := _file(above)) is not None and one not in stack:
                    stack.append(one)
                above = above.f_back
            self.ways[function] = stack[::-1]

    @property
    def on_the_way(self) -> list[str]:
        """The files of all ways, each once."""
        return list(dict.fromkeys(name for function in self._wanted for name in self.ways[function]))


_ROOT = str(NBTUNE) + "/"


def _file(frame: FrameType) -> str | None:
    path, name = frame.f_code.co_filename, frame.f_code.co_name
    return path[len(_ROOT) :] if path.startswith(_ROOT) and name != "<module>" else None


@contextmanager
def followed(*functions: str) -> Iterator[Followed]:
    """Follow what runs in here, in threads that begin in here, too; `functions` are called ``file:name``."""
    made = Followed(*functions)
    before = sys.getprofile()
    sys.setprofile(made.see)
    threading.setprofile(made.see)
    try:
        yield made
    finally:
        sys.setprofile(before)
        threading.setprofile(None)


def files_for_every(do: Callable[[int], Any]) -> set[str]:
    """The files of which more functions are called for more things; `do` is given their number."""
    counts = []
    do(1)  # what is done once
    for number in (40, 80):  # more than are looked at as a sample
        with followed() as seen:
            do(number)
        counts.append(seen.calls)
    few, many = counts
    return {function.partition(":")[0] for function, count in many.items() if count >= few[function] + 40}
