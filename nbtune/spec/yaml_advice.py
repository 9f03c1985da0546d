"""What to write instead of a text that is no YAML, or no `key: value` lines: where its writer's hand slipped.

YAML's reader says where it could not go on, in its own words; this looks at the text itself, for what people write.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from nbtune.spec.model import RunSpec
from nbtune.spec.peers_names import ALIASES
from nbtune.spec.yaml_loader import BadYaml
from nbtune.untrusted import shortened

_PLAIN = "write one `key: value` a line"
_ODD_SPACE = "\u00a0\u1680\u2000-\u200b\u202f\u205f\u3000\ufeff"
_KEY = re.compile(r"^(?P<indent> *(?:- +)?)(?P<key>[A-Za-z_][\w.-]*)(?P<rest>.*)$")
_LOOKED_AT = 400  # characters of a line: a slip is seen within them, and no pattern takes long
_BRACKETS = {"{": "}", "[": "]"}


@dataclass(frozen=True)
class Slip:
    """What is wrong with a line, and what to write.

    Args:
        line: its number, from 1 on.
        cause: what is wrong; "": the reader's words are good enough.
    """

    line: int
    fix: str
    cause: str = ""


def slip_of(text: str, error: BadYaml) -> Slip:
    """Return where a text that is no YAML went wrong, and what to write; what is not known is said as the reader does.

    >>> slip_of("a: b: c", nbtune.spec.yaml_loader.BadYaml("mapping values are not allowed here", 1, 5)).line
    1
    """
    found = slip_in(text, error) or Slip(error.line, _default(error.problem))
    theirs = f"{error.problem} (column {error.column})" if error.line else error.problem
    return found if found.cause else Slip(found.line, found.fix, theirs)


def slip_in(text: str, error: BadYaml | None = None) -> Slip | None:
    """Return what went wrong in a text that is no mapping of YAML; None: nothing of what is known.

    >>> slip_in("model:nbtune/tiny")
    Slip(line=1, fix='write `model: nbtune/tiny`', cause='a space is missing behind the colon')

    Args:
        error: what YAML's reader said; None: it could read the text, which holds no keys.
    """
    lines = [line[:_LOOKED_AT] for line in text.split("\n")]
    last = min(error.line, len(lines)) if error is not None and error.line else len(lines)
    for number, line in enumerate(lines[:last], 1):
        if (found := _of_a_line(line, number)) is not None:
            return found
    return _of_an_error(lines, error) if error is not None else None


def _of_a_line(line: str, number: int) -> Slip | None:
    if re.match(r"^ *\t", line) and line.strip():
        return Slip(number, "put spaces in its place, two for each level", "a tab stands at the beginning")
    if line.lstrip().startswith("%"):
        word = shortened(line.strip(), 40)
        return Slip(number, f"leave out the line `{word}`: what follows is the spec", "this line is a magic's")
    found = _KEY.match(line)
    if found is None or not _is_known(found["key"]):
        return None
    key, rest = found["key"], found["rest"]
    if re.match(rf"^:? *[{_ODD_SPACE}]", rest):
        cause = f"what stands behind `{key}` is another character than a space"
        return Slip(number, "type that space anew: text that is copied from a page may hold such", cause)
    value = shortened(rest.lstrip(" =:").strip(), 60)
    if re.match(r"^ *=", rest):
        return Slip(number, f"write `{key}: {value.rstrip(',')}`", "`=` stands for the colon")
    if re.match(r"^:[^\s:/\\]", rest):
        return Slip(number, f"write `{key}: {value}`", "a space is missing behind the colon")
    return None


def _is_known(key: str) -> bool:
    return key in RunSpec.model_fields or key in ALIASES


def _of_an_error(lines: list[str], error: BadYaml) -> Slip | None:
    line = lines[error.line - 1] if 0 < error.line <= len(lines) else ""
    if "escape" in error.problem or "does not stand for" in error.problem:
        quoted = re.search(r'"([^"]*)"?', line)
        example = f": `'{shortened(quoted[1], 60)}'`" if quoted else ""
        return Slip(error.line, f"put single quotes around it{example}", r"between double quotes a `\` begins a code")
    if "document" in error.problem:
        return Slip(error.line, "leave out the line `---` and what belongs to another spec", "a second text begins")
    began = lines[error.began - 1] if 0 < error.began <= len(lines) else ""
    if error.context.startswith("while scanning a quoted scalar"):
        return Slip(
            error.began, f"close the quote: `{shortened(began.strip(), 60)}{_quote_of(began)}`", "a quote is open"
        )
    if error.context.startswith("while parsing a flow") and (closing := _open_bracket(began)):
        return Slip(error.began, f"close the bracket: `{closing}` is missing", "a bracket is open")
    if "simple key" in error.context:
        return Slip(error.began, _PLAIN, f"`{shortened(began.strip(), 60)}` is no `key: value`")
    if "mapping values" in error.problem:
        return _of_a_second_colon(lines, error.line)
    if "block" in error.context and line.startswith(" "):
        return Slip(
            error.line, "begin keys that belong together below each other", "its indentation fits no line above"
        )
    return None


def _quote_of(line: str) -> str:
    return next((mark for mark in line if mark in "\"'"), '"')


def _open_bracket(line: str) -> str:
    """Return what closes the last bracket that this line leaves open."""
    waiting: list[str] = []
    for mark in re.sub(r"'[^']*'|\"[^\"]*\"", "", line):
        if mark in _BRACKETS:
            waiting.append(_BRACKETS[mark])
        elif waiting and mark == waiting[-1]:
            waiting.pop()
    return waiting[-1] if waiting else ""


def _of_a_second_colon(lines: list[str], number: int) -> Slip | None:
    line = lines[number - 1]
    found = re.match(r"^( *(?:- +)?)([^:#]+): +(.*:(?: .*|))$", line)
    if found:
        key, value = shortened(found[2], 60), shortened(found[3], 60).replace('"', "'")
        return Slip(number, f'{_PLAIN}; a text with a colon in it stands in quotes: `{key}: "{value}"`')
    above = next((each for each in reversed(lines[: number - 1]) if each.strip()), "")
    if _indent(line) > _indent(above):
        return Slip(
            number, "begin keys that belong together below each other", "it begins further right than the line above"
        )
    if ":" not in above:
        return Slip(number - 1, _PLAIN, f"`{shortened(above.strip(), 60)}` is no `key: value`")
    return None


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip(" "))


def _default(problem: str) -> str:
    if "expected ','" in problem:
        return "close the bracket" if "<stream end>" in problem else "put texts between brackets in quotes"
    return _PLAIN
