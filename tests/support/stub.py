"""The types of nbtune's public functions, written out of the spec, so that an editor completes what they take.

python -m tests.support.stub      (what `make docs` does: nbtune/__init__.pyi)

The functions take a spec's keys as ``**fields``; a stub says them one by one, with their types, defaults and sentences.
"""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

import nbtune
from nbtune import api
from nbtune.spec import RunSpec

PAGE = Path(nbtune.__file__).with_suffix(".pyi")
_FUNCTIONS = (api.validate, api.plan, api.finetune, api.submit, api.inspect)
_OBJECTS = {
    "model": "str | PathLike[str] | Module",
    "tokenizer": "str | PathLike[str] | PreTrainedTokenizerBase | None",
    "data": "Any",
    "eval.data": "Any",
}
_HEAD = '''"""Made by `make docs` from the keys of a run (tests/support/stub.py): change those."""

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any, Literal, TypedDict

from torch.nn import Module
from transformers import PreTrainedTokenizerBase

'''


def stub() -> str:
    """Return the text of the stub."""
    spelled_out = {function.__name__ for function in _FUNCTIONS}
    homes = {name: home for name, home in nbtune._HOMES.items() if name not in spelled_out}
    imports = [f"from nbtune import {room} as {room}" for room in (*nbtune._ROOMS, "widgets")]
    imports += [f"from {home} import {name} as {name}" for name, home in homes.items()]
    parts = {part.__name__: part for info in RunSpec.model_fields.values() for part in _parts(info.annotation)}
    imports += [f"from {part.__module__} import {name}" for name, part in parts.items()]
    blocks = ["\n".join(sorted(imports)), "__version__: str"]
    blocks += [_typed_dict(name, part) for name, part in sorted(parts.items())]
    blocks += [_function(function) for function in _FUNCTIONS]
    blocks += [
        "def load_ipython_extension(shell: Any) -> None: ...\ndef unload_ipython_extension(shell: Any) -> None: ..."
    ]
    return _HEAD + "\n\n".join(blocks) + "\n"


def _parts(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
        for info in annotation.model_fields.values():
            yield from _parts(info.annotation)
    for inner in get_args(annotation):
        yield from _parts(inner)


def _dict_of(part: type[BaseModel]) -> str:
    return f"_{part.__name__.removesuffix('Spec')}"


def _typed_dict(name: str, part: type[BaseModel]) -> str:
    prefix = "eval." if name == "EvalSpec" else ""
    lines = [f"class {_dict_of(part)}(TypedDict, total=False):"]
    for key, info in part.model_fields.items():
        lines.append(f"    {key}: {'Any' if key == 'source' else _field(prefix + key, info)}")
    return "\n".join(lines)


def _field(key: str, info: FieldInfo) -> str:
    return _OBJECTS.get(key) or _words(info.annotation)


def _words(annotation: Any) -> str:
    """Return a type as a stub writes it; where a part of the spec stands, also its keys as a dict."""
    origin, inner = get_origin(annotation), get_args(annotation)
    if annotation is type(None):
        return "None"
    if origin is Annotated:
        return _words(inner[0])
    if origin in (Union, types.UnionType):
        return " | ".join(dict.fromkeys(_words(each) for each in inner))
    if origin is Literal:
        return f"Literal[{', '.join(map(repr, inner))}]"
    if origin is tuple:
        item = _words(inner[0])
        return f"list[{item}] | tuple[{item}, ...]"
    if origin is dict:
        return f"Mapping[{_words(inner[0])}, {_words(inner[1])}]"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        kinds = annotation.model_fields.get("type")
        word = f" | {_words(kinds.annotation)}" if kinds is not None else ""
        return f"{_dict_of(annotation)}{word} | {annotation.__name__}"
    return str(annotation.__name__)


def _default(info: FieldInfo) -> str:
    return repr(info.default) if isinstance(info.default, str | int | float | bool | None) else "..."


def _function(function: Callable[..., Any]) -> str:
    signature, doc = inspect.signature(function), inspect.getdoc(function) or ""
    own = [each for each in signature.parameters.values() if each.kind is not each.VAR_KEYWORD]
    lines = [f"def {function.__name__}("]
    starred = False
    for each in own:
        if each.kind is each.KEYWORD_ONLY and not starred:
            lines.append("    *,")
            starred = True
        default = "" if each.default is each.empty else f" = {each.default!r}"
        lines.append(f"    {each.name}: {_alias(str(each.annotation))}{default},")
    if not starred:
        lines.append("    *,")
    taken = {each.name for each in own}
    for key, info in RunSpec.model_fields.items():
        if key not in taken and not (function is api.inspect and key == "data"):
            lines.append(f"    {key}: {_field(key, info)} = {_default(info) if not info.is_required() else '...'},")
    if function is api.inspect:
        lines += ["    row: int = 0,", "    losses: Mapping[int, Any] | None = None,"]
    lines += [f") -> {signature.return_annotation}:", f'    """{_summary(doc)}', "", "    Keys of a run:"]
    lines += [f"        {key}: {_sentence(info)}" for key, info in RunSpec.model_fields.items()]
    return "\n".join([*lines, '    """', ""])


def _summary(doc: str) -> str:
    return doc.split("\n\n")[0].replace("\n", " ")


def _sentence(info: FieldInfo) -> str:
    return re.sub(r"\s+", " ", f"{info.title}. {info.description or ''}").replace("\\", "\\\\")


def _alias(annotation: str) -> str:
    return "RunSpec | Mapping[str, Any] | str | None" if annotation == "Spec" else annotation


if __name__ == "__main__":
    PAGE.write_text(stub(), encoding="utf-8")
