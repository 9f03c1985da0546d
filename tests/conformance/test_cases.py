"""What Axolotl, LLaMA-Factory and TRL expect of rows in their own tests, told anew in cases/*.yaml, by file.

Rows go in through the public door; what comes out is compared with ids and labels that are written down there by hand.
A conversation stands there as its turns, ⟦what is trained⟧ in brackets and ¶ where a turn's end is, and is written here
in the way of each template (`STYLES`), without any template's help; ``text`` is a whole text in that spelling.
`differs` says where nbtune does something else than they, and why: the reasons stand in docs/data.md, too.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml

import nbtune
from nbtune.errors import NbtuneError
from tests.data.making import CHATML, templates, tokenizer


class Style(NamedTuple):
    """How a template writes: what stands before all, each turn's head, its end, what follows, and what ends all."""

    begin: str
    head: str
    end: str
    after: str = "\n"
    last: str = ""


STYLES = {
    "chatml": Style("", "<|im_start|>{role}\n", "<|im_end|>"),
    "llama3": Style("<s>", "<|start_header_id|>{role}<|end_header_id|>\n\n", "<|eot_id|>", ""),
    "gemma": Style("<s>", "<start_of_turn>{role}\n", "<end_of_turn>"),
    "phi3": Style("", "<|{role}|>\n", "<|end|>", last="</s>"),
    "eot": Style("", "{role}: ", "[EOT]"),
}
OWN = {
    "chatml": CHATML,
    "eot": (
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '[EOT]\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    ),
    "think": (
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + (eos_token if m['role'] == 'assistant' else '') "
        "+ '\n' }}{% endfor %}{% if add_generation_prompt %}{{ 'assistant: <think>' }}{% endif %}"
    ),
}
NAMES = {"gemma": {"assistant": "model"}}
SIMPLE = ["chatml", "llama3", "gemma", "phi3"]


def cases() -> list[Any]:
    """Each case with each of its templates, under a name that says both."""
    found = []
    for file in sorted((Path(__file__).parent / "cases").glob("*.yaml")):
        for case in yaml.safe_load(file.read_text(encoding="utf-8")):
            for name in case.get("templates", SIMPLE if "expect" in case else ["chatml"]):
                found.append(pytest.param(case, name, id=f"{file.stem}: {case['name']} ({name})"))
    return found


@cache
def speaker(name: str, bos: bool) -> Any:
    fast = tokenizer(OWN.get(name) or templates()[name], add_bos=bos)
    if name == "eot":
        fast.add_special_tokens({"additional_special_tokens": ["[EOT]"]})
    return fast


def written(turns: list[dict[str, str]], name: str) -> str:
    """A conversation as a template writes it, its marks kept."""
    style, names = STYLES[name], NAMES.get(name, {})
    said = [(role, text) for turn in turns for role, text in turn.items()]
    text = "".join(style.head.format(role=names.get(r, r)) + t.replace("¶", style.end) + style.after for r, t in said)
    return style.begin + text + style.last


def ids_and_labels(marked: str, fast: Any) -> tuple[list[int], list[int]]:
    """The tokens of a text without its marks; labels where they lie within brackets, else -100."""
    trained, plain, inside = [], "", False
    for sign in marked:
        if sign in "⟦⟧":
            inside = sign == "⟦"
        else:
            plain += sign
            trained.append(inside)
    told = fast(plain, add_special_tokens=False, return_offsets_mapping=True)
    labels = []
    for token, (start, end) in zip(told["input_ids"], told["offset_mapping"], strict=True):
        whole = {*trained[start:end]}
        assert len(whole) == 1, f"a token of the expectation lies across a bracket: {plain[start:end]!r}"
        labels.append(token if whole == {True} else -100)
    return told["input_ids"], labels


def expected(case: dict[str, Any], name: str, fast: Any) -> list[tuple[list[int], list[int]]]:
    texts = case.get("text") or [written(turns, name) for turns in case["expect"]]
    found = [ids_and_labels(f"⟦{text}⟧" if case.get("whole") else text, fast) for text in texts]
    limit = case.get("cut", 0)
    if limit:
        found = [(ids[:limit], labels[:limit]) if limit > 0 else (ids[limit:], labels[limit:]) for ids, labels in found]
    return found


def prepared(case: dict[str, Any], fast: Any) -> Any:
    """What nbtune makes of the rows, as a user asks for it."""
    rows = {"rows": case["rows"], "others": case.get("others")}
    method = {"pairs": "dpo", "feedback": "kto"}.get(case.get("kind", ""), "sft")
    fields = {"eval": {"split": 0}, "method": method, **case.get("spec", {})}
    kind = case.get("kind", "sft")
    fields["data"] = [{"source": "rows", **case.get("source", {})}]
    if kind == "stepwise":
        spec = nbtune.spec.from_mapping(fields)
    else:
        spec = nbtune.validate(fields, rows=rows)
    sources = nbtune.data.resolve(spec.data, rows)
    if spec.eval.data is not None:
        sources += nbtune.data.resolve([spec.eval.data], rows, role="eval")
    return nbtune.data.prepare_data(sources, fast, spec=spec, max_len=case.get("max_len", 512), seed=0, kind=kind)


def joined(examples: list[Any]) -> tuple[list[int], list[int]]:
    return [i for e in examples for i in e.input_ids], [i for e in examples for i in e.labels]


@pytest.mark.parametrize(("case", "name"), cases())
def test_a_case_of_theirs(case: dict[str, Any], name: str) -> None:
    fast = speaker(name, case.get("tokenizer") == "bos")
    if "refused" in case:
        with pytest.raises(NbtuneError, match=re.escape(case["refused"])) as caught:
            prepared(case, fast)
        assert caught.value.fix
        return
    data = prepared(case, fast)
    examples = list(data.train)
    if "expect" in case or "text" in case:
        right = expected(case, name, fast)
        if case.get("windows"):
            assert len(examples) > 1
            assert joined(examples) == right[0]
        else:
            assert [fast.decode(e.input_ids) for e in examples] == [fast.decode(ids) for ids, _ in right]
            assert [(e.input_ids, e.labels) for e in examples] == right
    assert len(examples) >= max(len(case.get("ends", [])), len(case.get("trained", [])))
    for example, text in zip(examples, case.get("ends", []), strict=False):
        ids, labels = ids_and_labels(text, fast)
        assert (example.input_ids[-len(ids) :], example.labels[-len(ids) :]) == (ids, labels)
    for example, text in zip(examples, case.get("trained", []), strict=False):
        assert fast.decode([i for i in example.labels if i != -100]) == text
    if "control" in case:
        control = set(fast.all_special_ids)
        assert sum(i in control for i in examples[0].input_ids) == case["control"]
    if "values" in case:
        assert data.train.value_of.tolist() == case["values"]
    if "steps" in case:
        judged = data.train.token_values
        assert judged[judged == judged].tolist() == case["steps"]
    assert len(examples) == case.get("count", len(examples))
    assert data.report.held_out == case.get("held_out", 0)
    assert data.report.count("dropped") == case.get("dropped", 0)
    assert any(case.get("warns", "") in warning for warning in (*data.report.warnings, ""))
