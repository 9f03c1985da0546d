"""Functions that judge answers, named in a spec as functions of the data are; they travel with the first source.

So they are written into the run's folder beside the rows, and run under the same consent.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from nbtune.data.sources import row_function
from nbtune.data.sources.rows import Source
from nbtune.errors import DataError, SpecError
from nbtune.methods import METHODS
from nbtune.spec import RunSpec


def with_rewards(sources: Sequence[Source], spec: RunSpec, variables: Mapping[str, Any]) -> list[Source]:
    """Return the sources, the first with the functions that a spec's `rewards` name.

    >>> nbtune.data.with_rewards([], nbtune.RunSpec(data="rows"), {})  # sft wants none
    []

    Raises:
        SpecError: the method wants rewards and none is named, or one of them is no function.
    """
    if not METHODS[spec.method].online:
        return list(sources)
    if not spec.rewards.functions:
        raise SpecError(
            f"method `{spec.method}` learns from rewards, and none is named",
            place="rewards",
            fix="define `def good(completions, **columns): …`, which returns a number each, and write `rewards: good`",
        )
    if importlib.util.find_spec("trl") is None:
        raise SpecError(
            f"method `{spec.method}` is run by TRL, which is not installed here",
            place="method",
            fix="`pip install nbtune[rl]`, which brings it",
        )
    found = []
    for name in spec.rewards.functions:
        try:
            found.append((name, row_function.find(name, variables)))
        except DataError as error:
            raise SpecError(error.cause, place="rewards", fix=error.fix) from error
    first, *others = sources
    return [replace(first, rewards=tuple(found)), *others]
