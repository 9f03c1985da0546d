"""Which kind of group fits linear layers, by what their frozen weights are and where these live; and how they round."""

from importlib import import_module
from typing import Any

from torch import Tensor, nn

from nbtune.models.accelerate.fsdp_linear import FsdpGroup
from nbtune.models.accelerate.lora_linear import LinearGroup
from nbtune.models.accelerate.lora_member import LeftAlone, is_four_bit, is_turned
from nbtune.models.accelerate.nf4_linear import GROUP, StreamedNf4Group
from nbtune.models.accelerate.packed_linear import streamed_group
from nbtune.spec.placement import Placement


def group_of(modules: list[nn.Module], weights: Placement) -> LinearGroup:
    """Return the group for linear layers with one input.

    Args:
        modules: the layers, in the order of their outputs. Whether they are 4-bit is asked of themselves.
        weights: the placement of their decoder layer (`Placement.of_layer`).

    Raises:
        LeftAlone: see `LinearGroup`.
    """
    if all(is_four_bit(getattr(m, "base_layer", m)) for m in modules):
        if weights.eight_bit or weights.shards:
            raise LeftAlone("its weights are 4-bit already: they cannot be fp8 or parted")
        return StreamedNf4Group(modules) if weights.streams else GROUP(modules)
    whole = not (weights.eight_bit or weights.streams or weights.shards)
    if not whole and any(is_turned(getattr(m, "base_layer", m)) for m in modules):
        raise LeftAlone("its weights lie transposed: they cannot be fp8, streamed or parted")
    if weights.eight_bit:
        return _layers_of(weights.format).GROUP(modules)  # type: ignore[no-any-return]
    if weights.streams:
        return streamed_group(modules)
    return FsdpGroup(modules) if weights.shards else LinearGroup(modules)


def rounded(weight: Tensor, weights: Placement) -> Tensor:
    """Return what layers compute with in training instead of `weight [out, in]`, which is not rounded; fp32.

    Raises:
        ExportError: what rounds it is not installed.
    """
    return _layers_of(weights.format).rounded(weight)  # type: ignore[no-any-return]


def _layers_of(name: str) -> Any:
    """Return the file of a rounded format's layers."""
    return import_module(f"nbtune.models.accelerate.{name}_linear")
