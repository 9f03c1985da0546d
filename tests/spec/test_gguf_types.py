"""Which encoding each matrix of a file gets where models are deeper than those that tests write: llama.cpp's own rules.

(`tests/export/gguf/test_kquants.py` asks llama.cpp itself of two small models.)
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from nbtune.errors import ExportError
from nbtune.spec.gguf_types import TYPES, Shape, type_named
from tests.support.every import every

PLAIN = {"f32": "F32", "f16": "F16", "bf16": "BF16", "q8_0": "Q8_0"}
ROLES = ("attn_q", "attn_k", "attn_v", "attn_qkv", "attn_output", "ffn_gate", "ffn_up", "ffn_down")


@dataclass(frozen=True)
class Matrix:
    name: str
    full: bool = False


def given(kind: str, role: str, shape: Shape) -> list[str]:
    """The encodings of a role's matrices, layer by layer."""
    return [TYPES[kind].wanted(Matrix(f"blk.{i}.{role}.weight"), shape) for i in range(shape.layers)]


def better(encodings: list[str], than: str) -> list[int]:
    return [i for i, encoding in enumerate(encodings) if encoding != than]


FELT = {  # the first and the last eighth, and every third between, of so many layers
    32: [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31],
    22: [0, 1, 4, 7, 10, 13, 16, 19, 20, 21],
    8: [0, 3, 6, 7],
}


@pytest.mark.parametrize("layers", FELT)
@pytest.mark.parametrize(("kind", "main"), [("q4_k_m", "Q4_K"), ("q5_k_m", "Q5_K")])
def test_layers_that_are_felt_keep_more(kind: str, main: str, layers: int) -> None:
    for role in ("attn_v", "attn_qkv", "ffn_down", "ffn_down_exps"):
        got = given(kind, role, Shape(layers))
        assert better(got, main) == FELT[layers], role
        assert {got[i] for i in FELT[layers]} == {"Q6_K"}
    for role in ("attn_q", "attn_k", "attn_output", "ffn_gate", "ffn_up"):
        assert given(kind, role, Shape(layers)) == [main] * layers


@pytest.mark.parametrize(
    ("kind", "main", "role", "first", "encoding"),
    [
        ("q4_k_s", "Q4_K", "attn_v", 4, "Q5_K"), ("q4_k_s", "Q4_K", "ffn_down", 32 // 8, "Q5_K"),
        ("q3_k_m", "Q4_K", "attn_v", 2, "Q5_K"), ("q3_k_m", "Q4_K", "ffn_down", 32 // 16, "Q5_K"),
        ("iq4_xs", "IQ4_XS", "ffn_down", 32 // 8, "Q5_K"), ("iq4_nl", "IQ4_NL", "ffn_down", 32 // 8, "Q5_K"),
    ],
)  # fmt: skip
def test_the_first_layers_keep_more(kind: str, main: str, role: str, first: int, encoding: str) -> None:
    assert given(kind, role, Shape(32)) == [encoding] * first + [main] * (32 - first)


@pytest.mark.parametrize(("kind", "few", "many"), [("q2_k", "Q3_K", "Q4_K"), ("iq4_xs", "IQ4_XS", "Q5_K")])
def test_values_that_four_heads_share_keep_more(kind: str, few: str, many: str) -> None:
    for sharing, encoding in ((1, few), (3, few), (4, many), (8, many)):
        assert given(kind, "attn_v", Shape(2, sharing=sharing)) == [encoding] * 2


@pytest.mark.parametrize("kind", TYPES)
def test_a_model_of_eighty_layers_keeps_its_values_and_one_of_eight_experts_its_attention(kind: str) -> None:
    main = TYPES[kind].main
    usual, deep = (given(kind, "attn_v", Shape(layers)) for layers in (79, 80))
    others = given(kind, "attn_v", Shape(81))
    assert len(deep) == 80
    if kind not in PLAIN:
        assert not {"Q3_K", "Q4_K"} & {*deep}
        for other in (usual, others):
            few = kind in ("q2_k", "q3_k_s", "q3_k_m", "q4_k_s", "q4_k_m")
            assert bool({"Q3_K", "Q4_K"} & {*other}) == few
    for role in set(ROLES) - {"attn_v"}:
        assert "Q5_K" not in given(kind, role, Shape(80))[20:22] or main == "Q5_K" or kind == "q3_k_l"
    for experts in (0, 4, 8, 16):
        for role in ("attn_k", "attn_v"):
            kept = kind not in PLAIN and experts == 8
            assert (given(kind, role, Shape(2, experts=experts)) == ["Q8_0"] * 2) == (kept or kind == "q8_0")
        out = given(kind, "attn_output", Shape(2, experts=experts))
        if experts == 8 and main in ("Q2_K", "Q3_K", "Q4_K", "IQ4_NL", "IQ4_XS"):
            assert out == ["Q5_K"] * 2
        else:
            assert out == [TYPES[kind].out or main] * 2


@pytest.mark.parametrize("kind", TYPES)
def test_the_head_keeps_six_bits_also_where_it_is_the_embedding(kind: str) -> None:
    wanted = TYPES[kind].wanted
    main, head = TYPES[kind].main, PLAIN.get(kind, "Q6_K")
    for tied in (False, True):
        shape = Shape(4, tied=tied)
        assert wanted(Matrix("output.weight"), shape) == head
        assert wanted(Matrix("token_embd.weight"), shape) == (head if tied else main)
        assert wanted(Matrix("position_embd.weight"), shape) == main
        assert wanted(Matrix("blk.0.attn_norm.weight", full=True), shape) == "F32"


def test_a_type_is_found_in_any_case_and_others_are_named() -> None:
    assert type_named("Q4_K_M") is TYPES["q4_k_m"]
    with pytest.raises(ExportError) as caught:
        type_named("q4")
    assert every(name in caught.value.fix for name in TYPES)
