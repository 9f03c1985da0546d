"""An embedding whose rows stay in the host's memory: a step needs as many of them as it has tokens, never all.

A GPU reads pinned rows itself, over the bus: 8,192 rows of an 8B model are 67 MB, in a step that moves gigabytes. The
module's own weight becomes a stand-in of its shape and place that takes no memory, all NaN: whoever reads it notices.
"""

from typing import TYPE_CHECKING, Any

import torch
from nbtune_kernels.embedding import gather
from torch import Tensor, nn

from nbtune.device import pinnable

if TYPE_CHECKING:
    from nbtune.models.accelerate.patch import Patch


def stays(lm: Any) -> nn.Embedding | None:
    """Return the embedding of a causal language model if its rows may stay: frozen, plain, and not the head's."""
    module = lm.get_input_embeddings()
    head = lm.get_output_embeddings()
    if type(module) is not nn.Embedding or module.weight.requires_grad or module.max_norm is not None:
        return None
    return None if head is not None and getattr(head, "weight", None) is module.weight else module


def keep_in_host(module: nn.Embedding, device: torch.device, patch: "Patch") -> None:
    """Keep the rows in the host's memory, and gather those that a forward on the device asks for."""
    weight = module.weight.detach()
    pinned = device.type == "cuda" and pinnable()
    host = torch.empty(weight.shape, dtype=weight.dtype, pin_memory=pinned)
    host.copy_(weight)
    module.weight.data = torch.full((1, 1), float("nan"), dtype=weight.dtype, device=device).expand(weight.shape)

    def forward(ids: Tensor) -> Tensor:
        if pinned and ids.is_cuda:
            return gather(ids, host)
        return nn.functional.embedding(ids.to(host.device), host).to(device)

    def undo() -> None:
        module.weight.data = host.to(device, copy=True)

    patch.fetches = not pinned
    patch.undo.append(undo)
    patch.replace(module, forward)
    patch.report.taken["embedding"] = "its rows are gathered from the host's memory"
