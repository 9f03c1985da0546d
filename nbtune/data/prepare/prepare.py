"""From sources to tokens: `prepare_data` for a run, `measure` for a plan."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from nbtune.data.formats.messages import Chat
from nbtune.data.formats.preference_format import Several
from nbtune.data.formats.reader import Format, Parts
from nbtune.data.prepare import cache
from nbtune.data.prepare.dataset import Dataset
from nbtune.data.prepare.eval_split import expected_held_out, hold_out
from nbtune.data.prepare.prepared import Prepared
from nbtune.data.prepare.quality_checks import diagnose
from nbtune.data.prepare.report import Report
from nbtune.data.prepare.row_pipeline import Overflow, Reader, format_of, is_empty, spread
from nbtune.data.prepare.row_weights import unmatched, without_dropped
from nbtune.data.prepare.stats import DataFacts, histogram
from nbtune.data.sources.resolve import with_template
from nbtune.data.sources.rows import Rows, Source
from nbtune.data.template.chat_template import PLAIN_TEMPLATE, ChatTemplate, template_text
from nbtune.data.tokenize.encoder import Encoder
from nbtune.errors import DataError
from nbtune.methods import METHODS
from nbtune.spec import RunSpec

# The keys of a spec that decide what the tokens are.
READ = {"train_on", "train_spans", "eval", "thinking", "terminators", "chat_template", "method", "row_weights"}


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


def prepare_data(
    sources: Sequence[Source],
    tokenizer: Any,
    *,
    spec: RunSpec,
    max_len: int,
    seed: int,
    overflow: Overflow | None = None,
    on_error: Literal["raise", "skip"] | None = None,
    progress: Callable[[int, int], None] | None = None,
    cached: bool = True,
    kind: str | None = None,
) -> Prepared:
    """Read, render, tokenise and mask every row.

    >>> spec, tokenizer = nbtune.spec.from_mapping({"data": "rows"}), nbtune.models.load_tokenizer("nbtune/tiny")
    >>> sources = nbtune.data.resolve(spec.data, {"rows": [{"prompt": "Hi", "completion": "Ahoy!"}]})
    >>> data = nbtune.data.prepare_data(sources, tokenizer, spec=spec, max_len=64, seed=0)
    >>> len(data.train), data.report.used
    (1, 1)

    Args:
        sources: from `resolve` or `open_snapshot`; those with `role="eval"` are the rows to evaluate on.
        tokenizer: a fast transformers tokenizer, which stays as it is; chats by one without a template get a plain one.
        max_len: tokens per example; longer ones are cut (plain text is split into windows).
        overflow: what happens to chats that are too long, instead of what the spec says.
        on_error: `skip` drops rows that cannot be read, with the reason in the report; instead of the spec's.
        progress: called with (rows done, rows in all).
        kind: what the rows must be, instead of what the spec's method learns from: `sft`; `pairs`: example 2i is the
            better, 2i + 1 the worse answer of a row; `feedback`: `value_of` says whether it is good; `stepwise`:
            `token_values` says which steps are right.
        cached: look for, and keep, big data that is prepared on disk (`nbtune.data.prepare.cache`).

    Raises:
        DataError: a row cannot be read, nothing is left, or nothing would be trained.
    """
    overflow, on_error = overflow or spec.overflow, on_error or spec.on_error
    kind = kind or METHODS[spec.method].rows
    tokenizer = speaking(tokenizer, spec)
    key = None
    if cached and sum(len(source.rows) for source in sources) >= cache.WORTH:
        options = {"spec": spec.model_dump(include=READ), "max_len": max_len, "seed": seed}
        key = cache.key_of(sources, tokenizer, {**options, "overflow": overflow, "on_error": on_error, "kind": kind})
    known = cache.load(key) if key else None
    if known is not None:
        return known
    work = Reader(tokenizer, spec, max_len, overflow, on_error, progress, kind)
    train_sources = [source for source in sources if source.role == "train"]
    eval_sources = [source for source in sources if source.role == "eval"]
    work.total = sum(len(source.rows) for source in sources)
    train = work.read(train_sources)
    report = work.report
    work.check_ends()
    if not len(train):
        raise nothing_left(report, max_len)
    held: Dataset | None = None
    if eval_sources:
        held = work.read(eval_sources)
        held = held if len(held) else None
    else:
        train, held = hold_out(train, spec, seed, report)
    train = without_dropped(train, report)
    if not len(train):
        raise nothing_left(report, max_len)
    if held is not None:
        held = without_dropped(held, report, weighted=False)
        held = held if len(held) else None
    report.warnings += unmatched(spec, work.matched)
    report.warnings += work.oddities.warnings()
    conclude(report, train, held)
    report.warnings += diagnose(train, held)
    facts = _facts(report, train, held, METHODS[spec.method].group)
    prepared = Prepared(train, held, report, facts, work.chat_template)
    if key:
        cache.store(key, prepared)
    return prepared


def conclude(report: Report, train: Dataset, held: Dataset | None) -> None:
    """Count what was prepared, and warn.

    Raises:
        DataError: nothing would be trained.
    """
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
    if report.duplicates > report.rows * 0.1:
        report.warnings.append(f"{report.duplicates} rows repeat another one")
    cut = report.count("cut")
    if cut:
        report.warnings.append(f"{cut} rows were cut: their ends, with the token that ends an answer, are not learnt")


def nothing_left(report: Report, max_len: int) -> DataError:
    """Return the error where every row was dropped."""
    reasons = sorted({fate[3] for fate in report.fates})
    return DataError(
        f"no token would be trained (0 %): all {report.rows} rows were dropped ({'; '.join(reasons[:3])})",
        place=", ".join(source.name for source in report.sources),
        fix="check which column is the answer, `train_on`, and `sequence_len`"
        if any("trained" in r for r in reasons)
        else f"raise `sequence_len` (it is {max_len})",
    )


def _facts(report: Report, train: Dataset, held: Dataset | None, per_row: int) -> DataFacts:
    first = report.sources[0]
    return DataFacts(
        rows=report.used // per_row,
        eval_rows=report.held_out // per_row,
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


def measure(
    sources: Sequence[Source],
    tokenizer: Any,
    spec: RunSpec,
    *,
    sample: int = 256,
    longest: int = 0,
    on_error: Literal["raise", "skip"] = "raise",
    kind: str | None = None,
) -> DataFacts:
    """Return what a plan needs to know, from a sample of the rows.

    >>> spec, tokenizer = nbtune.spec.from_mapping({"data": "rows"}), nbtune.models.load_tokenizer("nbtune/tiny")
    >>> sources = nbtune.data.resolve(spec.data, {"rows": [{"prompt": "Hi", "completion": "Ahoy!"}]})
    >>> nbtune.data.measure(sources, tokenizer, spec).format
    'prompt-completion'

    Args:
        sample: rows of each source that are looked at, evenly spread.
        longest: how many rows of most bytes are looked at besides (where a source knows them), for the longest.
        tokenizer: without one, four characters count as a token and half of them as trained.

    Raises:
        DataError: as `prepare_data`, for the rows of the sample.
    """
    kind = kind or METHODS[spec.method].rows
    tokenizer = None if tokenizer is None else speaking(tokenizer, spec)
    lengths: list[np.ndarray] = []
    rows_in_all, tokens, trained, most = 0, 0.0, 0.0, 0
    formats = []
    for source in (s for s in sources if s.role == "train"):
        rows = source.rows
        form = format_of(source, rows, on_error, kind)
        form.check(kind, source.name)
        formats.append((source.name, form))
        chosen = spread(len(rows), sample)
        sizes, learnt = _sizes(rows, form, chosen, tokenizer, spec, on_error)
        if longest and hasattr(rows, "longest"):
            most = max(most, *_sizes(rows, form, rows.longest(longest), tokenizer, spec, on_error)[0], 0)
        scale = len(rows) / max(len(chosen), 1)
        rows_in_all += len(rows)
        tokens += sum(sizes) * scale
        trained += sum(learnt) * scale
        most = max(most, *sizes, 0)
        lengths.append(np.repeat(np.asarray(sizes, np.int64), max(1, round(scale))))
    every = np.concatenate(lengths) if lengths else np.zeros(0, np.int64)
    held = expected_held_out(rows_in_all, spec)
    return DataFacts(
        rows=rows_in_all - held,
        eval_rows=held,
        tokens_total=int(tokens),
        trained_tokens=int(trained),
        longest=most,
        lengths=histogram(every, (rows_in_all - held) / max(len(every), 1)),
        format=formats[0][1].name,
        mapping=formats[0][1].mapping,
        sources=tuple(name for name, _ in formats),
        exact=False,
    )


def _sizes(
    rows: Rows, form: Format, chosen: Sequence[int], tokenizer: Any, spec: RunSpec, on_error: str
) -> tuple[list[int], list[int]]:
    read: list[Chat | Parts] = []
    for index in chosen:
        try:
            given: Any = rows[index]
            if given is None:  # a function left it out
                continue
            row = form.read(given)
            read += row.rows if isinstance(row, Several) else (row,)
        except DataError as error:
            if on_error == "raise":
                raise DataError(error.cause, place=error.place or rows.place(index), fix=error.fix) from None
    read = [row for row in read if not is_empty(row)]
    if tokenizer is None:
        sizes = [max(8, _characters(row) // 4) for row in read]
        return sizes, [size // 2 for size in sizes]
    chats = bool(read) and isinstance(read[0], Chat)
    template = ChatTemplate(tokenizer, None if template_text(tokenizer) else PLAIN_TEMPLATE) if chats else None
    encoder = Encoder.of_spec(tokenizer, template, spec)
    encoded = [r for r in encoder.encode(read) if not isinstance(r, DataError)]
    return [len(ids) for ids, _ in encoded], [int(trained.sum()) for _, trained in encoded]


def _characters(row: Chat | Parts) -> int:
    if isinstance(row, Parts):
        return sum(len(text) for text, _ in row.parts)
    return sum(len(str(m.get("content") or "")) + 16 for m in row.messages)
