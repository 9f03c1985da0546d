"""The MLP of a layer that keeps nothing, some thousand rows at a time: its scratch is not as tall as a micro-batch.

Rows do not know of each other in an MLP, so the values are the same; gradients of what is trained are summed. Every
other layer's MLP goes through `nbtune.models.accelerate.mlp_half` as a whole.
"""

import torch
from torch import Tensor

from nbtune.models.accelerate.attention_half import Attention
from nbtune.models.accelerate.layer_spec import Layer
from nbtune.models.accelerate.lora_linear import wide
from nbtune.models.accelerate.mlp_half import Mlp, activate, gate_up_for, sum_and_norm
from nbtune.models.accelerate.mlp_half import mlp_backward as whole_backward
from nbtune.models.accelerate.mlp_half import mlp_forward as whole_forward
from nbtune.models.accelerate.norm_grads import NormGrads
from nbtune.models.accelerate.norms import Stats
from nbtune.models.memory_estimate import MLP_ROWS


def mlp_forward(
    layer: Layer, x: Tensor, added: Tensor, attention: Attention, seed: Tensor | None, need_out: bool = True
) -> tuple[Tensor, Tensor | None, Mlp]:
    """Do as `mlp_half.mlp_forward`."""
    parts = _parts(layer, x.shape[0], seed)
    if not parts:
        return whole_forward(layer, x, added, attention, seed, need_out)
    group, down = layer.gate_up, layer.down
    group.load()
    wide_a = wide(x.shape[0], group.width_in, x)
    a, stats = sum_and_norm(layer, x, added, attention, wide_a[:, : group.inputs])
    saved = Mlp(stats, group.project_beside(wide_a), None, None)
    if not need_out:
        return a, None, saved
    down.load()
    if layer.post2 is not None:
        saved.added = _rows_through(layer, wide_a, None, saved, parts)
        out, saved.post = layer.post2.onto(saved.added, a, layer.residual)
        return a, out, saved
    base = torch.add(x, added, alpha=layer.residual, out=added) if layer.parallel else a
    return a, _rows_through(layer, wide_a, base, saved, parts), saved


def mlp_backward(
    layer: Layer, a: Tensor, saved: Mlp, dout: Tensor, norms: NormGrads
) -> tuple[Tensor, list[Tensor | None]]:
    """Do as `mlp_half.mlp_backward`."""
    parts = _parts(layer, a.shape[0], saved.seed) if saved.gate_up is None else []
    if not parts:
        return whole_backward(layer, a, saved, dout, norms)
    groups = (layer.gate_up, layer.down)
    for group in groups:
        group.load()
    sinks = [g.sink for g in groups if g.sink is not None and g.sink.open]
    before = [sink.accumulate for sink in sinks]
    wide_da = wide(a.shape[0], layer.out.width_out, a)
    grads: list[Tensor | None] = []
    for rows in parts:
        inner = NormGrads()
        da, made = whole_backward(layer, a[rows], _of_rows(saved, rows), dout[rows], inner, loaded=True)
        inner.jobs.run()
        norms.join(inner)
        wide_da[rows, : a.shape[1]] = da[:, : a.shape[1]]
        grads = made if not grads else [None if m is None else m + g for g, m in zip(grads, made, strict=True)]
        for sink in sinks:
            sink.accumulate = True
    for sink, value in zip(sinks, before, strict=True):
        sink.accumulate = value
    return wide_da, grads


def _parts(layer: Layer, tokens: int, seed: Tensor | None) -> list[slice]:
    """Return which rows go together; [] where all do. Dropout's masks count rows from the first, and two matrices that
    are decoded into one place take turns."""
    lean = layer.policy in ("recompute", "offload") and seed is None and not layer.sharded and tokens > MLP_ROWS
    apart = (layer.gate_up.outputs, layer.gate_up.inputs) != (layer.down.outputs, layer.down.inputs)
    return [slice(i, min(i + MLP_ROWS, tokens)) for i in range(0, tokens, MLP_ROWS)] if lean and apart else []


def _rows_through(layer: Layer, wide_a: Tensor, base: Tensor | None, saved: Mlp, parts: list[slice]) -> Tensor:
    """Return the MLP's output of its input (with xA' beside it), onto a base if there is one; down's xA' is saved."""
    down = layer.down
    out = torch.empty((wide_a.shape[0], down.outputs), dtype=wide_a.dtype, device=wide_a.device)
    kept = []
    for rows in parts:
        xa, of_base = (None if t is None else t[rows] for t in (saved.xa, base))
        kept.append(_part_through(layer, wide_a[rows], xa, of_base, out[rows]))
    whole = [ha for ha in kept if ha is not None]
    saved.ha = torch.cat(whole) if whole else None
    return out


def _part_through(layer: Layer, wide_a: Tensor, xa: Tensor | None, base: Tensor | None, out: Tensor) -> Tensor | None:
    """Write some rows of the MLP's output into `out`; return down's xA'. All else that it has made is gone by then:
    in a loop the last part's would stand beside the next one's."""
    down = layer.down
    both, lacking = gate_up_for(layer, wide_a, xa, None)
    wide_h = wide(wide_a.shape[0], down.width_in, wide_a)
    activate(layer, both, lacking, wide_h[:, : down.inputs])
    del both
    ha = down.project_beside(wide_h)
    if base is None:
        down.forward(wide_h, out)
    else:
        out.copy_(down.forward_wide_onto(base, wide_h, layer.residual))
    return ha


def _of_rows(saved: Mlp, rows: slice) -> Mlp:
    def part(x: Tensor | None) -> Tensor | None:
        return None if x is None else x[rows]

    def stats(s: Stats | None) -> Stats | None:
        return None if s is None else Stats(s.rstd[rows], part(s.mean))

    return Mlp(stats(saved.stats), part(saved.xa), None, None, part(saved.ha), part(saved.added), stats(saved.post))
