"""A sample of `make fuzz`, and what it found."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from nbtune.errors import NbtuneError
from nbtune.spec import from_yaml
from tests.fuzz import models, rows
from tests.fuzz.__main__ import SHARES, next_of, reached
from tests.fuzz.cases import FINE, KINDS, Case, Silent, trial, verdict_on
from tests.fuzz.models import good
from tests.fuzz.pair_trial import names_of
from tests.fuzz.waiting import OwnTime, starved

MANY = {"specs": 150, "rows": 60, "models": 8, "runs": 3, "trained": 1}


@pytest.mark.parametrize("kind", MANY)
def test_nonsense_is_read_or_refused_in_a_sentence(kind: str, tmp_path: Path) -> None:
    for seed in range(10_000, 10_000 + MANY[kind]):
        folder = tmp_path / str(seed)
        folder.mkdir()
        verdict = trial(kind, seed, folder)
        assert verdict.fine, (kind, seed, verdict)


@pytest.mark.parametrize("text", ["data: rows\nfunctoin: null\n", "data: rows\neval:\n  spilt: null\n"])
def test_a_key_that_is_not_there_is_refused_with_nothing_behind_it_too(text: str) -> None:
    with pytest.raises(NbtuneError, match="there is no key"):
        from_yaml(text)


@pytest.mark.parametrize(
    ("file", "old", "new", "said"),
    [
        ("config.json", '"num_key_value_heads": 2', '"num_key_value_heads": "true"', "num_key_value_heads is 'true'"),
        ("config.json", '"rms_norm_eps": 1e-06', '"rms_norm_eps": "small"', "rms_norm_eps"),
        ("config.json", '"use_cache": true', '"use_cache": [1]', "use_cache"),
        ("tokenizer_config.json", '"eos_token": "<|im_end|>"', '"eos_token": [1]', "tokenizer"),
        (
            "tokenizer_config.json",
            '"model_max_length": 1000000000000000019884624838656',
            '"model_max_length": "long"',
            "tokenizer",
        ),
        ("tokenizer.json", '"version": "1.0"', '"version": [1.0]', "tokenizer"),
    ],
)
def test_a_damaged_file_of_a_model_is_named(file: str, old: str, new: str, said: str, tmp_path: Path) -> None:
    place = tmp_path / "model"
    shutil.copytree(good(), place)
    text = (place / file).read_text()
    assert old in text
    (place / file).write_text(text.replace(old, new))
    with pytest.raises(NbtuneError, match=said) as error:
        models.attempt(place, False)
    assert "a bug in nbtune" not in str(error.value)


def test_a_row_without_the_answer_that_is_judged_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "data.jsonl"
    file.write_text('{"prompt": "What is 2+2?", "label": true}\n{"prompt": "a", "completion": "b", "label": false}\n')
    with pytest.raises(NbtuneError, match="no `completion` that could be judged"):
        rows.attempt(file, "kto", [], {})


def test_the_fuzzer_tells_a_finding_from_a_refusal() -> None:
    def broken() -> None:
        raise KeyError("x")

    assert verdict_on(Case(broken, "x").attempt, "x").outcome == "error"
    assert verdict_on(lambda: from_yaml("steps: 0"), "").outcome == "refused"
    assert verdict_on(lambda: from_yaml("data: rows"), "").outcome == "accepted"


def test_a_hang_is_told_from_a_busy_machine(tmp_path: Path) -> None:
    """A process that stands in a processor's queue does not hang; one that waits for something does."""
    before, later = {"1": 10**9, "2": 0}, {"1": 10**9, "2": 6 * 10**9}
    assert starved(before, later, 8.0) == 6.0  # a thread was ready for six seconds of eight
    assert starved(before, before, 8.0) == 0.0  # nothing was ready: it waited for something
    assert starved(before, {"3": 3 * 10**9}, 2.0) == 2.0  # a new one, whose queue began in between
    for thread, child in ((7, "8 "), (9, "")):
        (tmp_path / "7" / "task" / str(thread)).mkdir(parents=True)
        (tmp_path / "7" / "task" / str(thread) / "schedstat").write_text("5 40 1\n")
        (tmp_path / "7" / "task" / str(thread) / "children").write_text(child)
    (tmp_path / "8" / "task" / "8").mkdir(parents=True)
    (tmp_path / "8" / "task" / "8" / "schedstat").write_text("5 70 1\n")
    (tmp_path / "8" / "task" / "8" / "children").write_text("99 ")  # it has ended
    assert OwnTime(7, tmp_path).stood() == {"7": 40, "9": 40, "8": 70}


def test_every_kind_has_its_share_of_half_an_hour() -> None:
    """One was added without: the whole hunt ended before its first case."""
    given: Counter[str] = Counter()
    for _ in range(sum(SHARES.values()) // 10):
        given[next_of(list(KINDS), given)] += 1
    assert given.keys() == set(KINDS)
    assert max(abs(given[kind] - SHARES[kind] / 10) for kind in KINDS) <= 1, given
    assert reached({"gguf refused": 7, "gguf accepted": 3}) == "gguf 10 of 1,000"


def test_a_hunt_tries_cases_and_says_how_they_ended() -> None:
    asked = [sys.executable, "-m", "tests.fuzz", "--only", "specs,rows", "--seconds", "1"]
    ended = subprocess.run(asked, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended
    assert re.search(r"^tried: (specs|rows) \d+ of ", ended.stdout, re.MULTILINE), ended


def test_what_a_library_prints_is_no_answer_of_the_hunts() -> None:
    """Rust's tokenizers print to the process's own output, past Python: the hunt died of it."""
    asked = json.dumps({"kind": "models", "seed": 5200, "again": False})
    command = [sys.executable, "-m", "tests.fuzz", "--child"]
    root = Path(__file__).parents[2]
    made = subprocess.run(command, input=f"{asked}\n", cwd=root, capture_output=True, text=True, check=True)
    (line,) = made.stdout.splitlines()
    assert json.loads(line)["outcome"] in FINE, made


@pytest.mark.parametrize("asked", [{"mlp_bias": True}, {"num_hidden_layers": 3}, {"model_type": "qwen3"}])
def test_weights_that_are_made_anew_are_found_whoever_forgets_them(
    asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Where loading says nothing of missing weights, the hunt sees them by their numbers."""
    place = tmp_path / "model"
    shutil.copytree(good(), place)
    models.attempt(place, False)
    config = json.loads((place / "config.json").read_text())
    (place / "config.json").write_text(json.dumps(config | asked))
    with pytest.raises(NbtuneError, match="lacks the weight"):
        models.attempt(place, False)
    for room in ("loading", "headers_check"):
        monkeypatch.setattr(f"nbtune.models.{room}.check_loaded", lambda *_: None)
    with pytest.raises(Silent, match="weights are others than the files'"):
        models.attempt(place, False)


def test_a_word_about_one_key_excuses_no_other() -> None:
    assert names_of("decayed", "decay") == {"weight_decay"}
    assert names_of("adamw, moved", "optimizer") == {"optim", "beta1", "beta2", "eps"}
    assert names_of("patterns", "adapter") == {"type", "r", "rank_pattern", "alpha_pattern"}
