"""A part of the rows, prepared by itself, here or in a process (``python -m nbtune.data.prepare.shards``).

A process of its own is given a folder with what it needs (`job.json`, `tokenizer.json`), then a message for each shard;
it answers with the same number when the shard's arrays lie in the folder. It ends when nobody asks any more.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from nbtune.child_process import ParentProcess
from nbtune.data.prepare.dataset import Dataset
from nbtune.data.prepare.row_pipeline import Reader
from nbtune.data.sources.rows import Source
from nbtune.errors import DataError
from nbtune.spec import RunSpec, SourceSpec


@dataclass(frozen=True)
class Job:
    """What is prepared, and how: everything but the sources and the tokenizer themselves."""

    spec: RunSpec
    max_len: int
    overflow: str
    on_error: str
    seed: int
    counts: tuple[int, ...]  # rows of each source
    first: int = 512  # rows of the first shard: small, so that the first batch need not wait
    most: int = 8192  # of the later ones

    def to_json(self) -> dict[str, Any]:
        """Return it as `job.json` holds it."""
        body = {**vars(self), "spec": self.spec.model_dump(mode="json")}
        return {**body, "counts": list(self.counts)}

    @property
    def bounds(self) -> list[tuple[int, int]]:
        """The shards: stretches of the order of arrival."""
        rows, found, at, size = sum(self.counts), [], 0, self.first
        while at < rows:
            found.append((at, min(at + size, rows)))
            at, size = at + size, min(size * 2, self.most)
        return found

    @classmethod
    def from_json(cls, body: dict[str, Any]) -> Job:
        """Read it from what `job.json` holds."""
        return cls(**{**body, "spec": RunSpec.model_validate(body["spec"]), "counts": tuple(body["counts"])})


@dataclass(frozen=True)
class Shard:
    """Examples in the order of their rows' arrival, and what was found on the way.

    `digest_of`: uint64 [examples], of the tokens of the example's row: the same for rows of the same tokens.
    """

    data: Dataset
    digest_of: np.ndarray
    about: dict[str, Any]


def arrival(counts: Sequence[int], seed: int) -> np.ndarray:
    """Return the order in which rows are prepared and first seen: numbers of rows, counted through
    all sources, int64."""
    return np.random.default_rng([seed, 11]).permutation(sum(counts))


class Workman:
    """Prepares one shard after another, with one tokenizer."""

    def __init__(self, job: Job, sources: Sequence[Source], tokenizer: Any) -> None:
        self.job, self.sources, self.tokenizer = job, sources, tokenizer
        self._order = arrival(job.counts, job.seed)
        self._bounds = job.bounds
        self._starts = np.concatenate([[0], np.cumsum(job.counts)])
        self._reader = Reader(tokenizer, job.spec, job.max_len, job.overflow, job.on_error, None)  # type: ignore[arg-type]

    def prepare(self, number: int) -> Shard:
        """Return the shard of that number.

        Raises:
            DataError: a row of it cannot be read.
        """
        from nbtune.data.prepare.quality_checks import Oddities

        first, last = self._bounds[number]
        rows = self._order[first:last]
        source_of = np.searchsorted(self._starts, rows, side="right") - 1
        wanted = [
            (rows[source_of == s] - self._starts[s]).tolist() if s in source_of else []
            for s in range(len(self.sources))
        ]
        reader = self._reader
        reader.report.fates, reader.oddities = [], Oddities()
        before = {chats: (e.chats, e.unended) for chats, e in reader._encoders.items()}
        data = reader.read(self.sources, wanted)
        if len(self.sources) > 1:
            data = data.take(self._by_arrival(data, rows))
        chats, unended = 0, 0
        for key, encoder in reader._encoders.items():
            old = before.get(key, (0, 0))
            chats, unended = chats + encoder.chats - old[0], unended + encoder.unended - old[1]
        about = {
            "fates": reader.report.fates,
            "chats": chats,
            "unended": unended,
            "oddities": vars(reader.oddities),
            "chat_template": reader.chat_template,
            "terminator": reader.report.terminator,
            "warnings": reader.report.warnings,
            "matched": sorted(reader.matched),
        }
        return Shard(data, _digests(data, self.job.seed), about)

    def _by_arrival(self, data: Dataset, rows: np.ndarray) -> np.ndarray:
        place = dict(zip(rows.tolist(), range(len(rows)), strict=True))
        numbers = (self._starts[data.source_of] + data.row_of).tolist()
        return np.argsort([place[n] for n in numbers], kind="stable")


def _digests(data: Dataset, seed: int) -> np.ndarray:
    """Return uint64 [examples]: of the tokens of the whole row that an example is of, as its windows stand together."""
    found = np.empty(len(data), np.uint64)
    keys = data.source_of.astype(np.int64) * (1 << 40) + data.row_of
    firsts = [*np.flatnonzero(np.diff(keys, prepend=-1)).tolist(), len(data)]
    salt = seed.to_bytes(8, "little")
    for first, last in pairwise(firsts):
        body = data.ids[data.starts[first] : data.starts[last]].tobytes()
        digest = hashlib.blake2b(body, digest_size=8, key=salt).digest()
        found[first:last] = int.from_bytes(digest, "little")
    return found


def write_shard(folder: Path, number: int, shard: Shard) -> None:
    """Write the shard as files, the last of them whole or not there."""
    arrays = {name: getattr(shard.data, name) for name in ("ids", "trained", "starts", "source_of", "row_of")}
    if shard.data.weight_of is not None:
        arrays["weight_of"] = shard.data.weight_of
    np.savez(folder / f"{number}.npz", allow_pickle=False, digest_of=shard.digest_of, **arrays)
    (folder / f"{number}.json").write_text(json.dumps(shard.about), encoding="utf-8")


def read_shard(folder: Path, number: int, sources: Sequence[Source]) -> Shard:
    """Return what `write_shard` wrote; the files are gone then."""
    file, note = folder / f"{number}.npz", folder / f"{number}.json"
    with np.load(file) as arrays:
        body = dict(arrays)
    digest_of = body.pop("digest_of")
    data = Dataset(**body, sources=[s.name for s in sources], weights=[s.spec.weight for s in sources])
    about = json.loads(note.read_text(encoding="utf-8"))
    about["fates"] = [tuple(fate) for fate in about["fates"]]
    file.unlink()
    note.unlink()
    return Shard(data, digest_of, about)


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
        Job.from_json(body["job"]), sources, rebuild_tokenizer(json.loads((folder / "tokenizer.json").read_text()))
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
