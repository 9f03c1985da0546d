"""AdamW for many small tensors in one launch, everything that changes from step to step read from the device.

    g = clip * grad;   m = b1 m + (1 - b1) g;   v = b2 v + (1 - b2) g^2
    p = p - lr wd p - lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)

lr, t and clip are device scalars, so a step can live in a CUDA graph. Moments are fp32. A `copies` tensor gets p
rounded to its own dtype in the same pass (fp32 adapters for the update, 16-bit ones for the products).
Loshchilov & Hutter 2019, arXiv 1711.05101.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nbtune_kernels._runtime import FUSED, cdiv, compute_capability, jit, tl, use_triton
from nbtune_kernels.tables import launch


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
    """Do one step in plain torch, in place; the truth for the kernel and the path on a CPU.

    `lr` and `step` are fp32 scalars `[]`, each tensor has the shape of its parameter.
    """
    b1, b2 = betas
    t = step.to(torch.float32)
    c1, c2 = (-torch.expm1(t * math.log(b)) if b else torch.ones_like(t) for b in betas)
    for i, (p, grad, m, v) in enumerate(zip(params, grads, exp_avgs, exp_avg_sqs, strict=True)):
        g = grad.float() if clip is None else grad.float() * clip
        m.lerp_(g, 1 - b1)
        v.mul_(b2).addcmul_(g, g, value=1 - b2)
        rate = lr * lr_scales[i]
        new = p.float() * (1 - rate * weight_decay[i]) - rate * (m / c1) / ((v / c2).sqrt_().add_(eps))
        p.copy_(new)
        if copies is not None:
            copies[i].copy_(new)


# ---------------------------------------------------------------- Triton: a program takes one chunk of one tensor


@jit
def _bias_correction(t, log_beta):
    """Compute 1 - beta^t without cancellation: in fp32, 1 - 0.999 is off by 5e-5."""
    x = t * log_beta
    series = -x * (1 + x * (0.5 + x * (0.16666667 + x * 0.041666668)))
    return tl.where(x > -0.03125, series, 1 - tl.exp(x))


@jit
def _tensor(address_ptr, index, TYPE: tl.constexpr, ALIGNED: tl.constexpr):
    ptr = tl.load(address_ptr + index).to(tl.pointer_type(TYPE))
    return tl.multiple_of(ptr, 16) if ALIGNED else ptr


@jit
def _adamw_kernel(
    address_ptr, size_ptr, factor_ptr, tensor_ptr, start_ptr, lr_ptr, step_ptr, clip_ptr, tensors,
    beta1, beta2, rest1, rest2, log1, log2, eps,
    P: tl.constexpr, G: tl.constexpr, C: tl.constexpr, CLIP: tl.constexpr, COPY: tl.constexpr, ALIGNED: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Do one step of chunks; `address[5, tensors]`: params, grads, exp_avgs, exp_avg_sqs, copies; `factor[2, tensors]`:
    lr scale, decay."""
    index = tl.load(tensor_ptr + tl.program_id(0))
    size = tl.load(size_ptr + index)
    if ALIGNED:
        size = tl.multiple_of(size, 16)
    at = tl.load(start_ptr + tl.program_id(0)) * BLOCK + tl.arange(0, BLOCK)
    mask = at < size
    p_ptr = _tensor(address_ptr, index, P, ALIGNED)
    g_ptr = _tensor(address_ptr + tensors, index, G, ALIGNED)
    m_ptr = _tensor(address_ptr + 2 * tensors, index, tl.float32, ALIGNED)
    v_ptr = _tensor(address_ptr + 3 * tensors, index, tl.float32, ALIGNED)
    lr = tl.load(lr_ptr) * tl.load(factor_ptr + index)
    decay = tl.load(factor_ptr + tensors + index)
    t = tl.load(step_ptr).to(tl.float32)
    c1 = _bias_correction(t, log1)
    c2 = _bias_correction(t, log2)
    g = tl.load(g_ptr + at, mask, other=0.0).to(tl.float32)
    if CLIP:
        g *= tl.load(clip_ptr)
    p = tl.load(p_ptr + at, mask, other=0.0).to(tl.float32)
    m = tl.load(m_ptr + at, mask, other=0.0)
    v = tl.load(v_ptr + at, mask, other=0.0)
    m = beta1 * m + rest1 * g
    v = beta2 * v + rest2 * g * g
    p = p * (1 - lr * decay) - lr * (m / c1) / (tl.sqrt(v / c2) + eps)
    tl.store(m_ptr + at, m, mask)
    tl.store(v_ptr + at, v, mask)
    tl.store(p_ptr + at, p.to(P), mask)
    if COPY:
        c_ptr = _tensor(address_ptr + 4 * tensors, index, C, ALIGNED)
        tl.store(c_ptr + at, p.to(C), mask)


@jit
def _square_kernel(
    address_ptr, size_ptr, tensor_ptr, start_ptr, part_ptr, tensors,
    G: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    index = tl.load(tensor_ptr + tl.program_id(0))
    size = tl.load(size_ptr + index)
    if ALIGNED:
        size = tl.multiple_of(size, 16)
    at = tl.load(start_ptr + tl.program_id(0)) * BLOCK + tl.arange(0, BLOCK)
    g = tl.load(_tensor(address_ptr + tensors, index, G, ALIGNED) + at, at < size, other=0.0).to(tl.float32)
    tl.store(part_ptr + tl.program_id(0), tl.sum(g * g, 0))


def _triton_type(dtype: torch.dtype) -> Any:
    return {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16}[dtype]


class FusedAdamW:
    """AdamW over tensors of one dtype, one launch a step.

    Args:
        params: contiguous tensors of one dtype on one device, updated in place.
        grads: their gradients, same shapes, contiguous, of one dtype: buffers that stay where they are (or are given
            anew by `set_grads`).
        betas, eps: as usual.
        weight_decay, lr_scales: one number, or one for each tensor (LoRA+ gives B a higher rate).
        copies: contiguous tensors of the params' shapes, of one dtype, that get the rounded values.
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
        self.params, self.betas, self.eps = [p.detach() for p in params], betas, eps
        self.copies = None if copies is None else list(copies)
        n, self.device = len(self.params), self.params[0].device
        self.weight_decay = [float(weight_decay)] * n if isinstance(weight_decay, int | float) else list(weight_decay)
        self.lr_scales = [float(lr_scales)] * n if isinstance(lr_scales, int | float) else list(lr_scales)
        self.exp_avgs = [torch.zeros(p.shape, dtype=torch.float32, device=self.device) for p in self.params]
        self.exp_avg_sqs = [torch.zeros(p.shape, dtype=torch.float32, device=self.device) for p in self.params]
        self.step_count = torch.zeros((), dtype=torch.int64, device=self.device)
        self.set_grads(grads)

    def set_grads(self, grads: Sequence[Tensor]) -> None:
        """Name the gradient buffers (again): needed when they have moved. Copies a few kilobytes to the device.

        Raises:
            ValueError: one is of another shape or dtype than its parameter, or not contiguous.
        """
        self.grads = [g.detach() for g in grads]
        groups = [self.params, self.grads, self.copies or []]
        for tensors in groups:
            if len({t.dtype for t in tensors}) > 1 or not all(t.is_contiguous() for t in tensors):
                raise ValueError("FusedAdamW needs contiguous tensors of one dtype: make one for each dtype")
        if [p.shape for p in self.params] != [g.shape for g in self.grads]:
            raise ValueError("FusedAdamW needs one gradient of the same shape for each parameter")
        if use_triton(self.params[0]):
            self._build_tables()

    def _build_tables(self) -> None:
        table = launch("adamw", compute_capability(self.device))
        self._block, self._warps = table["block"], table["warps"]
        last = self.copies or self.params
        groups = [self.params, self.grads, self.exp_avgs, self.exp_avg_sqs, last]
        sizes = [p.numel() for p in self.params]
        chunks = [(i, chunk) for i, size in enumerate(sizes) for chunk in range(cdiv(size, self._block))]
        addresses = [[t.data_ptr() for t in group] for group in groups]
        self._aligned = all(n % 16 == 0 for n in [*sizes, *(a for group in addresses for a in group)])

        def on_device(values: list, dtype: torch.dtype) -> Tensor:
            return torch.tensor(values, dtype=dtype).to(self.device)

        self._addresses = on_device(addresses, torch.int64)
        self._sizes = on_device(sizes, torch.int64)
        self._factors = on_device([self.lr_scales, self.weight_decay], torch.float32)
        self._tensors = on_device([i for i, _ in chunks], torch.int32)
        self._starts = on_device([chunk for _, chunk in chunks], torch.int64)
        self._parts = torch.empty(len(chunks), dtype=torch.float32, device=self.device)

    def grad_norm(self) -> Tensor:
        """Return the Euclidean norm of all gradients, an fp32 scalar `[]` on the device (the same bits each time)."""
        if not use_triton(self.params[0]):
            return torch.stack([g.float().square().sum() for g in self.grads]).sum().sqrt()
        _square_kernel[(self._parts.shape[0],)](
            self._addresses, self._sizes, self._tensors, self._starts, self._parts, len(self.params),
            G=_triton_type(self.grads[0].dtype), ALIGNED=self._aligned, BLOCK=self._block,
            **FUSED, num_warps=self._warps,
        )  # fmt: skip
        return self._parts.sum().sqrt()

    @staticmethod
    def clip_factor(norm: Tensor, max_norm: float) -> Tensor:
        """Return `min(1, max_norm / norm)`, fp32 `[]` on the device."""
        return (max_norm / (norm + 1e-6)).clamp(max=1.0)

    @torch.no_grad()
    def step(self, lr: Tensor, *, clip: Tensor | None = None) -> None:
        """Count one step and update: `lr` and `clip` are fp32 scalars `[]` on the device."""
        self.step_count += 1
        if use_triton(self.params[0]):
            self._launch(lr, clip)
        else:
            reference(
                self.params, self.grads, self.exp_avgs, self.exp_avg_sqs, lr, self.step_count, betas=self.betas,
                eps=self.eps, weight_decay=self.weight_decay, lr_scales=self.lr_scales, clip=clip, copies=self.copies,
            )  # fmt: skip

    def _launch(self, lr: Tensor, clip: Tensor | None) -> None:
        copies = self.copies or self.params
        _adamw_kernel[(self._parts.shape[0],)](
            self._addresses, self._sizes, self._factors, self._tensors, self._starts, lr, self.step_count,
            lr if clip is None else clip, len(self.params), *self.betas, *(1 - b for b in self.betas),
            *(math.log(b) if b else -math.inf for b in self.betas), self.eps,
            P=_triton_type(self.params[0].dtype), G=_triton_type(self.grads[0].dtype), C=_triton_type(copies[0].dtype),
            CLIP=clip is not None, COPY=self.copies is not None,
            ALIGNED=self._aligned, BLOCK=self._block, **FUSED, num_warps=self._warps,
        )  # fmt: skip

    def state_dict(self) -> dict[str, Any]:
        """Return the tensors by name, for a checkpoint."""
        return {"step": self.step_count, "exp_avgs": self.exp_avgs, "exp_avg_sqs": self.exp_avg_sqs}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Copy a checkpoint's tensors into the buffers (which keep their addresses)."""
        self.step_count.copy_(state["step"])
        given = [*state["exp_avgs"], *state["exp_avg_sqs"]]
        for mine, other in zip([*self.exp_avgs, *self.exp_avg_sqs], given, strict=True):
            mine.copy_(other)
