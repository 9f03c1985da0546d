"""A stable sort by groups: torch's own, whatever the sizes, and the same when asked again."""

from __future__ import annotations

import pytest
import torch
from nbtune_kernels.routing import sort_by_group


@pytest.mark.parametrize(
    ("tokens", "chosen", "groups"), [(5, 2, 3), (300, 8, 128), (1, 1, 1), (700, 1, 7), (40, 6, 300), (0, 2, 4)]
)
@pytest.mark.parametrize("wide", [True, False])
def test_places_are_sorted_by_group_in_their_order(tokens, chosen, groups, wide, device):
    index = torch.randint(0, groups, (tokens, chosen), device=device).to(torch.int64 if wide else torch.int32)
    found = sort_by_group(index, groups)
    group, order = torch.sort(index.reshape(-1), stable=True)
    assert torch.equal(found.order.long(), order)
    assert torch.equal(found.group.long(), group.long())
    assert torch.equal(found.token.long(), order // chosen)
    assert torch.equal(found.order[found.back.long()].long(), torch.arange(tokens * chosen, device=device))
    counts = torch.bincount(index.reshape(-1), minlength=groups)
    assert torch.equal(found.ends.long(), counts.cumsum(0))
