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
from nbtune.engine import abilities
from nbtune.generate import sampling
from nbtune.methods import METHODS
from nbtune.models.abilities import Abilities, Claim, leaks

if TYPE_CHECKING:
    import torch

    from nbtune.data import BatchPlan, Prepared
    from nbtune.data.batching.collate import Batch
    from nbtune.engine.held_prompts import HeldPrompts
    from nbtune.models import Built
    from nbtune.planner import Plan
    from nbtune.spec import RunSpec
    from nbtune.train.distributed import RankedControl, Ranks
    from nbtune.train.loss import Loss
    from nbtune.train.mean_loss import HeldOut

_SAMPLE_TOKENS = 64

Look = Callable[[], None]


@dataclasses.dataclass
class Measuring:
    """What is asked of a run's model by the run itself.

    Args:
        ranks, together: of several processes.
        held_prompts: what is asked where the spec has no sample prompts; of one process only.
    """

    spec: RunSpec
    plan: Plan
    data: Prepared
    built: Built
    loss: Loss
    device: torch.device
    ranks: Ranks | None = None
    together: RankedControl | None = None
    held_prompts: HeldPrompts | None = None

    @property
    def pairwise(self) -> bool:
        """Whether a row becomes two examples, the better answer first."""
        return METHODS[self.spec.method].pairwise

    def confirmed(self, batches: BatchPlan, emit: Callable[[events.Event], None], *, fused: bool) -> Abilities:
        """Say what the loaded model can do, and a warning for what the plan expected otherwise.

        Args:
            fused: how the run's loss asks the model, see `nbtune.train.inputs.model_inputs`.
        Raises:
            PlanError: the documents of the first pack do not leave each other alone, in this model.
        """
        packing = self._first_pack(batches, emit, fused=fused) if self.plan.packing else None
        # an answer of parted weights needs all processes, and a head of scores gives none
        asks = not self.plan.weights.shards and not METHODS[self.spec.method].head
        confirmed, worse = abilities.confirmed(self.plan.abilities, self.built, self.spec, packing=packing, ask=asks)
        emit(confirmed.event())
        for message in [*worse, *(self._hardly_said(batches) if asks else ())]:
            emit(events.Warning(message=message))
        return confirmed

    def _hardly_said(self, batches: BatchPlan) -> list[str]:
        """Return a sentence for each end of the first answers that the model can hardly say."""
        from nbtune.data.tokenize.terminators import ends_of
        from nbtune.models.head_rows import never_learnt

        if METHODS[self.spec.method].online or self.built.tokenizer is None:
            return []
        learnt = {int(label) for label in batches.step(0)[0].labels.unique()}
        ends = [end for end in ends_of(self.built.tokenizer).stops if end in learnt]
        return never_learnt(self.built.model, self.built.tokenizer, ends)

    def _first_pack(self, batches: BatchPlan, emit: Callable[[events.Event], None], *, fused: bool) -> Claim:
        from nbtune.train.packing_check import packs_are_kept_apart

        data, first = self.data.train, batches.step(0)[0]
        claim = packs_are_kept_apart(self.built.model, data, first, device=self.device, fused=fused)
        passed = claim.holds is not False
        emit(events.Check(name="packed equals unpacked", passed=passed, detail=claim.words))
        if not passed:
            raise leaks(self.plan.architecture, claim.words)
        return claim

    def evaluate(self, look: Look) -> HeldOut | None:
        """Return what is found of the held-out rows; None where there are none.

        Args:
            look: called between batches.
        """
        from nbtune.train.mean_loss import HeldOut, mean_loss, overall

        if self.data.eval is None or not self.data.eval.at_most(1):
            return None
        look = look if self.together is None else self.together.together(look)
        began = time.perf_counter()
        group, held = METHODS[self.spec.method].group, self.data.eval
        of_sources: dict[str, list[int]] = {}
        for row in held.some(self.spec.eval.max_rows, group):
            of_sources.setdefault(held.source_name(row), []).append(row)
        model, everybody = self.built.model, self._everybody()
        losses = {
            name: mean_loss(model, self.loss, partial(self._share, rows, group, look), **everybody)
            for name, rows in of_sources.items()
        }
        whole = overall([*losses.values()])
        metrics = {name: mean for name, mean in whole.metrics.items() if math.isfinite(mean)}
        if METHODS[self.spec.method].perplexity and math.isfinite(whole.loss):
            metrics["perplexity"] = math.exp(min(whole.loss, 50.0))
        several = {name: one.loss for name, one in losses.items() if one.counted and math.isfinite(one.loss)}
        return HeldOut(
            whole.loss,
            whole.tokens,
            time.perf_counter() - began,
            sources=several if len(several) > 1 else {},
            metrics=metrics,
        )

    def _share(self, rows: list[int], group: int, look: Look) -> Iterator[Batch]:
        """Yield this process's batches of the rows; all processes call `look` equally often."""
        from nbtune.data.batching.collate import collate
        from nbtune.data.batching.mismatched import mismatched

        held, size, others = self.data.eval, self.plan.micro_batch_size, METHODS[self.spec.method].mismatched
        assert held is not None
        rank, count = (0, 1) if self.ranks is None else (self.ranks.rank, self.ranks.count)
        groups = [range(i, min(i + group, len(rows))) for i in range(0, len(rows), group)]

        def collated(chosen: list[range]) -> Batch:
            places = [place for members in chosen for place in members]
            batch = collate(held, [rows[place] for place in places])
            return dataclasses.replace(batch, mismatched=mismatched(held, rows, places)) if others else batch

        for i in range(0, len(groups[::count]), size):
            look()
            if mine := groups[rank::count][i : i + size]:
                yield collated(mine)
            elif self.plan.weights.shards:
                yield collated(groups[:1]).idle()

    def _everybody(self) -> dict[str, Any]:
        """Return how `mean_loss` measures together with the other processes."""
        if self.together is None or self.ranks is None:
            return {"device": self.device}
        return {"device": self.device, "add": self.together.agree, "gather": self.ranks.gather}

    def must_be_sound(self, step: int, batches: BatchPlan) -> None:
        """Check the weights of a finished step before they are kept: its own loss was that of the weights before.

        All processes must call this.

        Raises:
            TrainError: with them the loss of one of the step's batches is no number.
        """
        from nbtune.train.mean_loss import mean_loss, no_number

        if step == 0:
            return
        first = batches.step(step - 1)[:1]
        mean = mean_loss(self.built.model, self.loss, lambda: first, count=lambda _: 1.0, **self._everybody())
        if mean.tokens and not math.isfinite(mean.loss):
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

        if not self.spec.samples and self.held_prompts is not None:
            yield from self.held_prompts.answers(model, tokenizer, step, go_on)
        for prompt in self.spec.samples:
            answer = sampling.marked_answer(model, tokenizer, prompt, max_new_tokens=_SAMPLE_TOKENS, should_stop=go_on)
            yield events.Sample(step=step, prompt=prompt, answer=answer)
