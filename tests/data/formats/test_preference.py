"""Rows that judge become texts that belong together, each with what was judged of it."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

import nbtune.data
from nbtune.data import BatchPlan, Prepared, resolve
from nbtune.errors import DataError
from nbtune.methods import METHODS
from nbtune.spec import from_mapping
from tests.data.making import CHATML, tokenizer
from tests.support.every import every

ASK = [{"role": "user", "content": "2+2?"}]


def answer(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def prepare(rows: list[Any], kind: str, max_len: int = 128, fast: Any = None, **fields: Any) -> Prepared:
    source = {"source": "rows", **{k: fields.pop(k) for k in ("format", "columns") if k in fields}}
    spec = from_mapping({"data": [source], "eval": {"split": 0}, **fields})
    sources = resolve(spec.data, {"rows": rows})
    fast = fast or tokenizer(CHATML)
    return nbtune.data.prepare_data(sources, fast, spec=spec, max_len=max_len, seed=0, kind=kind)


def shown(prepared: Prepared) -> list[tuple[str, str]]:
    """(all of it, what is trained) of each example."""
    fast = tokenizer(CHATML)
    return [(fast.decode(e.input_ids), fast.decode([i for i in e.labels if i != -100])) for e in prepared.train]


QUESTION = "<|im_start|>user\n2+2?<|im_end|>\n<|im_start|>assistant\n"
PAIR = [(QUESTION + "4<|im_end|>\n", "4<|im_end|>"), (QUESTION + "5<|im_end|>\n", "5<|im_end|>")]


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "2+2?", "chosen": "4", "rejected": "5"},
        {"question": "2+2?", "chosen": "4", "rejected": "5"},
        {"prompt": ASK, "chosen": answer("4"), "rejected": answer("5")},
        {"chosen": ASK + answer("4"), "rejected": ASK + answer("5")},
        {"messages": ASK, "chosen": answer("4")[0], "rejected": answer("5")[0]},
        {"conversations": [{"from": "human", "value": "2+2?"}], "chosen": {"from": "gpt", "value": "4"}}
        | {"rejected": {"from": "gpt", "value": "5"}},
        {"instruction": "2+2?", "input": "", "chosen": "4", "rejected": "5"},
        {"prompt": "2+2?", "chosen_response": "4", "rejected_response": "5"},
    ],
)
def test_pairs_in_every_spelling(row: dict[str, Any]) -> None:
    prepared = prepare([row], "pairs", format="preference")
    assert shown(prepared) == PAIR
    assert prepared.train.value_of.tolist() == [1, 0]
    assert [e.row for e in prepared.train] == [0, 0]


def test_pairs_whose_prompts_hold_answers_and_systems() -> None:
    before = [{"role": "system", "content": "s"}, *ASK, *answer("old"), {"role": "user", "content": "r"}]
    one = prepare([{"prompt": before, "chosen": answer("a"), "rejected": answer("b")}], "pairs")
    assert [trained for _, trained in shown(one)] == ["a<|im_end|>", "b<|im_end|>"]
    two = prepare([{"prompt": "q", "system": "s", "chosen": "a", "rejected": "b"}], "pairs")
    assert shown(two)[0][0].startswith("<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nq<|im_end|>")
    plain = prepare([{"prompt": "q\n", "chosen": "a", "rejected": "b"}], "pairs", format="preference:plain")
    assert shown(plain) == [("q\na</s>", "a</s>"), ("q\nb</s>", "b</s>")]
    texts = prepare([{"chosen": "good text", "rejected": "bad text"}], "pairs")
    assert shown(texts)[1] == ("bad text</s>", "bad text</s>")


def test_a_pair_is_kept_whole_or_not_at_all() -> None:
    rows: list[Any] = [{"prompt": f"q{i}", "chosen": f"a{i}", "rejected": f"b{i}"} for i in range(6)]
    rows[1]["rejected"] = ""
    rows[2]["chosen"] = "word " * 200
    rows[3]["prompt"] = "word " * 200
    prepared = prepare(rows, "pairs")
    assert [e.row for e in prepared.train] == [0, 0, 2, 2, 4, 4, 5, 5]
    assert {(f[1], f[2]) for f in prepared.report.fates} == {(1, "dropped"), (2, "cut"), (3, "dropped")}
    assert len(prepare(rows, "pairs", overflow="drop").train) == 6
    with pytest.raises(DataError, match="limit"):
        prepare(rows, "pairs", overflow="raise")
    with pytest.raises(DataError, match="the same"):
        prepare([{"chosen": ASK + answer("4"), "rejected": ASK + answer("4")}], "pairs")


@pytest.mark.parametrize(
    ("chosen", "rejected"),
    [
        (["user q", "assistant a"], ["user other", "assistant b"]),
        (["system s", "user q", "assistant a"], ["user q", "assistant b"]),
        (["user q", "assistant a", "user r", "assistant b"], ["user q", "assistant a", "user s", "assistant c"]),
    ],
)
def test_answers_to_two_questions_are_no_pair(chosen: list[str], rejected: list[str]) -> None:
    row = {
        name: [dict(zip(("role", "content"), turn.split(), strict=True)) for turn in turns]
        for name, turns in {"chosen": chosen, "rejected": rejected}.items()
    }
    with pytest.raises(DataError, match="they are about two questions"):
        prepare([row], "pairs")


def test_held_out_pairs_are_whole() -> None:
    rows = [{"prompt": f"q{i}", "chosen": f"a{i}", "rejected": f"b{i}"} for i in range(60)]
    prepared = prepare(rows, "pairs", eval={"split": 0.2})
    assert prepared.eval is not None
    for part in (prepared.train, prepared.eval):
        assert part.value_of.tolist() == [1, 0] * (len(part) // 2)
        row_of = np.asarray(part.row_of)
        assert (row_of[::2] == row_of[1::2]).all()
    assert len(prepared.eval) == 24


@pytest.mark.parametrize("packing", [False, True])
def test_batches_of_pairs(packing: bool) -> None:
    rows = [{"prompt": f"q{i}", "chosen": f"a{i}", "rejected": f"b{i}"} for i in range(9)]
    prepared = prepare(rows, "pairs")
    plan = BatchPlan(prepared.train, micro_batch_size=3, seed=1, together=2, packing=packing, sequence_len=128)
    seen: list[int] = []
    for k in range(plan.steps_per_epoch):
        for batch in plan.step(k):
            assert batch.values.tolist() == [1, 0] * (len(batch.examples) // 2)
            assert every(b == a + 1 for a, b in zip(batch.examples[::2], batch.examples[1::2], strict=True))
            seen += batch.examples
    assert sorted(seen) == list(range(18))
    if not packing:
        assert plan.steps_per_epoch == 3
        assert plan.step(0)[0].input_ids.shape[0] == 6


@pytest.mark.parametrize(
    ("row", "good"),
    [
        ({"prompt": "2+2?", "completion": "4", "label": True}, True),
        ({"prompt": ASK, "completion": answer("4"), "label": False}, False),
        ({"messages": ASK + answer("4"), "label": 1}, True),
        ({"instruction": "2+2?", "output": "4", "kto_tag": "false"}, False),
        ({"prompt": "2+2?", "response": "4", "label": -1}, False),
    ],
)
def test_feedback_in_every_spelling(row: dict[str, Any], good: bool) -> None:
    prepared = prepare([row], "feedback", format="feedback")
    assert shown(prepared) == PAIR[:1]
    assert prepared.train.value_of.tolist() == [float(good)]
    batch = BatchPlan(prepared.train, micro_batch_size=1).step(0)[0]
    assert batch.values.tolist() == [float(good)]


def test_a_label_that_says_nothing_is_refused() -> None:
    with pytest.raises(DataError, match="not a yes or no"):
        prepare([{"prompt": "q", "completion": "a", "label": "perhaps"}], "feedback", format="feedback")


def test_steps_carry_their_labels_at_the_break_behind_them() -> None:
    row = {"prompt": "2+3?\n", "completions": ["2 and 3", "make 6"], "labels": [True, False]}
    prepared = prepare([row], "stepwise")
    example, values = prepared.train[0], prepared.train.token_values
    fast = tokenizer(CHATML)
    assert fast.decode(example.input_ids) == "2+3?\n2 and 3\nmake 6\n"
    at = np.flatnonzero(~np.isnan(values))
    assert values[at].tolist() == [1, 0]
    assert [fast.decode(example.input_ids[: i + 1]) for i in at] == ["2+3?\n2 and 3\n", "2+3?\n2 and 3\nmake 6\n"]
    batch = BatchPlan(prepared.train, micro_batch_size=1).step(0)[0]
    assert np.flatnonzero(~np.isnan(batch.token_values[0].numpy())).tolist() == at.tolist()
    with pytest.raises(DataError, match="one label a step"):
        prepare([{"prompt": "q", "completions": ["a"], "labels": []}], "stepwise", format="stepwise")


def test_rows_of_another_kind_are_refused_with_what_to_do() -> None:
    asked, pair = {"prompt": "q", "completion": "a"}, {"prompt": "q", "chosen": "a", "rejected": "b"}
    with pytest.raises(DataError, match="are wanted") as caught:
        prepare([asked], "pairs")
    assert "`prompt, chosen, rejected`" in caught.value.fix
    assert "`sft`" in caught.value.fix
    with pytest.raises(DataError, match="are wanted") as caught:
        prepare([pair], "feedback")
    assert "`prompt, completion, label`" in caught.value.fix
    with pytest.raises(DataError, match="cannot learn") as caught:
        prepare([pair], "sft")
    methods = [name for name, method in METHODS.items() if method.rows == "pairs"]
    assert "`prompt, completion`" in caught.value.fix
    assert every(f"`{name}`" in caught.value.fix for name in methods)
    assert "`dpo`" in caught.value.fix


TOOL = {"type": "function", "function": {"name": "add", "description": "d", "parameters": {"type": "object"}}}
WITH_TOOLS = "{% for t in tools or [] %}[{{ t.function.name }}]{% endfor %}" + CHATML
INSTRUCTED = "[add]<|im_start|>system\ns<|im_end|>\n"


@pytest.mark.parametrize("tools", [[TOOL], json.dumps([TOOL]), TOOL, [json.dumps(TOOL)]], ids=range(4))
@pytest.mark.parametrize(
    ("row", "kind", "form"),
    [
        ({"prompt": "2+2?", "chosen": "4", "rejected": "5"}, "pairs", "preference"),
        ({"chosen": ASK + answer("4"), "rejected": ASK + answer("5")}, "pairs", "preference"),
        ({"prompt": ASK, "completion": answer("4"), "label": True}, "feedback", "feedback"),
        ({"completion": ASK + answer("4"), "label": True}, "feedback", "feedback"),
        ({"prompt": "2+2?", "completion": "4"}, "sft", "prompt-completion"),
        ({"prompt": ASK, "completion": answer("4")}, "sft", "prompt-completion"),
        ({"instruction": "2+2?", "output": "4"}, "sft", "alpaca"),
        ({"messages": ASK + answer("4")}, "sft", "messages"),
    ],
)
def test_tools_and_the_system_prompt_are_in_every_chat(row: dict[str, Any], kind: str, form: str, tools: Any) -> None:
    given = prepare([row | {"tools": tools, "system": "s"}], kind, format=form, fast=tokenizer(WITH_TOOLS))
    assert [text.startswith(INSTRUCTED) for text, _ in shown(given)] == [True] * (2 if kind == "pairs" else 1)
    without = prepare([row | {"tools": "", "system": None}], kind, format=form, fast=tokenizer(WITH_TOOLS))
    assert [trained for _, trained in shown(given)] == [trained for _, trained in shown(without)]
    assert [INSTRUCTED + text for text, _ in shown(without)] == [text for text, _ in shown(given)]


@pytest.mark.parametrize("tools", ["add", 3, [3], "[1]", '{"a"'])
def test_tools_that_are_none_are_refused(tools: Any) -> None:
    with pytest.raises(DataError, match="tools"):
        prepare([{"prompt": "q", "chosen": "4", "rejected": "5", "tools": tools}], "pairs", fast=tokenizer(WITH_TOOLS))
