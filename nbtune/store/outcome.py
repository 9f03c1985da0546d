"""What a run came to: its model against its base on rows that were held out, and answers before and after.

It is measured once, when somebody looks, and kept in the run's folder (``outcome.json``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from nbtune.atomic_io import write_json
from nbtune.disk import DISK_ERRORS
from nbtune.errors import NbtuneError
from nbtune.events import Eval, Sample
from nbtune.generate.sampling import CUT, Token
from nbtune.store import foreign
from nbtune.store.row_losses import MeasuredRows, RowLoss, row_exchange, row_text
from nbtune.store.run_handle import RunHandle
from nbtune.untrusted import BadFile, load

_MOST_ROWS = 64
_ASKED = 2
_LENGTH = 96  # tokens of an answer
_FEWEST = 8  # rows that an interval is said for
_DRAWS = 2000


@dataclass(frozen=True)
class Asked:
    """A prompt, what the base and the tuned model answered, and what the row it is of says; `seen`: a row it learnt."""

    prompt: str
    base: str
    tuned: str
    wanted: str = ""
    seen: bool = False


@dataclass(frozen=True)
class Outcome:
    """Measured at `step`.

    Attributes:
        rows: how many held-out rows were measured; None where others measured rows that are not here.
        base, tuned: mean over these rows' trained tokens, in nats, as held-out rows are measured while it trains; None
            where there are none, or no base.
        low, high: 95 % interval of how much lower the tuned model's is (bootstrap over rows); None of fewer than eight.
        better: how many rows it is lower on.
        asked: answers before and after.
    """

    step: int
    rows: int | None = 0
    base: float | None = None
    tuned: float | None = None
    low: float | None = None
    high: float | None = None
    better: int = 0
    asked: tuple[Asked, ...] = ()


def remembered(run: RunHandle) -> Outcome | None:
    """Return what was measured before, of the weights that the run has now."""
    try:
        body = load(_file(run))
        means: dict[str, Any] = {
            k: None if body[k] is None else float(body[k]) for k in ("base", "tuned", "low", "high")
        }
        counts = {key: int(body[key]) for key in ("step", "rows", "better")}
        texts = ("prompt", "base", "tuned", "wanted")
        asked = [Asked(**{key: str(one[key]) for key in texts}, seen=bool(one["seen"])) for one in body["asked"]]
    except (BadFile, OSError, ArithmeticError, LookupError, TypeError, ValueError):
        return None
    return Outcome(**counts, **means, asked=tuple(asked)) if counts["step"] == run.step else None


def measure(run: RunHandle, told: Callable[[Outcome], None]) -> Outcome:
    """Measure a run that has ended: its held-out rows, then answers; `told` hears of each piece.

    Raises:
        NbtuneError: there is no adapter, or the data is gone.
    """
    step = run.step  # somebody may resume it meanwhile
    if foreign.of(run.folder) is not None:  # whose rows are not here
        measured_there = any(isinstance(event, Eval) for said, _ in run.pieces() for event in said)
        found = Outcome(step=step, rows=None if measured_there else 0, asked=tuple(_told(run)))
        told(found)
        return found
    measured = MeasuredRows(run, limit=_MOST_ROWS, parts=("eval",)).wait()
    held = [row for row in measured.rows.values() if row.part == "eval" and math.isfinite(row.loss)]
    found = replace(compared(held), step=step)
    told(found)
    for asked in _asked(run, measured, held):
        found = replace(found, asked=(*found.asked, asked))
        told(found)
    _keep(run, found)
    return found


def compared(rows: Sequence[RowLoss]) -> Outcome:
    """Return base against tuned on some rows, pair by pair; each counts by its trained tokens."""
    counts = np.array([max(1, row.trained) for row in rows], np.float64)
    tuned = float(np.average([row.loss for row in rows], weights=counts)) if rows else None
    lower = np.array([row.learnt for row in rows if row.learnt is not None and math.isfinite(row.learnt)])
    if not len(lower) or len(lower) < len(rows):
        return Outcome(step=0, rows=len(rows), tuned=tuned)
    base = float(np.average([row.base for row in rows], weights=counts))  # type: ignore[arg-type]  # each has one
    found = Outcome(step=0, rows=len(rows), base=base, tuned=tuned, better=int((lower > 0).sum()))
    if len(lower) < _FEWEST:
        return found
    drawn = np.random.default_rng(0).integers(0, len(lower), (_DRAWS, len(lower)))
    means = (lower * counts)[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    low, high = np.quantile(means, (0.025, 0.975))
    return replace(found, low=float(low), high=float(high))


def _asked(run: RunHandle, measured: MeasuredRows, held: Sequence[RowLoss]) -> Iterator[Asked]:
    """Yield answers of base and tuned: to the spec's prompts as the run has said them, else to held-out rows."""
    if told := _told(run):
        yield from told
        return
    if not measured.base:
        return  # every weight was trained: what it answered before is gone
    for prompt, wanted, seen in islice(_prompts(run, measured, held), _ASKED):
        base, tuned = (_answer(run, prompt, base=which) for which in (True, False))
        shown = prompt if isinstance(prompt, str) else str(prompt[-1].get("content") or "")
        yield Asked(shown, base, tuned, wanted, seen)


def _answer(run: RunHandle, prompt: Any, *, base: bool) -> str:
    """Return an answer, marked where it was cut."""
    made: list[Token] = []
    answer = run.generate(prompt, base=base, max_new_tokens=_LENGTH, told=made.append)
    return (answer + CUT).strip() if len(made) >= _LENGTH and not made[-1].special else answer


def _prompts(run: RunHandle, measured: MeasuredRows, held: Sequence[RowLoss]) -> Iterator[tuple[Any, str, bool]]:
    """Yield prompts, each with what its row says, and whether that was learnt."""
    if run.spec.samples:
        yield from ((prompt, "", False) for prompt in run.spec.samples)
        return
    places = [(row.source, row.row) for row in sorted(held, key=lambda row: row.index)] or [
        (source.name, k) for source in measured.sources[:1] for k in range(min(_ASKED, len(source.rows)))
    ]
    by_name = {source.name: source for source in measured.sources}
    for name, number in places:
        if (exchange := row_exchange(by_name[name], number)) is not None:
            yield exchange[0], row_text(by_name[name], number)[1], not held


def _told(run: RunHandle) -> list[Asked]:
    """Return what the run said itself, before its first step and after its last."""
    answers: dict[str, dict[int, str]] = {}
    if not run.spec.samples and foreign.of(run.folder) is None:
        return []
    for events, _ in run.pieces():
        for event in events:
            if isinstance(event, Sample):
                answers.setdefault(event.prompt, {})[event.step] = event.answer
    both = [(prompt, of) for prompt, of in answers.items() if 0 in of and max(of) == run.step > 0]
    return [Asked(prompt, of[0], of[run.step]) for prompt, of in both[:_ASKED]]


def _file(run: RunHandle) -> Path:
    return Path(run.folder) / "outcome.json"


def _keep(run: RunHandle, found: Outcome) -> None:
    try:
        write_json(_file(run), asdict(found))
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
    except NbtuneError:  # a full disk must not hide what was measured
        return
