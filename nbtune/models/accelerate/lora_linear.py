"""Linear layers that share one input, as one matrix product with their LoRA inside it.

The frozen weights W_i of a group are stacked, and its LoRA lies at the edges of the same matrix:

    M = [ W   sB ]      W [O, K] the stack, sB [O, R] block-diagonal: s_i B_i, A [R, K] the A_i stacked
        [ A   .  ]

    forward   [y]      = [x, xA'] [W, sB]'          with xA' written beside x: no second pass over y
    backward  [dx]     = [dy, dy sB] [W; A]         with dy sB written beside dy: no second pass over dx
              dA       = (dy sB)' x,   dB_i = s_i dy_i' (xA')_i

so that a rank-16 adapter costs 16 more columns of the product instead of a pass over its result. The layers' own
weights become views of M; peft's A and B stay parameters of their own (fp32, contiguous), copied in by `LoraSync`.
"""

from typing import Any

import torch
from nbtune_kernels import lora_xa, product, product_into, product_onto, rms_norm_apply
from torch import Tensor, nn

from nbtune.models.accelerate.grad_sinks import GradJobs, Ready, Sink
from nbtune.models.accelerate.lora_dropout import drop_gradients, drop_input_gradient, drop_project
from nbtune.models.accelerate.lora_member import LeftAlone, is_four_bit, member

_ALIGN = 64  # elements: rows of M start at multiples of 128 bytes


def wide(rows: int, columns: int, like: Tensor) -> Tensor:
    """Return an uninitialised `[rows, columns]` matrix whose rows start at aligned addresses."""
    pitch = -(-columns // _ALIGN) * _ALIGN if like.is_cuda else columns
    return torch.empty((rows, pitch), dtype=like.dtype, device=like.device)[:, :columns]


class LinearGroup:
    """Linear layers with one input, stacked.

    `away`: the layers' own weights are not what their stock forward needs, unless `lend` has brought it. `slack`: how
    far rounding may move what it computes.

    Args:
        modules: the layers, in the order of their outputs.

    Raises:
        LeftAlone: see `member`; also where their types, places or shapes do not go together.
    """

    def __init__(self, modules: list[nn.Module]):
        self.members = [member(m) for m in modules]
        self._check()
        first = self.members[0].base
        self.inputs = self.members[0].rows.shape[1] if self.members[0].turned else first.in_features
        self.outs = [m.rows.shape[0] if m.turned else m.base.out_features for m in self.members]
        self.outputs = sum(self.outs)
        self.ranks = [m.rank for m in self.members]
        self.rank = sum(self.ranks)
        self.dtype, self.device = self._place()
        self.full = first.weight.requires_grad
        self.has_bias = first.bias is not None
        self.matrix: Any = None  # a Tensor while attached
        self.bias: Tensor | None = None
        self.sink: Sink | None = None
        self.stream = 0  # of its first layer's dropout

    def _check(self) -> None:
        first = self.members[0].base
        for m in self.members:
            w = m.base.weight
            if is_four_bit(m.base):
                raise LeftAlone("some of its linear layers are quantised, and some are not")
            width = self.members[0].rows.shape[1]
            if w.dtype != first.weight.dtype or w.device != first.weight.device or m.rows.shape[1] != width:
                raise LeftAlone("its linear layers differ in dtype, device or width")
            if w.requires_grad != first.weight.requires_grad or (m.base.bias is None) != (first.bias is None):
                raise LeftAlone("some of its linear layers are trained or biased, and some are not")
            if m.a is not None and w.requires_grad:
                raise LeftAlone("it trains frozen weights and an adapter at once")

    def _place(self) -> tuple[torch.dtype, torch.device]:
        weight = self.members[0].base.weight
        return weight.dtype, weight.device

    away = False
    slack = 0.0

    # ------------------------------------------------------------ storage

    def lend(self) -> None:
        """Give the stock layers weights that they can work with, until `take_back`."""

    def take_back(self) -> None:
        """Take back what `lend` lent."""

    def load(self) -> None:
        """Make M ready for the products of one half of a layer."""

    def attach(self, shared: dict[Any, Tensor]) -> None:
        """Build M and make the layers' weights views of it.

        Args:
            shared: what groups of one model have in common.
        """
        like = self.members[0].base.weight
        k, o, r = self.inputs, self.outputs, self.rank
        matrix = wide(o + r, k + r, like.detach())
        matrix[:, k:].zero_()
        if r:
            matrix[o:].zero_()
        start = 0
        with torch.no_grad():
            for m in self.members:
                rows = matrix[start : start + m.rows.shape[0], :k]
                rows.copy_(m.rows)
                m.put(rows)
                start += rows.shape[0]
            if self.has_bias:
                self.bias = torch.cat([m.base.bias.detach() for m in self.members])
                start = 0
                for m in self.members:
                    m.base.bias.data = self.bias[start : start + m.base.bias.shape[0]]
                    start += m.base.bias.shape[0]
        self.matrix = matrix
        self._address = self.members[0].base.weight.data_ptr()
        self.sync_pairs = self._pairs()

    def detach(self) -> None:
        """Give the layers weights of their own again."""
        for m in self.members:
            m.base.weight.data = m.base.weight.data.clone(memory_format=torch.contiguous_format)
            if m.base.bias is not None:
                m.base.bias.data = m.base.bias.data.clone()
        self.matrix = self.bias = None

    def intact(self) -> bool:
        """Return whether nobody moved, merged, quantised or sharded the weights since they were attached."""
        with_lora: Any = [m.module for m in self.members if m.a is not None]
        if any(m.merged for m in with_lora):
            return False
        if any(m.disable_adapters for m in with_lora) and (torch.is_grad_enabled() or not self.bare):
            return False
        return self.matrix is not None and self.members[0].base.weight.data_ptr() == self._address

    @property
    def bare(self) -> bool:
        """All its adapters are switched off, as for a reference: the product is the frozen layers' own."""
        with_lora: Any = [m.module for m in self.members if m.a is not None]
        return bool(with_lora) and all(m.disable_adapters for m in with_lora)

    def _pairs(self) -> list[tuple[Tensor, Tensor, float]]:
        """Return (destination in M, parameter, factor) of every A and B."""
        assert self.matrix is not None
        return self._pairs_in(self.matrix[self.outputs :, : self.inputs], self.matrix[: self.outputs, self.inputs :])

    def _pairs_in(self, below: Tensor, beside: Tensor) -> list[tuple[Tensor, Tensor, float]]:
        pairs, row, out = [], 0, 0
        for m, width in zip(self.members, self.outs, strict=True):
            if m.a is not None and m.b is not None:
                pairs.append((below[row : row + m.rank], m.a, 1.0))
                pairs.append((beside[out : out + width, row : row + m.rank], m.b, m.scaling))
            row, out = row + m.rank, out + width
        return pairs

    # ------------------------------------------------------------ products

    @property
    def width_in(self) -> int:
        """Columns of [x, xA']."""
        return self.inputs + self.rank

    @property
    def width_out(self) -> int:
        """Columns of [dy, dy sB]."""
        return self.outputs + self.rank

    def project(self, x: Tensor, seed: Tensor | None = None) -> Tensor | None:
        """Return xA' of x `[T, K]`, `[T, R]`, or None without an adapter; with a seed, of x less what is dropped."""
        if not self.rank or self.bare:
            return None
        return lora_xa(x, self.a) if seed is None else drop_project(self, x, seed)

    @property
    def a(self) -> Tensor:
        """The stacked A, `[R, K]`."""
        return self.matrix[self.outputs :, : self.inputs]

    @property
    def sb(self) -> Tensor:
        """The block-diagonal sB, `[O, R]`."""
        return self.matrix[: self.outputs, self.inputs :]

    def project_beside(self, wide_x: Tensor, seed: Tensor | None = None) -> Tensor | None:
        """Write xA' beside x in `[T, K + R]`, and return it once more by itself."""
        if not self.rank:
            return None
        x, place = wide_x[:, : self.inputs], wide_x[:, self.inputs :]
        if self.bare:
            place.zero_()
            return None
        if seed is not None:
            xa = drop_project(self, x, seed)
            place.copy_(xa)
            return xa
        xa = torch.empty((x.shape[0], self.rank), dtype=x.dtype, device=x.device)
        lora_xa(x, self.a, out=place, also=xa)
        return xa

    def forward(self, wide_x: Tensor, out: Tensor) -> None:
        """Compute y `[T, O]` of [x, xA'] `[T, K + R]`."""
        product_into(out, wide_x, self.matrix[: self.outputs], self.bias)

    def forward_wide(self, wide_x: Tensor) -> Tensor:
        """Return y `[T, O]` of [x, xA']."""
        out = torch.empty((wide_x.shape[0], self.outputs), dtype=wide_x.dtype, device=wide_x.device)
        self.forward(wide_x, out)
        return out

    def forward_with_room(self, wide_x: Tensor) -> Tensor:
        """Return y of [x, xA'] in `[T, O + R]`, with room for the LoRA of the way back beside it."""
        both = wide(wide_x.shape[0], self.width_out, wide_x)
        self.forward(wide_x, both[:, : self.outputs])
        return both

    def frozen_with_room(self, wide_x: Tensor) -> Tensor | None:
        """Return what `forward_with_room` does without LoRA's share; None: the product takes it along."""
        return None

    def forward_plain(self, x: Tensor, xa: Tensor | None) -> Tensor:
        """Return y `[T, O]`, of an x without room beside it."""
        w = self.matrix[: self.outputs, : self.inputs]
        if xa is None:
            return product(x, w) if self.bias is None else product_onto(self.bias.expand(x.shape[0], -1), x, w)
        out = product_onto(torch.mm(xa, self.matrix[: self.outputs, self.inputs :].t()), x, w)
        return out if self.bias is None else out.add_(self.bias)

    def forward_wide_onto(self, residual: Tensor, wide_x: Tensor, scale: float = 1.0) -> Tensor:
        """Return residual + scale * y, of [x, xA']."""
        out = product_onto(residual, wide_x, self.matrix[: self.outputs], scale)
        return out if self.bias is None else out.add_(self.bias, alpha=scale)

    def dxa_beside(self, wide_dy: Tensor, rows: Tensor | None = None) -> Tensor | None:
        """Write dy sB beside dy in `[T, O + R]`; return that slice, or `rows` (fp32 `[T]`) times it, by itself.

        One product over the zeros of sB too: a kernel that skips them is no faster, and takes seconds to compile.
        """
        if not self.rank:
            return None
        o = self.outputs
        dxa = torch.mm(wide_dy[:, :o], self.sb, out=wide_dy[:, o:])
        return dxa if rows is None else torch.mul(dxa, rows[:, None], out=torch.empty_like(dxa))

    def backward_wide(self, wide_dy: Tensor, seed: Tensor | None = None) -> Tensor:
        """Return dx `[T, K]` of [dy, dy sB]."""
        if seed is not None and self.rank:
            return drop_input_gradient(self, wide_dy, seed)
        return product(wide_dy, self.matrix[:, : self.inputs].t())

    # ------------------------------------------------------------ gradients

    def parameters(self) -> list[nn.Parameter]:
        """Return what is trained in the group, in the order in which `gradients` answers."""
        if self.full:
            out = [m.base.weight for m in self.members]
            return out + [m.base.bias for m in self.members if self.has_bias and m.base.bias.requires_grad]
        return [p for m in self.members if m.a is not None for p in (m.a, m.b)]

    def gradients(
        self,
        jobs: GradJobs,
        x: Tensor,
        dy: Tensor,
        xa: Tensor | None,
        dxa: Tensor | None,
        *,
        rows: Tensor | None = None,
        columns: Tensor | None = None,
        ready: Ready | None = None,
        seed: Tensor | None = None,
    ) -> list[Tensor | None]:
        """Return gradients of `parameters()`: tensors that hold them once `jobs` has run, None for what a sink takes.

        Args:
            x: `[T, K]`; dy: `[T, O]`; xa: `[T, R]`; dxa: what `dxa_beside` gave for the same rows.
            rows, columns: the layers' input is `rows * x * columns` (a norm's rstd and weight), never written out.
            ready: gradients that exist already.
            seed: of the forward's dropout.
        """
        dys = list(dy.split(self.outs, dim=1))
        if rows is not None and columns is not None and (self.full or (seed is not None and self.rank)):
            x = rms_norm_apply(x, columns, rows, cast_before_mul=False)
        if self.full:
            turned = [m.turned for m in self.members]
            grads: list[Tensor | None] = [
                torch.mm(x.t(), d) if t else torch.mm(d.t(), x) for d, t in zip(dys, turned, strict=True)
            ]
            biased = [m.base.bias is not None and m.base.bias.requires_grad for m in self.members]
            return grads + [d.float().sum(0).to(d.dtype) for d, b in zip(dys, biased, strict=True) if b]
        if not self.rank:
            return []
        assert xa is not None
        assert dxa is not None
        sink = self.sink if self.sink is not None and self.sink.open else None
        with_lora = [(m, d) for m, d in zip(self.members, dys, strict=True) if m.a is not None]
        kind = {"dtype": with_lora[0][0].a.dtype, "device": x.device}  # type: ignore[union-attr]
        da = torch.empty((self.rank, self.inputs), **kind) if sink is None else sink.da
        dbs = [torch.empty(tuple(m.b.shape), **kind) for m, _ in with_lora] if sink is None else sink.dbs  # type: ignore[union-attr]
        add = sink is not None and sink.accumulate
        if ready is not None and ready.a is not None:
            ready.sums.into(ready.a, da, 1.0, add)
        elif seed is not None:
            drop_gradients(self, jobs, x, dxa, da, seed, add)
        else:  # (rows * x * columns)' dxa, the rows' factor in dxa already
            jobs.add(dxa, x, da, 1.0, False, add, columns)
        start = 0
        for i, (m, d) in enumerate(with_lora):
            if ready is not None and ready.bs:
                ready.sums.into(ready.bs[i], dbs[i].t(), m.scaling, add)
            else:
                jobs.add(xa[:, start : start + m.rank], d, dbs[i], m.scaling, True, add)
            start += m.rank
        if sink is not None:
            return [None] * (2 * len(with_lora))
        das = da.split([m.rank for m, _ in with_lora])
        return [g for pair in zip(das, dbs, strict=True) for g in pair]
