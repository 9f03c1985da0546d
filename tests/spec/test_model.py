"""RunSpec's fields carry what the form, the help, the flags and the reference are made from."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

import nbtune
from nbtune.errors import SpecError
from nbtune.spec import AdapterSpec, CheckpointSpec, EvalSpec, RunSpec, SourceSpec, from_mapping

PARTS: list[type[BaseModel]] = [RunSpec, SourceSpec, AdapterSpec, EvalSpec, CheckpointSpec]


def fields() -> Iterator[tuple[type[BaseModel], str, FieldInfo]]:
    for part in PARTS:
        for name, field in part.model_fields.items():
            yield part, name, field


@pytest.mark.parametrize(
    ("part", "name", "field"), list(fields()), ids=lambda value: getattr(value, "__name__", str(value))[:30]
)
def test_a_field_says_what_it_is(part: type[BaseModel], name: str, field: FieldInfo) -> None:
    assert field.title
    assert len(field.title) <= 30
    assert field.description
    assert field.description.endswith(".")
    assert field.examples
    example = field.examples[0]
    others = {} if name == "data" or part is not RunSpec else {"data": "rows"}
    if part is SourceSpec and name != "source":
        others = {"source": "rows"}
    if name == "unfrozen_parameters":
        others["type"] = "full"
    if name in ("beta", "loss"):
        others["method"] = "dpo"
    if name == "teacher":
        others["method"] = "distill"
    if name == "labels":
        others["method"] = "classification"
    if name == "rewards":
        others["method"] = "grpo"
    part.model_validate({name: example, **others})  # an example is one that is taken
    assert part.model_fields[name].json_schema_extra is None or "advanced" in part.model_fields[name].json_schema_extra  # type: ignore[operator]


def test_a_spec_cannot_be_changed_and_takes_no_unknown_key() -> None:
    spec = RunSpec(data="rows")  # type: ignore[arg-type]
    with pytest.raises(ValidationError):
        spec.steps = 3  # type: ignore[misc]
    for part in PARTS:
        assert part.model_config["extra"] == "forbid"
        assert part.model_config["frozen"] is True


def test_a_spec_can_be_compared_and_be_a_key() -> None:
    one, two = (RunSpec(data="rows", steps=3, samples=["a"]) for _ in range(2))  # type: ignore[arg-type]
    assert one == two
    assert one != RunSpec(data="rows", steps=4)  # type: ignore[arg-type]


def test_json_gives_a_spec_back() -> None:
    spec = RunSpec(data=["a", {"source": "b", "weight": 2}], adapter="qlora", eval={"data": "held"})  # type: ignore[arg-type]
    assert RunSpec.model_validate_json(spec.model_dump_json()) == spec


def test_there_is_a_schema_for_editors() -> None:
    schema = TypeAdapter(RunSpec).json_schema()
    assert set(schema["properties"]) == set(RunSpec.model_fields)
    assert schema["required"] == ["data"]
    assert schema["additionalProperties"] is False


def test_alpha_is_the_rank_unless_said() -> None:
    assert AdapterSpec(r=8).lora_alpha == 8.0
    assert AdapterSpec(r=8, alpha=32).lora_alpha == 32.0


def test_a_spec_has_no_place_for_a_token() -> None:
    of_text = {"tokenizer", "trainable_token_indices", "max_new_tokens", "new_tokens", "new_special_tokens"}
    names = {name for _, name, _ in fields()} - of_text
    assert not any(word in name for name in names for word in ("token", "password", "secret", "api_key"))


@pytest.mark.parametrize(
    ("train_on", "words"),
    [
        (["gpt"], "the role `assistant`"),
        (["user", "human"], "the role `user`"),
        (["Assistant"], "the role `assistant`"),
        ([" user"], "the role `user`"),
        (["observation"], "the role `tool`"),
        (["all"], "`train_on: all`"),
        (["answers", "user"], "`train_on: answers`"),
        ([""], "`train_on: answers`"),
    ],
)
def test_a_role_that_no_row_is_read_with_is_refused(train_on: list[str], words: str) -> None:
    with pytest.raises(SpecError, match=words):
        from_mapping({"data": "rows", "train_on": train_on})
    for good in ([], ["user", "assistant"], ["critic"], "all"):
        from_mapping({"data": "rows", "train_on": good})


@pytest.mark.parametrize("ask", [nbtune.plan, nbtune.validate, nbtune.finetune])
def test_a_format_that_the_adapter_overrules_is_refused(ask):
    rows = [{"prompt": "Hi", "completion": "Ahoy!"}]
    for weights in ("fp8", "16bit"):
        with pytest.raises(SpecError, match=f"`weights: {weights}` changes nothing of adapter `qlora`"):
            ask({"adapter": "qlora", "weights": weights, "steps": 1}, data=rows)
    assert nbtune.validate({"adapter": "qlora", "weights": "nf4", "steps": 1}, data=rows).weights == "nf4"


@pytest.mark.parametrize("said", [{"r": 8}, {"alpha": 4}, {"dropout": 0.1}, {"target_modules": ["q_proj"]}])
@pytest.mark.parametrize("ask", [nbtune.plan, nbtune.validate, nbtune.finetune])
def test_what_full_training_would_ignore_is_refused(ask, said):
    rows = [{"prompt": "Hi", "completion": "Ahoy!"}]
    with pytest.raises(SpecError, match="changes nothing of adapter `full`") as refused:
        ask({"adapter": {"type": "full", **said}, "steps": 1}, data=rows)
    assert refused.value.place == f"adapter.{next(iter(said))}"
