"""The model that answers are compared with by methods with a reference: the one that the run starts from.

That is the base, which is the model without its adapter. Where a run starts from what another one has learnt it is the
base with that adapter: its weights are kept beside the model, frozen, and take the trained ones' place while the
reference is asked. `nbtune.train.logprobs` asks it before the model itself: nothing may change weights between the
model's forward and its backward.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from nbtune.errors import TrainError
from nbtune.methods import without_reference
from nbtune.models.first_values import as_the_base
from nbtune.train.parted import mine, part_of


class StartingWeights:
    """What a run started with in place of all that it trains.

    Args:
        model: whose parameters with `requires_grad` are trained.
        weights: theirs at the start, by name, on any device.
    """

    def __init__(self, model: nn.Module, weights: Mapping[str, Tensor]) -> None:
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        assert trained.keys() == weights.keys(), "weights of another model or adapter"
        self._trained = [mine(p.detach()) for p in trained.values()]
        self._start = [part_of(weights[name], p).to(mine(p).device, p.dtype) for name, p in trained.items()]

    @contextmanager
    def put_in(self, model: nn.Module) -> Iterator[None]:
        """Put the model back to how it was at the start, without dropout and gradients, for as long as this lasts."""
        dropping = [m for m in model.modules() if isinstance(m, nn.Dropout) and m.training]
        with torch.no_grad():
            now = [p.detach().clone() for p in self._trained]
            try:
                torch._foreach_copy_(self._trained, self._start)
                for module in dropping:
                    module.eval()
                yield
            finally:
                torch._foreach_copy_(self._trained, now)
                for module in dropping:
                    module.train()


def in_place_of(model: Any, start: StartingWeights | None) -> AbstractContextManager[Any]:
    """Put the reference in place of the model, for as long as this lasts.

    Args:
        start: what the run started with; None: with the base.
    Raises:
        TrainError: it started with the base, and the model has no adapter to do without.
    """
    if start is not None:
        return start.put_in(model)
    if not hasattr(model, "disable_adapter"):
        raise TrainError(
            "this method compares with a reference model, which is the model without its adapter",
            fix=f"write `adapter: lora`, or a method without a reference ({', '.join(without_reference())})",
        )
    return as_the_base(model)
