"""Completion of flags on the line of a magic, and of YAML keys and values in the body of `%%finetune`.

From the command table and RunSpec's fields; names of variables, files and cached models are looked up when they are
asked for. How IPython asks is the business of `matcher`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from nbtune.commands import COMMANDS, Argument, commands_of
from nbtune.commands.values import models, offered, sources, tokenizers
from nbtune.errors import NbtuneError
from nbtune.notebook import flags
from nbtune.spec import RunSpec

_BODIES = ("%%finetune", *(f"%%nbtune {name}" for name, command in COMMANDS.items() if command.body))


@dataclass(frozen=True)
class Asked:
    """Where the cursor is, in the words of IPython's own CompletionContext."""

    full_text: str
    text_until_cursor: str
    """Of the cursor's line."""
    cursor_line: int
    """Counted from 0."""
    token: str
    """What IPython would replace."""


def matches(asked: Asked, namespace: Mapping[str, Any]) -> tuple[str, list[str]] | None:
    """Return (the fragment that is being written, what it may become), or None where the cell is not ours."""
    lines = asked.full_text.split("\n")
    before = asked.text_until_cursor
    magic = before.lstrip().split(" ")[0]
    if magic in ("%finetune", "%%finetune", "%nbtune", "%%nbtune") and " " in before.strip() + before[-1:]:
        fragment, words = line_matches(before.lstrip(), namespace)
    elif lines[0].startswith(_BODIES) and asked.cursor_line > 0:
        fragment, words = body_matches(lines[1 : asked.cursor_line], before, namespace)
    else:
        return None
    # IPython replaces only a suffix of its own token, which ends at one of its delimiters.
    if asked.token.endswith(fragment):
        return fragment, words
    kept = len(fragment) - len(asked.token)
    return asked.token, [word[kept:] for word in words if word.startswith(fragment[:kept])] if kept > 0 else []


def line_matches(before: str, namespace: Mapping[str, Any]) -> tuple[str, list[str]]:
    """Complete the line of a magic up to the cursor.

    >>> line_matches("%%finetune --dry", {})
    ('--dry', ['--dry-run'])
    """
    magic, *words = before.split()
    fragment = "" if before.endswith(" ") else words.pop() if words else ""
    if magic.endswith("nbtune"):
        return _command_matches(words, fragment, namespace)
    previous = words[-1] if words else ""
    if previous.startswith("--"):
        info = RunSpec.model_fields.get(previous.removeprefix("--").replace("-", "_"))
        if info is not None and info.annotation is not bool:
            return fragment, _starting(_values(previous[2:].replace("-", "_"), info, namespace), fragment)
        if previous == "--set":
            return fragment, _starting((f"{key}=" for key, _ in flags.spec_fields()), fragment)
        if argument := _unfinished(COMMANDS["train"].arguments("cell"), words):
            return fragment, _starting(offered(argument, namespace), fragment)
    return fragment, _starting((f for f in flags.finetune_parser().flags() if f not in words), fragment)


def _command_matches(words: list[str], fragment: str, namespace: Mapping[str, Any]) -> tuple[str, list[str]]:
    commands = commands_of("cell")
    if not words:
        return fragment, _starting(commands, fragment)
    command = commands.get(words[0])
    if command is None:
        return fragment, []
    if command.body:
        return line_matches(f"%finetune {' '.join(words[1:])} {fragment}", namespace)
    arguments, typed = command.arguments("cell"), words[1:]
    flag_names = [flag for flag in flags.parser(command.name).flags() if flag not in typed]
    if fragment.startswith("-"):
        return fragment, _starting(flag_names, fragment)
    argument = _unfinished(arguments, typed) or _next_word(arguments, typed)
    candidates = [word for word in offered(argument, namespace) if word not in typed] if argument else []
    return fragment, _starting(candidates or flag_names, fragment)


def _unfinished(arguments: list[Argument], given: list[str]) -> Argument | None:
    """Return the flag whose value, or one more value, comes next."""
    index = next((i for i in range(len(given) - 1, -1, -1) if given[i].startswith("-")), None)
    argument = next((a for a in arguments if index is not None and given[index] in a.spellings), None)
    if argument is None or argument.kind is bool:
        return None
    return argument if index == len(given) - 1 or argument.many == "words" else None


def _next_word(arguments: list[Argument], given: list[str]) -> Argument | None:
    """Return the argument without a flag that comes next, where flags have not begun."""
    if any(word.startswith("-") for word in given):
        return None
    for position, argument in enumerate(argument for argument in arguments if not argument.spellings):
        if position == len(given) or argument.many:
            return argument
    return None


def body_matches(above: list[str], before: str, namespace: Mapping[str, Any]) -> tuple[str, list[str]]:
    """Complete a line of the YAML body up to the cursor, with the lines of the body above it.

    >>> body_matches(["data: rows"], "adap", {})
    ('adap', ['adapter: '])
    >>> body_matches([], "adapter: {type: q", {})
    ('q', ['qlora'])
    """
    if (columns := column_matches(above, before, namespace)) is not None:
        return columns
    kind, prefix, taken, text = _where(above, before)
    if kind is None:
        return "", []
    key, colon, value = text.partition(":")
    if not colon:
        fragment = text.strip()
        return fragment, _starting((f"{name}: " for name in kind.model_fields if name not in taken), fragment)
    info = kind.model_fields.get(key.strip())
    fragment = value.strip().removeprefix("[").strip()
    if info is None:
        return fragment, []
    return fragment, _starting(_values(prefix + key.strip(), info, namespace), fragment)


def _where(above: list[str], before: str) -> tuple[type[BaseModel] | None, str, set[str], str]:
    """Return (the part of the spec around the cursor, its dotted prefix, the keys it has, the text of the entry)."""
    path: list[str] = []
    indent = len(before) - len(before.lstrip(" -"))
    taken = set()
    for line in reversed(above):
        stripped = line.lstrip(" -")
        here = len(line) - len(stripped)
        if not stripped or stripped.startswith("#"):
            continue
        if here == indent and ":" in stripped:
            taken.add(stripped.split(":")[0].strip())
        elif here < indent and stripped.rstrip().endswith(":"):
            path.insert(0, stripped.rstrip()[:-1])
            indent = here
            taken = taken if len(path) == 1 else set()
    text = before.lstrip(" -")
    while "{" in text:  # a flow mapping that is still open: adapter: {type: lora, r
        outer, _, inner = text.partition("{")
        if "}" in inner:
            return None, "", set(), ""
        path.append(outer.rstrip(" :[").strip())
        entries = inner.split(",")
        taken = {entry.split(":")[0].strip() for entry in entries[:-1]}
        text = entries[-1].lstrip() if "{" not in entries[-1] else inner
    kind: type[BaseModel] | None = RunSpec
    for key in path:
        info = kind.model_fields.get(key) if kind else None
        kind = flags.parts(info.annotation) if info else None
    return kind, "".join(f"{key}." for key in path), taken, text


def _values(key: str, info: Any, namespace: Mapping[str, Any]) -> list[str]:
    if key == "model":
        return models(namespace)
    if key == "tokenizer":
        return tokenizers(namespace)
    if key == "data" or key.endswith(("eval.data", ".source")) or key == "source":
        return sources(namespace)
    words = flags.choices(info.annotation)
    inner = flags.parts(info.annotation)
    if inner is not None and "type" in inner.model_fields:
        words = flags.choices(inner.model_fields["type"].annotation)
    if not words and info.examples and isinstance(info.examples[0], int | float):
        words = [str(info.examples[0])]
    return words


def _starting(words: Iterable[str], fragment: str) -> list[str]:
    return [word for word in words if word.startswith(fragment)]


_ROLES = (
    *("prompt", "completion", "messages", "text", "system", "instruction", "input", "output"),
    *("chosen", "rejected", "label", "role", "content"),
)
_SOURCE = re.compile(r"\bsource:\s*([^\s,{}#]+)")
_FLOW = re.compile(r"\bcolumns:\s*\{([^{}]*)$")


def column_matches(above: Sequence[str], before: str, namespace: Mapping[str, Any]) -> tuple[str, list[str]] | None:
    """Return (the fragment, what it may become) where the cursor is in a `columns` mapping, else None.

    >>> column_matches(["data:", "  source: rows", "  columns:"], "    prompt: que", {"rows": [{"question": "Hi"}]})
    ('que', ['question'])
    """
    flow = _FLOW.search(before)
    if flow is not None:
        *done, entry = flow[1].split(",")
    elif _in_block(above, before):
        done, entry = [], before
    else:
        return None
    key, colon, value = entry.partition(":")
    fragment = (value if colon else key).strip()
    if not colon:
        taken = {each.partition(":")[0].strip() for each in done}
        return fragment, [f"{role}: " for role in _ROLES if role.startswith(fragment) and role not in taken]
    return fragment, [name for name in _columns([*above, before], namespace) if name.startswith(fragment)]


def _in_block(above: Sequence[str], before: str) -> bool:
    indent = len(before) - len(before.lstrip())
    for line in reversed(above):
        if line.strip() and len(line) - len(line.lstrip()) < indent:
            return line.strip().lstrip("- ") == "columns:"
    return False


def _columns(lines: Sequence[str], namespace: Mapping[str, Any]) -> list[str]:
    """Return the columns of the source that was named last."""
    from nbtune.data import resolve
    from nbtune.spec import SourceSpec

    named = [name for line in lines for name in _SOURCE.findall(line)]
    if not named:
        return []
    try:
        rows = resolve([SourceSpec(source=named[-1])], namespace, base_dir=Path.cwd())[0].head(8)
        first = [rows[index] for index in range(min(len(rows), 8))] if rows is not None else []
    except NbtuneError:  # the run will say it
        return []
    return list(dict.fromkeys(str(key) for row in first for key in row))
