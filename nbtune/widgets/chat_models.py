"""Who can answer in a chat: a run, its base, each of its checkpoints, and the other runs of its folder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nbtune.engine.launcher import launched_on
from nbtune.engine.run_model import AtStep, RunModel
from nbtune.errors import NbtuneError
from nbtune.store import folder
from nbtune.store.folder import loadable
from nbtune.store.run_handle import Answers, RunHandle
from nbtune.store.run_reader import RunReader
from nbtune.widgets.sanitize import clean

RUNS = 20  # the newest ones are offered
_STEPS = 12  # checkpoints of each


class Answerers:
    """Two of them, one a side, and those who could take their place.

    Args:
        run: a run, or one at a checkpoint (``run.at(100)``); None: whoever is found in the folder of runs.
        other: another one; None: the base of `run`.

    A choice has a key: ``ID`` is a run as it is now, ``ID@100`` at its checkpoint of step 100, ``ID:base`` its base.
    """

    def __init__(self, run: RunHandle | AtStep | None, other: RunHandle | AtStep | None = None) -> None:
        self._runs: dict[str, RunReader | RunHandle] = {}
        self._models: dict[str, Answers] = {}
        self.keys: list[str] = []
        if run is None:
            return
        own = self._key_of(run)
        self.keys = [f"{own.partition('@')[0]}:base" if other is None else self._key_of(other), own]

    def _key_of(self, given: RunHandle | AtStep) -> str:
        """Return the key of a run that was handed in; it is remembered."""
        run = given.run if isinstance(given, AtStep) else given
        self._runs.setdefault(run.id, run)
        self._models.setdefault(run.id, run)
        return f"{run.id}@{given.step}" if isinstance(given, AtStep) else run.id

    def choices(self) -> list[dict[str, Any]]:
        """Return what can be picked: key, name, run, whether it is a base."""
        self._look()
        names = [run.name for run in self._runs.values()]
        offered = []
        for key, run in self._runs.items():
            name = clean(run.name if names.count(run.name) == 1 else f"{run.name} ({key})", 100)
            steps = _steps(run)
            own = [(key, name), *((f"{key}@{step}", f"{name} · {step}") for step in steps)]
            offered += [{"key": k, "name": shown, "base": False} for k, shown in own]
            offered.append({"key": f"{key}:base", "name": name, "base": True})
        return offered

    def sides(self) -> list[dict[str, Any]]:
        """Return who answers on each side: key, name, whether it is a base."""
        names = {choice["key"]: choice for choice in self.choices()}
        return [names.get(key) or {"key": key, "name": self._name(key), "base": False} for key in self.keys]

    def _name(self, key: str) -> str:
        run, _, step = key.partition("@")
        return clean(f"{self._runs[run].name} · {step}", 100)

    def pick(self, side: int, key: str) -> None:
        """Put another one on a side.

        Raises:
            NbtuneError: there is none of that key.
        """
        if key not in {choice["key"] for choice in self.choices()}:
            raise NbtuneError("that run or checkpoint is not there any more")
        self.keys[side] = key

    def losses(self, key: str, ids: Sequence[int], model: str) -> list[float | None]:
        """Say how little each token was expected by who has this key; see `nbtune.Run.token_losses`.

        Raises:
            NbtuneError: it is of another model than the tokens.
        """
        number, options = _parts(key)
        run = self._runs[number]
        if loadable(run.spec, run.folder).model != model:
            raise NbtuneError(
                f"{run.name} is of {run.spec.model}, the tokens are of {model}",
                fix="inspect the rows with that run's model",
            )
        return list(self._models[number].token_losses(ids, **options))

    def ask(self, side: int, messages: Sequence[dict[str, Any]], **options: Any) -> str:
        """Answer for a side; see `nbtune.Run.generate`."""
        number, of_key = _parts(self.keys[side])
        return str(self._models[number].generate(messages, **of_key, **options))

    def _look(self) -> None:
        """Find the runs beside those that are known."""
        places = [run.folder.parent for run in self._runs.values()][:1]
        for root in places or ([] if self._runs else [folder.runs_root()]):
            for path in folder.all_folders(root)[:RUNS]:
                number = folder.name_of(path)[1]
                if number not in self._runs:
                    self._runs[number] = RunReader(path)
                    self._models[number] = RunModel(path, launched_on(path))


def _parts(key: str) -> tuple[str, dict[str, Any]]:
    """Return the id of a key's run, and what says which of its models is meant."""
    key, _, step = key.partition("@")
    number, _, base = key.partition(":")
    return number, {"base": bool(base)} | ({"step": int(step)} if step else {})


def _steps(run: RunReader | RunHandle) -> list[int]:
    """Return the checkpoints that are offered: the newest, and evenly spread ones before it."""
    steps = run.saved_steps
    stride = -(-len(steps) // _STEPS) or 1
    return steps[::-1][::stride][::-1]
