"""Seeing that a call is over, from beside it: a trainer tells its callbacks nothing when it is left by an exception.

A thread looks now and then whether the call's frame is still on its thread's stack. Nothing is traced, wrapped or
patched, so the call costs nothing.
"""

from __future__ import annotations

import gc
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType

_EVERY = 0.2  # seconds between two looks
_PATIENCE = 1.0  # seconds until whoever catches the exception has said it (IPython, the interpreter's end)
_BETWEEN = ("call_event", "on_train_begin")  # of transformers, between a callback and the call


def calling_frame() -> FrameType:
    """Return, within a callback, the frame of the innermost call of a `train` method around it, else of the loop."""
    frame = sys._getframe(1)
    while frame.f_code.co_name in _BETWEEN and frame.f_back is not None:
        frame = frame.f_back
    loop = frame
    while frame is not None:
        if frame.f_code.co_name == "train":
            return frame
        frame = frame.f_back  # type: ignore[assignment]
    return loop


class StackWatch:
    """Watch a call of this thread until it has ended, or `leave` was called.

    Args:
        frame: the call's.
        ended: is given the exception that it was left by, where that can be found; in a thread of its own.
        name: the thread's.
    """

    def __init__(self, frame: FrameType, ended: Callable[[BaseException | None], None], name: str) -> None:
        self._frame: FrameType | None = frame
        self._ended, self._over, self._ident = ended, threading.Event(), threading.get_ident()
        self._thread = threading.Thread(target=self._watch, name=name)  # the interpreter's end waits for its word
        self._thread.start()

    def leave(self) -> None:
        """End the watch: the call has said itself that it is over."""
        self._over.set()
        self._frame = None

    def join(self) -> None:
        """Wait until `ended` has returned, or nothing is watched."""
        self._over.set()
        if self._thread is not threading.current_thread():
            self._thread.join()

    def _watch(self) -> None:
        while self._frame is not None and _is_running(self._frame, self._ident):
            asked = self._over.wait(_EVERY)
            if self._frame is None or (asked and _is_running(self._frame, self._ident)) or self._left_alone():
                return
        if self._frame is not None:
            error = self._cause(self._frame)
            self._frame = None
            self._ended(error)

    def _left_alone(self) -> bool:
        """Return whether the interpreter ends while another thread trains, which then is not waited for."""
        return not threading.main_thread().is_alive() and self._ident != threading.main_thread().ident

    def _cause(self, frame: FrameType) -> BaseException | None:
        end = time.monotonic() + _PATIENCE
        while True:
            for error in _known_errors(frame):
                if any(step is frame for step in _steps(error.__traceback__)):
                    return error
            if time.monotonic() > end:
                return None
            time.sleep(_EVERY / 4)


def _is_running(frame: FrameType, ident: int) -> bool:
    top: FrameType | None = sys._current_frames().get(ident)
    while top is not None:
        if top is frame:
            return True
        top = top.f_back
    return False


def _steps(trace: TracebackType | None) -> Iterator[FrameType]:
    while trace is not None:
        yield trace.tb_frame
        trace = trace.tb_next


def _known_errors(frame: FrameType) -> Iterator[BaseException]:
    """Yield exceptions that somebody handles, has shown, or keeps."""
    for handled in sys._current_exceptions().values():
        error = handled[1] if isinstance(handled, tuple) else handled  # the exception alone since Python 3.12
        if isinstance(error, BaseException):
            yield error
    last = getattr(sys, "last_value", None)
    if isinstance(last, BaseException):
        yield last
    for trace in gc.get_referrers(frame):
        if isinstance(trace, TracebackType):
            yield from (kept for kept in _holders(trace) if isinstance(kept, BaseException))


def _holders(trace: TracebackType) -> Iterator[object]:
    """Yield what holds a traceback, also by one that leads to it."""
    for holder in gc.get_referrers(trace):
        if isinstance(holder, TracebackType):
            yield from _holders(holder)
        else:
            yield holder
