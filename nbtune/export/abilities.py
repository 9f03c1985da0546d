"""What of a trained model will leave the house: whether its adapter merges, and whether there will be a GGUF file.

Asked before anything is trained, of the headers of the base's files: by the very code that exports, as far as it goes
without numbers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nbtune.errors import ExportError
from nbtune.export.gguf.families import family_of
from nbtune.export.gguf.hf_config import Config, Unwritten
from nbtune.export.gguf.vocabulary import vocabulary_of
from nbtune.export.merge import HEAD, embedding_name, outline_of
from nbtune.export.missing_weights import not_in_base
from nbtune.export.source import ExportSource, read_json, refuse_quantised
from nbtune.export.whole_base import left_to_its_class
from nbtune.models.abilities import Claim
from nbtune.models.stored_names import pieces_of

if TYPE_CHECKING:
    from nbtune.spec import AdapterSpec

NO_SCORES = "GGUF has no place for a head of scores: export it merged, for transformers"
_FLOATS = ("F64", "F32", "F16", "BF16")
_UNREAD = "the headers of its weight files could not be read"


def can_be_merged(place: Path, headers: Mapping[str, Any], adapter: AdapterSpec, targets: Sequence[str]) -> Claim:
    """Return whether what is trained can be added to the base's weights.

    Args:
        place: the base's folder.
        headers: the entries of its safetensors files, by name.
        adapter: what is trained.
        targets: the names of the weights that it is put onto.
    """
    if adapter.type == "full":
        return Claim(holds=True, words="every weight is trained: nothing is left to merge")
    if not headers or not targets:
        return Claim(words=_UNREAD if targets else "what the adapter is put onto is known once it is loaded")
    try:
        refuse_quantised(read_json(place / "config.json"), str(place))
    except ExportError as error:
        return Claim(holds=False, words=error.cause)
    base = outline_of(place) if (missing := _missing(targets, headers)) else None
    if base is not None:
        stored = pieces_of(base, headers)
        missing = [name for name in missing if not stored.get(name)]
    if missing:
        return Claim(holds=False, words=not_in_base(missing, base))
    return Claim(holds=True, words=f"{len(targets)} weights, all of which the base's files hold")


def _missing(targets: Sequence[str], headers: Mapping[str, Any]) -> list[str]:
    return [name for name in targets if not _is_there(name, headers)]


def _is_there(name: str, headers: Mapping[str, Any]) -> bool:
    return name in headers or (name == HEAD and embedding_name(headers) is not None)  # tied: it is written apart


def can_be_written_as_gguf(place: Path, headers: Mapping[str, Any], tokenizer: Any, merging: Claim) -> Claim:
    """Return whether llama.cpp has a place for the merged model's config, weights and tokenizer.

    Args:
        place, headers: as of `can_be_merged`.
        tokenizer: the model's.
        merging: what `can_be_merged` found.
    """
    if merging.holds is False:
        return Claim(holds=False, words="it is made of the merged model")
    try:
        raw = read_json(place / "config.json")
        config = Config(raw, str(place / "config.json"), left_to_its_class(place))
        family = family_of(config)
        if not headers:
            return Claim(words=_UNREAD)
        model = _Headers(ExportSource(place), headers, raw)
        if model.embedding is None:
            return Claim(holds=False, words="the model has no token embedding")
        family.tensors(config, model)  # type: ignore[arg-type]
        family.metadata(config, model, Unwritten())  # type: ignore[arg-type]
        vocabulary_of(tokenizer, model.shape(model.embedding)[0], str(place))
    except ExportError as error:
        return Claim(holds=False, words=error.cause)
    except Exception as error:  # noqa: BLE001 — a config or a tokenizer may be anybody's: nothing is claimed then
        return Claim(words=f"it could not be tried ({type(error).__name__}: {' '.join(str(error).split())[:120]})")
    return Claim(holds=True, words="; ".join((f"as llama.cpp's {family.arch!r}", *family.notes(config))))


@dataclass
class _Headers:
    """What a family asks of a `MergedModel` before it is given numbers."""

    source: ExportSource
    headers: Mapping[str, Any]
    config: dict[str, Any]
    names: list[str] = field(init=False)
    embedding: str | None = field(init=False)

    def __post_init__(self) -> None:
        self.names = [name for name, entry in self.headers.items() if entry["dtype"] in _FLOATS]
        self.embedding = embedding_name(self.headers)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.headers[name]["shape"])
