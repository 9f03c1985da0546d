"""The pairs of tests/fuzz on a card, each run in a thread of this process, which has imported all already.

    python tests/gpu/hunt_pairs.py 1/14 300 found.jsonl --seed 3       this process takes every 14th row

One JSON line a row: what it is refused for, or what is wrong. Several processes share a card (`NBTUNE_VRAM_GIB=8`), and
Triton's cache (`TRITON_CACHE_DIR`). On an H200 14 of them try some 650 rows in five minutes.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import sys
import tempfile
import time
import traceback
from dataclasses import replace
from pathlib import Path
from unittest import mock

import torch


def tried(row: dict[str, str], number: int, device: str) -> dict[str, object]:
    """Try a row of levels; return what came of it."""
    from tests.fuzz.cases import Silent
    from tests.fuzz.pair_trial import CARD, attempt, said_of_levels

    began, folder = time.time(), Path(tempfile.mkdtemp(prefix="nbtune-pairs-"))
    refused = found = ""
    try:
        refused = attempt(row, random.Random(number), folder, replace(CARD, device=device))
    except Silent as error:
        found = str(error)
    except Exception:  # noqa: BLE001 — whatever it is, it is the finding
        found = traceback.format_exc()
    shutil.rmtree(folder, ignore_errors=True)
    took = round(time.time() - began, 1)
    return {
        "row": said_of_levels(row),
        "number": number,
        "took_s": took,
        "refused": refused[:200],
        "found": found[-1800:],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", help="K/N: every Nth row, from the Kth on")
    parser.add_argument("seconds", type=float)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seed", type=int, default=0, help="of the array of rows")
    parser.add_argument("--device", default="cuda", help="cpu: to see that the script works")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    from tests.fuzz.pairs import rows

    first, every = map(int, asked.part.split("/"))
    over, array = time.time() + asked.seconds, rows(asked.seed)
    random.Random(asked.seed).shuffle(array)
    with mock.patch("nbtune.run.needs_own_process", return_value=False), asked.out.open("w", encoding="utf-8") as out:
        for number, row in list(enumerate(array))[first - 1 :: every]:
            if time.time() > over:
                break
            out.write(json.dumps(tried(row, number, asked.device)) + "\n")
            out.flush()


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    main()
