"""Which parameters weight decay pulls towards zero: matrices, not norms and biases, as transformers has it."""

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

# what `transformers.Trainer` leaves out, by a parameter's name: decay would pull a norm's scale from 1 to 0
_SPARED = re.compile(r"bias|layernorm|rmsnorm|(^|\.)norm($|\.)|_norm($|\.)", re.IGNORECASE)


def decays(model: "nn.Module", weight_decay: float) -> list[float]:
    """Return the decay of each trained parameter, in the model's order: `weight_decay`, or 0 for norms and biases."""
    spared = set(_of_layer_norms(model))
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    return [0.0 if name in spared or _SPARED.search(name) else weight_decay for name in trained]


def _of_layer_norms(model: "nn.Module") -> Iterator[str]:
    """Yield the parameters' names in torch's own layer norms, whatever a model calls these (GPT-2: `ln_1`)."""
    from torch import nn

    for name, module in model.named_modules():
        if isinstance(module, nn.LayerNorm):
            yield from (f"{name}.{own}" for own, _ in module.named_parameters())
