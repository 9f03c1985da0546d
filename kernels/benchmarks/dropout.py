"""Dropout from a seed, and the scatter of trained rows."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from nbtune_kernels import dropout, dropout_mask, embedding

from benchmarks.measure import Row, Shape, draw, error


def check() -> float:
    """Error against the mask made in plain torch."""
    x, seed = draw(777, 1000), torch.tensor(1 << 40 | 12345, device="cuda")
    return error(dropout(x, 0.1, seed), torch.where(dropout_mask(x.shape, 0.1, seed), x.double() / 0.9, 0.0))


def rows(s: Shape) -> Iterator[Row]:
    """The lines of these ops."""
    x, seed = draw(s.tokens, s.hidden), torch.tensor(5, device="cuda")
    shape, size = f"{s.tokens}x{s.hidden}", 2 * x.numel()
    others = {"torch": lambda: torch.nn.functional.dropout(x, 0.1)}
    yield Row("dropout", shape, lambda: dropout(x, 0.1, seed), 2 * size, check, others)
    table, ids = draw(s.vocabulary, s.hidden), torch.randint(0, s.vocabulary, (s.tokens,), device="cuda")
    others = {"torch": lambda: torch.nn.functional.embedding(ids, table)}

    def exact() -> float:
        return error(embedding(ids, table, scale=2.0), 2 * table.double()[ids])

    yield Row("embedding", shape, lambda: embedding(ids, table), 2 * size, exact, others)
