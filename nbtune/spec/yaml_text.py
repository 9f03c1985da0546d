"""YAML as nbtune writes it, and single values as flags have them; `nbtune.spec.yaml_loader` says what is read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import yaml

from nbtune.errors import SpecError
from nbtune.spec.yaml_loader import NUMBERS, BadYaml, load
from nbtune.untrusted import shortened

if TYPE_CHECKING:
    from nbtune.spec.model import RunSpec


class _Dumper(yaml.SafeDumper):
    """Quotes what readers of YAML 1.1 or 1.2 would not read as a text (``yes``, ``1e5``, ``08``); makes no anchors.
    A text of several lines stands on one if it is short (``"a\\nb"``)."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Dumper.yaml_implicit_resolvers = {
    first: list(pairs) for first, pairs in yaml.SafeDumper.yaml_implicit_resolvers.items()
}


def _text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    odd_breaks = any(mark in text for mark in "\r\x85\u2028\u2029")  # YAML reads each of them as an end of line
    style = '"' if odd_breaks or ("\n" in text and len(text) <= 200) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)
for _tag, _pattern, _first in NUMBERS:
    _Dumper.add_implicit_resolver(_tag, _pattern, list(_first))


def parse_value(text: str) -> Any:
    """Return one value as YAML reads it: ``"3"`` → 3, ``"{type: lora}"`` → a dict.

    >>> parse_value("{type: lora, r: 8}")
    {'type': 'lora', 'r': 8}

    Raises:
        SpecError: it is not YAML.
    """
    try:
        return load(text)
    except BadYaml as error:
        shown = shortened(text)
        raise SpecError(
            f"{shown!r} cannot be read as a YAML value: {error}", fix="quote it, or mend its brackets"
        ) from error


def dump(body: Any) -> str:
    """Return plain values as YAML that `load` reads back."""
    return yaml.dump(body, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=100)


def to_yaml(spec: RunSpec) -> str:
    """Return the spec as YAML, without what was left at its default; `from_yaml(to_yaml(spec)) == spec`.

    >>> print(to_yaml(nbtune.RunSpec(data="rows", steps=3)))
    model: nbtune/tiny
    data: rows
    steps: 3
    """
    body = spec.model_dump(mode="json", exclude_defaults=True)
    sources = [entry if len(entry) > 1 else entry["source"] for entry in body["data"]]
    body["data"] = sources[0] if len(sources) == 1 else sources
    body = {"model": spec.model, "data": body.pop("data"), **{k: v for k, v in body.items() if k != "model"}}
    return dump(body)
