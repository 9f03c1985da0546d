"""Form → YAML → fields → cell → Python → spec: of every key, what was typed is what comes back."""

from __future__ import annotations

import json
from typing import Any

import pytest

from nbtune.engine import objects
from nbtune.errors import NbtuneError
from nbtune.spec import RunSpec, from_yaml, to_yaml
from nbtune.widgets.form_fields import fields
from nbtune.widgets.form_panel import _flat, _spec_of

FIELDS = {field["key"]: field for field in fields()}
# What some keys want beside them: one value of another choice, or more.
CHOICES = ("method", "lr_scheduler_type", "optim", "adapter.type", "order", "packing")
BESIDE: list[dict[str, str]] = [
    {},
    {"method": "distill", "teacher": "org/larger"},
    {"gpus": "2"},
    {"batch_size": "8"},
    {"eval.split": "0.1"},
    *({key: value} for key in CHOICES for value in FIELDS[key]["choices"]),
]
TRIED = ("true", "2", "0.1")
ODD = "some words: with # signs, Grüße and 'quotes'"  # of a text


def typed_back(spec: RunSpec) -> dict[str, str]:
    """What the page's fields hold when they were filled from the kernel's values (js/src/form/fields.js)."""
    values = {key: value for key, value in _flat(spec).items() if key in FIELDS}
    plain = {key: value[0] if key == "data" and len(value) == 1 else value for key, value in values.items()}
    return {key: _shown(value) for key, value in plain.items() if value is not None}


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return json.dumps(value) if isinstance(value, dict | list) else str(value)


def accepted(key: str) -> list[tuple[dict[str, str], RunSpec]]:
    """Fields as typed, `key` among them, with their specs, that are not the spec of nothing typed."""
    field, found = FIELDS[key], []
    plain = _spec_of({"data": "rows"})
    for value in field["choices"] or [ODD] * (field["kind"] == "text") + [field["example"], *TRIED]:
        for beside in BESIDE:
            values = {"data": "rows", **beside, key: value}
            try:
                spec = _spec_of(values)
            except NbtuneError:
                continue
            if value and spec != plain:
                found.append((values, spec))
                break
        if found and not field["choices"]:
            break
    return found


@pytest.mark.parametrize("key", FIELDS)
def test_what_is_typed_is_what_comes_back(key: str) -> None:
    made = accepted(key)
    assert made, "no value of this key was accepted: name one in TRIED, or what it wants beside it in BESIDE"
    for _, spec in made:
        yaml = to_yaml(spec)
        assert from_yaml(yaml, name="a cell", first_line=2) == spec, yaml
        assert _spec_of(typed_back(spec)) == spec, yaml  # fields that were filled in, and sent again
        wanted = spec.model_dump(exclude_unset=True, mode="json")
        assert objects.named(None, wanted, {"rows": []}, 1)[0] == spec, wanted  # finetune(**wanted)
