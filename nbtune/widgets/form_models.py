"""Models that the form offers: on this machine, or well known; how big each is, and whether it can be trained here."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from nbtune import hub_cache
from nbtune.errors import NbtuneError, PlanError
from nbtune.models.config_facts import ModelFacts, model_facts
from nbtune.models.gguf_file.found import facts_of_file, gguf_files
from nbtune.models.well_known import WELL_KNOWN
from nbtune.spec import RunSpec, from_mapping
from nbtune.widgets.sanitize import clean

TOY = "nbtune/tiny"
_LENGTH, _ROWS = 512, 1000  # of the rows that a model is judged by, while it is not known which ones there will be
_LICENCE = re.compile(r"^license:\s*([\w.-]{1,40})\s*$", re.MULTILINE)
_CARD = 20_000  # characters of a model card in which its licence is looked for


@dataclass(frozen=True)
class Offer:
    """A model of the gallery.

    Attributes:
        origin: `toy` is the embedded one, `here` is on this machine, `known` is downloaded when a run needs it.
        facts: None where they are read from the files in `place`.
    """

    name: str
    origin: Literal["toy", "here", "known"]
    licence: str = ""
    gated: bool = False
    facts: ModelFacts | None = None
    place: str = ""


def offers() -> list[Offer]:
    """Return the models of the caches, GGUF files, the well-known ones, and the embedded one, which is a toy."""
    well_known = {model.name: model for model in WELL_KNOWN}
    here = []
    for name in hub_cache.cached("model"):
        folder, more = _folder(name), well_known.pop(name, None)
        if folder is not None:
            licence = more.licence if more is not None else _licence(folder)
            here.append(Offer(name, "here", licence, place=str(folder)))
    others = [Offer(model.name, "known", model.licence, model.gated, model.facts) for model in well_known.values()]
    files = [Offer(name, "here", place=name) for name in gguf_files()]
    return [Offer(TOY, "toy", "apache-2.0", place=TOY), *here, *files, *others]


def machines() -> list[dict[str, str]]:
    """Return name and title of each machine that models can be judged for without being there."""
    from nbtune import device

    return [{"name": name, "title": known.title} for name, known in device.MACHINES.items()]


def judged(offered: list[Offer], machine: str = "") -> Iterator[dict[str, Any]]:
    """Yield of each model: name, origin, licence, gated, parameters, bytes of its weights, and how it fits: ``16bit``,
    ``4bit``, ``streamed`` (from RAM, where 4 bits would not fit either) or ``no``, with peak bytes of a run, bytes that
    are there, and how its weights are kept.

    Models whose facts are not on this machine are left out.

    Args:
        offered: of `offers`.
        machine: one that is not here, by name; unset: this one.
    """
    from nbtune import device
    from nbtune.data.prepare.stats import DataFacts, histogram
    from nbtune.planner import make_plan

    where = device.machine(machine) if machine else device.describe(device.pick())
    rows = DataFacts(
        rows=_ROWS,
        tokens_total=_ROWS * _LENGTH,
        trained_tokens=_ROWS * _LENGTH // 2,
        longest=_LENGTH,
        lengths=histogram([_LENGTH] * _ROWS),
    )
    for offer in offered:
        try:
            by_file = facts_of_file if offer.place.lower().endswith(".gguf") else model_facts
            facts = offer.facts or by_file(offer.place)
        except (NbtuneError, OSError, KeyError, ValueError):  # half downloaded, or no language model: not for this list
            continue
        found: dict[str, Any] = {"name": clean(offer.name, 200), "origin": offer.origin, "licence": offer.licence}
        found |= {"gated": offer.gated, "bytes": facts.weights_bytes, "parameters": facts.parameters, "fits": "no"}
        # first without the host's memory, in which weights would wait: what fits so, need not travel
        for kind, fits, place in (
            ("lora", "16bit", replace(where, ram=0)),
            ("qlora", "4bit", replace(where, ram=0)),
            ("lora", "streamed", where),
            ("qlora", "streamed", where),
        ):
            try:
                plan = make_plan(_spec(offer.name, kind), facts, rows, place)
            except PlanError:
                continue
            found |= {"peak": plan.peak_bytes, "available": plan.available_bytes, "weights": plan.placed()}
            found |= {"fits": fits, "seconds": plan.seconds / max(1, plan.total_steps)}
            break
        yield found


def _folder(name: str) -> Path | None:
    folders = (
        hub_cache.snapshot(cache, "model", name) for cache in (hub_cache.user_cache(), *hub_cache.shared_caches())
    )
    return next((folder for folder in folders if folder is not None), None)


def _licence(folder: Path) -> str:
    """Return what a downloaded model card says at its head."""
    try:
        with (folder / "README.md").open(encoding="utf-8", errors="replace") as file:
            found = _LICENCE.search(file.read(_CARD))
    except OSError:
        return ""
    return found[1] if found else ""


def _spec(name: str, kind: str) -> RunSpec:
    return from_mapping({"model": name, "data": "rows", "adapter": {"type": kind}})
