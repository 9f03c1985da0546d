"""What a run says and does when it fails, or is going to."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

from nbtune.device import is_out_of_memory
from nbtune.disk import DISK_ERRORS, disk_error, free_bytes
from nbtune.errors import NbtuneError, PlanError, TrainError

_RESERVE = 2**16  # bytes


@contextlib.contextmanager
def reserve(folder: Path) -> Iterator[Callable[[], None]]:
    """Reserve some disk that is given back when the run fails: a full disk takes what it failed of, too."""
    path = folder / ".reserve.0.tmp"

    def give_back() -> None:
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)

    with contextlib.suppress(OSError):
        path.write_bytes(bytes(_RESERVE))
    try:
        yield give_back
    finally:
        give_back()


def for_people(error: BaseException, folder: Path) -> NbtuneError | None:
    """Return what an error means to a user; None for a bug."""
    if not folder.is_dir():  # whatever it failed of
        return _gone(folder)
    if isinstance(error, NbtuneError):
        return error
    if is_out_of_memory(error):
        return PlanError(
            "there was not enough memory after all",
            fix="set a smaller `micro_batch_size` or `sequence_len`, or `activations: recompute`; then resume",
        )
    if isinstance(error, OSError) and error.errno in DISK_ERRORS:
        return disk_error(error, TrainError, "the run's folder could not be written", place=folder.name)
    return None


def _gone(folder: Path) -> TrainError:
    return TrainError(
        f"the folder of the run `{folder.name}` was deleted while it worked: it has ended, and nothing is kept",
        fix="stop a run before you delete its folder",
    )


def still_there(folder: Path) -> None:
    """Look whether the run's folder is there: one that was deleted is not made again.

    Raises:
        TrainError: it is not.
    """
    if not folder.is_dir():
        raise _gone(folder)


def room_for(needed: int, folder: Path) -> None:
    """Look before anything is trained whether its checkpoints will fit.

    Raises:
        PlanError: they will not.
    """
    free = free_bytes(folder)
    if free < needed:
        raise PlanError(
            f"the checkpoints need {_size(needed)} of disk, and {_size(free)} are free",
            place=folder.parent.name,
            fix="free some space, or keep runs elsewhere: `--runs DIR`, or in a notebook `%env NBTUNE_RUNS=DIR`",
        )


def _size(count: int) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:,.0f} MiB"
