"""fp32 copies of 16-bit weights that are trained.

An update of full training is often smaller than half a unit in the last place of a 16-bit weight, and would be rounded
away (Micikevicius et al. 2018, "Mixed Precision Training", section 3.1). So gradients are summed, and the optimizer
works, on fp32 copies; the weights get their rounded values after each step.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nbtune.train.parted import is_parted, mine


class Masters:
    """fp32 copies of parameters; `parameters` are for the optimizer, in the order given.

    Their gradients are those of the model, which keeps none of its own. Without this object the model is as it was.

    Args:
        trained: 16-bit parameters of a model; those of another type stand for themselves. Of those that are parted
            among processes, this one's part does; `parted` are these.
    """

    def __init__(self, trained: Sequence[nn.Parameter]) -> None:
        needed = [is_copied(p) or is_parted(p) for p in trained]
        self.parameters = [
            nn.Parameter(mine(p.detach()).float()) if wanted else p for p, wanted in zip(trained, needed, strict=True)
        ]
        pairs = [(p, m) for p, m in zip(trained, self.parameters, strict=True) if m is not p]
        self.parted = [m for p, m in pairs if is_parted(p)]
        self._pairs = [(p, m) for p, m in pairs if is_copied(p)]  # of others the memory is one
        self._hooks = [p.register_post_accumulate_grad_hook(_handing_to(m)) for p, m in pairs]
        weakref.finalize(self, _remove, self._hooks)

    @staticmethod
    def needed(trained: Sequence[nn.Parameter]) -> bool:
        """Return whether any of them is a 16-bit number, or parted."""
        return any(is_copied(p) or is_parted(p) for p in trained)

    def follow(self, optimizer: torch.optim.Optimizer) -> None:
        """Write the weights after each of its steps."""
        optimizer.register_step_post_hook(lambda *_: self._write())

    def state_dict(self) -> list[Tensor]:
        """Return the fp32 values."""
        return [m.detach() for _, m in self._pairs]

    @torch.no_grad()
    def load_state_dict(self, values: Sequence[Tensor] | None) -> None:
        """Take the values over; without any, those of the model's weights."""
        for (parameter, master), value in zip(self._pairs, values or [mine(p) for p, _ in self._pairs], strict=True):
            master.copy_(value)
            mine(parameter).copy_(master)

    @torch.no_grad()
    def _write(self) -> None:
        if not self._pairs:
            return
        torch._foreach_copy_([mine(p) for p, _ in self._pairs], [m for _, m in self._pairs])


def is_copied(parameter: nn.Parameter) -> bool:
    """Return whether the optimizer works on a copy of it."""
    return parameter.dtype in (torch.bfloat16, torch.float16)


def _handing_to(master: nn.Parameter) -> Callable[[Tensor], None]:
    """Return a hook that adds a parameter's gradient to its copy's."""

    def hand_over(parameter: Tensor) -> None:
        assert parameter.grad is not None
        gradient = mine(parameter.grad)
        if master.grad is None:
            master.grad = gradient.float()
        else:
            master.grad += gradient
        parameter.grad = None

    return hand_over


def _remove(hooks: Sequence[Any]) -> None:
    for hook in hooks:
        hook.remove()
