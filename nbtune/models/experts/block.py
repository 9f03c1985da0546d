"""A layer's experts as one differentiable function: rows sorted by expert, products by groups, LoRA beside them.

Of a token's chosen experts e with weights w_e the output is the sum of  w_e D_e act(U_e x):

    U_e x = W_e x + b_e + s B_e (A_e x),   the same for D

LoRA goes by associativity: no `W + s B A` is ever made, as stock peft does for every stack in every forward. Saved are
the input, [gate up] before the activation (unless it is computed again), and A x. Stacks in 4 or 8 bits are decoded
into scratch, each once for the forward and once for the backward.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from nbtune_kernels import (
    Groups,
    act_mul,
    grouped_combine,
    grouped_gate_backward,
    grouped_rows,
    grouped_sums,
    grouped_turn,
    sort_by_group,
)
from torch import Tensor, nn

from nbtune.models.experts.rounded import RoundedStack, stack_of

_ALIGNED = 8  # 16-bit numbers in 16 bytes, which torch's grouped products want from row to row


@dataclass
class Scratch:
    """Where rounded stacks of one dtype and device are decoded, one after the other.

    Args:
        memory: as many numbers as the largest of them has.
        holds: whose are in it.
    """

    memory: Tensor
    holds: "Stack | None" = None


@dataclass
class Stack:
    """One of the two stacks of matrices, its biases `[E, N]`, and its LoRA.

    Args:
        module, name: where the stack is.
        turned: it lies as `[E, K, N]`.
        lora: peft's wrapper; adapter: the name of the LoRA in it.
        scratch: where a rounded one is decoded; None: in memory of its own, each time.
    """

    module: nn.Module
    name: str
    turned: bool
    lora: Any = None
    adapter: str = ""
    scratch: Scratch | None = None

    @property
    def rounded(self) -> RoundedStack | None:
        """What decodes it; None: it is not rounded."""
        return stack_of(self.module, self.name)

    @property
    def weight(self) -> Tensor:
        """The stack as it lies, read anew: weights may be moved. A rounded one has a shape and no numbers."""
        return getattr(self.module, self.name)  # type: ignore[no-any-return]

    @property
    def sides(self) -> tuple[int, int, int]:
        """E, N and K."""
        experts, rows, columns = self.weight.shape
        return (experts, columns, rows) if self.turned else (experts, rows, columns)

    def whole(self) -> Tensor:
        """Return the weight as it lies; a rounded one decoded, until another one of its scratch is."""
        if self.rounded is None:
            return self.weight
        if self.rounded.bits == 16:  # it travels
            return self.rounded.held()[0]
        if self.scratch is None:
            return self.rounded()  # type: ignore[no-any-return]
        out = self.scratch.memory[: self.rounded.shape.numel()].view(self.rounded.shape)
        if self.scratch.holds is not self:
            self.rounded.decode(out)
            self.scratch.holds = self
        return out

    def forget(self) -> None:
        """Let it be decoded anew: what is recorded may not count on what ran before."""
        if self.scratch is not None:
            self.scratch.holds = None

    @property
    def bias(self) -> Tensor | None:
        return getattr(self.module, f"{self.name}_bias", None)

    def matrices(self) -> Tensor:
        """Return the weights as `[E, N, K]`; see `whole`."""
        return self.whole().transpose(1, 2) if self.turned else self.whole()

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
        a, b = (p.detach() for p in stack.parameters())
        experts = stack.sides[0]
        r = len(a) // experts
        wide = -(-r // _ALIGNED) * _ALIGNED if like.is_cuda else r
        if wide == r:
            turned = grouped_turn(b.view(len(b), r, -1), stack.scale, like.dtype)
            return cls(a.to(like.dtype).view(experts, r, -1), turned, r)
        rows = like.new_zeros(experts, wide, a.shape[1])
        rows[:, :r] = a.view(experts, r, -1)
        columns = like.new_zeros(experts, len(b), wide)
        columns[..., :r] = b.view(len(b), r, experts).permute(2, 0, 1) * stack.scale  # peft: the expert is the fastest
        return cls(rows, columns, r)


@dataclass
class ExpertsSink:
    """Where the gradients of LoRA go instead of through autograd: the parameters' own `.grad`.

    Args:
        grads: A's and B's, by the name of the stack.
        accumulate: add to what is there, instead of overwriting it.
        open: only while a `TrainStep` runs a backward; otherwise gradients go through autograd.
    """

    grads: dict[str, tuple[Tensor, Tensor]]
    accumulate: bool = False
    open: bool = False

    def give_up(self) -> None:
        """Leave what is trained to autograd, which adds: stock computes this time."""
        if self.open and not self.accumulate:
            torch._foreach_zero_([g for pair in self.grads.values() for g in pair])


@dataclass
class Experts:
    """A module of experts, ready to run.

    Args:
        up, down: its stacks. gate: what it computes of `[gate up]`, `[S, 2 I]` → `[S, I]`.
        act: the kernel's name of it, where gates lie before ups; "": none, `gate` is called.
        again: `[gate up]` is computed again in the backward instead of being kept.
        lean: whether it may be: nothing computes all of the MLP again that these experts are nearly all of.
        ends: int64 `[E]`, where training adds up behind which row each expert's end (`nbtune.models.experts.choices`).
    """

    up: Stack
    down: Stack
    gate: Callable[[Tensor], Tensor]
    act: str = ""
    sink: "ExpertsSink | None" = None
    again: bool = False
    lean: bool = False
    ends: Tensor | None = None
    _counting: Tensor | None = None

    def parameters(self) -> list[nn.Parameter]:
        """Return what is trained in it, in the order of its gradients."""
        return [*self.up.parameters(), *self.down.parameters()]

    def __call__(self, x: Tensor, index: Tensor, weights: Tensor) -> Tensor:
        """Return what the chosen experts say of each token, `[T, H]`.

        Args:
            x: `[T, H]`. index, weights: `[T, k]`, which experts, and how much of each.
        """
        self._counting = self.ends if torch.is_grad_enabled() else None
        out: Tensor = ExpertsFunction.apply(self, x, index, weights, *self.parameters())  # type: ignore[no-untyped-call]
        return out


@dataclass
class Route:
    """Rows in the order of their experts: row i is the chosen place `order[i]` (token times k) of token `token[i]`.

    `back`: which row each chosen place is. All int32.
    """

    order: Tensor
    back: Tensor
    token: Tensor
    expert: Tensor
    groups: Groups

    @classmethod
    def of(cls, index: Tensor, experts: int, dtype: torch.dtype) -> "Route":
        order, back, token, expert, ends = sort_by_group(index, experts)
        return cls(order, back, token, expert, Groups.of(ends, len(order), dtype))


def _forward(
    stack: Stack, lora: Factors | None, x: Tensor, route: Route, source: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Return the stack's products `[S, N]` of x's rows (of `source`), and A x."""
    xa = None if lora is None else grouped_rows(x, lora.a, route.groups, source)
    y = grouped_rows(x, stack.matrices(), route.groups, source, xa, None if lora is None else lora.b)
    if stack.bias is not None:
        y += stack.bias[route.expert.long()]
    return y, xa


def _backward(
    stack: Stack, lora: Factors | None, dy: Tensor, route: Route, source: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Return the gradient of the stack's input, and of A x."""
    matrices = stack.matrices().transpose(1, 2)
    if lora is None:
        return grouped_rows(dy, matrices, route.groups, source), None
    dxa = grouped_rows(dy, lora.b.transpose(1, 2), route.groups, source)
    return grouped_rows(dy, matrices, route.groups, source, dxa, lora.a.transpose(1, 2)), dxa


def _gradients(
    stack: Stack, lora: Factors | None, pairs: tuple[Tensor | None, Tensor, Tensor | None, Tensor], route: Route,
    sources: tuple[Tensor | None, Tensor | None], sink: ExpertsSink | None,
) -> list[Tensor | None]:  # fmt: skip
    """Return the gradients of peft's A and B; None for what a sink takes.

    Args:
        pairs: dxa and x, whose sums are A's; xa and dy, whose sums are B's. sources: of x and of dy.
        sink: which is open.
    """
    dxa, x, xa, dy = pairs
    if lora is None or xa is None or dxa is None:
        return []
    da, db = (torch.empty_like(p) for p in stack.parameters()) if sink is None else sink.grads[stack.name]
    experts, r, add = stack.sides[0], lora.r, sink is not None and sink.accumulate
    grouped_sums(dxa[:, :r], x, route.groups, sources[0], add=add, out=da.view(experts, r, -1))
    beside = db.view(-1, r, experts).permute(2, 1, 0)
    grouped_sums(xa[:, :r], dy, route.groups, sources[1], scale=stack.scale, add=add, out=beside)
    return [da, db] if sink is None else [None, None]


def _activate(block: Experts, both: Tensor) -> Tensor:
    if not block.act:
        return block.gate(both)
    half = both.shape[1] // 2
    return act_mul(both[:, :half], both[:, half:], act=block.act)


def _activate_backward(block: Experts, both: Tensor, dh: Tensor, of_row: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return h, what dh says of a row's weight, and the gradient of `[gate up]`; both and dh are written over."""
    if block.act:
        half = both.shape[1] // 2
        chosen = grouped_gate_backward(dh, both[:, :half], both[:, half:], of_row, act=block.act)
        return dh, chosen, both
    with torch.enable_grad():
        leaf = both.detach().requires_grad_()
        h = block.gate(leaf)
        (found,) = torch.autograd.grad(h, leaf, dh * of_row.to(dh.dtype)[:, None])
    h = h.detach()
    return h, (dh * h).sum(-1, dtype=torch.float32), found


class ExpertsFunction(torch.autograd.Function):
    """See `Experts.__call__`; gradients of x, of the weights that the router gave, and of LoRA. Its backward can run
    once (it works in its own buffers)."""

    @staticmethod
    def forward(ctx: Any, block: Experts, x: Tensor, index: Tensor, weights: Tensor, *lora: Tensor) -> Tensor:
        block.up.forget()
        route = Route.of(index, block.up.sides[0], x.dtype)
        if block._counting is not None:
            block._counting += route.groups.ends
        up, down = Factors.of(block.up, x), Factors.of(block.down, x)
        both, xa = _forward(block.up, up, x, route, route.token)
        y, ha = _forward(block.down, down, _activate(block, both), route)
        ctx.block, ctx.route, ctx.factors, ctx.done = block, route, (up, down), False
        ctx.save_for_backward(x, weights, None if block.again else both, xa, ha)
        return grouped_combine(y, route.back, len(x), weights)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        if ctx.done:
            raise RuntimeError("accelerated experts keep their activations for one backward only")
        ctx.done = True
        block, route, (up, down) = ctx.block, ctx.route, ctx.factors
        x, weights, both, xa, ha = ctx.saved_tensors
        d = grads[0].contiguous()
        of_row = weights.reshape(-1)[route.order].float()
        block.up.forget()
        # before the router's weights: these want it so
        dh, dha = _backward(block.down, down, d, route, route.token)
        if both is None:  # with the stack that is decoded for its gradient, too
            both, xa = _forward(block.up, up, x, route, route.token)
        h, chosen, dboth = _activate_backward(block, both, dh, of_row)
        if block.down.bias is not None:
            chosen += (d[route.token.long()] * block.down.bias[route.expert.long()]).sum(-1, dtype=torch.float32)
        factor = of_row.to(d.dtype)[:, None]
        ha, dha = None if ha is None else ha * factor, None if dha is None else dha.mul_(factor)
        sink = block.sink if block.sink is not None and block.sink.open else None
        of_down = _gradients(block.down, down, (dha, h, ha, d), route, (None, route.token), sink)
        del h, dh
        dx, dxa = _backward(block.up, up, dboth, route)
        of_up = _gradients(block.up, up, (dxa, x, xa, dboth), route, (route.token, None), sink)
        del dboth, both
        dx = grouped_combine(dx, route.back, len(x))
        return None, dx, None, chosen[route.back.long()].view(weights.shape).to(weights.dtype), *of_up, *of_down
