"""What of a model is trained and what 4 or 8 bits would cover, counted on the model itself without its weights.

The model is built from its config with tensors that hold nothing (torch's device `meta`), which takes about a second
and no memory, and counts what formulas guess wrong: experts, hybrids, shared layers, some of the target modules.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nbtune.errors import SpecError
from nbtune.models.adapter_patterns import unfrozen
from nbtune.models.adapter_targets import adapted_weights, linears, modules_of, read_past, targets_of
from nbtune.models.adapters import add_adapter
from nbtune.models.config_facts import ModelFacts
from nbtune.models.experts.stacks import lora_numbers
from nbtune.models.first_values import check as check_first_values
from nbtune.models.heads import unasked
from nbtune.models.loading import outline, resolve
from nbtune.models.parameter_kinds import kinds_of
from nbtune.models.weight_decay import is_decayed

if TYPE_CHECKING:
    from nbtune.spec import AdapterSpec

_OF_LORA = re.compile(r"base_model\.model\.(?P<module>.+)\.lora_(?P<side>[AB])(?:\.default)?\.weight")


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
    folder = resolve(model, weights=False, trust_remote_code=trust_remote_code)
    config = (Path(folder) / "config.json").read_text(encoding="utf-8")
    trained, linear, stacked, targets, kinds, in_head, decays = _count(str(folder), config, adapter, trust_remote_code)
    norms: dict[str, Any] = _norms(str(folder), config, trust_remote_code) if linear is not None else {}
    counts: dict[str, Any] = {
        "trained": trained,
        "linear": linear,
        "stacked": stacked,
        "targets": targets,
        "kinds": kinds,
        "decays": decays,
    }
    counts["trained_in_head"] = in_head
    return replace(facts, **counts, **norms)


def outlined(model: str, *, trust_remote_code: bool = False) -> Any:
    """Return the whole model, of tensors that hold nothing; nobody may change it.

    Raises:
        SpecError, HubError: see `resolve`. Whatever the model's own code raises.
    """
    folder = resolve(model, weights=False, trust_remote_code=trust_remote_code)
    return _outlined(str(folder), (Path(folder) / "config.json").read_text(encoding="utf-8"), trust_remote_code)


def has_places_for(shapes: Mapping[str, tuple[int, ...]], model: str, *, trust_remote_code: bool = False) -> bool:
    """Return whether weights that a run or peft has saved can be of a model: where they belong is there, as wide.

    >>> name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    >>> nbtune.models.has_places_for({name: (16, 256)}, "nbtune/tiny")
    True
    >>> nbtune.models.has_places_for({name: (16, 4096)}, "nbtune/tiny")
    False

    Args:
        shapes: of the weights, by their names.
        model: ``nbtune/tiny``, a folder, or a Hub id; one that cannot be outlined has places for all.
        trust_remote_code: let the model's own Python run.
    """
    try:
        whole = outlined(model, trust_remote_code=trust_remote_code)
    except Exception:  # noqa: BLE001 — a model's own code may want numbers; what is wrong with it, loading says
        return True
    modules, asked, there = dict(whole.named_modules()), 0, 0
    for name, shape in shapes.items():
        if (found := _OF_LORA.fullmatch(name)) is None:
            continue
        asked += 1
        module = modules.get(found["module"])
        there += module is not None
        wide = tuple(getattr(getattr(module, "weight", None), "shape", ()))
        if len(wide) == 2 and len(shape) == 2 and shape[1 if found["side"] == "A" else 0] not in wide:
            return False
    return there > 0 or not asked


@lru_cache(maxsize=2)
def _outlined(place: str, config: str, trust_remote_code: bool) -> Any:
    """Build the outline; `config` is what is in its file: another one is another model."""
    import torch

    return outline(place, dtype=torch.float32, device="meta", trust_remote_code=trust_remote_code)


def _norms(place: str, config: str, trust_remote_code: bool) -> dict[str, bool]:
    """Return whether queries and keys are normalised, a norm stands behind an MLP, and norms are torch's own."""
    from torch import nn

    model = _outlined(place, config, trust_remote_code)
    names = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    return {
        "head_norms": not names.isdisjoint(("q_norm", "q_layernorm")),
        "norms_behind": "post_feedforward_layernorm" in names,
        "layer_norms": any(type(module) is nn.LayerNorm for module in model.modules()),
    }


_Count = tuple[int | None, int | None, int, tuple[str, ...], tuple[str, ...], int, bool | None]


@lru_cache(maxsize=32)
def _count(place: str, config: str, adapter: "AdapterSpec", trust_remote_code: bool) -> _Count:
    """Return numbers that are trained, those in linear layers beside the head, those in stacks of matrices (experts),
    the names of the weights that the adapter is put onto, the kinds of what is trained, how many of these numbers are a
    head's that is no embedding, and whether weight decay is of any."""
    from torch import nn

    try:
        model = _outlined(place, config, trust_remote_code)
    except SpecError:
        raise
    except Exception:  # noqa: BLE001 — a model's own code may want numbers; what is wrong with it, loading says
        return None, None, 0, (), (), 0, None
    head = model.get_output_embeddings()
    past = read_past(model)
    linear = sum(m.weight.numel() for name, m in linears(model) if m is not head and name not in past)
    stacks = [m for m in model.modules() if not isinstance(m, nn.Conv1d | nn.Conv2d | nn.Conv3d)]
    stacked = sum(p.numel() for m in stacks for p in m.parameters(recurse=False) if p.dim() > 2)
    if adapter.type == "full":
        whole = dict(model.named_parameters())
        chosen = [(name, whole[name]) for name in unfrozen(model, adapter)]
        about = _kinds(model, chosen), _in_head(model, chosen), _decays(model, chosen)
        return sum(p.numel() for _, p in chosen), linear, stacked, (), *about
    targets = targets_of(model, adapter)
    check_first_values(model, adapter, targets)
    layers, weights = modules_of(model, targets.modules), adapted_weights(model, targets)
    names = tuple(weights)
    linears_alone = all(type(layer) is nn.Linear for layer in layers.values())
    if linears_alone and adapter.same_everywhere:  # without peft, which imports for seconds
        ends = sum(lora_numbers(weight, adapter.r) for weight in weights.values())
        scales = sum(m.out_features for m in layers.values()) if adapter.type == "dora" else 0
        return ends + scales, linear, stacked, names, ("lora_b", "matrix"), 0, True
    adapted, trained = _adapted(place, adapter, trust_remote_code)
    whole = sum(p.numel() for _, p in trained)
    about = _kinds(adapted, trained), _in_head(adapted, trained), _decays(adapted, trained)
    return whole, linear, stacked, names, *about


def _adapted(place: str, adapter: "AdapterSpec", trust_remote_code: bool) -> tuple[Any, list[tuple[str, Any]]]:
    """Return an outline with the adapter, and what of it is trained."""
    import torch

    own = outline(place, dtype=torch.float32, device="meta", trust_remote_code=trust_remote_code)
    adapted = add_adapter(own, adapter.model_copy(update={"init_lora_weights": "default"}), seed=0)
    return adapted, [(name, p) for name, p in adapted.named_parameters() if p.requires_grad]


def trained_shapes(
    name: str, adapter: "AdapterSpec", *, trust_remote_code: bool = False
) -> dict[str, tuple[int, ...]] | None:
    """Return the shape of all that an adapter trains, by its name in the model; None: that cannot be told without
    numbers.

    Args:
        name: as of `counted`.
    Raises:
        SpecError: the adapter does not go onto the model.
    """
    place = str(resolve(name, weights=False, trust_remote_code=trust_remote_code))
    try:
        _, trained = _adapted(place, adapter, trust_remote_code)
    except SpecError:
        raise
    except Exception:  # noqa: BLE001 — a model's own code may want numbers; what is wrong with it, loading says
        return None
    return {path: tuple(p.shape) for path, p in trained}


def _in_head(model: Any, named: list[tuple[str, Any]]) -> int:
    mute = {id(parameter) for parameter in unasked(model)}
    return sum(p.numel() for _, p in named if id(p) in mute)


def _decays(model: Any, named: list[tuple[str, Any]]) -> bool:
    return any(is_decayed(model, [name for name, _ in named]))


def _kinds(model: Any, named: list[tuple[str, Any]]) -> tuple[str, ...]:
    return tuple(sorted({*kinds_of(model, named)}))
