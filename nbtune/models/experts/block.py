"""A layer's experts as one differentiable function: rows sorted by expert, products by groups, LoRA beside them.

Of a token's chosen experts e with weights w_e the output is the sum of  w_e D_e act(U_e x):

    U_e x = W_e x + b_e + s B_e (A_e x),   the same for D

LoRA goes by associativity: no `W + s B A` is ever made, as stock peft does for every stack in every forward. Saved are
the input, [gate up] before the activation, and A x.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from nbtune_kernels import act_mul, act_mul_backward
from torch import Tensor, nn

from nbtune.models.experts.grouped import grouped_rows, grouped_sums

_ALIGNED = 8  # 16-bit numbers in 16 bytes, which torch's grouped products want from row to row


@dataclass
class Stack:
    """One of the two stacks of matrices, its biases `[E, N]`, and its LoRA.

    Args:
        module, name: where the stack is.
        turned: it lies as `[E, K, N]`.
        lora: peft's wrapper; adapter: the name of the LoRA in it.
    """

    module: nn.Module
    name: str
    turned: bool
    lora: Any = None
    adapter: str = ""

    @property
    def weight(self) -> Tensor:
        """The stack as it lies, read anew: weights may be moved."""
        return getattr(self.module, self.name)  # type: ignore[no-any-return]

    @property
    def bias(self) -> Tensor | None:
        return getattr(self.module, f"{self.name}_bias", None)

    @property
    def matrices(self) -> Tensor:
        """The weights as `[E, N, K]`."""
        return self.weight.transpose(1, 2) if self.turned else self.weight

    @property
    def scale(self) -> float:
        return float(self.lora.scaling[self.adapter])

    def parameters(self) -> list[nn.Parameter]:
        """Return peft's A `[E r, K]` and B `[N, r E]`."""
        if self.lora is None:
            return []
        return [self.lora.lora_A[self.adapter].weight, self.lora.lora_B[self.adapter].weight]


@dataclass
class Factors:
    """A stack's LoRA as its products need it, in their dtype: A `[E, r, K]`, and B `[E, N, r]` times its scale."""

    a: Tensor
    b: Tensor
    r: int

    @classmethod
    def of(cls, stack: Stack, like: Tensor) -> "Factors | None":
        """Make them; ranks are filled up with zeros where products would be slow otherwise."""
        if stack.lora is None:
            return None
        a, b = stack.parameters()
        experts = len(stack.weight)
        r = len(a) // experts
        wide = -(-r // _ALIGNED) * _ALIGNED if like.is_cuda else r
        rows = like.new_zeros(experts, wide, a.shape[1])
        rows[:, :r] = a.view(experts, r, -1)
        columns = like.new_zeros(experts, len(b), wide)
        columns[..., :r] = b.view(len(b), r, experts).permute(2, 0, 1) * stack.scale  # peft: the expert is the fastest
        return cls(rows, columns, r)


@dataclass
class Experts:
    """A module of experts, ready to run.

    Args:
        up, down: its stacks. gate: what it computes of `[gate up]`, `[S, 2 I]` → `[S, I]`.
        act: the kernel's name of it, where gates lie before ups; "": none, `gate` is called.
    """

    up: Stack
    down: Stack
    gate: Callable[[Tensor], Tensor]
    act: str = ""

    def parameters(self) -> list[nn.Parameter]:
        """Return what is trained in it, in the order of its gradients."""
        return [*self.up.parameters(), *self.down.parameters()]

    def __call__(self, x: Tensor, index: Tensor, weights: Tensor) -> Tensor:
        """Return what the chosen experts say of each token, `[T, H]`.

        Args:
            x: `[T, H]`. index, weights: `[T, k]`, which experts, and how much of each.
        """
        out: Tensor = ExpertsFunction.apply(self, x, index, weights, *self.parameters())  # type: ignore[no-untyped-call]
        return out


@dataclass
class Route:
    """Rows in the order of their experts: `order[i]` is the chosen place (token times k) that row i is for."""

    order: Tensor
    back: Tensor
    token: Tensor
    expert: Tensor
    ends: Tensor

    @classmethod
    def of(cls, index: Tensor, experts: int) -> "Route":
        expert, order = torch.sort(index.reshape(-1), stable=True)
        numbers = torch.arange(experts, device=index.device, dtype=expert.dtype)
        ends = torch.searchsorted(expert, numbers, right=True).to(torch.int32)
        back = torch.empty_like(order)
        back[order] = torch.arange(len(order), device=order.device)
        return cls(order, back, order // index.shape[1], expert, ends)


def _forward(stack: Stack, lora: Factors | None, x: Tensor, route: Route) -> tuple[Tensor, Tensor | None]:
    """Return the stack's products `[S, N]`, and A x."""
    y = grouped_rows(x, stack.matrices, route.ends)
    if stack.bias is not None:
        y += stack.bias[route.expert]
    if lora is None:
        return y, None
    xa = grouped_rows(x, lora.a, route.ends)
    return y.add_(grouped_rows(xa, lora.b, route.ends)), xa


def _backward(stack: Stack, lora: Factors | None, dy: Tensor, ends: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return the gradient of the stack's input, and of A x."""
    dx = grouped_rows(dy, stack.matrices.transpose(1, 2), ends)
    if lora is None:
        return dx, None
    dxa = grouped_rows(dy, lora.b.transpose(1, 2), ends)
    return dx.add_(grouped_rows(dxa, lora.a.transpose(1, 2), ends)), dxa


def _gradients(
    stack: Stack, lora: Factors | None, x: Tensor, xa: Tensor | None, dy: Tensor, dxa: Tensor | None, ends: Tensor
) -> list[Tensor]:
    """Return the gradients of peft's A and B."""
    if lora is None or xa is None or dxa is None:
        return []
    da = grouped_sums(dxa, x, ends)[:, : lora.r]
    db = grouped_sums(dy, xa, ends)[..., : lora.r]
    a, b = stack.parameters()
    return [
        da.reshape(a.shape).to(a.dtype),
        (db.permute(1, 2, 0).to(b.dtype) * stack.scale).reshape(b.shape),
    ]


def _activate(block: Experts, both: Tensor) -> Tensor:
    if not block.act:
        return block.gate(both)
    half = both.shape[1] // 2
    return act_mul(both[:, :half], both[:, half:], act=block.act)


def _activate_backward(block: Experts, both: Tensor, dh: Tensor) -> Tensor:
    """Return the gradient of `[gate up]`."""
    if not block.act:
        with torch.enable_grad():
            leaf = both.detach().requires_grad_()
            (found,) = torch.autograd.grad(block.gate(leaf), leaf, dh)
        return found
    half = both.shape[1] // 2
    found = torch.empty_like(both)
    act_mul_backward(
        dh, both[:, :half], both[:, half:], act=block.act, need_h=False, out_dgate=found[:, :half],
        out_dup=found[:, half:],
    )  # fmt: skip
    return found


class ExpertsFunction(torch.autograd.Function):
    """See `Experts.__call__`; gradients of x, of the weights that the router gave, and of LoRA."""

    @staticmethod
    def forward(ctx: Any, block: Experts, x: Tensor, index: Tensor, weights: Tensor, *lora: Tensor) -> Tensor:
        route = Route.of(index, len(block.up.weight))
        up, down = Factors.of(block.up, x), Factors.of(block.down, x)
        both, xa = _forward(block.up, up, x[route.token], route)
        y, ha = _forward(block.down, down, _activate(block, both), route)
        ctx.block, ctx.route, ctx.factors = block, route, (up, down)
        ctx.save_for_backward(x, weights, both, xa, ha)
        chosen = y[route.back].view(*index.shape, -1)
        return torch.bmm(weights.to(y.dtype)[:, None], chosen)[:, 0]

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        block, route, (up, down) = ctx.block, ctx.route, ctx.factors
        x, weights, both, xa, ha = ctx.saved_tensors
        d = grads[0][route.token]
        of_row = weights.reshape(-1)[route.order].to(d.dtype)[:, None]
        dh, dha = _backward(block.down, down, d, route.ends)  # before the router's weights: these want it so
        h = _activate(block, both)
        chosen = (dh * h).sum(-1, dtype=torch.float32)
        if block.down.bias is not None:
            chosen += (d * block.down.bias[route.expert]).sum(-1, dtype=torch.float32)
        d, dh = d.mul_(of_row), dh.mul_(of_row)
        dha = None if dha is None else dha.mul_(of_row)
        of_down = _gradients(block.down, down, h, ha, d, dha, route.ends)
        del h, d
        dboth = _activate_backward(block, both, dh)
        dx, dxa = _backward(block.up, up, dboth, route.ends)
        of_up = _gradients(block.up, up, x[route.token], xa, dboth, dxa, route.ends)
        dx = dx[route.back].view(*weights.shape, -1).sum(1)
        return None, dx, None, chosen[route.back].view(weights.shape).to(weights.dtype), *of_up, *of_down
