"""A part of the rows, prepared by itself, here or in a process (``python -m nbtune.data.prepare.shards``).

A process of its own is given a folder with what it needs (`job.json`, `tokenizer.json`), then a message for each shard;
it answers with the same number when the shard's arrays lie in the folder. It ends when nobody asks any more.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nbtune.child_process import ParentProcess
from nbtune.data.prepare.dataset import Dataset
from nbtune.data.prepare.eval_split import digests
from nbtune.data.prepare.recipe import Recipe
from nbtune.data.prepare.row_pipeline import Reader
from nbtune.data.sources.rows import Source
from nbtune.errors import DataError
from nbtune.spec import SourceSpec


@dataclass(frozen=True)
class Shard:
    """Examples in the order of their rows' arrival, and what was found on the way; `hashes` uint64, of each row."""

    data: Dataset
    hashes: np.ndarray
    about: dict[str, Any]


def arrival(recipe: Recipe) -> np.ndarray:
    """Return the order in which rows are first seen: their numbers, counted through all sources, int64 [rows]."""
    rows = sum(recipe.counts)
    return np.random.default_rng([recipe.seed, 11]).permutation(rows) if recipe.arrives else np.arange(rows)


class Workman:
    """Prepares one shard after another, with one tokenizer."""

    def __init__(self, recipe: Recipe, sources: Sequence[Source], tokenizer: Any) -> None:
        self.recipe, self.sources, self.tokenizer = recipe, sources, tokenizer
        self._order = arrival(recipe)
        self._bounds = recipe.bounds
        self._starts = np.concatenate([[0], np.cumsum(recipe.counts)])
        self._reader = Reader(tokenizer, recipe)

    def prepare(self, number: int) -> Shard:
        """Return the shard of that number.

        Raises:
            DataError: a row of it cannot be read.
        """
        first, last = self._bounds[number]
        rows = self._order[first:last]
        source_of = np.searchsorted(self._starts, rows, side="right") - 1
        parts = [rows[source_of == s] - self._starts[s] for s in range(len(self.sources))]
        data, about = self._reader.part(self.sources, [_numbers(part) for part in parts])
        if len(self.sources) > 1 and self.recipe.arrives:
            order = np.argsort(rows)
            numbers = self._starts[data.source_of] + data.row_of
            data = data.take(np.argsort(order[np.searchsorted(rows[order], numbers)], kind="stable"))
        return Shard(data, digests(data, self.recipe.seed), about)


def _numbers(rows: np.ndarray) -> Sequence[int]:
    """Return the numbers as a range where they are one: rows that lie together are quicker to read."""
    if len(rows) and int(rows[-1]) - int(rows[0]) == len(rows) - 1 and (np.diff(rows) == 1).all():
        return range(int(rows[0]), int(rows[-1]) + 1)
    return rows.tolist()  # type: ignore[no-any-return]


def write_shard(folder: Path, number: int, shard: Shard) -> None:
    """Write the shard as files, the last of them whole or not there."""
    np.savez(folder / f"{number}.npz", allow_pickle=False, hashes=shard.hashes, **shard.data.columns())
    (folder / f"{number}.json").write_text(json.dumps(shard.about), encoding="utf-8")


def read_shard(folder: Path, number: int, sources: Sequence[Source]) -> Shard:
    """Return what `write_shard` wrote; the files are gone then."""
    file, note = folder / f"{number}.npz", folder / f"{number}.json"
    with np.load(file) as arrays:
        body = dict(arrays)
    hashes = body.pop("hashes")
    data = Dataset(**body, sources=[s.name for s in sources], weights=[s.spec.weight for s in sources])
    about = json.loads(note.read_text(encoding="utf-8"))
    about["fates"] = [tuple(fate) for fate in about["fates"]]
    file.unlink()
    note.unlink()
    return Shard(data, hashes, about)


def tokenizer_facts(tokenizer: Any) -> dict[str, Any] | None:
    """Return what `rebuild_tokenizer` needs; None for a tokenizer that cannot be rebuilt from it."""
    facts = {
        "backend": tokenizer.backend_tokenizer.to_str(),
        "special": {k: str(v) for k, v in tokenizer.special_tokens_map.items() if isinstance(v, str)},
        "all_special": list(tokenizer.all_special_tokens),
        "chat_template": tokenizer.chat_template,
    }
    again = rebuild_tokenizer(facts)
    same = set(again.all_special_tokens) == set(facts["all_special"])
    same = same and again.special_tokens_map.items() >= facts["special"].items()
    return facts if same and again("a b")["input_ids"] == tokenizer("a b")["input_ids"] else None


def rebuild_tokenizer(facts: dict[str, Any]) -> Any:
    """Return a tokenizer of the same tokens, special tokens and template."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    more = [t for t in facts["all_special"] if t not in facts["special"].values()]
    made = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(facts["backend"]),
        **facts["special"],
        **({"additional_special_tokens": more} if more else {}),
    )
    made.chat_template = facts["chat_template"]
    return made


def main(folder: Path) -> None:
    """Work as a process of its own, for as long as its parent wants it."""
    from nbtune.data.sources.snapshot import reopen

    parent = ParentProcess()
    if hasattr(os, "nice"):
        os.nice(5)
    body = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    sources = [
        reopen(e["name"], e["kind"], e["role"], SourceSpec.model_validate(e["spec"]), [Path(f) for f in e["files"]])
        for e in body["sources"]
    ]
    workman = Workman(
        Recipe.from_json(body["job"]), sources, rebuild_tokenizer(json.loads((folder / "tokenizer.json").read_text()))
    )
    parent.say({"ready": True})
    for message in parent.messages():
        number = int(message["shard"])
        try:
            write_shard(folder, number, workman.prepare(number))
            parent.say({"shard": number})
        except DataError as error:
            parent.say({"shard": number, "error": {"cause": error.cause, "place": error.place, "fix": error.fix}})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
