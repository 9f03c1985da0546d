"""AdamW for many small tensors in one launch, everything that changes from step to step read from the device.

    g = clip * grad;   m = b1 m + (1 - b1) g;   v = b2 v + (1 - b2) g^2
    p = p - lr wd p - lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)

lr, t and clip are device scalars, so a step can live in a CUDA graph. Moments are fp32. A `copies` tensor gets p rounded
to its own dtype in the same pass (bf16 adapters for the products, fp32 ones for the update).
Loshchilov & Hutter 2019, arXiv 1711.05101.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def reference(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    exp_avg_sqs: Sequence[Tensor],
    lr: Tensor,
    step: Tensor,
    *,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: Sequence[float],
    lr_scales: Sequence[float],
    clip: Tensor | None = None,
    copies: Sequence[Tensor] | None = None,
) -> None:
    """One step in plain torch, in place; the truth for the kernel and the path on a CPU."""
    b1, b2 = betas
    t = step.to(torch.float32)
    c1, c2 = 1 - torch.pow(b1, t), 1 - torch.pow(b2, t)
    for i, (p, grad, m, v) in enumerate(zip(params, grads, exp_avgs, exp_avg_sqs, strict=True)):
        g = grad.float() if clip is None else grad.float() * clip
        m.lerp_(g, 1 - b1)
        v.mul_(b2).addcmul_(g, g, value=1 - b2)
        rate = lr * lr_scales[i]
        new = p.float() * (1 - rate * weight_decay[i]) - rate * (m / c1) / ((v / c2).sqrt_().add_(eps))
        p.copy_(new)
        if copies is not None:
            copies[i].copy_(new)


class FusedAdamW:
    """AdamW over tensors of one dtype, one launch a step.

    Args:
        params: contiguous tensors of one dtype on one device, updated in place.
        grads: their gradients, same shapes, of one dtype: buffers that stay where they are for the whole run.
        betas, eps: as usual.
        weight_decay, lr_scales: one number, or one for each tensor (LoRA+ gives B a higher rate).
        copies: tensors of the params' shapes that get the rounded values.
    """

    def __init__(
        self,
        params: Sequence[Tensor],
        grads: Sequence[Tensor],
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float | Sequence[float] = 0.0,
        lr_scales: float | Sequence[float] = 1.0,
        copies: Sequence[Tensor] | None = None,
    ):
        self.params, self.grads, self.betas, self.eps = list(params), list(grads), betas, eps
        self.copies = None if copies is None else list(copies)
        n = len(self.params)
        self.weight_decay = [weight_decay] * n if isinstance(weight_decay, int | float) else list(weight_decay)
        self.lr_scales = [lr_scales] * n if isinstance(lr_scales, int | float) else list(lr_scales)
        device = self.params[0].device
        self.exp_avgs = [torch.zeros(p.shape, dtype=torch.float32, device=device) for p in self.params]
        self.exp_avg_sqs = [torch.zeros(p.shape, dtype=torch.float32, device=device) for p in self.params]
        self.step_count = torch.zeros((), dtype=torch.int64, device=device)

    def grad_norm(self) -> Tensor:
        """Euclidean norm of all gradients, an fp32 device scalar (deterministic)."""
        return torch.stack([g.float().square().sum() for g in self.grads]).sum().sqrt()

    def clip_factor(self, norm: Tensor, max_norm: float) -> Tensor:
        """`min(1, max_norm / norm)` on the device."""
        return (max_norm / (norm + 1e-6)).clamp(max=1.0)

    @torch.no_grad()
    def step(self, lr: Tensor, *, clip: Tensor | None = None) -> None:
        """Count one step and update: `lr` and `clip` are fp32 scalars on the device."""
        self.step_count += 1
        reference(
            self.params, self.grads, self.exp_avgs, self.exp_avg_sqs, lr, self.step_count, betas=self.betas,
            eps=self.eps, weight_decay=self.weight_decay, lr_scales=self.lr_scales, clip=clip, copies=self.copies,
        )  # fmt: skip

    def state_dict(self) -> dict[str, object]:
        """Tensors by name, for a checkpoint."""
        return {"step": self.step_count, "exp_avgs": self.exp_avgs, "exp_avg_sqs": self.exp_avg_sqs}

    def load_state_dict(self, state: dict) -> None:
        """Copy a checkpoint's tensors into the buffers (which keep their addresses)."""
        self.step_count.copy_(state["step"])
        for mine, given in zip(
            [*self.exp_avgs, *self.exp_avg_sqs], [*state["exp_avgs"], *state["exp_avg_sqs"]], strict=True
        ):
            mine.copy_(given)
