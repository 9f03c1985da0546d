"""Compile a kernel for a GPU that is not there, with the very arguments that its launcher gives it.

`record()` lets launchers run on the CPU and keeps each launch; `compile_for()` turns one into PTX. Alignment is
what Triton would find at run time: addresses of whole tensors divide by 16, integers by what they are.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import nbtune_kernels
import pytest
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, CompiledKernel
from triton.runtime.jit import JITFunction

from nbtune.models import accelerate

MODULES = tuple(module.name for module in pkgutil.iter_modules(nbtune_kernels.__path__))
BLOCKS = tuple(f"nbtune.models.accelerate.{name}_epilogues" for name in ("triton", "lora"))
OPTIONS = ("num_warps", "num_stages", "enable_fp_fusion")


class Launch(NamedTuple):
    """One launch: the kernel, its arguments by name, and num_warps/num_stages."""

    kernel: JITFunction
    arguments: dict[str, Any]
    options: dict[str, int]

    @property
    def name(self) -> str:
        return f"{self.kernel.fn.__module__.split('.')[-1]}.{self.kernel.fn.__name__}"


@contextmanager
def record(capability: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Launch]]:
    """Launchers see a card of that capability; their launches are kept instead of run."""
    launches: list[Launch] = []

    def run(self: JITFunction, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        options = {k: kwargs.pop(k) for k in OPTIONS if k in kwargs}
        launches.append(Launch(self, dict(zip(self.arg_names, args, strict=False)) | kwargs, options))

    played = [importlib.import_module(name) for name in (*(f"nbtune_kernels.{name}" for name in MODULES), *BLOCKS)]
    for found in pkgutil.iter_modules(accelerate.__path__, f"{accelerate.__name__}."):
        importlib.import_module(found.name)  # one that is imported meanwhile would keep what is played here
    with monkeypatch.context() as patch:
        for module in played:
            for attribute, value in (
                ("compute_capability", lambda _: capability),
                ("processors", lambda _: 132),
                ("use_triton", lambda _: True),
            ):
                if hasattr(module, attribute):
                    patch.setattr(module, attribute, value)
        patch.setattr(JITFunction, "run", run)
        yield launches


def _type(value: Any) -> tuple[str, bool]:
    """Triton's name of an argument's type, and whether it divides by 16."""
    if isinstance(value, torch.Tensor):
        floats = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
        others = {
            torch.int64: "i64",
            torch.int32: "i32",
            torch.uint8: "u8",
            torch.int16: "i16",
            torch.float8_e4m3fn: "fp8e4nv",
        }
        name = {**floats, **others}[value.dtype]
        return f"*{name}", (value.storage_offset() * value.element_size()) % 16 == 0
    if isinstance(value, bool):
        return "i1", False
    if isinstance(value, int):
        return ("i32" if -(2**31) <= value < 2**31 else "i64"), value % 16 == 0
    return "fp32", False


def is_constant(parameter: Any, value: Any) -> bool:
    """Whether a kernel is compiled for that very value of a parameter."""
    return parameter.is_constexpr or value is None or (isinstance(value, int) and value == 1)


NVIDIA = "ptx"
AMD = "amdgcn"


def compile_for(launch: Launch, capability: int) -> str:
    """PTX of the launch for `sm_<capability>`."""
    return assemble(launch, GPUTarget("cuda", capability, 32))[NVIDIA]


def compile_for_amd(launch: Launch, architecture: str = "gfx942") -> str:
    """Assembly of the launch for an AMD card."""
    return assemble(launch, GPUTarget("hip", architecture, 64))[AMD]


def assemble(launch: Launch, target: GPUTarget) -> dict[str, str]:
    """The text of each stage of the compiler, by its name."""
    return compiled(launch, target).asm


def compiled(launch: Launch, target: GPUTarget) -> CompiledKernel:
    """The launch for a target."""
    signature, constants, attributes = {}, {}, {}
    for i, parameter in enumerate(launch.kernel.params):
        value = launch.arguments[parameter.name]
        if is_constant(parameter, value):
            signature[parameter.name], constants[parameter.name] = "constexpr", value
            continue
        signature[parameter.name], aligned = _type(value)
        if aligned:
            attributes[(i,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=launch.kernel, signature=signature, constexprs=constants, attrs=attributes)
    return triton.compile(source, target=target, options=launch.options)


def llama_step(dtype: torch.dtype) -> list[tuple[str, Callable[[], object]]]:
    """The launches of one LoRA step of an 8B Llama (and of other families), on tensors that are never touched."""
    # by import_module: the package's functions hide its modules of the same names
    nk, adamw, ce, fp8, linear_cross_entropy, lora_kernels, tables = (
        importlib.import_module(f"nbtune_kernels{name}")
        for name in ("", ".adamw", ".cross_entropy", ".fp8", ".linear_cross_entropy", ".lora_kernels", ".tables")
    )
    t, h, i, v = 2048, 4096, 14336, 128256

    def z(*shape: int, dtype: torch.dtype = dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype)

    x, w, f32, ids = z(t, h), z(h), z(t, dtype=torch.float32), z(t, dtype=torch.int64)
    qkv, gate_up = z(t, 6144), z(t, 2 * i)
    q, k = qkv[:, :4096].view(1, t, 32, 128), qkv[:, 4096:5120].view(1, t, 8, 128)
    gate, up = gate_up[:, :i], gate_up[:, i:]
    cos = z(1, t, 128)
    stats = ce.RowStats(f32, f32, f32, f32)

    def attention(dim: int) -> None:
        """Capped scores, forward and backward."""
        op = importlib.import_module("nbtune_kernels.attention")
        heads, keys, cu = z(t, 4, dim), z(t, 2, dim), z(3, dtype=torch.int32)
        o, lse = op._launch_forward(heads, keys, keys, cu, None, 2048, 0.1, 50.0, 0)
        op._launch_backward(o, heads, keys, keys, o, lse, cu, None, 2048, 0.1, 50.0, 0)

    def mixture() -> None:
        """A mixture's experts, there and back."""
        k = importlib.import_module("nbtune_kernels.grouped_kernels")
        experts, width, r, s = 64, 768, 16, 4 * t
        ends, places = z(experts, dtype=torch.int32), z(s, dtype=torch.int32)
        tiles = k.launch_tiles(ends, s, tables.launch("grouped_rows", 90)["block_m"])
        down, a, b = z(experts, h, width), z(experts, r, h), z(experts, h, r)
        groups, turned = (ends, tiles), z(experts, r, width).transpose(1, 2)
        k.launch_rows(x, a, groups, places, None, z(s, r))
        k.launch_rows(z(s, width), down, groups, None, (z(s, r), b), z(s, h))
        k.launch_rows(x, down.transpose(1, 2), groups, places, (z(s, r), turned), z(s, width))
        sums = z(h, r * experts, dtype=torch.float32).view(h, r, experts).permute(2, 1, 0)
        k.launch_sums(z(s, r), x, ends, places, 2.0, sums)
        k.launch_combine(z(s, h), places, z(t, 4), 4, x)
        k.launch_turn(z(h, r, experts, dtype=torch.float32), 2.0, b)
        routing = importlib.import_module("nbtune_kernels.routing")
        routing._launch(z(t, 4, dtype=torch.int64), experts, 4, z(4, s, dtype=torch.int32), ends)
        halves, row = z(s, 2 * width).split(width, -1), z(s, dtype=torch.float32)
        k.launch_gate_backward(z(s, width), halves, row, "silu", row, (z(s, width), *halves))

    def four_bits() -> None:
        """A matrix whose scales are in 8 bits, too."""
        nf4 = importlib.import_module("nbtune_kernels.nf4")
        bytes_ = [z(n, dtype=torch.uint8) for n in (t * h // 2, t * h // 64)]
        scales = [z(n, dtype=torch.float32) for n in (256, t * h // 64 // 256, 1)]
        packed, quotients = bytes_
        nf4.decode(nf4.Codes(packed, z(16, dtype=torch.float32), 64, quotients, *scales[:2], 256, scales[2]), z(t, h))

    def twelve_bits() -> None:
        """A matrix with some exceptions."""
        packed = importlib.import_module("nbtune_kernels.packed")
        packed.unpack(packed.Packed(z(t * h * 3 // 2 + 6 * 512, dtype=torch.uint8), 100, 512), z(t, h + 64)[:, :h])

    def adamw_steps() -> None:
        optimizer = adamw.FusedAdamW.__new__(adamw.FusedAdamW)
        optimizer.params, optimizer.grads, optimizer.copies = [z(16, h)], [z(16, h)], [z(16, h)]
        optimizer.betas, optimizer.eps, optimizer.step_count = (0.9, 0.999), 1e-8, z(1, dtype=torch.int64)
        optimizer._block, optimizer._warps, optimizer._aligned = 1024, 4, True
        optimizer._parts = z(64, dtype=torch.float32)
        for name in ("_addresses", "_sizes", "_starts"):
            setattr(optimizer, name, z(64, dtype=torch.int64))
        optimizer._factors, optimizer._tensors = z(2, dtype=torch.float32), z(64, dtype=torch.int32)
        optimizer._launch(z(1, dtype=torch.float32), z(1, dtype=torch.float32))
        optimizer.grad_norm()

    def fp8_rows() -> None:
        q = z(t, h, dtype=torch.float8_e4m3fn)
        fp8._quantise_kernel[(t,)](
            x, f32, q, f32, h, h, COLUMNS=True, BLOCK=h, num_warps=4, enable_fp_fusion=True
        )  # the op goes by plain torch where there is no card
        fp8.transposed(q, z(h, t, dtype=torch.float8_e4m3fn))
        fp8._decode_kernel[(t,)](q, z(t, dtype=torch.float32), z(t, h), t * h, h, BLOCK=4096, **fp8.FUSED, num_warps=8)

    def shared_rows(head: Any) -> None:
        with pytest.MonkeyPatch.context() as patch:  # off for older cards
            patch.setitem(tables.DEFAULT, "cross_entropy_shared", {"block": 8192, "warps": 2})
            tables.forget()
            ce.cross_entropy_rows_(z(t, v), ids, f32, head, stats)
        tables.forget()

    us, vs = [z(t, 48), *z(t, 48).split(16, -1)], [x, *qkv.split([4096, 1024, 1024], -1)]
    outs = [z(48, h, dtype=torch.float32), *(z(n, 16, dtype=torch.float32) for n in (4096, 1024, 1024))]
    return [
        ("rms_norm", lambda: nk.rms_norm(x, w, 1e-5)),
        ("add_rms_norm", lambda: nk.add_rms_norm(x, x, w, 1e-5)),
        ("rms_norm_add", lambda: nk.rms_norm_add(x, x, w, 1e-5, offset=1.0, cast_before_mul=False)),
        ("rms_norm_heads", lambda: nk.rms_norm(q, z(128), 1e-5, out=q)),
        ("rms_norm_apply", lambda: nk.rms_norm_apply(x, w, f32)),
        ("rms_norm_backward", lambda: nk.rms_norm_backward(x, x, w, f32, dresidual=x)),
        ("rms_norm_dweight", lambda: nk.rms_norm_backward(x, x, w, f32, need_dweight=True)),
        ("layer_norm", lambda: nk.layer_norm(x, w, w, 1e-5)),
        ("layer_norm_backward", lambda: nk.layer_norm_backward(x, x, w, f32, f32, need_dweight=True)),
        ("rope", lambda: nk.rope(q, k, cos, cos)),
        ("rope_in_place", lambda: nk.rope(q, k, cos, cos, inplace=True, inverse=True)),
        ("rope_interleaved", lambda: nk.rope(q, k, cos[..., :64], cos[..., :64], rotary_dim=64, interleaved=True)),
        *((f"act_{a}", lambda a=a: nk.act_mul(gate, up, act=a)) for a in nk.ACTIVATIONS),
        ("act_backward", lambda: nk.act_mul_backward(z(t, i), gate, up, out_dgate=gate, out_dup=up)),
        ("gelu_backward", lambda: nk.act_mul_backward(z(t, i), z(t, i), None, act="gelu")),
        ("cross_entropy", lambda: ce.cross_entropy_rows_(z(t, v), ids, f32, ce.Head(), stats)),
        ("cross_entropy_all", lambda: ce.cross_entropy_rows_(z(t, v), ids, f32, ce.Head(30.0, 0.5, 1e-4, 0.1), stats)),
        ("cross_entropy_shared", lambda: shared_rows(ce.Head())),
        ("cross_entropy_shared_all", lambda: shared_rows(ce.Head(30.0, 0.5, 1e-4, 0.1))),
        ("cross_entropy_known", lambda: ce.cross_entropy_rows_(z(t, v), ids, f32, ce.Head(), stats, lse=f32)),
        ("scatter", lambda: linear_cross_entropy._put(x, x, ids, ids, -100)),
        ("times", lambda: linear_cross_entropy._times(x, f32)),
        ("dropout", lambda: nk.dropout(x, 0.1, ids[:1])),
        ("dropout_rare", lambda: nk.dropout(x, 2**-16, ids[:1])),  # a threshold of 1 is a constant to Triton
        ("embedding", lambda: nk.embedding(ids, z(v, h))),
        ("embedding_scaled", lambda: nk.embedding(ids, z(v, h), scale=64.0)),
        ("adamw", adamw_steps),
        ("attention", lambda: attention(64)),
        ("mixture", mixture),
        ("nf4", four_bits),
        ("unpack", twelve_bits),
        ("fp8", fp8_rows),
        ("lora_xa", lambda: lora_kernels.launch_xa(x, z(48, h), z(t, 48))),
        ("lora_dxa", lambda: lora_kernels.launch_dxa(vs[1:], [z(n, 16) for n in (4096, 1024, 1024)], [2.0] * 3, us[0])),
        ("grouped_tn", lambda: lora_kernels.launch_tn(us, vs, [1.0] * 4, outs, [False, True, True, True], True)),
    ]  # fmt: skip


class Card(torch.Tensor):
    """A tensor on the CPU that passes for one on a card."""

    is_cuda = True


def chosen(dtype: torch.dtype) -> list[tuple[str, Callable[[], object]]]:
    """The products of a LoRA step as a block asks for them: what is launched is for the gates to decide."""
    nk = importlib.import_module("nbtune_kernels")
    fused, added = (importlib.import_module(name) for name in BLOCKS)
    t, h, i, r = 2048, 128, 256, 16

    def z(*shape: int) -> torch.Tensor:
        return torch.zeros(shape, dtype=dtype).as_subclass(Card)

    x, dys, bs = z(t, h), [z(t, h), z(t, h)], [z(h, r), z(h, r)]
    xa = z(t, 2 * r)
    q, kv, angle, bounds = z(1, t, 4, 64), z(1, t, 2, 64), z(1, t, 64), torch.zeros(3, dtype=torch.int32)
    ends = torch.zeros(4, dtype=torch.int32).as_subclass(Card)

    def late_shares() -> None:
        """What an 8-bit product could not take along."""
        if fused.applies(x, r):
            gate, up = z(t, 2 * i).split(i, 1)
            added.act_with_lora(gate, up, xa, z(2 * i, 2 * r), "silu", z(t, i))
            added.sum_with_lora(x, z(t, h), xa[:, :r], z(h, r), 0.5)

    groups = nk.Groups.of(ends, t, dtype)
    return [
        ("grouped_rows", lambda: nk.grouped_rows(x, z(4, i, h), groups)),
        ("grouped_sums", lambda: nk.grouped_sums(xa, x, groups, out=z(4, 2 * r, h))),
        ("lora_xa", lambda: nk.lora_xa(x, z(2 * r, h))),
        ("lora_dxa", lambda: nk.lora_dxa(dys, bs, [1.0, 1.0])),
        ("lora_grads", lambda: nk.lora_grads(x, xa, xa, dys, [r, r], [1.0, 1.0])),
        ("act_backward", lambda: fused.act_backward_grads(z(t, i), z(t, i), z(t, i), "silu", z(t, r), xa, r)),
        ("late_shares", late_shares),
        (
            "attention",
            lambda: nk.scored_attention(q[0], kv[0], kv[0], bounds, 64, scale=1.0),
        ),
        ("rotate_back", lambda: fused.rotate_back(q, kv, kv, angle, angle, z(t, 8 * 64))),
    ]
