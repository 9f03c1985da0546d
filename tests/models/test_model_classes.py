"""Every class of models: what a run says of rows is what stock transformers and peft say of each row by itself.

Accelerated or not, padded or packed: first losses, log-probabilities of answers and LoRA's gradients, for rows within
and beyond every window. Where documents of a pack would see each other, packing is refused.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from nbtune.errors import SpecError
from nbtune.models import model_facts
from nbtune.models.accelerate import apply
from nbtune.models.adapter_targets import adapted_weights, left_out, targets_of
from nbtune.models.adapters import add_adapter
from nbtune.models.experts.stacks import stacked_weights
from nbtune.spec import AdapterSpec
from tests.support.every import every
from tests.support.model_classes import CLASSES, LONG, SHORT, WINDOW, config_of, make
from tests.support.run_alike import Numbers, Rows, Stock, both, rows

LIMIT = 1e-5
SAMPLE = (
    "mistral", "qwen2_moe", "gemma2", "phi", "phimoe", "granite", "cohere", "falcon_h1", "gpt2", "bloom",
)  # fmt: skip
every_class = pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in SAMPLE else pytest.mark.slow) for name in CLASSES]
)


def as_stock(said: Numbers, truth: Numbers, stock: Stock, documents: Rows, what: str) -> None:
    """See that numbers are stock's, or, where stock's own are further from those in fp64, nearer to these than they."""
    error = said.error(truth)
    if max(error.values()) <= LIMIT:
        return
    exact = stock.exactly(documents)
    own, off = truth.error(exact), said.error(exact)
    assert every(off[key] <= max(own[key], LIMIT) for key in off), f"{what}: {error}, of fp64 {off}, stock's {own}"


@every_class
def test_a_run_says_what_stock_says(name: str, tmp_path: Path) -> None:
    row, documents = CLASSES[name], rows([SHORT, LONG, WINDOW + 5])
    ours, stock = both(name, tmp_path)
    truth = stock.alone(documents)
    as_stock((ours.alone if row.by_longest else ours.padded)(documents), truth, stock, documents, "padded")
    trained = {at for at, parameter in ours.model.named_parameters() if parameter.requires_grad}
    assert trained == truth.gradients.keys(), "an adapter that nothing goes through"
    check = ours.check(documents)
    if row.leaks or row.by_longest:
        assert check.holds is False, check.words
        return
    assert check.holds, check.words
    as_stock(ours.packed(documents), truth, stock, documents, "packed")
    assert ours.moved(documents) <= 1e-6


@pytest.mark.parametrize(
    ("name", "drawn"),
    [("seed_oss", {"attention_dropout": 0.5}), ("phimoe", {"router_jitter_noise": 0.5, "input_jitter_noise": 0.5})],
)
def test_what_is_drawn_while_training_does_not_look_like_a_wrong_block(
    name: str, drawn: dict[str, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same numbers are drawn on both sides of a comparison."""
    row = CLASSES[name]
    monkeypatch.setitem(CLASSES, name, dataclasses.replace(row, options={**row.options, **drawn}))
    model = add_adapter(make(name), AdapterSpec(r=4), seed=0)
    assert "head" in apply(model).report.taken


@pytest.mark.parametrize("name", ["qwen3_moe", "granitemoe"])
def test_a_loss_with_the_balance_of_routers_in_it_is_the_models_own_and_the_rest_is_accelerated(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {**CLASSES[name].options, "output_router_logits": True, "router_aux_loss_coef": 0.5}
    monkeypatch.setitem(CLASSES, name, dataclasses.replace(CLASSES[name], options=options))
    model = add_adapter(make(name), AdapterSpec(r=4), seed=0)
    asked = {"input_ids": torch.arange(3, 23)[None], "labels": torch.arange(3, 23)[None]}
    stock = model(**asked)
    report = apply(model).report
    assert "output_router_logits" in report.left["head"]
    assert {"norm", "experts.0", "experts.1"} <= report.taken.keys()
    assert model(**asked).loss.item() == pytest.approx(stock.loss.item(), rel=1e-6)
    assert stock.aux_loss.item() > 0


def test_facts_of_a_config_file_are_what_its_class_says(tmp_path: Path) -> None:
    for name in CLASSES:
        config = config_of(name)
        config.save_pretrained(tmp_path)
        facts = model_facts(str(tmp_path))
        assert facts.num_layers == config.num_hidden_layers, name
        assert facts.hidden_size == config.hidden_size, name
        heads = getattr(
            config, "num_attention_heads", getattr(config, "num_heads", 1)
        )  # a state-space model may have none
        assert facts.num_heads == heads, name
        assert (facts.turns_at is not None) == CLASSES[name].by_longest, name


def test_an_adapter_goes_onto_linear_layers_that_run_and_never_onto_a_router() -> None:
    """What is left out is said with a reason; short names match nothing else."""
    said: dict[str, set[str]] = {}
    for name in ("llama", "qwen3_moe", "llama4_text", "mamba", "deepseek_v3", "zamba2", "gemma3n_text", *SAMPLE):
        model = make(name)
        odd, stacks = left_out(model, AdapterSpec()), set(stacked_weights(model))
        weights = set(adapted_weights(model, targets_of(model, AdapterSpec())))
        assert stacks <= weights, name
        names = {at.removesuffix(".weight") for at in weights - stacks}
        linear = {
            at for at, m in model.named_modules() if isinstance(m, torch.nn.Linear) or type(m).__name__ == "Conv1D"
        }
        head = {at for at, m in model.named_modules() if m is model.get_output_embeddings()}
        assert names == linear - head - odd.keys(), name
        assert not any("router" in at or at.endswith((".gate", ".wg")) for at in names), name
        said[name] = {f"{at.rsplit('.', 1)[-1]}: {why}" for at, why in odd.items()}
    assert said["llama"] == said["qwen3_moe"] == set()
    assert said["phimoe"] == said["llama4_text"] == {"router: it chooses among experts"}
    assert {at.split(":")[0] for at in said["mamba"]} == {"x_proj", "dt_proj", "out_proj"}
    assert said["deepseek_v3"] == set()  # its dense layers, called as experts once were, are adapted by their weights


@pytest.mark.parametrize(
    ("name", "wanted", "why"),
    [("phimoe", "router", "chooses among experts"), ("mamba", "dt_proj", "past an adapter")],
)
def test_a_layer_that_must_not_have_an_adapter_is_refused_by_name(name: str, wanted: str, why: str) -> None:
    with pytest.raises(SpecError, match=why) as caught:
        targets_of(make(name), AdapterSpec(target_modules=("in_proj" if name == "mamba" else "q_proj", wanted)))
    assert f"`{wanted}`" in str(caught.value)
    assert "all-linear" in str(caught.value.fix)
