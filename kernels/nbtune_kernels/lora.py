"""LoRA's small products, grouped: `y_i = x W_i^T + s_i (x A_i^T) B_i^T` for projections i that share one input x.

    xa   = x A^T                    A = the A_i stacked, [R, H];  R = sum of ranks           (lora_xa)
    y_i += s_i xa_i B_i^T           in place on y_i (lora_add_), or columns of one longer product
    dxa_i = s_i dy_i B_i            one launch for all i                                     (lora_dxa)
    dA   = dxa^T x                  one product for the stack                                (lora_grads)
    dB_i = s_i dy_i^T xa_i          in one launch with dA
    dx  += dxa A                    addmm_

Hu et al. 2021, arXiv 2106.09685. The Triton kernels (lora_kernels.py) read each wide operand once, sum in fp32 and in a
fixed order, so that two runs give the same bits. They are used for 16-bit operands on sm_80 and later with many rows;
elsewhere cuBLAS or the CPU's BLAS makes the products.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from nbtune_kernels._runtime import (
    INTERPRETED,
    cdiv,
    compute_capability,
    flat_rows,
    op,
    rows,
    tensor_cores,
    use_triton,
)
from nbtune_kernels.lora_kernels import GROUPS, launch_dxa, launch_tn, launch_xa
from nbtune_kernels.tables import launch


def reference(x: Tensor, w: Tensor, a: Tensor, b: Tensor, scaling: float, bias: Tensor | None = None) -> Tensor:
    """Do peft's arithmetic for one projection, `x [..., H] -> [..., O]` (no dropout), differentiable by autograd."""
    y = torch.nn.functional.linear(x, w, bias)
    return y + torch.nn.functional.linear(torch.nn.functional.linear(x.to(a.dtype), a), b).to(y.dtype) * scaling


def uses_kernel(name: str, wide: Sequence[Tensor], ranks: Sequence[int]) -> bool:
    """Return whether Triton makes the product: never where `tl.dot` would run without tensor cores."""
    first = wide[0]
    if not use_triton(first) or not tensor_cores(first) or any(t.dtype != first.dtype for t in wide):
        return False
    if max(ranks) > 128 or (name == "lora_dxa" and len(wide) > GROUPS):
        return False
    if INTERPRETED and not first.is_cuda:
        return first.dtype != torch.bfloat16
    enough = launch(name, compute_capability(first.device))["min_rows"]
    return first.dtype in (torch.bfloat16, torch.float16) and first.shape[:-1].numel() >= enough


def _mm(a: Tensor, b: Tensor) -> Tensor:
    """Multiply a @ b of any float dtypes; fp32 out of 16-bit ones on a GPU (scaled fp16 gradients overflow)."""
    common = torch.promote_types(a.dtype, b.dtype)
    a, b = a.to(common), b.to(common)
    return torch.mm(a, b, out_dtype=torch.float32) if a.is_cuda and common.itemsize == 2 else a @ b


# ---------------------------------------------------------------- ops


@op("lora_xa(Tensor x, Tensor a, Tensor(a!) out, Tensor(b!)? also) -> ()", lambda *_: None)
def _lora_xa(x, a, out, also):
    x2, a2, out2 = flat_rows(x), a.to(x.dtype), flat_rows(out, written=True)
    also2 = None if also is None else flat_rows(also, written=True)
    if uses_kernel("lora_xa", [x], [a.shape[0]]):
        return launch_xa(x2, a2, out2, also2)
    torch.mm(x2, a2.t(), out=out2)
    if also2 is not None:
        also2.copy_(out2)


@op("lora_dxa(Tensor[] dys, Tensor[] bs, float[] scalings, Tensor(a!) out) -> ()", lambda *_: None)
def _lora_dxa(dys, bs, scalings, out):
    ranks = [b.shape[1] for b in bs]
    out2 = flat_rows(out, written=True)
    if uses_kernel("lora_dxa", dys, ranks):
        return launch_dxa([flat_rows(dy) for dy in dys], [b.to(dys[0].dtype) for b in bs], scalings, out2)
    start = 0
    for dy, b, scaling, rank in zip(dys, bs, scalings, ranks, strict=True):
        part = out2[:, start : start + rank]
        torch.addmm(part, flat_rows(dy), b.to(dy.dtype), beta=0, alpha=scaling, out=part)
        start += rank


@op(
    "grouped_tn(Tensor[] us, Tensor[] vs, float[] scales, Tensor(a!)[] outs, bool[] transposed, bool accumulate,"
    " Tensor?[] columns) -> ()",
    lambda *_: None,
)
def _grouped_tn(us, vs, scales, outs, transposed, accumulate, columns):
    if uses_kernel("grouped_tn", vs, [u.shape[-1] for u in us]) and all(u.dtype == vs[0].dtype for u in us):
        flat_us, flat_vs = [flat_rows(u) for u in us], [flat_rows(v) for v in vs]
        launches = cdiv(len(vs), GROUPS)
        for i in range(launches):  # evenly: six groups are three and three
            part = slice(i * len(vs) // launches, (i + 1) * len(vs) // launches)
            launch_tn(
                flat_us[part], flat_vs[part], scales[part], outs[part], transposed[part], accumulate, columns[part]
            )
        return None
    for u, v, scale, out, flip, column in zip(us, vs, scales, outs, transposed, columns, strict=True):
        u2, v2 = rows(u), rows(v)
        g = (_mm(v2.t(), u2) if flip else _mm(u2.t(), v2)) * scale
        if column is not None:
            g = g * (column[:, None] if flip else column)
        out.add_(g) if accumulate else out.copy_(g)


# ---------------------------------------------------------------- public


def lora_xa(x: Tensor, a: Tensor, *, out: Tensor | None = None, also: Tensor | None = None) -> Tensor:
    """Compute `x [..., H] @ a [R, H]^T -> [..., R]` in x's dtype. `out`, and `also` for the same, may be strided
    slices."""
    if out is None:
        out = torch.empty((*x.shape[:-1], a.shape[0]), dtype=x.dtype, device=x.device)
    _lora_xa(x, a, out, also)
    return out


def lora_add_(y: Tensor, xa: Tensor, b: Tensor, scaling: float) -> Tensor:
    """Add in place: `y [T, O] += scaling * xa [T, r] @ b [O, r]^T` (cuBLAS, beta = 1); y and xa may be column
    slices."""
    return y.addmm_(xa, b.to(y.dtype).t(), alpha=scaling)


def lora_dxa(
    dys: Sequence[Tensor], bs: Sequence[Tensor], scalings: Sequence[float], *, out: Tensor | None = None
) -> Tensor:
    """Compute `[scalings[i] * dys[i] @ bs[i]]` side by side: `[..., R]` in dy's dtype.

    Args:
        dys: `[..., O_i]` each, may be column slices of one buffer.
        bs: `[O_i, r_i]` each.
        scalings: alpha / r (or rsLoRA's alpha / sqrt(r)) of each.
        out: `[..., R]`, may be a strided slice of a wider buffer.
    """
    if out is None:
        width = sum(b.shape[1] for b in bs)
        out = torch.empty((*dys[0].shape[:-1], width), dtype=dys[0].dtype, device=dys[0].device)
    _lora_dxa(list(dys), list(bs), [float(s) for s in scalings], out)
    return out


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
    """Compute the gradients of the stacked A `[R, H]` and of each B `[O_i, r_i]`, in one grouped launch.

    Args:
        x: `[..., H]`, the shared input; xa: `[..., R]` from `lora_xa`; dxa: `[..., R]` from `lora_dxa` (scaled).
        dys: `[..., O_i]`; ranks: r_i; scalings: s_i.
        dtype: of fresh results (default x's; fp32 costs nothing here).
        out_da, out_dbs: write there instead (for example slices of a flat gradient buffer).
        accumulate: add to those instead of overwriting them.

    Returns:
        dA, [dB_i].

    Raises:
        ValueError: `accumulate` without buffers.
    """
    dtype = dtype or x.dtype
    if accumulate and (out_da is None or out_dbs is None):
        raise ValueError("accumulate=True needs out_da and out_dbs")
    if out_da is None:
        out_da = torch.empty((xa.shape[-1], x.shape[-1]), dtype=dtype, device=x.device)
    if out_dbs is None:
        out_dbs = [
            torch.empty((dy.shape[-1], r), dtype=dtype, device=x.device) for dy, r in zip(dys, ranks, strict=True)
        ]
    us, start = [dxa], 0
    for r in ranks:
        us.append(xa[..., start : start + r])
        start += r
    flips = [False] + [True] * len(out_dbs)
    grouped_tn(us, [x, *dys], [out_da, *out_dbs], [1.0, *scalings], flips, accumulate=accumulate)
    return out_da, list(out_dbs)


def grouped_tn(
    us: Sequence[Tensor],
    vs: Sequence[Tensor],
    outs: Sequence[Tensor],
    scales: Sequence[float],
    transposed: Sequence[bool],
    *,
    accumulate: bool = False,
    columns: Sequence[Tensor | None] | None = None,
) -> None:
    """Compute `outs[i] = scales[i] * us[i]^T vs[i]` (or its transpose) for skinny `us[i] [..., r]` and wide `vs[i]
    [..., N]`.

    The outs are 2-D with any strides and any float dtype. Up to four groups share a launch. `columns[i]` (fp32 `[N]` or
    None) is multiplied onto each row of the product.
    """
    columns = [None] * len(vs) if columns is None else list(columns)
    _grouped_tn(list(us), list(vs), [float(s) for s in scales], list(outs), list(transposed), accumulate, columns)
