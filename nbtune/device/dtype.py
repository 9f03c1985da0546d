"""In which precision a device computes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nbtune.device.facts import DeviceFacts
from nbtune.errors import PlanError

if TYPE_CHECKING:
    import torch


def choose_dtype(wanted: str, facts: DeviceFacts) -> tuple[str, str]:
    """Return the precision of frozen weights and products, and the reason for it, as ``("bf16", "…")``.

    >>> nbtune.device.choose_dtype("fp32", nbtune.device.describe(nbtune.device.pick("cpu")))
    ('fp32', 'asked for')

    Raises:
        PlanError: bf16 was asked for on a card that has none.
    """
    if wanted == "bf16" and facts.kind == "cuda" and not facts.bf16:
        raise PlanError(f"{facts.name} has no bf16 arithmetic", fix="write `dtype: fp16`, or leave it at auto")
    if wanted != "auto":
        return wanted, "asked for"
    if facts.kind == "cpu":
        return "fp32", "a CPU is fastest and exact in fp32"
    if facts.bf16:
        return "bf16", f"{facts.name} has bf16, which needs no loss scaling"
    return "fp16", f"{facts.name} has no bf16"


def torch_dtype(name: str) -> torch.dtype:
    """Return torch's dtype of a name that `choose_dtype` gives: fp32, bf16 or fp16.

    >>> nbtune.device.torch_dtype("bf16")
    torch.bfloat16
    """
    import torch

    return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[name]
