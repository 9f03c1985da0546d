"""What a row means: detected from the columns and a sample, or said by name.

Every row becomes a `Chat` (messages, rendered by the chat template) or `Parts` (text with and without a loss).
"""

from __future__ import annotations

import difflib
import pkgutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from types import MappingProxyType

from nbtune.data.formats.aliases import PEERS, judged_name
from nbtune.data.formats.column_names import what_to_say
from nbtune.data.formats.jinja_rows import template_format
from nbtune.data.formats.labelled_format import LABELS
from nbtune.data.formats.preference_format import ASKED, JUDGED, JUDGED_ANSWERS
from nbtune.data.formats.reader import (
    ANSWERS,
    CHATS,
    PROMPTS,
    TEXTS,
    Columns,
    Format,
    Reader,
    chat_column,
    is_sharegpt,
    missing,
    near,
)
from nbtune.data.formats.sft_format import of_what_is_there
from nbtune.data.formats.tagged_format import TAGS, WORDS
from nbtune.data.formats.unread import fractions, other_questions, unheeded, unread
from nbtune.data.formats.values import Row, without_missing
from nbtune.errors import DataError, NbtuneError, SpecError
from nbtune.spec import SourceSpec


def _discover() -> Mapping[str, Reader]:
    """Return all readers of the files ``NAME_format.py`` here, by name: rows to imitate, rows that judge, others."""
    import nbtune.data.formats as room

    names = [module.name for module in pkgutil.iter_modules(room.__path__) if module.name.endswith("_format")]
    names.sort(key=lambda name: (name != "sft_format", name != "preference_format", name))
    readers: list[Reader] = [one for name in names for one in import_module(f"{room.__name__}.{name}").READERS]
    if twice := [name for name, count in Counter(reader.name for reader in readers).items() if count > 1]:
        raise ValueError(f"two readers of rows are named {twice[0]!r}")
    return MappingProxyType({reader.name: reader for reader in readers})


READERS = _discover()
FORMATS = tuple(name for name, reader in READERS.items() if reader.listed)

_MESSAGE_KEYS = ("role", "content", "user", "assistant", "tool")  # of messages, not columns


def detect(columns: Sequence[str], sample: Sequence[Row], spec: SourceSpec, place: str, kind: str = "sft") -> Format:
    """Return the format of rows.

    Args:
        columns: their column names.
        sample: some rows.
        spec: its `format` and `columns` win over detection.
        place: how errors call the source.
        kind: of which kind the rows should be, for the advice where nothing fits.

    Raises:
        SpecError: an unknown format, or a column that is not there.
        DataError: nothing fits; with the columns and how to say what they are.
    """
    if spec.template is not None:
        with NbtuneError.about("template"):
            form = template_format(spec.template, columns, place)
        return replace(form, unread=fractions(form.mapping, form.kind, sample))
    with NbtuneError.about("format"):
        name, style, usual = _named(spec, place, columns)
    for role, column in spec.columns.items():
        if column not in columns and not (role in _MESSAGE_KEYS and _is_chat(name, columns, sample, spec)):
            with NbtuneError.about("columns", role):
                fix = (
                    f"write the role first: `columns: {{{column}: {role}}}`"
                    if role in columns
                    else near(column, columns)
                )
                raise SpecError(missing(role, column, columns), place=place, fix=fix)
    given = {role: column for role, column in usual.items() if column in columns} | dict(spec.columns)
    named_columns = Columns(columns, [without_missing(row) for row in sample], given, place, style)
    name = name or _guess(named_columns, kind)
    if name is None:
        shown = ", ".join(f"`{c}`" for c in columns[:12]) or "none"
        raise DataError(
            f"its columns ({shown}) are none that nbtune knows",
            place=place,
            fix=what_to_say(spec.source, columns, sample, kind),
        )
    form = READERS[name].make(named_columns)
    if spec.format is None:
        _refuse_two_questions(form, named_columns)
    said = [unread(form.name, tuple(form.mapping.values()), sample), fractions(form.mapping, form.kind, sample)]
    said += unheeded(form.name, form.mapping, sample)
    return replace(form, read=of_what_is_there(form.read), unread="; ".join(filter(None, said)))


def _refuse_two_questions(form: Format, columns: Columns) -> None:
    """Refuse to guess which of two columns is the question, where one would be left out.

    Raises:
        DataError: there are two, and nobody said which is meant.
    """
    read = form.mapping.get("instruction") or form.mapping.get("prompt")
    free = [name for name in columns.names if name not in {*columns.given.values(), *form.mapping.values()} - {read}]
    others = [] if read in columns.given.values() else other_questions(read, free, columns.sample)
    if others:
        raise DataError(
            f"`{read}` and `{others[0]}` may both be the question, and each says something of its own",
            place=columns.place,
            fix=f"say how they are read: `columns: {{instruction: {read}, input: {others[0]}}}` takes both, "
            f"`columns: {{prompt: {others[0]}}}` takes one",
        )


def _named(spec: SourceSpec, place: str, columns: Sequence[str]) -> tuple[str | None, str, Mapping[str, str]]:
    """Return (format, style, usual columns) of the spec's `format`."""
    if spec.format is None:
        return None, "", {}
    wanted_name, _, style = spec.format.partition(":")
    wanted_name = wanted_name.lower()
    if judged := judged_name(wanted_name, columns):
        return judged, style, {}
    for name in (wanted_name, wanted_name.split(".")[0]):
        if name in READERS:
            return name, style, {}
        if name in PEERS:
            target, _, own = PEERS[name][0].partition(":")
            return target, own or ("plain" if style == "plain" else ""), PEERS[name][1]
    close = difflib.get_close_matches(wanted_name, [*READERS, *PEERS], n=1)
    advice = f"did you mean `{close[0]}`?" if close else f"known: {', '.join(READERS)}"
    raise SpecError(f"there is no data format `{spec.format}`", place=place, fix=advice)


def _is_chat(name: str | None, columns: Sequence[str], sample: Sequence[Row], spec: SourceSpec) -> bool:
    if name is not None:
        return READERS[name].holds_messages
    return chat_column(Columns(columns, sample, spec.columns, "")) is not None


def _guess(columns: Columns, kind: str) -> str | None:
    roles = set(columns.given)
    if kind == "labelled" and {*LABELS} & ({name.lower() for name in columns.names} | roles):
        return "labelled"
    if kind == "tagged" and columns.may("tokens", WORDS) and columns.may("tags", TAGS):
        return "tagged"
    if kind == "feedback" and columns.may("label", JUDGED) and columns.may("completion", (*JUDGED_ANSWERS, *CHATS)):
        return "feedback"  # whatever spells its label: a row says what is none
    if kind == "texts" and columns.may("text", TEXTS):
        return "text"
    if kind == "prompts" and columns.may("prompt", ASKED):
        return "prompts"  # what else a row has is for the rewards
    for name, needed in (
        ("messages", {"messages"}),
        ("preference", {"chosen", "rejected"}),
        ("alpaca", {"instruction", "output"}),
        ("prompt-completion", {"prompt", "completion"}),
        ("segments", {"segments"}),
        ("text", {"text"}),
    ):
        if needed <= roles:
            return name
    available = {c.lower() for c in columns.names} | roles
    for reader in sorted(READERS.values(), key=lambda reader: -len(reader.columns)):
        if reader.columns and reader.columns <= available:
            return reader.name
    if {"prompt", "completion"} <= available:
        return "feedback" if "label" in columns.names and columns.holds("label", bool) else "prompt-completion"
    chat = chat_column(columns)
    if chat is not None:
        if chat.lower() == "prompt":
            return "prompts"
        return "sharegpt" if is_sharegpt(chat, columns.sample) else "messages"
    return _guess_text(columns, available)


def _guess_text(columns: Columns, known: set[str]) -> str | None:
    if "segments" in known:
        return "segments"
    if "instruction" in known and known & {"output", "response", "answer", "completion"}:
        return "alpaca"
    prompt = columns.pick(PROMPTS)
    if prompt and columns.pick(ANSWERS, besides=prompt):
        return "prompt-completion"
    texts = [c for c in columns.names if c.lower() in TEXTS and columns.holds(c, str)]
    if texts:
        return "text"
    if known == {"prompt"}:
        return "prompts"
    strings = [c for c in columns.names if columns.holds(c, str)]
    return "text" if len(strings) == 1 and len(columns.names) == 1 else None
