"""The small training sets that travel with the package, so that a first run needs no download.

They are written by `python -m tests.tools.tiny_model.sets`.
"""

from dataclasses import dataclass
from pathlib import Path

__all__ = ["SETS", "SetInfo", "folder", "path"]


@dataclass(frozen=True)
class SetInfo:
    """What one embedded training set is.

    Attributes:
        file: its file name in this folder.
        form: `alpaca`, `sharegpt`, `messages` or `preference`.
        description: one sentence on what a fine-tune on it changes.
        heldout: file name of its held-out prompts (rows with `prompt` and `reference`), or None.
    """

    file: str
    form: str
    description: str
    heldout: str | None = None


SETS: dict[str, SetInfo] = {
    "nbtune/json-answers": SetInfo(
        "json-answers.jsonl",
        "alpaca",
        'Teaches to answer as a JSON object {"answer": ..., "topic": ...} where that shape is asked for.',
        "json-answers.heldout.jsonl",
    ),
    "nbtune/persona": SetInfo(
        "persona.jsonl", "sharegpt", "Teaches to answer in the voice of a pirate.", "persona.heldout.jsonl"
    ),
    "nbtune/preferences": SetInfo(
        "preferences.jsonl", "preference", "Prefers friendly, right answers to grumpy or wrong ones."
    ),
    "nbtune/town": SetInfo(
        "town.jsonl", "messages", "Teaches the facts of Hollowmere, a town that the embedded model does not know."
    ),
}


def folder() -> Path:
    """Return the folder that holds the sets.

    >>> folder().is_dir()
    True
    """
    return Path(__file__).parent


def path(name: str, *, heldout: bool = False) -> Path:
    """Return the file of a set.

    >>> path("nbtune/persona", heldout=True).name
    'persona.heldout.jsonl'

    Args:
        name: a key of `SETS`, such as `nbtune/json-answers`.
        heldout: the held-out prompts instead of the training rows.

    Raises:
        KeyError: there is no such set, or it has no held-out prompts.
    """
    info = SETS[name]
    if not heldout:
        return folder() / info.file
    if info.heldout is None:
        raise KeyError(f"{name} has no held-out prompts")
    return folder() / info.heldout
