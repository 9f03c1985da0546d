"""What is prepared of the rows, and how: what each process that prepares a part of them is told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nbtune.folder_format import FORMAT
from nbtune.spec import RunSpec

# The keys of a spec that decide what the tokens are.
READ = {
    "train_on",
    "train_spans",
    "eval",
    "thinking",
    "terminators",
    "chat_template",
    "method",
    "row_weights",
    "labels",
}


@dataclass(frozen=True)
class Recipe:
    """What is prepared, and how: everything but the sources and the tokenizer themselves."""

    spec: RunSpec
    max_len: int
    overflow: str
    on_error: str
    kind: str
    seed: int
    counts: tuple[int, ...]  # rows of each source
    arrives: bool = False  # they are learnt from while others are prepared, in a drawn order
    whole: bool = True  # they are one shard
    version: int = FORMAT  # of the run's folder
    first: int = 512  # rows of the first shard: small, so that the first batch need not wait
    most: int = 8192  # of the later ones

    def to_json(self) -> dict[str, Any]:
        """Return it as `job.json` holds it."""
        body = {**vars(self), "spec": self.spec.model_dump(mode="json")}
        return {**body, "counts": list(self.counts)}

    def meaning(self) -> dict[str, Any]:
        """Return what of it decides the tokens: the same for every learning rate."""
        body = {name: value for name, value in vars(self).items() if name not in ("spec", "first", "most")}
        return {**body, "spec": self.spec.model_dump(include=READ)}

    @property
    def bounds(self) -> list[tuple[int, int]]:
        """The shards: stretches of the order of arrival."""
        rows, ranges, at = sum(self.counts), [], 0
        size = rows if self.whole else self.first
        while at < rows:
            ranges.append((at, min(at + size, rows)))
            at, size = at + size, min(size * 2, self.most)
        return ranges

    @classmethod
    def from_json(cls, body: dict[str, Any]) -> Recipe:
        """Read it from what `job.json` holds."""
        return cls(**{**body, "spec": RunSpec.model_validate(body["spec"]), "counts": tuple(body["counts"])})
