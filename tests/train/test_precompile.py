"""The process that compiles a run's kernels: it takes the run's way, and it never outlives or harms the run."""

import json
import os
import subprocess
import sys

import pytest

import nbtune
from nbtune.planner import Plan
from nbtune.spec import RunSpec
from nbtune.train import precompile
from nbtune.train.precompile import Rehearsal, rehearse
from tests.support.every import every

ROWS = [{"prompt": f"What is {a} plus 1?", "completion": str(a + 1)} for a in range(40)]
PAIRS = [{"prompt": f"{a}?", "chosen": "yes, it is", "rejected": "no"} for a in range(40)]


def planned(rows=ROWS, **fields) -> tuple[RunSpec, Plan]:
    spec = RunSpec(data="rows", steps=2, device="cpu", micro_batch_size=2, gradient_accumulation_steps=2, **fields)
    return spec, nbtune.plan(spec, rows={"rows": rows})


@pytest.mark.parametrize(
    "fields",
    [{}, {"packing": True, "sequence_len": 128}, {"method": "dpo"}, {"method": "orpo", "packing": True}],
    ids=["rows", "packs", "pairs", "packs of pairs"],
)
def test_it_takes_one_step_of_a_single_layer_as_the_run_would(fields, monkeypatch):
    made = []
    sketch = precompile._sketch
    monkeypatch.setattr(precompile, "_sketch", lambda *a: made.append(sketch(*a)) or made[0])
    monkeypatch.setattr("nbtune.train.cuda_graph_stepper.replayable", lambda device: True)
    rehearse(*planned(PAIRS if "method" in fields else ROWS, **fields))
    (built,) = made
    assert [*built.patch.report.taken] == ["layers.0", "norm", "head"]
    trained = [p for p in built.model.parameters() if p.requires_grad]
    assert trained
    assert every(p.grad is not None for p in trained)


def test_its_shapes_are_the_plans_but_no_longer_than_makes_a_difference():
    spec, plan = planned(sequence_len=512)
    assert precompile._shape(spec, plan) == (2, 512)
    assert precompile._shape(spec, plan.model_copy(update={"sequence_len": 8192})) == (2, 1024)
    assert precompile._shape(spec, plan.model_copy(update={"sequence_len": 100})) == (2, 128)


def test_none_is_started_on_a_cpu():
    with Rehearsal.begin(RunSpec(data="rows", device="cpu")) as none:
        assert none.process is None
        none.end(done=True)


def test_it_dies_with_the_pipe_and_with_the_run(tmp_path, monkeypatch):
    spec, _ = planned()
    child = precompile._start()
    assert child.close(60) == 0  # its input ends, as when the run is killed
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    with Rehearsal(spec, precompile._start()) as working:
        process = working.process
    assert process.wait(0) == -9
    assert list(tmp_path.iterdir()) == []


def test_it_is_let_go_where_the_device_has_no_room_beside_the_run(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    spec, plan = planned()
    plan = plan.model_copy(update={"device": "cuda", "available_bytes": plan.peak_bytes + 2**20})
    beside = Rehearsal(spec, precompile._start())
    beside.perform(plan)
    assert beside.process is None


def test_a_run_that_made_a_step_leaves_a_mark_and_the_next_one_starts_none(tmp_path, monkeypatch):
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr("nbtune.device.gpu_present", lambda: True)
    monkeypatch.setattr("nbtune.device.cpu_count", lambda: 8)
    monkeypatch.setattr("nbtune.device.ram_available", lambda: 2**36)
    monkeypatch.setattr(precompile, "find_spec", lambda name: object())
    spec = RunSpec(data="rows")
    first = Rehearsal.begin(spec)
    assert first.process is not None
    first.end(done=True)
    assert Rehearsal.begin(spec).process is None
    assert Rehearsal.begin(spec.model_copy(update={"steps": 7})).process is None  # the same kernels
    other = Rehearsal.begin(spec.model_copy(update={"packing": True}))
    assert other.process is not None
    other.end()


@pytest.mark.slow
def test_the_child_does_what_it_is_told_and_ends():
    spec, plan = planned()
    order = json.dumps({"spec": spec.model_dump(mode="json"), "plan": plan.model_dump(mode="json")}) + "\n"
    with subprocess.Popen(
        [sys.executable, "-m", "nbtune.train.precompile"], stdin=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "NBTUNE_COMPILE_AHEAD": "1"},
    ) as child:  # fmt: skip
        child.stdin.write(order.encode())
        child.stdin.flush()  # and left open
        assert child.wait(200) == 0, child.stderr.read()
