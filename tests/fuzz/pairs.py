"""Runs of everything with everything else: every two levels of two factors come together in some run."""

from __future__ import annotations

import random
from functools import lru_cache
from itertools import combinations
from pathlib import Path

from nbtune.errors import NbtuneError
from nbtune.spec import from_mapping
from tests.fuzz.cases import Case
from tests.fuzz.pair_levels import FACTORS, FIRST, fields_of
from tests.fuzz.pair_trial import attempt, said_of_levels

Level = tuple[str, str]
Pair = frozenset[Level]
Row = dict[str, str]


@lru_cache(maxsize=100_000)
def _possible(levels: frozenset[Level]) -> bool:
    """Return whether a spec may say so; whether it can be done, a plan says."""
    fields = fields_of({**FIRST, **dict(levels)})
    for key in ("rows", "streamed"):
        fields.pop(key, None)
    try:
        from_mapping({**fields, "data": "rows"})
    except NbtuneError:
        return False
    return True


@lru_cache
def possible_pairs() -> tuple[Pair, ...]:
    """Return all pairs of levels that a spec may say together (of what needs a third one, with that one)."""
    levels = [[(factor, level) for level in FACTORS[factor]] for factor in FACTORS]
    found: list[Pair] = []
    for one, other in combinations(levels, 2):
        found += [pair for a in one for b in other if (pair := frozenset((a, b))) and _reachable(pair)]
    return tuple(found)


def _reachable(pair: Pair) -> bool:
    """Return whether the pair goes with some method, which most options of losses want."""
    factors = {factor for factor, _ in pair}
    if _possible(pair):
        return True
    if "method" in factors or "loss" not in factors:
        return False
    return any(_possible(pair | {("method", name)}) for name in FACTORS["method"])


def rows(seed: int) -> list[Row]:
    """Return rows of levels, one of each factor, in which all `possible_pairs` come; those that cover most first.

    Greedy: a pair that is not covered begins a row, and factor after factor takes the level that brings most new pairs
    among those that the spec allows beside what the row has; where none is new, the first one.
    """
    chance = random.Random(f"pairs {seed}")
    left = set(possible_pairs())
    found: list[Row] = []
    while left:
        begun = dict(chance.choice(sorted(map(sorted, left))))
        made = _filled(begun, left, chance)
        pairs = {frozenset(pair) for pair in combinations(made.items(), 2)}
        assert frozenset(begun.items()) in pairs
        left -= pairs
        found.append(made)
    return found


def _filled(begun: Row, left: set[Pair], chance: random.Random) -> Row:
    row = dict(begun)
    if not _possible(frozenset(row.items())):  # an option of a loss whose method is still to come
        names = [name for name in FACTORS["method"] if _possible(frozenset({**row, "method": name}.items()))]
        row["method"] = chance.choice(names)
    for factor in chance.sample(list(FACTORS), len(FACTORS)):
        if factor in row:
            continue
        by_gain = sorted(
            FACTORS[factor],
            key=lambda level: (_gain((factor, level), row, left), level == FIRST[factor], chance.random()),
            reverse=True,
        )
        row[factor] = next(level for level in by_gain if _possible(frozenset({**row, factor: level}.items())))
    return {factor: row[factor] for factor in FACTORS}


def _gain(level: Level, row: Row, left: set[Pair]) -> int:
    return sum(frozenset((level, has)) in left for has in row.items())


@lru_cache(maxsize=2)
def _array(seed: int) -> list[Row]:
    return rows(seed)


def make(chance: random.Random, folder: Path, number: int) -> Case:
    """Make the case of a row of the array by its number; after the last one another array begins."""
    again, at = divmod(number, len(_array(0)))
    array = _array(again)
    return of_row(array[at % len(array)], chance, folder)


def of_row(row: Row, chance: random.Random, folder: Path) -> Case:
    """Make the case of a row of levels."""
    return Case(lambda: attempt(row, chance, folder), said_of_levels(row))
