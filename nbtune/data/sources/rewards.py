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
from nbtune.spec.text_metrics import TEXT_METRICS, functions_of, missing_library


def with_rewards(sources: Sequence[Source], spec: RunSpec, variables: Mapping[str, Any]) -> list[Source]:
    """Return the sources, the first with the functions that a spec's `rewards` or `eval.metrics` name.

    >>> nbtune.data.with_rewards([], nbtune.RunSpec(data="rows"), {})  # sft wants none
    []

    Raises:
        SpecError: the method wants rewards and none is named, one of them is no function, or a metric's library is
            missing.
    """
    if not METHODS[spec.method].online:
        return _with_metrics(sources, spec, variables)
    if not spec.rewards.functions and not spec.rewards.models:
        raise SpecError(
            f"method `{spec.method}` learns from rewards, and none is named",
            place="rewards",
            fix="define `def good(completions, **columns): …`, which returns a number each, and write `rewards: good`; "
            "or name a reward model's run: `rewards: {models: [judge]}`",
        )
    if importlib.util.find_spec("trl") is None:
        raise SpecError(
            f"method `{spec.method}` is run by TRL, which is not installed here",
            place="method",
            fix="`pip install nbtune[rl]`, which brings it",
        )
    return _judged(sources, spec.rewards.functions, variables, "rewards")


def _with_metrics(sources: Sequence[Source], spec: RunSpec, variables: Mapping[str, Any]) -> list[Source]:
    if missing := missing_library(spec.eval.metrics):
        raise SpecError(
            f"`{missing[0]}` is computed by {missing[1]}, which is not installed here",
            place="eval.metrics",
            fix="`pip install nbtune[metrics]`, which brings it, or drop the metric",
        )
    return _judged(sources, functions_of(spec.eval.metrics), variables, "eval.metrics")


def _judged(sources: Sequence[Source], names: Sequence[str], variables: Mapping[str, Any], place: str) -> list[Source]:
    found = []
    for name in names:
        try:
            found.append((name, row_function.find(name, variables)))
        except DataError as error:
            known = f"{error.fix}; nbtune's own are {', '.join(TEXT_METRICS)}" if place != "rewards" else error.fix
            raise SpecError(error.cause, place=place, fix=known) from error
    if not found:
        return list(sources)
    first, *others = sources
    return [replace(first, rewards=tuple(found)), *others]
