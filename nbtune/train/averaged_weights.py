"""A running average of what is trained, with which a run ends (Polyak and Juditsky 1992; exponential, as in torch's
`torch.optim.swa_utils.get_ema_multi_avg_fn`).

    average ← decay · average + (1 - decay) · weights      after each step; the first step's weights to begin with
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class AveragedWeights:
    """Keep the average, in fp32, beside the weights.

    Args:
        parameters: what the optimizer works on.
        decay: how much of the average a step leaves.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], decay: float) -> None:
        self._parameters, self._decay = list(parameters), decay
        self._values: list[Tensor] = []

    @torch.no_grad()
    def add(self) -> None:
        """Take the weights of a step in."""
        now = [p.detach() for p in self._parameters]
        if self._values:
            torch._foreach_lerp_(self._values, now, 1 - self._decay)
        else:
            self._values = [p.clone() for p in now]

    @torch.no_grad()
    def put_in(self) -> bool:
        """Give the weights the average's values; False: no step was made."""
        if self._values:
            torch._foreach_copy_(self._parameters, self._values)
        return bool(self._values)

    def state_dict(self) -> list[Tensor]:
        """Return the average, in the parameters' order."""
        return self._values

    @torch.no_grad()
    def load_state_dict(self, values: Sequence[Tensor]) -> None:
        """Go on from an average."""
        self._values = [v.to(p.device, p.dtype, copy=True) for p, v in zip(self._parameters, values, strict=True)]
