"""Which messages, and which parts of them, have a loss. Expectations are written out by hand."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest

from nbtune import models
from nbtune.data.formats.messages import messages_of
from nbtune.data.formats.reader import Parts
from nbtune.data.template.chat_template import ChatTemplate, Rendered
from nbtune.data.tokenize.encoder import Encoder
from nbtune.data.tokenize.loss_mask import trained_stretches
from nbtune.errors import DataError
from tests.data.making import conversation, templates
from tests.data.making import tokenizer as making

Q, A, END = {"role": "user", "content": "Ask."}, {"role": "assistant", "content": "Say."}, "<|im_end|>"


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return models.load_tokenizer("nbtune/tiny")


def trained(tokenizer: Any, talk: list[Any], train_on: Any = "answers", **options: Any) -> list[str]:
    encoder = Encoder(tokenizer, ChatTemplate(tokenizer), train_on, **options)
    made = encoder.encode([messages_of(talk, "messages")])[0]
    if isinstance(made, DataError):
        raise made
    ids, mask = made
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.astype(int), [0]]))).reshape(-1, 2)
    return [tokenizer.decode(ids[start:end]) for start, end in edges]


YES = [True, "true", "True", " yes ", "1", 1, 1.0, np.bool_(True), np.int64(1)]
NO = [False, "false", "False", "no", "0", 0, 0.0, np.bool_(False), np.int64(0)]


@pytest.mark.parametrize("key", ["train", "training"])
def test_a_choice_is_read_as_it_is_spelled(tokenizer: Any, key: str) -> None:
    for value in YES:
        assert trained(tokenizer, [{**Q, key: value}, A]) == ["Ask." + END, "Say." + END], value
    for value in NO:
        assert trained(tokenizer, [Q, A, Q, {**A, key: value}]) == ["Say." + END], value
    for value in (None, float("nan")):
        assert trained(tokenizer, [{**Q, key: value}, {**A, key: value}]) == ["Say." + END], value
    for value in ("perhaps", 2, 0.5, [], {}):
        with pytest.raises(DataError, match="not a yes or no"):
            trained(tokenizer, [Q, {**A, key: value}])


def test_a_weight_is_0_or_1(tokenizer: Any) -> None:
    for value in (0, 0.0, "0", False):
        assert trained(tokenizer, [Q, {**A, "weight": value}, Q, A]) == ["Say." + END]
    for value in (1, 1.0, "1", None, float("nan")):
        assert trained(tokenizer, [{**Q, "weight": value}, {**A, "weight": value}]) == ["Say." + END]
    for value in (0.5, 2, -1, "much", []):
        with pytest.raises(DataError, match=r"trained \(1\) or not \(0\)"):
            trained(tokenizer, [Q, {**A, "weight": value}])
        with pytest.raises(DataError, match=r"part 0 .*trained \(1\) or not \(0\)"):
            trained(tokenizer, [Q, {**A, "content": [{"type": "text", "text": "x", "weight": value}]}])


def test_roles_and_what_a_message_says_of_itself(tokenizer: Any) -> None:
    kept = {**A, "content": "Keep.", "train": True}
    assert trained(tokenizer, [Q, A, Q, kept], ["user"]) == ["Ask." + END, "Ask." + END, "Keep." + END]
    assert trained(tokenizer, [{**Q, "train": False}, A], ["user"]) == []
    assert trained(tokenizer, [Q, A], []) == []
    assert trained(tokenizer, [Q, A, Q, kept], []) == ["Keep." + END]
    assert trained(tokenizer, [{**Q, "train": True}, A], []) == ["Ask." + END]


@pytest.mark.parametrize("off", [{"train": False}, {"training": "false"}, {"weight": 0}])
@pytest.mark.parametrize("key", ["text", "content", "value"])
def test_parts_that_are_not_trained(tokenizer: Any, off: dict[str, Any], key: str) -> None:
    def said(*parts: tuple[str, dict[str, Any]]) -> list[str]:
        content = [{"type": "text", key: text, **more} for text, more in parts]
        return trained(tokenizer, [Q, {"role": "assistant", "content": content}])

    assert said(("One.", {}), (" Two.", {})) == ["One. Two." + END]
    assert said(("One.", off), (" Two.", {})) == [" Two." + END]
    assert said(("One.", {}), (" Two.", off)) == ["One.", END]
    assert said(("One.", {}), (" Two.", off), (" Three.", {"weight": 1})) == ["One.", " Three." + END]
    assert said(("One.", off), (" Two.", off)) == []


def test_parts_and_details_of_one_message_both_count(tokenizer: Any) -> None:
    content = [{"text": "One."}, {"text": " Two.", "train": False}, {"text": " Three."}]
    details = [{"begin_offset": 9, "end_offset": 15, "train": False}]  # " Three."
    message = {"role": "assistant", "content": content, "train_detail": details}
    assert trained(tokenizer, [Q, message]) == ["One.", END]


def test_parts_that_are_trained_of_a_message_that_is_not(tokenizer: Any) -> None:
    parts = [{"text": "One."}, {"text": " Two.", "train": True}, {"text": " Three."}]
    for role in ("user", "system"):
        assert trained(tokenizer, [{"role": role, "content": parts}, A])[0] == " Two."
    assert trained(tokenizer, [Q, {"role": "assistant", "content": parts, "train": False}]) == [" Two."]
    assert trained(tokenizer, [Q, {"role": "assistant", "content": parts[:2], "weight": 0}]) == [" Two." + END]
    assert trained(tokenizer, [{"role": "user", "content": parts}, A], ["user"]) == ["One. Two. Three." + END]
    assert trained(tokenizer, [{"role": "user", "content": parts}, A], []) == [" Two."]


def test_parts_count_in_what_was_written_where_thoughts_are_dropped(tokenizer: Any) -> None:
    parts = [{"text": "<think>Hm.</think>"}, {"text": "One."}, {"text": " Two.", "train": False}]
    talk = [Q, {"role": "assistant", "content": parts}]
    assert trained(tokenizer, talk, thinking="drop") == ["One.", END]


def test_parts_without_text_are_refused(tokenizer: Any) -> None:
    for part in ({"type": "text"}, {"type": "text", "text": None}, {"type": "text", "text": {"a": 1}}, None):
        with pytest.raises(DataError, match="part 0 of message 1"):
            trained(tokenizer, [Q, {"role": "assistant", "content": [part]}])
    assert trained(tokenizer, [Q, {"role": "assistant", "content": ["Say", {"text": 7}, "."]}]) == ["Say7." + END]


def test_all_of_a_text_is_trained_where_all_is_asked_for(tokenizer: Any) -> None:
    row = Parts((("Before.\n", False), ("After.", True)), ends=False)
    for on, said in (("answers", "After."), ("all", "Before.\nAfter.")):
        ids, mask = Encoder(tokenizer, None, on).encode([row])[0]  # type: ignore[misc]
        assert tokenizer.decode(ids[mask]) == said


@pytest.mark.parametrize("name", ["chatml", "glm4moe", "gptoss", "llama3"])
def test_nothing_is_put_behind_a_talk_that_ends_with_a_question(name: str) -> None:
    """GLM's answers end with the next turn's header, which is appended to an answer alone."""
    fast = making(templates()[name])
    rendered = ChatTemplate(fast).render(talk := [Q, A, Q])
    assert rendered.text == fast.apply_chat_template(talk, tokenize=False)


TALK = [{"role": role, "content": f"{role[0]}{i}."} for i, role in enumerate(("system", *("user", "assistant") * 3))]
ON = ("answers", "last_answer", ["user"], ["system", "user"], ["user", "assistant"], [])


@pytest.mark.parametrize("policy", ["turn", "all", "last", "none"])
@pytest.mark.parametrize("length", [2, 3, 6, 7])
def test_ends_are_trained_as_the_policy_says_of_whatever_is_trained(tokenizer: Any, policy: str, length: int) -> None:
    """Also of talks that end with a question, and where one message says for itself that it is trained, or not."""
    own = [{**message, **({"train": i % 2 == 1} if i in (3, 4) else {})} for i, message in enumerate(TALK)]
    for talk in (TALK[:length], TALK[1:length], own[:length]):
        for on in ON:
            roles = ("assistant",) if isinstance(on, str) else on
            heard = [i for i, m in enumerate(talk) if m.get("train", m["role"] in roles)]
            heard = heard[-1:] if on == "last_answer" else heard
            with_end = {"turn": heard, "all": range(len(talk)), "last": heard[-1:], "none": []}[policy]
            told = [(m["content"] if i in heard else "") + (END if i in with_end else "") for i, m in enumerate(talk)]
            if on == "last_answer" and any("train" in m for m in talk):
                continue  # what is trained by its own word is no answer that could be the last
            assert trained(tokenizer, talk, on, terminators=policy) == [text for text in told if text], (talk, on)


def _characters(stretches: Iterable[tuple[int, ...]]) -> set[int]:
    return {place for start, end, *_ in stretches for place in range(start, end)}


@pytest.mark.parametrize("name", sorted(templates()))
def test_who_trains_questions_trains_nothing_of_an_answer(name: str) -> None:
    """Also where a question has no end of its own (Mistral), and where marks stand around words of the template."""
    template, seen = ChatTemplate(making(templates()[name])), 0
    ends = (*template.turns.terminators, template.turns.calls_end)
    for seed in range(12):
        talk = conversation(random.Random(seed), system=seed % 2 == 0, tools=False, thinking=False)
        try:
            rendered = template.render(talk)
        except DataError:
            continue  # some have no system prompt
        of = {role: {i for i, m in enumerate(talk) if m["role"] == role} for role in ("user", "assistant")}
        said = {role: _characters(s for s in rendered.spans if s[2] in numbers) for role, numbers in of.items()}
        learnt = _characters(trained_stretches(rendered, talk, train_on=["user"], ends=ends))
        assert said["user"] <= learnt
        assert not learnt & said["assistant"]
        assert not learnt & _characters(rendered.trained)
        seen += 1
    assert seen


def test_marks_around_no_message_are_the_assistants() -> None:
    marked = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' %}{% generation %}"
        "{{ 'Well. ' }}{% endgeneration %}{{ '…' }}{% generation %}{{ m.content }}{% endgeneration %}"
        "{% else %}{{ m.content }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    )
    fast = making(marked)
    assert trained(fast, [Q, A]) == ["Well. ", "Say." + END]
    assert trained(fast, [Q, A], ["user"]) == ["Ask." + END]


@pytest.mark.parametrize("role", ["assistant", "user"])
def test_details_are_what_they_say_character_by_character(role: str) -> None:
    """Also those that overlap, lie within each other, or come in another order."""
    template, rng = ChatTemplate(making()), random.Random(5)
    for _ in range(60):
        content = "".join(rng.choice("abcdefgh ") for _ in range(rng.randint(8, 30))).strip() + "."
        details = []
        for _ in range(rng.randint(1, 4)):
            begin = rng.randrange(len(content))
            details.append(
                {
                    "begin_offset": begin,
                    "end_offset": rng.randrange(begin, len(content)),
                    "train": rng.random() < 0.5 if role == "user" else False,
                }
            )
        talk = [Q, {"role": role, "content": content, "train_detail": details}, Q]
        rendered = template.render([{**message, "train_detail": None} for message in talk])
        at = next(start for start, _, tag in rendered.spans if tag == 1)
        held = [
            _characters([(d["begin_offset"], d["end_offset"] + 1)]) for d in details if d["train"] == (role == "user")
        ]
        named = set().union(*held)
        wanted = named if role == "user" else {*range(len(content))} - named
        learnt = _characters(trained_stretches(rendered, talk, ends=[END]))
        assert {place - at for place in learnt if at <= place < at + len(content)} == wanted, (content, details)


def test_a_detail_of_what_is_said_twice_is_of_the_place_that_it_names() -> None:
    text, content = "[a]<t>Ahoy</t>Ahoy<e>", "<t>Ahoy</t>Ahoy"  # a template that sets thought and answer apart
    rendered = Rendered(text, ((6, 10, 0), (14, 18, 0)), ((3, 21, 0),))
    for begin, kept in ((3, [(3, 6), (10, 21)]), (11, [(3, 14), (18, 21)])):
        said = {"role": "assistant", "content": content}
        said["train_detail"] = [{"begin_offset": begin, "end_offset": begin + 3, "train": False}]  # type: ignore[assignment]
        assert trained_stretches(rendered, [said], ends=["<e>"]) == kept


def test_a_question_ends_at_the_first_end_behind_it() -> None:
    """The answer says nothing, so that no text of it tells where the question's turn is over."""
    rendered = Rendered("[u]Ask<e>[a]<r>", ((3, 6, 0),), ())
    talk = [{"role": "user", "content": "Ask"}, {"role": "assistant", "content": ""}]
    for ends in (["<e>", "<r>"], ["<r>", "<e>"]):
        assert trained_stretches(rendered, talk, train_on=["user"], ends=ends) == [(3, 9)]
