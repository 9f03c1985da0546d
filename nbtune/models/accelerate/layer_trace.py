"""What a stock layer does with a few tokens: which norm and which linear layer gets what, by the numbers themselves.

Names lie (post-norm models have Llama's child names). So the parts of a layer are told apart by what flows through
them: a norm that reads the layer's input stands before a half, one that reads what a half gives stands behind it.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from nbtune.models.accelerate.layer_calls import Call
from nbtune.models.accelerate.lora_member import LeftAlone, is_turned
from nbtune.models.accelerate.norms import relative_error, tolerance

_ATTENTION = re.compile(r"att", re.IGNORECASE)


@dataclass
class Unit:
    """A norm, a linear layer, or an MLP that is taken as a whole, with what it got and gave, as rows."""

    name: str
    module: nn.Module
    kind: Literal["linear", "norm", "mlp"]
    x: Tensor
    y: Tensor


@dataclass
class Parts:
    """The parts of a layer in their places; see `nbtune.models.accelerate.layer_spec.Layer`.

    `attention`: the child that holds `qkv` and `out`. `up`: one linear layer or two, in the order in which they ran; an
    MLP that is taken as a whole is both `up` and `down`.
    """

    attention: nn.Module
    qkv: list[Unit]
    out: Unit
    up: list[Unit]
    down: Unit
    pre1: Unit | None = None
    post1: Unit | None = None
    pre2: Unit | None = None
    post2: Unit | None = None
    q_norm: Unit | None = None
    k_norm: Unit | None = None
    parallel: bool = False
    residual: float = 1.0
    as_tuple: int = 0


def _kind(module: nn.Module) -> Literal["linear", "norm"] | None:
    if isinstance(module, nn.Linear) or is_turned(module) or hasattr(module, "base_layer"):
        return "linear"
    own = list(module.parameters(recurse=False))
    leaf = not any(True for _ in module.children())
    if leaf and (own or hasattr(module, "normalized_shape")) and all(p.ndim == 1 for p in own):
        return "norm"
    return None


def mixture_in(layer: nn.Module) -> nn.Module | None:
    """Return the child of a layer that holds stacks of matrices, a mixture's experts."""
    found = [
        child
        for child in layer.children()
        if any(p.ndim == 3 and not isinstance(m, _CONVOLUTIONS) for m in child.modules() for p in _own(m))
    ]
    return found[0] if len(found) == 1 else None


_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def _own(module: nn.Module) -> Iterator[nn.Parameter]:
    return module.parameters(recurse=False)


def _units(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module, Literal["linear", "norm", "mlp"]]]:
    whole = None if prefix else mixture_in(module)
    for name, child in module.named_children():
        kind = "mlp" if child is whole else _kind(child)
        if kind is not None:
            yield prefix + name, child, kind
        else:
            yield from _units(child, f"{prefix}{name}.")


def _rows(t: Tensor) -> Tensor:
    return t.detach().reshape(-1, t.shape[-1])


def run(
    module: nn.Module, stock: Callable[..., Any], call: Call, x: Tensor, boosts: dict[nn.Module, float] | None = None
) -> tuple[list[Unit], Any]:
    """Return what the layer's norms and linear layers got and gave, in the order in which they ran, and what it
    returns.

    Args:
        module: the layer; stock: its forward; call: how it is called.
        x: its input, `[B, S, H]`.
        boosts: by how much the results of some of its parts are multiplied, so that attention's scores are large.

    Raises:
        LeftAlone: it cannot be called so.
    """
    seen: list[Unit] = []

    def watch(name: str, kind: Any, part: nn.Module) -> Callable[..., Any]:
        def hook(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
            factor = (boosts or {}).get(part, 1.0)
            output = output if factor == 1.0 else output * factor
            made = output[0] if kind == "mlp" and isinstance(output, tuple) else output
            if inputs and isinstance(made, Tensor):
                rows = _rows(inputs[0]).clone(), _rows(made).clone()  # what comes next may write over them
                seen.append(Unit(name, part, kind, *rows))
            return output

        return hook

    with _hooked([(part, watch(name, kind, part)) for name, part, kind in _units(module)]):
        try:
            with torch.enable_grad():  # bitsandbytes repacks 4-bit weights on a CPU without it
                out = stock(x, *call.args, **call.kwargs)
        except (TypeError, ValueError, RuntimeError, AttributeError, IndexError, KeyError) as e:
            raise LeftAlone(f"it could not be run by itself ({type(e).__name__})") from e
    return seen, out


@contextmanager
def _hooked(hooks: list[tuple[nn.Module, Callable[..., Any]]]) -> Iterator[None]:
    handles = [part.register_forward_hook(hook) for part, hook in hooks]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a, b)


def parts_of(module: nn.Module, stock: Callable[..., Any], call: Call, x: Tensor) -> Parts:
    """Return the parts of a layer, found by what flows through them.

    Raises:
        LeftAlone: it is not one attention and one MLP with norms around them, and the reason.
    """
    units, out = run(module, stock, call, x)
    as_tuple = len(out) if isinstance(out, tuple) else 0
    out = _rows(out[0] if as_tuple else out)
    if len({id(u.module) for u in units}) < len(units):
        raise LeftAlone("one of its parts runs more than once")
    used = {id(p) for u in units for p in u.module.parameters()}
    strange = [name for name, p in module.named_parameters() if id(p) not in used]
    if strange:
        raise LeftAlone(f"it has weights beside its linear layers and norms: {strange[0]}")
    child, inside = _attention(module, units)
    linears = [u for u in units if u.kind == "linear"]
    heads, mlp = [u for u in linears if u in inside], [u for u in linears if u not in inside]
    *qkv, o = heads
    if len(qkv) not in (1, 3) or not all(same(u.x, qkv[0].x) for u in qkv):
        raise LeftAlone(f"its attention has {len(heads)} linear layers that are not query, key, value and output")
    whole = [u for u in units if u.kind == "mlp"]
    if whole and mlp:
        raise LeftAlone("it has linear layers beside its attention and its experts")
    *up, down = whole * 2 or mlp or [o]
    if len(up) not in (1, 2) or not all(same(u.x, up[0].x) for u in up):
        raise LeftAlone("its MLP is neither a gated nor a plain one")
    parts = Parts(child, qkv, o, up, down, as_tuple=as_tuple)
    for unit in units:
        if unit.kind == "norm":
            _place(parts, unit, _rows(x), unit in inside)
    _sums(parts, module, _rows(x), out)
    return parts


def _attention(module: nn.Module, units: list[Unit]) -> tuple[nn.Module, list[Unit]]:
    """Return the child that is the attention, and its parts."""
    found = []
    for name, child in module.named_children():
        inside = [u for u in units if u.name.startswith(f"{name}.")]
        if _ATTENTION.search(name) and sum(u.kind == "linear" for u in inside) > 1:
            found.append((child, inside))
    if len(found) != 1:
        raise LeftAlone("it has no attention, or several" if found else "it has no attention")
    return found[0]


def _place(parts: Parts, unit: Unit, x: Tensor, inside: bool) -> None:
    """Put a norm into its place."""
    if inside:
        for i, name in enumerate(("q_norm", "k_norm")):
            source = parts.qkv[i] if len(parts.qkv) == 3 else None
            if source is not None and _is_of_heads(unit.x, source.y) and getattr(parts, name) is None:
                setattr(parts, name, unit)
                return
        raise LeftAlone(f"{unit.name} is a norm inside its attention whose place is unknown")
    u1, u2 = parts.qkv[0].x, parts.up[0].x
    taken = False
    if same(unit.y, u1) and same(unit.x, x):
        parts.pre1, taken = unit, True
    if same(unit.y, u2):
        parts.pre2, taken = unit, True
    if same(unit.x, parts.out.y):
        parts.post1, taken = unit, True
    elif same(unit.x, parts.down.y):
        parts.post2, taken = unit, True
    if not taken:
        raise LeftAlone(f"{unit.name} is a norm whose place is unknown")


def _is_of_heads(x: Tensor, y: Tensor) -> bool:
    """Return whether x are the rows y, by heads or whole, tokens first or heads first."""
    if x.numel() != y.numel():
        return False
    if torch.equal(x.reshape(-1), y.reshape(-1)):
        return True
    first, second = x.flatten().sort().values, y.flatten().sort().values
    return torch.equal(first, second)


def _sums(parts: Parts, module: nn.Module, x: Tensor, out: Tensor) -> None:
    """Find what each half adds to what, and how often."""
    z1 = parts.out.y if parts.post1 is None else parts.post1.y
    z2 = parts.down.y if parts.post2 is None else parts.post2.y
    if parts.pre1 is None and not same(parts.qkv[0].x, x):
        raise LeftAlone("what its attention reads is neither its input nor a norm's output")
    a = parts.up[0].x if parts.pre2 is None else parts.pre2.x
    parts.parallel = same(a, x)
    if parts.parallel:
        if parts.post1 is not None or parts.post2 is not None:
            raise LeftAlone("both its halves read its input, and have norms behind them")
        found = [_factor(out, x, z1.double() + z2.double())]
    else:
        found = [_factor(a, x, z1), _factor(out, a, z2)]
    factors, doubt = [factor for factor, _ in found], 1e-3 + max(rounding for _, rounding in found)
    told = [1.0, *(v for v in vars(module).values() if isinstance(v, float))]
    if max(factors) - min(factors) > doubt * max(map(abs, factors)):
        raise LeftAlone("its halves are added with different factors")
    nearest = min(told, key=lambda v: abs(v - factors[0]))
    parts.residual = nearest if abs(nearest - factors[0]) <= (1e-3 + doubt) * abs(nearest) else factors[0]


def _factor(total: Tensor, base: Tensor, added: Tensor) -> tuple[float, float]:
    """Return m of total = base + m * added, and the share that rounding may move it by: much, of 16 bits in which one
    number is far larger than all others, as many a real model's layer gives.

    Raises:
        LeftAlone: it is no such sum.
    """
    t, s = (total.double() - base.double()).flatten(), added.double().flatten()
    m = float(t @ s / (s @ s).clamp(min=1e-300))
    rounding = float(torch.finfo(total.dtype).eps * total.double().norm() / t.norm().clamp(min=1e-300))
    if not relative_error(m * s, t) <= tolerance(total.dtype) / 3 + rounding:
        raise LeftAlone("what comes out is no sum of its input and what its halves give")
    return m, rounding / 2


@contextmanager
def without_dropout(module: nn.Module) -> Iterator[None]:
    """Let its dropout layers let everything through."""
    dropping = [m for m in module.modules() if isinstance(m, nn.Dropout) and m.training]
    for m in dropping:
        m.eval()
    try:
        yield
    finally:
        for m in dropping:
            m.train()


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Let it evaluate; each of its parts is back in its own mode afterwards."""
    modes = [(m, m.training) for m in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for m, training in modes:
            m.training = training
