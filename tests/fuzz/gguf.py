"""GGUF files of models: keys with odd values, tensors that lie elsewhere or are of another shape, damaged headers."""

from __future__ import annotations

import os
import random
import re
import shutil
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from hashlib import sha256
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import nbtune
from nbtune import models
from nbtune.models.gguf_file.decoded import ABOUT
from tests.fuzz.cases import Case, Silent
from tests.fuzz.models import ROWS
from tests.fuzz.values import mangled
from tests.support.families import family_tokenizer
from tests.support.family_cases import CASES
from tests.support.tiny_models import save_model

FAMILIES = (
    "llama 3, smollm, deepseek distilled", "gemma 3", "qwen3 moe", "falcon 40b", "phi 3 long", "granite 4 h",
    "qwen 3.5 moe", "deepseek v3", "gpt-oss", "nemotron 3",
)  # fmt: skip
FORMS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
TEXT, LIST = 8, 9
WHOLE = (0, 1, 2, 3, 7, 255, 1 << 16, (1 << 31) - 1, (1 << 32) - 1)
TEXTS = (
    b"", b"\x00", b"\x1b[31mred", b"\xff\xfe", "\u202eabc".encode(), b"a" * 5000, b"{{ 1/0 }}", b"{% for %}",
    b"{% for a in range(9999) %}{% for b in range(9999) %}x{% endfor %}{% endfor %}", b"../../etc/passwd", b"llama",
    b"yarn", b"gpt2", b"default", "日本語".encode(),
)  # fmt: skip

# What says again what shapes of weights say, or what llama.cpp's graph of the architecture does not ask for.
_MEANINGLESS = re.compile(
    r"^general\.(?!alignment)|\.(?:vocab_size|attention\.value_length|(?:expert_shared_)?feed_forward_length)$"
    r"|\.ssm\.inner_size$|^deepseek2\.attention\.head_count_kv$|_token_id$"
    r"|^nemotron_h_moe\.(?:attention\.layer_norm_epsilon|leading_dense_block_count|expert_gating_func)$"
)


class Pieces:
    """A file, taken apart: [key, kind, value] and [name, shape, encoding, offset] of each, and the numbers behind."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 4
        self.version, tensors, keys = self._take("<IQQ")
        self.keys = [[self._text(), *self._value(self._take("<I")[0])] for _ in range(keys)]
        self.tensors = [
            [self._text(), list(self._take(f"<{self._take('<I')[0]}Q")), *self._take("<IQ")] for _ in range(tensors)
        ]
        self.numbers = data[self._at + -self._at % 32 :]

    def _take(self, form: str) -> tuple[Any, ...]:
        self._at += struct.calcsize(form)
        return struct.unpack_from(form, self._data, self._at - struct.calcsize(form))

    def _text(self) -> bytes:
        count = self._take("<Q")[0]
        self._at += count
        return self._data[self._at - count : self._at]

    def _value(self, kind: int) -> tuple[int, Any]:
        if kind == TEXT:
            return kind, self._text()
        if kind == LIST:
            inner, count = self._take("<IQ")
            return kind, [inner, [self._value(inner)[1] for _ in range(count)]]
        return kind, self._take(f"<{FORMS[kind]}")[0]

    def whole(self) -> bytes:
        """Return the file that the pieces make."""
        out = b"GGUF" + struct.pack("<IQQ", self.version, len(self.tensors), len(self.keys))
        for key, kind, value in self.keys:
            out += text(key) + struct.pack("<I", kind) + written(kind, value)
        for name, shape, encoding, offset in self.tensors:
            out += text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, encoding, offset)
        return out + bytes(-len(out) % 32) + self.numbers


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def written(kind: int, value: Any) -> bytes:
    """Return a value's bytes."""
    if kind == TEXT:
        return text(value)
    if kind == LIST:
        inner, items = value
        return struct.pack("<IQ", inner, len(items)) + b"".join(written(inner, item) for item in items)
    return struct.pack(f"<{FORMS[kind]}", value)


@cache
def good(family: str) -> bytes:
    """Return a small file of a family."""
    import transformers

    from nbtune.export import ExportSource, export_gguf

    folder = Path(mkdtemp(prefix="nbtune-fuzz-"))
    case = CASES[family]
    tokenizer = family_tokenizer(case.tokenizer, folder / "tokenizer")
    config = getattr(transformers, case.config)(vocab_size=len(tokenizer), **case.options)
    save_model(config, folder / "model", spread=3.0)
    source = ExportSource(folder / "model", name="tiny", tokenizer=folder / "tokenizer")
    [made] = export_gguf(source, ["f32"], folder)
    data = made.path.read_bytes()
    shutil.rmtree(folder, ignore_errors=True)
    return data


def make(chance: random.Random, folder: Path) -> Case:
    family = chance.choice(FAMILIES)
    pieces, path = Pieces(good(family)), folder / "model.gguf"
    hows = (_number, _number, _kind, _list, _words, _gone, _twice, _tensor, _tensor, _place)
    if chance.random() < 0.2:
        whole = pieces.whole()
        end = len(whole) - len(pieces.numbers)
        path.write_bytes(mangled(chance, whole[:end]) + whole[end:])
        return Case(lambda: attempt(path, folder), f"{family}: bytes of its header")
    before = [list(entry) for entry in pieces.keys]
    done = [chance.choice(hows) for _ in range(chance.choice((1, 1, 1, 2, 3)))]
    done = [_moved] if chance.random() < 0.25 else done
    said = "; ".join(how(chance, pieces) for how in done)
    path.write_bytes(pieces.whole())
    told = (
        [key.decode() for key, *value in pieces.keys if [key, *value] not in before]
        if done in ([_number], [_moved])
        else []
    )
    unlike = family if told and not _MEANINGLESS.search(told[0]) else ""
    return Case(lambda: attempt(path, folder, unlike), f"{family}: {said}"[:500])


def _pick(chance: random.Random, pieces: Pieces, fits: Callable[[int], bool]) -> list[Any]:
    return chance.choice([entry for entry in pieces.keys if fits(entry[1])] or [[b"", 4, 0]])


def _number(chance: random.Random, pieces: Pieces) -> str:
    """A number is another one, of its own kind."""
    entry = _pick(chance, pieces, lambda kind: kind in FORMS)
    if entry[1] in (6, 12):
        entry[2] = chance.choice((0.0, -1.0, 1e-30, 1e30, float("nan"), float("inf"), 0.5))
    elif entry[1] == 7:
        entry[2] = not entry[2]
    else:
        bits = 8 * struct.calcsize(FORMS[entry[1]])
        most = (1 << bits - FORMS[entry[1]].islower()) - 1
        entry[2] = min(chance.choice((*WHOLE, entry[2] * 2, entry[2] + 1)), most)
    return f"{entry[0]!r} = {entry[2]}"


def _moved(chance: random.Random, pieces: Pieces) -> str:
    """A number that says something of the model is near what it was."""
    entry = chance.choice([one for one in pieces.keys if one[1] in FORMS and not _MEANINGLESS.search(one[0].decode())])
    if entry[1] == 7:
        entry[2] = not entry[2]
    elif entry[1] in (6, 12):
        entry[2] *= chance.choice((0.5, 2.0))
    else:
        entry[2] = max(entry[2] + chance.choice((-1, 1, entry[2])), 0)
    return f"{entry[0]!r} = {entry[2]}"


def _kind(chance: random.Random, pieces: Pieces) -> str:
    """A value is of another kind."""
    entry = chance.choice(pieces.keys)
    entry[1:] = chance.choice(
        ([TEXT, b"text"], [4, 3], [6, 0.5], [7, True], [LIST, [4, [1, 2]]], [LIST, [8, []]], [LIST, [6, [0.5]]],
         [11, -1], [10, (1 << 64) - 1], [LIST, [4, [3] * 70_000]], [0, 7])
    )  # fmt: skip
    return f"{entry[0]!r} = {entry[1:]}"[:100]


def _list(chance: random.Random, pieces: Pieces) -> str:
    """A list has other entries, or fewer, or more."""
    entry = _pick(chance, pieces, lambda kind: kind == LIST)
    if entry[1] != LIST or not entry[2][1]:
        return "nothing"
    items = entry[2][1]
    how = chance.choice(("fewer", "more", "one", "none", "alike", "turned"))
    at = chance.randrange(len(items))
    if how == "fewer":
        del items[at:]
    elif how == "more":
        items += items[: at + 1]
    elif how == "one":
        items[at] = chance.choice(TEXTS) if entry[2][0] == TEXT else type(items[at])(chance.choice((0, 1, 5, 100)))
    elif how == "none":
        items.clear()
    elif how == "alike":
        items[:] = [items[at]] * len(items)
    else:
        items.reverse()
    return f"{entry[0]!r}: {how} at {at}"


def _words(chance: random.Random, pieces: Pieces) -> str:
    entry = _pick(chance, pieces, lambda kind: kind == TEXT)
    entry[2] = chance.choice(TEXTS)
    return f"{entry[0]!r} = {entry[2]!r}"[:100]


def _gone(chance: random.Random, pieces: Pieces) -> str:
    found = chance.choice((pieces.keys, pieces.tensors))
    return f"without {found.pop(chance.randrange(len(found)))[0]!r}"


def _twice(chance: random.Random, pieces: Pieces) -> str:
    """A key or a tensor is there under another name, too."""
    found = chance.choice((pieces.keys, pieces.tensors))
    entry = list(chance.choice(found))
    entry[0] = chance.choice((entry[0], b"blk.7.attn_q.weight", b"\x1b[2J", b"", b"blk.-1.x", b"output.weight"))
    found.append(entry)
    return f"also {entry[0]!r}"


def _tensor(chance: random.Random, pieces: Pieces) -> str:
    """A tensor has another shape, encoding, or name."""
    entry = chance.choice(pieces.tensors)
    how = chance.choice(("turned", "flat", "wider", "none", "encoding", "name"))
    if how == "turned":
        entry[1].reverse()
    elif how == "flat":
        entry[1] = [chance.choice((1, *entry[1][:1]))]
    elif how == "wider":
        entry[1][-1:] = [chance.choice((*(2 * size for size in entry[1][-1:]), 1 << 31, 1 << 62))]
    elif how == "none":
        entry[1] = chance.choice(([], [0], [1, 1, 1, 1]))
    elif how == "encoding":
        entry[2] = chance.choice((1, 2, 8, 14, 16, 24, 28, 30, 39, 99, 1 << 31))
    else:
        entry[0] = chance.choice((b"blk.99.attn_q.weight", b"\x1b[2J", b"rope_freqs.weight", b"v.x"))
    return f"{entry[0]!r} {how}: {entry[1:3]}"


def _place(chance: random.Random, pieces: Pieces) -> str:
    """A tensor lies where another one does, or nowhere."""
    entry = chance.choice(pieces.tensors)
    entry[3] = chance.choice((0, 1, 32, chance.choice(pieces.tensors)[3], 1 << 40, (1 << 64) - 1))
    return f"{entry[0]!r} at {entry[3]}"


def attempt(path: Path, folder: Path, unlike: str = "") -> None:
    """Plan a run, and load the file as one would.

    Args:
        path: of the file.
        folder: for what is made of it.
        unlike: the family whose good file says something else: another model must come of this one.
    """
    import torch

    with _cache(folder / "cache"):
        spec = {"model": str(path), "data": "rows", "steps": 1, "eval": {"split": 0}, "device": "cpu"}
        nbtune.plan(spec, rows={"rows": ROWS})
        loaded = models.load_model(str(path), dtype=torch.float32, device="cpu")
        loaded(input_ids=torch.arange(8)[None])
        if unlike and _written(path) == _good_written(unlike):
            raise Silent("the number is not read: what was made is the good file's model")


@contextmanager
def _cache(folder: Path) -> Iterator[None]:
    before = os.environ.get("NBTUNE_CACHE")
    os.environ["NBTUNE_CACHE"] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ["NBTUNE_CACHE"]
        else:
            os.environ["NBTUNE_CACHE"] = before


def _written(path: Path) -> dict[str, bytes]:
    """Return what a file becomes, by the names of its files; the weights' is their digest."""
    place = models.resolve(str(path), weights=True)
    return {file.name: sha256(file.read_bytes()).digest() for file in place.iterdir() if file.name != ABOUT}


@cache
def _good_written(family: str) -> dict[str, bytes]:
    folder = Path(mkdtemp(prefix="nbtune-fuzz-"))
    path = folder / "model.gguf"
    path.write_bytes(good(family))
    with _cache(folder / "cache"):
        made = _written(path)
    shutil.rmtree(folder, ignore_errors=True)
    return made
