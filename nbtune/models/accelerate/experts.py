"""Puts nbtune's products by groups in the place of experts that compute the same, compared on a few tokens."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from nbtune.device import pinnable
from nbtune.models.accelerate.cpu_offload import Traffic
from nbtune.models.accelerate.detect import decoder_layers
from nbtune.models.accelerate.layer_spec import Layer
from nbtune.models.accelerate.norms import relative_error, tolerance
from nbtune.models.experts.block import Experts, Scratch, Stack
from nbtune.models.experts.find import experts_in, is_switched_on, stock_of
from nbtune.models.experts.rounded import lent, send_away

_TOKENS = 24

Found = list[tuple[nn.Module, Experts | str]]
"""Modules of experts, each with its block, or with the reason why it is left alone."""


class Probe:
    """Compares experts with their stock forward; of modules that are alike, outputs of each and gradients of one."""

    def __init__(self) -> None:
        self._seen: set[Any] = set()

    def disagrees(self, outer: nn.Module, block: Experts) -> str:
        """Return by how much they differ, or "": they agree."""
        x, index, weights, grad = _inputs(block)
        kind = (type(outer), block.act, block.up.weight.shape, type(block.up.rounded), len(block.parameters()))
        with _filled(block), torch.enable_grad():
            runs = []
            for run in (stock_forward(outer), block):
                of = [x.clone().requires_grad_(), weights.clone().requires_grad_()]
                try:
                    out = run(of[0], index, of[1])
                except (TypeError, ValueError, RuntimeError, AttributeError, IndexError) as e:
                    return f"it could not be run by itself ({type(e).__name__})"
                wanted = [] if kind in self._seen else [*of, *block.parameters()]
                runs.append([out, *(torch.autograd.grad(out, wanted, grad) if wanted else ())])
        for number, (true, ours) in enumerate(zip(*runs, strict=True)):
            error = relative_error(ours, true)
            if not error <= tolerance(block.up.weight.dtype):
                what = f"gradient {number - 1}" if number else "its output"
                return f"the probe disagrees: {what} is off by {error:.1e} of its size"
        self._seen.add(kind)
        return ""


def experts_forward(outer: Any, block: Experts) -> Callable[..., Tensor]:
    """Return the forward to put onto the module: stock where its adapter is switched off."""
    stock = stock_forward(outer)
    signature = inspect.signature(stock_of(outer).forward)

    def forward(*args: Any, **named: Any) -> Tensor:
        hidden, index, weights = signature.bind(*args, **named).args
        if not is_switched_on(outer) or hidden.dim() != 2 or hidden.dtype != block.up.weight.dtype:
            if block.sink is not None:
                block.sink.give_up()
            return stock(*args, **named)  # type: ignore[no-any-return]
        return block(hidden, index, weights)

    return forward


def stock_forward(outer: Any) -> Callable[..., Any]:
    """Return what the module computes by itself; rounded stacks are decoded for that."""
    own = outer.forward
    if hasattr(outer, "parameter_name"):  # peft's: what it stands around is called, and decodes by itself
        return own  # type: ignore[no-any-return]

    def forward(*args: Any, **named: Any) -> Any:
        with lent(outer):
            return own(*args, **named)

    return forward


def words(block: Experts) -> str:
    """Return what was taken, for people."""
    ranks = [len(s.parameters()[0]) // s.sides[0] for s in (block.up, block.down) if s.lora is not None]
    trained = f"LoRA of rank {max(ranks)}" if ranks else "frozen"
    form = block.up.rounded
    bits = "" if form is None or form.bits == 16 else f" in {form.bits} bits"
    home = "" if form is None or form.traffic is None else ", streamed"
    return f"{block.up.sides[0]} experts of {block.down.sides[2]}{bits}{home}, products by groups, {trained}"


def experts_of(layer: nn.Module, probe: Probe, believe: bool) -> Found:
    """Return each module of experts of a layer, with its block, or with the reason why it is left alone.

    Args:
        believe: take what is understood without a comparison.
    """
    found: Found = []
    for _, outer, block in experts_in(layer):
        reason = block if isinstance(block, str) else "" if believe else probe.disagrees(outer, block)
        found.append((outer, reason or block))
    return found


def take_experts(inner: nn.Module, patch: Any, believe: bool, away: dict[str, Found]) -> None:
    """Put products by groups onto the experts of layers whose MLPs are left as they are.

    Args:
        patch: the `Patch` of the model, its layers taken.
        away: what `send_experts_away` has found, by the names of layers.
    """
    probe = Probe()
    whole = {id(m) for layer in patch.layers if layer.mlp is not None for m in layer.mlp.modules()}
    for name, layer in decoder_layers(inner):
        if name in patch.report.taken and not any(id(m) in whole for m in layer.children()):
            continue
        place = name.replace("layers", "experts")
        for outer, block in away.get(name) or experts_of(layer, probe, believe):
            if isinstance(block, str):
                patch.report.left[place] = block
                continue
            patch.replace(outer, experts_forward(outer, block))
            patch.experts.append(block)
            patch.report.taken[place] = words(block)
    mark_lean(patch.layers, patch.experts)
    share_scratch(patch.experts)


def send_experts_away(layer: nn.Module, probe: Probe, believe: bool, traffic: Traffic) -> Found:
    """Return what `experts_of` does of a layer that is on the device; the stacks of those that are understood leave
    for the host's memory."""
    found = experts_of(layer, probe, believe)
    pinned = traffic.device.type == "cuda" and pinnable()
    for _, block in found:
        if isinstance(block, Experts):
            for stack in (block.up, block.down):
                send_away(stack.module, stack.name, traffic, pinned=pinned)
    return found


def mark_lean(layers: list[Layer], blocks: list[Experts]) -> None:
    """Find the layers whose MLPs are experts and what chooses among them, and tell them and these experts."""
    for layer in layers:
        inside = {id(m) for m in layer.mlp.modules()} if layer.mlp is not None else set()
        own = [block for block in blocks if id(block.up.module) in inside]
        if layer.mlp is None or not own:
            continue
        held = {id(p) for block in own for p in (*block.up.module.parameters(), *block.parameters())}
        beside = sum(p.numel() for p in layer.mlp.parameters() if id(p) not in held)
        _, _, hidden = own[0].up.sides
        layer.lean = beside <= 2 * own[0].up.sides[0] * hidden  # what chooses has a row an expert
        for block in own:
            block.lean = layer.lean


def share_scratch(blocks: list[Experts]) -> None:
    """Give rounded stacks memory to be decoded in: one at a time of each dtype and device."""
    kinds: dict[Any, list[Stack]] = {}
    for block in blocks:
        for stack in (block.up, block.down):
            if stack.rounded is not None and stack.rounded.bits < 16:
                kinds.setdefault((stack.weight.dtype, stack.weight.device), []).append(stack)
    for (dtype, device), stacks in kinds.items():
        most = max(stack.weight.numel() for stack in stacks)
        scratch = Scratch(torch.empty(most, dtype=dtype, device=device))
        for stack in stacks:
            stack.scratch = scratch


def _inputs(block: Experts) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return hidden states, two experts (or the only one) for each token, their weights, and a gradient."""
    generator = torch.Generator().manual_seed(1)
    experts, _, hidden = block.up.sides
    scores = torch.rand(_TOKENS, experts, generator=generator)
    weights, index = scores.topk(min(2, experts))
    x, grad = (torch.randn(_TOKENS, hidden, generator=generator) for _ in range(2))
    made = (x, weights, grad)
    x, weights, grad = (t.to(block.up.weight.device, block.up.weight.dtype) for t in made)
    return x, index.to(block.up.weight.device), weights, grad


@contextmanager
def _filled(block: Experts) -> Iterator[None]:
    """Fill LoRA's B, zero at the start, with random numbers for a while."""
    every = block.parameters()[1::2]
    kept = [b.detach().clone() for b in every]
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for b in every:
            b.copy_(torch.randn(b.shape, generator=generator) * 0.02)
    try:
        yield
    finally:
        with torch.no_grad():
            for b, before in zip(every, kept, strict=True):
                b.copy_(before)
