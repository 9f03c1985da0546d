"""Several runs, one after the other, in several processes that are started once: what takes long is to import torch.

python -m tests.support.several MEETING FOLDER…      (with RANK and WORLD_SIZE, as `nbtune.engine.distributed_launcher`)
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any


def train(folders: list[Path], count: int, meeting: Path) -> None:
    """Train the runs of the folders, in so many processes of a CPU."""
    meeting.mkdir()
    command = [sys.executable, "-m", "tests.support.several", str(meeting), *map(str, folders)]
    usual = {"WORLD_SIZE": str(count), "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    workers = [
        subprocess.Popen(
            command, env={**os.environ, **usual, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(count)
    ]  # fmt: skip
    try:
        words = [worker.communicate(timeout=1200)[0] for worker in workers]
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
    assert [worker.returncode for worker in workers] == [0] * count, "\n".join(word[-2500:] for word in words)


def layer_bytes(model: Any) -> tuple[int, int]:
    """What this process has of the decoder layers' weights, and what all have; bytes."""
    layers = [p for name, p in model.named_parameters() if ".layers." in name and "lora" not in name]
    mine = [p.to_local() if hasattr(p, "to_local") else p for p in layers]
    return tuple(sum(p.numel() * p.element_size() for p in some) for some in (mine, layers))  # type: ignore[return-value]


def _work(meeting: str, folders: list[str]) -> None:
    from nbtune.engine.engine import execute, follow
    from nbtune.train.distributed import Ranks

    ranks = Ranks.join(meeting)
    for name in folders:
        folder = Path(name)

        def keep(built: Any, folder: Path = folder) -> None:
            (folder / "bytes.json").write_text(json.dumps(layer_bytes(built.model)))

        if ranks is None or ranks.first:
            execute(folder, ranks=ranks, keep=keep)
        else:
            follow(folder, ranks)
    if ranks is not None:
        ranks.wait()
        ranks.leave()
    sys.stdout.flush()
    os._exit(0)  # gloo's threads may not outlive the interpreter


if __name__ == "__main__":
    _work(sys.argv[1], sys.argv[2:])
