"""What a model's folder names elsewhere, which transformers would fetch: refused by name, before anything is loaded.

config.json          an attention kernel of the Hub (`attn_implementation: owner/name`), which is code; a kind of model
                     that is no word
the index            files of weights that lie outside of the folder
adapter_config.json  beside a config.json: its base's weights would be loaded in place of the folder's own
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from nbtune.errors import SpecError
from nbtune.untrusted import SENTINEL, BadFile, load, shortened

INDEX = "model.safetensors.index.json"
_KERNELS = ("attn_implementation", "_attn_implementation", "_attn_implementation_internal", "experts_implementation")
_KIND = re.compile(r"[\w.+-]{0,100}", re.ASCII)
_LARGEST = 1 << 30


def refuse_elsewhere(folder: Path) -> None:
    """Refuse a model's folder that names code, weights or a base somewhere else.

    Raises:
        SpecError: it does.
    """
    for part in _parts(_read(folder / "config.json")):
        kind = part.get("model_type")
        if isinstance(kind, str) and not _KIND.fullmatch(kind):
            raise SpecError(
                f"its model_type, {shortened(kind)!r}, is no kind of model",
                place=str(folder / "config.json"),
                fix="mend it, or download the model again",
            )
        for key in _KERNELS:
            if any("/" in word for word in _words(part.get(key))):
                raise SpecError(
                    f"`{key}` names a kernel of the Hub, which is code, and it is not run because a config says so",
                    place=str(folder / "config.json"),
                    fix="take the key out of it",
                )
    if (folder / "config.json").is_file() and (folder / "adapter_config.json").is_file():
        raise SpecError(
            "a model and an adapter are in one folder: the adapter's base would be loaded in the model's place",
            place=str(folder),
            fix="put adapter_config.json and the adapter's weights into another folder, and name that as `start_from`",
        )
    weights = _read(folder / INDEX).get("weight_map")
    for name in set(map(str, weights.values())) if isinstance(weights, Mapping) else ():
        refuse_outside_name(name, folder / INDEX)


def refuse_outside_name(name: str, index: Path) -> None:
    """Refuse a file of weights that lies elsewhere than in the folder of the index that names it.

    Raises:
        SpecError: it does.
    """
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or ":" in name:
        raise SpecError(
            f"the index names {shortened(name)!r}, which is no file of its folder",
            place=str(index),
            fix="download the model again",
        )


def _read(file: Path) -> dict[str, Any]:
    try:
        return load(file, largest=_LARGEST, number_below=SENTINEL)
    except (OSError, BadFile):
        return {}  # whoever reads it says so


def _parts(config: Mapping[str, Any], depth: int = 4) -> Iterator[Mapping[str, Any]]:
    yield config
    for value in config.values() if depth else ():
        if isinstance(value, Mapping):
            yield from _parts(value, depth - 1)


def _words(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from (word for word in value.values() if isinstance(word, str))
