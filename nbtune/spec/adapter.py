"""The `adapter` part of a spec: what is trained."""

from __future__ import annotations

import re
from collections import Counter
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from nbtune.spec.parts import Part, field
from nbtune.spec.placement import PlacementWish


def adapter_from_word(value: Any) -> Any:
    """Read ``adapter: lora`` as ``adapter: {type: lora}``."""
    return {"type": value} if isinstance(value, str) else value


_OF_LORA = ("rank_pattern", "alpha_pattern", "init_lora_weights", "trainable_token_indices", "bias")
_OF_FULL = ("unfrozen_parameters",)
_NOTHING_TO = {
    "full": ("layers_to_transform", "modules_to_save", *_OF_LORA),
    "ia3": ("r", "alpha", "dropout", "use_rslora", "new_tokens", "new_special_tokens", *_OF_LORA, *_OF_FULL),
}


class AdapterSpec(Part):
    """What is trained: an adapter beside frozen weights, or every weight (`full`)."""

    type: Literal["lora", "qlora", "dora", "ia3", "full"] = field(
        "lora",
        "Kind",
        "lora: 16-bit frozen weights; qlora: 4-bit frozen weights; dora: LoRA with a learnt magnitude; "
        "ia3: a learnt factor for each key, value and inner value; full: every weight is trained.",
        example="lora",
    )
    r: int = field(
        16, "Rank", "Inner size of the adapter: higher learns more and costs more.", example=16, ge=1, le=1024
    )
    alpha: float | None = field(
        None,
        "Alpha",
        "The adapter's output is scaled by alpha / r; unset: equal to r.",
        example=16,
        gt=0,
        advanced=True,
    )
    dropout: float = field(
        0.0, "Dropout", "Share of the adapter's inputs dropped while training.", example=0.05, ge=0, lt=1, advanced=True
    )
    target_modules: Literal["all-linear"] | tuple[str, ...] | str = field(
        "all-linear",
        "Targets",
        "Which linear layers get an adapter: all of the blocks', a mixture's experts included (of ia3: keys, values "
        "and what leads out of the MLP); a list of names; or a regular expression of whole names.",
        example=["q_proj", "v_proj"],
        advanced=True,
    )
    layers_to_transform: tuple[Annotated[int, Field(ge=0)], ...] = field(
        (), "Layers", "Numbers of the layers that get an adapter, from 0 on; unset: all.", example=[0, 1], advanced=True
    )
    rank_pattern: dict[str, Annotated[int, Field(ge=1, le=1024)]] = field(
        {},
        "Ranks by name",
        "Ranks of some layers instead of `r`, by names or regular expressions of their ends.",
        example={"down_proj": 64},
        advanced=True,
    )
    alpha_pattern: dict[str, Annotated[float, Field(gt=0)]] = field(
        {}, "Alphas by name", "Likewise, instead of `alpha`.", example={"down_proj": 64}, advanced=True
    )
    init_lora_weights: Literal[
        "default", "gaussian", "orthogonal", "pissa", "pissa_niter_4", "pissa_niter_16", "olora", "loftq"
    ] = field(
        "default",
        "First values",
        "Of LoRA's A: Kaiming's, or normal ones; B is zero. orthogonal: both, of orthogonal rows; pissa, olora: the "
        "weights' own largest directions, which are taken out of them (niter: found faster); loftq, of qlora: what "
        "4 bits lost.",
        example="gaussian",
        advanced=True,
    )
    bias: Literal["none", "all", "lora_only"] = field(
        "none",
        "Biases",
        "Which of the model's own biases are trained beside a LoRA: all, or those of the layers that have one.",
        example="lora_only",
        advanced=True,
    )
    modules_to_save: tuple[str, ...] = field(
        (),
        "Trained whole",
        "Modules that are trained whole beside the adapter and saved with it, such as the head.",
        example=["lm_head"],
        advanced=True,
    )
    trainable_token_indices: tuple[Annotated[int, Field(ge=0)], ...] = field(
        (),
        "Trained tokens",
        "Numbers of tokens whose embeddings are trained beside the adapter (of a tied head the same rows), as of "
        "special tokens that the model knows and never learnt.",
        example=[2, 3],
        advanced=True,
    )
    new_tokens: tuple[Annotated[str, Field(min_length=1)], ...] = field(
        (),
        "New tokens",
        "Words that become a token each, with an embedding (and a row of the head) that begins as the mean of all and "
        "is trained; rows hold them as they are written.",
        example=["<step>"],
        advanced=True,
    )
    new_special_tokens: tuple[Annotated[str, Field(min_length=1)], ...] = field(
        (),
        "New special tokens",
        "The same, for a chat template of one's own: what looks like one in a row's text stays letters, and answers "
        "are shown without them.",
        example=["<|tool|>"],
        advanced=True,
    )
    unfrozen_parameters: tuple[str, ...] = field(
        (),
        "Unfrozen",
        "Of adapter `full`: regular expressions of how the names of trained weights begin; unset: all are.",
        example=["lm_head", r"model\.layers\.(2|3)\."],
        advanced=True,
    )
    use_rslora: bool = field(
        False, "rsLoRA", "Scale by alpha / sqrt(r), steadier at high ranks.", example=False, advanced=True
    )

    @property
    def lora_alpha(self) -> float:
        """`alpha`, or its default `r`."""
        return float(self.r) if self.alpha is None else self.alpha

    @property
    def changes_base(self) -> bool:
        """Whether the first values are taken out of the base's weights."""
        return self.init_lora_weights.startswith(("pissa", "olora"))

    @property
    def keeps_first_values(self) -> bool:
        """Whether the base is what it was only with the values that the run began with."""
        return self.changes_base or self.bias != "none"

    @property
    def grows(self) -> bool:
        """Whether the model is given more tokens than it knows."""
        return bool(self.new_tokens or self.new_special_tokens)

    @property
    def same_everywhere(self) -> bool:
        """Whether nothing but one rank's factors is trained, or every weight."""
        apart = self.bias != "none" or self.type == "ia3" or self.trainable_token_indices
        return not (apart or self.rank_pattern or self.modules_to_save or self.unfrozen_parameters)

    @property
    def idle(self) -> str:
        """What is set and changes nothing where every weight is trained; "" where all of it does something."""
        names = ("r", "alpha", "dropout", "use_rslora", "target_modules") if self.type == "full" else ()
        return next((name for name in names if getattr(self, name) != type(self).model_fields[name].default), "")

    @property
    def anywhere(self) -> AdapterSpec:
        """The same without what is said of single layers: for a copy of a model that has fewer."""
        alike: dict[str, Any] = {"layers_to_transform": (), "rank_pattern": {}, "alpha_pattern": {}}
        alike |= {"init_lora_weights": "default", "trainable_token_indices": ()}
        alike |= {"new_tokens": (), "new_special_tokens": ()}
        if isinstance(self.target_modules, str):
            alike["target_modules"] = "all-linear"
        return self.model_copy(update={**alike, "unfrozen_parameters": ()})

    def __hash__(self) -> int:
        return hash(self.model_dump_json())

    @model_validator(mode="after")
    def _fits(self) -> AdapterSpec:
        patterns = [*self.rank_pattern, *self.alpha_pattern, *self.unfrozen_parameters]
        for pattern in patterns if isinstance(self.target_modules, tuple) else [*patterns, self.target_modules]:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"`{pattern}` is no regular expression: {error}") from None
        fresh = (*self.new_tokens, *self.new_special_tokens)
        if twice := [name for name, count in Counter(fresh).items() if count > 1]:
            raise ValueError(f"`{twice[0]}` is two of the new tokens: name it once")
        counted = Counter(self.trainable_token_indices).items()
        if numbers := [number for number, count in counted if count > 1]:
            raise ValueError(f"`trainable_token_indices` has token {numbers[0]} twice: name it once")
        if blank := [name for name in fresh if name.strip() != name]:
            raise ValueError(f"a new token neither begins nor ends with a blank: `{blank[0]}`")
        for name in _NOTHING_TO.get(self.type, _OF_FULL):
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(f"`adapter.{name}` changes nothing of adapter `{self.type}`: drop it")
        if self.changes_base and self.type != "lora":
            raise ValueError(
                f"first values `{self.init_lora_weights}` are taken out of 16-bit weights, and adapter `{self.type}` "
                "has others beside: write `adapter: {type: lora}`, or drop `init_lora_weights`"
            )
        if self.init_lora_weights == "loftq" and not PlacementWish.of_spec("auto", self.type).on_device().four_bit:
            raise ValueError("first values `loftq` are what 4 bits lost: write `adapter: {type: qlora}`, or drop them")
        if self.init_lora_weights == "orthogonal" and any(r % 2 for r in (self.r, *self.rank_pattern.values())):
            raise ValueError("first values `orthogonal` want an even rank")
        return self
