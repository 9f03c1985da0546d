"""Each key of a GGUF file that llama.cpp reads is read alike, or refused by its name: llama.cpp is asked."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from nbtune.errors import SpecError
from nbtune.models.gguf_file.configs import config_of
from nbtune.models.gguf_file.header import read_header
from tests.fuzz.gguf import TEXT, Pieces, good
from tests.support.families import GELU_LIMIT
from tests.support.family_cases import CASES
from tests.support.gguf_keys import REAL, WHOLE, Outcome, Probe, same

# What was read otherwise, of a family each.
ONCE = {
    "llama 3, smollm, deepseek distilled": "causal|rope.scaling.type|rope.scaling.attn|rope.scale_linear",
    "gemma 2": "sliding_window|softcapping|finetuned",
    "gemma 3": "sliding_window$|final_logit|freq_base$",
    "phi 3": "sliding_window|rope.scaling.factor",
    "gpt-oss": "scaling.type|pattern|freq_base_swa|original_context",
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
    "apertus": "freq_base",
    "deepseek v3": "attn_factor",
    "olmo": "norm_epsilon",
    "hunyuan dense": "alpha",
    "falcon mamba": "epsilon",
    "lfm 2 moe": "gating|group",
    "minimax m2": "gating|group",
    "phi 3 long": "attn_factor",
    "llama 4": "scaling.type",
    "exaone moe": "expert_used",
}

# What is refused by its name, without a look at llama.cpp.
REFUSED: tuple[tuple[str, str, int, Any], ...] = (
    ("apertus", "rope.freq_base", REAL, 5000.0),
    ("deepseek v3", "rope.scaling.attn_factor", REAL, 0.5),
    ("olmo", "attention.layer_norm_epsilon", REAL, 0.5),
    ("lfm 2 moe", "expert_group_count", WHOLE, 2),
    ("minimax m2", "expert_gating_func", WHOLE, 1),
    ("gpt-oss", "rope.scaling.type", TEXT, b"none"),
    ("gemma 3n", "rope.scaling.factor", REAL, 8.0),
    ("gemma 3", "rope.scaling.type", TEXT, b"yarn"),
)

OFTEN = ("gemma 2", "granite", "mpt", "lfm 2", "hunyuan dense")


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


@pytest.mark.parametrize(("family", "key", "kind", "now"), REFUSED)
def test_a_key_that_cannot_be_read_alike_is_refused_by_its_name(
    family: str, key: str, kind: int, now: Any, tmp_path: Path
) -> None:
    pieces, path = Pieces(good(family)), tmp_path / "said.gguf"
    config_of(read_header(written(pieces, path)))
    arch = next(value.decode() for named, _, value in pieces.keys if named == b"general.architecture")
    name = f"{arch}.{key}".encode()
    pieces.keys = [*(entry for entry in pieces.keys if entry[0] != name), [name, kind, now]]
    with pytest.raises(SpecError, match=re.escape(name.decode())):
        config_of(read_header(written(pieces, path)))


def written(pieces: Pieces, path: Path) -> Path:
    path.write_bytes(pieces.whole())
    return path


@pytest.mark.slow
@pytest.mark.timeout(1800)  # Gemma 3n's MLPs cannot be narrow: two minutes of a processor, the others ten seconds
@pytest.mark.parametrize("family", CASES)
def test_every_key_of_every_family_is_read_alike_or_refused(family: str, cache: Path) -> None:
    assert not [str(outcome) for outcome in wrong(family, cache)]
