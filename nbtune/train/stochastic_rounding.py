"""fp32 numbers as bf16 ones, so that updates below half a unit in the last place are not lost in the mean.

    P(up) = (x - down) / (up - down)        of the two bf16 neighbours of x, which makes the mean of what is chosen x

(Gupta et al. 2015, "Deep Learning with Limited Numerical Precision", section 3.) A bf16 number is the upper half of the
fp32 one of the same value: the lower half is that share, in 2^16ths. So a random number of 16 bits is added to it, and
what it carries over is the rounding; signs are kept apart from the bits that are added to. What is no number
stays none: a card's NaN has all bits set, and would carry over into the sign.
"""

from __future__ import annotations

import torch
from torch import Tensor

_LOWER = 1 << 16


def round_stochastically(values: Tensor, generator: torch.Generator) -> Tensor:
    """Return fp32 values that bf16 holds exactly, by numbers drawn from `generator`; `values` are written over.

    >>> import torch
    >>> draws = torch.Generator().manual_seed(0)
    >>> few = round_stochastically(torch.full((10_000,), 1 + 2.0**-9), draws)  # a quarter of the way to 1 + 2^-7
    >>> few.unique().tolist(), round(few.mean().item(), 3)
    ([1.0, 1.0078125], 1.002)
    """
    lost, bits = values.isnan(), values.view(torch.int32)
    drawn = torch.randint(_LOWER, bits.shape, dtype=torch.int32, device=bits.device, generator=generator)
    bits.add_(drawn).bitwise_and_(-_LOWER)
    return values.masked_fill_(lost, torch.nan)
