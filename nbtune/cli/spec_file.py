"""The YAML file that a command was given: its text, its spec, and the lines that errors name."""

from __future__ import annotations

import difflib
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from nbtune.errors import DataError, SpecError
from nbtune.spec import RunSpec, from_yaml, parse_value, placing
from nbtune.spec.yaml_loader import LARGEST
from nbtune.store.folder import as_meant, spec_to_run

_READ: WeakKeyDictionary[Any, str] = WeakKeyDictionary()


def spec_of(path: Path, set_: list[str] | None, body: Mapping[str, Any] | None = None) -> RunSpec:
    """Return the spec of a file, with what `--set` says, and the fields of `body`.

    Raises:
        TrainError: it is a run folder's, and wants to run code of its model, which this user has not allowed there.
    """
    overrides = dict(body or {})
    for entry in set_ or []:
        key, equals, value = entry.partition("=")
        if not equals or not key:
            raise SpecError(f"`--set {entry}` has no value", fix="write `--set key=value`")
        overrides[key.strip()] = parse_value(value)
    spec = from_yaml(text_of(path), overrides, name=_called(path))
    if not (path.name == "spec.yaml" and (path.parent / "environment.json").exists()):
        return spec
    if spec.trust_remote_code and "trust_remote_code" not in overrides:
        spec_to_run(path.parent)  # anybody may have written it: it is not this user's word
    return as_meant(spec, path.parent)


@contextmanager
def placed(path: Path) -> Iterator[None]:
    """Name, in errors about a key, its line in the file; of data that is not here, whether it lies beside the file."""
    try:
        with placing(text_of(path), name=_called(path)):
            yield
    except DataError as error:
        name = re.search(r"there is no \w+(?:, \w+ or \w+)? called `([^`]+)`", error.cause)
        if name is None or not (path.parent / name[1]).exists():
            raise
        beside = f"paths begin where nbtune is called, not beside {path.name}: write `{path.parent / name[1]}`"
        raise DataError(error.cause, place=error.place, fix=beside) from error


def _called(path: Path) -> str:
    return "stdin" if str(path) == "-" else path.name


def text_of(path: Path) -> str:
    """Return the text of a file that a spec was asked from.

    Raises:
        SpecError: there is none, or it is no text.
    """
    if str(path) == "-":
        return _stdin()
    if path.is_dir():
        raise SpecError(f"{str(path)!r} is a folder", fix="give the path of a YAML file in it")
    try:
        with path.open(encoding="utf-8") as file:  # a pipe may be one: `nbtune train <(…)`
            return file.read(LARGEST + 1)  # the reader of YAML refuses what is longer
    except FileNotFoundError:
        raise SpecError(f"there is no file {str(path)!r}", fix=_another(path)) from None
    except UnicodeDecodeError:
        raise SpecError(f"{str(path)!r} is not written in UTF-8", fix="save it as UTF-8") from None
    except OSError as error:
        cause = f"{str(path)!r} cannot be read: {error.strerror or error}"
        raise SpecError(cause, fix="give the path of a YAML file") from None


def _stdin() -> str:
    """Return what came on stdin, which can be read once."""
    if sys.stdin not in _READ:
        _READ[sys.stdin] = sys.stdin.read(LARGEST + 1)
    return _READ[sys.stdin]


def _another(path: Path) -> str:
    """Return what may have been meant by a file that is not there: one beside it, or a run."""
    try:
        beside = sorted(file.name for file in path.parent.iterdir() if file.suffix in (".yaml", ".yml"))
    except OSError:
        return f"there is no folder {str(path.parent)!r} either: check the path"
    near = difflib.get_close_matches(path.name, beside, n=1, cutoff=0.5)
    if near:
        return f"did you mean {str(path.with_name(near[0]))!r}?"
    return f"give the path of a YAML file, from {str(path.parent.absolute())!r} on"
