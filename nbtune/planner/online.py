"""What of a model that learns from its own answers TRL's trainer cannot do: said before any work."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nbtune.errors import PlanError
from nbtune.methods import METHODS

if TYPE_CHECKING:
    from nbtune.models import ModelFacts
    from nbtune.spec import RunSpec


def check_online(spec: RunSpec, model: ModelFacts) -> None:
    """Refuse adapters that TRL's trainer cannot ask, or have no second one beside.

    Raises:
        PlanError: see above.
    """
    method, adapter = METHODS[spec.method], spec.adapter
    if not method.online:
        return
    in_head = adapter.grows or (adapter.trainable_token_indices and model.tied)
    if in_head and adapter.type != "full":
        key = (
            "new_tokens" if adapter.new_tokens else "new_special_tokens" if adapter.grows else "trainable_token_indices"
        )
        raise PlanError(
            f"TRL's {method.trainer} asks the model's head by itself, which peft wraps where single tokens are trained",
            place=f"adapter.{key}",
            fix="drop it: train these tokens by `method: sft`, and go on with its merged model",
        )
    if adapter.bias != "none" and (method.options["beta"] if spec.beta is None else spec.beta):
        raise PlanError(
            "the penalty of `beta` wants an adapter beside that stays as it began, and peft has no two with biases",
            place="adapter.bias",
            fix="write `beta: 0`, or drop `bias`",
        )
