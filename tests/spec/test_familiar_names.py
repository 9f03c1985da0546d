"""Names that people bring along: taken for ours where they mean the same, answered in a line where not."""

from __future__ import annotations

import re
from typing import Any

import pytest

from nbtune.errors import SpecError
from nbtune.spec import AdapterSpec, RunSpec, from_mapping, from_yaml, to_yaml
from nbtune.spec.learning import WITHOUT
from nbtune.spec.peers_names import ABSENT, ALIASES, INSTEAD, NESTED, VALUES

VALUE: dict[str, Any] = {
    "model": "some/model", "steps": 7, "epochs": 2.0, "micro_batch_size": 2, "gradient_accumulation_steps": 3,
    "batch_size": 6, "learning_rate": 1e-4, "lr_scheduler_type": "cosine", "warmup_ratio": 0.1, "max_grad_norm": 0.5,
    "optim": "adamw_8bit", "sequence_len": 128, "packing": True, "seed": 3, "adapter.r": 8, "adapter.alpha": 32.0,
    "optim_args.beta1": 0.8, "optim_args.beta2": 0.95, "optim_args.eps": 1e-6, "optim_args.lora_b_rate": 16.0,
    "optim_args.embedding_rate": 0.1, "optim_args.in_backward": True, "schedule.warmup_steps": 2, "schedule.floor": 0.1,
    "adapter.dropout": 0.1, "adapter.target_modules": ["q_proj"], "adapter.use_rslora": True, "checkpoint.every": 10,
    "adapter.layers_to_transform": [0], "adapter.rank_pattern": {"q_proj": 4}, "adapter.alpha_pattern": {"q_proj": 4},
    "adapter.init_lora_weights": "gaussian", "adapter.modules_to_save": ["lm_head"],
    "adapter.unfrozen_parameters": ["lm_head"], "adapter.trainable_token_indices": [2],
    "adapter.bias": "all", "adapter.new_tokens": ["<a>"], "adapter.new_special_tokens": ["<b>"],
    "eval.patience": 3, "eval.threshold": 0.01, "eval.load_best": True, "loss.z_loss": 1e-4,
    "neftune_noise_alpha": 5.0,
    "checkpoint.keep": 3, "eval.every": 20, "beta": 0.2, "adapter.type": "dora", "eval.max_rows": 9,
    "loss.type": "robust", "loss.label_smoothing": 0.1, "loss.rpo_alpha": 0.5, "loss.cpo_alpha": 0.5, "loss.gamma": 0.7,
    "loss.desirable_weight": 1.5, "loss.center_rewards": 0.02, "loss.undesirable_weight": 0.5,
}  # fmt: skip
METHOD = {"loss.cpo_alpha": "cpo", "loss.gamma": "simpo", "loss.center_rewards": "reward"}
METHOD |= dict.fromkeys(("beta", "loss.type", "loss.label_smoothing", "loss.rpo_alpha"), "dpo")
METHOD |= dict.fromkeys(("loss.desirable_weight", "loss.undesirable_weight"), "kto")


def body(path: str, **more: Any) -> dict[str, Any]:
    full = {"adapter": "full"} if path == "adapter.unfrozen_parameters" else {}
    return {"data": "rows", "method": METHOD.get(path, "sft"), **full, **more}


def test_there_are_many() -> None:
    assert len(ALIASES) + len(NESTED) + len(INSTEAD) + len(ABSENT) >= 250
    tables = [set(ALIASES), set(INSTEAD), set(ABSENT), set(RunSpec.model_fields)]
    assert sum(map(len, tables)) == len(set().union(*tables))  # each name has one answer


@pytest.mark.parametrize("name", ALIASES)
def test_an_equal_is_taken_and_written_back_in_our_words(name: str) -> None:
    path = ALIASES[name]
    spec = from_yaml(to_yaml(from_mapping(body(path, **{name: VALUE[path]}))))
    assert spec == from_mapping(body(path), {path: VALUE[path]})
    assert spec != from_mapping(body(path))
    assert from_mapping(body(path), {name: VALUE[path]}) == spec
    assert not re.search(rf"^{name}:", to_yaml(spec), flags=re.MULTILINE)


@pytest.mark.parametrize(("part", "name"), NESTED)
def test_an_equal_inside_of_a_part(part: str, name: str) -> None:
    ours = NESTED[part, name]
    value = VALUE[f"{part}.{ours}"]
    spec = from_mapping({"data": "rows", part: {ours: value}})
    assert from_mapping({"data": "rows", part: {name: value}}) == spec
    assert from_mapping({"data": "rows", part: {ours: "other"}}, {f"{part}.{name}": value}) == spec


@pytest.mark.parametrize(("key", "word"), [(key, word) for key, words in VALUES.items() for word in words])
def test_an_equal_value(key: str, word: str) -> None:
    spec = from_mapping({"data": "rows", key: VALUES[key][word]})
    assert from_mapping({"data": "rows", key: word}) == from_mapping({"data": "rows"}, {key: word}) == spec


@pytest.mark.parametrize("name", WITHOUT)
def test_a_value_that_others_have_is_refused_with_its_reason(name: str) -> None:
    with pytest.raises(SpecError, match=f"`optim: {name}` is not there: {re.escape(WITHOUT[name][:20])}") as refused:
        from_yaml(f"data: rows\noptim: {name}\n")
    assert "line 2" in str(refused.value)
    assert refused.value.fix == "write for example `optim: adamw`"


@pytest.mark.parametrize("name", INSTEAD)
def test_what_is_to_be_written_instead_can_be_written(name: str) -> None:
    with pytest.raises(SpecError, match=f"no key `{name}`") as error:
        from_yaml(f"data: rows\n{name}: 1\n")
    assert error.value.place == "line 2 of the cell"
    written = re.fullmatch(r"write `(.*)`", error.value.fix)
    assert written is not None, error.value.fix
    key = written[1].split(":")[0]
    spec = from_yaml(f"{written[1]}\n" if key == "data" else f"data: rows\n{written[1]}\n")
    assert key in to_yaml(spec) or spec == from_yaml("data: rows")  # what is the default may stand there too


@pytest.mark.parametrize("name", ABSENT)
def test_what_is_not_there_is_said_with_its_reason(name: str) -> None:
    with pytest.raises(SpecError, match=f"no key `{name}`") as error:
        from_yaml(f"data: rows\n{name}: 1\n")
    assert error.value.fix == f"leave it out: {ABSENT[name]}"


@pytest.mark.parametrize("key", ["lora_r", "r_lora", "qqq", "max_stpes", "num_train_epoch", "betas"])
def test_a_hint_is_near_or_there_is_none(key: str) -> None:
    if key in ALIASES:
        return
    with pytest.raises(SpecError) as error:
        from_yaml(f"data: rows\n{key}: 1\n")
    meant = {"max_stpes": "max_steps", "num_train_epoch": "num_train_epochs", "betas": "beta"}.get(key)
    assert (f"did you mean `{meant}`" in error.value.fix) if meant else error.value.fix.startswith("known keys")


def test_one_setting_under_two_names_is_refused() -> None:
    for text in (
        "max_steps: 3\nsteps: 4",
        "lora_r: 8\nadapter: {r: 4}",
        "lr: 1\nlearning_rate: 2",
        "adapter: {r: 2, lora_r: 2}",
    ):
        with pytest.raises(SpecError, match="are the same setting"):
            from_yaml(f"data: rows\n{text}\n")
    assert from_yaml("data: rows\nadapter: qlora\nlora_r: 8\n").adapter.model_dump()["r"] == 8
    assert from_yaml("data: rows\nmax_steps: 3\n", {"steps": 4}).steps == 4


def test_what_stands_beside_it_in_a_part_stays() -> None:
    adapter = AdapterSpec(type="qlora", dropout=0.1)
    spec = from_mapping({"data": "rows", "adapter": adapter, "lora_r": 8})
    assert spec == from_mapping({"data": "rows", "adapter": adapter}, {"adapter.r": 8})
    assert (spec.adapter.type, spec.adapter.r, spec.adapter.dropout) == ("qlora", 8, 0.1)


def test_an_error_about_the_value_has_the_line_of_what_was_written() -> None:
    with pytest.raises(SpecError) as error:
        from_yaml("data: rows\nmodel: x\nlora_r: many\n")
    assert error.value.place == "line 3 of the cell"
