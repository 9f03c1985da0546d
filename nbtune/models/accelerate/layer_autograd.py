"""One decoder layer, as `Layer` describes it, as a single autograd function.

`keep` saves x, [q k v] after the rotary, the attention's output and its log-sum-exp, a, and [gate up]: no product's
input twice, no norm's or activation's output at all (they are memory-bound, and computed again). Where a norm stands
behind a half, what that norm has read is kept (and no a, which is the sum of two others). `selective` drops [gate up],
`recompute` everything but x; `offload` parks x in pinned host memory meanwhile, and what a norm behind the MLP has
read beside it.
"""

from typing import Any

import torch
from torch import Tensor, nn

from nbtune.models.accelerate.attention_half import Attention, attention_backward, attention_forward
from nbtune.models.accelerate.layer_spec import Angles, Layer
from nbtune.models.accelerate.lora_linear import wide
from nbtune.models.accelerate.mlp_by_rows import mlp_backward, mlp_forward
from nbtune.models.accelerate.mlp_half import Mlp, sum_again
from nbtune.models.accelerate.norm_grads import NormGrads
from nbtune.models.accelerate.shared_tokens import Together


class LayerFunction(torch.autograd.Function):
    """A whole decoder layer; see the module's docstring. Its backward can run once (it works in its own buffers)."""

    @staticmethod
    def forward(
        ctx: Any, layer: Layer, x: Tensor, cos: Tensor | None, sin: Tensor | None, packing: Together | None,
        *_: nn.Parameter,
    ) -> Tensor:  # fmt: skip
        shape = (x.shape[0], x.shape[1])
        flat = x.reshape(-1, x.shape[-1])
        seed = layer.draws.seed
        added, attention = attention_forward(layer, flat, shape, angles_of(cos, sin), packing, seed)
        a, out, mlp = mlp_forward(layer, flat, added, attention, seed)
        assert out is not None
        ctx.layer, ctx.shape, ctx.packing, ctx.seed = layer, shape, packing, seed
        if layer.policy in ("keep", "selective"):
            ctx.save_for_backward(flat, None if layer.parallel or layer.post1 is not None else a, cos, sin)
            ctx.halves = (attention, mlp)
        else:
            tickets, offload = None, layer.offload if layer.policy == "offload" else None
            if offload is not None:  # what is fetched last is parked first
                behind = None if mlp.added is None else (offload.park(mlp.added), mlp.post)
                tickets = (offload.park(flat), behind)
            ctx.save_for_backward(None if tickets else flat, None, cos, sin)
            ctx.halves = (mlp.ha, tickets)
        return out.view(x.shape)

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple:  # type: ignore[override]
        layer: Layer = ctx.layer
        x, a, cos, sin = ctx.saved_tensors
        if ctx.halves is None:
            raise RuntimeError("an accelerated layer keeps its activations for one backward only")
        layer.refresh()
        angles = angles_of(cos, sin)
        if isinstance(ctx.halves[0], Attention):
            attention, mlp = ctx.halves
            a = sum_again(layer, x, attention) if a is None else a
        else:
            x, a, attention, mlp = _once_more(ctx, x, angles)
        ctx.halves = None
        norms = NormGrads()
        dout = dout.reshape(x.shape)
        wide_da, grads_mlp = mlp_backward(layer, a, mlp, dout, norms)
        del mlp, a
        wide_dy = grad_of_attention(layer, x, attention, dout, wide_da, norms)
        dx, grads_attention = attention_backward(
            layer, x, attention, angles, wide_da[:, : x.shape[1]], wide_dy, ctx.needs_input_grad[1], norms
        )
        norms.jobs.run()  # of both halves: fewer launches
        dx = None if dx is None else dx.view(*ctx.shape, -1)
        of_norms = [g for n in layer.norms() for g in norms.of(n)]
        return (None, dx, None, None, None, *of_norms, *grads_attention, *grads_mlp)


def angles_of(cos: Tensor | None, sin: Tensor | None) -> Angles | None:
    return None if cos is None or sin is None else (cos, sin)


def _once_more(ctx: Any, x: Tensor | None, angles: Angles | None) -> tuple[Tensor, Tensor, Attention, Mlp]:
    """Compute x, a, and what both halves had saved, again from x."""
    layer: Layer = ctx.layer
    ha, tickets = ctx.halves
    behind = None
    if tickets is not None:
        assert layer.offload is not None
        x, behind = layer.offload.fetch(tickets[0]), tickets[1]
    assert x is not None
    added, attention = attention_forward(layer, x, ctx.shape, angles, ctx.packing, ctx.seed)
    # what a norm behind the MLP has read takes down's product too, where it was not parked
    again = layer.post2 is not None and behind is None
    a, _, mlp = mlp_forward(layer, x, added, attention, ctx.seed, need_out=again)
    mlp.ha = ha
    if behind is not None:
        mlp.added, mlp.post = layer.offload.fetch(behind[0]), behind[1]  # type: ignore[union-attr]
    return x, a, attention, mlp


def grad_of_attention(
    layer: Layer, x: Tensor, saved: Attention, dout: Tensor, wide_da: Tensor, norms: NormGrads
) -> Tensor:
    """Return the gradient of what attention has added, in a buffer with room for LoRA's beside it."""
    da, m = dout if layer.parallel else wide_da[:, : x.shape[1]], layer.residual
    if layer.post1 is None and m == 1.0 and not layer.parallel:
        return wide_da
    wide_dy = wide(x.shape[0], layer.out.width_out, x)
    place = wide_dy[:, : layer.out.outputs]
    if layer.post1 is not None:
        assert saved.added is not None
        norms.backward(layer.post1, da if m == 1.0 else da * m, saved.added, saved.post, None, place)
        saved.added = None
    else:
        torch.mul(da, m, out=place)
    return wide_dy
