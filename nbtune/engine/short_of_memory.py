"""What a run gives up when memory is short in the middle of it: rows of a micro-batch first, then what blocks keep.

The rows of a step stay the same, and so do its losses and gradients: what was one micro-batch becomes several that are
accumulated. The plan of the run's folder is changed with it, so that a resumed run does not fail of the same.
"""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Any, Protocol

from nbtune import events
from nbtune.atomic_io import write_json
from nbtune.device import empty_cache
from nbtune.errors import PlanError
from nbtune.models.factory import recompute_stock
from nbtune.models.memory_estimate import MEMORY_POLICIES

if TYPE_CHECKING:
    from pathlib import Path

    from nbtune.data import BatchPlan
    from nbtune.engine.evaluation import Measuring
    from nbtune.models import Built
    from nbtune.planner import Plan


class Running(Protocol):
    """Of an engine, what is changed."""

    plan: Plan
    built: Built
    batches: BatchPlan
    measuring: Measuring
    stepper: Any
    folder: Path
    writes: bool


def give_up(run: Running, step: int, *, beside: bool = False) -> events.Warning:
    """Make a run need less memory, and return what is to be said of it.

    Args:
        step: finished ones.
        beside: it was short in what is done between two steps.
    Raises:
        PlanError: there is nothing left to give up.
    """
    smaller, where = _smaller(run.plan, run.built), f"in what follows step {step}" if beside else f"in step {step + 1}"
    if smaller is None:
        raise PlanError(
            f"there was not enough memory after all, {where}: not for one row of up to "
            f"{run.plan.sequence_len:,} tokens, with activations `{run.plan.activations}`",
            fix="write a shorter `sequence_len`, `adapter: qlora`, or give it more memory; then start again",
        )
    before, run.plan = run.plan, smaller
    run.measuring.plan = smaller
    run.batches.divide(smaller.micro_batch_size)
    if run.built.patch is not None:
        run.built.patch.reset(smaller.activations)
    if before.activations != smaller.activations and (run.built.patch is None or not run.built.patch.layers):
        recompute_stock(run.built.model)
    run.stepper.forget_recordings()
    gc.collect()
    empty_cache(run.stepper.device)
    if run.writes:
        write_json(run.folder / "plan.json", smaller.model_dump(mode="json"))
    return events.Warning(
        message=f"memory was short {where}, which is done again: {_words(before, smaller)}",
        cause="something took more memory than was planned: another program, longer rows, or the plan was wrong",
        fix=f"next time write `micro_batch_size: {smaller.micro_batch_size}`, or `memory: {{vram_gib: …}}` for less",
        step=step,
    )


def _smaller(plan: Plan, built: Built) -> Plan | None:
    """Return the plan with fewer rows at once, as many in a step; else with less that blocks keep; else None."""
    rows = plan.micro_batch_size * plan.gradient_accumulation_steps
    for micro in range(0 if plan.in_backward else plan.micro_batch_size // 2, 0, -1):
        if rows % micro == 0:
            parts = {"micro_batch_size": micro, "gradient_accumulation_steps": rows // micro}
            return plan.model_copy(update=parts)
    own = built.patch is not None and bool(built.patch.layers)
    known = [name for name in MEMORY_POLICIES if plan.device == "cuda" or name != "offload"]
    known = known if own else ["keep", "recompute"]
    less = known[known.index(plan.activations) + 1 :] if plan.activations in known else []
    return plan.model_copy(update={"activations": less[0]}) if less else None


def _words(before: Plan, now: Plan) -> str:
    if before.micro_batch_size == now.micro_batch_size:
        return f"activations are no longer `{before.activations}`, but `{now.activations}`; the losses stay the same"
    return (
        f"{now.micro_batch_size} rows at once instead of {before.micro_batch_size}, accumulated "
        f"{now.gradient_accumulation_steps} times: a step has the same rows"
    )
