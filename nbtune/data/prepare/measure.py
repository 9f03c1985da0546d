"""Rows, tokens, lengths: of all rows as a sample says it, for a plan and for data that still arrives, or exactly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from nbtune.data.formats.messages import Chat
from nbtune.data.formats.preference_format import Several
from nbtune.data.formats.reader import Format, Parts
from nbtune.data.prepare.dataset import Dataset
from nbtune.data.prepare.eval_split import expected_held_out
from nbtune.data.prepare.labels import judge, without_answers
from nbtune.data.prepare.report import Report
from nbtune.data.prepare.row_pipeline import format_of, is_empty, speaking, spread
from nbtune.data.prepare.stats import DataFacts, histogram, longest_pair
from nbtune.data.prepare.untaught import TrainedTokens
from nbtune.data.sources.rows import Rows, Source
from nbtune.data.template.chat_template import PLAIN_TEMPLATE, ChatTemplate, template_text
from nbtune.data.tokenize.encoder import Encoder
from nbtune.errors import DataError
from nbtune.folder_format import knew_longest_before_3
from nbtune.methods import METHODS
from nbtune.spec import RunSpec

SAMPLE = 256
"""Rows of each source that a plan looks at."""


def measure(
    sources: Sequence[Source],
    tokenizer: Any,
    spec: RunSpec,
    *,
    sample: int = SAMPLE,
    longest: int = 0,
    on_error: Literal["raise", "skip"] | None = None,
    kind: str | None = None,
    max_len: int | None = None,
    one_weight: bool = False,
) -> DataFacts:
    """Return what a plan needs to know, from a sample of the rows.

    >>> spec, tokenizer = nbtune.spec.from_mapping({"data": "rows"}), nbtune.models.load_tokenizer("nbtune/tiny")
    >>> sources = nbtune.data.resolve(spec.data, {"rows": [{"prompt": "Hi", "completion": "Ahoy!"}]})
    >>> nbtune.data.measure(sources, tokenizer, spec).format
    'prompt-completion'

    Args:
        sample: rows of each source that are looked at, evenly spread.
        longest: how many rows of most bytes are looked at besides (where a source knows them), for the longest.
        on_error: instead of the spec's.
        tokenizer: without one, four characters count as a token and half of them as trained.
        max_len: count what is left when longer rows are cut (or split into windows) there.
        one_weight: the model's head is its embedding.

    Raises:
        DataError: as `prepare_data`, for the rows of the sample.
    """
    kind, on_error = kind or METHODS[spec.method].rows, on_error or spec.on_error
    spec = without_answers(spec, kind)
    tokenizer = None if tokenizer is None else speaking(tokenizer, spec)
    lengths: list[np.ndarray] = []
    examples, tokens, trained, most, pair = 0, 0.0, 0.0, 0, 0
    formats, chats, whole = [], [], []
    named, all_of_them = TrainedTokens(spec, tokenizer, one_weight=one_weight), True
    for source in (s for s in sources if s.role == "train"):
        rows = source.rows
        form = format_of(source, rows, on_error, kind)
        form.check(kind, source.name)
        formats.append((source.name, form))
        chosen = spread(len(rows), sample)
        chats.append(_is_chat(form, rows, chosen))
        whole.append(is_whole(form.name, source.spec.template))
        all_of_them = all_of_them and len(chosen) == len(rows)
        sizes, learnt, more, pairs = _sizes(rows, form, chosen, tokenizer, spec, on_error, max_len, named)
        pair = max(pair, pairs)
        if longest and hasattr(rows, "longest") and (source.version >= 3 or knew_longest_before_3(rows)):
            most = max(most, *_sizes(rows, form, rows.longest(longest), tokenizer, spec, on_error, max_len)[0], 0)
        scale = len(rows) / max(len(chosen), 1)
        examples += len(rows) + round(more * scale)
        tokens += sum(sizes) * scale
        trained += sum(learnt) * scale
        most = max(most, *sizes, 0)
        lengths.append(np.repeat(np.asarray(sizes, np.int64), max(1, round(scale))))
    every = np.concatenate(lengths) if lengths else np.zeros(0, np.int64)
    held = expected_held_out(examples, spec)
    return DataFacts(
        rows=examples - held,
        eval_rows=held,
        tokens_total=int(tokens),
        trained_tokens=int(trained),
        longest=most,
        pair=pair,
        lengths=histogram(every, (examples - held) / max(len(every), 1)),
        format=formats[0][1].name,
        mapping=formats[0][1].mapping,
        sources=tuple(name for name, _ in formats),
        exact=False,
        chats=None if None in chats else any(chats),
        whole=all(whole),
        untaught=tuple(named.warnings()) if all_of_them and tokenizer is not None else (),
    )


def is_whole(format_name: str, template: str | None) -> bool:
    """Return whether all that rows of a format hold is trained, whatever `train_on` says."""
    return format_name == "text" or (template is not None and "generation" not in template)


def _sizes(
    rows: Rows,
    form: Format,
    chosen: Sequence[int],
    tokenizer: Any,
    spec: RunSpec,
    on_error: str,
    max_len: int | None,
    named: TrainedTokens | None = None,
) -> tuple[list[int], list[int], int, int]:
    """Return (tokens of each example, how many of them are trained, how many examples windows make more than rows,
    tokens of the longest pair); `named` sees them."""
    read: list[Chat | Parts] = []
    origins: list[int] = []  # the row of each
    for index in chosen:
        try:
            given: Any = rows[index]
            if given is None:  # a function left it out
                continue
            row = judge(form.read(given), spec)
            several = isinstance(row, Several)
            whole = several and row.steps  # their labels stand at line breaks
            read += [t for t in (row.rows if several else (row,)) if whole or not is_empty(t, spec.train_on)]
            origins += [index] * (len(read) - len(origins))
        except DataError as error:
            if on_error == "raise":
                raise DataError(error.cause, place=error.place or rows.place(index), fix=error.fix) from None
    if tokenizer is None:
        sizes = [max(8, _characters(row) // 4) for row in read]
        return sizes, [size // 2 for size in sizes], 0, 0
    chats = bool(read) and isinstance(read[0], Chat)
    template = ChatTemplate(tokenizer, None if template_text(tokenizer) else PLAIN_TEMPLATE) if chats else None
    encoder = Encoder.of_spec(tokenizer, template, spec)
    sizes, learnt, more = [], [], 0
    encoded = encoder.encode(read)
    for row, made, index in zip(read, encoded, origins, strict=True):
        if isinstance(made, DataError):
            if on_error == "raise":
                raise DataError(made.cause, place=made.place or rows.place(index), fix=made.fix)
            continue
        limit = max(len(made[1]), 1) if max_len is None else max_len
        windows = [made[1][i : i + limit] for i in range(0, len(made[1]), limit)]
        windows = windows if isinstance(row, Parts) and row.windows else windows[:1]
        sizes += [len(window) for window in windows]
        learnt += [int(window.sum()) for window in windows]
        more += max(len(windows) - 1, 0)
    cut = [(made[0][:max_len], made[1][:max_len]) for made in encoded if not isinstance(made, DataError)]
    if named is not None:
        named.see(cut)
    paired = METHODS[spec.method].group == 2 and len(cut) == len(read)
    return sizes, learnt, more, longest_pair(cut.__getitem__, [len(ids) for ids, _ in cut]) if paired else 0


def _is_chat(form: Format, rows: Rows, chosen: Sequence[int]) -> bool | None:
    """Return whether the first of these rows is a conversation; None: it cannot be told."""
    try:
        given: Any = rows[chosen[0]] if len(chosen) else None
        row = None if given is None else form.read(given)
    except DataError:
        return None
    return None if row is None else isinstance(row.rows[0] if isinstance(row, Several) else row, Chat)


def _characters(row: Chat | Parts) -> int:
    if isinstance(row, Parts):
        return sum(len(text) for text, _ in row.parts)
    return sum(len(str(m.get("content") or "")) + 16 for m in row.messages)


def exact_facts(report: Report, train: Dataset, per_row: int, *, whole: bool = False) -> DataFacts:
    """Return the facts of rows that were all prepared; `per_row` examples are of one, `whole` is the facts'."""
    first = report.sources[0]
    return DataFacts(
        rows=report.used // per_row,
        eval_rows=report.held_out // per_row,
        tokens_total=report.tokens,
        trained_tokens=report.trained_tokens,
        longest=report.longest,
        pair=longest_pair(train.arrays, train.lengths) if per_row == 2 else 0,
        lengths=histogram(train.lengths),
        format=first.format,
        mapping=first.mapping,
        sources=tuple(source.name for source in report.sources),
        exact=True,
        notes=tuple(report.warnings),
        chats=bool(report.template),
        whole=whole,
    )
