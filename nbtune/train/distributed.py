"""Several processes that train one model together: each has its own share of every step's batches.

    gpus: 2                                          (in the spec: `nbtune.engine.distributed_launcher` starts them)
    torchrun --nproc-per-node 2 -m nbtune.engine RUN_DIR

Every process runs the same loop. Before each step they agree on what the step's losses are divided by and on the
wishes; after it they add up their gradients. What is trained is small beside the model (LoRA), so one sum in one
buffer costs little. Only process 0 owns the run's folder, saves and answers.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import torch
import torch.distributed as dist

from nbtune import device as machine
from nbtune.device.detect import claim, collectives
from nbtune.train.control import OtherIsGone, Wishes
from nbtune.train.cuda_graph_stepper import FusedStepper
from nbtune.train.look_ahead import LooksAhead
from nbtune.train.pace import Pace, Told
from nbtune.train.parted import norm_of
from nbtune.train.stepper import Stepper, Updated

if TYPE_CHECKING:
    from nbtune.data.batching.collate import Batch
    from nbtune.train.control import Control
    from nbtune.train.look_ahead import Gather

_PATIENCE = timedelta(days=7)  # preparing, saving and pausing may take long; who is gone is noticed otherwise
_BUCKET = 2**26  # numbers that are added up at once


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together."""

    rank: int
    count: int

    @classmethod
    def join(cls, meeting: str | None = None) -> Ranks | None:
        """Meet the others; None where this process is alone.

        Args:
            meeting: a folder that those of one machine share; unset: as torchrun's environment says.
        """
        count = int(os.environ.get("WORLD_SIZE", "1"))
        if count == 1:
            return None
        claim(int(os.environ.get("LOCAL_RANK", "0")))
        if dist.is_initialized():  # by who has started this process: Ray
            return cls(dist.get_rank(), count)
        how: dict[str, Any] = {}
        if meeting is not None:
            how = {
                "init_method": (Path(meeting) / "store").as_uri(),
                "rank": int(os.environ["RANK"]),
                "world_size": count,
            }
        dist.init_process_group(collectives(), timeout=_PATIENCE, **how)
        return cls(dist.get_rank(), count)

    @property
    def first(self) -> bool:
        """Whether this is the process that owns the folder."""
        return self.rank == 0

    def wait(self) -> None:
        """Wait until all are here."""
        self.gather(None)

    def gather(self, thing: Any) -> list[Any]:
        """Return what each process gives, in their order; all must call this.

        Raises:
            OtherIsGone: one of them has ended.
        """
        gathered: list[Any] = [None] * self.count
        with _noticing():
            dist.all_gather_object(gathered, thing)
        return gathered

    def noticing(self) -> AbstractContextManager[None]:
        """Take what fails of another process's end for that: weights that are parted are asked for anywhere."""
        return _noticing()

    def poorest(self, facts: machine.DeviceFacts) -> machine.DeviceFacts:
        """Return of all processes' devices the one with least memory."""
        return min(self.gather(facts), key=lambda one: one.free)

    def leave(self) -> NoReturn:
        """Leave the group after the last word, and end this process, well, before its interpreter is taken apart: a
        thread of gloo that still holds tensors then would want Python and abort (PyTorch's pull request 179291)."""
        dist.destroy_process_group()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


class RankedControl:
    """Process 0's wishes, for all: they change where all look together only, so that all do the same.

    Args:
        control: where process 0 looks.
        stepper: whose pace is passed on; `told` has what all have told of theirs.
    """

    def __init__(self, ranks: Ranks, control: Control, stepper: Any = None) -> None:
        self._ranks, self._control = ranks, control
        self._pace: Pace | None = getattr(stepper, "pace", None)
        self.told: list[Told | None] = []
        self._agreed = Wishes()
        self.agree([])  # what was wished before is no new wish

    def agree(self, numbers: Sequence[float]) -> list[Any]:
        """Return sums of the numbers over all processes, which must all call this; wishes are passed on with them."""
        wishes = self._control.look() if self._ranks.first else None
        gathered = self._ranks.gather((list(numbers), wishes, None if self._pace is None else self._pace.told()))
        self._agreed, self.told = gathered[0][1], [told for *_, told in gathered]
        return [sum(values) for values in zip(*(part for part, *_ in gathered), strict=True)]

    def together(self, look: Callable[[], None]) -> Callable[[], None]:
        """Return `look`, for work that all processes do at the same pace: the wishes are agreed on first."""

        def agreed() -> None:
            self.agree([])
            look()

        return agreed

    def led(self, work: Callable[[Callable[[], None]], Iterator[Any]], look: Callable[[], None]) -> Iterator[Any]:
        """Yield what process 0 makes in some work that it does alone; the others only look when it does.

        Args:
            work: is given a function to call now and then.
            look: may end it, by an error, in all processes at once.
        """

        def pace() -> None:
            self.agree([1])
            look()

        if self._ranks.first:
            yield from work(pace)
            self.agree([0])
            return
        while self.agree([0])[0]:
            look()

    def look(self) -> Wishes:
        """See `nbtune.train.control.Control.look`."""
        return self._agreed

    def wait(self, seconds: float) -> None:
        """See `nbtune.train.control.Control.wait`; all wait together."""
        self._control.wait(seconds)
        self.agree([])


class _Ranked(LooksAhead):
    """Of a stepper's kind: one of several processes, each of which draws other random numbers."""

    _gather: Gather | None

    def __init__(self, ranks: Ranks, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._ranks = ranks
        self._gather = ranks.gather
        self.pace = Pace(self.device, ranks.count, self._weights())

    def _weights(self) -> Iterable[torch.nn.Parameter]:
        """Return those that may be parted."""
        return ()

    def look_ahead(self, batches: Iterable[Batch], *, step: int) -> None:
        """See `LooksAhead.look_ahead`: a step begins with it."""
        self.pace.begin()
        super().look_ahead(batches, step=step)

    def _number(self, micro_step: int) -> int:
        return micro_step * self._ranks.count + self._ranks.rank


class RankedStepper(_Ranked, Stepper):
    """A `Stepper` that adds up what all processes' micro-batches gave."""

    def _weights(self) -> Iterable[torch.nn.Parameter]:
        return self.model.parameters()

    def accumulate(self, batch: Batch, *, denominator: float, step: int, micro_step: int) -> None:
        """See `Stepper.accumulate`."""
        self.pace.take(batch.num_tokens)
        super().accumulate(batch, denominator=denominator, step=step, micro_step=micro_step)

    def update(self, learning_rate: float) -> Updated:
        """See `Stepper.update`; a process without a micro-batch of its own in this step adds nothing."""
        names = self._loss.figures
        if self._sum is None:
            self._sum = torch.zeros((), device=self.device)
        if self._figures is None and names:
            self._figures = torch.zeros(2, len(names), device=self.device)
        for parameter in self._parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        told = [self._sum.float().reshape(1)] + ([] if self._figures is None else [self._figures.flatten()])
        whole, _ = self._gradients()  # of parts FSDP2 has done so
        self.pace.ready()
        total = _add_up(whole, torch.cat(told))
        self.pace.summed(whole)
        self._sum, self._figures = total[0], total[1:].view(2, -1) if names else None
        return super().update(learning_rate)

    def _gradients(self) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Return the gradients of what each process has whole, and of its parts of the rest."""
        parted = set() if self._masters is None else {id(p) for p in self._masters.parted}
        named = [(id(p) in parted, p.grad) for p in self._parameters if p.grad is not None]
        return [g for part, g in named if not part], [g for part, g in named if part]

    def _clip(self, limit: float) -> torch.Tensor:
        whole, parts = self._gradients()
        if not parts:
            return super()._clip(limit)
        with _noticing():
            norm = norm_of(whole, parts)
        torch._foreach_mul_([*whole, *parts], (limit / (norm + 1e-6)).clamp(max=1.0))
        return norm


class RankedFusedStepper(_Ranked, FusedStepper):
    """A `FusedStepper` that does so: its gradients lie in one buffer, between two recordings."""

    def accumulate(self, batch: Batch, *, denominator: float, step: int, micro_step: int) -> None:
        """See `FusedStepper.accumulate`."""
        self.pace.take(batch.num_tokens)
        super().accumulate(batch, denominator=denominator, step=step, micro_step=micro_step)

    def update(self, learning_rate: float) -> Updated:
        """See `FusedStepper.update`; a process without a micro-batch of its own in this step adds nothing."""
        gradients = self._step.gradients()
        if self._sum is None:
            torch._foreach_zero_(gradients)
            figures = () if self._loss is None else self._loss.figures
            self._sum = torch.zeros((1 + 2 * len(figures),) if figures else (), device=self.device)
        self.pace.ready()
        self._sum = _add_up(gradients, self._sum.float().reshape(-1)).view_as(self._sum)
        self.pace.summed(gradients)
        return super().update(learning_rate)


def _add_up(gradients: Sequence[torch.Tensor], told: torch.Tensor) -> torch.Tensor:
    """Sum over all processes, in fp32: gradients in place, what else a step tells (`[n]`) returned."""
    total = told.detach().clone()
    with _noticing():
        for bucket in _buckets(gradients):
            if len(bucket) == 1 and bucket[0].dtype == torch.float32 and bucket[0].is_contiguous():
                dist.all_reduce(bucket[0])
                continue
            flat = torch.cat([gradient.float().flatten() for gradient in bucket])
            dist.all_reduce(flat)
            parts = flat.split([gradient.numel() for gradient in bucket])
            torch._foreach_copy_(bucket, [part.view_as(gradient) for part, gradient in zip(parts, bucket, strict=True)])
        dist.all_reduce(total)
    return total


@contextmanager
def _noticing() -> Iterator[None]:
    """Notice that a process is gone: gloo and NCCL say so each in its own way."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or "gloo" in str(error):
            raise OtherIsGone("another process of this run has ended") from error
        raise


def _buckets(gradients: Sequence[torch.Tensor]) -> Iterator[list[torch.Tensor]]:
    bucket: list[torch.Tensor] = []
    for gradient in gradients:
        if bucket and sum(g.numel() for g in bucket) + gradient.numel() > _BUCKET:
            yield bucket
            bucket = []
        bucket.append(gradient)
    if bucket:
        yield bucket
