"""Does generation stop where trained answers end? Tried: the model is made to say the token that ends them, once.

A plan asks a toy in the model's place (what stops an answer is a matter of the tokenizer, its template and of
`nbtune.generate.sampling`), a run the model that it has loaded.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from nbtune.data.tokenize.terminators import trained_end
from nbtune.errors import DataError
from nbtune.generate.sampling import Token, answer
from nbtune.models.abilities import Claim
from nbtune.models.accelerate.detect import causal_lm

if TYPE_CHECKING:
    from torch import nn

    from nbtune.spec import RunSpec

_GIVEN_UP = 4  # tokens


def stops_where_answers_end(tokenizer: Any, spec: RunSpec, model: nn.Module | None = None) -> Claim:
    """Return whether what ends a trained answer ends a generated one.

    Args:
        tokenizer: with the template that is trained by.
        spec: of the run.
        model: loaded, with its adapter; None: a toy is asked.
    """
    try:
        end = trained_end(tokenizer, spec)
    except DataError as error:
        return Claim(words=error.cause)
    if end is None:
        return Claim(holds=False, words="no token that ends an answer is trained, so that answers go on to their limit")
    name = str(tokenizer.convert_ids_to_tokens(end))
    said: list[Token] = []
    lm = causal_lm(_toy(len(tokenizer)) if model is None else model)
    handle = lm.register_forward_hook(partial(_saying, end))
    try:
        answer(lm if model is None else model, tokenizer, "Hi", max_new_tokens=_GIVEN_UP, told=said.append)
    except Exception as error:  # noqa: BLE001 — templates and models are others' code: nothing is claimed then
        return Claim(words=f"it could not be tried ({type(error).__name__}: {' '.join(str(error).split())[:120]})")
    finally:
        handle.remove()
    return Claim(holds=len(said) == 1, words=f"at {name}, which ends trained answers")


def _saying(end: int, _module: Any, _inputs: Any, output: Any) -> Any:
    """Return a forward hook: the likeliest next token is `end`."""
    logits = output.logits.detach().clone()
    logits[...] = 0.0
    logits[..., end] = 1.0
    output.logits = logits
    return output


def _toy(vocabulary: int) -> nn.Module:
    """Return a causal language model with so many tokens, and no numbers that count."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        return LlamaForCausalLM(config).eval()
