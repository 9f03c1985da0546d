"""The end of a causal language model: last norm, head and cross-entropy, without whole logits."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from nbtune_kernels import linear_cross_entropy_loss
from nbtune_kernels._runtime import use_triton
from torch import Tensor, nn

from nbtune.device.streams import capturing
from nbtune.models.accelerate.detect import decoder
from nbtune.models.accelerate.layer_trace import evaluating
from nbtune.models.accelerate.lora_member import LeftAlone
from nbtune.models.accelerate.norms import Norm, Stats, relative_error


class NormFunction(torch.autograd.Function):
    """A norm by itself."""

    @staticmethod
    def forward(ctx: Any, norm: Norm, x: Tensor, *weights: nn.Parameter) -> Tensor:
        y, stats = norm.forward(x)
        ctx.norm, ctx.weights = norm, weights
        ctx.save_for_backward(x, *stats)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple:  # type: ignore[override]
        x, *stats = ctx.saved_tensors
        dx, grads = ctx.norm.backward(dy, x, Stats(*stats))
        made = iter(grads)
        return None, dx, *(next(made) if p.requires_grad else None for p in ctx.weights)


@dataclass
class Head:
    """The linear layer from hidden states to logits, and what is done to these."""

    module: nn.Linear
    softcap: float | None
    logit_scale: float

    def loss(self, hidden: Tensor, targets: "LossInputs", num_items: Tensor | float | None) -> Tensor:
        """Return summed cross-entropy over the trained rows of hidden [..., H], divided by `num_items` (their number
        when None); an fp32 scalar."""
        count: Any = targets.count if num_items is None else num_items
        if isinstance(count, Tensor):
            scale = count.float().clamp(min=1.0).reciprocal()
        else:  # filled on the device: a copy from the host would wait for it
            scale = torch.full((), 1.0 / count, dtype=torch.float32, device=hidden.device)
        if self._stock_is_faster(hidden, targets.labels):
            return self._stock_loss(hidden, targets) * scale
        loss, *_ = linear_cross_entropy_loss(
            hidden,
            self.module.weight,
            targets.labels,
            bias=self.module.bias,
            rows=targets.rows,
            token_weights=targets.weights,
            scale=scale,
            softcap=self.softcap,
            logit_scale=self.logit_scale,
        )
        return loss

    def _stock_is_faster(self, hidden: Tensor, labels: Tensor) -> bool:
        """Return whether it is: on a CPU, where logits take no more memory whole than in chunks."""
        size = labels.numel() * self.module.weight.shape[0] * hidden.element_size()
        return hidden.device.type == "cpu" and not use_triton(hidden) and size <= _WHOLE

    def _stock_loss(self, hidden: Tensor, targets: "LossInputs") -> Tensor:
        flat = hidden.reshape(-1, hidden.shape[-1])
        logits = self.logits(flat if targets.rows is None else flat.index_select(0, targets.rows))
        if targets.weights is None:
            return torch.nn.functional.cross_entropy(logits, targets.labels, ignore_index=-100, reduction="sum")
        losses = torch.nn.functional.cross_entropy(logits, targets.labels, ignore_index=-100, reduction="none")
        return torch.dot(losses, targets.weights)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the model's logits of hidden [..., H], fp32 [..., V]."""
        logits: Tensor = self.module(hidden).float()
        if self.logit_scale != 1.0:
            logits = logits * self.logit_scale
        return self.softcap * torch.tanh(logits / self.softcap) if self.softcap else logits


_WHOLE = 2**25  # bytes of logits, which is a chunk of the kernels' head on a CPU


@dataclass(frozen=True)
class LossInputs:
    """Which rows of the flattened hidden states are trained, and on what.

    Args:
        labels: `[M]` int64, already shifted; −100 is not trained.
        rows: `[M]` int64 into `[B * S]`, or None when M = B * S.
        count: how many labels are trained, a number or a scalar on the device; with weights, their sum.
        weights: `[M]` fp32, how often each label's loss counts; None: once.
    """

    labels: Tensor
    rows: Tensor | None
    count: Tensor | float
    weights: Tensor | None = None


def loss_inputs(labels: Tensor | None, kwargs: dict[str, Any]) -> Callable[[], LossInputs]:
    """Take them from the collator's `loss_rows`, `loss_labels` and `loss_weights`, else from `labels` `[B, S]` or
    `shift_labels`.

    Call it before the layers are launched, and its result after. The number of trained rows, which decides whether the
    others are left out of the head, is then counted beside the layers, and nothing waits for these. (While a CUDA graph
    is captured it cannot reach the host: all rows are computed.)
    """
    rows, given = kwargs.pop("loss_rows", None), kwargs.pop("loss_labels", None)
    weights = kwargs.pop("loss_weights", None)
    if given is not None and weights is not None:
        flat = weights.reshape(-1).float()
        return lambda: LossInputs(given.reshape(-1), None if rows is None else rows.reshape(-1), flat.sum(), flat)
    if given is not None:
        return lambda: LossInputs(given.reshape(-1), None if rows is None else rows.reshape(-1), (given != -100).sum())
    ready_made = kwargs.pop("shift_labels", None)
    source = labels if ready_made is None else ready_made
    assert source is not None
    on_device = source.is_cuda and not capturing(source.device)
    stream = torch.accelerator.current_stream(source.device) if on_device else None
    ready = stream.record_event() if stream is not None else None

    def finish() -> LossInputs:
        shifted = ready_made
        if shifted is None:
            shifted = torch.nn.functional.pad(source[..., 1:], (0, 1), value=-100)
        flat = shifted.reshape(-1)
        if capturing(flat.device):
            return LossInputs(flat, None, (flat != -100).sum())
        count = (
            int((flat != -100).sum()) if stream is None else _count_beside(source, ready_made is None, stream, ready)
        )
        if count >= 0.9 * flat.shape[0] or count == 0:
            return LossInputs(flat, None, max(1, count))
        index = torch.nonzero_static(flat != -100, size=count).flatten()
        return LossInputs(flat[index], index, count)

    return finish


_beside: dict[torch.device, torch.Stream] = {}


def _count_beside(labels: Tensor, shift: bool, here: torch.Stream, ready: Any) -> int:
    """Count trained labels on another stream, which waits for `ready` only and not for what was launched since."""
    stream = _beside.setdefault(labels.device, torch.Stream(labels.device))
    stream.wait_event(ready)
    torch.accelerator.set_stream(stream)
    try:
        return int(((labels[..., 1:] if shift else labels) != -100).sum())
    finally:
        torch.accelerator.set_stream(here)


def find_head(lm: nn.Module) -> Head:
    """Return the head of a causal language model, compared once with the model's own logits.

    Raises:
        LeftAlone: it is no plain linear layer, or more is done to its logits than is known.
    """
    module: Any = lm.get_output_embeddings() if callable(getattr(lm, "get_output_embeddings", None)) else None
    if type(module) is not nn.Linear:
        raise LeftAlone("its head is no plain linear layer")
    config: Any = lm.config
    scale = 1.0 / float(getattr(config, "logits_scaling", None) or 1.0)
    for name in ("logit_scale", "lm_head_multiplier"):
        scale *= float(getattr(config, name, None) or 1.0)
    head = Head(module, getattr(config, "final_logit_softcapping", None) or None, scale)
    known, why = _probed.get(lm, (None, None))
    if known != head:
        why = _unlike_its_own(lm, head)
        _probed[lm] = head, why
    if why is not None:
        raise HeadDisagrees(why)
    return head


def has_head(lm: nn.Module) -> bool:
    """Return whether `find_head` finds the head of a causal language model."""
    try:
        find_head(lm)
    except LeftAlone:
        return False
    return True


class HeadDisagrees(LeftAlone):
    """Its logits are not what was read of the config."""


_probed: WeakKeyDictionary[nn.Module, tuple[Head, str | None]] = WeakKeyDictionary()
_SPREAD = (1.0, 4.0, 16.0, 64.0)  # the largest logits of the rows that are compared: a soft cap shows with large ones
_NEAR = {torch.float32: 1e-4, torch.float64: 1e-6, torch.float16: 4e-3}  # the same products: little but rounding


@torch.no_grad()
def _unlike_its_own(lm: Any, head: Head) -> str | None:
    """Return why the head is not the model's, None where it is: asked of hidden states that stand
    in for the decoder's."""
    inner, weight = decoder(lm), head.module.weight
    if inner is None:
        return "it has no list of decoder layers"
    generator = torch.Generator().manual_seed(7)
    hidden = torch.randn(2, 16, weight.shape[1], generator=generator).to(weight.device, weight.dtype)
    largest = head.logits(hidden).abs().amax(-1, keepdim=True).clamp(min=1e-6)
    wanted = torch.tensor(_SPREAD, device=weight.device).repeat(8).view(2, 16, 1)
    hidden = (hidden.float() * (wanted / largest)).to(weight.dtype)
    ids = (torch.arange(32) % weight.shape[0]).view(2, 16).to(next(lm.parameters()).device)
    handle = inner.register_forward_hook(partial(_instead, hidden))
    try:
        with evaluating(lm):  # nothing may be drawn: a run's own numbers would be others
            theirs = lm(input_ids=ids, use_cache=False).logits
    finally:
        handle.remove()
    ours = head.logits(hidden)
    if theirs.shape != ours.shape:
        return f"its logits are {tuple(theirs.shape)}, its head's {tuple(ours.shape)}"
    limit = _NEAR.get(weight.dtype, 1.5e-2)
    errors = [relative_error(x, y) for x, y in zip(ours.flatten(0, 1), theirs.flatten(0, 1), strict=True)]
    if max(errors) <= limit:
        return None
    return f"its logits are not those of its head (off by {max(errors):.2g} of their size)"


def _instead(hidden: Tensor, _module: nn.Module, _inputs: Any, output: Any) -> Any:
    """Return a forward hook: other hidden states in place of the decoder's."""
    if isinstance(output, tuple):
        return (hidden, *output[1:])
    output.last_hidden_state = hidden
    return output
