"""Rows as a run would read them, one at a time: raw, rendered, as tokens with what is trained. No widget in here."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from nbtune.engine import objects
from nbtune.errors import DataError, HubError, NbtuneError, SpecError
from nbtune.methods import METHODS
from nbtune.spec import RunSpec, SourceSpec
from nbtune.store.folder import loadable, placed
from nbtune.store.run_reader import RunReader
from nbtune.untrusted import refuse_links
from nbtune.widgets.sanitize import clean, without_home

EXAMINED = 3000  # rows that counts and histogram are made of; the first ones
SEARCHED = 200_000
COUNTED = 300  # first rows in which a rule's matches are counted
LONGEST_RULE = 2000  # characters
TOKENS = 4096  # of one row that are sent to the page
TRAINED, TERMINATOR, SPECIAL, JOINED = 1, 2, 4, 8
_PARTS = 12  # tokens that may share characters
_CHARACTERS = 20_000


class Inspection:
    """The rows of a spec, with its model's tokenizer and template.

    Args:
        spec: `data`, `model` and `train_on` count.
        namespace: where variables named by `data:` are looked up.
        sources: where they are found already.
        kept: a run's own tokenizer and the tokens of its longest row, for one whose model is not here.
    Raises:
        NbtuneError: as a run would, when the sources are not there.
    """

    def __init__(
        self,
        spec: RunSpec,
        namespace: Mapping[str, Any] | None = None,
        sources: Sequence[Any] | None = None,
        kept: tuple[Path, int] | None = None,
    ) -> None:
        from nbtune import data, models

        self.spec, self.namespace = spec, namespace
        self._given, self._kept = sources, kept
        self.sources = data.resolve(spec.data, namespace, base_dir=Path.cwd()) if sources is None else list(sources)
        if kept is not None:
            self.tokenizer, self.max_len = data.speaking(models.load_tokenizer(str(kept[0])), spec), kept[1]
            return
        with objects.Objects.of(spec, namespace or {}).described() as local:
            loaded = models.load_tokenizer(local.speaks, trust_remote_code=local.trust_remote_code)
            self.tokenizer = data.speaking(loaded, spec)
            self.max_len = models.model_facts(local.model).row_tokens(spec.sequence_len)

    @classmethod
    def of(cls, rows: Any, namespace: Mapping[str, Any] | None = None, **fields: Any) -> Inspection:
        """Make one of anything that `data` may be (names, sources, rows themselves), of a spec's, or of a run's."""
        from nbtune import data

        if isinstance(rows, RunReader):
            spec, sources = placed(rows.spec, rows.folder), data.open_snapshot(rows.folder / "data")
            try:
                return cls(loadable(rows.spec, rows.folder), namespace, sources)
            except (SpecError, HubError):  # its model is not here (any more)
                if rows.plan is None or not (rows.folder / "tokenizer").is_dir():
                    raise
                refuse_links(rows.folder, "tokenizer", error=DataError)
                return cls(spec, namespace, sources, (rows.folder / "tokenizer", rows.plan.sequence_len))
        if isinstance(rows, RunSpec):
            return cls(*objects.named(rows, {}, namespace))
        if isinstance(rows, Mapping) and "data" in rows and all(key in RunSpec.model_fields for key in rows):
            rows, fields = rows["data"], {**rows, **fields}
        return cls(*objects.named(None, {**fields, "data": rows}, namespace))

    def with_reading(self, *, source: int = 0, format: str | None, columns: dict[str, str]) -> Inspection:
        """Return the same rows, one source read otherwise."""
        read = [spec.model_dump() for spec in self.spec.data]
        read[source] |= {"format": format, "columns": columns}
        data, given = tuple(SourceSpec.model_validate(entry) for entry in read), self._given
        if given is not None:
            now = given[source].spec.model_copy(update={"format": format, "columns": columns})
            given = [dataclasses.replace(s, spec=now) if k == source else s for k, s in enumerate(given)]
        return Inspection(self.spec.model_copy(update={"data": data}), self.namespace, given, self._kept)

    def with_training(self, train_on: str) -> Inspection:
        """Return the same rows, with another rule for what is trained."""
        body = self.spec.model_dump() | {"train_on": train_on}
        return Inspection(RunSpec.model_validate(body), self.namespace, self._given, self._kept)

    def with_span(self, text: str, train: bool) -> Inspection:
        """Return the same rows, with a rule that this text is trained, or not; it takes the place of an earlier one.

        Raises:
            DataError: there is no text, or more than a rule should hold.
        """
        if not text or len(text) > LONGEST_RULE:
            selection = "nothing is selected" if not text else f"{len(text):,} characters are selected"
            raise DataError(selection, fix=f"select 1 to {LONGEST_RULE:,} characters")
        others = [rule.model_dump() for rule in self.spec.train_spans if rule.regex or rule.match != text]
        return self._with_rules([*others, {"match": text, "train": train}])

    def without_span(self, number: int) -> Inspection:
        """Return the same rows, without one of the rules."""
        return self._with_rules([r.model_dump() for k, r in enumerate(self.spec.train_spans) if k != number])

    def _with_rules(self, rules: list[dict[str, Any]]) -> Inspection:
        body = self.spec.model_dump() | {"train_spans": rules}
        return Inspection(RunSpec.model_validate(body), self.namespace, self._given, self._kept)

    def text_of(self, index: int, first: int, last: int) -> str:
        """Return what the tokens first..last (both counted) of a row stand for.

        Raises:
            DataError: the row cannot be read.
        """
        encoder, row = self._read_row(index)
        job = encoder.render([row])[0]
        if isinstance(job, DataError):
            raise job
        return str(encoder.text_of(job, first, last + 1))

    def ids(self, index: int) -> list[int]:
        """Return the tokens of a row, as far as a run would see them.

        Raises:
            DataError: the row cannot be read.
        """
        encoder, row = self._read_row(index)
        encoded = encoder.encode([row])[0]
        if isinstance(encoded, DataError):
            raise encoded
        return [int(token) for token in encoded[0][: self.max_len]]

    def _read_row(self, index: int) -> tuple[Any, Any]:
        """Return a row's encoder, and what the encoder makes tokens of."""
        source, number, k = self._find(index)
        form, encoder = self._encoders[k]
        return encoder, _read(form, source.rows[number])

    def __len__(self) -> int:
        return sum(len(source.rows) for source in self.sources)

    @cached_property
    def _encoders(self) -> list[Any]:
        """A format and an encoder a source, or the error that says why not."""
        return [self._encoder(source) for source in self.sources]

    def _encoder(self, source: Any) -> Any:
        from nbtune.data.formats.messages import Chat
        from nbtune.data.prepare.row_pipeline import format_of
        from nbtune.data.template.chat_template import PLAIN_TEMPLATE, ChatTemplate, template_text
        from nbtune.data.tokenize.encoder import Encoder

        form = format_of(source, source.rows, "skip")
        try:
            chats = isinstance(_read(form, source.rows[0]), Chat)
        except DataError:
            chats = True
        plain = None if template_text(self.tokenizer) else PLAIN_TEMPLATE
        template = ChatTemplate(self.tokenizer, plain) if chats else None
        return form, Encoder.of_spec(self.tokenizer, template, self.spec)

    def summary(self) -> dict[str, Any]:
        """Return how the sources are read, and what was found in their first rows; JSON of a few KB."""
        body: dict[str, Any] = {"rows": 0, "sources": [], "train_on": self.spec.train_on, "findings": [], "rules": []}
        body |= {"model": without_home(self.spec.model), "max_len": self.max_len, "yaml": self.yaml()}
        try:
            body["rows"] = len(self)
            body["sources"] = [self._source(source) for source in self.sources]
            return body | self._counts() | {"rules": self._rules()}
        except NbtuneError as error:
            body["findings"].append({"level": "error", "text": clean(error.cause), "fix": clean(error.fix)})
            return body

    def _source(self, source: Any) -> dict[str, Any]:
        from nbtune.data.formats.column_names import proposal
        from nbtune.data.formats.reader import columns_of
        from nbtune.data.prepare.row_pipeline import format_of

        first = source.rows[0]
        body = {"name": clean(without_home(source.name), 200), "rows": len(source.rows)}
        body["columns"] = [clean(column, 100) for column in first][:60]
        try:
            form = format_of(source, source.rows, "skip")
        except NbtuneError:
            # Nobody knows what the columns are: the panel asks, and remembers what was answered so far.
            said, kind = dict(source.spec.columns), METHODS[self.spec.method].rows
            roles = [role.strip() for role in columns_of(kind).split(",")] if kind != "sft" else []
            asked = {role: said.get(role, "") for role in (*(roles or ("prompt", "completion")), *said)}
            guess = proposal(list(first), [source.rows[i] for i in range(min(len(source.rows), 32))], kind)
            return body | {"format": source.spec.format or "", "mapping": asked, "asks": True, "proposal": guess}
        return body | {"format": form.name, "mapping": dict(form.mapping)}

    def _counts(self) -> dict[str, Any]:
        from nbtune import data

        few = [dataclasses.replace(source, load=_first(source)) for source in self.sources]
        examined = sum(len(source.rows) for source in few)
        prepared = data.prepare_data(
            few, self.tokenizer, spec=self.spec, max_len=self.max_len, seed=self.spec.seed, on_error="skip"
        ).whole()
        report, facts = prepared.report, prepared.facts
        told = [
            text for text in report.warnings if text != report.left_out()
        ]  # that is said below, with a row's number
        findings = [{"level": "warning", "text": clean(text), "fix": ""} for text in told]
        for status in ("dropped", "cut", "split"):
            reasons = [fate for fate in report.fates if fate[2] == status]
            if reasons:
                text = f"{len(reasons)} of {examined} rows {status}: {reasons[0][3]} (first: row {reasons[0][1]})"
                findings.append({"level": "warning", "text": clean(text), "fix": ""})
        return {
            "examined": examined,
            "tokens": report.tokens,
            "trained_tokens": report.trained_tokens,
            "longest": report.longest,
            "lengths": [list(pair) for pair in facts.lengths],
            "terminator": clean(report.terminator, 40),
            "findings": findings,
        }

    def _rules(self) -> list[dict[str, Any]]:
        """Return the rules for spans, each with how many of the first rows it touches."""
        rules = self.spec.train_spans
        if not rules:
            return []
        counts, looked = [0] * len(rules), min(len(self), COUNTED)
        for index in range(looked):
            try:
                encoder, row = self._read_row(index)
                job = encoder.render([row])[0]
            except DataError:
                continue
            for which, rule in enumerate(rules):
                counts[which] += not isinstance(job, DataError) and rule.pattern().search(job.text) is not None
        return [
            {"match": clean(rule.match, 200), "train": rule.train, "regex": rule.regex, "rows": count, "of": looked}
            for rule, count in zip(rules, counts, strict=True)
        ]

    def yaml(self) -> str:
        """Return the lines of a spec that say what is shown."""
        from nbtune.spec import to_yaml

        prefixes = ("data:", "train_on:", "train_spans:")
        lines, keep = [], False
        for line in to_yaml(self.spec).splitlines():
            keep = line.startswith(prefixes) if line[:1].strip(" -") else keep  # a list's entries begin with a dash
            lines += [line] if keep else []
        return clean(without_home("\n".join(lines)))

    def row(self, index: int) -> dict[str, Any]:
        """Return a row: raw (JSON), rendered, and tokens as [id, text, flags] (1 trained, 2 terminator, 4 special,
        8: goes on with the character of the token before).

        Raises:
            IndexError: there is no such row.
        """
        source, number, k = self._find(index)
        row = source.rows[number]
        shown: dict[str, Any] = {"index": index, "place": clean(without_home(source.rows.place(number)), 300)}
        shown |= {"raw": clean(json.dumps(row, ensure_ascii=False, indent=2, default=str), _CHARACTERS)}
        try:
            form, encoder = self._encoders[k]
            jobs = encoder.render([_read(form, row)])
            encoded = encoder.label(jobs, encoder.tokenise(jobs))[0]
            if isinstance(encoded, DataError):
                raise encoded
            ids, trained = encoded
        except NbtuneError as error:
            return shown | {"error": clean(error.cause), "fix": clean(error.fix), "rendered": "", "tokens": []}
        tokens = self._tokens(ids[:TOKENS].tolist(), trained[:TOKENS].tolist(), encoder)
        more = max(0, len(ids) - TOKENS)
        counts = {"count": len(ids), "trained": int(trained.sum()), "cut": max(0, len(ids) - self.max_len)}
        return shown | {"rendered": clean(jobs[0].text, _CHARACTERS), "tokens": tokens, "more": more, **counts}

    def _tokens(self, ids: list[int], trained: list[bool], encoder: Any) -> list[list[Any]]:
        ends = set(encoder.template.turns.terminators) if encoder.template is not None else {self.tokenizer.eos_token}
        special, shown, at = set(self.tokenizer.all_special_ids), [], 0
        while at < len(ids):
            text, count = _whole_characters(self.tokenizer, ids, at)
            for k in range(at, at + count):
                flags = TRAINED * trained[k] + TERMINATOR * (text in ends) + SPECIAL * (ids[k] in special)
                shown.append([ids[k], clean(text, 200) if k == at else "", flags | JOINED * (k > at)])
            at += count
        return shown

    def raw(self, index: int) -> dict[str, Any]:
        """Return a row as its source has it."""
        source, number, _ = self._find(index)
        return dict(source.rows[number])

    def stretches(self, index: int, characters: int = 1200) -> list[list[Any]]:
        """Return a row's text in stretches: [text, flags], 1 for what is trained, 4 for the template's own words.

        Raises:
            DataError: the row cannot be read.
        """
        encoder, row = self._read_row(index)
        job = encoder.render([row])[0]
        found = job if isinstance(job, DataError) else encoder.label([job], encoder.tokenise([job]))[0]
        if isinstance(found, DataError):
            raise found
        trained, shown, at = found[1][: self.max_len], [], 0
        edges = [0, *(k for k in range(1, len(trained)) if trained[k] != trained[k - 1]), len(trained)]
        for first, last in itertools.pairwise(edges):
            text = encoder.text_of(job, first, last)
            shown += _by_origin(text, at, job.spans, TRAINED * bool(trained[first]) if len(trained) else 0)
            at += len(text)
            if at >= characters:
                break
        return shown

    def _find(self, index: int) -> tuple[Any, int, int]:
        left = index
        for k, source in enumerate(self.sources):
            if 0 <= left < len(source.rows):
                return source, left, k
            left -= len(source.rows)
        raise IndexError(index)

    def search(self, text: str, after: int, *, back: bool = False) -> int | None:
        """Return the next row (or the one before) that holds `text`, in any column, whatever the case; around the end
        once."""
        needle, count = text.casefold(), len(self)
        for step in range(1, min(count, SEARCHED) + 1):
            index = (after - step if back else after + step) % count
            source, number, _ = self._find(index)
            if needle in json.dumps(source.rows[number], ensure_ascii=False, default=str).casefold():
                return index
        return None


def _whole_characters(tokenizer: Any, ids: Sequence[int], at: int) -> tuple[str, int]:
    """Return the text from a token on, and how many tokens it takes until its characters are whole: mostly one."""
    alone = str(tokenizer.decode([ids[at]]))
    if "\ufffd" in alone:
        for count in range(2, min(_PARTS, len(ids) - at) + 1):
            text = str(tokenizer.decode(ids[at : at + count]))
            if "\ufffd" not in text:
                return text, count
    return alone, 1


def _by_origin(text: str, at: int, spans: Sequence[Any], flags: int) -> list[list[Any]]:
    """Cut a stretch that begins at a character of a row's text where the row's own words and the template's meet."""
    inside = [(max(0, s - at), min(len(text), e - at)) for s, e, *_ in spans if s < at + len(text) and e > at]
    cuts = sorted({0, len(text), *(edge for pair in inside for edge in pair)})
    own = lambda first: any(s <= first < e for s, e in inside)  # noqa: E731
    return [[clean(text[a:b], 600), flags | (0 if own(a) else SPECIAL)] for a, b in itertools.pairwise(cuts) if a < b]


def _read(form: Any, row: Any) -> Any:
    """Return a row as text; of a row that judges several, the first: the better answer."""
    read = form.read(row)
    return getattr(read, "rows", (read,))[0]


def _first(source: Any) -> Any:
    """Return a loader of the first rows, as they were given, numbered and placed as they are."""
    from nbtune.data.sources.rows import at_most

    return lambda: at_most(EXAMINED, source.raw)
