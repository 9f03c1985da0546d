"""How trained numbers are changed: the optimizers and schedules that a spec may name, and what each can be told.

What each needs of memory and of a machine stands here too, for the plan; `nbtune.train.optimizer` and
`nbtune.train.schedule` make them, from libraries.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel

from nbtune.spec.parts import Part, field

_ADAM = ("beta1", "beta2", "eps")
_EIGHT_BITS = 1 + 4 / 256  # of a number, and its share of the scale that 256 have in common


@dataclass(frozen=True)
class OptimizerKind:
    """An optimizer by name.

    Args:
        words: what it is, for people.
        state_bytes: of a trained number's state; None: `nbtune.models.memory_estimate.state_bytes` says how many.
        named: its class; "": `nbtune.train.optimizer` makes it of several.
        library: where that comes from.
        reads: which fields of `OptimArgs` change it.
        told: what its class is told in every run.
        beta2: its second beta, where `OptimArgs` leaves it open.
        paged: its state moves to the host's memory when a GPU is full.
    """

    words: str
    state_bytes: float | None
    named: str = ""
    library: Literal["torch.optim", "transformers.optimization", "bitsandbytes.optim"] = "torch.optim"
    reads: tuple[str, ...] = _ADAM
    told: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    beta2: float = 0.999
    paged: bool = False


def _bnb(words: str, state_bytes: float, named: str) -> OptimizerKind:
    lion: Any = {"reads": ("beta1", "beta2"), "beta2": 0.99} if "Lion" in named else {}
    return OptimizerKind(words, state_bytes, named, "bitsandbytes.optim", paged=named.startswith("Paged"), **lion)


OPTIMIZERS: dict[str, OptimizerKind] = {
    "adamw": OptimizerKind("AdamW", 8, "AdamW"),
    "adamw_8bit": _bnb("AdamW with 8-bit state", 2 * _EIGHT_BITS, "AdamW8bit"),
    "paged_adamw": _bnb("AdamW whose state leaves a full GPU", 8, "PagedAdamW"),
    "paged_adamw_8bit": _bnb("both", 2 * _EIGHT_BITS, "PagedAdamW8bit"),
    "adafactor": OptimizerKind(
        "keeps sums of rows and columns in place of a number's own",
        None,
        "Adafactor",
        "transformers.optimization",
        reads=(),
        told={"scale_parameter": False, "relative_step": False},
    ),
    "lion": _bnb("goes by the signs of its averages", 4, "Lion"),
    "lion_8bit": _bnb("with 8-bit state", _EIGHT_BITS, "Lion8bit"),
    "paged_lion": _bnb("whose state leaves a full GPU", 4, "PagedLion"),
    "paged_lion_8bit": _bnb("both", _EIGHT_BITS, "PagedLion8bit"),
    "muon": OptimizerKind(
        "orthogonal steps for the blocks' matrices, AdamW for the rest", None, reads=(*_ADAM, "momentum")
    ),
}

# what others have and nbtune has not, and why
WITHOUT: dict[str, str] = dict.fromkeys(
    ("adamw_4bit", "adamw_torch_4bit", "ao_adamw_4bit"),
    "bitsandbytes has no 4-bit AdamW, and torchao's is compiled for each shape of weights: `adamw_8bit` keeps two "
    "bytes a number in place of eight",
) | dict.fromkeys(
    ("lomo", "adalomo"),
    "updating in backward is not an optimizer's: `optim_args: {in_backward: true}` does it by any, with "
    "`optim: adafactor` almost without states",
)

# which fields of `ScheduleArgs` change a schedule
SCHEDULES: dict[str, tuple[str, ...]] = {
    "linear": ("warmup_steps", "floor"),
    "cosine": ("warmup_steps", "floor"),
    "constant": (),
    "constant_with_warmup": ("warmup_steps",),
    "cosine_with_restarts": ("warmup_steps", "cycles"),
    "polynomial": ("warmup_steps", "floor", "power"),
    "inverse_sqrt": ("warmup_steps", "timescale"),
    "warmup_stable_decay": ("warmup_steps", "floor", "decay", "decay_share"),
    "one_cycle": ("warmup_steps",),
    "range_test": ("floor",),
}


class OptimArgs(Part):
    """What the optimizer is told besides the learning rate and `weight_decay`; what is unset is the library's own."""

    beta1: float | None = field(
        None, "Beta 1", "Decay of the mean of gradients; unset: 0.9.", example=0.9, ge=0, lt=1, advanced=True
    )
    beta2: float | None = field(
        None,
        "Beta 2",
        "Decay of the mean of their squares; unset: 0.999, for Lion 0.99.",
        example=0.95,
        ge=0,
        lt=1,
        advanced=True,
    )
    eps: float | None = field(
        None, "Epsilon", "Added to what is divided by; unset: 1e-8.", example=1e-6, gt=0, advanced=True
    )
    momentum: float | None = field(None, "Momentum", "Muon's; unset: 0.95.", example=0.95, ge=0, lt=1, advanced=True)
    lora_b_rate: float = field(
        1.0,
        "Rate of LoRA's B",
        "As a multiple of the learning rate (LoRA+ takes 16).",
        example=16,
        gt=0,
        advanced=True,
    )
    embedding_rate: float = field(
        1.0,
        "Rate of embeddings",
        "As a multiple of the learning rate, where token embeddings are trained.",
        example=0.1,
        gt=0,
        advanced=True,
    )
    head_rate: float = field(
        1.0,
        "Rate of the head",
        "As a multiple of the learning rate, where the head is trained and is not the embedding.",
        example=0.1,
        gt=0,
        advanced=True,
    )

    ema_decay: float | None = field(
        None,
        "Average",
        "The run ends with a running average of its weights, of which a step leaves so much; unset: the last ones.",
        example=0.99,
        gt=0,
        lt=1,
        advanced=True,
    )

    in_backward: Literal["auto"] | bool = field(
        "auto",
        "In backward",
        "Of adapter `full`: each weight is updated as soon as its gradient is there, so that gradients are not kept; "
        "16-bit weights without fp32 copies, rounded stochastically. auto: where memory is short otherwise.",
        example=True,
        advanced=True,
    )

    @property
    def one_rate(self) -> bool:
        """Whether everything that is trained has the learning rate itself."""
        return (self.lora_b_rate, self.embedding_rate, self.head_rate) == (1.0, 1.0, 1.0)


class ScheduleArgs(Part):
    """What the schedule of `lr_scheduler_type` is told besides `warmup_ratio`."""

    warmup_steps: int | None = field(
        None,
        "Warm-up steps",
        "Steps in which the learning rate rises, in place of `warmup_ratio`.",
        example=100,
        unit="steps",
        ge=0,
        advanced=True,
    )
    floor: float | None = field(
        None,
        "Floor",
        "Share of the peak that the rate falls to, of `linear`, `cosine`, `polynomial` and `warmup_stable_decay`; "
        "unset: 0. Of `range_test` what it begins with.",
        example=0.1,
        ge=0,
        lt=1,
        advanced=True,
    )
    power: float | None = field(None, "Power", "Of the polynomial; unset: 1.", example=2.0, gt=0, advanced=True)
    cycles: int | None = field(
        None, "Cycles", "How often `cosine_with_restarts` falls; unset: once.", example=3, ge=1, advanced=True
    )
    timescale: int | None = field(
        None,
        "Time scale",
        "Of `inverse_sqrt`: steps after which the rate begins to fall; unset: those of the warm-up, 10,000 without "
        "one.",
        example=1000,
        unit="steps",
        ge=1,
        advanced=True,
    )
    decay: Literal["linear", "cosine", "1-sqrt"] | None = field(
        None, "Decay", "How `warmup_stable_decay` ends; unset: cosine.", example="1-sqrt", advanced=True
    )
    decay_share: float | None = field(
        None,
        "Share of the decay",
        "Of the steps, in which `warmup_stable_decay` falls; unset: 0.1.",
        example=0.2,
        gt=0,
        le=1,
        advanced=True,
    )


def check_learning(optim: str, args: OptimArgs, schedule: str, told: ScheduleArgs, steps: int | None) -> None:
    """Refuse what would change nothing.

    Raises:
        ValueError: the optimizer or the schedule does not read one of the fields, or the warm-up never ends.
    """
    kind = OPTIMIZERS[optim]
    of_all = ("lora_b_rate", "embedding_rate", "head_rate", "ema_decay", "in_backward")
    _refuse("optim_args", args, (*kind.reads, *of_all), f"optimizer `{optim}`")
    _refuse("schedule", told, SCHEDULES[schedule], f"schedule `{schedule}`")
    if steps is not None and told.warmup_steps is not None and told.warmup_steps >= steps:
        raise ValueError(f"a warm-up of {told.warmup_steps} steps does not end within {steps}: take fewer")


def _refuse(part: str, given: BaseModel, read: tuple[str, ...], who: str) -> None:
    for name in given.model_dump(exclude_defaults=True):
        if name not in read:
            known = f"it takes {', '.join(read)}" if read else "it takes none of these"
            raise ValueError(f"`{part}.{name}` changes nothing: {who} has none ({known})")
