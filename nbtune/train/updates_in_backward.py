"""Full training that keeps no gradients: each weight is updated as soon as its gradient is complete.

(Lv et al. 2023, "Full Parameter Fine-tuning for Large Language Models with Limited Resources", fuse update and backward
so.) A layer's gradients are all that there ever is of them. 16-bit weights have no fp32 copies either: a part of a
weight is widened, updated by an optimizer of a library, and rounded stochastically (`stochastic_rounding`).
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from nbtune.errors import TrainError
from nbtune.models.memory_estimate import UPDATED_AT_ONCE
from nbtune.train.optimizer import SHARE
from nbtune.train.stochastic_rounding import round_stochastically

Make = Callable[..., torch.optim.Optimizer]
Seed = Callable[[int, int], int]


class UpdatesInBackward(torch.optim.Optimizer):
    """The optimizers of all weights, one each, as a single one whose `step` finds its work done.

    Between `begin` and `end`, a backward changes the weights; outside of them gradients stay where they are. Without
    this object the model is as it was.

    Args:
        trained: weights of a model, in bf16 or fp32.
        make: of a library's optimizer, for the parts of a weight, whose number is `index`.
        seed: of the random numbers for a step and a weight.
        max_norm: gradients are scaled down to it; infinity: never.
        part: numbers of a bf16 weight that are widened at a time; None: the optimizer needs it as it is, not flat.
    """

    def __init__(
        self,
        trained: Sequence[nn.Parameter],
        make: Make,
        *,
        seed: Seed,
        max_norm: float,
        part: int | None = UPDATED_AT_ONCE,
    ) -> None:
        super().__init__([{"params": list(trained)}], {"lr": 0.0})
        self._weights = [_Weight(p, partial(make, index=i), part) for i, p in enumerate(trained)]
        self._seed, self._max_norm, device = seed, max_norm, trained[0].device
        self._generator = torch.Generator(device)
        self._step: int | None = None
        self._rate: float | None = 0.0
        self._seen: set[int] = set()
        self._so_far = torch.zeros((), device=device)  # squares of this step's gradients
        self.norm: Tensor | None = None
        """Of all gradients of the step before, or of this one once it has ended; None: there was none."""
        me = weakref.ref(self)
        self._hooks = [p.register_post_accumulate_grad_hook(_asking(me, i)) for i, p in enumerate(trained)]
        weakref.finalize(self, _remove, self._hooks)

    @property
    def clips(self) -> bool:
        """Whether gradients are scaled down."""
        return math.isfinite(self._max_norm)

    @property
    def torn(self) -> bool:
        """Whether some weights are of the step that was begun."""
        return self._step is not None and self._rate is not None and bool(self._seen)

    def begin(self, step: int, rate: float | None) -> None:
        """Let the next backward update by this learning rate; None: only measure, and drop gradients."""
        self._step, self._rate = step, rate
        self._seen.clear()
        self._so_far.zero_()

    def end(self) -> None:
        """Leave weights alone from now on; `norm` is that of the gradients that there were."""
        self._step, self.norm = None, self._so_far.sqrt()

    @torch.no_grad()
    def _arrived(self, index: int, weight: Tensor) -> None:
        """Use up the gradient of a weight."""
        if self._step is None:
            return
        gradient, weight.grad = weight.grad, None
        assert gradient is not None
        if index in self._seen:
            raise TrainError(
                "a weight of this model gets its gradient in several parts, and was updated after the first",
                place="optim_args.in_backward",
                fix="write `optim_args: {in_backward: false}`, which keeps all gradients",
            )
        self._seen.add(index)
        self._so_far += torch.linalg.vector_norm(gradient, dtype=torch.float32).square()
        if self._rate is None:
            return
        self._generator.manual_seed(self._seed(self._step, index))
        self._weights[index].update(gradient, self._rate, self._factor(), self._generator)

    def _factor(self) -> Tensor | None:
        """Return what gradients are multiplied by: as `torch.nn.utils.clip_grad_norm_`, by the larger of the norm of
        the step before and what this step's is at least."""
        if not self.clips:
            return None
        known = self._so_far.sqrt()
        known = known if self.norm is None else torch.maximum(known, self.norm)
        return (self._max_norm / (known + 1e-6)).clamp(max=1.0)

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Do nothing: weights were updated in the backward."""

    def state_dict(self) -> dict[str, Any]:
        """Return the states of all parts of each weight that was ever updated."""
        states = {i: weight.state() for i, weight in enumerate(self._weights)}
        return {"state": {i: state for i, state in states.items() if state}, "param_groups": []}

    @torch.no_grad()
    def load_state_dict(self, state_dict: Any) -> None:
        """Undo `state_dict`."""
        for index, states in state_dict["state"].items():
            self._weights[index].load(states)


class _Weight:
    """One weight and its optimizer: of an fp32 one on itself, of a bf16 one on parts that are widened in turn."""

    def __init__(self, weight: nn.Parameter, make: Callable[[Sequence[nn.Parameter]], Any], part: int | None) -> None:
        self._wide = weight.dtype == torch.float32
        self._weight, self._part = weight, part if weight.is_contiguous() else None
        count = 1 if self._part is None or self._wide else math.ceil(weight.numel() / self._part)
        empty = lambda: nn.Parameter(torch.empty(0, device=weight.device))  # noqa: E731
        self._parts = [weight] if self._wide else [empty() for _ in range(count)]
        shaped = self._part is None and not self._wide
        if shaped:  # some optimizers look at the shape when they are made
            self._parts[0].data = torch.empty(weight.shape, device=weight.device)
        self._optimizer = make(self._parts)
        if shaped:
            self._parts[0].data = torch.empty(0, device=weight.device)

    def update(self, gradient: Tensor, rate: float, factor: Tensor | None, generator: torch.Generator) -> None:
        """Change the weight by its gradient, which may be written over."""
        for group in self._optimizer.param_groups:
            group["lr"] = rate * group.get(SHARE, 1.0)
        if self._wide:
            self._weight.grad = gradient if factor is None else gradient.mul_(factor)
            self._optimizer.step()
            self._weight.grad = None
            return
        pairs = zip(self._split(self._weight), self._split(gradient), strict=True)
        for part, (of_weight, of_gradient) in zip(self._parts, pairs, strict=True):
            part.data, part.grad = of_weight.float(), of_gradient.float()
            if factor is not None:
                part.grad.mul_(factor)
            self._optimizer.step()
            of_weight.copy_(round_stochastically(part.data, generator))
            part.grad, part.data = None, part.data.new_empty(0)

    def _split(self, tensor: Tensor) -> Sequence[Tensor]:
        return [tensor.detach()] if self._part is None else tensor.detach().reshape(-1).split(self._part)

    def state(self) -> dict[int, Any]:
        """Return the state of each part, by its number."""
        return dict(self._optimizer.state_dict()["state"])

    def load(self, states: dict[int, Any]) -> None:
        """Undo `state`."""
        groups = self._optimizer.state_dict()["param_groups"]
        self._optimizer.load_state_dict({"state": states, "param_groups": groups})


def _asking(me: weakref.ref[UpdatesInBackward], index: int) -> Callable[[Tensor], None]:
    """Return a hook that keeps nothing alive."""

    def arrived(weight: Tensor) -> None:
        updates = me()
        if updates is not None:
            updates._arrived(index, weight)

    return arrived


def _remove(hooks: Sequence[Any]) -> None:
    for hook in hooks:
        hook.remove()
