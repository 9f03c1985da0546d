"""How an `NbtuneError` looks in a notebook: one red block with place, cause and fix; ``%tb`` has the traceback."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any

from nbtune.errors import NbtuneError

_RED, _BOLD, _PLAIN = "\x1b[31m", "\x1b[1;31m", "\x1b[0m"
_BEFORE = "_nbtune_custom_exceptions_before"


def block(error: NbtuneError, *, colour: bool = True) -> list[str]:
    """Return the lines of the block.

    >>> print("\\n".join(block(NbtuneError("there is no key `stpes`", place="line 3", fix="`steps`?"), colour=False)))
    NbtuneError: line 3
      there is no key `stpes`
      → `steps`?
    """
    red, bold, plain = (_RED, _BOLD, _PLAIN) if colour else ("", "", "")
    name = type(error).__name__
    lines = [f"{bold}{name}{plain}{red}: {error.place}{plain}" if error.place else f"{bold}{name}{plain}"]
    lines += [f"{red}  {line}{plain}" for line in error.cause.splitlines() or [""]]
    if error.fix:
        first, *rest = error.fix.splitlines()
        lines += [f"{red}  → {first}{plain}", *(f"{red}    {line}{plain}" for line in rest)]
    return lines


def _show(
    shell: Any,
    kind: type[BaseException],
    error: BaseException,
    traceback: TracebackType | None,
    tb_offset: int | None = None,
) -> list[str]:
    _earlier, handler = getattr(shell, _BEFORE, ((), None))
    if not isinstance(error, NbtuneError):  # another library's exception, registered before us
        return handler(kind, error, traceback, tb_offset=tb_offset) if handler is not None else []
    # What %tb reads; IPython fills these in for every exception but the custom ones.
    sys.last_type, sys.last_value, sys.last_traceback = kind, error, traceback
    lines = block(error, colour=str(getattr(shell, "colors", "")).lower() not in ("nocolor", ""))
    shell._showtraceback(kind, error, lines)
    return lines


def register(shell: Any) -> None:
    """Show NbtuneErrors as a block; custom exceptions that were registered before keep their handler."""
    earlier = tuple(shell.custom_exceptions)
    setattr(shell, _BEFORE, (earlier, shell.CustomTB if earlier else None))
    shell.set_custom_exc((*earlier, NbtuneError), _show)


def unregister(shell: Any) -> None:
    """Put back the handler that was there before `register`."""
    earlier, handler = shell.__dict__.pop(_BEFORE, (None, None))
    if earlier is None:
        return
    shell.set_custom_exc((), None)
    if earlier:
        shell.custom_exceptions, shell.CustomTB = earlier, handler
