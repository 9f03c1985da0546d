"""Stacks of experts' matrices in 4 or 8 bits: rounded expert by expert as a model is loaded, decoded for each product.

nf4: blocks of up to 64 numbers of a row share a scale, which is rounded to bf16 *before* its numbers are (4.25 bits a
number). bitsandbytes' double quantisation would tie each scale to all others of its tensor; here a row depends on
nothing but itself, so that a matrix is the same whether it lies in a file alone or in a stack. fp8 (e4m3): a scale a
row.

The codes lie in a module beside the weight, which has its shape still and no memory: whoever calls its module by
stock means gets all of it decoded for that call (peft's own wrappers included, which torch's parametrizations would
not go with). nbtune's products decode a stack into scratch that all share.

Weights that are streamed leave for the host's memory, rounded or not (`leave`): what they need travels as linear
layers' weights do (`nbtune.models.accelerate.cpu_offload`), and is there when it is multiplied with.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from nbtune_kernels import nf4
from nbtune_kernels.fp8 import decode_rows
from nbtune_kernels.fp8 import reference as fp8_reference
from torch import Tensor, nn

NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
"""Quantiles of a normal distribution, https://arxiv.org/abs/2305.14314, appendix E."""

_BLOCKS = (64, 32, 16, 8)  # numbers of a scale; rows of 8 are what can be decoded
_BESIDE = "rounded_"  # and the weight's name: the module that has its codes
_AT_ONCE = 2**30  # numbers that are decoded by one launch
_AT_ONCE_PLAIN = 2**20  # by torch alone, which takes many times their memory meanwhile


def can_be_rounded(shape: Iterable[int]) -> bool:
    """Return whether rows of a stack can have scales of their own."""
    return list(shape)[-1] % _BLOCKS[-1] == 0


class RoundedStack(nn.Module):
    """The codes of a stack `[E, N, K]`; called, it gives the whole stack, decoded.

    Args:
        shape: of the stack. dtype: of what is decoded. device: where the codes are.
    """

    bits: int
    parts: tuple[str, ...] = ("codes", "scales")  # what a decoded stack is made of
    codes: Tensor
    scales: Tensor
    host: Tensor  # bytes: all parts, one behind another, where they have left
    traffic: Any = None  # of the model, where they have left
    places: int | None = None

    def __init__(self, shape: Iterable[int], dtype: torch.dtype, device: torch.device) -> None:
        super().__init__()
        self.shape, self.dtype = torch.Size(shape), dtype

    def write(self, expert: int, row: int, matrix: Tensor) -> None:
        """Round a matrix `[n, K]` into an expert's codes, from such a row of it on."""
        raise NotImplementedError

    def decode(self, out: Tensor) -> None:
        """Write the stack to `out [E, N, K]`."""
        raise NotImplementedError

    def forward(self) -> Tensor:
        whole = torch.empty(self.shape, dtype=self.dtype, device=self.device)
        self.decode(whole)
        return whole

    @property
    def device(self) -> torch.device:
        """Where it is decoded."""
        return self.codes.device if self.traffic is None else self.traffic.device  # type: ignore[no-any-return]

    def held(self) -> list[Tensor]:
        """Return its parts, on the device; such as travel until the load after the next one."""
        if self.traffic is None:
            return [getattr(self, name) for name in self.parts]
        pieces = self.traffic.bring(self).matrix.split([size for size, _, _ in self._laid])
        return [piece.view(dtype).view(shape) for piece, (_, dtype, shape) in zip(pieces, self._laid, strict=True)]

    def leave(self, traffic: Any, *, pinned: bool) -> None:
        """Leave for the host's memory: from now on its parts travel."""
        parts = {name: getattr(self, name) for name in self.parts}
        self._laid = [(part.nbytes, part.dtype, part.shape) for part in parts.values()]
        self.host = torch.empty(sum(size for size, _, _ in self._laid), dtype=torch.uint8, pin_memory=pinned)
        for place, part in zip(self.host.split([size for size, _, _ in self._laid]), parts.values(), strict=True):
            place.copy_(part.reshape(-1).view(torch.uint8))
        for name in parts:
            delattr(self, name)
        self.traffic = traffic

    @property
    def kind(self) -> Any:
        """Stacks of one kind share their places on the device."""
        return type(self), self.shape, self.dtype

    def empty(self) -> Tensor:
        """Return memory for its parts on the device."""
        return torch.empty(self.host.numel(), dtype=torch.uint8, device=self.device)

    def landing(self, place: Tensor) -> Tensor:
        """Return where in a place its parts come to lie."""
        return place

    def _keep(self, **buffers: Tensor) -> None:
        for name, buffer in buffers.items():
            self.register_buffer(name, buffer, persistent=False)

    def _slices(self, out: Tensor) -> Iterable[slice]:
        most = _AT_ONCE if out.is_cuda else _AT_ONCE_PLAIN
        step = max(1, most // max(1, out[0].numel()))
        return (slice(i, i + step) for i in range(0, len(out), step))


class Nf4Stack(RoundedStack):
    """In 4 bits."""

    bits = 4
    code: Tensor

    def __init__(self, shape: Iterable[int], dtype: torch.dtype, device: torch.device) -> None:
        super().__init__(shape, dtype, device)
        experts, rows, width = self.shape
        self.block = block_of(width)
        self._keep(
            codes=torch.empty((experts, rows * width // 2), dtype=torch.uint8, device=device),
            scales=torch.empty((experts, rows, width // self.block), dtype=torch.bfloat16, device=device),
            code=torch.tensor(NF4, device=device),
        )

    def write(self, expert: int, row: int, matrix: Tensor) -> None:
        packed, scales = nf4_rows(matrix, self.block)
        width, end = self.shape[2], row + len(matrix)
        self.codes[expert, row * width // 2 : end * width // 2] = packed.view(-1)
        self.scales[expert, row:end] = scales

    def decode(self, out: Tensor) -> None:
        codes, scales = self.held()
        for part in self._slices(out):
            stack = nf4.Codes(codes[part], self.code, self.block, scales[part].view(-1))
            nf4.decode(stack, out[part].view(-1, self.shape[2]))


class Fp8Stack(RoundedStack):
    """In 8 bits."""

    bits = 8

    def __init__(self, shape: Iterable[int], dtype: torch.dtype, device: torch.device) -> None:
        super().__init__(shape, dtype, device)
        codes = torch.empty(self.shape, dtype=torch.float8_e4m3fn, device=device)
        self._keep(codes=codes, scales=torch.empty((*self.shape[:2], 1), device=device))

    def write(self, expert: int, row: int, matrix: Tensor) -> None:
        rows = slice(row, row + len(matrix))
        self.codes[expert, rows], self.scales[expert, rows, 0] = fp8_reference(matrix.float())

    def decode(self, out: Tensor) -> None:
        codes, scales = self.held()
        for part in self._slices(out):
            decode_rows(codes[part], scales[part][..., 0], out[part])


class WholeStack(RoundedStack):
    """As it is: for stacks that travel."""

    bits, parts = 16, ("codes",)

    def __init__(self, stack: Tensor) -> None:
        super().__init__(stack.shape, stack.dtype, stack.device)
        self._keep(codes=stack)

    def decode(self, out: Tensor) -> None:
        out.copy_(*self.held())


STACKS: dict[str, type[RoundedStack]] = {"nf4": Nf4Stack, "fp8": Fp8Stack}


def block_of(width: int) -> int:
    """Return how many numbers of a row share a scale."""
    return next(block for block in _BLOCKS if width % block == 0)


def nf4_rows(matrix: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """Return the codes `[n, K / 2]` of a matrix, two in a byte, the first in its upper half, and its scales in bf16,
    `[n, K / block]`."""
    blocks = matrix.float().view(len(matrix), -1, block)
    scales = blocks.abs().amax(-1).to(torch.bfloat16)
    code = torch.tensor(NF4, device=matrix.device)
    shares = blocks / scales.float().clamp_min(torch.finfo(torch.float32).tiny)[..., None]
    nearest = torch.bucketize(shares.view(-1), (code[1:] + code[:-1]) / 2, out_int32=True).to(torch.uint8)
    return (nearest[0::2] << 4 | nearest[1::2]).view(len(matrix), -1), scales


def rounded_rows(matrix: Tensor, format: str) -> Tensor:
    """Return what products compute with instead of a matrix `[n, K]` of an expert, or of several; fp32."""
    stack = STACKS[format]((1, *matrix.shape), torch.float32, matrix.device)
    stack.write(0, 0, matrix)
    return stack()[0]  # type: ignore[no-any-return]


def put_blank(module: nn.Module, name: str, format: str, dtype: torch.dtype, device: torch.device) -> RoundedStack:
    """Put a stack without numbers yet in the place of a module's weight."""
    return _put(module, name, STACKS[format](getattr(module, name).shape, dtype, device))


def _put(module: nn.Module, name: str, stack: RoundedStack) -> RoundedStack:
    if not rounded_in(module):
        module.register_forward_pre_hook(_lend)
        module.register_forward_hook(_take_back, always_call=True)
    setattr(module, name, nn.Parameter(_nothing(stack), requires_grad=False))
    module.add_module(_BESIDE + name, stack)
    return stack


def send_away(module: nn.Module, name: str, traffic: Any, *, pinned: bool) -> None:
    """Let a module's stack, rounded or not, wait in the host's memory.

    Args:
        traffic: of the model (`nbtune.models.accelerate.cpu_offload`).
        pinned: from where copies go beside other work.
    """
    found = stack_of(module, name)
    (found or _put(module, name, WholeStack(getattr(module, name).detach()))).leave(traffic, pinned=pinned)


def _nothing(stack: RoundedStack) -> Tensor:
    """Return a tensor of the stack's shape and dtype, all of whose numbers are one: what reads it goes wrong loudly."""
    return torch.full((), float("nan"), dtype=stack.dtype, device=stack.device).expand(stack.shape)


def without_memory(module: nn.Module) -> None:
    """Let weights that are rounded have no memory again, wherever in a module: moving one gives it some."""
    for part in module.modules():
        _take_back(part)


def stack_of(module: nn.Module, name: str) -> RoundedStack | None:
    """Return what a module's weight is decoded from; None: it is not rounded."""
    return module._modules.get(_BESIDE + name)  # type: ignore[return-value]


def rounded_in(module: nn.Module) -> dict[str, RoundedStack]:
    """Return the module's own rounded stacks, by the names of the weights."""
    return {n.removeprefix(_BESIDE): m for n, m in module._modules.items() if isinstance(m, RoundedStack)}


def _weight(module: Any, name: str) -> Tensor:
    """Return the weight, also where peft has a parametrization on it for a call."""
    held = getattr(module, "parametrizations", {})
    return held[name].original if name in held else module._parameters[name]  # type: ignore[no-any-return]


def _lend(module: nn.Module, *_: Any) -> None:
    if "forward" in vars(module):
        return  # nbtune's is called, which decodes what it needs
    for name, stack in rounded_in(module).items():
        _weight(module, name).data = stack()


def _take_back(module: nn.Module, *_: Any) -> None:
    for name, stack in rounded_in(module).items():
        _weight(module, name).data = _nothing(stack)


@contextmanager
def lent(module: nn.Module) -> Iterator[None]:
    """Let a module have its weights decoded for a while."""
    for name, stack in rounded_in(module).items():
        _weight(module, name).data = stack()
    try:
        yield
    finally:
        _take_back(module)


@torch.no_grad()
def round_stack(module: nn.Module, name: str, format: str) -> None:
    """Round a module's stack where it is."""
    whole: Tensor = getattr(module, name).detach()
    stack = put_blank(module, name, format, whole.dtype, whole.device)
    for expert, matrix in enumerate(whole):
        stack.write(expert, 0, matrix)
