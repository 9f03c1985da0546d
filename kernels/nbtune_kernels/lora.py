"""LoRA's small products, grouped: `y_i = x W_i^T + s_i (x A_i^T) B_i^T` for projections i that share one input x.

    xa   = x A^T                    A = the A_i stacked, [R, H];  R = sum of ranks           (lora_xa)
    y_i += s_i xa_i B_i^T           in place on y_i: `lora_add_`, or GEMM's own beta
    dxa_i = s_i dy_i B_i            one launch for all i                                     (lora_dxa)
    dA   = dxa^T x                  one product for the stack                                (lora_grads)
    dB_i = s_i dy_i^T xa_i          one launch with dA
    dx  += dxa A

Hu et al. 2021, arXiv 2106.09685. All sums are in fp32 and in a fixed order: two runs give the same bits.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ._runtime import op, rows


def reference(x: Tensor, w: Tensor, a: Tensor, b: Tensor, scaling: float, bias: Tensor | None = None) -> Tensor:
    """peft's arithmetic for one projection (no dropout), differentiable by autograd."""
    y = torch.nn.functional.linear(x, w, bias)
    return y + torch.nn.functional.linear(torch.nn.functional.linear(x.to(a.dtype), a), b).to(y.dtype) * scaling


def _mm(a: Tensor, b: Tensor, dtype: torch.dtype) -> Tensor:
    """a @ b for operands of one dtype, given back as `dtype`."""
    common = torch.promote_types(a.dtype, b.dtype)
    return (a.to(common) @ b.to(common)).to(dtype)


@op(
    "lora_xa(Tensor x, Tensor a) -> Tensor",
    lambda x, a: x.new_empty((*x.shape[:-1], a.shape[0])),
)
def _lora_xa(x, a):
    out = torch.empty((*x.shape[:-1], a.shape[0]), dtype=x.dtype, device=x.device)
    _xa(x, a, out)
    return out


@op("lora_xa_out(Tensor x, Tensor a, Tensor(a!) out) -> ()", lambda x, a, out: None)
def _lora_xa_out(x, a, out):
    _xa(x, a, out)


def _xa(x: Tensor, a: Tensor, out: Tensor) -> None:
    out.copy_(_mm(rows(x), a.to(x.dtype).t(), x.dtype).view(out.shape))


@op(
    "lora_dxa(Tensor[] dys, Tensor[] bs, float[] scalings) -> Tensor",
    lambda dys, bs, s: dys[0].new_empty((*dys[0].shape[:-1], sum(b.shape[1] for b in bs))),
)
def _lora_dxa(dys, bs, scalings):
    parts = [_mm(rows(dy), b.to(dy.dtype), dy.dtype) * s for dy, b, s in zip(dys, bs, scalings, strict=True)]
    return torch.cat(parts, -1).view(*dys[0].shape[:-1], -1)


@op(
    "lora_grads_out(Tensor[] us, Tensor[] vs, float[] scales, Tensor(a!)[] outs, bool[] transposed, bool accumulate) -> ()",
    lambda us, vs, scales, outs, transposed, accumulate: None,
)
def _lora_grads_out(us, vs, scales, outs, transposed, accumulate):
    for u, v, s, out, flip in zip(us, vs, scales, outs, transposed, strict=True):
        u2, v2 = rows(u), rows(v)
        g = (v2.float().t() @ u2.float() if flip else u2.float().t() @ v2.float()) * s
        out.add_(g.to(out.dtype)) if accumulate else out.copy_(g)


def lora_xa(x: Tensor, a: Tensor, *, out: Tensor | None = None) -> Tensor:
    """`x [..., H] @ a [R, H]^T -> [..., R]` in x's dtype. `out` may be a strided slice of a wider buffer."""
    if out is not None:
        _lora_xa_out(x, a, out)
        return out
    return _lora_xa(x, a)


def lora_add_(y: Tensor, xa: Tensor, b: Tensor, scaling: float) -> Tensor:
    """`y [T, O] += scaling * xa [T, r] @ b [O, r]^T` in place (cuBLAS, beta = 1); y and xa may be column slices."""
    return y.addmm_(xa, b.to(y.dtype).t(), alpha=scaling)


def lora_dxa(dys: Sequence[Tensor], bs: Sequence[Tensor], scalings: Sequence[float]) -> Tensor:
    """`[scalings[i] * dys[i] @ bs[i]]` side by side: `[..., R]` in dy's dtype.

    Args:
        dys: `[..., O_i]` each, may be column slices of one buffer.
        bs: `[O_i, r_i]` each.
        scalings: alpha / r (or rsLoRA's alpha / sqrt(r)) of each.
    """
    return _lora_dxa(list(dys), list(bs), [float(s) for s in scalings])


def lora_grads(
    x: Tensor,
    xa: Tensor,
    dxa: Tensor,
    dys: Sequence[Tensor],
    ranks: Sequence[int],
    scalings: Sequence[float],
    *,
    dtype: torch.dtype | None = None,
    out_da: Tensor | None = None,
    out_dbs: Sequence[Tensor] | None = None,
    accumulate: bool = False,
) -> tuple[Tensor, list[Tensor]]:
    """Gradients of the stacked A `[R, H]` and of each B `[O_i, r_i]`, in one grouped launch.

    Args:
        x: `[..., H]`, the shared input; xa: `[..., R]` from `lora_xa`; dxa: `[..., R]` from `lora_dxa` (scaled).
        dys: `[..., O_i]`; ranks: r_i; scalings: s_i.
        dtype: of fresh results (default x's; fp32 costs nothing here).
        out_da, out_dbs: write there instead (for example slices of a flat gradient buffer).
        accumulate: add to those instead of overwriting them.

    Returns:
        dA, [dB_i].
    """
    dtype = dtype or x.dtype
    da = torch.empty((xa.shape[-1], x.shape[-1]), dtype=dtype, device=x.device) if out_da is None else out_da
    dbs = (
        [torch.empty((dy.shape[-1], r), dtype=dtype, device=x.device) for dy, r in zip(dys, ranks, strict=True)]
        if out_dbs is None
        else list(out_dbs)
    )
    if accumulate and (out_da is None or out_dbs is None):
        raise ValueError("accumulate=True needs out_da and out_dbs")
    us, start = [dxa], 0
    for r in ranks:
        us.append(xa[..., start : start + r])
        start += r
    grouped_tn(us, [x, *dys], [da, *dbs], [1.0, *scalings], [False] + [True] * len(dbs), accumulate=accumulate)
    return da, dbs


def grouped_tn(
    us: Sequence[Tensor],
    vs: Sequence[Tensor],
    outs: Sequence[Tensor],
    scales: Sequence[float],
    transposed: Sequence[bool],
    *,
    accumulate: bool = False,
) -> None:
    """`outs[i] = scales[i] * us[i]^T vs[i]` (or its transpose) for skinny `us[i] [T, r]` and wide `vs[i] [T, N]`."""
    _lora_grads_out(list(us), list(vs), [float(s) for s in scales], list(outs), list(transposed), accumulate)
