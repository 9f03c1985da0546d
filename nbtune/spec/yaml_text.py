"""YAML as nbtune reads and writes it.

Numbers are read as people mean them: ``2e-5`` is a number here (YAML 1.1 reads a string), and so are ``1_000`` and
``1e3`` where an integer is asked for.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import yaml

from nbtune.errors import SpecError

if TYPE_CHECKING:
    from nbtune.spec.model import RunSpec

__all__ = ["Loader", "parse_value", "to_yaml"]

_FLOAT = re.compile(r"^[-+]?(?:[0-9][0-9_]*\.?[0-9_]*|\.[0-9_]+)(?:[eE][-+]?[0-9]+)$")


class Loader(yaml.SafeLoader):
    """SafeLoader that reads 2e-5 as a number and leaves yes/no/on/off as words (YAML 1.2)."""


Loader.yaml_implicit_resolvers = {
    first: [
        (tag, pattern)
        for tag, pattern in resolvers
        if tag not in ("tag:yaml.org,2002:bool", "tag:yaml.org,2002:timestamp")
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
Loader.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


class _Dumper(yaml.SafeDumper):
    """Quotes what `Loader` would not read back as a text (``1e5``); a text of several lines stands on one if it is
    short (``"a\\nb"``)."""


_Dumper.yaml_implicit_resolvers = {
    first: list(pairs) for first, pairs in yaml.SafeDumper.yaml_implicit_resolvers.items()
}


def _text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    style = '"' if "\n" in text and len(text) <= 200 else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)
_Dumper.add_implicit_resolver("tag:yaml.org,2002:float", _FLOAT, list("-+.0123456789"))


def parse_value(text: str) -> Any:
    """One value as YAML reads it: ``"3"`` → 3, ``"{type: lora}"`` → a dict.

    Raises:
        SpecError: it is not YAML.
    """
    try:
        return yaml.load(text, Loader=Loader)
    except yaml.YAMLError as error:
        raise SpecError(f"{text!r} cannot be read as a YAML value", fix="quote it, or mend its brackets") from error


def to_yaml(spec: RunSpec) -> str:
    """The spec as YAML, without what was left at its default; `from_yaml(to_yaml(spec)) == spec`."""
    body = spec.model_dump(mode="json", exclude_defaults=True)
    sources = [entry if len(entry) > 1 else entry["source"] for entry in body["data"]]
    body["data"] = sources[0] if len(sources) == 1 else sources
    body = {"model": spec.model, "data": body.pop("data"), **{k: v for k, v in body.items() if k != "model"}}
    return yaml.dump(body, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)
