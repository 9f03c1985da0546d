"""Rows that begin alike: their common tokens go through the layers once, and attention alone sees the rows.

Two answers to one prompt are two rows of a batch, whose first tokens are the same and are therefore computed twice.
Everything but attention looks at one token at a time. So each token goes through once, in a layout without copies (and
without padding); its query, key and value are copied to all of its places in the rows, attention runs on those as it
would have, and a token's own output is that of its first place. Nothing else of attention changes: packs, windows, caps
and distances are the rows' own. Gradients go the same ways back, by gathering alone: a sum is always taken in the same
order.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from nbtune.models.accelerate.attention import Packing


@dataclass(frozen=True)
class SharedTokens:
    """Where the tokens of a layout `[1, T]` stand in rows `[B, S]`.

    Args:
        token: int64 `[B S]`, which token stands at each place; at padding any.
        first: int64 `[T]`, each token's first place; of padding behind the tokens any other's.
        second: int64 `[T]`, its second place, or its first once more.
        rows: B and S.
        packing: how the rows are packed; None: each is a document.
    """

    token: Tensor
    first: Tensor
    second: Tensor
    rows: tuple[int, int]
    packing: Packing | None

    @cached_property
    def _is_first(self) -> Tensor:
        """Of each place, whether it is its token's first: bool `[B S, 1]`."""
        places = torch.arange(len(self.token), device=self.token.device)
        return (self.first[self.token] == places)[:, None]

    @cached_property
    def _is_there(self) -> Tensor:
        """Of each token, whether it is one and no padding: bool `[T, 1]`."""
        return (self.token[self.first] == torch.arange(len(self.first), device=self.first.device))[:, None]

    @cached_property
    def _is_twice(self) -> Tensor:
        """Of each token, whether it has two places: bool `[T, 1]`."""
        return (self.first != self.second)[:, None] & self._is_there

    def to_rows(self, values: Tensor) -> Tensor:
        """Return tokens' values `[T, …]` at all of their places, `[B, S, …]`."""
        return values.index_select(0, self.token).view(*self.rows, *values.shape[1:])

    def of_rows(self, values: Tensor) -> Tensor:
        """Return of values `[B, S, …]` each token's own, those of its first place: `[T, n]`."""
        return values.flatten(2).flatten(0, 1).index_select(0, self.first)

    def grad_to_rows(self, grad: Tensor) -> Tensor:
        """Undo `of_rows`: of its gradient `[T, n]` that of the rows, `[B S, n]`, where second places have none."""
        return grad.index_select(0, self.token).mul_(self._is_first)

    def grad_of_queries(self, grad: Tensor) -> Tensor:
        """Undo `to_rows` for what has no gradient but at first places: `[B, S, H, D]` to `[1, T, H, D]`."""
        return self.of_rows(grad).mul_(self._is_there).view(1, -1, *grad.shape[2:])

    def grad_of_keys(self, grad: Tensor) -> Tensor:
        """Undo `to_rows`: the sum of a token's places, `[B, S, H, D]` to `[1, T, H, D]`."""
        flat = grad.flatten(2).flatten(0, 1)
        more = flat.index_select(0, self.second).mul_(self._is_twice)
        return flat.index_select(0, self.first).mul_(self._is_there).add_(more).view(1, -1, *grad.shape[2:])


Together = Packing | SharedTokens
"""How the tokens of a forward belong together, where they are not rows, each causal."""
