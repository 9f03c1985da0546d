"""The loss of each row of a run, measured with its weights and with its base, in a thread of its own.

What is measured is kept in the run's folder (``losses.jsonl``: places, marks and numbers, no text), so that it is
there at once next time. What rows say is read where they lie.
"""

from __future__ import annotations

import json
import math
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from nbtune.disk import DISK_ERRORS
from nbtune.errors import NbtuneError, TrainError
from nbtune.leaving_off import before_exit
from nbtune.methods import METHODS
from nbtune.store.folder import refuse_outside, spec_to_run
from nbtune.store.run_handle import RunHandle
from nbtune.untrusted import open_file, open_to_append, parse

if TYPE_CHECKING:
    from nbtune.data import Source

PARTS = ("train", "eval")
ORDERS = ("loss", "base", "learnt", "tokens", "row")
_ASKED = 32  # rows at a time: a run that is at work is held up no longer than so many rows take
_WINDOW = 512  # rows that are sorted by length, so that those asked together are alike
_LONGEST = 1 << 20  # bytes of a line that is written down: more is no such line, and may have no end
_SHOWN = 400  # characters of each of a row's texts


@dataclass(frozen=True)
class RowLoss:
    """A row and its loss.

    Attributes:
        part: `train` or `eval`.
        source, row: its source's name, and its number there.
        index: its number, counted through all sources: as the inspector counts.
        mark: what a spec calls it by (`nbtune.data.prepare.row_weights`).
        tokens, trained: how many tokens it has, and how many of them are trained.
        loss: mean over its trained tokens, in nats, after `step` steps; NaN if it is no number.
        base: the same of the model without its adapter; None if that was not asked.
    """

    part: str
    source: str
    row: int
    index: int
    mark: str
    tokens: int
    trained: int
    step: int
    loss: float
    base: float | None = None

    @property
    def learnt(self) -> float | None:
        """By how much the loss went down."""
        return None if self.base is None else self.base - self.loss

    @property
    def key(self) -> tuple[str, int]:
        """Its place."""
        return self.source, self.row


@dataclass(frozen=True)
class _Wanted:
    """A row that is to be measured: its examples' tokens, and which of these are trained."""

    about: RowLoss
    texts: tuple[tuple[list[int], list[bool]], ...]


class MeasuredRows:
    """Measures a run's rows, and knows those that are measured.

    Args:
        run: the run; its model is asked.
        base: ask the model without its adapter, too; None: where there is one.
        limit: of more rows so many are measured, evenly spread; None: all.
        again: measure also what is measured already.
        parts: which rows: those it learns from, and those held out.
        told: called, in the measuring thread, when rows came in or the measuring ended.
    """

    def __init__(
        self,
        run: RunHandle,
        *,
        base: bool | None = None,
        limit: int | None = 10_000,
        again: bool = False,
        parts: Sequence[str] = PARTS,
        told: Callable[[], None] | None = None,
    ) -> None:
        self.run, self.limit, self.told = run, limit, told
        self.parts = tuple(parts)
        self.base = run.spec.adapter.type != "full" if base is None else base
        self.file = Path(run.folder) / "losses.jsonl"
        self.rows: dict[tuple[str, int], RowLoss] = {}
        self.total = 0
        self.error: NbtuneError | None = None
        self._old, self.in_all = _read(self.file)
        self._stop, self._turn = threading.Event(), threading.Lock()
        self._again = again
        self._thread: threading.Thread | None = None
        if not again:
            self._take_what_is_valid()
        self._sources: list[Source] | None = None
        self._texts: dict[tuple[str, int], tuple[str, str]] = {}
        if not self._complete():
            self.start()

    # --- what is known ----------------------------------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        """Whether it measures now."""
        return (thread := self._thread) is not None and thread.is_alive()

    @property
    def done(self) -> int:
        """How many rows are measured."""
        return len(self.rows)

    def sorted(self, by: str = "loss", *, lowest: bool = False) -> list[RowLoss]:
        """Return the measured rows, highest first (or lowest); those without such a number come last.

        Args:
            by: `loss`, `base`, `learnt`, `tokens` or `row`.
        Raises:
            TrainError: there is no such order.
        """
        if by not in ORDERS:
            raise TrainError(f"rows cannot be sorted by {by!r}", fix=f"sort by {', '.join(ORDERS)}")
        with self._turn:
            rows = list(self.rows.values())
        value = (lambda row: row.index) if by == "row" else (lambda row: getattr(row, by))
        measured = [row for row in rows if (v := value(row)) is not None and not math.isnan(v)]
        measured.sort(key=lambda row: (value(row) if lowest else -value(row), row.index))
        return measured + [row for row in rows if (v := value(row)) is None or math.isnan(v)]

    @property
    def sources(self) -> list[Source]:
        """The run's data, as its folder has it.

        Raises:
            DataError: it is gone, or has changed.
        """
        if self._sources is None:
            from nbtune import data

            self._sources = data.open_snapshot(self.run.folder / "data")
        return self._sources

    def text(self, row: RowLoss) -> tuple[str, str]:
        """Return what a row asks and what it answers; see `row_text`."""
        if row.key not in self._texts:
            source = next(source for source in self.sources if source.name == row.source)
            self._texts[row.key] = row_text(source, row.row)
        return self._texts[row.key]

    # --- measuring --------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Measure what is not measured yet."""
        if self.busy:
            return
        self._stop.clear()
        self.error = None
        name = f"nbtune-losses-{self.run.folder.name}"
        self._thread = threading.Thread(target=self._work, name=name, daemon=True)
        before_exit(self._thread, self.stop)
        self._thread.start()

    def measure_again(self) -> None:
        """Measure all rows anew: of a run that has learnt more since."""
        if not self.busy:
            self._old, self.rows = self._old | self.rows, {}
            self.start()

    def stop(self) -> None:
        """Leave off soon; what is measured stays, and `start` goes on."""
        self._stop.set()

    def wait(self, timeout: float | None = None) -> Self:
        """Wait until it has measured all, or has left off; an interrupt ends the waiting, not the measuring.

        Raises:
            NbtuneError: what it failed of.
        """
        if (thread := self._thread) is not None:
            thread.join(timeout)
        if self.error is not None:
            raise self.error
        return self

    def _work(self) -> None:
        try:
            rows_left = [] if self._stop.is_set() else self._wanted()
            self._tell()
            for some in _alike(rows_left):
                if self._stop.is_set():
                    break
                self._measure(some)
                self._tell()
        except Exception as error:  # noqa: BLE001 — a thread has nobody else to tell; `wait` raises it
            self.error = error if isinstance(error, NbtuneError) else TrainError(f"{type(error).__name__}: {error}")
        finally:
            self._thread = None
            self._tell()

    def _tell(self) -> None:
        if self.told is not None:
            self.told()

    def _wanted(self) -> list[_Wanted]:
        """Return the rows that are not measured yet, in an order whose beginning is a fair sample."""
        from nbtune import data, models
        from nbtune.data.prepare.row_weights import mark_of

        refuse_outside(self.run.folder, error=TrainError)
        spec = spec_to_run(self.run.folder)
        tokenizer = models.load_tokenizer(spec.speaks, trust_remote_code=spec.trust_remote_code)
        max_len = models.model_facts(spec.model).row_tokens(spec.sequence_len)
        prepared = data.prepare_data(self.sources, tokenizer, spec=spec, max_len=max_len, seed=spec.seed).whole()
        group, starts, at = METHODS[spec.method].group, {}, 0
        for source in self.sources:
            starts[source.name], at = at, at + len(source.rows)
        rows: list[tuple[str, Any, list[int]]] = []
        for part, dataset in (("train", prepared.train), ("eval", prepared.eval)):
            if dataset is not None and part in self.parts:
                whole = dataset.whole()
                rows += [(part, whole, examples) for examples in _by_row(whole, group)]
        self.in_all = len(rows)
        if self.limit is not None and len(rows) > self.limit:
            chosen = np.unique(np.linspace(0, len(rows) - 1, self.limit).astype(np.int64)).tolist()
            rows = [rows[i] for i in chosen]
        self.total = len(rows)
        found, by_name = [], {source.name: source for source in self.sources}
        for part, whole, examples in rows:
            name, number = whole.source_name(examples[0]), int(whole.row_of[examples[0]])
            if (name, number) in self.rows:
                continue
            texts = tuple((ids.tolist(), mask.tolist()) for ids, mask in map(whole.arrays, examples))
            counts = sum(len(ids) for ids, _ in texts), sum(sum(mask[1:]) for _, mask in texts)
            mark = mark_of(by_name[name].rows[number])
            found.append(_Wanted(RowLoss(part, name, number, starts[name] + number, mark, *counts, 0, math.nan), texts))
        order = np.random.default_rng([spec.seed, 13]).permutation(len(found))
        return [found[i] for i in order]

    def _measure(self, some: Sequence[_Wanted]) -> None:
        """Ask the model for some rows, and write down what it says."""
        texts = [text for wanted in some for text in wanted.texts]
        sums, step = self.run.row_losses(texts)
        bases = [self._known_base(wanted.about) for wanted in some]
        if self.base and any(base is None for base in bases):
            sums_of_base, _ = self.run.row_losses(texts, base=True)
            bases = list(_means(some, sums_of_base))
        measured = [
            replace(wanted.about, loss=loss, base=base, step=step)
            for wanted, loss, base in zip(some, _means(some, sums), bases, strict=True)
        ]
        with self._turn:
            self.rows |= {row.key: row for row in measured}
        self._write(measured)

    def _known_base(self, row: RowLoss) -> float | None:
        """Return what the base was found to know of a row before: it does not change."""
        old = self._old.get(row.key)
        return old.base if old is not None and (old.mark, old.trained) == (row.mark, row.trained) else None

    def _write(self, rows: Sequence[RowLoss]) -> None:
        known = [{"in_all": self.in_all}] if self.parts == PARTS else []
        lines = "".join(json.dumps(body) + "\n" for body in [*known, *map(_plain, rows)])
        try:
            with os.fdopen(open_to_append(self.file), "ab") as file:
                file.write(lines.encode())
        except OSError as error:
            if error.errno not in DISK_ERRORS:
                raise

    def _take_what_is_valid(self) -> None:
        """Take what was measured before: of a run that has ended with the weights that it ended with."""
        step = None if self.run.alive else max(self.run.saved_steps, default=0)
        self.rows = {key: row for key, row in self._old.items() if step is None or row.step == step}
        self.rows = {key: row for key, row in self.rows.items() if not self.base or row.base is not None}

    def _complete(self) -> bool:
        """Return whether all rows are known, as far as that can be said without reading the data."""
        self.total = self.in_all if self.limit is None else min(self.in_all, self.limit)
        return not self._again and self.parts == PARTS and 0 < self.total <= self.done


def row_exchange(source: Source, number: int) -> tuple[list[dict[str, Any]], str] | None:
    """Return the messages of a row before its last answer, and that answer; None where it is no conversation, or
    cannot be read. Of two answers that are compared it is the better one."""
    from nbtune.data.formats.messages import Chat
    from nbtune.data.prepare.row_pipeline import format_of

    try:
        read = format_of(source, source.rows, "skip").read(source.rows[number])
    except NbtuneError:
        return None
    read = getattr(read, "rows", (read,))[0]
    messages = list(read.messages) if isinstance(read, Chat) and not read.tools else []
    last = max((i for i, message in enumerate(messages) if message["role"] == "assistant"), default=0)
    return (messages[:last], str(messages[last].get("content") or "")) if messages[:last] else None


def row_text(source: Source, number: int) -> tuple[str, str]:
    """Return what a row asks last and what it answers; of plain text what is not trained before, and what is.

    A row that cannot be read gives its JSON, as far as there is room.
    """
    from nbtune.data.formats.messages import Chat
    from nbtune.data.prepare.row_pipeline import format_of

    row = source.rows[number]
    try:
        read = format_of(source, source.rows, "skip").read(row)
    except NbtuneError:
        return "", json.dumps(row, ensure_ascii=False, default=str)[:_SHOWN]
    read = getattr(read, "rows", (read,))[0]
    if not isinstance(read, Chat):
        texts = ["".join(text for text, learnt in read.parts if learnt is wanted) for wanted in (False, True)]
        return texts[0][-_SHOWN:], texts[1][:_SHOWN]
    messages = [(message["role"], str(message.get("content") or "")) for message in read.messages]
    last = max((i for i, (role, _) in enumerate(messages) if role == "assistant"), default=len(messages) - 1)
    question = next((text for role, text in reversed(messages[:last]) if role == "user"), "")
    return question[:_SHOWN], (messages[last][1] if messages else "")[:_SHOWN]


def _by_row(dataset: Any, group: int) -> Iterator[list[int]]:
    """Yield the examples of each row; of pairs the better answer."""
    examples: list[int] = []
    for number in range(0, len(dataset), group):
        row = (dataset.source_of[number], dataset.row_of[number])
        if examples and row != (dataset.source_of[examples[0]], dataset.row_of[examples[0]]):
            yield examples
            examples = []
        examples.append(number)
    if examples:
        yield examples


def _alike(wanted: Sequence[_Wanted]) -> Iterator[Sequence[_Wanted]]:
    """Yield some rows at a time, of like length."""
    for first in range(0, len(wanted), _WINDOW):
        window = sorted(wanted[first : first + _WINDOW], key=lambda row: row.about.tokens)
        parts = [window[i : i + _ASKED] for i in range(0, len(window), _ASKED)]
        order = np.random.default_rng(first).permutation(len(parts))
        yield from (parts[i] for i in order)


def _means(some: Sequence[_Wanted], sums: Sequence[float]) -> list[float]:
    """Return each row's mean, of the sums of its texts."""
    means, at = [], 0
    for row in some:
        total = sum(sums[at : at + len(row.texts)])
        means.append(total / max(1, row.about.trained))
        at += len(row.texts)
    return means


def _plain(row: RowLoss) -> dict[str, Any]:
    """Return it as JSON has it, which has no NaN."""
    body = asdict(row)
    return body | {key: None for key in ("loss", "base") if body[key] is None or not math.isfinite(body[key])}


def _read(file: Path) -> tuple[dict[tuple[str, int], RowLoss], int]:
    """Return what was written down, the newest of each row, and how many rows there are in all; half a line is left
    out."""
    rows: dict[tuple[str, int], RowLoss] = {}
    in_all, names = 0, {field.name for field in fields(RowLoss)}
    with suppress(OSError), open_file(file, links=False) as opened:
        while (line := opened.readline(_LONGEST)).endswith(b"\n"):
            try:
                body = parse(line)
                in_all = int(body.get("in_all", in_all))
                if "mark" in body:
                    row = RowLoss(**{key: value for key, value in body.items() if key in names})
                    row = replace(row, loss=math.nan) if row.loss is None else row
                    rows[row.key] = row
            except (ValueError, TypeError, AttributeError):
                continue
    return rows, in_all
