"""A group of linear layers whose weights are not at hand outside of their layer's own forward and backward (FSDP2).

`fully_shard` keeps a slice of each weight on each process, and puts whole weights into the modules while a layer runs.
So nothing can be a view of one matrix: it is filled anew before each product, in scratch that all layers of one shape
share. At 8B shapes that is a copy of 436 MB a layer and pass beside 14 ms of work.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from nbtune.errors import PlanError
from nbtune.models.accelerate.lora_linear import LinearGroup
from nbtune.models.accelerate.shared_buffers import shared_matrix

__all__ = ["ShardedGroup", "Sharding"]


@dataclass
class Sharding:
    """Parts the frozen weights of a model's layers among the processes that train together, layer after layer.

    What is trained stays whole on each, so that gradients, optimizer and checkpoints are those of a run whose weights
    are not parted; embedding and head stay whole too: both are needed all through a step. A device never holds more
    than its part and a few whole layers.

    Args:
        device: this process's.
    """

    device: torch.device
    done: bool = False

    def place(self, index: int, module: nn.Module) -> Literal["sharded"]:
        """Brings a layer to the device, whole for as long as it is looked at."""
        module.to(self.device)
        return "sharded"

    def settle(self, module: nn.Module) -> None:
        """Parts a layer's frozen weights."""
        from torch.distributed.fsdp import fully_shard

        trained = {p for p in module.parameters() if p.requires_grad}
        fully_shard(module, mesh=self._mesh(), reshard_after_forward=True, ignored_params=trained)

    def finish(self, inner: nn.Module) -> None:
        """After all layers: the decoder around them brings each layer's weights in while the one before works.

        Raises:
            PlanError: nothing was parted.
        """
        from torch.distributed.fsdp import fully_shard

        parted = [p for p in inner.parameters() if hasattr(p, "placements")]
        if not parted:
            raise PlanError("this model's weights cannot be parted: its layers were not found", fix="drop `weights`")
        whole = {p for p in inner.parameters() if not hasattr(p, "placements")}
        fully_shard(inner, mesh=self._mesh(), ignored_params=whole)
        self.done = True

    def all_of(self, model: nn.Module) -> None:
        """Parts a model that is not accelerated."""
        from nbtune.models.accelerate.cpu_offload import move_all_but
        from nbtune.models.accelerate.detect import causal_lm, decoder, decoder_layers

        lm = causal_lm(model)
        inner = decoder(lm)
        layers = [] if inner is None else [module for _, module in decoder_layers(inner)]
        move_all_but(model, layers, self.device)
        for index, module in enumerate(layers):
            self.place(index, module)
            self.settle(module)
        self.finish(model if inner is None else inner)

    def _mesh(self) -> Any:
        return dist.device_mesh.init_device_mesh(self.device.type, (dist.get_world_size(),))


class ShardedGroup(LinearGroup):
    """Like `LinearGroup`, but the layers keep weights of their own, which are read whenever they are used."""

    def attach(self, shared: dict[Any, Tensor]) -> None:
        self.matrix = shared_matrix(self, shared)
        self.sync_pairs = []

    def detach(self) -> None:
        self.matrix = self.bias = None

    def intact(self) -> bool:
        off = any(m.a is not None and (m.module.merged or m.module.disable_adapters) for m in self.members)  # type: ignore[truthy-function]
        return self.matrix is not None and not off

    @torch.no_grad()
    def load(self) -> None:
        """Writes whole weights, and LoRA beside and below them, into the shared matrix."""
        start = 0
        for m, width in zip(self.members, self.outs, strict=True):
            self.matrix[start : start + width, : self.inputs].copy_(m.base.weight)
            start += width
        if self.has_bias:
            self.bias = torch.cat([m.base.bias for m in self.members])
        if not self.rank:
            return
        self.matrix[: self.outputs, self.inputs :].zero_()
        below, beside = self.matrix[self.outputs :, : self.inputs], self.matrix[: self.outputs, self.inputs :]
        for place, parameter, factor in self._pairs_in(below, beside):
            place.copy_(parameter * factor)
