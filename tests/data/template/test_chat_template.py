"""Conformance: text, tokens and masks of well-known chat templates, against transformers and TRL's training twins."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator
from typing import Any

import jinja2
import pytest

from nbtune.data.formats.messages import Chat
from nbtune.data.template.chat_template import ChatTemplate
from nbtune.data.tokenize.encoder import Encoder
from nbtune.data.tokenize.terminators import ends_of
from nbtune.errors import DataError
from tests.data.making import CHATML, RECREATED, TOOLS, conversation, templates, tokenizer

NAMES = sorted(templates())
TWINS = [name for name in NAMES if f"{name}_training" in templates()]
# GLM writes no terminator behind the last answer (the next turn's header stops the model): it is appended.
APPENDED = {"glm4moe", "glm4moe_training"}


@pytest.fixture(autouse=True)
def _quiet() -> None:
    logging.getLogger("transformers").setLevel(logging.ERROR)


def _cases(
    template: ChatTemplate, count: int, seed: int, plain: bool = False
) -> Iterator[tuple[list[Any], list[Any], Any, str]]:
    """Conversations that transformers renders too: (ours, theirs, tools, text); `plain`: without thoughts, tools."""
    rng = random.Random(seed)
    made = 0
    for k in range(count * 6):
        tools = TOOLS if k % 3 == 2 and not plain else None
        thinking = k % 2 == 1 and not plain
        messages = conversation(rng, system=k % 4 != 0, tools=tools is not None, thinking=thinking)
        theirs: list[Any] = messages
        if template.turns.as_parts:
            theirs = [{**m, "content": [{"type": "text", "text": m["content"]}]} for m in messages]
        try:
            text = template.tokenizer.apply_chat_template(theirs, tools=tools, tokenize=False)
        except (jinja2.TemplateError, TypeError):
            continue
        yield messages, theirs, tools, text
        made += 1
        if made == count:
            return


def _check(name: str, kind: str, count: int, seed: int) -> None:
    fast = tokenizer(templates()[name], kind)
    template = ChatTemplate(fast)
    encoder = Encoder(fast, template)
    cases = list(_cases(template, count, seed))
    assert len(cases) == count
    for messages, theirs, tools, text in cases:
        rendered = template.render(messages, tools)
        assert rendered.text == text + template.turns.appended
        result = encoder.encode([Chat(messages, tools)])[0]
        if any(what in ("message", "calls") for _, what in rendered.left_out):  # OLMo's knows no system prompt
            assert isinstance(result, DataError)
            continue
        assert not isinstance(result, DataError)
        ids, trained = result
        options = {"tools": tools, "return_dict": True, "return_assistant_tokens_mask": template.has_marks}
        expected = fast.apply_chat_template(theirs, **options)
        assert ids[: len(expected["input_ids"])].tolist() == expected["input_ids"]
        assert trained.any()
        if not template.has_marks or name in APPENDED:
            continue
        theirs_trained = expected["assistant_masks"]
        offsets = fast(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        end = fast.convert_tokens_to_ids("<|im_end|>") if name == "chatml-marked" else None
        for i in range(1, len(ids)):
            # transformers leaves out all but the first token of a stretch's last character
            same_character = offsets[i] == offsets[i - 1]
            # the terminator behind a mark is trained here
            terminator = ids[i] == end
            if theirs_trained[i - 1] and (same_character or terminator):
                theirs_trained[i] = 1
        assert trained.astype(int).tolist() == theirs_trained


@pytest.mark.parametrize("name", NAMES)
def test_tokens_and_masks_are_those_of_transformers(name: str) -> None:
    _check(name, "bytes", 5, seed=1)


@pytest.mark.parametrize("name", ["llama2", "mistral", "zephyr", "gemma_training", "phi3_training", "vicuna"])
@pytest.mark.parametrize("kind", ["llama", "gemma"])
def test_tokens_and_masks_with_sentencepiece_like_tokenizers(name: str, kind: str) -> None:
    _check(name, kind, 5, seed=2)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_tokens_and_masks_on_200_conversations(name: str) -> None:
    _check(name, "bytes", 200, seed=3)


@pytest.mark.parametrize("name", sorted(set(TWINS) - {"glm4moe", "gptoss", "diffusion_gemma"}))
def test_masks_found_without_marks_are_those_of_the_marked_twin(name: str) -> None:
    """TRL ships a twin of many templates with marks set by hand: ours, found from the unmarked one, are the same, but
    for what no model writes: blanks and end tokens behind the terminator, and the header's own last characters."""
    fast = tokenizer(templates()[name])
    template = ChatTemplate(fast)
    twin = templates()[f"{name}_training"]
    same = 0
    cases = [*_cases(template, 6, seed=4, plain=True)]
    if "tool_calls" in template.template:
        cases += _cases(template, 8, seed=5)
    for messages, theirs, tools, text in cases:
        if text != fast.apply_chat_template(theirs, tools=tools, tokenize=False, chat_template=twin):
            continue  # the twin renders thoughts of earlier turns that the template leaves out
        options = {"tools": tools, "return_dict": True, "return_assistant_tokens_mask": True, "chat_template": twin}
        expected = fast.apply_chat_template(theirs, **options)["assistant_masks"]
        result = Encoder(fast, template).encode([Chat(messages, tools)])[0]
        assert not isinstance(result, DataError)
        ids, ours = result
        for i in range(1, len(expected)):
            blank = fast.decode(ids[i : i + 1]).strip() in ("", "</s>")
            if expected[i] and not ours[i] and blank and (ours[i - 1] or not expected[i - 1]):
                expected[i] = 0  # behind a terminator, or a header's line break
        headers = _header_tokens(fast, template, ids, expected, ours)
        assert [bool(e) and not h for e, h in zip(expected, headers, strict=True)] == ours.tolist()
        same += 1
    assert same >= 1


def _header_tokens(fast: Any, template: ChatTemplate, ids: Any, expected: Any, ours: Any) -> list[bool]:
    """Tokens of a header (what a generation prompt already holds) that a twin counts as written by the model."""
    header = fast(template.turns.header, add_special_tokens=False)["input_ids"] if template.turns.header else []
    found = [False] * len(ids)
    for start in range(len(ids) - len(header) + 1):
        if header and ids[start : start + len(header)].tolist() == header:
            for i in range(start, start + len(header)):
                found[i] = bool(expected[i]) and not ours[i]
    return found


def test_what_is_found_in_a_template() -> None:
    found = {}
    for name in ("chatml", "llama2", "llama3", "gemma", "phi3", "gptoss", "glm4moe", "deepseek_r1_distill", "vicuna"):
        template = ChatTemplate(tokenizer(templates()[name]))
        found[name] = template.turns.header, template.turns.terminators
    assert found == {
        "chatml": ("<|im_start|>assistant\n", ("<|im_end|>",)),
        "llama2": ("", (" </s>",)),
        "llama3": ("<|start_header_id|>assistant<|end_header_id|>\n\n", ("<|eot_id|>",)),
        "gemma": ("<start_of_turn>model\n", ("<end_of_turn>",)),
        "phi3": ("<|assistant|>\n", ("<|end|>",)),
        "gptoss": ("<|start|>assistant", ("<|end|>", "<|return|>")),
        "glm4moe": ("<|assistant|>", ("<|user|>",)),
        "deepseek_r1_distill": ("<｜Assistant｜>", ("<｜end▁of▁sentence｜>",)),
        "vicuna": ("ASSISTANT:", ("</s>",)),
    }


# Command A's kind: a preamble, and a next turn is opened behind every answer, the last one too
OPENING = (
    "{{ bos_token }}<|OPEN|><|SYSTEM|>Be kind.<|CLOSE|>{% for m in messages %}{% if m.role == 'user' %}"
    "<|OPEN|><|USER|>{{ m.content }}<|CLOSE|>{% else %}<|OPEN|><|BOT|><|SAYS|>{{ m.content }}<|SAID|><|CLOSE|>"
    "{% endif %}{% endfor %}<|OPEN|><|BOT|>{% if add_generation_prompt %}<|SAYS|>{% endif %}"
)


@pytest.mark.parametrize("begin", ["{{ bos_token }}", ""])
@pytest.mark.parametrize("preamble", ["<|OPEN|><|SYSTEM|>Be kind.<|CLOSE|>", "<|OPEN|><|SYSTEM|><|CLOSE|>", ""])
@pytest.mark.parametrize("said", ["<|SAID|>", ""])
def test_the_opener_of_a_next_turn_is_not_trained(begin: str, preamble: str, said: str) -> None:
    text = OPENING.replace("{{ bos_token }}", begin).replace("<|SAID|>", said)
    fast = tokenizer(text.replace("<|OPEN|><|SYSTEM|>Be kind.<|CLOSE|>", preamble))
    template = ChatTemplate(fast)
    assert template.turns.terminators == (f"{said}<|CLOSE|>",)
    encoder = Encoder(fast, template)
    asked, answer = {"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "It is 4."}
    ids, trained = encoder.encode([Chat([asked, answer] * 2)])[0]  # type: ignore[misc]
    assert fast.decode(ids[trained]) == f"It is 4.{said}<|CLOSE|>" * 2
    assert ends_of(fast).stops == (fast.eos_token_id, fast.convert_tokens_to_ids("<|CLOSE|>"))


def test_an_end_that_begins_sequences_too_is_an_end() -> None:
    """Nothing of `<|im_end|></s>` is taken for an opener where `</s>` stands before the first turn."""
    both = CHATML.replace("<|im_end|>", "<|im_end|></s>")
    assert ChatTemplate(tokenizer("</s>" + both)).turns.terminators == ("<|im_end|></s>",)


def test_a_template_without_a_terminator_is_refused() -> None:
    endless = "{% for message in messages %}{{ message['role'] + ': ' + message['content'] + '\n' }}{% endfor %}"
    with pytest.raises(DataError, match="never stop") as caught:
        ChatTemplate(tokenizer(endless))
    assert "eos_token" in caught.value.fix


def test_a_broken_template_is_refused() -> None:
    fast = tokenizer("{% for message in messages %}{{ message['content'] }}")
    with pytest.raises(DataError, match="broken"):
        ChatTemplate(fast)


def test_no_template_is_refused() -> None:
    with pytest.raises(DataError, match="no chat template"):
        ChatTemplate(tokenizer(None))


def test_a_refused_conversation_says_which_roles_it_has() -> None:
    template = ChatTemplate(tokenizer(RECREATED["llama2"]))
    with pytest.raises(DataError, match="alternate") as caught:
        template.render([{"role": "assistant", "content": "a"}, {"role": "user", "content": "b"}])
    assert "assistant, user" in caught.value.fix


def test_thoughts_and_answer_of_one_message_are_both_trained() -> None:
    """gpt-oss ends the thought and the answer each; the header between them is not the model's."""
    fast = tokenizer(templates()["gptoss"])
    encoder = Encoder(fast, ChatTemplate(fast))
    messages = [
        {"role": "user", "content": "2+2?"},
        {"role": "assistant", "content": "It is 4.", "reasoning_content": "Easy."},
    ]
    ids, trained = encoder.encode([Chat(messages)])[0]  # type: ignore[misc]
    written = fast.decode(ids[trained])
    assert written == "<|channel|>analysis<|message|>Easy.<|end|><|channel|>final<|message|>It is 4.<|return|>"


def test_the_text_of_a_conversation_is_rendered_once(monkeypatch: pytest.MonkeyPatch) -> None:
    import nbtune.data.template.chat_template as chat

    template = ChatTemplate(tokenizer(CHATML))
    calls = []
    render = chat.render_text
    monkeypatch.setattr(chat, "render_text", lambda *a, **k: calls.append(1) or render(*a, **k))
    turns = [{"role": r, "content": "x"} for r in ("user", "assistant")] * 8
    rendered = template.render(turns)
    assert len(calls) == 1
    assert len(rendered.trained) == 8
