"""Which of a file's layers see a window of the text, as llama.cpp reads it."""

from __future__ import annotations

from nbtune.models.gguf_file.header import refused
from nbtune.models.gguf_file.keys import Keys

FULL, SLIDING = "full_attention", "sliding_attention"
_PATTERN = "attention.sliding_window_pattern"


def window(keys: Keys, unsaid: int | None = None) -> int:
    """Return how many tokens a window has.

    Raises:
        SpecError: none, or it is not said where it must be.
    """
    size = keys.whole("attention.sliding_window", unsaid)
    if size < 1:
        raise refused(keys.header.place, f"its {keys.arch}.attention.sliding_window is {size} tokens")
    return size


def kinds(keys: Keys, every: int) -> list[str]:
    """Return the kind of each layer: of `every` layers the last sees all of the text, where the file says no other.

    A file says so by a number, or by a list with a value of each layer, which sees a window where that is not 0.

    Raises:
        SpecError: it says something else.
    """
    said = keys.header.metadata.get(f"{keys.arch}.{_PATTERN}")
    if not isinstance(said, list):
        return usual(keys.layers, keys.whole(_PATTERN, every))
    if len(said) < keys.layers or not all(isinstance(one, int) for one in said):
        raise refused(keys.header.place, f"its {keys.arch}.{_PATTERN} says nothing of some of its {keys.layers} layers")
    return [SLIDING if one else FULL for one in said[: keys.layers]]


def usual(layers: int, every: int) -> list[str]:
    """Return the kinds of layers of which every so manieth sees all of the text; 0: none does."""
    return [SLIDING if not every or i % every < every - 1 else FULL for i in range(layers)]
