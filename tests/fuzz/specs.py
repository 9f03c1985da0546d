"""Specs as text: keys with odd values, keys that nobody knows, YAML's rarer corners, broken lines."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from nbtune.spec import RunSpec, from_yaml, to_yaml
from nbtune.spec.familiar_names import path_of
from tests.fuzz.cases import Case, Silent
from tests.fuzz.values import mangled, odd, word

CORNERS = (
    "seed: !!python/name:os.system\n",
    "seed: !!int '5'\n",
    "steps: 0o17\n",
    "steps: 017\n",
    "steps: 1_000\n",
    "steps: 1:30\n",
    "seed: .inf\n",
    "model: &a [*a]\n",
    "x: &a {b: 1}\ny: *a\n",
    "<<: {steps: 3}\n",
    "? [1]\n: 2\n",
    "steps: 5\nsteps: 6\n",
    "---\nsteps: 5\n---\nsteps: 6\n",
    "%YAML 1.1\n---\nsteps: 5\n",
    "\tsteps: 5\n",
    "seed: 2024-01-01\n",
    "model: |\n  two\n  lines\n",
    "model: >-\n  folded\n",
    "seed: " + "9" * 6000 + "\n",
    "data: " + "[" * 900 + "\n",
    "- a\n- b\n",
    "5\n",
    "model: yes\n",
    "packing: on\n",
    "packing: Yes\n",
    "\ufeffsteps: 3\n",
    "steps: 3\r\nseed: 2\r\n",
    "a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n",
)
OTHER_IN_1_1 = (": 0o17", ": 017", ": 1:30", ": yes", ": Yes", ": on", ": 1_000")  # PyYAML reads 1.1, nbtune 1.2


@cache
def _known() -> dict[str, Any]:
    schema = RunSpec.model_json_schema()
    found = {name: _examples(part, schema) for name, part in schema["properties"].items()}
    for part in schema.get("$defs", {}).values():
        found.update({name: _examples(inner, schema) for name, inner in part.get("properties", {}).items()})
    return found


def _examples(part: dict[str, Any], schema: dict[str, Any]) -> list[Any]:
    values = [*part.get("examples", ()), *part.get("enum", ())]
    values += [value for inner in part.get("anyOf", ()) for value in inner.get("enum", ())]
    return [*values, *([part["default"]] if "default" in part else [])]


def body(chance: random.Random) -> dict[str, Any]:
    """Return a spec's mapping: some of its keys, most of their values good ones."""
    known = _known()
    made: dict[str, Any] = {"data": chance.choice(("rows", "nbtune/json-answers", ["rows"], {"source": "rows"}))}
    for _ in range(chance.randrange(7)):
        key = chance.choice(list(known)) if chance.random() < 0.9 else word(chance, 3)
        good = known.get(key) or [1]
        made[key] = chance.choice(good) if chance.random() < 0.6 else odd(chance)
    if chance.random() < 0.3:
        made[chance.choice(("adapter", "eval", "checkpoint", "memory", "columns"))] = {
            chance.choice([*known, word(chance)]): odd(chance) for _ in range(chance.randrange(3))
        }
    return made


def text(chance: random.Random) -> str:
    made = body(chance)
    written = json.dumps(made) if chance.random() < 0.2 else yaml.safe_dump(made, allow_unicode=True, sort_keys=False)
    pick = chance.random()
    if pick < 0.2:
        return chance.choice(CORNERS) + (written if chance.random() < 0.5 else "data: rows\n")
    if pick < 0.45:
        return mangled(chance, written.encode("utf-8", "surrogatepass")).decode("utf-8", "replace")
    return written


def make(chance: random.Random, folder: Path) -> Case:
    written = text(chance)
    return Case(lambda: attempt(written), written)


def attempt(written: str) -> RunSpec:
    """Read a spec. What is read is written and read again as the same, and holds every key that stood there."""
    spec = from_yaml(written)
    again = from_yaml(to_yaml(spec))
    if again != spec:
        raise Silent(f"written and read again it is another spec: {to_yaml(spec)}")
    try:
        asked = yaml.safe_load(written)
    except (yaml.YAMLError, RecursionError, ValueError):
        return spec  # our own reader is for YAML 1.2, PyYAML's for 1.1
    if not isinstance(asked, dict):
        raise Silent("no mapping was taken for a spec")
    ours = {path_of(key)[0] for key in asked if isinstance(key, str)}  # of a familiar name: where it goes
    if gone := sorted(ours - spec.model_dump().keys()):
        raise Silent(f"{gone} stand in the text, and not in the spec")
    others = [] if any(one in written for one in OTHER_IN_1_1) else list(changed(asked, spec.model_dump()))
    if others:
        raise Silent(f"it was read as something else: {others}")
    return spec


def changed(asked: Mapping[Any, Any], read: Mapping[str, Any], at: str = "") -> Iterator[str]:
    """Yield which numbers and words of a text were read as others, by their own names."""
    for key, value in asked.items():
        if key not in read:
            continue
        found = read[key]
        if isinstance(value, dict) and isinstance(found, dict):
            yield from changed(value, found, f"{at}{key}.")
        elif isinstance(value, bool | int | float | str) and isinstance(found, bool | int | float | str):
            if not _same(value, found):
                yield f"{at}{key}: {value!r} is {found!r}"
        elif found is None and value is not None:
            yield f"{at}{key}: {value!r} is nothing"


_WORDS = {False: {"0", "f", "n", "no", "off", "false"}, True: {"1", "t", "y", "yes", "on", "true"}}


def _same(asked: bool | float | str, read: bool | float | str) -> bool:
    if isinstance(asked, str) and isinstance(read, bool):
        return asked.strip().lower() in _WORDS[read]
    if isinstance(asked, str) and isinstance(read, int | float):
        with suppress(ValueError):
            return float(asked) == read
    if isinstance(read, str) or isinstance(asked, str):
        return str(asked).strip() == str(read).strip()
    if isinstance(read, float) and not isinstance(asked, bool) and abs(asked) < 1e308:
        return float(asked) == read  # of 10**30 the nearest there is
    return bool(asked == read)
