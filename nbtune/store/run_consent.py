"""What a run's folder would run here: only what this user has started here, or allowed for this folder.

A folder may be a stranger's, and a stranger's spec says `trust_remote_code` as easily as one's own. So the spec's word
alone counts for nothing: starting a run writes a consent into the cache, bound to the folder, the model and its code.
"""

from __future__ import annotations

from pathlib import Path

from nbtune.errors import TrainError
from nbtune.spec import RunSpec
from nbtune.store import foreign
from nbtune.store.folder import (
    code_is_allowed,
    code_subject,
    find,
    named_code,
    refuse_outside,
    runs_root,
    spec_code,
    spec_to_run,
    written_spec,
)


def check(folder: Path, *, code: bool = True) -> None:
    """Refuse, before any work, a folder that would run what is not allowed, or that leads out of itself.

    Args:
        code: also the model's own.

    Raises:
        TrainError, DataError: it is not; or another trainer made it.
    """
    refuse_outside(folder, error=TrainError)
    foreign.refuse(folder, "train it")
    if code:
        spec_to_run(folder)
    wishes = _of_data(folder)
    if wishes:
        from nbtune.data.sources import row_function

        raise row_function.not_allowed("; ".join(wishes), folder / "data")


def questions(folder: Path) -> list[str]:
    """Return what the folder would run here, or read beyond itself, and this user has not allowed yet, in words."""
    spec = written_spec(folder)
    code = spec.trust_remote_code and not code_is_allowed(folder, spec)
    return [*([f"the Python code of the model {named_code(spec)}"] if code else []), *_of_data(folder)]


def allow(folder: Path) -> None:
    """Allow, for this user, what `questions` says.

    Raises:
        DataError: the cache cannot be written.
        SpecError, HubError: the model cannot be found.
    """
    from nbtune.data.sources import snapshot

    if (spec := written_spec(folder)).trust_remote_code:
        allow_code(folder, spec)
    if (folder / "data" / "sources.json").exists():
        snapshot.allow(folder / "data")


def allow_code(folder: Path, spec: RunSpec) -> None:
    """Let, for this user, the code of the spec's models run in this folder's run: the code that is there now.

    Raises:
        DataError: the cache cannot be written.
        SpecError, HubError: the model cannot be found.
    """
    from nbtune.data.sources import consent

    for subject in (code_subject(spec), code_subject(spec, spec_code(spec, folder))):
        consent.remember(folder, subject, f"the Python code of the model {named_code(spec)}")


def trust(which: str | Path, runs_dir: str | Path | None = None) -> list[str]:
    """Allow what a run's folder wants to run here, or to read outside of itself; return it, in words.

    >>> nbtune.trust("demo")  # trained here: it wants nothing that is not allowed
    []

    It is for a folder of one's own that an older nbtune made, that was moved, or whose author one trusts: what a
    function of its data or the model's own code does, it does as you. What you start here yourself needs no such word.

    Args:
        which: name (its newest run), id, folder's name or path.
        runs_dir: where runs are; ``NBTUNE_RUNS`` or ``./runs`` by default.

    Raises:
        TrainError: there is no such run.
    """
    folder = find(which, runs_root(runs_dir))
    wants = questions(folder)
    allow(folder)
    return wants


def _of_data(folder: Path) -> list[str]:
    from nbtune.data.sources import snapshot

    return snapshot.questions(folder / "data") if (folder / "data" / "sources.json").exists() else []
