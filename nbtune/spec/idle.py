"""Keys of a spec that others of it overrule: refused where a run is asked for, and read where an older one has them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nbtune.errors import SpecError
from nbtune.spec.placement import FORMATS, PlacementWish

if TYPE_CHECKING:
    from nbtune.spec.model import RunSpec


def refuse_idle(spec: RunSpec) -> None:
    """Refuse what would change nothing.

    Raises:
        SpecError: numbers of a LoRA where every weight is trained, or a format of weights that the adapter's kind sets.
    """
    if idle := spec.adapter.idle:
        fix = "drop it; `unfrozen_parameters` names the weights that are trained, where not all are"
        raise SpecError(f"`{idle}` changes nothing of adapter `full`", place=f"adapter.{idle}", fix=fix)
    kept = PlacementWish.of_spec("auto", spec.adapter.type).format
    if kept is not None and spec.weights in FORMATS and spec.weights != kept:
        raise SpecError(
            f"`weights: {spec.weights}` changes nothing of adapter `{spec.adapter.type}`, whose weights are {kept}",
            place="weights",
            fix="drop it, or write `adapter: lora`",
        )
