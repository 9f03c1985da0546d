"""How often rows are seen where nobody says: three times, few rows as often as an adapter needs to learn of them."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nbtune.methods import METHODS
from nbtune.planner import make_plan
from nbtune.planner.run_length import epochs_of
from nbtune.spec import from_mapping
from tests.planner.test_planner import LLAMA_8B, _card, _data

IMITATING = [name for name, method in METHODS.items() if method.by_tokens and method.learning_rate_share == 1]


def _spec(method="sft", **fields):
    teacher = {"teacher": "nbtune/tiny"} if METHODS[method].teacher else {}
    return from_mapping({"data": "rows", "method": method, **teacher, **fields})


@pytest.mark.parametrize(("hidden", "few"), [(1, 48), (256, 48), (384, 64 / 3), (512, 12), (576, 12), (8192, 12)])
@given(per_epoch=st.integers(1, 10_000), method=st.sampled_from(IMITATING))
def test_few_rows_make_so_many_steps_in_twelve_passes_at_most_and_many_rows_have_three(hidden, few, per_epoch, method):
    epochs = epochs_of(_spec(method), per_epoch, hidden)
    assert 3 <= epochs <= 12
    assert epochs == int(epochs)
    assert epochs == 12 or epochs * per_epoch >= few
    assert epochs == 3 or (epochs - 1) * per_epoch < few


@given(per_epoch=st.integers(1, 10_000), epochs=st.floats(0.01, 100), method=st.sampled_from(list(METHODS)))
def test_what_is_asked_for_is_done_and_other_methods_have_three_passes(per_epoch, epochs, method):
    assert epochs_of(_spec(method, epochs=epochs), per_epoch, 256) == epochs
    if method not in IMITATING:
        assert epochs_of(_spec(method), per_epoch, 256) == 3


@pytest.mark.parametrize("method", IMITATING)
def test_few_rows_are_no_reason_to_see_them_oftener_where_every_weight_learns(method):
    for per_epoch in (1, 2, 5, 100):
        assert epochs_of(_spec(method, adapter="full"), per_epoch, 256) == 3
    assert epochs_of(_spec(method), 1, 256) == 12


@pytest.mark.parametrize(
    ("rows", "steps", "said"),
    [(16, 12, "6 epochs, since the rows are few"), (32, 12, "3 epochs"), (1000, 375, "3 epochs")],
)
def test_the_plan_counts_and_says_them(rows, steps, said):
    plan = make_plan(_spec(), LLAMA_8B, _data(64, rows), _card(10**6))
    assert plan.total_steps == steps == math.ceil(rows / 8) * int(said.split()[0])
    assert f"neither steps nor epochs were given: {said}" in plan.reasons


def test_a_part_of_a_step_is_a_step():
    for epochs, steps in ((1, 3), (1.5, 5), (0.1, 1), (2, 6)):
        assert make_plan(_spec(epochs=epochs), LLAMA_8B, _data(64, 24), _card(10**6)).total_steps == steps
