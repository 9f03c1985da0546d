"""Keys by which llama.cpp computes otherwise, and which transformers has nothing for: a file that says something by one
is refused. (What llama.cpp reads of each architecture: `tests/support/gguf_keys.py` asks it.)"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nbtune.models.gguf_file.header import refused
from nbtune.models.gguf_file.keys import Keys
from nbtune.untrusted import shortened

SECTIONS = "rope.dimension_sections"
_SLIDING_BASE, GROUPS = "rope.freq_base_swa", "expert_group_count"
UNREAD: dict[str, tuple[str, ...]] = {
    "afmoe": (_SLIDING_BASE,),
    "cohere2": (_SLIDING_BASE,),
    "gemma2": (_SLIDING_BASE,),
    "glm4": (SECTIONS,),
    "glm4moe": (SECTIONS,),
    "gpt-oss": (_SLIDING_BASE,),
    "lfm2": ("attention.sliding_window",),
    "lfm2moe": ("attention.sliding_window",),
    "llama4": (_SLIDING_BASE,),
    "granite": ("deepstack_mapping",),
}


def refuse_unread(keys: Keys) -> None:
    """See that a file says nothing by a key that is not read.

    Raises:
        SpecError: it does.
    """
    for key in UNREAD.get(keys.arch, ()):
        said = keys.header.metadata.get(f"{keys.arch}.{key}")
        if key == _SLIDING_BASE and said == keys.header.metadata.get(f"{keys.arch}.rope.freq_base"):
            continue
        if _something(said):
            shown = shortened(repr(said), 60)
            raise refused(keys.header.place, f"its {keys.arch}.{key} is {shown}, which is not read", "Name its Hub id.")


def refuse_groups(keys: Keys, settings: Mapping[str, Any]) -> None:
    """See that experts are in groups only where a config can say so.

    Raises:
        SpecError: llama.cpp takes a token's experts of some groups, and transformers of all.
    """
    if (many := keys.whole(GROUPS, 0)) > 1 and "n_group" not in settings:
        raise refused(keys.header.place, f"its {keys.arch}.{GROUPS} is {many}, which is not read", "Name its Hub id.")


def _something(said: Any) -> bool:
    return any(map(_something, said)) if isinstance(said, list) else bool(said)
