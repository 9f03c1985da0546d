"""TRL's own preparation of the shapes of its rows, run beside ours, with the templates that it ships.

TRL trains everything behind the prompt; here a turn ends with its terminator, and a line break that the template writes
behind it is not trained.
"""

from __future__ import annotations

from typing import Any

import pytest

import nbtune
from tests.data.making import templates, tokenizer

ASK = [{"role": "user", "content": "What color is the sky?"}]
BLUE, GREEN = [{"role": "assistant", "content": "It is blue."}], [{"role": "assistant", "content": "It is green."}]
ROWS: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
    "messages": ("sft", {"messages": [*ASK, *BLUE]}, ("text",)),
    "prompt and completion": ("sft", {"prompt": ASK, "completion": BLUE}, ("completion",)),
    "preference": ("dpo", {"prompt": ASK, "chosen": BLUE, "rejected": GREEN}, ("chosen", "rejected")),
    "implicit prompt": ("dpo", {"chosen": [*ASK, *BLUE], "rejected": [*ASK, *GREEN]}, ("chosen", "rejected")),
    "judged": ("kto", {"prompt": ASK, "completion": BLUE, "label": True}, ("completion",)),
}  # fmt: skip
NAMES = ["chatml", "cohere2", "falcon", "gemma", "gemma3", "glm4moe", "granite", "lfm2", "llama3", "llama3_2", "phi3",
         "qwen2_5", "qwen3", "qwen3_instruct_2507"]  # fmt: skip


@pytest.mark.parametrize("shape", ROWS)
@pytest.mark.parametrize("name", NAMES)
def test_tokens_are_those_of_trl(name: str, shape: str) -> None:
    from trl.data_utils import apply_chat_template, maybe_extract_prompt

    method, row, answers = ROWS[shape]
    fast = tokenizer(templates()[name])
    spec = nbtune.validate({"data": "rows", "method": method, "eval": {"split": 0}}, rows={"rows": [row]})
    sources = nbtune.data.resolve(spec.data, {"rows": [row]})
    ours = list(nbtune.data.prepare_data(sources, fast, spec=spec, max_len=4096, seed=0).train)
    told = apply_chat_template(maybe_extract_prompt(row), fast)
    for example, answer in zip(ours, answers, strict=True):
        text = told.get("prompt", "") + told[answer]
        theirs = fast(text, add_special_tokens=False)["input_ids"]
        appended = [] if name != "glm4moe" else example.input_ids[len(theirs) :]  # no turn of GLM's has an end
        assert example.input_ids == theirs + appended
        learnt = fast.decode([i for i in example.labels if i != -100])
        if "prompt" in told:
            before, _, behind = (told[answer] + fast.decode(appended)).partition(learnt)
            assert not before.strip()
            assert behind.strip() in ("", "</s>")
        assert ("It is green." if answer == "rejected" else "It is blue.") in learnt
