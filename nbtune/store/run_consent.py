"""What a run's folder would run here: only what this user has started here, or allowed for this folder.

A folder may be a stranger's, and a stranger's spec says `trust_remote_code` as easily as one's own. So the spec's word
alone counts for nothing: starting a run writes a consent into the cache, bound to the folder, the model and its code.
"""

from __future__ import annotations

from pathlib import Path

from nbtune.errors import TrainError
from nbtune.spec import RunSpec
from nbtune.store.folder import code_subject, find, read_spec, runs_root, written_spec
from nbtune.untrusted import harmless

__all__ = ["allow", "allow_code", "check", "questions", "spec_to_run", "trust"]


def spec_to_run(folder: Path) -> RunSpec:
    """The spec that the run's model may be loaded by.

    Raises:
        TrainError: it wants the model's own code, and this user has not allowed that here, or it has changed since.
    """
    asked = written_spec(folder)
    if asked.trust_remote_code and not _is_allowed(folder, asked):
        raise TrainError(
            f"its spec wants to run Python code of the model {harmless(asked.model, line=True)}, "
            "which you have not allowed here",
            place=harmless(folder.name, line=True),
            fix=_how(folder),
        )
    return read_spec(folder)


def check(folder: Path, *, code: bool = True) -> None:
    """Whether all that the folder would run is allowed; before any work.

    Args:
        code: also the model's own.

    Raises:
        TrainError, DataError: it is not.
    """
    if code:
        spec_to_run(folder)
    wanted = _of_data(folder)
    if wanted:
        from nbtune.data.sources import row_function

        raise row_function.not_allowed("; ".join(wanted), folder / "data")


def questions(folder: Path) -> list[str]:
    """What the folder would run here, or read beyond itself, and this user has not allowed yet, in words."""
    asked = written_spec(folder)
    code = asked.trust_remote_code and not _is_allowed(folder, asked)
    return [*([f"the Python code of the model {harmless(asked.model, line=True)}"] if code else []), *_of_data(folder)]


def allow(folder: Path) -> None:
    """This user allows what `questions` says.

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
    """This user lets the code of the spec's model run in this folder's run: the code that is there now.

    Raises:
        DataError: the cache cannot be written.
        SpecError, HubError: the model cannot be found.
    """
    from nbtune.data.sources import consent

    for subject in (code_subject(spec.model), code_subject(spec.model, _code(spec.model))):
        consent.remember(folder, subject, f"the Python code of the model {spec.model}")


def trust(which: str | Path, runs_dir: str | Path | None = None) -> list[str]:
    """Allow what a run's folder wants to run here, or to read outside of itself; returns it, in words.

    It is for a folder of one's own that an older nbtune made, that was moved, or whose author one trusts: what a
    function of its data or the model's own code does, it does as you. What you start here yourself needs no such word.

    Args:
        which: name (its newest run), id, folder's name or path.
        runs_dir: where runs are; ``NBTUNE_RUNS`` or ``./runs`` by default.

    Raises:
        TrainError: there is no such run.
    """
    folder = find(which, runs_root(runs_dir))
    asked = questions(folder)
    allow(folder)
    return asked


def _is_allowed(folder: Path, spec: RunSpec) -> bool:
    from nbtune.data.sources import consent

    known = consent.is_remembered(folder, code_subject(spec.model))
    return known and consent.is_remembered(folder, code_subject(spec.model, _code(spec.model)))


def _code(model: str) -> str:
    """Which code it is: what is fetched now is what is loaded next."""
    from nbtune import models
    from nbtune.data.sources import consent

    return consent.code_of(models.resolve(model, weights=False, trust_remote_code=True))


def _of_data(folder: Path) -> list[str]:
    from nbtune.data.sources import snapshot

    return snapshot.questions(folder / "data") if (folder / "data" / "sources.json").exists() else []


def _how(folder: Path) -> str:
    name = harmless(folder.name, line=True)
    return f"if you trust it: `nbtune trust {name}` in a shell, or `nbtune.trust({name!r})` in Python"
