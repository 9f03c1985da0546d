"""The planner spends the memory there is, keeps the batch that was asked for, and says what would fit otherwise."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from nbtune.data.prepare.stats import DataFacts
from nbtune.device import DeviceFacts
from nbtune.errors import PlanError, SpecError
from nbtune.folder_format import plan_body
from nbtune.models.config_facts import ModelFacts
from nbtune.planner import Plan, make_plan
from nbtune.spec import Placement, from_mapping

GIB = 2**30
LLAMA_8B = ModelFacts(
    name="meta-llama/Llama-3.1-8B",
    architecture="LlamaForCausalLM",
    hidden_size=4096,
    intermediate_size=14336,
    num_layers=32,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    vocab_size=128256,
    tied=False,
    parameters=8_030_261_248,
    max_position=131072,
    weights_bytes=16_060_522_496,
    dtype="bfloat16",
)


def _data(longest=2048, rows=1000):
    return DataFacts(
        rows=rows, eval_rows=10, tokens_total=rows * longest // 2, trained_tokens=rows * 100, longest=longest
    )


def _card(gib, capability=(9, 0)):
    return DeviceFacts("cuda", "NVIDIA test card", int(gib * GIB), int(gib * GIB), capability, capability >= (8, 0))


def _plan(gib=80, longest=2048, capability=(9, 0), **fields):
    return make_plan(from_mapping({"data": "rows", **fields}), LLAMA_8B, _data(longest), _card(gib, capability))


def test_more_memory_never_makes_a_slower_plan():
    order = ["offload", "recompute", "selective", "keep"]
    speeds = [order.index(_plan(gib, batch_size=4).activations) for gib in (20, 24, 40, 80, 141)]
    assert speeds == sorted(speeds)
    assert speeds[-1] == order.index("keep")


@settings(max_examples=60, deadline=None)
@given(gib=st.floats(20, 200), batch=st.integers(1, 64), longest=st.integers(16, 4096))
def test_a_plan_fits_and_keeps_the_batch(gib, batch, longest):
    try:
        plan = _plan(gib, longest, batch_size=batch)
    except PlanError:
        return
    assert plan.peak_bytes <= plan.available_bytes
    assert plan.micro_batch_size * plan.gradient_accumulation_steps == batch
    assert plan.sequence_len >= longest
    assert Plan.model_validate_json(plan.model_dump_json()) == plan


def test_plans_of_before_are_read_and_a_bad_one_is_refused():
    now = _among(2, gib=16, batch_size=2)
    body = now.model_dump(mode="json")
    assert body["weights"] == {"format": "16bit", "resident": None, "parts": 2, "experts": True}
    before = {**body, "weights": "16bit", "resident_layers": None, "sharded": True}
    read = Plan.model_validate(plan_body(before, 1))
    assert read.weights == now.weights.model_copy(update={"experts": False})  # which older runs left as they were
    assert read.model_copy(update={"weights": now.weights}) == now
    for wrong in ({"weights": "2bit"}, {"weights": {"format": "nf4", "parts": 2}}, {"weights": None}):
        with pytest.raises(ValidationError):
            Plan.model_validate({**body, **wrong})


def test_what_does_not_fit_names_the_nearest_change():
    with pytest.raises(PlanError) as caught:
        _plan(12)
    assert "qlora" in caught.value.fix
    assert _plan(12, adapter="qlora").weights == Placement(format="nf4")
    with pytest.raises(PlanError) as caught:
        _plan(24, adapter="full")
    assert "lora" in caught.value.fix


def test_a_t4_gets_fp16_with_its_reason_and_refuses_bf16():
    plan = _plan(15, longest=512, capability=(7, 5), adapter="qlora")
    assert plan.dtype == "fp16"
    assert "no bf16" in plan.dtype_reason
    with pytest.raises(PlanError, match="no bf16"):
        _plan(15, capability=(7, 5), adapter="qlora", dtype="bf16")


def test_an_apple_gpu_never_gets_four_bits_or_fp8():
    mps = DeviceFacts("mps", "Apple GPU", 64 * GIB, 48 * GIB, bf16=True, unified=True)
    for fields in ({"adapter": "qlora"}, {"weights": "fp8"}):
        with pytest.raises(PlanError):
            make_plan(from_mapping({"data": "rows", **fields}), LLAMA_8B, _data(), mps)
    assert make_plan(from_mapping({"data": "rows"}), LLAMA_8B, _data(512), mps).weights == Placement()


def test_steps_come_from_epochs_and_the_batch():
    plan = _plan(epochs=2, batch_size=16)
    assert plan.total_steps == 126  # 2 epochs of 63 steps: 62 of 16 rows, one of 8
    assert _plan(steps=7).total_steps == 7


def test_two_of_three_batch_fields_give_the_third_and_contradictions_are_refused():
    assert _plan(batch_size=12, gradient_accumulation_steps=4).micro_batch_size == 3
    assert _plan(micro_batch_size=2, batch_size=8).gradient_accumulation_steps == 4
    with pytest.raises(PlanError, match="equal parts"):
        _plan(batch_size=10, gradient_accumulation_steps=4)


def test_the_explanation_says_what_a_person_asks_for():
    text = _plan(steps=100).explain()
    for word in ("trains", "NVIDIA test card", "bf16", "GiB", "steps", "time"):
        assert word in text


def test_what_is_downloaded_is_said_in_bytes_and_minutes():
    plan = make_plan(from_mapping({"data": "rows"}), LLAMA_8B, _data(), _card(80), download_bytes=16_060_522_496)
    assert "15.0 GiB, about 21 min at 100 Mbit/s" in plan.explain()  # 16.06 GB / 12.5 MB/s = 1,285 s
    assert "download" not in _plan().explain()


def test_blocks_that_stay_transformers_own_are_planned_with_what_they_keep():
    lora, dora = (_plan(adapter={"type": kind}, activations="keep", micro_batch_size=1) for kind in ("lora", "dora"))
    assert dora.memory.activations > 1.2 * lora.memory.activations
    assert dora.memory.activations == _plan(accelerate=False, activations="keep", micro_batch_size=1).memory.activations


def _among(devices, gib=80, longest=2048, **fields):
    spec = from_mapping({"data": "rows", "gpus": devices, **fields})
    return make_plan(spec, LLAMA_8B, _data(longest), _card(gib), devices=devices)


@settings(max_examples=60, deadline=None)
@given(devices=st.integers(1, 9), batch=st.integers(1, 64), method=st.sampled_from(["sft", "kto"]))
def test_several_gpus_share_the_batch_that_one_would_have(devices, batch, method):
    if method == "kto" and batch == 1:
        return
    plan = _among(devices, batch_size=batch, method=method)
    assert plan.micro_batch_size * plan.gradient_accumulation_steps == batch
    assert plan.micro_batch_size <= -(-batch // devices) or method == "kto"
    assert plan.gpus == devices
    assert plan.total_steps == _among(1, batch_size=batch, method=method).total_steps


def test_several_gpus_are_explained():
    told = _among(2, batch_size=8).explain()
    assert "2 × NVIDIA test card" in told
    assert "4 rows × 2 accumulated, shared by 2 GPUs" in told
    assert "on each" in told
    assert _among(2, batch_size=8).seconds == pytest.approx(_among(1, batch_size=8).seconds / 2, rel=0.05)
    assert "6 of 8 GPUs have nothing to do" in _among(8, batch_size=2).explain()
    card = DeviceFacts("cuda", "NVIDIA test card", 80 * GIB, 80 * GIB, (9, 0), True, count=4)
    one = make_plan(from_mapping({"data": "rows"}), LLAMA_8B, _data(), card)
    assert "one of 4 GPUs is used: `gpus: all`" in one.explain()


def test_weights_are_parted_where_they_do_not_fit_or_it_is_asked_for():
    tight = _among(2, gib=16, batch_size=2)
    assert tight.weights.shards
    assert "each of 2 keeps a part" in tight.explain()
    assert "frozen weights are parted: all of them would not fit" in tight.explain()
    assert not _among(2, batch_size=2).weights.shards
    assert _among(2, batch_size=2, weights="sharded").weights == Placement(parts=2)
    assert _among(2, batch_size=2, weights="sharded").peak_bytes < _among(2, batch_size=2).peak_bytes
    for wrong in ({"weights": "sharded"}, {"weights": "sharded", "gpus": 2, "adapter": "qlora"}, {"gpus": [0, 0]}):
        with pytest.raises(SpecError):
            from_mapping({"data": "rows", **wrong})


def test_markup_in_a_models_name_is_shown_as_text():
    model = dataclasses.replace(LLAMA_8B, name="<img src=x onerror=alert(1)>")
    shown = make_plan(from_mapping({"data": "rows"}), model, _data(), _card(80))._repr_html_()
    assert "<img" not in shown
    assert "&lt;img src=x" in shown


def test_rows_that_turn_the_angles_of_others_are_kept_apart():
    phi = dataclasses.replace(LLAMA_8B, turns_at=4096)

    def plan(longest, **fields):
        return make_plan(from_mapping({"data": "rows", **fields}), phi, _data(longest), _card(80))

    assert plan(4096, batch_size=4).micro_batch_size == plan(9000, batch_size=4, sequence_len=4096).micro_batch_size > 1
    long = plan(4097, batch_size=4)
    assert (long.micro_batch_size, long.gradient_accumulation_steps) == (1, 4)
    assert any("4,096 tokens changes" in reason and "one row" in reason for reason in long.reasons)
    kept = plan(4097, micro_batch_size=2)
    assert kept.micro_batch_size == 2
    assert any("differ a little" in reason for reason in kept.reasons)
    assert any("differ a little" in reason for reason in plan(4097, method="dpo").reasons)
    with pytest.raises(PlanError, match="rotary angles"):
        plan(4097, packing=True)
    assert not plan(4097, packing="auto").packing
    assert plan(9000, packing=True, sequence_len=4096).packing


def test_what_several_gpus_promise_leaves_out_what_dropout_draws() -> None:
    specs = {p: from_mapping({"data": "rows", "adapter": {"dropout": p}}) for p in (0.0, 0.1)}
    plans = {p: make_plan(spec, LLAMA_8B, _data(), _card(80, (9, 0)), devices=2) for p, spec in specs.items()}
    said = {p: "".join(plan.reasons) for p, plan in plans.items()}
    assert "losses are those of one GPU" in said[0.0]
    assert "but for what dropout draws" in said[0.1]
    assert "but for" not in said[0.0]


def test_what_is_rounded_is_said_of_rounded_weights_alone():
    for adapter, rounded in (("qlora", LLAMA_8B.block_parameters * LLAMA_8B.num_layers), ("lora", 0), ("full", 0)):
        found = _plan(800, adapter=adapter).abilities
        assert found.rounded == rounded
        assert (found.frozen_bytes > 0) == (adapter != "full")


def test_a_limit_is_said_where_there_is_one():
    for cap in (0, 60 * GIB):
        card = dataclasses.replace(_card(80), cap=cap, cap_why="NBTUNE_MEMORY")
        plan = make_plan(from_mapping({"data": "rows"}), LLAMA_8B, _data(), card)
        told = [reason for reason in plan.reasons if "are taken" in reason]
        assert told == ["of memory at most 60.0 GiB are taken: NBTUNE_MEMORY"] * bool(cap)


def test_a_run_goes_on_with_other_devices_by_the_same_plan():
    plan, parted = _among(2, batch_size=8), _among(2, gib=16, batch_size=2)
    for count in (1, 3):
        assert plan.shared_by(count) == plan.model_copy(update={"gpus": count})
    wider = parted.shared_by(4)
    assert (wider.gpus, wider.weights.parts) == (4, 4)
    assert wider.total_steps == parted.total_steps
    with pytest.raises(PlanError, match="parted among 2 devices"):
        parted.shared_by(1)


def test_a_download_is_said_where_there_is_one():
    for size in (0, 5 * GIB):
        plan = make_plan(from_mapping({"data": "rows"}), LLAMA_8B, _data(), _card(80), download_bytes=size)
        assert ("is downloaded first" in str(plan)) == (size > 0)
        assert "for checkpoints" in str(plan)


@pytest.mark.parametrize(("weights", "dtype", "said"), [
    ("auto", "bf16", False), ("auto", "fp32", False), ("16bit", "bf16", False), ("16bit", "fp32", True),
])  # fmt: skip
def test_weights_in_another_format_than_was_asked_for_are_said(weights, dtype, said):
    reasons = _plan(80, weights=weights, dtype=dtype).reasons
    assert any("16-bit weights were asked for" in reason for reason in reasons) == said


def test_a_disk_needs_room_for_a_checkpoint_beside_those_that_stay() -> None:
    """The oldest goes when the newest is whole."""
    asked = (from_mapping({"data": "rows", "steps": 9, "checkpoint": {"keep": keep}}) for keep in (1, 2, 5))
    one, two, five = (make_plan(spec, LLAMA_8B, _data(64, 100), _card(10**6)).disk_bytes for spec in asked)
    each = two - one
    assert five == one + 4 * each
    assert 2 * each < one < 3 * each  # two of them, and the adapter twice
