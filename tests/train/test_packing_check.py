"""Leaks are told from rounding: also where each pass rounds otherwise, as a GPU does when experts get other tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import transformers

from nbtune.data.batching.collate import pack
from nbtune.data.prepare.dataset import Builder
from nbtune.models.abilities import Claim
from nbtune.models.trial import Trial
from nbtune.train import packing_check
from nbtune.train.packing_check import packs_are_kept_apart, small_packs_are_kept_apart

SIZES = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4, "head_dim": 16,
    "num_key_value_heads": 2, "vocab_size": 300, "max_position_embeddings": 512, "bos_token_id": None,
    "eos_token_id": None, "pad_token_id": None,
}  # fmt: skip
EXPERTS = {"num_experts_per_tok": 2, "num_local_experts": 8}
APART = {
    "LlamaConfig": {},
    "MixtralConfig": EXPERTS,
    "Qwen3MoeConfig": {"num_experts": 32, "num_experts_per_tok": 4, "moe_intermediate_size": 32},
    "Gemma2Config": {"query_pre_attn_scalar": 16, "sliding_window": 16},
}
LEAK: dict[str, dict[str, Any]] = {
    "BloomConfig": {"n_head": 4, "n_layer": 4},
    "GptOssConfig": {**EXPERTS, "sliding_window": 16},
}
EPS = {torch.bfloat16: 2**-8, torch.float16: 2**-11, torch.float32: 2**-23}


def asked(kind: str, options: dict[str, Any], dtype: torch.dtype, *, rounding: float, seed: int) -> Claim:
    """Ask a random model whose products are off by other numbers in each pass: so many times the dtype's rounding."""
    torch.manual_seed(seed)
    config = getattr(transformers, kind)(**{**SIZES, **options})
    model = transformers.AutoModelForCausalLM.from_config(config).to(dtype)
    generator = torch.Generator().manual_seed(seed)

    def off(_module: Any, _inputs: Any, output: Any) -> Any:
        if not isinstance(output, torch.Tensor):
            return output
        return output * (1 + rounding * EPS[dtype] * torch.randn(output.shape, generator=generator).to(output.dtype))

    for module in model.modules():
        if rounding and (isinstance(module, torch.nn.Linear) or "Experts" in type(module).__name__):
            module.register_forward_hook(off)
    return small_packs_are_kept_apart(Trial(model))


@pytest.mark.parametrize("rounding", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("dtype", EPS, ids=str)
@pytest.mark.parametrize("family", APART)
def test_rounding_is_not_taken_for_a_leak(family: str, dtype: torch.dtype, rounding: float) -> None:
    found = asked(family, APART[family], dtype, rounding=rounding, seed=1)
    assert found.holds is not False, found.words
    if rounding < 1:
        assert found.holds, found.words


@pytest.mark.parametrize("rounding", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("dtype", EPS, ids=str)
@pytest.mark.parametrize("family", LEAK)
def test_a_leak_is_not_taken_for_rounding(family: str, dtype: torch.dtype, rounding: float) -> None:
    """It is refused; where rounding is nearly as large as what a leak moves, nothing is claimed."""
    found = asked(family, LEAK[family], dtype, rounding=rounding, seed=0)
    assert not found.holds, found.words
    if dtype == torch.float32 or rounding == 0:
        assert found.holds is False, found.words


@pytest.mark.parametrize("fused", [False, True], ids=["by tokens", "by answers"])
@pytest.mark.parametrize("targets", [["query_key_value"], ["query_key_value", "lm_head"]])
def test_the_model_is_asked_as_a_run_asks_it(targets: list[str], fused: bool) -> None:
    """Bloom's own forward hands on nothing of a pack: with its layers accelerated, and an adapter on its head, what
    the decoder says by itself is not what the run's loss is made of."""
    from nbtune.models.accelerate import apply
    from nbtune.models.adapters import add_adapter
    from nbtune.spec import AdapterSpec

    torch.manual_seed(0)
    config = transformers.BloomConfig(**{**SIZES, **LEAK["BloomConfig"], "tie_word_embeddings": False})
    made: Any = add_adapter(
        transformers.AutoModelForCausalLM.from_config(config), AdapterSpec(target_modules=targets), seed=0
    )
    patch = apply(made)
    assert "layers.0" in patch.report.taken
    own_head = "lm_head" not in targets
    assert ("head" in patch.report.taken) == own_head
    found = small_packs_are_kept_apart(Trial(made, patch), fused=fused or own_head)
    assert found.holds is own_head, found.words


@pytest.mark.parametrize(("family", "apart"), [("LlamaConfig", True), ("BloomConfig", False)])
def test_of_long_packs_no_more_is_looked_at_than_a_plan_has_room_for(
    family: str, apart: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing_check, "_TOKENS", 96)
    torch.manual_seed(0)
    config = getattr(transformers, family)(**{**SIZES, **LEAK.get(family, {})})
    model = transformers.AutoModelForCausalLM.from_config(config)
    seen: list[int] = []
    model.register_forward_pre_hook(lambda _m, _a, told: seen.append(told["input_ids"].shape[1]), with_kwargs=True)
    chance, builder = np.random.default_rng(0), Builder(["rows"])
    for number, length in enumerate((400, 90, 17)):
        builder.add(chance.integers(1, 300, length).astype(np.int32), np.ones(length, bool), 0, number)
    rows = builder.build()
    batch = pack(rows, [[0, 1], [2]], 496)
    found = packs_are_kept_apart(model, rows, batch, device=torch.device("cpu"))
    assert max(seen) <= 96
    assert found.holds is apart, found.words
