"""What goes through a model once, where rows have it in common or come again: prompts, a reference's answers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nbtune.methods import METHODS, Method

if TYPE_CHECKING:
    from nbtune.data.prepare.stats import DataFacts
    from nbtune.models.abilities import Abilities
    from nbtune.spec import RunSpec


def said_of_once(method: Method, abilities: Abilities, again: bool, *, parted: bool) -> list[str]:
    """Return what a method of whole answers need not compute twice.

    Args:
        again: rows come more than once, to a process that has seen them.
    """
    said = []
    if _shares(method, abilities) and not parted:
        said.append("what both answers of a pair begin with goes through the model once")
    if method.reference and again:
        said.append("what the reference says of a row is asked once: later epochs and evaluations do without its pass")
    return said


def _shares(method: Method, abilities: Abilities) -> bool:
    """Return whether what both answers of a pair begin with goes through the model once."""
    return method.pairwise and not method.head and bool(abilities.takes("layers") and abilities.takes("head"))


def once_of(spec: RunSpec, abilities: Abilities, data: DataFacts, tokens: int, *, packing: bool) -> int:
    """Return the tokens of a pair's places that go through layers; 0: all of them, or that is not known: weights may be
    parted, or packs hold several pairs."""
    alone = not packing or 2 * data.tokens_total > tokens * max(1, data.rows)
    shared = _shares(METHODS[spec.method], abilities) and spec.gpus == 1 and alone
    return min(data.pair, tokens) if shared else 0
