"""Plan: what a run will cost and how the memory is spent, with the reasons. Plain numbers, JSON in and out."""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, PrivateAttr

from nbtune.errors import PlanError
from nbtune.models.abilities import Abilities
from nbtune.models.memory_estimate import MemoryPlan
from nbtune.planner.spread import Spread
from nbtune.spec.placement import Placement

if TYPE_CHECKING:
    from nbtune.planner.ways import Ways

_GIB = 2**30
_BYTES_A_SECOND = 12_500_000  # 100 Mbit/s, for the time of a download that nobody has measured yet


@dataclass(eq=False)
class _Beside:
    """What a plan has beside its fields, which alone are compared and written: plans of the same fields are equal."""

    reckon: Callable[[], Ways] | None = None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Beside)

    __hash__ = None  # type: ignore[assignment]


_ACTIVATIONS = {
    "keep": "kept",
    "selective": "kept in part, the others computed again",
    "recompute": "computed again where gradients need them",
    "offload": "in RAM until gradients need them",
}


class Plan(BaseModel):
    """How a run will be done. Made by `nbtune.plan(spec)`; the run keeps it as ``plan.json``.

    Bytes and seconds throughout. `seconds` is a guess until the first steps were measured; `threads`: of each process,
    0 where that is not known; `in_backward`: each weight is updated as soon as its gradient is there; `optimizer`: in
    place of the spec's; `warnings`: values far from usual; `spread` what a step costs
    on several GPUs whose links are known.
    """

    model_config = ConfigDict(frozen=True)

    model: str
    architecture: str
    hidden_size: int
    parameters: int
    trainable_parameters: int
    rows: int
    eval_rows: int
    device: Literal["cpu", "cuda", "mps"]
    device_name: str
    dtype: Literal["fp32", "bf16", "fp16"]
    dtype_reason: str
    weights: Placement
    num_layers: int
    gpus: int = 1
    threads: int = 0
    activations: Literal["keep", "selective", "recompute", "offload"]
    in_backward: bool = False
    optimizer: str = ""
    packing: bool
    sequence_len: int
    micro_batch_size: int
    gradient_accumulation_steps: int
    total_steps: int
    learning_rate: float
    learning_rate_reason: str
    eval_every: int
    memory: MemoryPlan
    available_bytes: int
    disk_bytes: int
    download_bytes: int
    seconds: float
    abilities: Abilities = Abilities()
    reasons: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    spread: Spread | None = None
    _beside: _Beside = PrivateAttr(default_factory=_Beside)

    @property
    def peak_bytes(self) -> int:
        """The expected peak on the device."""
        return self.memory.total

    def shared_by(self, count: int) -> Plan:
        """Return the plan of a run that goes on with another number of devices: the same steps, in other shares.

        Raises:
            PlanError: its weights were parted among several, and there is one.
        """
        if self.weights.shards and count == 1:
            raise PlanError(
                f"this run's weights were parted among {self.gpus} devices, one alone is not planned for",
                fix="resume it with as many devices (`gpus` in its spec.yaml), or start a new run",
            )
        weights = self.weights.parted(count) if self.weights.shards else self.weights
        return self.model_copy(update={"gpus": count, "weights": weights})

    def with_ways(self, reckon: Callable[[], Ways]) -> Plan:
        """Return this plan, which can say what else would fit."""
        self._beside.reckon = reckon
        return self

    def table(self) -> Ways:
        """Return what fits: lengths × micro-batches × 16 or 4 bits, each with its memory and its speed.

        >>> ways = nbtune.plan(data=[{"prompt": "Hi", "completion": "Ahoy!"}] * 8, steps=2, machine="t4").table()
        >>> ways[0].adapter, ways[0].micro_batch_size, ways[0].fits
        ('lora', 1, True)

        Raises:
            PlanError: this plan was read from a run's folder, which has no facts of the model.
        """
        if self._beside.reckon is None:
            raise PlanError("this plan was read from a file", fix="`nbtune.plan(spec).table()` reckons it again")
        return self._beside.reckon()

    def rows_of_explanation(self) -> list[tuple[str, str]]:
        """Return (what, value) pairs, in the order a person asks for them."""
        trained = f"{self.trainable_parameters / 1e6:,.2f} M of {self.parameters / 1e6:,.1f} M parameters"
        several = self.gradient_accumulation_steps
        batch = f"{self.micro_batch_size} rows" + (f" × {several} accumulated" if several > 1 else "")
        many, each = self.gpus > 1, " on each" if self.gpus > 1 else ""
        shared = f", shared by {self.gpus} {'processes' if self.device == 'cpu' else 'GPUs'}" if many else ""
        threads = f"; {self.threads} thread{'s' if self.threads != 1 else ''}{each}" if self.threads else ""
        parts = ", ".join(f"{k} {_size(v)}" for k, v in self.memory.model_dump().items() if v >= 2**20)
        rows = [
            ("model", f"{self.model} ({self.architecture}), trains {trained}"),
            ("rows", f"{self.rows:,} to train on, {self.eval_rows:,} held out"),
            ("device", f"{f'{self.gpus} × ' * many}{self.device_name}, {self.dtype}: {self.dtype_reason}{threads}"),
            (
                "batch",
                f"{batch}{shared}, up to {self.sequence_len:,} tokens{' in a sequence' if self.packing else ' each'}",
            ),
            ("steps", f"{self.total_steps:,}, measured every {self.eval_every:,}"),
            ("learning rate", self.explained_rate()),
            ("memory", f"about {_size(self.peak_bytes)} of {_size(self.available_bytes)}{each} ({parts})"),
            ("frozen weights", f"{self.placed()}; activations {_ACTIVATIONS[self.activations]}"),
            *self._updates(),
            ("disk", self.disk_and_download()),
            ("time", f"about {_duration(self.seconds)}, corrected once the first steps are measured"),
        ]
        rows += [] if self.spread is None else self.spread.rows(self.device_name)
        able = [(name, self._packed(said) if name == "packing" else said) for name, said in self.abilities.rows()]
        return rows + able + [("why", said) for said in self.reasons] + [("unusual", said) for said in self.warnings]

    def _packed(self, tried: str) -> str:
        whether = "on: short rows share a sequence" if self.packing else "off: each row is a sequence of its own"
        return f"{whether}. Tried out: {tried}"

    def _updates(self) -> list[tuple[str, str]]:
        named = f" by {self.optimizer}" if self.optimizer else ""
        rounded = ", bf16 weights rounded stochastically" if self.dtype == "bf16" else ""
        said = f"in backward{named}, so that one layer's gradients are all there are{rounded}"
        return [("updates", said)] if self.in_backward else []

    def explained_rate(self) -> str:
        """Return the peak of the learning rate, and why it is that."""
        return f"{self.learning_rate:g}" + (f": {self.learning_rate_reason}" if self.learning_rate_reason else "")

    def placed(self) -> str:
        """Return the format and the home of frozen weights, in words."""
        return self.weights.words(self.device, self.num_layers)

    def disk_and_download(self) -> str:
        """Return what will be written and fetched, said before it is: bytes, and minutes at 100 Mbit/s."""
        if not self.download_bytes:
            return f"{_size(self.disk_bytes)} for checkpoints"
        minutes = _duration(self.download_bytes / _BYTES_A_SECOND)
        return (
            f"{_size(self.disk_bytes)} for checkpoints; the model is downloaded first: {_size(self.download_bytes)}, "
            f"about {minutes} at 100 Mbit/s"
        )

    def explain(self) -> str:
        """Return the plan as a table of text."""
        rows = self.rows_of_explanation()
        width = max(len(name) for name, _ in rows)
        return "\n".join(f"{name:>{width}}  {value}" for name, value in rows)

    def __str__(self) -> str:
        return self.explain()

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(self.explain())

    def _repr_html_(self) -> str:
        row = "<tr><th style='text-align:right'>{}</th><td style='text-align:left'>{}</td></tr>"
        cells = "".join(row.format(html.escape(name), _coded(value)) for name, value in self.rows_of_explanation())
        return f"<table>{cells}</table>"


def _coded(sentence: str) -> str:
    return re.sub(r"`([^`\n]{1,400})`", r"<code>\1</code>", html.escape(sentence))


def _size(count: float) -> str:
    return f"{count / _GIB:.1f} GiB" if count >= _GIB / 10 else f"{count / 2**20:,.0f} MiB"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
