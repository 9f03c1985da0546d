"""How a decoder calls its layers: with which masks, angles and slopes, seen on a few tokens without running a layer."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

ROWS, TOKENS = 2, 16  # Triton compiles once for all numbers of tokens that are multiples of 16


@dataclass
class Call:
    """What a layer is handed: hidden states, and what else."""

    hidden: Tensor
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)

    @property
    def mask(self) -> Any:
        return self.args[0] if self.args and "attention_mask" not in self.kwargs else self.kwargs.get("attention_mask")

    @property
    def angles(self) -> tuple[Tensor, Tensor] | None:
        """cos and sin [batch, tokens, rotary] of a rotary embedding that layers share."""
        found = self.kwargs.get("position_embeddings")
        return found if isinstance(found, tuple) and len(found) == 2 else None  # type: ignore[return-value]

    def slopes(self, heads: int) -> Tensor | None:
        """Return ALiBi's slopes, fp32 `[heads]`, of a bias that grows evenly with a key's place."""
        for value in self.kwargs.values():
            if isinstance(value, Tensor) and value.is_floating_point() and value.ndim == 3 and not len(value) % heads:
                rows = value.double().reshape(-1, heads, *value.shape[1:])[0, :, 0]
                steps = (rows[:, 1:] - rows[:, :-1]) if rows.shape[1] > 1 else rows
                mean = (rows[:, -1] - rows[:, 0]) / max(1, rows.shape[1] - 1)
                if torch.allclose(steps, mean[:, None].expand_as(steps), rtol=1e-2, atol=1e-6):
                    return mean.float()
        return None


def calls_of(inner: nn.Module, layers: list[nn.Module]) -> dict[int, Call]:
    """Return the call of each layer, for `ROWS` rows of `TOKENS` tokens; of those that the decoder does not come to,
    none.

    Args:
        inner: the decoder, stock; its layers do not run.
        layers: of its list.
    """
    return _seen(inner, layers, {})


def marked(inner: nn.Module, layers: list[nn.Module], name: str) -> bool:
    """Return whether a mask of no elements, with an attribute `name`, comes to every layer as it is."""
    table: Any = inner.get_input_embeddings()  # type: ignore[operator]
    mask = torch.empty((0, 0, 0, 0), dtype=torch.bool, device=table.weight.device)
    setattr(mask, name, None)
    calls = _seen(inner, layers, {"attention_mask": mask})
    return len(calls) == len(layers) and all(hasattr(call.mask, name) for call in calls.values())


def _seen(inner: nn.Module, layers: list[nn.Module], more: dict[str, Any]) -> dict[int, Call]:
    tries = []
    for as_tuple in (False, True):  # which of the two a decoder takes from its layers shows in what the next one gets
        calls, right = _once(inner, layers, more, as_tuple)
        if right:
            return calls
        tries.append(calls)
    return max(tries, key=len)


@torch.no_grad()
def _once(
    inner: nn.Module, layers: list[nn.Module], more: dict[str, Any], as_tuple: bool
) -> tuple[dict[int, Call], bool]:
    calls: dict[int, Call] = {}
    right = True

    def passing(i: int) -> Any:
        def forward(hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
            nonlocal right
            usual = isinstance(hidden_states, Tensor) and hidden_states.ndim == 3
            right = right and usual
            if usual:
                calls[i] = Call(hidden_states, args, kwargs)
            return (hidden_states, None) if as_tuple else hidden_states

        return forward

    table: Any = inner.get_input_embeddings()  # type: ignore[operator]
    device = table.weight.device  # the layers may be elsewhere
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(0, inner.config.vocab_size, (ROWS, TOKENS), generator=generator)  # type: ignore[union-attr, arg-type]
    with _replaced(layers, passing):
        try:
            inner(input_ids=ids.to(device), use_cache=False, **more)
        except (TypeError, ValueError, RuntimeError, AttributeError, IndexError, KeyError):
            right = False  # a decoder that wants something else of its layers: those that it did not come to stay
    return calls, right


@contextmanager
def _replaced(layers: list[nn.Module], forward_of: Any) -> Iterator[None]:
    own = [layer.__dict__.get("forward") for layer in layers]
    try:
        for i, layer in enumerate(layers):
            layer.forward = forward_of(i)  # type: ignore[method-assign]
        yield
    finally:
        for layer, forward in zip(layers, own, strict=True):
            if forward is None:
                layer.__dict__.pop("forward", None)
            else:
                layer.forward = forward  # type: ignore[method-assign]
