"""bf16 weights in 12 bits: every bit comes back, and what cannot be packed is not."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from nbtune_kernels import packed
from torch import Tensor

BF16 = torch.bfloat16


def special(rows: int, width: int) -> Tensor:
    """Return weights with zeros of both signs, subnormals, infinities, NaN and outliers among them."""
    w = torch.randn(rows, width) * 0.02
    odd = torch.tensor([0.0, -0.0, 1e-40, -1e-39, torch.inf, -torch.inf, torch.nan, 3e38, -1e-20, 900.0])
    w.view(-1)[torch.randperm(w.numel())[: odd.numel()]] = odd
    return w.to(BF16)


def bits(w: Tensor) -> Tensor:
    return w.cpu().contiguous().view(torch.int16)


def packed_of(weights: list[Tensor], device: str) -> packed.Packed:
    window = packed.base_of(weights)
    assert window is not None
    size = sum(w.numel() for w in weights) * 3 // 2 + 6 * window[1]
    made = packed.pack([w.to(device) for w in weights], *window, torch.full((size,), 255, dtype=torch.uint8))
    return made._replace(data=made.data.to(device))


@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e30])
@pytest.mark.parametrize("sides", [((64, 64),), ((40, 200), (3, 200)), ((16, 4104), (5, 4104), (1, 4104))])
def test_every_bit_comes_back(device: str, sides: tuple[tuple[int, int], ...], scale: float) -> None:
    weights = [special(*side) if scale == 1 else (torch.randn(side) * scale).to(BF16) for side in sides]
    made, width = packed_of(weights, device), sides[0][1]
    rows = sum(o for o, _ in sides)
    assert made.exceptions or scale != 1
    assert made.data.numel() == rows * width * 3 // 2 + 6 * made.exceptions <= packed.most_bytes(rows, width)
    assert torch.equal(bits(packed.reference(made, rows, width)), bits(torch.cat(weights)))
    out = torch.full((rows, width + 24), 7.0, dtype=BF16, device=device)
    packed.unpack(made, out[:, :width])
    assert torch.equal(bits(out[:, :width]), bits(torch.cat(weights)))
    assert (out[:, width:] == 7).all(), "what lies beside the rows is not touched"


def test_a_matrix_larger_than_what_is_packed_at_a_time(monkeypatch: pytest.MonkeyPatch, device: str) -> None:
    monkeypatch.setattr(packed, "_AT_ONCE", 1000)
    weights = [special(48, 256), special(8, 256)]
    made = packed_of(weights, device)
    assert torch.equal(bits(packed.reference(made, 56, 256)), bits(torch.cat(weights)))


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.randn(64, 64),
        lambda: torch.randn(64, 64).half(),
        lambda: torch.randn(64, 60).to(BF16),
        lambda: torch.exp2(torch.rand(64, 64) * 200 - 100).to(BF16),
        lambda: (torch.randn(64, 64) * (torch.rand(64, 64) > 0.5)).to(BF16),
    ],
    ids=["fp32", "fp16", "rows of 60", "exponents of all sizes", "half of them zeros"],
)
def test_what_is_left_as_it_is(make: Callable[[], Tensor]) -> None:
    assert packed.base_of([make()]) is None
