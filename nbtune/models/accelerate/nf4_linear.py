"""A group of linear layers whose frozen weights are 4-bit: decoded once for the forward, and once for the backward.

The decoded matrix is scratch that all layers of one shape share; what lies beside it for LoRA is kept by each group.
"""

from typing import Any

import torch
from torch import Tensor

from nbtune.errors import ExportError
from nbtune.models.accelerate.lora_member import LeftAlone
from nbtune.models.accelerate.shared_buffers import EdgedGroup, shared_matrix


class Nf4Group(EdgedGroup):
    """Like `LinearGroup`, of bitsandbytes' 4-bit layers (nf4 or fp4, absmax quantised or not)."""

    def _check(self) -> None:
        first = self.members[0].base
        for m in self.members:
            state = m.base.weight.quant_state
            if state.dtype != first.weight.quant_state.dtype or m.base.in_features != first.in_features:
                raise LeftAlone("its linear layers differ in dtype or width")
            if (m.base.bias is None) != (first.bias is None):
                raise LeftAlone("some of its linear layers are biased, and some are not")

    def _place(self) -> tuple[torch.dtype, torch.device]:
        weight = self.members[0].base.weight
        return weight.quant_state.dtype, weight.device

    def attach(self, shared: dict[Any, Tensor]) -> None:
        self.matrix = shared_matrix(self, shared)
        if self.has_bias:
            self.bias = torch.cat([m.base.bias.detach().to(self.dtype) for m in self.members])
        self.make_edges()

    def detach(self) -> None:
        self.matrix = self.bias = None

    def intact(self) -> bool:
        # inference on a CPU repacks the weights in a way of its own
        packed = any(getattr(m.base.weight.quant_state, "packing_format_for_cpu", False) for m in self.members)
        return not packed and super().intact()

    def load(self) -> None:
        from bitsandbytes.functional import dequantize_4bit

        k, start = self.inputs, 0
        for m, width in zip(self.members, self.outs, strict=True):
            weight = m.base.weight
            self.matrix[start : start + width, :k].copy_(dequantize_4bit(weight.data, weight.quant_state))
            start += width
        self.write_edges()


GROUP = Nf4Group


def rounded(weight: Tensor) -> Tensor:
    """Return what layers compute with instead of `weight [out, in]`: quantised and decoded again, fp32.

    Raises:
        ExportError: that is done by bitsandbytes, which is not here.
    """
    try:
        from bitsandbytes.functional import dequantize_4bit, quantize_4bit
    except ImportError:
        raise ExportError(
            "this adapter was trained on a 4-bit base, which needs bitsandbytes to be made again",
            fix="pip install bitsandbytes, or export the adapter instead.",
        ) from None
    packed, state = quantize_4bit(weight.contiguous(), quant_type="nf4", compress_statistics=True)
    return dequantize_4bit(packed, state).reshape(weight.shape).float()
