"""Each key of a GGUF file that llama.cpp reads is read alike, or refused by its name: llama.cpp is asked."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.fuzz.gguf import good
from tests.support.families import GELU_LIMIT
from tests.support.family_cases import CASES
from tests.support.gguf_keys import Outcome, Probe, same

# What was read otherwise, of a family each.
ONCE = {
    "llama 3, smollm, deepseek distilled": "causal|rope.scaling.type|rope.scaling.attn|rope.scale_linear",
    "gemma 2": "sliding_window|softcapping|finetuned",
    "gemma 3": "sliding_window$|final_logit",
    "phi 3": "sliding_window|rope.scaling.factor",
    "gpt-oss": "pattern|freq_base_swa|original_context",
    "deepseek v2": "gating|expert_weights_norm|expert_weights_scale|scale_linear|rms_epsilon",
    "granite": "attention.scale|embedding_scale|logit_scale|residual_scale|finetuned|deepstack",
    "ministral 3": "yarn|temperature|original_context",
    "cohere 2": "pattern|logit_scale",
    "glm 4": "sections",
    "olmo 2": "sliding_window$",
    "mpt": "alibi",
    "lfm 2": "sliding_window",
    "dots 1": "gating",
    "nemotron 3": "weights_norm",
}

OFTEN = ("gemma 2", "granite", "mpt", "lfm 2")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("NBTUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("GGML_NO_BACKTRACE", "1")  # which takes a second a crash
    return tmp_path


def wrong(family: str, folder: Path, keys: str = "") -> Iterator[Outcome]:
    """Whatever is read otherwise than by llama.cpp, or refused without the key's name."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with Probe(family, good(family), folder, 2 * GELU_LIMIT * CASES[family].times) as probe:
            yield from (outcome for outcome in probe.all(lambda key: bool(re.search(keys, key))) if not same(outcome))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize(
    "family", [name if name in OFTEN else pytest.param(name, marks=pytest.mark.slow) for name in ONCE]
)
def test_what_was_read_otherwise_once_is_read_alike_or_refused(family: str, cache: Path) -> None:
    assert not [str(outcome) for outcome in wrong(family, cache, ONCE[family])]


@pytest.mark.slow
@pytest.mark.parametrize("family", CASES)
def test_every_key_of_every_family_is_read_alike_or_refused(family: str, cache: Path) -> None:
    assert not [str(outcome) for outcome in wrong(family, cache)]
