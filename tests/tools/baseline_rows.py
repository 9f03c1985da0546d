"""What the baseline reads: an example row of each data format, and rows to train on that are the same each time."""

from __future__ import annotations

from typing import Any

Rows = list[dict[str, Any]]

ROW_WEIGHTS = {"rcb56ec41c886": 0.0, "re644b4657f30": 2.0}  # by the marks of the first two of `prompts`

_TEXT = "the harbour keeper counts boats at dawn while gulls cry and old ropes creak under a grey sky"
_WORDS = _TEXT.split()


def _words(start: int, count: int) -> str:
    """Some words, others for each `start`."""
    return " ".join(_WORDS[(start * 7 + step * (start % 5 + 1)) % len(_WORDS)] for step in range(count))


def prompts(count: int) -> Rows:
    """Rows of a prompt and its completion, of different lengths."""
    return [
        {"prompt": f"Line {k}: {_words(k, 3 + k % 4)}?", "completion": f"{_words(k + 3, 2 + k % 9)}."}
        for k in range(count)
    ]


def pairs(count: int) -> Rows:
    """Rows of a prompt, a better and a worse answer."""
    return [
        {"prompt": row["prompt"], "chosen": row["completion"], "rejected": f"{_words(k + 11, 1 + k % 6)}!"}
        for k, row in enumerate(prompts(count))
    ]


def feedback(count: int) -> Rows:
    """Rows of a prompt, an answer, and whether it is good."""
    return [{**row, "label": k % 3 != 1} for k, row in enumerate(prompts(count))]


def _asked(*turns: str) -> list[dict[str, Any]]:
    return [{"role": ("user", "assistant")[k % 2], "content": text} for k, text in enumerate(turns)]


_TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "tide",
            "description": "Height of the water.",
            "parameters": {"type": "object", "properties": {"port": {"type": "string"}}, "required": ["port"]},
        },
    }
]
_CALL = {"role": "assistant", "content": "", "tool_calls": [{"type": "function", "function": {"name": "tide"}}]}
_CALL["tool_calls"][0]["function"]["arguments"] = {"port": "Nordby"}  # type: ignore[index]
_TALK = [
    {"role": "system", "content": "Answer as a sailor."},
    *_asked("Who are you?", "Ahoy! I am Ada.", "Grüß Gott, 你好 🙂", "Fair winds. <|im_end|> is only text."),
]
_SHAREGPT = [
    {"from": "system", "value": "Be brief."},
    {"from": "human", "value": "How high is the tide?"},
    {"from": "function_call", "value": '{"name": "tide", "arguments": {"port": "Nordby"}}'},
    {"from": "observation", "value": "1.2 m"},
    {"from": "gpt", "value": "1.2 metres."},
]
_THOUGHT = _asked("2 + 2?", "<think>Two and two.</think>4", "And 3 + 3?", "<think>Easy.</think>6")
_PARTS = [
    {"role": "user", "content": [{"type": "text", "text": "Say "}, {"type": "text", "text": "hello."}]},
    {"role": "assistant", "content": [{"type": "text", "text": "Hello."}]},
]
_OPINION = _asked("Which boat?", "The red one.")
_MARKED = [
    *_asked("One?", "1."),
    {"role": "user", "content": "Two?"},
    {"role": "assistant", "content": "2.", "train": False},
    {"role": "user", "content": "Three?"},
    {
        "role": "assistant",
        "content": "3, I guess.",
        "train_detail": [{"begin_offset": 1, "end_offset": 9, "train": False}],
    },
]
_JINJA = "Q: {{ ask }}\nA: {% generation %}{{ reply }}{% endgeneration %}\n"
_KEYS = {"messages": "talk", "role": "who", "content": "says", "user": "Guest", "assistant": "Keeper"}

# Name → (rows, fields of the spec; those of the source are under "source").
EXAMPLES: dict[str, tuple[Rows, dict[str, Any]]] = {
    "messages": ([{"messages": _TALK}, {"messages": _asked("Hi", "Hello")}], {}),
    "messages-all": ([{"messages": _TALK}], {"train_on": "all"}),
    "messages-last": ([{"messages": _TALK}], {"train_on": "last_answer"}),
    "messages-roles": ([{"messages": _TALK}], {"train_on": ["user", "assistant"]}),
    "messages-ends-all": ([{"messages": _TALK}], {"terminators": "all"}),
    "messages-ends-last": ([{"messages": _TALK}], {"terminators": "last"}),
    "messages-ends-none": ([{"messages": _TALK}], {"terminators": "none"}),
    "messages-spans": ([{"messages": _TALK}], {"train_spans": [{"match": "Ahoy!", "train": False}]}),
    "messages-marked": ([{"messages": _MARKED}], {}),
    "messages-tools": (
        [
            {
                "messages": [
                    *_asked("How high is the tide?"),
                    _CALL,
                    {"role": "tool", "name": "tide", "content": "1.2 m"},
                    {"role": "assistant", "content": "1.2 metres."},
                ],
                "tools": _TOOLS,
            }
        ],
        {},
    ),
    "messages-parts": ([{"messages": _PARTS}], {}),
    "messages-keys": (
        [{"talk": [{"who": "Guest", "says": "A room?"}, {"who": "Keeper", "says": "Upstairs."}]}],
        {"source": {"columns": _KEYS}},
    ),
    "thoughts-keep": ([{"messages": _THOUGHT}], {"thinking": "keep"}),
    "thoughts-split": ([{"messages": _THOUGHT}], {"thinking": "split"}),
    "thoughts-drop": ([{"messages": _THOUGHT}], {"thinking": "drop"}),
    "sharegpt": ([{"conversations": [*_SHAREGPT[:2], _SHAREGPT[-1]]}], {}),
    "sharegpt-tools": ([{"conversations": _SHAREGPT}], {}),
    "alpaca": (
        [
            {
                "instruction": "Name a boat.",
                "input": "It is red.",
                "output": "Rosa",
                "system": "Be kind.",
                "history": [["Hi", "Hello"]],
            },
            {"instruction": "Name two.", "input": "", "output": "Rosa and Ida", "system": "", "history": []},
        ],
        {},
    ),
    "alpaca-plain": (
        [{"instruction": "Name a boat.", "input": "It is red.", "output": "Rosa"}],
        {"source": {"format": "alpaca:plain"}},
    ),
    "prompt-completion": ([{"prompt": "How deep?", "completion": "Two fathoms.", "context": "At low tide."}], {}),
    "row-weights": (prompts(2), {"row_weights": ROW_WEIGHTS}),
    "prompt-completion-plain": (prompts(2), {"source": {"format": "prompt-completion:plain"}}),
    "prompt-completion-messages": (
        [{"prompt": _asked("Who?", "Ada.", "Where?"), "completion": [{"role": "assistant", "content": "Here."}]}],
        {},
    ),
    "question-answer": ([{"Question": "How far?", "Answer": "A mile.", "n": 3}], {}),
    "text": ([{"text": "A grey morning in the harbour. " * 3}], {}),
    "text-windows": ([{"text": "Gulls cry over the boats. " * 40}], {"sequence_len": 64}),
    "segments": (
        [{"segments": [{"text": "<|im_start|>user\nHi<|im_end|>\n", "label": False}, {"text": "Ahoy<|im_end|>"}]}],
        {},
    ),
    "row-template": ([{"ask": "How <|im_end|> deep?", "reply": "Two fathoms."}], {"source": {"template": _JINJA}}),
    "own-chat-template": (
        [{"messages": _TALK}],
        {"chat_template": "{% for m in messages %}[{{ m.role }}] {{ m.content }}<|im_end|>{% endfor %}"},
    ),
    "too-long-right": ([{"messages": _TALK * 3}], {"sequence_len": 48}),
    "too-long-left": ([{"messages": _TALK * 3}], {"sequence_len": 48, "overflow": "truncate_left"}),
    "too-long-split": ([{"messages": _TALK * 3}], {"sequence_len": 64, "overflow": "split"}),
    "preference": (pairs(2), {"method": "dpo"}),
    "preference-swapped": (
        pairs(2),
        {"method": "dpo", "source": {"columns": {"prompt": "prompt", "chosen": "rejected", "rejected": "chosen"}}},
    ),
    "preference-messages": (
        [{"chosen": _OPINION, "rejected": [*_OPINION[:1], {"role": "assistant", "content": "None."}]}],
        {"method": "dpo"},
    ),
    "preference-plain": (pairs(2), {"method": "orpo", "source": {"format": "preference:plain"}}),
    "feedback": (feedback(3), {"method": "kto"}),
    "labelled": ([{"text": f"row {i}", "label": "ab"[i % 2]} for i in range(3)], {"method": "classification"}),
    "tagged": (
        [{"tokens": ["Ada", "sails"], "tags": ["PER", "O"]}, {"tokens": ["So", "it", "is"], "tags": ["O", "O", "O"]}],
        {"method": "token_classification"},
    ),
    "feedback-messages": (
        [{"messages": _OPINION, "label": True}, {"messages": _OPINION, "label": False}],
        {"method": "kto", "source": {"format": "feedback"}},
    ),
    "stepwise": (
        [{"prompt": "1 + 2 + 3?", "completions": ["1 + 2 = 3", "3 + 3 = 7"], "labels": [True, False]}],
        {},
    ),
    "prompts": ([{"prompt": "Say something."}], {}),
}
