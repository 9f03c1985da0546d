"""What of a model is trained and what 4 or 8 bits would cover, counted on the model itself without its weights.

The model is built from its config with tensors that hold nothing (torch's device `meta`), which takes about a second
and no memory, and counts what formulas guess wrong: experts, hybrids, shared layers, some of the target modules.
"""

import json
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nbtune.errors import SpecError
from nbtune.models.adapter_targets import linears, targeted
from nbtune.models.adapters import add_adapter
from nbtune.models.config_facts import ModelFacts
from nbtune.models.loading import outline, resolve

if TYPE_CHECKING:
    from nbtune.spec import AdapterSpec


def counted(facts: ModelFacts, model: str, adapter: "AdapterSpec", *, trust_remote_code: bool = False) -> ModelFacts:
    """Return the facts with what the adapter trains, and what formats cover, counted.

    >>> facts = nbtune.models.model_facts("nbtune/tiny")
    >>> nbtune.models.counted(facts, "nbtune/tiny", nbtune.spec.AdapterSpec(r=4)).trained
    65536

    Args:
        facts: of that model; those that the outline cannot be made of come back as they are, for estimates.
        model: ``nbtune/tiny``, a folder, or a Hub id.
        adapter: what is trained.

    Raises:
        SpecError: the adapter cannot go onto this model, as `add_adapter` says it.
        HubError: see `resolve`.
    """
    place = resolve(model, weights=False, trust_remote_code=trust_remote_code)
    config = (Path(place) / "config.json").read_text(encoding="utf-8")
    trained, linear, stacked = _count(str(place), config, adapter.model_dump_json(), trust_remote_code)
    return replace(facts, trained=trained, linear=linear, stacked=stacked)


@lru_cache(maxsize=32)
def _count(place: str, config: str, adapter: str, trust_remote_code: bool) -> tuple[int | None, int | None, int]:
    """Return numbers that are trained, those in linear layers beside the head, and those in stacks of matrices
    (experts)."""
    import torch
    from torch import nn

    from nbtune.spec import AdapterSpec

    wanted = AdapterSpec.model_validate(json.loads(adapter))
    try:
        model: Any = outline(place, dtype=torch.float32, device="meta", trust_remote_code=trust_remote_code)
    except SpecError:
        raise
    except Exception:  # noqa: BLE001 — a model's own code may want numbers; what is wrong with it, loading says
        return None, None, 0
    head = model.get_output_embeddings()
    linear = sum(m.weight.numel() for _, m in linears(model) if m is not head)
    stacked = sum(p.numel() for p in model.parameters() if p.dim() > 2)
    if wanted.type == "full":
        return sum(p.numel() for p in model.parameters()), linear, stacked
    layers = targeted(model, wanted)
    if layers and all(type(layer) is nn.Linear for layer in layers):  # without importing peft, which takes seconds
        ends = sum(wanted.r * (m.in_features + m.out_features) for m in layers)
        scales = sum(m.out_features for m in layers) if wanted.type == "dora" else 0
        return ends + scales, linear, stacked
    model = add_adapter(model, wanted, seed=0)
    return sum(p.numel() for p in model.parameters() if p.requires_grad), linear, stacked
