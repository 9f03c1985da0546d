"""A tokenizer as llama.cpp gets it: special ids, BOS, the token that ends a turn, the template; and what is refused."""

from __future__ import annotations

from pathlib import Path

import jinja2
import pytest
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors

from nbtune.errors import ExportError
from nbtune.export.gguf.vocabulary import BYTE, CONTROL, UNUSED, USER_DEFINED, read_vocabulary, vocabulary_of
from tests.data.making import tokenizer as making
from tests.support.tiny_models import CHATML, byte_level, save_tokenizer, sentencepiece_like


def test_types_ids_and_the_end_of_a_turn(tmp_path: Path) -> None:
    tokenizer = save_tokenizer(byte_level(), tmp_path, bos="<|begin|>", eos="<|end_of_text|>", add_bos=True)
    found = read_vocabulary(tmp_path, len(tokenizer) + 2)
    ids = {text: i for i, text in enumerate(found.tokens)}
    assert found.model == "gpt2"
    assert found.pre == "gpt-2"
    assert found.add_bos
    assert not found.add_eos
    assert found.ids["bos"] == ids["<|begin|>"]
    assert found.ids["eos"] == ids["<|end_of_text|>"]
    assert found.ids["eot"] == ids["<|im_end|>"]  # what the chat template writes after an answer
    assert found.types[ids["<|im_start|>"]] == CONTROL
    assert found.types[ids["<tool_call>"]] == USER_DEFINED
    assert found.types[-2:] == [UNUSED, UNUSED]
    assert found.template == CHATML


@pytest.mark.parametrize("around", ["$A", "<s> $A", "$A </s>", "<s> $A </s>", "<pad> $A"])
def test_what_a_tokenizer_puts_around_a_text_is_told(around: str) -> None:
    """Another token than the beginning or the end is none of these, and llama.cpp puts none there."""
    fast = making(CHATML, add_bos=False)
    before = fast.backend_tokenizer.post_processor
    named = [(token, fast.convert_tokens_to_ids(token)) for token in ("<s>", "</s>", "<pad>")]
    try:
        fast.backend_tokenizer.post_processor = processors.TemplateProcessing(single=around, special_tokens=named)
        found = vocabulary_of(fast, len(fast), "here")
    finally:
        fast.backend_tokenizer.post_processor = before
    assert (found.add_bos, found.add_eos) == (around.startswith("<s>"), around.endswith("</s>"))
    assert [found.ids[kind] for kind in ("bos", "eos", "pad")] == [number for _, number in named]


def test_marks_that_only_transformers_knows_leave_the_template(tmp_path: Path) -> None:
    marked = "{% for m in messages %}{%- generation -%}{{ m['content'] }}{%- endgeneration -%}{% endfor %}"
    save_tokenizer(byte_level(), tmp_path, template=marked)
    template = read_vocabulary(tmp_path, 600).template
    assert template is not None
    assert "generation" not in template
    chat = [{"role": "user", "content": " a "}, {"role": "assistant", "content": "b\n"}]
    assert jinja2.Template(template).render(messages=chat) == " a b\n"


def test_sentencepiece_like(tmp_path: Path) -> None:
    save_tokenizer(sentencepiece_like(prefix=True), tmp_path, bos="<s>", eos="</s>", add_bos=True)
    found = read_vocabulary(tmp_path, 700)
    assert found.model == "llama"
    assert found.pre is None
    assert found.space_prefix is True
    assert found.types[found.tokens.index("<0x41>")] == BYTE
    assert found.add_bos


@pytest.mark.parametrize("twice", [False, True])
def test_an_order_of_merges_that_scores_cannot_hold_is_refused(twice: bool, tmp_path: Path) -> None:
    """`the` made by t+he first and by th+e last: with one score for it, th+e comes before e+r in "there"."""
    tokens = [
        "<unk>",
        "<s>",
        "</s>",
        *(f"<0x{i:02X}>" for i in range(256)),
        "▁",
        "t",
        "h",
        "e",
        "r",
        "th",
        "er",
        "the",
        "he",
    ]
    merges = [("t", "h"), ("e", "r"), ("th", "e"), ("h", "e")]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={token: i for i, token in enumerate(tokens)},
            merges=[("t", "he"), *merges] if twice else merges,
            byte_fallback=True,
            unk_token="<unk>",
        )
    )
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    save_tokenizer(tokenizer, tmp_path, bos="<s>", eos="</s>")
    if twice:
        with pytest.raises(ExportError, match="as other tokens than this tokenizer does"):
            read_vocabulary(tmp_path, 300)
    else:
        assert read_vocabulary(tmp_path, 300).model == "llama"


@pytest.mark.parametrize("kind", ["WordPiece", "Unigram", "lowercase", "no bytes"])
def test_what_llama_cpp_cannot_do_is_refused(kind: str, tmp_path: Path) -> None:
    vocab = {"<unk>": 0, "a": 1, "b": 2, "ab": 3}
    if kind == "WordPiece":
        tokenizer = Tokenizer(models.WordPiece(vocab, unk_token="<unk>"))
    elif kind == "Unigram":
        tokenizer = Tokenizer(models.Unigram([("<unk>", 0.0), ("a", -1.0), ("ab", -1.5)], unk_id=0))
    elif kind == "lowercase":
        tokenizer = byte_level()
        tokenizer.normalizer = normalizers.Lowercase()
    else:
        tokenizer = Tokenizer(models.BPE(vocab, [("a", "b")], unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens([AddedToken("<unk>", special=True)])
    save_tokenizer(tokenizer, tmp_path)
    with pytest.raises(ExportError):
        read_vocabulary(tmp_path, 700)


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(tmp_path: Path) -> None:
    save_tokenizer(byte_level(), tmp_path)
    with pytest.raises(ExportError, match="only 400 embeddings"):
        read_vocabulary(tmp_path, 400)


def test_every_end_of_an_answer_has_a_key_of_llama_cpp(tmp_path: Path) -> None:
    turns = "{% for m in messages %}[{{ m.role }}]{{ m.content }}<turn>{% endfor %}"
    tokens = byte_level()
    tokens.add_tokens([AddedToken("<turn>", special=False, normalized=False)])
    with_eos = save_tokenizer(tokens, tmp_path / "a", eos="<|end_of_text|>", template=turns)
    found = read_vocabulary(tmp_path / "a", len(with_eos))
    assert found.ids["eot"] == found.tokens.index("<turn>")  # no special token, and trained all the same
    without = save_tokenizer(tokens, tmp_path / "b", template=turns)
    without.eos_token = None
    found = vocabulary_of(without, len(without), "b")
    assert found.ids["eos"] == found.tokens.index("<turn>")
    assert "eot" not in found.ids
