"""Gated activations on the strided halves of one projection."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from nbtune_kernels import act_mul, act_mul_backward
from nbtune_kernels.activation import reference
from torch import Tensor

from benchmarks.measure import Row, Shape, draw, error, liger


def check(act: str, width: int) -> float:
    """Largest error of h and the gradients against autograd in fp64, in place."""
    both, dh = draw(512, 2 * width), draw(512, width)
    gate, up = both[:, :width], both[:, width:]
    leaves = [t.double().requires_grad_() for t in (gate, up)]
    want = reference(*leaves, act)
    truth = (want.detach(), *torch.autograd.grad(want, leaves, dh.double()))
    first = error(act_mul(gate, up, act=act), truth[0])
    got = act_mul_backward(dh, gate, up, act=act, out_h=dh, out_dgate=gate, out_dup=up)
    return max(first, *(error(a, b) for a, b in zip(got, truth, strict=True)))


def rows(s: Shape) -> Iterator[Row]:
    """The lines of this op."""
    both, dh = draw(s.tokens, 2 * s.inner), draw(s.tokens, s.inner)
    for act, name in (("silu", "swiglu"), ("gelu_tanh", "geglu")):
        yield from _rows(both, dh, act, name)


def _rows(both: Tensor, dh: Tensor, act: str, name: str) -> Iterator[Row]:
    t, width = dh.shape
    gate, up, out, h = both[:, :width], both[:, width:], torch.empty_like(both), torch.empty_like(dh)
    dgate, dup = out[:, :width], out[:, width:]
    shape, size, theirs = f"{t}x{width}", 2 * t * width, liger(name)
    forward_by, backward_by = {}, {}
    if theirs:
        a, b = gate.contiguous(), up.contiguous()
        forward_by["liger"] = lambda: getattr(theirs, f"{name}_forward")(a, b)
        backward_by["liger"] = lambda: getattr(theirs, f"{name}_backward")(a, b, dh)
    yield Row(
        f"{name} forward", shape, lambda: act_mul(gate, up, act=act, out=h), 3 * size, lambda: check(act, width),
        forward_by,
    )  # fmt: skip
    yield Row(
        f"{name} backward (h, dgate, dup)", shape,
        lambda: act_mul_backward(dh, gate, up, act=act, out_h=h, out_dgate=dgate, out_dup=dup), 6 * size,
    )  # fmt: skip
    yield Row(
        f"{name} backward (dgate, dup)", shape,
        lambda: act_mul_backward(dh, gate, up, act=act, need_h=False, out_dgate=dgate, out_dup=dup), 5 * size, None,
        backward_by,
    )  # fmt: skip
