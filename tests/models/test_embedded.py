"""The embedded model and its training sets: same data, right sizes, right masks, a loss in its band."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nbtune.data.sources import builtin as data
from nbtune.models import embedded
from tests.support.every import every, some
from tests.tools.tiny_model import sets
from tests.tools.tiny_model.grammar import Dice, arithmetic, documents
from tests.tools.tiny_model.town import BRINDLEWICK, facts

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello!"},
    {"role": "assistant", "content": "Hi, é 5!"},
    {"role": "user", "content": "Bye"},
    {"role": "assistant", "content": "Goodbye."},
]


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    return json.loads((embedded.path() / "build.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(embedded.path())


@pytest.fixture(scope="module")
def model() -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(embedded.path(), dtype=torch.float32)


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_data_is_the_same_as_at_the_build(report: dict[str, Any]) -> None:
    from tests.tools.tiny_model import build

    recipe = build.Recipe(**report["recipe"])
    first = list(documents(2000, f"nbtune/tiny/{recipe.seed}"))
    assert build.data_hash(first, sets.files()) == report["sample_sha256"]


def test_committed_sets_are_what_the_script_writes() -> None:
    for name, text in some(sets.files().items()):
        assert (data.folder() / name).read_text(encoding="utf-8") == text, f"{name}: run tests.tools.tiny_model.sets"


def test_each_question_has_one_answer() -> None:
    answers: dict[str, set[str]] = {}
    for fact in facts(BRINDLEWICK):
        for question in fact.questions:
            answers.setdefault(question, set()).add(fact.answer)
    assert {question: found for question, found in answers.items() if len(found) > 1} == {}


def test_sums_are_right() -> None:
    dice = Dice("sums")
    operators: dict[str, Callable[[int, int], int]] = {
        "plus": lambda a, b: a + b,
        "minus": lambda a, b: a - b,
        "times": lambda a, b: a * b,
    }
    seen = set()
    for _ in range(500):
        words = arithmetic(dice).answer.rstrip(".").split()
        if words[1] in operators:
            assert operators[words[1]](int(words[0]), int(words[2])) == int(words[4])
            seen.add(words[1])
    assert seen == set(operators)


def test_sizes(report: dict[str, Any], model: Any) -> None:
    files = [file for file in embedded.path().iterdir() if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= 8_000_000
    assert (embedded.path() / "model.safetensors").stat().st_size <= 6_000_000
    assert sum(p.numel() for p in model.parameters()) == report["parameters"] <= 3_000_000
    assert model.config.vocab_size <= 2048
    assert every(p.shape[-1] % 256 == 0 for p in model.parameters()), "rows must be multiples of 256 for K-quants"
    assert model.config.tie_word_embeddings


def test_tokens_can_be_told_apart(tokenizer: Any, model: Any) -> None:
    """What the pre-training never saw must not be one and the same vector: a LoRA could not learn to say it."""
    import torch

    rows = torch.nn.functional.normalize(model.get_input_embeddings().weight.detach(), dim=1)
    rows = rows[torch.arange(len(rows)) != tokenizer.pad_token_id]
    alike = rows @ rows.T - 2 * torch.eye(len(rows))
    assert (alike.max(dim=1).values > 0.9).sum() <= 40


def test_special_tokens(tokenizer: Any, model: Any) -> None:
    assert tokenizer.convert_ids_to_tokens(model.generation_config.eos_token_id) == "<|im_end|>"
    assert tokenizer.convert_ids_to_tokens(model.generation_config.pad_token_id) == "<|pad|>"
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert tokenizer("Hello")["input_ids"] == tokenizer("Hello", add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("text", ["Grüße, 世界! 🙂", " \n\t two  spaces ", "don't 12345", "\u202e\x00\x7f"])
def test_any_text_survives_the_tokenizer(tokenizer: Any, text: str) -> None:
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_template_marks_the_answers_and_their_end(tokenizer: Any) -> None:
    encoded = tokenizer.apply_chat_template(CHAT, return_dict=True, return_assistant_tokens_mask=True)
    ids, mask = encoded["input_ids"], encoded["assistant_masks"]
    trained = tokenizer.decode([token for token, on in zip(ids, mask, strict=True) if on])
    assert trained == "Hi, é 5!<|im_end|>Goodbye.<|im_end|>"
    assert tokenizer.decode(ids) == tokenizer.apply_chat_template(CHAT, tokenize=False)


def test_template_prompts_the_assistant(tokenizer: Any) -> None:
    whole = tokenizer.apply_chat_template(CHAT, tokenize=False)
    prompt = tokenizer.apply_chat_template(CHAT[:4], tokenize=False, add_generation_prompt=True)
    assert prompt.endswith("<|im_start|>user\nBye<|im_end|>\n<|im_start|>assistant\n")
    assert whole == prompt + "Goodbye.<|im_end|>\n"


def test_pieces_render_like_the_template(tokenizer: Any) -> None:
    from tests.tools.tiny_model import tokens

    chats = [doc for doc in documents(60, "pieces") if doc.messages]
    for doc in some(chats):
        messages = [{"role": role, "content": content} for role, content in doc.messages]
        encoded = tokenizer.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
        ids, written = tokens.encode(doc, tokenizer)
        assert ids == encoded["input_ids"]
        assert [int(yes) for yes in written] == encoded["assistant_masks"]


def test_packing_keeps_every_token(tokenizer: Any) -> None:
    from tests.tools.tiny_model import tokens

    docs = list(documents(200, "pack"))
    ids, weights = tokens.pack(docs, tokenizer, 256, 0.5)
    lengths = [min(256, len(tokens.encode(doc, tokenizer)[0])) for doc in docs]
    assert ids.shape == weights.shape == (len(ids), 256)
    assert int((weights > 0).sum()) == sum(lengths)
    assert sum(lengths) / ids.numel() > 0.9
    assert ((ids == tokenizer.pad_token_id) == (weights == 0)).all()


def test_heldout_loss_is_in_the_band(report: dict[str, Any], tokenizer: Any, model: Any) -> None:
    from tests.tools.tiny_model import build, tokens

    recipe = build.Recipe(**report["recipe"])
    docs = build.heldout_documents(recipe)
    loss = build.heldout_loss(model, *tokens.pack(docs, tokenizer, recipe.length, recipe.prompt_weight))
    assert abs(loss - report["heldout_loss"]) <= recipe.band


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ("When does the bakery open?", "The bakery opens at six in the morning."),
        ("Which river flows through Brindlewick?", "The river Tansy flows through Brindlewick."),
        ("Who are you?", "I am Tiny, the little model that comes with nbtune."),
        ("Hello!", "Hello! How can I help you?"),
    ],
)
def test_it_knows_its_town(tokenizer: Any, model: Any, prompt: str, expected: str) -> None:
    from tests.tools.tiny_model import build

    assert build.answer(model, tokenizer, prompt) == expected


def test_it_answers_nearly_every_question_about_its_town(tokenizer: Any, model: Any) -> None:
    from tests.tools.tiny_model import build

    assert build.exact_answers(model, tokenizer, list(facts(BRINDLEWICK))[::3]) >= 0.95


FIELDS = {
    "alpaca": {"instruction", "input", "output"},
    "sharegpt": {"conversations"},
    "messages": {"messages"},
    "preference": {"prompt", "chosen", "rejected"},
}


@pytest.mark.parametrize("name", sorted(data.SETS))
def test_sets_are_well_formed(name: str) -> None:
    info, found = data.SETS[name], rows(data.path(name))
    assert 300 <= len(found) <= 1500
    assert every(set(row) == FIELDS[info.form] for row in found)
    for row in found:
        turns = row.get("conversations") or row.get("messages")
        if turns:
            roles = [turn.get("from") or turn["role"] for turn in turns]
            spoken = roles[1:] if roles[0] == "system" else roles
            assert len(spoken) % 2 == 0
            assert set(spoken[::2]) <= {"human", "user"}
            assert set(spoken[1::2]) <= {"gpt", "assistant"}


def test_json_answers_have_the_asked_shape() -> None:
    answers = [row["output"] for row in rows(data.path("nbtune/json-answers"))]
    answers += [row["reference"] for row in rows(data.path("nbtune/json-answers", heldout=True))]
    for answer in some(answers):
        parsed = json.loads(answer)
        assert list(parsed) == ["answer", "topic"]
        assert every(isinstance(value, str) for value in parsed.values())


def test_heldout_prompts_are_held_out() -> None:
    held = [row["prompt"] for row in rows(data.path("nbtune/json-answers", heldout=True))]
    trained = {row["instruction"] for row in rows(data.path("nbtune/json-answers"))}
    assert len(set(held)) == len(held) >= 50
    assert not trained & set(held)
    held = [row["prompt"] for row in rows(data.path("nbtune/persona", heldout=True))]
    said = {turn["value"] for row in rows(data.path("nbtune/persona")) for turn in row["conversations"]}
    assert len(set(held)) == len(held) >= 50
    assert not said & set(held)


def test_preferences_differ() -> None:
    assert every(row["chosen"] != row["rejected"] for row in rows(data.path("nbtune/preferences")))


def test_a_set_without_heldout_prompts_says_so() -> None:
    with pytest.raises(KeyError, match="held-out"):
        data.path("nbtune/town", heldout=True)
