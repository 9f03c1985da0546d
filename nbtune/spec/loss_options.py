"""The `loss` part of a spec: which of a method's losses, and its options; and what of a spec fits its method.

The options and their defaults are the methods' own (`nbtune.methods.Method.options`); here they have a title, a
sentence and limits.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from nbtune.methods import METHODS, Method, loss_types, without_reference
from nbtune.spec.parts import Part, field
from nbtune.spec.rewards import must_fit as rewards_fit
from nbtune.spec.text_metrics import must_fit as metrics_fit

if TYPE_CHECKING:
    from nbtune.spec.model import RunSpec

    LossType = str
else:
    LossType = Literal[tuple(loss_types())]

_OF_TOKENS = ("train_on", "train_spans", "terminators")  # which tokens have a loss
_NOT_ROLES = ("", "answers", "last_answer", "all")
_OTHER_ROLES = {
    **dict.fromkeys(("human", "prompter", "users"), "user"),
    **dict.fromkeys(("gpt", "chatgpt", "bot", "model", "ai", "assistants", "answer"), "assistant"),
    **dict.fromkeys(("function", "observation", "tool_response", "tools"), "tool"),
}
_OTHER_NAMES = {"type": "loss_type"}  # of an option where it is the loss's argument


def loss_from_word(value: Any) -> Any:
    """Read ``loss: hinge`` as ``loss: {type: hinge}``."""
    return {"type": value} if isinstance(value, str) else value


class LossSpec(Part):
    """A method's loss, if not as its paper has it. What is unset is as the table of methods says."""

    type: LossType | None = field(
        None,
        "Kind",
        "Which of its method's losses, by the name it has in TRL; unset: sigmoid.",
        example="hinge",
        advanced=True,
    )
    label_smoothing: float | None = field(
        None,
        "Label smoothing",
        "The share of pairs that may be the wrong way round, of labels that may be wrong, or of each trained token "
        "that all tokens have in common.",
        example=0.1,
        ge=0,
        lt=0.5,
        advanced=True,
    )
    z_loss: float | None = field(
        None,
        "Z-loss",
        "Weight of the squared logarithm of the softmax's denominator, which keeps logits small.",
        example=1e-4,
        ge=0,
        advanced=True,
    )
    rpo_alpha: float | None = field(
        None,
        "RPO's alpha",
        "How much the better answers are also imitated, beside dpo.",
        example=1.0,
        ge=0,
        advanced=True,
    )
    center_rewards: float | None = field(
        None,
        "Rewards around 0",
        "How strongly a reward model keeps the rewards of a pair around 0.",
        example=0.01,
        ge=0,
        advanced=True,
    )
    cpo_alpha: float | None = field(
        None,
        "CPO's alpha",
        "How much the better answers are also imitated, beside cpo.",
        example=1.0,
        ge=0,
        advanced=True,
    )
    length_normalized: bool | None = field(
        None,
        "A token",
        "Log-probabilities are divided by the answer's tokens, so that long ones do not weigh more.",
        example=True,
        advanced=True,
    )
    gamma: float | None = field(
        None, "Gamma", "The margin that simpo wants between the answers.", example=0.5, ge=0, advanced=True
    )
    desirable_weight: float | None = field(
        None, "Weight of good answers", "How much the loss of good answers counts.", example=1.0, gt=0, advanced=True
    )
    undesirable_weight: float | None = field(
        None, "Weight of bad answers", "How much the loss of bad answers counts.", example=1.33, gt=0, advanced=True
    )

    temperature: float | None = field(
        None,
        "Temperature",
        "Of distill: above 1 what the teacher holds unlikely counts more.",
        example=2.0,
        gt=0,
        advanced=True,
    )
    alpha: float | None = field(
        None,
        "Share of the rows",
        "Of distill: how much the rows' own tokens count beside what the teacher says of them.",
        example=0.5,
        ge=0,
        le=1,
        advanced=True,
    )

    top_k: int | None = field(
        None,
        "Likeliest tokens",
        "Of distill: the teacher is asked once, before the first step, and so many of its likeliest tokens of each "
        "place are written down; unset: it is asked in every step.",
        example=64,
        ge=1,
        le=65536,
        advanced=True,
    )

    @property
    def options(self) -> dict[str, float | str]:
        """What is set, by the names of the loss's arguments."""
        return {_OTHER_NAMES.get(key, key): value for key, value in self.model_dump(exclude_none=True).items()}


def options_of(spec: RunSpec) -> dict[str, float | str]:
    """Return what a spec says of its method's loss instead of the method's own."""
    return {**({} if spec.beta is None else {"beta": spec.beta}), **spec.loss.options}


def takes_logits(spec: RunSpec) -> bool:
    """Return whether the loss of tokens is more than cross-entropy, and takes whole logits."""
    return METHODS[spec.method].by_tokens and bool(spec.loss.label_smoothing or spec.loss.z_loss)


def must_fit(spec: RunSpec) -> None:
    """Refuse what a spec's method does not know, or cannot do.

    Raises:
        ValueError: the sentence, as pydantic's validators raise it.
    """
    method = METHODS[spec.method]
    if spec.beta is not None and "beta" not in method.options:
        first = next(name for name, other in METHODS.items() if "beta" in other.options)
        raise ValueError(f"`beta` is of methods that learn preferences: drop it, or set `method: {first}`")
    if spec.beta == 0 and not method.online:
        raise ValueError(f"with `beta: 0` method `{spec.method}` would learn nothing of what is preferred: take more")
    for key in spec.loss.model_dump(exclude_none=True):
        _must_take(method, key, spec.loss)
    if spec.optim_args.ema_decay and spec.eval.load_best:
        raise ValueError("`eval.load_best` and `optim_args.ema_decay` each say with what a run ends: drop one")
    rewards_fit(spec)
    _must_be_roles(spec.train_on)
    metrics_fit(spec)
    if method.teacher != (spec.teacher is not None):
        raise ValueError(
            f"method `{spec.method}` learns from a teacher: name it, `teacher: org/name`"
            if method.teacher
            else f"`teacher` is nothing to method `{spec.method}`: drop it"
        )
    if spec.loss.top_k and spec.gpus != 1:
        raise ValueError("`loss.top_k` is written and read by one process: drop it, or `gpus`")
    if method.head and spec.samples:
        raise ValueError(f"method `{spec.method}` gives scores and writes no answers: drop `samples`")
    if method.head and (idle := next((key for key in _OF_TOKENS if key in spec.model_fields_set), None)):
        raise ValueError(f"method `{spec.method}` learns from scores, not from tokens: drop `{idle}`")
    if spec.labels and (not method.names_labels or len({*spec.labels}) < max(2, len(spec.labels))):
        raise ValueError(
            f"`labels` is nothing to method `{spec.method}`: drop it"
            if not method.names_labels
            else "`labels` names two labels or more, each once"
        )
    if spec.adapter.type == "full" and method.reference:
        raise ValueError(
            f"method `{spec.method}` compares with the model without its adapter, and adapter `full` has none: "
            f"use lora, or the method {' or '.join(without_reference())}"
        )
    batch = spec.batch_size or (spec.micro_batch_size or 0) * (spec.gradient_accumulation_steps or 1)
    if batch and batch < method.least_batch and spec.packing is not True:
        raise ValueError(
            f"method `{spec.method}` compares the answers of a step: set batch_size to {method.least_batch} or more"
        )


def _must_be_roles(train_on: str | tuple[str, ...]) -> None:
    """Refuse words that no message's role is, as rows are read: other tools' words for roles, keys, capitals."""
    for role in () if isinstance(train_on, str) else train_on:
        plain = role.strip().lower()
        meant = _OTHER_ROLES.get(plain, plain)
        if plain in _NOT_ROLES:
            raise ValueError(f"`train_on` is a list of roles, or one word: write `train_on: {plain or 'answers'}`")
        if meant != role:
            raise ValueError(f"`train_on: [{role}]`: rows are read with the role `{meant}` for it, write that")


def _must_take(method: Method, key: str, loss: LossSpec) -> None:
    option, kind = _OTHER_NAMES.get(key, key), loss.type or method.options.get("loss_type")
    if option not in method.options:
        others = [name for name, other in METHODS.items() if option in other.options]
        raise ValueError(f"`loss.{key}` is nothing to method `{method.name}`, but to {', '.join(others)}: drop it")
    if key == "type":
        if loss.type not in method.loss_types:
            raise ValueError(f"method `{method.name}` has no loss `{loss.type}`; it has {', '.join(method.loss_types)}")
    elif method.loss_types and option not in method.loss_types[str(kind)]:
        able = [name for name, options in method.loss_types.items() if option in options]
        raise ValueError(f"`loss.{key}` is nothing to the loss `{kind}`, but to {', '.join(able)}: drop it")
