"""What TRL's trainers ask is what the rows say: text stays text, and tools are there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import nbtune
from nbtune.data.formats.messages import Chat
from nbtune.data.tokenize.prompts import prompt_ids
from nbtune.engine.trainer_tokenizer import for_trainer
from nbtune.errors import DataError
from nbtune.events import Warning as Warned
from nbtune.models.loading import load_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore")  # of TRL and what it imports
TOOLS = [{"type": "function", "function": {"name": "weigh", "parameters": {}}}]
TEMPLATE = (
    "{% if tools %}<|im_start|>tools\n{{ tools | tojson }}<|im_end|>\n{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def chat(text: str, tools: Any = None) -> Chat:
    return Chat([{"role": "user", "content": text}], tools)


@pytest.mark.parametrize("method", ["grpo", "rloo"])
def test_a_trainer_asks_what_the_rows_say(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import trl

    kind, seen = getattr(trl, f"{method.upper()}Trainer"), []
    whole = kind._tokenize_prompts

    def watched(self: Any, prompts: Any) -> Any:
        made = whole(self, prompts)
        seen.extend(zip((one[-1]["content"] for one in prompts), made[0], strict=True))
        return made

    monkeypatch.setattr(kind, "_tokenize_prompts", watched)
    rows: list[dict[str, Any]] = [
        {"prompt": "Say <|im_end|> and <|im_start|>"}, {"prompt": "Weigh salt", "tools": TOOLS}, {"prompt": "Say tar"},
        {"prompt": [{"role": "system", "content": "No </s>"}, {"role": "user", "content": "Say<|im_end|>"}]},
    ]  # fmt: skip
    known = {"rows": rows, "short": lambda completions: [1 / (1 + len(text)) for text in completions]}
    rewards = {"functions": ["short"], "answers": 2, "max_new_tokens": 3}
    asked: dict[str, Any] = {"method": method, "batch_size": 4, "steps": 1, "chat_template": TEMPLATE, "data": "rows"}
    run = nbtune.finetune(**asked, rewards=rewards, rows=known, runs_dir=tmp_path, eval={"split": 0}).wait()
    assert run.state == "finished", run.error
    assert not [event for event in run.events() if isinstance(event, Warned) and "left out" in event.message]

    tokenizer = load_tokenizer("nbtune/tiny")
    tokenizer.chat_template = TEMPLATE
    asked_of = dict(seen)
    assert set(asked_of) == {"Say <|im_end|> and <|im_start|>", "Weigh salt", "Say tar", "Say<|im_end|>"}
    ends = {text: ids.count(tokenizer.eos_token_id) for text, ids in asked_of.items()}
    assert ends == {"Say <|im_end|> and <|im_start|>": 1, "Weigh salt": 2, "Say tar": 1, "Say<|im_end|>": 2}
    assert asked_of["Weigh salt"] == prompt_ids(tokenizer, chat("Weigh salt").messages, TOOLS)
    assert '"weigh"' in tokenizer.decode(asked_of["Weigh salt"])
    assert {text: tokenizer.decode(ids).count(text) for text, ids in asked_of.items()} == dict.fromkeys(asked_of, 1)


def test_a_tokenizer_is_given_as_it_is_where_it_makes_the_same_of_all() -> None:
    tokenizer = load_tokenizer("nbtune/tiny")
    assert for_trainer(tokenizer, [chat("Say tar"), chat("Say salt")]) is tokenizer


def test_other_ways_to_ask_a_tokenizer_stay_as_they_were(tmp_path: Path) -> None:
    tokenizer = load_tokenizer("nbtune/tiny")
    made = for_trainer(tokenizer, [chat("Say <|im_end|>")])
    assert made is not tokenizer
    assert type(tokenizer) is not type(made)
    one = chat("Say <|im_end|>").messages
    for how in ({"tokenize": False}, {"tokenize": True}, {"add_generation_prompt": True, "tokenize": False}):
        assert made.apply_chat_template(one, **how) == tokenizer.apply_chat_template(one, **how)
    assert made("Say tar") == tokenizer("Say tar")
    made.save_pretrained(tmp_path / "made")
    tokenizer.save_pretrained(tmp_path / "own")
    assert (tmp_path / "made" / "tokenizer_config.json").read_text() == (
        tmp_path / "own" / "tokenizer_config.json"
    ).read_text()


def test_the_same_question_with_other_tools_is_refused() -> None:
    tokenizer = load_tokenizer("nbtune/tiny")
    with pytest.raises(DataError, match="two rows ask the same with other tools"):
        for_trainer(tokenizer, [chat("Say tar", TOOLS), chat("Say tar")])
