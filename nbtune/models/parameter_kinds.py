"""What each trained parameter is to an optimizer: some have a rate, or an optimizer, of their own."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal

from nbtune.models.heads import SCORE

if TYPE_CHECKING:
    from torch import nn

ParameterKind = Literal["embedding", "head", "lora_b", "matrix", "other"]


def parameter_kinds(model: "nn.Module") -> list[ParameterKind]:
    """Return the kind of each trained parameter, in the model's order."""
    return kinds_of(model, ((name, p) for name, p in model.named_parameters() if p.requires_grad))


def kinds_of(model: "nn.Module", named: "Iterable[tuple[str, nn.Parameter]]") -> list[ParameterKind]:
    """Return the kinds of some of a model's parameters.

    A head that is the embedding's own weight is ``embedding``, one of scores ``head``; ``matrix`` is any other of two
    dimensions, LoRA's A too, but no vector that is written as one, as IA3's are.
    """
    embeddings, heads = _within(model, "get_input_embeddings"), _within(model, "get_output_embeddings")

    def kind(name: str, parameter: "nn.Parameter") -> ParameterKind:
        if id(parameter) in embeddings:
            return "embedding"
        if ".lora_B." in name:
            return "lora_b"
        if (id(parameter) in heads or name.rsplit(".", 2)[-2:-1] == [SCORE]) and "lora_" not in name:
            return "head"
        flat = parameter.dim() == 2 and (min(parameter.shape) > 1 or "lora_" in name)
        return "matrix" if flat else "other"

    return [kind(name, p) for name, p in named]


def _within(model: Any, getter: str) -> set[int]:
    module = getattr(model, getter, lambda: None)()
    return set() if module is None else {id(p) for p in module.parameters()}
