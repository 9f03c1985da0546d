"""Names that peers have for formats: Axolotl's `type`, LLaMA-Factory's `formatting`, TRL's dataset formats."""

from __future__ import annotations

from collections.abc import Sequence

# (format, columns where they are not the usual ones)
PEERS: dict[str, tuple[str, dict[str, str]]] = {
    # Axolotl
    "chat_template": ("messages", {}),
    "chat_template.default": ("messages", {}),
    "completion": ("text", {}),
    "pretrain": ("text", {}),
    "input_output": ("segments", {}),
    "alpaca_chat": ("alpaca", {}),
    "alpaca_chat.load_qa": ("prompt-completion", {"prompt": "question", "completion": "answer"}),
    "alpaca_chat.load_concise": ("alpaca", {}),
    "alpaca_chat.load_camel_ai": ("prompt-completion", {"prompt": "message_1", "completion": "message_2"}),
    "alpaca_w_system": ("alpaca", {}),
    "alpaca_w_system.load_open_orca": ("prompt-completion", {"prompt": "question", "completion": "response"}),
    "alpaca_w_system.load_open_orca_chatml": ("prompt-completion", {"prompt": "question", "completion": "response"}),
    "alpaca_instruct": ("alpaca", {}),
    "creative_acr.load_answer": ("prompt-completion", {"prompt": "instruction", "completion": "revision"}),
    "context_qa": ("prompt-completion", {"prompt": "question", "completion": "answer"}),
    "context_qa.load_404": ("prompt-completion", {"prompt": "question", "completion": "answer"}),
    "gpteacher": ("alpaca", {"output": "response"}),
    "metharme": ("prompt-completion", {"prompt": "prompt", "completion": "generation"}),
    "oasst": ("prompt-completion", {"prompt": "INSTRUCTION", "completion": "RESPONSE"}),
    "orcamini": ("alpaca", {}),
    "passthrough": ("preference:plain", {}),
    "pygmalion": ("messages", {"messages": "conversations"}),
    "summarizetldr": ("prompt-completion", {"prompt": "article", "completion": "summary"}),
    "sharegpt_simple": ("sharegpt", {}),
    "vicuna": ("sharegpt", {}),
    "llama2_chat": ("sharegpt", {}),
    "stepwise_supervised": ("stepwise", {}),
    # LLaMA-Factory, TRL and others
    "openai": ("messages", {}),
    "chatml": ("messages", {}),
    "chat": ("messages", {}),
    "conversational": ("messages", {}),
    "language_modeling": ("text", {}),
    "pretraining": ("text", {}),
    "prompt_completion": ("prompt-completion", {}),
    "prompt-response": ("prompt-completion", {}),
    "qa": ("prompt-completion", {}),
    "template-free": ("segments", {}),
    "dpo": ("preference", {}),
    "ranking": ("preference", {}),
    "bradley_terry": ("preference", {}),
    "kto": ("feedback", {}),
    "unpaired_preference": ("feedback", {}),
    "prompt_only": ("prompts", {}),
}

# Axolotl names a template and a data set's shape (`chatml.intel`); the template is the model's own here.
_TEMPLATES = ("chatml", "llama3", "mistral", "zephyr", "chat_template", "user_defined")
_SHAPES = ("argilla", "argilla_chat", "icr", "intel", "prompt_pairs", "ultra", "default")


def judged_name(name: str, columns: Sequence[str]) -> str | None:
    """Return `preference` or `feedback` for a name such as `chatml.intel`, by the columns that are there."""
    template, dot, shape = name.partition(".")
    if not dot or template not in _TEMPLATES or shape not in _SHAPES:
        return None
    names = {column.lower() for column in columns}
    if names & {"chosen", "chosen_response"}:
        return "preference"
    return "feedback" if "label" in names else None
