"""Gated activations: `h = act(gate) * up` (SwiGLU, GeGLU), and plain ones (`up=None`).

    silu(g) = g s(g);  gelu(g) = g Phi(g);  gelu_tanh(g) = g/2 (1 + tanh(sqrt(2/pi)(g + 0.044715 g^3)));  relu;  relu2
    dgate = dh * up * act'(gate);  dup = dh * act(gate)

The backward op also returns h, which is what the down projection's LoRA gradient needs, so h is never kept. It may
write into its own inputs. Shazeer 2020, arXiv 2002.05202.
"""

import math

import torch
from torch import Tensor

from ._runtime import op

ACTIVATIONS = ("gelu", "gelu_tanh", "relu", "relu2", "silu")


def reference(gate: Tensor, up: Tensor | None, act: str = "silu") -> Tensor:
    """Stock arithmetic in gate's dtype, differentiable by autograd."""
    f = torch.nn.functional
    a = {
        "silu": f.silu,
        "gelu": f.gelu,
        "gelu_tanh": lambda t: f.gelu(t, approximate="tanh"),
        "relu": f.relu,
        "relu2": lambda t: f.relu(t).square(),
    }[act](gate)
    return a if up is None else a * up


def _act_and_slope(g: Tensor, act: str) -> tuple[Tensor, Tensor]:
    """act(g) and act'(g) in fp32."""
    if act == "silu":
        s = torch.sigmoid(g)
        return g * s, s * (1 + g * (1 - s))
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
    out.copy_(reference(gate, up, act))


def _backward(dh, gate, up, act, out_h, out_dgate, out_dup) -> None:
    a, slope = _act_and_slope(gate.float(), act)
    d = dh.float()
    u = None if up is None else up.float()
    if out_h is not None:
        out_h.copy_(a if u is None else a * u)
    out_dgate.copy_(d * slope if u is None else d * u * slope)
    if u is not None:
        out_dup.copy_(d * a)


def _empty(x: Tensor) -> Tensor:
    return torch.empty(x.shape, dtype=x.dtype, device=x.device)


@op("act_mul(Tensor gate, Tensor? up, str act) -> Tensor", lambda gate, up, act: gate.new_empty(gate.shape))
def _act_mul(gate, up, act):
    out = _empty(gate)
    _forward(gate, up, act, out)
    return out


@op("act_mul_out(Tensor gate, Tensor? up, str act, Tensor(a!) out) -> ()", lambda gate, up, act, out: None)
def _act_mul_out(gate, up, act, out):
    _forward(gate, up, act, out)


def _fake_backward(dh, gate, up, act, need_h):
    h = gate.new_empty(gate.shape) if need_h else gate.new_empty(0)
    return h, gate.new_empty((*gate.shape[:-1], gate.shape[-1] * (1 if up is None else 2)))


@op("act_mul_backward(Tensor dh, Tensor gate, Tensor? up, str act, bool need_h) -> (Tensor, Tensor)", _fake_backward)
def _act_mul_backward(dh, gate, up, act, need_h):
    n = gate.shape[-1]
    both = torch.empty((*gate.shape[:-1], n if up is None else 2 * n), dtype=gate.dtype, device=gate.device)
    h = _empty(gate) if need_h else gate.new_empty(0)
    _backward(dh, gate, up, act, h if need_h else None, both[..., :n], both[..., n:])
    return h, both


@op(
    "act_mul_backward_out(Tensor dh, Tensor gate, Tensor? up, str act, Tensor(a!)? out_h, Tensor(b!) out_dgate,"
    " Tensor(c!)? out_dup) -> ()",
    lambda dh, gate, up, act, out_h, out_dgate, out_dup: None,
)
def _act_mul_backward_out(dh, gate, up, act, out_h, out_dgate, out_dup):
    _backward(dh, gate, up, act, out_h, out_dgate, out_dup)


def _check(act: str) -> None:
    if act not in ACTIVATIONS:
        raise ValueError(f"unknown activation {act!r}; known: {', '.join(ACTIVATIONS)}")


def act_mul(gate: Tensor, up: Tensor | None, *, act: str = "silu", out: Tensor | None = None) -> Tensor:
    """`act(gate) * up`, computed in fp32 and rounded once.

    Args:
        gate, up: `[..., I]`, may be the strided halves of one `[..., 2I]` buffer; up may be None (a plain activation).
        act: one of `ACTIVATIONS`.
        out: where h goes (may be gate or up itself).
    """
    _check(act)
    if out is not None:
        _act_mul_out(gate, up, act, out)
        return out
    return _act_mul(gate, up, act)


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
    """h again, and the gradients of gate and up.

    Args:
        dh, gate, up: `[..., I]`, rows at any stride.
        need_h: without it h is not written and None is returned.
        out_h, out_dgate, out_dup: buffers, which may be dh, gate and up themselves (in any assignment). Give
            out_dgate (and out_dup unless up is None) together; out_h alone is not supported.

    Returns:
        h, dgate, dup. Without buffers dgate and dup are the halves of one fresh `[..., 2I]` buffer.
    """
    _check(act)
    if out_dgate is not None:
        h = _empty(gate) if need_h and out_h is None else (out_h if need_h else None)
        _act_mul_backward_out(dh, gate, up, act, h, out_dgate, out_dup)
        return h, out_dgate, out_dup
    h, both = _act_mul_backward(dh, gate, up, act, need_h)
    n = gate.shape[-1]
    return h if need_h else None, both[..., :n], None if up is None else both[..., n:]
