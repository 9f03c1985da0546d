"""A group of linear layers whose frozen weights are 8-bit floating point, with a scale for each output row.

Products of the frozen weights run in 8 bits both ways; what they are multiplied with is quantised row by row just
before. LoRA stays in 16 bits beside them. The model that is trained is the one with rounded weights.
"""

from typing import Any

import torch
from nbtune_kernels.fp8 import quantise_rows, reference, scaled_product, transposed
from torch import Tensor, nn

from nbtune.models.accelerate.lora_epilogues import sum_with_lora
from nbtune.models.accelerate.lora_member import LeftAlone
from nbtune.models.accelerate.shared_buffers import EdgedGroup
from nbtune.models.accelerate.triton_epilogues import applies

_MULTIPLE = 16  # of both sides of a matrix, on a GPU
_ROOM = 64  # rows of zeros fill the weights up to a multiple: what a product makes then has room beside it


class Fp8Group(EdgedGroup):
    """Like `LinearGroup`, with e4m3 weights.

    Args:
        modules: the layers, in the order of their outputs.

    Raises:
        LeftAlone: see `LinearGroup`; also for trained weights, LoRA dropout, and sides that are no multiple of 16.
    """

    away = True
    slack = 0.15  # what rounding to three bits of mantissa may do to a block

    def __init__(self, modules: list[nn.Module]) -> None:
        super().__init__(modules)
        if self.full:
            raise LeftAlone("weights that are trained cannot be 8-bit")
        if self.inputs % _MULTIPLE or any(width % _MULTIPLE for width in self.outs):
            raise LeftAlone(f"a side of its matrices is no multiple of {_MULTIPLE}")
        if any(m.dropout for m in self.members):
            raise LeftAlone("8-bit weights do not go with LoRA dropout")

    def attach(self, shared: dict[Any, Tensor]) -> None:
        o, k, place = self.outputs, self.inputs, {"device": self.device}
        tall = -(-self.width_out // _ROOM) * _ROOM
        self._tall = torch.zeros((tall, k), dtype=torch.uint8, **place).view(torch.float8_e4m3fn)
        self._tall_scales = torch.ones(tall, dtype=torch.float32, **place)
        self.codes, self.scales = self._tall[:o], self._tall_scales[:o]
        self._ones = shared.setdefault(("ones", k, self.device), torch.ones(k, dtype=torch.float32, **place))
        self._shared = shared
        start = 0
        for m, width in zip(self.members, self.outs, strict=True):
            rows = slice(start, start + width)
            self.codes[rows], self.scales[rows] = quantise_rows(m.base.weight.detach())
            m.base.weight.data = self.codes[rows]  # at once: the 16-bit ones are not needed any more
            start += width
        if self.has_bias:
            self.bias = torch.cat([m.base.bias.detach() for m in self.members])
            self._tall_bias = torch.nn.functional.pad(self.bias, (0, tall - o))
        self.make_edges()
        self.matrix = self.codes

    def detach(self) -> None:
        """Give the layers their (rounded) weights in the compute dtype."""
        self.put(self._decoded().clone())
        self.matrix = self.bias = None

    def lend(self) -> None:
        """Give the stock layers decoded weights, for one forward."""
        self.put(self._decoded())

    def take_back(self) -> None:
        """Take back what `lend` lent."""
        self.put(self.codes)

    def _decoded(self) -> Tensor:
        # of its own: `present` lends all matrices of a layer at once, and two of them may have one shape
        return (self.codes.to(self.dtype) * self.scales[:, None]).to(self.dtype)

    @property
    def a(self) -> Tensor:
        return self.below

    @property
    def sb(self) -> Tensor:
        return self.beside

    def _times(self, x: Tensor) -> Tensor:
        """Return the frozen part of y `[T, O]` with its bias, of x `[T, K]`."""
        q, scale = quantise_rows(x)
        return scaled_product(q, scale, self.codes, self.scales, self.dtype, self.bias)

    def forward(self, wide_x: Tensor, out: Tensor) -> None:
        out.copy_(self.forward_wide(wide_x))

    def forward_wide(self, wide_x: Tensor) -> Tensor:
        return self.forward_plain(wide_x[:, : self.inputs], wide_x[:, self.inputs :] if self.rank else None)

    def forward_with_room(self, wide_x: Tensor) -> Tensor:
        """Return y with room beside it, as the product made it: a copy to where there is room takes as long as LoRA."""
        y = self.frozen_with_room(wide_x)
        if self.rank:
            y[:, : self.outputs].addmm_(wide_x[:, self.inputs :], self.beside.t())
        return y

    def frozen_with_room(self, wide_x: Tensor) -> Tensor:
        q, scale = quantise_rows(wide_x[:, : self.inputs])
        bias = self._tall_bias if self.has_bias else None
        return scaled_product(q, scale, self._tall, self._tall_scales, self.dtype, bias)[:, : self.width_out]

    def forward_plain(self, x: Tensor, xa: Tensor | None) -> Tensor:
        y = self._times(x)
        return y if xa is None else y.addmm_(xa, self.beside.t())

    def forward_wide_onto(self, residual: Tensor, wide_x: Tensor, scale: float = 1.0) -> Tensor:
        x, xa = wide_x[:, : self.inputs], wide_x[:, self.inputs :] if self.rank else None
        if xa is not None and applies(x, self.rank):
            return sum_with_lora(residual, self._times(x), xa, self.beside, scale)
        return torch.add(residual, self.forward_plain(x, xa), alpha=scale)

    def backward_wide(self, wide_dy: Tensor, seed: Tensor | None = None) -> Tensor:
        q, scale = quantise_rows(wide_dy[:, : self.outputs], self.scales)
        dx = scaled_product(q, scale, self._turned(), self._ones, self.dtype)
        return dx.addmm_(wide_dy[:, self.outputs :], self.below) if self.rank else dx

    def _turned(self) -> Tensor:
        """Return the transposed codes, in scratch that all groups of one shape share."""
        key = ("turned", self.inputs, self.outputs, self.device)
        if key not in self._shared:
            self._shared[key] = torch.empty((self.inputs, self.outputs), dtype=self.codes.dtype, device=self.device)
        return transposed(self.codes, self._shared[key])


GROUP = Fp8Group


def rounded(weight: Tensor) -> Tensor:
    """Return what layers compute with instead of `weight [out, in]`: quantised and decoded again, fp32."""
    codes, scales = reference(weight)
    return codes.float() * scales[:, None]
