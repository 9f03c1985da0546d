"""Two launchers, one engine: a thread of this process, or (detached) a process of its own that a thread watches.

Either way one run works at a time for this process, the others queue; a detached one survives the kernel and the Lab.
"""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from nbtune import events
from nbtune.child_process import ChildProcess, exit_sentence
from nbtune.engine.distributed_launcher import SEE_LOG, said_its_end
from nbtune.engine.ended_model import ended_model
from nbtune.engine.lone_worker import WITH_PARENT
from nbtune.errors import NbtuneError, TrainError
from nbtune.leaving_off import before_exit
from nbtune.models import handed_over
from nbtune.store import control
from nbtune.store.event_log import EventWriter
from nbtune.store.folder import OWN_MODEL
from nbtune.store.lock import STARTING, Ownership, is_owned
from nbtune.train.mean_loss import NumbersLost
from nbtune.untrusted import open_to_append

if TYPE_CHECKING:
    from nbtune.models import Built
    from nbtune.spec import RunSpec

_TURN = threading.Lock()  # one engine at a time: two would share one device's memory
_ALL: weakref.WeakSet[Launched] = weakref.WeakSet()
_TURN_SECONDS = 0.001
on_launch: list[Callable[[], None]] = []  # called after a run was started in this process


def launch(folder: Path, *, detach: bool = False, own_process: bool = False) -> Launched:
    """Start the engine on a folder, in a thread or a process of its own; while another run works here, it queues."""
    launched = Launched(folder, detach=detach, own_process=own_process)
    _ALL.add(launched)
    if not detach:  # the runs of a kernel that ends in order stop and save
        before_exit(launched.thread, lambda: control.wish(folder, mode="stop"))
    launched.thread.start()
    for call in on_launch:
        call()
    return launched


def launched_on(folder: Path) -> Launched | None:
    """Return the thread of a run that was started in this process."""
    return next((launched for launched in _ALL if launched.folder == folder), None)


def live() -> list[Path]:
    """Return the folders of the runs that work, or wait, in this process."""
    return [launched.folder for launched in _ALL if launched.alive]


def kernel_is_needed() -> bool:
    """Return whether a run works, or waits, that would end with this process."""
    return any(launched.alive and not launched.detached for launched in list(_ALL))


class Launched:
    """A run's thread, what it failed of, and its model for as long as somebody holds this."""

    def __init__(self, folder: Path, *, detach: bool = False, own_process: bool = False) -> None:
        self.given = handed_over.lent(folder / OWN_MODEL)  # held, so that it is there as long as this
        own_process = own_process and self.given is None
        self.folder, self.detached, self.own_process = folder, detach, detach or own_process
        self.error: BaseException | None = None
        self._built: Built | None = None
        self._loading = threading.Lock()
        self.thread = threading.Thread(target=self._work, name=f"nbtune-{folder.name}", daemon=True)

    @classmethod
    def ended(cls, folder: Path) -> Launched:
        """Make one for a run that ended somewhere else: only its model is of interest."""
        return cls(folder)

    @property
    def alive(self) -> bool:
        """Whether the thread works or waits."""
        return self.thread.is_alive()

    def join(self, timeout: float) -> None:
        """Wait at most `timeout` seconds for the thread."""
        self.thread.join(timeout)

    def _work(self) -> None:
        told = self._told()
        try:
            with Ownership(self.folder, STARTING):
                self._in_turn()
        except BaseException as error:  # noqa: BLE001 — a thread must not print; the handle raises it
            self.error = error
            if self._told() == told and not is_owned(self.folder):  # it failed before its engine could say so
                with contextlib.suppress(OSError, NbtuneError):
                    self._say_failed(error)
            if isinstance(error, NumbersLost):
                self._built = None  # who asks is answered by the last good checkpoint
            error.__traceback__ = None  # it holds the model's frames

    def _told(self) -> int:
        """Return how many bytes of events there are."""
        try:
            return (self.folder / "events.jsonl").stat().st_size
        except OSError:
            return 0

    def _say_failed(self, error: BaseException) -> None:
        from nbtune.engine.failures import for_people

        detail = str(for_people(error, self.folder) or f"a bug in nbtune or a library: {error!r}"[:500])
        with contextlib.closing(EventWriter(self.folder / "events.jsonl")) as emit:
            emit(events.State(state="failed", detail=detail))

    def _in_turn(self) -> None:
        if not _TURN.acquire(blocking=False):
            self._queue()
        try:
            if self.own_process:
                self._watch()
            else:
                from nbtune.engine.engine import execute

                with _short_turns():
                    execute(self.folder, keep=self._keep)
        finally:
            _TURN.release()

    def _watch(self) -> None:
        """Start the worker and wait for it: a detached one survives this process, another one stops and saves."""
        arguments: list[str | Path] = ["-m", "nbtune.engine", self.folder]
        if not self.detached:
            arguments.append(WITH_PARENT)
        told = self._told()
        with os.fdopen(open_to_append(self.folder / "worker.log"), "ab") as log:
            process = ChildProcess(arguments, output=log, detached=self.detached, own_session=True)
        code = process.wait()
        process.stop()  # it has ended: what is left is our end of its standard input
        if code not in (0, 1) and not said_its_end(self.folder):  # those are the engine's own, and it has said why
            emit = EventWriter(self.folder / "events.jsonl")
            emit(events.State(state="interrupted", detail=f"its process {exit_sentence(code, SEE_LOG)}"))
            emit.close()
        elif code == 1 and self._told() == told:
            raise TrainError(f"its process {exit_sentence(code, SEE_LOG)}")

    def _queue(self) -> None:
        emit = EventWriter(self.folder / "events.jsonl")
        others = ", ".join(path.name for path in live() if path != self.folder)
        emit(events.State(state="queued", detail=f"waits for {others}" if others else ""))
        emit.close()
        _TURN.acquire()

    def _keep(self, built: Built) -> None:
        self._built = built

    def model(self) -> Built:
        """Return the model with its adapter, loaded if it is not in memory.

        Raises:
            TrainError: nothing was trained yet.
        """
        with self._loading:
            if self._built is None:
                self._built = ended_model(self.folder)
            return self._built

    def free(self) -> int:
        """Drop the model; the bytes that came back."""
        from nbtune import device

        built, self._built, self.given = self._built, None, None
        if built is None:
            return 0
        where = next(built.model.parameters()).device
        before = device.memory_use(where).allocated
        del built
        gc.collect()
        device.empty_cache(where)
        return max(0, before - device.memory_use(where).allocated)


@contextlib.contextmanager
def _short_turns() -> Iterator[None]:
    """Let Python's lock change hands after 1 ms instead of 5 while an engine shares this process with the user's cells.

    An engine gives the lock away in each operation of torch, and beside a cell of pure Python waited 5 ms to have it
    back. When it is done the interval is what it was, unless somebody has set another one meanwhile.
    """
    before = sys.getswitchinterval()
    if before > _TURN_SECONDS:
        sys.setswitchinterval(_TURN_SECONDS)
    try:
        yield
    finally:
        if before > _TURN_SECONDS and round(sys.getswitchinterval(), 6) == _TURN_SECONDS:
            sys.setswitchinterval(before)


def needs_own_process(spec: RunSpec) -> bool:
    """Return whether the run gets a process of its own without being detached: with several GPUs, beside one, or where
    a cluster does it.

    A thread shares Python's lock with the user's cells. On a GPU a step is many short calls, each of which would wait
    for a busy cell up to 5 ms to get the lock back; on a CPU a step is few long ones.
    """
    from nbtune import device

    if spec.cluster.used:
        return True
    return spec.gpus not in (1, "all") or (spec.device in ("auto", "cuda") and device.gpu_present())
