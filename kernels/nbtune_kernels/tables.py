"""Launch parameters: a small measured table per architecture, and rules for what it does not list.

`kernels/benchmarks/tune.py` prints the entries. A key is (op, compute capability); values are what the op's launcher
reads. An architecture that is not listed uses the nearest older one, and the rules below where there is none. What
`tune.py --write` measured on this machine comes before all of it (`own_file`).
"""

import functools
import json
import os
import warnings
from pathlib import Path
from typing import Any

# Elements a warp handles at once in the row kernels; columns of a block; stages of the pipelined loops.
DEFAULT: dict[str, dict[str, Any]] = {
    "rms_norm": {"per_warp": 1024, "max_warps": 8},
    "rms_norm_backward": {"per_warp": 512, "max_warps": 16, "programs_per_sm": 4, "stages": 1},
    "layer_norm": {"per_warp": 1024, "max_warps": 8},
    "layer_norm_backward": {"per_warp": 512, "max_warps": 16, "programs_per_sm": 4, "stages": 1},
    "rope": {"pairs": 1024, "warps": 2},
    "act_mul": {"block": 2048, "warps": 4},
    "act_mul_backward": {"block": 1024, "warps": 4},
    "cross_entropy": {"block": 4096, "warps": 8, "stages": 1, "keep": "", "drop": ""},
    "cross_entropy_shared": {"block": 0, "warps": 2},  # 0: a row is never shared; its programs wait for one another
    "cross_entropy_stats": {"block": 4096, "warps": 8, "stages": 1, "keep": "", "drop": ""},
    "embedding": {"warps": 8, "rows": 1},
    "dropout": {"block": 256, "warps": 4},
    "nf4_decode": {"words": 256, "warps": 4},
    "unpack": {"pairs": 2048, "warps": 4},
    "adamw": {"block": 1024, "warps": 4},
    # min_rows: below it cuBLAS makes the product, as it always does where tl.dot has no tensor cores (< sm_80).
    "lora_xa": {"block_t": 64, "block_k": 128, "warps": 4, "stages": 4, "min_rows": 2048},
    "lora_dxa": {"block_t": 64, "block_k": 128, "warps": 4, "stages": 4, "min_rows": 2048},
    "grouped_tn": {"block_t": 64, "block_n": 128, "warps": 4, "stages": 4, "programs_per_sm": 3, "min_rows": 64},
    # block_m of both kinds of rows is one: they share the table of blocks
    "grouped_rows": {"block_m": 64, "block_n": 128, "block_k": 64, "warps": 4, "stages": 3},
    "grouped_rows_skinny": {"block_m": 64, "block_n": 64, "block_k": 128, "warps": 4, "stages": 3},
    "grouped_sums": {"block_t": 64, "block_n": 128, "warps": 4, "stages": 3},
    "grouped_combine": {"block": 2048, "warps": 4},
    "grouped_gate_backward": {"block": 1024, "warps": 4},
}

TABLE: dict[tuple[str, int], dict[str, Any]] = {
    ("lora_xa", 80): {"stages": 3},
    ("lora_dxa", 80): {"stages": 3},
    ("grouped_tn", 80): {"stages": 3},
    # 99 KiB of shared memory a block on GeForce and workstation cards
    ("lora_xa", 86): {"stages": 2},
    ("lora_dxa", 86): {"stages": 2},
    ("grouped_tn", 86): {"stages": 2},
    ("rms_norm", 90): {"per_warp": 512},
    ("embedding", 90): {"warps": 1, "rows": 2},
    ("cross_entropy", 90): {"block": 32768, "warps": 32, "stages": 1, "keep": "evict_last", "drop": "evict_first"},
    ("cross_entropy_shared", 90): {"block": 8192},
    ("cross_entropy_stats", 90): {"block": 16384, "warps": 8, "stages": 3},
    ("rms_norm_backward", 90): {"per_warp": 512, "programs_per_sm": 1, "stages": 6},
    ("layer_norm_backward", 90): {"per_warp": 1024, "programs_per_sm": 2, "stages": 3},
    ("lora_xa", 90): {"stages": 5},
    ("lora_dxa", 90): {"stages": 5},
    ("grouped_tn", 90): {"block_n": 256, "stages": 4, "programs_per_sm": 1},
    ("grouped_rows", 90): {"block_m": 128, "block_n": 256, "warps": 8, "stages": 4},
    ("grouped_rows_skinny", 90): {"block_m": 128, "block_k": 64, "stages": 4},
    ("grouped_sums", 90): {"stages": 4},
    ("lora_xa", 120): {"stages": 2},
    ("lora_dxa", 120): {"stages": 2},
    ("grouped_tn", 120): {"stages": 2},
}


def own_file() -> Path | None:
    """Return the file of entries measured on this machine: `$NBTUNE_KERNEL_TABLE` (empty: none), or one in the user's
    cache folder."""
    named = os.environ.get("NBTUNE_KERNEL_TABLE")
    if named is not None:
        return Path(named) if named else None
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nbtune" / "kernels.json"


@functools.cache
def _own() -> dict[tuple[str, int], dict[str, Any]]:
    """Read `{"90": {"rms_norm": {"per_warp": 512}}}` as a table; what this version does not know is left out."""
    path = own_file()
    try:
        text = path.read_text() if path else "{}"
    except OSError:
        return {}
    try:
        return {
            (op, int(capability)): {k: v for k, v in entry.items() if k in DEFAULT[op]}
            for capability, entries in json.loads(text).items()
            for op, entry in entries.items()
            if op in DEFAULT
        }
    except (ValueError, AttributeError) as reason:
        warnings.warn(f"{path} is no table of launch parameters and is not used: {reason}", stacklevel=2)
        return {}


@functools.cache
def launch(op: str, capability: int) -> dict[str, Any]:
    """Return the parameters of `op` on a device of that compute capability (0: the interpreter). Shared: not to be
    changed."""
    known = [arch for name, arch in TABLE if name == op and arch <= capability]
    return {**DEFAULT[op], **(TABLE[op, max(known)] if known else {}), **_own().get((op, capability), {})}


# Kilobytes of shared memory that one program may have.
SHARED = {75: 64, 80: 163, 86: 99, 87: 163, 89: 99, 90: 227, 120: 99}


@functools.cache
def stages_for(op: str, capability: int, size: int) -> int:
    """Return the stages of a pipelined loop whose stage holds so many bytes: the table's, or as many as fit the
    card."""
    wanted: int = launch(op, capability)["stages"]
    if capability == 0:
        return wanted
    known = [arch for arch in SHARED if arch <= capability]
    room = 1000 * SHARED[max(known)] if known else 48_000
    return max(1, min(wanted, room // max(1, size)))


# Tiles of attention's kernels, rows and columns, warps, stages: the first whose tiles fit the card's shared memory.
_ATTENTION = {
    "forward": [(128, 64, 8, 3), (128, 64, 8, 2), (128, 32, 8, 2), (64, 32, 4, 2), (64, 32, 4, 1), (32, 32, 4, 1)],
    "keys": [(64, 128, 8, 2), (64, 64, 8, 2), (32, 64, 8, 2), (32, 32, 4, 2), (32, 32, 4, 1), (16, 16, 4, 1)],
    "only_keys": [(32, 128, 8, 2), (64, 64, 8, 2), (32, 64, 8, 2), (32, 32, 4, 2), (32, 32, 4, 1), (16, 16, 4, 1)],
    "only_values": [(64, 128, 8, 2), (64, 64, 8, 2), (32, 64, 8, 2), (32, 32, 4, 2), (32, 32, 4, 1), (16, 16, 4, 1)],
    "queries": [
        (128, 64, 8, 2),
        (128, 32, 8, 2),
        (64, 64, 8, 2),
        (64, 32, 4, 2),
        (32, 32, 4, 2),
        (32, 32, 4, 1),
        (16, 16, 4, 1),
    ],
}


@functools.cache
def attention_tiles(kernel: str, row: int, capability: int) -> dict[str, int]:
    """Return BM, BN, warps and stages of attention's `kernel` for heads of `row` bytes. Shared: not to be changed."""
    if capability == 0:
        return {"BM": 32, "BN": 16, "num_warps": 4, "num_stages": 1}
    known = [arch for arch in SHARED if arch <= capability]
    room = 1000 * SHARED[max(known)] if known else 48_000
    m = n = warps = stages = 0
    for m, n, warps, stages in _ATTENTION[kernel]:  # noqa: B007
        of_keys = (n if kernel == "only_values" else 2 * n, 2 * m)
        stay, move = {"forward": (m, 2 * n), "queries": (2 * m, 2 * n)}.get(kernel, of_keys)
        if (stay + stages * move) * row <= room:
            break
    return {"BM": m, "BN": n, "num_warps": warps, "num_stages": stages}


@functools.cache
def warps_for(op: str, capability: int, elements: int) -> int:
    """Return the warps of a row kernel whose program holds so many elements."""
    table = launch(op, capability)
    warps = 1
    while warps * table["per_warp"] < elements and warps < table["max_warps"]:
        warps *= 2
    return warps


def set_entry(op: str, capability: int, entry: dict[str, Any] | None) -> None:
    """Replace an entry of the table, or remove it (None). For tuning: programs that run may have read the old one."""
    TABLE.pop((op, capability), None)
    if entry is not None:
        TABLE[op, capability] = entry
    forget()


def forget() -> None:
    """Read the tables anew."""
    _own.cache_clear()
    launch.cache_clear()
    stages_for.cache_clear()
    attention_tiles.cache_clear()
    warps_for.cache_clear()
