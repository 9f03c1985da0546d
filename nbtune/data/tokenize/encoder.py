"""Rows as tokens and what is trained: texts are encoded in batches, stretches of characters become tokens' masks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from nbtune.data.formats.messages import Chat, told_apart
from nbtune.data.formats.reader import Parts
from nbtune.data.template.chat_template import ChatTemplate, Rendered
from nbtune.data.template.tracked_str import Span
from nbtune.data.tokenize.byte_level import ByteLengths, BytePlaces, Words, covered
from nbtune.data.tokenize.loss_mask import trained_stretches
from nbtune.data.tokenize.offsets import OffsetPlaces, Offsets
from nbtune.errors import DataError
from nbtune.spec import RunSpec, SpanRule
from nbtune.untrusted import GaveUp, panics_as_errors, shortened


@dataclass(slots=True)
class Job:
    """A text to encode."""

    text: str
    spans: Sequence[Span]
    trained: Sequence[tuple[int, int]]
    raw: bool
    prefix: bool
    ends: bool
    ruled: Sequence[tuple[int, int, bool]] = ()
    left_out: frozenset[str] = frozenset()


class Encoder:
    """Turns `Chat` and `Parts` into ids and masks, with one tokenizer and one template.

    Args:
        tokenizer: a fast transformers tokenizer.
        template: its chat template, or None where only text is read.
        train_on: `answers`, `last_answer`, `all`, or roles.
        terminators: which ends of turns are trained, `thinking`: what becomes of thoughts; as in a spec.
        rules: texts that are trained, or not, whatever the others say; later ones win.

    `chats` counts the conversations, `unended` those whose last answer has no terminator behind it, `midway` those with
    an earlier one that has none; `met` holds the numbers of those rules that stand in some text.

    Raises:
        DataError: the tokenizer has no Rust backend (it could not say which characters a token covers).
    """

    def __init__(
        self,
        tokenizer: Any,
        template: ChatTemplate | None,
        train_on: str | Sequence[str] = "answers",
        *,
        terminators: str = "turn",
        thinking: str = "keep",
        rules: Sequence[SpanRule] = (),
    ) -> None:
        backend = getattr(tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise DataError(
                f"{type(tokenizer).__name__} is a slow tokenizer: it cannot say where a token lies in the text",
                place="model",
                fix="use the model's fast tokenizer (a tokenizer.json)",
            )
        from nbtune.data.template.special_tokens import Controls

        self.tokenizer, self.template, self.train_on = tokenizer, template, train_on
        self.terminators, self.thinking = terminators, thinking
        self.rules = [(rule.pattern(), rule.train) for rule in rules]
        self.controls = template.controls if template else Controls(tokenizer)
        self.backend = _without_limits(backend)
        self.lengths, self.words = _knowledge(self.backend, self.backend.to_str())
        self.bos = _prefix(tokenizer)
        self.eos = tokenizer.eos_token_id
        self.chats = self.unended = self.midway = 0
        self.met: set[int] = set()

    @classmethod
    def of_spec(cls, tokenizer: Any, template: ChatTemplate | None, spec: RunSpec) -> Encoder:
        """Make the encoder that a spec wants."""
        return cls(
            tokenizer,
            template,
            spec.train_on,
            terminators=spec.terminators,
            thinking=spec.thinking,
            rules=spec.train_spans,
        )

    def encode(self, rows: Sequence[Chat | Parts]) -> list[tuple[np.ndarray, np.ndarray] | DataError]:
        """Return for each row ids (int32 [n]) and trained (bool [n]), or what is wrong with it."""
        jobs = self.render(rows)
        return self.label(jobs, self.tokenise(jobs))

    def render(self, rows: Sequence[Chat | Parts]) -> list[Job | DataError]:
        """Return the rows as text; the first of `encode`'s three steps, for those who want to overlap them."""
        return [self._job(row) for row in rows]

    def tokenise(self, jobs: Sequence[Job | DataError]) -> list[tuple[np.ndarray, Any] | None]:
        """Return ids (int32 [n]) and places of the texts, None for errors and suspicious rows; the second step. Nearly
        all of it runs outside Python's lock, where another thread calls this.

        Raises:
            DataError: the tokenizer gives up: a regular expression of its own tries too many ways to cut a text.
        """
        try:
            with panics_as_errors():
                return self._tokenised(jobs)
        except GaveUp as error:
            cause = f"the tokenizer gives up on a text ({shortened(error, 80)})"
            raise DataError(cause, place="model", fix="set `tokenizer` to another's") from None

    def _tokenised(self, jobs: Sequence[Job | DataError]) -> list[tuple[np.ndarray, Any] | None]:
        tokens: list[tuple[np.ndarray, Any] | None] = [None] * len(jobs)
        plain = [i for i, job in enumerate(jobs) if isinstance(job, Job) and (job.raw or not self._forged(job))]
        texts = {i: jobs[i].text for i in plain}  # type: ignore[union-attr]
        if self.lengths.usable:
            self._tokenise_quickly(texts, tokens)
        slow = [i for i in plain if tokens[i] is None]
        if slow:
            encoded = self.backend.encode_batch([texts[i] for i in slow], add_special_tokens=False)
            for i, encoding in zip(slow, encoded, strict=True):
                ids = np.array(encoding.ids, np.int32)
                tokens[i] = ids, OffsetPlaces(encoding, len(ids))
        return tokens

    def _tokenise_quickly(self, texts: dict[int, str], tokens: list[tuple[np.ndarray, Any] | None]) -> None:
        """Tokenise by words seen before, else by the tokenizer without its offsets; what is left over stays None."""
        words = self.words
        assert words is not None
        if words.usable:
            for i, text in texts.items():
                ids = words.ids(text) if text.isascii() else None
                places = None if ids is None else self.lengths.places(text, ids)
                if ids is not None and places is not None:
                    tokens[i] = ids, places
        quick = [i for i, t in texts.items() if tokens[i] is None and (not self.lengths.composes or t.isascii())]
        encoded = self.backend.encode_batch_fast([texts[i] for i in quick], add_special_tokens=False)
        for i, encoding in zip(quick, encoded, strict=True):
            ids = np.array(encoding.ids, np.int32)
            places = self.lengths.places(texts[i], ids)
            tokens[i] = None if places is None else (ids, places)

    def label(
        self, jobs: Sequence[Job | DataError], tokens: Sequence[tuple[np.ndarray, Any] | None]
    ) -> list[tuple[np.ndarray, np.ndarray] | DataError]:
        """Return ids (int32 [n]) and masks (bool [n]), or what is wrong with a row: the third step."""
        masks = self._masks(jobs, tokens)
        results: list[tuple[np.ndarray, np.ndarray] | DataError] = []
        for number, (job, tokenised) in enumerate(zip(jobs, tokens, strict=True)):
            if isinstance(job, DataError):
                results.append(job)
                continue
            ids_of_job, places = tokenised or self._by_controls(job)
            results.append(self._finish(job, ids_of_job, places, masks.get(number)))
        return results

    def _by_controls(self, job: Job) -> tuple[np.ndarray, OffsetPlaces]:
        """Return ids and places of a text whose data looks like control tokens."""
        ids, offsets = self.controls.encode(job.text, job.spans)
        return np.array(ids, np.int32), OffsetPlaces(Offsets(offsets), len(ids))

    def text_of(self, job: Job, first: int, last: int) -> str:
        """Return what the tokens first..last stand for (half-open, as `encode` counts them), in whole characters."""
        ids, places = self.tokenise([job])[0] or self._by_controls(job)
        before = len(self.bos) if job.prefix else 0
        first, last = max(0, first - before), min(len(ids), last - before)
        start, end = places.characters(first, last) if first < last else (0, 0)
        return job.text[start:end]

    @staticmethod
    def _masks(
        jobs: Sequence[Job | DataError], tokens: Sequence[tuple[np.ndarray, Any] | None]
    ) -> dict[int, np.ndarray]:
        """Return what is trained of the ASCII texts whose tokens say their bytes: all at once."""
        quick = [i for i, tokenised in enumerate(tokens) if tokenised is not None and type(tokenised[1]) is BytePlaces]
        quick = [i for i in quick if tokens[i][1].ascii]  # type: ignore[index]
        if not quick:
            return {}
        sizes = [tokens[i][1].sizes for i in quick]  # type: ignore[index]
        chosen: list[Job] = [jobs[i] for i in quick]  # type: ignore[misc]
        mask = covered([job.text for job in chosen], np.concatenate(sizes), [job.trained for job in chosen])
        return dict(zip(quick, np.split(mask, np.cumsum([len(s) for s in sizes[:-1]])), strict=True))

    def _forged(self, job: Job) -> bool:
        pattern = self.controls.pattern
        if pattern is None or not any(pattern.search(job.text, s, e) for s, e, _ in job.spans):
            return False
        return self.controls.forged(job.text, job.spans)

    def _job(self, row: Chat | Parts) -> Job | DataError:
        try:
            job = self._chat_job(row) if isinstance(row, Chat) else self._parts_job(row)
            if not job.text.isascii():
                job.text.encode()
            if self.rules:
                found = [list(pattern.finditer(job.text)) for pattern, _ in self.rules]
                self.met.update(number for number, places in enumerate(found) if places)
                job.ruled = [
                    (*m.span(), train) for places, (_, train) in zip(found, self.rules, strict=True) for m in places
                ]
        except DataError as error:
            return error
        except UnicodeEncodeError:
            return DataError("it holds half of a character (a lone surrogate)", fix="write the text anew as UTF-8")
        return job

    def _chat_job(self, chat: Chat) -> Job:
        assert self.template is not None
        messages = chat.messages
        if self.thinking == "drop" or (self.thinking == "split" and self.template.thinks):
            messages = told_apart(messages, self.thinking)
        rendered = self.template.render(messages, chat.tools)
        _refuse_holes(rendered, messages)
        self.chats += 1
        last = rendered.trained[-1][2] if rendered.trained else None
        self.unended += last in rendered.unended
        self.midway += any(number in rendered.unended for *_, number in rendered.trained if number != last)
        stretches = trained_stretches(
            rendered,
            chat.messages,  # `train_detail` counts in what was written
            train_on=self.train_on,
            terminators=self.terminators,
            ends=(*self.template.turns.terminators, self.template.turns.calls_end),
        )
        job = Job(rendered.text, rendered.spans, stretches, False, False, False)
        job.left_out = frozenset(what for _, what in rendered.left_out)
        return job

    def _parts_job(self, row: Parts) -> Job:
        text, trained, spans, bos = "", [], [], self.tokenizer.bos_token
        for piece, learnt in row.parts:
            if bos and self.bos and not text and row.data is None and not row.raw:
                piece = piece.removeprefix(bos)  # the tokenizer's own stands before it
            if piece:
                spans.append((len(text), len(text) + len(piece), 0))
                if learnt or self.train_on == "all":
                    trained.append((len(text), len(text) + len(piece)))
            text += piece
        if row.data is not None:
            spans = [(start, end, 0) for start, end in row.data]
        return Job(text, spans, trained, row.raw, not row.raw and not (bos and text.startswith(bos)), row.ends)

    def _finish(
        self, job: Job, ids: np.ndarray, places: Any, trained: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        if trained is None:
            trained = np.zeros(len(ids), bool)
            for start, end in job.trained:
                first, last = places.tokens(start, end)
                trained[first:last] = True
        for start, end, train in job.ruled:
            if start < end:
                first, last = places.tokens(start, end)
                trained[first:last] = train
        if job.prefix and self.bos:
            ids = np.concatenate([np.array(self.bos, np.int32), ids])
            trained = np.concatenate([np.zeros(len(self.bos), bool), trained])
        if job.ends and self.eos is not None and len(ids) and ids[-1] != self.eos:
            ids = np.append(ids, np.int32(self.eos))
            trained = np.append(trained, bool(job.trained) and job.trained[-1][1] == len(job.text))
        return ids, trained


def _refuse_holes(rendered: Rendered, messages: Sequence[dict[str, Any]]) -> None:
    """Refuse a conversation with a hole in it: nobody said what the rest answers to.

    Raises:
        DataError: the template leaves out a message, or calls of tools.
    """
    for number, what in rendered.left_out:
        role = messages[number]["role"] if number >= 0 else ""
        if what == "message":
            raise DataError(
                f"the chat template leaves out message {number}, of the role `{role}`",
                fix="give it a role that the template knows, put its text into another message, or set a "
                "`chat_template` that shows it",
            )
        if what == "calls":
            raise DataError(
                f"the chat template leaves out the tool calls of message {number}",
                fix="use a model whose template knows tools, or set a `chat_template` that does",
            )


class _Same:
    """A backend that is told apart by its text alone."""

    def __init__(self, backend: Any, text: str) -> None:
        self.backend, self.text = backend, text

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and self.text == other.text

    def __hash__(self) -> int:
        return hash(self.text)


def _knowledge(backend: Any, text: str) -> tuple[ByteLengths, Words | None]:
    """Return what is found out about a tokenizer, once; the words that were seen stay known."""
    return _known(_Same(backend, text))


@lru_cache(maxsize=2)
def _known(same: _Same) -> tuple[ByteLengths, Words | None]:
    body = json.loads(same.text)
    lengths = ByteLengths(body)
    return lengths, Words(same.backend, body) if lengths.usable else None


def _without_limits(backend: Any) -> Any:
    """Return the backend without truncation or padding (a copy only if it has some)."""
    if backend.truncation is None and backend.padding is None:
        return backend
    import tokenizers

    copy = tokenizers.Tokenizer.from_str(backend.to_str())
    copy.no_truncation()
    copy.no_padding()
    return copy


def _prefix(tokenizer: Any) -> list[int]:
    """Return what the tokenizer itself puts before a text (a BOS token, or nothing)."""
    with_special = tokenizer("a", add_special_tokens=True)["input_ids"]
    without = tokenizer("a", add_special_tokens=False)["input_ids"]
    for k in range(len(with_special) - len(without) + 1):
        if with_special[k : k + len(without)] == without:
            return list(with_special[:k])
    return []
