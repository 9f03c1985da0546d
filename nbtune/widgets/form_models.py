"""Models that the form offers: those on this machine, how big each is, and whether it can be trained here."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nbtune import hub_cache
from nbtune.errors import NbtuneError, PlanError
from nbtune.spec import RunSpec, from_mapping

_LENGTH, _ROWS = 512, 1000  # of the rows that a model is judged by, while it is not known which ones there will be


def names() -> list[str]:
    """Return the embedded model and those of the caches."""
    return ["nbtune/tiny", *hub_cache.cached("model")]


def judge(offered: list[str]) -> Iterator[dict[str, Any]]:
    """Yield of each model: name, bytes of its weights, peak bytes of a LoRA run, bytes that are there, how its weights
    are kept; ``fits`` False where none of the ways fits. Models whose facts are not on this machine are left out."""
    from nbtune import device, models
    from nbtune.data.prepare.stats import DataFacts, histogram
    from nbtune.planner import make_plan

    where = device.describe(device.pick())
    rows = DataFacts(
        rows=_ROWS,
        tokens_total=_ROWS * _LENGTH,
        trained_tokens=_ROWS * _LENGTH // 2,
        longest=_LENGTH,
        lengths=histogram([_LENGTH] * _ROWS),
    )
    for name in offered:
        place = name if name == "nbtune/tiny" else _here(name)
        if place is None:
            continue  # the Hub is not asked about what nobody has chosen yet
        try:
            facts = models.model_facts(str(place))
        except (NbtuneError, OSError, KeyError, ValueError):  # half downloaded, or no language model: not for this list
            continue
        found: dict[str, Any] = {"name": name, "bytes": facts.weights_bytes}
        for kind in ("lora", "qlora"):
            try:
                plan = make_plan(_spec(name, kind), facts, rows, where)
            except PlanError:
                continue
            found |= {"peak": plan.peak_bytes, "available": plan.available_bytes, "weights": plan.placed()}
            break
        yield {**found, "fits": "peak" in found}


def _here(name: str) -> Path | None:
    folders = (
        hub_cache.snapshot(cache, "model", name) for cache in (hub_cache.user_cache(), *hub_cache.shared_caches())
    )
    return next((folder for folder in folders if folder is not None), None)


def _spec(name: str, kind: str) -> RunSpec:
    return from_mapping({"model": name, "data": "rows", "adapter": {"type": kind}})
