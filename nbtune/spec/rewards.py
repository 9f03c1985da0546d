"""How a model answers while it learns from rewards (online methods), and what of a spec does not go with that."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nbtune.methods import METHODS
from nbtune.spec.parts import Part, field
from nbtune.spec.placement import PlacementWish

if TYPE_CHECKING:
    from nbtune.spec.model import RunSpec


def rewards_from_words(value: Any) -> Any:
    """Read ``rewards: good`` and ``rewards: [good, short]`` as ``rewards: {functions: [good, short]}``."""
    if isinstance(value, str):
        value = (value,)
    return {"functions": value} if isinstance(value, list | tuple) else value


class RewardsSpec(Part):
    """What judges a model's answers, and how these are made."""

    functions: tuple[str, ...] = field(
        (),
        "Functions",
        "By their names in this notebook, or module:function; the sum of their rewards counts.",
        example=["is_short"],
    )
    models: tuple[str, ...] = field(
        (),
        "Reward models",
        "Runs of `method: reward` by name, id or folder, whose rewards are added.",
        example=["judge"],
    )
    answers: int = field(8, "Answers", "Of each prompt: a group, which is compared.", example=8, ge=2, le=256)
    max_new_tokens: int = field(
        128, "Longest answer", "Longer ones are cut.", example=256, unit="tokens", ge=1, le=32768
    )
    temperature: float = field(
        1.0, "Temperature", "Of the answers: higher tries more.", example=1.0, gt=0, le=4, advanced=True
    )
    seconds: float = field(
        60.0, "Limit", "How long a call of a function may take.", example=60, unit="s", gt=0, advanced=True
    )

    @property
    def unset(self) -> bool:
        """Whether nothing is said."""
        return self == type(self)()


def must_fit(spec: RunSpec) -> None:
    """Refuse what does not go with a method that answers by itself, and what is of such methods alone.

    Raises:
        ValueError: the sentence, as pydantic's validators raise it.
    """
    name = spec.method
    if not METHODS[name].online:
        able = " or ".join(other for other, method in METHODS.items() if method.online)
        if not spec.rewards.unset:
            raise ValueError(f"`rewards` is nothing to method `{name}`: drop it, or set `method: {able}`")
        return
    beta = METHODS[name].options["beta"] if spec.beta is None else spec.beta
    if spec.adapter.type == "full" and beta:
        raise ValueError(
            f"method `{name}` compares with the model without its adapter, and adapter `full` has none: "
            "use lora, or `beta: 0`, by which it is free to leave it"
        )
    not_yet = {
        "gpus": spec.gpus != 1,
        "cluster": spec.cluster.used,
        "packing": spec.packing is True,
        "weights": PlacementWish.of_spec(spec.weights, "lora").is_of_frozen_weights,
        "optim": spec.optim != "adamw",
        "lr_scheduler_type": spec.lr_scheduler_type not in ("cosine", "linear", "constant"),
        "optim_args": bool(spec.optim_args.model_dump(exclude_defaults=True).keys() - {"beta1", "beta2", "eps"}),
        "schedule": bool(spec.schedule.model_dump(exclude_defaults=True).keys() - {"warmup_steps"}),
        "neftune_noise_alpha": bool(getattr(spec, "neftune_noise_alpha", None)),
        "row_weights": bool(spec.row_weights),
        "mix": "mix" in spec.model_fields_set and spec.mix != type(spec.mix)(),
        "order": spec.order not in ("shuffled", "given"),
        "eval.patience": bool(getattr(spec.eval, "patience", None)),
        "eval.load_best": bool(getattr(spec.eval, "load_best", False)),
    }
    if wrong := [key for key, is_set in not_yet.items() if is_set]:
        raise ValueError(f"method `{name}` does not know `{wrong[0]}: …` yet: leave it out")
