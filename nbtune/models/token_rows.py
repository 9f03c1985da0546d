"""The folder of a model that was given new tokens (`nbtune.models.new_tokens` makes it): what it says, and its weights,
which are written when somebody wants their numbers."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nbtune.atomic_io import hidden, replace_file
from nbtune.disk import cache_folder, disk_errors
from nbtune.errors import DataError
from nbtune.untrusted import BadFile, load

if TYPE_CHECKING:
    import torch

FILE = "new_tokens.json"  # what marks such a folder
INDEX = ".safetensors.index.json"


def about_of(folder: Path) -> dict[str, Any] | None:
    """Return what such a folder says of itself; None: it is none."""
    if folder.parent != cache_folder() / "tokens":
        return None  # somebody else's may say anything
    try:
        return load(folder / FILE, number_below=1 << 40)
    except (OSError, BadFile, ValueError):
        return None


def base_of(model: str) -> str | None:
    """Return the model that such a folder is made of; None: it is none."""
    about = about_of(Path(model)) if model else None
    return None if about is None else str(about["base"])


def rows_of(model: str) -> int | None:
    """Return how many rows the embeddings of such a folder's model have; None: it is none."""
    about = about_of(Path(model)) if model else None
    return None if about is None else int(about["rows"])


def name_of(folder: Path) -> str:
    """Return what people call the model that such a folder is made of; "" where it is none."""
    return str((about_of(folder) or {}).get("name", ""))


def headers(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the headers of the weights that such a folder has, or will have; {}: it is none."""
    return dict((about_of(folder) or {}).get("headers", {}))


def filled(folder: Path, resolve: Callable[..., Path]) -> Path:
    """Return a folder; of such one the weights are written, unless they are there and the base's files as they were.

    Args:
        resolve: `nbtune.models.resolve`.

    Raises:
        SpecError, HubError: the base is gone.
        DataError: the disk has no room for them.
    """
    about = about_of(folder)
    if about is None:
        return folder
    base = resolve(about["base"], weights=True)
    files = sorted(base.glob("*.safetensors"))
    state = json.dumps([[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in files])
    done = folder / "weights.txt"
    if done.is_file() and done.read_text(encoding="utf-8") == state:
        return folder
    with disk_errors(DataError, place=str(folder)):
        for path in [*files, *base.glob(f"*{INDEX}")]:
            _take(path, folder / path.name, about)
        with replace_file(done) as beside:
            beside.write_text(state, encoding="utf-8")
    return folder


def _take(path: Path, target: Path, about: dict[str, Any]) -> None:
    """Write a file of the base's with more rows, or a link to it where it has none of them."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    if path.suffix == ".safetensors":
        with safe_open(path, framework="pt") as opened:
            names = list(opened.keys())
            if set(names) & set(about["grown"]):
                tensors = {name: opened.get_tensor(name) for name in names}
                for name in set(names) & set(about["grown"]):
                    tensors[name] = _with_rows(tensors[name], about)
                with replace_file(target, shared=True) as beside:
                    save_file(tensors, beside, metadata=opened.metadata() or {"format": "pt"})
                return
    try:
        beside = hidden(target, "tmp", shared=True)
        beside.symlink_to(path.resolve())
        beside.replace(target)
    except OSError:  # a system without links
        with replace_file(target, shared=True) as beside:
            shutil.copyfile(path, beside)


def _with_rows(weight: "torch.Tensor", about: dict[str, Any]) -> "torch.Tensor":
    """Return a weight with the rows of new tokens, and of the numbers that no token has, at the mean of the others."""
    import torch

    mean = weight[: about["known"]].to(torch.float32).mean(0).to(weight.dtype)
    grown = torch.empty(about["rows"], *weight.shape[1:], dtype=weight.dtype)
    kept = min(weight.shape[0], about["rows"])
    grown[:kept] = weight[:kept]
    grown[kept:] = mean
    grown[about["numbers"]] = mean
    return grown
