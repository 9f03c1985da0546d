"""From sources to tokens: `prepare` for a run, `measure` for a plan."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from nbtune.data.chat import PLAIN_TEMPLATE, ChatTemplate, template_text
from nbtune.data.dataset import Builder, Dataset
from nbtune.data.encoding import Encoder
from nbtune.data.facts import DataFacts, histogram
from nbtune.data.formats import Chat, Format, Parts, detect
from nbtune.data.report import Report, SourceReport
from nbtune.data.sources import Rows, Source
from nbtune.errors import DataError
from nbtune.spec import RunSpec

__all__ = ["Prepared", "measure", "prepare"]

CHUNK = 1024
Overflow = Literal["truncate_right", "truncate_left", "drop", "raise"]


@dataclass(frozen=True)
class Prepared:
    """Tokens to learn from and to evaluate on, and what was found on the way.

    `chat_template` is the template that was used: where the tokenizer had none, the run must keep it with the model.
    """

    train: Dataset
    eval: Dataset | None
    report: Report
    facts: DataFacts
    chat_template: str | None = None


def prepare(
    sources: Sequence[Source],
    tokenizer: Any,
    *,
    spec: RunSpec,
    max_len: int,
    seed: int,
    overflow: Overflow = "truncate_right",
    on_error: Literal["raise", "skip"] = "raise",
    progress: Callable[[int, int], None] | None = None,
) -> Prepared:
    """Reads, renders, tokenises and masks every row.

    Args:
        sources: from `resolve` or `open_snapshot`; those with `role="eval"` are the rows to evaluate on.
        tokenizer: a fast transformers tokenizer; one without a chat template is given a plain one for chats.
        max_len: tokens per example; longer ones are cut (plain text is split into windows).
        overflow: what happens to chats that are too long.
        on_error: `skip` drops rows that cannot be read, with the reason in the report.
        progress: called with (rows done, rows in all).

    Raises:
        DataError: a row cannot be read, nothing is left, or nothing would be trained.
    """
    work = _Work(tokenizer, spec, max_len, overflow, on_error, progress)
    train_sources = [source for source in sources if source.role == "train"]
    eval_sources = [source for source in sources if source.role == "eval"]
    work.total = sum(len(source.rows) for source in sources)
    train = work.read(train_sources)
    report = work.report
    work.check_ends()
    if not len(train):
        raise _nothing_left(report, max_len)
    held: Dataset | None = None
    if eval_sources:
        held = work.read(eval_sources)
        held = held if len(held) else None
    else:
        train, held = _hold_out(train, spec, seed, report)
    _conclude(report, train, held)
    return Prepared(train, held, report, _facts(report, train, held), work.chat_template)


class _Work:
    """The state of one preparation: the encoder made when it is needed, the report written as rows go by."""

    def __init__(
        self,
        tokenizer: Any,
        spec: RunSpec,
        max_len: int,
        overflow: Overflow,
        on_error: str,
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self.tokenizer, self.spec, self.max_len = tokenizer, spec, max_len
        self.overflow, self.on_error, self.progress = overflow, on_error, progress
        self.report = Report()
        self.total = self.done = 0
        self.chat_template: str | None = None
        self._encoders: dict[bool, Encoder] = {}

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
                self.report.terminator = template.terminator
            self._encoders[chats] = Encoder(self.tokenizer, template, self.spec.train_on)
        return self._encoders[chats]

    def check_ends(self) -> None:
        """A model that never sees an end never stops: refuse data in which no answer ends, warn of some."""
        encoder = self._encoders.get(True)
        if encoder is None or not encoder.unended or self.spec.train_on == "all":
            return
        if encoder.unended == encoder.chats:
            raise DataError(
                "no answer ends with a terminator: a model trained so would never stop",
                place="data",
                fix=f"the template ends an answer with {encoder.template.terminator!r}: end conversations with an "  # type: ignore[union-attr]
                "assistant's text",
            )
        self.report.warnings.append(f"{encoder.unended} conversations end with an answer without a terminator")

    def read(self, sources: Sequence[Source]) -> Dataset:
        builder = Builder([source.name for source in sources], [source.spec.weight for source in sources])
        for number, source in enumerate(sources):
            rows = source.rows
            form = _detect(source, rows, self.on_error)
            if not form.trainable:
                form.read({})  # says why
            self.report.sources.append(SourceReport(source.name, form.name, form.mapping, len(rows)))
            self.report.rows += len(rows)
            for start in range(0, len(rows), CHUNK):
                self._chunk(builder, number, source, rows, form, range(start, min(start + CHUNK, len(rows))))
        return builder.build()

    def _chunk(self, builder: Builder, number: int, source: Source, rows: Rows, form: Format, indices: range) -> None:
        read: list[tuple[int, Chat | Parts]] = []
        for index in indices:
            try:
                row = form.read(rows[index])
            except DataError as error:
                self._refuse(source, index, rows, error)
                continue
            if _is_empty(row):
                self._fate(source, index, "dropped", "nothing in it would be trained (an empty answer or text)")
            else:
                read.append((index, row))
        if read:
            chats = isinstance(read[0][1], Chat)
            encoded = self.encoder(chats).encode([row for _, row in read])
            for (index, row), result in zip(read, encoded, strict=True):
                if isinstance(result, DataError):
                    self._refuse(source, index, rows, result)
                else:
                    self._keep(builder, number, source, index, row, *result)
        self.done += len(indices)
        if self.progress:
            self.progress(self.done, self.total)

    def _keep(
        self,
        builder: Builder,
        number: int,
        source: Source,
        index: int,
        row: Chat | Parts,
        ids: np.ndarray,
        trained: np.ndarray,
    ) -> None:
        if len(ids) > self.max_len:
            if isinstance(row, Parts) and row.windows:
                windows = -(-len(ids) // self.max_len)
                self._fate(source, index, "split", f"longer than {self.max_len} tokens, split into windows")
                for w in range(windows):
                    part = slice(w * self.max_len, (w + 1) * self.max_len)
                    if len(ids[part]) > 1:
                        builder.add(ids[part], trained[part], number, index)
                return
            if self.overflow == "raise":
                raise DataError(
                    f"it has {len(ids)} tokens, the limit is {self.max_len}",
                    place=source.rows.place(index),
                    fix="raise `sequence_len`, or shorten the row",
                )
            if self.overflow == "drop":
                self._fate(source, index, "dropped", f"longer than {self.max_len} tokens")
                return
            part = slice(0, self.max_len) if self.overflow == "truncate_right" else slice(len(ids) - self.max_len, None)
            ids, trained = ids[part], trained[part]
            if not trained[1:].any():
                self._fate(source, index, "dropped", f"no trained token within its first {self.max_len} tokens")
                return
            self._fate(source, index, "cut", f"longer than {self.max_len} tokens")
        elif not trained[1:].any():
            self._fate(source, index, "dropped", "no token of it would be trained")
            return
        builder.add(ids, trained, number, index)

    def _refuse(self, source: Source, index: int, rows: Rows, error: DataError) -> None:
        place = error.place or rows.place(index)
        if self.on_error == "raise":
            raise DataError(error.cause, place=place, fix=error.fix) from None
        self._fate(source, index, "dropped", error.cause)

    def _fate(self, source: Source, index: int, status: str, reason: str) -> None:
        self.report.fates.append((source.name, index, status, reason))


def _detect(source: Source, rows: Rows, on_error: str = "raise") -> Format:
    sample = []
    for index in _spread(len(rows), 32):
        try:
            sample.append(rows[index])
        except DataError:
            if on_error == "raise":
                raise
    columns = list(dict.fromkeys(str(key) for row in sample for key in row))
    return detect(columns, sample, source.spec, source.name)


def _spread(count: int, at_most: int) -> list[int]:
    """Up to `at_most` numbers of 0..count-1, evenly spread."""
    if count <= at_most:
        return list(range(count))
    return sorted({int(i) for i in np.linspace(0, count - 1, at_most)})


def _is_empty(row: Chat | Parts) -> bool:
    if isinstance(row, Parts):
        return not any(text.strip() for text, wanted in row.parts if wanted)
    answers = [m for m in row.messages if m["role"] == "assistant"]
    return not any(_says_something(m) for m in answers)


def _says_something(message: dict[str, Any]) -> bool:
    content = message.get("content")
    return bool(message.get("tool_calls")) or (content.strip() != "" if isinstance(content, str) else bool(content))


def _hold_out(train: Dataset, spec: RunSpec, seed: int, report: Report) -> tuple[Dataset, Dataset | None]:
    """Splits off the rows to evaluate on: whole rows, and none that also stands among the others."""
    keys = train.source_of.astype(np.int64) * (1 << 40) + train.row_of
    first = {}
    for i in range(len(train)):
        first.setdefault(train.ids[train.starts[i] : train.starts[i + 1]].tobytes(), []).append(i)
    report.duplicates = len(train) - len(first)
    share = spec.eval.split
    if share is None:
        share = 0.05 if len(np.unique(keys)) >= 40 else 0.0
    if not share:
        return train, None
    unique = np.array(sorted(v[0] for v in first.values() if len(v) == 1), np.int64)
    rows = np.unique(keys[unique])
    wanted = min(max(1, round(len(np.unique(keys)) * share)), max(len(rows) - 1, 0))
    if spec.eval.split is None:
        wanted = min(wanted, spec.eval.max_rows)
    if not wanted:
        report.warnings.append("no rows are held out: all rows are duplicates of others")
        return train, None
    chosen = np.random.default_rng([seed, 7]).permutation(rows)[:wanted]
    out = np.isin(keys, chosen)
    return train.take(np.flatnonzero(~out)), train.take(np.flatnonzero(out))


def _conclude(report: Report, train: Dataset, held: Dataset | None) -> None:
    report.used, report.held_out = len(train), len(held) if held is not None else 0
    report.tokens, report.trained_tokens = int(train.starts[-1]), int(train.trained.sum())
    report.longest = int(train.lengths.max())
    if report.trained_tokens == 0:
        raise DataError(
            "no token would be trained (0 %)", place="data", fix="check `train_on` and which column answers"
        )
    if report.trained_share < 0.05:
        report.warnings.append(
            f"only {report.trained_share:.1%} of the tokens are trained: the prompts are much longer than the answers; "
            "check that the right column is the answer"
        )
    if report.duplicates > len(train) * 0.1:
        report.warnings.append(f"{report.duplicates} examples are there more than once")
    cut = report.count("cut")
    if cut:
        report.warnings.append(f"{cut} rows were cut: their ends, with the token that ends an answer, are not learnt")


def _nothing_left(report: Report, max_len: int) -> DataError:
    reasons = sorted({fate[3] for fate in report.fates})
    return DataError(
        f"no token would be trained (0 %): all {report.rows} rows were dropped ({'; '.join(reasons[:3])})",
        place=", ".join(source.name for source in report.sources),
        fix="check which column is the answer, `train_on`, and `sequence_len`"
        if any("trained" in r for r in reasons)
        else f"raise `sequence_len` (it is {max_len})",
    )


def _facts(report: Report, train: Dataset, held: Dataset | None) -> DataFacts:
    first = report.sources[0]
    return DataFacts(
        rows=report.used,
        eval_rows=report.held_out,
        tokens_total=report.tokens,
        trained_tokens=report.trained_tokens,
        longest=report.longest,
        lengths=histogram(train.lengths),
        format=first.format,
        mapping=first.mapping,
        sources=tuple(source.name for source in report.sources),
        exact=True,
        notes=tuple(report.warnings),
    )


def measure(sources: Sequence[Source], tokenizer: Any, spec: RunSpec, *, sample: int = 256) -> DataFacts:
    """What a plan needs to know, from a sample of the rows.

    Args:
        tokenizer: without one, four characters count as a token and half of them as trained.

    Raises:
        DataError: as `prepare`, for the rows of the sample.
    """
    lengths: list[np.ndarray] = []
    rows_in_all, tokens, trained, longest = 0, 0.0, 0.0, 0
    formats = []
    for source in (s for s in sources if s.role == "train"):
        rows = source.rows
        form = _detect(source, rows)
        if not form.trainable:
            form.read({})
        formats.append((source.name, form))
        chosen = _spread(len(rows), sample)
        sizes, learnt = _sizes(rows, form, chosen, tokenizer, spec)
        scale = len(rows) / max(len(chosen), 1)
        rows_in_all += len(rows)
        tokens += sum(sizes) * scale
        trained += sum(learnt) * scale
        longest = max(longest, *sizes, 0)
        lengths.append(np.repeat(np.asarray(sizes, np.int64), max(1, round(scale))))
    every = np.concatenate(lengths) if lengths else np.zeros(0, np.int64)
    held = _expected_held_out(rows_in_all, spec)
    return DataFacts(
        rows=rows_in_all - held,
        eval_rows=held,
        tokens_total=int(tokens),
        trained_tokens=int(trained),
        longest=longest,
        lengths=histogram(every, (rows_in_all - held) / max(len(every), 1)),
        format=formats[0][1].name,
        mapping=formats[0][1].mapping,
        sources=tuple(name for name, _ in formats),
        exact=False,
    )


def _expected_held_out(rows: int, spec: RunSpec) -> int:
    if spec.eval.data is not None:
        return 0
    if spec.eval.split is None:
        return min(round(rows * 0.05), spec.eval.max_rows) if rows >= 40 else 0
    return max(1, round(rows * spec.eval.split)) if spec.eval.split else 0


def _sizes(
    rows: Rows, form: Format, chosen: Sequence[int], tokenizer: Any, spec: RunSpec
) -> tuple[list[int], list[int]]:
    read = []
    for index in chosen:
        try:
            read.append(form.read(rows[index]))
        except DataError as error:
            raise DataError(error.cause, place=error.place or rows.place(index), fix=error.fix) from None
    read = [row for row in read if not _is_empty(row)]
    if tokenizer is None:
        sizes = [max(8, _characters(row) // 4) for row in read]
        return sizes, [size // 2 for size in sizes]
    chats = bool(read) and isinstance(read[0], Chat)
    template = ChatTemplate(tokenizer, None if template_text(tokenizer) else PLAIN_TEMPLATE) if chats else None
    encoded = [r for r in Encoder(tokenizer, template, spec.train_on).encode(read) if not isinstance(r, DataError)]
    return [len(ids) for ids, _ in encoded], [int(trained.sum()) for _, trained in encoded]


def _characters(row: Chat | Parts) -> int:
    if isinstance(row, Parts):
        return sum(len(text) for text, _ in row.parts)
    return sum(len(str(m.get("content") or "")) + 16 for m in row.messages)
