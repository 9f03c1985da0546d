"""Ask the model that is in memory: greedy answers at a step boundary, with or without its adapter."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

__all__ = ["answer", "as_messages"]


def as_messages(prompt: str | Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A prompt as chat messages: a text is what the user says."""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [dict(message) for message in prompt]


def answer(
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str | Sequence[dict[str, Any]],
    *,
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    adapter: bool = True,
    should_stop: Callable[[], bool] | None = None,
) -> str:
    """What the model says to a prompt.

    Args:
        model: a causal language model, in training or not; it is left in the mode it was in.
        tokenizer: its tokenizer; without a chat template the prompt is continued as text.
        prompt: a text, or messages.
        max_new_tokens: the answer's length at most, in tokens.
        temperature: 0 is greedy; above it samples (and draws from torch's random state).
        adapter: False asks the base without its adapter.
        should_stop: asked between tokens.
    """
    import torch
    from transformers import StoppingCriteriaList

    inputs = _inputs(tokenizer, prompt).to(next(model.parameters()).device)
    without: AbstractContextManager[Any] = (
        nullcontext() if adapter or not hasattr(model, "disable_adapter") else model.disable_adapter()
    )
    options: dict[str, Any] = {"do_sample": temperature > 0}
    if temperature > 0:
        options["temperature"] = temperature
    if should_stop is not None:
        stop = should_stop
        options["stopping_criteria"] = StoppingCriteriaList(
            [lambda ids, _: torch.full((len(ids),), stop(), device=ids.device)]
        )
    training = model.training
    model.eval()
    try:
        with torch.no_grad(), without:
            output = model.generate(  # type: ignore[operator]
                input_ids=inputs,
                attention_mask=torch.ones_like(inputs),
                max_new_tokens=max_new_tokens,
                pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
                use_cache=True,
                **options,
            )
    finally:
        model.train(training)
    return tokenizer.decode(output[0, inputs.shape[1] :], skip_special_tokens=True).strip()


def _inputs(tokenizer: PreTrainedTokenizerBase, prompt: str | Sequence[dict[str, Any]]) -> torch.Tensor:
    import torch

    if getattr(tokenizer, "chat_template", None):
        text = tokenizer.apply_chat_template(as_messages(prompt), tokenize=False, add_generation_prompt=True)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]  # the template writes BOS where there is one
    else:
        text = prompt if isinstance(prompt, str) else "\n".join(str(message["content"]) for message in prompt)
        ids = tokenizer(text)["input_ids"]
    return torch.tensor([ids])
