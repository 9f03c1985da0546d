"""Tokenizers, templates and conversations for the tests of the data room."""

from __future__ import annotations

import random
import re
from functools import cache
from pathlib import Path
from typing import Any

from tests.support.tiny_models import byte_level, sentencepiece_like

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

# Well-known templates that TRL does not ship, re-created.
RECREATED = {
    "chatml": CHATML,
    "chatml-marked": (
        "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
        "{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] }}{% endgeneration %}"
        "{% else %}{{ message['content'] }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "llama2": (
        "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}"
        "{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}"
        "{% set system_message = false %}{% endif %}{% for message in loop_messages %}"
        "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
        "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
        "{% if loop.index0 == 0 and system_message != false %}"
        "{% set content = '<<SYS>>\\n' + system_message + '\\n<</SYS>>\\n\\n' + message['content'] %}"
        "{% else %}{% set content = message['content'] %}{% endif %}{% if message['role'] == 'user' %}"
        "{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
        "{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
    ),
    "mistral": (
        "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}"
        "{{ '[INST] ' + message['content'] + ' [/INST]' }}{% elif message['role'] == 'assistant' %}"
        "{{ message['content'] + eos_token}}{% else %}"
        "{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"
    ),
    "zephyr": (
        "{% for message in messages %}\n{% if message['role'] == 'user' %}\n"
        "{{ '<|user|>\n' + message['content'] + eos_token }}\n"
        "{% elif message['role'] == 'system' %}\n{{ '<|system|>\n' + message['content'] + eos_token }}\n"
        "{% elif message['role'] == 'assistant' %}\n"
        "{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n{% endif %}\n"
        "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}"
    ),
    "vicuna": (
        "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'system' %}{{ message['content'] + ' ' }}"
        "{% elif message['role'] == 'user' %}{{ 'USER: ' + message['content'] + ' ' }}"
        "{% elif message['role'] == 'assistant' %}{{ 'ASSISTANT: ' + message['content'] + eos_token }}{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
    ),
    "olmo": (
        "{{ eos_token }}{% for message in messages %}\n{% if message['role'] == 'user' %}\n"
        "{{ '<|user|>\n' + message['content'] }}\n{% elif message['role'] == 'assistant' %}\n"
        "{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n{% endif %}\n"
        "{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}"
    ),
    "granite": (
        "{%- if messages[0]['role'] != 'system' %}{{ '<|start_of_role|>system<|end_of_role|>You are Granite."
        "<|end_of_text|>\n' }}{%- endif %}{%- for message in messages %}"
        "{{- '<|start_of_role|>' + message['role'] + '<|end_of_role|>' + message['content'] + '<|end_of_text|>\n' }}"
        "{%- endfor %}{%- if add_generation_prompt %}{{- '<|start_of_role|>assistant<|end_of_role|>' }}{%- endif %}"
    ),
    "falcon": (
        "{% for message in messages %}{{ message['role'] | capitalize ~ ': ' ~ message['content'] | trim ~ "
        "(eos_token if message['role'] == 'assistant' else '') ~ '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'Assistant: ' }}{% endif %}"
    ),
    "internlm": (
        "{{ bos_token }}{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
        "'<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
}
_CONTROL = re.compile(
    r"<\|[^\s'\"|{}<>]+\|>|<\|[\w\"]+>|<[\w\"]+\|>|<\|\"\|>|<｜[^\s'\"<>]+?｜>|<(?:start|end)_of_turn>|"
    r"<end_of_utterance>|</?s>|\[/?INST\]"
)
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "look",
            "description": "Looks something up.",
            "parameters": {"type": "object", "properties": {"what": {"type": "string"}}, "required": ["what"]},
        },
    }
]
_WORDS = ["alpha", "beta", "gamma", "délta", "漢字", "<b>x</b>", "{y}", "[z]", "12", "x=1;", "\n", "line\n\n", ""]
_WORDS += ["spaced", "\t", "tab", "It's", "naïve", "🙂", "end"]


@cache
def templates() -> dict[str, str]:
    """Chat templates that we did not write: those in TRL's package, and `RECREATED`."""
    import trl

    folder = Path(trl.__file__).parent / "chat_templates"
    found = {path.stem: path.read_text(encoding="utf-8") for path in sorted(folder.glob("*.jinja"))}
    return {**found, **RECREATED}


@cache
def _backend(kind: str) -> str:
    if kind == "bytes":
        return byte_level(vocab=400).to_str()
    if kind == "llama":
        return sentencepiece_like(prefix=True).to_str()
    if kind == "gemma":
        return sentencepiece_like(prefix=False).to_str()
    raise ValueError(kind)


@cache
def tokenizer(template: str | None = CHATML, kind: str = "bytes", add_bos: bool = False) -> Any:
    """A small tokenizer with the special tokens that a template writes."""
    from tokenizers import Tokenizer, processors
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer.from_str(_backend(kind))
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, **names)
    fast.add_special_tokens({"additional_special_tokens": sorted(set(_CONTROL.findall(template or "")))})
    fast.add_tokens([t for t in ("<think>", "</think>", "<tool_call>", "</tool_call>") if t in (template or "")])
    if add_bos:
        fast.backend_tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", fast.bos_token_id)]
        )
    fast.chat_template = template
    return fast


def words(rng: random.Random, count: int = 12) -> str:
    """Some text: words, code, runs of blanks, letters of other scripts."""
    return " ".join(rng.choice(_WORDS) for _ in range(rng.randint(1, count)))


def conversation(
    rng: random.Random, *, system: bool = True, tools: bool = False, thinking: bool = False
) -> list[dict[str, Any]]:
    """A conversation of one to three questions and answers that begin and end with letters."""
    messages: list[dict[str, Any]] = []
    if system and rng.random() < 0.5:
        messages.append({"role": "system", "content": words(rng)})
    for _ in range(rng.randint(1, 3)):
        messages.append({"role": "user", "content": rng.choice(["", "  ", "\n"]) + words(rng)})
        answer: dict[str, Any] = {"role": "assistant", "content": f"So {words(rng)} end"}
        if thinking and rng.random() < 0.5:
            answer["reasoning_content"] = f"Hm {words(rng)} so"
        elif thinking and rng.random() < 0.5:
            answer["content"] = f"<think>\nHm {words(rng)} so\n</think>\n\n{answer['content']}"
        if tools and rng.random() < 0.4:
            call = {"type": "function", "id": "c1", "function": {"name": "look", "arguments": {"what": words(rng)}}}
            messages.append({"role": "assistant", "content": "", "tool_calls": [call] * rng.randint(1, 2)})
            messages.append({"role": "tool", "name": "look", "tool_call_id": "c1", "content": words(rng)})
        messages.append(answer)
    return messages
