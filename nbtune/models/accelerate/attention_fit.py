"""Which attention a stock layer computes: its own q, k, v and result, against every one that is known.

Random weights make small scores, in which neither a scale nor a cap nor a wrong angle shows. So q is made large first.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

import torch
from nbtune_kernels.attention import reference
from torch import Tensor, nn

from nbtune.models.accelerate.layer_calls import ROWS, TOKENS, Call
from nbtune.models.accelerate.layer_spec import Layer, Rotary
from nbtune.models.accelerate.layer_trace import Parts, Unit
from nbtune.models.accelerate.lora_member import LeftAlone
from nbtune.models.accelerate.norms import relative_error, tolerance

_LARGE = 20.0  # the largest score: where a usual cap shows, and rounding does not hide it
_CAP = re.compile(r"att.*(soft_?cap|logits?_cap)|^soft_?cap")
_SIZES = ("head_dim", "head_size", "attention_head_size", "size_per_head")
_NUMBERS = ("num_heads", "num_attention_heads", "n_heads", "n_head")


@dataclass
class Fit:
    """An attention that agrees; see `Layer`."""

    scale: float
    cap: float | None
    slopes: Tensor | None
    rotary: Rotary
    by_groups: bool


def head_counts(parts: Parts) -> tuple[int, int, int]:
    """Return (heads, key and value heads, size of a head).

    Raises:
        LeftAlone: the widths do not make heads.
    """
    width, total = parts.out.x.shape[1], sum(u.y.shape[1] for u in parts.qkv)
    dim = next((d for n in _SIZES if isinstance(d := getattr(parts.attention, n, None), int)), None)
    if dim is None:
        number = next((h for n in _NUMBERS if isinstance(h := getattr(parts.attention, n, None), int)), 0)
        dim = width // number if number else 0
    if not dim or width % dim:
        raise LeftAlone("its attention does not tell the size of a head")
    heads, rest = width // dim, total - width
    if rest <= 0 or rest % (2 * dim) or heads % (rest // (2 * dim)):
        raise LeftAlone("its query, key and value widths do not make heads")
    kv = rest // (2 * dim)
    if len(parts.qkv) == 3 and [u.y.shape[1] for u in parts.qkv] != [heads * dim, kv * dim, kv * dim]:
        raise LeftAlone("its query, key and value widths do not make heads")
    return heads, kv, dim


def boosts(parts: Parts, shape: tuple[int, int, int]) -> dict[nn.Module, float]:
    """Return by how much which results are multiplied, so that the largest score is about `_LARGE`."""
    heads, kv, dim = shape
    if parts.q_norm is not None:
        assert parts.k_norm is not None
        rows = [u.y.double().reshape(-1, dim).norm(dim=1).amax() for u in (parts.q_norm, parts.k_norm)]
    else:
        whole = torch.cat([u.y for u in parts.qkv], 1).double()
        rows = [t.reshape(-1, dim).norm(dim=1).amax() for t in whole.split([heads * dim, kv * dim, kv * dim], 1)[:2]]
    factor = 4 * _LARGE / max(1e-9, float(rows[0] * rows[1]) * dim**-0.5)  # rows are not parallel
    if parts.q_norm is not None:
        return {parts.q_norm.module: factor}
    return {parts.qkv[0].module: factor if len(parts.qkv) == 3 else factor**0.5}


def fit_attention(layer: Layer, units: list[Unit], parts: Parts, call: Call) -> Fit:
    """Return the attention that agrees best.

    Args:
        layer: what is known so far: heads, norms, window.
        units: of a run with `boosts`.
        parts: of the layer; call: how it is called.

    Raises:
        LeftAlone: none agrees.
    """
    now = {id(u.module): u for u in units}
    qkv = torch.cat([now[id(u.module)].y for u in parts.qkv], 1).float().cpu()  # no kernels: none may be there yet
    truth = now[id(parts.out.module)].x.float().cpu()
    best, least = None, float("inf")
    limit = tolerance(parts.out.x.dtype)
    for fit in _known(layer, parts, call):
        error = relative_error(_attention(layer, fit, qkv, parts, now, call), truth)
        if error < least:
            best, least = fit, error
        if error < limit / 20:
            break
    if best is None or not least <= 4 * limit:  # large scores make roundings large
        raise LeftAlone(f"its attention is none that is known (off by {least:.1e} of its size at best)")
    return best


def _known(layer: Layer, parts: Parts, call: Call) -> Iterator[Fit]:
    attention = parts.attention
    named = [v for v in vars(attention).values() if isinstance(v, float) and 0 < v <= 4]
    scales = list(dict.fromkeys([*_told(attention), layer.head_dim**-0.5, *named, 1.0]))
    caps = [None, *_caps(attention)]
    slopes = [s.cpu() for s in (call.slopes(layer.heads),) if s is not None]
    layouts = (False, True) if len(parts.qkv) == 1 and layer.kv_heads > 1 else (False,)
    angles = call.angles
    turns: list[Rotary] = ["none"]
    if angles is not None and angles[0].shape[-1] <= layer.head_dim and angles[0].shape[-1] % 2 == 0:
        turns = ["half", "pairs", "pairs of halves", "none"]
    for by_groups, scale, cap, slope, rotary in product(layouts, scales, caps, [*slopes, None], turns):
        yield Fit(scale, cap, slope, rotary, by_groups)


def _told(attention: nn.Module) -> list[float]:
    return [v for n in ("scaling", "softmax_scale", "scale") if isinstance(v := getattr(attention, n, None), float)]


def _caps(attention: nn.Module) -> list[float]:
    """Return numbers that are named like a cap; whether one is in use is asked of what the attention computes."""
    held = {**vars(getattr(attention, "config", None) or nn.Module()), **vars(attention)}
    found = [float(v) for n, v in held.items() if isinstance(v, (int, float)) and v and _CAP.search(n)]
    return list(dict.fromkeys(v for v in found if v > 1))


def _attention(layer: Layer, fit: Fit, qkv: Tensor, parts: Parts, now: dict[int, Unit], call: Call) -> Tensor:
    """Return what the fit makes of q, k and v, `[T, Hq D]`."""
    kind = replace(layer, by_groups=fit.by_groups, rotary=fit.rotary)
    q, k, v = (t.flatten(2, 3) if t.ndim == 5 else t for t in kind.split(qkv, (ROWS, TOKENS)))
    if parts.q_norm is not None and parts.k_norm is not None:
        q, k = _heads_of(now, parts.q_norm, q), _heads_of(now, parts.k_norm, k)
    q, k = q.clone(), k.clone()
    angles = call.angles
    kind.rotate(q, k, None if angles is None else (angles[0].float().cpu(), angles[1].float().cpu()))
    cu = torch.arange(0, ROWS * TOKENS + 1, TOKENS, dtype=torch.int32)
    flat = [t.reshape(ROWS * TOKENS, t.shape[2], t.shape[3]) for t in (q, k, v)]
    out = reference(flat[0], flat[1], flat[2], cu, fit.slopes, fit.scale, fit.cap or 0.0, layer.window or 0)
    return out.reshape(ROWS * TOKENS, -1)


def _heads_of(now: dict[int, Unit], norm: Unit, like: Tensor) -> Tensor:
    """Return what q's or k's norm gave, `[B, S, H, D]`: it has seen tokens first, or heads."""
    unit = now[id(norm.module)]
    x, y = unit.x.reshape(-1).float().cpu(), unit.y.reshape(-1).float().cpu()
    b, t, h, d = like.shape
    if not torch.equal(x, like.reshape(-1)) and torch.equal(x, like.transpose(1, 2).reshape(-1)):
        return y.reshape(b, h, t, d).transpose(1, 2).contiguous()
    return y.reshape(like.shape)
