"""Finds a module of experts in a decoder layer, wrapped by peft or not: by its two stacks, and how it is called."""

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from nbtune_kernels import ACTIVATIONS
from nbtune_kernels.activation import reference
from torch import nn

from nbtune.models.experts.block import Experts, Stack

_STACKS = ("gate_up_proj", "down_proj")


def experts_in(layer: nn.Module) -> Iterator[tuple[str, nn.Module, Experts | str]]:
    """Yield (name, the outermost module that is called, its experts or why they are left alone) of a layer."""
    inside: set[int] = set()
    for name, module in layer.named_modules():
        base = stock_of(module)
        if id(base) in inside or not any(p.dim() > 2 for p in base.parameters(recurse=False)):
            continue
        if isinstance(base, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            continue
        inside.add(id(base))
        yield name, module, _read(module, base)


def stock_of(module: Any) -> nn.Module:
    """Return what peft's wrappers, one in another, stand around."""
    while hasattr(module, "parameter_name") and hasattr(module, "base_layer"):
        module = module.base_layer
    return module  # type: ignore[no-any-return]


def _read(outer: nn.Module, base: Any) -> Experts | str:
    weights = {name for name, p in base.named_parameters(recurse=False) if p.dim() > 2}
    if weights != set(_STACKS) or len(inspect.signature(base.forward).parameters) != 3:
        return "its experts are no two stacks that are called with a choice for each token"
    if any(p.requires_grad for p in base.parameters()):
        return "its experts' own weights are trained"
    if getattr(base, "_is_expert_parallel", False) or getattr(base, "has_post_expert_norm", False):
        return "its experts are parted, or have norms behind them"
    gate = getattr(base, "_apply_gate", None)
    if not callable(gate):
        return "what its experts compute of gate and up is not said"
    adapters = _adapters(outer)
    if isinstance(adapters, str):
        return adapters
    turned = bool(getattr(base, "is_transposed", False))
    up, down = (Stack(base, name, turned, *adapters.get(name, (None, ""))) for name in _STACKS)
    if any(b is not None and b.dim() != 2 for b in (up.bias, down.bias)):
        return "its biases are not one an expert"
    (_, both, hidden), (_, out, width) = up.sides, down.sides
    if both != 2 * width or hidden != out or up.weight.dtype != down.weight.dtype:
        return "its two stacks do not fit together"
    return Experts(up, down, gate, _known(gate, width, up.weight.device))


def _adapters(outer: Any) -> dict[str, tuple[Any, str]] | str:
    """Return peft's wrapper and the name of its LoRA, by the weight that it is for."""
    found: dict[str, tuple[Any, str]] = {}
    module = outer
    while hasattr(module, "parameter_name"):
        active = [name for name in module.active_adapters if name in module.lora_A]
        if len(active) != 1 or module.merged or module.disable_adapters or module.lora_bias.get(active[0]):
            return "its adapter is merged, switched off, or one of several"
        found[module.parameter_name] = (module, active[0])
        module = module.base_layer
    return found


def _known(gate: Any, width: int, device: torch.device) -> str:
    """Return the kernel's name of what is computed of gates that lie before ups; "": it has none."""
    both = torch.randn(4, 2 * width, generator=torch.Generator().manual_seed(4)).to(device) * 4
    with torch.no_grad():
        true = gate(both)
        for act in ACTIVATIONS:
            if torch.allclose(reference(both[:, :width], both[:, width:], act), true, rtol=1e-5, atol=1e-6):
                return act
    return ""


def is_switched_on(outer: Any) -> bool:
    """Return whether every LoRA that was read is still in force: not merged, not switched off."""
    module = outer
    while hasattr(module, "parameter_name"):
        if module.merged or module.disable_adapters:
            return False
        module = module.base_layer
    return True
