"""What the cards of others say: licence and languages of a base or of data. Nothing is fetched for it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nbtune.errors import ExportError
from nbtune.export.source import ExportSource, is_on_hub, read_json
from nbtune.models.embedded import NAME as EMBEDDED
from nbtune.spec.yaml_loader import head_of_card, load

_CODE = re.compile(r"[A-Za-z0-9-]{2,12}$")


@dataclass(frozen=True)
class Stated:
    """What a card's head says.

    Args:
        licence: in huggingface_hub's words: ``license``, ``license_name``, ``license_link``.
        languages: codes, such as ``en``.
    """

    licence: Mapping[str, str] = field(default_factory=dict)
    languages: list[str] = field(default_factory=list)


def stated_of_base(source: ExportSource) -> Stated:
    """Return what is said of a source's base: by its card (beside the weights, or in the Hub's cache), or config."""
    if source.base_id == EMBEDDED:
        return Stated({"license": "apache-2.0"}, ["en"])
    said = stated_in(_base_card(source))
    if said.licence:
        return said
    try:
        return Stated(_licence(read_json(source.base / "config.json")), said.languages)
    except ExportError:
        return said


def stated_of_data(name: str) -> Stated:
    """Return what the card of a data set of the Hub says, where it lies in the Hub's cache."""
    return stated_in(_cached_card(name, "dataset"))


def stated_in(card: Path | None) -> Stated:
    """Return what a card (README.md of a model or data set) says; nothing where there is none that can be read."""
    head = _head(card)
    said = head.get("language")
    codes = said if isinstance(said, list) else [said]
    languages = [code for code in codes if isinstance(code, str) and _CODE.match(code)]
    return Stated(_licence(head), list(dict.fromkeys(languages)))


def _base_card(source: ExportSource) -> Path | None:
    given = Path(source.base_id).expanduser() if source.base_id else source.base  # the base of a full fine-tune
    for folder in (source.base, given):
        if (folder / "README.md").is_file():
            return folder / "README.md"
    return _cached_card(source.base_id, "model") if is_on_hub(source) else None


def _cached_card(name: str, repo_type: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    path = try_to_load_from_cache(name, "README.md", repo_type=repo_type)
    return Path(path) if isinstance(path, str) else None


def _head(card: Path | None) -> dict[str, Any]:
    """Return the head of somebody's card; {} where there is none, or none that can be read."""
    try:
        stated = load(head_of_card(card)) if card is not None else None
    except (OSError, ValueError):
        return {}
    return stated if isinstance(stated, dict) else {}


def _licence(stated: Mapping[str, Any]) -> dict[str, str]:
    """Return what a card's head says of the licence, in huggingface_hub's words."""
    licence = {key: stated.get(key) for key in ("license", "license_name", "license_link")}
    words = {key: value for key, value in licence.items() if isinstance(value, str) and re.match(r"[\w.+:/-]+$", value)}
    if not words.get("license_link", "https:").startswith("https:"):  # a file of the other repository
        words.pop("license_link")
    return words if "license" in words else {}
