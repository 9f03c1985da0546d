"""What a model's checks cost a step: the same model built with them and without, stepped in turn in one process.

    python tests/gpu/bench_checks.py MODEL_DIR --quant nf4 --activations keep --turns 4 --steps 6

One JSON line a turn, with the medians so far. The checks run once, while the model is built: a step is the same code.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from nbtune.device import pick
from nbtune.device.streams import synchronize
from nbtune.models import load_trainable


def built(args: argparse.Namespace, checks: bool) -> Any:
    """Build the model, and say how long that took."""
    with ExitStack() as without:
        if not checks:
            for name, made in (("probe_layer", None), ("tiny_losses", [0.0])):
                without.enter_context(mock.patch(f"nbtune.models.accelerate.patch.{name}", return_value=made))
            without.enter_context(mock.patch("nbtune.models.factory.refuse_unless_causal"))
        began = time.perf_counter()
        model = load_trainable(
            args.model,
            quant=args.quant,
            micro_batch_size=args.batch,
            sequence_len=args.ctx,
            weights=args.weights,
            activations=args.activations,
            device=args.device,
        )
        synchronize(pick(args.device))
    print(json.dumps({"checks": checks, "built_s": round(time.perf_counter() - began, 1)}), flush=True)
    return model


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("--quant", default="none")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--ctx", type=int, default=2048)
    parser.add_argument("--activations", default="keep")
    parser.add_argument("--weights", default="resident", help="streamed: they wait in the host's memory")
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    device, models = pick(args.device), {checks: built(args, checks) for checks in (True, False)}
    generator, vocabulary = torch.Generator().manual_seed(1), models[True].config.vocab_size
    rows = [torch.randint(3, vocabulary, (args.batch, args.ctx), generator=generator).to(device) for _ in range(4)]
    took: dict[bool, list[float]] = {True: [], False: []}
    for turn in range(args.turns):
        for checks in (True, False) if turn % 2 == 0 else (False, True):
            for step in range(args.steps):
                ids = rows[step % 4]
                synchronize(device)
                began = time.perf_counter()
                models[checks].train_step(input_ids=ids, labels=ids, lr=1e-4)
                synchronize(device)
                if step >= (1 if turn else 4):  # the first ones compile and record
                    took[checks].append(time.perf_counter() - began)
        on, off = (statistics.median(took[checks]) for checks in (True, False))
        about = {name: getattr(args, name) for name in ("quant", "weights", "activations")}
        about["model"] = Path(args.model).name
        print(json.dumps({**about, "turn": turn, "on_s": on, "off_s": off, "ratio": round(on / off, 4)}), flush=True)


if __name__ == "__main__":
    main()
