"""What a run measures of its model between steps: held-out rows, sample prompts, and whether packs are kept apart.

Where several processes train together, each measures its share of the rows, and wishes are agreed on between batches
and tokens, so that a stop or a pause reaches all of them at one place.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import TYPE_CHECKING, Any

from nbtune import events
from nbtune.errors import TrainError
from nbtune.generate import sampling
from nbtune.methods import METHODS

if TYPE_CHECKING:
    import torch

    from nbtune.data import BatchPlan, Prepared
    from nbtune.data.batching.collate import Batch
    from nbtune.models import Built
    from nbtune.planner import Plan
    from nbtune.spec import RunSpec
    from nbtune.train.distributed import RankedControl, Ranks
    from nbtune.train.loss import LossOutput

_SAMPLE_TOKENS = 64

Loss = Callable[..., "LossOutput"]
Count = Callable[["Batch"], float]
Look = Callable[[], None]


@dataclasses.dataclass
class Measuring:
    """What is asked of a run's model by the run itself.

    Args:
        ranks, together: of several processes.
    """

    spec: RunSpec
    plan: Plan
    data: Prepared
    built: Built
    loss: Loss
    count: Count
    device: torch.device
    ranks: Ranks | None = None
    together: RankedControl | None = None
    of_sources: dict[str, float] = dataclasses.field(default_factory=dict)  # the last evaluation, source by source

    def packs_must_be_kept_apart(
        self, batches: BatchPlan, emit: Callable[[events.Event], None], *, fused: bool
    ) -> None:
        """Say whether the documents of the first pack leave each other alone, in this model.

        Args:
            fused: how the run's loss asks the model, see `nbtune.train.inputs.model_inputs`.
        Raises:
            TrainError: they do not.
        """
        from nbtune.train.packing_check import packs_are_kept_apart

        first, model = batches.step(0)[0], self.built.model
        check = packs_are_kept_apart(model, self.data.train, first, device=self.device, fused=fused)
        emit(check)
        if not check.passed:
            raise TrainError(
                f"{self.plan.architecture} does not keep the rows of a pack apart: {check.detail}",
                fix="leave `packing` out, so that each row is a sequence of its own",
            )

    def evaluate(self, look: Look) -> tuple[float, int, float] | None:
        """Return mean loss, tokens and seconds of the held-out rows; None where there are none.

        Args:
            look: called between batches.
        """
        from nbtune.train.evaluate import mean_loss

        if self.data.eval is None or not self.data.eval.at_most(1):
            return None
        look = look if self.together is None else self.together.together(look)
        began = time.perf_counter()
        group, held = METHODS[self.spec.method].group, self.data.eval
        of_sources: dict[str, list[int]] = {}
        for row in held.some(self.spec.eval.max_rows, group):
            of_sources.setdefault(held.source_name(row), []).append(row)
        measure = partial(mean_loss, self.built.model, self.loss, device=self.device, count=self.count)
        add = list if self.together is None else self.together.agree
        found = {name: measure(self._share(rows, group, look), add=add) for name, rows in of_sources.items()}
        tokens = sum(count for _, count in found.values())
        loss = sum(mean * count for mean, count in found.values() if count) / tokens if tokens else math.nan
        several = {name: mean for name, (mean, count) in found.items() if count and math.isfinite(mean)}
        self.of_sources = several if len(several) > 1 else {}
        return loss, tokens, time.perf_counter() - began

    def _share(self, rows: list[int], group: int, look: Look) -> Iterator[Batch]:
        """Yield this process's batches of the rows; all processes call `look` equally often."""
        from nbtune.data.batching.collate import collate

        held, size = self.data.eval, self.plan.micro_batch_size
        assert held is not None
        rank, count = (0, 1) if self.ranks is None else (self.ranks.rank, self.ranks.count)
        groups = [rows[i : i + group] for i in range(0, len(rows), group)]
        for i in range(0, len(groups[::count]), size):
            look()
            mine = [row for members in groups[rank::count][i : i + size] for row in members]
            if mine:
                yield collate(held, mine)
            elif self.plan.weights.shards:
                yield collate(held, groups[0]).idle()

    def must_be_sound(self, step: int, batches: BatchPlan) -> None:
        """Check the weights of a finished step before they are kept: its own loss was that of the weights before.

        All processes must call this.

        Raises:
            TrainError: with them the loss of one of the step's batches is no number.
        """
        from nbtune.train.evaluate import mean_loss, no_number

        if step == 0:
            return
        add = list if self.together is None else self.together.agree
        again, one = batches.step(step - 1)[:1], lambda _: 1.0
        loss, tokens = mean_loss(self.built.model, self.loss, again, device=self.device, count=one, add=add)
        if tokens and not math.isfinite(loss):
            raise no_number("the loss after the last step", step)

    def samples(self, step: int, look: Look) -> Iterator[events.Sample]:
        """Yield the answers to the sample prompts; `look` is called between their tokens."""
        if self.together is None or not self.spec.samples:
            return self._said(step, look)
        if self.plan.weights.shards:  # all processes are needed for each token
            return self._said(step, self.together.together(look))
        return self.together.led(partial(self._said, step), look)

    def _said(self, step: int, look: Look) -> Iterator[events.Sample]:
        model, tokenizer = self.built.model, self.built.tokenizer
        assert tokenizer is not None

        def go_on() -> bool:
            look()
            return False

        for prompt in self.spec.samples:
            said = sampling.answer(model, tokenizer, prompt, max_new_tokens=_SAMPLE_TOKENS, should_stop=go_on)
            yield events.Sample(step=step, prompt=prompt, answer=said)


def unless_idle(loss: Loss, count: Count) -> tuple[Loss, Count]:
    """Return loss and count, of which `Batch.idle` ones are nothing, whatever is in them."""

    def loss_of(model: torch.nn.Module, batch: Batch, **more: Any) -> LossOutput:
        found = loss(model, batch, **more)
        return dataclasses.replace(found, loss=found.loss * 0.0) if batch.idle_pass else found

    return loss_of, lambda batch: 0 if batch.idle_pass else count(batch)
