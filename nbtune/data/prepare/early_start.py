"""Starting on big data before all of it is prepared.

The order in which rows are first seen is drawn at once from their number and the seed; rows are prepared in that order,
a shard at a time, here and in processes of their own, and shards are lined up in it however they come. So the first
batch is there after a second or two, and batches are the same whether they were waited for, found in the cache, or
asked for by a resumed run.

Held out are rows by a hash of their tokens, so that no row's copy stands on the other side.
"""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from nbtune.data.prepare import cache
from nbtune.data.prepare.dataset import Dataset
from nbtune.data.prepare.prepare import READ, conclude, measure, nothing_left, prepare_data, speaking
from nbtune.data.prepare.prepared import Prepared
from nbtune.data.prepare.quality_checks import Oddities, diagnose
from nbtune.data.prepare.report import Report, SourceReport
from nbtune.data.prepare.row_pipeline import Overflow, Reader, format_of
from nbtune.data.prepare.row_weights import unmatched, without_dropped
from nbtune.data.prepare.shards import Job, Shard, Workman
from nbtune.data.prepare.stats import DataFacts
from nbtune.data.prepare.streaming_dataset import Arriving, DatasetFiles
from nbtune.data.prepare.workers import Crew
from nbtune.data.sources.cache_folder import new_place, workplace
from nbtune.data.sources.rows import Source
from nbtune.errors import DataError
from nbtune.methods import METHODS
from nbtune.spec import RunSpec

EARLY = 20_000  # rows; fewer are prepared at once
HASHED_FIRST = 1 << 29  # bytes of files whose contents are looked up in the cache before anything is prepared
SHARDS = {"first": 512, "most": 8192}  # rows
_SPLIT = 0.05


def start(
    sources: Sequence[Source],
    tokenizer: Any,
    *,
    spec: RunSpec,
    max_len: int,
    seed: int,
    overflow: Overflow | None = None,
    on_error: Literal["raise", "skip"] | None = None,
    cached: bool = True,
    tell: Callable[[str], None] | None = None,
    processes: int | None = None,
    work_here: bool = False,
) -> Prepared:
    """Prepare as `prepare_data` does; but big data from files (`EARLY` rows and more) comes as an `Arriving` dataset,
    soon.

    >>> spec, tokenizer = nbtune.spec.from_mapping({"data": "rows"}), nbtune.models.load_tokenizer("nbtune/tiny")
    >>> sources = nbtune.data.resolve(spec.data, {"rows": [{"prompt": "Hi", "completion": "Ahoy!"}]})
    >>> len(nbtune.data.start(sources, tokenizer, spec=spec, max_len=64, seed=0).train)
    1

    Its facts are then measured on a sample, and its report is whole when the last row has arrived.

    Args:
        tell: is given each warning that is found after this function has returned.
        processes: how many help; None: one per core besides this one, at most 4.
        work_here: this process prepares too when the others are up; for callers that only wait.

    Raises:
        DataError: as `prepare_data`; what is wrong with later rows is raised where their examples are waited for.
    """
    overflow, on_error = overflow or spec.overflow, on_error or spec.on_error
    tokenizer = speaking(tokenizer, spec)
    train = [source for source in sources if source.role == "train"]
    counts = tuple(len(source.rows) for source in train)
    if not _can_arrive(train, counts, spec):
        return prepare_data(
            sources,
            tokenizer,
            spec=spec,
            max_len=max_len,
            seed=seed,
            overflow=overflow,
            on_error=on_error,
            cached=cached,
        )
    job = Job(spec, max_len, overflow, on_error, seed, counts, **SHARDS)
    key, later = None, None
    if cached:
        options = {"spec": spec.model_dump(include={*READ, "sequence_len"}), "arriving": True}
        of_contents = partial(cache.key_of, sources, tokenizer, {**job.to_json(), **options})
        later = of_contents if _takes_long_to_hash(sources) else None
        key = None if later else of_contents()
    known = cache.load(key) if key else None
    if known is not None:
        held = known.eval
        assert isinstance(known.train, Dataset)
        whole = Arriving.arrived(known.train, **_limits(known.facts))
        return Prepared(whole, held, known.report, known.facts, known.chat_template)
    crew = {"processes": processes, "work_here": work_here}
    return _Start(job, sources, train, tokenizer, later or key, tell, crew).begin()


def _can_arrive(train: Sequence[Source], counts: Sequence[int], spec: RunSpec) -> bool:
    """Return whether it can: a mix and an order by length need all rows to be known, and helpers need files to read."""
    plain = len({source.spec.weight for source in train}) == 1 and spec.mix.temperature is None
    plain = plain and spec.mix.by != "tokens" and spec.order == "shuffled" and METHODS[spec.method].rows == "sft"
    files = all(source.files and source.spec.function is None for source in train)
    return sum(counts) >= EARLY and plain and files


def _takes_long_to_hash(sources: Sequence[Source]) -> bool:
    """Return whether contents must still be read to know them, and are big: a run need not wait for that."""
    unknown = [file for source in sources if not source.digests for file in source.files]
    return sum(file.stat().st_size for file in unknown) > HASHED_FIRST


class _Start:
    """The preparation of big data, from its first shard to its place in the cache."""

    def __init__(
        self,
        job: Job,
        sources: Sequence[Source],
        train: Sequence[Source],
        tokenizer: Any,
        key: str | Callable[[], str | None] | None,
        tell: Callable[[str], None] | None,
        crew: dict[str, Any],
    ) -> None:
        self.sources, self.train, self.tokenizer, self.tell = sources, train, tokenizer, tell
        self.key = key if isinstance(key, str) else None
        self.find_key = None if isinstance(key, str) else key
        self.report, self.oddities = Report(), Oddities()
        self.chats = self.unended = 0
        self.digests: list[np.ndarray] = []
        self.matched: set[str] = set()
        self.held_digests = np.zeros(0, np.uint64)
        self.facts, self.job = self._facts(job)
        self.crew = crew
        names, weights = [s.name for s in train], [s.spec.weight for s in train]
        self.arriving = Arriving(names, weights, **_limits(self.facts))
        self.held = Arriving(names, weights, longest=self.facts.longest, planned=self.facts.eval_rows)
        self.own_eval: Dataset | None = None
        self.files: dict[str, DatasetFiles] = {}
        place = new_place() if key else None
        self.place = place or workplace()
        if place is None:
            self.key = self.find_key = None
            weakref.finalize(self.arriving, _remove, self.place)

    def _facts(self, job: Job) -> tuple[DataFacts, Job]:
        """Return what is planned with: a sample, with the rows of most bytes in it; and the limit that comes of it."""
        forms = [format_of(source, source.rows, job.on_error) for source in self.train]
        for source, form, count in zip(self.train, forms, job.counts, strict=True):
            form.check("sft", source.name)
            self.report.sources.append(SourceReport(source.name, form.name, form.mapping, count))
            self.report.warnings += [f"{source.name}: {form.unread}"] if form.unread else []
        self.report.rows = sum(job.counts)
        facts = measure(self.train, self.tokenizer, job.spec, sample=512, longest=64, on_error=job.on_error)  # type: ignore[arg-type]
        # the longest row need not be in the sample: some room
        longest = min(job.max_len, max(8, -(-facts.longest * 11 // 80) * 8))
        held = 0 if job.spec.eval.data is not None else facts.eval_rows
        facts = facts.model_copy(update={"longest": longest, "eval_rows": held})
        return facts, replace(job, max_len=longest)

    def begin(self) -> Prepared:
        """Return the dataset with its first examples in it."""
        job = self.job
        workman = Workman(job, self.train, self.tokenizer)
        self._look_at_eval()
        first = workman.prepare(0)  # mistakes of the format show here, at once
        self._take_in(first)
        no_eval = self.own_eval is None and self.job.spec.eval.split == 0
        held: Any = self.own_eval if self.own_eval is not None else (None if no_eval else self.held)
        prepared = Prepared(self.arriving, held, self.report, self.facts, first.about["chat_template"])
        threading.Thread(target=self._go_on, args=(workman, prepared), name="nbtune-arriving", daemon=True).start()
        return prepared

    def _look_at_eval(self) -> None:
        own = [source for source in self.sources if source.role == "eval"]
        if own:
            job = self.job
            reader = Reader(self.tokenizer, job.spec, job.max_len, job.overflow, job.on_error, None)  # type: ignore[arg-type]
            self.own_eval = without_dropped(reader.read(own), reader.report, weighted=False)
            self.matched |= reader.matched
            self.report.fates += reader.report.fates
            self.report.sources += reader.report.sources
            self.report.rows += reader.report.rows

    def _go_on(self, workman: Workman, prepared: Prepared) -> None:
        crew = None
        try:
            if self.find_key is not None:
                self.key = self.find_key()
                if self.key is not None and (known := cache.load(self.key)) is not None:
                    self._take_over(known)
                    return
            crew = Crew(self.job, self.train, self.tokenizer, workman, **self.crew)
            for shard in crew.shards(first=1):
                self._take_in(shard)
            self._finish(prepared)
        except BaseException as error:  # noqa: BLE001 — whoever waits for the rest gets it
            self.arriving.fail(error)
            self.held.fail(error)
        finally:
            if crew is not None:
                crew.dismiss()

    def _take_over(self, known: Prepared) -> None:
        """Take over what was prepared before: the same examples in the same order."""
        for file in self.files.values():
            file.close()
        vars(self.report).update(vars(known.report))
        assert isinstance(known.train, Dataset)
        self.arriving.finish(known.train)
        self.held.finish(known.eval if isinstance(known.eval, Dataset) else known.train.take([]))
        _remove(self.place)

    def _take_in(self, shard: Shard) -> None:
        """Append a shard behind those before it: some rows are held out, all others learnt from."""
        about = shard.about
        self.report.fates += about["fates"]
        self.chats, self.unended = self.chats + about["chats"], self.unended + about["unended"]
        self.oddities.add(about["oddities"])
        self.matched |= set(about["matched"])
        self.report.terminator = about["terminator"] or self.report.terminator
        self.report.template = about["chat_template"] or self.report.template
        self.report.warnings += [w for w in about["warnings"] if w not in self.report.warnings]
        out = self._held_out(shard)
        self.digests.append(shard.digest_of[_first_of_rows(shard.data)])
        kept, held = np.flatnonzero(~out), np.flatnonzero(out)
        part = without_dropped(shard.data.take(kept), self.report)
        self.arriving.add(self._written("train", part))
        self.report.used += len(part)
        self.report.tokens += int(part.starts[-1])
        self.report.trained_tokens += int(part.trained.sum())
        self.report.longest = max(self.report.longest, part.longest)
        if len(held):
            measured = without_dropped(shard.data.take(held), self.report, weighted=False)
            self.held.add(self._written("eval", measured))
            self.report.held_out += len(measured)

    def _written(self, name: str, part: Dataset) -> Dataset:
        """Return the part, on disk instead of in memory."""
        if name not in self.files:
            self.files[name] = DatasetFiles(self.place, name)
        return self.files[name].append(part)

    def _held_out(self, shard: Shard) -> np.ndarray:
        """Return bool [examples]: by the hash of a row's tokens, up to `max_rows` rows where no share was asked for."""
        split, data, digests = self.job.spec.eval.split, shard.data, shard.digest_of
        share = _SPLIT if split is None else split
        if self.own_eval is not None or not share:
            return np.zeros(len(data), bool)
        out = np.isin(digests, self.held_digests)
        chosen = ~out & (digests < np.uint64(int(share * 2**64)))
        fresh = dict.fromkeys(digests[chosen].tolist())
        if split is None:
            room = max(0, self.job.spec.eval.max_rows - len(self.held_digests))
            fresh = dict.fromkeys(list(fresh)[:room])
        new = np.fromiter(fresh, np.uint64, len(fresh))
        self.held_digests = np.concatenate([self.held_digests, new])
        found: np.ndarray = out | np.isin(digests, new)
        return found

    def _finish(self, prepared: Prepared) -> None:
        report = self.report
        told = len(report.warnings)
        digests = np.concatenate(self.digests)
        report.duplicates = len(digests) - len(np.unique(digests))
        if self.arriving.ready == 0:
            raise nothing_left(report, self.job.max_len)
        if self.unended and self.unended == self.chats and self.job.spec.train_on != "all":
            raise DataError(
                "no answer ends with a terminator: a model trained so would never stop",
                place="data",
                fix=f"the template ends an answer with {report.terminator!r}: end chats with an assistant's text",
            )
        if self.unended and self.job.spec.train_on != "all":
            report.warnings.append(f"{self.unended} conversations end with an answer without a terminator")
        report.warnings += self.oddities.warnings()
        report.warnings += unmatched(self.job.spec, self.matched)
        order = {source.name: number for number, source in enumerate(report.sources)}
        report.fates.sort(key=lambda fate: (order.get(fate[0], 0), fate[1]))
        train, held = self._settle()
        conclude(report, train, held if held is not None else self.own_eval)
        report.warnings += diagnose(train, held if held is not None else self.own_eval)
        place = self._keep(prepared, train, held)
        if place is not None:
            train, held = place
        self.arriving.finish(train)
        self.held.finish(held if held is not None else train.take([]))
        with contextlib.suppress(OSError):  # the run is over, and its log closed
            for warning in report.warnings[told:] if self.tell else ():
                self.tell(warning)  # type: ignore[misc]

    def _settle(self) -> tuple[Dataset, Dataset | None]:
        """Return the files that the examples were written to, closed, as datasets."""
        for file in self.files.values():
            file.close()
        about = {"sources": self.arriving.sources, "weights": self.arriving.weights}
        train = cache.read_arrays(self.place, "train", about)
        return train, cache.read_arrays(self.place, "eval", about) if "eval" in self.files else None

    def _keep(self, prepared: Prepared, train: Dataset, held: Dataset | None) -> tuple[Dataset, Dataset | None] | None:
        """Seal the folder under its key; return the datasets where they are then."""
        if self.key is None:
            return None
        whole = Prepared(
            train, held if held is not None else self.own_eval, self.report, self.facts, prepared.chat_template
        )
        if held is None and self.own_eval is not None:
            for part in cache.ARRAYS:
                np.save(self.place / f"eval-{part}.npy", getattr(self.own_eval, part))
        abouts = {"sources": train.sources, "weights": train.weights}
        del train
        try:
            final = cache.seal(self.key, self.place, whole)
        except OSError:
            return None
        there = cache.read_arrays(final, "train", abouts)
        return there, cache.read_arrays(final, "eval", abouts) if held is not None else None


def _limits(facts: DataFacts) -> dict[str, int]:
    tokens = int(min(facts.mean_length, facts.longest) * facts.rows)
    return {"longest": facts.longest, "planned": facts.rows, "planned_tokens": tokens}


def _first_of_rows(data: Dataset) -> np.ndarray:
    keys = data.source_of.astype(np.int64) * (1 << 40) + data.row_of
    return np.flatnonzero(np.diff(keys, prepend=-1))


def _remove(place: Path) -> None:
    with contextlib.suppress(OSError):
        for file in place.glob("*"):
            file.unlink()
        os.rmdir(place)
