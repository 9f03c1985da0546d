"""An unset learning rate follows the model's width, what is trained and how; one that is written stays as it is."""

import dataclasses
import html

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbtune.folder_format import plan_body
from nbtune.methods import METHODS
from nbtune.planner import Plan, make_plan
from nbtune.planner.learning_rate import with_its_rate
from nbtune.spec import from_mapping
from tests.planner.test_planner import LLAMA_8B, _card, _data
from tests.support.every import some


def _needed(method="sft"):
    """What a method's spec must say."""
    return {"teacher": "nbtune/tiny"} if METHODS[method].teacher else {}


def _plan(hidden=4096, architecture="LlamaForCausalLM", **fields):
    model = dataclasses.replace(LLAMA_8B, hidden_size=hidden, architecture=architecture)
    spec = from_mapping({"data": "rows", "steps": 1200, **_needed(fields.get("method", "sft")), **fields})
    return make_plan(spec, model, _data(64), _card(10**6))


@pytest.mark.parametrize(
    ("hidden", "rate"), [(256, 2.5e-3), (576, 1.3e-3), (2048, 4.9e-4), (4096, 2.9e-4), (8192, 1.7e-4)]
)
def test_what_is_known_of_llama_like_models(hidden, rate):
    plan = _plan(hidden)
    assert plan.learning_rate == rate
    assert f"2000 / {hidden}" in plan.learning_rate_reason


@pytest.mark.parametrize("architecture", ["Qwen2ForCausalLM", "Qwen3ForCausalLM", "Qwen3MoeForCausalLM"])
def test_qwen_models_of_any_width_want_nearly_the_same(architecture):
    assert _plan(896, architecture).learning_rate == 5.3e-4
    assert _plan(5120, architecture).learning_rate == 4.6e-4


@given(hidden=st.integers(1, 100_000), more=st.integers(1, 100_000), method=st.sampled_from(list(METHODS)))
def test_a_wider_model_never_gets_a_higher_rate_and_a_narrow_one_none_without_bound(hidden, more, method):
    rates = [_plan(width, method=method).learning_rate for width in (hidden, hidden + more)]
    assert 0 < rates[1] <= rates[0] <= 2.5e-3


def test_lion_gets_less() -> None:
    plan = _plan(4096, optim="lion_8bit")
    assert plan.learning_rate == pytest.approx(_plan(4096).learning_rate / 5, rel=0.05)
    assert "Lion" in plan.learning_rate_reason


@pytest.mark.parametrize("hidden", [256, 2048, 4096])
def test_full_training_gets_a_tenth_and_preferences_less_than_answers(hidden):
    lora = _plan(hidden).learning_rate
    full, kinds = _plan(hidden, adapter="full"), [_plan(hidden, adapter=a).learning_rate for a in ("qlora", "dora")]
    assert kinds == [lora, lora]
    assert full.learning_rate == pytest.approx(lora / 10, rel=0.05)
    assert "every weight" in full.learning_rate_reason
    for method in some(name for name, each in METHODS.items() if each.learning_rate_share != 1):
        plan = _plan(hidden, method=method)
        assert plan.learning_rate == pytest.approx(lora / (4 if method in ("orpo", "grpo", "rloo") else 10), rel=0.05)
        assert ("rewards" if METHODS[method].online else "preferences") in plan.learning_rate_reason


@given(rate=st.floats(1e-12, 10), method=st.sampled_from(list(METHODS)))
def test_a_written_rate_is_taken_as_it_stands(rate, method):
    plan = _plan(method=method, learning_rate=rate)
    assert (plan.learning_rate, plan.learning_rate_reason) == (rate, "as asked")


@given(hidden=st.integers(1, 20_000), steps=st.integers(1, 4000), more=st.integers(1, 4000))
def test_a_shorter_run_of_an_adapter_learns_more_of_each_step_within_bounds(hidden, steps, more):
    short, long, whole = (_plan(hidden, steps=count) for count in (steps, steps + more, 1200))
    assert whole.learning_rate <= max(long.learning_rate, whole.learning_rate) <= short.learning_rate
    rounded = 1.05  # at most: rates have two digits, and both are rounded
    assert short.learning_rate <= min(4.3 * rounded**2 * whole.learning_rate, 0.01)
    assert ("steps are few" in short.learning_rate_reason) == (steps < 1200)
    for other in ({"adapter": "full"}, {"method": "dpo"}):
        assert _plan(hidden, steps=steps, **other).learning_rate == _plan(hidden, **other).learning_rate


def test_short_runs_have_the_rates_that_were_measured_and_wide_models_stay_careful():
    assert [_plan(256, steps=steps).learning_rate for steps in (48, 57, 80, 150)] == [0.01, 0.01, 9.6e-3, 7e-3]
    assert [_plan(576, steps=steps).learning_rate for steps in (12, 24, 57, 150)] == [5.7e-3, 5.7e-3, 5.7e-3, 3.7e-3]
    of_long = {hidden: _plan(hidden).learning_rate for hidden in (768, 1024, 2048, 8192)}
    times = {hidden: round(_plan(hidden, steps=24).learning_rate / rate, 1) for hidden, rate in of_long.items()}
    assert times == {768: 2.4, 1024: 1.5, 2048: 1.5, 8192: 1.5}


def test_text_page_and_file_say_the_rate_with_its_reason():
    plan = _plan(2048)
    said = f"0.00049: {plan.learning_rate_reason}"
    assert said in plan.explain()
    assert html.escape(said) in plan._repr_html_()
    assert plan.learning_rate_reason in plan.model_dump_json()


@given(hidden=st.integers(1, 20_000), method=st.sampled_from(list(METHODS)), rate=st.none() | st.floats(1e-9, 1))
def test_a_plan_of_today_changes_nothing_in_the_spec_that_repeats_it(hidden, method, rate):
    spec = from_mapping({"data": "rows", "method": method, "learning_rate": rate, **_needed(method)})
    assert with_its_rate(spec, _plan(hidden, method=method, learning_rate=rate)) == spec


@pytest.mark.parametrize("fields", [{}, {"adapter": "full"}, {"method": "dpo"}, {"method": "orpo", "adapter": "full"}])
def test_a_plan_of_before_the_rule_is_read_and_repeated_with_the_rate_it_had(fields):
    before = (2e-5 if fields.get("adapter") == "full" else 2e-4) / (4 if "method" in fields else 1)
    body = _plan(**fields).model_dump(mode="json", exclude={"hidden_size", "learning_rate_reason"})
    plan = Plan.model_validate({**plan_body(body, 1), "learning_rate": before})
    assert f"{before:g}" in plan.explain()
    spec = from_mapping({"data": "rows", **fields})
    assert with_its_rate(spec, plan) == spec.model_copy(update={"learning_rate": before})
