"""Which parameters weight decay pulls towards zero: matrices, not norms and biases, as transformers has it."""

import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

# what `transformers.Trainer` leaves out, by a parameter's name: decay would pull a norm's scale from 1 to 0
_SPARED = re.compile(r"bias|layernorm|rmsnorm|(^|\.)norm($|\.)|_norm($|\.)", re.IGNORECASE)


def decays(model: "nn.Module", weight_decay: float) -> list[float]:
    """Return the decay of each trained parameter, in the model's order: `weight_decay`, or 0 for norms and biases."""
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    return [weight_decay if decayed else 0.0 for decayed in is_decayed(model, trained)]


def is_decayed(model: "nn.Module", names: Iterable[str]) -> list[bool]:
    """Return whether weight decay is of each of a model's parameters."""
    spared = set(_of_layer_norms(model))
    return [name not in spared and not _SPARED.search(name) for name in names]


def _of_layer_norms(model: "nn.Module") -> Iterator[str]:
    """Yield the parameters' names in torch's own layer norms, whatever a model calls these (GPT-2: `ln_1`)."""
    from torch import nn

    for name, module in model.named_modules():
        if isinstance(module, nn.LayerNorm):
            yield from (f"{name}.{own}" for own, _ in module.named_parameters())
