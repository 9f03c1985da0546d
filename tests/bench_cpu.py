"""CPU time of a training step of the embedded model, accelerated and stock by turns: `python tests/bench_cpu.py`."""

from __future__ import annotations

import json
import time

import torch

from nbtune.models import build
from nbtune.spec import AdapterSpec


def main() -> None:
    torch.set_num_threads(1)
    models, optimizers, took = [], [], [[], []]  # type: ignore[var-annotated]
    for accelerate in (True, False):
        kind = {"dtype": torch.float32, "device": torch.device("cpu"), "seed": 1, "tokenizer": False}
        model = build("nbtune/tiny", adapter=AdapterSpec(), accelerate=accelerate, **kind).model.train()  # type: ignore[arg-type]
        models.append(model)
        optimizers.append(torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4))
    ids = torch.randint(models[0].config.vocab_size, (4, 256))
    for _ in range(24):
        for model, optimizer, times in zip(models, optimizers, took, strict=True):
            began = time.process_time()
            model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            times.append(1000 * (time.process_time() - began))
    for name, times in zip(("accelerated", "stock"), took, strict=True):
        print(json.dumps({"what": name, "least_ms": round(min(times)), "median_ms": round(sorted(times)[12])}))


if __name__ == "__main__":
    main()
