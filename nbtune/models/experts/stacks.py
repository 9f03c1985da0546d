"""Which of a model's weights are stacks of experts' matrices, an expert each, as transformers keeps them from 5 on."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn


def expert_counts(model: "nn.Module") -> set[int]:
    """Return how many experts the model's config speaks of: of each kind, of its text."""
    return {
        value
        for config in configs(model)
        for key, value in vars(config).items()
        if key.endswith("experts") and isinstance(value, int)
    }


def configs(model: "nn.Module") -> list[Any]:
    """Return the model's config, and that of its text where this is another."""
    config = getattr(model, "config", None)
    if config is None:
        return []
    text = config.get_text_config()
    return [config] if text is config else [config, text]


def stacked_weights(model: "nn.Module") -> "dict[str, nn.Parameter]":
    """Return the stacks of experts' matrices, `[E, …, …]`, by their names; a convolution's weights are none."""
    counts = expert_counts(model) - {1}
    return {name: p for name, p in _thick(model) if p.shape[0] in counts} if counts else {}


def _thick(model: "nn.Module") -> "Iterator[tuple[str, nn.Parameter]]":
    from torch import nn

    for place, module in model.named_modules():
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            continue
        for name, p in module.named_parameters(recurse=False):
            if p.dim() == 3 and min(p.shape) > 1:
                yield f"{place}.{name}" if place else name, p


def lora_numbers(weight: "nn.Parameter", r: int) -> int:
    """Return how many numbers a rank-`r` LoRA on a weight has: of a stack each expert has its own."""
    experts = weight.shape[0] if weight.dim() == 3 else 1
    return r * experts * (weight.shape[-1] + weight.shape[-2])
