"""One value says where frozen weights live and in what format: to the spec, the plan, the kernels and people."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from nbtune.errors import SpecError
from nbtune.folder_format import plan_body
from nbtune.spec import Placement, RunSpec
from nbtune.spec import placement as module
from nbtune.spec.placement import Format, Home, PlacementWish
from tests.support.every import every
from tests.support.house import NBTUNE

FORMATS = get_args(Format)
placements = st.one_of(
    st.builds(Placement, format=st.sampled_from(FORMATS)),
    st.builds(Placement, format=st.sampled_from(["16bit", "32bit", "nf4"]), resident=st.integers(0, 80)),
    st.builds(Placement, format=st.sampled_from(["16bit", "32bit"]), parts=st.integers(1, 64)),
)


@given(placements)
def test_json_and_back(placement: Placement) -> None:
    assert Placement.model_validate_json(placement.model_dump_json()) == placement


@given(placements)
def test_its_properties_are_of_one_mind(placement: Placement) -> None:
    assert placement.quantised == (placement.four_bit or placement.eight_bit) == (placement.bits < 16)
    assert (placement.home is Home.DEVICE) == (not placement.streams and not placement.shards)
    assert placement.on_device().home is Home.DEVICE
    assert placement.on_device().format == placement.format
    assert placement.bits / 8 <= placement.bytes_a_weight < placement.bits / 8 + 0.1  # and scales


@given(st.integers(0, 40), st.integers(1, 40))
def test_so_many_layers_stay_and_lie_between_the_others(resident: int, layers: int) -> None:
    kept = [not Placement(resident=resident).of_layer(i, layers).streams for i in range(layers)]
    if resident <= layers:
        assert sum(kept) == resident
    gaps = "".join("." if here else "s" for here in kept).split(".")[1:-1]
    assert not gaps or max(map(len, gaps)) - min(map(len, gaps)) <= 1


@pytest.mark.parametrize("wrong", [
    {"format": "2bit"}, {"resident": -1}, {"parts": 0}, {"colour": "green"}, {"resident": 1, "parts": 2},
    {"format": "fp8", "resident": 1}, {"format": "fp8", "parts": 2}, {"format": "nf4", "parts": 2},
])  # fmt: skip
def test_what_cannot_be_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Placement(**wrong)


def test_a_format_has_one_entry_and_the_file_of_its_layers() -> None:
    assert set(module.FORMATS) == set(FORMATS)
    rounded = {name for name, known in module.FORMATS.items() if known.rounded}
    assert rounded == {name for name, known in module.FORMATS.items() if known.bits < 16}
    files = {name: NBTUNE / "models" / "accelerate" / f"{name}_linear.py" for name in rounded}
    assert [name for name, file in files.items() if "def rounded(" not in file.read_text(encoding="utf-8")] == []


def test_the_specs_words_are_understood_all_of_them() -> None:
    words = get_args(RunSpec.model_fields["weights"].annotation)
    assert {*words} == {*module._SPEC_KEYS} > {*FORMATS} - {"32bit"}
    wishes = {word: PlacementWish.of_spec(word, "lora") for word in words}
    assert {word for word, wish in wishes.items() if wish.is_of_frozen_weights} == {*words} - {"auto", "16bit"}
    assert {word: wish.home for word, wish in wishes.items() if wish.home} == {
        "streamed": Home.STREAMED,
        "sharded": Home.SHARDED,
    }
    assert {word: wish.on_device().format for word, wish in wishes.items() if wish.on_device().quantised} == {
        "fp8": "fp8",
        "nf4": "nf4",
    }
    assert every(PlacementWish.of_spec(word, "qlora").on_device().four_bit for word in words)
    assert [w for w, wish in wishes.items() if wish.overruled_by(wish.on_device(fp32=True))] == ["16bit"]


def test_the_words_of_load_trainable() -> None:
    assert PlacementWish.of_words("none", "auto") == PlacementWish()
    assert PlacementWish.of_words("nf4", "resident") == PlacementWish("nf4", Home.DEVICE)
    for quant, weights, fix in (("int8", "auto", "none, fp8 or nf4"), ("none", "here", "auto, resident or streamed")):
        with pytest.raises(SpecError) as caught:
            PlacementWish.of_words(quant, weights)
        assert fix in caught.value.fix


@pytest.mark.parametrize(
    ("before", "now"),
    [
        ({"weights": "nf4", "resident_layers": None, "sharded": False, "gpus": 1}, Placement(format="nf4")),
        ({"weights": "16bit", "resident_layers": 12, "sharded": False, "gpus": 2}, Placement(resident=12)),
        ({"weights": "16bit", "resident_layers": None, "sharded": True, "gpus": 4}, Placement(parts=4)),
        ({"weights": "32bit"}, Placement(format="32bit")),
    ],
)
def test_plans_of_before_are_read(before: dict[str, Any], now: Placement) -> None:
    read = plan_body(before, 1)
    assert Placement.model_validate(read["weights"]) == now.model_copy(update={"experts": False})  # before format 3
    assert not {"sharded", "resident_layers"} & read.keys()
    assert plan_body(read, 2) == read


def _compared(tree: ast.Module) -> set[str]:
    compares = [node for node in ast.walk(tree) if isinstance(node, ast.Compare)]
    return {n.value for c in compares for n in ast.walk(c) if isinstance(n, ast.Constant) and isinstance(n.value, str)}


def test_nobody_else_compares_names_of_formats_and_homes() -> None:
    """Who needs to know asks a property, so that a new format or home is one file's business."""
    names = {*FORMATS, "streamed", "sharded", "resident", "qlora"}
    package = Path(module.__file__).parents[1]
    others = [path for path in package.rglob("*.py") if path != Path(module.__file__)]
    assert _compared(ast.parse("if kind in ('fp8', 'nf4') or not home == 'here': pass")) == {"fp8", "nf4", "here"}
    wrong = {path.name: used for path in others if (used := names & _compared(ast.parse(path.read_text("utf-8"))))}
    assert wrong == {}


def test_words_for_people() -> None:
    said = {
        Placement(): "16 bits on the GPU",
        Placement(format="fp8"): "fp8 on the GPU",
        Placement(resident=0): "16 bits, all layers streamed from the host's memory",
        Placement(resident=12): "16 bits, 12 layers resident, the rest streamed",
        Placement(parts=2): "16 bits, each of 2 keeps a part and borrows the others' layer by layer",
    }
    assert {placement: str(placement) for placement in said} == said
    assert Placement(format="32bit").words("cpu") == "32 bits in memory"
    assert Placement(resident=12).words(layers=32) == "16 bits, 12 of 32 layers resident, the rest streamed"
    whole = "nf4 on the GPU, the embedding's rows fetched from the host's memory"
    assert Placement(format="nf4", resident=32).words(layers=32) == whole
