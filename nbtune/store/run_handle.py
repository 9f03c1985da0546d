"""What panels ask of a run that they were given: answers of its model, and wishes. `nbtune.Run` does all of it.

The rooms below the door never name `nbtune.Run`; they know it by these.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from nbtune.errors import NbtuneError
from nbtune.events import Event
from nbtune.planner import Plan
from nbtune.spec import RunSpec
from nbtune.store.event_log import Mark


class Answers(Protocol):
    """A model that can be asked: of a run as it is now, or as it was at a checkpoint."""

    @property
    def generate(self) -> Callable[..., str]:
        """Answer a text, or chat messages; as `nbtune.Run.generate`."""

    @property
    def token_losses(self) -> Callable[..., list[float | None]]:
        """Say how little each token was expected; as `nbtune.Run.token_losses`."""


class RunHandle(Answers, Protocol):
    """A run to look at (as `nbtune.store.run_reader.RunReader`), to ask, and to tell what to do."""

    folder: Path
    name: str
    id: str

    @property
    def spec(self) -> RunSpec:
        """What was asked for."""

    @property
    def plan(self) -> Plan | None:
        """How it is done."""

    @property
    def alive(self) -> bool:
        """Whether an engine works on it."""

    @property
    def state(self) -> str:
        """One of `nbtune.events.STATES`."""

    @property
    def step(self) -> int:
        """Finished optimizer steps."""

    @property
    def total_steps(self) -> int:
        """Steps of the whole run."""

    @property
    def error(self) -> NbtuneError | None:
        """What it failed of."""

    @property
    def saved_steps(self) -> list[int]:
        """The steps of its checkpoints."""

    def pieces(self, start: int = 0) -> Iterator[tuple[list[Event], Mark]]:
        """Give what it has said so far, piece by piece."""

    def subscribe(self, callback: Callable[[list[Event], int], None], start: int = 0) -> Callable[[], None]:
        """Tell what is new; return what ends it."""

    def row_losses(
        self, rows: Sequence[tuple[Sequence[int], Sequence[bool]]], *, base: bool = False
    ) -> tuple[list[float], int]:
        """Say each row's loss, summed over its trained tokens, and the step of the weights that were asked."""

    def pause(self) -> None:
        """Hold at the next micro-step."""

    def unpause(self) -> None:
        """Go on."""

    def stop(self, *, save: bool = True) -> None:
        """End at the next micro-step."""

    def checkpoint(self) -> None:
        """Save at the next micro-step."""

    def sample(self) -> None:
        """Ask the sample prompts."""

    def set_learning_rate(self, learning_rate: float) -> None:
        """Set a new peak of the schedule."""

    def resume(self, *, step: int | None = None) -> RunHandle:
        """Go on from a checkpoint."""

    def delete(self) -> None:
        """Delete its folder."""

    @property
    def go_on(self) -> Callable[..., RunHandle]:
        """Start a run that begins with what this one has learnt; as `nbtune.Run.go_on`."""

    @property
    def export(self) -> Any:
        """What can be made of it: `nbtune.export.exporter.Exporter`."""

    def monitor(self) -> Any:
        """Give its live panel."""

    def free(self) -> int:
        """Drop the model that is kept for answers; return the bytes that came back."""

    def snippet(self) -> str:
        """Write the few lines that use the model elsewhere."""

    def model_card(self, repo_id: str, *, what: str = "adapter") -> str:
        """Write the card of a push, to be read first."""

    @property
    def push_to_hub(self) -> Callable[..., str]:
        """Push it with its card; as `nbtune.Run.push_to_hub`."""
