"""What each key of a GGUF file does to its model: in llama.cpp, and in what nbtune reads of the very file.

llama.cpp says by itself which keys an architecture reads: it does not load a file in which such a key is a value of
another kind. Each of them gets other values, and llama.cpp's logits are compared with those of the model that nbtune
makes. A key may change both alike, or nothing, or nbtune refuses the file: a sentence of which names the key.

``python -m tests.support.gguf_keys [FAMILY …]`` tries all of them, and prints what differs.
"""

from __future__ import annotations

import copy
import os
import re
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nbtune import models
from nbtune.errors import ExportError, SpecError
from nbtune.models.gguf_file.configs import config_of
from nbtune.models.gguf_file.header import read_header
from tests.fuzz.gguf import LIST, TEXT, Pieces
from tests.support.llama import LlamaOracle, llama_library

TOKENS = torch.randint(3, 250, (40,), generator=torch.Generator().manual_seed(0)).tolist()
WHOLE, REAL, FLAG = 4, 6, 7
PATIENCE = 60.0  # seconds for a file of some kilobytes
_KINDS = {"u32": WHOLE, "i32": WHOLE, "f32": REAL, "bool": FLAG, "str": TEXT}
_TEXTS = (b"none", b"linear", b"yarn", b"longrope", b"gelu", b"silu", b"relu")
# Keys that say something only beside others.
BESIDE: dict[str, dict[str, Any]] = {
    "yarn": {"rope.scaling.type": b"yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 32},
    "linear": {"rope.scaling.type": b"linear", "rope.scaling.factor": 4.0},
    "window": {"attention.sliding_window": 8},
    "sigmoid": {"expert_gating_func": 2},
    "groups": {"expert_gating_func": 2, "expert_group_count": 2, "expert_group_used_count": 1},
    "temperature": {"attention.temperature_scale": 0.5, "attention.temperature_length": 8},
}
_WITH = {"yarn": "rope.", "linear": "rope.", "window": "swa|sliding|pattern", "sigmoid": "expert",
         "groups": "expert", "temperature": "temperature"}  # fmt: skip


@dataclass
class Outcome:
    """What became of a file: `how` in one word, and by how much the logits are apart, as a part of their range."""

    family: str
    key: str
    value: Any
    beside: str
    how: str
    said: str = ""
    moved: float = 0.0
    apart: float = 0.0

    def __str__(self) -> str:
        place = f"{self.key} = {self.value!r}"[:90] + (f" beside {self.beside}" if self.beside else "")
        return f"{self.how:9} {self.family}: {place} (moved {self.moved:.1e}, apart {self.apart:.1e}) {self.said[:230]}"


def keys_of_llama() -> list[str]:
    """Every key of an architecture that llama.cpp's library knows, without the architecture."""
    library = next(path for path in sorted(llama_library().glob("libllama.*")) if "common" not in path.name)
    return sorted({found.decode() for found in re.findall(rb"\0%s\.([a-z][a-z0-9_.]+)(?=\0)", library.read_bytes())})


class Probe:
    """One family's file, and what it becomes when its keys are others."""

    def __init__(self, family: str, data: bytes, folder: Path, limit: float) -> None:
        self.family, self.data, self.folder, self.limit = family, data, folder, limit
        self.pieces = Pieces(data)
        self.arch = next(value for key, _, value in self.pieces.keys if key == b"general.architecture").decode()
        self.llama: LlamaOracle | None = None
        self.count = 0
        self.layers = self.has("block_count")
        base, self.plain, ours = self.theirs({}), self.config({}), self.ours({})
        assert isinstance(base, np.ndarray), base
        self.base = base
        assert isinstance(ours, np.ndarray), ours
        assert apart(ours, self.base) < limit, apart(ours, self.base)

    def has(self, key: str) -> Any:
        """The value of a key; None where it is not there."""
        name = f"{self.arch}.{key}".encode()
        return next((value for named, _, value in self.pieces.keys if named == name), None)

    def file(self, changes: dict[str, tuple[int, Any]]) -> Path:
        """The file with keys that are others."""
        pieces = copy.copy(self.pieces)
        names = {f"{self.arch}.{key}".encode() if not key.startswith("tokenizer.") else key.encode(): entry
                 for key, entry in changes.items()}  # fmt: skip
        kept = [entry for entry in self.pieces.keys if entry[0] not in names]
        pieces.keys = kept + [[name, *entry] for name, entry in names.items() if entry[1] is not None]
        self.count += 1
        path = self.folder / f"{self.count}.gguf"
        path.write_bytes(pieces.whole())
        return path

    def theirs(self, changes: dict[str, tuple[int, Any]], n_ctx: int = 64) -> np.ndarray | str:
        """llama.cpp's logits of it, or what it says against it."""
        path = self.file(changes)
        if self.llama is None:
            self.llama = LlamaOracle(library=llama_library())
        late = threading.Timer(PATIENCE, self.llama.close)  # one of Cohere 2's it reads for ever
        late.start()
        try:
            self.llama.ask("load", path=str(path), n_ctx=n_ctx, threads=1)
            return self.llama.logits(TOKENS).copy()
        except ExportError as error:
            if "crashed" in str(error):
                self.llama.close()
                self.llama = None
            return str(error)
        finally:
            late.cancel()
            path.unlink()

    def config(self, changes: dict[str, tuple[int, Any]]) -> dict[str, Any] | str:
        """The config that nbtune reads, or what it says against the file."""
        path = self.file(changes)
        try:
            return config_of(read_header(path))[0].to_dict()
        except SpecError as error:
            return str(error)
        finally:
            path.unlink()

    def ours(self, changes: dict[str, tuple[int, Any]]) -> np.ndarray | Exception:
        """The logits of the model that nbtune reads, or what it says against it."""
        path = self.file(changes)
        try:
            model = models.load_model(str(path), dtype=torch.float32, device="cpu")
            with torch.no_grad():
                return model(input_ids=torch.tensor([TOKENS])).logits[0].numpy()
        except Exception as error:  # noqa: BLE001 - whatever it is, it is told
            return error
        finally:
            path.unlink()
            shutil.rmtree(Path(os.environ["NBTUNE_CACHE"]) / "gguf", ignore_errors=True)

    def __enter__(self) -> Probe:
        return self

    def __exit__(self, *_: object) -> None:
        if self.llama is not None:
            self.llama.close()

    def read(self, wanted: Callable[[str], bool]) -> dict[str, tuple[int, bool]]:
        """The keys that llama.cpp reads of such a file, with their values' kind, and whether these may be lists."""
        found = {}
        for key in filter(wanted, keys_of_llama()):
            kind = TEXT if not isinstance(self.has(key), bytes) else WHOLE
            said = self.theirs({key: (kind, b"x" if kind == TEXT else 3)})
            listed = self.theirs({key: (LIST, [TEXT, [b"x"] * 4])})
            told = [re.search(r"expected type (\w+)", one) for one in (said, listed) if isinstance(one, str)]
            if told:
                kind = next((_KINDS.get(one[1], WHOLE) for one in told if one), WHOLE)
                found[key] = kind, not (isinstance(listed, str) and "wrong type arr but" in listed)
        return found

    def values(self, key: str, kind: int, lists: bool) -> Iterator[tuple[int, Any]]:
        """Other values of a key."""
        yield from (entry for entry in self._values(key, kind) if lists or entry[0] != LIST)

    def _values(self, key: str, kind: int) -> Iterator[tuple[int, Any]]:
        now, many = self.has(key), self.layers
        single = now if isinstance(now, int | float) else None
        listed = now[1] if isinstance(now, list) else None
        turns = [i % 2 for i in range(many)]
        if kind == TEXT:
            yield from ((TEXT, one) for one in _TEXTS)
        elif kind == FLAG:
            yield from ((FLAG, one) for one in (True, False))
            yield from ((LIST, [FLAG, [bool(one) for one in some]]) for some in (turns, [1 - i for i in turns]))
        elif kind == REAL:
            reals = [0.5 * single, 2.0 * single] if single else []
            most = 4.0 if "attn_factor" in key else 8.0  # by 64 times the products llama.cpp's GELU shows, too
            usual = (20000.0, 1e6) if "freq_base" in key else (0.0, 8.0) if "cap" in key else (0.0, 0.5, 1.0, most)
            yield from ((REAL, one) for one in dict.fromkeys((*reals, *usual)))
            yield LIST, [REAL, [0.5 + 0.5 * i for i in range(many)]]
        else:
            about = [single + 1, max(single - 1, 0), 2 * single, single // 2] if single is not None else []
            few = () if key == "context_length" else (0, 1, 2, 3, 8)  # shorter than what is asked
            yield from ((WHOLE, one) for one in dict.fromkeys((*about, *few)))
            other = single or max(listed or [2])
            yield from ((LIST, [WHOLE, [one] * many]) for one in dict.fromkeys((other, 1)))
            yield LIST, [WHOLE, [other if i % 2 else max(other // 2, 1) for i in range(many)]]
            yield from ((LIST, [FLAG, [bool(one) for one in some]]) for some in (turns, [1 - i for i in turns]))
            yield from ((LIST, [5, some]) for some in ([2, 2, 2, 0],))
        if listed is not None:
            inner = now[0]
            yield LIST, [inner, listed[::-1]]
            yield LIST, [inner, listed[1:] + listed[:1]]
        if now is not None:
            yield kind, None  # it is gone

    def tried(self, key: str, entry: tuple[int, Any], beside: str = "") -> Outcome:
        """What another value does to both."""
        changes = {name: _entry(value) for name, value in BESIDE.get(beside, {}).items()}
        changes[key] = entry
        value = entry[1][1] if entry[0] == LIST and entry[1] else entry[1]
        theirs = self.theirs(changes)
        out = Outcome(self.family, f"{self.arch}.{key}", value, beside, "")
        if isinstance(theirs, str):
            out.how, out.said = "no file", theirs
            return out
        out.moved = apart(theirs, self.base)
        if out.moved == 0 and self.config(changes) == self.plain and "rope.dimension_count" not in changes:
            out.how = "alike"
            return out
        ours = self.ours(changes)
        if isinstance(ours, SpecError):
            out.said = str(ours)
            named = key.split(".")[-1] in out.said or f"its {self.arch}." in out.said
            out.how = "unnamed" if not named else "refused" if out.moved else "needless"
        elif isinstance(ours, np.ndarray):
            out.apart = apart(ours, theirs) if ours.shape == theirs.shape else 9.0
            out.how = "alike" if out.apart < self.limit else "BUG"
        else:
            out.how, out.said = "ERROR", repr(ours)
        return out

    def all(self, wanted: Callable[[str], bool] = lambda key: True) -> Iterator[Outcome]:
        """Each value of each key that is wanted, alone and beside others."""
        read = self.read(lambda key: wanted(key) or any(key in others for others in BESIDE.values()))
        for key in filter(wanted, read):
            yield from self.each(key, read[key])
        for beside, others in BESIDE.items():
            if set(others) <= set(read):
                for key in (key for key in read if wanted(key) and re.search(_WITH[beside], key)):
                    if key not in others or beside in ("yarn", "linear"):
                        yield from self.each(key, read[key], beside)

    def each(self, key: str, takes: tuple[int, bool], beside: str = "") -> Iterator[Outcome]:
        """What each value of a key does; those with which llama.cpp ends are left when it was seen twice."""
        ended = 0
        for entry in self.values(key, *takes):
            yield (outcome := self.tried(key, entry, beside))
            ended += "crashed" in outcome.said
            if ended > 1:
                return


# Not the file's: llama.cpp chooses between two lists of factors by the size of its context, which is at least 256.
_OTHERWISE = {("phi3", "rope.scaling.original_context_length")}


def same(outcome: Outcome) -> bool:
    """Whether nothing is wrong: both alike, no file of llama.cpp's, or refused by the key's name, or a weight's."""
    arch, _, key = outcome.key.partition(".")
    if outcome.how == "unnamed" and (outcome.moved == 0 or "the weight blk" in outcome.said):
        return True
    return outcome.how in ("alike", "no file", "refused", "needless") or (arch, key) in _OTHERWISE


def _entry(value: Any) -> tuple[int, Any]:
    return {bytes: TEXT, float: REAL, bool: FLAG, int: WHOLE}[type(value)], value


def apart(one: np.ndarray, other: np.ndarray) -> float:
    """The largest difference, as a part of the range."""
    with np.errstate(all="ignore"):
        off = float(np.abs(one - other).max() / np.ptp(other))
    return off if np.isfinite(off) else (0.0 if np.isnan(one).any() and np.isnan(other).any() else 99.0)


def main(names: list[str], *, every: bool = False) -> None:
    """Try the families of these names, or all; print what is odd, or every outcome."""
    from tests.fuzz.gguf import good
    from tests.support.families import GELU_LIMIT
    from tests.support.family_cases import CASES

    torch.set_num_threads(1)
    os.environ["GGML_NO_BACKTRACE"] = "1"  # which takes a second a crash
    with tempfile.TemporaryDirectory() as temporary:
        os.environ["NBTUNE_CACHE"] = temporary + "/cache"
        for name in names or CASES:
            counts: dict[str, int] = {}
            with Probe(name, good(name), Path(temporary), 2 * GELU_LIMIT * CASES[name].times) as probe:
                for outcome in probe.all():
                    counts[outcome.how] = counts.get(outcome.how, 0) + 1
                    if every or not same(outcome):
                        print(outcome, flush=True)
            print("==", name, counts, flush=True)


if __name__ == "__main__":
    main([name for name in sys.argv[1:] if name != "--every"], every="--every" in sys.argv)
