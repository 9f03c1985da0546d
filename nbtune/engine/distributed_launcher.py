"""Several processes of one machine that do one run: who starts them, and ends them together.

    python -m nbtune.engine RUN_DIR       (with `gpus: 2` in its spec)

The worker that was started looks at the spec, and where several devices are wanted it starts a worker for each and
waits. When one of them fails the others are ended, since they would wait for it for ever; what it failed of is said in
the run's folder. They meet through a file, and talk over the loopback, where each listens on a port (gloo's, without a
password). When this process is gone they end, too; when those who started *it* are killed the run stops and is saved,
unless it was detached (`nbtune.engine.lone_worker`). Under `torchrun` all this is torchrun's work; several machines
compare what they see before they begin (`meet`).
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from nbtune import events
from nbtune.child_process import ChildProcess, end_with_parent, exit_sentence
from nbtune.errors import NbtuneError
from nbtune.store.event_log import EventReader, EventWriter, add_event
from nbtune.store.folder import read_spec

if TYPE_CHECKING:
    from nbtune.train.distributed import Ranks

WITNESS = 3  # exit code of a process that ends because another one has
MEETING = "NBTUNE_MEETING"  # in a worker's environment: the folder where those of one run meet
AGENT = "NBTUNE_AGENT"  # in a worker's environment: the process of `nbtune.engine.node` that has started torchrun
_ERROR_FILE = "TORCHELASTIC_ERROR_FILE"  # in that of torchrun's: where a worker says what it failed of
SEE_LOG = "; worker.log has its last words"  # of a process that ended without a reason

_GRACE = 5.0  # seconds in which the first process may say why it ends, too


def several(folder: Path) -> list[int]:
    """Return the numbers of the devices that the run wants for itself, where it is more than one or a certain one; else
    none.

    Raises:
        NbtuneError: there are fewer, or it is no run.
    """
    spec = read_spec(folder)
    if spec.gpus == 1:
        return []
    from nbtune import device

    chosen = device.choose_cards(spec.gpus, spec.device)
    return chosen if len(chosen) > 1 or isinstance(spec.gpus, tuple) else []


def supervise(folder: Path, chosen: list[int]) -> int:
    """Run a worker for each device, until all have ended; 0 if all did well, else 1: the reason
    stands in the folder."""
    with tempfile.TemporaryDirectory(prefix="nbtune-", ignore_cleanup_errors=True) as meeting:
        with _started(folder, chosen, Path(meeting)) as workers:
            failed = _first_to_fail(workers)
            if failed is None:
                return 0
        _say(folder, *failed, len(chosen), Path(meeting))
        return 1


@contextlib.contextmanager
def _started(folder: Path, chosen: list[int], meeting: Path) -> Iterator[list[ChildProcess]]:
    workers: list[ChildProcess] = []
    try:
        for rank in range(len(chosen)):
            environment = _environ(rank, chosen, meeting)
            workers.append(ChildProcess(["-m", "nbtune.engine", folder], environment=environment, output="inherited"))
        yield workers
    finally:
        _end(workers)


def _environ(rank: int, chosen: list[int], meeting: Path) -> dict[str, str]:
    """Return what makes a worker one of several; what the user has set wins."""
    from nbtune import device
    from nbtune.device.detect import only_cards

    usual = {"OMP_NUM_THREADS": str(max(1, device.cpu_count() // len(chosen)))}
    if sys.platform == "linux":
        usual |= {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"}
    return {
        **{name: value for name, value in usual.items() if name not in os.environ},
        **only_cards(chosen, os.environ),
        **{"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(len(chosen)), MEETING: str(meeting)},
    }


def _first_to_fail(workers: list[ChildProcess]) -> tuple[int, int] | None:
    """Return (number, exit code) of the first worker that fails, after the others had time to end too; None: all did
    well."""
    ended: queue.Queue[tuple[int, int]] = queue.Queue()
    for rank, worker in enumerate(workers):
        watch = threading.Thread(target=lambda r=rank, w=worker: ended.put((r, w.wait())), daemon=True)
        watch.start()
    failed, until = None, None
    for _ in workers:
        try:
            rank, code = ended.get(timeout=None if until is None else max(0.0, until - time.monotonic()))
        except queue.Empty:
            break
        if code and (failed is None or failed[1] == WITNESS):
            failed, until = (rank, code), time.monotonic() + (1.0 if (rank, code) == (0, 1) else _GRACE)
    return failed


def _end(workers: list[ChildProcess]) -> None:
    for worker in workers:
        worker.terminate()
    for worker in workers:
        worker.stop()


def refuse(folder: Path, error: NbtuneError) -> None:
    """Say in the run's folder why it cannot begin."""
    with contextlib.closing(EventWriter(folder / "events.jsonl")) as emit:
        emit(events.State(state="failed", detail=str(error)))


def _say(folder: Path, rank: int, code: int, count: int, meeting: Path) -> None:
    """Say what the run ended of, unless the first process has said it."""
    if not folder.is_dir() or said_its_end(folder):
        return
    with contextlib.closing(EventWriter(folder / "events.jsonl")) as emit:
        try:  # see `left_word`
            reason = (meeting / f"{rank}.txt").read_text(encoding="utf-8")
        except OSError:
            why = exit_sentence(code, SEE_LOG)
            emit(events.State(state="interrupted", detail=f"its process {rank + 1} of {count} {why}"))
        else:
            emit(events.State(state="failed", detail=reason))


def said_its_end(folder: Path) -> bool:
    """Return whether the last state that the run has told is one of those that it ends in."""
    last = next((e for e in reversed(EventReader(folder / "events.jsonl").read()) if e.type == "state"), None)
    return isinstance(last, events.State) and last.state in events.ENDED


def left_word(error: BaseException, folder: Path) -> None:
    """Leave what a process that may not write into the folder failed of: for `supervise`, or for torchrun."""
    from nbtune.engine.failures import for_people

    explained = for_people(error, folder)
    detail = str(explained or f"a bug in nbtune or a library: {error!r}"[:500])
    with contextlib.suppress(OSError):
        if meeting := os.environ.get(MEETING):
            (Path(meeting) / f"{os.environ['RANK']}.txt").write_text(detail, encoding="utf-8")
        elif told := os.environ.get(_ERROR_FILE):
            message = {"message": detail, "extraInfo": {"timestamp": str(int(time.time()))}}
            Path(told).write_text(json.dumps({"message": message}), encoding="utf-8")


def stay_with_parent() -> None:
    """End this process as soon as the one that has started it is gone: its end of our standard input closes then, or
    (torchrun gives none) it is our parent no more."""
    if MEETING in os.environ:
        end_with_parent(code=1)
    elif os.environ.get(AGENT, "").isdigit():
        threading.Thread(target=_stay_with, args=(os.getppid(),), name="nbtune-parent", daemon=True).start()


def _stay_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def meet(folder: Path, ranks: Ranks) -> bool:
    """Compare what the processes of several machines see; False: they cannot train together, and the first has said
    why."""
    from nbtune.engine import alike

    seen = ranks.gather(alike.look(folder))
    try:
        words = alike.differences(seen)
    except NbtuneError as error:
        if ranks.first:
            sys.stderr.write(f"{error}\n")
            if folder.is_dir():
                refuse(folder, error)
        return False
    if ranks.first:
        for sentence in words:
            add_event(folder, events.Warning(message=sentence))
    return True
