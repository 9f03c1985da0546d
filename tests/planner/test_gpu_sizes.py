"""What runs in how much memory."""

from __future__ import annotations

import pytest

from nbtune.planner import fits_in


@pytest.mark.parametrize(("size", "card"), [(1_000_000, 4), (4_600_000_000, 8), (7_500_000_000, 12), (10**12, None)])
def test_what_a_file_fits_in(size: int, card: int | None) -> None:
    assert fits_in(size) == card
