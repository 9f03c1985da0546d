"""Token ids, labels and texts that Axolotl and LLaMA-Factory publish in their own tests, retyped.

Llama 3's tokenizer takes a word that stands in its vocabulary whole (`ignore_merges`), so a vocabulary of the words in
those tests, under their ids, gives the same ids as the real one. Of the ids that others publish for SentencePiece
vocabularies (Phi 3.5, Mistral) the tokenizer cannot be rebuilt here.
"""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

import nbtune.data
from nbtune.data import resolve
from nbtune.spec import from_mapping
from tests.data.making import templates, tokenizer
from tests.data.tokenize.test_byte_level import LLAMA3

WORDS = {
    **{"system": 9125, "user": 882, "assistant": 78191, "ĊĊ": 271, "hello": 15339, "good": 19045, "bye": 29474},
    **{"You": 2675, "Ġare": 527, "Ġan": 459, "ĠAI": 15592, "Ġassistant": 18328, ".": 13, "Hello": 9906, "Hi": 13347},
    **{"Ġthere": 1070, "!": 0, "How": 4438, "Ġyou": 499, "?": 30, "I": 40, "'m": 2846, "Ġdoing": 3815, "Ġwell": 1664},
    **{",": 11, "Ġthank": 9901},
}
CONTROL = {
    **{"<|begin_of_text|>": 128000, "<|end_of_text|>": 128001, "<|start_header_id|>": 128006},
    **{"<|end_header_id|>": 128007, "<|eot_id|>": 128009},
}


@cache
def llama3() -> Any:
    """Llama 3's tokenizer, for the words of these tests."""
    from transformers import PreTrainedTokenizerFast

    vocabulary = {**WORDS, **CONTROL}
    pieces = [*pre_tokenizers.ByteLevel.alphabet(), "go", "goo", "by"]
    free = (i for i in range(90_000, 100_000))
    vocabulary.update({piece: next(free) for piece in pieces if piece not in vocabulary})
    merges = [("g", "o"), ("go", "o"), ("goo", "d"), ("b", "y"), ("by", "e")]
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, ignore_merges=True))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    told = json.loads(backend.to_str())
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    told["added_tokens"] = [{"id": id_, "content": token, **flags} for token, id_ in CONTROL.items()]
    fast = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(told)),
        bos_token="<|begin_of_text|>",
        eos_token="<|eot_id|>",
        pad_token="<|end_of_text|>",
    )
    fast.chat_template = templates()["llama3"]
    return fast


def prepared(rows: list[Any], fast: Any, kind: str = "sft", columns: Any = None, **fields: Any) -> Any:
    source: dict[str, Any] = {"source": "rows"}
    if columns:
        source |= {"columns": columns, "format": "messages" if kind == "sft" else "preference"}
    spec = from_mapping({"data": [source], "eval": {"split": 0}, **fields})
    sources = resolve(spec.data, {"rows": rows})
    return nbtune.data.prepare_data(sources, fast, spec=spec, max_len=512, seed=0, kind=kind).train


HELLO = [("user", "hello"), ("assistant", "hello"), ("user", "goodbye"), ("assistant", "goodbye")]
HELLO_IDS = [
    *(128000, 128006, 882, 128007, 271, 15339, 128009, 128006, 78191, 128007, 271, 15339, 128009),
    *(128006, 882, 128007, 271, 19045, 29474, 128009, 128006, 78191, 128007, 271, 19045, 29474, 128009),
]
BASIC = [
    ("system", "You are an AI assistant."),
    *(("user", "Hello"), ("assistant", "Hi there!"), ("user", "How are you?")),
    ("assistant", "I'm doing well, thank you!"),
]
BASIC_IDS = [
    *(128000, 128006, 9125, 128007, 271, 2675, 527, 459, 15592, 18328, 13, 128009),
    *(128006, 882, 128007, 271, 9906, 128009, 128006, 78191, 128007, 271, 13347, 1070, 0, 128009),
    *(128006, 882, 128007, 271, 4438, 527, 499, 30, 128009),
    *(128006, 78191, 128007, 271, 40, 2846, 3815, 1664, 11, 9901, 499, 0, 128009),
]


def labels(ids: list[int], *trained: int) -> list[int]:
    """The ids at these places, -100 elsewhere."""
    return [id_ if i in trained else -100 for i, id_ in enumerate(ids)]


def openai(talk: list[tuple[str, str]]) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": text} for role, text in talk]}


def sharegpt(talk: list[tuple[str, str]]) -> dict[str, Any]:
    names = {"user": "human", "assistant": "gpt"}
    return {"conversations": [{"from": names.get(role, role), "value": text} for role, text in talk]}


@pytest.mark.parametrize("write", [openai, sharegpt])
@pytest.mark.parametrize(
    ("talk", "ids", "fields", "trained"),
    [
        (HELLO, HELLO_IDS, {"terminators": "none"}, (11, 24, 25)),
        (HELLO, HELLO_IDS, {}, (11, 12, 24, 25, 26)),
        (HELLO, HELLO_IDS, {"terminators": "last"}, (11, 24, 25, 26)),
        (HELLO, HELLO_IDS, {"train_on": ["user"], "terminators": "none"}, (5, 17, 18)),
        (
            BASIC,
            BASIC_IDS,
            {"train_on": ["system", "user"], "terminators": "none"},
            (*range(5, 11), 16, *range(30, 34)),
        ),
        (
            BASIC,
            BASIC_IDS,
            {"train_on": ["user", "assistant"]},
            (16, 17, *range(22, 26), *range(30, 35), *range(39, 48)),
        ),
    ],
)
def test_ids_and_labels_that_axolotl_publishes_for_llama3(
    write: Any, talk: Any, ids: list[int], fields: dict[str, Any], trained: tuple[int, ...]
) -> None:
    (example,) = prepared([write(talk)], llama3(), **fields)
    assert example.input_ids == ids
    assert example.labels == labels(ids, *trained)


def test_every_end_of_a_turn_can_be_trained() -> None:
    (example,) = prepared([openai(HELLO)], llama3(), terminators="all")
    assert example.labels == labels(HELLO_IDS, 6, 11, 12, 19, 24, 25, 26)


def test_single_messages_of_other_roles_can_be_trained() -> None:
    row = openai(HELLO)
    row["messages"][0]["train"] = True
    row["messages"][1]["train"] = False
    (example,) = prepared([row], llama3())
    assert example.labels == labels(HELLO_IDS, 5, 6, 24, 25, 26)


@pytest.mark.parametrize(
    ("name", "prompt", "end"),
    [
        (
            "llama3",
            "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nhello<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\nhello<|eot_id|>"
            "<|start_header_id|>user<|end_header_id|>\n\ngoodbye<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n",
            "<|eot_id|>",
        ),
        (
            "phi3",
            "<|user|>\nhello<|end|>\n<|assistant|>\nhello<|end|>\n<|user|>\ngoodbye<|end|>\n<|assistant|>\n",
            "<|end|>",
        ),
        (
            "gemma",
            "<start_of_turn>user\nhello<end_of_turn>\n<start_of_turn>model\nhello<end_of_turn>\n"
            "<start_of_turn>user\ngoodbye<end_of_turn>\n<start_of_turn>model\n",
            "<end_of_turn>",
        ),
    ],
)
@pytest.mark.parametrize("own_names", [False, True])
def test_pairs_that_axolotl_publishes(name: str, prompt: str, end: str, own_names: bool) -> None:
    fast = llama3() if name == "llama3" else tokenizer(templates()[name])
    asked = [{"role": role, "content": text} for role, text in HELLO[:-1]]
    row: dict[str, Any] = {"messages": asked}
    row |= {
        side: {"role": "assistant", "content": text} for side, text in (("chosen", "goodbye"), ("rejected", "party on"))
    }
    columns = None
    if own_names:
        said = {"user": "human", "assistant": "agent"}
        row = {
            "conversation": [{"speaker": said[m["role"]], "text": m["content"]} for m in asked],
            "better": {"speaker": "agent", "text": "goodbye"},
            "worse": {"speaker": "agent", "text": "party on"},
        }
        columns = {"prompt": "conversation", "chosen": "better", "rejected": "worse", "role": "speaker"}
        columns |= {"content": "text", "user": "human", "assistant": "agent"}
    pair = prepared([row], fast, "pairs", columns=columns)
    for example, answer in zip(pair, ("goodbye", "party on"), strict=True):
        whole = fast.decode(example.input_ids)
        assert whole.removeprefix("<s>").startswith(prompt)
        assert fast.decode([i for i in example.labels if i != -100]) == answer + end


TALK = [("user", "How are you"), ("assistant", "I am fine!"), ("user", "你好"), ("assistant", "很高兴认识你！")]
IM = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
LLAMA = "<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
GEMMA = "<start_of_turn>user\n{}<end_of_turn>\n<start_of_turn>model\n"
QWEN = "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"


@pytest.mark.parametrize(
    ("name", "before", "asked", "end", "behind"),
    [
        ("llama3", "<s>", LLAMA, "<|eot_id|>", ""),
        ("gemma", "<s>", GEMMA, "<end_of_turn>", "\n"),
        ("gemma3", "<s>", GEMMA, "<end_of_turn>", "\n"),
        ("qwen2_5", QWEN, IM, "<|im_end|>", "\n"),
    ],
)
def test_prompts_and_answers_that_llamafactory_publishes(
    name: str, before: str, asked: str, end: str, behind: str
) -> None:
    """What stands behind a turn's end (a line break) no model has to write, and is not trained here."""
    fast = tokenizer(templates()[name])
    (every,) = prepared([openai(TALK)], fast)
    (last,) = prepared([openai(TALK)], fast, train_on="last_answer")
    questions, answers = (TALK[0][1], TALK[2][1]), (TALK[1][1], TALK[3][1])
    text = before + "".join(asked.format(q) + a + end + behind for q, a in zip(questions, answers, strict=True))
    assert fast.decode(every.input_ids) == text
    assert every.input_ids == last.input_ids == fast(text, add_special_tokens=False)["input_ids"]
    assert fast.decode([i for i in every.labels if i != -100]) == "".join(a + end for a in answers)
    assert fast.decode([i for i in last.labels if i != -100]) == answers[1] + end


@pytest.mark.parametrize("thought", [True, False])
def test_thoughts_that_llamafactory_publishes_for_qwen3(thought: bool) -> None:
    fast = tokenizer(templates()["qwen3"])
    think = "<think>\n模型思考内容\n</think>\n\n" if thought else ""
    talk = [
        *TALK[:1],
        ("assistant", "<think>\nModel thought here\n</think>\n\nI am fine!" if thought else "I am fine!"),
    ]
    talk += [TALK[2], ("assistant", think + "很高兴认识你！")]
    (last,) = prepared([openai(talk)], fast, train_on="last_answer")
    answer = (think or "<think>\n\n</think>\n\n") + "很高兴认识你！<|im_end|>"
    prompt = IM.format("How are you") + "I am fine!<|im_end|>\n" + IM.format("你好")
    assert fast.decode(last.input_ids) == prompt + answer + "\n"
    learnt = fast.decode([i for i in last.labels if i != -100])
    assert learnt in (answer, answer.removeprefix("<think>\n\n</think>\n\n"))
