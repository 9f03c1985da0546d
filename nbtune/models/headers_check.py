"""Whether a model's weights will all be there, told by the headers of its files alone: before anything is downloaded.

transformers' own renaming (of prefixes, and of experts into stacks) is asked where each weight of the files goes. What
comes of it is judged by `check_loaded`, as it is when the model is really loaded. Where transformers does not tell, or
a conversion makes several weights of one, nothing is claimed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nbtune.models.abilities import Claim
from nbtune.models.stored_names import Loading
from nbtune.models.weight_checks import check_loaded, is_quantised

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def weights_by_headers(whole: PreTrainedModel, headers: Mapping[str, Any], place: Path, model: str) -> Claim:
    """Compare the weights that a model wants with those that its files hold.

    Args:
        whole: the model, outlined without numbers.
        headers: the entries of its safetensors files, by name.
        place: its folder.
        model: what people call it.

    Raises:
        SpecError: weights are missing, have other shapes, or are left over, as `check_loaded` says it.
    """
    if not headers:
        return Claim(words="the headers of its weight files could not be read")
    if is_quantised(place):
        return Claim(words="its weights are stored quantised")
    try:
        info = _told(whole, headers)
    except Exception as error:  # noqa: BLE001 — transformers' inner names change: then loading says it
        return Claim(words=f"transformers does not tell before they are loaded ({type(error).__name__})")
    check_loaded(whole, info, place, model)
    return Claim(holds=True, words=f"{len(headers):,} in the files, by their headers")


def _told(whole: Any, headers: Mapping[str, Any]) -> dict[str, Any]:
    """Return what loading would tell of missing, mismatched and unexpected weights."""
    loading = Loading(whole)
    wanted = loading.wanted
    present: dict[str, list[int] | None] = {}
    left: set[str] = set()
    for stored, entry in headers.items():
        name, converted = loading.name_of(stored)
        if name in wanted:
            present[name] = None if converted else list(entry["shape"])
        else:
            left.add(name)
    shapes = [(n, s, wanted[n].shape) for n, s in present.items() if s is not None and s != list(wanted[n].shape)]
    missing = _without_ignored(
        set(wanted) - set(present) - _tied(whole, present), whole._keys_to_ignore_on_load_missing
    )
    several = [
        _ending(target) for one in loading.converters if len(one.target_patterns) > 1 for target in one.target_patterns
    ]
    return {
        "missing_keys": {name for name in missing if not any(f".{end}." in f".{name}." for end in several)},
        "mismatched_keys": shapes,
        "unexpected_keys": _without_ignored(left, whole._keys_to_ignore_on_load_unexpected),
    }


def _tied(whole: Any, stored: Mapping[str, Any]) -> set[str]:
    """Return weights that are others of the files: a head that is the embedding."""
    return {name for name, source in whole.all_tied_weights_keys.items() if source in stored}


def _without_ignored(names: set[str], patterns: Any) -> set[str]:
    return {name for name in names if not any(re.search(pattern, name) for pattern in patterns or ())}


def _ending(target: str) -> str:
    """Return the plain end of a pattern: whole words of a weight's name, or of its module's."""
    return re.split(r"[\\*$^()\[\]]", target.rstrip("$"))[-1].strip(".")
