"""What a tuned model's generation_config.json says of the ends of its answers, beside what its base's says."""

from __future__ import annotations

from typing import Any

import pytest

from nbtune import models
from nbtune.data.tokenize.terminators import end_ids, ends_of, with_ends


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return models.load_tokenizer("nbtune/tiny")


def test_the_bases_own_ends_stay_and_come_first(tokenizer: Any) -> None:
    trained = list(ends_of(tokenizer).stops)
    own = [max(trained) + 7, max(trained) + 3]
    assert end_ids(own, tokenizer) == [*own, *trained]
    for given, ends in ((own, own), (own[0], own[:1]), (None, [])):
        made = with_ends({"eos_token_id": given, "top_p": 0.9}, {}, tokenizer)
        assert made == {"eos_token_id": [*ends, *trained], "top_p": 0.9}


def test_a_base_that_stops_there_is_left_alone(tokenizer: Any) -> None:
    trained = list(ends_of(tokenizer).stops)
    for own in (trained, trained[::-1], trained[0] if len(trained) == 1 else trained):
        assert with_ends({"eos_token_id": own}, {}, tokenizer) is None
    assert with_ends(None, {"eos_token_id": trained}, tokenizer) is None


@pytest.mark.parametrize("inner", [False, True])
def test_without_a_file_of_its_own_a_base_stops_as_its_config_says(tokenizer: Any, inner: bool) -> None:
    """Of a model that also sees or hears the language model's config has the ids."""
    trained = list(ends_of(tokenizer).stops)
    ids = {"bos_token_id": 1, "eos_token_id": max(trained) + 7, "pad_token_id": 0}
    config = {"text_config": ids} if inner else ids
    assert with_ends(None, config, tokenizer) == ids | {"eos_token_id": [ids["eos_token_id"], *trained]}


def test_a_file_that_was_made_of_a_config_says_so_no_more(tokenizer: Any) -> None:
    """transformers makes such a file anew, and would forget the ends."""
    made = with_ends({"_from_model_config": True, "eos_token_id": 1, "max_length": 20}, {}, tokenizer)
    assert made == {"eos_token_id": [1, *ends_of(tokenizer).stops], "max_length": 20}
