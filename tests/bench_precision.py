"""How far a loss falls in fp32, in bf16 with nbtune's blocks, and with stock ones, which round LoRA's part by itself.

python -m tests.bench_precision            (docs/explanation/precision.md has what it said)
"""

from __future__ import annotations

import torch

from nbtune import models
from nbtune.spec import AdapterSpec

STEPS = 39
KINDS = {
    "fp32": (torch.float32, True),
    "bf16 nbtune": (torch.bfloat16, True),
    "bf16 stock": (torch.bfloat16, False),
}


def losses(dtype: torch.dtype, accelerate: bool, rate: float) -> list[float]:
    """Return the loss of fixed random rows before each of some steps, and after them."""
    built = models.build(
        "nbtune/tiny", adapter=AdapterSpec(r=16), dtype=dtype, device="cpu", accelerate=accelerate, tokenizer=False
    )
    model = built.model.train()
    ids = torch.randint(0, model.config.vocab_size, (4, 48), generator=torch.Generator().manual_seed(5))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer, found = torch.optim.AdamW(trained, lr=rate, weight_decay=0), []
    for _ in range(STEPS + 1):
        loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        found.append(float(loss))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return found


if __name__ == "__main__":
    torch.set_num_threads(1)
    for rate in (1e-5, 3e-5, 1e-4):
        for name, (dtype, accelerate) in KINDS.items():
            found = losses(dtype, accelerate, rate)
            print(
                f"{rate:g} {name}: fell by {found[0] - found[5]:.4f} in 5, {found[0] - found[-1]:.4f} in {STEPS} steps"
            )
