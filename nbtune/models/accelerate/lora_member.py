"""One linear layer as a group of them needs it: its frozen weights, and peft's LoRA around them."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


class LeftAlone(Exception):
    """A block is not what the acceleration handles; the message says why, for the report."""


@dataclass
class Member:
    """One linear layer of a group."""

    module: nn.Module
    base: nn.Linear
    a: nn.Parameter | None = None
    b: nn.Parameter | None = None
    scaling: float = 0.0
    adapter: str = ""
    dropout: float = 0.0  # of what its adapter sees

    def refresh(self) -> None:
        """Read its trained LoRA again: sharding puts other tensors into the modules."""
        if self.adapter:
            lora: Any = self.module
            self.a, self.b = lora.lora_A[self.adapter].weight, lora.lora_B[self.adapter].weight

    @property
    def rank(self) -> int:
        return 0 if self.a is None else self.a.shape[0]

    @property
    def turned(self) -> bool:
        """Whether its weights lie as `[K, O]` (GPT-2's Conv1D)."""
        return is_turned(self.base)

    @property
    def rows(self) -> Tensor:
        """Its frozen weights, `[O, K]`."""
        return self.base.weight.t() if self.turned else self.base.weight

    def put(self, rows: Tensor) -> None:
        """Give it weights that lie as `[O, K]`."""
        self.base.weight.data = rows.t() if self.turned else rows


def member(module: nn.Module) -> Member:
    """Read one layer: a plain linear, or peft's LoRA around one.

    Raises:
        LeftAlone: it is something else (quantised, DoRA, merged, several adapters).
    """
    if _plain(module) or is_turned(module) or is_four_bit(module):
        return Member(module, module)  # type: ignore[arg-type]
    base = getattr(module, "base_layer", None)
    if not hasattr(module, "lora_A"):
        raise LeftAlone(f"a {type(module).__name__} is no plain linear layer")
    if not _plain(base) and not is_turned(base) and not is_four_bit(base):
        raise LeftAlone(f"its frozen weights are a {type(base).__name__}")
    lora: Any = module
    active = [n for n in lora.active_adapters if n in lora.lora_A]
    if len(active) != 1 or lora.merged or lora.disable_adapters:
        raise LeftAlone("its adapter is merged, switched off, or one of several")
    (name,) = active
    turned = getattr(lora, "fan_in_fan_out", False)
    if lora.lora_variant or turned != is_turned(base) or lora.lora_bias.get(name):
        raise LeftAlone("its adapter is a variant of LoRA (DoRA or the like)")
    drop = lora.lora_dropout[name]
    if type(drop) not in (nn.Identity, nn.Dropout):
        raise LeftAlone(f"its adapter's input goes through a {type(drop).__name__}")
    a, b, scaling = lora.lora_A[name].weight, lora.lora_B[name].weight, float(lora.scaling[name])
    return Member(module, base, a, b, scaling, name, float(getattr(drop, "p", 0.0)))


def _plain(base: Any) -> bool:
    """Return a linear layer of whole numbers; one of transformers' own subclasses too: the probe
    sees what it computes."""
    if type(base) is nn.Linear:
        return True
    return isinstance(base, nn.Linear) and base.weight.is_floating_point() and not hasattr(base.weight, "quant_state")


def is_turned(base: Any) -> bool:
    """Return whether it is transformers' linear layer whose weights lie as `[K, O]`."""
    return type(base).__name__ == "Conv1D" and hasattr(base, "nf") and base.weight.is_floating_point()


def is_four_bit(base: Any) -> bool:
    """Return whether it is bitsandbytes' 4-bit linear layer, with its weights quantised already.

    peft's LoRA around one has the same name, and hands the weight of the layer below it on.
    """
    named = type(base).__name__ == "Linear4bit" and not hasattr(base, "base_layer")
    return named and getattr(base.weight, "quant_state", None) is not None
