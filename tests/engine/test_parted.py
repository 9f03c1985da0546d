"""Weights that are parted among processes (FSDP2): the losses of one process, in every method; full training too."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

import nbtune
from nbtune import events, models
from nbtune.errors import PlanError
from nbtune.methods import METHODS
from nbtune.models.accelerate.fsdp_linear import copy_rows
from nbtune.models.memory_search import BY_NUMBER
from nbtune.spec import AdapterSpec, Placement, from_mapping
from nbtune.spec.learning import OPTIMIZERS, OptimArgs
from nbtune.store.event_log import EventReader
from nbtune.train.master_weights import Masters
from nbtune.train.parted import gathered, is_parted, mine, norm_of, part_of
from tests.engine.conftest import ROWS, SPEC
from tests.models.test_accelerate import batch
from tests.planner.test_planner import LLAMA_8B, _data
from tests.spec.test_zero_stages import AXOLOTL
from tests.support.every import every
from tests.support.judged_rows import rows_of
from tests.support.several import train

CPU = {**SPEC, "device": "cpu", "batch_size": 3, "steps": 4}  # three rows are no two processes' equal shares
PARTED = {"weights": "sharded", "gpus": "all"}
TEXTS = [f"Row {i} of many" + ", and on it goes" * (i % 5) for i in range(30)]
KINDS: dict[str, list[dict[str, Any]]] = {
    "sft": ROWS,
    "pairs": [{"prompt": f"Say {i}.", "chosen": f"It is {i}.", "rejected": "No " * (i % 4 + 1)} for i in range(30)],
    **rows_of(TEXTS),
}


@pytest.fixture
def alone(tmp_path):
    """A group of one process, of this one."""
    dist.init_process_group("gloo", init_method=(tmp_path / "meet").as_uri(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


# -- what a process has --------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module")
@pytest.mark.parametrize("kind", ["lora", "full"])
@pytest.mark.parametrize("accelerate", [True, False])
def test_a_parted_model_says_what_a_whole_one_says(alone, kind, accelerate) -> None:
    """No layer ran before the decoder around it was parted; and gradients are the very same."""
    how = {"adapter": AdapterSpec(type=kind), "dtype": torch.float32, "device": "cpu", "accelerate": accelerate}
    whole = models.build("nbtune/tiny", **how).model.train()
    parted = models.build("nbtune/tiny", weights=Placement(parts=2), **how).model.train()
    trained = [p for p in parted.parameters() if p.requires_grad]
    assert any(map(is_parted, parted.parameters()))
    assert any(map(is_parted, trained)) == (kind == "full")
    masters = Masters(trained) if Masters.needed(trained) else None
    for model in (whole, parted):
        model(**batch(), use_cache=False).loss.backward()
    optimized = trained if masters is None else masters.parameters
    for name, p, q in zip(
        *zip(*((n, p) for n, p in whole.named_parameters() if p.requires_grad), strict=True), optimized, strict=True
    ):
        torch.testing.assert_close(q.grad, p.grad, atol=1e-6, rtol=1e-5, msg=name)


@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module")
def test_parts_are_put_together(alone) -> None:
    model = models.build(
        "nbtune/tiny", weights=Placement(parts=2), adapter=AdapterSpec(type="full"), dtype=torch.float32, device="cpu"
    ).model
    named = list(model.named_parameters())
    weights = gathered(named, keep=True)
    assert gathered(named, keep=False) == {}
    for name, p in named:
        assert tuple(weights[name].shape) == tuple(p.shape)
        assert torch.equal(part_of(weights[name], p), mine(p))
    some = [torch.tensor([3.0, 4.0]), torch.tensor([[12.0]])]
    assert norm_of(some[:1], some[1:]) == 13
    assert norm_of(some, []) == 13


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("rows", "columns", "pitch", "start"), [(3, 64, 128, 0), (5, 40, 56, 8), (4, 12, 13, 3)])
def test_rows_are_copied_whatever_their_pitch(dtype, rows, columns, pitch, start) -> None:
    wide = torch.zeros(rows, pitch + start, dtype=dtype)
    place, weight = wide[:, start : start + columns], torch.randn(rows, columns).to(dtype)
    copy_rows(place, weight)
    assert torch.equal(place, weight)
    assert torch.equal(wide[:, start + columns :], torch.zeros(rows, pitch - columns, dtype=dtype))
    copy_rows(place, weight.t().contiguous().t())
    assert torch.equal(place, weight)


# -- the plan ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_that_wants_more_than_a_number_is_refused(name) -> None:
    from nbtune.device import machine
    from nbtune.planner import make_plan

    body = {"data": "rows", "adapter": "full", "weights": "sharded", "gpus": "all", "optim": name}
    spec = from_mapping({**body, "sequence_len": 1024, "learning_rate": 1e-5})
    if name in BY_NUMBER:
        plan = make_plan(spec, LLAMA_8B, _data(), machine("8xh100"), devices=8)
        assert plan.weights.parts == 8
        return
    with pytest.raises(PlanError, match=f"`optim: {name}` looks at more than one number"):
        make_plan(spec, LLAMA_8B, _data(), machine("8xh100"), devices=8)


def test_full_training_is_parted_where_it_would_not_fit_else() -> None:
    from nbtune.device import machine
    from nbtune.planner import make_plan

    spec = from_mapping({"data": "rows", "adapter": "full", "gpus": "all", "sequence_len": 1024})
    with pytest.raises(PlanError, match="does not fit"):
        make_plan(
            spec.model_copy(update={"optim_args": OptimArgs(in_backward=False)}), LLAMA_8B, _data(), machine("h100")
        )
    peaks = [make_plan(spec, LLAMA_8B, _data(), machine(f"{n}xh100"), devices=n) for n in (4, 8)]
    assert every(plan.weights.shards for plan in peaks)
    assert peaks[1].memory.optimizer < peaks[0].memory.optimizer
    assert "weights, gradients and optimizer are parted" in " ".join(peaks[0].reasons)


# -- runs ----------------------------------------------------------------------------------------------------------


def losses(folder: Path) -> dict[int, float]:
    return {e.step: e.loss for e in EventReader(folder / "events.jsonl").read() if isinstance(e, events.Step)}


def evals(folder: Path) -> list[float]:
    return [e.loss for e in EventReader(folder / "events.jsonl").read() if isinstance(e, events.Eval)]


def folder_of(runs: Path, name: str, rows: list[dict[str, Any]], **fields: Any) -> Path:
    """A run's folder, which nobody has begun."""
    spec = {**CPU, "eval": {"split": 0.2, "every": 2}, **fields}
    return nbtune.submit(spec, rows={"rows": rows}, slurm="gpus=1", send=False, name=name, runs_dir=runs).folder


def _cases() -> dict[str, tuple[list[dict[str, Any]], dict[str, Any]]]:
    """Rows and fields: every method with a LoRA, and full training, but for methods that compare with the base."""
    cases: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {}
    for name, method in METHODS.items():
        if method.online:  # TRL does its steps, in one process
            continue
        fields: dict[str, Any] = {"method": name} | ({"teacher": "nbtune/tiny"} if method.teacher else {})
        cases[name] = (KINDS[method.rows], {**fields, "adapter": "lora"})
        if not method.reference:
            cases[f"{name}-full"] = (KINDS[method.rows], {**fields, "adapter": "full"})
    for adapter in ("lora", "full"):
        cases[f"packed-{adapter}"] = (ROWS, {"packing": True, "sequence_len": 96, "adapter": adapter})
        cases[f"stock-{adapter}"] = (ROWS, {"accelerate": False, "adapter": adapter})
        cases[f"uneven-{adapter}"] = (ROWS[:7], {"batch_size": 5, "adapter": adapter})
    return cases


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("count", [2, 3, 4])
def test_every_method_has_the_losses_of_one_process(tmp_path, count) -> None:
    """With whole weights on each, and with parted ones."""
    cases, ways = _cases(), {"one": {}, "whole": {"gpus": "all"}, "parted": PARTED}
    made = {
        way: {name: folder_of(tmp_path / way, name, rows, **fields, **more) for name, (rows, fields) in cases.items()}
        for way, more in ways.items()
    }
    train([*made["one"].values()], 1, tmp_path / "meet-one")
    for way in ("whole", "parted"):
        train([*made[way].values()], count, tmp_path / f"meet-{way}")
        for name, many in made[way].items():
            one = made["one"][name]
            assert losses(many) == pytest.approx(losses(one), rel=1e-6, abs=1e-6), (way, name)
            assert evals(many) == pytest.approx(evals(one), rel=1e-5, abs=1e-6), (way, name)
            mine_, all_ = json.loads((many / "bytes.json").read_text())
            if way == "whole":
                assert mine_ == all_
                continue
            assert mine_ <= 1.01 * all_ / count + 4096 * 2, (name, mine_, all_)  # rows that three cannot share equally
            if cases[name][1]["adapter"] == "full":
                assert (many / "checkpoints" / "step-00000004" / "optimizer").is_dir()


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("counts", [(2, 3), (4, 2)])
def test_a_parted_full_run_goes_on_with_another_number_and_its_export_is_whole(tmp_path, counts) -> None:
    fields: dict[str, Any] = {"adapter": "full", "checkpoint": {"every": 2, "keep": 9}, "steps": 6}
    one, many = (
        folder_of(tmp_path / way, "kind", ROWS, **fields, **more) for way, more in (("one", {}), ("n", PARTED))
    )
    train([one], 1, tmp_path / "meet")
    text = (many / "spec.yaml").read_text()
    train([many], counts[0], tmp_path / "meet-a")
    for later in ("step-00000004", "step-00000006"):
        shutil.rmtree(many / "checkpoints" / later)
    (many / "spec.yaml").write_text(text)
    train([many], counts[1], tmp_path / "meet-b")
    assert losses(many) == pytest.approx(losses(one), rel=1e-5)
    whole, parted = (load_file(folder / "adapter" / "model.safetensors") for folder in (one, many))
    assert whole.keys() == parted.keys()
    for name, weight in whole.items():
        torch.testing.assert_close(parted[name], weight, atol=1e-4, rtol=1e-3)
    run = nbtune.attach(many)
    assert run.generate("What is 1 plus 2?") == nbtune.attach(one).generate("What is 1 plus 2?")


@pytest.mark.slow
def test_from_a_cell_full_training_is_parted(start) -> None:
    """The whole way: `gpus: 2`, `weights: sharded`."""
    one = start("one", adapter="full", device="cpu", steps=4).wait()
    two = start("two", adapter="full", device="cpu", steps=4, gpus=2, weights="sharded").wait(600)
    assert losses(two.folder) == pytest.approx(losses(one.folder), rel=1e-6)
    assert two.plan.weights.parts == 2


@pytest.mark.slow
def test_a_zero_3_config_of_axolotls_is_done_by_two_processes(start, tmp_path) -> None:
    (tmp_path / "zero3_bf16.json").write_text(json.dumps(AXOLOTL))
    one = start("one", device="cpu", steps=4).wait()
    two = start("two", device="cpu", steps=4, gpus=2, deepspeed=str(tmp_path / "zero3_bf16.json")).wait(600)
    assert losses(two.folder) == pytest.approx(losses(one.folder), rel=1e-6)
    assert two.plan.weights.parts == 2
