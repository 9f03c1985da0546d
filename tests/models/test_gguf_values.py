"""What is asked of a GGUF file's keys: each kind of value is read as what it is, or refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from nbtune.errors import SpecError
from nbtune.models.gguf_file.header import GgufHeader, Stored
from nbtune.models.gguf_file.keys import Keys

HELD: dict[str, Any] = {
    "text": "abc", "empty": "", "yes": True, "no": False, "zero": 0, "one": 1, "most": 2**40 - 1, "over": 2**40,
    "minus": -1, "half": 0.5, "nan": math.nan, "inf": math.inf, "alike": [7, 7, 7], "apart": [7, 8], "none": [],
    "texts": ["a", "b"], "mixed": ["a", 1], "flags": [True, True], "ones": [1.0, 1.0],
}  # fmt: skip
FINE: dict[str, dict[str, Any]] = {
    "text": {"text": "abc", "empty": ""},
    "flag": {"yes": True, "no": False},
    "whole": {"zero": 0, "one": 1, "most": 2**40 - 1, "alike": 7},
    "real": {"zero": 0.0, "one": 1.0, "most": 2.0**40 - 1, "over": 2.0**40, "minus": -1.0, "half": 0.5},
}


def held(tensors: dict[str, tuple[int, ...]] | None = None, **more: Any) -> GgufHeader:
    stored = {name: Stored("F32", shape, Path("a.gguf"), 0, 4) for name, shape in (tensors or {}).items()}
    return GgufHeader(Path("a.gguf"), {"general.architecture": "x", **more}, stored, (Path("a.gguf"),))


@pytest.mark.parametrize("kind", FINE)
def test_a_value_is_of_the_kind_that_is_asked_for_or_is_refused(kind: str) -> None:
    asked = held(**{f"x.{key}": value for key, value in HELD.items()})
    keys = Keys(asked)
    default = {"text": "d", "flag": True, "whole": 3, "real": 0.25}[kind]
    assert getattr(keys, kind)("gone", default) == default
    for key in HELD:
        if key in FINE[kind]:
            got = getattr(keys, kind)(key, default)
            assert [type(got), got] == [type(FINE[kind][key]), FINE[kind][key]]
            assert getattr(asked, kind)(f"x.{key}", default) == got
        else:
            with pytest.raises(SpecError, match=rf"its x\.{key} is (?!missing)"):
                getattr(keys, kind)(key, default)
    if kind in ("whole", "real"):
        with pytest.raises(SpecError, match=r"its x\.gone is missing"):
            getattr(keys, kind)("gone")


def test_a_list_holds_one_kind_of_values() -> None:
    asked = held(**HELD)
    assert [asked.items(key, str) for key in ("texts", "none", "gone")] == [["a", "b"], [], []]
    assert asked.items("flags", bool) == [True, True]
    for key, kind in (("mixed", str), ("flags", int), ("texts", int), ("text", str), ("alike", float)):
        with pytest.raises(SpecError, match=f"its {key} "):
            asked.items(key, kind)


def test_a_number_of_each_layer_is_read_as_one_of_all_is() -> None:
    more: dict[str, Any] = {"block_count": 3, "embedding_length": 24, "attention.head_count": [0, 4, 2]}
    more |= {
        "all": 5,
        "few": [1, 2],
        "many": [1, 2, 3, 4],
        "odd": [1, -1, 2],
        "wide": [1, 2**40, 1],
        "real": [1.0, 2.0, 3.0],
        "flags": [True, False, True],
        "none": [],
    }
    keys = Keys(held(**{f"x.{key}": value for key, value in more.items()}))
    assert [keys.each(key) for key in ("all", "many", "attention.head_count")] == [[5, 5, 5], [1, 2, 3], [0, 4, 2]]
    assert [keys.most("all"), keys.most("many"), keys.most("gone", 9)] == [5, 4, 9]
    assert (keys.layers, keys.hidden, keys.head_dim) == (3, 24, 6)
    for key in ("few", "odd", "wide", "real", "flags", "none"):
        with pytest.raises(SpecError, match="no numbers of 3 layers"):
            keys.each(key)
    for key in ("odd", "wide", "real", "flags", "none"):
        with pytest.raises(SpecError, match="no whole number"):
            keys.most(key)
    ahead = {"x.block_count": 3, "x.nextn_predict_layers": 1, "x.attention.key_length": 16, "x.attention.head_count": 4}
    ahead["x.embedding_length"] = 32
    assert (Keys(held(**ahead)).layers, Keys(held(**ahead)).head_dim) == (2, 16)
    assert Keys(held(**{"x.block_count": 1, "x.nextn_predict_layers": 2})).layers == 0
    assert Keys(held(**{"x.embedding_length": 32, "x.attention.head_count": 1})).head_dim == 32
    assert (keys.has("all"), keys.has("gone")) == (True, False)


def test_a_stack_is_looked_for_in_each_block_and_a_matrix_in_the_first() -> None:
    shapes = {"blk.0.a": (4, 5), "blk.1.a": (2, 4, 5), "blk.2.a": (9, 9, 9), "blk.0.v": (4,), "blk.3.late": (1, 1, 1)}
    keys = Keys(held(shapes, **{"x.block_count": 3}))
    assert (keys.any("a"), keys.first("a")) == ((2, 4, 5), (4, 5))
    assert (keys.holds("a"), keys.holds("a", 2), keys.holds("late")) == (True, True, False)
    for ask, part in ((keys.any, "late"), (keys.any, "v"), (keys.first, "v"), (keys.first, "gone")):
        with pytest.raises(SpecError, match=part):
            ask(part)
