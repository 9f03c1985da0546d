"""Which columns of each weight the model's rows feel: K-quants and iq4 spend their bits by it (llama.cpp's imatrix)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from nbtune.errors import ExportError
from nbtune.export.gguf.vocabulary import load_tokenizer
from nbtune.export.reference_model import HeldRows, no_room, reference_model, room_for
from nbtune.export.source import ExportSource


def held_importance(source: ExportSource, rows: HeldRows) -> dict[str, torch.Tensor]:
    """Return how strongly each column of each linear weight is felt on `rows`, for ``export_gguf(importance=...)``.

    >>> run = nbtune.attach("demo")
    >>> felt = nbtune.export.held_importance(run.export.source(), nbtune.export.held_rows(run.folder))
    >>> felt["model.layers.0.mlp.down_proj.weight"].shape
    torch.Size([512])

    Raises:
        ExportError: the model does not fit into memory.
    """
    device = room_for(source)
    if device is None:
        raise ExportError(no_room(source), place=source.name, fix="export without importance.")
    with reference_model(source, device) as model:
        return importance(model, load_tokenizer(source.tokenizer_folder), rows.ids)


def importance(
    model: Any, tokenizer: Any, texts: Sequence[str | Sequence[int]], *, tokens: int = 512
) -> dict[str, torch.Tensor]:
    """Measure how strongly each column of each linear weight is felt: the mean square of its input over `texts`.

    Args:
        model: the trained model (with its adapter on it, or merged).
        tokenizer: its tokenizer.
        texts: such as the run's own eval rows; or their token ids.
        tokens: of each text, at most.

    Returns:
        weight's name in the base → (columns,), fp32, on the CPU; what `export_gguf(importance=...)` takes.
    """
    sums: dict[str, torch.Tensor] = {}
    counts: dict[str, int] = {}

    def watch(name: str) -> Any:
        def hook(_module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
            x = inputs[0].detach().reshape(-1, inputs[0].shape[-1]).float()
            sums[name] = sums.get(name, torch.zeros(())) + x.square().sum(0).cpu()
            counts[name] = counts.get(name, 0) + x.shape[0]

        return hook

    hooks = []
    for name, module in model.named_modules():
        if getattr(getattr(module, "weight", None), "ndim", 0) == 2 and hasattr(module, "in_features"):
            clean = name.removeprefix("base_model.model.").removesuffix(".base_layer")
            if "lora_" not in name and not hasattr(module, "base_layer"):
                hooks.append(module.register_forward_pre_hook(watch(f"{clean}.weight")))
    try:
        with torch.no_grad():
            for text in texts:
                ids = tokenizer(text)["input_ids"] if isinstance(text, str) else list(text)
                ids = ids[:tokens]
                if ids:
                    model(torch.tensor([ids], device=next(model.parameters()).device))
    finally:
        for hook in hooks:
            hook.remove()
    return {name: total / counts[name] for name, total in sums.items()}
