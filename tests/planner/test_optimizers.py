"""What an optimizer needs is planned, and what is not to be had here is said before anything is loaded."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

import nbtune
from nbtune.errors import PlanError
from nbtune.planner import Plan, make_plan
from nbtune.planner.idle import idle
from nbtune.spec import from_mapping
from nbtune.spec.learning import OPTIMIZERS
from tests.planner.test_planner import LLAMA_8B, _card, _data


def planned(kind: str = "cuda", **fields: Any) -> Plan:
    device = dataclasses.replace(_card(200), kind=kind, capability=(9, 0))
    return make_plan(from_mapping({"data": "rows", "steps": 3, **fields}), LLAMA_8B, _data(), device)


def test_state_is_as_large_as_the_optimizer_keeps() -> None:
    found = {name: planned(optim=name).memory.optimizer / planned().trainable_parameters for name in OPTIMIZERS}
    assert found["adamw"] == 8
    assert found["lion"] == 4
    assert found["muon"] == 4
    assert found["adamw_8bit"] == pytest.approx(2.03, abs=0.01)
    assert found["lion_8bit"] == pytest.approx(1.02, abs=0.01)
    assert found["adafactor"] == 4 / 16  # r = 16
    assert planned(optim="lion").disk_bytes < planned().disk_bytes


@pytest.mark.parametrize("name", [name for name, kind in OPTIMIZERS.items() if kind.paged])
def test_paged_state_needs_a_card(name: str) -> None:
    assert planned(optim=name).total_steps == 3
    with pytest.raises(PlanError, match="moves its state out of a GPU") as error:
        planned("cpu", optim=name)
    assert planned("cpu", optim=error.value.fix.split("`")[1].removeprefix("optim: ")).total_steps == 3


def test_bitsandbytes_does_not_run_on_apple() -> None:
    with pytest.raises(PlanError, match="Apple"):
        planned("mps", optim="adamw_8bit")


@pytest.mark.parametrize(
    ("adapter", "rate"), [("full", "lora_b_rate"), ("lora", "embedding_rate"), ("lora", "head_rate")]
)
def test_a_rate_of_what_is_not_trained_is_refused(adapter: str, rate: str) -> None:
    with pytest.raises(PlanError, match=f"`{rate}` changes nothing"):
        planned(adapter=adapter, optim_args={rate: 2})


OF_A_LORA = ("lora_b", "matrix")


@pytest.mark.parametrize(
    ("adapter", "kinds", "optim_args", "why"),
    [
        ("full", ("matrix", "other"), {"head_rate": 2}, "does not train the head"),
        ("full", ("head", "matrix"), {"embedding_rate": 2}, "trains no embeddings"),
        ({"modules_to_save": ["norm"]}, (*OF_A_LORA, "other"), {"head_rate": 2}, "does not train the head"),
        ({"modules_to_save": ["lm_head"]}, (*OF_A_LORA, "head"), {"embedding_rate": 2}, "trains no embeddings"),
        ("ia3", ("other",), {"lora_b_rate": 16}, "has no LoRA"),
        ("lora", (*OF_A_LORA, "head"), {"head_rate": 2}, ""),  # of a reward model; of new tokens
        ({"modules_to_save": ["lm_head"]}, (*OF_A_LORA, "head"), {"head_rate": 2, "lora_b_rate": 16}, ""),
    ],
)
def test_a_rate_is_for_what_is_trained_as_it_was_counted(
    adapter: Any, kinds: tuple[str, ...], optim_args: dict[str, float], why: str
) -> None:
    def plan() -> Plan:
        spec = from_mapping({"data": "rows", "steps": 3, "adapter": adapter, "optim_args": optim_args})
        return make_plan(spec, dataclasses.replace(LLAMA_8B, kinds=kinds), _data(), _card(200))

    if not why:
        assert plan().total_steps == 3
        return
    with pytest.raises(PlanError, match=why):
        plan()


@pytest.mark.parametrize(("kinds", "fits"), [(("other",), False), (("embedding", "head"), False), (OF_A_LORA, True)])
def test_muon_without_a_matrix_is_refused(kinds: tuple[str, ...], fits: bool) -> None:
    spec, model = (
        from_mapping({"data": "rows", "steps": 3, "optim": "muon"}),
        dataclasses.replace(LLAMA_8B, kinds=kinds),
    )
    if fits:
        assert make_plan(spec, model, _data(), _card(200)).total_steps == 3
        return
    with pytest.raises(PlanError, match="is for matrices of the blocks, and none is trained"):
        make_plan(spec, model, _data(), _card(200))


@pytest.mark.parametrize(
    ("told", "says"),
    [
        ({"threshold": 0.1}, "`eval.threshold` does nothing"),
        ({"max_new_tokens": 9}, "`eval.max_new_tokens` does nothing"),
        ({"threshold": 0.1, "patience": 2}, ""),
        ({"max_new_tokens": 9, "metrics": ["rouge"]}, ""),
    ],
)
def test_numbers_of_an_evaluation_that_nothing_reads_are_said(told: dict[str, Any], says: str) -> None:
    reasons = planned(eval={"split": 0.5, **told}).reasons
    assert [reason for reason in reasons if "does nothing" in reason and says and says in reason] or not says
    assert says or not any("does nothing" in reason for reason in reasons)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"lr_scheduler_type": "polynomial"}, ["`lr_scheduler_type: polynomial`"]),
        ({"lr_scheduler_type": "polynomial", "schedule": {"power": 2}}, []),
        ({"lr_scheduler_type": "cosine_with_restarts", "schedule": {"cycles": 1}}, ["`lr_scheduler_type: cosine_"]),
        ({"lr_scheduler_type": "cosine_with_restarts", "schedule": {"cycles": 2}}, []),
        ({"method": "dpo", "loss": "robust"}, ["`loss.type: robust`"]),
        ({"method": "dpo", "loss": {"type": "robust", "label_smoothing": 0.1}}, []),
        (
            {"method": "distill", "teacher": "a/b", "loss": {"alpha": 1, "temperature": 2}},
            ["`teacher`", "`loss.temper"],
        ),
        ({"method": "distill", "teacher": "a/b", "loss": {"alpha": 0.9, "temperature": 2}}, []),
        ({"start_from": "demo", "adapter": {"init_lora_weights": "gaussian"}}, ["`init_lora_weights: gaussian`"]),
        ({"start_from": "demo", "adapter": {"init_lora_weights": "pissa"}}, []),
        ({"adapter": {"init_lora_weights": "gaussian"}}, []),
        ({"mix": {"temperature": 2, "stop": "once"}}, ["`mix.temperature`", "`mix.stop`"]),
        ({"mix": {"by": "times"}, "data": [{"source": "rows", "weight": 2}]}, []),
        ({"data": [{"source": "rows", "weight": 2}]}, ["`data.weight`"]),
        ({"data": [{"source": "rows", "weight": 2}, "more"], "mix": {"by": "tokens"}}, []),
        ({"order": "in_turn"}, ["`order: in_turn`"]),
        ({"order": "in_turn", "data": ["rows", "more"]}, []),
        ({"eval": {"every": 5, "max_rows": 9, "split": 0}}, ["`eval.every`", "`eval.max_rows`"]),
        ({"optim": "muon", "optim_args": {"beta1": 0.8, "eps": 1e-6}}, ["`optim_args.beta1`", "`optim_args.eps`"]),
        ({"optim": "muon", "optim_args": {"momentum": 0.8}}, []),
        ({"train_on": "all", "terminators": "none"}, ["`terminators`"]),
        ({"train_on": "last_answer", "terminators": "none"}, []),
        ({"method": "grpo", "rewards": "f", "train_on": "all"}, ["`train_on`"]),
        ({"method": "grpo", "rewards": "f", "terminators": "none", "eval": {"every": 1}}, ["`eval.every`", "`term"]),
    ],
)
def test_what_is_written_and_changes_nothing_is_said(fields: dict[str, Any], says: list[str]) -> None:
    spec = from_mapping({"data": "rows", "steps": 3, **fields})
    told = idle(spec, ("lora_b", "matrix"), held=spec.eval.split != 0)
    assert len(told) == len(says), told
    for said, start in zip(told, says, strict=True):
        assert said.startswith(start)
        assert " does nothing" in said
    assert not idle(from_mapping({"data": "rows"}), ("lora_b", "matrix"))


@pytest.mark.parametrize(
    "fields", [{"thinking": "drop"}, {"terminators": "none"}, {"train_on": "last_answer"}, {"train_on": ["user"]}]
)
def test_what_is_of_conversations_is_said_to_do_nothing_beside_texts(fields: dict[str, Any]) -> None:
    asked = {"data": "rows", "steps": 1, "model": "nbtune/tiny", "device": "cpu", **fields}
    (key,) = fields
    for rows, idle_here in (([{"text": "It was so."}] * 4, True), ([{"prompt": "Hi", "completion": "Aye"}] * 4, False)):
        reasons = nbtune.plan(asked, rows={"rows": rows}).reasons
        assert (f"`{key}` does nothing: no row is a conversation" in reasons) == idle_here


@pytest.mark.parametrize(
    ("data", "idle_here"),
    [
        ([{"text": "It was so."}], True),
        ([{"source": "rows", "template": "{{ text }}"}], True),
        ([{"source": "rows", "template": "{{ text }}{% generation %}Aye{% endgeneration %}"}], False),
        ([{"prompt": "Hi", "completion": "Aye"}], False),
    ],
)
def test_all_of_a_text_is_trained_whatever_is_asked(data: Any, idle_here: bool) -> None:
    rows, source = ([{"text": "It was so."}] * 4, data) if "source" in data[0] else (data * 4, "rows")
    asked = {"data": source, "steps": 1, "model": "nbtune/tiny", "device": "cpu", "train_on": "all"}
    said = "`train_on: all` does nothing: all of a text is trained"
    assert (said in nbtune.plan(asked, rows={"rows": rows}).reasons) == idle_here


@pytest.mark.parametrize(
    ("adapter", "idle_here"),
    [
        ({"type": "full", "unfrozen_parameters": [r".*norm"]}, True),
        ({"type": "full", "unfrozen_parameters": [r".*norm", r"model\.layers\.0\.mlp\.up_proj"]}, False),
        ({"type": "ia3"}, False),
        ({"type": "lora"}, False),
    ],
)
def test_weight_decay_of_norms_alone_is_said_to_do_nothing(adapter: dict[str, Any], idle_here: bool) -> None:
    asked = {"data": "rows", "steps": 1, "model": "nbtune/tiny", "device": "cpu", "adapter": adapter}
    rows = {"rows": [{"prompt": "Hi", "completion": "Aye"}] * 4}
    for decay in (0.1, 0.0):
        said = any(
            one.startswith("`weight_decay` does nothing")
            for one in nbtune.plan(asked, rows=rows, weight_decay=decay).reasons
        )
        assert said == (idle_here and decay > 0)


def test_betas_of_muon_are_of_what_is_no_matrix() -> None:
    spec = from_mapping({"data": "rows", "optim": "muon", "optim_args": {"beta2": 0.9}})
    assert not idle(spec, ("lora_b", "matrix", "embedding"))
    assert not idle(spec)


def test_a_warm_up_that_lasts_as_long_as_the_run_is_refused_also_where_epochs_say_how_long() -> None:
    rows = _data().rows
    asked = {"steps": None, "epochs": 1, "batch_size": 8}
    assert planned(schedule={"warmup_steps": 1}, **asked).total_steps == -(-rows // 8)
    with pytest.raises(PlanError, match="a warm-up of 100,000 steps does not end within this run"):
        planned(schedule={"warmup_steps": 100_000}, **asked)


@pytest.mark.parametrize("schedule", ["constant", "range_test", "constant_with_warmup", "cosine"])
def test_a_warm_up_that_a_schedule_has_not_is_said_and_where_there_is_one(schedule: str) -> None:
    said = [one for one in planned(warmup_ratio=0.2, lr_scheduler_type=schedule).reasons if "does nothing" in one]
    assert len(said) == (schedule in ("constant", "range_test"))
    assert any("`constant_with_warmup` has one" in one for one in said) == (schedule == "constant")
    assert [one for one in planned(lr_scheduler_type=schedule).reasons if "does nothing" in one] == []


@pytest.mark.parametrize(("part", "adapter"), [
    ("embedding_rate", {"trainable_token_indices": [3]}), ("embedding_rate", {"modules_to_save": ["embed_tokens"]}),
    ("head_rate", {"modules_to_save": ["lm_head"]}), ("lora_b_rate", {"r": 4}),
])  # fmt: skip
def test_a_rate_is_taken_where_its_part_is_trained(part: str, adapter: dict[str, Any]) -> None:
    """Of a model whose weights nobody has counted."""
    told = {"optim_args": {part: 2.0}}
    assert planned(adapter={"type": "lora", **adapter}, **told).total_steps == 3
    without = {"type": "full"} if part == "lora_b_rate" else {"type": "lora"}
    with pytest.raises(PlanError, match=f"`{part}` changes nothing"):
        planned(adapter=without, **told)
