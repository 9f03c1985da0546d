"""The norms of a decoder layer: RMSNorm and LayerNorm behind one face, found by what a module computes."""

from dataclasses import dataclass, field
from itertools import product
from typing import Any, NamedTuple

import torch
from nbtune_kernels import (
    add_rms_norm,
    layer_norm,
    layer_norm_apply,
    layer_norm_backward,
    rms_norm,
    rms_norm_add,
    rms_norm_apply,
    rms_norm_backward,
)
from nbtune_kernels.layer_norm import reference as plain_layer_norm
from nbtune_kernels.rms_norm import reference as plain_rms_norm
from torch import Tensor, nn

from nbtune.models.accelerate.lora_member import LeftAlone


class Stats(NamedTuple):
    """What a norm's backward needs of each row, fp32 `[rows]`; RMSNorm has no mean."""

    rstd: Tensor
    mean: Tensor | None = None


@dataclass
class Norm:
    """A norm over the last dimension: its weights, and which of the usual arithmetics it does.

    Args:
        weight, bias: `[H]`, or None.
        offset: is added to the weight.
        cast: RMSNorm's row is rounded before the weight, or after.
        centred: LayerNorm, which takes the mean off first.
        module: where the weights are from.
    """

    weight: nn.Parameter | None
    eps: float
    offset: float = 0.0
    cast: bool = True
    centred: bool = False
    bias: nn.Parameter | None = None
    module: nn.Module | None = None
    _factor: tuple[Tensor, int, int, torch.dtype] | None = field(default=None, repr=False)

    @property
    def how(self) -> dict[str, Any]:
        return {"offset": self.offset, "cast_before_mul": self.cast}

    def refresh(self) -> None:
        """Read the weights from its module again."""
        self.weight, self.bias = getattr(self.module, "weight", None), getattr(self.module, "bias", None)

    def parameters(self) -> list[nn.Parameter]:
        """Return what is trained, in the order of `backward`'s gradients."""
        return [p for p in (self.weight, self.bias) if p is not None and p.requires_grad]

    def factor(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return what a normalised row is multiplied with, `[H]`; made once for a frozen weight."""
        assert self.weight is not None
        made = self._factor
        known = (self.weight.data_ptr(), self.weight._version, dtype)
        if made is None or self.weight.requires_grad or made[1:] != known:
            value = self.weight.detach().to(dtype) + self.offset
            self._factor = made = (value, *known)
        return made[0]

    def _weight(self) -> Tensor | None:
        """Return LayerNorm's weight, its offset added."""
        return self.weight if self.weight is None or not self.offset else self.factor(self.weight.dtype)

    def forward(self, x: Tensor, out: Tensor | None = None) -> tuple[Tensor, Stats]:
        """Return y of x `[..., H]`."""
        if self.centred:
            y, mean, rstd = layer_norm(x, self._weight(), self.bias, self.eps, out=out)
            return y, Stats(rstd, mean)
        y, rstd = rms_norm(x, self.weight, self.eps, **self.how, out=out)
        return y, Stats(rstd)

    def again(self, x: Tensor, stats: Stats, out: Tensor | None = None) -> Tensor:
        """Return y once more."""
        if self.centred:
            assert stats.mean is not None
            return layer_norm_apply(x, self._weight(), self.bias, stats.mean, stats.rstd, out=out)
        return rms_norm_apply(x, self.weight, stats.rstd, **self.how, out=out)

    def of_sum(self, x: Tensor, residual: Tensor, scale: float, out: Tensor) -> tuple[Tensor, Stats]:
        """Return h = residual + scale * x [..., H], written over x, and y = norm(h) into `out`."""
        if self.centred:
            h = torch.add(residual, x, alpha=scale, out=x)
            return h, self.forward(h, out)[1]
        _, h, rstd = add_rms_norm(x, residual, self.weight, self.eps, **self.how, scale=scale, out=out, out_residual=x)
        return h, Stats(rstd)

    def onto(self, x: Tensor, residual: Tensor, scale: float) -> tuple[Tensor, Stats]:
        """Return residual + scale * norm(x), [..., H], and the statistics."""
        if self.centred or scale != 1.0:
            y, stats = self.forward(x)
            return torch.add(residual, y, alpha=scale, out=y), stats
        z, rstd = rms_norm_add(x, residual, self.weight, self.eps, **self.how)
        return z, Stats(rstd)

    def backward(
        self, dy: Tensor, x: Tensor, stats: Stats, *, dresidual: Tensor | None = None, out: Tensor | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """Return dx [..., H], with `dresidual` added, and the gradients of `parameters()`."""
        want = bool(self.parameters())
        if self.centred:
            assert stats.mean is not None
            dx, dw, db = layer_norm_backward(
                dy, x, self._weight(), stats.mean, stats.rstd, need_dweight=want, dresidual=dresidual, out=out
            )
        else:
            dx, dw = rms_norm_backward(
                dy, x, self.weight, stats.rstd, **self.how, need_dweight=want, dresidual=dresidual, out=out
            )
            db = None
        pairs = ((self.weight, dw), (self.bias, db))
        return dx, [g for p, g in pairs if p is not None and p.requires_grad and g is not None]


# ---------------------------------------------------------------- which one a module is


def tolerance(dtype: torch.dtype) -> float:
    """Return the relative error under which two ways to compute a block count as equal."""
    return {torch.float32: 2e-4, torch.float64: 1e-5, torch.float16: 6e-3}.get(dtype, 3e-2)


def relative_error(x: Tensor, truth: Tensor) -> float:
    """Return `|x - truth| / |truth|`, infinite where either is not finite."""
    x, truth = x.detach().double(), truth.detach().double()
    error = ((x - truth).norm() / truth.norm().clamp(min=1e-30)).item()
    return error if error == error else float("inf")


def find_norm(module: nn.Module | None, width: int, like: Tensor | None = None) -> Norm:
    """Return a norm, with the arithmetic that agrees with the module's own.

    Args:
        module: what is taken for a norm.
        width: of its rows.
        like: a tensor of the dtype and device that it works in, for one without a weight.

    Raises:
        LeftAlone: it is no norm over `width` numbers, or an unknown kind of one.
    """
    weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
    like = like if weight is None else weight
    if module is None or like is None:
        raise LeftAlone("it has a norm that is neither RMSNorm nor LayerNorm")
    if any(p is not None and tuple(p.shape) != (width,) for p in (weight, bias)):
        raise LeftAlone("one of its norms has another width than what it would be put on")
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8, width, generator=generator) * 2 + 0.5
    x[4:] /= 256  # where what is added to the variance shows
    x = x.to(like.device, like.dtype)
    told = [float(e) for n in _EPS if isinstance(e := getattr(module, n, None), float)]
    errors = {}
    with torch.no_grad():
        truth = module(x)
        for eps, offset, cast in product(told or (1e-5, 1e-6), (0.0, 1.0) if weight is not None else (0.0,), _BOTH):
            if bias is None:  # by plain torch: most of the kernels would not be used again
                errors[False, offset, cast, eps] = relative_error(plain_rms_norm(x, weight, eps, offset, cast), truth)
            if cast:
                shifted = None if weight is None else weight + offset
                errors[True, offset, True, eps] = relative_error(plain_layer_norm(x, shifted, bias, eps), truth)
    best = min(errors, key=lambda k: errors[k])
    if not errors[best] < tolerance(like.dtype) / 3:
        raise LeftAlone("one of its norms does not agree with any that is known")
    centred, offset, cast, eps = best
    return Norm(weight, eps, offset, cast, centred, bias, module)


_EPS = ("variance_epsilon", "eps", "epsilon", "layer_norm_eps", "layer_norm_epsilon", "rms_norm_eps", "norm_eps")
_BOTH = (True, False)
