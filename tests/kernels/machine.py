"""Runs a compiled kernel's PTX on the CPU: what the compiler made of it (fused products, shuffles between threads) and
programs that wait for each other, neither of which Triton's interpreter shows. No GPU is needed, and none is timed.

`run(launch, capability)` changes the CPU tensors that the launch was given. Warps take turns: each goes on until it
meets a barrier, branches back or ends. A warp whose threads part at a branch is an error, as is a misaligned access.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from triton.backends.compiler import GPUTarget

from tests.kernels.ahead import NVIDIA, Launch, compiled, is_constant
from tests.support.every import every

LANES = np.arange(32)
Bits = NDArray[np.uint64]


def f32(bits: Bits) -> NDArray[np.float64]:
    """fp32 numbers, as fp64: products and sums of two are exact, or rounded once more far below fp32's last bit."""
    return (bits & np.uint64(0xFFFFFFFF)).astype(np.uint32).view(np.float32).astype(np.float64)


def of_f32(x: NDArray, flush: bool = False) -> Bits:
    with np.errstate(all="ignore"):
        single = np.asarray(x, np.float64).astype(np.float32)
    if flush:
        single = np.where(np.abs(single) < 2.0**-126, np.copysign(np.float32(0), single), single).astype(np.float32)
    return single.view(np.uint32).astype(np.uint64)


def signed(bits: Bits, width: int) -> NDArray[np.int64]:
    return (bits << np.uint64(64 - width)).view(np.int64) >> (64 - width)


def unsigned(x: NDArray, width: int) -> Bits:
    return x.astype(np.int64).view(np.uint64) & np.uint64(2**width - 1)


def half(bits: Bits, kind: str) -> NDArray[np.float64]:
    if kind == "bf16":
        return f32((bits & np.uint64(0xFFFF)) << np.uint64(16))
    return (bits & np.uint64(0xFFFF)).astype(np.uint16).view(np.float16).astype(np.float64)


def of_half(x: NDArray, kind: str) -> Bits:
    as_torch = torch.from_numpy(x.copy()).float().to(torch.bfloat16 if kind == "bf16" else torch.float16)
    return as_torch.view(torch.int16).numpy().view(np.uint16).astype(np.uint64)


COMPARE: dict[str, Callable] = {
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
    "num": lambda a, b: ~(np.isnan(a) | np.isnan(b)), "nan": lambda a, b: np.isnan(a) | np.isnan(b),
    "neu": lambda a, b: np.isnan(a) | np.isnan(b) | (a != b),
    "leu": lambda a, b: ~(a > b), "geu": lambda a, b: ~(a < b),
    "ltu": lambda a, b: ~(a >= b), "gtu": lambda a, b: ~(a <= b), "equ": lambda a, b: ~((a < b) | (a > b)),
}  # fmt: skip
FLOAT: dict[str, Callable] = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "max": np.fmax, "min": np.fmin,
    "neg": np.negative, "abs": np.abs, "ex2": np.exp2, "lg2": np.log2, "rcp": lambda a: 1 / a, "sqrt": np.sqrt,
    "fma": lambda a, b, c: a * b + c,
}  # fmt: skip
INTEGER: dict[str, Callable] = {
    "add": np.add, "sub": np.subtract, "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor,
    "max": np.maximum, "min": np.minimum, "not": np.invert, "neg": np.negative,
    "div": lambda a, b: np.trunc(a / b).astype(np.int64), "rem": lambda a, b: np.fmod(a, b),
    "shl": lambda a, b: np.where(b < 64, a << np.minimum(b, 63), 0), "shr": lambda a, b: a >> np.minimum(b, 63),
    "mad": lambda a, b, c: a * b + c,
}  # fmt: skip


class Warp:
    """32 threads of a program."""

    def __init__(
        self,
        code: list[str],
        labels: dict[str, int],
        where: tuple[int, int, int],
        memory: dict[str, list],
        params: dict,
    ):
        self.code, self.labels, self.memory, self.params = code, labels, memory, params
        self.registers: dict[str, NDArray] = {}
        first, program, programs = where
        self.special = {"%tid.x": first + LANES, "%laneid": LANES}
        self.special |= {"%ctaid.x": np.full(32, program), "%nctaid.x": np.full(32, programs)}

    def value(self, name: str) -> Bits:
        """Bits of an operand."""
        if name in self.registers:
            return self.registers[name]
        if name in self.special:
            return self.special[name].astype(np.uint64)
        if name.startswith("0f"):
            return np.full(32, int(name[2:], 16), np.uint64)
        if name == "global_smem":
            return np.zeros(32, np.uint64)
        return np.full(32, int(name.rstrip("U"), 0) % 2**64, np.uint64)

    def write(self, name: str, value: NDArray, live: NDArray) -> None:
        if name != "_":
            self.registers[name] = np.where(live, value, self.registers.get(name, np.zeros_like(value)))

    def address(self, text: str) -> NDArray[np.int64]:
        base, _, offset = text.strip("[] ").partition("+")
        return self.value(base.strip()).astype(np.int64) + int(offset or 0)

    def access(self, space: str, at: NDArray, live: NDArray, size: int) -> tuple[NDArray, NDArray]:
        """A piece of memory as numbers of that size, and the index of each thread's."""
        if not live.any():
            return np.zeros(1, f"u{size}"), np.zeros(32, np.int64)
        start, piece = next(m for m in self.memory[space] if m[0] <= at[live][0] < m[0] + m[1].size)
        index = np.where(live, at - start, 0)
        assert (index % size == 0).all(), "misaligned"
        assert ((index >= 0) & (index + size <= piece.size)).all(), "outside of what it began in"
        return piece[: piece.size // size * size].view(f"u{size}"), index // size

    def run(self) -> Iterator[str]:
        """Stops at barriers and after each branch back."""
        at = 0
        while at < len(self.code):
            text = self.code[at]
            at += 1
            live = np.ones(32, bool)
            if text.startswith("@"):
                name, text = text.split(None, 1)
                live = ~self.registers[name[2:]] if name[1] == "!" else self.registers[name[1:]]
            op, _, rest = text.partition(" ")
            if op == "ret":
                return
            if op.startswith("bra"):
                assert live.all() or not live.any(), "threads of a warp part"
                if live.any():
                    target = self.labels[rest.strip()]
                    back, at = target < at, target
                    if back:
                        yield "again"
            elif op.startswith("bar"):
                yield "barrier"
            else:
                self.step(op, [part.strip() for part in re.findall(r"\{[^}]*\}|\[[^\]]*\]|[^,\s][^,]*", rest)], live)

    def step(self, op: str, args: list[str], live: NDArray) -> None:
        """One instruction."""
        name, *more = op.split(".")
        kind = more[-1] if more else ""
        width = int(re.sub(r"\D", "", kind) or 0)
        if name in ("ld", "st", "atom"):
            return self.move(name, more, width, args, live)
        if name == "createpolicy":  # how long a cache should keep what is loaded
            return self.write(args[0], np.zeros(32, np.uint64), live)
        if name == "stmatrix":
            return self.store_matrices(more, args)
        if name == "shfl":
            return self.write(args[0], self.value(args[1])[LANES ^ self.value(args[2]).astype(np.int64)], live)
        if name == "mov" and ("{" in args[0] or "{" in args[1]):
            return self.repack(width, args, live)
        if name in ("mov", "cvta"):
            return self.write(args[0], self.registers[args[1]] if kind == "pred" else self.value(args[1]), live)
        if kind == "pred":
            flags = [self.registers[a] for a in args[1:]]
            logic = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor, "not": np.logical_not}
            return self.write(args[0], logic[name](*flags), live)
        if name == "selp":
            return self.write(args[0], np.where(self.registers[args[3]], *map(self.value, args[1:3])), live)
        if name == "prmt":
            return self.write(args[0], self.permute(*map(self.value, args[1:])), live)
        if name == "cvt":
            return self.write(args[0], self.convert(more, [self.value(a) for a in args[1:]]), live)
        with np.errstate(all="ignore"):
            if name == "setp":
                numbers = [self.number(a, kind, width) for a in args[1:]]
                return self.write(args[0], COMPARE[more[0]](*numbers), live)
            if kind == "f32":
                result = FLOAT[name](*map(f32, map(self.value, args[1:])))
                return self.write(args[0], of_f32(result, "ftz" in more), live)
            wide = "wide" in more
            numbers = [self.number(a, kind, 64 if wide and i == 2 else width) for i, a in enumerate(args[1:])]
            if name == "bfe":
                result = signed(unsigned(numbers[0] >> numbers[1], 32), 64) << (64 - numbers[2]) >> (64 - numbers[2])
            else:
                result = {**INTEGER, "mul": np.multiply}[name](*numbers)
            self.write(args[0], unsigned(result, 64 if wide else width), live)
        return None

    def number(self, arg: str, kind: str, width: int) -> NDArray:
        bits = self.value(arg)
        if kind == "f32":
            return f32(bits)
        return signed(bits, width) if kind[0] == "s" else unsigned(bits.view(np.int64), width).view(np.int64)

    def move(self, name: str, more: list[str], width: int, args: list[str], live: NDArray) -> None:
        size, space = width // 8, next((m for m in more if m in ("global", "shared", "param")), "global")
        if space == "param":
            return self.write(args[0], np.full(32, self.params[args[1].strip("[]")], np.uint64), live)
        place, values = (args[0], args[1]) if name == "st" else (args[1], args[0])
        names = [v.strip() for v in values.strip("{} ").split(",")]
        at = self.address(place)
        assert (at[live] % (size * len(names)) == 0).all(), "misaligned"
        for i, register in enumerate(names):
            memory, index = self.access(space, at + i * size, live, size)
            if name == "ld":
                self.write(register, memory[index].astype(np.uint64), live)
            elif name == "st":
                memory[index[live]] = unsigned(self.value(register).view(np.int64), width)[live].astype(memory.dtype)
            else:
                assert "exch" in more
                old = memory[index].astype(np.uint64)
                memory[index[live]] = self.value(args[2])[live].astype(memory.dtype)
                self.write(register, old, live)
        return None

    def store_matrices(self, more: list[str], args: list[str]) -> None:
        """8x8 matrices of 16 bits: thread 8 m + r knows where row r of matrix m goes, t has two of row t // 4."""
        assert "trans" not in more
        rows = self.address(args[0])
        for m, register in enumerate(args[1].strip("{} ").split(",")):
            at = rows[8 * m + LANES // 4] + LANES % 4 * 4
            memory, index = self.access("shared", at, np.ones(32, bool), 4)
            memory[index] = self.value(register.strip()).astype(np.uint32)

    def repack(self, width: int, args: list[str], live: NDArray) -> None:
        into, out = ([a.strip() for a in arg.strip("{} ").split(",")] for arg in args)
        part = np.uint64(width // max(len(into), len(out)))
        if len(out) > 1:
            whole = sum((self.value(a) & ((np.uint64(1) << part) - np.uint64(1))) << (part * np.uint64(i))
                        for i, a in enumerate(out))  # fmt: skip
            return self.write(into[0], whole, live)
        for i, a in enumerate(into):
            shifted = self.value(out[0]) >> (part * np.uint64(i))
            self.write(a, shifted & ((np.uint64(1) << part) - np.uint64(1)), live)
        return None

    @staticmethod
    def permute(a: Bits, b: Bits, selector: Bits) -> Bits:
        """Four of the eight bytes of two words."""
        both, byte = a | b << np.uint64(32), np.uint64(255)
        picks = [(selector >> np.uint64(4 * i)) & np.uint64(15) for i in range(4)]
        assert every((pick < 8).all() for pick in picks)
        return sum(((both >> (pick * np.uint64(8))) & byte) << np.uint64(8 * i) for i, pick in enumerate(picks))

    @staticmethod
    def convert(more: list[str], bits: list[Bits]) -> Bits:
        to, source = more[-2:]
        if to in ("bf16x2", "f16x2"):
            first, second = (of_half(f32(b), to[:-2]) for b in bits)
            return first << np.uint64(16) | second
        if source in ("bf16", "f16"):
            return of_f32(half(bits[0], source))
        if to in ("bf16", "f16"):
            return of_half(f32(bits[0]), to)
        if to == "f32":
            return of_f32(signed(bits[0], int(source[1:])))
        assert {to[0], source[0]} <= {"u", "s"}, more
        number = signed(bits[0], int(source[1:])) if source[0] == "s" else bits[0].view(np.int64)
        return unsigned(unsigned(number, int(source[1:])).view(np.int64) if source[0] == "u" else number, int(to[1:]))


def _parse(ptx: str) -> tuple[list[str], dict[str, int]]:
    code: list[str] = []
    labels: dict[str, int] = {}
    body = ptx[ptx.index(".entry") :]
    for raw in body[body.index("{") + 1 :].splitlines():
        text = raw.split("//")[0].strip()
        if text.endswith(":"):
            labels[text[:-1]] = len(code)
        elif text and text[0] not in ".}" and not text.startswith("{ "):
            code += [part.strip() for part in text.split(";") if part.strip()]
        if raw.startswith("}"):
            break
    return code, labels


def _bytes(tensor: torch.Tensor) -> NDArray[np.uint8]:
    return torch.tensor([], dtype=torch.uint8).set_(tensor.untyped_storage()).numpy()


def run(launch: Launch, programs: Sequence[int], capability: int = 90) -> None:
    """Run those programs of a launch, one of them the last, in the order in which they begin; tensors of any size."""
    kernel = compiled(launch, GPUTarget("cuda", capability, 32))
    code, labels = _parse(kernel.asm[NVIDIA])
    values = [(p, launch.arguments[p.name]) for p in launch.kernel.params]
    params, end = {}, 4096
    pieces: dict[int, tuple[int, NDArray]] = {}
    for i, value in enumerate([*(value for p, value in values if not is_constant(p, value)), 0, 0]):
        if isinstance(value, torch.Tensor):
            base = value.untyped_storage().data_ptr()
            if base not in pieces:
                pieces[base] = (end, _bytes(value))
                end += -(-value.untyped_storage().nbytes() // 256) * 256 + 2**40
            bits = pieces[base][0] + value.data_ptr() - base
        elif isinstance(value, float):
            bits = int(np.float32(value).view(np.uint32))
        else:
            bits = value % 2**64
        params[f"{kernel.metadata.name}_param_{i}"] = bits
    warps: list[tuple[int, Iterator[str]]] = []
    for program in programs:
        spaces = {
            "global": list(pieces.values()),
            "shared": [(0, np.zeros(kernel.metadata.shared + 16, np.uint8))],
        }
        for w in range(launch.options["num_warps"]):
            warps.append((program, Warp(code, labels, (32 * w, program, max(programs) + 1), spaces, params).run()))
    waiting: dict[int, list[Iterator[str]]] = {}
    for _ in range(10**6):
        if not warps:
            break
        program, warp = warps.pop(0)
        stopped = next(warp, None)
        if stopped == "again":
            warps.append((program, warp))
        elif stopped == "barrier":
            there = waiting.setdefault(program, [])
            there.append(warp)
            if len(there) == launch.options["num_warps"]:
                warps += [(program, w) for w in waiting.pop(program)]
    assert not [*warps, *waiting], "programs wait for ever"
