"""Numbers of a config that would be lists of a billion layers, or that its own other numbers contradict.

A config is a stranger's, and transformers makes lists of such numbers while it reads one; of what does not fit together
torch says something in the middle of a step, and transformers nothing before.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from nbtune.errors import SpecError
from nbtune.untrusted import SENTINEL, BadFile, load, shortened

EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
CHOSEN = ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k_experts")
_LAYERS = re.compile(r"(?:^|_)(?:layers?|blocks|depth|layer_types|layers_block_type|block_types|codebooks)$")
_MOST_LAYERS, _MOST_EXPERTS = 512, 1 << 15  # above what any has: Doge has 16,384 experts


def refuse_odd_config(folder: Path, model: str) -> None:
    """Refuse a model whose config.json has numbers that no model has; see `refuse_odd_numbers`."""
    try:
        config = load(folder / "config.json", number_below=SENTINEL)
    except (OSError, BadFile):
        return  # whoever reads it says so
    refuse_odd_numbers(config, shortened(model))


def refuse_odd_numbers(config: Mapping[str, Any], place: str) -> None:
    """Refuse a config whose numbers no model has.

    Args:
        config: as its file has it.
        place: of the file, for the error.

    Raises:
        SpecError: it tells of too many layers or experts, or of more experts or groups chosen than there are.
    """
    for part in _parts(config):
        for name, value in part.items():
            most = _MOST_EXPERTS if name in EXPERTS else _MOST_LAYERS
            if name not in EXPERTS and (name.startswith("max_") or not _LAYERS.search(name)):
                continue
            if (count := _count(value)) > most:
                raise _refused(f"{shortened(name, 40)} is {count:,}, and no model has more than {most:,}", place)
        _check_chosen(part, place)


def _parts(config: Mapping[str, Any], depth: int = 4) -> Iterator[Mapping[str, Any]]:
    """Yield a config and those within it, as of what sees and what speaks."""
    yield config
    for value in config.values() if depth else ():
        if isinstance(value, Mapping):
            yield from _parts(value, depth - 1)


def _count(value: Any) -> int:
    if isinstance(value, list):
        return len(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


def _check_chosen(part: Mapping[str, Any], place: str) -> None:
    """See that no more is chosen of than is there."""
    first = {names: next((n for n in names if part.get(n) is not None), "") for names in (CHOSEN, EXPERTS)}
    pairs = [(first[CHOSEN], first[EXPERTS]), ("topk_group", "n_group")]
    for chosen, of in pairs:
        few, many = (_whole(part.get(name)) for name in (chosen, of))
        if few is not None and many and few > many:
            raise _refused(f"{chosen} is {few:,}, and {of} {many:,}: more than there are", place)
    experts, groups = _whole(part.get(first[EXPERTS])), _whole(part.get("n_group"))
    if experts and groups and experts % groups:
        raise _refused(f"its {experts:,} experts ({first[EXPERTS]}) cannot be {groups:,} groups (n_group)", place)


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _refused(cause: str, place: str) -> SpecError:
    return SpecError(cause, place=place, fix="Mend its config, or download the model again.")
