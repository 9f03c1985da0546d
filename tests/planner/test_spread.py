"""A step on several GPUs, of one machine or of many, reckoned: from Python, the shell and a cell."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import nbtune
from nbtune.cli import main
from nbtune.data.prepare.stats import DataFacts
from nbtune.device import machine
from nbtune.engine.planned import _with_more, spread_out
from nbtune.errors import NbtuneError, PlanError
from nbtune.planner import make_plan
from nbtune.planner.spread import Links
from nbtune.spec import from_mapping
from tests.planner.test_planner import LLAMA_8B, _data
from tests.support import scale
from tests.support.every import every

LLAMA_70B = replace(
    LLAMA_8B, hidden_size=8192, intermediate_size=28672, num_layers=80, num_heads=64, parameters=70_553_706_496
)
ROWS = [{"prompt": "Say hi", "completion": "Ahoy, " * 40}] * 64


def plan_on(name: str, nodes: int = 1, model: Any = LLAMA_8B, **fields: Any) -> nbtune.Plan:
    device = machine(name, nodes=nodes)
    spec = from_mapping({"data": "rows", "gpus": "all", "learning_rate": 1e-5, "sequence_len": 2048, **fields})
    count = device.count * nodes
    plan = make_plan(spec, model, _data(), device, devices=count)
    return spread_out(plan, model, device, device.count)


def test_a_loras_gradients_cost_little_within_a_machine_and_between_machines() -> None:
    for name, nodes in (("4xh200", 1), ("8xh100", 1), ("8xh100", 4)):
        plan = plan_on(name, nodes, batch_size=4 * nodes * machine(name).count)
        assert plan.spread is not None
        assert 0.95 < plan.spread.share < 1
        assert plan.seconds == pytest.approx(plan.spread.seconds * plan.total_steps)
    slow = spread_out(plan, LLAMA_8B, machine("8xh100", nodes=4, network=1), 8)
    assert slow.spread.share < 0.5
    assert slow.spread.sent == plan.spread.sent


def test_what_does_not_fit_into_one_machine_is_parted_over_more() -> None:
    how: dict[str, Any] = {"adapter": "full", "batch_size": 256, "model": LLAMA_70B}
    with pytest.raises(PlanError, match="does not fit"):
        plan_on("8xh100", **how)
    peaks = [plan_on("8xh100", nodes, **how) for nodes in (8, 16)]
    assert every(plan.weights.parts == plan.gpus for plan in peaks)
    assert peaks[1].memory.weights < peaks[0].memory.weights  # what that leaves is spent
    error, spec = PlanError("it does not fit", fix="sleep"), from_mapping({"data": "rows", "gpus": "all", **SMALL})
    told = _with_more(error, spec, LLAMA_70B, _data(), machine("8xh100"), 8)
    assert "such machines (`--nodes 4`: " in told.fix
    assert told.fix.endswith("or sleep")


SMALL = {"sequence_len": 2048, "learning_rate": 1e-5, "batch_size": 256, "adapter": "full", "optim": "lion"}


@given(gpus=st.integers(1, 8), machines=st.integers(1, 128), size=st.floats(1, 1e12))
def test_more_bytes_and_slower_links_never_take_less(gpus: int, machines: int, size: float) -> None:
    links = Links(gpus, machines, 300e9, 30e9)
    assert links.ring(size) <= links.ring(2 * size)
    assert links.ring(size) <= replace(links, inside=links.inside / 2, between=links.between / 2).ring(size)
    assert links.ring(size) >= size * (links.count - 1) / links.count / (gpus * 30e9 + 300e9)


@pytest.mark.parametrize(
    ("shape", "gpus", "rows", "micro", "adapter", "measured"),
    [
        ("8B", 2, 16, 4, "lora", 1.056),
        ("70B", 2, 2, 1, "lora", 1.590),
        ("70B", 4, 4, 1, "lora", 1.773),
        ("8B", 2, 8, 4, "full", 0.791),
        ("8B", 4, 16, 4, "full", 0.769),
    ],
)
def test_parted_steps_are_as_long_as_they_were_on_h200(shape, gpus, rows, micro, adapter, measured) -> None:
    """docs/bench/2026-11-29-h200-x4.jsonl and 2026-11-30-h200-x4.jsonl."""
    body = {"gpus": "all", "learning_rate": 1e-5, "sequence_len": 2048, "adapter": adapter, "weights": "sharded"}
    batch = {"micro_batch_size": micro, "batch_size": rows, "activations": "keep"}
    data = DataFacts(rows=10**6, tokens_total=2048 * 10**6, trained_tokens=2048 * 10**6, longest=2048)
    facts, device = scale.model(shape), machine(f"{gpus}xh200")
    plan = make_plan(from_mapping({"data": "rows", **body, **batch}), facts, data, device, devices=gpus)
    assert spread_out(plan, facts, device, gpus).spread.seconds == pytest.approx(measured, rel=0.15)


def test_a_row_too_few_is_seen_in_the_share() -> None:
    even, uneven = (plan_on("8xh100", batch_size=rows).spread for rows in (8, 9))
    assert even.share > 1.5 * uneven.share


def test_by_each_door(tmp_path, monkeypatch, capsys) -> None:
    plan = nbtune.plan(data=ROWS, steps=2, machine="8xh100", nodes=2, network=100)
    assert (plan.gpus, plan.spread.machines, plan.spread.gpus) == (16, 2, 8)
    assert plan.spread.between == pytest.approx(100e9 / 8 / 8 * 0.75)
    assert "2 × 8 × NVIDIA H100 80 GB; each sends 270 GB/s to the others of its machine, 1.2 GB/s to other" in str(plan)
    assert nbtune.Plan.model_validate_json(plan.model_dump_json()) == plan
    assert nbtune.plan(data=ROWS, steps=2, machine="8xh100", gpus=4, nodes=2).gpus == 8
    assert nbtune.plan(data=ROWS, steps=2, machine="8xh100").spread is None  # one GPU, as `gpus` says
    monkeypatch.chdir(tmp_path)
    (tmp_path / "spec.yaml").write_text("data: rows.jsonl\nsteps: 2\n")
    (tmp_path / "rows.jsonl").write_text('{"prompt": "Say hi", "completion": "Ahoy"}\n' * 8)
    assert main(["plan", "spec.yaml", "--machine", "4xh200", "--nodes", "2"]) == 0
    assert "2 × 4 × NVIDIA H200" in capsys.readouterr().out
    assert main(["train", "spec.yaml", "--machine", "4xh200", "--nodes", "2"]) == 2
    assert "for a plan" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"nodes": 2}, "`nodes` is of machines that are not here"),
        ({"network": 100}, "`network` is of machines that are not here"),
        ({"machine": "8xh100", "nodes": 0}, "0 machines are not planned for"),
        ({"machine": "8xh100", "nodes": 10**9}, "machines are not planned for"),
        ({"machine": "8xh100", "nodes": 2, "network": float("nan")}, "sends nothing"),
        ({"machine": "8xh100", "nodes": 2, "network": -1}, "sends nothing"),
        ({"machine": "mac-32", "nodes": 2}, "do not train together"),
        ({"machine": "4xh200", "nodes": 2, "gpus": 8}, "the machine has 4 NVIDIA H200"),
    ],
)
def test_machines_that_nobody_has_are_refused_in_a_sentence(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(NbtuneError, match=words):
        nbtune.plan(data=ROWS, steps=2, **fields)


def test_the_table_of_the_page_is_current() -> None:
    text = scale.PAGE.read_text(encoding="utf-8")
    assert scale.written(text) == text
    assert scale.table() in text


@pytest.mark.parametrize(("gpus", "machines"), [(4, 1), (4, 2), (1, 2)])
def test_links_are_named_that_there_are(gpus: int, machines: int) -> None:
    plan = plan_on(f"{gpus}xh200", machines)
    assert plan.spread is not None
    said = dict(plan.spread.rows("H200"))["links"]
    assert ("to the others of its machine" in said) == (gpus > 1)
    assert ("to other machines" in said) == (machines > 1)
    assert said.startswith(f"{machines} × " * (machines > 1) + f"{gpus} × H200; each sends ")
    assert "sends ," not in said
