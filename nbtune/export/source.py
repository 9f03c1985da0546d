"""What is exported: a base model's folder, perhaps with an adapter on it."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nbtune.errors import ExportError
from nbtune.export.file_quality import Quality
from nbtune.models.heads import Head, names, no_class, read_head
from nbtune.spec.placement import PLAIN, Placement
from nbtune.untrusted import SENTINEL, BadFile, from_here, load

HUB_ID = re.compile(r"^[\w.-]+/[\w.-]+$")
_CACHED = re.compile(r"models--([\w.-]+)[\\/]snapshots[\\/]\w+$")

Progress = Callable[[int, int, str], None]
"""Called with (bytes done, bytes in all, what is being written)."""


@dataclass(frozen=True)
class ExportSource:
    """A model to take home.

    Args:
        base: folder of the base model (config.json, safetensors, tokenizer).
        adapter: folder of a peft adapter (adapter_config.json, adapter_model.safetensors), or None.
        name: what the result is called; files are named after it.
        base_id: how people know the base (a Hub id such as ``"Qwen/Qwen3-0.6B"`` or ``"nbtune/tiny"``).
        tokenizer: folder of the tokenizer; by default the adapter's where it has one, else the base's.
        weights: the base's weights as the adapter was trained on them. Into rounded ones (``nf4``, ``fp8``) it is
            merged, and not into the original 16-bit weights.
        method: what it was trained by, such as ``"sft"``.
    """

    base: Path
    adapter: Path | None = None
    name: str = "model"
    base_id: str = ""
    tokenizer: Path | None = None
    weights: Placement = PLAIN
    method: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "base", Path(self.base))
        if self.adapter is not None:
            object.__setattr__(self, "adapter", Path(self.adapter))
        if self.tokenizer is not None:
            object.__setattr__(self, "tokenizer", Path(self.tokenizer))

    @property
    def tokenizer_folder(self) -> Path:
        """The folder whose tokenizer and chat template are exported."""
        if self.tokenizer is not None:
            return self.tokenizer
        if self.adapter is not None and (self.adapter / "tokenizer_config.json").is_file():
            return self.adapter
        return self.base


@dataclass(frozen=True)
class ExportedFile:
    """A file or folder that was made: where, what, how big (bytes), in how many seconds, and what to know about it.

    `quality` is what was measured of a GGUF file afterwards, where it was.
    """

    path: Path
    type: str
    bytes: int
    seconds: float
    notes: tuple[str, ...] = field(default=())
    quality: Quality | None = None

    def __repr__(self) -> str:  # what a cell shows: a path of the machine does not belong into a notebook
        remarks = "".join(f"; {remark}" for remark in self.remarks)
        return f"<{self.type}: {from_here(self.path)}, {self.bytes / 2**20:,.1f} MiB{remarks}>"

    @property
    def remarks(self) -> list[str]:
        """What a person should know of it: what was measured, and the notes."""
        return [*([self.quality.words()] if self.quality else []), *self.notes]


def is_on_hub(source: ExportSource) -> bool:
    """Return whether the base is a model of the Hub, not a folder or the embedded one."""
    name = source.base_id
    a_path = name.startswith(("nbtune/", "./", "../", "~/")) or name.lower().endswith(".gguf")
    local = a_path or Path(name).exists() or Path(name) == source.base
    return bool(HUB_ID.match(name)) and not local


def base_name(source: ExportSource) -> str:
    """Return what people call the base: its Hub id, or the name of its folder; never where that lies."""
    if is_on_hub(source) or source.base_id == "nbtune/tiny":
        return source.base_id
    called = source.base_id or str(source.base.absolute())
    if cached := _CACHED.search(called):  # a folder of the Hub's cache is called by its commit
        return cached[1].replace("--", "/", 1)
    return last_part(called)


def must_write_text(source: ExportSource) -> None:
    """Refuse a reward model or a classifier where only text can come out.

    Raises:
        ExportError: it is one.
    """
    head = read_head(source.adapter or source.base)
    if head is not None:
        raise ExportError(
            f"{source.name!r} gives scores ({names(head.labels)}), and a GGUF file has no place for their head",
            fix=f"export it merged, which is loaded by transformers' AutoModel{head.suffix}.",
        )


def scores_of(source: ExportSource, config: Mapping[str, Any]) -> Head | None:
    """Return the head of scores of what is merged; None: it writes text.

    Args:
        config: the base's.

    Raises:
        ExportError: no class of transformers gives such scores.
    """
    head = read_head(source.adapter or source.base)
    if head is not None and not head.layer:
        kind = str(config.get("model_type"))
        raise ExportError(no_class(kind, head.of), fix="ask it in nbtune, or take a base of another family.")
    return head


def refuse_quantised(config: dict[str, Any], place: str) -> None:
    """Raise an `ExportError` for a base whose files hold rounded weights."""
    quant = config.get("quantization_config")
    if quant:
        method = quant.get("quant_method", "quantised")
        raise ExportError(
            f"the base is stored quantised ({method}), and there is no exact way to merge into that",
            place=place,
            fix="give the 16-bit base as model: (and quantise it in the spec), or export the adapter.",
        )


def last_part(path: str) -> str:
    """Return the name at the end of a path, of whatever system."""
    return re.split(r"[\\/]", path.rstrip("\\/"))[-1]


def read_json(path: Path) -> dict[str, Any]:
    """Return the object in a JSON file.

    Raises:
        ExportError: it is not there, or not whole.
    """
    try:
        return load(path, number_below=SENTINEL)
    except FileNotFoundError:
        raise ExportError("the file is not there", place=str(path), fix="see that the folder is whole.") from None
    except BadFile as error:
        raise ExportError(f"the file cannot be used: {error}", place=str(path), fix="fetch or save it again.") from None


def safe_name(name: str) -> str:
    """Return `name` as a part of a file's name: letters, digits, ``.``, ``_`` and ``-``; the owner of a Hub id is left
    out."""
    tail = name.rstrip("/").split("/")[-1]
    kept = "".join(c if c.isalnum() or c in "._-" else "-" for c in tail).strip(".-")
    return kept or "model"
