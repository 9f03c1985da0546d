"""Completion of flags on the line of a magic, and of YAML keys and values in the body of `%%finetune`.

From RunSpec's fields; names of variables, files and cached models are looked up when they are asked for. How IPython
asks is the business of `matcher`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from nbtune import hub_cache
from nbtune.errors import NbtuneError
from nbtune.notebook import commands, flags
from nbtune.spec import RunSpec

__all__ = ["Asked", "body_matches", "column_matches", "line_matches", "matches"]

_EMBEDDED = ("nbtune/tiny",)
_DATA_ENDINGS = (".jsonl", ".json", ".csv", ".parquet", ".txt", ".gz")


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
    """(the fragment that is being written, what it may become), or None where the cell is not ours."""
    lines = asked.full_text.split("\n")
    before = asked.text_until_cursor
    magic = before.lstrip().split(" ")[0]
    if magic in ("%finetune", "%%finetune", "%nbtune", "%%nbtune") and " " in before.strip() + before[-1:]:
        fragment, words = line_matches(before.lstrip(), namespace)
    elif lines[0].startswith(("%%finetune", "%%nbtune plan")) and asked.cursor_line > 0:
        fragment, words = body_matches(lines[1 : asked.cursor_line], before, namespace)
    else:
        return None
    # IPython replaces only a suffix of its own token, which ends at one of its delimiters.
    if asked.token.endswith(fragment):
        return fragment, words
    kept = len(fragment) - len(asked.token)
    return asked.token, [word[kept:] for word in words if word.startswith(fragment[:kept])] if kept > 0 else []


def line_matches(before: str, namespace: Mapping[str, Any]) -> tuple[str, list[str]]:
    """For the line of a magic up to the cursor.

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
    return fragment, _starting((f for f in flags.finetune_parser().flags() if f not in words), fragment)


def _command_matches(words: list[str], fragment: str, namespace: Mapping[str, Any]) -> tuple[str, list[str]]:
    if not words:
        return fragment, _starting(commands.COMMANDS, fragment)
    command = commands.COMMANDS.get(words[0])
    if command is None:
        return fragment, []
    if words[0] == "plan":
        return line_matches(f"%finetune {' '.join(words[1:])} {fragment}", namespace)
    if fragment.startswith("-"):
        return fragment, _starting(commands.parser(words[0]).flags(), fragment)
    if (offered := _of_flag(words)) is not None:
        return fragment, _starting(offered, fragment)
    if words[0] == "data":
        return fragment, _starting(_sources(namespace), fragment)
    if command.takes_run and (len(words) == 1 or words[0] == "compare" or words[-1] == "--beside"):
        return fragment, _starting(_run_names(), fragment)
    return fragment, _starting(commands.parser(words[0]).flags(), fragment)


def _of_flag(words: list[str]) -> Iterable[str] | None:
    """What the flag that was written last takes, where it is one of a few words (several of them: once each)."""
    flag = next((word for word in reversed(words) if word.startswith("--")), "")
    action = next((each for each in commands.parser(words[0]).actions() if flag in each.option_strings), None)
    if action is None or (words[-1] != flag and action.nargs != "+"):
        return None
    known = action.choices or (commands.GGUF_TYPES if action.metavar == "TYPE" else None)
    return None if known is None else [str(word) for word in known if word not in words]


def body_matches(above: list[str], before: str, namespace: Mapping[str, Any]) -> tuple[str, list[str]]:
    """For a line of the YAML body up to the cursor, with the lines of the body above it.

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
    """(the part of the spec around the cursor, its dotted prefix, the keys it has, the text of the entry)."""
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
        return [*_EMBEDDED, *hub_cache.cached("model")]
    if key == "data" or key.endswith(("eval.data", ".source")) or key == "source":
        return _sources(namespace)
    words = flags.choices(info.annotation)
    inner = flags.parts(info.annotation)
    if inner is not None and "type" in inner.model_fields:
        words = flags.choices(inner.model_fields["type"].annotation)
    if not words and info.examples and isinstance(info.examples[0], int | float):
        words = [str(info.examples[0])]
    return words


def _sources(namespace: Mapping[str, Any]) -> list[str]:
    """Variables that hold rows, nbtune's own sets, and files here that look like data."""
    variables = [name for name, value in namespace.items() if not name.startswith("_") and _holds_rows(value)]
    files = sorted(path.name for path in Path.cwd().iterdir() if path.name.endswith(_DATA_ENDINGS))
    return [*variables, *commands.embedded_sets(), *files]


def _holds_rows(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and isinstance(value[0], dict)
    return type(value).__name__ in ("DataFrame", "Dataset", "IterableDataset", "LazyFrame")


def _run_names() -> list[str]:
    import nbtune

    return list(dict.fromkeys(run.name for run in nbtune.runs()))


def _starting(words: Iterable[str], fragment: str) -> list[str]:
    return [word for word in words if word.startswith(fragment)]


_ROLES = (
    *("prompt", "completion", "messages", "text", "system", "instruction", "input", "output"),
    *("chosen", "rejected", "label", "role", "content"),
)
_SOURCE = re.compile(r"\bsource:\s*([^\s,{}#]+)")
_FLOW = re.compile(r"\bcolumns:\s*\{([^{}]*)$")


def column_matches(above: Sequence[str], before: str, namespace: Mapping[str, Any]) -> tuple[str, list[str]] | None:
    """(the fragment, what it may become) where the cursor is in a `columns` mapping, else None.

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
    """The columns of the source that was named last."""
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
