"""Whose machines a run is given to, where they are not this one's: what `cluster:` in a spec may say."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import field_validator

from nbtune.spec.parts import Part, field

if TYPE_CHECKING:
    from nbtune.spec.model import RunSpec


def cluster_from_word(value: Any) -> Any:
    """Read ``cluster: ray`` as ``cluster: {engine: ray}``."""
    return {"engine": value} if isinstance(value, str) else value


class ClusterSpec(Part):
    """An engine that gives out machines, and what it is asked for."""

    engine: Literal["none", "ray"] = field(
        "none", "Engine", "Who places the processes of a run, watches them and starts them again.", example="ray"
    )
    workers: int | tuple[int, int] = field(
        1,
        "Workers",
        "How many processes, one a GPU, share each step; two numbers: from so few to so many, as there are machines.",
        example=16,
    )
    address: str | None = field(
        None,
        "Address",
        "Of Ray: HOST:6379; local: one of its own on this machine; unset: RAY_ADDRESS, or the one that runs here.",
        example="10.0.0.1:6379",
        min_length=1,
        advanced=True,
    )
    failures: int = field(
        3,
        "Failures",
        "How often Ray may start the workers again, from the last checkpoint; -1: as often as it takes.",
        example=3,
        ge=-1,
        advanced=True,
    )

    @field_validator("workers")
    @classmethod
    def _from_few_to_many(cls, value: int | tuple[int, int]) -> int | tuple[int, int]:
        least, most = value if isinstance(value, tuple) else (value, value)
        if not 1 <= least <= most:
            raise ValueError("`workers` is a number from 1 on, or two, the smaller one first")
        return value

    @property
    def used(self) -> bool:
        """Whether the run is given away."""
        return self.engine != "none"

    @property
    def most(self) -> int:
        """The most processes that there may be."""
        return self.workers[1] if isinstance(self.workers, tuple) else self.workers


def check_processes(spec: RunSpec, parted: bool) -> None:
    """Check how many processes are asked for, and of whom.

    Args:
        spec: the run's.
        parted: its weights are to be parted among them.

    Raises:
        ValueError: the sentence, as pydantic's validators raise it.
    """
    if spec.gpus != "all" and not _is_choice(spec.gpus):
        raise ValueError("`gpus` is a number from 1 on, all, or a list of different GPUs' numbers, from 0 on")
    if spec.cluster.used and spec.gpus != 1:
        raise ValueError("`cluster` and `gpus` exclude each other: `cluster: {workers: 8}` counts GPUs of all machines")
    if parted and (spec.cluster.most if spec.cluster.used else spec.gpus) == 1:
        raise ValueError("weights `sharded` are parted among several GPUs: set `gpus: all`, or how many")


def _is_choice(gpus: int | tuple[int, ...]) -> bool:
    if isinstance(gpus, int):
        return gpus >= 1
    return bool(gpus) and len(set(gpus)) == len(gpus) and min(gpus) >= 0
