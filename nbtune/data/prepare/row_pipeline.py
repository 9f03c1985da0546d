"""Rows of sources, read, rendered, tokenised and masked a chunk at a time, every row's fate written down."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from nbtune.data.formats.detect import detect
from nbtune.data.formats.messages import Chat
from nbtune.data.formats.preference_format import Several
from nbtune.data.formats.reader import Format, Parts
from nbtune.data.prepare.dataset import Builder, Dataset
from nbtune.data.prepare.pieces import Piece, Whole
from nbtune.data.prepare.quality_checks import Oddities
from nbtune.data.prepare.report import ALIKE, BY_FUNCTION, EMPTY, Report
from nbtune.data.prepare.row_weights import mark_of
from nbtune.data.prepare.split_chat import split_chat
from nbtune.data.sources.resolve import with_template
from nbtune.data.sources.rows import ArrowRows, Rows, Source
from nbtune.data.template.chat_template import PLAIN_TEMPLATE, ChatTemplate, template_text
from nbtune.data.tokenize.encoder import Encoder, Job
from nbtune.data.tokenize.loss_mask import is_trained
from nbtune.errors import DataError
from nbtune.spec import RunSpec

if TYPE_CHECKING:
    from nbtune.data.prepare.recipe import Recipe

CHUNK = 512
Overflow = Literal["truncate_right", "truncate_left", "split", "drop", "raise"]


@dataclass(slots=True)
class _Chunk:
    """Rows on their way: read and rendered, and soon tokenised."""

    source: int
    rows: list[Piece]
    jobs: list[Job | DataError]
    encoder: Encoder
    tokens: Future[list[Any]]


class Reader:
    """Reads sources into datasets; `report` is written as rows go by. It is for one list of sources.

    Where the tokenizer's own code tokenises, one chunk is rendered while the one before it is tokenised in a second
    thread.
    """

    def __init__(self, tokenizer: Any, recipe: Recipe) -> None:
        self.tokenizer, self.spec, self.kind = tokenizer, recipe.spec, recipe.kind
        self.max_len, self.overflow, self.on_error = recipe.max_len, recipe.overflow, recipe.on_error
        self.report, self.oddities = Report(), Oddities()
        self.chat_template: str | None = None
        self.matched: set[str] = set()  # marks of `row_weights` that are rows'
        self._encoders: dict[bool, Encoder] = {}
        self._formats: dict[int, Format] = {}

    @property
    def met(self) -> set[int]:
        """The numbers of the rules of `train_spans` that stand in some text."""
        return {number for encoder in self._encoders.values() for number in encoder.met}

    def encoder(self, chats: bool) -> Encoder:
        if chats not in self._encoders:
            template = None
            if chats:
                if template_text(self.tokenizer) is None:
                    self.tokenizer.chat_template = PLAIN_TEMPLATE
                    self.report.warnings.append(
                        "the model has no chat template: a plain one is used (### User: … ### Assistant: …) and kept "
                        "with the tuned model"
                    )
                template = ChatTemplate(self.tokenizer)
                self.chat_template, self.report.template = template.template, template.template
                self.report.terminator = template.turns.terminator
            self._encoders[chats] = Encoder.of_spec(self.tokenizer, template, self.spec)
        return self._encoders[chats]

    def read(self, sources: Sequence[Source], wanted: Sequence[Sequence[int]] | None = None) -> Dataset:
        """Return every row of the sources that can be used, in their order.

        Args:
            wanted: for each source the numbers of the rows to read, in the order to read them; None: all.
        """
        wanted = [range(len(source.rows)) for source in sources] if wanted is None else wanted
        builder = Builder([source.name for source in sources], [source.spec.weight for source in sources])
        with ThreadPoolExecutor(1, thread_name_prefix="nbtune-tokens") as pool:
            waiting: _Chunk | None = None
            for chunk in self._chunks(sources, pool, wanted):
                if waiting is not None:
                    self._finish(builder, sources[waiting.source], waiting)
                waiting = chunk
            if waiting is not None:
                self._finish(builder, sources[waiting.source], waiting)
        return builder.build()

    def part(self, sources: Sequence[Source], wanted: Sequence[Sequence[int]]) -> tuple[Dataset, dict[str, Any]]:
        """Read as `read` does, and return also what was found in these rows, for JSON."""
        self.report.fates, self.oddities = [], Oddities()
        for encoder in self._encoders.values():
            encoder.chats = encoder.unended = encoder.midway = 0
        data = self.read(sources, wanted)
        about = {
            "fates": self.report.fates,
            "chats": sum(encoder.chats for encoder in self._encoders.values()),
            "unended": sum(encoder.unended for encoder in self._encoders.values()),
            "midway": sum(encoder.midway for encoder in self._encoders.values()),
            "oddities": vars(self.oddities),
            "chat_template": self.chat_template,
            "terminator": self.report.terminator,
            "warnings": self.report.warnings,
            "matched": sorted(self.matched),
            "met": sorted(self.met),
        }
        return data, about

    def _chunks(
        self, sources: Sequence[Source], pool: ThreadPoolExecutor, wanted: Sequence[Sequence[int]]
    ) -> Iterator[_Chunk]:
        for number, (source, chosen) in enumerate(zip(sources, wanted, strict=True)):
            if not len(chosen):
                continue
            rows, form = source.rows, self._format(number, source)
            for start in range(0, len(chosen), CHUNK):
                indices = chosen[start : start + CHUNK]
                read = self._read_rows(source, rows, form, indices)
                encoder = self.encoder(bool(read) and isinstance(read[0].row, Chat))
                jobs = encoder.render([piece.row for piece in read])
                self._look_at_holes(read, jobs)
                yield _Chunk(number, read, jobs, encoder, _tokens(pool, encoder, jobs))

    def _format(self, number: int, source: Source) -> Format:
        if number not in self._formats:
            self._formats[number] = format_of(source, source.rows, self.on_error, self.kind)
            self._formats[number].check(self.kind, source.name)
        return self._formats[number]

    def _read_rows(self, source: Source, rows: Rows, form: Format, indices: Sequence[int]) -> list[Piece]:
        read: list[Piece] = []
        fetched = rows.many(indices) if isinstance(rows, ArrowRows) else None
        for number, index in enumerate(indices):
            try:
                given = rows[index] if fetched is None else fetched[number]
                if given is None:
                    self._fate(source, index, "dropped", f"`{source.spec.function}` {BY_FUNCTION}")
                    continue
                row = form.read(given)
                values = row.judged(self.spec.labels) if isinstance(row, Several) else ()
                steps = row.judged_steps(self.spec.labels) if isinstance(row, Several) else ()
            except DataError as error:
                self._refuse(source, index, rows, error)
                continue
            weight = self._weight(given)
            texts = row.rows if isinstance(row, Several) else (row,)
            if not steps and any(is_empty(text, self.spec.train_on) for text in texts):  # steps': at line breaks
                self._fate(source, index, "dropped", EMPTY)
                continue
            if isinstance(row, Several):
                self.oddities.see_judgement(row.doubted)
                last = len(texts) - 1
                read += [Piece(index, t, i == last, values[i], steps, weight) for i, t in enumerate(texts)]
            else:
                read.append(Piece(index, row, weight=weight))
            self._look(texts[0])
        return read

    def _weight(self, row: Mapping[str, Any]) -> float | None:
        """Return how often a row counts; None where the spec names none."""
        if not self.spec.row_weights:
            return None
        mark = mark_of(row)
        if mark in self.spec.row_weights:
            self.matched.add(mark)
        return self.spec.row_weights.get(mark, 1.0)

    def _look(self, row: Chat | Parts) -> None:
        if isinstance(row, Chat):
            contents = (message.get("content") for message in row.messages)
            self.oddities.see_text(text for text in contents if isinstance(text, str))
            self.oddities.see_roles([message["role"] for message in row.messages])
            self.oddities.see_questions(_says_something(m) for m in row.messages if m["role"] == "user")
        elif not row.raw:
            self.oddities.see_text(text for text, _ in row.parts)

    def _look_at_holes(self, read: Sequence[Piece], jobs: Sequence[Job | DataError]) -> None:
        left = {
            (piece.number, what)
            for piece, job in zip(read, jobs, strict=True)
            if isinstance(job, Job)
            for what in job.left_out
        }
        self.oddities.see_left_out(what for _, what in left)

    def _finish(self, builder: Builder, source: Source, chunk: _Chunk) -> None:
        results = chunk.encoder.label(chunk.jobs, chunk.tokens.result())
        together: list[Whole] = []
        broken: DataError | None = None
        for piece, result in zip(chunk.rows, results, strict=True):
            if piece.value is None and not isinstance(result, DataError):
                self._keep(builder, chunk.source, source, piece, *result)
                continue
            whole = result if isinstance(result, DataError) else Whole.of(*result, piece)
            if isinstance(whole, DataError):
                broken = broken or whole
            else:
                together.append(whole)
            if not piece.last:
                continue
            if broken is not None:
                self._refuse(source, piece.number, source.rows, broken)
            else:
                self._keep_together(builder, chunk.source, source, together)
            together, broken = [], None
        builder.seal()

    def _keep_together(self, builder: Builder, number: int, source: Source, texts: Sequence[Whole]) -> None:
        """Keep all texts of a row that judges, or none."""
        index = texts[0].piece.number
        cut = max(len(whole.ids) for whole in texts) > self.max_len
        if cut and self.overflow == "raise":
            raise self._too_long(source, index, max(len(whole.ids) for whole in texts))
        if cut and self.overflow in ("drop", "split"):
            self._fate(source, index, "dropped", f"longer than {self.max_len} tokens")
            return
        left = self.overflow == "truncate_left"
        kept = [whole.at_most(self.max_len, left) for whole in texts]
        if not all(whole.says(self.kind) for whole in kept):
            self._fate(source, index, "dropped", "nothing is left of an answer" if cut else "no token would be trained")
            return
        if kept[0].same_as(kept[1:]):
            within = f" within {self.max_len} tokens" if not texts[0].same_as(texts[1:]) else ""
            self._fate(source, index, "dropped", f"{ALIKE}{within}: neither is better")
            return
        if cut:
            self._fate(source, index, "cut", f"longer than {self.max_len} tokens")
        for whole in kept:
            builder.add(whole.ids, whole.trained, number, index, whole.piece.value, whole.judged, whole.piece.weight)

    def _too_long(self, source: Source, index: int, count: int) -> DataError:
        return DataError(
            f"it has {count} tokens, the limit is {self.max_len}",
            place=source.rows.place(index),
            fix="raise `sequence_len`, or shorten the row",
        )

    def _keep(
        self,
        builder: Builder,
        number: int,
        source: Source,
        piece: Piece,
        ids: np.ndarray,
        trained: np.ndarray,
    ) -> None:
        index, row, weight = piece.number, piece.row, piece.weight
        if len(ids) > self.max_len:
            if isinstance(row, Parts) and row.windows:
                windows = -(-len(ids) // self.max_len)
                self._fate(source, index, "split", f"longer than {self.max_len} tokens, split into windows")
                for w in range(windows):
                    part = slice(w * self.max_len, (w + 1) * self.max_len)
                    if len(ids[part]) > 1:
                        builder.add(ids[part], trained[part], number, index, weight=weight)
                return
            if self.overflow == "raise":
                raise self._too_long(source, index, len(ids))
            if self.overflow == "split" and isinstance(row, Chat):
                parts = split_chat(self.encoder(True), row, self.max_len)
                status = ("split", f"longer than {self.max_len} tokens, split between its turns")
                self._fate(source, index, *(status if parts else ("dropped", "no part of it would be trained")))
                for part_ids, part_trained in parts:
                    builder.add(part_ids, part_trained, number, index, weight=weight)
                return
            if self.overflow == "drop":
                self._fate(source, index, "dropped", f"longer than {self.max_len} tokens")
                return
            left = self.overflow == "truncate_left"
            part = slice(len(ids) - self.max_len, None) if left else slice(0, self.max_len)
            ids, trained = ids[part], trained[part]
            if not trained[1:].any():
                self._fate(source, index, "dropped", f"no trained token within its first {self.max_len} tokens")
                return
            self._fate(source, index, "cut", f"longer than {self.max_len} tokens")
        elif not trained[1:].any():
            self._fate(source, index, "dropped", "no token of it would be trained")
            return
        builder.add(ids, trained, number, index, weight=weight)

    def _refuse(self, source: Source, index: int, rows: Rows, error: DataError) -> None:
        place = error.place or rows.place(index)
        if self.on_error == "raise":
            raise DataError(error.cause, place=place, fix=error.fix) from None
        self._fate(source, index, "dropped", error.cause)

    def _fate(self, source: Source, index: int, status: str, reason: str) -> None:
        self.report.fates.append((source.name, index, status, reason))


def speaking(tokenizer: Any, spec: RunSpec, used: str | None = None) -> Any:
    """Return a copy of the tokenizer (tokens shared) that speaks by the spec's chat template; the caller's stays as is.

    >>> spec, tokenizer = nbtune.spec.from_mapping({"data": "rows"}), nbtune.models.load_tokenizer("nbtune/tiny")
    >>> nbtune.data.speaking(tokenizer, spec).chat_template == tokenizer.chat_template
    True

    Args:
        used: `Prepared.chat_template`: what rows were rendered by, for a tokenizer that has none.
    """
    mine = copy.copy(tokenizer)
    if spec.chat_template is not None:
        mine.chat_template = with_template(spec).chat_template
    elif used and template_text(mine) is None:
        mine.chat_template = used
    return mine


def _tokens(pool: ThreadPoolExecutor, encoder: Encoder, jobs: list[Job | DataError]) -> Future[list[Any]]:
    """Return tokens to come; made at once where that is Python's work (two threads would only take turns)."""
    if encoder.words is None or not encoder.words.usable:
        return pool.submit(encoder.tokenise, jobs)
    future: Future[list[Any]] = Future()
    future.set_result(encoder.tokenise(jobs))
    return future


def format_of(source: Source, rows: Rows, on_error: str = "raise", kind: str = "sft") -> Format:
    """Return how a source's rows are read, from a sample of them; `kind` is for the advice where nothing fits."""
    sample = []
    for index in spread(len(rows), 32):
        try:
            sample.append(rows[index])
        except DataError:
            if on_error == "raise":
                raise
    sample = [row for row in sample if row is not None]
    columns = list(dict.fromkeys(str(key) for row in sample for key in row))
    return detect(columns, sample, source.spec, source.name, kind)


def spread(count: int, at_most: int) -> list[int]:
    """Return up to `at_most` numbers of 0..count-1, evenly spread."""
    if count <= at_most:
        return list(range(count))
    return sorted({int(i) for i in np.linspace(0, count - 1, at_most)})


def is_empty(row: Chat | Parts, train_on: str | Sequence[str] = "answers") -> bool:
    """Return whether nothing in a row could be trained."""
    if isinstance(row, Parts):
        return not any(text.strip() for text, wanted in row.parts if wanted)
    roles = ("assistant",) if isinstance(train_on, str) else train_on
    heard = [m for m in row.messages if m["role"] in roles or is_trained(m, roles)]
    return not any(_says_something(m) for m in heard)


def _says_something(message: dict[str, Any]) -> bool:
    content = message.get("content")
    return bool(message.get("tool_calls")) or (content.strip() != "" if isinstance(content, str) else bool(content))
