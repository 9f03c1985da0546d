"""Compares an accelerated layer with its stock forward: outputs and gradients, on a few random tokens."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from nbtune.models.accelerate.blocks import LayerFunction
from nbtune.models.accelerate.find import relative_error, tolerance
from nbtune.models.accelerate.layer import Layer
from nbtune.models.accelerate.linear import LeftAlone, LinearGroup

__all__ = ["Inputs", "probe_inputs", "probe_layer", "without_dropout"]

_ROWS, _TOKENS = 2, 16  # Triton compiles once for all numbers of tokens that are multiples of 16


class Inputs:
    """Random hidden states and the model's own rotary angles for them."""

    def __init__(self, x: Tensor, grad: Tensor, position_ids: Tensor, cos: Tensor, sin: Tensor, mask: Tensor):
        self.x, self.grad, self.position_ids, self.cos, self.sin, self.mask = x, grad, position_ids, cos, sin, mask


def probe_inputs(inner: nn.Module, group: LinearGroup) -> Inputs:
    """Makes tokens of the width that the group takes, in its dtype and on its device.

    Raises:
        LeftAlone: the model has no rotary embedding that its layers share.
    """
    rotary = getattr(inner, "rotary_emb", None)
    if rotary is None:
        raise LeftAlone("its layers share no rotary embedding")
    generator, hidden, like = torch.Generator().manual_seed(1), group.inputs, group
    # small, so that what a block adds is not hidden by the rounding of what passes by it
    x = (torch.randn(_ROWS, _TOKENS, hidden, generator=generator) / 32).to(like.device, like.dtype)
    grad = torch.randn(_ROWS, _TOKENS, hidden, generator=generator).to(like.device, like.dtype)
    position_ids = torch.arange(_TOKENS, device=like.device)[None]
    with torch.no_grad():
        cos, sin = rotary(x, position_ids)
    mask = torch.full((_TOKENS, _TOKENS), torch.finfo(like.dtype).min, device=like.device, dtype=like.dtype).triu(1)
    return Inputs(x, grad, position_ids, cos, sin, mask[None, None].expand(_ROWS, 1, -1, -1))


def probe_layer(
    module: nn.Module, stock: Callable[..., Any], layer: Layer, sync: Callable[[], None], inputs: Inputs, grads: bool
) -> None:
    """Runs both, without dropout; a zero B of the LoRA is filled for the while, or its A would not be tested.

    Raises:
        LeftAlone: they do not agree.
    """
    limit = max(tolerance(inputs.x.dtype), *(group.slack for group in layer.groups()))
    with (
        _filled(layer),
        without_dropout(module),
        torch.enable_grad(),
    ):  # bitsandbytes repacks 4-bit weights on a CPU without it
        sync()
        runs = []
        for call in (lambda x: _stock(layer, stock, inputs, x), lambda x: _ours(layer, inputs, x)):
            x = inputs.x.clone().requires_grad_()
            out = call(x)
            found = {"its output": out - inputs.x}
            if grads:
                wanted = [x, *layer.parameters()]
                for i, g in enumerate(torch.autograd.grad(out, wanted, inputs.grad)):
                    # the gradient that passes by would hide the block's own
                    found["its input's gradient" if i == 0 else f"gradient {i}"] = g - inputs.grad if i == 0 else g
            runs.append(found)
    sync()
    for name, truth in runs[0].items():
        error = relative_error(runs[1][name], truth)
        if not error <= limit:
            raise LeftAlone(f"the probe disagrees: {name} is off by {error:.1e} of its size (allowed {limit:.0e})")


def _stock(layer: Layer, stock: Callable[..., Any], inputs: Inputs, x: Tensor) -> Tensor:
    out = stock(
        x,
        attention_mask=inputs.mask,
        position_ids=inputs.position_ids,
        position_embeddings=(inputs.cos, inputs.sin),
        use_cache=False,
    )
    layer.as_tuple = isinstance(out, tuple)  # asked of what it does: annotations of transformers say otherwise
    return out[0] if isinstance(out, tuple) else out


def _ours(layer: Layer, inputs: Inputs, x: Tensor) -> Tensor:
    return LayerFunction.apply(layer, x, inputs.cos, inputs.sin, None, *layer.parameters())


@contextmanager
def without_dropout(module: nn.Module) -> Iterator[None]:
    """Its dropout layers let everything through."""
    dropping = [m for m in module.modules() if isinstance(m, nn.Dropout) and m.training]
    for m in dropping:
        m.eval()
    try:
        yield
    finally:
        for m in dropping:
            m.train()


@contextmanager
def _filled(layer: Layer) -> Any:
    """LoRA's B is zero at the start: random numbers stand in while a layer is probed."""
    members = [m for g in layer.groups() for m in g.members if m.b is not None]
    kept = [m.b.detach().clone() for m in members]  # type: ignore[union-attr]
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for m in members:
            m.b.copy_(torch.randn(m.b.shape, generator=generator) * 0.02)  # type: ignore[union-attr]
    try:
        yield
    finally:
        with torch.no_grad():
            for m, b in zip(members, kept, strict=True):
                m.b.copy_(b)  # type: ignore[union-attr]
