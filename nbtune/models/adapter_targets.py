"""Which layers of a model an adapter goes onto, by the names that peft matches."""

import inspect
import re
from difflib import get_close_matches
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from nbtune.errors import SpecError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from nbtune.spec import AdapterSpec

_ROUTER = re.compile(r"router|(^|\.)(gate|wg)(\.|$)")
_READ = re.compile(r"\bself\.(\w+)\.weight(?=\s*[,)@]|\.clamp)")

CHOOSES = "it chooses among experts"
PAST = "the model hands its weight on, past an adapter"
RENAMED = "peft takes its name for that of the experts, which are stacked and no linear layers"
ELSEWHERE = "it belongs to what sees or hears: only text is trained"


def targets_of(model: "nn.Module", adapter: "AdapterSpec") -> list[str]:
    """Return the names of the adapter's layers. Each is some layer's: peft passes over one that is not, without a word.

    Raises:
        SpecError: no layer has one of the names, or an adapter on it would be wrong.
    """
    odd, names = left_out(model), _names(model)
    if adapter.target_modules == "all-linear":
        head = _head(model)
        linear = [name for name, m in linears(model) if m is not head and name not in odd]
        if not linear:
            raise SpecError("no linear layer of this model can have an adapter", fix="Write `adapter: full`.")
        return _short(linear, names)
    elsewhere = _elsewhere(model)
    chosen: list[str] = []
    for end in adapter.target_modules:
        found = [name for name in names if _matches(name, end)]
        if not found:
            raise _unknown(model, end)
        if reason := next((odd[name] for name in found if odd.get(name, ELSEWHERE) != ELSEWHERE), None):
            raise SpecError(
                f"`{end}` cannot have an adapter: {reason}",
                place="adapter.target_modules",
                fix="Use all-linear, which leaves such layers out.",
            )
        of_text = [name for name in found if name not in elsewhere]
        if not of_text:
            raise SpecError(f"`{end}` cannot have an adapter: {ELSEWHERE}", place="adapter.target_modules")
        chosen += [end] if len(of_text) == len(found) else _short(of_text, names)
    return list(dict.fromkeys(chosen))


def targeted(model: "nn.Module", adapter: "AdapterSpec") -> "dict[str, nn.Module]":
    """Return the modules that an adapter goes onto, by their names.

    Raises:
        SpecError: see `targets_of`.
    """
    return modules_of(model, targets_of(model, adapter))


def modules_of(model: "nn.Module", targets: "Sequence[str]") -> "dict[str, nn.Module]":
    """Return the modules that peft takes such names (`targets_of`) for, by their own names."""
    return {name: module for name, module in model.named_modules() if any(_matches(name, each) for each in targets)}


def left_out(model: "nn.Module") -> dict[str, str]:
    """Return the linear layers, the head apart, that `all-linear` leaves out, and why."""
    head = _head(model)
    candidates = {name for name, m in linears(model) if m is not head}
    reasons = {
        RENAMED: _renamed(model, candidates),
        PAST: _read_past(model),
        CHOOSES: _routers(model),
        ELSEWHERE: _elsewhere(model),
    }
    return {name: why for why, names in reasons.items() for name in sorted(names & candidates)}


def left_out_lines(model: "nn.Module") -> list[str]:
    """Return what `all-linear` leaves out, for people: a line a reason."""
    odd = left_out(model)
    lines = []
    for why in dict.fromkeys(odd.values()):
        names = [name for name in odd if odd[name] == why]
        last = ", ".join(sorted({name.rsplit(".", 1)[-1] for name in names}))
        lines.append(f"no adapter: {len(names)} layers ({last}): {why}")
    return lines


def linear_names(model: "nn.Module") -> list[str]:
    """Return the last names of the layers that may have an adapter, for a message."""
    odd = left_out(model)
    return sorted({name.rsplit(".", 1)[-1] for name, _ in linears(model) if name not in odd})


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
    counts = {v for config in _configs(model) for k, v in vars(config).items() if k.endswith("experts")}
    return {
        name for name, m in linears(model) if _ROUTER.search(name) and ("router" in name or m.weight.shape[0] in counts)
    }


def _configs(model: "nn.Module") -> list[Any]:
    """Return the model's config, and that of its text where this is another."""
    config = getattr(model, "config", None)
    if config is None:
        return []
    text = config.get_text_config()
    return [config] if text is config else [config, text]


def _elsewhere(model: "nn.Module") -> set[str]:
    """Return modules of a model that also sees or hears which are none of its language model's."""
    if len(configs := _configs(model)) < 2:
        return set()
    text = type(configs[1])
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


def _read_past(model: "nn.Module") -> set[str]:
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
