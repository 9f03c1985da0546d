"""Weights that live in the host's memory: the same losses, gradients and words, whichever layers stay on the device."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from nbtune.models.accelerate import apply
from nbtune.models.accelerate.activation_offload import ActivationOffload
from nbtune.models.accelerate.cpu_offload import Place, StreamedGroup, Traffic
from nbtune.models.cuda_graph_step import TrainStep
from nbtune.models.memory_estimate import MEMORY_POLICIES
from nbtune.spec import AdapterSpec, Placement
from tests.models.test_accelerate import SIZES, assert_equal, batch, loss_and_gradients, make

LAYERS = 5
CPU = torch.device("cpu")


@pytest.fixture
def deeper(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SIZES, "num_hidden_layers", LAYERS)


def streamed(family: str, policy: Any, resident: int) -> tuple[Any, Any]:
    model = make(family)
    return model, apply(model, policy, weights=Placement(resident=resident), device=CPU)


@pytest.mark.usefixtures("deeper")
@pytest.mark.parametrize(
    ("policy", "resident"),
    [
        *((policy, 0) for policy in MEMORY_POLICIES),
        *(
            pytest.param(policy, resident, marks=[] if policy == often else pytest.mark.slow)
            for resident, often in ((2, "selective"), (5, "recompute"))
            for policy in MEMORY_POLICIES
        ),
    ],
)
def test_the_same_step_after_step(policy: Any, resident: int) -> None:
    batches = [batch(seed=s, length=n) for s, n in ((5, 13), (6, 9), (7, 11))]
    stock = make("qwen2")
    model, patch = streamed("qwen2", policy, resident)
    groups = [g for layer in patch.layers for g in layer.groups()]
    assert sum(isinstance(g, StreamedGroup) for g in groups) == 4 * (LAYERS - resident)
    for b in batches:  # what comes next is known from the second step on
        assert_equal(loss_and_gradients(model, b), loss_and_gradients(stock, b), 2e-5)


@pytest.mark.usefixtures("deeper")
@pytest.mark.parametrize("policy", MEMORY_POLICIES)
def test_a_weight_travels_once_for_each_pass(policy: Any) -> None:
    model, patch = streamed("llama", policy, 0)
    for _ in range(3):
        loss_and_gradients(model, batch())
    before = patch.traffic.sent
    loss_and_gradients(model, batch())
    # four matrices a layer, forth and back; the two layers at either turn are still there
    assert patch.traffic.sent - before == 4 * (2 * LAYERS - 4)


@pytest.mark.usefixtures("deeper")
@pytest.mark.parametrize("resident", [0, 2])
def test_a_step_that_was_broken_off_leaves_the_places_it_had(resident: int) -> None:
    """Others beside them would be twice the memory, and memory is what was short."""
    model, patch = streamed("llama", "recompute", resident)
    wanted = loss_and_gradients(model, batch())
    groups = [g for layer in patch.layers for g in layer.groups() if isinstance(g, StreamedGroup)]
    places = [g.place for g in groups]  # held, so that no other tensor lies where these do
    patch.reset("recompute")
    assert_equal(loss_and_gradients(model, batch()), wanted, 0)
    assert {id(g.place) for g in groups} <= {id(place) for place in places}


@pytest.mark.usefixtures("deeper")
def test_words_between_steps() -> None:
    ids = batch()["input_ids"]
    stock = make("llama")
    model, patch = streamed("llama", "recompute", 1)
    for _ in range(2):
        assert_equal(loss_and_gradients(model, batch()), loss_and_gradients(stock, batch()), 2e-5)
        with torch.no_grad():
            said = [m.eval().generate(ids, max_new_tokens=5, do_sample=False) for m in (model, stock)]
        assert torch.equal(*said)
        model.train(), stock.train()
    patch.remove()
    assert_equal(loss_and_gradients(model, batch()), loss_and_gradients(stock, batch()), 1e-6)


@pytest.mark.usefixtures("deeper")
def test_its_own_step_and_what_it_does_not_cover() -> None:
    model, patch = streamed("llama", "keep", 0)
    step = TrainStep(model, patch)
    first = float(step.accumulate(batch()))
    step.update(1e-2)
    assert float(step.accumulate(batch())) < first
    with pytest.raises(RuntimeError, match="host's memory"):
        model(**batch(), output_attentions=True)


def test_trained_weights_do_not_travel() -> None:
    model = make("llama", AdapterSpec(type="full"))
    report = apply(model, weights=Placement(resident=0), device=CPU).report
    assert report.left["layers.0"] == "weights that are trained do not travel"


@pytest.mark.usefixtures("deeper")
def test_rows_of_the_embedding_wait_in_the_hosts_memory() -> None:
    stock, (model, patch) = make("llama"), streamed("llama", "keep", LAYERS)
    table = model.get_input_embeddings()
    rows = stock.get_input_embeddings().weight.detach()
    assert "embedding" in patch.report.taken
    assert patch.traffic is None  # no layer travels; the host still fetches rows here, as where no memory is pinned
    assert patch.waits
    assert table.weight.shape == rows.shape
    assert table.weight.isnan().all()  # a stand-in, which nobody can mistake for the rows
    assert table.weight.untyped_storage().nbytes() <= 16
    ids = batch()["input_ids"]
    assert torch.equal(table(ids), rows[ids])
    assert_equal(loss_and_gradients(model, batch()), loss_and_gradients(stock, batch()), 2e-5)
    patch.remove()
    assert torch.equal(table.weight, rows)


def test_a_head_that_is_the_embedding_stays() -> None:
    model = make("gemma")
    assert "embedding" not in apply(model, weights=Placement(resident=0), device=CPU).report.taken
    assert not model.get_input_embeddings().weight.isnan().any()


def test_a_copy_waits_for_the_work_with_its_place_alone() -> None:
    traffic = Traffic(CPU)
    marks: list[Any] = [object() for _ in range(4)]
    traffic._marks.extend(enumerate(marks, start=6))  # loads 6 to 9, each with what was launched before it
    place = Place(torch.empty(0))
    assert traffic._free_since(place) is None  # new memory: what was launched until now may be at work with it
    place.used = 5  # the load after it may still be worked beside; the one after that may not
    assert traffic._free_since(place) is marks[1]
    place.used = 1  # longer ago than is remembered: the first that is known to be late enough
    assert traffic._free_since(place) is marks[0]


class Noted(ActivationOffload):
    """What is parked stays where it is, and is counted."""

    def __init__(self) -> None:
        self.sent = 0

    def park(self, x: torch.Tensor) -> Any:
        self.sent += self.wanted
        return x

    def fetch(self, ticket: Any) -> torch.Tensor:
        return ticket


def test_an_evaluation_parks_nothing() -> None:
    """Nobody would fetch it: each evaluation took the host memory of a whole micro-batch's inputs, and pinned it."""
    model = make("llama")
    patch = apply(model, "offload")
    noted = Noted()
    for layer in patch.layers:
        layer.offload = noted
    with torch.no_grad():
        model(**batch())
    assert noted.sent == 0
    loss_and_gradients(model, batch())
    assert noted.sent == len(patch.layers)
