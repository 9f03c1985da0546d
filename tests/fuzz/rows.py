"""Data files: rows of every format with odd values in them, and files that are damaged."""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
from functools import cache, partial
from pathlib import Path
from typing import Any

from nbtune import data
from nbtune.data.sources.by_value import spec_with_named_rows
from nbtune.models import load_tokenizer
from tests.fuzz.cases import Case
from tests.fuzz.meant import accounted, check, mark_of
from tests.fuzz.values import mangled, odd, word

ASKED = {"sft": "sft", "pairs": "dpo", "feedback": "kto"}


def row(chance: random.Random, kind: str, mark: str) -> dict[str, Any]:
    """Return a good row, its answer with the mark in it, its other parts with what `mark_of` gives."""
    question, answer = f"What is {mark_of('question', mark)}?", f"It is {mark}."
    if kind == "pairs":
        return {"prompt": question, "chosen": answer, "rejected": f"No {mark_of('rejected', mark)}."}
    if kind == "feedback":
        return {"prompt": question, "completion": answer, "label": chance.random() < 0.5}
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return chance.choice(
        (
            {"prompt": question, "completion": answer},
            {"instruction": question, "input": mark_of("input", mark), "output": answer},
            {"messages": turns},
            {"messages": [{"role": "system", "content": mark_of("system", mark)}, *turns]},
            {"conversations": [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]},
            {"text": f"{question} {answer}"},
        )
    )


def spoilt(chance: random.Random, value: Any) -> Any:
    """Return a row with one of its values, at any depth, another."""
    if isinstance(value, dict) and value and chance.random() < 0.9:
        key = chance.choice(list(value))
        pick = chance.random()
        if pick < 0.1:
            return {k: v for k, v in value.items() if k != key}
        if pick < 0.2:
            extra = chance.choice(("tools", "weight", "train", "images", "history", "system", "context", word(chance)))
            return {**value, extra: odd(chance)}
        return {**value, key: spoilt(chance, value[key])}
    if isinstance(value, list) and value and chance.random() < 0.8:
        at = chance.randrange(len(value))
        return [*value[:at], spoilt(chance, value[at]), *value[at + 1 :]]
    return odd(chance)


def written(chance: random.Random, rows: list[dict[str, Any]]) -> tuple[str, bytes]:
    """Return the end of a file's name, and its bytes."""
    kind = chance.choice((".jsonl", ".jsonl", ".json", ".csv", ".jsonl.gz"))
    if kind == ".csv":
        out = io.StringIO()
        table = csv.DictWriter(out, list(rows[0]), extrasaction="ignore")
        table.writeheader()
        table.writerows(rows)
        return kind, out.getvalue().encode("utf-8", "replace")
    lines = json.dumps(rows) if kind == ".json" else "\n".join(map(json.dumps, rows))
    return kind, gzip.compress(lines.encode()) if kind.endswith("gz") else lines.encode()


def make(chance: random.Random, folder: Path) -> Case:
    kind = chance.choice(list(ASKED))
    marks = [f"zq{k}{word(chance, 4)}" for k in range(chance.randint(1, 5))]
    rows = [row(chance, kind, mark) for mark in marks]
    good = dict(enumerate(marks))
    if chance.random() < 0.2:
        rows[0] = lengthened(rows[0], " and so on" * chance.choice((10, 100, 1000)) + f" {mark_of('end', marks[0])}")
    pick = chance.random()
    if pick <= 0.7:
        at = chance.randrange(len(rows))
        rows[at] = changed if isinstance(changed := spoilt(chance, rows[at]), dict) else {"text": changed}
        del good[at]
    end, content = written(chance, rows)
    whole = not 0.45 < pick <= 0.7
    if not whole:
        content, good = mangled(chance, content), {}
    file = folder / f"data{end}"
    file.write_bytes(content)
    if end == ".csv" and not all(map(partial(_fits_a_table, rows[0]), rows)):
        good = {}
    return Case(lambda: attempt(file, ASKED[kind], rows, good, whole), f"{kind} {end} {content[:1500]!r}")


def _fits_a_table(first: dict[str, Any], each: dict[str, Any]) -> bool:
    """Return whether a line holds all of a row: its columns are the first one's, and lists become texts."""
    return each.keys() == first.keys() and all(isinstance(value, str | bool) for value in each.values())


def lengthened(value: Any, more: str) -> Any:
    """Return a row whose last text goes on, perhaps beyond what a model takes."""
    if isinstance(value, dict):
        name = [key for key in value if key != "label"][-1]
        return {**value, name: lengthened(value[name], more)}
    if isinstance(value, list):
        return [*value[:-1], lengthened(value[-1], more)]
    return value + more if isinstance(value, str) else value


@cache
def _tokenizer() -> Any:
    return load_tokenizer("nbtune/tiny")


def attempt(file: Path, method: str, rows: list[dict[str, Any]], good: dict[int, str], whole: bool = True) -> None:
    """Prepare a file, and see that its good rows (marks by their numbers) become what they say; the others are told
    of (those of a `whole` one, whose bytes nobody changed)."""
    spec, variables = spec_with_named_rows({"data": str(file), "method": method, "eval": {"split": 0}}, {}, {}, 1)
    sources = data.resolve(spec.data, variables, base_dir=file.parent)
    prepared = data.prepare_data(sources, _tokenizer(), spec=spec, max_len=512, seed=0)
    check(rows, good, prepared, _tokenizer())
    accounted(prepared, len(rows) if whole else None)
