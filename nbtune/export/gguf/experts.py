"""A mixture's experts as llama.cpp has them: a stack of gates, one of ups, one of downs in each block.

Files hold them as single matrices (Mixtral, Qwen), as stacks with gates before ups (Granite), or turned, with gates and
ups in turn, and with biases (gpt-oss).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import torch

from nbtune.export.gguf.tensors import GgufTensor
from nbtune.export.merge import MergedModel
from nbtune.export.safetensors_reader import rows_per_chunk

_LAYER = re.compile(r"\.(?:layers|h|blocks)\.(\d+)\.")
_EXPERT = re.compile(r"^(?P<start>.*\.)experts\.(?P<index>\d+)\.(?P<kind>\w+)\.weight$")
_STACK = re.compile(
    r"^(?P<start>.*\.)(?:experts\.(?P<kind>gate_up_proj|down_proj)(?P<bias>_bias)?"
    r"|block_sparse_moe\.(?P<older>input|output)_linear\.weight)$"
)
_KINDS = {
    "w1": "ffn_gate_exps",
    "w2": "ffn_down_exps",
    "w3": "ffn_up_exps",
    "gate_proj": "ffn_gate_exps",
    "down_proj": "ffn_down_exps",
    "up_proj": "ffn_up_exps",
}


def single_expert(source: str) -> tuple[str, int] | None:
    """Return which tensor of the file an expert's own weight belongs to, and whose it is."""
    found = _EXPERT.match(source)
    if found is None or found["kind"] not in _KINDS:
        return None
    return f"{_block(source)}.{_KINDS[found['kind']]}.weight", int(found["index"])


def is_stack(source: str) -> bool:
    """Return whether a weight holds all experts of a layer."""
    return _STACK.match(source) is not None


def split_stack(model: MergedModel, source: str, *, turned: bool, in_turn: bool) -> list[GgufTensor]:
    """Return the tensors that a stack, or its biases, become.

    Args:
        turned: matrices lie turned, (in, out). in_turn: gates and ups lie in turn.
    """
    found = _STACK.match(source)
    assert found is not None
    last = "bias" if found["bias"] else "weight"
    turned = turned and not found["bias"]
    if found["kind"] == "down_proj" or found["older"] == "output":
        return [_part(model, source, f"{_block(source)}.ffn_down_exps.{last}", lambda m: m, turned)]
    return [
        _part(model, source, f"{_block(source)}.ffn_{name}_exps.{last}", halves_of(second, in_turn), turned)
        for name, second in (("gate", False), ("up", True))
    ]


def single_factors(
    source: str, a: torch.Tensor, b: torch.Tensor, *, in_turn: bool
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Return a stack's LoRA, A `[experts, r, in]` and B `[experts, out, r]`, by names as single experts' weights have.

    Args:
        in_turn: rows of B are for gates and ups in turn.
    """
    found = _STACK.match(source)
    assert found is not None
    if found["kind"] == "down_proj" or found["older"] == "output":
        kinds = {"down_proj": b}
    else:
        kinds = {"gate_proj": halves_of(False, in_turn)(b), "up_proj": halves_of(True, in_turn)(b)}
    return {
        f"{found['start']}experts.{expert}.{kind}.weight": (a[expert], rows[expert])
        for kind, rows in kinds.items()
        for expert in range(len(a))
    }


def halves_of(second: bool, in_turn: bool) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return what takes the gates, or the ups, out of `[experts, 2 rows, …]`."""
    if in_turn:
        return lambda both: both[:, int(second) :: 2]
    return lambda both: both[:, both.shape[1] // 2 :] if second else both[:, : both.shape[1] // 2]


def _part(
    model: MergedModel, source: str, name: str, take: Callable[[torch.Tensor], torch.Tensor], turned: bool
) -> GgufTensor:
    shape = model.shape(source)
    straight = (shape[0], shape[2], shape[1]) if turned else shape
    made = take(torch.empty(straight, device="meta")).shape

    def chunks() -> Iterator[torch.Tensor]:
        step = rows_per_chunk(shape)
        for start in range(0, shape[0], step):
            part = model.rows(source, start, min(start + step, shape[0]))
            yield take(part.transpose(1, 2) if turned else part).contiguous()

    return GgufTensor(name, tuple(made), chunks, name.endswith("bias"))


def layer_of(source: str) -> int:
    """Return the number of a weight's layer."""
    found = _LAYER.search(source)
    return int(found[1]) if found else 0


def _block(source: str) -> str:
    return f"blk.{layer_of(source)}"
