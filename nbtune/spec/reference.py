"""The reference page of the keys of a run, made from RunSpec's fields: ``python -m nbtune.spec.reference FILE``.

>>> "| `steps` |" in reference()
True
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from nbtune.methods import METHODS, Method
from nbtune.spec.adapter import AdapterSpec
from nbtune.spec.cluster import ClusterSpec
from nbtune.spec.learning import OptimArgs, ScheduleArgs
from nbtune.spec.loss_options import LossSpec
from nbtune.spec.model import RunSpec
from nbtune.spec.parts import CheckpointSpec, EvalSpec, KeepRule, MixSpec, SourceSpec, SpanRule
from nbtune.spec.peers_names import ABSENT, ALIASES, INSTEAD
from nbtune.spec.yaml_loader import BadYaml, load

_PARTS: tuple[tuple[str, type[BaseModel]], ...] = (
    ("`data:` — an entry", SourceSpec),
    ("`train_spans:` — a rule", SpanRule),
    ("`loss:`", LossSpec),
    ("`adapter:`", AdapterSpec),
    ("`optim_args:`", OptimArgs),
    ("`schedule:`", ScheduleArgs),
    ("`mix:`", MixSpec),
    ("`cluster:`", ClusterSpec),
    ("`eval:`", EvalSpec),
    ("`must_keep:` of `eval:` — a rule", KeepRule),
    ("`checkpoint:`", CheckpointSpec),
)
_HEAD = """\
# The keys of a run

<!-- Made by `make docs` from nbtune/spec and nbtune/methods: change it there. -->

The body of a `%%finetune` cell, a YAML file for `nbtune train` and the arguments of `nbtune.finetune()` are the same
keys. Only `data` is needed. A key that is left out, or has nothing behind it, has the default shown; "decided" means
that the plan chooses and says why. Keys marked ⋯ are those that a first run does not need.
"""
_METHODS_HEAD = """\
## Methods

What `method` may be: one file each in nbtune/methods, whose head says the formula and where it comes from. The
reference is the model that the run starts from: without its adapter, or with the one of `start_from`. `beta` is a key
of the run, the other options are keys of its `loss`, which have the values shown where they are unset.
"""
_NAMES_HEAD = """\
## Names from elsewhere

What TRL, transformers, peft, Axolotl, LLaMA-Factory and Unsloth call their settings. Where a name means exactly the
same, it is taken, and written back as ours.
"""


def reference() -> str:
    """Return the page as Markdown: one table for the run, one for each of its parts."""
    sections = [_HEAD, _table(RunSpec)]
    for title, part in _PARTS:
        sections += [f"## {title}\n\n{(part.__doc__ or '').strip()}\n", _table(part)]
    return "\n".join([*sections, _METHODS_HEAD, _methods(), _NAMES_HEAD, _names()])


def _names() -> str:
    """Return the table of what others call things, a line an answer."""
    rows = []
    for table, lead in ((ALIASES, "taken for"), (INSTEAD, "write"), (ABSENT, "")):
        for answer in dict.fromkeys(table.values()):
            names = ", ".join(f"`{name}`" for name in table if table[name] == answer)
            rows.append(f"| {names} | {f'{lead} `{answer}`' if lead else f'not there: {answer}'} |\n")
    return "| elsewhere | here |\n|---|---|\n" + "".join(rows)


def _methods() -> str:
    """Return the table of all methods."""
    head = "| method | how it learns | columns of a row | reference | options | learning rate | batch |\n"
    return head + "|---|---|---|---|---|---|---|\n" + "".join(map(_method, METHODS.values()))


def _method(method: Method) -> str:
    share, least = method.learning_rate_share, method.least_batch
    cells = [
        f"`{method.name}`",
        f"**{method.title}**: {method.sentence}",
        method.columns or "any that a format reads",
        "yes: needs an adapter" if method.reference else "no",
        _options(method) or "none",
        "as the plan chooses" if share == 1 else f"{share:g} of it",
        "" if least == 1 else f"≥ {least}",
    ]
    return f"| {' | '.join(cells)} |\n"


def _options(method: Method) -> str:
    """Return a method's options with their defaults, and the losses among which `loss.type` chooses."""
    kinds, said = ", ".join(method.loss_types), []
    for name, value in method.options.items():
        shown = f"{value:g}" if isinstance(value, float) else str(value).lower()
        said.append(f"type {shown} (of {kinds})" if name == "loss_type" else f"{name} {shown}")
    return ", ".join(said)


def _table(part: type[BaseModel]) -> str:
    head = "| key | what | values | default | example |\n|---|---|---|---|---|\n"
    return head + "".join(_row(name, field) for name, field in part.model_fields.items())


def _row(name: str, field: FieldInfo) -> str:
    extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
    mark = " ⋯" if extra.get("advanced") else ""
    unit = f" ({extra['unit']})" if extra.get("unit") else ""
    text = f"**{field.title}**{unit}. {field.description}"
    example = f"`{name}: {_yaml((field.examples or [None])[0])}`"
    cells = [f"`{name}`{mark}", text, ", ".join(_values(field)), _default(field), example]
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |\n"


def _values(field: FieldInfo) -> Iterator[str]:
    yield from _kinds(field.annotation)
    for limit in field.metadata:
        for sign, word in (("ge", "≥"), ("gt", ">"), ("le", "≤"), ("lt", "<")):
            if (bound := getattr(limit, sign, None)) is not None:
                yield f"{word} {bound:,}"


def _kinds(annotation: Any) -> Iterator[str]:
    if get_origin(annotation) is Literal:
        yield from (f"`{value}`" for value in get_args(annotation))
    elif get_origin(annotation) in (tuple, list):
        yield f"list of {', '.join(_kinds(get_args(annotation)[0]))}"
    elif get_origin(annotation) is dict:
        yield "mapping"
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield "a name, or keys as below" if annotation is SourceSpec else "keys as below"
    elif isinstance(annotation, type):
        words = {"str": "text", "int": "whole number", "float": "number", "bool": "`true` or `false`", "NoneType": ""}
        if word := words[annotation.__name__]:
            yield word
    else:
        for part in get_args(annotation):
            yield from _kinds(part)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "**needed**"
    if field.default is None:
        return "decided"
    if isinstance(field.default, BaseModel):
        return "as below"
    return f"`{_yaml(field.default)}`" if field.default not in ((), {}) else "none"


def _yaml(value: Any) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {_yaml(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_yaml(inner) for inner in value) + "]"
    if isinstance(value, str):
        return value if _needs_no_quotes(value) else json.dumps(value)
    return json.dumps(value)


def _needs_no_quotes(text: str) -> bool:
    try:
        return bool(load(f"[{text}]") == [text])
    except BadYaml:
        return False


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(reference(), encoding="utf-8")
