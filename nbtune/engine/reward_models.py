"""Reward models as judges of answers: runs of `method: reward`, named in `rewards.models`, beside functions.

Which runs the names meant is written down when the run begins, so that a resumed one is judged by the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nbtune.atomic_io import read_json, write_json
from nbtune.engine.ended_model import ended_model
from nbtune.engine.judges import PLACE, said_text
from nbtune.engine.scoring import Reading, score
from nbtune.errors import SpecError, TrainError
from nbtune.methods import METHODS
from nbtune.store import checkpoints
from nbtune.store.folder import find, read_spec

if TYPE_CHECKING:
    from nbtune.spec import RunSpec

_FILE = "reward_models.json"


class RewardModel:
    """One of them, as TRL calls a reward function.

    Args:
        name: as the spec has it.
        folder: its run's.
    """

    def __init__(self, name: str, folder: Path) -> None:
        self.__name__ = Path(name).name
        self._built = ended_model(folder)
        self._built.model.requires_grad_(False)
        self._reading = Reading(self._built.tokenizer, read_spec(folder).thinking)

    def __call__(self, *, prompts: Sequence[Any], completions: Sequence[Any], **columns: Any) -> list[float]:
        """Return the reward of each answer behind its prompt."""
        columns.pop(PLACE, None)
        texts = [_talk(*both) for both in zip(prompts, completions, strict=True)]
        return [next(iter(one.values())) for one in score(self._built, texts, self._reading)]


def _talk(prompt: Any, answer: Any) -> list[dict[str, Any]]:
    asked = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [dict(one) for one in prompt]
    return [*asked, {"role": "assistant", "content": said_text(answer)}]


def check_reward_models(spec: RunSpec, root: Path) -> dict[str, str]:
    """Return the folder of the run that each name means, by its own name.

    Raises:
        SpecError: there is none, it is no reward model, or it has nothing trained yet.
    """
    found = {}
    for name in spec.rewards.models:
        try:
            folder = find(name, root)
        except TrainError as error:
            raise SpecError(error.cause, place="rewards.models", fix=error.fix) from error
        method = METHODS[read_spec(folder).method]
        judges = bool(method.head) and method.pairwise
        if not judges or checkpoints.latest(folder) is None:
            why = "has nothing trained yet" if judges else f"is a run of `method: {method.name}`"
            raise SpecError(f"`{name}` {why}", place="rewards.models", fix="train one: `method: reward`")
        found[name] = str(folder) if folder.parent != root else folder.name
    return found


def reward_models(folder: Path, spec: RunSpec) -> list[RewardModel]:
    """Return a run's reward models, loaded.

    Raises:
        SpecError: as `check_reward_models`.
    """
    if not spec.rewards.models:
        return []
    known = read_json(folder / _FILE)
    if known is None or not all(isinstance(known.get(name), str) for name in spec.rewards.models):
        known = check_reward_models(spec, folder.parent)
        write_json(folder / _FILE, known)
    return [RewardModel(name, find(known[name], folder.parent)) for name in spec.rewards.models]
