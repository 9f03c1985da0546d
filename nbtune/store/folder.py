"""The run folder: where runs are, how a new one is laid out, how one is found again.

runs/<name>-<id>/  spec.yaml  plan.json  environment.json  events.jsonl  control.json  owner.json
                   data/  checkpoints/  adapter/  tokenizer/  exports/  train.py
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import secrets
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from nbtune.atomic_io import discard, write_json, write_text
from nbtune.disk import disk_error
from nbtune.errors import NbtuneError, SpecError, TrainError
from nbtune.folder_format import plan_body, refuse_newer, spec_fields, stamp, version_of
from nbtune.planner import Plan
from nbtune.spec import RunSpec, from_yaml, to_yaml
from nbtune.store.lock import Ownership, is_owned
from nbtune.untrusted import BadFile, harmless, load, number, open_file, read_text, refuse_links, shortened

OWN_MODEL, OWN_TOKENIZER = "model", "own_tokenizer"  # what a run keeps of objects that were handed over
VARIABLE = "var:"  # before the name of one in the spec
_LONGEST = 64  # letters of a run's name
_NAME = re.compile(rf"[A-Za-z0-9][A-Za-z0-9._-]{{0,{_LONGEST - 1}}}")
_FOLDER = re.compile(r".+-[0-9a-f]{6}")
_FAR = 2.0**40  # seconds: a folder that says it was made later would be the newest for ever
_DAMAGED = "put the file back from a copy, or move the folder away"
_PACKAGES = ("nbtune", "torch", "transformers", "peft", "datasets", "triton", "bitsandbytes", "tokenizers", "numpy")
_TRAIN_PY = '''"""Trains this run again: same spec, same rows, same losses. Needs nothing but this folder and nbtune."""

from pathlib import Path

import nbtune

if __name__ == "__main__":
    run = nbtune.repeat(Path(__file__).parent).wait()
    print(run.folder)
'''


def runs_root(given: str | Path | None = None) -> Path:
    """Return `given`, or ``NBTUNE_RUNS``, or ``./runs``."""
    return Path(given or os.environ.get("NBTUNE_RUNS") or "runs").expanduser().absolute()


def check_name(name: str) -> None:
    """Refuse what cannot be a run's name.

    Raises:
        SpecError: see above.
    """
    if not _NAME.fullmatch(name):
        raise SpecError(
            f"{name!r} cannot be a run's name", fix=f"use letters, digits, '.', '_' and '-', at most {_LONGEST}"
        )


def following(name: str) -> str:
    """Return the name of a run after a run: ``run``, ``run-2``, ``run-3``; a long one is cut, so that it is a name."""
    stem, _, number = name.rpartition("-")
    counted = bool(stem) and number.isascii() and number.isdigit() and len(number) < 10
    stem, end = (stem, f"-{int(number) + 1}") if counted else (name, "-2")
    return stem[: _LONGEST - len(end)] + end


def create(root: Path, name: str, spec: RunSpec) -> Path:
    """Make a run folder with its spec, environment and script.

    Raises:
        SpecError: the name cannot be a folder's.
        TrainError: the folder cannot be written.
    """
    check_name(name)
    folder = root / f"{name}-{secrets.token_hex(3)}"
    # later than every run that is there, also after the clock was set back: the newest run of a name is this one
    now = max([time.time(), *(created(path) + 1e-3 for path in all_folders(root)[:1])])
    try:
        for part in ("data", "checkpoints", "exports"):
            (folder / part).mkdir(parents=True)
        write_text(folder / "spec.yaml", to_yaml(spec))
        write_json(folder / "environment.json", {**stamp(), "name": name, "created": now, **_environment()})
        write_text(folder / "train.py", _TRAIN_PY)
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise TrainError(
            f"no run can be kept in {root.name}/: {error.strerror or error}",
            fix="choose another place with `--runs DIR`, or NBTUNE_RUNS (in a notebook `%env NBTUNE_RUNS=DIR`)",
        ) from error
    return folder


def _environment() -> dict[str, Any]:
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(),
        "platform": f"{sys.platform}-{platform.machine()}",
        "packages": versions,
    }


def read_spec(folder: Path) -> RunSpec:
    """Return the spec of a run folder; `trust_remote_code` is False in it as long as this user has not said it here.

    Whoever loads the model asks `spec_to_run` instead, which says so.

    Raises:
        TrainError: the folder is of a newer nbtune, or is no run's.
    """
    spec = written_spec(folder)
    if not spec.trust_remote_code:
        return spec
    from nbtune.data.sources import consent

    return spec.model_copy(
        update={"trust_remote_code": consent.is_remembered(folder, code_subject(spec))},
    )


def spec_to_run(folder: Path) -> RunSpec:
    """Return the spec that the run's model may be loaded by.

    Raises:
        TrainError: it wants the model's own code, and this user has not allowed that here, or it has changed since.
    """
    spec = written_spec(folder)
    if spec.trust_remote_code and not code_is_allowed(folder, spec):
        raise TrainError(
            f"its spec wants to run Python code of the model {named_code(spec)}, which you have not allowed here",
            place=harmless(folder.name, line=True),
            fix=_how(folder),
        )
    return loadable(read_spec(folder), folder)


def loadable(spec: RunSpec, folder: Path) -> RunSpec:
    """Return the spec with folders in place of what was handed over, and of a model that is given new tokens.

    Raises:
        SpecError, HubError: see `nbtune.models.new_tokens.with_new_tokens`.
    """
    from nbtune.models.new_tokens import with_new_tokens

    return with_new_tokens(placed(spec, folder))


def placed(spec: RunSpec, folder: Path) -> RunSpec:
    """Return the spec with the folder's own places in place of the names of a model and a tokenizer that were handed
    over."""
    own = {"model": OWN_MODEL, "tokenizer": OWN_TOKENIZER}
    changes = {k: str(folder / place) for k, place in own.items() if str(getattr(spec, k)).startswith(VARIABLE)}
    return spec.model_copy(update=changes) if changes else spec


def code_is_allowed(folder: Path, spec: RunSpec) -> bool:
    """Return whether this user has allowed the code of the spec's models here: the code that is there now."""
    from nbtune.data.sources import consent

    remembered = consent.is_remembered(folder, code_subject(spec))
    return remembered and consent.is_remembered(folder, code_subject(spec, spec_code(spec, folder)))


def spec_code(spec: RunSpec, folder: Path) -> str:
    """Return which code a spec's models bring: what is fetched now is what is loaded next."""
    from nbtune.data.sources import consent
    from nbtune.models.loading import tokenizer_folder

    whose = _whose_code(placed(spec, folder))
    return " ".join(consent.code_of(tokenizer_folder(name, trust_remote_code=True)) for name in whose)


def _whose_code(spec: RunSpec) -> list[str]:
    """Return the models whose own code runs where a spec's `trust_remote_code` counts."""
    return [name for name in dict.fromkeys((spec.model, spec.tokenizer, spec.teacher)) if name]


def named_code(spec: RunSpec) -> str:
    """Return the names of the models whose own code a spec lets run, for people."""
    return " and of ".join(harmless(name, line=True) for name in _whose_code(spec))


def _how(folder: Path) -> str:
    name = harmless(folder.name, line=True)
    return f"if you trust it: `nbtune trust {name}` in a shell, or `nbtune.trust({name!r})` in Python"


def code_subject(spec: RunSpec, code: str = "") -> dict[str, Any]:
    """Return what a consent to the own Python code of a spec's models is about; with `code`: to this and no other."""
    whose = _whose_code(spec)
    return {"trust_remote_code": whose if len(whose) > 1 else spec.model, **({"code": code} if code else {})}


def written_spec(folder: Path) -> RunSpec:
    """Return the spec as it stands in the folder, whoever wrote it: to be shown, never to load a model by.

    Raises:
        TrainError: as `read_spec`.
    """
    refuse_newer(folder)
    shown = harmless(folder.name, line=True)
    try:
        text = read_text(folder / "spec.yaml", links=False)
        return as_meant(_naming_no_files(from_yaml(text, name=f"{shown}/spec.yaml", files=False)), folder)
    except NbtuneError:
        raise
    except FileNotFoundError as error:
        raise TrainError(f"{shown} is no run folder: it has no spec.yaml", fix="see `nbtune runs`") from error
    except Exception as error:  # a file that anybody may have written makes a YAML reader raise anything
        why = f"{type(error).__name__}: {harmless(str(error)[:120], line=True)}"
        raise TrainError(f"the spec cannot be read ({why})", place=f"{shown}/spec.yaml", fix=_DAMAGED) from error


def _naming_no_files(spec: RunSpec) -> RunSpec:
    """Refuse a chat template that would be read from somewhere: the spec of a run has its text."""
    if spec.chat_template is not None and "{" not in spec.chat_template:
        cause = f"`{shortened(spec.chat_template)}` is no Jinja2 template, and a run's spec names no file of one"
        raise SpecError(cause, place="chat_template", fix="write the template itself")
    return spec


def as_meant(spec: RunSpec, folder: Path) -> RunSpec:
    """Return the spec of a folder with what it left out because an older version would have taken it."""
    meant = spec_fields(spec.model_fields_set, version_of(folder))
    return spec.model_copy(update=meant) if meant else spec


def plan_of(body: dict[str, Any], folder: Path) -> Plan:
    """Return the plan in a run's folder.

    Args:
        body: what `plan.json` holds.

    Raises:
        TrainError: it is none, or a newer nbtune's.
    """
    refuse_newer(folder)
    try:
        return Plan.model_validate(plan_body(body, version_of(folder)))
    except ValueError as error:
        why = harmless(" ".join(str(error).splitlines()[1:3])[:120], line=True)
        fix = "put the file back from a copy, or move it away: it is planned anew"
        raise TrainError(
            f"plan.json: it is no plan ({why})", place=harmless(folder.name, line=True), fix=fix
        ) from error


def refuse_outside(folder: Path, *, error: type[NbtuneError]) -> None:
    """Refuse, before any work, a folder that leads elsewhere: what is written into it would be written there, what is
    swept away in it would be swept away there. Its exports apart, which are looked at when there are some to write.

    Raises:
        NbtuneError: of that kind.
    """
    try:
        parts = sorted(name for name in os.listdir(folder) if name != "exports")
    except OSError:
        return  # it is gone, or may not be read: whoever opens it says so
    if parts:
        refuse_links(folder, *parts, error=error)


def trouble(folder: Path) -> str:
    """Return what is wrong with a run's folder, in a sentence that names the file; nothing where a list can show it."""
    for name in ("environment.json", "plan.json", "control.json"):
        try:
            _look_at(name, load(folder / name, links=False))
        except FileNotFoundError:
            continue
        except BadFile as error:
            return f"{name}: {error}"
    for name in ("spec.yaml", "events.jsonl"):
        try:
            with open_file(folder / name, links=False) as file:
                head = file.read(4096)
        except FileNotFoundError:
            if name == "spec.yaml":
                return "it has vanished"
            continue
        except OSError as error:
            return f"{name}: it cannot be read ({error.strerror or error})"
        if name == "events.jsonl" and head and not head.startswith(b"{"):
            return f"{name}: it does not begin with an event"
        if b"\0" in head:
            return f"{name}: it is no text"
    return ""


def _look_at(name: str, body: dict[str, Any]) -> None:
    numbers = {"environment.json": ("created", "version"), "plan.json": ("total_steps",)}
    for key in numbers.get(name, ()):
        number(body, key, 0)


def name_of(folder: Path) -> tuple[str, str]:
    """Return (name, id) of a run folder."""
    name, _, ident = folder.name.rpartition("-")
    return (name, ident) if name else (folder.name, "")


def all_folders(root: Path) -> list[Path]:
    """Return the run folders under a root, newest first."""
    try:
        folders = [path for path in root.iterdir() if _is_run(path)]
    except OSError:  # it has vanished meanwhile, or may not be read
        return []
    return sorted(folders, key=created, reverse=True)


def _is_run(path: Path) -> bool:
    if path.name.startswith("."):  # no run's name: a folder that is being deleted
        return False
    try:
        return (path / "spec.yaml").is_file()
    except OSError:  # a folder that may not be entered is named, if it looks like a run's
        return _FOLDER.fullmatch(path.name) is not None


def delete(folder: Path) -> None:
    """Delete a run with all that was made of it; nobody ever sees it half deleted.

    Raises:
        TrainError: an engine works on it, or the disk refuses.
    """
    try:
        if folder.is_symlink():  # what it leads to is somebody's own
            return folder.unlink()
        if is_owned(folder):
            raise TrainError(f"the run `{name_of(folder)[0]}` is at work", fix="stop it first")
        with Ownership(folder):  # nobody resumes it meanwhile
            discard(folder)
        for left in folder.parent.glob(".*.gone"):  # of a process that was killed meanwhile
            shutil.rmtree(left, ignore_errors=True)
    except OSError as error:
        raise disk_error(error, TrainError, "the run's folder cannot be deleted", place=folder.name) from error


def created(folder: Path) -> float:
    """Return when a run was made, in seconds since 1970; 0 where its folder does not say."""
    try:
        when = number(load(folder / "environment.json", links=False), "created", 0.0)
        return when if 0 <= when < _FAR else 0.0
    except (FileNotFoundError, BadFile):
        return 0.0


def find(which: str | Path, root: Path) -> Path:
    """Return the run folder of a name (its newest), an id, a folder's name or a path.

    Raises:
        TrainError: there is none.
    """
    path = Path(which).expanduser()
    if _is_run(path):
        return path.absolute()
    folders = all_folders(root)
    for folder in folders:
        if str(which) in (folder.name, *name_of(folder)):
            return folder
    names = ", ".join(dict.fromkeys(harmless(name_of(folder)[0], line=True) for folder in folders)) or "none yet"
    raise TrainError(f"there is no run {str(which)!r} in {root.name}/", fix=f"known runs: {names}")
