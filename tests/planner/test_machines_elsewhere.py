"""Plans for machines that are not here: by name, from Python, the shell and a cell."""

from __future__ import annotations

from typing import Any

import pytest

import nbtune
from nbtune.cli import main
from nbtune.device import MACHINES, machine, shared_among
from nbtune.errors import PlanError
from nbtune.planner import make_plan
from nbtune.spec import from_mapping
from tests.planner.test_planner import LLAMA_8B, _data

ROWS = [{"prompt": f"Say {n}", "completion": f"{n}"} for n in range(16)]


@pytest.mark.parametrize("name", MACHINES)
def test_every_machine_is_planned_for_by_each_spelling(name: str) -> None:
    facts = machine(name)
    assert 0 < facts.free < facts.total
    assert machine(name.upper().replace("-", " ")) == facts
    assert facts.bf16 == (facts.kind == "mps" or facts.capability >= (8, 0))
    plan = nbtune.plan(data=ROWS, steps=2, machine=name)
    assert plan.device_name == facts.name
    assert plan.available_bytes == facts.free
    assert plan.gpus == 1


def test_several_of_a_machine_and_a_size() -> None:
    assert machine("8xh100").count == 8
    assert machine("8 x H100") == machine("8×h100")
    assert round(machine("24GB").total / 2**30) == 24
    assert shared_among(machine("8xh100"), "all", "auto") == 8
    assert shared_among(machine("8xh100"), (0, 3), "cuda") == 2
    assert nbtune.plan(data=ROWS, steps=2, gpus="all", machine="kaggle").gpus == 2


@pytest.mark.parametrize(
    "name",
    [
        "",
        "h",
        "rtx 9999",
        "0xh100",
        "0GB",
        "cluster",
        "9" * 400,
        "t4\x1b[31m",
        "１２GB",
        "0.0001GB",
        "8xmac-32",
        "2xkaggle",
        5,
    ],
)
def test_a_machine_that_nobody_has_is_refused_in_a_sentence(name: Any) -> None:
    with pytest.raises(PlanError) as caught:
        nbtune.plan(data=ROWS, steps=2, machine=name)
    assert len(caught.value.cause) < 160
    assert caught.value.fix


@pytest.mark.parametrize(
    ("fields", "name", "words"),
    [({"gpus": 4}, "t4", "asks for 4"), ({"device": "mps"}, "t4", "device: mps"), ({"gpus": (0, 2)}, "kaggle", "3")],
)
def test_what_a_machine_does_not_have_is_refused(fields: dict, name: str, words: str) -> None:
    with pytest.raises(PlanError, match=words):
        nbtune.plan(data=ROWS, steps=2, machine=name, **fields)


def test_the_machine_decides_precision_format_and_time() -> None:
    spec = from_mapping({"data": "rows", "adapter": "qlora", "sequence_len": 1024, "steps": 100})
    plans = {name: make_plan(spec, LLAMA_8B, _data(), machine(name)) for name in ("t4", "rtx4090", "h100")}
    assert [plan.dtype for plan in plans.values()] == ["fp16", "bf16", "bf16"]
    assert plans["t4"].seconds > plans["rtx4090"].seconds > plans["h100"].seconds
    with pytest.raises(PlanError, match="does not fit"):
        make_plan(from_mapping({"data": "rows", "adapter": "full"}), LLAMA_8B, _data(), machine("24GB"))
    with pytest.raises(PlanError, match="Apple"):
        make_plan(spec, LLAMA_8B, _data(), machine("mac-32"))


def test_a_plan_leaves_room_for_the_teacher_as_the_run_does() -> None:
    plan = nbtune.plan(data=ROWS, method="distill", teacher="nbtune/tiny", steps=2, machine="t4")
    assert plan.available_bytes == machine("t4").free - nbtune.models.model_facts("nbtune/tiny").weights_bytes


def test_the_shell_plans_for_it_and_never_trains_for_it(tmp_path, monkeypatch, capfd) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "spec.yaml").write_text("data: nbtune/town\nsteps: 2\n")
    assert main(["plan", "spec.yaml", "--machine", "colab"]) == 0
    assert "Colab's free T4, fp16" in capfd.readouterr().out
    assert main(["train", "spec.yaml", "--machine", "colab"]) == 2
    assert "--dry-run" in capfd.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_a_plans_table_says_what_fits_and_is_neither_compared_nor_written(tmp_path, monkeypatch, capfd) -> None:
    spec = from_mapping({"data": "rows", "sequence_len": 3000, "steps": 100})
    plan = make_plan(spec, LLAMA_8B, _data(), machine("24GB"))
    ways = plan.table()
    assert {way.adapter for way in ways} == {"lora", "qlora"}
    assert {3000, 512, 8192} <= {way.sequence_len for way in ways} <= {*range(LLAMA_8B.max_position + 1)}
    for way in ways:
        assert way.fits == (way.bytes <= 0.92 * plan.available_bytes)
    mine = [way for way in ways if (way.adapter, way.sequence_len) == ("lora", 3000)]
    chosen = next(way for way in mine if way.micro_batch_size == plan.micro_batch_size)
    assert (chosen.fits, chosen.bytes, chosen.activations) == (True, plan.peak_bytes, plan.activations)
    for adapter in ("lora", "qlora"):  # what needs more memory fits no better
        sizes = [w.bytes for w in ways if w.adapter == adapter and not w.fits]
        assert not sizes or min(sizes) > 0.92 * plan.available_bytes
    read = nbtune.planner.Plan.model_validate_json(plan.model_dump_json())
    assert read == plan
    with pytest.raises(PlanError, match="from a file"):
        read.table()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "spec.yaml").write_text("data: nbtune/town\nsteps: 2\n")
    assert main(["plan", "spec.yaml", "--machine", "t4", "--table"]) == 0
    out = capfd.readouterr().out
    assert "on NVIDIA T4 (14.4 GiB free):" in out
    assert "not measured" in out
    assert "not measured" in ways._repr_html_()
    assert main(["plan", "spec.yaml", "--machine", "2xt4", "--set", "gpus=all", "--table", "--json"]) == 0
    assert '"micro_batch_size": 8' in capfd.readouterr().out
