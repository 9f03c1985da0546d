"""A decoder layer whose attention, norms and sums are ours, and whose MLP stays a module: a mixture of experts.

    a, u2 = sums(x)        one autograd function: attention, the sum behind it, and the norm before the MLP
    out   = a + m post2(mlp(u2))

The MLP is called as stock does; its experts compute by groups where they are understood (`experts.py`). Under `keep`
and `selective` the function saves what `LayerFunction` does of attention; else x alone (parked in the host's memory
under `offload`). But under `keep` the MLP is computed again too: of experts gates and ups alone, of others all.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from nbtune.models.accelerate.attention_half import Attention, attention_backward, attention_forward
from nbtune.models.accelerate.layer_autograd import LayerFunction, angles_of, grad_of_attention
from nbtune.models.accelerate.layer_spec import Layer
from nbtune.models.accelerate.lm_head import NormFunction
from nbtune.models.accelerate.lora_linear import wide
from nbtune.models.accelerate.mlp_half import sum_and_norm
from nbtune.models.accelerate.norm_grads import NormGrads
from nbtune.models.accelerate.norms import Stats
from nbtune.models.accelerate.shared_tokens import Together

_KEEPING = ("keep", "selective")


def run_layer(
    layer: Layer, x: Tensor, angles: tuple[Tensor | None, Tensor | None], packing: Together | None,
    parameters: list[nn.Parameter],
) -> Tensor:  # fmt: skip
    """Return what a layer makes of x `[B, S, H]`; arguments as of `LayerFunction`, its parameters last."""
    cos, sin = angles
    if layer.offload is not None:
        layer.offload.wanted = torch.is_grad_enabled()
    if layer.mlp is None:
        return LayerFunction.apply(layer, x, cos, sin, packing, *parameters)  # type: ignore[no-any-return, no-untyped-call]
    own = parameters if layer.post2 is None else _but_last(layer)
    a, u = AttentionFunction.apply(layer, x, cos, sin, packing, *own)  # type: ignore[no-untyped-call]
    y = _mlp(layer, u)
    if layer.post2 is not None:
        y = NormFunction.apply(layer.post2, y, *layer.post2.parameters())
    return torch.add(a, y, alpha=layer.residual)


def _but_last(layer: Layer) -> list[nn.Parameter]:
    """Return what is trained in the layer but the norm behind the MLP."""
    norms = [p for n in layer.norms() if n is not layer.post2 for p in n.parameters()]
    return norms + [p for g in layer.groups() for p in g.parameters()]


def _mlp(layer: Layer, u: Tensor) -> Tensor:
    assert layer.mlp is not None
    if layer.policy == "keep" or layer.lean or not torch.is_grad_enabled():
        found = layer.mlp(u)
    else:
        found = checkpoint(layer.mlp, u, use_reentrant=False, preserve_rng_state=draws_noise(layer.mlp))
    return found[0] if isinstance(found, tuple) else found  # type: ignore[no-any-return]


def draws_noise(mlp: nn.Module) -> bool:
    """Return whether its router adds noise: its random numbers must come again."""
    values = (v for m in mlp.modules() for name, v in vars(m).items() if "jitter" in name or "noise" in name)
    return any(isinstance(v, int | float) and bool(v) for v in values)


class AttentionFunction(torch.autograd.Function):
    """See `run_layer`; x to (a, u2). Its backward can run once."""

    @staticmethod
    def forward(
        ctx: Any, layer: Layer, x: Tensor, cos: Tensor | None, sin: Tensor | None, packing: Together | None,
        *_: nn.Parameter,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        shape, flat, seed = (x.shape[0], x.shape[1]), x.reshape(-1, x.shape[-1]), layer.draws.seed
        a, u, attention, stats = _sums(layer, flat, shape, angles_of(cos, sin), packing, seed)
        ctx.layer, ctx.shape, ctx.packing, ctx.seed = layer, shape, packing, seed
        if layer.policy in _KEEPING:
            ctx.save_for_backward(flat, a, cos, sin)
            ctx.saved = (attention, stats)
        else:
            offload = layer.offload if layer.policy == "offload" else None
            ctx.save_for_backward(flat if offload is None else None, None, cos, sin)
            ctx.saved = None if offload is None else offload.park(flat)
        ctx.done = False
        return a.view(x.shape), u.view(x.shape)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        layer: Layer = ctx.layer
        x, a, cos, sin = ctx.saved_tensors
        if ctx.done:
            raise RuntimeError("an accelerated layer keeps its activations for one backward only")
        angles = angles_of(cos, sin)
        if a is not None:
            attention, stats = ctx.saved
        else:
            if x is None:
                assert layer.offload is not None
                x = layer.offload.fetch(ctx.saved)
            a, _, attention, stats = _sums(layer, x, ctx.shape, angles, ctx.packing, ctx.seed)
        ctx.saved, ctx.done = None, True
        norms = NormGrads()
        da, du = (g.reshape(x.shape) for g in grads)
        wide_da = wide(x.shape[0], layer.out.width_out, x)
        norms.backward(layer.pre2, du, a, stats, da, wide_da[:, : x.shape[1]])
        wide_dy = grad_of_attention(layer, x, attention, da, wide_da, norms)
        dx, of_linears = attention_backward(
            layer, x, attention, angles, wide_da[:, : x.shape[1]], wide_dy, ctx.needs_input_grad[1], norms
        )
        norms.jobs.run()
        dx = None if dx is None else dx.view(*ctx.shape, -1)
        own = [g for n in layer.norms() if n is not layer.post2 for g in norms.of(n)]
        return (None, dx, None, None, None, *own, *of_linears)


def _sums(
    layer: Layer, x: Tensor, shape: tuple[int, int], angles: Any, packing: Together | None, seed: Tensor | None
) -> tuple[Tensor, Tensor, Attention, Stats | None]:
    added, attention = attention_forward(layer, x, shape, angles, packing, seed)
    u = torch.empty_like(x)
    a, stats = sum_and_norm(layer, x, added, attention, u)
    return a, u, attention, stats
