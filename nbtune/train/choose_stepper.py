"""Which stepper a run goes by: recorded CUDA graphs where a GPU gains by them, else one launch after the other."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from nbtune.models.experts.choices import Choices
from nbtune.models.parameter_kinds import parameter_kinds
from nbtune.models.weight_decay import decays
from nbtune.train.backward_stepper import BackwardStepper
from nbtune.train.cuda_graph_stepper import FusedStepper, records, suits
from nbtune.train.distributed import RankedFusedStepper, RankedStepper, Ranks
from nbtune.train.loss import AnswerLoss
from nbtune.train.master_weights import Masters
from nbtune.train.optimizer import make_optimizer
from nbtune.train.stepper import Stepper

if TYPE_CHECKING:
    import torch

    from nbtune.models import Built
    from nbtune.planner import Plan
    from nbtune.spec import RunSpec
    from nbtune.train.loss import Loss


def choose_stepper(
    built: Built,
    loss: Loss,
    *,
    spec: RunSpec,
    plan: Plan,
    device: torch.device,
    ranks: Ranks | None = None,
    fused: bool = False,
) -> Stepper | FusedStepper:
    """Return the stepper of a run, its optimizer in it.

    Args:
        loss: what the plain stepper calls.
        ranks: of several processes, which add their gradients up.
        fused: the model's own head computes the loss, so that whole steps can be recorded. Those of whole answers can,
            where it is nbtune's.
    """
    stepper = _made(built, loss, spec=spec, plan=plan, device=device, ranks=ranks, fused=fused)
    if built.patch is not None and built.patch.experts:
        stepper.choices = Choices(built.patch.experts)
    return stepper


def _made(
    built: Built, loss: Loss, *, spec: RunSpec, plan: Plan, device: torch.device, ranks: Ranks | None, fused: bool
) -> Stepper | FusedStepper:
    if plan.in_backward:
        return BackwardStepper(
            built.model,
            loss,
            plan.optimizer or spec.optim,
            weight_decay=decays(built.model, spec.weight_decay),
            kinds=parameter_kinds(built.model),
            args=spec.optim_args,
            max_grad_norm=spec.max_grad_norm,
            seed=spec.seed,
            device=device,
        )
    answers = loss if isinstance(loss, AnswerLoss) and records(built, loss) else None
    if (fused or answers) and not plan.weights.shards and suits(built, spec, plan.dtype, device):
        record = FusedStepper if ranks is None else partial(RankedFusedStepper, ranks)
        return record(
            built,
            weight_decay=spec.weight_decay,
            max_grad_norm=spec.max_grad_norm,
            seed=spec.seed,
            device=device,
            args=spec.optim_args,
            loss=answers,
        )
    make = Stepper if ranks is None else partial(RankedStepper, ranks)
    trained = [p for p in built.model.parameters() if p.requires_grad]
    decay = decays(built.model, spec.weight_decay)
    masters = Masters(trained) if Masters.needed(trained) else None
    parameters = trained if masters is None else masters.parameters
    return make(
        built.model,
        loss,
        make_optimizer(
            parameters,
            spec.optim,
            learning_rate=plan.learning_rate,
            weight_decay=decay,
            args=spec.optim_args,
            kinds=parameter_kinds(built.model),
        ),
        max_grad_norm=spec.max_grad_norm,
        seed=spec.seed,
        device=device,
        scaled=plan.dtype == "fp16",
        masters=masters,
        ema_decay=spec.optim_args.ema_decay,
    )
