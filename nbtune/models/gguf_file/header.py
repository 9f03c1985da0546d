"""What a GGUF file says of itself (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md).

The file is a stranger's: every length in it is compared with what is left of the file before anything is made of it,
so that no number in it costs more memory or time than the file has bytes.
"""

from __future__ import annotations

import math
import mmap
import re
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from nbtune.errors import SpecError
from nbtune.untrusted import open_file, shortened

MAGIC = b"GGUF"
_MOST_KEYS, _MOST_TENSORS, _MOST_ITEMS = 1 << 14, 1 << 17, 1 << 22  # far above any model's
_LONGEST_KEY, _LONGEST_TEXT, _LARGEST_HEADER = 1 << 10, 16 << 20, 1 << 28  # bytes, of which a text in memory takes four
_MOST_NUMBERS = 2**42  # of one tensor
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_TEXT, _LIST = 8, 9
_OLD = {b"lmgg": "ggml", b"fmgg": "ggmf", b"tjgg": "ggjt", b"algg": "ggla"}
_PART = re.compile(r"^(?P<stem>.+)-(?P<part>\d{5})-of-(?P<parts>\d{5})(?P<end>\.gguf)$", re.IGNORECASE)


@dataclass(frozen=True)
class Stored:
    """Where a tensor lies: its encoding's name, its shape (rows first), its file, from which byte on, and how many."""

    encoding: str
    shape: tuple[int, ...]
    file: Path
    start: int
    bytes: int


@dataclass(frozen=True)
class GgufHeader:
    """What is written before the numbers, of all parts of a model.

    Args:
        place: the (first) file.
        metadata: its keys; lists of texts and numbers are lists.
        tensors: by name.
        files: all parts.
    """

    place: Path
    metadata: Mapping[str, Any]
    tensors: Mapping[str, Stored]
    files: tuple[Path, ...]

    @property
    def arch(self) -> str:
        """llama.cpp's name of the architecture."""
        return self.text("general.architecture")

    def text(self, key: str, default: str = "") -> str:
        """Return a text; `default` where it is missing.

        Raises:
            SpecError: something else stands there.
        """
        return self._typed(key, default, str, "a text")  # type: ignore[no-any-return]

    def flag(self, key: str, default: bool) -> bool:
        """Return yes or no, as `text` returns a text."""
        return self._typed(key, default, bool, "yes or no")  # type: ignore[no-any-return]

    def whole(self, key: str, default: int | None = None) -> int:
        """Return a whole number from 0 on; it must be there where there is no default.

        Raises:
            SpecError: it is not there, or something else is.
        """
        value = self.metadata.get(key, default)
        if isinstance(value, list) and value and len(set(map(repr, value))) == 1:  # one a layer, all alike
            value = value[0]
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**40:
            return value
        said = "is missing" if key not in self.metadata else f"is {shortened(repr(value), 60)}, no whole number"
        raise refused(self.place, f"its {key} {said}")

    def real(self, key: str, default: float | None = None) -> float:
        """Return a finite number, as `whole` returns a whole one."""
        value = self.metadata.get(key, default)
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
            return float(value)
        said = "is missing" if key not in self.metadata else f"is {shortened(repr(value), 60)}, no number"
        raise refused(self.place, f"its {key} {said}")

    def items(self, key: str, kind: type) -> list[Any]:
        """Return a list of one kind of values; [] where it is missing.

        Raises:
            SpecError: something else stands there.
        """
        value = self._typed(key, [], list, "a list")
        if not all(type(item) is kind for item in value):
            raise refused(self.place, f"its {key} holds other things than it should")
        return value  # type: ignore[no-any-return]

    def _typed(self, key: str, default: Any, kind: type, words: str) -> Any:
        value = self.metadata.get(key, default)
        if not isinstance(value, kind):
            raise refused(self.place, f"its {key} is {shortened(repr(value), 60)}, and not {words}")
        return value


def refused(place: Path, cause: str, fix: str = "Download or copy the file again.") -> SpecError:
    """Return the error that says what is wrong with a file."""
    return SpecError(cause, place=str(place), fix=fix)


def is_gguf(path: Path) -> bool:
    """Return whether a path is (called) a GGUF file: by its ending, or by its first bytes (Ollama's have no ending)."""
    if path.suffix.lower() == ".gguf":
        return True
    try:
        with open_file(path) as file:
            return file.read(4) == MAGIC
    except OSError:
        return False


def parts_of(path: Path) -> list[Path]:
    """Return all files of a model that is split over several, whichever of them is named; else the file alone.

    Raises:
        SpecError: one of them is not there.
    """
    found = _PART.match(path.name)
    if found is None:
        return [path]
    count = int(found["parts"])
    names = (f"{found['stem']}-{i:05}-of-{found['parts']}{found['end']}" for i in range(1, count + 1))
    files = [path.with_name(name) for name in names]
    missing = [file.name for file in files if not file.is_file()]
    if missing or not files:
        raise refused(
            path,
            f"it is one of {count} parts, and {shortened(', '.join(missing[:3]) or 'the first', 200)} is not beside it",
            "Put all parts into one folder.",
        )
    return files


def read_header(path: Path) -> GgufHeader:
    """Return what a GGUF file, with all its parts, says of itself.

    Raises:
        SpecError: it cannot be read, is damaged, of an old kind, or no GGUF file at all.
    """
    files = parts_of(path)
    metadata: dict[str, Any] = {}
    tensors: dict[str, Stored] = {}
    for index, file in enumerate(files):
        said, held = _read(file)
        metadata = metadata or said
        if len(files) == 1 and said.get("split.count") not in (None, 0, 1):
            raise refused(file, "it is one part of a model", "Give the parts their names back: …-00001-of-0000N.gguf.")
        if said.get("split.count") not in (None, 0, len(files)) or said.get("split.no", index) != index:
            raise refused(file, "it says of itself that it is another part, or one of another number of parts")
        if twice := next((name for name in held if name in tensors), None):
            raise refused(file, f"the weight {shortened(twice)} is in two of the parts")
        tensors |= held
    if metadata.get("split.tensors.count", len(tensors)) != len(tensors):
        raise refused(path, "its parts do not hold as many weights as the first one tells of")
    return GgufHeader(files[0], metadata, tensors, tuple(files))


def _read(path: Path) -> tuple[dict[str, Any], dict[str, Stored]]:
    try:
        with open_file(path) as file, _mapped(file) as data:
            return _Reader(data, path).read()
    except FileNotFoundError:
        raise SpecError(f"there is no file {path}", fix="Check the path.") from None
    except OSError as error:
        raise refused(path, f"it cannot be read ({error.strerror or error})", "Check the path.") from None


@contextmanager
def _mapped(file: Any) -> Iterator[mmap.mmap | bytes]:
    try:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except ValueError:  # an empty file cannot be mapped
        yield b""
        return
    with data:
        yield data


def _shortest(value: float) -> float:
    """Return the number with the fewest digits that is this one in fp32: 1e-05 and not 9.999999747378752e-06."""
    told = struct.pack("<f", value)
    for digits in range(1, 10):
        if struct.pack("<f", short := float(f"{value:.{digits}g}")) == told:
            return short
    return value


class _Reader:
    """One file's bytes, read from front to back."""

    def __init__(self, data: mmap.mmap | bytes, path: Path) -> None:
        self.data, self.path, self.at, self.size = data, path, 0, len(data)
        self.items = 0

    def read(self) -> tuple[dict[str, Any], dict[str, Stored]]:
        """Return metadata and tensors."""
        self._begin()
        tensors, keys = self._number("Q"), self._number("Q")
        if keys > _MOST_KEYS or tensors > _MOST_TENSORS:
            raise refused(self.path, f"it tells of {keys:,} keys and {tensors:,} weights, which no model has")
        metadata: dict[str, Any] = {}
        for _ in range(keys):
            key = self._text(_LONGEST_KEY)
            if key in metadata:
                raise refused(self.path, f"it has the key {shortened(key)} twice")
            metadata[key] = self._value(self._number("I"))
        return metadata, self._tensors(tensors, metadata)

    def _begin(self) -> None:
        magic = bytes(self._take(4)) if self.size >= 4 else b""
        if magic in _OLD:
            raise refused(
                self.path,
                f"this is a {_OLD[magic]} file, the kind before GGUF",
                "Take a newer file of the model: today's llama.cpp does not read such ones either.",
            )
        if magic != MAGIC:
            empty = "it is empty" if self.size == 0 else "this is no GGUF file"
            raise refused(self.path, empty, "Name a .gguf file, a folder with config.json, or a Hub id.")
        version = self._number("I")
        if version not in (2, 3):
            cause = f"it is GGUF of version {version}" if version < 1 << 16 else "its numbers are big-endian"
            raise refused(self.path, f"{cause}; nbtune reads versions 2 and 3, little-endian", "Convert it anew.")

    def _tensors(self, count: int, metadata: Mapping[str, Any]) -> dict[str, Stored]:
        infos = {}
        for _ in range(count):
            name, dims = self._text(_LONGEST_KEY), self._number("I")
            if dims > 4:
                raise refused(self.path, f"the weight {shortened(name)} has {dims} dimensions")
            shape = tuple(self._number("Q") for _ in range(dims))[::-1]
            kind, offset = self._number("I"), self._number("Q")
            if name in infos:
                raise refused(self.path, f"it has the weight {shortened(name)} twice")
            infos[name] = (shape, kind, offset)
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or not 0 < alignment <= 1 << 16:
            raise refused(self.path, f"its alignment is {shortened(repr(alignment), 40)}")
        begin = self.at + -self.at % alignment
        stored = {name: self._stored(name, *info, begin) for name, info in infos.items()}
        self._refuse_shared(stored)
        return stored

    def _refuse_shared(self, stored: Mapping[str, Stored]) -> None:
        """See that no weight lies where another does: a small file would become a model of any size."""
        ordered = sorted(stored.items(), key=lambda each: each[1].start)
        for (name, one), (after, other) in pairwise(ordered):
            if one.start + one.bytes > other.start:
                raise refused(self.path, f"the weights {shortened(name)} and {shortened(after)} lie in one place")

    def _stored(self, name: str, shape: tuple[int, ...], kind: int, offset: int, begin: int) -> Stored:
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        shown = shortened(name)
        try:
            encoding = GGMLQuantizationType(kind)
            block, width = GGML_QUANT_SIZES[encoding]
        except (ValueError, KeyError):
            raise refused(
                self.path,
                f"the weight {shown} is encoded by type {kind}, which this gguf package does not know",
                "Run `pip install -U gguf`, or take a file of another type.",
            ) from None
        numbers = math.prod(shape)
        if not 0 < numbers < _MOST_NUMBERS or not shape or shape[-1] % block:
            raise refused(self.path, f"the weight {shown} has the shape {list(shape)}, which cannot be")
        size = numbers // block * width
        if begin + offset + size > self.size:
            raise refused(
                self.path, f"it is truncated: {self.size:,} bytes, and {shown} ends at {begin + offset + size:,}"
            )
        return Stored(encoding.name, shape, self.path, begin + offset, size)

    def _value(self, kind: int) -> Any:
        if kind in _SCALARS:
            return self._number(_SCALARS[kind])
        if kind == _TEXT:
            return self._text(_LONGEST_TEXT)
        if kind != _LIST:
            raise refused(self.path, f"it has a value of kind {kind}, which GGUF does not have")
        inner, count = self._number("I"), self._number("Q")
        self.items += count
        if self.items > _MOST_ITEMS:
            raise refused(self.path, f"it has lists of {self.items:,} values, which no model has")
        if inner == _TEXT:
            return self._texts(count)
        if inner not in _SCALARS:
            raise refused(self.path, f"it has a list of values of kind {inner}, which nbtune does not read")
        form = f"<{count}{_SCALARS[inner]}"
        return list(struct.unpack(form, self._take(struct.calcsize(form))))

    def _number(self, form: str) -> Any:
        value = struct.unpack(f"<{form}", self._take(struct.calcsize(f"<{form}")))[0]
        return _shortest(value) if form == "f" else value

    def _text(self, longest: int) -> str:
        length = self._number("Q")
        if length > longest:
            raise refused(self.path, f"it has a text of {length:,} bytes where at most {longest:,} belong")
        return bytes(self._take(length)).decode("utf-8", "replace")

    def _texts(self, count: int) -> list[str]:
        """Return a list of texts, as `_text` returns one: of tokens and merges there are a million."""
        self._must_hold(8 * count)
        data, length_at, made = self.data, struct.Struct("<Q").unpack_from, []
        at, end = self.at, min(self.size, _LARGEST_HEADER)
        for _ in range(count):
            begin = at + 8
            at = begin + length_at(data, at)[0] if begin <= end else begin
            if at > end or at - begin > _LONGEST_TEXT:
                break
            made.append(str(data[begin:at], "utf-8", "replace"))
        else:
            self.at = at
            return made
        self.at = begin - 8
        self._text(_LONGEST_TEXT)  # says what is wrong with it
        raise AssertionError

    def _take(self, count: int) -> Any:
        self._must_hold(count)
        self.at += count
        return self.data[self.at - count : self.at]

    def _must_hold(self, count: int) -> None:
        if self.at + count > self.size:
            raise refused(self.path, f"it is truncated: {self.size:,} bytes, and its header goes on behind them")
        if self.at + count > _LARGEST_HEADER:
            raise refused(self.path, f"its header has more than {_LARGEST_HEADER:,} bytes, which no model's has")
