"""One machine of several that do one run: torchrun, and a last word in the run's folder.

    python -m nbtune.engine.node RUN_DIR --nnodes 2 --nproc-per-node 8 --rdzv-backend c10d --rdzv-endpoint HOST:29500

is given to each machine; the options are torchrun's own, and torchrun starts the processes, lets them meet and ends
them together. What is ours: which process of which machine ended first, and of what, is said in the run's folder, and
the processes end when this one is killed. Where the machine is the only one nobody has to be met over a network, and
torchrun's own port, which is open to all of it, is not wanted: its processes are started as those of `gpus:` are.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import itertools
import os
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

from nbtune import events
from nbtune.child_process import exit_sentence
from nbtune.engine.distributed_launcher import AGENT, WITNESS, said_its_end, supervise
from nbtune.store.event_log import add_event
from nbtune.store.lock import is_owned

_GRACE = 12.0  # seconds in which the first process may say why it ends
_ANSWER = 10.0  # seconds in which another agent's store answers
_TERMINATED = -15  # torchrun ends the others of a machine with it


def main(arguments: list[str]) -> int:
    """Do this machine's part of a run; 0 if all its processes did well.

    Args:
        arguments: the run's folder, then torchrun's options.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous.api import RendezvousError
    from torch.distributed.run import determine_local_world_size, parse_args, parse_min_max_nnodes, run

    folder = Path(arguments[0]).absolute()
    try:
        asked = parse_args([*_by_address(arguments), *arguments[1:], "-m", "nbtune.engine", str(folder)])
        if parse_min_max_nnodes(asked.nnodes)[1] == 1:
            return supervise(folder, list(range(determine_local_world_size(asked.nproc_per_node))))
        if taken := _taken(_meeting(arguments)):
            raise OSError(taken)
        os.environ[AGENT] = str(os.getpid())
        run(asked)
    except ChildFailedError as error:
        _say(folder, *_first(error.failures))
        return 1
    except SignalException as error:
        return 128 + int(error.sigval)
    except (RendezvousError, RuntimeError, OSError, ValueError) as error:
        words = " ".join(str(error).split())[:200]
        _add(folder, "failed", f"{_here()} does not meet the others at {_meeting(arguments)}: {words}")
        sys.stderr.write(f"{_here()} does not meet the others: {words}\n")
        return 1
    return 0


def _meeting(arguments: list[str]) -> str:
    for word, value in itertools.pairwise(arguments):
        if word in ("--rdzv-endpoint", "--rdzv_endpoint"):
            return value
    return next((word.partition("=")[2] for word in arguments if word.startswith("--rdzv-endpoint=")), "their endpoint")


def _by_address(arguments: list[str]) -> list[str]:
    """Return what tells torchrun, which goes by names of machines, that the endpoint is an address of this one, and by
    which address the others reach it."""
    address = _meeting(arguments).rpartition(":")[0].strip("[]")
    given = {word.partition("=")[0].replace("_", "-") for word in arguments}
    if given & {"--rdzv-conf", "--local-addr"}:
        return []
    try:
        if ipaddress.ip_address(address).is_loopback:
            return []
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((address, 9))  # sends nothing: the way there is chosen
            own = str(probe.getsockname()[0])
    except (OSError, ValueError):
        return []
    return ["--local-addr", own, *(["--rdzv-conf", "is_host=true"] if own == address else [])]


def _taken(endpoint: str) -> str:
    """Say that the port where this machine is to be met is another program's: torchrun would try for minutes. "": it is
    free, or another agent's of this machine, or another machine is to be met."""
    host, _, port = endpoint.rpartition(":")
    try:
        family, _, _, _, place = socket.getaddrinfo(host.strip("[]"), int(port), type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(place)
    except ValueError:
        return ""
    except OSError as error:
        if error.errno != errno.EADDRINUSE:  # no address of this machine
            return ""
        if not _answers(str(place[0]), int(port)):
            return f"port {port} is in use by another program on this machine: take another one"
    return ""


def _answers(host: str, port: int) -> bool:
    """Return whether another agent's store is there. In a thread: who says nothing is waited for, for ever."""
    from torch.distributed import TCPStore

    found: list[Any] = []

    def ask() -> None:
        with contextlib.suppress(RuntimeError):
            found.append(TCPStore(host, port, is_master=False, wait_for_workers=False))

    asking = threading.Thread(target=ask, name="nbtune-port", daemon=True)
    asking.start()
    asking.join(_ANSWER)
    return bool(found)


def _here() -> str:
    return os.environ.get("SLURMD_NODENAME") or socket.gethostname()


def _first(failures: dict[int, Any]) -> tuple[int, Any]:
    """Return (rank, failure) of who ended of itself: not because another one had, and not because torchrun said so."""

    def guilt(item: tuple[int, Any]) -> tuple[bool, bool, float]:
        return item[1].exitcode == WITNESS, item[1].exitcode == _TERMINATED, item[1].timestamp

    return min(failures.items(), key=guilt)


def _say(folder: Path, rank: int, failure: Any) -> None:
    """Say what the first to fail of this machine failed of, unless the run has said its end by then."""
    told = failure.error_file_data.get("message")  # see `distributed_launcher.left_word`
    if failure.exitcode == WITNESS:
        state, words = "interrupted", "a process of another machine has ended, and its reason is not known"
    elif isinstance(told, dict):
        state, words = "failed", f"process {rank + 1} on {_here()}: {told.get('message', '')}"
    else:
        state, words = "interrupted", f"its process {rank + 1} on {_here()} {exit_sentence(failure.exitcode)}"
    until = time.monotonic() + _GRACE * (2 if failure.exitcode == WITNESS else 1)  # who knows it speaks first
    while time.monotonic() < until and (failure.exitcode == WITNESS or is_owned_by_process(folder)):
        if not folder.is_dir() or said_its_end(folder):
            break
        time.sleep(0.2)
    _add(folder, state, words)


def is_owned_by_process(folder: Path) -> bool:
    """Return whether the run's first process is at work, wherever."""
    return (folder / "owner.json").exists() and is_owned(folder)


def _add(folder: Path, state: str, words: str) -> None:
    if folder.is_dir() and not said_its_end(folder):
        add_event(folder, events.State(state=state, detail=words))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
