"""Which layers and stacks of experts an adapter goes onto, by the names that peft matches."""

import inspect
import re
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from nbtune.errors import SpecError
from nbtune.models.adapter_patterns import check_biases, check_patterns, check_saved, check_tokens, in_layers
from nbtune.models.experts.stacks import configs, expert_counts, stacked_weights
from nbtune.spec.placement import PlacementWish

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from nbtune.spec import AdapterSpec
    from nbtune.spec.placement import Placement

_ROUTER = re.compile(r"router|(^|\.)(gate|wg)(\.|$)")
_READ = re.compile(r"\bself\.(\w+)\.weight(?=\s*[,)@]|\.clamp|\.data\.clamp)")

CHOOSES = "it chooses among experts"
PAST = "the model hands its weight on, past an adapter"
RENAMED = "peft takes its name for that of the experts, which are stacked and no linear layers"
STACKED = "peft has neither DoRA, IA3 nor dropout for the stacked weights of experts"
ELSEWHERE = "it belongs to what sees or hears: only text is trained"


@dataclass(frozen=True)
class Targets:
    """What an adapter goes onto, by ends of names as peft matches them.

    Args:
        modules: of linear layers.
        parameters: of weights that peft adapts by themselves (`target_parameters`): stacks of experts' matrices, and
            layers whose names it takes for the experts'.
    """

    modules: list[str]
    parameters: list[str]


def targets_of(model: "nn.Module", adapter: "AdapterSpec") -> Targets:
    """Return the names of what the adapter goes onto. Each is something's: peft passes over others without a word.

    Raises:
        SpecError: nothing has one of the names, or an adapter on it would be wrong.
    """
    odd, stacks = left_out(model, adapter), stacked_weights(model)
    if adapter.type == "ia3" and adapter.target_modules == "all-linear" and (ends := _of_ia3(model)[0]):
        layers, weights = _named(model, ends, odd, stacks)
    elif adapter.target_modules == "all-linear":
        head = _head(model)
        layers = [name for name, m in linears(model) if m is not head and name not in odd]
        weights = [name for name in stacks if name not in odd]
    elif isinstance(adapter.target_modules, str):
        layers, weights = _matched(model, adapter.target_modules, odd), []
    else:
        layers, weights = _named(model, adapter.target_modules, odd, stacks)
    if adapter.layers_to_transform:
        inside = in_layers([*layers, *weights], adapter.layers_to_transform)
        layers, weights = [n for n in layers if n in inside], [n for n in weights if n in inside]
    check_patterns([*layers, *weights], adapter)
    check_saved(model, _names(model), adapter)
    check_tokens(model, adapter)
    check_biases(model, layers, adapter)
    by_weight = _renamed(model, set(layers))
    weights += [f"{name}.weight" for name in layers if name in by_weight]
    modules = [name for name in layers if name not in by_weight]
    if not modules and not weights:
        raise SpecError("no linear layer of this model can have an adapter", fix="Write `adapter: full`.")
    every = [name for name, _ in model.named_parameters()]
    return Targets(_short(modules, _names(model)), _short(weights, every))


def _matched(model: "nn.Module", pattern: str, odd: dict[str, str]) -> list[str]:
    """Return the linear layers whose whole names are matched.

    Raises:
        SpecError: there is none, or an adapter on one would be wrong.
    """
    found = [name for name, _ in linears(model) if re.fullmatch(pattern, name)]
    place = "adapter.target_modules"
    if reason := next((odd[name] for name in found if name in odd), None):
        raise SpecError(f"`{pattern}` matches what cannot have an adapter: {reason}", place=place)
    if found:
        return found
    names = linear_names(model)
    fix = f"Write target_modules: [{pattern}]." if pattern in names else f"Such names end in: {', '.join(names)}."
    raise SpecError(f"no linear layer's whole name is matched by `{pattern}`", place=place, fix=fix)


def _named(
    model: "nn.Module", ends: "Sequence[str]", odd: dict[str, str], stacks: "dict[str, nn.Parameter]"
) -> tuple[list[str], list[str]]:
    """Return the layers and the stacks that such ends of names are meant for; the name of what holds stacks is theirs.

    Raises:
        SpecError: see `targets_of`.
    """
    elsewhere, names = _elsewhere(model), _names(model)
    layers, weights = [], []
    for end in ends:
        held = [name for name in stacks if _matches(name, end) or _matches(name.rpartition(".")[0], end)]
        places = {name.rpartition(".")[0] for name in stacks}
        found = [name for name in names if _matches(name, end) and name not in places]
        if not found and not held:
            raise _unknown(model, end)
        if able := [name for name in found + held if odd.get(name) not in (RENAMED, STACKED)]:  # a name of both
            found, held = [n for n in found if n in able], [n for n in held if n in able]
        if reason := next((odd[name] for name in found + held if odd.get(name, ELSEWHERE) != ELSEWHERE), None):
            raise SpecError(
                f"`{end}` cannot have an adapter: {reason}",
                place="adapter.target_modules",
                fix="Use all-linear, which leaves such layers out.",
            )
        of_text = [name for name in found if name not in elsewhere]
        if not of_text and not held:
            raise SpecError(f"`{end}` cannot have an adapter: {ELSEWHERE}", place="adapter.target_modules")
        layers += of_text
        weights += held
    return list(dict.fromkeys(layers)), list(dict.fromkeys(weights))


def adapted_weights(model: "nn.Module", targets: Targets) -> "dict[str, nn.Parameter]":
    """Return the weights that an adapter goes onto, by their names: a tied head's, too, which is its embedding's."""
    whole = {f"{name}.weight" for name in modules_of(model, targets.modules)}
    return {
        name: p
        for name, p in model.named_parameters(remove_duplicate=False)
        if name in whole or any(_matches(name, end) for end in targets.parameters)
    }


def modules_of(model: "nn.Module", targets: "Sequence[str]") -> "dict[str, nn.Module]":
    """Return the modules that peft takes such names (`targets_of`) for, by their own names."""
    return {name: module for name, module in model.named_modules() if any(_matches(name, each) for each in targets)}


def leads_out(model: Any, end: str) -> bool:
    """Return whether such a layer leads out of an MLP: IA3's factors are of what it is given."""
    return end.rsplit(".", 1)[-1] in {last.rsplit(".", 1)[-1] for last in _of_ia3(model)[1]}


def _of_ia3(model: Any) -> tuple[list[str], list[str]]:
    """Return the ends of names of the layers that IA3 is for, and of those that lead out of an MLP; of a family that
    peft does not know these are those of most."""
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING as OUT
    from peft.utils.constants import TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING as ALL

    kind = getattr(model.config, "model_type", "")
    names = {name.rsplit(".", 1)[-1] for name, _ in linears(model)}
    ends = list(ALL.get(kind) or [name for name in ALL["llama"] if name in names])
    return ends, list(OUT.get(kind) or OUT["llama"])


def turned(model: "nn.Module", targets: Targets) -> bool:
    """Return whether these layers' weights lie as (in, out): GPT-2's."""
    layers = modules_of(model, targets.modules).values()
    return bool(layers) and all(type(m).__name__ == "Conv1D" for m in layers)


def left_out(model: "nn.Module", adapter: "AdapterSpec") -> dict[str, str]:
    """Return the linear layers, the head apart, and the stacks of experts that `all-linear` leaves out, and why."""
    head = _head(model)
    candidates = {name for name, m in linears(model) if m is not head}
    by_weight = not adapter.dropout and adapter.type not in ("dora", "ia3")  # else peft does not take weights alone
    packed = PlacementWish.of_spec("auto", adapter.type).on_device().four_bit  # which have another shape
    reasons = {
        RENAMED: set() if by_weight and not packed else _renamed(model, candidates),
        PAST: read_past(model),
        CHOOSES: _routers(model),
        ELSEWHERE: _elsewhere(model),
    }
    odd = {name: why for why, names in reasons.items() for name in sorted(names & candidates)}
    return odd if by_weight else {**odd, **dict.fromkeys(stacked_weights(model), STACKED)}


def left_out_lines(model: "nn.Module", adapter: "AdapterSpec") -> list[str]:
    """Return what `all-linear` leaves out, for people: a line a reason."""
    odd = left_out(model, adapter)
    lines = []
    for why in dict.fromkeys(odd.values()):
        names = [name for name in odd if odd[name] == why]
        last = ", ".join(sorted({name.rsplit(".", 1)[-1] for name in names}))
        lines.append(f"no adapter: {len(names)} layers ({last}): {why}")
    return lines


def linear_names(model: "nn.Module") -> list[str]:
    """Return the last names of what may have an adapter, for a message."""
    reasons = {**dict.fromkeys(read_past(model)), **dict.fromkeys(_routers(model)), **dict.fromkeys(_elsewhere(model))}
    names = [*(name for name, _ in linears(model)), *stacked_weights(model)]
    return sorted({name.rsplit(".", 1)[-1] for name in names if name not in reasons})


def _unknown(model: "nn.Module", wanted: str) -> SpecError:
    names = linear_names(model)
    near = get_close_matches(wanted, names, 1)
    return SpecError(
        f"no layer of this model is called `{wanted}`",
        place="adapter.target_modules",
        fix=(f"Write {near[0]}? " if near else "") + f"Use all-linear, or some of: {', '.join(names)}.",
    )


def _head(model: "nn.Module") -> Any:
    return getattr(model, "get_output_embeddings", lambda: None)()


def _names(model: "nn.Module") -> list[str]:
    return [name for name, _ in model.named_modules() if name]


def _matches(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def linears(model: "nn.Module") -> "list[tuple[str, nn.Module]]":
    """Return every linear layer with its name. GPT-2's `Conv1D` is a linear layer too, with its weight turned."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    return [(name, m) for name, m in model.named_modules() if isinstance(m, nn.Linear | Conv1D)]


def rounded_linears(model: "nn.Module", weights: "Placement") -> list[str]:
    """Return the linear layers whose weights training has rounded: not the head, nor, in 4 bits, what a model's code
    reads past the layer (a hybrid's states), nor what computes something else than a product (some routers)."""
    from torch import nn
    from transformers.pytorch_utils import Conv1D

    head, past = _head(model), read_past(model) if weights.four_bit else ()
    return [n for n, m in linears(model) if m is not head and n not in past and type(m) in (nn.Linear, Conv1D)]


def turned_linears(model: "nn.Module") -> list[str]:
    """Return the linear layers whose weights lie as (in, out): GPT-2's."""
    return [name for name, module in linears(model) if type(module).__name__ == "Conv1D"]


def _short(wanted: list[str], names: list[str]) -> list[str]:
    """Return ends of names that no other module's name has, as short as can be (adapter_config.json stays readable)."""
    allowed, found = set(wanted), set()
    fits: dict[str, bool] = {}
    for name in wanted:
        parts = name.split(".")
        ends = [".".join(parts[-length:]) for length in range(1, len(parts) + 1)]
        for end in ends:
            if end not in fits:
                fits[end] = all(other in allowed for other in names if _matches(other, end))
            if fits[end]:
                break
        found.add(end)
    return sorted(found)


def _routers(model: "nn.Module") -> set[str]:
    """Return what chooses among experts: called so, or called a gate and as wide as there are experts."""
    counts = expert_counts(model)
    return {
        name for name, m in linears(model) if _ROUTER.search(name) and ("router" in name or m.weight.shape[0] in counts)
    }


def _elsewhere(model: "nn.Module") -> set[str]:
    """Return modules of a model that also sees or hears which are none of its language model's."""
    if len(found := configs(model)) < 2:
        return set()
    text = type(found[1])
    named = [(name, m) for name, m in model.named_modules() if name]
    places = tuple(f"{name}." for name, m in named if type(getattr(m, "config", None)) is text)
    head = _head(model)
    return {name for name, m in named if m is not head and not name.startswith(places)}


def _renamed(model: "nn.Module", names: set[str]) -> set[str]:
    """Return layers that share their last name with what experts were called before transformers 5 stacked them.

    peft reads such a name as the experts', here and wherever the adapter is loaded: other layers would be trained.
    """
    if not any(p.dim() > 2 and "experts" in name for name, p in model.named_parameters()):
        return set()
    try:
        from peft import LoraConfig
        from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers as convert
    except ImportError:  # a peft that renames nothing
        return set()
    taken = set()
    for last in {name.rsplit(".", 1)[-1] for name in names}:
        config = LoraConfig(target_modules=[last])
        try:
            convert(config, model, None)
        except ValueError:  # it stands for a part of the stack
            taken.add(last)
        else:
            taken |= {last} - set(config.target_modules or ())
    return {name for name in names if name.rsplit(".", 1)[-1] in taken}


def read_past(model: "nn.Module") -> set[str]:
    """Return layers whose weights something else is given, such as a fused kernel: it would not see an adapter on them.

    They are asked for in the model's own code, so that machines with and without the kernel train the same layers.
    """
    kinds: dict[str, Any] = {name: type(module) for name, module in model.named_modules()}
    return {f"{name}.{child}" for name, kind in kinds.items() for child in _handed_on_by(kind)}


@lru_cache(maxsize=64)
def _handed_on_by(kind: type) -> frozenset[str]:
    try:
        functions = [f for n, f in vars(kind).items() if inspect.isfunction(f) and "init" not in n]
        return frozenset(name for f in functions for name in _READ.findall(inspect.getsource(f)))
    except (OSError, TypeError):  # there is no source
        return frozenset()
