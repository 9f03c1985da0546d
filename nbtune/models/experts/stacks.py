"""Which of a model's weights are stacks of experts' matrices, an expert each, as transformers keeps them from 5 on."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Container, Iterable, Iterator

    from torch import nn

    from nbtune.models.stored_names import Piece


def expert_counts(model: "nn.Module") -> set[int]:
    """Return how many experts the model's config speaks of: of each kind, of its text."""
    return {
        value
        for config in configs(model)
        for key, value in vars(config).items()
        if key.endswith("experts") and not key.startswith("top_k") and isinstance(value, int)
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
    return {f"{place}.{name}" if place else name: p for place, _, name, p in stacks_of(model)}


def stacks_of(model: "nn.Module") -> "Iterator[tuple[str, nn.Module, str, nn.Parameter]]":
    """Yield (name of the module, module, name of the weight, weight) of each; see `stacked_weights`."""
    counts = expert_counts(model) - {1}
    return (found for found in _thick(model) if found[3].shape[0] in counts)


def round_stacks(model: "nn.Module", format: str, names: "Container[str] | None" = None) -> None:
    """Round the experts' stacks of a model where they are (some may be rounded already); all, or those so called."""
    from nbtune.models.experts.rounded import can_be_rounded, round_stack, stack_of

    for place, module, name, p in list(stacks_of(model)):
        wanted = names is None or f"{place}.{name}" in names
        if wanted and can_be_rounded(p.shape) and stack_of(module, name) is None:
            round_stack(module, name, format)


def rounded_pieces(model: "nn.Module", stored: "Iterable[str]") -> "dict[str, list[Piece]]":
    """Return of each stack that is rounded for training, by its name, what the model's files hold of it.

    Args:
        model: its weights may hold nothing. stored: names of all weights in its files.
    """
    from nbtune.models.experts.rounded import can_be_rounded
    from nbtune.models.stored_names import pieces_of

    stacks = {name: p for name, p in stacked_weights(model).items() if can_be_rounded(p.shape)}
    if not stacks:
        return {}
    pieces = pieces_of(model, stored)
    return {name: pieces[name] for name in stacks if pieces.get(name)}


def _thick(model: "nn.Module") -> "Iterator[tuple[str, nn.Module, str, nn.Parameter]]":
    from torch import nn

    for place, module in model.named_modules():
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            continue
        for name, p in module.named_parameters(recurse=False):
            if p.dim() == 3 and min(p.shape) > 1:
                yield place, module, name, p


def lora_numbers(weight: "nn.Parameter", r: int) -> int:
    """Return how many numbers a rank-`r` LoRA on a weight has: of a stack each expert has its own."""
    experts = weight.shape[0] if weight.dim() == 3 else 1
    return r * experts * (weight.shape[-1] + weight.shape[-2])
