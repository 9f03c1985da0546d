"""The optimizer of a run, from a library.

`nbtune.spec.learning.OPTIMIZERS` has their names, and what each can be told.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

from nbtune.errors import TrainError
from nbtune.spec.learning import OPTIMIZERS, OptimArgs

if TYPE_CHECKING:
    import torch

Group = dict[str, Any]
_BY_MUON = "by_muon"  # of a group
SHARE = "share"
"""Of a group: its learning rate as a multiple of the step's (`nbtune.train.stepper.Stepper.update`)."""


def make_optimizer(
    parameters: Sequence[torch.nn.Parameter],
    name: str,
    *,
    learning_rate: float,
    weight_decay: float | Sequence[float],
    args: OptimArgs | None = None,
    kinds: Sequence[str] = (),
) -> torch.optim.Optimizer:
    """Make the optimizer of that name.

    Args:
        parameters: what is trained.
        name: of `nbtune.spec.learning.OPTIMIZERS`.
        weight_decay: one number, or one a parameter (`nbtune.models.weight_decay`).
        args: what it is told besides.
        kinds: what each parameter is (`nbtune.models.parameter_kinds`), for rates of their own, and for Muon.

    Raises:
        TrainError: nothing is trained.
    """
    if not parameters:
        raise TrainError("nothing in the model is trained", fix="choose an adapter")
    args = args or OptimArgs()
    each = [weight_decay] * len(parameters) if isinstance(weight_decay, int | float) else weight_decay
    kinds = kinds or ["matrix"] * len(parameters)
    rates = {"lora_b": args.lora_b_rate, "embedding": args.embedding_rate, "head": args.head_rate}
    groups: dict[Any, Group] = {}
    for parameter, decay, kind in zip(parameters, each, kinds, strict=True):
        share = rates.get(kind, 1.0)
        by_muon = name == "muon" and kind in ("matrix", "lora_b")
        new: Group = {"params": [], "weight_decay": decay, SHARE: share, _BY_MUON: by_muon}
        groups.setdefault((decay, share, by_muon), new)["params"].append(parameter)
    return _made(name, [*groups.values()], learning_rate, args, device=parameters[0].device.type)


def _made(name: str, groups: list[Group], rate: float, args: OptimArgs, *, device: str) -> torch.optim.Optimizer:
    kind, fused = OPTIMIZERS[name], device in ("cuda", "cpu")
    if name == "muon":
        return _muon(groups, rate, args, fused=fused)
    made_by: Any = getattr(import_module(kind.library), kind.named)
    told: Group = {"betas": _betas(args, kind.beta2)} if "beta1" in kind.reads else {}
    if "eps" in kind.reads:
        told["eps"] = _eps(args)
    if name == "adamw":
        told["fused"] = fused
    return made_by(groups, lr=rate, **kind.told, **told)  # type: ignore[no-any-return]


def _betas(args: OptimArgs, second: float) -> tuple[float, float]:
    return (0.9 if args.beta1 is None else args.beta1, second if args.beta2 is None else args.beta2)


def adam(args: OptimArgs) -> Group:
    """Return AdamW's betas and epsilon."""
    return {"betas": _betas(args, OPTIMIZERS["adamw"].beta2), "eps": _eps(args)}


def _eps(args: OptimArgs) -> float:
    return 1e-8 if args.eps is None else args.eps


def _muon(groups: list[Group], rate: float, args: OptimArgs, *, fused: bool) -> torch.optim.Optimizer:
    """Make Muon for the matrices (Jordan 2024), its steps as large as AdamW's (Liu et al. 2025, "Muon is scalable for
    LLM training", section 2.2: one learning rate for both); AdamW for the rest."""
    import torch

    class MuonAndAdamW(torch.optim.Optimizer):
        """Both as one: they share the groups and the state, whose parts each changes alone."""

        def __init__(self) -> None:
            super().__init__(groups, {"lr": rate})
            momentum = 0.95 if args.momentum is None else args.momentum
            self._parts: dict[bool, torch.optim.Optimizer] = {}
            if some := self._of(by_muon=True):
                muon = torch.optim.Muon(some, lr=rate, momentum=momentum, adjust_lr_fn="match_rms_adamw")
                self._parts[True] = muon
            if others := self._of(by_muon=False):
                self._parts[False] = torch.optim.AdamW(others, lr=rate, fused=fused, **adam(args))
            self._share()

        def _of(self, *, by_muon: bool) -> list[Group]:
            return [group for group in self.param_groups if group[_BY_MUON] == by_muon]

        def _share(self) -> None:
            for by_muon, part in self._parts.items():
                part.state, part.param_groups = self.state, self._of(by_muon=by_muon)

        def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
            super().load_state_dict(dict(state_dict))
            self._share()

        @torch.no_grad()
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            assert closure is None, "gradients are there already"
            for part in self._parts.values():
                part.step()

    return MuonAndAdamW()


def rates(optimizer: torch.optim.Optimizer) -> Iterable[tuple[Group, float]]:
    """Return each group with the multiple of the learning rate that it has."""
    return ((group, group.get(SHARE, 1.0)) for group in optimizer.param_groups)
