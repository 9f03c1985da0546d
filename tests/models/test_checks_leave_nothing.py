"""What is tried on a loaded model leaves nothing: weights, buffers, settings and random states are as without it."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from nbtune.models import build
from nbtune.spec import AdapterSpec
from nbtune.spec.placement import Placement
from tests.support.every import every
from tests.support.model_classes import CLASSES, config_of, save

MODES = ("training", "layers_are_rescaled")  # a run says in which it is
SOME = ("llama, tied", "qwen2, windows", "gemma2", "mixtral", "qwen3_next", "falcon, alibi", "gpt2")


def random_states() -> list[Any]:
    return [torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())]


def left(model: Any) -> tuple[dict[str, torch.Tensor], dict[Any, Any], str]:
    """Tensors, plain settings of modules, and the config."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    plain = {
        (name, key): value
        for name, module in model.named_modules()
        for key, value in vars(module).items()
        if isinstance(value, int | float | str | None) and key not in MODES
    }
    assert every(parameter.grad is None for parameter in model.parameters())
    return tensors, plain, repr(model.config)


def compare(folder: Path | str, **options: Any) -> None:
    built = []
    for accelerate in (True, False):
        before = random_states()
        how: dict[str, Any] = {"dtype": torch.float32, "device": "cpu", "seed": 3, "tokenizer": False, **options}
        model = build(str(folder), adapter=AdapterSpec(r=4, dropout=0.1), accelerate=accelerate, **how).model
        assert random_states() == before
        built.append(left(model))
    (tried, plain, config), (stock, others, its) = built
    assert (plain, config) == (others, its)
    assert [name for name in stock if not torch.equal(tried[name], stock[name])] == []
    assert set(tried) == set(stock)


@pytest.mark.parametrize("name", SOME)
def test_a_model_that_was_tried_is_the_one_that_was_loaded(name: str, tmp_path: Path) -> None:
    compare(save(name, tmp_path / "model"))


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted({*CLASSES} - {*SOME}))
def test_any_model_that_was_tried_is_the_one_that_was_loaded(name: str, tmp_path: Path) -> None:
    compare(save(name, tmp_path / "model"))


def test_one_in_4_bits_is_as_it_was_rounded() -> None:
    compare("nbtune/tiny", weights=Placement(format="nf4"))


def test_weights_are_not_rescaled_where_answers_are_given(tmp_path: Path) -> None:
    """RWKV's own code divides some for evaluations: a LoRA beside them would count twice, and they would be saved."""
    config = config_of("rwkv")
    config.num_hidden_layers, config.rescale_every = 4, 2
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    how: dict[str, Any] = {"dtype": torch.float32, "device": "cpu", "tokenizer": False}
    model = build(str(tmp_path), adapter=AdapterSpec(r=4), **how).model
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    ids = torch.randint(3, 90, (2, 12))
    losses = [model.train(training)(input_ids=ids, labels=ids).loss.item() for training in (True, False, True)]
    assert losses[1:] == pytest.approx(losses[:1] * 2, rel=1e-6)
