"""Gated activations: `h = act(gate) * up` (SwiGLU, GeGLU), and plain ones (`up=None`).

    silu(g) = g s(g);  gelu(g) = g Phi(g);  gelu_tanh(g) = g/2 (1 + tanh(sqrt(2/pi)(g + 0.044715 g^3)));  relu;  relu2
    dgate = dh * up * act'(gate);  dup = dh * act(gate)

The backward op also returns h, which is what the down projection's LoRA gradient needs, so h is never kept. It may
write into its own inputs. Shazeer 2020, arXiv 2002.05202.
"""

import math

import torch
from torch import Tensor

from nbtune_kernels._runtime import FUSED, cdiv, compute_capability, flat_rows, fresh, jit, op, tl, use_triton
from nbtune_kernels.tables import launch

ACTIVATIONS = ("gelu", "gelu_tanh", "relu", "relu2", "silu")


def reference(gate: Tensor, up: Tensor | None, act: str = "silu") -> Tensor:
    """Compute act(gate) up by stock arithmetic in gate's dtype, `[..., I]`; differentiable by autograd."""
    f = torch.nn.functional
    a = {
        "silu": f.silu,
        "gelu": f.gelu,
        "gelu_tanh": lambda t: f.gelu(t, approximate="tanh"),
        "relu": f.relu,
        "relu2": lambda t: f.relu(t).square(),
    }[act](gate)
    return a if up is None else a * up


# ---------------------------------------------------------------- Triton: a program takes one block of one row


@jit
def _act(g, ACT: tl.constexpr):
    """Return act(g) and act'(g) in fp32."""
    if ACT == "silu":
        s = tl.sigmoid(g)
        a = g * s
        slope = s * (1 + g * (1 - s))
    elif ACT == "gelu":
        phi = 0.5 + 0.5 * tl.erf(g * 0.7071067811865476)
        a = g * phi
        slope = phi + g * tl.exp(-0.5 * g * g) * 0.3989422804014327
    elif ACT == "gelu_tanh":
        # tanh(t) = 2 sigmoid(2t) - 1
        t = 2 * tl.sigmoid(1.5957691216057308 * (g + 0.044715 * g * g * g)) - 1
        a = 0.5 * g * (1 + t)
        slope = 0.5 * (1 + t) + 0.5 * g * (1 - t * t) * 0.7978845608028654 * (1 + 0.134145 * g * g)
    elif ACT == "relu":
        a = tl.maximum(g, 0.0)
        slope = tl.where(g > 0, 1.0, 0.0)
    else:
        r = tl.maximum(g, 0.0)
        a = r * r
        slope = 2 * r
    return a, slope


@jit
def _forward_kernel(
    gate_ptr, up_ptr, out_ptr, g_stride, u_stride, o_stride, width, blocks,
    ACT: tl.constexpr, GATED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = (tl.program_id(0) // blocks).to(tl.int64)
    col = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    mask = col < width
    h, _slope = _act(tl.load(gate_ptr + row * g_stride + col, mask, other=0.0).to(tl.float32), ACT)
    if GATED:
        h *= tl.load(up_ptr + row * u_stride + col, mask, other=0.0).to(tl.float32)
    tl.store(out_ptr + row * o_stride + col, h.to(out_ptr.dtype.element_ty), mask)


@jit
def _backward_kernel(
    dh_ptr, gate_ptr, up_ptr, h_ptr, dgate_ptr, dup_ptr, d_stride, g_stride, u_stride, h_stride, dg_stride, du_stride,
    width, blocks, ACT: tl.constexpr, GATED: tl.constexpr, NEED_H: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = (tl.program_id(0) // blocks).to(tl.int64)
    col = (tl.program_id(0) % blocks) * BLOCK + tl.arange(0, BLOCK)
    mask = col < width
    a, slope = _act(tl.load(gate_ptr + row * g_stride + col, mask, other=0.0).to(tl.float32), ACT)
    dh = tl.load(dh_ptr + row * d_stride + col, mask, other=0.0).to(tl.float32)
    dgate = dh * slope
    if GATED:
        up = tl.load(up_ptr + row * u_stride + col, mask, other=0.0).to(tl.float32)
        dgate *= up
        tl.store(dup_ptr + row * du_stride + col, (dh * a).to(dup_ptr.dtype.element_ty), mask)
        a *= up
    if NEED_H:
        tl.store(h_ptr + row * h_stride + col, a.to(h_ptr.dtype.element_ty), mask)
    tl.store(dgate_ptr + row * dg_stride + col, dgate.to(dgate_ptr.dtype.element_ty), mask)


def _launch_forward(gate, up, act, out) -> None:
    g, o = flat_rows(gate), flat_rows(out, written=True)
    u = flat_rows(up) if up is not None else g
    table = launch("act_mul", compute_capability(gate.device))
    n, width = g.shape
    blocks = cdiv(width, table["block"])
    _forward_kernel[(n * blocks,)](
        g, u, o, g.stride(0), u.stride(0), o.stride(0), width, blocks, ACT=act, GATED=up is not None,
        BLOCK=table["block"], **FUSED, num_warps=table["warps"],
    )  # fmt: skip


def _launch_backward(dh, gate, up, act, out_h, out_dgate, out_dup) -> None:
    d, g, dg = flat_rows(dh), flat_rows(gate), flat_rows(out_dgate, written=True)
    h = flat_rows(out_h, written=True) if out_h is not None else dg
    u, du = (flat_rows(up), flat_rows(out_dup, written=True)) if up is not None else (g, dg)
    table = launch("act_mul_backward", compute_capability(gate.device))
    n, width = g.shape
    blocks = cdiv(width, table["block"])
    _backward_kernel[(n * blocks,)](
        d, g, u, h, dg, du, *(t.stride(0) for t in (d, g, u, h, dg, du)), width, blocks, ACT=act, GATED=up is not None,
        NEED_H=out_h is not None, BLOCK=table["block"], **FUSED, num_warps=table["warps"],
    )  # fmt: skip


# ---------------------------------------------------------------- plain torch


def _act_and_slope(g: Tensor, act: str) -> tuple[Tensor, Tensor]:
    """Return act(g) and act'(g) in fp32."""
    if act == "gelu":
        phi = 0.5 * (1 + torch.erf(g * math.sqrt(0.5)))
        return g * phi, phi + g * torch.exp(-0.5 * g * g) * (1 / math.sqrt(2 * math.pi))
    if act == "gelu_tanh":
        c = math.sqrt(2 / math.pi)
        t = torch.tanh(c * (g + 0.044715 * g**3))
        return 0.5 * g * (1 + t), 0.5 * (1 + t) + 0.5 * g * (1 - t * t) * c * (1 + 3 * 0.044715 * g * g)
    r = torch.relu(g)
    return (r, (g > 0).float()) if act == "relu" else (r * r, 2 * r)


def _forward(gate, up, act, out) -> None:
    if use_triton(gate):
        return _launch_forward(gate, up, act, out)
    out.copy_(reference(gate, up, act))


def _backward(dh, gate, up, act, out_h, out_dgate, out_dup) -> None:
    if use_triton(gate):
        return _launch_backward(dh, gate, up, act, out_h, out_dgate, out_dup)
    g, d, u = gate.float(), dh.float(), None if up is None else up.float()
    du = d if u is None else d * u
    if act == "silu":  # one pass instead of five
        a, dgate = torch.nn.functional.silu(g), torch.ops.aten.silu_backward(du, g)
    else:
        a, slope = _act_and_slope(g, act)
        dgate = du * slope
    h = a if u is None or out_h is None else a * u
    if u is not None:
        torch.mul(d, a, out=out_dup)
    if out_h is not None:
        out_h.copy_(h)
    out_dgate.copy_(dgate)


# ---------------------------------------------------------------- ops


@op("act_mul(Tensor gate, Tensor? up, str act, Tensor(a!) out) -> ()", lambda *_: None)
def _act_mul(gate, up, act, out):
    _forward(gate, up, act, out)


@op(
    "act_mul_backward(Tensor dh, Tensor gate, Tensor? up, str act, Tensor(a!)? out_h, Tensor(b!) out_dgate,"
    " Tensor(c!)? out_dup) -> ()",
    lambda *_: None,
)
def _act_mul_backward(dh, gate, up, act, out_h, out_dgate, out_dup):
    _backward(dh, gate, up, act, out_h, out_dgate, out_dup)


# ---------------------------------------------------------------- public


def _check(act: str) -> None:
    if act not in ACTIVATIONS:
        raise ValueError(f"unknown activation {act!r}; known: {', '.join(ACTIVATIONS)}")


def act_mul(gate: Tensor, up: Tensor | None, *, act: str = "silu", out: Tensor | None = None) -> Tensor:
    """Compute `act(gate) * up` in fp32, rounded once to gate's dtype.

    Args:
        gate, up: `[..., I]`, may be the strided halves of one `[..., 2I]` buffer; up may be None (a plain activation).
        act: one of `ACTIVATIONS`.
        out: where h goes (may be gate or up itself).

    Raises:
        ValueError: the activation is none of them.
    """
    _check(act)
    out = fresh(gate) if out is None else out
    _act_mul(gate, up, act, out)
    return out


def act_mul_backward(
    dh: Tensor,
    gate: Tensor,
    up: Tensor | None,
    *,
    act: str = "silu",
    need_h: bool = True,
    out_h: Tensor | None = None,
    out_dgate: Tensor | None = None,
    out_dup: Tensor | None = None,
) -> tuple[Tensor | None, Tensor, Tensor | None]:
    """Compute h again, and the gradients of gate and up, in gate's dtype.

    Args:
        dh, gate, up: `[..., I]`, rows at any stride.
        need_h: without it h is not written and None is returned.
        out_h, out_dgate, out_dup: buffers, which may be dh, gate and up themselves (in any assignment). Give
            out_dgate and (unless up is None) out_dup together.

    Returns:
        h, dgate, dup. Without buffers dgate and dup are the halves of one fresh `[..., 2I]` buffer.

    Raises:
        ValueError: the activation is none of `ACTIVATIONS`.
    """
    _check(act)
    if out_dgate is None:
        n = gate.shape[-1]
        both = torch.empty((*gate.shape[:-1], n if up is None else 2 * n), dtype=gate.dtype, device=gate.device)
        out_dgate, out_dup = both[..., :n], None if up is None else both[..., n:]
    if not need_h:
        out_h = None
    elif out_h is None:
        out_h = fresh(gate)
    _act_mul_backward(dh, gate, up, act, out_h, out_dgate, out_dup)
    return out_h, out_dgate, out_dup
