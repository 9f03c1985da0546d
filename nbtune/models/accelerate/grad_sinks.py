"""Where a layer's LoRA gradients are made, and where they go."""

from dataclasses import dataclass

from nbtune_kernels import grouped_tn
from torch import Tensor

from nbtune.models.accelerate.triton_epilogues import Partials

_JOBS_A_LAUNCH = 4  # of `grouped_tn`'s kernel


@dataclass
class Sink:
    """Where a group's LoRA gradients go instead of through autograd: the parameters' own `.grad`.

    Args:
        da: `[R, K]`, the stack of A's gradients; dbs: `[O_i, r_i]` each.
        accumulate: add to what is there, instead of overwriting it.
        open: only while a `TrainStep` runs a backward; otherwise gradients go through autograd.
    """

    da: Tensor
    dbs: list[Tensor]
    accumulate: bool = False
    open: bool = False


class GradJobs:
    """Skinny gradient products `scale * u' v` (or its transpose) that are made in as few launches as possible."""

    def __init__(self) -> None:
        self._fresh: list[tuple] = []
        self._added: list[tuple] = []

    def add(
        self,
        u: Tensor,
        v: Tensor,
        out: Tensor,
        scale: float,
        transposed: bool,
        accumulate: bool,
        columns: Tensor | None = None,
    ) -> None:
        (self._added if accumulate else self._fresh).append((u, v, out, scale, transposed, columns))

    def run(self) -> None:
        for jobs, accumulate in ((self._fresh, False), (self._added, True)):
            launches = -(-len(jobs) // _JOBS_A_LAUNCH)
            for i in range(launches):
                us, vs, outs, scales, transposed, columns = zip(*jobs[i::launches], strict=True)
                grouped_tn(us, vs, outs, scales, transposed, accumulate=accumulate, columns=columns)


@dataclass
class Ready:
    """LoRA gradients that another kernel has made but for adding them up: which of its sums are dA `[R, K]` and dB'."""

    sums: Partials
    a: int | None = None
    bs: tuple[int, ...] = ()
