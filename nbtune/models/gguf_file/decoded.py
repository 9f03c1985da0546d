"""The folder that a GGUF file becomes: config and tokenizer at once, the weights when somebody wants their numbers.

It lies in nbtune's cache under ``gguf/``, called by what is in the file, and is made once. Of the weights a few rows at
a time are in memory, so that a file larger than the memory is decoded as well.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from nbtune.atomic_io import hidden, publish_folder, replace_file, try_lock
from nbtune.disk import cache_folder, disk_errors, folder_bytes, free_bytes, gigabytes
from nbtune.errors import DataError, SpecError
from nbtune.models.gguf_file.architectures import Architecture
from nbtune.models.gguf_file.configs import config_of, no_model
from nbtune.models.gguf_file.header import GgufHeader, is_gguf, parts_of, read_header, refused
from nbtune.models.gguf_file.rotary import check_turned
from nbtune.models.gguf_file.tensors import Weight, main_dtype, weights_of
from nbtune.models.gguf_file.vocabulary import GgufVocabulary, check_as_loaded
from nbtune.models.transformers_state import MAKING
from nbtune.untrusted import from_here, open_file

ABOUT = "gguf.json"  # what marks such a folder: the weights' headers, and where they come from
WEIGHTS = "model.safetensors"
_FORM = 2  # of what is written, and of how files are read: of another one they are decoded anew
_SAMPLES, _SAMPLE = 64, 4096
_PATIENCE = 60.0  # seconds without a byte written
_MARGIN = 64 << 20  # bytes of disk
_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_OLDER = re.compile(r"\.(?:bin|pt|pth|ckpt|safetensors|onnx)$", re.IGNORECASE)


def gguf_of(model: str) -> Path | None:
    """Return the file that a spec's model names, where it is (or is called) a GGUF file; None: it is something else.

    Raises:
        SpecError: it is a file of another kind, or there is no such GGUF file.
    """
    path, there = Path(model), False
    with suppress(OSError, ValueError, RuntimeError):  # too long, with a NUL, of an unknown user
        path = path.expanduser()
        there = path.exists()
    if there and path.is_dir():
        return None
    if there:
        if is_gguf(path):
            return path
        what = "weights alone" if _OLDER.search(path.name) else "a file, and no GGUF file"
        raise SpecError(f"{model} is {what}", fix="Name a folder with config.json, a .gguf file, or a Hub id.")
    if path.suffix.lower() != ".gguf":
        return None
    if len(path.parts) == 3 and not path.is_absolute() and not model.startswith("."):
        owner, name, file = path.parts
        fix = f"Check the path; a file of the Hub comes with `hf download {owner}/{name} {file} --local-dir .`."
    else:
        fix = "Check the path."
    raise SpecError(f"there is no file {model}", fix=fix)


def gguf_in(folder: Path) -> str:
    """Return the name of a GGUF file in a folder, ready for a sentence; "" where there is none."""
    found = sorted(path.name for path in folder.glob("*.gguf"))
    return found[0] if found else ""


def folder_of(path: Path, *, weights: bool) -> Path:
    """Return the folder of a GGUF file, made where it is not there yet.

    Args:
        path: the file, or a part of it.
        weights: also its weights, decoded.

    Raises:
        SpecError: the file is damaged, or of an architecture or tokenizer that is not read; or there is no disk for it.
        DataError: the cache cannot be written.
    """
    parts = parts_of(path)
    folder = cache_folder() / "gguf" / _key(tuple((str(part), *_state(part)) for part in parts))
    if (folder / WEIGHTS).is_file() or ((folder / ABOUT).is_file() and not weights):
        return folder
    with disk_errors(DataError, place=str(folder)), _alone(folder):
        if not (folder / ABOUT).is_file():
            _describe(read_header(path), folder)
        if weights and not (folder / WEIGHTS).is_file():
            _decode(path, folder)
    return folder


def headers(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the headers of the weights that a folder has, or will have once they are decoded; {}: it is of no GGUF
    file."""
    about = _about(folder)
    return about["headers"] if about else {}


def said_of(folder: Path) -> str:
    """Return what a plan says of the weights' origin; "" where they are of no GGUF file."""
    about = _about(folder)
    if not about:
        return ""
    there = (folder / WEIGHTS).is_file()
    kinds, size = ", ".join(about["encodings"]), gigabytes(about["bytes"])
    where = from_here(folder)
    if there:
        return f"decoded from {about['file']} ({kinds}): {size} in {where}"
    return f"to be decoded from {about['file']} ({kinds}), once, a few rows in memory: {size} in {where}"


def decoded_files() -> list[tuple[str, int]]:
    """Return (name of the file, bytes) of each decoded one that the cache holds."""
    folders = [path.parent for path in (cache_folder() / "gguf").glob(f"*/{ABOUT}")]
    return [(about["file"], folder_bytes(folder)) for folder in folders if (about := _about(folder))]


def _about(folder: Path) -> dict[str, Any] | None:
    try:
        return json.loads((folder / ABOUT).read_text(encoding="utf-8"))  # type: ignore[no-any-return]
    except (OSError, ValueError):
        return None


def _state(path: Path) -> tuple[int, int]:
    try:
        with open_file(path) as file:  # neither waits for a pipe nor reads from a device
            about = os.fstat(file.fileno())
    except OSError as error:
        raise refused(path, f"it cannot be read ({error.strerror or error})", "Check the path.") from None
    return about.st_size, about.st_mtime_ns


@lru_cache(maxsize=32)
def _key(parts: tuple[tuple[str, int, int], ...]) -> str:
    """Return a name for what is in a file: of its first bytes, its size, and samples of all of it."""
    digest = hashlib.sha256(f"{_FORM}".encode())
    for name, size, _ in parts:
        digest.update(f"|{size}|".encode())
        with Path(name).open("rb") as file:
            digest.update(file.read(_SAMPLE * _SAMPLES))
            for i in range(_SAMPLES):
                file.seek(max(0, size - _SAMPLE) * i // max(1, _SAMPLES - 1))
                digest.update(file.read(_SAMPLE))
    return digest.hexdigest()[:32]


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Let one process at a time make a folder; the others wait, and find it made.

    Where nothing is written for a while, the disk may have no locks: then it is made twice, and one of both stays.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_suffix(".lock").open("ab") as lock:
        began = time.time()
        while not try_lock(lock) and time.time() - max(began, _last_write(folder)) < _PATIENCE:
            time.sleep(0.2)
        yield


def _last_write(folder: Path) -> float:
    """Return when something was written into a folder last; 0 where it is not there."""
    times = [0.0]
    for path in (*folder.glob("*"), *folder.glob(".*")):
        with suppress(OSError):  # it has just got its name
            times.append(path.stat().st_mtime)
    return max(times)


def _outline(header: GgufHeader) -> tuple[Any, Architecture]:
    """Return the model of a file without its numbers."""
    import torch
    from transformers import AutoModelForCausalLM

    config, architecture = config_of(header)
    try:
        with MAKING, torch.device("meta"):
            return AutoModelForCausalLM.from_config(config, dtype=torch.float32), architecture
    except Exception as error:  # whatever a model's class has against a stranger's numbers
        rope = getattr(config, "rope_parameters", None) or {}
        raise no_model(header, config.model_type, rope, error) from error


def _describe(header: GgufHeader, folder: Path) -> None:
    """Write config, tokenizer, and what the weights will be."""
    outline, architecture = _outline(header)
    weights = weights_of(header, outline, architecture)
    check_turned(header, outline)
    vocabulary = GgufVocabulary(header, outline.config.vocab_size)
    fresh = hidden(folder, "tmp")
    fresh.mkdir()
    try:
        _write_config(outline, vocabulary, main_dtype(header), fresh)
        vocabulary.save(fresh, outline.config.max_position_embeddings)
        check_as_loaded(header, fresh)
        about = {
            "file": header.place.name,
            "encodings": sorted({stored.encoding for stored in header.tensors.values() if len(stored.shape) > 1}),
            "bytes": sum(weight.bytes for weight in weights),
            "headers": {weight.name: {"dtype": weight.dtype, "shape": list(weight.shape)} for weight in weights},
        }
        (fresh / ABOUT).write_text(json.dumps(about), encoding="utf-8")
        publish_folder(fresh, folder, ABOUT)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _write_config(outline: Any, vocabulary: GgufVocabulary, dtype: str, folder: Path) -> None:
    config, ids, ends = outline.config, vocabulary.ids, vocabulary.ends()
    config.architectures = [type(outline).__name__]
    config.dtype = _DTYPES[dtype]
    config.bos_token_id, config.eos_token_id, config.pad_token_id = ids["bos"], ids["eos"], ids["pad"]
    config.save_pretrained(folder)
    generation = {"bos_token_id": ids["bos"], "eos_token_id": ends or None, "pad_token_id": ids["pad"]}
    kept = {key: value for key, value in generation.items() if value is not None}
    (folder / "generation_config.json").write_text(json.dumps(kept, indent=2), encoding="utf-8")


def _decode(path: Path, folder: Path) -> None:
    header = read_header(path)
    outline, architecture = _outline(header)
    weights = weights_of(header, outline, architecture)
    size = sum(weight.bytes for weight in weights)
    if size + _MARGIN > (free := free_bytes(folder)):
        raise SpecError(
            f"{path.name} becomes {gigabytes(size)} of decoded weights, and {gigabytes(free)} are free",
            place=str(folder),
            fix="Set NBTUNE_CACHE to a folder on a disk that has room.",
        )
    with replace_file(folder / WEIGHTS, shared=True) as beside:
        _write_weights(weights, beside)


def _write_weights(weights: list[Weight], path: Path) -> None:
    """Write a safetensors file (https://github.com/huggingface/safetensors#format) from front to back."""
    import torch

    kinds = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for weight in weights:
        entries[weight.name] = {
            "dtype": weight.dtype, "shape": list(weight.shape), "data_offsets": [at, at + weight.bytes],
        }  # fmt: skip
        at += weight.bytes
    head = json.dumps(entries).encode()
    head += b" " * (-len(head) % 8)
    jobs = ((job, kinds[weight.dtype]) for weight in weights for job in weight.jobs())
    with path.open("wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        for piece, dtype in _several_at_once(jobs, torch.get_num_threads()):
            made = torch.from_numpy(piece).to(dtype).contiguous()
            file.write(made.view(torch.uint8).numpy().data)


def _several_at_once(jobs: Iterator[tuple[Callable[[], Any], Any]], threads: int) -> Iterator[tuple[Any, Any]]:
    """Yield what jobs make, in their order, each with what came with it; a few are done ahead."""
    coming: deque[tuple[Future[Any], Any]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="nbtune-decode") as pool:
        try:
            for job, beside in jobs:
                coming.append((pool.submit(job), beside))
                if len(coming) > threads:
                    first, its = coming.popleft()
                    yield first.result(), its
            while coming:
                first, its = coming.popleft()
                yield first.result(), its
        finally:
            for future, _ in coming:
                future.cancel()
