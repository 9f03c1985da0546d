"""What a GGUF file says of itself: as the gguf package reads it, each limit on both sides."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nbtune.errors import SpecError
from nbtune.models.gguf_file import header as of
from nbtune.models.gguf_file.header import GgufHeader, is_gguf, read_header
from nbtune.models.gguf_file.numbers import can_decode, numbers_in, values
from tests.fuzz.gguf import FORMS, LIST, TEXT, text, written

Key = tuple[bytes, int, Any]
Tensor = tuple[bytes, Iterable[int], int, int]
KIND, TYPE = GGUFValueType, GGMLQuantizationType
F32, Q8 = TYPE.F32.value, TYPE.Q8_0.value


def whole(keys: Iterable[Key] = (), tensors: Iterable[Tensor] = (), behind: int = 0, align: int = 32) -> bytes:
    """Return a file: (name, kind, value) of its keys; (name, shape with the rows last, type, offset) of its weights."""
    keys, tensors = [*keys], [*tensors]
    out = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(keys))
    for name, kind, value in keys:
        out += text(name) + struct.pack("<I", kind) + written(kind, value)
    for name, shape, kind, offset in tensors:
        sizes = [*shape]
        out += text(name) + struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, kind, offset)
    return out + bytes(-len(out) % align + behind) if tensors else out


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., GgufHeader]:
    """Write a file of such pieces, and read it."""

    def reading(*args: Any, **more: Any) -> GgufHeader:
        (tmp_path / "a.gguf").write_bytes(whole(*args, **more))
        return read_header(tmp_path / "a.gguf")

    return reading


@pytest.fixture
def fails(read: Callable[..., GgufHeader]) -> Callable[..., str]:
    """Write a file of such pieces, see that it is refused, and return why."""

    def failing(*args: Any, **more: Any) -> str:
        with pytest.raises(SpecError, match=r"a\.gguf") as caught:
            read(*args, **more)
        return caught.value.cause

    return failing


whole_numbers = {
    KIND.UINT8: (0, 255), KIND.INT8: (-128, 127), KIND.UINT16: (0, 65535), KIND.INT16: (-32768, 32767),
    KIND.UINT32: (0, 2**32 - 1), KIND.INT32: (-(2**31), 2**31 - 1), KIND.UINT64: (0, 2**64 - 1),
    KIND.INT64: (-(2**63), 2**63 - 1),
}  # fmt: skip
of_a_kind = {kind: st.integers(*ends) for kind, ends in whole_numbers.items()} | {
    KIND.FLOAT32: st.floats(width=32, allow_nan=False),
    KIND.FLOAT64: st.floats(allow_nan=False),
    KIND.BOOL: st.booleans(),
    KIND.STRING: st.text(st.characters(exclude_categories=["Cs"]), max_size=9),
}
a_value = st.sampled_from([*of_a_kind]).flatmap(
    lambda kind: st.one_of(
        st.tuples(st.just(kind), st.none(), of_a_kind[kind]),
        st.tuples(st.just(KIND.ARRAY), st.just(kind), st.lists(of_a_kind[kind], min_size=1, max_size=5)),
    )
)
a_name = st.text("abc.é", min_size=1, max_size=6)
SIZES = {TYPE.F32: 4, TYPE.F16: 2, TYPE.I8: 1}
a_weight = st.tuples(st.sampled_from([*SIZES]), st.lists(st.integers(1, 5), min_size=1, max_size=4))


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    keys=st.dictionaries(a_name, a_value, max_size=6), weights=st.dictionaries(a_name, a_weight, max_size=5),
    align=st.sampled_from([None, 1, 8, 64]),
)  # fmt: skip
def test_it_says_what_the_gguf_package_reads(
    keys: dict[str, Any], weights: dict[str, Any], align: int | None, tmp_path: Path
) -> None:
    path = tmp_path / "one.gguf"
    writer = GGUFWriter(path, "llama")
    if align is not None:
        writer.add_custom_alignment(align)
    for name, (kind, inner, value) in keys.items():
        writer.add_key_value(name, value, kind, inner)
    for name, (kind, shape) in weights.items():
        writer.add_tensor(name, np.zeros([*shape[:-1], shape[-1] * SIZES[kind]], np.uint8), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    got, theirs = read_header(path), GGUFReader(path)
    assert (got.place, got.files, got.arch) == (path, (path,), "llama")
    assert got.metadata.keys() == {name for name in theirs.fields if not name.startswith("GGUF.")}
    for name, value in got.metadata.items():
        told = theirs.fields[name].contents()
        assert [type(value), value] == [type(told), told] or np.float32(value) == np.float32(told), name
    assert {name: (s.encoding, s.shape, s.start, s.bytes) for name, s in got.tensors.items()} == {
        t.name: (t.tensor_type.name, tuple(map(int, t.shape[::-1])), t.data_offset, t.n_bytes) for t in theirs.tensors
    }


@given(st.floats(width=32, allow_nan=False))
def test_a_number_in_fp32_has_as_few_digits_as_tell_it(value: float) -> None:
    """As numpy shows it."""
    got = of._shortest(value)
    assert struct.pack("<f", got) == struct.pack("<f", value)
    assert len(repr(got)) <= len(repr(float(str(np.float32(value)))))


# -- limits, on both of their sides --------------------------------------------------------------------------------


def test_a_weight_may_end_with_the_file_and_not_behind_it(read: Any, fails: Any) -> None:
    weights = [(b"a", [3], F32, 0), (b"b", [5], F32, 32)]
    assert read((), weights, 32 + 20).tensors["b"].bytes == 20
    assert "it is truncated" in fails((), weights, 32 + 19)
    assert "it is truncated" in fails((), [(b"a", [3], F32, 2**63)], 64)


def test_weights_may_lie_beside_each_other_and_not_in_each_other(read: Any, fails: Any) -> None:
    stored = read((), [(b"b", [8], F32, 32), (b"a", [8], F32, 0)], 64).tensors
    assert stored["a"].start + stored["a"].bytes == stored["b"].start
    for offset in (31, 1, 0):
        assert "lie in one place" in fails((), [(b"b", [8], F32, offset), (b"a", [8], F32, 0)], 64)


@pytest.mark.parametrize(
    ("shape", "kind", "fine"),
    [
        ([64, 2], Q8, True), ([32], Q8, True), ([33, 2], Q8, False), ([16, 2], Q8, False), ([2, 32], Q8, False),
        ([1] * 4, F32, True), ([1] * 5, F32, False), ([], F32, False), ([0], F32, False), ([4, 0], F32, False),
        ([1 << 21, 1 << 21], F32, False), ([1 << 40, 1 << 40], F32, False), ([4], 999, False), ([4], 4, False),
    ],
)  # fmt: skip
def test_a_shape_is_one_that_its_encoding_can_have(
    shape: list[int], kind: int, fine: bool, read: Any, fails: Any
) -> None:
    """32 numbers of q8_0 are 34 bytes; 4 is the number of a type that ggml no longer has."""
    if fine:
        [stored] = read((), [(b"w", shape, kind, 0)], 256).tensors.values()
        assert stored.shape == tuple(shape[::-1])
        assert stored.bytes == (math.prod(shape) // 32 * 34 if kind == Q8 else 4 * math.prod(shape))
    else:
        said = fails((), [(b"w", shape, kind, 0)], 256)
        assert "the weight w" in said
        assert "truncated" not in said


@pytest.mark.parametrize(("name", "longest"), [("key", 1 << 10), ("weight", 1 << 10)])
def test_a_name_has_at_most_a_kilobyte(name: str, longest: int, read: Any, fails: Any) -> None:
    def pieces(size: int) -> tuple[list[Key], list[Tensor]]:
        said = b"n" * size
        return ([(said, 4, 1)], []) if name == "key" else ([], [(said, [1], F32, 0)])

    assert read(*pieces(longest), 32)
    assert "a text of 1,025 bytes where at most 1,024 belong" in fails(*pieces(longest + 1), 32)


@pytest.mark.parametrize(("limit", "what"), [("_MOST_KEYS", "keys"), ("_MOST_TENSORS", "weights")])
def test_so_many_are_read_and_no_more(
    limit: str, what: str, read: Any, fails: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pieces(count: int) -> tuple[list[Key], list[Tensor]]:
        names = [b"n%d" % i for i in range(count)]
        if what == "keys":
            return [(name, 4, 1) for name in names], []
        return [], [(name, [1], F32, 32 * i) for i, name in enumerate(names)]

    monkeypatch.setattr(of, limit, 3)
    assert len({**(got := read(*pieces(3), 96)).metadata, **got.tensors}) == 3
    assert "which no model has" in fails(*pieces(4), 128)


def test_lists_and_texts_have_limits_of_their_own(read: Any, fails: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(of, "_MOST_ITEMS", 6)
    monkeypatch.setattr(of, "_LONGEST_TEXT", 5)
    two = [(b"a", LIST, [4, [1, 2, 3]]), (b"b", LIST, [TEXT, [b"", b"12345", b"x"]])]
    assert read(two).metadata == {"a": [1, 2, 3], "b": ["", "12345", "x"]}
    assert "lists of 7 values" in fails([*two, (b"c", LIST, [0, [1]])])
    assert "a text of 6 bytes" in fails([(b"a", TEXT, b"123456")])
    assert "a text of 6 bytes" in fails([(b"a", LIST, [TEXT, [b"123456"]])])


@pytest.mark.parametrize("align", [0, (1 << 16) + 1, -32, 1.5, "32"])
def test_an_alignment_that_cannot_be_is_refused(align: Any, fails: Any) -> None:
    kind = {int: 5, float: 6, str: TEXT}[type(align)]
    value = align.encode() if isinstance(align, str) else align
    assert "its alignment is" in fails([(b"general.alignment", kind, value)], [(b"a", [1], F32, 0)], 32)


def test_a_name_is_there_once(fails: Any) -> None:
    assert "has the key k twice" in fails([(b"k", 4, 1), (b"l", 4, 1), (b"k", 4, 1)])
    assert "has the weight w twice" in fails((), [(b"w", [1], F32, 0), (b"w", [1], F32, 32)], 64)


@pytest.mark.parametrize("version", [1, 2, 3, 4])
def test_versions_two_and_three_are_read(version: int, tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", version, 0, 0))
    if version in (2, 3):
        assert read_header(path).tensors == {}
    else:
        with pytest.raises(SpecError, match=f"GGUF of version {version}"):
            read_header(path)


def test_any_cut_of_a_header_is_refused(tmp_path: Path) -> None:
    """A file that ends with its last number: each beginning of it misses some."""
    keys: list[Key] = [(b"k%d" % kind, kind, 1) for kind in FORMS]
    keys += [(b"t", TEXT, b"abc"), (b"l", LIST, [TEXT, [b"a", b"bc"]]), (b"n", LIST, [5, [1, 2]])]
    data, path = whole(keys, [(b"w", [2], F32, 0)], 8), tmp_path / "a.gguf"
    path.write_bytes(data)
    assert read_header(path).metadata["k7"] is True
    for size in [*range(0, len(data), 7), *range(len(data) - 9, len(data))]:
        path.write_bytes(data[:size])
        with pytest.raises(SpecError, match=r"a\.gguf"):
            read_header(path)


def test_a_file_is_known_by_its_ending_or_its_first_bytes(tmp_path: Path) -> None:
    for name, data, known in (("a.GGUF", b"", True), ("sha256-1", b"GGUF\x03", True), ("sha256-2", b"GGU", False),
                              ("b.bin", b"\x80GGUF", False)):  # fmt: skip
        (tmp_path / name).write_bytes(data)
        assert is_gguf(tmp_path / name) == known
    assert not is_gguf(tmp_path / "none")


# -- parts ---------------------------------------------------------------------------------------------------------


def parts(folder: Path, *told: dict[str, int], ends: str = ".gguf", names: str = "ab") -> list[Path]:
    """Write the parts of a model, each with its weight, and say of each what is told."""
    files = [folder / f"m-{i:05}-of-{len(told):05}{ends}" for i in range(1, len(told) + 1)]
    for i, (path, keys) in enumerate(zip(files, told, strict=True)):
        said = [(name.encode(), 4, value) for name, value in keys.items()]
        path.write_bytes(whole([*said, (b"only.%d" % i, 4, i)], [(names[i].encode(), [1], F32, 0)], 4))
    return files


FIRST, SECOND = {"split.no": 0, "split.count": 2, "split.tensors.count": 2}, {"split.no": 1, "split.count": 2}


@pytest.mark.parametrize("ends", [".gguf", ".GGUF"])
def test_parts_are_one_model_whichever_is_named(ends: str, tmp_path: Path) -> None:
    files = parts(tmp_path, FIRST, SECOND, ends=ends)
    for named in files:
        got = read_header(named)
        assert (got.place, got.files) == (files[0], tuple(files))
        assert {name: stored.file for name, stored in got.tensors.items()} == {"a": files[0], "b": files[1]}
        assert "only.0" in got.metadata
        assert "only.1" not in got.metadata


@pytest.mark.parametrize(
    ("told", "words"),
    [
        ([SECOND, FIRST], "another part"),
        ([FIRST, FIRST], "another part"),
        ([FIRST, {**SECOND, "split.count": 3}], "another number of parts"),
        ([{**FIRST, "split.tensors.count": 3}, SECOND], "do not hold as many weights"),
        ([{**FIRST, "split.tensors.count": 1}, SECOND], "do not hold as many weights"),
    ],
)
def test_parts_that_say_that_they_are_others_are_refused(told: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=words):
        read_header(parts(tmp_path, *told)[0])


def test_a_weight_lies_in_one_part_and_no_part_is_missing(tmp_path: Path) -> None:
    files = parts(tmp_path, FIRST, SECOND, names="aa")
    with pytest.raises(SpecError, match="the weight a is in two of the parts"):
        read_header(files[1])
    none = tmp_path / "m-00001-of-00000.gguf"
    none.write_bytes(whole())
    with pytest.raises(SpecError, match="it is one of 0 parts"):
        read_header(none)
    files[0].unlink()
    with pytest.raises(SpecError, match=r"one of 2 parts, and m-00001-of-00002\.gguf is not beside it"):
        read_header(files[1])
    for count in (0, 1, 2):
        (tmp_path / "one.gguf").write_bytes(whole([(b"split.count", 4, count)]))
        if count < 2:
            assert read_header(tmp_path / "one.gguf").metadata == {"split.count": count}
        else:
            with pytest.raises(SpecError, match="it is one part of a model"):
                read_header(tmp_path / "one.gguf")


def test_rows_are_those_that_were_asked_for(tmp_path: Path) -> None:
    """Also of a stack, whose matrices lie one under the other, and to the last row of the file."""
    numbers = np.arange(2 * 3 * 4, dtype=np.float32) / 3
    path = tmp_path / "a.gguf"
    path.write_bytes(whole((), [(b"w", [4, 3, 2], F32, 0)]) + numbers.tobytes())
    [stored] = read_header(path).tensors.values()
    assert numbers_in(stored) == 24
    rows = numbers.reshape(6, 4)
    for start in range(6):
        assert np.array_equal(values(stored, start), rows[start:])
        for count in range(1, 7 - start):
            assert np.array_equal(values(stored, start, count), rows[start : start + count])
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(SpecError, match="it became shorter while it was read"):
        values(stored, 5)


@pytest.mark.parametrize(("encoding", "can"), [("F32", True), ("Q4_K", True), ("IQ4_XS", True), ("Q8_1", False)])
def test_an_encoding_is_decoded_or_it_is_known_before(encoding: str, can: bool) -> None:
    """Q8_1 is what llama.cpp keeps activations in: no file has weights of it."""
    assert can_decode(encoding) == can
