"""A model that comes on the CPU goes to its device layer by layer: its frozen weights whole, in part, or not at all.

A device never holds more of the layers than stays on it, and a few whole ones.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from nbtune.errors import PlanError
from nbtune.models.accelerate.detect import causal_lm, decoder, decoder_layers
from nbtune.models.accelerate.nf4_linear import bring_codes
from nbtune.models.experts.rounded import without_memory
from nbtune.spec.placement import Placement


@dataclass
class Mover:
    """Brings layers to the device; weights that are streamed stay behind by themselves, as their group is attached.

    Args:
        device: where the work is done.
    """

    device: torch.device

    def bring(self, module: nn.Module) -> None:
        """Bring a layer, whole for as long as it is looked at."""
        module.to(self.device)
        bring_codes(module, self.device)
        without_memory(module)

    def settle(self, module: nn.Module) -> None:
        """Settle a layer that was looked at."""

    def finish(self, inner: nn.Module) -> None:
        """Finish after all layers."""


@dataclass
class Sharder(Mover):
    """Parts the weights of layers among the processes that train together (FSDP2).

    What an adapter trains stays whole on each, so that gradients, optimizer and checkpoints are those of a run whose
    weights are not parted; embedding and head stay whole too: both are needed all through a step. In full training a
    layer's weights are parted with their gradients, which are summed up in fp32 (`nbtune.train.parted`).

    Args:
        trained: what is trained is parted, too.
    """

    trained: bool = False

    def settle(self, module: nn.Module) -> None:
        """Part a layer's weights."""
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        whole = set() if self.trained else {p for p in module.parameters() if p.requires_grad}
        how: dict[str, Any] = {"mesh": self._mesh(), "mp_policy": MixedPrecisionPolicy(reduce_dtype=torch.float32)}
        parted: Any = fully_shard(module, reshard_after_forward=True, ignored_params=whole, **how)
        parted = parted if hasattr(parted, "reshard") else module  # torch 2.8 and 2.9 give nothing back
        newer = getattr(parted, "set_gradient_divide_factor", None)
        (newer or parted.set_reduce_scatter_divide_factor)(1.0)  # a step's loss is divided by all tokens already
        if hasattr(parted, "set_force_sum_reduction_for_comms"):  # gloo cannot do what is done by default
            parted.set_force_sum_reduction_for_comms(True)

    def finish(self, inner: nn.Module) -> None:
        """Let the decoder around the layers bring each one's weights in while the one before works.

        Raises:
            PlanError: nothing was parted.
        """
        from torch.distributed.fsdp import fully_shard

        parted = [p for p in inner.parameters() if hasattr(p, "placements")]
        if not parted:
            raise PlanError("this model's weights cannot be parted: its layers were not found", fix="drop `weights`")
        whole = {p for p in inner.parameters() if not hasattr(p, "placements")}
        fully_shard(inner, mesh=self._mesh(), ignored_params=whole)

    def _mesh(self) -> Any:
        return dist.device_mesh.init_device_mesh(self.device.type, (dist.get_world_size(),))


def mover_of(weights: Placement, device: torch.device | None, model: nn.Module) -> Mover | None:
    """Return what brings layers to the device; None for a model that is where it belongs.

    Args:
        weights: of the whole model.
        device: where the work is done. Parted weights without one are parted by the caller.
        model: with or without an adapter.

    Raises:
        ValueError: the weights are streamed, and there is none.
    """
    if weights.streams:
        if device is None:
            raise ValueError("weights that are streamed want a device to go to")
        return Mover(device)
    return Sharder(device, _is_trained(model)) if weights.shards and device is not None else None


def _is_trained(model: nn.Module) -> bool:
    """Return whether the model itself is trained, and no adapter."""
    return not hasattr(model, "peft_config")


def shard(model: nn.Module, device: torch.device) -> None:
    """Bring a model that is not accelerated to the device, and part its layers' weights.

    Raises:
        PlanError: it has no layers to be parted.
    """
    lm, sharder = causal_lm(model), Sharder(device, _is_trained(model))
    inner = decoder(lm)
    layers = [] if inner is None else [module for _, module in decoder_layers(inner)]
    move_all_but(model, layers, device)
    for module in layers:
        sharder.bring(module)
        sharder.settle(module)
    sharder.finish(model if inner is None else inner)


def move_all_but(module: nn.Module, layers: list[nn.Module], device: torch.device) -> None:
    """Move a model to the device, its list of layers apart."""
    kept = {id(layer) for layer in layers}
    if id(module) in kept:
        return
    if not any(id(m) in kept for m in module.modules()):
        module.to(device)
        return
    for child in module.children():
        move_all_but(child, layers, device)
    for p in module.parameters(recurse=False):
        p.data = p.data.to(device)
    for name, buffer in list(module.named_buffers(recurse=False)):
        module._buffers[name] = buffer.to(device)
