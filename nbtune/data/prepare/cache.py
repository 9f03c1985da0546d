"""Prepared data on disk, so that a second start need not tokenise again.

The key is made of contents, never of names or times: the bytes of the data, the tokenizer, the template, the options
and nbtune's own code. What is read back is compared with its checksums first. Kept in ``$NBTUNE_CACHE`` or
``~/.cache/nbtune``, under ``prepared/``; only for data that takes a while (`WORTH` rows and more).
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from nbtune.atomic_io import publish_folder
from nbtune.data.prepare.dataset import KINDS, Dataset
from nbtune.data.prepare.report import Prepared, Report, SourceReport
from nbtune.data.prepare.stats import DataFacts
from nbtune.data.sources.cache_folder import UNFINISHED, prepared_folder
from nbtune.data.sources.rows import Source

WORTH = 2000
_ALWAYS = ("ids", "trained", "starts", "source_of", "row_of")


def key_of(sources: Sequence[Source], tokenizer: Any, options: Mapping[str, Any]) -> str | None:
    """Return the key of a preparation; None where the data's content is not known without reading it (the Hub,
    variables that are not in a snapshot)."""
    if not all(source.files and (source.change is None or source.change_digest) for source in sources):
        return None
    hashed = hashlib.sha256()
    for source in sources:
        meaning = source.spec.model_dump(mode="json", exclude={"source"})
        hashed.update(json.dumps([source.name, source.role, meaning, source.change_digest], sort_keys=True).encode())
        digests = source.digests or [_content_of(file, "sha256").hex() for file in source.files]
        for file, digest in zip(source.files, digests, strict=True):
            hashed.update(file.suffix.encode() + bytes.fromhex(digest))
    hashed.update(tokenizer.backend_tokenizer.to_str().encode())
    special = {name: str(token) for name, token in sorted(tokenizer.special_tokens_map.items())}
    template = tokenizer.chat_template
    hashed.update(json.dumps([special, template, dict(options)], sort_keys=True, default=str).encode())
    hashed.update(_code())
    return hashed.hexdigest()


def load(key: str) -> Prepared | None:
    """Return what was kept under a key; None if there is nothing, or not what was written (it is then thrown away)."""
    folder = prepared_folder() / key
    try:
        body = json.loads((folder / "about.json").read_text(encoding="utf-8"))
        if any(_content_of(folder / name).hex() != digest for name, digest in body["files"].items()):
            raise ValueError("changed on disk")
        report = Report(**{**body["report"], "sources": [SourceReport(**s) for s in body["report"]["sources"]]})
        report.fates = [(str(s), int(row), str(status), str(why)) for s, row, status, why in report.fates]
        facts = DataFacts.model_validate(body["facts"])
        train = read_arrays(folder, "train", **body["train"])
        held = read_arrays(folder, "eval", **body["eval"]) if body["eval"] else None
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        shutil.rmtree(folder, ignore_errors=True)
        return None
    os.utime(folder)
    return Prepared(train, held, report, facts, body["chat_template"])


def seal(key: str, place: Path, prepared: Prepared) -> Prepared:
    """Make a folder with all arrays (`<train|eval>-<array>.npy`) the one of a key; return what lies there now.

    Raises:
        OSError: the disk is full.
    """
    about = {
        "report": asdict(prepared.report),
        "facts": prepared.facts.model_dump(mode="json"),
        "chat_template": prepared.chat_template,
        "files": {file.name: _content_of(file).hex() for file in sorted(place.glob("*.npy"))},
        **{name: {"sources": d.sources, "weights": d.weights} for name, d in _named(prepared).items()},
    }
    about.setdefault("eval", None)
    (place / "about.json").write_text(json.dumps(about), encoding="utf-8")
    final = prepared_folder() / key
    publish_folder(place, final, "about.json")
    there = [read_arrays(final, name, data.sources, data.weights) for name, data in _named(prepared).items()]
    return replace(prepared, train=there[0], eval=there[1] if len(there) > 1 else None)


def _named(prepared: Prepared) -> dict[str, Any]:
    return {"train": prepared.train} | ({"eval": prepared.eval} if prepared.eval is not None else {})


def entries() -> list[tuple[str, int, float]]:
    """Return (key, bytes, time of the last use) of what is kept, the oldest first."""
    kept = []
    for folder in prepared_folder().glob("*") if prepared_folder().is_dir() else ():
        if folder.name.startswith("new-") and time.time() - folder.stat().st_mtime < UNFINISHED:
            continue  # somebody is at it
        size = sum(file.stat().st_size for file in folder.glob("*"))
        kept.append((folder.name, size, folder.stat().st_mtime))
    return sorted(kept, key=lambda entry: entry[2])


def prune(keep_bytes: int = 0) -> int:
    """Throw the oldest away until at most `keep_bytes` are left; return how many bytes were freed."""
    kept = entries()
    total, freed = sum(size for _, size, _ in kept), 0
    for key, size, _ in kept:
        if total - freed <= keep_bytes:
            break
        shutil.rmtree(prepared_folder() / key, ignore_errors=True)
        freed += size
    return freed


def read_arrays(place: Path, name: str, sources: Sequence[str], weights: Sequence[float]) -> Dataset:
    """Return the dataset `train` or `eval` of a folder, memory-mapped."""
    there = [part for part in KINDS if part in _ALWAYS or (place / f"{name}-{part}.npy").exists()]
    arrays: dict[str, Any] = {part: np.load(place / f"{name}-{part}.npy", mmap_mode="r") for part in there}
    return Dataset(**arrays, sources=sources, weights=weights)


def _content_of(file: Path, algorithm: str = "blake2b") -> bytes:
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, algorithm).digest()


@cache
def _code() -> bytes:
    """Return a hash of the code that prepares: a changed mask rule is another preparation."""
    digest = hashlib.sha256()
    for file in sorted(Path(__file__).parents[1].rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.digest()
