"""Ask the model that is in memory: answers token by token at a step boundary, with or without its adapter; and how well
it knows a text.

answer        what it says to a prompt; each token is told as it is made, with its probability and what was near
token_losses  the loss of each token of a text, by one forward
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from nbtune.data.tokenize.prompts import prompt_ids
from nbtune.data.tokenize.terminators import Ends, end_ids, ends_of
from nbtune.errors import TrainError
from nbtune.models.first_values import as_the_base

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

OTHERS = 5  # alternatives that are told of a token
CUT = " […]"  # behind an answer that is shown as far as it came


@dataclass(frozen=True)
class Token:
    """A token of an answer.

    `text` is what it adds to the answer: "" where a character is not whole yet; of a special token its name. `loss` is
    −ln of its probability at temperature 1, `others` are the likeliest alternatives with theirs, likeliest first.
    """

    id: int
    text: str
    loss: float
    others: tuple[tuple[str, float], ...] = ()
    special: bool = False

    @property
    def probability(self) -> float:
        """0 to 1."""
        return math.exp(-self.loss)


def as_messages(prompt: str | Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a prompt as chat messages: a text is what the user says."""
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [dict(message) for message in prompt]


def answer(
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str | Sequence[dict[str, Any]],
    *,
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    seed: int | None = None,
    adapter: bool = True,
    told: Callable[[Token], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> str:
    """Return what the model says to a prompt, up to what ends an answer: by its own configuration, its tokenizer or its
    chat template, whichever comes first.

    Args:
        model: a causal language model, in training or not; it is left in the mode it was in.
        tokenizer: its tokenizer; without a chat template the prompt is continued as text.
        prompt: a text, or messages.
        max_new_tokens: the answer's length at most, in tokens.
        temperature: 0 is greedy; above it samples, from a random state of its own: a training goes on as if nobody
            had asked.
        seed: same seed, same draws; None: others each time.
        adapter: False asks the base without its adapter.
        told: is given each token as soon as it is made.
        should_stop: asked between tokens.
    Raises:
        TrainError: the base is asked for, and every weight was trained: it is not there any more.
    """
    how: dict[str, Any] = {"max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed}
    return answer_and_end(model, tokenizer, prompt, adapter=adapter, told=told, should_stop=should_stop, **how)[0]


def marked_answer(model: torch.nn.Module, tokenizer: PreTrainedTokenizerBase, prompt: Any, **how: Any) -> str:
    """Return what `answer` does, for people: with `CUT` behind one that was cut before it ended.

    Raises:
        TrainError: as `answer`.
    """
    text, ended = answer_and_end(model, tokenizer, prompt, **how)
    return text if ended else (text + CUT).strip()


def answer_and_end(
    model: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompt: str | Sequence[dict[str, Any]],
    *,
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    seed: int | None = None,
    adapter: bool = True,
    told: Callable[[Token], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> tuple[str, bool]:
    """Return an answer, and whether it ended by itself; arguments as of `answer`.

    Raises:
        TrainError: as `answer`.
    """
    import torch
    from transformers import LogitsProcessorList, StoppingCriteriaList

    inputs = _inputs(tokenizer, prompt).to(next(model.parameters()).device)
    stop = should_stop or (lambda: False)
    ends, usual = ends_of(tokenizer), getattr(model, "generation_config", None)
    last = end_ids(getattr(usual, "eos_token_id", None), tokenizer)
    training = model.training
    with torch.no_grad(), without_adapter(model, adapter):
        model.eval()
        try:
            output = model.generate(  # type: ignore[operator]
                input_ids=inputs,
                attention_mask=torch.ones_like(inputs),
                max_new_tokens=max_new_tokens,
                pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
                eos_token_id=last or None,
                use_cache=True,
                do_sample=False,
                logits_processor=LogitsProcessorList([_Chooser(model, tokenizer, ends, temperature, seed, told)]),
                stopping_criteria=StoppingCriteriaList(
                    [lambda ids, _: torch.full((len(ids),), stop(), device=ids.device)]
                ),
            )
        finally:
            model.train(training)
    made = output[0, inputs.shape[1] :].tolist()
    said = [number for number in made if number not in ends.hidden]
    return str(tokenizer.decode(said, skip_special_tokens=True)).strip(), bool(made) and made[-1] in last


def token_losses(model: torch.nn.Module, ids: Sequence[int], *, adapter: bool = True) -> list[float | None]:
    """Return −ln of each token's probability after those before it, by one forward; None for the first, which has none.

    Args:
        model: as of `answer`.
        ids: a text's tokens, at most as many as the model takes.
        adapter: False: of the base without its adapter.
    Raises:
        TrainError: as `answer`.
    """
    import torch

    if len(ids) < 2:
        return [None] * len(ids)
    tokens = torch.tensor([list(ids)], device=next(model.parameters()).device)
    training = model.training
    with torch.no_grad(), without_adapter(model, adapter):
        model.eval()
        try:
            logits = model(input_ids=tokens, attention_mask=torch.ones_like(tokens), use_cache=False).logits[0, :-1]
            losses = [
                torch.nn.functional.cross_entropy(part.float(), labels, reduction="none")
                for part, labels in zip(logits.split(256), tokens[0, 1:].split(256), strict=True)
            ]
        finally:
            model.train(training)
    return [None, *torch.cat(losses).tolist()]


def without_adapter(model: Any, adapter: bool) -> AbstractContextManager[Any]:
    """Return the model without its adapter, where `adapter` is False.

    Raises:
        TrainError: it has none: all its weights were trained.
    """
    if adapter:
        return nullcontext()
    if not hasattr(model, "disable_adapter"):
        raise TrainError(
            "every weight of this model was trained, so its base is not in memory",
            fix="compare with a checkpoint, or with another run",
        )
    return as_the_base(model)


class _Chooser:
    """The last of `generate`'s logits processors (it calls it with ids [1, n] and logits [1, vocabulary]): it chooses
    the token, so that it can tell it at once."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        ends: Ends,
        temperature: float,
        seed: int | None,
        told: Callable[[Token], None] | None,
    ) -> None:
        import torch
        from transformers import TopKLogitsWarper, TopPLogitsWarper

        self.temperature, self.told, self.pieces = temperature, told, _Pieces(tokenizer, ends.hidden)
        self.random = torch.Generator(device="cpu")
        self.random.manual_seed(seed) if seed is not None else self.random.seed()
        usual = getattr(model, "generation_config", None)  # what the model's makers cut off when they sample
        k, p = getattr(usual, "top_k", None), getattr(usual, "top_p", None)
        self.cut = [*([TopKLogitsWarper(k)] if k else []), *([TopPLogitsWarper(p)] if p and p < 1 else [])]

    def __call__(self, ids: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        import torch

        scores = logits.float()
        chosen = int(scores[0].argmax()) if self.temperature <= 0 else self._drawn(ids, scores)
        if self.told is not None:
            logprobs = scores[0].log_softmax(-1)
            likeliest = logprobs.topk(min(OTHERS + 1, len(logprobs)))
            near = zip(likeliest.indices.tolist(), likeliest.values.exp().tolist(), strict=True)
            others = [(number, share) for number, share in near if number != chosen][:OTHERS]
            self.told(self.pieces.token(chosen, -float(logprobs[chosen]), others))
        return torch.full_like(logits, -torch.inf).index_fill_(1, torch.tensor([chosen], device=logits.device), 0.0)

    def _drawn(self, ids: torch.Tensor, scores: torch.Tensor) -> int:
        import torch

        scores = scores / self.temperature
        for cut in self.cut:
            scores = cut(ids, scores)
        # drawn on the CPU: the same seed is the same answer on every device, as far as the model is the same
        return int(torch.multinomial(scores[0].softmax(-1).cpu(), 1, generator=self.random))


class _Pieces:
    """What each token adds to a text: some characters are made of several tokens, some tokenizers strip blanks."""

    def __init__(self, tokenizer: Any, hidden: Collection[int] = ()) -> None:
        self.tokenizer, self.special = tokenizer, {*tokenizer.all_special_ids, *hidden}
        self.ids: list[int] = []
        self.read = self.begin = 0

    def token(self, number: int, loss: float, others: Sequence[tuple[int, float]]) -> Token:
        shown = tuple((self.name(other), share) for other, share in others)
        if number in self.special:
            return Token(number, self.name(number), loss, shown, special=True)
        self.ids.append(number)
        before, now = self._text(self.ids[self.begin : self.read]), self._text(self.ids[self.begin :])
        if now.endswith("\ufffd") and len(self.ids) - self.read < 8:
            return Token(number, "", loss, shown)
        self.begin, self.read = self.read, len(self.ids)
        return Token(number, now[len(before) :], loss, shown)

    def name(self, number: int) -> str:
        """Return a token by itself; a part of a character as its bytes, such as ``‹C3›``."""
        text = str(self.tokenizer.decode([number]))
        return as_bytes(str(self.tokenizer.convert_ids_to_tokens(number))) if "\ufffd" in text or not text else text

    def _text(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))


def as_bytes(name: str) -> str:
    """Return a token's name in a byte-level vocabulary, where each byte has a letter of its own, as hexadecimal bytes.

    >>> as_bytes("ÃŁ"), as_bytes("<0xC3>")
    ('‹C3 9F›', '<0xC3>')
    """
    own = [*range(33, 127), *range(161, 173), *range(174, 256)]  # the bytes that stand for themselves
    letters = {chr(byte): byte for byte in own}
    letters |= {chr(256 + k): byte for k, byte in enumerate(byte for byte in range(256) if byte not in own)}
    if not name or any(letter not in letters for letter in name) or name.isascii():
        return name
    return f"‹{' '.join(f'{letters[letter]:02X}' for letter in name)}›"


def _inputs(tokenizer: PreTrainedTokenizerBase, prompt: str | Sequence[dict[str, Any]]) -> torch.Tensor:
    import torch

    if getattr(tokenizer, "chat_template", None):
        ids: Any = prompt_ids(tokenizer, as_messages(prompt))
    else:
        text = prompt if isinstance(prompt, str) else "\n".join(str(message["content"]) for message in prompt)
        ids = tokenizer(text)["input_ids"]
    return torch.tensor([ids])
