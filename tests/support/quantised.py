"""Our encoders beside llama.cpp's own quantiser, both read by gguf's decoder.

``python -m tests.support.quantised`` writes docs/reference/gguf-types.md from a run over all of them.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES, quants
from gguf import GGMLQuantizationType as Kind

from nbtune.export.gguf.kquants import ENCODERS, encode
from tests.support.llama import VERSION, LlamaOracle, llama_library

KINDS = {"gaussian": "Gaussian", "heavy": "heavy-tailed", "outliers": "outlier channels"}
EQUAL = ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0")
"""Encodings without a search, which come out as llama.cpp's own, byte by byte."""
NAMES = (*EQUAL, *sorted(ENCODERS))

ROWS, COLUMNS = 64, 1024


def weights(kind: str) -> np.ndarray:
    """Numbers like a model's: Gaussian, heavy-tailed, or with channels that stand out."""
    rng = np.random.default_rng(3)
    if kind == "heavy":
        return (rng.standard_t(4, (ROWS, COLUMNS)) * 0.02).astype(np.float32)
    values = rng.standard_normal((ROWS, COLUMNS)) * 0.02
    if kind == "outliers":
        values[:, rng.integers(0, COLUMNS, COLUMNS // 100)] *= 10
    return values.astype(np.float32)


def theirs(
    llama: LlamaOracle, x: np.ndarray, name: str, folder: Path, importance: np.ndarray | None = None
) -> np.ndarray:
    x.tofile(folder / "in")
    arguments: dict[str, Any] = {"kind": int(Kind[name]), "source": str(folder / "in"), "target": str(folder / "out")}
    if importance is not None:
        arguments["weights"] = importance.tolist()
    llama.ask("quantize_rows", rows=x.shape[0], columns=x.shape[1], **arguments)
    return quants.dequantize(np.fromfile(folder / "out", np.uint8).reshape(x.shape[0], -1), Kind[name])


def ours(x: np.ndarray, name: str, importance: np.ndarray | None = None) -> np.ndarray:
    weigh = None if importance is None else torch.from_numpy(importance)
    data = encode(torch.from_numpy(x), name, weigh)
    return quants.dequantize(data.reshape(x.shape[0], -1), Kind[name])


def loss(x: np.ndarray, y: np.ndarray, importance: np.ndarray | float = 1.0) -> float:
    return float(np.sqrt((importance * (x - y) ** 2).mean()))


@dataclass(frozen=True)
class Compared:
    """Root mean square errors of both, and the part of the blocks that are equal byte by byte."""

    ours: float
    theirs: float
    equal_blocks: float


def compare(llama: LlamaOracle, x: np.ndarray, name: str, folder: Path) -> Compared:
    """Both encoders on the rows of `x`, (rows, columns) fp32."""
    other = theirs(llama, x, name, folder)
    size = GGML_QUANT_SIZES[Kind[name]][1]
    mine = encode(torch.from_numpy(x), name).reshape(-1, size)
    equal = (mine == np.fromfile(folder / "out", np.uint8).reshape(-1, size)).all(1).mean()
    return Compared(loss(x, ours(x, name)), loss(x, other), float(equal))


_PAGE = """\
# Types of GGUF files: what is lost

Each encoding by nbtune beside llama.cpp's own quantiser (node-llama-cpp {version}'s library), both decoded by the gguf
package: nbtune's root mean square error as a part of llama.cpp's, on weights that are Gaussian, heavy-tailed
(Student's t, 4 degrees of freedom) or have one channel in a hundred ten times as large. *Blocks equal*: how many
blocks are the same byte by byte (Gaussian weights). The encodings without a search are equal; those that search for
their scales choose others.

| encoding | {kinds} | blocks equal |
|---|---|---|---|---|
{rows}

For Q2_K both keep large weights better at the cost of small ones, as without an importance matrix a model wants it.
Written by `python -m tests.support.quantised`; `tests/export/gguf/test_kquants.py` checks the same.
"""


def main() -> None:
    """Measure every encoding, and write the page."""
    rows = []
    with LlamaOracle(library=llama_library()) as llama, tempfile.TemporaryDirectory() as temporary:
        for name in NAMES:
            seen = [compare(llama, weights(kind), name, Path(temporary)) for kind in KINDS]
            ratios = " | ".join(f"{one.ours / one.theirs:.4f}" for one in seen)
            rows.append(f"| {name} | {ratios} | {100 * seen[0].equal_blocks:.0f} % |")
            print(rows[-1], flush=True)
    page = Path(__file__).parents[2] / "docs" / "reference" / "gguf-types.md"
    text = _PAGE.format(version=VERSION, kinds=" | ".join(KINDS.values()), rows="\n".join(rows))
    page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
