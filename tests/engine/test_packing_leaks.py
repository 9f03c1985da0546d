"""Packed runs of families that keep documents apart, and of those that do not: these are refused before step 1."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest

import nbtune
from nbtune import events
from nbtune.errors import PlanError
from tests.support.tiny_models import save_speaking

SIZES = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1,
}  # fmt: skip
APART: dict[str, dict[str, Any]] = {
    "llama": {},
    "qwen2": {},
    "gemma2": {"head_dim": 16, "query_pre_attn_scalar": 16, "sliding_window": 16},
}
OURS_APART = {"bloom": {"n_head": 4, "n_layer": 2}}  # accelerated blocks keep apart what the stock ones do not
LEAK: dict[str, dict[str, Any]] = {
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 16, "sliding_window": 16},
    "bamba": {
        "attn_layer_indices": [1], "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1,
        "mamba_chunk_size": 16,
    },
}  # fmt: skip
ROWS = [{"prompt": f"What is {a} plus {b}?", "completion": f"It is {a + b}."} for a in range(5) for b in range(4)]
PAIRS = [{"prompt": r["prompt"], "chosen": r["completion"], "rejected": "I do not know."} for r in ROWS]


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A tiny random model of a family, as transformers saves it."""

    @cache
    def find(family: str) -> Path:
        options = (APART | OURS_APART | LEAK)[family]
        return save_speaking(family, tmp_path_factory.mktemp(family), **{**SIZES, **options})

    return find


@pytest.fixture
def train(folder_of: Any, tmp_path: Path) -> Any:
    """A packed run of two steps."""

    def begin(family: str, rows: list[dict[str, Any]] = ROWS, **fields: Any) -> Any:
        spec = {"model": str(folder_of(family)), "data": "rows", "steps": 2, "batch_size": 2, "device": "cpu"}
        spec |= {"packing": True, "sequence_len": 96, "eval": {"split": 0}, "learning_rate": 1e-3, **fields}
        return nbtune.finetune(spec, name=family, rows={"rows": rows}, runs_dir=tmp_path / "runs")

    return begin


def said_of(run: Any, kind: type[Any]) -> list[Any]:
    return [event for event in run.events() if isinstance(event, kind)]


WAYS: dict[str, dict[str, Any]] = {
    "accelerated": {"dtype": "fp32"},
    "stock": {"dtype": "fp32", "accelerate": False},
    "bf16": {"dtype": "bf16"},
    "bf16-stock": {"dtype": "bf16", "accelerate": False},
    "dpo": {"dtype": "fp32", "method": "dpo", "rows": PAIRS},
    "orpo": {"dtype": "bf16", "method": "orpo", "rows": PAIRS},
}


OFTEN = [
    ("llama", "accelerated"),
    ("llama", "dpo"),
    ("qwen2", "bf16"),
    ("qwen2", "orpo"),
    ("gemma2", "stock"),
    ("gemma2", "bf16-stock"),
]


@pytest.mark.parametrize(
    ("family", "way"),
    [
        pytest.param(family, way, marks=[] if (family, way) in OFTEN else pytest.mark.slow)
        for family in APART
        for way in WAYS
    ],
)
def test_families_that_keep_documents_apart_train(train: Any, family: str, way: str) -> None:
    run = train(family, **WAYS[way]).wait()
    (found,) = said_of(run, events.Check)
    assert found.passed, found.detail
    assert run.state == "finished"
    assert run.plan.packing
    assert run.plan.abilities.packing.holds


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("family", LEAK)
def test_packs_of_a_family_that_leaks_are_refused(train: Any, family: str, way: str) -> None:
    run = train(family, **WAYS[way])
    with pytest.raises(PlanError, match=r"(?is)does not keep the rows of a pack apart.*leave `packing` out"):
        run.wait()
    assert not said_of(run, events.Step)


@pytest.mark.parametrize("way", ["accelerated", "stock"])
@pytest.mark.parametrize("family", OURS_APART)
def test_whose_blocks_run_decides(train: Any, family: str, way: str) -> None:
    run = train(family, **WAYS[way])
    if way == "accelerated":
        assert run.wait().state == "finished"
        return
    with pytest.raises(PlanError, match="does not keep the rows of a pack apart"):
        run.wait()


@pytest.mark.parametrize("way", ["bf16", "stock"])
@pytest.mark.parametrize("family", LEAK)
def test_the_loaded_model_is_asked_too(train: Any, family: str, way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the plan could not tell, the first pack does, before step 1."""
    from nbtune.engine import abilities
    from nbtune.models.abilities import Claim

    monkeypatch.setattr(abilities, "_tried", lambda *_, **__: ((), Claim(words="not tried")))
    run = train(family, **WAYS[way])
    with pytest.raises(PlanError, match=r"(?is)does not keep the rows of a pack apart.*leave `packing` out"):
        run.wait()
    (found,) = said_of(run, events.Check)
    assert not found.passed
    assert not said_of(run, events.Step)


def test_auto_packs_where_that_is_safe_and_says_where_it_is_not(train: Any) -> None:
    safe = train("llama", packing="auto", dtype="fp32").wait()
    assert safe.plan.packing
    assert any("one sequence, which is safe" in reason for reason in safe.plan.reasons)
    other = train("bloom", packing="auto", dtype="fp32", accelerate=False).wait()
    assert other.state == "finished"
    assert not other.plan.packing
    assert any("rows are not packed: Bloom" in reason for reason in other.plan.reasons)
