"""What a run says: typed, versioned records, one JSON line each in ``events.jsonl``.

The trainer says nothing in any other way, and from a run's events alone every chart can be drawn again.
This module knows nothing of the rest of nbtune. A reader skips what it does not know: unknown event types
(from a newer version) become `Unknown`, unknown fields are ignored.

    >>> line = to_line(Step(step=1, loss=2.5, tokens=64))
    >>> from_line(line).loss
    2.5
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar

VERSION = 1

STATES = (
    "queued",
    "preparing",
    "running",
    "paused",
    "stopping",
    "stopped",
    "finished",
    "failed",
    "interrupted",  # its process is gone: never written by the run itself, said by whoever looks
)
ENDED = ("stopped", "finished", "failed", "interrupted")


@dataclass(frozen=True, kw_only=True)
class Event:
    """One thing that happened; `time` is seconds since the epoch (UTC)."""

    type: ClassVar[str] = ""
    time: float = field(default_factory=time.time)


@dataclass(frozen=True, kw_only=True)
class State(Event):
    """The run entered a state of `STATES`; `detail` says why, in a sentence, where there is a why."""

    type: ClassVar[str] = "state"
    state: str
    step: int = 0
    total_steps: int = 0
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class Step(Event):
    """One optimizer step was done.

    `loss` is the mean over the step's trained tokens, `tokens` counts all tokens that went through the model in this
    step and `trained_tokens` those with a label; memory is in bytes (RAM of the process where there is no GPU).
    `metrics` is what the method tells besides, means over the step's rows: of pairs ``accuracy`` (the share in the
    right order), ``margin``, ``reward_chosen`` and ``reward_rejected``, of judged answers ``reward_good`` and
    ``reward_bad`` (where there are such among them). A mixture's routers tell besides: ``busiest_expert``, the largest
    share of choices that any expert of any layer got, and ``idle_experts``, the share of experts that got none; where a
    model's config adds a loss of these choices, that is ``aux_loss`` (without its factor, and in `loss` with it).
    """

    type: ClassVar[str] = "step"
    step: int
    loss: float
    learning_rate: float = 0.0
    grad_norm: float = 0.0
    tokens: int = 0
    trained_tokens: int = 0
    tokens_per_second: float = 0.0
    seconds: float = 0.0
    epoch: float = 0.0
    memory_allocated: int = 0
    memory_reserved: int = 0
    memory_peak: int = 0
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Eval(Event):
    """The held-out rows were measured after `step`; `best` if no earlier loss was lower; `sources`: the loss of each
    source's rows, where there are several; `metrics` as in `Step`, of these rows."""

    type: ClassVar[str] = "eval"
    step: int
    loss: float
    tokens: int = 0
    seconds: float = 0.0
    best: bool = False
    sources: dict[str, float] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Sample(Event):
    """What the model answered to `prompt` after `step` (0 = the base model); "[…]" ends one that was cut."""

    type: ClassVar[str] = "sample"
    step: int
    prompt: str
    answer: str


@dataclass(frozen=True, kw_only=True)
class Scores(Event):
    """Answers were judged after `step` (0: the base, or what the run starts from) by the metrics of the spec, or by
    other programs' `tasks`: a figure by name, over `rows` held-out rows."""

    type: ClassVar[str] = "scores"
    step: int
    values: dict[str, float] = field(default_factory=dict)
    tasks: str = ""
    rows: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Group(Event):
    """Answers to one prompt of `step` that were compared, with their rewards, best first (of many the best and the
    worst)."""

    type: ClassVar[str] = "group"
    step: int
    prompt: str
    answers: tuple[str, ...] = ()
    rewards: tuple[float, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Check(Event):
    """The run tested itself: `name` of the test, whether it `passed`, and what was compared."""

    type: ClassVar[str] = "check"
    name: str
    passed: bool
    detail: str = ""


@dataclass(frozen=True, kw_only=True)
class Abilities(Event):
    """What the model was found to be able to, a sentence each in `said`: `tried` on a ``small`` copy of it when the run
    was planned, or on the ``loaded`` one before the first step (see `nbtune.models.abilities`)."""

    type: ClassVar[str] = "abilities"
    tried: str
    said: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Checkpoint(Event):
    """A checkpoint that can be resumed from lies in `folder` (relative to the run's folder)."""

    type: ClassVar[str] = "checkpoint"
    step: int
    folder: str
    bytes: int = 0
    best: bool = False


@dataclass(frozen=True, kw_only=True)
class Warning(Event):
    """Something the user should know: what, why, and what to do."""

    type: ClassVar[str] = "warning"
    message: str
    cause: str = ""
    fix: str = ""
    step: int = 0


@dataclass(frozen=True, kw_only=True)
class Export(Event):
    """A file was taken home, or its making moved on (`done` of 0..1; 1 = it is there).

    `quality` holds finite numbers: what was measured of a GGUF file, such as ``perplexity`` and ``reference``.
    """

    type: ClassVar[str] = "export"
    kind: str
    path: str = ""
    bytes: int = 0
    seconds: float = 0.0
    done: float = 1.0
    detail: str = ""
    quality: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Device(Event):
    """What the machine does, said after `step`, at most once a second.

    `parts` holds bytes by what holds them (see `nbtune.engine.telemetry.parts`); `busy` is in percent of the time (of a
    CPU: of all its cores; −1: not known), `temperature` in °C and `watts` are 0 where they are not known. `slowed` says
    why the device runs slower than it could: ``heat``, ``power``, both with a comma, or nothing.
    """

    type: ClassVar[str] = "device"
    step: int
    parts: dict[str, int] = field(default_factory=dict)
    busy: float = -1.0
    temperature: float = 0.0
    watts: float = 0.0
    slowed: str = ""


@dataclass(frozen=True, kw_only=True)
class Processes(Event):
    """How several processes that train together shared a step, said after `step`, at most once a second; each list is
    in their order.

    `seconds` is what each took for its own share, until it waited for the others, with so many `tokens`; `memory` what
    it held at most, in bytes. `exchange` is the seconds in which gradients were summed for whoever came last, `sent`
    the bytes that each sent in the step, weights that are lent layer by layer included.
    """

    type: ClassVar[str] = "processes"
    step: int
    seconds: tuple[float, ...] = ()
    tokens: tuple[int, ...] = ()
    memory: tuple[int, ...] = ()
    exchange: float = 0.0
    sent: int = 0

    @property
    def link(self) -> float:
        """The bytes a second that each sent, over the whole step; 0: not known."""
        whole = max(self.seconds, default=0.0) + self.exchange
        return self.sent / whole if whole > 0 else 0.0


@dataclass(frozen=True, kw_only=True)
class Unknown(Event):
    """An event of a newer version: kept, not understood."""

    type: ClassVar[str] = "unknown"
    name: str = ""
    fields: dict[str, Any] = field(default_factory=dict)


_KINDS: tuple[type[Event], ...] = (
    State, Step, Eval, Sample, Scores, Group, Check, Abilities, Checkpoint, Warning, Export, Device, Processes,
)  # fmt: skip
_TYPES: dict[str, type[Event]] = {kind.type: kind for kind in _KINDS}
_FIELDS = {kind: frozenset(f.name for f in dataclasses.fields(kind)) for kind in _TYPES.values()}


def to_line(event: Event) -> str:
    """Return one JSON line (with its newline); NaN and infinities become strings, so that every JSON reader can read
    it."""
    if isinstance(event, Unknown):
        body = {"v": VERSION, "type": event.name, **event.fields, "time": event.time}
    else:
        body = {"v": VERSION, "type": event.type}
        for name in _FIELDS[type(event)]:
            body[name] = getattr(event, name)
    return json.dumps(_plain(body), ensure_ascii=True, separators=(",", ":"), allow_nan=False, sort_keys=True) + "\n"


def _plain(value: Any) -> Any:
    """Return a value without numbers that JSON has no word for, however deep they lie."""
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    return [_plain(one) for one in value] if isinstance(value, list | tuple) else value


def from_line(line: str | bytes) -> Event:
    """Return the event of one line.

    Raises:
        ValueError: the line is not whole (a crash in the middle of a write) or not an event.
    """
    try:
        body = json.loads(line)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(body, dict) or not isinstance(body.get("type"), str):
        raise ValueError(f"not an event: {line[:80]!r}")
    kind = _TYPES.get(body["type"])
    try:
        if kind is None:
            rest = {k: v for k, v in body.items() if k not in ("v", "type", "time")}
            return Unknown(name=body["type"], time=float(body.get("time", 0.0)), fields=rest)
        known, takes = _FIELDS[kind], _TAKES[kind]
        return kind(**{k: takes[k](v) for k, v in body.items() if k in known})
    except (TypeError, OverflowError, RecursionError) as error:  # a field is missing, or of another kind
        raise ValueError(f"not a whole event: {line[:80]!r}") from error


def _only(kind: type) -> Callable[[Any], Any]:
    def take(value: Any) -> Any:
        if type(value) is not kind:
            raise TypeError(f"{value!r} is no {kind.__name__}")
        return value

    return take


def _whole(value: Any) -> int:
    """Return a number that machines count with; a float without a fraction is one."""
    if type(value) not in (int, float) or abs(value) >= 2**63:
        raise TypeError("not a number to count with")
    return int(value)


def _numbers(value: Any) -> dict[str, Any]:
    if type(value) is not dict:
        raise TypeError("not names with numbers")
    return {name: _number(number) for name, number in value.items()}


def _number(value: Any) -> float | int:
    if value in ("nan", "inf", "-inf"):  # as `to_line` writes them
        return float(value)
    return value if type(value) in (float, bool) else _whole(value)


def _texts(value: Any) -> dict[str, str]:
    if type(value) is not dict or not all(type(one) is str for one in value.values()):
        raise TypeError("not names with texts")
    return value


def _listed(kind: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def take(value: Any) -> Any:
        if type(value) is not list:
            raise TypeError("not a list")
        return tuple(kind(one) for one in value)

    return take


_BY_TYPE: dict[str, Callable[[Any], Any]] = {
    "float": float,
    "int": _whole,
    "str": _only(str),
    "bool": _only(bool),
    "tuple[str, ...]": _listed(_only(str)),
    "tuple[float, ...]": _listed(float),
    "tuple[int, ...]": _listed(_whole),
    "dict[str, float]": _numbers,
    "dict[str, int]": _numbers,
    "dict[str, str]": _texts,
}
_TAKES = {kind: {f.name: _BY_TYPE[str(f.type)] for f in dataclasses.fields(kind)} for kind in _TYPES.values()}
