"""The one way from sources to tokens, for data of any size.

Rows are prepared a shard at a time, each by the same steps: read, rendered, tokenised, some held out, the others learnt
from. Few rows are one shard, in their own order. Of more than `AT_ONCE`, where they are seen in a drawn order anyway,
that order is drawn first, from their number and the seed: shards are prepared in it, here and in processes of their
own, the first of them small. So the first batch is there after a second or two, and batches are the same whether they
were waited for, found in the cache, or asked for by a resumed run.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import numpy as np

from nbtune.data.prepare import cache
from nbtune.data.prepare.dataset import Dataset
from nbtune.data.prepare.eval_split import HoldOut
from nbtune.data.prepare.labels import much_alike, with_labels, without_answers
from nbtune.data.prepare.measure import exact_facts, is_whole, measure
from nbtune.data.prepare.quality_checks import Oddities, diagnose, one_sided
from nbtune.data.prepare.recipe import Recipe
from nbtune.data.prepare.report import Prepared, Report, SourceReport, conclude, nothing_left
from nbtune.data.prepare.row_pipeline import Overflow, Reader, format_of, speaking
from nbtune.data.prepare.row_weights import unmatched, unmet, without_dropped
from nbtune.data.prepare.shards import Shard, Workman
from nbtune.data.prepare.stats import DataFacts
from nbtune.data.prepare.streaming_dataset import Arriving, DatasetFiles
from nbtune.data.prepare.workers import Crew
from nbtune.data.sources.cache_folder import new_place, remove, workplace
from nbtune.data.sources.rows import Source
from nbtune.errors import DataError
from nbtune.folder_format import FORMAT, arrived_before_3
from nbtune.methods import METHODS
from nbtune.spec import RunSpec

AT_ONCE = 4096  # rows; of more the first are learnt from while the others are prepared
SHARDS = {"first": 512, "most": 8192}  # rows
HASHED_FIRST = 1 << 29  # bytes of files whose contents are looked up in the cache before anything is prepared


def prepare_data(
    sources: Sequence[Source],
    tokenizer: Any,
    *,
    spec: RunSpec,
    max_len: int,
    seed: int,
    overflow: Overflow | None = None,
    on_error: Literal["raise", "skip"] | None = None,
    kind: str | None = None,
    cached: bool = True,
    tell: Callable[[str], None] | None = None,
    processes: int | None = None,
    work_here: bool = False,
) -> Prepared:
    """Read, render, tokenise and mask every row.

    >>> spec, tokenizer = nbtune.spec.from_mapping({"data": "rows"}), nbtune.models.load_tokenizer("nbtune/tiny")
    >>> sources = nbtune.data.resolve(spec.data, {"rows": [{"prompt": "Hi", "completion": "Ahoy!"}]})
    >>> data = nbtune.data.prepare_data(sources, tokenizer, spec=spec, max_len=64, seed=0)
    >>> len(data.train), data.report.used
    (1, 1)

    Of many rows the first come at once, the others while they are learnt from (`Prepared.train` is an `Arriving` then):
    the facts are then measured on a sample, and the report is whole when the last row has arrived.

    Args:
        sources: from `resolve` or `open_snapshot`; those with `role="eval"` are the rows to evaluate on.
        tokenizer: a fast transformers tokenizer, which stays as it is; chats by one without a template get a plain one.
        max_len: tokens per example; longer ones are cut (plain text is split into windows).
        overflow: what happens to chats that are too long, instead of what the spec says.
        on_error: `skip` drops rows that cannot be read, with the reason in the report; instead of the spec's.
        kind: what the rows must be, instead of what the spec's method learns from: `sft`; `pairs`: example 2i is the
            better, 2i + 1 the worse answer of a row; `feedback`: `value_of` says whether it is good; `stepwise`:
            `token_values` says which steps are right.
        cached: look for, and keep, big data that is prepared on disk (`nbtune.data.prepare.cache`).
        tell: is given each warning that is found after this function has returned.
        processes: how many help; None: one per core besides this one, at most 4.
        work_here: this process prepares too when the others are up; for callers that only wait.

    Raises:
        DataError: a row cannot be read, nothing is left, or nothing would be trained; what is wrong with rows that come
            later is raised where their examples are waited for.
    """
    kind = kind or METHODS[spec.method].rows
    spec = with_labels(spec, sources) if kind == METHODS[spec.method].rows else spec
    spec = without_answers(spec, kind)
    train = [source for source in sources if source.role == "train"]
    counts = tuple(len(source.rows) for source in train)
    version = min((source.version for source in sources), default=FORMAT)
    arrives = _arrive(train, counts, spec, kind, version)
    whole = not arrives and (sum(counts) <= AT_ONCE or version < 3)
    recipe = Recipe(
        spec,
        max_len,
        overflow or spec.overflow,
        on_error or spec.on_error,
        kind,
        seed,
        counts,
        arrives=arrives,
        whole=whole,
        version=version,
        **SHARDS,
    )
    tokenizer = speaking(tokenizer, spec)
    key: str | Callable[[], str | None] | None = None
    if cached and sum(len(source.rows) for source in sources) >= cache.WORTH:
        find = partial(cache.key_of, sources, tokenizer, recipe.meaning())
        key = find if arrives and _takes_long_to_hash(sources) else find()
    known = cache.load(key) if isinstance(key, str) else None
    if known is not None:
        return replace(known, train=_arrived(known)) if arrives else known
    crew = {"processes": processes, "work_here": work_here or not arrives}
    return _Preparation(recipe, sources, tokenizer, key, tell, crew).begin()


def _arrive(train: Sequence[Source], counts: Sequence[int], spec: RunSpec, kind: str, version: int) -> bool:
    """Tell whether there are many rows, in an order that needs not all of them, as a mix and an order by length do."""
    plain = len({source.spec.weight for source in train}) == 1 and spec.mix.temperature is None
    plain = plain and spec.mix.by != "tokens" and spec.order == "shuffled"
    if version < 3:
        files = all(source.files and source.spec.function is None for source in train)
        return plain and arrived_before_3(sum(counts), from_files=files, kind=kind)
    return plain and sum(counts) > AT_ONCE


def _takes_long_to_hash(sources: Sequence[Source]) -> bool:
    """Tell whether contents must still be read to know them, and are big: a run need not wait for that."""
    unknown = [file for source in sources if not source.digests for file in source.files]
    return sum(file.stat().st_size for file in unknown) > HASHED_FIRST


class _Preparation:
    """From the first shard to the place in the cache."""

    def __init__(
        self,
        recipe: Recipe,
        sources: Sequence[Source],
        tokenizer: Any,
        key: str | Callable[[], str | None] | None,
        tell: Callable[[str], None] | None,
        crew: dict[str, Any],
    ) -> None:
        self.train = [source for source in sources if source.role == "train"]
        self.own = [source for source in sources if source.role == "eval"]
        self.recipe, self.tokenizer, self.tell, self.crew = recipe, tokenizer, tell, crew
        self.key = key if isinstance(key, str) else None
        self.find_key = None if isinstance(key, str) else key
        self.report, self.oddities = Report(), Oddities()
        self.chats = self.unended = self.midway = 0
        self.hashes: list[np.ndarray] = []
        self.matched: set[str] = set()
        self.met: set[int] = set()
        self.chat_template: str | None = None
        self._describe(self.train)
        self.facts = self._sampled() if recipe.arrives else None
        self.hold_out = HoldOut(recipe)
        names, weights = [s.name for s in self.train], [s.spec.weight for s in self.train]
        limits = {"longest": recipe.max_len, "planned": 0} if self.facts is None else _limits(self.facts)
        self.arriving = Arriving(names, weights, **limits)
        held = 0 if self.facts is None else self.facts.eval_rows
        self.held = Arriving(names, weights, longest=limits["longest"], planned=held)
        self.own_eval: Dataset | None = None
        self.files: dict[str, DatasetFiles] = {}
        self.place = new_place() if key else None
        if self.place is None:
            self.key = self.find_key = None
            if not recipe.whole:  # what does not fit into memory need not
                self.place = workplace()
                weakref.finalize(self.arriving, remove, self.place)

    def _describe(self, sources: Sequence[Source]) -> None:
        """Say in the report how each source is read."""
        for source in sources:
            form = format_of(source, source.rows, self.recipe.on_error, self.recipe.kind)
            form.check(self.recipe.kind, source.name)
            self.report.sources.append(SourceReport(source.name, form.name, form.mapping, len(source.rows)))
            self.report.rows += len(source.rows)
            self.report.warnings += getattr(source.raw, "remarks", [])
            self.report.warnings += [f"{source.name}: {form.unread}"] if form.unread else []
            if "margin" in form.mapping and not METHODS[self.recipe.spec.method].head:
                margin, method = form.mapping["margin"], self.recipe.spec.method
                self.report.warnings.append(
                    f"{source.name}: `{margin}` is for reward models: {method} does not read it"
                )

    def _sampled(self) -> DataFacts:
        """Return what is planned with before all rows are known: a sample, with the rows of most bytes in it.

        Nothing may be longer than the longest of them and some room.
        """
        recipe = self.recipe
        options = {
            "sample": 512,
            "longest": 64,
            "on_error": recipe.on_error,
            "kind": recipe.kind,
            "max_len": recipe.max_len,
        }
        facts = measure(self.train, self.tokenizer, recipe.spec, **options)  # type: ignore[arg-type]
        longest = min(recipe.max_len, max(8, -(-facts.longest * 11 // 80) * 8))
        self.recipe = replace(recipe, max_len=longest)
        learnt = facts.rows / max(facts.rows + facts.eval_rows, 1)
        tokens, trained = int(facts.tokens_total * learnt), int(facts.trained_tokens * learnt)
        return facts.model_copy(update={"longest": longest, "tokens_total": tokens, "trained_tokens": trained})

    def begin(self) -> Prepared:
        """Return all, or the dataset with its first examples in it."""
        workman = Workman(self.recipe, self.train, self.tokenizer)
        self._look_at_own_eval()
        self._take_in(workman.prepare(0))  # mistakes of the format show here, at once
        if not self.recipe.arrives:
            self._take_in_others(workman)
            return self._finish()
        held: Any = self.own_eval if self.own else (self.held if self.hold_out.share else None)
        assert self.facts is not None
        prepared = Prepared(self.arriving, held, self.report, self.facts, self.chat_template)
        threading.Thread(target=self._go_on, args=(workman,), name="nbtune-arriving", daemon=True).start()
        return prepared

    def _look_at_own_eval(self) -> None:
        if not self.own:
            return
        self._describe(self.own)
        reader = Reader(self.tokenizer, self.recipe)
        held = without_dropped(reader.read(self.own), reader.report, weighted=False)
        self.own_eval = held if len(held) else None
        self.matched, self.met = self.matched | reader.matched, self.met | reader.met
        self.report.fates += reader.report.fates
        self.oddities.add(vars(reader.oddities))

    def _take_in_others(self, workman: Workman) -> None:
        crew = Crew(self.recipe, self.train, self.tokenizer, workman, **self.crew)
        try:
            for shard in crew.shards(first=1):
                self._take_in(shard)
        finally:
            crew.dismiss()

    def _go_on(self, workman: Workman) -> None:
        try:
            if self.find_key is not None:
                self.key = self.find_key()
                if self.key is not None and (known := cache.load(self.key)) is not None:
                    self._take_over(known)
                    return
            self._take_in_others(workman)
            told = len(self.report.warnings)
            prepared = self._finish()
            with contextlib.suppress(OSError):  # the run is over, and its log closed
                for warning in prepared.report.warnings[told:] if self.tell else ():
                    self.tell(warning)  # type: ignore[misc]
        except BaseException as error:  # noqa: BLE001 — whoever waits for the rest gets it
            self.arriving.fail(error)
            self.held.fail(error)

    def _take_over(self, known: Prepared) -> None:
        """Take what was prepared before: the same examples in the same order."""
        for file in self.files.values():
            file.close()
        vars(self.report).update(vars(known.report))
        self.arriving.finish(known.train.whole())
        self.held.finish(known.train.whole().take([]) if known.eval is None else known.eval.whole())
        if self.place is not None:
            remove(self.place)

    def _take_in(self, shard: Shard) -> None:
        """Append a shard behind those before it: some rows are held out, all others learnt from."""
        about = shard.about
        self.report.fates += about["fates"]
        self.chats, self.unended = self.chats + about["chats"], self.unended + about["unended"]
        self.midway += about["midway"]
        self.oddities.add(about["oddities"])
        self.matched, self.met = self.matched | set(about["matched"]), self.met | set(about["met"])
        self.chat_template = about["chat_template"] or self.chat_template
        self.report.terminator = about["terminator"] or self.report.terminator
        self.report.template = self.chat_template or ""
        self.report.warnings += [w for w in about["warnings"] if w not in self.report.warnings]
        self.hashes.append(shard.hashes)
        out = self.hold_out.choose(shard.data, shard.hashes)
        learnt, held = (shard.data.take(np.flatnonzero(~out)), shard.data.take(np.flatnonzero(out)))
        self.arriving.add(self._written("train", without_dropped(learnt, self.report)))
        held = without_dropped(held, self.report, weighted=False)
        if len(held):
            self.held.add(self._written("eval", held))

    def _written(self, name: str, part: Dataset) -> Dataset:
        """Return the part, on disk instead of in memory where there is a place."""
        if self.place is None:
            return part
        if name not in self.files:
            self.files[name] = DatasetFiles(self.place, name)
        return self.files[name].append(part)

    def _finish(self) -> Prepared:
        """Say, now that all rows are there, what can be said of them all; return where they stay."""
        report = self.report
        report.duplicates = sum(map(len, self.hashes)) - len(np.unique(np.concatenate(self.hashes)))
        if self.arriving.ready == 0:
            raise nothing_left(report, self.recipe.max_len)
        self._check_ends()
        if self.hold_out.share and not self.held.ready:
            report.warnings.append("no rows are held out: they are too few, or all are duplicates of others")
        report.warnings += self.oddities.warnings(self.recipe.spec.train_on)
        report.warnings += unmatched(self.recipe.spec, self.matched) + unmet(self.recipe.spec, self.met)
        if alike := much_alike(self.recipe.spec.labels):
            report.warnings.append(alike)
        order = {source.name: number for number, source in enumerate(report.sources)}
        report.fates.sort(key=lambda fate: (order.get(fate[0], 0), fate[1]))
        train, held = self._settle()
        conclude(report, train, held)
        report.warnings += diagnose(train, held, report.said_to_repeat) + one_sided(train, self.recipe.kind)
        named = {source.name: source.format for source in report.sources}
        whole = all(is_whole(named[source.name], source.spec.template) for source in self.train)
        facts = self.facts or exact_facts(report, train, METHODS[self.recipe.spec.method].group, whole=whole)
        prepared = self._kept(Prepared(train, held, report, facts, self.chat_template))
        self.arriving.finish(prepared.train.whole())
        self.held.finish(train.take([]) if prepared.eval is None else prepared.eval.whole())
        return prepared

    def _check_ends(self) -> None:
        """Refuse data in which no answer ends, warn of some: a model that never sees an end never stops."""
        if self.recipe.spec.train_on == "all":
            return
        if self.midway:
            self.report.warnings.append(
                f"{self.midway} conversations have an earlier answer behind which the template writes no token that "
                f"ends it (it writes {self.report.terminator!r} behind the last): the model learns to go on there"
            )
        if not self.unended:
            return
        if self.unended == self.chats:
            raise DataError(
                "no answer ends with a terminator: a model trained so would never stop",
                place="data",
                fix=f"the template ends an answer with {self.report.terminator!r}: end conversations with an "
                "assistant's text",
            )
        self.report.warnings.append(f"{self.unended} conversations end with an answer without a terminator")

    def _settle(self) -> tuple[Dataset, Dataset | None]:
        """Return the datasets of what was taken in, read from the files that were written, now closed."""
        if self.place is None:
            (train,), held = self.arriving.parts(), self.held.parts()
            return train, held[0] if held else self.own_eval
        if self.own_eval is not None and self.key is not None:
            self._written("eval", self.own_eval)
        for file in self.files.values():
            file.close()
        about = self.arriving.sources, self.arriving.weights
        train = cache.read_arrays(self.place, "train", *about)
        if self.own:
            return train, self.own_eval
        return train, cache.read_arrays(self.place, "eval", *about) if "eval" in self.files else None

    def _kept(self, prepared: Prepared) -> Prepared:
        """Seal the folder under its key; return the datasets where they are then."""
        if self.key is None or self.place is None:
            return prepared
        try:
            return cache.seal(self.key, self.place, prepared)
        except OSError:  # the disk is full: it is made again next time
            return prepared


def _limits(facts: DataFacts) -> dict[str, int]:
    return {"longest": facts.longest, "planned": facts.rows, "planned_tokens": facts.tokens_total}


def _arrived(known: Prepared) -> Arriving:
    return Arriving.arrived(known.train.whole(), **_limits(known.facts))
