"""A group of linear layers whose frozen weights are 4-bit: decoded once for the forward, and once for the backward.

The decoded matrix is scratch that all layers of one shape share; what lies beside it for LoRA is kept by each group.
Scratch that holds a group's weights still, as after a layer was computed again, is used as it is. Where the packed
weights wait in the host's memory, they travel as 16-bit ones do, in a quarter of the time.
"""

from typing import Any

import torch
from nbtune_kernels import nf4
from torch import Tensor, nn

from nbtune.device import pinnable
from nbtune.errors import ExportError
from nbtune.models.accelerate.cpu_offload import Place, Traffic, traffic_for
from nbtune.models.accelerate.lora_member import LeftAlone
from nbtune.models.accelerate.shared_buffers import EdgedGroup, Scratch, shared_scratch


class Nf4Group(EdgedGroup):
    """Like `LinearGroup`, of bitsandbytes' 4-bit layers (nf4 or fp4, absmax quantised or not)."""

    scratch: Scratch

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
        self.matrix, self.scratch = shared_scratch(self, shared)
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
        if self.scratch.holds is self:
            return
        k, start = self.inputs, 0
        for m, width, packed in zip(self.members, self.outs, self._packed(), strict=True):
            _decode(packed, m.base.weight.quant_state, self.matrix[start : start + width, :k])
            start += width
        self.write_edges()
        self.scratch.holds = self

    def _packed(self) -> list[Tensor]:
        """Return the packed weights of each layer, on the device."""
        return [m.base.weight.data for m in self.members]


GROUP = Nf4Group


class StreamedNf4Group(Nf4Group):
    """Like `Nf4Group`, with its packed weights in pinned host memory; their scales stay on the device."""

    host: Tensor  # uint8 [bytes of all layers]
    place: Place | None = None
    places: int | None = None
    away = True

    def attach(self, shared: dict[Any, Tensor]) -> None:
        self.traffic: Traffic = traffic_for(self.device, shared)
        weights = [m.base.weight.data for m in self.members]
        self._sizes, self._shapes = [w.numel() for w in weights], [w.shape for w in weights]
        pinned = self.device.type == "cuda" and pinnable()
        self.host = torch.empty(sum(self._sizes), dtype=torch.uint8, pin_memory=pinned)
        for w, part in zip(weights, self.host.split(self._sizes), strict=True):
            part.copy_(w.reshape(-1).view(torch.uint8))
        self._put_packed(self.host)
        super().attach(shared)

    @property
    def kind(self) -> Any:
        """Groups of one kind share their places on the device."""
        return "nf4", self.inputs, tuple(self.outs)

    def empty(self) -> Tensor:
        """Return memory for the packed weights on the device."""
        return torch.empty(sum(self._sizes), dtype=torch.uint8, device=self.device)

    def landing(self, place: Tensor) -> Tensor:
        """Return where in a place the packed weights come to lie."""
        return place

    def detach(self) -> None:
        self._put_packed(self.host.to(self.device, copy=True))
        super().detach()

    def lend(self) -> None:
        """Give the stock layers their packed weights on the device, for one forward."""
        self.place = self.traffic.bring(self)
        self.place.used = float("inf")
        self._put_packed(self.place.matrix)

    def take_back(self) -> None:
        """Take back what `lend` lent."""
        assert self.place is not None
        self.place.used = -10
        self._put_packed(self.host)

    def _packed(self) -> list[Tensor]:
        return list(self.traffic.bring(self).matrix.split(self._sizes))

    def _put_packed(self, packed: Tensor) -> None:
        for m, part, shape in zip(self.members, packed.split(self._sizes), self._shapes, strict=True):
            m.base.weight.data = part.view(shape)


def codes_of(packed: Tensor, state: Any) -> nf4.Codes:
    """Return bitsandbytes' packed weights and their `QuantState` as the kernels take them."""
    code = state.code.float()
    if state.nested:
        inner, outer, each = state.state2.code.float(), state.state2.absmax.float(), state.state2.blocksize
        return nf4.Codes(packed, code, state.blocksize, state.absmax, inner, outer, each, state.offset)
    return nf4.Codes(packed, code, state.blocksize, state.absmax.float())


def _decode(packed: Tensor, state: Any, out: Tensor) -> None:
    codes = codes_of(packed, state)
    if nf4.fits(codes, out):
        nf4.decode(codes, out)
        return
    from bitsandbytes.functional import dequantize_4bit

    out.copy_(dequantize_4bit(packed.view(-1, 1), state))


def bring_codes(module: nn.Module, device: torch.device) -> None:
    """Bring the scales of 4-bit layers to the device: where they belong to a weight, moving a module leaves them."""
    for layer in module.modules():
        state = getattr(getattr(layer, "weight", None), "quant_state", None)
        if state is not None:
            state.to(device)


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
