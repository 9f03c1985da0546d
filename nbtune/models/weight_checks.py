"""Whether a model's weights are all there: the files before they are read, and what came of them afterwards.

transformers fills what it does not find with random numbers, and leaves out what it has no place for; both only warn.
Training would go on upon another model than the one that was named. The files' headers are read without torch.
"""

import json
import re
import stat
import struct
from collections.abc import Iterable, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nbtune.errors import SpecError
from nbtune.models.elsewhere import refuse_outside_name
from nbtune.untrusted import leads_out

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_LARGEST_HEADER = 100_000_000  # bytes, as safetensors itself has it
_LARGEST_TEXT = 1 << 30  # bytes of a config, a tokenizer or a template; the largest tokenizers have some ten millions
_AGAIN = "Download or copy the model again."
_SAVE = "Save it with safetensors: nbtune opens no pickles."
_POINTER = b"version https://git-lfs"
_INTEGERS = re.compile(r"^(?:[IU]\d+|BOOL)$")
_WEIGHT = re.compile(r"(?:weight|_proj)$")  # what is trained or multiplied with; not a mask or positions
# What old checkpoints hold and is computed now, and parts that stand beside a language model.
_BESIDE = re.compile(
    r"rotary_emb\.inv_freq$|att\w*\.(?:masked_)?bias$|position_ids$"
    r"|(?:^|[._])(?:mtp|nextn|eagle|medusa|vision|visual|image|audio|speech|projector)"
)
_BLOCK = re.compile(r"(?:^|\.)(?:layers|h|blocks|block)\.(\d+)\.")


def read_headers(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the entries of all safetensors files of a folder that transformers would read, by the tensors' names.

    Raises:
        SpecError: one of them is no whole safetensors file.
    """
    headers: dict[str, dict[str, Any]] = {}
    for file in _files(folder):
        if file.is_file():
            headers.update(_header(file))
    return headers


def entries_by_file(folder: Path) -> dict[Path, dict[str, dict[str, Any]]]:
    """Return the entries of each safetensors file that transformers would read, by the tensors' names.

    Raises:
        SpecError: one of them is no whole safetensors file.
    """
    return {file: _header(file) for file in _files(folder)}


def check_files(folder: Path, model: str) -> None:
    """See that the weight files are whole and hold numbers that can be trained on.

    Args:
        folder: of the model.
        model: what people call it.

    Raises:
        SpecError: there are none, or one is missing, truncated, a git-lfs pointer, or holds integers for weights.
    """
    files = _files(folder)
    if not files:
        raise SpecError(f"{model} has no safetensors weights", fix=_SAVE)
    headers: dict[str, dict[str, Any]] = {}
    for file in files:
        if not file.is_file():
            raise SpecError(f"{model} lacks {file.name}, a file of its weights", place=str(file), fix=_AGAIN)
        entries = _header(file)
        if twice := next((name for name in entries if name in headers), None):
            raise SpecError(
                f"{model} holds the weight {twice} twice, in {file.name} and in another file: which is meant?",
                place=str(folder),
                fix="Delete the files that are not the model's, or download it again.",
            )
        headers.update(entries)
    _refuse_two_sets(folder, model)
    if not headers:
        raise SpecError(f"{model} has weight files without any weights", place=str(files[0]), fix=_AGAIN)
    if is_quantised(folder):
        return
    for name, entry in headers.items():
        if _INTEGERS.match(entry["dtype"]) and _WEIGHT.search(name):
            raise SpecError(
                f"{model} holds integers ({entry['dtype']}) for the weight {name}, and its config.json has no "
                "quantization_config that would say what they stand for",
                place=str(folder),
                fix="Name the model in 16 or 32 bits; `adapter: qlora` rounds it to 4 bits by itself.",
            )


def _refuse_two_sets(folder: Path, model: str) -> None:
    """Refuse a whole file beside files in parts: one of the two is left from before."""
    index = folder / "model.safetensors.index.json"
    if not (folder / "model.safetensors").is_file() or not index.is_file():
        return
    parts = [file for file in _named_by(index) if file.name != "model.safetensors" and file.is_file()]
    if parts:
        raise SpecError(
            f"{model} has weights twice, in model.safetensors and in {parts[0].name} with others: which are meant?",
            place=str(folder),
            fix="Delete those that are left from before (the parts with their index, or the whole file).",
        )


def check_loaded(loaded: "PreTrainedModel", info: dict[str, Any], folder: Path, model: str) -> None:
    """See that every weight of the model came from its files, and that these hold no others for its blocks.

    Args:
        loaded: the model.
        info: transformers' account of how it was loaded; renamed, fused and tied weights are accounted for in it.
        folder: where the files are.
        model: what people call it.

    Raises:
        SpecError: weights are missing, have other shapes, or are left over, with the first of them.
    """
    missing = sorted(info.get("missing_keys") or ())
    shapes = [*sorted(info.get("mismatched_keys") or ()), *_rounded_otherwise(loaded)]
    left = [] if is_quantised(folder) else [n for n in sorted(info.get("unexpected_keys") or ()) if _counts(n, loaded)]
    if not (missing or shapes or left):
        return
    complaints = []
    if missing:
        complaints.append(f"lacks the weight{_named(missing)}")
    if shapes:
        complaints.append(
            f"has another shape for the weight{_named([name for name, *_ in shapes])}, {_shapes(shapes[0])}"
        )
    if left:
        complaints.append(f"holds the weight{_named(left)}, for which its config.json has no place")
    raise SpecError(
        f"{model} " + ", and ".join(complaints), place=str(folder), fix=_help(loaded, missing, bool(left or shapes))
    )


def _help(loaded: "PreTrainedModel", missing: list[str], others: bool) -> str:
    kind = f"model_type {loaded.config.model_type!r}, {loaded.config.get_text_config().num_hidden_layers} layers"
    if others:
        return f"See that config.json ({kind}) belongs to these weights."
    head = loaded.get_output_embeddings()
    if head is not None and all(loaded.get_submodule(name.rpartition(".")[0]) is head for name in missing):
        return (
            'If its head is its embedding, write "tie_word_embeddings": true into config.json; else download it again, '
            "as a causal language model."
        )
    return f"{_AGAIN} config.json says: {kind}."


def _named(names: list[str]) -> str:
    more = f" and {len(names) - 1} others" if len(names) > 2 else f" and {names[1]}" if len(names) == 2 else ""
    return f"{'s' if more else ''} {names[0]}{more}"


def _shapes(entry: Iterable[Any]) -> str:
    _, stored, expected = entry
    return f"{list(stored)} in the files, {list(expected)} by config.json"


def _rounded_otherwise(loaded: "PreTrainedModel") -> list[tuple[str, Any, Any]]:
    """Find 4-bit weights of another shape than their layer's: transformers does not compare those."""
    out = []
    for name, module in loaded.named_modules():
        state = getattr(getattr(module, "weight", None), "quant_state", None)
        if state is not None and tuple(state.shape) != (wanted := (module.out_features, module.in_features)):
            out.append((f"{name}.weight", tuple(state.shape), wanted))
    return out


def _counts(name: str, loaded: "PreTrainedModel") -> bool:
    """Return whether a weight that is left over would have been a part of the language model."""
    if _BESIDE.search(name):
        return False
    text = loaded.config.get_text_config()
    block = _BLOCK.search(name)
    if block is None:
        return name.startswith("lm_head.") or name.startswith(f"{loaded.base_model_prefix}.")
    ahead = getattr(text, "num_nextn_predict_layers", None)  # blocks that guess further tokens, for serving
    return not (ahead and int(block[1]) >= text.num_hidden_layers)


def refuse_odd_files(folder: Path, *, texts: Sequence[str]) -> None:
    """Refuse a folder whose files libraries would wait for, read into all memory, or copy from elsewhere.

    Args:
        texts: patterns of the names of those that are read whole.
    Raises:
        SpecError: a pipe or a device is in it, a text file larger than any model's, or one that is a link out of it.
    """
    for path in sorted(folder.iterdir()):
        try:
            about = path.stat()
        except OSError:
            continue  # a link to nothing: whoever needs it says so
        if not (stat.S_ISREG(about.st_mode) or stat.S_ISDIR(about.st_mode)):
            raise SpecError("this is a pipe or a device, no file", place=str(path), fix="Delete it.")
        if not any(fnmatch(path.name, pattern) for pattern in texts):
            continue
        if about.st_size > _LARGEST_TEXT:
            raise SpecError(f"the file has {about.st_size:,} bytes", place=str(path), fix="Download the model again.")
        if leads_out(path, folder):
            raise link_of_a_model(path)


def link_of_a_model(path: Path) -> SpecError:
    """Return the error that a file of a model's folder is one of somewhere else."""
    return SpecError(
        "this link leads out of the model's folder, and is not followed",
        place=str(path),
        fix="Put the file itself there, if it is yours.",
    )


def is_quantised(folder: Path) -> bool:
    try:
        return bool(json.loads((folder / "config.json").read_text(encoding="utf-8")).get("quantization_config"))
    except (OSError, ValueError, AttributeError):
        return False


def _files(folder: Path) -> list[Path]:
    """Return the files that transformers reads, there or not."""
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    index = folder / "model.safetensors.index.json"
    return _named_by(index) if index.is_file() else sorted(folder.glob("*.safetensors"))


def _named_by(index: Path) -> list[Path]:
    """Return the files that an index names."""
    try:
        named = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        for name in named:
            refuse_outside_name(name, index)
        return [index.parent / name for name in named]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise SpecError("the index of the weight files cannot be read", place=str(index), fix=_AGAIN) from e


def _header(file: Path) -> dict[str, dict[str, Any]]:
    """Return the entries of one safetensors file (https://github.com/huggingface/safetensors#format)."""
    size = file.stat().st_size
    with file.open("rb") as f:
        start = f.read(len(_POINTER))
        if start == _POINTER:
            raise SpecError(
                "the file is a git-lfs pointer, not the weights themselves",
                place=str(file),
                fix="Run `git lfs pull` in its folder, or download the model again.",
            )
        length = struct.unpack("<Q", start[:8])[0] if len(start) >= 8 else 0
        if not 0 < length <= min(size - 8, _LARGEST_HEADER):
            cause = "the file is empty" if size == 0 else "the file is truncated, or no safetensors file"
            raise SpecError(cause, place=str(file), fix=_AGAIN)
        f.seek(8)
        text = f.read(length)
    try:
        entries = json.loads(text)
        entries.pop("__metadata__", None)
        places = sorted((int(e["data_offsets"][0]), int(e["data_offsets"][1])) for e in entries.values())
        end = max((end for _, end in places), default=0)
        whole = all(isinstance(e["dtype"], str) and isinstance(e["shape"], list) for e in entries.values())
    except (ValueError, AttributeError, TypeError, KeyError, IndexError, RecursionError):
        whole, end, entries, places = False, 0, {}, []
    if not whole:
        raise SpecError("the file is no safetensors file", place=str(file), fix=_AGAIN)
    if any(begin < before for (begin, _), (_, before) in zip(places, [(0, 0), *places], strict=False)):
        raise SpecError("the file is no safetensors file: its weights lie in one another", place=str(file), fix=_AGAIN)
    if 8 + length + end != size:
        cause = f"the file is truncated: {size:,} bytes where its header tells of {8 + length + end:,}"
        raise SpecError(cause, place=str(file), fix=_AGAIN)
    return entries  # type: ignore[no-any-return]
