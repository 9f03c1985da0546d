"""How far back each layer sees, asked of the masks that the model itself makes.

Where a window is kept (in the config, on the attention, by kinds of layers) differs from family to family and from one
transformers to the next. The mask that a layer is handed is what counts. It is looked at on a few tokens, with every
window shortened for the while, so that these reach beyond it.
"""

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from nbtune.models.accelerate.layer_calls import TOKENS, Call
from nbtune.models.accelerate.layer_spec import Layer
from nbtune.models.accelerate.lora_member import LeftAlone

_SHORT = 5  # tokens; less than a probe's, and no divisor of their number
_WINDOW = re.compile(r"window|attention_chunk")
_COUNT = re.compile(r"layer|pattern")  # max_window_layers and its like count something else


def _configs(module: nn.Module) -> list[Any]:
    """Return every config that one of the modules reads; of a model of several kinds, its text's too."""
    configs: dict[int, Any] = {}
    for m in module.modules():
        config = getattr(m, "config", None)
        if config is not None and id(config) not in configs:
            configs[id(config)] = config
            text = config.get_text_config() if hasattr(config, "get_text_config") else config
            configs[id(text)] = text
    return list(configs.values())


def _windows(module: nn.Module) -> Iterator[tuple[Any, str, int]]:
    """Yield (object, attribute, tokens) of each window that is set somewhere in the module."""
    for holder in [*_configs(module), *module.modules()]:
        for name, value in vars(holder).items():
            named = _WINDOW.search(name) and not _COUNT.search(name)
            if named and isinstance(value, int) and not isinstance(value, bool) and value > 0:
                yield holder, name, value


def has_windows(module: nn.Module) -> bool:
    """Return whether a window is set anywhere, in use or not."""
    return next(_windows(module), None) is not None


@contextmanager
def shortened(module: nn.Module, layers: Iterable[Layer] = ()) -> Iterator[None]:
    """Shorten every window of the module, and of our layers, to a few tokens; they are put back afterwards."""
    kept = list(_windows(module))
    ours = [(layer, layer.window) for layer in layers]
    try:
        for holder, name, value in kept:
            setattr(holder, name, min(value, _SHORT))
        for layer, window in ours:
            layer.window = None if window is None else min(window, _SHORT)
        yield
    finally:
        for holder, name, value in kept:
            setattr(holder, name, value)
        for layer, window in ours:
            layer.window = window


def window_of(inner: nn.Module, call: Call | None) -> int | None:
    """Return how many tokens a layer sees, itself included; None for all before it.

    Args:
        inner: the decoder, stock.
        call: how the layer is called while windows are `shortened`.

    Raises:
        LeftAlone: that is not known, and why.
    """
    if call is None:
        raise LeftAlone("the decoder does not run it as others do")
    seen = _window_in(call.mask)
    if seen is None:
        return None
    real = {value for _, _, value in _windows(inner) if min(value, _SHORT) == seen} or {seen}
    if len(real) > 1:
        raise LeftAlone(f"which of the windows {sorted(real)} is its, is unclear")
    return real.pop()


def _window_in(mask: Any) -> int | None:
    """Return what a mask is: None for causal, the number of tokens of a window.

    Raises:
        LeftAlone: it is neither.
    """
    if mask is None:
        return None  # sdpa's causal attention
    if not isinstance(mask, Tensor) or mask.ndim != 4 or mask.shape[-2:] != (TOKENS, TOKENS):
        raise LeftAlone("its mask is of another kind than attention's")
    sees = (mask if mask.dtype == torch.bool else mask > -1).cpu()
    at = torch.arange(TOKENS)
    back = at[:, None] - at[None, :]
    if torch.equal(~sees, (back >= 0).expand_as(sees)):
        return None  # it says what is hidden
    for window in range(TOKENS, 0, -1):
        if torch.equal(sees, ((back >= 0) & (back < window)).expand_as(sees)):
            return None if window == TOKENS else window
    raise LeftAlone("its tokens see others than those before them, or those in a window")
