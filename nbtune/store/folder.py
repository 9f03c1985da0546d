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

from nbtune.errors import SpecError, TrainError
from nbtune.spec import RunSpec, from_yaml, to_yaml
from nbtune.store.files import read_json, write_json, write_text

__all__ = ["all_folders", "create", "find", "name_of", "read_spec", "refuse_newer", "runs_root"]

VERSION = 1
_NAME = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
_PACKAGES = ("nbtune", "torch", "transformers", "peft", "datasets", "triton", "bitsandbytes", "tokenizers", "numpy")
_TRAIN_PY = '''"""Trains this run again: same spec, same rows, same losses. Needs nothing but this folder and nbtune."""

from pathlib import Path

import nbtune

if __name__ == "__main__":
    run = nbtune.repeat(Path(__file__).parent).wait()
    print(run.folder)
'''


def runs_root(given: str | Path | None = None) -> Path:
    """`given`, or ``NBTUNE_RUNS``, or ``./runs``."""
    return Path(given or os.environ.get("NBTUNE_RUNS") or "runs").expanduser().absolute()


def create(root: Path, name: str, spec: RunSpec) -> Path:
    """A new run folder with its spec, environment and script.

    Raises:
        SpecError: the name cannot be a folder's.
        TrainError: the folder cannot be written.
    """
    if not _NAME.match(name):
        raise SpecError(f"{name!r} cannot be a run's name", fix="use letters, digits, '.', '_' and '-', at most 64")
    folder = root / f"{name}-{secrets.token_hex(3)}"
    # later than every run that is there, also after the clock was set back: the newest run of a name is this one
    created = max([time.time(), *(_created(path) + 1e-3 for path in all_folders(root)[:1])])
    try:
        for part in ("data", "checkpoints", "exports"):
            (folder / part).mkdir(parents=True)
        write_text(folder / "spec.yaml", to_yaml(spec))
        write_json(
            folder / "environment.json", {"version": VERSION, "name": name, "created": created, **_environment()}
        )
        write_text(folder / "train.py", _TRAIN_PY)
    except OSError as error:
        shutil.rmtree(folder, ignore_errors=True)
        raise TrainError(
            f"no run can be kept in {root.name}/: {error.strerror or error}",
            fix="choose another place with `--runs DIR` or NBTUNE_RUNS",
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
    """The spec of a run folder.

    Raises:
        TrainError: the folder is of a newer nbtune, or is no run's.
    """
    refuse_newer(folder)
    try:
        return from_yaml((folder / "spec.yaml").read_text(encoding="utf-8"), name=f"{folder.name}/spec.yaml")
    except OSError as error:
        raise TrainError(f"{folder.name} is no run folder: it has no spec.yaml", fix="see `nbtune runs`") from error


def refuse_newer(folder: Path) -> None:
    """Raises a `TrainError` for the folder of a newer nbtune: nothing in it may be misread, or written over."""
    if (read_json(folder / "environment.json") or {}).get("version", VERSION) > VERSION:
        raise TrainError("this run was made by a newer nbtune", place=folder.name, fix="upgrade nbtune to open it")


def name_of(folder: Path) -> tuple[str, str]:
    """(name, id) of a run folder."""
    name, _, ident = folder.name.rpartition("-")
    return (name, ident) if name else (folder.name, "")


def all_folders(root: Path) -> list[Path]:
    """The run folders under a root, newest first."""
    if not root.is_dir():
        return []
    folders = [path for path in root.iterdir() if (path / "spec.yaml").is_file()]
    return sorted(folders, key=_created, reverse=True)


def _created(folder: Path) -> float:
    return float((read_json(folder / "environment.json") or {}).get("created", 0.0))


def find(which: str | Path, root: Path) -> Path:
    """The run folder of a name (its newest), an id, a folder's name or a path.

    Raises:
        TrainError: there is none.
    """
    path = Path(which).expanduser()
    if (path / "spec.yaml").is_file():
        return path.absolute()
    folders = all_folders(root)
    for folder in folders:
        if str(which) in (folder.name, *name_of(folder)):
            return folder
    names = ", ".join(dict.fromkeys(name_of(folder)[0] for folder in folders)) or "none yet"
    raise TrainError(f"there is no run {str(which)!r} in {root.name}/", fix=f"known runs: {names}")
