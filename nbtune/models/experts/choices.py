"""How often a mixture's routers choose each expert: counted beside the products, told once a step."""

import torch
from torch import Tensor

from nbtune.models.experts.block import Experts


class Choices:
    """Which share of a step's choices goes to the busiest expert of any layer, and which share of all experts none.

    A router that is even gives each of E experts 1/E. Routers are not trained: what these say is whether the data are
    like those that the routers learnt.

    Args:
        blocks: of the model; they count from now on.
    """

    def __init__(self, blocks: list[Experts]) -> None:
        alike: dict[tuple[int, torch.device], list[Experts]] = {}
        for block in blocks:
            alike.setdefault((block.up.sides[0], block.up.weight.device), []).append(block)
        self._ends = [torch.zeros(len(of), k, dtype=torch.int64, device=on) for (k, on), of in alike.items()]
        for table, of in zip(self._ends, alike.values(), strict=True):
            for block, row in zip(of, table, strict=True):
                block.ends = row

    def told(self) -> dict[str, Tensor]:
        """Return the figures of what was counted since the last time, scalars on the device; NaN where nothing was."""
        tables = [torch.diff(ends, dim=1, prepend=ends.new_zeros(len(ends), 1)).float() for ends in self._ends]
        torch._foreach_zero_(self._ends)
        shares = [counts / counts.sum(1, keepdim=True) for counts in tables]
        busiest = torch.stack([one.amax().to(shares[0].device) for one in shares]).amax()
        idle = torch.cat([(one == 0).flatten().to(shares[0].device) for one in shares]).float().mean()
        return {"busiest_expert": busiest, "idle_experts": idle}
