"""`train_spans`: texts that are trained or not, whatever `train_on` says. Expectations are written out by hand."""

from __future__ import annotations

import pytest

from nbtune import data, models
from nbtune.data.formats.messages import Chat
from nbtune.data.formats.reader import Parts
from nbtune.data.prepare.recipe import READ
from nbtune.data.template.chat_template import ChatTemplate
from nbtune.data.tokenize.encoder import Encoder
from nbtune.errors import SpecError
from nbtune.spec import SpanRule, from_mapping, from_yaml, to_yaml

TALK = [
    {"role": "user", "content": "Say Ahoy to Zoë."},
    {"role": "assistant", "content": "Ahoy! Hello Zoë 🦜, ahoy."},
]


@pytest.fixture(scope="module")
def tokenizer():
    return models.load_tokenizer("nbtune/tiny")


def trained(tokenizer, rules, row=None, **options):
    """The trained text of a row: runs of trained tokens, as a list."""
    row = row or Chat(TALK)
    template = ChatTemplate(tokenizer) if isinstance(row, Chat) else None
    encoder = Encoder(tokenizer, template, rules=[SpanRule.model_validate(rule) for rule in rules], **options)
    ids, mask = encoder.encode([row])[0]
    runs, before = [], False
    for number, on in zip(ids.tolist(), mask.tolist(), strict=True):
        if on:
            runs += [[]] if not before else []
            runs[-1].append(number)
        before = on
    return [tokenizer.decode(run) for run in runs]


def test_a_text_is_taken_out_of_what_is_trained(tokenizer):
    assert trained(tokenizer, []) == ["Ahoy! Hello Zoë 🦜, ahoy.<|im_end|>"]
    assert trained(tokenizer, [{"match": " Hello Zoë", "train": False}]) == ["Ahoy!", " 🦜, ahoy.<|im_end|>"]


def test_every_token_that_the_text_touches_counts(tokenizer):
    """The tokenizer puts the blank before a word into its token."""
    assert trained(tokenizer, [{"match": "Hello", "train": False}]) == ["Ahoy!", " Zoë 🦜, ahoy.<|im_end|>"]
    assert trained(tokenizer, [{"match": "🦜", "train": False}])[0].startswith("Ahoy! Hello Zoë")


def test_a_text_outside_of_the_answers_is_trained_wherever_it_stands(tokenizer):
    assert trained(tokenizer, [{"match": "Say", "train": True}])[0] == "Say"
    with_header = [{"match": "assistant\n", "train": True}]
    assert trained(tokenizer, with_header) == ["assistant\nAhoy! Hello Zoë 🦜, ahoy.<|im_end|>"]


def test_the_last_rule_that_matches_counts(tokenizer):
    rules = [{"match": "Ahoy! Hello", "train": False}, {"match": "Ahoy", "train": True}]
    assert [run[:4] for run in trained(tokenizer, rules)] == [" Aho", "Ahoy", " Zoë"]  # the user's Ahoy, too


def test_a_regular_expression_and_signs_that_are_none(tokenizer):
    regex = {"match": r"[Aa]hoy[!.]?", "regex": True, "train": False}
    assert trained(tokenizer, [regex]) == [" Hello Zoë 🦜,", "<|im_end|>"]
    assert trained(tokenizer, [{"match": "ahoy.", "train": False}]) == ["Ahoy! Hello Zoë 🦜,", "<|im_end|>"]
    assert trained(tokenizer, [{"match": ".*", "train": False}]) == trained(tokenizer, [])


def test_the_end_of_a_turn_can_be_named(tokenizer):
    assert trained(tokenizer, [{"match": "<|im_end|>", "train": False}]) == ["Ahoy! Hello Zoë 🦜, ahoy."]


def test_plain_text_has_spans_too(tokenizer):
    row = Parts((("A secret: 1234. The end.", True),), ends=False)
    assert trained(tokenizer, [{"match": r"\d+", "regex": True, "train": False}], row) == ["A secret: ", ". The end."]


def test_words_of_tokens_are_found_again(tokenizer):
    encoder = Encoder(tokenizer, ChatTemplate(tokenizer))
    job = encoder.render([Chat(TALK)])[0]
    ids = encoder.encode([Chat(TALK)])[0][0].tolist()
    for first in range(len(ids)):
        for last in (first + 1, min(len(ids), first + 3)):
            said = tokenizer.decode(ids[first:last])
            found = encoder.text_of(job, first, last)
            assert found == said or "\ufffd" in said
    assert encoder.text_of(job, 0, len(ids)) == job.text


def test_a_run_learns_by_the_rule_and_its_cache_knows_it(tokenizer):
    rows = [{"prompt": "Hi", "completion": f"Ahoy! It is {k}."} for k in range(8)]
    found = {}
    for rules in ([], [{"match": "Ahoy!", "train": False}]):
        spec = from_mapping({"data": "var:rows", "train_spans": rules, "eval": {"split": 0}})
        sources = data.resolve(spec.data, {"rows": rows})
        prepared = data.prepare_data(sources, tokenizer, spec=spec, max_len=256, seed=1)
        example = prepared.train[0]
        found[len(rules)] = tokenizer.decode(
            [i for i, on in zip(example.input_ids, example.labels, strict=True) if on != -100]
        )
    assert found[0] == "Ahoy! It is 0.<|im_end|>"
    assert found[1] == " It is 0.<|im_end|>"
    assert "train_spans" in READ


def test_a_spec_says_it_in_yaml_and_refuses_what_is_no_rule():
    spec = from_yaml('data: rows\ntrain_spans:\n- {match: "a: b\\n\\"c\\"", train: false}\n')
    assert spec.train_spans == (SpanRule(match='a: b\n"c"', train=False),)
    assert from_yaml(to_yaml(spec)) == spec
    with pytest.raises(SpecError, match="no regular expression"):
        from_mapping({"data": "rows", "train_spans": [{"match": "(", "regex": True, "train": False}]})
    with pytest.raises(SpecError):
        from_mapping({"data": "rows", "train_spans": [{"match": "x"}]})
