"""Answers token by token, and the loss of each token of a text, against transformers itself."""

from __future__ import annotations

import math

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from nbtune import models
from nbtune.errors import TrainError
from nbtune.generate.sampling import CUT, OTHERS, answer, as_bytes, marked_answer, token_losses

PROMPT = "Who are you?"


@pytest.fixture(scope="module")
def tiny():
    where = models.resolve("nbtune/tiny")
    return AutoModelForCausalLM.from_pretrained(where, dtype=torch.float32), models.load_tokenizer("nbtune/tiny")


def reference(model, tokenizer, count):
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": PROMPT}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )["input_ids"]
    with torch.no_grad():
        said = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=count, do_sample=False)
        logits = model(said).logits[0].log_softmax(-1)
    new = said[0, ids.shape[1] :]
    return new, logits[ids.shape[1] - 1 : -1]


def test_a_greedy_answer_is_that_of_transformers_and_each_token_is_told_with_its_probability(tiny):
    model, tokenizer = tiny
    told = []
    said = answer(model, tokenizer, PROMPT, max_new_tokens=12, told=told.append)
    ids, known = reference(model, tokenizer, 12)
    assert [token.id for token in told] == ids.tolist()
    assert said == tokenizer.decode(ids, skip_special_tokens=True).strip()
    assert "".join(token.text for token in told if not token.special).strip() == said
    for token, row in zip(told, known, strict=True):
        assert token.loss == pytest.approx(-float(row[token.id]), abs=1e-4)
        assert token.probability == pytest.approx(math.exp(float(row[token.id])), abs=1e-4)
        likeliest = [i for i in row.topk(OTHERS + 1).indices.tolist() if i != token.id][:OTHERS]
        assert [share for _, share in token.others] == pytest.approx([float(row[i].exp()) for i in likeliest], abs=1e-4)


def test_the_same_seed_draws_the_same_and_leaves_the_training_s_random_state_alone(tiny):
    model, tokenizer = tiny
    before = torch.get_rng_state()
    one, same, other = (
        answer(model, tokenizer, PROMPT, max_new_tokens=16, temperature=1.5, seed=seed) for seed in (1, 1, 2)
    )
    assert one == same != other
    assert torch.equal(torch.get_rng_state(), before)


def test_it_stops_between_two_tokens(tiny):
    told = []
    answer(*tiny, PROMPT, max_new_tokens=50, told=told.append, should_stop=lambda: len(told) >= 3)
    assert len(told) == 3


def test_an_answer_that_is_cut_is_marked_and_one_that_ends_is_not(tiny):
    model, tokenizer = tiny
    whole = answer(model, tokenizer, PROMPT, max_new_tokens=128)
    assert marked_answer(model, tokenizer, PROMPT, max_new_tokens=128) == whole
    begun = answer(model, tokenizer, PROMPT, max_new_tokens=4)
    assert begun != whole
    assert marked_answer(model, tokenizer, PROMPT, max_new_tokens=4) == begun + CUT
    assert marked_answer(model, tokenizer, PROMPT, should_stop=lambda: True).endswith(CUT)


def test_a_character_of_several_tokens_is_told_when_it_is_whole(tiny):
    from nbtune.generate.sampling import _Pieces

    _, tokenizer = tiny
    text = "Ünïcödé 🦜 ahoy, 水!"
    pieces = _Pieces(tokenizer)
    parts = [pieces.token(i, 0.0, []).text for i in tokenizer(text, add_special_tokens=False)["input_ids"]]
    assert "".join(parts) == text
    assert "" in parts
    assert not any("\ufffd" in part for part in parts)


def test_parts_of_characters_are_told_as_their_bytes():
    from tokenizers.pre_tokenizers import ByteLevel

    by_letters = ByteLevel(add_prefix_space=False, use_regex=False)
    seen = set()
    for text in map(chr, (*range(33), *range(127, 2500), 0x6C34, 0x1F99C)):
        ((name, _),) = by_letters.pre_tokenize_str(text)
        assert as_bytes(name) == f"‹{' '.join(f'{byte:02X}' for byte in text.encode())}›"
        seen |= {*text.encode()}
    assert len(seen) > 100
    assert as_bytes("plain") == "plain"


def test_losses_of_a_text_are_the_model_s_own(tiny):
    model, tokenizer = tiny
    ids = tokenizer("Ahoy! I am Captain Tune. " * 40)["input_ids"]
    assert len(ids) > 257  # more than one piece
    losses = token_losses(model, ids)
    assert losses[0] is None
    tokens = torch.tensor([ids])
    with torch.no_grad():
        mean = float(model(tokens, labels=tokens).loss)
    assert sum(losses[1:]) / (len(ids) - 1) == pytest.approx(mean, rel=1e-4)
    assert token_losses(model, ids[:1]) == [None]
    assert token_losses(model, []) == []


def test_the_base_is_asked_without_the_adapter_and_is_not_there_where_all_was_trained(tiny):
    model, tokenizer = tiny
    with pytest.raises(TrainError, match="every weight"):
        answer(model, tokenizer, PROMPT, adapter=False)
    plain = answer(model, tokenizer, PROMPT, max_new_tokens=8)
    tuned = get_peft_model(
        AutoModelForCausalLM.from_pretrained(models.resolve("nbtune/tiny"), dtype=torch.float32),
        LoraConfig(target_modules="all-linear", r=4),
    )
    with torch.no_grad():
        for name, parameter in tuned.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    tuned.train()
    assert answer(tuned, tokenizer, PROMPT, max_new_tokens=8, adapter=False) == plain
    assert answer(tuned, tokenizer, PROMPT, max_new_tokens=8) != plain
    assert tuned.training
