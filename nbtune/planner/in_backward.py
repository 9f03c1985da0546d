"""Full training that keeps no gradients: where a plan takes it, and what cannot be had then."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING

from nbtune.errors import PlanError
from nbtune.methods import METHODS
from nbtune.models.memory_search import Fit, Setup, fit

if TYPE_CHECKING:
    from nbtune.spec import RunSpec

_PLACE = "optim_args.in_backward"
_SMALL = "adamw_8bit"
Found = tuple[Setup, Fit | None, Fit]


def refusal(spec: RunSpec, dtype: str, devices: int) -> PlanError | None:
    """Return why weights cannot be updated in backward, where that is so."""
    adapter, method = spec.adapter.type, METHODS[spec.method]
    if adapter != "full":
        return _error(f"changes nothing of adapter `{adapter}`, whose gradients are few", "drop it")
    if method.online or method.reference:
        return _error(f"is not there for method `{spec.method}`, which has steps or a reference of its own", "drop it")
    if devices > 1:
        what = "leaves no gradients that several processes could add up"
        return _error(what, "write `gpus: 1`, or drop it: several GPUs part what is trained")
    if dtype == "fp16":
        return _error("leaves no gradients that fp16's loss scale could be tried on", "write `dtype: bf16`")
    if spec.optim_args.ema_decay is not None:
        return _error("keeps nothing beside the weights, so no average of them either", "drop `ema_decay`, or this")
    if (spec.gradient_accumulation_steps or 1) > 1 or (spec.batch_size or 0) > (spec.micro_batch_size or 2**62):
        what = "leaves no gradients to which those of another micro-batch could be added"
        return _error(what, "make `micro_batch_size` the `batch_size`, without accumulation")
    return None


def _error(what: str, fix: str) -> PlanError:
    return PlanError(f"updating in backward {what}", place=_PLACE, fix=fix)


def setups(spec: RunSpec, setup: Setup) -> list[Setup]:
    """Return the ways to train that are tried in turn: with gradients kept, where that is not ruled out; then without,
    by the optimizer that was asked for; where none was, with 8-bit states.

    Raises:
        PlanError: updates in backward were asked for, and cannot be had.
    """
    wish = spec.optim_args.in_backward
    why_not = None if wish is False else refusal(spec, setup.dtype, setup.devices)
    if wish is True and why_not is not None:
        raise why_not
    kept = [setup] if wish is not True else []
    if wish is False or why_not is not None:
        return kept
    small = "optim" not in spec.model_fields_set and setup.device.kind != "mps" and find_spec("bitsandbytes")
    optimizers = [setup.optimizer, *([_SMALL] if small else [])]
    return kept + [replace(setup, in_backward=True, optimizer=name) for name in optimizers]


def fit_first(spec: RunSpec, tried: Sequence[Setup], batch: int, micros: Sequence[int], **where: object) -> Found:
    """Return the first of `setups` that fits, and how; else the least that any needs.

    Raises:
        PlanError: without gradients fewer rows a step than were asked for would fit.
    """
    kept = [one for one in tried if not one.in_backward]
    found = [(one, *fit(one, micros, **where)) for one in kept]  # type: ignore[arg-type]
    if (found and found[0][1] is not None) or len(kept) == len(tried):
        return found[0]
    fixed = spec.batch_size or spec.micro_batch_size or spec.gradient_accumulation_steps
    for rows in micros:
        for one in tried[len(kept) :]:
            alone = replace(one, rows=rows)
            found.append((alone, *fit(alone, [rows], **where)))  # type: ignore[arg-type]
            if found[-1][1] is None:
                continue
            if fixed and rows < batch:
                raise PlanError(
                    f"{batch} rows a step do not fit: gradients of all weights would not, and where each weight is "
                    "updated in backward all rows of a step go through the model at once",
                    place="batch_size",
                    fix=f"write `batch_size: {rows}`, or `adapter: lora`, which trains a fraction of the weights",
                )
            return found[-1]
    return min(found, key=lambda one: one[2].memory.total)


def said(spec: RunSpec, setup: Setup, rows: int, batch: int, room: str) -> list[str]:
    """Return the reasons of a plan that updates in backward."""
    whose = "as asked" if spec.optim_args.in_backward is True else f"gradients of all weights would not fit into {room}"
    reasons = [f"each weight is updated in backward, as soon as its gradient is there: {whose}"]
    if setup.dtype == "bf16":
        reasons.append("bf16 weights have no fp32 copies: their updates are rounded stochastically")
    if setup.optimizer != spec.optim:
        reasons.append(f"the optimizer is `{setup.optimizer}`: states of `{spec.optim}` would not fit")
    if rows < batch:
        reasons.append(
            f"a step has {rows} row{'s' * (rows > 1)} instead of {batch}, as many as fit at once: none are accumulated"
        )
    if spec.max_grad_norm:
        reasons.append(
            "gradients are clipped by the norm of the step before, or by what is known of this step's where that is "
            "more: the whole is known when all weights have changed"
        )
    return reasons
