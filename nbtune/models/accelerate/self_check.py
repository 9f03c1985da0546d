"""Compares an accelerated layer with its stock forward: outputs and gradients, on a few random tokens."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from nbtune.device.streams import fork_rng
from nbtune.errors import NbtuneError
from nbtune.models.accelerate.layer_calls import ROWS, TOKENS, Call
from nbtune.models.accelerate.layer_spec import Layer
from nbtune.models.accelerate.layer_trace import without_dropout
from nbtune.models.accelerate.lora_member import LeftAlone
from nbtune.models.accelerate.mixture_layer import run_layer
from nbtune.models.accelerate.norms import relative_error, tolerance
from nbtune.models.accelerate.sliding_windows import has_windows, shortened

_NOISES = 2.0  # two roundings of a block may lie on either side of the truth
_MOST = 0.1  # of its size: beyond that a block is not taken, however much rounding moves it


class Inputs:
    """Random hidden states, and a gradient of what comes out."""

    def __init__(self, x: Tensor, grad: Tensor):
        self.x, self.grad = x, grad


def probe_inputs(hidden: int, dtype: torch.dtype, device: torch.device) -> Inputs:
    """Make tokens of a width."""
    generator = torch.Generator().manual_seed(1)
    # small, so that what a block adds is not hidden by the rounding of what passes by it
    x = (torch.randn(ROWS, TOKENS, hidden, generator=generator) / 32).to(device, dtype)
    grad = torch.randn(ROWS, TOKENS, hidden, generator=generator).to(device, dtype)
    return Inputs(x, grad)


def probe_layer(
    module: nn.Module,
    stock: Callable[..., Any],
    layer: Layer,
    sync: Callable[[], None],
    inputs: Inputs,
    calls: tuple[Call, Call],
    grads: bool,
) -> None:
    """Run both, without dropout; a zero B of the LoRA is filled for the while, or its A would not be tested.

    A layer with a window runs once more with that shortened, so that tokens reach beyond it.

    Args:
        calls: how the decoder calls the layer, and how with short windows.

    Raises:
        LeftAlone: they do not agree.
    """
    of_mlp = [] if layer.mlp is None else layer.mlp.parameters()
    reached = {id(parameter) for parameter in (*layer.parameters(), *of_mlp)}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad and id(parameter) not in reached and not layer.sharded:
            raise LeftAlone(f"`{name}` is trained, and would get no gradient")
    _compare(module, stock, layer, sync, inputs, calls[0], grads)
    if layer.window is not None:
        with shortened(module, [layer]):
            _compare(module, stock, layer, sync, inputs, calls[1], grads)


def _compare(
    module: nn.Module,
    stock: Callable[..., Any],
    layer: Layer,
    sync: Callable[[], None],
    inputs: Inputs,
    call: Call,
    grads: bool,
) -> None:
    limit = max(tolerance(inputs.x.dtype), *(group.slack for group in layer.groups()))
    with (
        _filled(layer),
        _smooth(layer.mlp, inputs.x),
        without_dropout(module),
        torch.enable_grad(),
    ):  # bitsandbytes repacks 4-bit weights on a CPU without it
        sync()
        wanted = layer.parameters() if grads else None
        truths = _differences(partial(_stock, stock, call), inputs.x, inputs.grad, wanted)
        found = _of_ours(layer, call, inputs, wanted)
        errors = {name: relative_error(found[name], truth) for name, truth in truths.items()}
        if not max(errors.values()) <= limit:
            moved = _differences(partial(_stock, stock, call), _rounded_otherwise(inputs.x), inputs.grad, wanted)
            noise = {name: relative_error(moved[name], truth) for name, truth in truths.items()}
            limits = {name: max(limit, min(_NOISES * noise[name], _MOST)) for name in truths}
        else:
            limits = dict.fromkeys(truths, limit)
    sync()
    for name, error in errors.items():
        if not error <= limits[name]:
            allowed = f"allowed {limits[name]:.0e}"
            raise LeftAlone(f"the probe disagrees: {name} is off by {error:.1e} of its size ({allowed})")


@contextmanager
def _smooth(mlp: nn.Module | None, x: Tensor) -> Iterator[None]:
    """Let a mixture compute something else for a while, in stock and in ours: a rounding may decide which experts it
    chooses, and what it makes of its input is its own module's in both."""
    if mlp is None:
        yield
        return
    own, as_tuple = mlp.__dict__.get("forward"), False

    def forward(hidden_states: Tensor, *args: Any, **named: Any) -> Any:
        if args or named:
            raise LeftAlone("its experts are handed more than hidden states")
        made = torch.tanh(hidden_states)
        return (made, None) if as_tuple else made

    try:
        with torch.no_grad():
            as_tuple = isinstance(mlp(x), tuple)
        mlp.forward = forward  # type: ignore[method-assign]
        yield
    finally:
        if own is not None:
            mlp.forward = own
        else:
            mlp.__dict__.pop("forward", None)


def _differences(
    run: Callable[[Tensor], Tensor], x: Tensor, grad: Tensor, parameters: list[nn.Parameter] | None
) -> dict[str, Tensor]:
    """Return what a block adds to its input, and with `parameters` what it adds to the gradient, and theirs."""
    inner = x.clone().requires_grad_()
    out = run(inner)
    differences = {"its output": out - x}
    if parameters is not None:
        first, *others = torch.autograd.grad(out, [inner, *parameters], grad)
        differences["its input's gradient"] = first - grad  # what passes by would hide the block's own
        differences |= {f"gradient {i}": g for i, g in enumerate(others, 1)}
    return differences


def _of_ours(layer: Layer, call: Call, inputs: Inputs, wanted: list[nn.Parameter] | None) -> dict[str, Tensor]:
    """Return the differences that our block makes.

    Raises:
        LeftAlone: it fails, as on a card or with sizes that nobody has tried: the stock layer goes on.
    """
    try:
        return _differences(partial(_ours, layer, call), inputs.x, inputs.grad, wanted)
    except (LeftAlone, NbtuneError, torch.OutOfMemoryError):
        raise
    except Exception as e:
        said = next(iter(str(e).splitlines()), "")[:200]
        raise LeftAlone(f"nbtune's block fails in the probe: {type(e).__name__}: {said}") from e


def _rounded_otherwise(x: Tensor) -> Tensor:
    """Return x, with each number moved by at most one unit in its last place: stock's answer to it is as good."""
    generator = torch.Generator().manual_seed(4)
    signs = torch.randint(0, 2, x.shape, generator=generator).to(x.device, torch.float32) * 2 - 1
    return (x.float() * (1 + signs * torch.finfo(x.dtype).eps)).to(x.dtype)


def _stock(stock: Callable[..., Any], call: Call, x: Tensor) -> Tensor:
    out = stock(x, *call.args, **call.kwargs)
    return out[0] if isinstance(out, tuple) else out


def _ours(layer: Layer, call: Call, x: Tensor) -> Tensor:
    return run_layer(layer, x, call.angles or (None, None), None, layer.parameters())


def tiny_losses(lm: Any, layers: Iterable[Layer] = ()) -> list[float]:
    """Return the loss of a few tokens; where the model has windows, also with these so short that the tokens reach
    beyond."""
    losses = [_tiny_loss(lm)]
    if has_windows(lm):
        with shortened(lm, layers):
            losses.append(_tiny_loss(lm))
    return losses


@torch.enable_grad()
def _tiny_loss(lm: Any) -> float:
    """Return the loss of 32 random tokens, in training mode and with gradients on, as a step would see it.

    16 of them are trained: such numbers, multiples of 16, share their kernels with a run's.
    """
    generator = torch.Generator().manual_seed(3)
    device = next(lm.parameters()).device
    ids = torch.randint(0, lm.config.vocab_size, (2, 16), generator=generator).to(device)
    labels = ids.clone()
    labels[0, :15] = -100
    training = lm.training
    lm.train()
    try:
        with without_dropout(lm), fork_rng(device):
            torch.manual_seed(3)  # what else is drawn (dropout of attention, a router's noise) is drawn alike each time
            return lm(input_ids=ids, labels=labels, use_cache=False).loss.item()
    finally:
        lm.train(training)


@contextmanager
def _filled(layer: Layer) -> Any:
    """Fill LoRA's B, zero at the start, with random numbers while a layer is probed."""
    members = [m for g in layer.groups() for m in g.members if m.b is not None]
    kept = [m.b.detach().clone() for m in members]  # type: ignore[union-attr]
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for m in members:
            m.b.copy_(torch.randn(m.b.shape, generator=generator) * 0.02)  # type: ignore[union-attr]
    try:
        yield
    finally:
        with torch.no_grad():
            for m, b in zip(members, kept, strict=True):
                m.b.copy_(b)  # type: ignore[union-attr]
