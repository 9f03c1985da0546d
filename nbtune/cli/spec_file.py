"""The YAML file that a command was given: its text, its spec, and the lines that errors name."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

from nbtune.errors import SpecError
from nbtune.spec import RunSpec, from_yaml, parse_value, placing

__all__ = ["placed", "spec_of", "text_of"]


def spec_of(path: Path, set_: list[str] | None) -> RunSpec:
    """The spec of a file, with what `--set` says."""
    overrides = {}
    for entry in set_ or []:
        key, equals, value = entry.partition("=")
        if not equals or not key:
            raise SpecError(f"`--set {entry}` has no value", fix="write `--set key=value`")
        overrides[key.strip()] = parse_value(value)
    return from_yaml(text_of(path), overrides, name=path.name)


def placed(path: Path) -> AbstractContextManager[None]:
    """Errors about a key name its line in the file."""
    return placing(text_of(path), name=path.name)


def text_of(path: Path) -> str:
    """The text of a file that a spec was asked from."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise SpecError(f"there is no file {str(path)!r}", fix="give the path of a YAML file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"{str(path)!r} cannot be read: {error}", fix="give the path of a YAML file") from None
