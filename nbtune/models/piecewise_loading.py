"""A model read tensor by tensor out of its files: no more memory than what stays, one tensor, and a piece of a file.

transformers' own loading takes all of a GPU's share at once before it begins, and maps files into memory. Where weights
are rounded, or wait in the host's memory, the model may be larger than what there is for that. Only models whose files
hold exactly the weights of their class are read here, or the matrices of which a mixture's stacks are made; everything
else (renamed or fused weights, odd types, the model's own code) is left to transformers.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from nbtune.models.accelerate.lora_member import is_turned
from nbtune.models.experts.rounded import put_blank, stack_of
from nbtune.models.experts.stacks import round_stacks, rounded_pieces, stacked_weights
from nbtune.models.stored_names import Piece, pieces_of
from nbtune.models.weight_checks import entries_by_file, is_quantised

_PIECE = 2**26  # bytes that are read at once
_ROUNDED_AT_ONCE = 2**20  # numbers: whole blocks
_LARGE = 2**16  # numbers of a tensor that has no memory until it is read
_TYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_MAKERS = (torch.empty, torch.zeros, torch.ones, torch.rand, torch.randn, torch.full)


class _LargeOnesOnMeta(TorchFunctionMode):
    """Makes large tensors without memory: weights, while buffers that a class computes are small and real."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in _MAKERS and _count(args, kwargs) >= _LARGE:
            kwargs["device"] = "meta"
        return func(*args, **kwargs)


def _count(args: Any, kwargs: Any) -> int:
    size = kwargs.get("size", args[0] if args else ())
    sizes = [size] if isinstance(size, int) else list(size)
    sizes = [s for s in [*sizes, *args[1:]] if isinstance(s, int) and not isinstance(s, bool)]
    return int(torch.Size(sizes).numel()) if sizes else 0


@dataclass(frozen=True)
class Places:
    """Where weights are rounded, and where they stay."""

    work: torch.device
    stay: torch.device


def load_by_pieces(
    folder: Path, config: Any, dtype: torch.dtype, places: Places, attention: str | None, four_bit: Any,
    experts: str = "",
) -> Any | None:  # fmt: skip
    """Return the causal language model, in evaluation mode, or None where its files are not just its weights.

    Args:
        folder: of the model.
        config: its config.
        dtype: of what is not rounded.
        places: where it is made.
        attention: transformers' name of an implementation, or None.
        four_bit: transformers' `BitsAndBytesConfig`, or None.
        experts: the format to which stacks of experts are rounded; "": they stay as they are.
    """
    if is_quantised(folder):
        return None
    files = entries_by_file(folder)
    stored = {name: tuple(entry["shape"]) for entries in files.values() for name, entry in entries.items()}
    odd = [e for entries in files.values() for e in entries.values() if e["dtype"] not in _TYPES]
    model = None if odd else _outline(config, dtype, attention)
    pieces = None if model is None else _pieces(model, stored)
    if model is None or pieces is None:
        return None
    if four_bit is not None:
        if any(is_turned(module) for module in model.modules()):  # as 4-bit layers their weights lie the other way
            return None
        _expect_four_bits(model, four_bit, places)
    model.tie_weights()
    stacks = _blank_stacks(model, pieces, experts and rounded_pieces(model, stored), experts, dtype, places)
    called = {held[0].name: key for key, held in pieces.items()}
    targets = _targets(model, places)
    for name, tensor in _read(files, lambda name: places.work if name in stacks else targets[called[name]]):
        if name in stacks:
            _settle_piece(*stacks[name], tensor.to(dtype))
        else:
            _settle(model, called[name], tensor, dtype, places)
    if any(t.is_meta for _, t in [*model.named_parameters(), *model.named_buffers()]):
        return None
    for module in model.modules():  # what a class has computed, on the CPU
        module._buffers.update({k: b.to(places.stay) for k, b in module._buffers.items() if b is not None})
    if four_bit is not None:
        model.hf_quantizer.postprocess_model(model)
    _finish(model, folder)
    return model


def round_stored_stacks(model: nn.Module, folder: Path, format: str) -> None:
    """Round the experts of a model that transformers has loaded; "": they stay as they are."""
    if format and stacked_weights(model):
        stored = [name for entries in entries_by_file(folder).values() for name in entries]
        round_stacks(model, format, rounded_pieces(model, stored))


def _outline(config: Any, dtype: torch.dtype, attention: str | None) -> Any | None:
    """Return the model without its weights; None where they are not all of one dtype, or some buffer is large."""
    from transformers import AutoModelForCausalLM

    chosen = {} if attention is None else {"attn_implementation": attention}
    with torch.random.fork_rng(devices=[]), _LargeOnesOnMeta():
        model: Any = AutoModelForCausalLM.from_config(config, dtype=dtype, **chosen)
    kept = set(model.state_dict())
    lost = [name for name, buffer in model.named_buffers() if buffer.is_meta and name not in kept]
    apart = getattr(model, "_keep_in_fp32_modules", None) or getattr(model, "_keep_in_fp32_modules_strict", None)
    return None if lost or apart else model


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield what a file holds: each weight once, and buffers that are saved."""
    kept = set(model.state_dict())
    yield from model.named_parameters()
    yield from ((name, buffer) for name, buffer in model.named_buffers() if name in kept)


def _pieces(model: Any, stored: dict[str, tuple[int, ...]]) -> dict[str, list[Piece]] | None:
    """Return of each weight of the model what the files hold of it: all of it by one name, or of a stack of experts its
    matrices; None where it is otherwise, or there is more."""
    own, stacks = {name: tuple(t.shape) for name, t in _tensors(model)}, stacked_weights(model)
    if own == stored:
        return {name: [Piece(name)] for name in own}
    if not stacks:
        return None
    found = pieces_of(model, stored)
    if set(found) != set(own) or sum(map(len, found.values())) != len(stored):
        return None
    for name, held in found.items():
        shapes = {stored[piece.name] for piece in held}
        if name not in stacks or held[:1] == [Piece(held[0].name)]:
            if len(held) != 1 or held[0] != Piece(held[0].name) or shapes != {own[name]}:
                return None
            continue
        experts, rows, width = own[name]
        if len(held) != experts * held[0].parts or shapes != {(rows // held[0].parts, width)}:
            return None
    return found


_Into = tuple[Any, str, Piece]  # a module, the name of its stack, and which piece of that


def _blank_stacks(
    model: Any, pieces: dict[str, list[Piece]], rounded: Any, format: str, dtype: torch.dtype, places: Places
) -> dict[str, _Into]:
    """Make room for stacks that are rounded, or put together; return where what the files hold of them belongs, by its
    name there."""
    into: dict[str, _Into] = {}
    for key, held in pieces.items():
        module, name = model.get_submodule(key.rpartition(".")[0]), key.rpartition(".")[2]
        if key in (rounded or ()):
            put_blank(module, name, format, dtype, places.stay)
        elif held[0].expert is None:  # a weight like any other
            continue
        else:
            blank = torch.empty(module._parameters[name].shape, dtype=dtype, device=places.stay)
            module._parameters[name] = nn.Parameter(blank, requires_grad=False)
        into |= {piece.name: (module, name, piece) for piece in held}
    return into


@torch.no_grad()
def _settle_piece(module: Any, name: str, piece: Piece, tensor: Tensor) -> None:
    """Write an expert's matrix, or some rows of it, or the whole stack, to where it belongs."""
    stack = stack_of(module, name)
    first = piece.part * len(tensor) if piece.expert is not None else 0
    for expert, matrix in enumerate(tensor) if piece.expert is None else [(piece.expert, tensor)]:
        if stack is None:
            module._parameters[name][expert, first : first + len(matrix)] = matrix
        else:
            stack.write(expert, first, matrix)


def _expect_four_bits(model: Any, how: Any, places: Places) -> None:
    from transformers.quantizers.auto import AutoHfQuantizer

    model.hf_quantizer = AutoHfQuantizer.from_config(how, pre_quantized=False)
    model.hf_quantizer.preprocess_model(model=model, device_map={"": places.work})


def _targets(model: nn.Module, places: Places) -> dict[str, torch.device]:
    """Return where each tensor is read to: what is rounded, where that is done."""
    rounded = {f"{name}.weight" for name, m in model.named_modules() if type(m).__name__ == "Linear4bit"}
    return {name: places.work if name in rounded else places.stay for name, _ in _tensors(model)}


def _read(
    files: dict[Path, dict[str, dict[str, Any]]], target: Callable[[str], torch.device]
) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of the files, in the order in which they lie."""
    for file, entries in files.items():
        with file.open("rb", buffering=0) as source:
            begin = 8 + int.from_bytes(source.read(8), "little")
            for name, entry in sorted(entries.items(), key=lambda pair: pair[1]["data_offsets"][0]):
                source.seek(begin + entry["data_offsets"][0])
                tensor = torch.empty(entry["shape"], dtype=_TYPES[entry["dtype"]], device=target(name))
                _fill(tensor, source)
                yield name, tensor


def _fill(tensor: Tensor, source: Any) -> None:
    """Read a tensor's bytes; onto another device by pieces."""
    if not tensor.numel():
        return
    into = tensor.view(-1).view(torch.uint8)
    direct = into.device.type == "cpu"
    piece = into if direct else torch.empty(min(_PIECE, into.numel()), dtype=torch.uint8)
    for start in range(0, into.numel(), _PIECE):
        size = min(_PIECE, into.numel() - start)
        part = into[start : start + size] if direct else piece[:size]
        _read_into(source, memoryview(part.numpy()))
        if not direct:
            into[start : start + size].copy_(part)


def _read_into(source: Any, view: memoryview) -> None:
    while len(view):
        count = source.readinto(view)
        if not count:
            raise EOFError("the file ends before its last weight")
        view = view[count:]


@torch.no_grad()
def _settle(model: Any, name: str, tensor: Tensor, dtype: torch.dtype, places: Places) -> None:
    """Give the model a weight or buffer that was read."""
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    if leaf in module._buffers:
        module._buffers[leaf] = tensor.to(places.stay, module._buffers[leaf].dtype)
        return
    old = module._parameters[leaf]
    if type(module).__name__ == "Linear4bit" and leaf == "weight":
        new = _four_bit(tensor.to(dtype), old, places)
    else:
        new = nn.Parameter(tensor.to(places.stay, dtype), requires_grad=False)
    for owner, key in [(module, leaf), *_tied_to(model, old)]:
        owner._parameters[key] = new


def _tied_to(model: nn.Module, old: Tensor) -> list[tuple[nn.Module, str]]:
    return [(m, key) for m in model.modules() for key, p in m._parameters.items() if p is old]


def _four_bit(whole: Tensor, old: Any, places: Places) -> Any:
    if places.work.type == "cpu":
        return _rounded_by_pieces(whole, old)
    new = type(old)(whole, requires_grad=False, **old.__dict__).to(places.work)
    if places.stay != places.work:
        new.data = new.data.to(places.stay)
        new.quant_state.to(places.stay)
    return new


def _rounded_by_pieces(whole: Tensor, old: Any) -> Any:
    """Round as bitsandbytes does, a few numbers at a time: on a CPU it takes many times their memory meanwhile."""
    from bitsandbytes.functional import QuantState, quantize_4bit, quantize_blockwise

    how = {"blocksize": old.blocksize, "quant_type": old.quant_type, "quant_storage": old.quant_storage}
    made = [quantize_4bit(part, compress_statistics=False, **how) for part in whole.reshape(-1).split(_ROUNDED_AT_ONCE)]
    scales = torch.cat([state.absmax for _, state in made])
    offset = scales.mean()
    codes, outer = quantize_blockwise(scales - offset, blocksize=256)
    state = QuantState(
        absmax=codes, shape=whole.shape, code=made[0][1].code, blocksize=old.blocksize, quant_type=old.quant_type,
        dtype=whole.dtype, offset=offset, state2=outer,
    )  # fmt: skip
    packed = torch.cat([packed for packed, _ in made])
    new = type(old)(packed, requires_grad=False, **{**old.__dict__, "quant_state": state, "bnb_quantized": True})
    if new.module is not None:
        new.module.quant_state = state
    return new


def _finish(model: Any, folder: Path) -> None:
    from transformers import GenerationConfig

    model.requires_grad_(False)
    if model.can_generate() and (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
    model.eval()
