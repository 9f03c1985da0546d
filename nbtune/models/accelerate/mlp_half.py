"""The MLP of a decoder layer, gated or plain, with the sum before it, and back."""

from dataclasses import dataclass

import torch
from nbtune_kernels import act_mul, act_mul_backward
from torch import Tensor

from nbtune.models.accelerate.attention_half import Attention
from nbtune.models.accelerate.grad_sinks import Ready
from nbtune.models.accelerate.layer_spec import Layer
from nbtune.models.accelerate.lora_epilogues import act_with_lora
from nbtune.models.accelerate.lora_linear import wide
from nbtune.models.accelerate.norm_grads import NormGrads, seen
from nbtune.models.accelerate.norms import Stats
from nbtune.models.accelerate.triton_epilogues import Partials, act_backward_grads, applies


@dataclass
class Mlp:
    """Saved by the MLP half."""

    stats: Stats | None
    xa: Tensor | None
    seed: Tensor | None
    gate_up: Tensor | None
    ha: Tensor | None = None
    added: Tensor | None = None  # what a norm behind it has read
    post: Stats | None = None


def mlp_forward(
    layer: Layer, x: Tensor, added: Tensor, attention: Attention, seed: Tensor | None, need_out: bool = True
) -> tuple[Tensor, Tensor | None, Mlp]:
    """Return a (x itself in a parallel layer), out `[T, H]`, and what the backward needs, of x and
    what attention adds."""
    group, down = layer.gate_up, layer.down
    group.load()
    wide_a = wide(x.shape[0], group.width_in, x)
    a, stats = sum_and_norm(layer, x, added, attention, wide_a[:, : group.inputs])
    saved = Mlp(stats, group.project_beside(wide_a, seed), seed, None)
    if not need_out:
        saved.gate_up = gate_up_of(layer, wide_a)
        return a, None, saved
    saved.gate_up, lacking = gate_up_for(layer, wide_a, saved.xa, seed)
    del wide_a
    wide_h = wide(x.shape[0], down.width_in, x)
    down.load()
    activate(layer, saved.gate_up, lacking, wide_h[:, : down.inputs])
    saved.ha = down.project_beside(wide_h, seed)
    if layer.post2 is not None:
        saved.added = torch.empty_like(x)
        down.forward(wide_h, saved.added)
        out, saved.post = layer.post2.onto(saved.added, a, layer.residual)
    else:
        base = torch.add(x, added, alpha=layer.residual, out=added) if layer.parallel else a
        out = down.forward_wide_onto(base, wide_h, layer.residual)
    if layer.policy == "selective":
        saved.gate_up = None
    return a, out, saved


def sum_and_norm(layer: Layer, x: Tensor, added: Tensor, saved: Attention, y: Tensor) -> tuple[Tensor, Stats | None]:
    """Return a, which may lie where `added` did (it is nobody else's), and pre2's row numbers; the MLP's input goes
    into y."""
    pre = layer.pre2
    if layer.parallel:
        a = x
    elif layer.post1 is not None:
        a, saved.post = layer.post1.onto(added, x, layer.residual)
        saved.added = added
    elif pre is not None:
        return pre.of_sum(added, x, layer.residual, y)
    else:
        a = torch.add(x, added, alpha=layer.residual, out=added)
    if pre is None:
        y.copy_(a)
        return a, None
    return a, pre.forward(a, y)[1]


def sum_again(layer: Layer, x: Tensor, saved: Attention) -> Tensor:
    """Return a once more, where it was not kept."""
    if layer.parallel:
        return x
    assert layer.post1 is not None
    assert saved.added is not None
    return layer.post1.onto(saved.added, x, layer.residual)[0]


def gate_up_of(layer: Layer, wide_a: Tensor) -> Tensor:
    """Return [gate up] `[T, 2 I]`, or up `[T, I]`, in a buffer with room for the LoRA of the way back."""
    return layer.gate_up.forward_with_room(wide_a)


def gate_up_for(layer: Layer, wide_a: Tensor, xa: Tensor | None, seed: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Return what `gate_up_of` does, for `activate`; and xA', where it is to add LoRA's share."""
    group, rank = layer.gate_up, layer.gate_up.rank // 2
    if layer.gated and xa is not None and seed is None and group.ranks == [rank, rank] and applies(wide_a, rank):
        frozen = group.frozen_with_room(wide_a)
        if frozen is not None:
            return frozen, xa
    return gate_up_of(layer, wide_a), None


def activate(layer: Layer, both: Tensor, lacking: Tensor | None, h: Tensor) -> None:
    """Write the activation of what `gate_up_for` returned into h `[T, I]`, which makes it whole."""
    gate, up = halves(layer, both)
    if lacking is None or up is None:
        act_mul(gate, up, act=layer.act, out=h)
    else:
        act_with_lora(gate, up, lacking, layer.gate_up.sb, layer.act, h)


def halves(layer: Layer, both: Tensor | None) -> tuple[Tensor, Tensor | None]:
    assert both is not None
    i = layer.down.inputs
    return both[:, :i], both[:, i : 2 * i] if layer.gated else None


def mlp_backward(
    layer: Layer, a: Tensor, saved: Mlp, dout: Tensor, norms: NormGrads, *, loaded: bool = False
) -> tuple[Tensor, list[Tensor | None]]:
    """Return da of dout `[T, H]`, and gradients of the linear layers. da has room for the LoRA of attention's output
    beside it where it also is the gradient of what attention has added.

    Args:
        loaded: both matrices are there already; these are not all rows.
    """
    group, down, tokens = layer.gate_up, layer.down, a.shape[0]
    again = saved.gate_up is None
    if again and not loaded:
        group.load()
    if again:
        saved.gate_up = _again(layer, a, saved)
    wide_dy = _grad_of_down(layer, a, saved, dout, norms)
    if not loaded:
        down.load()
    dha = down.dxa_beside(wide_dy)
    dh = down.backward_wide(wide_dy, saved.seed)
    made = _activation_backward(layer, saved, dh, dha)
    dy = wide_dy[:, : down.outputs]
    ready = None if made is None else Ready(made, a=0)
    grads_down = down.gradients(norms.jobs, dh, dy, saved.ha, dha, ready=ready, seed=saved.seed)
    wide_d: Tensor = saved.gate_up  # type: ignore[assignment]
    saved.gate_up = None
    if not loaded and (not again or group.matrix is down.matrix):
        group.load()
    rows = saved.stats.rstd if saved.stats is not None and saved.seed is None and seen(layer.pre2) else None
    dxa = group.dxa_beside(wide_d, rows)
    dnorm = group.backward_wide(wide_d, saved.seed)
    source = norms.source(layer.pre2, a, saved.stats, group)
    grads_gu = group.gradients(
        norms.jobs, source.x, wide_d[:, : group.outputs], saved.xa, dxa, rows=source.rows, columns=source.columns,
        ready=None if made is None else Ready(made, bs=(1, 2)), seed=saved.seed,
    )  # fmt: skip
    wide_da = wide(tokens, layer.out.width_out, a)
    norms.backward(layer.pre2, dnorm, a, saved.stats, dout, wide_da[:, : a.shape[1]])
    return wide_da, [*grads_gu, *grads_down]


def _grad_of_down(layer: Layer, a: Tensor, saved: Mlp, dout: Tensor, norms: NormGrads) -> Tensor:
    """Return the gradient of what the MLP has added, in a buffer with room for LoRA's beside it."""
    down, m = layer.down, layer.residual
    if layer.post2 is not None:
        assert saved.added is not None
        wide_dy = wide(a.shape[0], down.width_out, a)
        behind = dout if m == 1.0 else dout * m
        norms.backward(layer.post2, behind, saved.added, saved.post, None, wide_dy[:, : down.outputs])
        saved.added = None
        return wide_dy
    found = layer.lane.take(dout, down.width_out) if m == 1.0 else None
    if found is None:
        found = wide(a.shape[0], down.width_out, a)
        torch.mul(dout, m, out=found[:, : down.outputs])
    return found


def _activation_backward(layer: Layer, saved: Mlp, dh: Tensor, dha: Tensor | None) -> Partials | None:
    """Turn gate and up into their gradients. The LoRA gradients that come with it, or None: then dh holds h."""
    gate, up = halves(layer, saved.gate_up)
    r = layer.down.rank
    if up is not None and dha is not None and saved.xa is not None and saved.seed is None:
        same = layer.gate_up.ranks == [r, r]
        made = act_backward_grads(dh, gate, up, layer.act, dha, saved.xa, r) if same else None
        if made is not None:
            return made
    need_h = bool(layer.down.parameters())
    h = dh if need_h else None
    act_mul_backward(dh, gate, up, act=layer.act, need_h=need_h, out_h=h, out_dgate=gate, out_dup=up)
    return None


def _again(layer: Layer, a: Tensor, saved: Mlp) -> Tensor:
    """Compute [gate up] once more, from the saved numbers of rows and xA'."""
    group = layer.gate_up
    wide_a = wide(a.shape[0], group.width_in, a)
    y = wide_a[:, : group.inputs]
    if layer.pre2 is None:
        y.copy_(a)
    else:
        assert saved.stats is not None
        layer.pre2.again(a, saved.stats, y)
    if saved.xa is not None:
        wide_a[:, group.inputs :].copy_(saved.xa)
    return gate_up_of(layer, wide_a)
